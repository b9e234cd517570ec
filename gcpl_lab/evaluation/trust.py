"""Does the model fool us? Shifted photographs, generated pictures against real ones, and what a person should look at.

Everything works on scores and features that are there already, or on a function from pictures to probabilities, so
every method is judged by the same code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from gcpl_lab.data.shifts import SEVERITIES, SHIFTS, shift_pictures
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.separation import Estimate

Predictor = Callable[[Sequence[Image.Image]], np.ndarray]
"""Pictures to probabilities (image, class)."""


def share_with_interval(num_right: int, num_all: int) -> Estimate:
    """A share with its 95 % interval, which stays sensible for few pictures and for 0 or 100 %.

    Args:
        num_right: From 0 to ``num_all``.
        num_all: 1 or more.

    Source: Wilson 1927, as scipy computes it.
    """
    if num_all < 1 or not 0 <= num_right <= num_all:
        raise DataError(f"{num_right} of {num_all} is no share; expected a number from 0 to a number of 1 or more")
    interval = binomtest(int(num_right), int(num_all)).proportion_ci(0.95, method="wilson")
    return Estimate(num_right / num_all, float(interval.low), float(interval.high))


# -------------------------------------------------------------------------------------- shifted photographs


@dataclass(frozen=True)
class ShiftPoint:
    """One method at one severity of one kind of shift.

    Attributes:
        method: Its name.
        kind: Of the shift.
        severity: 0 (the photographs themselves) to 5.
        accuracy: With its 95 % interval over photographs.
        kept: Share of photographs with the same answer as at severity 0.
        confidence: Mean probability of the answers; above the accuracy, the method does not notice its failure.
    """

    method: str
    kind: str
    severity: int
    accuracy: Estimate
    kept: float
    confidence: float


def measure_shifts(
    predictors: Mapping[str, Predictor],
    pictures: Sequence[Image.Image],
    labels: np.ndarray,
    *,
    kinds: Sequence[str] = tuple(SHIFTS),
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
) -> list[ShiftPoint]:
    """Classify the same photographs under graded shifts.

    All methods see the very same changed pictures. The unchanged ones are classified once for all kinds.

    Args:
        predictors: Method name to a function from pictures to probabilities (image, class).
        pictures: Mode L or RGB.
        labels: int (image,).
        kinds: Names in ``SHIFTS``.
        severities: Whole numbers from 0 to 5; 0 is measured in any case.
        seed: Of the noises.

    Returns:
        One point a method, kind and severity, in this order.

    Raises:
        DataError: Numbers differ, or a predictor's answer is no table of probabilities.
    """
    labels = np.asarray(labels)
    if not pictures or labels.shape != (len(pictures),):
        raise DataError(f"{len(pictures)} pictures and labels of shape {labels.shape}; expected one label a picture")
    points = []
    for method, predict in predictors.items():
        plain = _check_probabilities(method, predict(list(pictures)), labels)
        for kind in kinds:
            for severity in sorted({0, *severities}):
                chances = plain
                if severity:
                    shifted = shift_pictures(list(pictures), kind, severity, seed)
                    chances = _check_probabilities(method, predict(shifted), labels)
                points.append(_shift_point(method, kind, severity, chances, plain, labels))
    return points


def _shift_point(
    method: str, kind: str, severity: int, chances: np.ndarray, plain: np.ndarray, labels: np.ndarray
) -> ShiftPoint:
    answers = chances.argmax(axis=1)
    right = share_with_interval(int((answers == labels).sum()), len(labels))
    kept = float((answers == plain.argmax(axis=1)).mean())
    return ShiftPoint(method, kind, severity, right, kept, float(chances.max(axis=1).mean()))


def _check_probabilities(method: str, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(labels) or values.shape[1] <= int(labels.max()):
        raise DataError(
            f"method {method!r} answered with shape {values.shape}; expected ({len(labels)}, class) with a column "
            f"for label {int(labels.max())}"
        )
    if not np.isfinite(values).all() or values.min() < 0 or not np.allclose(values.sum(axis=1), 1, atol=1e-3):
        raise DataError(f"method {method!r} answered with rows that are no probabilities; use predict_proba")
    return values


# ------------------------------------------------------------------------------- generated against real


@dataclass(frozen=True)
class Recognition:
    """How a judge names pictures that were generated for known classes.

    Attributes:
        confusion: int64 (class it was generated for, class it was taken for).
        by_class: Share that was recognised, with its interval; NaN for a class without a picture.
        overall: Over all pictures.
    """

    confusion: np.ndarray
    by_class: tuple[Estimate, ...]
    overall: Estimate


def measure_recognition(scores: np.ndarray, labels: np.ndarray) -> Recognition:
    """Are pictures generated for a class recognised as that class?

    A judge that shares its text encoder with the generator, or that was fitted with the same prompts, is a lenient
    one; a classifier on other features, fitted on real photographs, is a stricter one. The same judge's share on
    real photographs is the yardstick: it cannot recognise generated pictures much better than those.

    Args:
        scores: (picture, class), larger is better: logits or probabilities of the judge.
        labels: int (picture,): what each picture was generated for.

    Raises:
        DataError: Shapes that do not fit, a score that is no number, or a label outside.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != (len(scores),) or not len(scores):
        raise DataError(
            f"scores have shape {scores.shape} and labels {labels.shape}; expected (picture, class) and "
            "(picture,), with at least one picture"
        )
    if np.isnan(scores).any():
        raise DataError(f"the scores of picture {int(np.isnan(scores).any(axis=1).argmax())} hold a NaN")
    num_classes = scores.shape[1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"labels reach from {labels.min()} to {labels.max()}; expected 0 to {num_classes - 1}")
    confusion = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(confusion, (labels, scores.argmax(axis=1)), 1)
    right, counts = confusion.diagonal(), confusion.sum(axis=1)
    missing = Estimate(math.nan, math.nan, math.nan)
    by_class = tuple(
        share_with_interval(int(hits), int(count)) if count else missing
        for hits, count in zip(right, counts, strict=True)
    )
    return Recognition(confusion, by_class, share_with_interval(int(right.sum()), len(labels)))


