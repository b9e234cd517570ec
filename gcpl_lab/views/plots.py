"""Figures of points and methods: maps, journeys, losses, accuracies, situations, prompts. ``ax`` in, ``ax`` out.

Lines, points and bars are named where they are, not in a legend far away; colour never stands alone.
Every function raises a DataError that names what does not fit.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
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
Point = tuple[float, float, float]
"""Mean accuracy with the ends of its interval, shares from 0 to 1."""
Shares = Mapping[str, Sequence[tuple[int, float, float, float]]]
"""Method to (step, share, low, high), by growing step."""


def figure_files(figure: Figure, endings: Sequence[str], dpi: float = 150) -> dict[str, bytes]:
    """The figure in each format (png, svg, pdf), equal bytes for equal figures."""
    files = {}
    # Fonts as paths look alike everywhere; a fixed salt and no date keep the bytes the same.
    with plt.rc_context({"svg.fonttype": "path", "svg.hashsalt": "gcpl_lab"}):
        for ending in endings:
            stream, unsteady = io.BytesIO(), {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[ending]
            figure.savefig(stream, format=ending, dpi=dpi, metadata={unsteady: None})
            files[ending] = stream.getvalue()
    return files


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write ``name.png`` and ``name.svg``, equal bytes for equal figures, close the figure, return both paths."""
    paths = []
    for ending, content in figure_files(figure, ("png", "svg")).items():
        paths.append(write_atomically(Path(folder) / f"{name}.{ending}", partial(Path.write_bytes, data=content)))
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
    window: Iterable[np.ndarray] = (),
) -> Axes:
    """Points (point, 2) on a plane, each class named at its median; ``window`` as in :func:`plot_token_journey`."""
    clouds, labels = panels.check_clouds({"points": points}, labels, class_names)
    looks, present = style.class_style(class_names, families), np.unique(labels)
    for label in present:
        color, marker = looks[class_names[label]]
        rim: dict[str, Any] = {"alpha": 0.8, "edgecolors": style.INK, "linewidths": 0.3}  # shows yellow on white
        x, y = clouds["points"][labels == label].T
        ax.scatter(x, y, s=30, c=color, marker=marker, **rim)
    panels.set_window(ax, panels.square_window([*clouds.values(), *window]))
    set_texts(ax, title, caption)
    medians = np.stack([np.median(clouds["points"][labels == label], axis=0) for label in present])
    panels.name_classes(ax, medians, [class_names[label] for label in present], looks, clouds["points"])
    return ax


def plot_token_journey(
    ax: Axes,
    paths: np.ndarray,
    steps: Sequence[int],
    class_names: Names,
    families: Families = None,
    now: int = -1,
    window: Iterable[np.ndarray] = (),
) -> Axes:
    """The way (step, class, 2) of each class token to its place ``now``, hollow at its beginning, named at its end.

    ``window`` are more points (..., 2) that have room, for one scale where journeys stand side by side.
    """
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
    panels.set_window(ax, panels.square_window([paths, *window]))
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
    columns, rows = min(3, len(groups)), -(-len(groups) // 3)
    present = [name for name in titles if any(name in points for of in groups.values() for points in of.values())]
    figure = style.new_figure(max(13.0, 4.3 * columns), 4.0 * rows + 0.32 * -(-len(present) // 4))
    grid = panels.axes_in_rows(figure, len(groups), columns, sharey=True)
    for ax, (group, levels) in zip(grid, groups.items(), strict=True):
        lines = [_draw_method(ax, levels, method, turn, method in strong) for turn, method in enumerate(present)]
        panels.draw_chance(ax, chance)
        ax.set(title=group, xlabel=varied if isinstance(varied, str) else varied[group])
        ax.set_xticks(range(len(levels)), list(levels))
        panels.percent_axis(ax.yaxis)
    shown = np.array([point for of in groups.values() for points in of.values() for point in points.values()])
    low, high = (limit([*shown[:, 0], *([] if chance is None else [chance])]) for limit in (min, max))
    reach = np.clip([shown[:, 1].min(), shown[:, 2].max()], [low - 0.25, high + 0.08], [low - 0.08, high + 0.25])
    grid[0].set_ylim(*np.clip(reach, 0, 1))  # the bands of very few draws may go on beyond it
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
    panels.name_places(ax, places, [row["name"] for row in ordered], [style.GREY] * len(ordered), places, 28)
    return ax


def step_axis(ax: Axes, last: int) -> None:
    """Training steps from 0 to the last, the early ones apart: equal ways are doublings."""
    ax.set_xscale("symlog", base=2, linthresh=1, linscale=0.6)
    ticks = [0, *(2**power for power in range(int(np.log2(max(last, 1))) + 1))]
    shown = ticks if len(ticks) < 8 else [0, *ticks[1::2]]
    ax.set_xticks(shown, [str(tick) for tick in shown])
    ax.set_xticks([], minor=True)
    ax.set_xlim(-0.12, last * 1.06)


def _method_look(turn: int, name: str) -> tuple[str, str]:
    """Colour and line of a method that is followed beside others; a control is grey and dotted."""
    if name.lower().startswith("shuffled"):
        return style.GREY, ":"
    return style.METHOD_COLORS[turn % len(style.METHOD_COLORS)], panels.LINES[turn % 3]


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
        color, kind = _method_look(turn, name)
        ax.plot(steps, values, color=color, linestyle=kind, marker="o", markersize=3.5)
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
        color, kind = _method_look(turn, name)
        places = steps * (1 + 0.05 * turn) if len(points) == 1 else steps  # ends of several methods lie side by side
        bars: dict[str, Any] = {"capsize": 4, "linewidth": 1.6, "elinewidth": 1.6}
        reach = [value - low, high - value]
        ax.errorbar(places, value, yerr=reach, color=color, marker=style.MARKERS[turn], linestyle=kind, **bars)
        ends.append((float(value[-1]), name, color))
    panels.draw_chance(ax, chance)
    step_axis(ax, int(last * (1 + 0.05 * len(shares))))
    panels.percent_axis(ax.yaxis)
    ax.set_ylim(0, 1.02)
    set_texts(ax, "Do the images follow?", "training step")
    ax.set_ylabel("held-out images classified correctly")
    label_ends(ax, ends)
    return ax
