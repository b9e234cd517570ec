"""Figures that show one step of something: a token's journey, denoising, a race of classes, a pair, thresholds.

They stand behind the widgets and work without them. Limits come from the whole, so that what moves from step to
step is the thing itself and never the axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gcpl_lab.data.multilabel import check_targets, head_medium_tail
from gcpl_lab.errors import DataError
from gcpl_lab.views import style
from gcpl_lab.views.labels import label_ends, name_places
from gcpl_lab.views.plots import Families, font_size, set_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# --- a token's journey ------------------------------------------------------------------------------


def plot_journey_step(
    ax: Axes,
    paths: np.ndarray,
    place: int,
    class_names: Sequence[str],
    families: Families | None = None,
    caption: str | None = None,
) -> Axes:
    """Where the class tokens are at one state of training, and the way they came.

    Args:
        ax: Settled in size.
        paths: (state, class, 2), on one map.
        place: Index of the state that is shown.
        class_names: (class,).
        families: Family name to its class names.
        caption: Under the map.
    """
    paths = np.asarray(paths, dtype=float)
    if paths.ndim != 3 or paths.shape[1:] != (len(class_names), 2) or not 0 <= place < len(paths):
        raise DataError(
            f"paths has shape {paths.shape} and place is {place}; expected (state, {len(class_names)}, 2) and one of "
            "its states"
        )
    looks = style.class_style(class_names, families)
    for index, name in enumerate(class_names):
        color, marker = looks[name]
        ax.plot(*paths[:, index].T, color=style.FAINT, linewidth=1.5, zorder=1)
        ax.plot(*paths[: place + 1, index].T, color=color, linewidth=2, zorder=3)
        (x, y), (now_x, now_y) = paths[0, index], paths[place, index]
        ax.scatter([x], [y], s=60, facecolors="white", edgecolors=color, marker=marker, linewidths=1.8, zorder=3)
        ax.scatter([now_x], [now_y], s=170, c=color, marker=marker, edgecolors="white", linewidths=1.8, zorder=5)
    low, high = paths.min(axis=(0, 1)), paths.max(axis=(0, 1))
    centre, half = (low + high) / 2, 0.58 * max(float((high - low).max()), 1e-9)
    ax.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half), aspect="equal")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(style.FAINT)
    set_texts(ax, caption=caption)
    colors = [looks[name][0] for name in class_names]
    name_places(ax, paths[place], list(class_names), colors, paths[: place + 1].reshape(-1, 2))
    return ax


# --- denoising --------------------------------------------------------------------------------------


def draw_denoising(panels: Sequence[tuple[str, np.ndarray]], title: str | None = None) -> Figure:
    """Pictures in a row, each with its words over it. Call it inside ``figure_style``.

    Args:
        panels: (words, picture (height, width, 3) uint8, or floats from 0 to 1).
        title: Over the row.
    """
    if not panels:
        raise DataError("panels is empty; expected at least one picture with its words")
    height, width = np.shape(panels[0][1])[:2]
    # Small photographs keep their size; a wide picture by itself gets the room of its form.
    side = 3.1 if len(panels) > 1 or width <= 1.2 * height else 7.0
    figure = style.new_figure(side * len(panels), side * height / width + 0.8)
    for ax, (words, picture) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        ax.imshow(picture)
        ax.set_axis_off()
        ax.set_title(style.wrap_lines(words, side - 0.2, font_size()), size=font_size(), loc="center")
    if title:
        figure.suptitle(style.wrap_lines(title, 0.9 * side * len(panels), font_size() * 1.3))
    return figure


# --- a race of classes ------------------------------------------------------------------------------


def race_order(errors: np.ndarray) -> np.ndarray:
    """An order of the samples of one image in which every beginning spans the noise levels.

    Samples that all classes were measured on come first (the earlier stages of a staged run), and inside a stage
    halves, quarters, eighths ... of the schedule follow each other.

    Args:
        errors: (class, sample), NaN where a class had been dropped.

    Returns:
        int64 (sample,).
    """
    dropped = np.isnan(errors).sum(axis=0)
    order = []
    for count in np.unique(dropped):
        members = np.flatnonzero(dropped == count)
        width = max(1, int(np.ceil(np.log2(len(members)))))
        order.append(members[np.argsort([int(f"{rank:0{width}b}"[::-1], 2) for rank in range(len(members))])])
    return np.concatenate(order)


def race_leads(errors: np.ndarray, weighting: Literal["relative", "absolute"] = "relative") -> np.ndarray:
    """How far each class leads after 1, 2, 3 ... samples, in the order of :func:`race_order`.

    Args:
        errors: (class, sample) of one image, NaN where a class had been dropped.
        weighting: ``"relative"`` divides each sample's errors by their mean over the classes that were never
            dropped, so that noise levels count alike; ``"absolute"`` takes the errors as they are.

    Returns:
        (sample, class): mean error of the classes that were never dropped minus the class's own, over the samples
        so far; larger is better, NaN from where a class was dropped.
    """
    errors = np.asarray(errors, dtype=float)
    if errors.ndim != 2 or 0 in errors.shape:
        raise DataError(f"errors has shape {errors.shape}; expected (class, sample) of one image, neither of them 0")
    finalists = ~np.isnan(errors).any(axis=1)
    if not finalists.any():
        raise DataError("every class lacks some sample; expected one class or more that was measured on all of them")
    ordered = errors[:, race_order(errors)]
    mean = ordered[finalists].mean(axis=0)
    if weighting == "relative":
        ordered, mean = ordered / mean, np.ones_like(mean)
    leads = np.cumsum(mean - ordered, axis=1) / np.arange(1, ordered.shape[1] + 1)
    return np.asarray(leads.T)


def plot_race(
    ax: Axes,
    leads: np.ndarray,
    num_samples: int,
    class_names: Sequence[str],
    families: Families | None = None,
    label: int | None = None,
    relative: bool = True,
) -> Axes:
    """The classes' leads up to one number of samples; classes that were dropped are grey from there on.

    Args:
        ax: About 10 × 6 inches read well.
        leads: (sample, class), see :func:`race_leads`.
        num_samples: Shown, 1 or more.
        class_names: (class,).
        families: Family name to its class names.
        label: The true class, marked in its name.
        relative: Whether leads are shares of the error.
    """
    leads = np.asarray(leads, dtype=float)
    if leads.ndim != 2 or leads.shape[1] != len(class_names) or not 1 <= num_samples <= len(leads):
        raise DataError(
            f"leads has shape {leads.shape} for {len(class_names)} class names and num_samples is {num_samples}; "
            "expected (sample, class) and 1 or more of its samples"
        )
    looks, ends = style.class_style(class_names, families), []
    samples = np.arange(1, len(leads) + 1)
    for index, name in enumerate(class_names):
        seen = np.flatnonzero(~np.isnan(leads[:num_samples, index]))
        out = len(seen) < num_samples
        color, marker = (style.GREY, "x") if out else looks[name]
        values = leads[seen, index]
        ax.plot(samples[seen], values, color=color, linewidth=1.2 if out else 2, alpha=0.6 if out else 1)
        ax.plot(samples[seen[-1:]], values[-1:], color=color, marker=marker, markersize=8, clip_on=False, zorder=4)
        text = style.label_text(name, 18) + (" (true)" if index == label else "") + (", out" if out else "")
        ends.append((float(values[-1]), text, color))
        # From where the class stands to its name at the edge.
        ax.plot([samples[seen[-1]], len(leads)], values[-1:].repeat(2), color=color, linewidth=1, linestyle=":")
    ax.axhline(0, color=style.GREY, linewidth=1)
    # The first few samples swing widely; the window is that of the rest.
    rest = leads[min(len(leads) - 1, len(leads) // 8) :]
    low, high = float(np.nanmin(rest)), float(np.nanmax(rest))
    margin = 0.12 * max(high - low, 1e-9)
    ax.set(xlim=(1, max(len(leads), 2)), ylim=(low - margin, high + margin))
    if relative:
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%".replace("-", "\N{MINUS SIGN}"))
    ax.set_ylabel("error below the mean" + (" (share of it)" if relative else ""))
    set_texts(ax, caption="samples (pairs of timestep and noise, spread over the schedule)")
    label_ends(ax, [(min(max(value, low), high), text, color) for value, text, color in ends])
    return ax


# --- a pair of classes ------------------------------------------------------------------------------


def draw_pair(
    mistakes: Mapping[str, Sequence[np.ndarray]],
    timesteps: np.ndarray,
    gaps: Mapping[str, np.ndarray],
    colors: Sequence[str],
) -> Figure:
    """Photographs of two classes that were taken for each other, and which timesteps tell the two apart.

    Call it inside ``figure_style``.

    Args:
        mistakes: Words to the photographs under them, two rows.
        timesteps: (timestep,).
        gaps: Words to (image, timestep): error under the other class's prompt minus that under the own.
        colors: One for each of ``gaps``.
    """
    columns = max(6, *(len(pictures) for pictures in mistakes.values()))
    figure = style.new_figure(11, 7.2)
    figure.set_layout_engine("constrained", w_pad=0.1)  # room for the frames of the names at the right
    rows = figure.add_gridspec(2, 1, height_ratios=(1.15, 1))
    top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    grid = top.subplots(len(mistakes), columns, squeeze=False)
    for axes, (words, pictures) in zip(grid, mistakes.items(), strict=True):
        for ax in axes:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, picture in zip(axes, pictures, strict=False):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
        if not len(pictures):
            axes[0].text(0, 0.5, "none", transform=axes[0].transAxes, va="center", color=style.GREY)
        axes[0].set_ylabel(style.wrap_lines(words, 2.4, font_size()), rotation=0, ha="right", va="center", labelpad=10)
    ax = bottom.subplots()
    ax.axhline(0, color=style.GREY, linewidth=1.2)
    ends = []
    order = np.argsort(timesteps)
    for turn, ((words, values), color) in enumerate(zip(gaps.items(), colors, strict=True)):
        if not len(values):
            continue
        values = np.asarray(values, dtype=float)[:, order]
        mean, half = values.mean(axis=0), 1.96 * values.std(axis=0, ddof=min(1, len(values) - 1)) / len(values) ** 0.5
        ax.fill_between(timesteps[order], mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
        ax.plot(timesteps[order], mean, color=color, marker=style.MARKERS[turn], markersize=6)
        ends.append((float(mean[-1]), words, color))
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%".replace("-", "\N{MINUS SIGN}"))
    ax.set_ylabel("own prompt better by\n(share of the error)")
    ax.set_xlabel("timestep t (band: 95 % interval of the mean)")
    label_ends(ax, ends)
    return figure


# --- thresholds -------------------------------------------------------------------------------------


def threshold_table(
    probabilities: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | float
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of every class, each (class,) from 0 to 1.

    Precision is NaN where nothing is predicted, recall and F1 where a class has no positive image.

    Args:
        probabilities: (image, class).
        targets: (image, class), 0 or 1.
        thresholds: (class,) or one for all; a class is predicted where its probability is at least this.
    """
    probabilities, present = np.asarray(probabilities, dtype=float), check_targets(targets).astype(bool)
    if probabilities.shape != present.shape:
        raise DataError(f"probabilities have shape {probabilities.shape} and targets {present.shape}; expected equal")
    called = probabilities >= np.asarray(thresholds)
    right = (called & present).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / called.sum(axis=0), right / present.sum(axis=0)
        f1 = np.where(present.any(axis=0), 2 * right / (called.sum(axis=0) + present.sum(axis=0)), np.nan)
    return {"precision": precision, "recall": recall, "F1": f1}


