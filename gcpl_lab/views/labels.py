"""Names written where the things are: beside clusters on a map, at the ends of lines, never on one another.

Placing is a small search with a stated cost instead of a simulation of forces: it gives the same picture
every time, keeps names inside the axes, and stays near the anchor where there is room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gcpl_lab.views import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Costs in points of length: how much further a name may go to avoid covering one dot, one other anchor,
# crossing another leader, or (never) lying on another name or outside the axes.
_DOT, _ANCHOR, _CROSSING, _FORBIDDEN = 7.0, 45.0, 70.0, 1e4
_DISTANCES = (6, 11, 18, 27, 38, 52, 70, 92, 118, 150, 190, 240, 300)
_DIRECTIONS = 24


def lay_out(ax: Axes) -> None:
    """Let the figure's layout take place now: positions in inches are known only after it."""
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]


def name_places(
    ax: Axes, anchors: np.ndarray, names: Sequence[str], colors: Sequence[str], obstacles: np.ndarray
) -> None:
    """Write a framed name near each anchor, off the dots and other names, with a leader to the anchor.

    Args:
        ax: With its final limits; its layout takes place here.
        anchors: (name, 2), in data units.
        names: (name,).
        colors: (name,), of the frames.
        obstacles: (point, 2), dots that had better stay visible.
    """
    texts = []
    for (x, y), name, color in zip(anchors, names, colors, strict=True):
        frame = {"boxstyle": "round,pad=0.18", "facecolor": "white", "edgecolor": color, "linewidth": 1.8}
        text = ax.text(x, y, style.label_text(name), ha="center", va="center", weight="bold", bbox=frame, zorder=6)
        # The name will lie inside the axes; where it starts must not push the axes about.
        text.set_in_layout(False)
        texts.append(text)
    lay_out(ax)
    extents = [(text.get_bbox_patch() or text).get_window_extent() for text in texts]
    # From pixels to points, in which the costs are written.
    scale = 72 / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    sizes = np.array([[extent.width, extent.height] for extent in extents]) * scale
    window = np.array([[ax.bbox.x0, ax.bbox.y0], [ax.bbox.x1, ax.bbox.y1]]) * scale
    starts, dots = (ax.transData.transform(np.asarray(points, dtype=float)) * scale for points in (anchors, obstacles))
    centres = _search(starts, sizes, dots, window)
    places = ax.transData.inverted().transform(centres / scale)
    for text, color, start, place in zip(texts, colors, np.asarray(anchors), places, strict=True):
        text.set_position((float(place[0]), float(place[1])))
        ends = np.stack([start, place]).T
        ax.plot(*ends, color="white", linewidth=3, zorder=4.8, solid_capstyle="butt")
        ax.plot(*ends, color=color, linewidth=1.6, zorder=4.9)


