"""How well scores rank and decide several labels an image: average precision, thresholds, calibration.

A class without a positive image has no average precision: None, and left out of every mean. Everywhere scores are
(image, class), finite, and targets (image, class), 0 or 1; a DataError names what is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, precision_recall_fscore_support

from gcpl_lab.data.multilabel import head_medium_tail
from gcpl_lab.data.sets import check_targets
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.metrics import NUM_BINS
from gcpl_lab.evaluation.separation import Estimate

NUM_BOOTSTRAP = 200


def check_scores(scores: np.ndarray, targets: np.ndarray, probabilities: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores as float64 and targets as uint8, both (image, class), or a DataError that names the first wrong entry."""
    scores, targets = np.asarray(scores, dtype=np.float64), check_targets(targets)
    if scores.shape != targets.shape:
        raise DataError(f"scores have shape {scores.shape} and targets {targets.shape}; expected equal ones")
    right = (scores >= 0) & (scores <= 1) if probabilities else np.isfinite(scores)
    if not right.all():
        row, column = np.argwhere(~right)[0]
        expected = "0 to 1: put a sigmoid on logits" if probabilities else "finite numbers"
        raise DataError(f"the score of image {row}, class {column} is {scores[row, column]}; expected {expected}")
    return scores, targets


def average_precisions(scores: np.ndarray, targets: np.ndarray, even: bool = False) -> list[float | None]:
    """Average precision of every class, as scikit-learn defines it; None for a class without a positive image.

    A random ranking's is the share of positives, so on a long tail a class with two positives has a small and very
    noisy one. ``even`` weighs positives and negatives of each class as if all classes were as frequent as they are on
    average: what is wanted where settings are chosen on such images for a test set without a tail.
    """
    scores, targets = check_scores(scores, targets)
    shares = targets.mean(axis=0)
    wanted = float(targets.mean()) if even else shares
    with np.errstate(divide="ignore", invalid="ignore"):  # a class without positives or negatives is not weighed
        weights = np.where(targets == 1, wanted / shares, (1 - wanted) / (1 - shares))
    return [
        float(average_precision_score(truth, ranked, sample_weight=weight)) if truth.any() else None
        for truth, ranked, weight in zip(targets.T, scores.T, weights.T, strict=True)
    ]


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean of :func:`average_precisions` over the classes that have one; a DataError where none has."""
    known = [value for value in average_precisions(scores, targets) if value is not None]
    if not known:
        raise DataError("no class has a positive image, so there is no average precision; check the targets")
    return float(np.mean(known))


def map_with_interval(scores: np.ndarray, targets: np.ndarray) -> Estimate:
    """Mean average precision with its 95 % interval over images; NaN where no class has a positive image.

    1.96 standard errors of a bootstrap to both sides: quantiles lie too high, as images of rare classes come twice.
    """
    if not targets.any():
        return Estimate(np.nan, np.nan, np.nan)
    rng, count = np.random.default_rng(0), len(targets)
    drawn = (rng.integers(count, size=count) for _ in range(NUM_BOOTSTRAP))
    values = [mean_average_precision(scores[rows], targets[rows]) for rows in drawn if targets[rows].any()]
    value, half = mean_average_precision(scores, targets), 1.96 * float(np.std(values))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0))


def multilabel_report(
    scores: np.ndarray,
    targets: np.ndarray,
    train_counts: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    even: bool = False,
) -> dict[str, Any]:
    """Mean average precision over all, head, medium and tail classes, and every class by itself.

    Args:
        train_counts: The training images with each class, which part head, medium and tail.
        even: As for :func:`average_precisions`.

    Returns:
        ``map``, ``map_head``, ``map_medium``, ``map_tail`` (None where a part has no class to average),
        ``classes``: a list of ``name, part, average_precision, num_train, num_test``, and
        ``classes_without_positives``: names that are in no mean.
    """
    precisions = average_precisions(scores, targets, even)
    for what, values in (("train_counts", train_counts), ("class_names", class_names)):
        if len(values) != len(precisions):
            raise DataError(f"{what} has {len(values)} entries; expected {len(precisions)}, one a class")
    parts = head_medium_tail(train_counts)
    part_of = {int(label): part for part, labels in parts.items() for label in labels}
    positives = np.asarray(targets).sum(axis=0)
    classes: list[dict[str, Any]] = []
    for label, precision in enumerate(precisions):
        counts = {"num_train": int(train_counts[label]), "num_test": int(positives[label])}
        name = str(class_names[label])
        classes.append({"name": name, "part": part_of[label], "average_precision": precision, **counts})
    means = {f"map_{part}": _mean([precisions[label] for label in labels]) for part, labels in parts.items()}
    without = [entry["name"] for entry in classes if entry["average_precision"] is None]
    return {"map": _mean(precisions), **means, "classes": classes, "classes_without_positives": without}


def choose_thresholds(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The threshold of every class, (class,), with the best F1; to be chosen on validation, never on test.

    Halfway to the next lower score, so that it does not hang on one image's exact score. A class without a
    positive image takes the median of the others' thresholds (the largest score where there is none).
    """
    scores, targets = check_scores(scores, targets)
    thresholds = np.full(targets.shape[1], np.nan)
    for label in np.flatnonzero(targets.any(axis=0)):
        precision, recall, candidates = precision_recall_curve(targets[:, label], scores[:, label])
        best = candidates[np.argmax((2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1])]
        lower = scores[scores[:, label] < best, label]
        thresholds[label] = (best + lower.max()) / 2 if len(lower) else best
    known = thresholds[~np.isnan(thresholds)]
    fallback = float(np.median(known)) if len(known) else float(scores.max(initial=0.0))
    return np.where(np.isnan(thresholds), fallback, thresholds)


