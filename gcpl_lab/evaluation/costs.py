"""What mistakes and reviews cost: money for a thousand images, thresholds that are worth it, and break-even points.

An answer is 0/1 (image, class), one-hot where an image has one class. A class of the truth that is not answered is a
miss, an answered class that is not true is a false alarm; the *normal* class, where there is one, means that nothing
was found and can be neither. So confusing two classes of interest is a miss of one and a false alarm of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.prediction_sets import mean_with_interval

PER = 1000
"""Images that costs are given for."""
NEVER = 2.0
"""A threshold above every certainty: each image goes to a person."""


@dataclass(frozen=True)
class Costs:
    """Money for one mistake, one review by a person, and the machine's work on one image; none below 0."""

    miss: float
    false_alarm: float
    review: float
    machine: float = 0.0
    normal: int | None = None  # the class that means that nothing was found

    def __post_init__(self) -> None:
        for name in ("miss", "false_alarm", "review", "machine"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise DataError(f"costs: {name} is {value!r}; expected an amount of money, 0 or more")


def count_mistakes(
    answers: np.ndarray, targets: np.ndarray, normal: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Misses and false alarms of every image, int (image,) each, of answers and targets 0/1 (image, class)."""
    answers, targets = np.asarray(answers, bool), np.asarray(targets, bool)
    if answers.shape != targets.shape or answers.ndim != 2:
        raise DataError(f"answers have the shape {answers.shape} and targets {targets.shape}; expected (image, class)")
    counted = np.arange(targets.shape[1]) != (-1 if normal is None else normal)
    answers, targets = answers[:, counted], targets[:, counted]
    return (targets & ~answers).sum(axis=1), (answers & ~targets).sum(axis=1)


def measure_process(
    answers: np.ndarray, targets: np.ndarray, costs: Costs, reviewed: np.ndarray | None = None
) -> dict[str, Any]:
    """Misses · C_miss + false alarms · C_false + reviews · C_review + machine, per thousand images.

    Args:
        answers, targets: 0/1 (image, class).
        costs: Of one of each.
        reviewed: bool (image,): sent to a person, who is taken to be right; none by default.

    Returns:
        ``cost``, with its 95 % interval over the images from ``low`` to ``high``, ``misses``, ``false_alarms`` and
        ``reviews``, all per thousand images; ``num_images``.
    """
    misses, alarms = count_mistakes(answers, targets, costs.normal)
    sent = np.zeros(len(misses), bool) if reviewed is None else np.asarray(reviewed, bool)
    misses, alarms = np.where(sent, 0, misses), np.where(sent, 0, alarms)
    each = misses * costs.miss + alarms * costs.false_alarm + sent * costs.review + costs.machine
    mean, low, high = mean_with_interval(each)
    # A cost cannot fall below 0, whatever an interval by Student's t says.
    row: dict[str, Any] = {"cost": PER * mean, "low": PER * max(0.0, low), "high": PER * high}
    counts = {"misses": misses, "false_alarms": alarms, "reviews": sent}
    return row | {key: float(PER * values.mean()) for key, values in counts.items()} | {"num_images": len(each)}


def choose_threshold(
    certainty: np.ndarray, answers: np.ndarray, targets: np.ndarray, costs: Costs, most_reviewed: float = 1.0
) -> tuple[float, float]:
    """The certainty below which an image goes to a person, with the least cost on calibration images, and that cost.

    Args:
        certainty: (image,), larger where an answer is surer.
        answers, targets, costs: See :func:`measure_process`; of calibration images, never of test images.
        most_reviewed: At most this share of the calibration images may be sent, 0 to 1.
    """
    spent = {
        float(limit): float(measure_process(answers, targets, costs, certainty < limit)["cost"])
        for limit in (*np.unique(certainty), NEVER)
        if (certainty < limit).mean() <= most_reviewed
    }
    return min(spent.items(), key=lambda item: item[1])


def weighted_confusion(confusion: np.ndarray, costs: Costs) -> np.ndarray:
    """Money per thousand images that goes into each cell of a confusion matrix of counts (true class, answer)."""
    classes = np.eye(len(confusion))
    truth, answer = np.indices(confusion.shape).reshape(2, -1)
    misses, alarms = count_mistakes(classes[answer], classes[truth], costs.normal)
    price = (misses * costs.miss + alarms * costs.false_alarm).reshape(confusion.shape)
    return np.asarray(price * confusion * PER / max(1, confusion.sum()))


def break_even(
    ours: Mapping[str, Any], other: Mapping[str, Any], costs: Costs, set_up: float, months: int = 12
) -> dict[str, float | None]:
    """From where on one process is worth it against another, both as :func:`measure_process` gives them.

    Returns:
        ``miss``: the cost of a miss at which both cost the same, everything else as it is; ``images_a_month``: from
        which number on the saving pays for a set-up within so many months. None where there is no such point.
    """
    saved, fewer = (other["cost"] - ours["cost"]) / PER, other["misses"] - ours["misses"]
    fixed = (ours["cost"] - ours["misses"] * costs.miss) - (other["cost"] - other["misses"] * costs.miss)
    miss = fixed / fewer if fewer else -1.0
    return {"miss": miss if miss >= 0 else None, "images_a_month": set_up / (saved * months) if saved > 0 else None}


def decide_each(probabilities: np.ndarray, thresholds: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How sure a method is of each image, (image,), and what it answers, uint8 (image, class).

    The most probable class and its probability; with ``thresholds`` (class,), of images with several labels, all labels
    at or above theirs, and how far the label nearest to its threshold lies.
    """
    if thresholds is None:
        answers = np.eye(probabilities.shape[1], dtype=np.uint8)[probabilities.argmax(axis=1)]
        return np.asarray(probabilities.max(axis=1)), np.asarray(answers)
    return np.abs(probabilities - thresholds).min(axis=1), (probabilities >= thresholds).astype(np.uint8)
