"""How well scores rank and decide several labels a picture: average precision, thresholds, calibration.

Scores are compared within a class, over the pictures; nothing is a softmax over classes. A class without a
positive picture has no average precision: it is reported as None and left out of every mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from gcpl_lab.data.multilabel import check_targets, head_medium_tail
from gcpl_lab.errors import DataError


def average_precisions(scores: np.ndarray, targets: np.ndarray, even: bool = False) -> list[float | None]:
    """Average precision of every class, as scikit-learn defines it (no interpolation).

    The average precision of a random ranking is the share of positives, so on pictures with a long tail a class with
    two positives has a small and very noisy one. ``even`` weighs positives and negatives of each class as if all
    classes were as frequent as they are on average: what is wanted where settings are chosen on such pictures for
    a test set without a tail.

    Args:
        scores: (image, class), any finite numbers; only their order within a class counts.
        targets: (image, class), 0 or 1.
        even: See above.

    Returns:
        One number from 0 to 1 a class; None for a class without a positive image.

    Raises:
        DataError: Shapes differ, a score is not finite, or a target is neither 0 nor 1.
    """
    scores, targets = _check(scores, targets)
    shares = targets.mean(axis=0)
    wanted = float(targets.mean()) if even else shares
    with np.errstate(divide="ignore", invalid="ignore"):  # a class without positives or negatives is not weighed
        weights = np.where(targets == 1, wanted / shares, (1 - wanted) / (1 - shares))
    return [
        float(average_precision_score(targets[:, label], scores[:, label], sample_weight=weights[:, label]))
        if targets[:, label].any()
        else None
        for label in range(targets.shape[1])
    ]


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of :func:`average_precisions` over the classes that have one.

    Raises:
        DataError: As there; also where no class has a positive image.
    """
    mean = _mean(average_precisions(scores, targets))
    if mean is None:
        raise DataError("no class has a positive image, so there is no average precision; check the targets")
    return mean


def multilabel_report(
    scores: np.ndarray,
    targets: np.ndarray,
    train_counts: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    even: bool = False,
) -> dict[str, Any]:
    """Mean average precision over all, head, medium and tail classes, and every class by itself.

    Args:
        scores: (image, class), any finite numbers.
        targets: (image, class), 0 or 1.
        train_counts: (class,): training images with each class; they part head, medium and tail.
        class_names: One a class.
        even: See :func:`average_precisions`.

    Returns:
        ``map``, ``map_head``, ``map_medium``, ``map_tail`` (None where a part has no class to average),
        ``classes``: a list of ``name, part, average_precision, num_train, num_test``, and
        ``classes_without_positives``: names that are in no mean.

    Raises:
        DataError: As :func:`average_precisions`; also where counts or names are of another number.
    """
    precisions = average_precisions(scores, targets, even)
    for what, values in (("train_counts", train_counts), ("class_names", class_names)):
        if len(values) != len(precisions):
            raise DataError(f"{what} has {len(values)} entries; expected {len(precisions)}, one a class")
    parts = head_medium_tail(train_counts)
    part_of = {int(label): part for part, labels in parts.items() for label in labels}
    positives = np.asarray(targets).sum(axis=0)
    classes = [
        {
            "name": str(class_names[label]),
            "part": part_of[label],
            "average_precision": precision,
            "num_train": int(train_counts[label]),
            "num_test": int(positives[label]),
        }
        for label, precision in enumerate(precisions)
    ]
    report: dict[str, Any] = {"map": _mean(precisions)}
    for part, labels in parts.items():
        report[f"map_{part}"] = _mean([precisions[label] for label in labels])
    report["classes"] = classes
    report["classes_without_positives"] = [entry["name"] for entry in classes if entry["average_precision"] is None]
    return report


