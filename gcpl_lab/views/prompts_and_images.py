"""Prompts part; do the images follow? The cosine of a family's prompts beside the accuracy on held-out images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from gcpl_lab.views import panels, style
from gcpl_lab.views.panels import label_ends, set_texts
from gcpl_lab.views.plots import Curves

Shares = Mapping[str, Sequence[tuple[int, float, float, float]]]
"""Method to (step, share, low, high), by growing step."""


def step_axis(ax: Axes, last: int) -> None:
    """Training steps from 0 to the last, the early ones apart: equal ways are doublings."""
    ax.set_xscale("symlog", base=2, linthresh=1, linscale=0.6)
    ticks = [0, *(2**power for power in range(int(np.log2(max(last, 1))) + 1))]
    shown = ticks if len(ticks) < 8 else [0, *ticks[1::2]]
    ax.set_xticks(shown, [str(tick) for tick in shown])
    ax.set_xticks([], minor=True)
    ax.set_xlim(-0.12, last * 1.06)


def plot_prompt_cosines(ax: Axes, curves: Curves, shuffles: Sequence[tuple[np.ndarray, np.ndarray]] = ()) -> Axes:
    """Mean centred cosine of a family's prompts over training steps, and the band that several shufflings leave."""
    panels.check_filled("curves", curves, "at least one method with its steps and cosines")
    last = max(int(np.max(steps)) for steps, _ in [*curves.values(), *shuffles])
    ends = []
    if shuffles:
        steps = np.unique(np.concatenate([part for part, _ in shuffles]))
        # Where one has ended, those that go on are drawn alone.
        values = np.stack([np.interp(steps, *part, right=np.nan) for part in shuffles])
        mean = np.nanmean(values, axis=0)
        ax.fill_between(steps, np.nanmin(values, 0), np.nanmax(values, 0), color=style.GREY, alpha=0.25, linewidth=0)
        ax.plot(steps, mean, color=style.GREY, linestyle=":")
        ends.append((float(mean[-1]), f"shuffled labels ({len(shuffles)})", style.GREY))
    for turn, (name, (steps, values)) in enumerate(curves.items()):
        color = style.METHOD_COLORS[turn % len(style.METHOD_COLORS)]
        ax.plot(steps, values, color=color, linestyle=panels.LINES[turn % 4], marker="o", markersize=3.5)
        ends.append((float(values[-1]), name, color))
    step_axis(ax, last)
    set_texts(ax, "The prompts part", "training step")
    ax.set_ylabel("mean cosine of the family's prompts")
    label_ends(ax, ends)
    return ax


def plot_held_out(ax: Axes, shares: Shares, chance: float | None = None) -> Axes:
    """Share of held-out images in the sector of their own class over training steps, with 95 % intervals."""
    panels.check_filled("shares", shares, "at least one method with its steps and shares")
    last, ends = max(points[-1][0] for points in shares.values()), []
    for turn, (name, points) in enumerate(shares.items()):
        steps, value, low, high = np.array(points, dtype=float).T
        control = name.lower().startswith("shuffled")
        color = style.GREY if control else style.METHOD_COLORS[turn % len(style.METHOD_COLORS)]
        places = steps * (1 + 0.05 * turn) if len(points) == 1 else steps  # ends of several methods lie side by side
        bars: dict[str, Any] = {"capsize": 4, "linewidth": 1.6, "elinewidth": 1.6}
        kind = ":" if control else panels.LINES[turn % 4]
        reach = [value - low, high - value]
        ax.errorbar(places, value, yerr=reach, color=color, marker=style.MARKERS[turn], linestyle=kind, **bars)
        ends.append((float(value[-1]), name, color))
    panels.draw_chance(ax, chance)
    step_axis(ax, int(last * (1 + 0.05 * len(shares))))
    panels.percent_axis(ax.yaxis)
    ax.set_ylim(0, 1.02)
    set_texts(ax, "Do the images follow?", "training step")
    ax.set_ylabel("held-out images in their own sector")
    label_ends(ax, ends)
    return ax
