"""Figures of points and methods: maps, journeys, losses, accuracies. ``ax`` in, ``ax`` out.

Lines, points and bars are named where they are, not in a legend far away; colour never stands alone.
Similarities, confusions and figures that explain a decision are in ``evidence``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.separation import Estimate, Separation
from gcpl_lab.storage import write_atomically
from gcpl_lab.views import style
from gcpl_lab.views.labels import label_ends, lay_out, name_places
from gcpl_lab.views.projection import Projection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Families = Mapping[str, Sequence[str]]

LINE_STYLES = ("-", "--", "-.", ":")


def save_figure(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write ``name.png`` (150 dpi) and ``name.svg``, equal bytes for equal figures, and close the figure.

    Args:
        figure: Of pyplot or not.
        folder: Is made where absent.
        name: Without an ending.

    Returns:
        The two paths, PNG first.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    # Fonts as paths look alike everywhere; a fixed salt and no date keep the file's bytes the same.
    settings: Any = {"svg.fonttype": "path", "svg.hashsalt": "gcpl_lab"}
    ways: dict[str, dict[str, Any]] = {
        "png": {"dpi": 150, "metadata": {"Software": None}},
        "svg": {"metadata": {"Date": None}},
    }

    def write(ending: str) -> Path:
        return write_atomically(
            Path(folder) / f"{name}.{ending}", lambda path: figure.savefig(path, format=ending, **ways[ending])
        )

    with matplotlib.rc_context(settings):
        paths = [write(ending) for ending in ways]
    # Drops it from pyplot's list where it is in it; a figure of our own is in none.
    plt.close(figure)
    return paths


def font_size() -> float:
    """The present ``font.size`` in points."""
    import matplotlib

    return float(matplotlib.rcParams["font.size"])


def set_texts(ax: Axes, title: str | None = None, caption: str | None = None, width: float | None = None) -> None:
    """Title and, under the axes, caption, broken into lines that fit ``width`` inches or the present axes."""
    width = width or style.width_of(ax)
    if title:
        ax.set_title(style.wrap_lines(title, width, font_size() * 1.15))
    if caption:
        ax.set_xlabel(style.wrap_lines(caption, width, font_size()))


# --- maps -------------------------------------------------------------------------------------------


def _check_map(points: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    points, labels = np.asarray(points, dtype=float), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise DataError(f"points has shape {points.shape}; expected (point, 2) with at least one point")
    if labels.shape != (len(points),):
        raise DataError(f"labels has shape {labels.shape} for {len(points)} points; expected one label a point")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(class_names):
        raise DataError(f"labels must be integers from 0 to {len(class_names) - 1}, the places of the class names")
    return points, labels


def _set_square_limits(axes: Iterable[Axes], clouds: Sequence[np.ndarray]) -> None:
    """The same square window on all axes, so that distances mean the same in each and in both directions."""
    points = np.concatenate(clouds)
    low, high = points.min(axis=0), points.max(axis=0)
    centre, half = (low + high) / 2, 0.56 * max(float((high - low).max()), 1e-9)
    for ax in axes:
        ax.set_xlim(centre[0] - half, centre[0] + half)
        ax.set_ylim(centre[1] - half, centre[1] + half)
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
        # A frame and no axes: neither direction of a map means anything by itself.
        ax.spines[:].set_visible(True)
        ax.spines[:].set_color(style.FAINT)


def _scatter_classes(
    ax: Axes, points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], families: Families | None
) -> None:
    looks = style.class_style(class_names, families)
    for label in np.unique(labels):
        color, marker = looks[class_names[label]]
        x, y = points[labels == label].T
        # The thin dark edge keeps yellow visible on white.
        ax.scatter(x, y, s=30, c=color, marker=marker, alpha=0.8, edgecolors=style.INK, linewidths=0.3)


def _name_classes(
    ax: Axes,
    anchors: np.ndarray,
    labels: Sequence[int],
    obstacles: np.ndarray,
    class_names: Sequence[str],
    families: Families | None,
) -> None:
    """A large marker on each class's anchor (class, 2) and its name beside, off the obstacles (point, 2)."""
    looks = style.class_style(class_names, families)
    names = [class_names[label] for label in labels]
    for name, (x, y) in zip(names, anchors, strict=True):
        color, marker = looks[name]
        ax.scatter([x], [y], s=170, c=color, marker=marker, edgecolors="white", linewidths=1.8, zorder=5)
    name_places(ax, anchors, names, [looks[name][0] for name in names], obstacles)