def choose_thresholds(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The threshold of every class with the best F1; to be chosen on validation, never on test.

    Halfway to the next lower score, so that it does not hang on one image's exact score. A class without a
    positive image takes the median of the others' thresholds (the largest score where there is none).

    Args:
        scores: (image, class), any finite numbers.
        targets: (image, class), 0 or 1.

    Returns:
        float64 (class,): a class is predicted where its score is at least this.
    """
    scores, targets = _check(scores, targets)
    thresholds = np.full(targets.shape[1], np.nan)
    for label in np.flatnonzero(targets.any(axis=0)):
        precision, recall, candidates = precision_recall_curve(targets[:, label], scores[:, label])
        best = int(np.argmax(2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], 1e-12)))
        lower = scores[scores[:, label] < candidates[best], label]
        thresholds[label] = (candidates[best] + lower.max()) / 2 if len(lower) else candidates[best]
    known = thresholds[~np.isnan(thresholds)]
    fallback = float(np.median(known)) if len(known) else float(scores.max(initial=0.0))
    return np.where(np.isnan(thresholds), fallback, thresholds)


def decision_quality(scores: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | float = 0.5) -> dict[str, float]:
    """Precision, recall and F1 of thresholded scores: the mean over classes (macro) and over all decisions (micro).

    Args:
        scores: (image, class), any finite numbers.
        targets: (image, class), 0 or 1.
        thresholds: (class,) or one for all; a class is predicted where its score is at least this.

    Returns:
        ``precision_macro``, ``recall_macro``, ``f1_macro`` over the classes with a positive image, and
        ``precision_micro``, ``recall_micro``, ``f1_micro``; a ratio without denominator counts as 0.
    """
    scores, targets = _check(scores, targets)
    predicted = scores >= np.asarray(thresholds)
    present = targets.astype(bool)
    right = (predicted & present).sum(axis=0)
    called, there = predicted.sum(axis=0), present.sum(axis=0)
    known = there > 0
    macro = [float(values[known].mean()) if known.any() else 0.0 for values in _ratios(right, called, there)]
    micro = [float(values) for values in _ratios(right.sum(), called.sum(), there.sum())]
    names = ("precision", "recall", "f1")
    return {f"{name}_macro": value for name, value in zip(names, macro, strict=True)} | {
        f"{name}_micro": value for name, value in zip(names, micro, strict=True)
    }


def calibration_error(probabilities: np.ndarray, targets: np.ndarray, num_bins: int = 15) -> float:
    """Expected calibration error over all scores: how far a said probability is from what happens.

    Every (image, class) pair is one binary statement. Bins are of equal width from 0 to 1, each weighed by the
    share of pairs in it.

    Args:
        probabilities: (image, class), from 0 to 1.
        targets: (image, class), 0 or 1.
        num_bins: 1 or more.

    Returns:
        From 0 (calibrated) to 1.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning"
    """
    probabilities, targets = _check(probabilities, targets)
    outside = np.argwhere((probabilities < 0) | (probabilities > 1))
    if len(outside):
        row, column = outside[0]
        raise DataError(
            f"the probability of image {row}, class {column} is {probabilities[row, column]}; "
            "expected 0 to 1: put a sigmoid on logits"
        )
    if num_bins < 1:
        raise DataError(f"num_bins is {num_bins}; expected 1 or more")
    bins = np.minimum((probabilities * num_bins).astype(int), num_bins - 1).ravel()
    said = np.bincount(bins, weights=probabilities.ravel(), minlength=num_bins)
    happened = np.bincount(bins, weights=targets.ravel(), minlength=num_bins)
    return float(np.abs(said - happened).sum() / max(probabilities.size, 1))


def _check(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = np.asarray(scores, dtype=np.float64), check_targets(targets)
    if scores.shape != targets.shape:
        raise DataError(f"scores have shape {scores.shape} and targets {targets.shape}; expected equal ones")
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(f"the score of image {row}, class {column} is {scores[row, column]}; expected finite numbers")
    return scores, targets


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _ratios(right: Any, called: Any, there: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 from counts; 0 where there is nothing to divide by."""
    return tuple(
        np.where(below > 0, above / np.maximum(below, 1), 0.0)
        for above, below in ((right, called), (right, there), (2 * right, called + there))
    )  # type: ignore[return-value]
