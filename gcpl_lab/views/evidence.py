"""Figures that explain decisions: similarities, confusions, evidence, calibration, words. ``ax`` in, ``ax`` out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gcpl_lab.errors import DataError
from gcpl_lab.views import style
from gcpl_lab.views.labels import label_ends
from gcpl_lab.views.plots import Families, draw_curves, font_size, set_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# --- matrices ---------------------------------------------------------------------------------------


def draw_matrix(
    ax: Axes,
    matrix: np.ndarray,
    texts: Sequence[Sequence[str]],
    class_names: Sequence[str],
    families: Families | None,
    cmap: str,
    limits: tuple[float, float],
    row_names: bool = True,
    number_size: float | None = None,
) -> Any:
    """A class × class heatmap in family order, with a text in each cell and a bracket over each family.

    Args:
        ax: Drawn on.
        matrix: (class, class), decides the colours.
        texts: (class, class), in the order of ``matrix``; left out where there are more than 16 classes.
        class_names: (class,).
        families: Family name to its class names.
        cmap: Name of a sequential matplotlib colour map.
        limits: Values at its ends.
        row_names: Whether the rows are named at the left.
        number_size: Points; by the present size of the axes where None.

    Returns:
        The image, for a colour bar.
    """
    matrix = np.asarray(matrix, dtype=float)
    count = len(class_names)
    if matrix.shape != (count, count):
        raise DataError(f"matrix has shape {matrix.shape} for {count} class names; expected ({count}, {count})")
    order = style.family_order(class_names, families)
    image = ax.imshow(matrix[np.ix_(order, order)], cmap=cmap, vmin=limits[0], vmax=limits[1])
    names = [style.label_text(class_names[place], 18) for place in order]
    ax.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(count), names if row_names else [])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if count <= 16:
        _write_cells(ax, image, matrix, texts, order, number_size)
    _bracket_families(ax, style.family_spans(class_names, families), count)
    return image


def _write_cells(
    ax: Axes, image: Any, matrix: np.ndarray, texts: Sequence[Sequence[str]], order: list[int], size: float | None
) -> None:
    if size is None:
        height = ax.get_position().height * ax.get_figure(root=True).get_figheight()  # type: ignore[union-attr]
        size = _fitting_size(texts, min(height, style.width_of(ax)) / len(order))
    for y, row in enumerate(order):
        for x, column in enumerate(order):
            red, green, blue, _ = image.cmap(image.norm(matrix[row, column]))
            dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.2
            color = "white" if dark else style.INK
            ax.text(x, y, texts[row][column], ha="center", va="center", fontsize=size, color=color)


def _fitting_size(texts: Iterable[Sequence[str]], cell: float) -> float:
    """Largest size in points, up to the present font's, at which the longest text fits a cell ``cell`` inches wide."""
    longest = max(len(text) for row in texts for text in row)
    # A digit is about 0.62 of its size wide; the axes may still shrink a little for the names.
    return min(font_size(), 0.9 * cell * 72 / (0.62 * max(longest, 1)))


def _bracket_families(ax: Axes, spans: list[tuple[str, int, int]], count: int) -> None:
    """White gaps between the families, and a named line over each family of more than one class."""
    transform = ax.get_xaxis_transform()
    for family, start, stop in spans:
        for edge in (start, stop):
            if 0 < edge < count:
                ax.axhline(edge - 0.5, color="white", linewidth=4)
                ax.axvline(edge - 0.5, color="white", linewidth=4)
        if stop - start > 1:
            ax.plot([start - 0.4, stop - 0.6], [1.015, 1.015], color=style.GREY, transform=transform, clip_on=False)
            name = style.label_text(family, max(6, 4 * (stop - start)))
            ax.text((start + stop - 1) / 2, 1.025, name, transform=transform, ha="center", va="bottom")


def _title_over_brackets(ax: Axes, title: str | None) -> None:
    if title:
        ax.set_title(style.wrap_lines(title, style.width_of(ax), font_size() * 1.15), pad=font_size() * 2.7)


def _numbers(matrix: np.ndarray) -> list[list[str]]:
    return [[f"{value:.2f}".replace("-", "\N{MINUS SIGN}") for value in row] for row in np.atleast_2d(matrix)]


