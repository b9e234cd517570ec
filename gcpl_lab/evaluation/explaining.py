"""What learned prompts and wrong predictions say: how prompts moved, and what lay behind a mistake.

Everything here works on features and targets that are there already; figures are in ``views.multilabel``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.data.multilabel import check_targets
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.reading import ReadableTower, nearest_words, prompt_similarity

# --------------------------------------------------------------------------------- reading the prompts


def read_contexts(
    tower: ReadableTower, context: Tensor, class_names: Sequence[str], num_words: int = 3, seed: int = 0
) -> list[dict[str, Any]]:
    """The vocabulary words nearest to each learned context vector.

    Args:
        tower: Offers vocabulary and embeddings.
        context: (class, M, dim), or (1, M, dim) for a context that all classes share.
        class_names: One a class.
        num_words: Words a vector.
        seed: Of the random vectors that the similarities are to be compared with.

    Returns:
        One row a vector: ``name`` ("all classes" for a shared context), ``position`` from 1, ``words``,
        ``similarities`` (cosines), and ``random_similarity``: the best cosine that a random vector finds on
        average. A word that is no nearer than that means nothing.
    """
    names = list(class_names) if len(context) > 1 else ["all classes"]
    if len(context) != len(names):
        raise DataError(f"context has {len(context)} entries for {len(names)} class names; expected one each, or one")
    found = nearest_words(tower, context.flatten(0, 1), num_words, seed=seed)
    length = context.shape[1]
    return [
        {
            "name": str(names[place // length]),
            "position": place % length + 1,
            "words": list(entry.words),
            "similarities": list(entry.similarities),
            "random_similarity": entry.random_similarity,
        }
        for place, entry in enumerate(found)
    ]


@dataclass(frozen=True)
class PromptChange:
    """How class prompts lay before and after training.

    Attributes:
        before, after: Cosine matrices (class, class) after the mean prompt was taken away.
        moves: For every ordered pair of classes, those that came nearest first: ``name``, ``toward``, ``before``
            and ``after`` (cosines), ``change``. A class's own entry is not in it.
        travelled: 1 − cosine between each class's prompt before and after, (class,).
    """

    before: np.ndarray
    after: np.ndarray
    moves: list[dict[str, Any]]
    travelled: np.ndarray


def compare_prompts(before: Tensor, after: Tensor, class_names: Sequence[str]) -> PromptChange:
    """Which prompts moved toward which.

    Cosines are symmetric, so "A toward B" is told by A's own motion: the change of its cosine to where B
    *started*, which is another number than B's toward A.

    Args:
        before: Unit features of the class prompts at the start, (class, feature).
        after: The same after training.
        class_names: One a class.

    Raises:
        DataError: Shapes or numbers differ.
    """
    if before.shape != after.shape or len(before) != len(class_names):
        raise DataError(
            f"prompts have shapes {tuple(before.shape)} and {tuple(after.shape)} for {len(class_names)} "
            "class names; expected equal ones, one row a class"
        )
    before, after = before.detach().float().cpu(), after.detach().float().cpu()
    start, end = (F.normalize(features - features.mean(0), dim=-1) for features in (before, after))
    near_before, near_after = (start @ start.T).numpy(), (end @ start.T).numpy()
    moves: list[dict[str, Any]] = [
        {
            "name": str(class_names[i]),
            "toward": str(class_names[j]),
            "before": float(near_before[i, j]),
            "after": float(near_after[i, j]),
            "change": float(near_after[i, j] - near_before[i, j]),
        }
        for i in range(len(start))
        for j in range(len(start))
        if i != j
    ]
    moves.sort(key=lambda move: -move["change"])
    travelled = (1 - F.cosine_similarity(before, after, dim=-1)).numpy()
    similar = [prompt_similarity(features.unsqueeze(1)).numpy() for features in (before, after)]
    return PromptChange(similar[0], similar[1], moves, travelled)


# ------------------------------------------------------------------------------------ errors explained


def co_occurrence(targets: np.ndarray) -> np.ndarray:
    """How often class j is in an image that has class i: float (class, class), rows from 0 to 1.

    A class without any image has a row of zeros.

    Args:
        targets: (image, class), 0 or 1.
    """
    values = check_targets(targets).astype(np.float64)
    together = values.T @ values
    return np.asarray(together / np.maximum(np.diagonal(together)[:, None], 1))


@dataclass(frozen=True)
class Mistake:
    """One wrong decision and what lay around it.

    Attributes:
        image: Index of the picture.
        name: The class that was decided wrongly.
        missed: True: it is there and was not said; False: it was said and is not there.
        probability, threshold: Of that class.
        classes: A row a class, largest probability first: ``name``, ``present``, ``predicted``, ``probability``,
            ``threshold``.
        neighbours: The training images nearest in CLIP's image space: ``image`` (index), ``similarity``
            (cosine), ``names`` (their classes).
        companions: Classes that training images show with the wrong one: ``name``, ``share`` (of the images
            with the wrong class), ``present`` (in this picture).
    """

    image: int
    name: str
    missed: bool
    probability: float
    threshold: float
    classes: list[dict[str, Any]]
    neighbours: list[dict[str, Any]]
    companions: list[dict[str, Any]]

    def sentence(self) -> str:
        """The mistake in words."""
        what = "is there and was missed" if self.missed else "is not there and was predicted"
        return f"{self.name} {what}: probability {self.probability:.2f}, threshold {self.threshold:.2f}"


def find_mistakes(probabilities: np.ndarray, targets: np.ndarray, thresholds: np.ndarray) -> list[tuple[int, int]]:
    """All wrong (image, class) decisions, the surest first: by the distance of the log-odds from the threshold's.

    Args:
        probabilities: (image, class), from 0 to 1.
        targets: (image, class), 0 or 1.
        thresholds: (class,); a class is predicted where its probability is at least this.
    """
    probabilities, targets = np.asarray(probabilities, np.float64), check_targets(targets)
    if probabilities.shape != targets.shape or np.shape(thresholds) != targets.shape[1:]:
        raise DataError(
            f"probabilities have shape {probabilities.shape}, targets {targets.shape} and thresholds "
            f"{np.shape(thresholds)}; expected (image, class) twice and (class,)"
        )
    wrong = np.argwhere((probabilities >= thresholds) != targets.astype(bool))
    distance = np.abs(_log_odds(probabilities) - _log_odds(np.asarray(thresholds)))
    order = np.argsort(-distance[tuple(wrong.T)], kind="stable")
    return [(int(image), int(label)) for image, label in wrong[order]]


def _log_odds(values: np.ndarray) -> np.ndarray:
    clipped = np.clip(values, 1e-9, 1 - 1e-9)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


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
        image: Index of the picture, and ``label`` of the class that was decided wrongly.
        label: See above.
        probabilities: (image, class), of all pictures.
        targets: (image, class), 0 or 1.
        thresholds: (class,).
        feature: Unit CLIP feature of the picture, (feature,).
        train_features: Unit features of the training images, (image, feature).
        train_targets: (image, class), 0 or 1.
        class_names: One a class.
        num_neighbours: Training images to name.

    Raises:
        DataError: The decision was right, or an index is outside.
    """
    targets, train_targets = check_targets(targets), check_targets(train_targets, "train_targets")
    if not (0 <= image < targets.shape[0] and 0 <= label < targets.shape[1]):
        raise DataError(f"image {image}, class {label} is outside; expected indices below {targets.shape}")
    present, predicted = targets[image].astype(bool), np.asarray(probabilities[image]) >= thresholds
    if present[label] == predicted[label]:
        raise DataError(
            f"image {image}, class {class_names[label]!r}: the decision is right; find_mistakes lists the wrong ones"
        )
    order = [int(i) for i in np.argsort(-np.asarray(probabilities[image]), kind="stable")]
    classes = [
        {
            "name": str(class_names[i]),
            "present": bool(present[i]),
            "predicted": bool(predicted[i]),
            "probability": float(probabilities[image][i]),
            "threshold": float(thresholds[i]),
        }
        for i in order
    ]
    cosines = (train_features @ feature).cpu()
    near = torch.topk(cosines, min(num_neighbours, len(cosines)))
    neighbours = [
        {
            "image": int(i),
            "similarity": float(value),
            "names": [str(class_names[int(c)]) for c in np.flatnonzero(train_targets[int(i)])],
        }
        for i, value in zip(near.indices, near.values, strict=True)
    ]
    together = co_occurrence(train_targets)[label]
    others = [int(i) for i in np.argsort(-together, kind="stable") if i != label and together[i] > 0]
    companions = [
        {"name": str(class_names[i]), "share": float(together[i]), "present": bool(present[i])} for i in others
    ]
    return Mistake(
        image,
        str(class_names[label]),
        bool(present[label]),
        float(probabilities[image][label]),
        float(thresholds[label]),
        classes,
        neighbours,
        companions,
    )
