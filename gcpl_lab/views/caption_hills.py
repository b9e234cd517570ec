"""What captions pull: distances of held-out captions to a class's prompt, the class in the image or a look-alike.

The embedding loss pulls captions of images that show the class towards its prompt, and pushes others away as far as
the margin μ, which is wider for rare classes (Xia et al. 2024).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from gcpl_lab.evaluation.look_alikes import pair_statistics
from gcpl_lab.views import panels, style
from gcpl_lab.views.style import font_size

PRESENT, ABSENT = ("#0077BB", "-"), ("#E69F00", (0, (3, 1.4)))


@dataclass(frozen=True)
class CaptionDistances:
    """Distances 1 − cos of captions to one class's prompt."""

    present: np.ndarray  # of images that show the class
    absent: np.ndarray  # of images that show a look-alike and not the class
    margin: float  # μ of the class


def draw_caption_hills(ax: Axes, ridges: Mapping[str, CaptionDistances | None]) -> Axes:
    """One column: a ridge a class and epoch, from above, the margin dotted, the AUC with its interval beside."""
    panels.check_filled("ridges", ridges, "at least one row with its distances")
    known = [part for ridge in ridges.values() if ridge for part in (ridge.present, ridge.absent)]
    top = max(float(np.max(part)) for part in known) * 1.06
    x = np.linspace(0, top, 240)
    for row, ridge in enumerate(ridges.values()):
        ax.axhline(-row, color=style.FAINT, linewidth=1, zorder=1)
        if ridge is None:
            continue
        for turn, (part, (color, kind)) in enumerate(((ridge.present, PRESENT), (ridge.absent, ABSENT))):
            heights = gaussian_kde(part)(x) if np.std(part) > 1e-9 else np.zeros_like(x)
            heights = 0.8 * heights / max(float(heights.max()), 1e-9) - row
            ax.fill_between(x, -row, heights, color=color, alpha=0.28, linewidth=0, zorder=2)
            ax.plot(x, heights, color=color, linestyle=kind, linewidth=2, zorder=3)
            low = -row - 0.06 - 0.08 * turn
            ax.vlines(part, low - 0.06, low, color=color, linewidth=0.8, alpha=0.7)
        ax.plot([ridge.margin] * 2, [-row, -row + 0.9], color=style.INK, linestyle=":", linewidth=2, zorder=4)
        if not row:
            ax.text(ridge.margin, 0.92, "μ", ha="center", va="bottom", size=font_size(), zorder=4)
        auc = pair_statistics(ridge.absent, ridge.present).auc
        words = f"AUC {auc.value:.2f}\n({auc.low:.2f}\N{EN DASH}{auc.high:.2f})"
        ax.text(1.02, -row + 0.3, words, transform=ax.get_yaxis_transform(), va="center", size=font_size() * 0.9)
    ax.set(xlim=(0, top), ylim=(-len(ridges) + 0.68, 1.2), xlabel="distance 1 − cos")
    ax.set_yticks(-np.arange(len(ridges)) + 0.2, list(ridges))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return ax


def caption_hills(
    columns: Mapping[str, Mapping[str, CaptionDistances]],
    scores: Mapping[str, str] | None = None,
    controls: Collection[str] = (),
    title: str | None = None,
) -> Figure:
    """Ways of learning in columns; in rows a head and a tail class at some epochs.

    Args:
        columns: Title of a column to its ridges, what each is called and its distances.
        scores: Title of a column to what stands under it, such as the mean average precision with its interval.
        controls: Titles of columns in which captions could teach nothing.
        title: Over all.
    """
    panels.check_filled("columns", columns, "at least one title with its ridges")
    rows = list(dict.fromkeys(name for ridges in columns.values() for name in ridges))
    with style.figure_style():
        figure = style.new_figure(4.1 * max(2, len(columns)), 2.7 + 0.95 * len(rows))
        axes = figure.subplots(1, len(columns), squeeze=False, sharex=True)[0]
        for turn, (ax, (name, ridges)) in enumerate(zip(axes, columns.items(), strict=True)):
            draw_caption_hills(ax, {row: ridges.get(row) for row in rows})
            color = style.GREY if name in controls else style.INK
            ax.set_title(style.wrap_lines(name, 3.4, font_size() * 1.15), loc="center", weight="bold", color=color)
            if scores and name in scores:
                ax.set_xlabel(f"distance 1 − cos\n{scores[name]}")
            if turn:
                ax.set_yticks([])
        ends = max(ax.get_xlim()[1] for ax in axes)
        axes[0].set_xlim(0, ends)
        panels.write_around(figure, title)
        key: dict[str, Any] = {"loc": "outside upper center", "ncols": 3, "frameon": False}
        lines = [axes[0].plot([], [], color=color, linestyle=kind, linewidth=2)[0] for color, kind in (PRESENT, ABSENT)]
        lines += axes[0].plot([], [], color=style.INK, linestyle=":", linewidth=2)
        labels = ["captions of images with the class", "with a look-alike instead", "margin μ of the class"]
        figure.legend(lines, labels, **key)
    return figure
