"""The pictures of a run's look-alikes, from what it kept: for the report, the slides, animations and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.evaluation.look_alikes import pair_margins, share_in_own_sector, worst_pair
from gcpl_lab.experiments.look_alikes import CONTROL, CONTROL_STEPS, LookAlikes
from gcpl_lab.experiments.registry import BEFORE, title_of
from gcpl_lab.experiments.runs import RunStates
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.views import panels, style
from gcpl_lab.views.decision_map import SCALE, decision_row, map_reach
from gcpl_lab.views.hills import Hills, draw_hills, pair_hills
from gcpl_lab.views.moving import Judged, Moving, moving_hills, moving_lines, moving_maps, moving_scores
from gcpl_lab.views.plots import Curves, Shares
from gcpl_lab.views.score_strip import ScoreMap, class_key, fit_score_map, strip_row

NAMES, END = "class names", "end"
FIRST, CONTROL_WORDS = f"{CONTROL}0", "Control: labels shuffled"
"""The control that learns as long as true labels do, and what it is called."""
MOST_MAPS = 5
MOST_STATES = 4
"""Of the tracked method's way in a strip, class names among them; the control stands beside."""


def caption_of(found: LookAlikes, key: str) -> str:
    """What a panel of one state is called."""
    method, step = key.rpartition(".")[0], found.step_of(key)
    if method == BEFORE:
        return "Class names"
    name = CONTROL_WORDS if method.startswith(CONTROL) else found.title(key)
    return f"{name}, step {step}"


def looks_of(states: RunStates) -> dict[str, tuple[str, str]]:
    """Colours and markers of all classes of a run."""
    return style.class_style(states.class_names, states.families)


def exemplars_of(states: RunStates, classes: Sequence[str]) -> list[np.ndarray]:
    """One image a class that was learned from."""
    return [states.exemplars[states.class_names.index(name)] for name in classes]


def shown_keys(found: LookAlikes) -> tuple[list[str], list[str]]:
    """The last state of names, of what was learned and of the first control; and the controls among them."""
    controls = [found.last(name) for name in found.methods if name.startswith(CONTROL)][:1]
    others = [found.last(name) for name in found.methods if not name.startswith(CONTROL)]
    return [*others[: MOST_MAPS - len(controls)], *controls], controls


def triples(found: LookAlikes) -> list[list[str]]:
    """The sets of three, the one that class names tell apart best first."""
    sets = [classes for classes in found.sets if len(classes) == 3]
    start = next((name for name in found.methods if name == BEFORE), found.methods[0])
    return sorted(sets, key=lambda classes: -share_in_own_sector(*found.judged(found.last(start), classes)).value)


def hardest_pair(found: LookAlikes) -> tuple[list[str], tuple[int, int]]:
    """The set and the two of its classes that come apart least under class names."""
    start = BEFORE if BEFORE in found.methods else found.methods[0]
    worst = [worst_pair(*found.judged(found.last(start), classes)) for classes in found.sets]
    place = min(range(len(worst)), key=lambda turn: worst[turn][1].auc.value)
    return found.sets[place], worst[place][0]


def _maps(part: Any, states: RunStates, classes: Sequence[str], reach: float | None = None, columns: int = 0) -> None:
    found = states.look_alikes
    assert found is not None
    keys, controls = shown_keys(found)
    judged = {caption_of(found, key): found.judged(key, classes) for key in keys}
    names = [caption_of(found, key) for key in controls]
    thumbnails, looks = exemplars_of(states, classes), looks_of(states)
    decision_row(part, judged, classes, looks, names, reach, False, thumbnails, columns=columns)


def say_controls(found: LookAlikes, sets: Sequence[Sequence[str]]) -> str:
    """How far several shufflings lie apart on the images of each set, in a sentence for under their maps."""
    keys = [key for name in found.methods if (key := f"{name}.{CONTROL_STEPS}") in found.errors]
    keys, said = [key for key in keys if key.startswith(CONTROL)], []
    for classes in sets if len(keys) > 1 else ():
        shares = [share_in_own_sector(*found.judged(key, classes)).value for key in keys]
        names = ", ".join(style.label_text(name, 12) for name in classes)
        said.append(f"{min(shares):.0%} to {max(shares):.0%} of {names} (chance is {1 / len(classes):.0%})")
    learned = f"Labels shuffled inside the family, {len(keys)} shufflings of {CONTROL_STEPS} steps"
    return f" {learned}: {'; '.join(said)}." if said else ""


