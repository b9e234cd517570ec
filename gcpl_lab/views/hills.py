"""Hills: two distributions on one line, a ridge a training step or epoch, methods and controls in columns.

Pair hills show the score of class A minus the score of class B, on the images of A and on those of B, in units of the
two hills' pooled standard deviation: the tops lie d′ apart, and the decision border stays at 0. Caption hills show the
distances of held-out captions to a class's prompt: the embedding loss pulls captions of images with the class towards
it, and pushes others as far as the margin μ, which is wider for rare classes (Xia et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.look_alikes import PairStatistics, pair_statistics
from gcpl_lab.views import panels, style
from gcpl_lab.views.panels import Looks
from gcpl_lab.views.style import Names, font_size

Hills = tuple[np.ndarray, np.ndarray]
"""Margins of ``pair_margins``: on the images of A and on those of B."""

REACH = 4.5
"""Standard deviations to each side of the border that are drawn at least, and at most four times as many."""
LOWEST = 0.55
"""Density at which a hill of margins has its full height; a wider one stays lower."""
PRESENT, ABSENT = "#0077BB", "#E69F00"
KINDS = "-", (0, (3, 1.4))


@dataclass(frozen=True)
class CaptionDistances:
    """Distances 1 − cos of captions to one class's prompt."""

    present: np.ndarray  # of images that show the class
    absent: np.ndarray  # of images that show a look-alike and not the class
    margin: float  # μ of the class


def draw_hills(ax: Axes, ridges: Mapping[str, Hills | None], pair: tuple[str, str], looks: Looks | None = None) -> Axes:
    """One column of pair hills: a ridge a training step, from above, with d′ and the AUC and its interval beside each.

    Args:
        ax: About 0.75 inches a ridge and 3.6 inches wide read well.
        ridges: What a ridge is called, such as its step, to its margins; None leaves its place empty.
        pair: Names of A, whose images should lie to the right of the border, and B.
        looks: Colours by name.
    """
    looks, scaled = looks or style.class_style(pair), []
    for floor, hills in _floors(ax, ridges):
        parts = [panels.check_shape("margins", part, "image") for part in hills]
        spread = float(np.sqrt((parts[0].var(ddof=1) + parts[1].var(ddof=1)) / 2)) or 1.0
        scaled.append((floor, [part / spread for part in parts]))
        _say_beside(ax, floor, pair_statistics(*parts))
    farthest = max((float(np.abs(part).max()) for _, parts in scaled for part in parts), default=0.0)
    reach = min(max(REACH, 1.05 * farthest), 4 * REACH)
    for floor, parts in scaled:
        _draw_ridge(ax, np.linspace(-reach, reach, 240), floor, parts, [looks[name][0] for name in pair], LOWEST)
    ax.plot([0, 0], [-len(ridges) + 0.75, 1.05], color=style.INK, linewidth=1.4, linestyle=(0, (4, 3)), zorder=4)
    ax.set(xlim=(-reach, reach), ylim=(-len(ridges) + 0.62, 1.55), xticks=[])
    ax.spines[:].set_visible(False)
    for name, place, side in ((pair[0], reach, "right"), (pair[1], -reach, "left")):
        frame = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": looks[name][0], "linewidth": 2}
        name = style.label_text(name, 10)  # both have room side by side
        text = f"{name} →" if side == "right" else f"← {name}"
        ax.text(place, 1.32, text, ha=side, va="center", bbox=frame, weight="bold", size=font_size())
    return ax


def draw_caption_hills(ax: Axes, ridges: Mapping[str, CaptionDistances | None]) -> Axes:
    """One column of caption hills: a ridge a class and epoch, the margin dotted, d′ and AUC beside."""
    known = [part for ridge in ridges.values() if ridge for part in (ridge.present, ridge.absent)]
    top = max((float(np.max(part)) for part in known), default=1.0) * 1.06
    for floor, ridge in _floors(ax, ridges):
        _draw_ridge(ax, np.linspace(0, top, 240), floor, (ridge.present, ridge.absent), (PRESENT, ABSENT))
        ax.plot([ridge.margin] * 2, [floor, floor + 0.9], color=style.INK, linestyle=":", linewidth=2, zorder=4)
        if not floor:
            ax.text(ridge.margin, 0.92, "μ", ha="center", va="bottom", size=font_size(), zorder=4)
        _say_beside(ax, floor, pair_statistics(ridge.absent, ridge.present))
    ax.set(xlim=(0, top), ylim=(-len(ridges) + 0.68, 1.2), xlabel="distance 1 − cos")
    ax.spines["left"].set_visible(False)
    return ax


def _floors(ax: Axes, ridges: Mapping[str, Any]) -> list[tuple[float, Any]]:
    """Rows from above with their names and ground lines: the height of each that has something to draw, and that."""
    panels.check_filled("ridges", ridges, "at least one row with what it shows")
    ax.set_yticks(-np.arange(len(ridges)) + 0.15, list(ridges), size=font_size())
    ax.tick_params(axis="y", length=0)
    for row in range(len(ridges)):
        ax.axhline(-row, color=style.FAINT, linewidth=1, zorder=1)
    return [(-row, ridge) for row, ridge in enumerate(ridges.values()) if ridge is not None]


def _draw_ridge(
    ax: Axes, x: np.ndarray, floor: float, parts: Sequence[np.ndarray], colors: Sequence[str], lowest: float = 1e-9
) -> None:
    """Two hills on one floor, and under them a mark for each of their values."""
    for turn, (values, color) in enumerate(zip(parts, colors, strict=True)):
        heights = gaussian_kde(values)(x) if np.std(values) > 1e-9 else np.zeros_like(x)
        heights = floor + 0.86 * heights / max(float(heights.max()), lowest)
        ax.fill_between(x, floor, heights, color=color, alpha=0.28, linewidth=0, zorder=2)
        ax.plot(x, heights, color=color, linestyle=KINDS[turn], linewidth=2, zorder=3)
        low = floor - 0.06 - 0.09 * turn
        ax.vlines(np.clip(values, x[0], x[-1]), low - 0.07, low, color=color, linewidth=1, alpha=0.8)


