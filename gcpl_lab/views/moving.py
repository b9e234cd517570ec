"""Pictures with a state for each training step: what a widget plays, an animation shows and a strip has side by side.

Everywhere a state is a name, such as "class names" or "step 8", in the order in which it is played.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.look_alikes import pair_statistics, share_in_own_sector
from gcpl_lab.views import plots, style
from gcpl_lab.views.decision_map import decision_row, map_reach, say_share
from gcpl_lab.views.hills import CaptionDistances, Hills, caption_hills, pair_hills
from gcpl_lab.views.multilabel import Rows, plot_class_precision
from gcpl_lab.views.panels import Looks
from gcpl_lab.views.plots import Curves, Shares, plot_held_out, plot_prompt_cosines
from gcpl_lab.views.projection import project
from gcpl_lab.views.score_strip import ScoreMap, score_strip
from gcpl_lab.views.style import Families, Names

Judged = tuple[np.ndarray, np.ndarray]
"""Scores (image, class) of some images, and their labels (image,)."""


@dataclass(frozen=True)
class Moving:
    """A picture of two states or more."""

    title: str
    states: list[str]
    draw: Callable[[str], Figure]  # one state, within figure_style
    say: Callable[[str], str]  # a sentence about it, for screen readers and for under the figure
    strip: Callable[[], Figure]  # all states in one figure, within figure_style
    alt: str  # what the whole shows

    def __post_init__(self) -> None:
        if len(self.states) < 2:
            raise DataError(f"states are {self.states}; expected two or more to go through")

    def pages(self) -> Iterator[tuple[Figure, str]]:
        """A figure and a sentence for each state, drawn when they are asked for."""
        for state in self.states:
            with style.figure_style():
                yield self.draw(state), self.say(state)


def moving_maps(
    states: Mapping[str, Judged],
    class_names: Names,
    controls: Mapping[str, Judged] | None = None,
    looks: Looks | None = None,
    thumbnails: Sequence[Any] | None = None,
) -> Moving:
    """The decision map of three classes at each state, beside the controls, all on one scale."""
    beside = dict(controls or {})
    reach = map_reach([scores for scores, _ in [*states.values(), *beside.values()]])

    def row(shown: Mapping[str, Judged], width: float) -> Figure:
        figure = style.new_figure(width * (len(shown) + len(beside)), 2.2 + 1.05 * width)
        decision_row(figure, {**shown, **beside}, class_names, looks, tuple(beside), reach, False, thumbnails)
        return figure

    def say(state: str) -> str:
        found = share_in_own_sector(*states[state])
        return f"{state}: {' ('.join(say_share(found, len(states[state][1])))}) lie in the sector of their own class."

    title, alt = "The decision map through training", f"Decision map of {', '.join(class_names)} at each training step."
    return Moving(title, list(states), lambda state: row({state: states[state]}, 4.2), say, lambda: row(states, 3), alt)


def moving_hills(
    states: Mapping[str, Hills],
    pair: tuple[str, str],
    controls: Mapping[str, Hills] | None = None,
    looks: Looks | None = None,
) -> Moving:
    """The hills of two classes at each state, beside the controls."""
    beside = {name: {"": hills} for name, hills in (controls or {}).items()}

    def draw(state: str) -> Figure:
        return pair_hills({state: {"": states[state]}, **beside}, pair, looks, tuple(beside))

    def say(state: str) -> str:
        found = pair_statistics(*states[state])
        auc = f"AUC {found.auc.value:.2f} ({found.auc.low:.2f} to {found.auc.high:.2f})"
        return f"{state}: the hills of {pair[0]} and {pair[1]} lie d′ {found.d_prime:.1f} apart, {auc}."

    def strip() -> Figure:
        ends = {name: {list(states)[-1]: ridges[""]} for name, ridges in beside.items()}
        return pair_hills({"through training": dict(states), **ends}, pair, looks, tuple(beside))

    alt = f"Two hills of {pair[0]} and {pair[1]} at each training step."
    return Moving("A pair through training", list(states), draw, say, strip, alt)


def moving_lines(
    curves: Curves,
    shares: Shares,
    shuffles: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    chance: float | None = None,
    title: str | None = None,
) -> Moving:
    """Cosines of prompts beside accuracy on held-out images, with one line at a training step through both."""
    steps = sorted({int(step) for points in shares.values() for step, *_ in points})

    def draw(state: str | None) -> Figure:
        figure = style.new_figure(14.5, 5.6)
        left, right = figure.subplots(1, 2)
        figure.suptitle(style.wrap_lines(title or "", 13, style.font_size() * 1.3), weight="bold")
        plot_prompt_cosines(left, curves, shuffles)
        plot_held_out(right, shares, chance)
        for ax in (left, right):
            if state is not None:
                ax.axvline(int(state), color=style.INK, linewidth=1.4, linestyle=(0, (4, 3)), zorder=0)
        return figure

    def say(state: str) -> str:
        step = int(state)
        cosines = [f"{name} {float(np.interp(step, x, y)):.2f}" for name, (x, y) in curves.items()]
        right = [f"{name} {p[1]:.0%}" for name, points in shares.items() for p in points if p[0] == step]
        return f"Step {step}: cosine of the prompts {', '.join(cosines)}; in their own sector {', '.join(right)}."

    alt = "Cosine of the prompts and share of the images in their own sector, with a line at each training step."
    names = [str(step) for step in steps]
    return Moving("Prompts part; do the images follow?", names, draw, say, lambda: draw(None), alt)


def moving_scores(found: ScoreMap, controls: Collection[str] = (), looks: Looks | None = None) -> Moving:
    """One fitted map of the probabilities at each of its states, beside those that are ``controls``."""
    beside, way = ([name for name in found.probabilities if (name in controls) is wanted] for wanted in (True, False))

    def draw(state: str) -> Figure:
        return score_strip(found, [state, *beside], looks, controls)

    def say(state: str) -> str:
        return f"{state}: {'; '.join(found.describe(state))}."

    alt = "Map of the probabilities of the test images, which move towards the places of their classes."
    whole = partial(score_strip, found, [*way, *beside], looks, controls)
    return Moving("What the classifier reads", way, draw, say, whole, alt)


def moving_captions(
    epochs: Mapping[str, Mapping[str, Mapping[str, CaptionDistances]]], controls: Collection[str] = ()
) -> Moving:
    """What captions pull, epoch by epoch: ``epochs`` map names to the columns of ``caption_hills``."""

    def say(state: str) -> str:
        parts = []
        for way, ridges in epochs[state].items():
            found = [pair_statistics(ridge.absent, ridge.present).auc.value for ridge in ridges.values()]
            parts.append(f"{way} AUC {', '.join(f'{value:.2f}' for value in found)}")
        return f"{state}: {'; '.join(parts)}."

    def strip() -> Figure:
        whole: dict[str, dict[str, CaptionDistances]] = {}
        for state in (next(iter(epochs)), list(epochs)[-1]):
            for way, ridges in epochs[state].items():
                whole.setdefault(way, {}).update({f"{name}\n{state}": ridge for name, ridge in ridges.items()})
        return caption_hills(whole, controls=controls)

    def draw(state: str) -> Figure:
        return caption_hills(epochs[state], controls=controls)

    alt = "Hills of the distances of captions to class prompts, epoch by epoch."
    return Moving("What captions pull, epoch by epoch", list(epochs), draw, say, strip, alt)


def moving_precision(steps: Mapping[str, Rows], beside: Mapping[str, Rows]) -> Moving:
    """Average precision of every label at each state, beside what does not move; see ``plot_class_precision``."""

    def draw(shown: Mapping[str, Rows]) -> Figure:
        figure = style.new_figure(11, 2 + 0.42 * len(next(iter(steps.values()))))
        plot_class_precision(figure.subplots(), {**beside, **shown}, {})
        return figure

    def say(state: str) -> str:
        known = [row["average_precision"] for row in steps[state] if row["average_precision"] is not None]
        return f"After {state}: mean average precision {np.mean(known):.1%} over {len(known)} labels."

    first, last = next(iter(steps)), list(steps)[-1]
    alt = "Average precision of every label after so many updates."
    ends = {first: steps[first], last: steps[last]}
    title = "What each label's prompt finds, update by update"
    return Moving(
        title, list(steps), lambda state: draw({"learned prompts": steps[state]}), say, lambda: draw(ends), alt
    )


def moving_tokens(vectors: Mapping[int, Any], class_names: Names, families: Families = None) -> Moving:
    """Where the class tokens stood at each recorded step, on the first two principal components of all steps.

    ``vectors`` are training steps to (class, V, dim), such as ``GCPLClassifier.states_``.
    """
    steps = sorted(vectors)
    whole = np.stack([np.asarray(vectors[step], dtype=np.float64) for step in steps]) if steps else np.empty((0, 0))
    if len(steps) < 2:
        raise DataError(f"states has {len(steps)} steps; expected 2 or more: train first")
    if whole.shape[1] != len(class_names):
        found, expected = whole.shape[1], f"{len(class_names)}, one row for each class"
        raise DataError(f"states have {found} rows; expected {expected}")
    whole = whole.reshape(*whole.shape[:2], -1)
    flat = project(whole.reshape(-1, whole.shape[2]), method="pca")
    paths, moved = flat.points["all"].reshape(*whole.shape[:2], 2), np.linalg.norm(whole - whole[0], axis=2)

    def draw(state: str) -> Figure:
        figure = style.new_figure(11, 7.4)
        plots.plot_token_journey(figure.subplots(), paths, steps, class_names, families, steps.index(int(state)))
        return figure

    def say(state: str) -> str:
        far = moved[steps.index(int(state))]
        farthest = f"{class_names[int(far.argmax())]} farthest ({far.max():.2f}), measured in the original space"
        return f"Step {state} of {steps[-1]}: the tokens have moved {far.mean():.2f} on average, {farthest}."

    alt, names = "Paths of the learned class tokens on their first two principal components.", list(map(str, steps))
    return Moving("The class tokens during training", names, draw, say, lambda: draw(names[-1]), alt)
