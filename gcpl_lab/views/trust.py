"""Figures of what a model may be trusted with: shifted photographs, generated pictures beside real ones, reviews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gcpl_lab.data.shifts import describe_strength
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.separation import Estimate
from gcpl_lab.evaluation.trust import Consistency, Recognition, ShiftPoint
from gcpl_lab.views import style
from gcpl_lab.views.labels import label_ends
from gcpl_lab.views.plots import LINE_STYLES, set_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _place: f"{value:.0%}")


def plot_shift_curves(
    ax: Axes, points: Sequence[ShiftPoint], kind: str, chance: float | None = None, name_lines: bool = True
) -> Axes:
    """Accuracy of every method against the severity of one kind of shift, with 95 % intervals.

    Args:
        ax: Drawn on; about 5 × 4 inches read well.
        points: Of :func:`~gcpl_lab.evaluation.trust.measure_shifts`.
        kind: Which of their kinds.
        chance: Accuracy of guessing, drawn as a dotted line.
        name_lines: Whether the methods are named at the ends of their lines.

    Raises:
        DataError: No point has this kind.
    """
    chosen = [point for point in points if point.kind == kind]
    if not chosen:
        raise DataError(f"no point of kind {kind!r}; the kinds are {', '.join(dict.fromkeys(p.kind for p in points))}")
    ends = []
    for turn, method in enumerate(dict.fromkeys(point.method for point in points)):
        mine = sorted((point for point in chosen if point.method == method), key=lambda point: point.severity)
        severities = np.array([point.severity for point in mine])
        values, low, high = np.array([point.accuracy for point in mine]).T
        color, marker = style.PALETTE[turn % len(style.PALETTE)], style.MARKERS[turn % len(style.MARKERS)]
        ax.fill_between(severities, low, high, color=color, alpha=0.13, linewidth=0)
        ax.plot(
            severities,
            values,
            color=color,
            marker=marker,
            markersize=7,
            label=style.label_text(method),
            linestyle=LINE_STYLES[turn % len(LINE_STYLES)],
        )
        ends.append((float(values[-1]), method, color))
    if chance is not None:
        ax.axhline(chance, color=style.GREY, linestyle=":", linewidth=1.5)
        ax.annotate("chance", (0, chance), (6, 3), ("axes fraction", "data"), "offset points", color=style.GREY)
    last = max(point.severity for point in chosen)
    ax.set_xticks(sorted({point.severity for point in chosen}))
    ax.set_ylim(0, 1)
    ax.margins(x=0.02)
    _percent(ax.yaxis)
    set_texts(ax, kind, f"severity ({last}: {describe_strength(kind, last)})")
    if name_lines:
        label_ends(ax, ends)
    return ax


def draw_shift_grid(points: Sequence[ShiftPoint], chance: float | None = None, columns: int = 3) -> Figure:
    """One panel a kind of shift, all on one scale, with one legend.

    Args:
        points: Of :func:`~gcpl_lab.evaluation.trust.measure_shifts`.
        chance: Accuracy of guessing.
        columns: Panels side by side.

    Raises:
        DataError: There is no point.
    """
    kinds = list(dict.fromkeys(point.kind for point in points))
    if not kinds:
        raise DataError("there is no point; expected those of measure_shifts")
    columns = min(columns, len(kinds))
    rows = -(-len(kinds) // columns)
    with style.figure_style():
        figure = style.new_figure(4.6 * columns, 4.0 * rows + 0.5)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, kind in zip(axes, kinds, strict=False):
            plot_shift_curves(ax, points, kind, chance, name_lines=False)
        for ax in axes[len(kinds) :]:
            ax.set_axis_off()
        for ax in axes[: len(kinds) : columns]:
            ax.set_ylabel("accuracy (band: 95 %)")
        # In the free panel where there is one, else below all.
        handles, labels = axes[0].get_legend_handles_labels()
        if len(axes) > len(kinds):
            axes[-1].legend(handles, labels, loc="center", frameon=False)
        else:
            figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def plot_confidence(ax: Axes, points: Sequence[ShiftPoint]) -> Axes:
    """Mean confidence against accuracy, a line from the unchanged photographs to the hardest a method and kind.

    Above the diagonal a method is surer than it is right: it fails without noticing.

    Args:
        ax: Drawn on; about 6.5 × 6 inches read well.
        points: Of :func:`~gcpl_lab.evaluation.trust.measure_shifts`.

    Raises:
        DataError: There is no point.
    """
    if not points:
        raise DataError("there is no point; expected those of measure_shifts")
    ax.plot([0, 1], [0, 1], color=style.GREY, linestyle="--", linewidth=1.4)
    for turn, method in enumerate(dict.fromkeys(point.method for point in points)):
        color, marker = style.PALETTE[turn % len(style.PALETTE)], style.MARKERS[turn % len(style.MARKERS)]
        kinds = dict.fromkeys(point.kind for point in points if point.method == method)
        for place, kind in enumerate(kinds):
            mine = sorted((p for p in points if (p.method, p.kind) == (method, kind)), key=lambda p: p.severity)
            x, y = [point.accuracy.value for point in mine], [point.confidence for point in mine]
            ax.plot(x, y, color=color, linewidth=1.2, alpha=0.7)
            sizes, label = (
                [18 + 14 * point.severity for point in mine],
                style.label_text(method) if place == 0 else None,
            )
            ax.scatter(
                x, y, s=sizes, color=color, marker=marker, alpha=0.85, edgecolors="white", linewidths=0.6, label=label
            )
    ax.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal", ylabel="mean stated probability")
    _percent(ax.xaxis)
    _percent(ax.yaxis)
    ax.text(0.04, 0.96, "too sure", va="top", color=style.GREY)
    ax.text(0.96, 0.04, "too unsure", ha="right", color=style.GREY)
    set_texts(ax, caption="accuracy (size: severity; a line for each kind of shift)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return ax


def plot_recognition(ax: Axes, found: Mapping[str, Recognition], class_names: Sequence[str]) -> Axes:
    """Share of pictures that a judge takes for the class they stand for, class by class, one mark a set of pictures.

    Args:
        ax: Drawn on; about 0.5 inches a class in height.
        found: What the pictures are ("real", "generated from learned prompts") to what the judge made of them.
        class_names: (class,).

    Raises:
        DataError: Nothing was found, or class numbers differ.
    """
    wrong = {name: len(entry.by_class) for name, entry in found.items() if len(entry.by_class) != len(class_names)}
    if not found or wrong:
        raise DataError(f"recognition of {wrong or 'nothing'} for {len(class_names)} class names; expected one a class")
    rows = [*class_names, "all classes"]
    for turn, (name, entry) in enumerate(found.items()):
        shift = 0.22 * (turn - (len(found) - 1) / 2)
        _marks(ax, [*entry.by_class, entry.overall], turn, shift, name)
    for row in range(len(rows)):
        ax.axhline(row + 0.5, color=style.FAINT, linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(rows)), [style.label_text(name) for name in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(-0.02, 1.02)
    ax.axvline(1 / len(class_names), color=style.GREY, linestyle=":", linewidth=1.5)
    _percent(ax.xaxis)
    set_texts(ax, caption="recognised as its class (line: 95 % interval; dotted: chance)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return ax


def _marks(ax: Axes, estimates: Sequence[Estimate], turn: int, shift: float, name: str) -> None:
    color, marker = style.PALETTE[turn % len(style.PALETTE)], style.MARKERS[turn % len(style.MARKERS)]
    known = [(row + shift, entry) for row, entry in enumerate(estimates) if np.isfinite(entry.value)]
    for place, entry in known:
        ax.plot([entry.low, entry.high], [place, place], color=color, linewidth=1.6)
    ax.scatter(
        [entry.value for _, entry in known],
        [place for place, _ in known],
        s=60,
        color=color,
        marker=marker,
        edgecolors=style.INK,
        linewidths=0.5,
        zorder=3,
        label=style.label_text(name, 32),
    )


def plot_consistency(ax: Axes, found: Mapping[str, Sequence[Consistency]], class_names: Sequence[str]) -> Axes:
    """How far generated pictures lie from the real ones of their class, beside how far real ones lie from each other.

    Args:
        ax: Drawn on; about 0.5 inches a class in height.
        found: What was generated to its :func:`~gcpl_lab.evaluation.trust.measure_consistency`.
        class_names: (class,).

    Raises:
        DataError: Nothing was found.
    """
    if not found or not all(found.values()):
        raise DataError("nothing was measured; expected a name and the entries of measure_consistency")
    first = next(iter(found.values()))
    labels = [entry.label for entry in first]
    for row, entry in enumerate(first):
        ax.plot(
            [entry.real_to_real] * 2,
            [row - 0.36, row + 0.36],
            color=style.INK,
            linewidth=3,
            zorder=2,
            label="between real ones" if row == 0 else None,
        )
    # The first colour is that of real photographs in plot_recognition, which often stands beside this figure.
    for turn, (name, entries) in enumerate(found.items()):
        by_label = {entry.label: entry for entry in entries}
        places = [row for row, label in enumerate(labels) if label in by_label]
        ax.scatter(
            [by_label[labels[row]].to_real for row in places],
            places,
            s=80,
            zorder=3,
            edgecolors=style.INK,
            linewidths=0.5,
            color=style.PALETTE[(turn + 1) % len(style.PALETTE)],
            marker=style.MARKERS[(turn + 1) % len(style.MARKERS)],
            label=style.label_text(name, 32),
        )
    for row in range(len(labels)):
        ax.axhline(row, color=style.FAINT, linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(labels)), [style.label_text(class_names[label]) for label in labels])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xlim(left=0)
    set_texts(ax, caption="mean distance to the nearest real photograph of the class")
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return ax