def _medians(points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    present = [int(label) for label in np.unique(labels)]
    return np.stack([np.median(points[labels == label], axis=0) for label in present]), present


def plot_map(
    ax: Axes,
    points: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    families: Families | None = None,
    title: str | None = None,
    caption: str | None = None,
) -> Axes:
    """Points on a plane, each class named at its median.

    Args:
        ax: Its figure's layout should be settled: names are moved apart for its present size.
        points: (point, 2).
        labels: (point,), integers that index ``class_names``.
        class_names: (class,).
        families: Family name to its class names; look-alikes get clearly different colours and markers.
        title: What one should see.
        caption: Method, seed, trustworthiness: what one should know.
    """
    points, labels = _check_map(points, labels, class_names)
    _scatter_classes(ax, points, labels, class_names, families)
    _set_square_limits([ax], [points])
    set_texts(ax, title, caption)
    anchors, present = _medians(points, labels)
    _name_classes(ax, anchors, present, points, class_names, families)
    return ax


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} ({100 * estimate.low:.0f}\N{EN DASH}{estimate.high:.0%})"


def describe_separation(separation: Separation) -> str:
    """Two lines for under a map: the separation in the original space, overall and inside the families."""
    lines = [
        f"All classes: neighbour right {_percent(separation.neighbour_accuracy)}, "
        f"silhouette {separation.silhouette.value:.2f}, Fisher {separation.fisher_ratio:.2f}"
    ]
    mean = separation.within_family_mean
    if mean is not None:
        lines.append(
            f"Look-alikes: neighbour right {_percent(mean.neighbour_accuracy)}, "
            f"silhouette {mean.silhouette.value:.2f}, Fisher {mean.fisher_ratio:.2f}"
        )
    return "\n".join(lines)


def plot_before_after(
    projection: Projection,
    labels: np.ndarray,
    class_names: Sequence[str],
    families: Families | None = None,
    separations: Mapping[str, Separation] | None = None,
    title: str | None = None,
    warning: str | None = None,
) -> Figure:
    """One map a state, side by side in the same window, with the separation measured in the original space.

    Args:
        projection: Of all states together, as ``project`` makes it.
        labels: (point,), the same for every state.
        class_names: (class,).
        families: Family name to its class names.
        separations: State name to its measured separation, printed under its map.
        title: Over the whole figure.
        warning: What ``warn_if_flattering`` said, added to the caption.
    """
    clouds = {name: _check_map(points, labels, class_names)[0] for name, points in projection.points.items()}
    labels = np.asarray(labels)
    with style.figure_style():
        width = 7.0 * len(clouds)
        figure = style.new_figure(width, 8.9 if separations else 8.2)
        axes = list(figure.subplots(1, len(clouds), squeeze=False)[0])
        _set_square_limits(axes, list(clouds.values()))
        for ax, (name, points) in zip(axes, clouds.items(), strict=True):
            _scatter_classes(ax, points, labels, class_names, families)
            measured = (separations or {}).get(name)
            set_texts(ax, name, describe_separation(measured) if measured else None, 6.85)
        if title:
            figure.suptitle(style.wrap_lines(title, width * 0.8, font_size() * 1.3), weight="bold")
        trust = ", ".join(f"{name} {value:.2f}" for name, value in projection.trustworthiness.items())
        caption = f"{projection.note}; seed {projection.seed}; trustworthiness of the map: {trust}."
        if separations:
            caption = f"Figures under the maps are measured in the original space. {caption}"
        caption = f"{caption}\n{warning}" if warning else caption
        figure.supxlabel(style.wrap_lines(caption, width * 0.92, font_size()), fontsize=font_size(), color=style.GREY)
        # Names are placed for these sizes; the layout, which moves square axes a little at each drawing, rests now.
        lay_out(axes[0])
        lay_out(axes[0])
        figure.set_layout_engine("none")
        for ax, points in zip(axes, clouds.values(), strict=True):
            anchors, present = _medians(points, labels)
            _name_classes(ax, anchors, present, points, class_names, families)
    return figure


