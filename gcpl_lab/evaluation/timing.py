"""Measuring variants side by side: they take turns within one program, so that all meet whatever the machine does.

A ratio is the median of the ratios within the rounds, not the ratio of the medians: a slow round slows both of its
sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``"cpu"`` counts this process alone: for a look on a busy machine, where waiting would be counted too."""

Seconds = dict[str, list[float]]
"""By variant, one number a round; round i of every variant was measured next to round i of the others."""


def alternate(
    variants: Mapping[str, Callable[[], Any]], repeats: int, warm_ups: int = 1, clock: str = "wall"
) -> Seconds:
    """Measure variants in turn, each round beginning with another one.

    Args:
        variants: What is called, by its name in the table. One that returns a float has measured itself, for
            instance to leave its preparations out; of the others the whole call counts.
        repeats: Rounds that count, 1 or more.
        warm_ups: Rounds before them that do not: first calls allocate and load.
        clock: See :data:`CLOCKS`.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; expected 1 or more")
    names = list(variants)
    seconds: Seconds = {name: [] for name in names}
    for turn in range(-warm_ups, repeats):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            began = CLOCKS[clock]()
            answer = variants[name]()
            spent = answer if isinstance(answer, float) else CLOCKS[clock]() - began
            if turn >= 0:
                seconds[name].append(spent)
    return seconds


def make_row(what: str, values: Sequence[float], evaluations: float | None = None, **more: Any) -> dict[str, Any]:
    """One line of a table: median and spread (largest minus smallest) of measurements in seconds."""
    row: dict[str, Any] = {
        "what": what,
        "seconds": float(np.median(values)),
        "spread": float(np.max(values) - np.min(values)),
    }
    if evaluations is not None:
        row["evaluations"] = evaluations
    return row | {"ratio_to_published": None, "ratio_to_floor": None} | more


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median of the rounds' ratios."""
    return float(np.median(np.asarray(above) / np.asarray(below)))


def make_rows(
    seconds: Seconds,
    *,
    published: str | None = None,
    floor: str | None = None,
    evaluations: Mapping[str, float] | None = None,
    parts: Collection[str] = (),
) -> list[dict[str, Any]]:
    """A row for each variant.

    Args:
        seconds: Of :func:`alternate`.
        published: The variant that is the published procedure; ``ratio_to_published`` says how many times faster
            than it a variant is. None where there is none: the ratio is then null.
        floor: The variant that nothing can be faster than; ``ratio_to_floor`` says how many times longer a variant
            takes.
        evaluations: Denoiser evaluations of some of the variants.
        parts: Variants that do a part of the work only, so that they are not faster than anything.
    """
    rows = []
    for what, values in seconds.items():
        row = make_row(what, values, (evaluations or {}).get(what))
        if published is not None and what not in parts:
            row["ratio_to_published"] = paired_ratio(seconds[published], values)
        if floor is not None:
            row["ratio_to_floor"] = paired_ratio(values, seconds[floor])
        rows.append(row)
    return rows


def check_aim(what: str, value: float, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """An aim beside what was measured, for ``aims`` of a result; a missed one is shown, never left out."""
    met = (least is None or value >= least) and (most is None or value <= most)
    return {"what": what, "value": value, "least": least, "most": most, "met": bool(met)}
