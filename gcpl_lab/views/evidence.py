"""Figures that explain decisions: confusions, evidence, race, pairs, calibration, words. ``ax`` in, ``ax`` out.

Every function raises a DataError that names what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gcpl_lab.errors import DataError
from gcpl_lab.views import panels, style
from gcpl_lab.views.letters import distinct
from gcpl_lab.views.panels import label_ends, set_texts
from gcpl_lab.views.style import Families, Names, font_size

MOST_CLASSES = 16
"""Of a matrix; more names would lie on each other."""
EVIDENCE_COLORS = ("#FFB000", "#F2F2F2", "#2F5FD0")
"""For B, for neither, for A: both ends are seen on black and on white, and differ in grey and to colour-blind eyes."""
LINE_FROM = 0.4
"""Share of the strongest evidence from which a line holds it."""


def _draw_matrix(
    ax: Axes,
    matrix: np.ndarray,
    texts: np.ndarray,
    shown: Mapping[str, str],
    families: Families,
    size: float,
    **show: Any,
) -> None:
    """A class × class heatmap in family order, a text in each cell (up to 16 classes), a bracket over each family.

    ``shown`` is what the classes are called; texts are of ``size`` points, or as large as fits for 0; ``show`` are
    options of ``imshow``.
    """
    class_names = list(shown)
    count, order = len(class_names), style.family_order(class_names, families)
    matrix = panels.check_shape(f"matrix for {count} class names", matrix, count, count)
    image: Any = ax.imshow(matrix[np.ix_(order, order)], **show)
    names = [style.label_text(shown[class_names[place]], 18) for place in order]
    ax.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(count), names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if count <= MOST_CLASSES:
        height = ax.get_position().height * ax.get_figure(root=True).get_figheight()  # type: ignore[union-attr]
        size = size or _fitting_size(texts, min(height, style.width_of(ax)) / count)
        # White on dark cells, dark on the others; seaborn's threshold would put dark letters on middle blue.
        light = image.cmap(image.norm(image.get_array()))[..., :3] ** 2.2 @ (0.2126, 0.7152, 0.0722)
        for (y, x), text in np.ndenumerate(texts[np.ix_(order, order)]):
            color = "white" if light[y, x] < 0.2 else style.INK
            ax.text(x, y, text, ha="center", va="center", fontsize=size, color=color)
    transform = ax.get_xaxis_transform()
    for family, start, stop in style.family_spans(class_names, families):
        for edge in {start, stop} - {0, count}:  # white gaps between the families
            ax.axhline(edge - 0.5, color="white", linewidth=4)
            ax.axvline(edge - 0.5, color="white", linewidth=4)
        if stop - start > 1:
            ax.plot([start - 0.4, stop - 0.6], [1.015, 1.015], color=style.GREY, transform=transform, clip_on=False)
            name = style.label_text(family, max(6, 4 * (stop - start)))
            ax.text((start + stop - 1) / 2, 1.025, name, transform=transform, ha="center", va="bottom")


def _numbered(class_names: Names, chosen: Sequence[int]) -> dict[str, str]:
    """What some of the classes are called where names that look the same when they are cut have numbers."""
    return {class_names[place]: distinct(class_names)[place] for place in chosen}


def most_alike(matrix: np.ndarray) -> list[int]:
    """Places of the classes with the largest entries beside the diagonal, as many as have room, in their order."""
    off = np.where(np.eye(len(matrix), dtype=bool), -np.inf, matrix)
    largest = np.maximum(off, off.T).max(axis=1)
    return sorted(np.argsort(-largest, kind="stable")[:MOST_CLASSES].tolist())


def _fitting_size(texts: np.ndarray, cell: float) -> float:
    """Largest size in points, up to the present font's, at which the longest text fits a cell ``cell`` inches wide."""
    # A digit is about 0.62 of its size wide; the axes may still shrink a little for the names.
    return float(min(font_size(), 0.9 * cell * 72 / (0.62 * max(np.char.str_len(texts).max(), 1))))


def _numbers(matrix: np.ndarray) -> np.ndarray:
    return np.char.replace(np.char.mod("%.2f", np.asarray(matrix, dtype=float)), "-", "\N{MINUS SIGN}")