def plot_token_journey(
    ax: Axes, paths: np.ndarray, steps: Sequence[int], class_names: Sequence[str], families: Families | None = None
) -> Axes:
    """The way of each class token through training: hollow where it began, filled and named where it ended.

    Args:
        ax: Settled in size.
        paths: (step, class, 2), on one map.
        steps: (step,), training steps of the states, for the caption.
        class_names: (class,).
        families: Family name to its class names.
    """
    paths = np.asarray(paths, dtype=float)
    expected = (len(steps), len(class_names), 2)
    if paths.shape != expected or len(steps) < 2:
        raise DataError(f"paths has shape {paths.shape}; expected (step, class, 2) = {expected}, with 2 steps or more")
    looks = style.class_style(class_names, families)
    for place, name in enumerate(class_names):
        color, marker = looks[name]
        x, y = paths[:, place].T
        # A darker rim keeps the yellow path visible on white.
        ax.plot(x, y, color=style.GREY, linewidth=3.2, zorder=2)
        ax.plot(x, y, color=color, linewidth=2, zorder=3, marker=marker, markersize=4, markevery=slice(1, -1))
        ax.scatter(x[:1], y[:1], s=70, facecolors="white", edgecolors=color, marker=marker, linewidths=2, zorder=3)
    _set_square_limits([ax], [paths.reshape(-1, 2)])
    set_texts(ax, caption=f"hollow: step {steps[0]}; filled: step {steps[-1]}; small marks: {len(steps) - 2} between")
    # Names keep off the lines too, not only off the marks on them.
    between = np.linspace(0, 1, 6)[:, None, None, None]
    on_lines = paths[:-1] + between * (paths[1:] - paths[:-1])
    _name_classes(ax, paths[-1], range(len(class_names)), on_lines.reshape(-1, 2), class_names, families)
    return ax