def _search(anchors: np.ndarray, sizes: np.ndarray, dots: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Centres of the names: each in turn takes its cheapest place, in a few rounds until none moves.

    Args:
        anchors: (name, 2), in points.
        sizes: (name, 2), width and height of the frames.
        dots: (point, 2).
        window: ((left, bottom), (right, top)).

    Returns:
        (name, 2).
    """
    angles = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lengths = np.repeat(_DISTANCES, _DIRECTIONS).astype(float)
    directions = np.tile(rays, (len(_DISTANCES), 1))
    centres = np.full_like(anchors, np.nan)
    for _ in range(6):
        before = centres.copy()
        for turn, anchor in enumerate(anchors):
            choices = anchor + directions * (sizes[turn] / 2 + lengths[:, None])
            # A place that leaves the window is moved to its edge before it is judged.
            choices = np.clip(choices, window[0] + sizes[turn] / 2 + 1, window[1] - sizes[turn] / 2 - 1)
            cost = lengths + _cost(choices, turn, anchors, sizes, dots, centres)
            centres[turn] = choices[int(cost.argmin())]
        if np.array_equal(before, centres):
            break
    return centres


def _cost(
    choices: np.ndarray, turn: int, anchors: np.ndarray, sizes: np.ndarray, dots: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    """What each choice (choice, 2) of a centre for the name ``turn`` would cover or cross."""
    half = sizes[turn] / 2
    cost = _DOT * _inside(dots, choices, half + 2).sum(axis=1)
    cost += _ANCHOR * _inside(anchors, choices, half + 7).sum(axis=1)
    steps = np.linspace(0, 1, 12)[:, None, None]
    leaders = anchors[turn] + steps * (choices - anchors[turn])
    for other in np.flatnonzero(np.isfinite(centres[:, 0])):
        if other == turn:
            continue
        together = half + sizes[other] / 2 + 3
        cost += _FORBIDDEN * (np.abs(choices - centres[other]) < together).all(axis=1)
        cost += _CROSSING * (np.abs(leaders - centres[other]) < sizes[other] / 2).all(axis=2).any(axis=0)
        theirs = anchors[other] + steps * (centres[other] - anchors[other])
        cost += _CROSSING * _inside(theirs[:, 0], choices, half).any(axis=1)
        cost += _CROSSING * _cross(anchors[turn], choices, anchors[other], centres[other])
    return cost


def _inside(points: np.ndarray, centres: np.ndarray, half: np.ndarray) -> np.ndarray:
    """(centre, point): whether the point lies in the box around the centre."""
    covered: np.ndarray = (np.abs(points[None] - centres[:, None]) < half).all(axis=2)
    return covered


def _cross(start: np.ndarray, ends: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    """(choice,): whether the segment from ``start`` to each of ``ends`` crosses the other segment."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        along, towards = b - a, c - a
        turned: np.ndarray = np.sign(along[..., 0] * towards[..., 1] - along[..., 1] * towards[..., 0])
        return turned

    apart = side(start, ends, other_start) * side(start, ends, other_end) < 0
    crossed: np.ndarray = apart & (side(other_start, other_end, start) * side(other_start, other_end, ends) < 0)
    return crossed


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name lines at the right edge of the axes, moved apart where they would overlap.

    Args:
        ax: With its final limits.
        ends: (y in data units, name, colour) of each line.
    """
    import matplotlib

    size = float(matplotlib.rcParams["font.size"])
    lay_out(ax)
    to_axes = ax.transData + ax.transAxes.inverted()
    x = ax.get_xlim()[1]
    wanted = [float(to_axes.transform((x, y))[1]) for y, _, _ in ends]
    height = ax.bbox.height * 72 / ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    places = spread_apart(wanted, 1.9 * size / height)
    for place, start, (_, name, color) in zip(places, wanted, ends, strict=True):
        frame = {"boxstyle": "round,pad=0.18", "facecolor": "white", "edgecolor": color, "linewidth": 1.8}
        leader = {"arrowstyle": "-", "color": color, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate(
            style.label_text(name),
            (1.0, start),
            (1.04, place),
            "axes fraction",
            va="center",
            bbox=frame,
            arrowprops=leader,
            annotation_clip=False,
        )


def spread_apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Nearest places to ``wanted`` that keep their order and lie at least ``gap`` apart.

    Each clash becomes a block around the mean of its members' wishes, merged until no two blocks touch.
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    blocks: list[list[int]] = []
    middles: list[float] = []
    for place in order:
        blocks.append([place])
        middles.append(wanted[place])
        while len(blocks) > 1 and middles[-1] - middles[-2] < gap * (len(blocks[-1]) + len(blocks[-2])) / 2 - 1e-12:
            last, before = blocks.pop(), blocks.pop()
            middles[-2:] = [(middles[-2] * len(before) + middles[-1] * len(last)) / (len(before) + len(last))]
            blocks.append(before + last)
    places = [0.0] * len(wanted)
    for block, middle in zip(blocks, middles, strict=True):
        for turn, place in enumerate(block):
            places[place] = middle + gap * (turn - (len(block) - 1) / 2)
    return places
