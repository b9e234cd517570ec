"""Figures of what a model may be trusted with: shifted images, generated images beside real ones, reviews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcpl_lab.data.shifts import describe_strength
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.trust import Consistency, Recognition, ShiftPoint
from gcpl_lab.views import panels, style
from gcpl_lab.views.panels import legend_beside, set_texts
from gcpl_lab.views.plots import Point, plot_situation
from gcpl_lab.views.style import Names


def draw_shift_grid(points: Sequence[ShiftPoint], chance: float | None = None) -> Figure:
    """Accuracy of every method against the severity of each kind of shift, with 95 % intervals, a panel a kind."""
    panels.check_filled("points", points, "those of measure_shifts")
    groups: dict[str, dict[str, dict[str, Point]]] = {}
    for point in sorted(points, key=lambda point: point.severity):
        groups.setdefault(point.kind, {}).setdefault(str(point.severity), {})[point.method] = point.accuracy
    kinds, methods = dict.fromkeys(point.kind for point in points), dict.fromkeys(point.method for point in points)
    hardest = {kind: max(groups[kind], key=int) for kind in kinds}
    varied = {kind: f"severity ({worst}: {describe_strength(kind, int(worst))})" for kind, worst in hardest.items()}
    with style.figure_style():
        ordered, titles = {kind: groups[kind] for kind in kinds}, {name: style.label_text(name) for name in methods}
        return plot_situation(ordered, titles, varied, methods, chance)


def plot_recognition(ax: Axes, found: Mapping[str, Recognition], class_names: Names) -> Axes:
    """Share of images that a judge takes for the class they stand for, class by class, one mark a set of images."""
    wrong = {name: len(entry.by_class) for name, entry in found.items() if len(entry.by_class) != len(class_names)}
    if not found or wrong:
        raise DataError(f"recognition of {wrong or 'nothing'} for {len(class_names)} class names; expected one a class")
    rows = [*class_names, "all classes"]
    panels.name_rows(ax, [style.label_text(name) for name in rows], rules=0.5)
    for turn, (name, entry) in enumerate(found.items()):
        values, *ends = np.array([*entry.by_class, entry.overall]).T
        shift = 0.22 * (turn - (len(found) - 1) / 2)
        panels.mark_rows(ax, values, style.look(turn), style.label_text(name, 40), shift, 60, ends)
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
        values = [by_label.get(entry.label) for entry in first]
        panels.mark_rows(ax, values, style.look(turn), style.label_text(name, 40), size=80)
    ax.set_xlim(left=0)
    set_texts(ax, caption="mean distance to the nearest real image of the class")
    legend_beside(ax)
    return ax
