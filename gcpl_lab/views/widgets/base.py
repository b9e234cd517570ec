"""What every view shares: a picture with words under it, a place for errors, and a PNG for pages without a kernel."""

from __future__ import annotations

import base64
import html
import io
import threading
import traceback
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import ipywidgets

from gcpl_lab.errors import LabError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 96
KEPT_PICTURES = 64
"""Drawn states that a view keeps, so that going back with a slider costs nothing."""

MOST_BUTTONS = 4
"""Options that are shown all at once; a slider goes through more."""

LABEL_WIDTH = {"description_width": "8em"}
WIDE = {"width": "32em"}


def png_of(figure: Figure) -> bytes:
    """A figure as PNG bytes; nothing of it is kept, and pyplot never knew it."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return stream.getvalue()


class View(ipywidgets.VBox):
    """A picture, its words, and the controls that change it.

    A view offers two functions of the controls' values: one draws, the other says in a sentence what there is to
    see, for people and screen readers alike. Controls wait until a slider is let go (``continuous_update=False``),
    and Jupyter merges what comes in while one state is being drawn.

    Attributes:
        picture: The present PNG.
        words: The line under it.
        sentence: What that line says.
        error: The last exception of a callback, None when all went well since.
    """

    def __init__(self, controls: list[Any], title: str | None = None) -> None:
        """Arrange the parts.

        Args:
            controls: Widgets over the picture, in the order in which Tab reaches them.
            title: What the view is, over the controls.
        """
        # As large as it was drawn, and smaller where the page is narrower: a box would stretch it to its own width.
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"})
        self.words, self.sentence = ipywidgets.HTML(), type(self).__name__
        self.problem = ipywidgets.HTML()
        self.error: Exception | None = None
        self._drawn: dict[Hashable, tuple[bytes, str]] = {}
        self._turn = threading.RLock()  # callbacks may come from more than one thread
        heading = [ipywidgets.HTML(f"<b>{html.escape(title)}</b>")] if title else []
        super().__init__([*heading, *controls, self.problem, self.picture, self.words])

    def show(self, key: Hashable, draw: Callable[[], Figure], say: Callable[[], str]) -> None:
        """Put a state's picture and words in place, drawn now or kept from before.

        Args:
            key: Tells the states apart.
            draw: Makes the figure, not one of pyplot's.
            say: Makes the sentence.
        """
        if key not in self._drawn:
            while len(self._drawn) >= KEPT_PICTURES:
                self._drawn.pop(next(iter(self._drawn)))
            self._drawn[key] = png_of(draw()), say()
        png, sentence = self._drawn[key]
        self.picture.value = png
        self.sentence = sentence
        self.words.value = f'<span role="status">{html.escape(sentence)}</span>'

    def guarded(self, callback: Callable[[], None]) -> Callable[..., None]:
        """A callback for ``observe`` or ``on_click`` whose errors appear in the view.

        Args:
            callback: Without arguments; it reads the controls itself.
        """

        def run(*_: Any) -> None:
            with self._turn:
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
        lines = [html.escape(str(error) or type(error).__name__)]
        if not isinstance(error, LabError):
            trace = html.escape("".join(traceback.format_exception(error)))
            lines = [
                f"{type(error).__name__}: {lines[0]}",
                "The view stands as it was before. Set the control back, or run the cell again; if it comes back, "
                "report it with these lines: "
                f"<details><summary>where it happened</summary><pre>{trace}</pre></details>",
            ]
        style = "border-left:4px solid #B00020;padding:4px 8px;color:#B00020;line-height:1.4"
        self.problem.value = f'<div role="alert" style="{style}">{"<br>".join(lines)}</div>'

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and beside it the present picture for readers that have no kernel."""
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options) or {}
        bundle["text/plain"] = self.sentence
        if self.picture.value:
            bundle["image/png"] = base64.b64encode(self.picture.value).decode()
        return bundle


def slider(description: str, value: int, least: int, most: int, tooltip: str, step: int = 1) -> Any:
    """A whole-number slider that reports when it is let go; arrow keys move it by one step."""
    return ipywidgets.IntSlider(
        value=value,
        min=least,
        max=most,
        step=step,
        description=description,
        tooltip=tooltip,
        continuous_update=False,
        style=LABEL_WIDTH,
        layout=WIDE,
    )


def selector(description: str, options: Any, value: Any, tooltip: str, values: list[Any] | None = None) -> Any:
    """A choice: buttons for a few options, a slider for more.

    A drop-down list would not do: JupyterLab takes the arrow keys from it, to go from cell to cell.
    """
    pairs = list(zip(options, values, strict=True)) if values is not None else list(options)
    settings = {"options": pairs, "value": value, "description": description, "tooltip": tooltip}
    if len(pairs) > MOST_BUTTONS:
        return ipywidgets.SelectionSlider(**settings, continuous_update=False, style=LABEL_WIDTH, layout=WIDE)
    buttons = ipywidgets.ToggleButtons(**settings, style={**LABEL_WIDTH, "button_width": "auto"})
    buttons.add_class("widget-inline-hbox")  # its description beside it, as other controls have theirs
    return buttons
