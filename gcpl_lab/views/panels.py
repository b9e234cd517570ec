"""The pieces that figures are made of: checks, texts, axes, rows, bands, images, maps, and names where things are.

A piece takes ``ax`` and what is drawn. What a thing is called and how it looks always comes from the caller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression
from scipy.spatial import KDTree

from gcpl_lab.errors import DataError
from gcpl_lab.views import style
from gcpl_lab.views.letters import distinct
from gcpl_lab.views.style import Names, font_size

Looks = Mapping[str, tuple[str, str]]
Window = tuple[np.ndarray, float]
Lines = Mapping[str, Sequence[Sequence[float | None]]]
"""Name to points (x, value, low, high)."""
LINES = ("-", "--", "-.", ":")
"""Styles of lines, in turn."""


def check_shape(what: str, values: Any, *axes: str | int) -> np.ndarray:
    """``values`` as floats of the shape ``axes``: a number is a length, a name stands for any length but 0."""
    array = np.asarray(values, dtype=float)
    lengths = [axis if isinstance(axis, int) else max(size, 1) for axis, size in zip(axes, array.shape, strict=False)]
    if array.ndim != len(axes) or list(array.shape) != lengths:
        raise DataError(f"{what} has shape {array.shape}; expected ({', '.join(map(str, axes))})")
    return array


def check_filled(what: str, values: Any, expected: str) -> None:
    """Something must be there to be drawn."""
    if not values:
        raise DataError(f"{what} is empty; expected {expected}")


def check_clouds(
    clouds: Mapping[str, Any], labels: Sequence[int] | np.ndarray, class_names: Names
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The clouds of points, each (point, 2), and the labels (point,), places in ``class_names``."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise DataError(f"labels has shape {labels.shape} and dtype {labels.dtype}; expected integers, one a point")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise DataError(f"labels must be integers from 0 to {len(class_names) - 1}, the places of the class names")
    return {name: check_shape(f"cloud {name!r}", points, len(labels), 2) for name, points in clouds.items()}, labels


def set_texts(ax: Axes, title: str | None = None, caption: str | None = None) -> None:
    """Title and, under the axes, caption, broken into lines that fit the present axes."""
    width = style.width_of(ax)
    if title:
        ax.set_title(style.wrap_lines(title, width, font_size() * 1.15))
    if caption:
        ax.set_xlabel(style.wrap_lines(caption, width, font_size()))


def write_under(figure: Figure, words: str) -> None:
    """Words under a whole figure, broken into lines that fit its width."""
    shown = style.wrap_lines(words, figure.get_figwidth() * 0.95, font_size())
    figure.supxlabel(shown, fontsize=font_size(), color=style.GREY)


def axes_in_rows(figure: Any, count: int, columns: int = 0, **more: Any) -> list[Axes]:
    """So many axes in a figure or a part of one, ``columns`` in a row, by default all."""
    columns = columns or count
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False, **more).ravel())
    for ax in axes[count:]:
        ax.set_axis_off()
    return axes[:count]


def percent_axis(*axes: Any) -> None:
    """Shares on these axes (``ax.xaxis``, ``ax.yaxis``) are written as percentages."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%".replace("-", "\N{MINUS SIGN}"))