def plot_thresholds(
    ax: Axes,
    table: Mapping[str, np.ndarray],
    train_counts: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    part: str = "all",
) -> Axes:
    """Precision, recall and F1 of each class, the most frequent on top, head, medium and tail apart.

    Args:
        ax: About 0.45 inches a class in height.
        table: See :func:`threshold_table`.
        train_counts: (class,), training pictures.
        class_names: (class,).
        part: ``"all"``, ``"head"``, ``"medium"`` or ``"tail"``.
    """
    counts = np.asarray(train_counts)
    parts = {name: sorted(ids, key=lambda index: -counts[index]) for name, ids in head_medium_tail(counts).items()}
    if part not in ("all", *parts):
        raise DataError(f"part is {part!r}; expected 'all', {', '.join(map(repr, parts))}")
    shown = {name: ids for name, ids in parts.items() if part in ("all", name) and len(ids)}
    if not shown:
        raise DataError(f"no class is in the part {part!r}; choose another")
    order = [index for ids in shown.values() for index in ids]
    looks: dict[str, Any] = dict(zip(table, zip(style.PALETTE, style.MARKERS, strict=True), strict=False))
    for row, index in enumerate(order):
        known = [values[index] for values in table.values() if not np.isnan(values[index])]
        if known:
            ax.plot([min(known), max(known)], [row, row], color=style.FAINT, linewidth=3, zorder=1)
    for name, values in table.items():
        color, marker = looks[name]
        ax.scatter(
            np.asarray(values)[order],
            range(len(order)),
            s=75,
            c=color,
            marker=marker,
            zorder=3,
            edgecolors=style.INK,
            linewidths=0.5,
            label=name,
            clip_on=False,
        )
    start = 0
    for name, ids in shown.items():
        if start:
            ax.axhline(start - 0.5, color=style.GREY, linewidth=1, linestyle=":")
        with np.errstate(all="ignore"):
            f1 = np.asarray(table["F1"])[ids]
            mean = f"mean F1 {np.nanmean(f1):.2f}" if not np.isnan(f1).all() else "no positives"
        middle = start + (len(ids) - 1) / 2
        ax.text(1.03, middle, f"{name}\n{mean}", transform=ax.get_yaxis_transform(), va="center")
        start += len(ids)
    ax.set_yticks(range(len(order)), [f"{style.label_text(class_names[index])} ({counts[index]})" for index in order])
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, 1), ylim=(len(order) - 0.5, -0.6))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_xlabel("in brackets: training pictures")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3, frameon=False, borderaxespad=0)
    return ax