def plot_similarity(
    ax: Axes,
    matrix: np.ndarray,
    class_names: Sequence[str],
    families: Families | None = None,
    title: str | None = None,
    limits: tuple[float, float] | None = None,
    row_names: bool = True,
    number_size: float | None = None,
) -> Axes:
    """Cosine similarity of the class prompts as a heatmap with numbers.

    Args:
        ax: Drawn on.
        matrix: (class, class), cosines from -1 to 1.
        class_names: (class,).
        families: Family name to its class names; they decide the order and are bracketed.
        title: Over the brackets.
        limits: Values at the ends of the colour scale; the matrix's own least and greatest where None.
        row_names: Whether the rows are named.
        number_size: Points; by the present size of the axes where None.
    """
    matrix = np.asarray(matrix, dtype=float)
    limits = limits or (float(matrix.min()), float(matrix.max()))
    texts = _numbers(matrix)
    draw_matrix(ax, matrix, texts, class_names, families, "YlGnBu", limits, row_names, number_size)
    _title_over_brackets(ax, title)
    return ax


def plot_similarity_pair(
    before: np.ndarray,
    after: np.ndarray,
    class_names: Sequence[str],
    families: Families | None = None,
    titles: tuple[str, str] = ("Before training", "After training"),
) -> Figure:
    """Two similarity heatmaps with one order of classes and one colour scale.

    Args:
        before: (class, class).
        after: (class, class).
        class_names: (class,).
        families: Family name to its class names.
        titles: Of the two.
    """
    both = np.stack([np.asarray(before, dtype=float), np.asarray(after, dtype=float)])
    limits = (float(both.min()), float(both.max()))
    with style.figure_style():
        figure = style.new_figure(16.5, 9)
        axes = figure.subplots(1, 2)
        # One size for both, for the width that is left between names and colour bar.
        size = _fitting_size([*_numbers(both[0]), *_numbers(both[1])], 6.3 / len(class_names))
        for place, ax in enumerate(axes):
            plot_similarity(ax, both[place], class_names, families, titles[place], limits, place == 0, size)
        figure.colorbar(axes[1].images[0], ax=list(axes), shrink=0.7, label="cosine similarity", pad=0.02)
    return figure


