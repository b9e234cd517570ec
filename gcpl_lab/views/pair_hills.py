"""Pair hills: score of class A minus score of class B on the images of A and on those of B, two hills a training step.

Margins are drawn in units of the two hills' pooled standard deviation, so that a scale of scores does not matter: the
tops lie d′ apart, and the decision border stays at 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.look_alikes import pair_statistics
from gcpl_lab.views import panels, style
from gcpl_lab.views.panels import Looks
from gcpl_lab.views.style import Names, font_size

Hills = tuple[np.ndarray, np.ndarray]
"""Margins of ``pair_margins``: on the images of A and on those of B."""

REACH = 4.5
"""Standard deviations to each side of the border that are drawn; what lies outside counts in the figures beside."""


def draw_hills(ax: Axes, ridges: Mapping[str, Hills | None], pair: tuple[str, str], looks: Looks | None = None) -> Axes:
    """One column: a ridge a training step, from above, with d′ and the AUC and its interval beside each.

    Args:
        ax: About 0.75 inches a ridge and 3.6 inches wide read well.
        ridges: What a ridge is called, such as its step, to its margins; None leaves its place empty.
        pair: Names of A, whose images should lie to the right of the border, and B.
        looks: Colours by name.
    """
    panels.check_filled("ridges", ridges, "at least one step with its margins")
    looks = looks or style.class_style(pair)
    x = np.linspace(-REACH, REACH, 240)
    for row, hills in enumerate(ridges.values()):
        ax.axhline(-row, color=style.FAINT, linewidth=1, zorder=1)
        if hills is not None:
            _draw_ridge(ax, x, -row, hills, [looks[name][0] for name in pair])
    ax.plot([0, 0], [-len(ridges) + 0.75, 1.05], color=style.INK, linewidth=1.4, linestyle=(0, (4, 3)), zorder=4)
    ax.set(xlim=(-REACH, REACH), ylim=(-len(ridges) + 0.62, 1.55), xticks=[])
    ax.set_yticks(-np.arange(len(ridges)) + 0.12, list(ridges), size=font_size())
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for name, place, side in ((pair[0], REACH, "right"), (pair[1], -REACH, "left")):
        frame = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": looks[name][0], "linewidth": 2}
        arrow = f"{name} →" if side == "right" else f"← {name}"
        text = style.label_text(arrow, 16)
        ax.text(place, 1.32, text, ha=side, va="center", bbox=frame, weight="bold", size=font_size())
    return ax


def _draw_ridge(ax: Axes, x: np.ndarray, floor: float, hills: Hills, colors: Sequence[str]) -> None:
    """Two hills on one floor, the images as marks under them, and what parts them beside."""
    parts = [panels.check_shape("margins", part, "image") for part in hills]
    found = pair_statistics(*parts)
    spread = float(np.sqrt((parts[0].var(ddof=1) + parts[1].var(ddof=1)) / 2)) or 1.0
    for turn, (part, color) in enumerate(zip(parts, colors, strict=True)):
        values = part / spread
        heights = gaussian_kde(values)(x) if values.std() > 1e-9 else np.zeros_like(x)
        heights = floor + 0.86 * heights / max(float(heights.max()), 0.55)
        line: dict[str, Any] = {"linewidth": 2, "linestyle": ("-", (0, (3, 1.4)))[turn], "zorder": 3}
        ax.fill_between(x, floor, heights, color=color, alpha=0.28, linewidth=0, zorder=2)
        ax.plot(x, heights, color=color, **line)
        low = floor - 0.06 - 0.09 * turn
        ax.vlines(np.clip(values, -REACH, REACH), low - 0.07, low, color=color, linewidth=1, alpha=0.8)
    dash = "\N{EN DASH}"
    distance = f"{round(found.d_prime, 1) + 0.0:.1f}".replace("-", "\N{MINUS SIGN}")
    ax.text(1.02, floor + 0.44, f"d′ {distance}", transform=ax.get_yaxis_transform(), weight="bold", va="center")
    auc = f"AUC {found.auc.value:.2f}\n({found.auc.low:.2f}{dash}{found.auc.high:.2f})"
    beside: dict[str, Any] = {"size": font_size() * 0.85, "va": "center", "color": style.GREY, "linespacing": 1.05}
    ax.text(1.02, floor + 0.08, auc, transform=ax.get_yaxis_transform(), **beside)


def pair_hills(
    columns: Mapping[str, Mapping[str, Hills]],
    pair: tuple[str, str],
    looks: Looks | None = None,
    controls: Collection[str] = (),
    rows: Names | None = None,
    title: str | None = None,
) -> Figure:
    """Methods and controls in columns, training steps from above: one look says whether two classes come apart.

    Args:
        columns: Title of a column to its ridges, each what it is called and its margins.
        pair: Names of A and B.
        looks: See :func:`draw_hills`.
        controls: Titles of columns in which nothing could be learned.
        rows: What the ridges are called, from above; by default in the order in which columns name them. A column
            without a ridge of this name has an empty place there.
        title: Over all.
    """
    panels.check_filled("columns", columns, "at least one title with its ridges")
    rows = list(rows or dict.fromkeys(name for ridges in columns.values() for name in ridges))
    if unknown := {name for ridges in columns.values() for name in ridges} - set(rows):
        raise DataError(f"columns have the ridges {sorted(unknown)}, which are not among the rows {rows}")
    with style.figure_style():
        figure = style.new_figure(4.1 * max(2, len(columns)), 1.9 + 0.82 * len(rows))
        figure.set_layout_engine("constrained", w_pad=0.12)
        for turn, (ax, (name, ridges)) in enumerate(
            zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True)
        ):
            draw_hills(ax, {row: ridges.get(row) for row in rows}, pair, looks)
            color = style.GREY if name in controls else style.INK
            ax.set_title(style.wrap_lines(name, 3.2, font_size() * 1.15), loc="center", weight="bold", color=color)
            if turn:
                ax.set_yticks([])
        under = (
            f"Score of {pair[0]} minus score of {pair[1]}, a mark an image, in standard deviations from the decision "
            "border (dashed). d′: distance of the two hills; AUC with its 95 % interval, 0.5 is no separation."
        )
        panels.write_around(figure, title, under)
    return figure
