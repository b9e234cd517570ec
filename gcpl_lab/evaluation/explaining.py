"""What lies behind wrong predictions of images with several labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logit
from torch import Tensor

from gcpl_lab.data.sets import check_targets
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.multilabel import check_scores


@dataclass(frozen=True)
class Mistake:
    """One wrong decision and what lay around it."""

    image: int  # index
    name: str  # of the class that was decided wrongly
    missed: bool  # True: it is there and was not said; False: it was said and is not there
    probability: float
    threshold: float
    classes: list[dict[str, Any]]  # name, present, predicted, probability, threshold; largest probability first
    neighbours: list[dict[str, Any]]  # nearest training images in CLIP's space: image (index), similarity, names
    companions: list[dict[str, Any]]  # classes of training images with the wrong one: name, share, present (here)

    def sentence(self) -> str:
        """The mistake in words."""
        what = "is there and was missed" if self.missed else "is not there and was predicted"
        return f"{self.name} {what}: probability {self.probability:.2f}, threshold {self.threshold:.2f}"


def find_mistakes(probabilities: np.ndarray, targets: np.ndarray, thresholds: np.ndarray) -> list[tuple[int, int]]:
    """All wrong (image, class) decisions, the surest first: by the distance of the log-odds from the threshold's.

    A class is predicted where its probability, of (image, class), is at least its threshold, of (class,).
    """
    probabilities, targets = check_scores(probabilities, targets, probabilities=True)
    if np.shape(thresholds) != targets.shape[1:]:
        raise DataError(f"thresholds have shape {np.shape(thresholds)}; expected {targets.shape[1:]}, one a class")
    wrong = np.argwhere((probabilities >= thresholds) != targets.astype(bool))
    odds, borders = (logit(np.clip(values, 1e-9, 1 - 1e-9)) for values in (probabilities, thresholds))
    order = np.argsort(-np.abs(odds - borders)[tuple(wrong.T)], kind="stable")
    return [(int(image), int(label)) for image, label in wrong[order]]


def explain_mistake(
    image: int,
    label: int,
    *,
    probabilities: np.ndarray,
    targets: np.ndarray,
    thresholds: np.ndarray,
    feature: Tensor,
    train_features: Tensor,
    train_targets: np.ndarray,
    class_names: Sequence[str],
    num_neighbours: int = 4,
) -> Mistake:
    """Labels and scores, nearest training images, and the classes that occur with the wrong one.

    Args:
        image, label: A wrong decision, as :func:`find_mistakes` lists them, from the same three tables.
        feature: Unit CLIP feature of the image, (feature,).
        train_features: Of the training images, (image, feature), with their ``train_targets`` (image, class), 0 or 1.
    """
    targets, train_targets = check_targets(targets), check_targets(train_targets, "train_targets")
    if not (0 <= image < targets.shape[0] and 0 <= label < targets.shape[1]):
        raise DataError(f"image {image}, class {label} is outside; expected indices below {targets.shape}")
    names, chances = [str(name) for name in class_names], np.asarray(probabilities[image])
    present, predicted = targets[image].astype(bool), chances >= thresholds
    if present[label] == predicted[label]:
        raise DataError(f"image {image}, class {names[label]!r}: the decision is right; find_mistakes lists wrong ones")
    columns = {"present": present, "predicted": predicted, "probability": chances, "threshold": np.asarray(thresholds)}
    rows = [
        {"name": name} | {column: values[i].item() for column, values in columns.items()}
        for i, name in enumerate(names)
    ]
    near = (train_features @ feature).cpu().topk(min(num_neighbours, len(train_features)))
    neighbours = [
        {"image": index, "similarity": value, "names": [names[i] for i in np.flatnonzero(train_targets[index])]}
        for index, value in zip(near.indices.tolist(), near.values.tolist(), strict=True)
    ]
    with_label = train_targets[train_targets[:, label] == 1]
    together = with_label.sum(axis=0) / max(len(with_label), 1)
    companions = [
        {"name": names[i], "share": float(together[i]), "present": rows[i]["present"]}
        for i in np.argsort(-together, kind="stable")
        if i != label and together[i] > 0
    ]
    name, missed, _, probability, threshold = rows[label].values()
    classes = [rows[i] for i in np.argsort(-chances, kind="stable")]
    return Mistake(image, name, missed, probability, threshold, classes, neighbours, companions)
