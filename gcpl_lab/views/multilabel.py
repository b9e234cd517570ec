"""Figures of images with several labels: head, medium and tail; wrong captions; thresholds; one mistake explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from gcpl_lab.data.multilabel import head_medium_tail
from gcpl_lab.data.sets import check_targets
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.explaining import Mistake
from gcpl_lab.views import panels, style
from gcpl_lab.views.panels import label_ends, legend_beside, set_texts
from gcpl_lab.views.style import Names, font_size

Rows = Sequence[Mapping[str, Any]]

PARTS = {"map": "all classes", "map_head": "head", "map_medium": "medium", "map_tail": "tail"}
"""What each score is called."""

_LOOKS = dict(zip(PARTS, style.PART_LOOKS.values(), strict=True))
_HATCHES = ("", "//", "..", "xx", "\\\\", "", "--", "oo")


def plot_tail_bars(ax: Axes, rows: Rows, titles: Mapping[str, str]) -> Axes:
    """Mean average precision over all, head, medium and tail classes, a group of bars each; 9 × 4.5 inches read well.

    ``rows`` have ``name`` and the scores of ``PARTS`` (None where a part has no class); several seeds become their
    mean with one standard deviation. ``titles`` are in the order of the bars; a name without one comes last.
    """
    panels.check_filled("rows", rows, f"at least one with name, {', '.join(PARTS)}")
    measured = list(dict.fromkeys(row["name"] for row in rows))
    names = [name for name in titles if name in measured] + [name for name in measured if name not in titles]
    width = 0.84 / len(names)
    for turn, name in enumerate(names):
        (color, _), hatch = style.look(turn), _HATCHES[turn % len(_HATCHES)]
        label = style.label_text(titles.get(name, name), 40)
        for group, part in enumerate(PARTS):
            values = [float(row[part]) for row in rows if row["name"] == name and row[part] is not None]
            if not values:
                continue
            place, mean = group + (turn - (len(names) - 1) / 2) * width, float(np.mean(values))
            spread, shown = 0.0, label if group == 0 else None
            ax.bar(place, mean, width * 0.92, color=color, hatch=hatch, edgecolor="white", label=shown)
            if len(values) > 1:
                spread = float(np.std(values, ddof=1))
                ax.errorbar(place, mean, yerr=spread, color=style.INK, capsize=3, lw=1.4)
            top, size = mean + spread + 0.008, font_size() * 0.8
            ax.text(place, top, f"{100 * mean:.0f}", ha="center", va="bottom", size=size)
    ax.set_xticks(range(len(PARTS)), list(PARTS.values()))
    ax.tick_params(axis="x", length=0)
    panels.percent_axis(ax.yaxis)
    ax.set_ylabel("mean average precision")
    legend_beside(ax)
    return ax


def plot_differences(ax: Axes, summaries: Mapping[str, Rows], titles: Mapping[str, str], reference: str) -> Axes:
    """Paired differences of variants from a reference, over seeds, with 95 % intervals; 0.5 inches a variant read well.

    ``summaries`` map a score, which gets a mark, to the rows of :func:`gcpl_lab.evaluation.compare.summarise`;
    ``titles`` name the variants that are shown, from the top.
    """
    measured = {entry["method"] for entries in summaries.values() for entry in entries}
    names = [name for name in titles if name != reference and name in measured]
    if not names:
        raise DataError(f"no variant with a title was measured; expected some of {', '.join(titles)}")
    panels.name_rows(ax, [style.label_text(titles[name], 48) for name in names])
    for turn, (score, entries) in enumerate(summaries.items()):
        by_name = {entry["method"]: entry for entry in entries}
        found = [[by_name.get(name, {}).get(key) for name in names] for key in ("difference", "low", "high")]
        values, *ends = 100 * np.array(found, dtype=float)
        shift, look = 0.3 * (turn - (len(summaries) - 1) / 2), _LOOKS.get(score, style.look(turn + 1))
        panels.mark_rows(ax, values, look, PARTS.get(score, score), shift, 64, ends)
    ax.axvline(0, color=style.INK, linestyle=":", linewidth=1.6)
    name = titles.get(reference, reference)
    set_texts(ax, caption=f"points of mAP above {name} (line: 95 % interval over seeds)")
    legend_beside(ax)
    return ax


def plot_noise_curve(ax: Axes, curve: Rows, reference: Mapping[str, Any] | None = None) -> Axes:
    """Mean average precision against the share of captions that are wrong, ``share, score, mean, standard_deviation``.

    ``reference`` maps a score to the mean of a method without captions, drawn as a dotted line.
    """
    lines: dict[str, list[Any]] = {}
    for entry in curve:
        if entry["score"] in PARTS:
            mean, spread = entry["mean"], entry["standard_deviation"] or 0.0
            points = lines.setdefault(PARTS[entry["score"]], [])
            points.append((entry["share"], mean, mean - spread, mean + spread))
    looks = {PARTS[score]: look for score, look in _LOOKS.items()}
    ends = panels.draw_lines(ax, lines, looks, linestyle="-")
    for score, mean in (reference or {}).items():
        if PARTS.get(score) in lines:
            ax.axhline(float(mean), color=_LOOKS[score][0], linestyle=":", linewidth=1.6)
    panels.percent_axis(ax.xaxis, ax.yaxis)
    dotted = "; dotted: no captions" if reference else ""
    set_texts(ax, caption=f"share of captions replaced by another image's (band: one standard deviation{dotted})")
    ax.set_ylabel("mean average precision")
    label_ends(ax, ends)
    return ax


def plot_class_precision(ax: Axes, classes: Mapping[str, Rows], titles: Mapping[str, str]) -> Axes:
    """Average precision of every class, the most frequent first, one mark a method; 0.45 inches a class read well.

    ``classes`` maps a method to the entries of its classes: ``name, part, average_precision, num_train, num_test``.
    """
    panels.check_filled("classes", classes, "method names with the classes of their rows")
    first = next(iter(classes.values()))
    order = sorted(range(len(first)), key=lambda place: -first[place]["num_train"])
    for turn, (method, entries) in enumerate(classes.items()):
        values = [entries[place]["average_precision"] for place in order]
        panels.mark_rows(ax, values, style.look(turn), titles.get(method, method))
    numbers = [f"({entry['num_train']}, {entry['num_test']}; {entry['part']})" for entry in first]
    names = [f"{style.label_text(entry['name'])} {told}" for entry, told in zip(first, numbers, strict=True)]
    panels.name_rows(ax, [names[place] for place in order], rules=0.0)
    ax.set_xlim(0, 1)
    panels.percent_axis(ax.xaxis)
    ax.set_xlabel(
        "average precision on test images\n(in brackets: training and test images with the class; part of the tail)"
    )
    legend_beside(ax)
    return ax


def threshold_table(
    probabilities: np.ndarray, targets: np.ndarray, thresholds: np.ndarray | float
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of every class, each (class,) from 0 to 1.

    Precision is NaN where nothing is predicted, recall and F1 where a class has no positive image. ``probabilities``
    and ``targets`` are (image, class); a class is predicted from its threshold on, or from the one for all.
    """
    present = check_targets(targets).astype(bool)
    called = panels.check_shape("probabilities", probabilities, *present.shape) >= np.asarray(thresholds)
    right = (called & present).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / called.sum(axis=0), right / present.sum(axis=0)
        f1 = np.where(present.any(axis=0), 2 * right / (called.sum(axis=0) + present.sum(axis=0)), np.nan)
    return {"precision": precision, "recall": recall, "F1": f1}


