"""Figures of what a model may be trusted with: shifted images, generated images beside real ones, reviews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcpl_lab.data.shifts import describe_strength
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.trust import Consistency, Recognition, ShiftPoint
from gcpl_lab.views import panels, style
from gcpl_lab.views.panels import legend_beside, set_texts
from gcpl_lab.views.style import Names


def _points_of(points: Sequence[ShiftPoint], method: str, kind: str) -> list[ShiftPoint]:
    """One line, by growing severity."""
    mine = [point for point in points if (point.method, point.kind) == (method, kind)]
    return sorted(mine, key=lambda point: point.severity)


def plot_shift_curves(ax: Axes, points: Sequence[ShiftPoint], kind: str, chance: float | None = None) -> Axes:
    """Accuracy of every method against the severity of one kind of shift, with 95 % intervals; lines for a legend.

    The methods stand side by side, so that each keeps an interval of its own that can be seen.
    """
    severities = sorted({point.severity for point in points if point.kind == kind})
    if not severities:
        kinds = dict.fromkeys(point.kind for point in points)
        raise DataError(f"no point of kind {kind!r}; the kinds are {', '.join(kinds)}")
    for turn, method in enumerate(dict.fromkeys(point.method for point in points)):
        mine = _points_of(points, method, kind)
        if not mine:
            continue
        y, low, high = np.array([point.accuracy for point in mine]).T
        x, (color, marker) = np.array([point.severity for point in mine]) + 0.13 * turn, style.look(turn)
        line: dict[str, Any] = {"linestyle": panels.LINES[turn % 4], "label": style.label_text(method)}
        ax.errorbar(x, y, [y - low, high - y], color=color, marker=marker, markersize=7, elinewidth=1.2, **line)
    panels.draw_chance(ax, chance)
    ax.set(xticks=severities, ylim=(0, 1))
    ax.margins(x=0.02)
    panels.percent_axis(ax.yaxis)
    set_texts(ax, kind, f"severity ({severities[-1]}: {describe_strength(kind, severities[-1])})")
    return ax


def draw_shift_grid(points: Sequence[ShiftPoint], chance: float | None = None) -> Figure:
    """One panel a kind of shift, three side by side, all on one scale, with one legend."""
    kinds = list(dict.fromkeys(point.kind for point in points))
    if not kinds:
        raise DataError("there is no point; expected those of measure_shifts")
    columns = min(3, len(kinds))
    rows = -(-len(kinds) // columns)
    with style.figure_style():
        figure = style.new_figure(4.6 * columns, 4.0 * rows + 0.5)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, kind in zip(axes, kinds, strict=False):
            plot_shift_curves(ax, points, kind, chance)
        for ax in axes[len(kinds) :]:
            ax.set_axis_off()
        for ax in axes[: len(kinds) : columns]:
            ax.set_ylabel("accuracy (bars: 95 %)")
        # In the free panel where there is one, else below all.
        handles, labels = axes[0].get_legend_handles_labels()
        if len(axes) > len(kinds):
            axes[-1].legend(handles, labels, loc="center", frameon=False)
        else:
            figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def plot_confidence(ax: Axes, points: Sequence[ShiftPoint]) -> Axes:
    """Mean confidence against accuracy, a line from the unchanged images to the hardest a method and kind.

    Above the diagonal a method is surer than it is right: it fails without noticing.
    """
    if not points:
        raise DataError("there is no point; expected those of measure_shifts")
    ax.plot([0, 1], [0, 1], color=style.GREY, linestyle="--", linewidth=1.4)
    for turn, method in enumerate(dict.fromkeys(point.method for point in points)):
        color, marker = style.look(turn)
        label: str | None = style.label_text(method)
        for kind in dict.fromkeys(point.kind for point in points if point.method == method):
            mine = _points_of(points, method, kind)
            x, y = [point.accuracy.value for point in mine], [point.confidence for point in mine]
            ax.plot(x, y, color=color, linewidth=1.2, alpha=0.7)
            dots = ax.scatter(x, y, s=[18 + 14 * point.severity for point in mine], color=color, marker=marker)
            dots.set(alpha=0.85, edgecolors="white", linewidths=0.6, label=label)
            label = None  # named once
    ax.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal", ylabel="mean stated probability")
    panels.percent_axis(ax.xaxis, ax.yaxis)
    ax.text(0.04, 0.96, "too sure", va="top", color=style.GREY)
    ax.text(0.96, 0.04, "too unsure", ha="right", color=style.GREY)
    set_texts(ax, caption="accuracy (size: severity; a line for each kind of shift)")
    legend_beside(ax)
    return ax


def plot_recognition(ax: Axes, found: Mapping[str, Recognition], class_names: Names) -> Axes:
    """Share of images that a judge takes for the class they stand for, class by class, one mark a set of images."""
    wrong = {name: len(entry.by_class) for name, entry in found.items() if len(entry.by_class) != len(class_names)}
    if not found or wrong:
        raise DataError(f"recognition of {wrong or 'nothing'} for {len(class_names)} class names; expected one a class")
    rows = [*class_names, "all classes"]
    panels.name_rows(ax, [style.label_text(name) for name in rows], rules=0.5)
    for turn, (name, entry) in enumerate(found.items()):
        values, low, high = np.array([*entry.by_class, entry.overall]).T
        shift, known = 0.22 * (turn - (len(found) - 1) / 2), np.flatnonzero(np.isfinite(values))
        ax.plot([low[known], high[known]], [known + shift] * 2, color=style.look(turn)[0], linewidth=1.6)
        panels.mark_rows(ax, values, turn, style.label_text(name, 32), shift, size=60)
    ax.set_xlim(-0.02, 1.02)
    ax.axvline(1 / len(class_names), color=style.GREY, linestyle=":", linewidth=1.5)
    panels.percent_axis(ax.xaxis)
    set_texts(ax, caption="recognised as its class (line: 95 % interval; dotted: chance)")
    legend_beside(ax)
    return ax


def plot_consistency(ax: Axes, found: Mapping[str, Sequence[Consistency]], class_names: Names) -> Axes:
    """How far generated images lie from the real ones of their class, beside how far real ones lie from each other."""
    if not found or not all(found.values()):
        raise DataError("nothing was measured; expected a name and the entries of measure_consistency")
    first = next(iter(found.values()))
    panels.name_rows(ax, [style.label_text(class_names[entry.label]) for entry in first], rules=0.0)
    for row, entry in enumerate(first):
        label = "between real ones" if row == 0 else None
        ax.plot([entry.real_to_real] * 2, [row - 0.36, row + 0.36], color=style.INK, linewidth=3, zorder=2, label=label)
    # The first colour is that of real images in plot_recognition, which often stands beside this figure.
    for turn, (name, entries) in enumerate(found.items(), start=1):
        by_label = {entry.label: entry.to_real for entry in entries}
        panels.mark_rows(ax, [by_label.get(entry.label) for entry in first], turn, style.label_text(name, 32), size=80)
    ax.set_xlim(left=0)
    set_texts(ax, caption="mean distance to the nearest real image of the class")
    legend_beside(ax)
    return ax
