"""Figures of points and methods: maps, journeys, losses, accuracies. ``ax`` in, ``ax`` out.

Lines, points and bars are named where they are, not in a legend far away; colour never stands alone.
Every function raises a DataError that names what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from gcpl_lab.errors import DataError
from gcpl_lab.storage import write_atomically
from gcpl_lab.views import panels, style
from gcpl_lab.views.panels import label_ends, set_texts
from gcpl_lab.views.style import Families, Names, font_size

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Name to (steps (step,), values (step,))."""


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write ``name.png`` and ``name.svg``, equal bytes for equal figures, close the figure, return both paths."""
    paths = []
    # Fonts as paths look alike everywhere; a fixed salt and no date keep the file's bytes the same.
    with plt.rc_context({"svg.fonttype": "path", "svg.hashsalt": "gcpl_lab"}):
        for ending, unsteady in (("png", "Software"), ("svg", "Date")):
            write = partial(figure.savefig, format=ending, dpi=150, metadata={unsteady: None})
            paths.append(write_atomically(Path(folder) / f"{name}.{ending}", write))
    plt.close(figure)  # where pyplot knows it
    return paths


def plot_map(
    ax: Axes,
    points: np.ndarray,
    labels: np.ndarray,
    class_names: Names,
    families: Families = None,
    title: str | None = None,
    caption: str | None = None,
) -> Axes:
    """Points (point, 2) on a plane, each class named at its median, the names apart for the present size of ``ax``."""
    clouds, labels = panels.check_clouds({"points": points}, labels, class_names)
    looks, present = style.class_style(class_names, families), np.unique(labels)
    for label in present:
        color, marker = looks[class_names[label]]
        # The thin dark edge keeps yellow visible on white.
        rim: dict[str, Any] = {"alpha": 0.8, "edgecolors": style.INK, "linewidths": 0.3}
        x, y = clouds["points"][labels == label].T
        ax.scatter(x, y, s=30, c=color, marker=marker, **rim)
    panels.set_window(ax, panels.square_window(clouds.values()))
    set_texts(ax, title, caption)
    medians = np.stack([np.median(clouds["points"][labels == label], axis=0) for label in present])
    panels.name_classes(ax, medians, [class_names[label] for label in present], looks, clouds["points"])
    return ax


def plot_token_journey(
    ax: Axes, paths: np.ndarray, steps: Sequence[int], class_names: Names, families: Families = None, now: int = -1
) -> Axes:
    """The way (step, class, 2) of each class token to its place ``now``, hollow at its beginning, named at its end."""
    paths = panels.check_shape("paths", paths, len(steps), len(class_names), 2)
    if len(steps) < 2 or not np.isfinite(paths).all():
        raise DataError(f"paths has {len(steps)} steps; expected finite values of 2 steps or more")
    now %= len(paths)
    looks, way = style.class_style(class_names, families), paths[: now + 1]
    for place, name in enumerate(class_names):
        color, marker = looks[name]
        ax.plot(*paths[now:, place].T, color=style.FAINT, linewidth=1.5, zorder=1)
        # A darker rim keeps the yellow path visible on white.
        ax.plot(*way[:, place].T, color=style.GREY, linewidth=3.2, zorder=2)
        ax.plot(*way[:, place].T, color=color, linewidth=2, zorder=3, marker=marker, markersize=4)
        x, y = paths[:1, place].T
        ax.scatter(x, y, s=70, facecolors="white", edgecolors=color, marker=marker, linewidths=2, zorder=3)
    panels.set_window(ax, panels.square_window([paths]))
    set_texts(ax, caption=f"hollow: step {steps[0]}; filled: step {steps[now]}; small marks: kept between")
    # Names keep off the lines too, not only off the marks on them.
    between = way[:-1] + np.linspace(0, 1, 6)[:, None, None, None] * np.diff(way, axis=0)
    panels.name_classes(ax, way[-1], class_names, looks, between if now else way)
    return ax


def draw_curves(ax: Axes, curves: Curves) -> list[tuple[float, str, str]]:
    """Curves, raw and as running mean, without their names: the ends for ``label_ends``, to be called last."""
    panels.check_filled("curves", curves, "at least one pair of steps and values")
    ends = []
    for turn, (name, (steps, values)) in enumerate(curves.items()):
        steps = panels.check_shape(f"the steps of curve {name!r}", steps, "step")
        values = panels.check_shape(f"the values of curve {name!r}", values, len(steps))
        color, _ = style.look(turn)
        # Fewer values at the ends, so that nothing is made up there.
        window = np.ones(min(len(values), max(1, len(values) // 20) | 1))
        smooth = np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        alone = "o" if len(steps) == 1 else None  # one point makes no line
        ax.plot(steps, smooth, color=color, linestyle=panels.LINES[turn % 4], marker=alone)
        ends.append((float(smooth[-1]), name, color))
    ax.margins(x=0)
    return ends


def plot_losses(ax: Axes, curves: Curves, label: str = "loss", expected: Mapping[str, float] | None = None) -> Axes:
    """Curves over training steps: raw and faint, with their running mean over a twentieth of the steps.

    ``expected`` maps a curve's name to the value that theory foresees, dotted in its colour.
    """
    ends = draw_curves(ax, curves)
    for _, name, color in ends:
        if name in (expected or {}):
            ax.axhline((expected or {})[name], color=color, linestyle=(0, (1, 2)), linewidth=1.6)
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    dotted = "; dotted: foreseen by theory" if expected else ""
    ax.set(xlabel=f"training step (thick: running mean{dotted})", ylabel=label)
    label_ends(ax, ends)
    return ax


def plot_shots(ax: Axes, table: Sequence[Mapping[str, Any]], chance: float | None = None) -> Axes:
    """Accuracy against the number of images a class, with a band from low to high.

    ``table`` has rows with ``name, shots, accuracy, low, high``; ``chance`` is the accuracy of guessing.
    """
    lines: dict[str, list[Any]] = {}
    for row in table:
        lines.setdefault(row["name"], []).append([row[key] for key in ("shots", "accuracy", "low", "high")])
    ends = panels.draw_lines(ax, lines)
    panels.draw_chance(ax, chance)
    shots = sorted({row["shots"] for row in table})
    ax.set_xscale("log", base=2)
    ax.set_xticks(shots, [str(count) for count in shots])
    ax.set_xticks([], minor=True)
    ax.set(xlim=(shots[0] * 0.93, shots[-1] * 1.02), xlabel="images a class", ylabel="accuracy")
    panels.percent_axis(ax.yaxis)
    label_ends(ax, ends)
    return ax


KINDS = {"generative": "diffusion prompts", "baseline": "baselines"}


def plot_accuracy(ax: Axes, rows: Sequence[Mapping[str, Any]], chance: float) -> Axes:
    """Accuracies as sorted bars, best on top, with intervals and the figures beside them; 0.4 inches a row read well.

    ``rows`` have ``name, accuracy, low, high, kind``, shares from 0 to 1; the kinds ``"generative"`` and ``"baseline"``
    are told apart by colour and hatch. ``chance`` is the accuracy of guessing.
    """
    for row in rows:
        if row["kind"] not in KINDS:
            raise DataError(f"row {row['name']!r} has kind {row['kind']!r}; expected one of {', '.join(KINDS)}")
    panels.check_filled("rows", rows, "at least one with name, accuracy, low, high, kind")
    ordered = sorted(rows, key=lambda row: -row["accuracy"])
    values, *ends = ([row[key] for row in ordered] for key in ("accuracy", "low", "high"))
    names = [style.label_text(row["name"], 32) for row in ordered]
    bars = panels.bar_rows(ax, names, values, [row["kind"] == "generative" for row in ordered], ends)
    for place, row in enumerate(ordered):
        text = f"{row['accuracy']:.1%}  ({100 * row['low']:.1f}\N{EN DASH}{row['high']:.1%})"
        ax.text(1.02, place, text, transform=ax.get_yaxis_transform(), va="center")
    # A free lane over the bars for the word.
    ax.axvline(chance, color=style.INK, linestyle=":", linewidth=1.8)
    ax.text(chance, -0.65, f" chance {chance:.0%}", va="center")
    ax.set(xlim=(0, 1), ylim=(len(ordered) - 0.4, -1), xlabel="accuracy on the test images")
    panels.percent_axis(ax.xaxis)
    below = offset_copy(ax.transAxes, ax.get_figure(root=True), y=-3.4 * font_size(), units="points")
    corner: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below}
    handles = {KINDS[row["kind"]]: bar for row, bar in zip(ordered, bars, strict=True)}
    ax.legend(handles.values(), handles, ncols=2, frameon=False, borderaxespad=0, **corner)
    return ax