def plot_confusion(ax: Axes, matrix: np.ndarray, class_names: Sequence[str], families: Families | None = None) -> Axes:
    """What was taken for what: counts, coloured by their share of the true class.

    Args:
        ax: Drawn on.
        matrix: (true class, predicted class), counts.
        class_names: (class,).
        families: Family name to its class names; mistakes inside a family lie in its block.
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.ndim != 2 or (matrix < 0).any():
        raise DataError(f"matrix has shape {matrix.shape} or negative entries; expected counts (class, class)")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    texts = [[f"{value:.0f}" if value else "" for value in row] for row in matrix]
    draw_matrix(ax, shares, texts, class_names, families, "Blues", (0.0, 1.0))
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    return ax


def plot_timestep_evidence(
    ax: Axes, timesteps: Sequence[int], gap: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Axes:
    """At which noise levels the denoiser tells classes apart.

    Args:
        ax: Drawn on.
        timesteps: (timestep,).
        gap: (timestep,), error under rival prompts minus error under the own prompt, relative to the error.
        low: (timestep,), lower end of its interval.
        high: (timestep,), upper end.
    """
    values = [np.asarray(part, dtype=float) for part in (timesteps, gap, low, high)]
    if any(part.shape != values[0].shape or part.ndim != 1 for part in values):
        raise DataError(f"timesteps, gap, low and high have shapes {[part.shape for part in values]}; expected equal")
    order = np.argsort(values[0])
    x, y, bottom, top = (part[order] for part in values)
    ax.axhline(0, color=style.GREY, linewidth=1.2)
    ax.fill_between(x, bottom, top, color="#0072B2", alpha=0.2, linewidth=0)
    ax.plot(x, y, color="#0072B2", marker="o", markersize=6)
    ax.margins(x=0.03)
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%".replace("-", "\N{MINUS SIGN}"))
    ax.set_xlabel("timestep t (small: little noise; large: almost only noise)")
    ax.set_ylabel("own prompt better by\n(share of the error)")
    return ax


def plot_error_map(
    axes: Sequence[Axes], image: np.ndarray, difference: np.ndarray, name_a: str, name_b: str
) -> list[Axes]:
    """Where in the photograph the denoiser finds class A and where class B.

    The map is as opaque as it is sure: where neither class is favoured, the photograph shows.

    Args:
        axes: Two: the photograph, and the map over it.
        image: (height, width) or (height, width, 3), uint8, or floats from 0 to 1.
        difference: (map height, map width), error under B minus error under A: above 0 speaks for A.
        name_a: Drawn blue.
        name_b: Drawn orange.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    image, difference = np.asarray(image), np.asarray(difference, dtype=float)
    if difference.ndim != 2 or image.ndim not in (2, 3) or len(axes) != 2:
        raise DataError(
            f"image has shape {image.shape}, difference {difference.shape}, for {len(axes)} axes; expected a "
            "picture, a map (height, width) and two axes"
        )
    height, width = image.shape[:2]
    grey = image if image.ndim == 2 else image.mean(axis=2)
    reach = float(np.abs(difference).max()) or 1.0
    # Both ends are seen on black as well as on white, and differ to colour-blind eyes.
    colors = LinearSegmentedColormap.from_list("evidence", ["#E66100", "#F2F2F2", "#3B6FE8"])
    scale = ScalarMappable(Normalize(-reach, reach), colors)
    overlay = scale.to_rgba(difference)
    overlay[..., 3] = 0.8 * np.abs(difference) / reach
    for ax, title in zip(axes, ("the photograph", "what speaks for which class"), strict=True):
        ax.set_axis_off()
        ax.set_title(title)
    axes[0].imshow(image, cmap="gray", vmin=0, vmax=_white(image))
    axes[1].imshow(grey, cmap="gray", vmin=0, vmax=_white(image))
    axes[1].imshow(overlay, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    figure = axes[1].get_figure(root=True)
    bar = figure.colorbar(scale, ax=axes[1], ticks=[-reach, 0, reach], shrink=0.85)  # type: ignore[union-attr]
    bar.set_ticklabels([style.label_text(name_b, 18), "neither", style.label_text(name_a, 18)])
    return list(axes)


def plot_sample_grid(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Figure:
    """Rows of pictures, each row named at its left: real ones beside generated ones.

    Args:
        rows: (title, pictures), each picture (height, width) or (height, width, 3), uint8, or floats from 0 to 1.
    """
    columns = max((len(images) for _, images in rows), default=0)
    if not columns:
        raise DataError(f"{len(rows)} rows without a picture; expected at least one picture")
    with style.figure_style():
        margin = 2.2
        figure = style.new_figure(margin + 1.25 * columns, 1.3 * len(rows) + 0.1)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for row, (title, images) in enumerate(rows):
            for column, ax in enumerate(grid[row]):
                ax.set_xticks([])
                ax.set_yticks([])
                ax.spines[:].set_visible(False)
                if column < len(images):
                    ax.imshow(images[column], cmap="gray", vmin=0, vmax=_white(images[column]))
            grid[row, 0].set_ylabel(
                style.wrap_lines(title, margin - 0.2, font_size()), rotation=0, ha="right", va="center", labelpad=8
            )
    return figure


def _white(image: np.ndarray) -> float:
    return 255.0 if np.asarray(image).dtype == np.uint8 else 1.0


def expected_calibration_error(confidences: np.ndarray, correct: np.ndarray, num_bins: int = 10) -> float:
    """Mean distance of confidence from accuracy over bins of equal width, weighted by their counts."""
    return sum(share * abs(mean - right) for mean, right, share in _bins(confidences, correct, num_bins))


def _bins(confidences: np.ndarray, correct: np.ndarray, num_bins: int) -> list[tuple[float, float, float]]:
    """(mean confidence, accuracy, share of the predictions) of each bin that holds any."""
    confidences, correct = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=float)
    if confidences.shape != correct.shape or confidences.ndim != 1 or not len(confidences):
        raise DataError(
            f"confidences has shape {confidences.shape} and correct {correct.shape}; expected two equal (image,)"
        )
    if confidences.min() < 0 or confidences.max() > 1 or num_bins < 1:
        raise DataError("confidences must lie from 0 to 1, and num_bins be at least 1")
    place = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    filled = [place == turn for turn in range(num_bins) if (place == turn).any()]
    return [(float(confidences[m].mean()), float(correct[m].mean()), float(m.mean())) for m in filled]


def plot_reliability(ax: Axes, confidences: np.ndarray, correct: np.ndarray, num_bins: int = 10) -> Axes:
    """Is a prediction of 80 % right in 80 % of cases? Points under the diagonal are too sure of themselves.

    Args:
        ax: Drawn on.
        confidences: (image,), probability of the predicted class.
        correct: (image,), whether the prediction was right.
        num_bins: Bins of equal width from 0 to 1.
    """
    from matplotlib.ticker import PercentFormatter

    bins = _bins(confidences, correct, num_bins)
    ax.plot([0, 1], [0, 1], color=style.GREY, linestyle="--", linewidth=1.5)
    mean, right, share = np.array(bins).T
    ax.vlines(mean, np.minimum(mean, right), np.maximum(mean, right), color="#D55E00", linewidth=2)
    ax.plot(mean, right, color="#0072B2", linewidth=1.2, zorder=2)
    ax.scatter(mean, right, s=40 + 700 * share, c="#0072B2", edgecolors="white", zorder=3)
    error = expected_calibration_error(confidences, correct, num_bins)
    ax.text(0.03, 0.97, f"expected calibration\nerror {error:.3f}", transform=ax.transAxes, va="top")
    ax.text(0.97, 0.03, "below the line:\ntoo sure", transform=ax.transAxes, ha="right", color=style.GREY)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlim=(0, 1.03), ylim=(0, 1.03), aspect="equal", ylabel="share that was right")
    ax.set_xlabel("stated probability\n(size: share of the photographs)")
    return ax


