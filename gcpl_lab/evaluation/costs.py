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
from scipy.stats import norm

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

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
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
    name: str,
    answers: np.ndarray,
    targets: np.ndarray,
    costs: Costs,
    *,
    reviewed: np.ndarray | None = None,
    normal: int | None = None,
) -> dict[str, Any]:
    """Misses · C_miss + false alarms · C_false + reviews · C_review + machine, per thousand images.

    Args:
        name: Of the process.
        answers, targets: 0/1 (image, class).
        costs: Of one of each.
        reviewed: bool (image,): sent to a person, who is taken to be right; none by default.
        normal: The class that means that nothing was found.

    Returns:
        ``name``; ``cost``, with its 95 % interval over the images from ``low`` to ``high``, ``misses``,
        ``false_alarms`` and ``reviews``, all per thousand images; ``num_images``.
    """
    misses, alarms = count_mistakes(answers, targets, normal)
    sent = np.zeros(len(misses), bool) if reviewed is None else np.asarray(reviewed, bool)
    misses, alarms = np.where(sent, 0, misses), np.where(sent, 0, alarms)
    each = misses * costs.miss + alarms * costs.false_alarm + sent * costs.review + costs.machine
    mean, low, high = mean_with_interval(each)
    # A cost cannot fall below 0, whatever an interval by Student's t says.
    row: dict[str, Any] = {"name": name, "cost": PER * mean, "low": PER * max(0.0, low), "high": PER * high}
    counts = {"misses": misses, "false_alarms": alarms, "reviews": sent}
    return row | {key: float(PER * values.mean()) for key, values in counts.items()} | {"num_images": len(each)}


def choose_threshold(
    certainty: np.ndarray,
    answers: np.ndarray,
    targets: np.ndarray,
    costs: Costs,
    *,
    most_reviewed: float = 1.0,
    normal: int | None = None,
) -> float:
    """The certainty below which an image goes to a person, with the least cost on calibration images.

    Args:
        certainty: (image,), larger where an answer is surer.
        answers, targets, costs, normal: See :func:`measure_process`; of calibration images, never of test images.
        most_reviewed: At most this share of the calibration images may be sent, 0 to 1.

    Returns:
        A threshold t: ``certainty < t`` is sent. 0 or less sends none, ``NEVER`` all.
    """
    misses, alarms = count_mistakes(answers, targets, normal)
    mistakes = misses * costs.miss + alarms * costs.false_alarm
    order = np.argsort(certainty, kind="stable")
    # Cost of sending the k least certain images, k = 0 ... n.
    spent = np.arange(len(order) + 1) * costs.review + mistakes.sum() - np.append(0, np.cumsum(mistakes[order]))
    thresholds = np.append(certainty[order], NEVER)
    # Images of the same certainty go together, and no more than allowed.
    possible = [True, *(np.diff(certainty[order]) > 0).tolist(), True]
    allowed = np.array(possible) & (np.arange(len(order) + 1) <= most_reviewed * len(order))
    return float(thresholds[np.where(allowed, spent, np.inf).argmin()])


def weighted_confusion(confusion: np.ndarray, costs: Costs, normal: int | None = None) -> np.ndarray:
    """Money per thousand images that goes into each cell of a confusion matrix of counts (true class, answer)."""
    num_classes = len(confusion)
    truth, answer = np.indices((num_classes, num_classes))
    price = costs.miss * (truth != (-1 if normal is None else normal))
    price = price + costs.false_alarm * (answer != (-1 if normal is None else normal))
    return np.asarray(np.where(truth == answer, 0.0, price) * confusion * PER / max(1, confusion.sum()))


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


def certainty_of(probabilities: np.ndarray, thresholds: np.ndarray | None = None) -> np.ndarray:
    """How sure an answer is, (image,): the largest probability, or how far the label nearest to its threshold lies.

    Args:
        probabilities: (image, class).
        thresholds: (class,), of images with several labels.
    """
    if thresholds is None:
        return np.asarray(probabilities.max(axis=1))
    return np.asarray(np.abs(probabilities - thresholds).min(axis=1))


def answers_of(probabilities: np.ndarray, thresholds: np.ndarray | None = None) -> np.ndarray:
    """uint8 (image, class): the most probable class, or all labels at or above their thresholds."""
    if thresholds is None:
        return np.asarray(np.eye(probabilities.shape[1], dtype=np.uint8)[probabilities.argmax(axis=1)])
    return (probabilities >= thresholds).astype(np.uint8)


def sample_size(first: float, second: float, *, level: float = 0.05, power: float = 0.8) -> int:
    """Images in each arm of a split run that show the difference of two shares, two-sided.

    Source: Fleiss, Levin and Paik 2003, Statistical Methods for Rates and Proportions, equation 4.14 (no correction)
    """
    if not (0 < first < 1 and 0 < second < 1) or first == second:
        raise DataError(f"shares are {first} and {second}; expected two different numbers between 0 and 1")
    mean, wanted, found = (first + second) / 2, norm.ppf(1 - level / 2), norm.ppf(power)
    spread = wanted * (2 * mean * (1 - mean)) ** 0.5 + found * (first * (1 - first) + second * (1 - second)) ** 0.5
    return math.ceil((spread / (first - second)) ** 2)