@dataclass(frozen=True)
class Consistency:
    """How pictures generated for one class lie among the real photographs.

    Distances are euclidean in the feature space that was given (for unit features d² = 2 − 2·cosine).

    Attributes:
        label: The class.
        to_real: Mean distance of a generated picture to the nearest real photograph of its class.
        real_to_real: The same for the real photographs, each left out in turn: what ``to_real`` is measured by.
        own_neighbour: Share of generated pictures whose nearest real photograph, of any class, is of their own.
        real_own_neighbour: The same for the real photographs: as hard as the classes are to tell apart.
        spread: Mean distance between two generated pictures, as a share of that between two real ones: far below 1
            the generator repeats itself.
        num_generated: Pictures of this class.
        num_real: Photographs of this class.
    """

    label: int
    to_real: float
    real_to_real: float
    own_neighbour: float
    real_own_neighbour: float
    spread: float
    num_generated: int
    num_real: int


def measure_consistency(
    real: np.ndarray, real_labels: np.ndarray, generated: np.ndarray, generated_labels: np.ndarray
) -> list[Consistency]:
    """Distances of generated to real features, class by class, each beside what real photographs reach.

    A Fréchet distance would be the customary number; it needs thousands of pictures to mean anything, and a
    few-shot problem has dozens.

    Args:
        real: (photograph, feature).
        real_labels: int (photograph,).
        generated: (picture, feature), of the same space.
        generated_labels: int (picture,), each a class that has at least two photographs.

    Returns:
        One entry for each class among the generated pictures, ascending.

    Raises:
        DataError: Shapes that do not fit, or a class without two photographs.
    """
    real, real_labels = _check_points("real", real, real_labels)
    generated, generated_labels = _check_points("generated", generated, generated_labels)
    if real.shape[1] != generated.shape[1]:
        raise DataError(
            f"real features have {real.shape[1]} dims and generated ones {generated.shape[1]}; "
            "expected features of one space"
        )
    among_real, to_real = cdist(real, real), cdist(generated, real)
    left_out = among_real + np.where(np.eye(len(real), dtype=bool), np.inf, 0.0)
    found = []
    for label in np.unique(generated_labels):
        mine, theirs = real_labels == label, generated_labels == label
        if mine.sum() < 2:
            raise DataError(
                f"class {label} has {int(mine.sum())} real photographs; expected two or more to compare with"
            )
        inside = among_real[np.ix_(mine, mine)]
        found.append(
            Consistency(
                label=int(label),
                to_real=float(to_real[np.ix_(theirs, mine)].min(axis=1).mean()),
                real_to_real=float(left_out[np.ix_(mine, mine)].min(axis=1).mean()),
                own_neighbour=float((real_labels[to_real[theirs].argmin(axis=1)] == label).mean()),
                real_own_neighbour=float((real_labels[left_out[mine].argmin(axis=1)] == label).mean()),
                spread=_mean_distance(cdist(generated[theirs], generated[theirs])) / max(_mean_distance(inside), 1e-12),
                num_generated=int(theirs.sum()),
                num_real=int(mine.sum()),
            )
        )
    return found


