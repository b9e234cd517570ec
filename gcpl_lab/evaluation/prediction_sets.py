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
from gcpl_lab.evaluation.trust import share_of


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
        DataError: A promise that so few calibration images cannot carry, or probabilities of other classes.
    """
    calibration, targets = check_scores(calibration, targets, probabilities=True)
    if probabilities.ndim != 2 or probabilities.shape[1] != calibration.shape[1]:
        shapes = f"{probabilities.shape} and the calibration's {calibration.shape}"
        raise DataError(f"probabilities have the shape {shapes}; expected the same classes in both")
    has = targets.astype(bool)
    num_images = int(has.any(axis=1).sum())
    least = smallest_error_rate(num_images)
    if not least <= 1 - promised < 1:
        raise DataError(
            f"{num_images} calibration images cannot promise a coverage of {promised:.1%}: the smallest error rate "
            f"that they carry is {least:.1%}; promise less, or calibrate on more images"
        )
    if not by_label:
        return np.asarray(probabilities >= _limit(calibration[has], promised))
    columns = zip(calibration.T, has.T, strict=True)
    return np.asarray(probabilities >= [_limit(chances[there], promised) for chances, there in columns])


def _limit(chances: np.ndarray, promised: float) -> float:
    """The smallest probability of a true class that belongs to a set; 0 where too few images carry the promise."""
    place = math.floor((len(chances) + 1) * (1 - promised) + 1e-9)  # so many of them and a new one may lie below
    return float(np.sort(chances)[place - 1]) if place else 0.0


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
    columns = zip(sets.T, targets.T, strict=True)
    shares = [share_of(held[there]) if there.any() else None for held, there in columns]
    recalls, sizes = (sets & targets).sum(axis=1) / targets.sum(axis=1), sets.sum(axis=1)
    single = bool((targets.sum(axis=1) == 1).all())
    whole = share_of(recalls) if single else mean_with_interval(recalls)._asdict()
    found: dict[str, Any] = {"promised": promised, "measured": whole.pop("value"), **whole, "num_images": len(sets)}
    shown = {"mean_size": sizes, "single": sizes == 1, "empty": sizes == 0}
    return found | {"by_class": shares} | {name: float(values.mean()) for name, values in shown.items()}


def mean_with_interval(values: np.ndarray) -> Estimate:
    """A mean with its 95 % interval by Student's t; the interval is NaN for a single value."""
    values = np.asarray(values, np.float64)
    mean, spread = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else np.nan
    reach = float(student_t.ppf(0.975, max(1, len(values) - 1))) * spread
    return Estimate(mean, mean - reach, mean + reach)
