"""A moving picture on a slider, with a play button; a page without a kernel has the strip of its states."""

from __future__ import annotations

import base64
import io
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from gcpl_lab.views import style
from gcpl_lab.views.moving import Moving
from gcpl_lab.views.widgets.base import View, selector

INTERVAL = 900
"""Milliseconds that a state stays while it plays."""


class Player(View):
    """States on a slider: arrow keys go from one to the next, the play button through all of them.

    ``moving`` is of a function of :mod:`gcpl_lab.views.moving`, such as ``moving_maps``.
    """

    def __init__(self, moving: Moving) -> None:
        self._moving = moving
        tip = "arrow keys go from one recorded state to the next"
        self.step = selector("state", moving.states, moving.states[0], tip, most_buttons=0)
        tip = "play, stop, and from the start"
        self.play = ipywidgets.Play(min=0, max=len(moving.states) - 1, interval=INTERVAL, tooltip=tip)
        self.play.observe(self.guarded(self._turn), "value")
        super().__init__(moving.title, [self.step], [self.play])

    def _turn(self) -> None:
        self.step.index = self.play.value

    def _draw(self) -> tuple[Figure, str]:
        return self._moving.draw(self.step.value), self._moving.say(self.step.value)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and beside it the strip of all states."""
        stream = io.BytesIO()
        with style.figure_style():
            self._moving.strip().savefig(stream, format="png", dpi=96, metadata={"Software": None})
        strip = base64.b64encode(stream.getvalue()).decode()
        return {**super()._repr_mimebundle_(**options), "image/png": strip}