def _check_points(what: str, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels)
    if points.ndim != 2 or labels.shape != (len(points),) or not len(points):
        raise DataError(
            f"{what} features have shape {points.shape} and labels {labels.shape}; expected "
            "(picture, feature) and (picture,), with at least one picture"
        )
    if not np.isfinite(points).all():
        row = int((~np.isfinite(points)).any(axis=1).argmax())
        raise DataError(f"{what} picture {row} has a feature that is not finite; leave it out")
    return points, labels


def _mean_distance(distances: np.ndarray) -> float:
    """Mean over all pairs of different points; NaN for a single point."""
    count = len(distances)
    return float(distances.sum() / (count * (count - 1))) if count > 1 else math.nan


# ------------------------------------------------------------------------------------------ human review

REASONS = ("sure and wrong", "unsure", "random")
"""Why a picture is shown to a person."""


def choose_for_review(
    probabilities: np.ndarray, count: int, labels: np.ndarray | None = None, seed: int = 0
) -> list[tuple[int, str]]:
    """Choose the pictures that a person learns most from, and as many at random to stay honest.

    Shares: a third that the model got wrong while sure (where labels are known), a third that it was least sure
    of, the rest drawn at random. Only the random third says how good the model is; the others say how it fails.

    Args:
        probabilities: (image, class).
        count: How many; all pictures where there are fewer.
        labels: int (image,), where they are known.
        seed: Of the random part.

    Returns:
        (picture, reason) in the order sure and wrong, unsure, random; no picture twice.

    Raises:
        DataError: Shapes that do not fit, or a count below 1.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise DataError(f"probabilities have shape {probabilities.shape}; expected (image, class), two classes or more")
    if count < 1:
        raise DataError(f"count is {count}; expected 1 or more")
    if labels is not None and np.shape(labels) != probabilities.shape[:1]:
        raise DataError(f"labels have shape {np.shape(labels)}; expected ({len(probabilities)},)")
    top = np.sort(probabilities, axis=1)
    margin = top[:, -1] - top[:, -2]
    share, chosen = count // 3, dict[int, str]()
    if labels is not None:
        wrong = np.flatnonzero(probabilities.argmax(axis=1) != np.asarray(labels))
        for image in wrong[np.argsort(-margin[wrong], kind="stable")][:share]:
            chosen[int(image)] = REASONS[0]
    unsure = [int(image) for image in np.argsort(margin, kind="stable") if int(image) not in chosen]
    chosen |= dict.fromkeys(unsure[:share], REASONS[1])
    rest = np.array([image for image in range(len(probabilities)) if image not in chosen], np.int64)
    drawn = np.random.default_rng([seed, 41]).permutation(rest)[: max(0, count - len(chosen))]
    return list((chosen | {int(image): REASONS[2] for image in drawn}).items())


def summarise_review(reasons: Sequence[str], accepted: Sequence[bool | None]) -> list[dict[str, Any]]:
    """What a person accepted, by the reason for which pictures were shown.

    Args:
        reasons: Of :func:`choose_for_review`, one a picture.
        accepted: True, False, or None where the person has not decided.

    Returns:
        One dict a reason: ``reason``, ``shown``, ``decided``, ``accepted`` (number) and ``share`` (an
        :class:`~gcpl_lab.evaluation.separation.Estimate`, or None where nothing is decided).

    Raises:
        DataError: Numbers differ.
    """
    if len(reasons) != len(accepted):
        raise DataError(f"{len(reasons)} reasons and {len(accepted)} decisions; expected one each a picture")
    rows = []
    for reason in dict.fromkeys(reasons):
        answers = [answer for given, answer in zip(reasons, accepted, strict=True) if given == reason]
        decided = [bool(answer) for answer in answers if answer is not None]
        share = share_with_interval(sum(decided), len(decided)) if decided else None
        rows.append(
            {"reason": reason, "shown": len(answers), "decided": len(decided), "accepted": sum(decided), "share": share}
        )
    return rows
