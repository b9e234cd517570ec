"""Single-label metrics: accuracy, accuracy among look-alikes, log-loss, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gcpl_lab.errors import DataError

NUM_BINS = 15
"""Of confidence, in every calibration error: numbers with other bins are other numbers."""


def check_rows(
    what: str, values: np.ndarray, labels: np.ndarray, infinite: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Values as float64 (row, column) with a label for each row, or a DataError that names the first wrong row.

    ``what`` is a row's name in messages. ``infinite`` allows the infinite scores of classes that were left out.
    """
    values, labels = np.asarray(values, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or 0 in values.shape or labels.shape != values.shape[:1]:
        raise DataError(
            f"{what}: values have shape {values.shape} and labels {labels.shape}; expected (row, column), neither "
            "of them 0, and one label a row"
        )
    wrong = np.flatnonzero((np.isnan(values) if infinite else ~np.isfinite(values)).any(axis=1))
    if len(wrong):
        raise DataError(f"{what} {wrong[0]} holds a value that is not finite; leave it out or mend its source")
    return values, labels


def check_classes(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (image, class), infinite ones too, and class ids (image,), or a DataError that names what is wrong."""
    scores, labels = check_rows("image", scores, labels, infinite=True)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels are {labels.dtype}; expected whole class ids")
    for index in np.flatnonzero((labels < 0) | (labels >= scores.shape[1])):
        raise DataError(f"label {index} is {labels[index]}; expected a class id from 0 to {scores.shape[1] - 1}")
    return scores, labels


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose best score, of (image, class), is their own class's."""
    scores, labels = check_classes(scores, labels)
    return float((scores.argmax(axis=1) == labels).mean())


def accuracy_within_family(
    scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str], families: Mapping[str, Sequence[str]]
) -> float:
    """How often the own class beats the look-alikes of its family, whatever the other families score.

    Args:
        scores: (image, class), larger is better; ``labels`` int (image,).
        families: Family to class names. Images of families with fewer than two classes do not count: nan without any.
    """
    correct: list[bool] = []
    for members in families.values():
        ids = np.array([index for index, name in enumerate(class_names) if name in members])
        if len(ids) > 1:
            chosen = np.isin(labels, ids)
            correct.extend(ids[scores[chosen][:, ids].argmax(axis=1)] == labels[chosen])
    return float(np.mean(correct)) if correct else float("nan")


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean −log probability of the true class (natural logarithm)."""
    probabilities, labels = check_classes(probabilities, labels)
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)).mean())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, weighted by their images.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599; computed by torchmetrics.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    chances, truth = torch.from_numpy(probabilities).float(), torch.from_numpy(labels)
    return float(multiclass_calibration_error(chances, truth, num_classes=chances.shape[1], n_bins=NUM_BINS))


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts, int64 (true class, predicted class)."""
    from sklearn.metrics import confusion_matrix as count

    scores, labels = check_classes(scores, labels)
    matrix: np.ndarray = count(labels, scores.argmax(axis=1), labels=np.arange(scores.shape[1]))
    return matrix