def plot_thresholds(
    ax: Axes, table: Mapping[str, np.ndarray], train_counts: np.ndarray, class_names: Names, part: str = "all"
) -> Axes:
    """Precision, recall and F1 of each class, the most frequent on top, head, medium and tail apart.

    ``table`` is that of :func:`threshold_table`, ``train_counts`` (class,) count training images, ``part`` is "all",
    "head", "medium" or "tail". About 0.45 inches a class in height read well.
    """
    counts = np.asarray(train_counts)
    parts = {name: sorted(ids, key=lambda index: -counts[index]) for name, ids in head_medium_tail(counts).items()}
    if part not in ("all", *parts):
        raise DataError(f"part is {part!r}; expected 'all', {', '.join(map(repr, parts))}")
    shown = {name: ids for name, ids in parts.items() if part in ("all", name) and len(ids)}
    if not shown:
        raise DataError(f"no class is in the part {part!r}; choose another")
    order = [index for ids in shown.values() for index in ids]
    panels.name_rows(ax, [f"{style.label_text(class_names[index])} ({counts[index]})" for index in order])
    for row, values in enumerate(np.array(list(table.values()))[:, order].T):
        known = values[~np.isnan(values)]
        if len(known):
            ax.plot([known.min(), known.max()], [row, row], color=style.FAINT, linewidth=3, zorder=1)
    for turn, (name, values) in enumerate(table.items()):
        panels.mark_rows(ax, np.asarray(values)[order], style.look(turn), name)
    start = 0
    for name, ids in shown.items():
        if start:
            ax.axhline(start - 0.5, color=style.GREY, linewidth=1, linestyle=":")
        f1, middle = np.asarray(table["F1"])[ids], start + (len(ids) - 1) / 2
        mean = f"mean F1 {np.nanmean(f1):.2f}" if not np.isnan(f1).all() else "no positives"
        ax.text(1.03, middle, f"{name}\n{mean}", transform=ax.get_yaxis_transform(), va="center")
        start += len(ids)
    ax.set(xlim=(0, 1), ylim=(len(order) - 0.5, -0.6), xlabel="in brackets: training images")
    panels.percent_axis(ax.xaxis)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0, ncols=3, frameon=False)
    return ax


