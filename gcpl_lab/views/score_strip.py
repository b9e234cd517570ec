"""A map of what the classifier reads: probabilities of the test images, one fit for all training steps and methods.

Each class has a place of its own on the map: where an image would lie that is surely of this class. What stands under
a map is measured in the probabilities, not on the map, and moves when learning moves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.special import softmax
from sklearn.metrics import silhouette_score

from gcpl_lab.evaluation.look_alikes import share_in_own_sector, worst_pair
from gcpl_lab.views import panels, style
from gcpl_lab.views.panels import Looks
from gcpl_lab.views.projection import LEAST_ALIGNED, Projection, project
from gcpl_lab.views.style import Names, font_size

SHARPNESS = 30.0
"""Factor on relative scores under the softmax: that of the discriminative objective, the same for every state."""

MOST_IN_A_ROW = 4
"""Maps of a strip; more have two rows, so that their letters are read on a projector."""

STIFF = 0.9
"""Trustworthiness of a state below which one fit for all states is too stiff, and AlignedUMAP is tried."""


@dataclass(frozen=True)
class ScoreMap:
    """States on one map, and what is measured of each."""

    projection: Projection
    probabilities: dict[str, np.ndarray]  # state to (image, class)
    labels: np.ndarray
    class_names: list[str]

    @property
    def window(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower left and upper right corner of the window that holds every state, at most half as high as wide."""
        points = np.concatenate([*self.projection.points.values(), *self.projection.anchors.values()])
        low, high = points.min(axis=0), points.max(axis=0)
        half = np.maximum(0.64 * (high - low), 0.36 * float((high - low).max()))
        return (low + high) / 2 - half, (low + high) / 2 + half

    def describe(self, state: str) -> list[str]:
        """Share in the own sector, silhouette of the probabilities, the worst pair and its AUC, a line each."""
        chances, dash = self.probabilities[state], "\N{EN DASH}"
        right, (pair, found) = share_in_own_sector(chances, self.labels), worst_pair(chances, self.labels)
        silhouette = f"{float(silhouette_score(chances, self.labels)):.2f}".replace("-", "\N{MINUS SIGN}")
        names = " / ".join(style.label_text(self.class_names[place], 10) for place in pair)
        return [
            f"{right.value:.0%} in own sector ({100 * right.low:.0f}{dash}{right.high:.0%})",
            f"silhouette {silhouette}",
            f"worst pair: {names}",
            f"AUC {found.auc.value:.2f} ({found.auc.low:.2f}{dash}{found.auc.high:.2f})",
        ]


def fit_score_map(
    scores: Mapping[str, np.ndarray], labels: np.ndarray, class_names: Names, method: str = "umap", seed: int = 0
) -> ScoreMap:
    """One map for the scores (image, class) of all states, with the classes' own places.

    Points are square roots of probabilities, so that distances are Hellinger's. Where one UMAP for all states keeps too
    few neighbours of one of them, it becomes an AlignedUMAP if that keeps more, and the note under the map says so.
    """
    panels.check_filled("scores", scores, "a state's name with its scores")
    shape = len(labels), len(class_names)
    chances = {
        name: softmax(SHARPNESS * panels.check_shape(f"scores of {name!r}", part, *shape), axis=1)
        for name, part in scores.items()
    }
    roots, places = {name: np.sqrt(part) for name, part in chances.items()}, np.eye(len(class_names))
    found = project(roots, method, seed, anchors=places)
    stiff, least = min(found.trustworthiness.items(), key=lambda pair: pair[1])
    if method == "umap" and least < STIFF and len(roots) > 1 and len(labels) >= LEAST_ALIGNED:
        aligned = project(roots, "aligned", seed, anchors=places)
        if min(aligned.trustworthiness.values()) > least:
            reason = f" (one fit for all was too stiff: trustworthiness {least:.2f} for {stiff})"
            found = replace(aligned, note=aligned.note + reason)
    return ScoreMap(found, chances, np.asarray(labels), list(class_names))