def _say_beside(ax: Axes, floor: float, found: PairStatistics) -> None:
    """d′, and the AUC with its interval, at the right of a ridge."""
    distance = f"{round(found.d_prime, 1) + 0.0:.1f}".replace("-", "\N{MINUS SIGN}")
    ax.text(1.02, floor + 0.44, f"d′ {distance}", transform=ax.get_yaxis_transform(), weight="bold", va="center")
    auc = f"AUC {found.auc.value:.2f}\n({found.auc.low:.2f}\N{EN DASH}{found.auc.high:.2f})"
    beside: dict[str, Any] = {"size": font_size() * 0.85, "va": "center", "color": style.GREY, "linespacing": 1.05}
    ax.text(1.02, floor + 0.08, auc, transform=ax.get_yaxis_transform(), **beside)


def pair_hills(
    columns: Mapping[str, Mapping[str, Hills]],
    pair: tuple[str, str],
    looks: Looks | None = None,
    controls: Collection[str] = (),
    rows: Names | None = None,
) -> Figure:
    """Methods and controls in columns, training steps from above: one look says whether two classes come apart.

    Args:
        columns: Title of a column to its ridges, each what it is called and its margins.
        pair: Names of A and B.
        looks: See :func:`draw_hills`.
        controls: Titles of columns in which nothing could be learned.
        rows: What the ridges are called, from above; by default in the order in which columns name them. A column
            without a ridge of this name has an empty place there.
    """
    first, second = map(style.label_text, pair)
    under = (
        f"Score of {first} minus score of {second}, a mark an image, in standard deviations from the decision border "
        "(dashed). d′: distance of the two hills; AUC with its 95 % interval, 0.5 is no separation."
        + beside_controls(columns, controls)
    )
    with style.figure_style():
        figure = _in_columns(columns, rows, controls, 0.82, lambda ax, ridges: draw_hills(ax, ridges, pair, looks))
        panels.write_under(figure, under)
    return figure


def beside_controls(columns: Mapping[str, Mapping[str, Hills]], controls: Collection[str]) -> str:
    """How far each control ends, in words, and which ways of learning are not told from it."""
    ends, words = {name: pair_statistics(*list(ridges.values())[-1]).auc for name, ridges in columns.items()}, ""
    for name in controls:
        value, low, high = ends[name]
        level = [other for other in ends if other not in controls and ends[other].low <= high]
        words += f" {name}: AUC {value:.2f} ({low:.2f} to {high:.2f}) at the end; "
        words += f"not told from it: {', '.join(level)}." if level else "all others are above it."
    return words


def caption_hills(
    columns: Mapping[str, Mapping[str, CaptionDistances]],
    scores: Mapping[str, str] | None = None,
    controls: Collection[str] = (),
) -> Figure:
    """Ways of learning in columns; in rows a head and a tail class at some epochs.

    Args:
        columns: Title of a column to its ridges, what each is called and its distances.
        scores: Title of a column to what stands under it, such as the mean average precision with its interval.
        controls: Titles of columns in which captions could teach nothing.
    """
    with style.figure_style():
        figure = _in_columns(columns, None, controls, 0.95, draw_caption_hills)
        ends = max(ax.get_xlim()[1] for ax in figure.axes)
        for ax, name in zip(figure.axes, columns, strict=True):
            ax.set(xlim=(0, ends), xlabel="\n".join(["distance 1 − cos", *([scores[name]] if scores else [])]))
        caption_key(figure, figure.axes[0])
    return figure


def caption_key(figure: Figure, ax: Axes) -> None:
    """What the colours and the dotted line of caption hills are, above all axes."""
    looks = ((PRESENT, KINDS[0]), (ABSENT, KINDS[1]), (style.INK, ":"))
    lines = [ax.plot([], [], color=color, linestyle=kind, linewidth=2)[0] for color, kind in looks]
    labels = ["captions of the class", "of a look-alike instead", "margin μ of the class"]
    key: dict[str, Any] = {"loc": "outside upper center", "ncols": 3, "frameon": False}
    figure.legend(lines, labels, **key)


def _in_columns(
    columns: Mapping[str, Mapping[str, Any]],
    rows: Names | None,
    controls: Collection[str],
    height: float,
    draw: Callable[[Axes, dict[str, Any]], Axes],
) -> Figure:
    """A figure with a column a title, its rows called at the left of the first; ``height`` is in inches a row."""
    panels.check_filled("columns", columns, "at least one title with its ridges")
    named = dict.fromkeys(name for ridges in columns.values() for name in ridges)
    rows = list(rows or named)
    if unknown := set(named) - set(rows):
        raise DataError(f"columns have the ridges {sorted(unknown)}, which are not among the rows {rows}")
    figure = style.new_figure(4.1 * max(2, len(columns)), 2.3 + height * len(rows))
    figure.set_layout_engine("constrained", w_pad=0.12)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for turn, (ax, (name, ridges)) in enumerate(zip(axes, columns.items(), strict=True)):
        draw(ax, {row: ridges.get(row) for row in rows})
        color = style.GREY if name in controls else style.INK
        ax.set_title(style.wrap_lines(name, 3.2, font_size() * 1.15), loc="center", weight="bold", color=color)
        if turn:
            ax.set_yticks([])
    return figure
