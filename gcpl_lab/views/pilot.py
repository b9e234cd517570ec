"""The figures of a pilot's page and deck: numbers in, figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.views import panels, style

ALARM = "#B00020"


def draw_intervals(
    rows: Sequence[tuple[str, Mapping[str, float]]], label: str, *, limit: float | None = None, percent: bool = True
) -> Figure:
    """Values with 95 % intervals, one named row each, from top to bottom; ``limit`` is a dashed line."""
    figure = style.new_figure(9, 1.2 + 0.5 * len(rows))
    ax = figure.subplots()
    values, *ends = np.array([[share[key] for key in ("value", "low", "high")] for _, share in rows]).T
    panels.mark_rows(ax, values, (style.BLUE, "o"), ends=ends)
    if limit is not None:
        ax.axvline(limit, color=style.INK, ls="--", lw=1.5)
    panels.name_rows(ax, [style.label_text(name, 40) for name, _ in rows])
    ax.set_xlabel(label)
    if percent:
        panels.percent_axis(ax.xaxis)
    else:
        ax.set_xlim(left=0)
    return figure


def draw_lines(lines: Sequence[tuple[str, Sequence[tuple[float | None, ...]]]], across: str, up: str) -> Figure:
    """A named line of (x, share, low, high) each, with a band where it has intervals, and its name at its end."""
    figure = style.new_figure(9, 4.5)
    ax = figure.subplots()
    ends = panels.draw_lines(ax, {style.label_text(name, 30): points for name, points in lines}, linestyle="-")
    ax.set_xticks(sorted({point[0] for _, points in lines for point in points}))
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    panels.percent_axis(ax.yaxis)
    panels.label_ends(ax, ends)
    return figure


def draw_dearest(matrix: np.ndarray, names: Sequence[str], money: str, most: int = 8) -> Figure:
    """The dearest confusions of a matrix (true class, answer), the dearest first."""
    cells = [(float(matrix[a, b]), a, b) for a, b in np.ndindex(*matrix.shape) if a != b and matrix[a, b] > 0]
    dearest = sorted(cells, reverse=True)[:most]
    figure = style.new_figure(9, 1.2 + 0.45 * len(dearest))
    ax = figure.subplots()
    said = [f"{style.label_text(names[a], 18)}, answered {style.label_text(names[b], 18)}" for _, a, b in dearest]
    panels.bar_rows(ax, said, [value for value, _, _ in dearest], [False] * len(dearest))
    ax.set_xlabel(money)
    return figure


def draw_watch(drift: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Control charts: the evidence of every stream on a logarithmic axis, with the limit of its alarm."""
    streams = {name: found for name, found in drift.items() if found.get("values")}
    figure = style.new_figure(9, 2.4 * max(1, len(streams)))
    axes = figure.subplots(max(1, len(streams)), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, found) in zip(axes, streams.items(), strict=False):
        values, limit = found["values"], found["limit"]
        ax.plot(range(1, len(values) + 1), values, color=style.BLUE)
        ax.axhline(limit, color=style.INK, ls="--", lw=1.5)
        high = min(1e8, max(limit, *values))  # beyond it nothing more is learned, and the limit must stay in sight
        ax.set(title=name, ylabel="evidence", yscale="log", ylim=(max(1e-4, min(values)) / 2, high * 3))
        if max(values) > 3 * high:
            ax.text(0.99, 0.6, "beyond the axis ↑", transform=ax.transAxes, ha="right", color=style.BLUE)
        if (after := found["after"]) is not None:
            ax.axvline(after, color=ALARM, lw=1.5)
            ax.annotate(f" alarm after {after}", (after, 0.03), xycoords=("data", "axes fraction"), color=ALARM)
    axes[-1].set_xlabel("images that came in")
    return figure