def draw_score_map(ax: Axes, found: ScoreMap, state: str, looks: Looks | None = None) -> Axes:
    """One state, with the places of the classes."""
    looks = looks or style.class_style(found.class_names)
    points, anchors = found.projection.points[state], found.projection.anchors[state]
    for label, name in enumerate(found.class_names):
        color, marker = looks[name]
        x, y = points[found.labels == label].T
        ax.scatter(x, y, s=46, c=color, marker=marker, edgecolors="white", linewidths=0.6, alpha=0.9, zorder=3)
        x, y = anchors[label]
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": color, "linewidths": 2.2, "zorder": 2}
        ax.scatter([x], [y], s=330, marker="o", **ring)
        ax.scatter([x], [y], s=24, c=color, marker=marker, zorder=2.1, alpha=0.6)
    (left, bottom), (right, top) = found.window
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=style.FAINT)
    return ax


def strip_row(
    figure: Any, found: ScoreMap, states: Names, looks: Looks, controls: Collection[str] = (), columns: int = 0
) -> list[Axes]:
    """Maps of some states, ``columns`` in a row of a figure or a part of one, with what was measured under each."""
    axes = panels.axes_in_rows(figure, len(states), columns)
    for ax, state in zip(axes, states, strict=True):
        draw_score_map(ax, found, state, looks)
        color = style.GREY if state in controls else style.INK
        title = style.wrap_lines(state, 2.7, font_size())
        ax.set_title(title, loc="center", weight="bold", color=color, size=font_size())
        first, *rest = found.describe(state)
        room = "\n" * (len(rest) + 1)  # the layout counts labels, not annotations
        ax.set_xlabel(first + room, weight="bold", color=color, labelpad=4)
        under: dict[str, Any] = {"ha": "center", "va": "top", "color": color, "size": font_size() * 0.9}
        away: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        ax.annotate("\n".join(rest), (0.5, 0), (0, -2.1 * font_size()), **away, **under)
        if state in controls:
            ax.spines[:].set(edgecolor=style.GREY, linestyle=(0, (1, 2)), linewidth=2)
    return axes


def class_key(figure: Any, class_names: Names, looks: Looks) -> None:
    """A key of the classes above all axes of a figure."""
    mark: dict[str, Any] = {"linestyle": "", "markersize": 9}
    handles = [
        Line2D([], [], color=looks[name][0], marker=looks[name][1], label=style.label_text(name, 18), **mark)
        for name in class_names
    ]
    longest = max(len(str(handle.get_label())) for handle in handles)
    inches = (4.5 + 0.62 * longest) * font_size() / 72  # that a name takes
    fitting = max(1, int(figure.bbox.width / figure.dpi / inches))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), fitting), frameon=False)


def score_strip(
    found: ScoreMap, states: Names | None = None, looks: Looks | None = None, controls: Collection[str] = ()
) -> Figure:
    """States of one map as a strip, controls beside them; by default all in their order, more than four in two rows."""
    states = list(states or found.probabilities)
    looks = looks or style.class_style(found.class_names)
    with style.figure_style():
        low, high = found.window
        form = float((high - low)[1] / (high - low)[0])
        under = (
            f"{found.projection.note}. Rings: where an image would lie that is surely of this class. Figures are "
            "measured in the probabilities, not on the map."
        )
        columns = len(states) if len(states) <= MOST_IN_A_ROW else -(-len(states) // 2)
        width, rows = 3.35 * max(2, columns), -(-len(states) // columns)
        lines = style.wrap_lines(under, 0.95 * width, font_size()).count("\n")
        figure = style.new_figure(width, rows * (3.1 * form + 1.9) + 1.2 + 0.25 * lines)
        strip_row(figure, found, states, looks, controls, columns)
        panels.write_under(figure, under)
        class_key(figure, found.class_names, looks)
    return figure