def plot_norms(
    ax: Axes, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], expected: Mapping[str, float] | None = None
) -> Axes:
    """Norm of the predicted noise over training: what CoMPLe's contrast drives, measured.

    Args:
        ax: Drawn on.
        curves: Name to (steps (step,), norm of the prediction relative to the noise's (step,)).
        expected: Name to the norm that theory foresees, dashed in the same colour: the minimiser of CoMPLe is
            GCPL's prediction times 1 / (1 - contrast weight).
    """
    ends = draw_curves(ax, curves)
    for _, name, color in ends:
        if expected and name in expected:
            ax.axhline(expected[name], color=color, linestyle=(0, (1, 2)), linewidth=1.6)
    ax.set_xlabel("training step" + (" (dotted: foreseen by theory)" if expected else " (thick: running mean)"))
    ax.set_ylabel("norm of the predicted noise\n(true noise = 1)")
    label_ends(ax, ends)
    return ax


def plot_nearest_words(
    ax: Axes, words: Mapping[str, Sequence[tuple[str, float]]], baseline: float, title: str | None = None
) -> Axes:
    """The vocabulary words nearest to each learned token, grey where a random vector comes as near.

    Args:
        ax: Drawn on; about 0.6 inches a class and 1.6 a word read well.
        words: Class name to (word, cosine similarity), nearest first.
        baseline: Similarity that random vectors of the same norm reach to their nearest word.
        title: What one should see.
    """
    columns = max((len(found) for found in words.values()), default=0)
    if not columns:
        raise DataError(f"{len(words)} classes without a word; expected at least one word a class")
    highest = max(value for found in words.values() for _, value in found)
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for row, found in enumerate(words.values()):
        for column, (word, value) in enumerate(found):
            above = value > baseline
            depth = 0.12 + 0.38 * (value - baseline) / max(highest - baseline, 1e-9)
            color: Any = colormaps["Blues"](depth) if above else "#F2F2F2"
            ax.add_patch(Rectangle((column, row), 0.95, 0.9, facecolor=color))
            text = f"{style.label_text(word, 16)}\n{value:.2f}"
            place = (column + 0.475, row + 0.45)
            ax.text(*place, text, ha="center", va="center", color=style.INK if above else style.GREY)
    ax.set(xlim=(0, columns), ylim=(len(words), 0))
    ax.set_yticks(np.arange(len(words)) + 0.45, [style.label_text(name) for name in words])
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    caption = f"cosine similarity; grey: no nearer than random vectors ({baseline:.2f})"
    set_texts(ax, title, caption)
    return ax
