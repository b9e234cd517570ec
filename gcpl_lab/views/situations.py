"""Methods in situations: accuracy over what is varied, one panel a group; and accuracy against seconds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcpl_lab.views import panels, style

Point = tuple[float, float, float]
"""Mean accuracy with the ends of its interval, shares from 0 to 1."""


def plot_situation(
    groups: Mapping[str, Mapping[str, Mapping[str, Point]]],
    titles: Mapping[str, str],
    varied: str | Mapping[str, str],
    strong: Collection[str] = (),
    chance: float | None = None,
) -> Figure:
    """A panel for each group of a situation, a line with a band for each method over the levels.

    Args:
        groups: Group to level, in order, to method to its point; a method may be absent.
        titles: Of the methods, in the order of the legend.
        varied: What the levels are, for the axis; one text, or one a group.
        strong: Methods that are drawn thick.
        chance: Accuracy of guessing.
    """
    panels.check_filled("groups", groups, "a group with levels")
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    present = [name for name in titles if any(name in points for of in groups.values() for points in of.values())]
    legend_rows = -(-len(present) // 4)
    figure = style.new_figure(max(13.0, 4.3 * columns), 4.0 * rows + 0.32 * legend_rows)
    grid = np.atleast_1d(figure.subplots(rows, columns, sharey=True)).ravel()
    for ax, (group, levels) in zip(grid, groups.items(), strict=False):
        lines = [_draw_method(ax, levels, method, turn, method in strong) for turn, method in enumerate(present)]
        panels.draw_chance(ax, chance)
        ax.set(title=group, xlabel=varied if isinstance(varied, str) else varied[group])
        ax.set_xticks(range(len(levels)), list(levels))
        panels.percent_axis(ax.yaxis)
    means = [point[0] for of in groups.values() for points in of.values() for point in points.values()]
    means += [] if chance is None else [chance]
    grid[0].set_ylim(max(0.0, min(means) - 0.08), min(1.0, max(means) + 0.08))  # few draws have bands beyond all means
    for ax in grid[len(groups) :]:
        ax.set_visible(False)
    for ax in grid[::columns]:
        ax.set_ylabel("accuracy (band: 95 %)")
    figure.legend(lines, [titles[name] for name in present], loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_method(ax: Axes, levels: Mapping[str, Mapping[str, Point]], method: str, turn: int, bold: bool) -> Any:
    """One method's line over the levels, with its band; places where it is absent stay empty."""
    color, marker = style.look(turn)
    mean, low, high = np.array([points.get(method, (np.nan,) * 3) for points in levels.values()], float).T
    look: dict[str, Any] = {"alpha": 0.18 if bold else 0.07, "linestyle": "-" if bold else panels.LINES[turn % 4]}
    look |= {"markersize": 7 if bold else 5, "linewidth": 2.6 if bold else 1.2}
    return panels.draw_band(ax, range(len(levels)), mean, low, high, color, marker=marker, **look)


def plot_costs(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> Axes:
    """Accuracy against seconds on a logarithmic axis, and the line of methods that no other beats in both.

    Args:
        rows: ``name``, ``seconds`` (training and classifying), ``accuracy``, and ``strong`` for a filled point.
    """
    panels.check_filled("rows", rows, "rows with name, seconds, accuracy, strong")
    ordered = sorted(rows, key=lambda row: (row["seconds"], -row["accuracy"]))
    front = [row for place, row in enumerate(ordered) if all(r["accuracy"] < row["accuracy"] for r in ordered[:place])]
    ax.step([r["seconds"] for r in front], [r["accuracy"] for r in front], where="post", color=style.FAINT, zorder=0)
    for row in ordered:
        face, edge = (style.BLUE, style.BLUE) if row["strong"] else ("white", style.INK)
        ax.scatter(row["seconds"], row["accuracy"], s=60, color=face, edgecolor=edge)
    ax.set(xscale="log", xlabel="seconds to learn and to classify the test images", ylabel="accuracy")
    ax.margins(x=0.22, y=0.1)
    panels.percent_axis(ax.yaxis)
    places = np.array([[row["seconds"], row["accuracy"]] for row in ordered])
    panels.name_places(ax, places, [row["name"] for row in ordered], [style.GREY] * len(ordered), places)
    return ax