def legend_beside(ax: Axes) -> None:
    """A legend at the right of the axes."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)


def draw_chance(ax: Axes, chance: float | None) -> None:
    """A dotted line at the accuracy of guessing, with its name; nothing for None."""
    if chance is not None:
        ax.axhline(chance, color=style.GREY, linestyle=":", linewidth=1.5)
        ax.annotate("chance", (0, chance), (6, 3), ("axes fraction", "data"), "offset points", color=style.GREY)


def draw_band(ax: Axes, x: Any, y: Any, low: Any, high: Any, color: str, alpha: float = 0.15, **line: Any) -> Any:
    """A line with a band from ``low`` to ``high``; ``line`` are options of ``plot``."""
    ax.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0)
    return ax.plot(x, y, color=color, **{"markersize": 7, **line})[0]


def draw_lines(ax: Axes, lines: Lines, looks: Looks | None = None, **line: Any) -> list[tuple[float, str, str]]:
    """A line with its band for each name; the ends for ``label_ends``, to be called when the limits are final."""
    check_filled("lines", lines, "names with the points (x, value, low, high) of each")
    ends = []
    for turn, (name, points) in enumerate(lines.items()):
        (color, marker), kind = (looks or {}).get(name, style.look(turn)), LINES[turn % len(LINES)]
        values = np.array(points, dtype=float)
        x, y, low, high = values[np.argsort(values[:, 0], kind="stable")].T
        draw_band(ax, x, y, low, high, color, marker=marker, **{"linestyle": kind, **line})
        ends.append((float(y[-1]), name, color))
    return ends


def name_rows(ax: Axes, names: Sequence[str], rules: float | None = None) -> None:
    """Rows 0, 1, 2 ... from the top with their names; faint lines ``rules`` under the middle of each."""
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    if rules is not None:
        for row in range(len(names)):
            ax.axhline(row + rules, color=style.FAINT, linewidth=0.8, zorder=0)


def bar_rows(
    ax: Axes, names: Sequence[str], values: Sequence[float], strong: Sequence[bool], ends: Sequence[Any] | None = None
) -> list[Any]:
    """A bar a row, blue and hatched where ``strong``, else grey, with the intervals between ``ends``; the bars."""
    name_rows(ax, names)
    bars = []
    for row, (value, chosen) in enumerate(zip(values, strong, strict=True)):
        color, hatch = (style.BLUE, "//") if chosen else ("#BFBFBF", "")
        bars.append(ax.barh(row, value, height=0.7, color=color, hatch=hatch, edgecolor="white"))
    if ends is not None:
        # White under black, so that an interval is seen on every bar.
        for color, width in (("white", 5.0), (style.INK, 1.8)):
            look: dict[str, Any] = {"fmt": "none", "capsize": 5, "linewidth": width, "capthick": width}
            reach = np.abs(np.subtract(ends, values))
            ax.errorbar(values, range(len(names)), xerr=reach, ecolor=color, **look)
    return bars


def mark_rows(
    ax: Axes,
    values: Any,
    look: tuple[str, str],
    label: str | None = None,
    shift: float = 0.0,
    size: float = 70,
    ends: Sequence[Any] | None = None,
) -> None:
    """One mark a row in this look, ``shift`` under its middle, with lines between ``ends``; none where unknown."""
    measured, (color, marker) = np.array(values, dtype=float), look
    known = np.flatnonzero(np.isfinite(measured))
    if ends is not None:
        low, high = np.array(ends, dtype=float)[:, known]
        ax.plot([low, high], [known + shift] * 2, color=color, linewidth=1.8)
    rim: dict[str, Any] = {"edgecolors": style.INK, "linewidths": 0.5, "zorder": 3, "clip_on": False}
    ax.scatter(measured[known], known + shift, s=size, color=color, marker=marker, label=label, **rim)


def show_image(ax: Axes, image: Any = None) -> None:
    """One image without axes, grey or RGB, uint8 or floats from 0 to 1, or a PIL image; an empty place for None."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if image is not None:
        pixels = np.asarray(image)
        ax.imshow(pixels, cmap="gray", vmin=0, vmax=255 if pixels.dtype == np.uint8 else 1)


def image_rows(
    figure: Any, rows: Sequence[tuple[str, Sequence[np.ndarray]]], columns: int, margin: float = 2.0
) -> None:
    """Rows of images in a figure or a part of one, each with its words at the left, ``margin`` inches wide."""
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (words, images) in zip(grid, rows, strict=True):
        for place, ax in enumerate(axes):
            show_image(ax, images[place] if place < len(images) else None)
        if not len(images):
            axes[0].text(0, 0.5, "none", transform=axes[0].transAxes, va="center", color=style.GREY)
        words = style.wrap_lines(words, margin, font_size())
        axes[0].set_ylabel(words, rotation=0, ha="right", va="center", labelpad=8)


def square_window(clouds: Iterable[np.ndarray]) -> Window:
    """Centre and half the side of the square around all points (..., 2), so that distances mean the same everywhere."""
    points = np.concatenate([np.reshape(cloud, (-1, 2)) for cloud in clouds])
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, 0.56 * max(float((high - low).max()), 1e-9)


def set_window(ax: Axes, window: Window) -> None:
    """Show this square in a frame without axes: neither direction of a map means anything by itself."""
    (x, y), half = window
    ax.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(style.FAINT)


def name_classes(ax: Axes, anchors: np.ndarray, names: Sequence[str], looks: Looks, obstacles: np.ndarray) -> None:
    """A large marker on each class's anchor (class, 2) and its name beside, off the obstacles (..., 2)."""
    for name, (x, y) in zip(names, anchors, strict=True):
        color, marker = looks[name]
        ax.scatter([x], [y], s=170, c=color, marker=marker, edgecolors="white", linewidths=1.8, zorder=5)
    name_places(ax, anchors, names, [looks[name][0] for name in names], np.reshape(obstacles, (-1, 2)))


def lay_out(ax: Axes) -> float:
    """Let the figure's layout take place now, and return points a pixel: positions are known only after it."""
    figure: Any = ax.get_figure(root=True)
    figure.draw_without_rendering()
    return float(72 / figure.dpi)


def _frame(color: str) -> dict[str, Any]:
    return {"boxstyle": "round,pad=0.18", "facecolor": "white", "edgecolor": color, "linewidth": 1.8}


MOST_WHOLE = 20  # names on a map; of more, the ends alone have room


