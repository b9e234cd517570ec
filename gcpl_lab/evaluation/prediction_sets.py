"""Sets of answers with a promised coverage, and how far the promise is kept.

Exemplars that trained a model are not exchangeable with new images: calibrate on images that trained nothing.

Source: split conformal prediction, Sadinle, Lei and Wasserman 2019, https://arxiv.org/abs/1609.00451; a limit for each
label: Vovk 2012, https://arxiv.org/abs/1209.2673 (label-conditional)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.multilabel import check_scores
from gcpl_lab.evaluation.separation import Estimate
from gcpl_lab.evaluation.trust import share_with_interval


def limit_of(chances: np.ndarray, promised: float) -> float:
    """The smallest probability of a true class that belongs to a set: of n + 1 with a new one, so many lie above it.

    Args:
        chances: Of the true classes of calibration images, (image,); where they are too few for the promise, 0.
        promised: Between 0 and 1.
    """
    place = math.floor((len(chances) + 1) * (1 - promised) + 1e-9)  # so many may lie below
    return float(np.sort(chances)[place - 1]) if place else 0.0


def predict_sets(
    calibration: np.ndarray,
    targets: np.ndarray,
    probabilities: np.ndarray,
    promised: float = 0.9,
    by_label: bool = False,
) -> np.ndarray:
    """Answers that hold the true class with the promised probability, over images like those of the calibration.

    Args:
        calibration: Probabilities (image, class) of images that trained nothing, with targets 0/1 (image, class).
        probabilities: Of the images to answer, (image, class).
        promised: Between 0 and 1. With n calibration images no error rate below 1/(n + 1) can be promised.
        by_label: For several labels an image: the recall of each label is promised. It has a limit of its own, ranked
            among the calibration images that have it; one that too few of them have for the promise is in every set.

    Returns:
        bool (image, class); a row may be empty, where no class is likely enough.

    Raises:
        DataError: No calibration images, too few for the promise, or probabilities of another number of classes.
    """
    calibration, targets = check_scores(calibration, targets, probabilities=True)
    if probabilities.ndim != 2 or probabilities.shape[1] != calibration.shape[1]:
        raise DataError(
            f"probabilities have the shape {probabilities.shape} and the calibration's {calibration.shape}; expected "
            "the same classes in both"
        )
    has = targets.astype(bool)
    check_promise(promised, int(has.any(axis=1).sum()))
    if not by_label:
        return np.asarray(probabilities >= limit_of(calibration[has], promised))
    columns = zip(calibration.T, has.T, strict=True)
    return np.asarray(probabilities >= [limit_of(chances[there], promised) for chances, there in columns])


def check_promise(promised: float, num_images: int) -> None:
    """Refuse, by a DataError, a coverage that so few calibration images cannot carry."""
    if not 0 < promised < 1:
        raise DataError(f"the promised coverage is {promised}; expected a number between 0 and 1, such as 0.9")
    least = smallest_error_rate(num_images)
    if 1 - promised < least:
        raise DataError(
            f"{num_images} calibration images cannot promise a coverage of {promised:.1%}: the smallest error rate "
            f"that they carry is {least:.1%}; promise less, or calibrate on more images"
        )


def smallest_error_rate(num_images: int) -> float:
    """1 / (n + 1): below it no promise can be made from n calibration images."""
    return 1 / (num_images + 1)


def measure_coverage(sets: np.ndarray, targets: np.ndarray, promised: float) -> dict[str, Any]:
    """Coverage of sets bool (image, class) on targets 0/1 (image, class), one-hot where an image has one class.

    With several labels an image: the mean over images of the share of its labels that its set holds. Images without a
    label are left out.

    Returns:
        ``promised``; ``measured`` with its 95 % interval ``low`` to ``high``; ``num_images``; ``by_class``, of which a
        class without an image has None; ``mean_size`` of the sets, and the shares with a ``single`` answer, which need
        nobody to choose, and of ``empty`` ones.
    """
    sets, targets = np.asarray(sets, bool), np.asarray(targets, bool)
    if sets.shape != targets.shape or not targets.any():
        raise DataError(f"sets have the shape {sets.shape} and targets {targets.shape}; expected one shape, and labels")
    sets, targets = sets[targets.any(axis=1)], targets[targets.any(axis=1)]
    held, there = (sets & targets).sum(axis=0), targets.sum(axis=0)
    counts = zip(held.tolist(), there.tolist(), strict=True)
    shares = [share_with_interval(*pair)._asdict() if pair[1] else None for pair in counts]
    recalls, sizes = (sets & targets).sum(axis=1) / targets.sum(axis=1), sets.sum(axis=1)
    single = bool((targets.sum(axis=1) == 1).all())
    whole = share_with_interval(int(recalls.sum()), len(sets)) if single else mean_with_interval(recalls)
    found: dict[str, Any] = {"promised": promised, "measured": whole.value, "low": whole.low, "high": whole.high}
    shown = {"mean_size": sizes, "single": sizes == 1, "empty": sizes == 0}
    means = {name: float(values.mean()) for name, values in shown.items()}
    return found | {"num_images": len(sets), "by_class": shares, **means}


def mean_with_interval(values: np.ndarray) -> Estimate:
    """A mean with its 95 % interval by Student's t; the interval is NaN for a single value."""
    values = np.asarray(values, np.float64)
    mean, spread = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else np.nan
    reach = float(student_t.ppf(0.975, max(1, len(values) - 1))) * spread
    return Estimate(mean, mean - reach, mean + reach)
