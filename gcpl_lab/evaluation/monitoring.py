"""Watching a stream of images: tests that may be looked at as often as one likes.

A test martingale starts at 1 and bets against "the stream is like the calibration set". If that is true, the chance
that it ever reaches 1/α is at most α (Ville's inequality), however often one looks.

Source: Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World, section 7.1 (simple jumper)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from gcpl_lab.errors import DataError


def bet_against(calibration: ArrayLike, stream: ArrayLike, seed: int = 0) -> np.ndarray:
    """Values (image,) of MAPIE's martingale on the ranks of a score among all that was seen before it.

    Args:
        calibration: Scores (image,) of images that trained nothing: what was seen first.
        stream: Scores (image,) in the order in which they came.
        seed: Of the numbers that break ties.
    """
    from mapie.exchangeability_testing import OnlineMartingaleTest  # type: ignore[import-untyped]

    seen = np.concatenate([np.asarray(calibration, float), np.asarray(stream, float)])
    first, test = np.size(calibration), OnlineMartingaleTest(warn=False, random_state=seed)
    if not first or not np.isfinite(seen).all():
        raise DataError(f"{first} calibration scores; expected one or more, and finite numbers in the stream")
    for place in range(first, len(seen)):
        test.update_simple_jumper_martingale(test.compute_p_value(seen[place], seen[:place]))
    return np.array(test.martingale_value_history)


def level_of_look(number: int, level: float) -> float:
    """What look number 1, 2, … of a repeated test may spend of an error level; all looks together spend it whole."""
    return level * 6 / (np.pi**2 * number**2)