# --- lines ------------------------------------------------------------------------------------------


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over ``window`` values around each; fewer at the ends, so nothing is made up there."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def draw_curves(ax: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[tuple[float, str, str]]:
    """Raw and smoothed curves, without their names: the ends for ``label_ends``, to be called last."""
    if not curves:
        raise DataError("curves is empty; expected at least one pair of steps and values")
    ends = []
    for turn, (name, (steps, values)) in enumerate(curves.items()):
        steps, values = np.asarray(steps), np.asarray(values, dtype=float)
        if steps.shape != values.shape or steps.ndim != 1 or not len(steps):
            raise DataError(f"curve {name!r} has {steps.shape} steps and {values.shape} values; expected equal lengths")
        color = style.PALETTE[turn % len(style.PALETTE)]
        smooth = _smooth(values, min(len(values), max(1, len(values) // 20) | 1))
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        alone = "o" if len(steps) == 1 else None  # one point makes no line
        ax.plot(steps, smooth, color=color, linestyle=LINE_STYLES[turn % len(LINE_STYLES)], marker=alone)
        ends.append((float(smooth[-1]), name, color))
    ax.margins(x=0)
    return ends


def plot_losses(ax: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], label: str = "loss") -> Axes:
    """Curves over training steps: raw and faint, with their running mean over a twentieth of the steps.

    Args:
        ax: Drawn on.
        curves: Name to (steps (step,), values (step,)).
        label: Of the vertical axis.
    """
    from matplotlib.ticker import MaxNLocator

    ends = draw_curves(ax, curves)
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    ax.set_xlabel("training step (thick: running mean)")
    ax.set_ylabel(label)
    label_ends(ax, ends)
    return ax


def plot_shots(ax: Axes, table: Sequence[Mapping[str, Any]], chance: float | None = None) -> Axes:
    """Accuracy against the number of photographs a class, with a band from low to high.

    Args:
        ax: Drawn on.
        table: Rows with ``name, shots, accuracy, low, high``; accuracies from 0 to 1.
        chance: Accuracy of guessing, drawn as a dotted line.
    """
    if not table:
        raise DataError("table is empty; expected rows with name, shots, accuracy, low, high")
    ends = []
    shots = sorted({row["shots"] for row in table})
    for turn, name in enumerate(dict.fromkeys(row["name"] for row in table)):
        rows = sorted((row for row in table if row["name"] == name), key=lambda row: row["shots"])
        x, y, low, high = (np.array([row[key] for row in rows]) for key in ("shots", "accuracy", "low", "high"))
        color, marker = style.PALETTE[turn % len(style.PALETTE)], style.MARKERS[turn % len(style.MARKERS)]
        ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        ax.plot(x, y, color=color, marker=marker, markersize=7, linestyle=LINE_STYLES[turn % len(LINE_STYLES)])
        ends.append((float(y[-1]), name, color))
    if chance is not None:
        ax.axhline(chance, color=style.GREY, linestyle=":", linewidth=1.5)
        ax.annotate("chance", (0, chance), (6, 3), ("axes fraction", "data"), "offset points", color=style.GREY)
    ax.set_xscale("log", base=2)
    ax.set_xticks(shots, [str(count) for count in shots])
    ax.set_xticks([], minor=True)
    ax.set_xlim(shots[0] * 0.93, shots[-1] * 1.02)
    ax.set_xlabel("photographs a class")
    _percent_axis(ax.yaxis)
    ax.set_ylabel("accuracy")
    label_ends(ax, ends)
    return ax


# --- bars -------------------------------------------------------------------------------------------


def _percent_axis(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def plot_accuracy(ax: Axes, rows: Sequence[Mapping[str, Any]], chance: float | None = None) -> Axes:
    """Accuracies as sorted bars, best on top, with intervals and the figures beside them.

    Args:
        ax: Drawn on; about 0.4 inches a row read well.
        rows: With ``name, accuracy, low, high, kind``; kind is ``"generative"`` or ``"baseline"``, told apart
            by colour and hatch; accuracies from 0 to 1.
        chance: Accuracy of guessing, drawn as a line.
    """
    from matplotlib.patches import Patch
    from matplotlib.transforms import ScaledTranslation

    looks: dict[str, dict[str, Any]] = {
        "generative": {"facecolor": "#0072B2", "hatch": "//", "edgecolor": "white", "label": "diffusion prompts"},
        "baseline": {"facecolor": "#BFBFBF", "edgecolor": "white", "label": "baselines"},
    }
    for row in rows:
        if row["kind"] not in looks:
            raise DataError(f"row {row['name']!r} has kind {row['kind']!r}; expected one of {', '.join(looks)}")
    if not rows:
        raise DataError("rows is empty; expected at least one with name, accuracy, low, high, kind")
    ordered = sorted(rows, key=lambda row: row["accuracy"])
    for place, row in enumerate(ordered):
        ax.barh(place, row["accuracy"], height=0.72, **looks[row["kind"]])
        reach = [[row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]]]
        # White under black, so that the interval is seen on every bar.
        ax.errorbar(row["accuracy"], place, xerr=reach, color="white", capsize=5, linewidth=5, capthick=5)
        ax.errorbar(row["accuracy"], place, xerr=reach, color=style.INK, capsize=5, linewidth=1.8, capthick=1.8)
        text = f"{row['accuracy']:.1%}  ({100 * row['low']:.1f}\N{EN DASH}{row['high']:.1%})"
        ax.text(1.02, place, text, transform=ax.get_yaxis_transform(), va="center")
    if chance is not None:
        # A free lane over the bars for the word.
        ax.axvline(chance, color=style.INK, linestyle=":", linewidth=1.8)
        ax.text(chance, len(ordered) - 0.35, f" chance {chance:.0%}", va="center")
    ax.set_ylim(-0.6, len(ordered) - (0.0 if chance is not None else 0.4))
    ax.set_yticks(range(len(ordered)), [style.label_text(row["name"], 32) for row in ordered])
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, 1)
    _percent_axis(ax.xaxis)
    ax.set_xlabel("accuracy on the test photographs")
    kinds = [kind for kind in looks if any(row["kind"] == kind for row in rows)]
    below = ax.transAxes + ScaledTranslation(0, -3.4 * font_size() / 72, ax.get_figure(root=True).dpi_scale_trans)  # type: ignore[union-attr]
    patches = [Patch(**looks[kind]) for kind in kinds]
    ax.legend(
        handles=patches,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=below,
        ncols=2,
        frameon=False,
        borderaxespad=0,
    )
    return ax