def draw_decision_maps(states: RunStates, columns: int = 0, most: int | None = None) -> Figure | None:
    """Names, methods and the control for every set of three look-alikes, or ``most`` of them, all on one scale.

    A row a set, or rows of ``columns`` maps: a phone has room for two.
    """
    found = states.look_alikes
    if found is None or not (sets := triples(found)[:most]):
        return None
    keys, _ = shown_keys(found)
    columns = columns or len(keys)
    with style.figure_style():
        rows = len(sets) * -(-len(keys) // columns)
        figure = style.new_figure(3.05 * columns, 5.0 * rows + 0.6)
        reach = map_reach([found.judged(key, classes)[0] for classes in sets for key in keys])
        parts: Any = figure.subfigures(len(sets), 1, squeeze=False)
        for part, classes in zip(parts[:, 0], sets, strict=True):
            _maps(part, states, classes, reach, columns)
        under = f"Under each map: share of the test images in their own sector, 95 % interval. {SCALE}"
        panels.write_under(figure, under + say_controls(found, sets))
    return figure


def run_score_map(states: RunStates, method: str = "umap") -> tuple[ScoreMap, list[str]] | None:
    """One map for the states of the tracked method and the control; and the controls among them.

    It holds the images that were judged in all states, on the samples on which they were.
    """
    found = states.look_alikes
    if found is None:
        return None
    controls = shown_keys(found)[1]
    keys = [*found.keys(BEFORE), *found.keys(found.tracked), *controls]
    known = np.logical_and.reduce([np.isfinite(found.errors[key]).all(axis=(1, 2)) for key in keys])
    if known.sum() < 4:
        return None
    least = min(found.errors[key].shape[2] for key in keys)
    errors = {key: found.errors[key][known, :, :: found.errors[key].shape[2] // least] for key in keys}
    part = replace(found, labels=found.labels[known], errors=errors, scores={})
    scores = {caption_of(found, key): part.judged(key, found.names)[0] for key in keys}
    scored = fit_score_map(scores, part.labels, found.names, method, states.seed)
    return scored, [caption_of(found, key) for key in controls]


def strip_states(scored: ScoreMap, controls: Sequence[str]) -> list[str]:
    """States of a map that tell the way, and the controls."""
    way = [name for name in scored.probabilities if name not in controls]
    chosen = sorted({round(place) for place in np.linspace(0, len(way) - 1, MOST_STATES)})
    return [*(way[place] for place in chosen), *controls]


def draw_before_after(states: RunStates, method: str = "umap") -> Figure | None:
    """The decision map of one set over the strip of score maps of all: the picture of a run."""
    found, scored = states.look_alikes, run_score_map(states, method)
    if found is None or scored is None or not (sets := triples(found)):
        return None
    fitted, controls = scored
    shown, looks = strip_states(fitted, controls), looks_of(states)
    with style.figure_style():
        figure = style.new_figure(16, 10.2)
        rows: Any = figure.subfigures(2, 1, height_ratios=(1.15, 1))
        upper, lower = rows
        _maps(upper, states, sets[0])
        strip_row(lower, fitted, shown, looks, controls)
        class_key(lower, fitted.class_names, looks)
        under = (
            "Above: three look-alikes on the plane of their relative errors; under each map the share of test images "
            f"in their own sector, with its 95 % interval.{say_controls(found, sets[:1])} Below: probabilities, "
            f"{fitted.projection.note}; rings: where an image would lie that is surely of this class; figures measured "
            "in the probabilities."
        )
        panels.write_under(figure, under)
    return figure


def shown_methods(found: LookAlikes) -> list[str]:
    """Methods that learned prompts, and the first control."""
    return [name for name in found.methods if name != BEFORE and (name == FIRST or not name.startswith(CONTROL))]


def hills_of(found: LookAlikes, classes: Sequence[str], pair: tuple[int, int]) -> dict[str, dict[str, Hills]]:
    """Columns of the pair hills: the tracked method at all its states, the others and the control at their ends."""

    def margins(key: str) -> Hills:
        return pair_margins(*found.judged(key, classes), pair)

    start = {NAMES: margins(found.last(BEFORE))} if BEFORE in found.methods else {}
    columns = {}
    for method in shown_methods(found):
        *way, end = found.keys(method)
        title = f"{CONTROL_WORDS} ({found.step_of(end)} steps)" if method == FIRST else title_of(method)
        columns[title] = {**start, **{f"step {found.step_of(key)}": margins(key) for key in way}, END: margins(end)}
    return columns


def draw_pair_hills(states: RunStates) -> Figure | None:
    """The hills of the two classes that names tell apart least."""
    found = states.look_alikes
    if found is None:
        return None
    classes, pair = hardest_pair(found)
    columns = hills_of(found, classes, pair)
    named = {name for ridges in columns.values() for name in ridges} - {NAMES, END}
    steps = sorted(named, key=lambda name: int(name.removeprefix("step ")))
    rows = [*([NAMES] if BEFORE in found.methods else []), *steps, END]
    controls = [name for name in columns if name.startswith(CONTROL_WORDS)]
    return pair_hills(columns, (classes[pair[0]], classes[pair[1]]), looks_of(states), controls, rows)


def draw_all_pairs(states: RunStates) -> Figure | None:
    """Every pair of every set, a column a pair: class names, ends of all methods, and the control as ridges."""
    found = states.look_alikes
    if found is None:
        return None
    ends = [found.last(method) for method in (*found.methods[: BEFORE in found.methods], *shown_methods(found))]
    pairs = [[(classes, pair) for pair in combinations(range(len(classes)), 2)] for classes in found.sets]
    columns, looks = max(map(len, pairs)), looks_of(states)
    with style.figure_style():
        figure = style.new_figure(1.5 + 4.6 * columns, len(pairs) * (1.1 + 0.8 * len(ends)))
        axes = figure.subplots(len(pairs), columns, squeeze=False)
        for row, own in zip(axes, pairs, strict=True):
            for place, ax in enumerate(row):
                if place >= len(own):
                    ax.set_axis_off()
                    continue
                classes, (a, b) = own[place]
                ridges = {found.title(key): pair_margins(*found.judged(key, classes), (a, b)) for key in ends}
                draw_hills(ax, ridges, (classes[a], classes[b]), looks)
                if place:
                    ax.set_yticks([])
    return figure


def prompts_beside_images(found: LookAlikes) -> tuple[Curves, Shares, list[tuple[np.ndarray, np.ndarray]], float, str]:
    """Of the set that names tell apart least: cosines of its prompts, shares of its images, cosines of the shufflings,
    the share of guessing, and its names.
    """
    classes, _ = hardest_pair(found)
    column = 1 + found.sets.index(list(classes))

    def before(method: str) -> int:
        """Steps of the objective that a method starts from."""
        start = OBJECTIVES[method].facts.get("starts_from") if method in OBJECTIVES else None
        return int(found.similarities[start][-1, 0]) if start in found.similarities else 0

    def curve(method: str) -> tuple[np.ndarray, np.ndarray]:
        values = found.similarities[method]
        return values[:, 0] + before(method), values[:, column]

    controls = [name for name in found.similarities if name.startswith(CONTROL)]
    curves = {title_of(name): curve(name) for name in found.similarities if name not in controls}
    shares = {}
    for method in shown_methods(found):
        begin = [found.last(BEFORE)] if BEFORE in found.methods and not before(method) else []
        right = {key: share_in_own_sector(*found.judged(key, classes)) for key in (*begin, *found.keys(method))}
        points = [((found.step_of(key) or 0) + before(method), *share) for key, share in right.items()]
        shares[found.title(found.last(method))] = points
    title = f"{', '.join(map(style.shortened, classes[:-1]))} and {style.shortened(classes[-1])}"
    return curves, shares, [curve(name) for name in controls], 1 / len(classes), title


def draw_prompts_and_images(states: RunStates) -> Figure | None:
    """Both panels over all steps."""
    found = states.look_alikes
    return None if found is None else moving_lines(*prompts_beside_images(found)).strip()


def moving_pictures(states: RunStates, method: str = "umap") -> dict[str, Moving]:
    """Pictures of the look-alikes that go down the training steps of the tracked method, by name."""
    found = states.look_alikes
    if found is None:
        return {}
    keys = [*([found.last(BEFORE)] if BEFORE in found.methods else []), *found.keys(found.tracked)]
    if len(keys) < 2:
        return {}
    looks, controls = looks_of(states), shown_keys(found)[1]

    def judged(shown: Sequence[str], classes: Sequence[str]) -> dict[str, Judged]:
        return {caption_of(found, key): found.judged(key, classes) for key in shown}

    pictures: dict[str, Moving] = {}
    for classes in triples(found)[:1]:
        way, beside = judged(keys, classes), judged(controls, classes)
        pictures["decision_map"] = moving_maps(way, classes, beside, looks, exemplars_of(states, classes))
    classes, pair = hardest_pair(found)
    way, beside = (
        {name: pair_margins(*one, pair) for name, one in judged(shown, classes).items()} for shown in (keys, controls)
    )
    pictures["pair_hills"] = moving_hills(way, (classes[pair[0]], classes[pair[1]]), beside, looks)
    pictures["prompts_and_images"] = moving_lines(*prompts_beside_images(found))
    if scored := run_score_map(states, method):
        pictures["score_map"] = moving_scores(*scored, looks)
    return pictures
