"""Watching a stream of images: tests that may be looked at as often as one likes.

A test martingale starts at 1 and bets against "the stream is like the calibration set". If that is true, the chance
that it ever reaches 1/α is at most α (Ville's inequality), however often one looks. A test with a p-value is made again
whenever the stream has doubled, and every look spends a part of its error level.

Source: Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World, section 7.1 (simple jumper); Gretton et
al. 2012, https://jmlr.org/papers/v13/gretton12a.html (kernel two-sample test)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist, squareform
from scipy.stats import chi2_contingency

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.costs import decide_each

LEVEL, FEATURE_LEVEL = 0.05, 0.03
"""Chance that an unchanged stream ever raises an alarm, all tests together, and the part of the kernel test, which
sees what no single image shows."""
LOOKS = tuple(50 * 2**number for number in range(16))
"""Numbers of images after which class mix and features are tested."""
MOST_COMPARED = 1000
"""Latest images of a look that the kernel test compares: their distances must fit into memory."""
Answers = Mapping[str, np.ndarray]


def find_drift(
    calibration: Answers, stream: Answers, thresholds: np.ndarray | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """A martingale on each score of an image, and repeated tests of the class mix and of CLIP's features.

    Args:
        calibration, stream: ``probabilities`` and ``distances`` to the nearest exemplars (image, class), ``features``
            (image, feature) and, of a denoiser, ``errors`` (image, class).
        thresholds: (class,), of images with several labels.
        seed: Of ties and permutations.

    Returns:
        For each test whether there was an ``alarm``, ``after`` how many images, and the figures behind it.
    """
    known, new = (decide_each(part["probabilities"], thresholds) for part in (calibration, stream))
    scores = {"certainty": (known[0], new[0])}
    for name, rows in {"feature distance": "distances", "denoising error": "errors"}.items():
        if rows in stream:
            scores[name] = calibration[rows].min(axis=1), stream[rows].min(axis=1)
    level, found = (LEVEL - FEATURE_LEVEL) / (len(scores) + 1), dict[str, dict[str, Any]]()
    for name, (before, now) in scores.items():
        values = bet_against(before, now, seed)
        over = np.flatnonzero(values >= 1 / level)
        found[name] = {"alarm": bool(len(over)), "after": int(over[0]) + 1 if len(over) else None, "limit": 1 / level}
        found[name] |= {"values": values.tolist(), "martingale": float(values.max())}
        found[name] |= {"calibration_mean": float(before.mean()), "mean": float(now.mean())}

    def mix(look: int, _: float) -> float:
        return mix_p_value(known[1], new[1][:look])

    def features(look: int, spent: float) -> float:
        latest = stream["features"][max(0, look - MOST_COMPARED) : look]
        return features_p_value(calibration["features"], latest, math.ceil(5 / spent), seed)

    for name, test, whole in (("class mix", mix, level), ("CLIP features", features, FEATURE_LEVEL)):
        entry: dict[str, Any] = {"alarm": False, "after": None, "p_value": None, "limit": None}
        for number, look in enumerate((look for look in LOOKS if look <= len(new[0])), 1):
            spent = whole * 6 / (math.pi * number) ** 2  # all looks together spend the whole level
            entry |= {"p_value": test(look, spent), "limit": spent}
            if entry["p_value"] < spent:
                entry |= {"alarm": True, "after": look}
                break
        found[name] = entry
    return found


def bet_against(calibration: ArrayLike, stream: ArrayLike, seed: int = 0) -> np.ndarray:
    """Values (image,) of MAPIE's martingale on the ranks of a score among all that was seen before it.

    Args:
        calibration: Scores (image,) of images that trained nothing: what was seen first.
        stream: Scores (image,) in the order in which they came.
        seed: Of the numbers that break ties.
    """
    from mapie.exchangeability_testing import OnlineMartingaleTest  # type: ignore[import-untyped]

    seen = np.concatenate([np.asarray(calibration, float), np.asarray(stream, float)])
    first, test = np.size(calibration), OnlineMartingaleTest(warn=False, random_state=seed)
    if not first or not np.isfinite(seen).all():
        raise DataError(f"{first} calibration scores; expected one or more, and finite numbers in the stream")
    for place in range(first, len(seen)):
        test.update_simple_jumper_martingale(test.compute_p_value(seen[place], seen[:place]))
    return np.array(test.martingale_value_history)


def mix_p_value(before: np.ndarray, now: np.ndarray) -> float:
    """p-value of a chi-square test of how often each class is answered, from answers 0/1 (image, class)."""
    counts = np.stack([before.sum(axis=0), now.sum(axis=0)])
    counts = counts[:, counts.any(axis=0)]
    testable = counts.shape[1] > 1 and counts.any(axis=1).all()
    return float(chi2_contingency(counts).pvalue) if testable else 1.0


def features_p_value(before: np.ndarray, now: np.ndarray, num_permutations: int, seed: int = 0) -> float:
    """p-value of the maximum mean discrepancy between two sets of features (image, feature), by permutation.

    Its kernel is Gaussian, with the median distance. A new class is noticed as a crowd where few images were before.
    """
    distances = pdist(np.concatenate([before, now]), "sqeuclidean")
    kernel = np.exp(-squareform(distances) / max(float(np.median(distances)), 1e-12)).astype(np.float32)
    own = np.repeat(np.array([1 / len(before), -1 / len(now)], np.float32), [len(before), len(now)])
    weights = np.random.default_rng([seed, 101]).permuted(np.tile(own, (num_permutations + 1, 1)), axis=1)
    weights[0] = own
    found = np.einsum("ij,ij->i", weights @ kernel, weights)
    return float((found >= found[0] * (1 - 1e-5)).mean())