_NUM_ROWS = 6
"""Classes and companions that a card lists."""
_KEY = "probability (line: threshold)\nblue, hatched: the class is there"


class Answer(NamedTuple):
    """What is said of one image."""

    picture: Any  # a PIL image or an array
    title: str
    classes: Rows  # name, present, probability, threshold; largest probability first
    wrong: str | None  # the class that the title speaks of


def draw_answers(figure: Figure, answers: Sequence[Answer], columns: int = 2) -> Figure:
    """Images with the probabilities of their classes beside them, ``columns`` in a row; 3.4 inches a row read well."""
    rows = -(-len(answers) // columns)
    grid = figure.add_gridspec(rows, columns)
    for place, answer in enumerate(answers):
        part = grid[divmod(place, columns)].subgridspec(1, 2, width_ratios=(1, 1.1))
        image = figure.add_subplot(part[0])
        panels.show_image(image, answer.picture)
        image.set_xlabel(style.wrap_lines(answer.title, figure.get_figwidth() / columns / 3, font_size()))
        _draw_probabilities(figure.add_subplot(part[1]), answer.classes, answer.wrong)
    panels.write_under(figure, _KEY.replace("\n", "; "))
    return figure


def draw_mistake(mistake: Mistake, picture: Image.Image, neighbours: Sequence[Image.Image]) -> Figure:
    """One card: the image, its classes with probabilities and thresholds, neighbours, and companions.

    Call it inside ``figure_style``. ``picture`` was judged, ``neighbours`` are training images in the order of
    ``mistake.neighbours``.
    """
    if len(neighbours) != len(mistake.neighbours):
        raise DataError(f"{len(neighbours)} images for {len(mistake.neighbours)} neighbours; expected one each")
    figure = style.new_figure(12, 6.6)
    rows = figure.add_gridspec(2, 1, height_ratios=(1.5, 1))
    above = rows[0].subgridspec(1, 3, width_ratios=(0.9, 1.25, 1))
    _show(figure.add_subplot(above[0]), picture, "test image")
    _draw_probabilities(middle := figure.add_subplot(above[1]), mistake.classes, mistake.name)
    middle.set_xlabel(_KEY)
    _draw_companions(figure.add_subplot(above[2]), mistake)
    below = rows[1].subgridspec(1, max(len(neighbours), 1))
    for place, (entry, image) in enumerate(zip(mistake.neighbours, neighbours, strict=True)):
        ax = figure.add_subplot(below[place])
        names = ", ".join(style.label_text(name) for name in entry["names"]) or "no class"
        _show(ax, image, f"cosine {entry['similarity']:.2f}")
        ax.set_xlabel(style.wrap_lines(names, 2.4, font_size()))
    figure.suptitle(style.wrap_lines(mistake.sentence(), 11, font_size() * 1.3))
    return figure


def _show(ax: Axes, image: Image.Image, title: str) -> None:
    panels.show_image(ax, image.convert("RGB"))
    ax.set_title(title, size=font_size())


def _draw_probabilities(ax: Axes, rows: Rows, wrong: str | None) -> None:
    """The largest probabilities with their thresholds; the wrong class is always among them."""
    entries = [*rows[:_NUM_ROWS]]
    if wrong is not None and all(entry["name"] != wrong for entry in entries):
        entries = [*entries[:-1], *(entry for entry in rows if entry["name"] == wrong)]
    _draw_bars(ax, entries, "probability", wrong)
    for place, entry in enumerate(entries):
        ax.plot([entry["threshold"]] * 2, [place - 0.42, place + 0.42], color=style.INK, linewidth=2.2)


def _draw_companions(ax: Axes, mistake: Mistake) -> None:
    name = style.label_text(mistake.name)
    if not mistake.companions:
        ax.text(0.5, 0.5, f"{name} occurs alone", ha="center", va="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    _draw_bars(ax, mistake.companions[:_NUM_ROWS], "share")
    ax.set_xlabel(f"share of the training images with\n{name} that show this too")


def _draw_bars(ax: Axes, entries: Rows, key: str, wrong: str | None = None) -> None:
    """One bar a class, blue and hatched where the class is present."""
    marks = ["wrong: " if entry["name"] == wrong else "" for entry in entries]
    names = [mark + style.label_text(entry["name"]) for mark, entry in zip(marks, entries, strict=True)]
    panels.bar_rows(ax, names, [entry[key] for entry in entries], [entry["present"] for entry in entries])
    ax.set(xlim=(0, 1), xticks=(0, 0.5, 1))