def plot_similarity(ax: Axes, matrix: np.ndarray, class_names: Names, families: Families = None) -> Axes:
    """Cosine similarities (class, class) of the class prompts as a heatmap with numbers, the families bracketed."""
    shown = _numbered(class_names, range(len(class_names)))
    _draw_matrix(ax, matrix, _numbers(matrix), shown, families, 0, cmap="YlGnBu")
    return ax


def plot_similarity_pair(
    before: np.ndarray,
    after: np.ndarray,
    class_names: Names,
    families: Families = None,
    titles: tuple[str, str] = ("Before training", "After training"),
) -> Figure:
    """Two similarity heatmaps, each (class, class), with one order of classes and one colour scale."""
    both = np.stack([np.asarray(before, dtype=float), np.asarray(after, dtype=float)])
    chosen, count = most_alike(both[0]), len(class_names)
    both, shown = both[:, chosen][:, :, chosen], _numbered(class_names, chosen)
    part = f"; {len(chosen)} of {count} classes, the most alike before" if len(chosen) < count else ""
    colors: dict[str, Any] = {"cmap": "YlGnBu", "vmin": both.min(), "vmax": both.max()}
    with style.figure_style():
        figure = style.new_figure(16.5, 9)
        axes = figure.subplots(1, 2)
        # One size for both, for the width that is left between names and colour bar.
        size = _fitting_size(_numbers(both), 6.3 / len(shown))
        for ax, matrix, title in zip(axes, both, titles, strict=True):
            _draw_matrix(ax, matrix, _numbers(matrix), shown, families, size, **colors)
            ax.set_title(style.wrap_lines(title, style.width_of(ax), font_size() * 1.15), pad=font_size() * 2.7)
        axes[1].set_yticks(range(len(shown)), [])
        figure.colorbar(axes[1].images[0], ax=list(axes), shrink=0.7, label="cosine similarity" + part, pad=0.02)
    return figure


def plot_confusion(
    ax: Axes, matrix: np.ndarray, class_names: Names, families: Families = None, chosen: Sequence[int] | None = None
) -> Axes:
    """What was taken for what: counts (true class, predicted class), coloured by their share of the true class.

    Mistakes inside a family lie in its block. Of more classes than have room those with the largest confusions are
    shown, or those at the places ``chosen``.
    """
    matrix = panels.check_shape("matrix", matrix, len(class_names), len(class_names))
    if (matrix < 0).any():
        raise DataError(f"matrix has negative entries, the least being {matrix.min():g}; expected counts")
    shares, count = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), len(class_names)
    chosen = most_alike(matrix) if chosen is None else chosen
    texts, block = np.where(matrix > 0, np.char.mod("%.0f", matrix), ""), np.ix_(chosen, chosen)
    shown = _numbered(class_names, chosen)
    _draw_matrix(ax, shares[block], texts[block], shown, families, 0, cmap="Blues", vmin=0, vmax=1)
    part = f" ({len(chosen)} of {count} classes, those confused most)" if len(chosen) < count else ""
    ax.set(xlabel=f"predicted{part}", ylabel="true")
    return ax


def plot_timestep_evidence(
    ax: Axes, timesteps: Sequence[int] | np.ndarray, gaps: Mapping[str, Any], colors: Names = ()
) -> Axes:
    """At which noise levels the denoiser tells classes apart, with the 95 % interval of each mean.

    ``gaps`` map words, which may be empty, to (image, timestep): the error under rival prompts minus that under the
    own, relative to the error; those without an image are left out. ``colors`` are in their order.
    """
    ax.axhline(0, color=style.GREY, linewidth=1.2)
    panels.percent_axis(ax.yaxis)
    ax.set_ylabel("own prompt better by\n(share of the error)")
    lines, looks = {}, {}
    for turn, (words, values) in enumerate(gaps.items()):
        if len(values):
            values = panels.check_shape("gaps", values, "image", len(timesteps))
            mean, half = values.mean(0), 1.96 * values.std(0, ddof=min(1, len(values) - 1)) / len(values) ** 0.5
            lines[words] = list(zip(timesteps, mean, mean - half, mean + half, strict=True))
            color, marker = style.look(turn)
            looks[words] = (colors[turn] if colors else color if words else style.BLUE), marker
    ends = panels.draw_lines(ax, lines, looks, markersize=6, linestyle="-")
    ax.margins(x=0.03)
    ax.set_xlabel("timestep t, from little noise to almost only noise (band: 95 % interval of the mean)")
    label_ends(ax, [end for end in ends if end[1]])
    return ax


