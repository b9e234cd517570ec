"""The pictures of a run's look-alikes, from what it kept: for the report, the slides, animations and notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.evaluation.look_alikes import pair_margins, share_in_own_sector, worst_pair
from gcpl_lab.experiments.look_alikes import CONTROL, LookAlikes
from gcpl_lab.experiments.registry import BEFORE, title_of
from gcpl_lab.experiments.runs import RunStates
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.views import panels, style
from gcpl_lab.views.decision_map import SCALE, decision_row, map_reach
from gcpl_lab.views.pair_hills import Hills, pair_hills
from gcpl_lab.views.prompts_and_images import prompts_and_images
from gcpl_lab.views.score_strip import ScoreMap, class_key, fit_score_map, score_strip, strip_row

NAMES, END = "class names", "end"
MOST_MAPS = 5
MOST_STATES = 4
"""Of the tracked method's way in a strip, class names among them; the control stands beside."""


def caption_of(found: LookAlikes, key: str) -> str:
    """What a panel of one state is called."""
    method, step = key.rpartition(".")[0], found.step_of(key)
    if method == BEFORE:
        return "Class names"
    name = "Control: labels shuffled" if method.startswith(CONTROL) else found.title(key)
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


def draw_decision_maps(states: RunStates, narrow: bool = False) -> Figure | None:
    """Names, methods and the control for every set of three look-alikes, all on one scale.

    A row a set; ``narrow``, for a phone, has two maps a row.
    """
    found = states.look_alikes
    if found is None or not (sets := triples(found)):
        return None
    keys, _ = shown_keys(found)
    columns = 2 if narrow else len(keys)
    with style.figure_style():
        rows = len(sets) * -(-len(keys) // columns)
        figure = style.new_figure(3.05 * columns, 5.0 * rows + 0.6)
        reach = map_reach([found.judged(key, classes)[0] for classes in sets for key in keys])
        parts: Any = figure.subfigures(len(sets), 1, squeeze=False)
        for part, classes in zip(parts[:, 0], sets, strict=True):
            _maps(part, states, classes, reach, columns)
        panels.write_around(
            figure, under=f"Under each map: share of the test images in their own sector, 95 % interval. {SCALE}"
        )
    return figure


def run_score_map(states: RunStates, method: str = "umap") -> tuple[ScoreMap, list[str]] | None:
    """One map for the states of the tracked method and the control; and the controls among them."""
    found = states.look_alikes
    if found is None:
        return None
    way, controls = [key for key in found.errors if key.startswith(f"{BEFORE}.")], shown_keys(found)[1]
    way += found.keys(found.tracked)
    judged, known = {}, None
    for key in [*way, *controls]:
        errors = np.isfinite(found.errors[key]).all(axis=(1, 2))
        known = errors if known is None else known & errors
    assert known is not None
    part = LookAlikes(found.sets, found.rows[known], found.labels[known], {}, {}, {})
    for key in [*way, *controls]:
        errors = found.errors[key][known]
        # States on the way were judged on every second sample: here all are, so that they can be compared.
        halved = errors[:, :, ::2] if errors.shape[2] == max(e.shape[2] for e in found.errors.values()) > 1 else errors
        part.errors[key] = halved
        judged[caption_of(found, key)] = part.judged(key, found.names)[0]
    if known.sum() < 4:
        return None
    scored = fit_score_map(judged, found.labels[known], found.names, method, states.seed)
    return scored, [caption_of(found, key) for key in controls]


def strip_states(scored: ScoreMap, controls: Sequence[str]) -> list[str]:
    """States of a map that tell the way, and the controls."""
    way = [name for name in scored.probabilities if name not in controls]
    chosen = sorted({round(place) for place in np.linspace(0, len(way) - 1, MOST_STATES)})
    return [*(way[place] for place in chosen), *controls]


def draw_narrow(states: RunStates) -> Figure | None:
    """The decision map of one set for a phone: two maps a row."""
    found = states.look_alikes
    if found is None or not (sets := triples(found)):
        return None
    with style.figure_style():
        figure = style.new_figure(6.1, 5.0 * -(-len(shown_keys(found)[0]) // 2))
        _maps(figure, states, sets[0], columns=2)
    return figure


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
            f"in their own sector, with its 95 % interval. Below: {fitted.projection.note} of probabilities; rings: "
            "where an image would lie that is surely of this class; figures measured in the probabilities."
        )
        panels.write_around(figure, under=under)
    return figure


def hills_of(found: LookAlikes, classes: Sequence[str], pair: tuple[int, int]) -> dict[str, dict[str, Hills]]:
    """Columns of the pair hills: the tracked method at all its states, the others and the control at their ends."""
    columns: dict[str, dict[str, Hills]] = {}

    def margins(key: str) -> Hills:
        return pair_margins(*found.judged(key, classes), pair)

    start = {NAMES: margins(found.last(BEFORE))} if BEFORE in found.methods else {}
    for method in found.methods:
        if method == BEFORE or (method.startswith(CONTROL) and method != f"{CONTROL}0"):
            continue
        keys = found.keys(method)
        title = f"Control: labels shuffled ({found.step_of(keys[-1])} steps)"
        title = title if method.startswith(CONTROL) else title_of(method)
        way = {f"step {found.step_of(key)}": margins(key) for key in keys[:-1]}
        columns[title] = {**start, **way, END: margins(keys[-1])}
    return columns


def draw_pair_hills(states: RunStates) -> Figure | None:
    """The hills of the two classes that names tell apart least."""
    found = states.look_alikes
    if found is None:
        return None
    classes, pair = hardest_pair(found)
    columns = hills_of(found, classes, pair)
    steps = [f"step {found.step_of(key)}" for key in found.keys(found.tracked)[:-1]]
    rows = [name for name in (NAMES, *steps, END) if any(name in ridges for ridges in columns.values())]
    rows = list(dict.fromkeys([*rows[:-1], *(name for ridges in columns.values() for name in ridges), END]))
    rows = [name for name in rows if name != END] + [END]
    controls = [name for name in columns if name.startswith("Control")]
    return pair_hills(columns, (classes[pair[0]], classes[pair[1]]), looks_of(states), controls, rows)


def draw_prompts_and_images(states: RunStates, step: int | None = None) -> Figure | None:
    """Cosines of the prompts of the set that names tell apart least, beside the shares of its images."""
    found = states.look_alikes
    if found is None:
        return None
    classes, _ = hardest_pair(found)
    column = 1 + found.sets.index(list(classes))
    curves, shuffles, shares = {}, [], {}
    for method, values in found.similarities.items():
        if method.startswith(CONTROL):
            shuffles.append((values[:, 0], values[:, column]))
            continue
        start = OBJECTIVES[method].facts.get("starts_from") if method in OBJECTIVES else None
        ended = found.similarities[start][-1, 0] if start in found.similarities else 0
        curves[title_of(method)] = (values[:, 0] + ended, values[:, column])
    for method in found.methods:
        if method == BEFORE or (method.startswith(CONTROL) and method != f"{CONTROL}0"):
            continue
        keys, points = found.keys(method), []
        start = OBJECTIVES[method].facts.get("starts_from") if method in OBJECTIVES else None
        ended = int(found.similarities[start][-1, 0]) if start in found.similarities else 0
        begin = [found.last(BEFORE)] if BEFORE in found.methods and not ended else []
        for key in [*begin, *keys]:
            right = share_in_own_sector(*found.judged(key, classes))
            points.append(((found.step_of(key) or 0) + ended, right.value, right.low, right.high))
        shares["Shuffled labels" if method.startswith(CONTROL) else title_of(method)] = points
    title = f"{', '.join(classes[:-1])} and {classes[-1]}"
    return prompts_and_images(curves, shares, shuffles, 1 / len(classes), step, title)


Pages = Iterator[tuple[Figure, str]]


def moving_pictures(states: RunStates, method: str = "umap") -> dict[str, tuple[str, str, Pages]]:
    """Name of a picture that moves to its title, its alt text, and its pages, drawn when they are asked for."""
    found = states.look_alikes
    if found is None:
        return {}
    keys = [*([found.last(BEFORE)] if BEFORE in found.methods else []), *found.keys(found.tracked)]
    if len(keys) < 2:
        return {}
    pictures: dict[str, tuple[str, str, Pages]] = {}
    for classes in triples(found)[:1]:
        alt = f"Decision map of {', '.join(classes)} down the training steps, beside shuffled labels."
        pictures["decision_map"] = ("The decision map through training", alt, _map_pages(states, classes, keys))
    classes, pair = hardest_pair(found)
    alt = f"Two hills of {classes[pair[0]]} and {classes[pair[1]]} down the training steps."
    pictures["pair_hills"] = ("A pair through training", alt, _hill_pages(states, keys))
    alt = "Cosine of the prompts and share of the images in their own sector, with a line at each training step."
    pictures["prompts_and_images"] = ("Prompts part; do the images follow?", alt, _line_pages(states, keys))
    if scored := run_score_map(states, method):
        alt = "Map of the probabilities of the test images, which move towards the places of their classes."
        pictures["score_map"] = ("What the classifier reads, through training", alt, _score_pages(states, *scored))
    return pictures


def draw_map_at(states: RunStates, classes: Sequence[str], key: str) -> Figure:
    """The decision map of one state beside class names and the control, on the scale of all states."""
    found = states.look_alikes
    assert found is not None
    _, controls = shown_keys(found)
    shown = {caption_of(found, one): found.judged(one, classes) for one in (key, *controls)}
    way = [found.judged(one, classes)[0] for one in [*found.keys(found.tracked), *controls]]
    names = [caption_of(found, one) for one in controls]
    with style.figure_style():
        figure = style.new_figure(8.4, 6.2)
        decision_row(
            figure, shown, classes, looks_of(states), names, map_reach(way), False, exemplars_of(states, classes)
        )
    return figure


def _map_pages(states: RunStates, classes: Sequence[str], keys: Sequence[str]) -> Pages:
    for key in keys:
        assert states.look_alikes is not None
        yield draw_map_at(states, classes, key), caption_of(states.look_alikes, key)


def draw_hills_at(states: RunStates, key: str) -> Figure:
    """The hills of the hardest pair at one state, beside those of the control."""
    found = states.look_alikes
    assert found is not None
    classes, pair = hardest_pair(found)
    _, controls = shown_keys(found)
    columns = {
        caption_of(found, one): {"": pair_margins(*found.judged(one, classes), pair)} for one in (key, *controls)
    }
    names = classes[pair[0]], classes[pair[1]]
    return pair_hills(columns, names, looks_of(states), [caption_of(found, one) for one in controls])


def _hill_pages(states: RunStates, keys: Sequence[str]) -> Pages:
    for key in keys:
        assert states.look_alikes is not None
        yield draw_hills_at(states, key), caption_of(states.look_alikes, key)


def _line_pages(states: RunStates, keys: Sequence[str]) -> Pages:
    found = states.look_alikes
    assert found is not None
    for key in keys:
        figure = draw_prompts_and_images(states, found.step_of(key))
        assert figure is not None
        yield figure, caption_of(found, key)


def draw_score_at(states: RunStates, scored: ScoreMap, shown: Sequence[str], controls: Sequence[str]) -> Figure:
    """Some states of one score map side by side."""
    return score_strip(scored, list(shown), looks_of(states), controls)


def _score_pages(states: RunStates, scored: ScoreMap, controls: Sequence[str]) -> Pages:
    for name in scored.probabilities:
        if name not in controls:
            yield draw_score_at(states, scored, [name, *controls], controls), name
