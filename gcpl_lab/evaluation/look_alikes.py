"""How far look-alikes lie apart in what a classifier reads: three scores are a plane, two scores are a line.

Scores are (image, class), larger is better, of any method; what all classes of an image share says nothing about the
class and is taken away. For three classes what is left sums to zero, so a plane holds it exactly: no projection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.metrics import check_rows
from gcpl_lab.evaluation.separation import Estimate, profile_points
from gcpl_lab.evaluation.trust import share_with_interval

CORNERS = np.array([[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in (90, 210, 330)])
"""Where each of three classes lies on the plane, (class, 2): above, to the left and to the right, 120° apart."""


class PairStatistics(NamedTuple):
    """How far two classes come apart in the difference of their scores."""

    auc: Estimate  # chance that an image of the first has the larger difference; 0.5 is no separation
    d_prime: float  # distance of the two means in their pooled standard deviation; below 0 they are swapped


def relative_scores(errors: np.ndarray) -> np.ndarray:
    """Scores (image, class) of denoising errors (image, class, sample) under these prompts alone.

    One minus the error relative to the mean over the classes, averaged over the samples: they sum to zero, and the
    largest is the diffusion classifier's decision among these classes, without offsets.
    """
    shape = np.shape(errors)
    return -profile_points(errors).reshape(shape).mean(axis=2)


def plane_coordinates(scores: np.ndarray) -> np.ndarray:
    """Where three scores (image, 3) lie on the plane on which they sum to zero, (image, 2); distances are kept.

    The largest score is that of the nearest of ``CORNERS``: decision borders are straight rays between them.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] != 3:
        raise DataError(f"scores has shape {scores.shape}; expected (image, 3), the scores of three classes")
    return np.asarray((scores - scores.mean(axis=1, keepdims=True)) @ CORNERS * math.sqrt(2 / 3))


def share_in_own_sector(scores: np.ndarray, labels: np.ndarray) -> Estimate:
    """How often the own class's score is the largest, with Wilson's 95 % interval over these images."""
    scores, labels = check_rows("image", scores, labels)
    return share_with_interval(int((scores.argmax(axis=1) == labels).sum()), len(labels))


def pair_statistics(first: np.ndarray, second: np.ndarray) -> PairStatistics:
    """AUC and d′ of the score of class A minus that of class B: ``first`` on images of A, ``second`` on those of B.

    The interval is Newcombe's, which asks which true values make the measured one likely: it is no single point where
    all images are ranked right.

    Source: Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic",
    part 2, method 5
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    sizes = len(first), len(second)
    if min(sizes) < 2:
        raise DataError(f"{sizes[0]} images of one class and {sizes[1]} of the other; expected 2 or more of each")
    found = float(roc_auc_score(np.repeat([1, 0], sizes), np.concatenate([first, second])))
    larger, z = sum(sizes) / 2 - 1, float(norm.ppf(0.975))

    def beyond(true: float) -> float:
        """How far the measured value lies outside the interval of a true one; below 0 it is inside."""
        spread = 1 + larger * (1 - true) / (2 - true) + larger * true / (1 + true)
        return (found - true) ** 2 - z**2 * true * (1 - true) * spread / (sizes[0] * sizes[1])

    inner = min(max(found, 1e-9), 1 - 1e-9)  # at 0 and at 1 the difference itself has a root
    low = 0.0 if found == 0 else float(brentq(beyond, 0, inner))
    high = 1.0 if found == 1 else float(brentq(beyond, inner, 1))
    spread = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
    distance = float(first.mean() - second.mean())
    return PairStatistics(
        Estimate(found, low, high), distance / spread if spread else math.copysign(math.inf, distance)
    )


def pair_margins(scores: np.ndarray, labels: np.ndarray, pair: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The score of class A minus that of class B, on the images of A and on those of B."""
    scores, labels = check_rows("image", scores, labels)
    margins = scores[:, pair[0]] - scores[:, pair[1]]
    return margins[labels == pair[0]], margins[labels == pair[1]]


def worst_pair(scores: np.ndarray, labels: np.ndarray) -> tuple[tuple[int, int], PairStatistics]:
    """The two classes that come apart least, by AUC, and how far they do."""
    pairs = itertools.combinations(range(np.shape(scores)[1]), 2)
    found = {pair: pair_statistics(*pair_margins(scores, labels, pair)) for pair in pairs}
    worst = min(found, key=lambda pair: found[pair].auc.value)
    return worst, found[worst]


def measure_look_alikes(
    method: str, scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], step: int | None = None
) -> dict[str, Any]:
    """One entry of ``look_alikes`` in ``results.json``.

    Args:
        method: What tables call it.
        scores: (image, class) under these two or three classes alone.
        labels: (image,), places in ``classes``.
        classes: Names.
        step: Training step of the prompts; None for a method that has none.
    """
    right, (pair, found) = share_in_own_sector(scores, labels), worst_pair(scores, labels)
    auc = {"auc": found.auc.value, "auc_low": found.auc.low, "auc_high": found.auc.high}
    return {
        "method": method,
        "classes": list(classes),
        "share_in_own_sector": right.value,
        "low": right.low,
        "high": right.high,
        **auc,
        "d_prime": found.d_prime if math.isfinite(found.d_prime) else None,
        "pair": [classes[place] for place in pair],
        "num_images": len(labels),
        "step": step,
    }


def choose_look_alikes(
    features: np.ndarray, labels: np.ndarray, class_names: Sequence[str], families: Mapping[str, Sequence[str]]
) -> list[tuple[str, ...]]:
    """The two or three classes of every family that look most alike: those a map can show.

    Args:
        features: Of images that are learned from, (image, feature): what is shown is not chosen on test images.
        labels: (image,), places in ``class_names``.
        families: Family to its classes; without any, all classes are one family.
    """
    features, labels = check_rows("image", features, labels)
    groups = [[name for name in class_names if name in members] for members in families.values()]
    groups = [group for group in groups if len(group) > 1] or [list(class_names)]
    means = {name: features[labels == place].mean(axis=0) for place, name in enumerate(class_names)}
    centre = np.mean(list(means.values()), axis=0)
    unit = {name: (mean - centre) / max(float(np.linalg.norm(mean - centre)), 1e-12) for name, mean in means.items()}

    def alike(chosen: tuple[str, ...]) -> float:
        return float(np.mean([unit[one] @ unit[other] for one, other in itertools.combinations(chosen, 2)]))

    return [max(itertools.combinations(group, min(3, len(group))), key=alike) for group in groups]
