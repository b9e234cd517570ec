"""Does the model fool us? Shifted images, generated images against real ones, and what a person should look at."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist, pdist
from scipy.stats import binomtest

from gcpl_lab.data.shifts import SEVERITIES, SHIFTS, shift_pictures
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.metrics import check_rows, confusion_matrix
from gcpl_lab.evaluation.separation import Estimate

REASONS = ("sure and wrong", "unsure", "random")  # why an image is shown to a person


def share_with_interval(num_right: int, num_all: int) -> Estimate:
    """A share with Wilson's 95 % interval, which stays sensible for few images and for 0 or 100 %."""
    if num_all < 1 or not 0 <= num_right <= num_all:
        raise DataError(f"{num_right} of {num_all} is no share; expected a number from 0 to a number of 1 or more")
    interval = binomtest(int(num_right), int(num_all)).proportion_ci(0.95, method="wilson")
    return Estimate(num_right / num_all, float(interval.low), float(interval.high))


def share_of(hits: np.ndarray) -> dict[str, float]:
    """The same of bool (image,), as plain values for JSON."""
    return share_with_interval(int(np.sum(hits)), len(hits))._asdict()


@dataclass(frozen=True)
class ShiftPoint:
    """One method at one severity of one kind of shift."""

    method: str
    kind: str
    severity: int  # 0 (the images themselves) to 5
    accuracy: Estimate  # with its interval over images
    kept: float  # share of images with the same answer as at severity 0
    confidence: float  # mean probability of the answers; above the accuracy, the method does not notice its failure


def measure_shifts(
    predictors: Mapping[str, Callable[[Sequence[Image.Image]], np.ndarray]],
    pictures: Sequence[Image.Image],
    labels: np.ndarray,
    *,
    kinds: Sequence[str] = tuple(SHIFTS),
    severities: Sequence[int] = SEVERITIES,
) -> list[ShiftPoint]:
    """Classify the same images under graded shifts; all methods see the very same changed images.

    Args:
        predictors: Method name to a function from images to probabilities (image, class).
        pictures: Mode L or RGB, with ``labels`` int (image,).
        kinds: Names in ``SHIFTS``.
        severities: Whole numbers from 0 to 5; 0 is measured in any case, once for all kinds.
    """
    points = []
    for method, predict in predictors.items():
        plain = _check_probabilities(method, predict(list(pictures)), labels)
        for kind in kinds:
            for severity in sorted({0, *severities}):
                changed = shift_pictures(list(pictures), kind, severity) if severity else None
                chances = _check_probabilities(method, predict(changed), labels) if changed else plain
                answers = chances.argmax(axis=1)
                right = share_with_interval(int((answers == labels).sum()), len(labels))
                kept = float((answers == plain.argmax(axis=1)).mean())
                points.append(ShiftPoint(method, kind, severity, right, kept, float(chances.max(axis=1).mean())))
    return points


def _check_probabilities(method: str, answer: np.ndarray, labels: np.ndarray) -> np.ndarray:
    values, _ = check_rows(f"answer of method {method!r} for image", answer, labels)
    if values.shape[1] <= np.max(labels) or values.min() < 0 or not np.allclose(values.sum(axis=1), 1, atol=1e-3):
        raise DataError(
            f"method {method!r} answered with shape {values.shape}; expected probabilities (image, class) for labels "
            f"up to {np.max(labels)}: use predict_proba"
        )
    return values


@dataclass(frozen=True)
class Recognition:
    """How a judge names images that were generated for known classes."""

    confusion: np.ndarray  # int64 (class it was generated for, class it was taken for)
    by_class: tuple[Estimate, ...]  # share that was recognised; NaN for a class without an image
    overall: Estimate


def measure_recognition(scores: np.ndarray, labels: np.ndarray) -> Recognition:
    """Are images generated for a class recognised as that class?

    A judge that shares its text encoder with the generator, or that was fitted with the same prompts, is a lenient
    one; a classifier on other features, fitted on real images, is a stricter one. The same judge's share on
    real images is the yardstick.

    Args:
        scores: (image, class), larger is better: logits or probabilities of the judge.
        labels: int (image,): what each image was generated for.
    """
    scores, labels = check_rows("image", scores, labels, infinite=True)
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise DataError(f"labels reach from {labels.min()} to {labels.max()}; expected 0 to {scores.shape[1] - 1}")
    confusion = confusion_matrix(scores, labels)
    shares = zip(confusion.diagonal().tolist(), confusion.sum(axis=1).tolist(), strict=True)
    missing = Estimate(math.nan, math.nan, math.nan)
    by_class = tuple(share_with_interval(hits, count) if count else missing for hits, count in shares)
    return Recognition(confusion, by_class, share_with_interval(int(confusion.trace()), len(labels)))