def name_places(
    ax: Axes, anchors: np.ndarray, names: Sequence[str], colors: Sequence[str], obstacles: np.ndarray, limit: int = 0
) -> None:
    """Write a framed name near each anchor (name, 2), off other names and obstacles, with a leader to the anchor.

    A small search with a stated cost: the same figure every time. The axes have their final limits and are laid out
    here. ``obstacles`` (point, 2) are dots to leave visible; ``limit`` is of letters (0: by the number of names).
    """
    texts, limit = [], limit or (24 if len(names) <= MOST_WHOLE else 12)
    for (x, y), name, color in zip(anchors, distinct(names), colors, strict=True):
        centred: dict[str, Any] = {"ha": "center", "va": "center", "weight": "bold", "zorder": 6}
        texts.append(ax.text(x, y, style.label_text(name, limit), bbox=_frame(color), **centred))
        # The name will lie inside the axes; where it starts must not push the axes about.
        texts[-1].set_in_layout(False)
    scale = lay_out(ax)  # costs are written in points
    extents = [(text.get_bbox_patch() or text).get_window_extent() for text in texts]
    sizes = np.array([[extent.width, extent.height] for extent in extents]) * scale
    window = np.array([ax.bbox.min, ax.bbox.max]) * scale
    starts, dots = (ax.transData.transform(np.asarray(points, dtype=float)) * scale for points in (anchors, obstacles))
    places = ax.transData.inverted().transform(_search(starts, sizes, dots, window) / scale)
    for text, color, start, place in zip(texts, colors, np.asarray(anchors), places, strict=True):
        text.set_position((float(place[0]), float(place[1])))
        ends = np.stack([start, place]).T
        ax.plot(*ends, color="white", linewidth=3, zorder=4.8, solid_capstyle="butt")
        ax.plot(*ends, color=color, linewidth=1.6, zorder=4.9)


# Costs in points of length: how much further a name may go to avoid covering one dot, one other anchor, or (never)
# lying on another name.
_DOT, _ANCHOR, _FORBIDDEN = 7.0, 45.0, 1e4
_DISTANCES = (6, 11, 18, 27, 38, 52, 70, 92, 118, 150, 190, 240, 300)
_DIRECTIONS = 24


def _search(anchors: np.ndarray, sizes: np.ndarray, dots: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Centres (name, 2), in points: each name in turn takes its cheapest place, in a few rounds until none moves."""
    angles = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
    lengths = np.repeat(_DISTANCES, _DIRECTIONS).astype(float)
    directions = np.tile(np.stack([np.cos(angles), np.sin(angles)], axis=1), (len(_DISTANCES), 1))
    centres, alone = np.full_like(anchors, np.nan), []
    for anchor, half in zip(anchors, sizes / 2, strict=True):
        # A place that leaves the window is moved to its edge before it is judged.
        low, high = window[0] + half + 1, window[1] - half - 1
        choices = np.clip(anchor + directions * (half + lengths[:, None]), low, high)
        covered = (_count(dots, choices, half + 2), _count(anchors, choices, half + 7))
        alone.append((choices, lengths + _DOT * covered[0] + _ANCHOR * covered[1]))
    for _ in range(6):
        before = centres.copy()
        for turn, (choices, cost) in enumerate(alone):
            placed, half = np.isfinite(centres[:, 0]) & (np.arange(len(anchors)) != turn), sizes[turn] / 2
            others, starts = centres[placed], anchors[placed]
            # A leader is not drawn over: its middle and its end count as dots that are dear to cover.
            on_leaders = starts + np.array([0.35, 0.7])[:, None, None] * (others - starts)
            apart = (half + sizes[placed] / 2 + 3)[:, None]
            crowded = (np.abs(choices - others[:, None]) < apart).all(axis=2).sum(axis=0)
            cost = cost + _ANCHOR * _count(on_leaders.reshape(-1, 2), choices, half) + _FORBIDDEN * crowded
            centres[turn] = choices[int(cost.argmin())]
        if np.array_equal(before, centres):
            break
    return centres


def _count(points: np.ndarray, centres: np.ndarray, half: np.ndarray) -> np.ndarray:
    """(centre,): how many points lie in the box around each centre."""
    return np.asarray(KDTree(points / half).query_ball_point(centres / half, 1, p=np.inf, return_length=True))


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name lines, each (y, name, colour), at the right edge of axes with their final limits, moved apart."""
    height = lay_out(ax) * ax.bbox.height
    to_axes, x = ax.transData + ax.transAxes.inverted(), ax.get_xlim()[1]
    wanted = [float(to_axes.transform((x, y))[1]) for y, _, _ in ends]
    places = spread_apart(wanted, 1.9 * font_size() / height)
    for place, start, (_, name, color) in zip(places, wanted, ends, strict=True):
        leader = {"arrowstyle": "-", "color": color, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        options: dict[str, Any] = {"va": "center", "bbox": _frame(color), "arrowprops": leader}
        text, begin, end = style.label_text(name), (1.0, start), (1.04, place)
        ax.annotate(text, begin, end, "axes fraction", annotation_clip=False, **options)


def spread_apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Nearest places to ``wanted`` that keep their order and lie at least ``gap`` apart.

    Without the gaps that must lie before each, the places must only not fall: an isotonic regression.
    """
    order, least = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    places = np.empty(len(wanted))
    if len(wanted):
        places[order] = isotonic_regression(np.asarray(wanted, dtype=float)[order] - least).x + least
    return [float(place) for place in places]
