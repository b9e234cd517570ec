"""Watching a stream of images: tests that may be looked at as often as one likes.

A test martingale starts at 1 and bets against "the stream is like the calibration set". If that is true, the chance
that it ever reaches 1/α is at most α (Ville's inequality), however often one looks.

Source: Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World, section 7.1 (simple jumper)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from gcpl_lab.errors import DataError

BETS = (-1.0, 0.0, 1.0)
JUMP = 0.01


@dataclass
class Watch:
    """A martingale on the ranks of a score among all that was seen before it, calibration images first.

    Args:
        calibration: Scores (image,) of images that trained nothing.
        seed: Of the numbers that break ties.
    """

    calibration: Sequence[float]
    seed: int = 0
    values: list[float] = field(default_factory=list)
    """Value of the martingale after each image."""

    def __post_init__(self) -> None:
        self._seen = sorted(float(score) for score in self.calibration)
        if not self._seen or not np.isfinite(self._seen).all():
            raise DataError(f"{len(self._seen)} calibration scores; expected one or more finite numbers")
        self._random = np.random.default_rng([self.seed, 53])
        self._wealth = np.full(len(BETS), 1 / len(BETS))

    def p_value(self, score: float) -> float:
        """Rank of a score among those before it, uniform on [0, 1] where all are exchangeable; the score joins them."""
        below, up_to = bisect_left(self._seen, score), bisect_right(self._seen, score)
        ties = up_to - below + 1  # itself among them
        larger = len(self._seen) - up_to
        insort(self._seen, float(score))
        return float(larger + self._random.random() * ties) / len(self._seen)

    def update(self, scores: Iterable[float]) -> float:
        """Take scores in the order they came; returns the martingale's value after them."""
        for score in scores:
            p = self.p_value(float(score))
            # A little of every bet's money moves to the others, so that the direction may change.
            self._wealth = (1 - JUMP) * self._wealth + JUMP * self._wealth.mean()
            self._wealth = self._wealth * (1 + np.array(BETS) * (p - 0.5))
            self.values.append(float(self._wealth.sum()))
        return self.values[-1] if self.values else 1.0

    def first_alarm(self, level: float) -> int | None:
        """The number of images after which the martingale first reached 1/level; None where it never did."""
        over = np.flatnonzero(np.array(self.values) >= 1 / level)
        return int(over[0]) + 1 if len(over) else None


def level_of_look(number: int, level: float) -> float:
    """What look number 1, 2, … of a repeated test may spend of an error level; all looks together spend it whole."""
    return level * 6 / (np.pi**2 * number**2)