@dataclass(frozen=True)
class Consistency:
    """How images generated for one class lie among the real ones, in euclidean distances between features."""

    label: int  # the class
    to_real: float  # mean distance of a generated image to the nearest real one of its class
    real_to_real: float  # the same for the real images, each left out in turn: what to_real is measured by
    spread: float  # mean distance of two generated images / of two real ones; far below 1 the generator repeats itself


def measure_consistency(
    real: np.ndarray, real_labels: np.ndarray, generated: np.ndarray, generated_labels: np.ndarray
) -> list[Consistency]:
    """Distances of generated to real features, both (image, feature): an entry for each class that was generated.

    A Fréchet distance would need thousands of images to mean anything, and a few-shot problem has dozens. Every
    generated class needs at least two real images.
    """
    real, real_labels = check_rows("real image", real, real_labels)
    generated, generated_labels = check_rows("generated image", generated, generated_labels)
    if real.shape[1] != generated.shape[1]:
        dims = f"{real.shape[1]} dims and generated ones {generated.shape[1]}"
        raise DataError(f"real features have {dims}; expected features of one space")
    found = []
    for label in np.unique(generated_labels).tolist():
        wanted, made = real[real_labels == label], generated[generated_labels == label]
        if len(wanted) < 2:
            raise DataError(f"class {label} has {len(wanted)} real images; expected two or more to compare with")
        among_real = cdist(wanted, wanted)
        np.fill_diagonal(among_real, np.inf)
        to_real, real_to_real = (float(distances.min(axis=1).mean()) for distances in (cdist(made, wanted), among_real))
        spread = float(pdist(made).mean() / max(pdist(wanted).mean(), 1e-12)) if len(made) > 1 else math.nan
        found.append(Consistency(label, to_real, real_to_real, spread))
    return found


def choose_for_review(
    probabilities: np.ndarray, count: int, labels: np.ndarray | None = None, seed: int = 0
) -> list[tuple[int, str]]:
    """Choose the images that a person learns most from, and as many at random to stay honest.

    Of ``count`` images a third that the model got wrong while sure (where labels (image,) are known), a third that it
    was least sure of, the rest at random. Only these say how good the model is; the others say how it fails.

    Returns:
        (image, reason) in the order sure and wrong, unsure, random; no image twice.
    """
    if count < 1:
        raise DataError(f"count is {count}; expected 1 or more")
    known = np.argmax(probabilities, axis=-1) if labels is None else labels
    probabilities, known = check_rows("image", probabilities, known)
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    share, said = count // 3, probabilities.argmax(axis=1)
    surest = np.argsort(second - first, kind="stable").tolist()
    chosen = dict.fromkeys([image for image in surest if said[image] != known[image]][:share], REASONS[0])
    unsure = [image for image in np.argsort(first - second, kind="stable").tolist() if image not in chosen]
    chosen |= dict.fromkeys(unsure[:share], REASONS[1])
    rest = [image for image in range(len(said)) if image not in chosen]
    drawn = np.random.default_rng([seed, 41]).permutation(rest)[: max(0, count - len(chosen))]
    return [*chosen.items(), *((int(image), REASONS[2]) for image in drawn)]


def summarise_review(reasons: Sequence[str], accepted: Sequence[bool | None]) -> list[dict[str, Any]]:
    """``reason, shown, decided, accepted`` and ``share`` (an ``Estimate``, or None) for each reason to show images.

    ``accepted`` is True, False, or None where the person has not decided, one for each of ``reasons``.
    """
    if len(reasons) != len(accepted):
        raise DataError(f"{len(reasons)} reasons and {len(accepted)} decisions; expected one each an image")
    rows = []
    for reason in dict.fromkeys(reasons):
        answers = [answer for given, answer in zip(reasons, accepted, strict=True) if given == reason]
        decided = [bool(answer) for answer in answers if answer is not None]
        share = share_with_interval(sum(decided), len(decided)) if decided else None
        numbers = {"shown": len(answers), "decided": len(decided), "accepted": sum(decided)}
        rows.append({"reason": reason, **numbers, "share": share})
    return rows