def plot_error_map(
    axes: Sequence[Axes], image: np.ndarray, difference: np.ndarray, name_a: str, name_b: str
) -> list[Axes]:
    """Where in the image (on the first of two axes) the denoiser finds class A, blue, and where class B, orange.

    ``difference`` (map height, map width) is the error under B minus the error under A: above 0 speaks for A. It lies
    over the grey image, which shows where neither is favoured. Without colours, blue is the darker, and lines hold what
    speaks most: whole ones for A, dashed ones for B.
    """
    image, difference = np.asarray(image), panels.check_shape("difference", difference, "height", "width")
    if image.ndim not in (2, 3) or len(axes) != 2:
        raise DataError(f"image has shape {image.shape} for {len(axes)} axes; expected an image and two axes")
    height, width = image.shape[:2]
    reach = float(np.abs(difference).max()) or 1.0
    scale = ScalarMappable(Normalize(-reach, reach), LinearSegmentedColormap.from_list("evidence", EVIDENCE_COLORS))
    overlay = scale.to_rgba(difference)
    overlay[..., 3] = 0.8 * np.abs(difference) / reach
    grey = image if image.ndim == 2 else image.mean(axis=2).astype(image.dtype)
    for ax, shown, title in zip(axes, (image, grey), ("the image", "what speaks for which class"), strict=True):
        panels.show_image(ax, shown)
        ax.set_title(title)
    axes[1].imshow(overlay, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    rows, columns = difference.shape
    y, x = (np.arange(rows) + 0.5) * height / rows - 0.5, (np.arange(columns) + 0.5) * width / columns - 0.5
    for sign, kind in ((1, "solid"), (-1, "dashed")):
        if min(difference.shape) > 1 and (sign * difference).max() > LINE_FROM * reach:
            for color, wide in ((style.INK, 4.0), ("white", 2.0)):
                level: dict[str, Any] = {"levels": [LINE_FROM], "colors": color, "linewidths": wide}
                axes[1].contour(x, y, sign * difference / reach, linestyles=kind, **level)
    figure: Any = axes[1].get_figure(root=True)
    bar = figure.colorbar(scale, ax=axes[1], ticks=[-reach, 0, reach], shrink=0.85)
    names = style.label_text(name_b, 18), style.label_text(name_a, 18)
    bar.set_ticklabels([f"{names[0]}\n(dashed)", "neither", f"{names[1]}\n(solid line)"])
    return list(axes)


def plot_sample_grid(rows: Sequence[tuple[str, Sequence[np.ndarray]]], context: str = "figure") -> Figure:
    """Rows (title, images) of images, each row named at its left: real ones beside generated ones.

    ``context`` is that of ``figure_style``.
    """
    columns = max((len(images) for _, images in rows), default=0)
    if not columns:
        raise DataError(f"{len(rows)} rows without an image; expected at least one image")
    with style.figure_style(context):
        figure = style.new_figure(2.2 + 1.25 * columns, 1.3 * len(rows) + 0.1)
        panels.image_rows(figure, rows, columns)
    return figure


def draw_denoising(shown: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Images in a row, each with its words over it: (words, (height, width, 3) uint8 or floats from 0 to 1).

    Call it inside ``figure_style``.
    """
    panels.check_filled("shown", shown, "at least one image with its words")
    height, width = np.shape(shown[0][1])[:2]
    # Small images keep their size; a wide one by itself gets the room of its form.
    side = 3.1 if len(shown) > 1 or width <= 1.2 * height else 7.0
    figure = style.new_figure(side * len(shown), side * height / width + 0.8)
    for ax, (words, image) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        panels.show_image(ax, image)
        ax.set_title(style.wrap_lines(words, side - 0.2, font_size()), size=font_size(), loc="center")
    return figure


def plot_reliability(ax: Axes, confidences: np.ndarray, correct: np.ndarray, num_bins: int = 10) -> Axes:
    """Is a prediction of 80 % right in 80 % of cases? Points under the diagonal are too sure of themselves.

    ``confidences`` (image,) are probabilities of the predicted class, ``correct`` (image,) says whether it was right,
    bins have equal width, and the calibration error weights them by their counts.
    """
    confidences = panels.check_shape("confidences", confidences, "image")
    correct = panels.check_shape("correct", correct, len(confidences))
    if confidences.min() < 0 or confidences.max() > 1 or num_bins < 1:
        raise DataError("confidences must lie from 0 to 1, and num_bins be at least 1")
    bins = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(bins)
    filled = np.flatnonzero(counts)
    mean, right = (np.bincount(bins, values)[filled] / counts[filled] for values in (confidences, correct))
    share = counts[filled] / len(bins)
    ax.plot([0, 1], [0, 1], color=style.GREY, linestyle="--", linewidth=1.5)
    ax.vlines(mean, np.minimum(mean, right), np.maximum(mean, right), color="#D55E00", linewidth=2)
    ax.plot(mean, right, color=style.BLUE, linewidth=1.2, zorder=2)
    ax.scatter(mean, right, s=40 + 700 * share, c=style.BLUE, edgecolors="white", zorder=3)
    error = float((share * np.abs(mean - right)).sum())
    ax.text(0.03, 0.97, f"expected calibration\nerror {error:.3f}", transform=ax.transAxes, va="top")
    ax.text(0.97, 0.03, "below the line:\ntoo sure", transform=ax.transAxes, ha="right", color=style.GREY)
    panels.percent_axis(ax.xaxis, ax.yaxis)
    ax.set(xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal", ylabel="share that was right")
    ax.set_xlabel("stated probability\n(size: share of the images)")
    return ax


def plot_nearest_words(ax: Axes, words: Mapping[str, Sequence[tuple[str, float]]], baseline: float) -> Axes:
    """The vocabulary words nearest to each learned token, grey where a random vector comes as near.

    ``words`` maps a class to (word, cosine similarity), nearest first; ``baseline`` is the similarity that random
    vectors of the same norm reach. About 0.6 inches a class and 1.6 a word read well.
    """
    columns = max((len(found) for found in words.values()), default=0)
    if not columns:
        raise DataError(f"{len(words)} classes without a word; expected at least one word a class")
    highest = max(value for found in words.values() for _, value in found)
    for row, found in enumerate(words.values()):
        for column, (word, value) in enumerate(found):
            color: Any = ("#F2F2F2", style.GREY)
            if value > baseline:
                color = colormaps["Blues"](0.12 + 0.38 * (value - baseline) / (highest - baseline)), style.INK
            ax.add_patch(Rectangle((column, row), 0.95, 0.9, facecolor=color[0]))
            text = f"{style.label_text(word, 16)}\n{value:.2f}"
            ax.text(column + 0.475, row + 0.45, text, ha="center", va="center", color=color[1])
    ax.set(xlim=(0, columns), ylim=(len(words), 0), xticks=[])
    ax.set_yticks(np.arange(len(words)) + 0.45, [style.label_text(name) for name in words])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    set_texts(ax, caption=f"cosine similarity; grey: no nearer than random vectors ({baseline:.2f})")
    return ax


def race_order(errors: np.ndarray) -> np.ndarray:
    """An order (sample,) of the samples of one image in which every beginning spans the noise levels.

    The earlier stages of a staged run come first; inside a stage halves, quarters, eighths ... of the schedule follow
    each other. ``errors`` is (class, sample), NaN where a class had been dropped.
    """
    dropped = np.isnan(errors).sum(axis=0)
    order = []
    for count in np.unique(dropped):
        members = np.flatnonzero(dropped == count)
        width = max(1, int(np.ceil(np.log2(len(members)))))
        order.append(members[np.argsort([int(f"{rank:0{width}b}"[::-1], 2) for rank in range(len(members))])])
    return np.concatenate(order)


def race_leads(errors: np.ndarray, weighting: Literal["relative", "absolute"] = "relative") -> np.ndarray:
    """How far each class leads after 1, 2, 3 ... samples in the order of :func:`race_order`, (sample, class).

    A lead is the mean error so far of the classes that were never dropped minus the class's own, NaN once it was
    dropped; ``errors`` is (class, sample). ``"relative"`` errors are divided by that mean, so that noise levels count
    alike.
    """
    errors = panels.check_shape("errors", errors, "class", "sample")
    finalists = ~np.isnan(errors).any(axis=1)
    if not finalists.any():
        raise DataError("every class lacks some sample; expected one class or more that was measured on all of them")
    ordered = errors[:, race_order(errors)]
    mean = ordered[finalists].mean(axis=0)
    if weighting == "relative":
        ordered, mean = ordered / mean, np.ones_like(mean)
    return np.asarray((np.cumsum(mean - ordered, axis=1) / np.arange(1, ordered.shape[1] + 1)).T)


def plot_race(
    ax: Axes,
    leads: np.ndarray,
    num_samples: int,
    class_names: Names,
    families: Families = None,
    label: int | None = None,
    relative: bool = True,
) -> Axes:
    """The classes' leads up to one number of samples; classes that were dropped are grey from there on.

    ``leads`` (sample, class) are those of :func:`race_leads`, shares of the error where ``relative``; ``label`` is the
    true class, marked in its name.
    """
    leads = panels.check_shape("leads", leads, "sample", len(class_names))
    if not 1 <= num_samples <= len(leads):
        raise DataError(f"num_samples is {num_samples}; expected 1 to {len(leads)}")
    low, high = float(np.nanmin(leads)), float(np.nanmax(leads))
    margin = 0.12 * max(high - low, 1e-9)
    looks, ends = style.class_style(class_names, families), []
    for index, name in enumerate(class_names):
        seen = np.flatnonzero(~np.isnan(leads[:num_samples, index]))
        out = len(seen) < num_samples
        color, marker = (style.GREY, "x") if out else looks[name]
        x, y = seen + 1, leads[seen, index]
        ax.plot(x, y, color=color, linewidth=1.2 if out else 2, linestyle="--" if out else "-")
        ax.plot(x[-1:], y[-1:], color=color, marker=marker, markersize=8, clip_on=False, zorder=4)
        # From where the class stands to its name at the edge.
        ax.plot([x[-1], len(leads)], y[-1:].repeat(2), color=color, linewidth=1, linestyle=":")
        text = style.label_text(name, 18) + (" (true)" if index == label else "") + (", out" if out else "")
        ends.append((float(np.clip(y[-1], low, high)), text, color))
    ax.axhline(0, color=style.GREY, linewidth=1)
    ax.set(xlim=(1, max(len(leads), 2)), ylim=(low - margin, high + margin))
    ax.set_ylabel("error below the mean of\nthe classes still in" + (" (share of it)" if relative else ""))
    if relative:
        panels.percent_axis(ax.yaxis)
    set_texts(ax, caption="samples (pairs of timestep and noise, spread over the range of t in use)")
    label_ends(ax, ends)
    return ax


def draw_pair(
    mistakes: Mapping[str, Sequence[np.ndarray]], timesteps: np.ndarray, gaps: Mapping[str, np.ndarray], colors: Names
) -> Figure:
    """Images of two classes that were taken for each other, and which timesteps tell the two apart.

    Call it inside ``figure_style``. ``mistakes`` map words to the images beside them; ``gaps`` map words to (image,
    timestep), the error under the other class's prompt minus that under the own, drawn in ``colors``.
    """
    figure = style.new_figure(11, 7.2)
    figure.set_layout_engine("constrained", w_pad=0.1)  # room for the frames of the names at the right
    rows = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
    columns = max(6, *(len(images) for images in mistakes.values()))
    panels.image_rows(figure.add_subfigure(rows[0]), list(mistakes.items()), columns, margin=2.4)
    plot_timestep_evidence(figure.add_subfigure(rows[1]).subplots(), timesteps, gaps, colors)
    return figure
