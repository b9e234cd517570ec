"""The decision map: three look-alikes on the plane that holds their scores, one sector a class.

Scores of three classes, less their mean, sum to zero, so the plane is exact and no projection; the borders between the
sectors are the decisions. Directions are true everywhere. Distances from the centre are drawn by their square root, so
that names and learned prompts, whose scores differ tenfold, are seen on one scale.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, HPacker, OffsetImage, TextArea, VPacker
from matplotlib.patches import Circle, Wedge

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.look_alikes import plane_coordinates, share_in_own_sector
from gcpl_lab.evaluation.separation import Estimate
from gcpl_lab.views import panels, style
from gcpl_lab.views.panels import Looks
from gcpl_lab.views.style import Names, font_size

RINGS = (0.03, 0.1, 0.3)
"""Leads over the mean of the two others at which a circle is drawn, in the scores' own unit."""

LEAD = math.sqrt(1.5)
"""Lead of a class at distance 1 from the centre, on its own axis."""

SCALE = "From the centre outwards: how far a class's error lies below the mean of the two others (square root scale)."


def map_reach(scores: Sequence[np.ndarray]) -> float:
    """The distance from the centre that holds every point of these scores (image, 3): one scale for several maps."""
    return max(float(np.linalg.norm(plane_coordinates(part), axis=1).max()) for part in scores) * 1.04 or 1.0


def decision_map(
    ax: Axes,
    scores: np.ndarray,
    labels: np.ndarray,
    class_names: Names,
    looks: Looks | None = None,
    reach: float | None = None,
    title: str | None = None,
    thumbnails: Sequence[Any] | None = None,
    rings: Sequence[float] = RINGS,
) -> Axes:
    """One map: each image where its three scores put it, in the tinted sector of the class that it is taken for.

    Args:
        ax: About 3 × 3.6 inches and more read well.
        scores: (image, 3), larger is better.
        labels: (image,), places in ``class_names``.
        class_names: The three classes: above, left, right.
        looks: Colours and markers by name, of a set that these classes are a part of.
        reach: Distance at the rim; of ``map_reach`` where maps stand side by side.
        title: Over the map.
        thumbnails: One image a class, beside its name.
        rings: Leads at which a circle is drawn, written as percentages; empty for scores that are no shares.
    """
    clouds, labels = panels.check_clouds({"scores": plane_coordinates(scores)}, labels, class_names)
    if len(class_names) != 3:
        raise DataError(f"{len(class_names)} classes on a decision map; expected 3: choose those that look most alike")
    looks, reach = looks or style.class_style(class_names), reach or map_reach([scores])
    distances = np.linalg.norm(clouds["scores"], axis=1, keepdims=True)
    points = clouds["scores"] / np.sqrt(np.maximum(distances, 1e-12) * reach)
    _draw_sectors(ax, class_names, looks, [ring / LEAD / reach for ring in rings], rings)
    wrong = np.argmax(scores, axis=1) != labels
    for label, name in enumerate(class_names):
        color, marker = looks[name]
        for chosen, edge, width in ((~wrong, "white", 0.6), (wrong, style.INK, 1.3)):
            x, y = points[(labels == label) & chosen].T
            ax.scatter(x, y, s=3.4 * font_size(), c=color, marker=marker, edgecolors=edge, linewidths=width, zorder=3)
    _name_corners(ax, class_names, looks, thumbnails)
    ax.set(xlim=(-1.3, 1.3), ylim=(-1.42, 1.5), aspect="equal")
    ax.set_axis_off()
    if title:
        title = style.wrap_lines(title, max(2.9, style.width_of(ax)), font_size() * 1.15)
        _beside(ax, title, 1, 0.3, va="bottom", weight="bold", size=font_size() * 1.15, linespacing=1.05)
    return ax


def _draw_sectors(ax: Axes, class_names: Names, looks: Looks, radii: Sequence[float], rings: Sequence[float]) -> None:
    """Three tinted sectors, the borders between them, and the rings; ``radii`` are shares of the reach."""
    for name, angle in zip(class_names, (90, 210, 330), strict=True):
        ax.add_patch(Wedge((0, 0), 1, angle - 60, angle + 60, facecolor=looks[name][0], alpha=0.16, linewidth=0))
        x, y = math.cos(math.radians(angle + 60)), math.sin(math.radians(angle + 60))
        ax.plot([0, x], [0, y], color="white", linewidth=5, zorder=1.5, solid_capstyle="butt")
        ax.plot([0, x], [0, y], color=style.INK, linewidth=1.4, linestyle=(0, (4, 3)), zorder=1.6)
    for radius, ring in zip(radii, rings, strict=True):
        if radius < 0.9:
            ax.add_patch(Circle((0, 0), math.sqrt(radius), fill=False, edgecolor="white", linewidth=1.6, zorder=1.2))
            plate = {"boxstyle": "square,pad=0.05", "facecolor": "white", "linewidth": 0, "alpha": 0.65}
            words: dict[str, Any] = {"size": font_size() * 0.75, "color": style.GREY, "bbox": plate, "zorder": 5}
            ax.text(0, -math.sqrt(radius), f"{100 * ring:g}%", ha="center", va="center", **words)


