"""What every widget shares: its controls, a figure with a sentence under it, a place for errors, and a static PNG."""

from __future__ import annotations

import base64
import html
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from gcpl_lab.errors import DataError, LabError
from gcpl_lab.views import style
from gcpl_lab.views.plots import figure_files

KEPT_FIGURES = 64  # drawn states that a widget keeps, so that going back with a slider costs nothing
LABEL = {"description_width": "8em"}
ERROR_STYLE = "border-left:4px solid #B00020;padding:4px 8px;color:#B00020;line-height:1.4"
WAY_OUT = "The state before is shown. Set the control back, or run the cell again; if this comes back, report it:"


class Panel(ipywidgets.VBox):
    """Controls under a title, a ``status`` line, and a place for the errors of callbacks.

    ``error`` is the last exception of a callback, None when all went well since.
    """

    def __init__(self, title: str, parts: Sequence[Any] = (), below: Sequence[Any] = ()) -> None:
        """Arrange the parts in the order of Tab; ``below`` stands under the place for errors."""
        self.status, self.problem = ipywidgets.HTML(), ipywidgets.HTML()
        self.error: Exception | None = None
        self._in_use = threading.RLock()  # callbacks may come from more than one thread
        super().__init__([ipywidgets.HTML(f"<b>{html.escape(title)}</b>"), *parts, self.problem, *below, self.status])

    def say(self, sentence: str) -> None:
        """Put a sentence on the status line, which screen readers read out."""
        self.status.value = f'<span role="status">{html.escape(sentence)}</span>'

    def guarded(self, callback: Callable[[], None]) -> Callable[..., None]:
        """A callback for ``observe`` or ``on_click`` whose errors appear in the widget."""

        def run(*_: Any) -> None:
            with self._in_use:
                try:
                    callback()
                except Exception as error:  # whatever it is: a widget has no cell to raise it in
                    self.report(error)
                else:
                    self.report(None)

        return run

    def report(self, error: Exception | None) -> None:
        """Show an error with the way out, or clear the place where it stood."""
        self.error = error
        if error is None:
            self.problem.value = ""
            return
        text = html.escape(str(error) or type(error).__name__)
        if not isinstance(error, LabError):
            trace = html.escape("".join(traceback.format_exception(error)))
            where = f"<details><summary>where it happened</summary><pre>{trace}</pre></details>"
            text = f"{type(error).__name__}: {text}<br>{WAY_OUT} {where}"
        self.problem.value = f'<div role="alert" style="{ERROR_STYLE}">{text}</div>'

    def button(self, description: str, icon: str, tooltip: str, act: Callable[[], None], look: str = "") -> Any:
        """A button whose errors appear in the widget."""
        made = ipywidgets.Button(description=description, icon=icon, tooltip=tooltip, button_style=look)
        made.on_click(self.guarded(act))
        return made


class View(Panel):
    """A figure (``png``), a ``sentence`` about it, and the controls that change it.

    A widget keeps its data, hands its controls to ``__init__`` and implements ``_draw``. Controls wait until a slider
    is let go, and Jupyter merges what comes in while one state is being drawn.
    """

    def __init__(self, title: str, inputs: Sequence[Any] = (), others: Sequence[Any] = ()) -> None:
        """Arrange the parts in the order of Tab, and draw; ``inputs`` are controls that the figure depends on."""
        # As large as it was drawn, and smaller where the page is narrower: a box would stretch it to its own width.
        self.png = ipywidgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"})
        self.sentence = type(self).__name__
        self._inputs = inputs
        self._drawn: dict[tuple[Any, ...], tuple[bytes, str]] = {}
        super().__init__(title, [*inputs, *others], [self.png])
        for control in inputs:
            control.observe(self.guarded(self.redraw), "value")
        self.redraw()

    def _state(self) -> tuple[Any, ...]:
        return tuple(control.value for control in self._inputs)

    def _draw(self) -> tuple[Figure, str]:
        """The present state's figure, drawn within ``figure_style``, and what there is to see, for screen readers."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Show the present state, drawn now or kept from before."""
        state = self._state()
        if state not in self._drawn:
            with style.figure_style():
                figure, sentence = self._draw()
            while len(self._drawn) >= KEPT_FIGURES:
                self._drawn.pop(next(iter(self._drawn)))
            self._drawn[state] = figure_files(figure, ["png"], 96)["png"], sentence
        self.png.value, self.sentence = self._drawn[state]
        self.say(self.sentence)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and beside it the present figure for readers that have no kernel."""
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options) or {}
        static = base64.b64encode(self.png.value).decode()
        return {**bundle, "text/plain": self.sentence, "image/png": static}


def _control(kind: Any, description: str, value: Any, tooltip: str, width: str = "32em", **settings: Any) -> Any:
    """A labelled control that reports its value when it is let go or Enter is pressed."""
    look = {"continuous_update": False, "style": LABEL, "layout": {"width": width}}
    return kind(description=description, value=value, tooltip=tooltip, **look, **settings)


def slider(description: str, value: float, least: float, most: float, tooltip: str, step: float = 1) -> Any:
    """A slider of whole numbers, or of fractions where ``step`` is one; arrow keys move it by one step."""
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    return _control(kind, description, value, tooltip, min=least, max=most, step=step)


def selector(description: str, options: Sequence[Any], value: Any, tooltip: str, most_buttons: int = 4) -> Any:
    """A choice of values, or of pairs of name and value: buttons for a few, a slider for more.

    A drop-down list would not do: JupyterLab takes the arrow keys from it, to go from cell to cell.
    """
    if len(options) > most_buttons:
        return _control(ipywidgets.SelectionSlider, description, value, tooltip, options=options)
    look = {"style": {**LABEL, "button_width": "auto"}, "tooltip": tooltip}
    buttons = ipywidgets.ToggleButtons(description=description, options=options, value=value, **look)
    buttons.add_class("widget-inline-hbox")  # its description beside it, as other controls have theirs
    return buttons


def text_box(description: str, tooltip: str, placeholder: str, value: str = "", **settings: Any) -> Any:
    """A line of text; ``options`` among the settings can be chosen while typing."""
    kind = ipywidgets.Combobox if "options" in settings else ipywidgets.Text
    return _control(kind, description, value, tooltip, placeholder=placeholder, **settings)


def check_lengths(expected: int, each: str, **entries: Any) -> None:
    """Refuse with a DataError a list that has not one entry for each image or class; None is left out."""
    for name, values in entries.items():
        if values is not None and len(values) != expected:
            raise DataError(f"{name} has {len(values)} entries; expected {expected}, one for each {each}")