def decision_quality(scores: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | float = 0.5) -> dict[str, float]:
    """Precision, recall and F1 of thresholded scores: the mean over classes (macro) and over all decisions (micro).

    A class is predicted where its score is at least its threshold: (class,), or one for all.

    Returns:
        ``precision_macro``, ``recall_macro``, ``f1_macro`` over the classes with a positive image, and
        ``precision_micro``, ``recall_micro``, ``f1_micro``; a ratio without denominator counts as 0.
    """
    scores, targets = check_scores(scores, targets)
    predicted = (scores >= np.asarray(thresholds)).astype(int)

    def quality(chosen: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return np.array(precision_recall_fscore_support(chosen, answers, average="binary", zero_division=0)[:3])

    by_class = [quality(targets[:, label], predicted[:, label]) for label in np.flatnonzero(targets.any(axis=0))]
    means = [*np.mean(by_class or [np.zeros(3)], axis=0), *quality(targets.ravel(), predicted.ravel())]
    names = [f"{name}_{average}" for average in ("macro", "micro") for name in ("precision", "recall", "f1")]
    return {name: float(value) for name, value in zip(names, means, strict=True)}


def calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Expected calibration error, 0 to 1: how far a said probability is from what happens, in bins of equal width.

    Every (image, class) pair is one binary statement.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning"
    """
    probabilities, targets = check_scores(probabilities, targets, probabilities=True)
    gaps, _ = np.histogram(probabilities, NUM_BINS, (0, 1), weights=probabilities - targets)
    return float(np.abs(gaps).sum() / max(probabilities.size, 1))


def sigmoid(logits: np.ndarray, scale_and_bias: tuple[float, float]) -> np.ndarray:
    """Probabilities 1 / (1 + exp(−(scale · logit + bias))), without overflow."""
    scale, bias = scale_and_bias
    return np.exp(-np.logaddexp(0.0, -(scale * np.asarray(logits, np.float64) + bias)))


def measure_scores(
    logits: np.ndarray,
    scale_and_bias: tuple[float, float],
    thresholds: np.ndarray,
    targets: np.ndarray,
    train_counts: Sequence[int] | np.ndarray,
    class_names: Sequence[str] | np.ndarray,
) -> dict[str, Any]:
    """Ranking, decisions and calibration of one method's logits (image, class) on labelled images.

    Args:
        scale_and_bias: Of their sigmoid, and ``thresholds`` (class,) on its probabilities; both from validation.

    Returns:
        What :func:`multilabel_report` and :func:`decision_quality` give, and ``calibration_error``.
    """
    chances = sigmoid(logits, scale_and_bias)
    report = multilabel_report(logits, targets, train_counts, [str(name) for name in class_names])
    quality = decision_quality(chances, targets, thresholds)
    return report | quality | {"calibration_error": calibration_error(chances, targets)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