def _name_corners(ax: Axes, class_names: Names, looks: Looks, thumbnails: Sequence[Any] | None) -> None:
    """Each class's name, in a frame of its colour, with an image of it, at its corner outside the sectors."""
    places = [((0.0, 1.06), (0.5, 0.0)), ((-1.28, -0.7), (0.0, 1.0)), ((1.28, -0.7), (1.0, 1.0))]
    if thumbnails is None:  # flat boxes have room below the sectors, where the two cannot meet
        places[1:] = [((-0.12, -1.04), (1.0, 1.0)), ((0.12, -1.04), (0.0, 1.0))]
    for turn, (name, (place, side)) in enumerate(zip(class_names, places, strict=True)):
        words: dict[str, Any] = {"weight": "bold", "size": font_size()}
        parts: list[Any] = [TextArea(style.label_text(name, 14), textprops=words)]
        if thumbnails is not None:
            picture = np.asarray(thumbnails[turn])
            picture = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
            zoom = 2.1 * font_size() / max(picture.shape[:2])
            parts.insert(0, OffsetImage(picture, zoom=zoom, interpolation="nearest"))
        pack = VPacker if turn else HPacker  # beside the sectors there is more height than width
        box = pack(children=parts, align="center", pad=0, sep=0.3 * font_size())
        frame = {"boxstyle": "round,pad=0.15", "edgecolor": looks[name][0], "linewidth": 2.2}
        shown = AnnotationBbox(box, place, box_alignment=side, pad=0.25, bboxprops=frame, annotation_clip=False)
        shown.set_in_layout(False)
        ax.add_artist(shown)


def _beside(ax: Axes, text: str, edge: float, away: float, **words: Any) -> None:
    """Words in the middle of the lower (0) or upper (1) edge of the axes, ``away`` letters' heights from it."""
    places: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate(text, (0.5, edge), (0, away * font_size()), ha="center", **places, **words)


def say_share(found: Estimate, num_images: int) -> tuple[str, str]:
    """A share in large letters, and its interval and counts in small ones."""
    dash = "\N{EN DASH}"
    counts = f"{round(found.value * num_images)} of {num_images}"
    return f"{found.value:.0%}", f"{100 * found.low:.0f}{dash}{found.high:.0%}, {counts}"


def decision_row(
    figure: Any,
    shown: Mapping[str, tuple[np.ndarray, np.ndarray]],
    class_names: Names,
    looks: Looks | None = None,
    controls: Collection[str] = (),
    reach: float | None = None,
    own_scale: bool = False,
    thumbnails: Sequence[Any] | None = None,
    rings: Sequence[float] = RINGS,
    columns: int = 0,
    aside: bool = False,
) -> list[Axes]:
    """Maps of (scores, labels) side by side in a figure or a part of one, under each its share. See decision_maps.

    With ``columns`` a row has so many of them; shares stand ``aside`` of their maps where there is more width.
    """
    panels.check_filled("shown", shown, "a title with the scores of each map")
    axes = panels.axes_in_rows(figure, len(shown), columns)
    reach = reach or map_reach([scores for scores, _ in shown.values()])
    for ax, (title, (scores, labels)) in zip(axes, shown.items(), strict=True):
        right = share_in_own_sector(np.asarray(scores), np.asarray(labels))
        scale: dict[str, Any] = (
            {"reach": map_reach([scores]), "rings": ()} if own_scale else {"reach": reach, "rings": rings}
        )
        decision_map(ax, scores, labels, class_names, looks, title=title, thumbnails=thumbnails, **scale)
        share, interval = say_share(right, len(labels))
        color = style.GREY if title in controls else style.INK
        if aside:
            ax.set_anchor("W")
            at: dict[str, Any] = {"transform": ax.transAxes, "color": color, "clip_on": False}
            ax.text(0.98, 0.66, share, size=font_size() * 1.9, weight="bold", **at)
            ax.text(0.98, 0.62, interval.replace(", ", "\n"), va="top", **at)
        else:
            _beside(ax, share, 0, -0.2, va="top", size=font_size() * 2.3, weight="bold", color=color)
            _beside(ax, interval, 0, -3.1, va="top", color=color)
        if title in controls:
            ax.add_patch(Circle((0, 0), 1, fill=False, edgecolor=style.GREY, linewidth=2, linestyle=(0, (1, 2))))
    return axes


def decision_maps(
    shown: Mapping[str, np.ndarray],
    labels: np.ndarray,
    class_names: Names,
    looks: Looks | None = None,
    controls: Collection[str] = (),
    own_scale: bool = False,
    thumbnails: Sequence[Any] | None = None,
) -> Figure:
    """Names, methods and controls on one scale: which share of the images lies in the sector of its own class.

    Args:
        shown: Title to scores (image, 3), from left to right.
        labels: (image,), places in ``class_names``.
        class_names: Three names; other sets of three are other figures.
        looks: See :func:`decision_map`.
        controls: Titles of the maps in which nothing could be learned.
        own_scale: Each map on its own scale: for methods whose scores have different units.
        thumbnails: One image a class.
    """
    with style.figure_style():
        figure = style.new_figure(3.05 * max(2, len(shown)), 5.5)
        judged = {name: (scores, labels) for name, scores in shown.items()}
        decision_row(figure, judged, class_names, looks, controls, None, own_scale, thumbnails)
        under = "Under each map: share of the test images in the sector of their own class, 95 % interval."
        under = under if own_scale else f"{under} {SCALE}"
        panels.write_under(figure, under)
    return figure
