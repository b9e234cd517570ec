"""Figures of pictures with several labels: head, medium and tail; wrong captions; one mistake explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.explaining import Mistake
from gcpl_lab.views import style
from gcpl_lab.views.labels import label_ends
from gcpl_lab.views.plots import font_size, set_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

PARTS = {"map": "all classes", "map_head": "head", "map_medium": "medium", "map_tail": "tail"}
PART_OF_SCORE = {score: name.removesuffix(" classes") for score, name in PARTS.items()}
_HATCHES = ("", "//", "..", "xx", "\\\\", "", "--", "oo")


def _look(score: str, turn: int) -> tuple[str, str]:
    """Colour and marker of a score: those of its part of the tail, else the next ones."""
    if score in PART_OF_SCORE:
        return style.PART_LOOKS[PART_OF_SCORE[score]]
    return style.PALETTE[(turn + 1) % len(style.PALETTE)], style.MARKERS[(turn + 1) % len(style.MARKERS)]


def plot_tail_bars(ax: Axes, rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Axes:
    """Mean average precision over all, head, medium and tail classes, a group of bars each.

    Several seeds of a method become their mean with one standard deviation as a whisker.

    Args:
        ax: Drawn on; about 9 × 4.5 inches read well.
        rows: With ``name`` and ``map, map_head, map_medium, map_tail`` (None where a part has no class).
        titles: What each name is called, in the order of the bars; names that no row has are passed over.

    Raises:
        DataError: There is no row, or one has a name without a title.
    """
    unknown = sorted({str(row["name"]) for row in rows} - titles.keys())
    if not rows or unknown:
        raise DataError(f"rows have {unknown or 'no names'}; expected some of {', '.join(titles)}")
    names = [name for name in titles if any(row["name"] == name for row in rows)]
    width = 0.84 / len(names)
    for turn, name in enumerate(names):
        color, hatch = style.PALETTE[turn % len(style.PALETTE)], _HATCHES[turn % len(_HATCHES)]
        for group, part in enumerate(PARTS):
            values = [float(row[part]) for row in rows if row["name"] == name and row[part] is not None]
            if not values:
                continue
            place = group + (turn - (len(names) - 1) / 2) * width
            label = style.label_text(titles[name], 40) if group == 0 else None
            ax.bar(place, np.mean(values), width * 0.92, color=color, hatch=hatch, edgecolor="white", label=label)
            if len(values) > 1:
                ax.errorbar(place, np.mean(values), yerr=np.std(values, ddof=1), color=style.INK, capsize=3, lw=1.4)
            top = float(np.mean(values) + (np.std(values, ddof=1) if len(values) > 1 else 0.0))
            ax.text(
                place, top + 0.008, f"{100 * np.mean(values):.0f}", ha="center", va="bottom", size=font_size() * 0.8
            )
    ax.set_xticks(range(len(PARTS)), list(PARTS.values()))
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_formatter(lambda value, _place: f"{value:.0%}")
    ax.set_ylabel("mean average precision")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return ax


def plot_differences(
    ax: Axes, summaries: Mapping[str, Sequence[Mapping[str, Any]]], titles: Mapping[str, str], reference: str
) -> Axes:
    """Paired differences of every variant from a reference, over seeds, with 95 % intervals.

    Args:
        ax: Drawn on; about 0.5 inches a variant in height.
        summaries: Score name to the rows of :func:`gcpl_lab.evaluation.compare.summarise`; a mark each.
        titles: What each variant is called, in the order of the rows from the top.
        reference: The variant that the others are compared with.

    Raises:
        DataError: No variant has a title.
    """
    names = [
        name
        for name in titles
        if name != reference and any(entry["method"] == name for entries in summaries.values() for entry in entries)
    ]
    if not names:
        raise DataError(f"no variant with a title was measured; expected some of {', '.join(titles)}")
    for turn, (score, entries) in enumerate(summaries.items()):
        color, marker = _look(score, turn)
        by_name = {entry["method"]: entry for entry in entries}
        shift = 0.3 * (turn - (len(summaries) - 1) / 2)
        for row, name in enumerate(names):
            entry = by_name.get(name)
            if entry is None or entry["difference"] is None:
                continue
            value = 100 * entry["difference"]
            if entry["low"] is not None:
                ax.plot([100 * entry["low"], 100 * entry["high"]], [row + shift] * 2, color=color, linewidth=2)
            ax.plot(
                value,
                row + shift,
                color=color,
                marker=marker,
                markersize=8,
                linestyle="",
                label=PARTS.get(score, score) if row == 0 else None,
            )
    ax.axvline(0, color=style.INK, linestyle=":", linewidth=1.6)
    ax.set_yticks(range(len(names)), [style.label_text(titles[name], 48) for name in names])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    set_texts(ax, caption=f"points of mAP above {titles[reference]} (line: 95 % interval over seeds)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return ax


def plot_noise_curve(ax: Axes, curve: Sequence[Mapping[str, Any]], reference: Mapping[str, Any] | None = None) -> Axes:
    """Mean average precision against the share of captions that are wrong.

    Args:
        ax: Drawn on; about 7 × 4.5 inches read well.
        curve: ``caption_noise`` of :func:`gcpl_lab.experiments.multilabel.run_ablation`: entries with ``share,
            score, mean, standard_deviation``.
        reference: Score name to the mean of a method without captions, drawn as a dotted line.

    Raises:
        DataError: The curve is empty.
    """
    if not curve:
        raise DataError("the curve is empty; expected entries with share, score, mean, standard_deviation")
    ends = []
    scores = [score for score in PARTS if any(entry["score"] == score for entry in curve)]
    for score in scores:
        entries = sorted((entry for entry in curve if entry["score"] == score), key=lambda entry: entry["share"])
        x = np.array([entry["share"] for entry in entries])
        y = np.array([entry["mean"] for entry in entries])
        spread = np.array([entry["standard_deviation"] or 0.0 for entry in entries])
        color, marker = style.PART_LOOKS[PART_OF_SCORE[score]]
        ax.fill_between(x, y - spread, y + spread, color=color, alpha=0.15, linewidth=0)
        ax.plot(x, y, color=color, marker=marker, markersize=7)
        if reference and score in reference:
            ax.axhline(float(reference[score]), color=color, linestyle=":", linewidth=1.6)
        ends.append((float(y[-1]), PARTS[score], color))
    ax.xaxis.set_major_formatter(lambda value, _place: f"{value:.0%}")
    ax.yaxis.set_major_formatter(lambda value, _place: f"{value:.0%}")
    dotted = "; dotted: no captions" if reference else ""
    set_texts(ax, caption=f"share of captions replaced by another image's (band: one standard deviation{dotted})")
    ax.set_ylabel("mean average precision")
    label_ends(ax, ends)
    return ax


def plot_class_precision(
    ax: Axes, classes: Mapping[str, Sequence[Mapping[str, Any]]], titles: Mapping[str, str]
) -> Axes:
    """Average precision of every class, the most frequent first, one mark a method.

    Args:
        ax: Drawn on; about 0.45 inches a class in height.
        classes: Method to the ``classes`` of its row: entries with ``name, part, average_precision, num_train``.
        titles: What each method is called.

    Raises:
        DataError: There is no method.
    """
    if not classes:
        raise DataError("classes is empty; expected method names with the classes of their rows")
    first = next(iter(classes.values()))
    order = sorted(range(len(first)), key=lambda place: -first[place]["num_train"])
    for turn, (method, entries) in enumerate(classes.items()):
        known = [(row, entries[place]["average_precision"]) for row, place in enumerate(order)]
        places = [row for row, value in known if value is not None]
        ax.scatter(
            [value for _, value in known if value is not None],
            places,
            s=70,
            zorder=3,
            color=style.PALETTE[turn],
            marker=style.MARKERS[turn],
            edgecolors=style.INK,
            linewidths=0.5,
            label=titles.get(method, method),
        )
    for row in range(len(order)):
        ax.axhline(row, color=style.FAINT, linewidth=0.8, zorder=0)
    names = [
        f"{style.label_text(first[place]['name'])} ({first[place]['num_train']}, {first[place]['part']})"
        for place in order
    ]
    ax.set_yticks(range(len(order)), names)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(lambda value, _place: f"{value:.0%}")
    ax.set_xlabel("average precision on test images (in brackets: training images, part of the tail)")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return ax


def draw_mistake(
    mistake: Mistake, picture: Image.Image, neighbours: Sequence[Image.Image], num_rows: int = 6
) -> Figure:
    """One card: the picture, its classes with probabilities and thresholds, neighbours, and companions.

    Call it inside ``figure_style``.

    Args:
        mistake: See :func:`gcpl_lab.evaluation.explaining.explain_mistake`.
        picture: That was judged.
        neighbours: Training pictures, in the order of ``mistake.neighbours``.
        num_rows: Classes and companions to list.

    Raises:
        DataError: Numbers of neighbours and pictures differ.
    """
    if len(neighbours) != len(mistake.neighbours):
        raise DataError(f"{len(neighbours)} pictures for {len(mistake.neighbours)} neighbours; expected one each")
    figure = style.new_figure(12, 6.6)
    rows = figure.add_gridspec(2, 1, height_ratios=(1.5, 1))
    above = rows[0].subgridspec(1, 3, width_ratios=(0.9, 1.25, 1))
    shown = figure.add_subplot(above[0])
    _show(shown, picture, "test image")
    _bars(figure.add_subplot(above[1]), mistake, num_rows)
    _companions(figure.add_subplot(above[2]), mistake, num_rows)
    below = rows[1].subgridspec(1, max(len(neighbours), 1))
    for place, (entry, image) in enumerate(zip(mistake.neighbours, neighbours, strict=True)):
        ax = figure.add_subplot(below[place])
        names = ", ".join(style.label_text(name) for name in entry["names"]) or "no class"
        _show(ax, image, f"cosine {entry['similarity']:.2f}")
        ax.set_xlabel(style.wrap_lines(names, 2.4, font_size()))
    figure.suptitle(style.wrap_lines(mistake.sentence(), 11, font_size() * 1.3))
    return figure


def _show(ax: Axes, image: Image.Image, title: str) -> None:
    ax.imshow(np.asarray(image.convert("RGB")))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(title, size=font_size())


def _bars(ax: Axes, mistake: Mistake, num_rows: int) -> None:
    """Probabilities with thresholds; the wrong class is always among them."""
    entries = mistake.classes[:num_rows]
    if all(entry["name"] != mistake.name for entry in entries):
        entries = [*entries[:-1], *(entry for entry in mistake.classes if entry["name"] == mistake.name)]
    for place, entry in enumerate(entries):
        color = "#0072B2" if entry["present"] else "#BFBFBF"
        ax.barh(
            place,
            entry["probability"],
            height=0.66,
            color=color,
            hatch="//" if entry["present"] else "",
            edgecolor="white",
        )
        ax.plot([entry["threshold"]] * 2, [place - 0.42, place + 0.42], color=style.INK, linewidth=2.2)
    ax.set_yticks(
        range(len(entries)),
        [("wrong: " if entry["name"] == mistake.name else "") + style.label_text(entry["name"]) for entry in entries],
    )
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("probability (line: threshold)\nblue, hatched: the class is there")


def _companions(ax: Axes, mistake: Mistake, num_rows: int) -> None:
    entries = mistake.companions[:num_rows]
    if not entries:
        ax.text(0.5, 0.5, f"{mistake.name} occurs alone", ha="center", va="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    for place, entry in enumerate(entries):
        color = "#0072B2" if entry["present"] else "#BFBFBF"
        ax.barh(
            place, entry["share"], height=0.66, color=color, hatch="//" if entry["present"] else "", edgecolor="white"
        )
    ax.set_yticks(range(len(entries)), [style.label_text(entry["name"]) for entry in entries])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel(f"share of the training images with\n{style.label_text(mistake.name)} that show this too")
