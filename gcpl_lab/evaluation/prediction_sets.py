"""Sets of answers with a promised coverage, through MAPIE, and how far the promise is kept.

Exemplars that trained a model are not exchangeable with new images: calibrate on images that trained nothing.

Source: split conformal prediction, Sadinle, Lei and Wasserman 2019, https://arxiv.org/abs/1609.00451; a limit for each
label: Vovk 2012, https://arxiv.org/abs/1209.2673 (label-conditional)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t
from sklearn.base import BaseEstimator, ClassifierMixin

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.metrics import check_rows
from gcpl_lab.evaluation.multilabel import check_scores
from gcpl_lab.evaluation.separation import Estimate
from gcpl_lab.evaluation.trust import share_with_interval


class _Computed(ClassifierMixin, BaseEstimator):
    """What MAPIE takes for a fitted classifier: its inputs are the probabilities themselves."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.classes_ = np.arange(num_classes)

    def fit(self, X: Any, y: Any = None) -> _Computed:
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(X)

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(X).argmax(axis=1)


def predict_sets(
    calibration: np.ndarray, calibration_labels: np.ndarray, probabilities: np.ndarray, promised: float = 0.9
) -> np.ndarray:
    """Answers that hold the true class with the promised probability, over images like those of the calibration.

    Args:
        calibration: Probabilities (image, class) of images that trained nothing, with labels int (image,).
        probabilities: Of the images to answer, (image, class).
        promised: Between 0 and 1. With n calibration images no error rate below 1/(n + 1) can be promised.

    Returns:
        bool (image, class); a row may be empty, where no class is likely enough.

    Raises:
        DataError: No calibration images, too few for the promise, or probabilities of another number of classes.
    """
    from mapie.classification import SplitConformalClassifier  # type: ignore[import-untyped]

    calibration, labels = check_rows("calibration image", calibration, calibration_labels)
    if probabilities.ndim != 2 or probabilities.shape[1] != calibration.shape[1]:
        raise DataError(
            f"probabilities have the shape {probabilities.shape} and the calibration's {calibration.shape}; expected "
            "the same classes in both"
        )
    check_promise(promised, len(labels))
    model = SplitConformalClassifier(
        _Computed(calibration.shape[1]), promised, conformity_score="lac", prefit=True, random_state=0
    )
    model.conformalize(_normalised(calibration), labels)
    sets: np.ndarray = model.predict_set(_normalised(probabilities))[1][:, :, 0]
    return sets


def predict_label_sets(
    calibration: np.ndarray, targets: np.ndarray, probabilities: np.ndarray, promised: float = 0.9
) -> np.ndarray:
    """For several labels an image: sets that hold each label with the promised probability where it is there.

    Each label has a limit of its own, ranked among the calibration images that have it. A label that too few of them
    have for the promise is in every set.

    Args:
        calibration: Probabilities (image, class), with targets 0/1 (image, class).
        probabilities, promised: See :func:`predict_sets`.

    Returns:
        bool (image, class).
    """
    calibration, targets = check_scores(calibration, targets, probabilities=True)
    check_promise(promised, int(targets.any(axis=1).sum()))
    limits = np.zeros(targets.shape[1])
    for label, has in enumerate(targets.T.astype(bool)):
        place = int(np.floor((has.sum() + 1) * (1 - promised) + 1e-9))  # so many of those with it may lie below
        if place > 0:
            limits[label] = np.sort(calibration[has, label])[place - 1]
    return np.asarray(probabilities >= limits)


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


def _normalised(values: np.ndarray) -> np.ndarray:
    """Rows that sum to one in double precision, which MAPIE asks for."""
    values = np.clip(np.asarray(values, np.float64), 1e-12, None)
    normal: np.ndarray = values / values.sum(axis=1, keepdims=True)
    return normal


@dataclass(frozen=True)
class Coverage:
    """How a promise was kept on labelled images."""

    promised: float
    measured: Estimate  # share of true classes that were in their sets, with its 95 % interval
    num_images: int
    by_class: tuple[Estimate | None, ...]  # (class,); None for a class without an image
    mean_size: float  # of the sets
    single: float  # share of sets with one answer, which need nobody to choose
    empty: float

    @property
    def kept(self) -> bool:
        """Whether the promise lies below the upper end of the measured interval: not refuted."""
        return self.promised <= self.measured.high

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        classes = [None if value is None else value._asdict() for value in self.by_class]
        shares = {"mean_size": self.mean_size, "single": self.single, "empty": self.empty}
        ends = {"measured": self.measured.value, "low": self.measured.low, "high": self.measured.high}
        return {"promised": self.promised, **ends, "num_images": self.num_images, "by_class": classes, **shares}


def measure_coverage(sets: np.ndarray, targets: np.ndarray, promised: float) -> Coverage:
    """Coverage of sets bool (image, class) on targets 0/1 (image, class), one-hot where an image has one class.

    With several labels an image: the mean over images of the share of its labels that its set holds. Images without a
    label are left out.
    """
    sets, targets = np.asarray(sets, bool), np.asarray(targets, bool)
    if sets.shape != targets.shape or not targets.any():
        raise DataError(f"sets have the shape {sets.shape} and targets {targets.shape}; expected one shape, and labels")
    sets, targets = sets[targets.any(axis=1)], targets[targets.any(axis=1)]
    held, there = (sets & targets).sum(axis=0), targets.sum(axis=0)
    shares = [share_with_interval(int(a), int(b)) if b else None for a, b in zip(held, there, strict=True)]
    recalls, sizes = (sets & targets).sum(axis=1) / targets.sum(axis=1), sets.sum(axis=1)
    single = bool((targets.sum(axis=1) == 1).all())
    whole = share_with_interval(int(recalls.sum()), len(sets)) if single else mean_with_interval(recalls)
    shown = (float(sizes.mean()), float((sizes == 1).mean()), float((sizes == 0).mean()))
    return Coverage(promised, whole, len(sets), tuple(shares), *shown)


def mean_with_interval(values: np.ndarray) -> Estimate:
    """A mean with its 95 % interval by Student's t; the interval is NaN for a single value."""
    values = np.asarray(values, np.float64)
    mean, spread = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else np.nan
    reach = float(student_t.ppf(0.975, max(1, len(values) - 1))) * spread
    return Estimate(mean, mean - reach, mean + reach)
