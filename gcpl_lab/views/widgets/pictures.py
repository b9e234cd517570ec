"""The pictures of look-alikes on a slider of training steps, with a play button; a page without a kernel has the strip.

Everywhere a state is a name, such as "class names" or "step 8", in the order in which it is played.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.look_alikes import pair_statistics, share_in_own_sector
from gcpl_lab.views import style
from gcpl_lab.views.caption_hills import CaptionDistances, caption_hills
from gcpl_lab.views.decision_map import decision_maps, decision_row, map_reach, say_share
from gcpl_lab.views.pair_hills import Hills, pair_hills
from gcpl_lab.views.panels import Looks
from gcpl_lab.views.plots import Curves
from gcpl_lab.views.prompts_and_images import Shares, prompts_and_images
from gcpl_lab.views.score_strip import ScoreMap, score_strip
from gcpl_lab.views.style import Names
from gcpl_lab.views.widgets.base import View, selector

INTERVAL = 900  # milliseconds that a state stays while it plays


class Player(View):
    """States on a slider: arrow keys go from one to the next, the play button through all of them.

    Args:
        title: Over the controls.
        states: Two or more names.
        draw: The figure of a state, within ``figure_style``.
        say: A sentence about it, for screen readers and for under the figure.
        strip: All states in one figure, for readers without a kernel.
    """

    def __init__(
        self,
        title: str,
        states: Sequence[str],
        draw: Callable[[str], Figure],
        say: Callable[[str], str],
        strip: Callable[[], Figure],
    ) -> None:
        if len(states) < 2:
            raise DataError(f"states are {list(states)}; expected two or more to go through")
        self._draw_state, self._say, self._strip = draw, say, strip
        tip = "arrow keys go from one recorded state to the next"
        self.step = selector("state", list(states), states[0], tip, most_buttons=0)
        tip = "play, stop, and from the start"
        self.play = ipywidgets.Play(min=0, max=len(states) - 1, interval=INTERVAL, tooltip=tip)
        self.play.observe(self.guarded(self._turn), "value")
        super().__init__(title, [self.step], [self.play])

    def _turn(self) -> None:
        self.step.index = self.play.value

    def _draw(self) -> tuple[Figure, str]:
        return self._draw_state(self.step.value), self._say(self.step.value)

    def static(self) -> bytes:
        """The strip of all states as PNG."""
        stream = io.BytesIO()
        with style.figure_style():
            self._strip().savefig(stream, format="png", dpi=96, metadata={"Software": None})
        return stream.getvalue()

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and beside it the strip."""
        return {**super()._repr_mimebundle_(**options), "image/png": base64.b64encode(self.static()).decode()}


class DecisionMapPlayer(Player):
    """The decision map of three classes at each state, beside the controls, all on one scale.

    ``states`` and ``controls`` map names to scores (image, 3); ``labels`` (image,) are places in ``class_names``.
    """

    def __init__(
        self,
        states: Mapping[str, np.ndarray],
        labels: np.ndarray,
        class_names: Names,
        controls: Mapping[str, np.ndarray] | None = None,
        looks: Looks | None = None,
        thumbnails: Sequence[Any] | None = None,
    ) -> None:
        beside = dict(controls or {})
        reach = map_reach([*states.values(), *beside.values()])

        def draw(state: str) -> Figure:
            figure = style.new_figure(4.4 * (1 + len(beside)), 5.8)
            shown = {name: (scores, labels) for name, scores in ({state: states[state]} | beside).items()}
            decision_row(figure, shown, class_names, looks, tuple(beside), reach, False, thumbnails)
            return figure

        def say(state: str) -> str:
            found = share_in_own_sector(states[state], labels)
            return f"{state}: {' ('.join(say_share(found, len(labels)))}) lie in the sector of their own class."

        def strip() -> Figure:
            return decision_maps({**states, **beside}, labels, class_names, looks, tuple(beside), False, thumbnails)

        super().__init__("The decision map through training", list(states), draw, say, strip)


class PairHillsPlayer(Player):
    """The hills of two classes at each state, beside the controls: ``states`` and ``controls`` map names to margins."""

    def __init__(
        self,
        states: Mapping[str, Hills],
        pair: tuple[str, str],
        controls: Mapping[str, Hills] | None = None,
        looks: Looks | None = None,
    ) -> None:
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

        super().__init__("A pair through training", list(states), draw, say, strip)


class PromptsAndImagesPlayer(Player):
    """Cosines of prompts beside accuracy on held-out images, with one line at a training step through both."""

    def __init__(
        self,
        curves: Curves,
        shares: Shares,
        shuffles: Sequence[tuple[np.ndarray, np.ndarray]] = (),
        chance: float | None = None,
    ) -> None:
        steps = sorted({int(step) for points in shares.values() for step, *_ in points})

        def draw(state: str) -> Figure:
            return prompts_and_images(curves, shares, shuffles, chance, int(state))

        def say(state: str) -> str:
            step = int(state)
            cosines = [f"{name} {float(np.interp(step, x, y)):.2f}" for name, (x, y) in curves.items()]
            right = [f"{name} {p[1]:.0%}" for name, points in shares.items() for p in points if p[0] == step]
            return f"Step {step}: cosine of the prompts {', '.join(cosines)}; in their own sector {', '.join(right)}."

        def strip() -> Figure:
            return prompts_and_images(curves, shares, shuffles, chance)

        super().__init__("Prompts part; do the images follow?", [str(step) for step in steps], draw, say, strip)


class ScoreMapPlayer(Player):
    """One fitted map of the probabilities at each of its states, beside those that are ``controls``."""

    def __init__(self, found: ScoreMap, controls: Collection[str] = (), looks: Looks | None = None) -> None:
        beside = [name for name in found.probabilities if name in controls]

        def draw(state: str) -> Figure:
            return score_strip(found, [state, *beside], looks, controls)

        def say(state: str) -> str:
            return f"{state}: {'; '.join(found.describe(state))}."

        way = [name for name in found.probabilities if name not in controls]
        super().__init__("What the classifier reads", way, draw, say, lambda: score_strip(found, None, looks, controls))


class CaptionHillsPlayer(Player):
    """What captions pull, epoch by epoch: ``epochs`` map names to the columns of ``caption_hills``."""

    def __init__(
        self, epochs: Mapping[str, Mapping[str, Mapping[str, CaptionDistances]]], controls: Collection[str] = ()
    ) -> None:
        def draw(state: str) -> Figure:
            return caption_hills(epochs[state], controls=controls)

        def say(state: str) -> str:
            parts = []
            for way, ridges in epochs[state].items():
                found = [pair_statistics(ridge.absent, ridge.present).auc.value for ridge in ridges.values()]
                parts.append(f"{way} AUC {', '.join(f'{value:.2f}' for value in found)}")
            return f"{state}: {'; '.join(parts)}."

        def strip() -> Figure:
            ends, whole = (next(iter(epochs)), list(epochs)[-1]), dict[str, dict[str, CaptionDistances]]()
            for state in ends:
                for way, ridges in epochs[state].items():
                    whole.setdefault(way, {}).update({f"{name}\n{state}": ridge for name, ridge in ridges.items()})
            return caption_hills(whole, controls=controls)

        super().__init__("What captions pull, epoch by epoch", list(epochs), draw, say, strip)
