"""Single-label metrics: accuracy, accuracy among look-alikes, log-loss, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

NUM_BINS = 15
"""Of confidence, in every calibration error: numbers with other bins are other numbers."""


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose best score is their own class's.

    Args:
        scores: (image, class), larger is better.
        labels: int (image,).
    """
    return float((scores.argmax(axis=1) == labels).mean())


def accuracy_within_family(
    scores: np.ndarray, labels: np.ndarray, class_names: Sequence[str], families: Mapping[str, Sequence[str]]
) -> float:
    """How often the own class beats the look-alikes of its family, whatever the other families score.

    Only images of families with at least two classes count; nan where there is none.

    Args:
        scores: (image, class).
        labels: int (image,).
        class_names: In the order of the class ids.
        families: Family → class names; a class in no family has no look-alike.
    """
    correct: list[bool] = []
    for members in families.values():
        ids = np.array([index for index, name in enumerate(class_names) if name in members])
        if len(ids) < 2:
            continue
        chosen = np.isin(labels, ids)
        correct.extend(ids[scores[chosen][:, ids].argmax(axis=1)] == labels[chosen])
    return float(np.mean(correct)) if correct else float("nan")


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean −log probability of the true class (natural logarithm)."""
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)).mean())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, weighted by their images.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599; computed by torchmetrics.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(
        torch.from_numpy(probabilities).float(),
        torch.from_numpy(labels),
        num_classes=probabilities.shape[1],
        n_bins=num_bins,
    )
    return float(error)


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts, int64 (true class, predicted class)."""
    from sklearn.metrics import confusion_matrix as count

    matrix: np.ndarray = count(labels, scores.argmax(axis=1), labels=np.arange(scores.shape[1]))
    return matrix
