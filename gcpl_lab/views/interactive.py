"""Maps in motion and under the mouse: GIF, a book of pages to turn by hand, and a hover map, each one file.

Example:
    >>> frames = frames_of(moving_tokens(model.states_, class_names).pages())
    >>> write_flip_book("runs/demo/journey.html", frames, title="The way of the class tokens", alt="Tokens part.")
"""

from __future__ import annotations

import base64
import html
import io
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.embed import file_html
from bokeh.layouts import column, row
from bokeh.models import Button, ColumnDataSource, CustomJS, Div, HoverTool, Legend, LegendItem
from bokeh.plotting import figure as bokeh_figure
from bokeh.resources import INLINE
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from gcpl_lab.data.readers import read_image
from gcpl_lab.errors import DataError
from gcpl_lab.storage import write_atomically, write_text
from gcpl_lab.views import panels, style
from gcpl_lab.views.projection import Projection
from gcpl_lab.views.style import Families, Names

THUMBNAIL = 96
"""Pixels of the longer side, as stored in a hover map."""

_ALIKE = "circle square triangle diamond inverted_triangle plus square_x star hex diamond_cross circle_cross".split()
BOKEH_MARKERS = dict(zip(style.MARKERS, _ALIKE, strict=True))
"""The nearest of bokeh's markers for each of ``style.MARKERS``, all different."""

Answers = Mapping[str, Sequence[Any] | np.ndarray]
"""State to its values, (point,)."""


def _address(image: Image.Image) -> str:
    """The image as an address that a page can hold in itself."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


@dataclass(frozen=True)
class Frame:
    """One page: an RGB image, of one size in the whole book, and a caption, which screen readers read out."""

    picture: Image.Image
    caption: str


def frames_of(pages: Iterable[tuple[Figure, str]], width: int = 1280) -> list[Frame]:
    """One page a figure with its caption, ``width`` pixels wide; figures of one size make pages of one size."""
    frames = []
    for figure, caption in pages:
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=width / figure.get_figwidth())
        frames.append(Frame(Image.open(stream).convert("RGB"), caption))
    return frames


def _check_frames(frames: Sequence[Frame]) -> None:
    sizes = {frame.picture.size for frame in frames}
    if len(frames) < 2 or len(sizes) != 1:
        raise DataError(f"{len(frames)} frames of the sizes {sorted(sizes)}; expected 2 or more of one size")


def write_gif(path: str | Path, frames: Sequence[Frame]) -> Path:
    """Write an endless GIF; the first and the last page stay for 2 s, each other one for 0.35 s."""
    _check_frames(frames)
    # One palette for all pages: colours of classes must not flicker. The last page has every colour.
    palette = frames[-1].picture.quantize(colors=255)
    pages = [frame.picture.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    milliseconds = [2000, *[350] * (len(pages) - 2), 2000]
    comment = "; ".join((frames[0].caption, frames[-1].caption)).encode("ascii", "replace")
    settings: dict[str, Any] = {"duration": milliseconds, "loop": 0, "optimize": False, "disposal": 1}
    settings |= {"format": "GIF", "save_all": True, "append_images": pages[1:], "comment": comment}
    return write_atomically(path, partial(pages[0].save, **settings))


def write_movie(path: str | Path, frames: Sequence[Frame], seconds: float = 0.8) -> list[Path]:
    """Write an MP4 with ffmpeg; no path where this machine has none."""
    _check_frames(frames)
    program = shutil.which("ffmpeg")
    if program is None:
        return []
    last = [frames[-1]] * 3  # the end stays for a while

    def write(target: Path) -> None:
        even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"  # the format of most players has no odd sizes
        options = ["-framerate", str(1 / seconds), "-i", "-", "-vf", even, "-pix_fmt", "yuv420p", "-f", "mp4"]
        stream = io.BytesIO()
        for frame in [*frames, *last]:
            frame.picture.save(stream, format="PNG")
        command = [program, "-loglevel", "error", "-y", "-f", "image2pipe", *options, str(target)]
        subprocess.run(command, input=stream.getvalue(), check=True, capture_output=True)

    return [write_atomically(path, write)]


def write_flip_book(path: str | Path, frames: Sequence[Frame], *, title: str, alt: str) -> Path:
    """Write a page that needs no server: a slider, buttons and keys turn the pages, which also play.

    Nothing moves before somebody asks for it. ``alt`` says what the whole shows and begins each page's description.
    """
    _check_frames(frames)
    if not alt.strip():
        raise DataError("the flip book has no alt text; say in a sentence what it shows")
    pages = [{"src": _address(page.picture.quantize(colors=255)), "caption": page.caption} for page in frames]
    width, height = frames[0].picture.size
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_asset("flip_book.html.j2"))
    return write_text(path, template.render(title=title, alt=alt, pages=pages, width=width, height=height))


def write_hover_map(
    path: str | Path,
    projection: Projection,
    labels: Sequence[int] | np.ndarray,
    class_names: Names,
    *,
    images: Sequence[Any] | None = None,
    predictions: Answers | None = None,
    probabilities: Answers | None = None,
    files: Sequence[str] | None = None,
    families: Families = None,
    truths: Sequence[str] | None = None,
    title: str = "Map of the images",
) -> Path:
    """Write a page with one map a state, side by side in the same window; details of a mark appear beside them.

    What is selected with the lasso can be saved as a list, which ``SampleReviewer.of_selection`` opens.

    Args:
        projection: Of all states together; each state has the same points in the same order.
        labels: (point,), integers that index ``class_names``.
        images: (point,), paths, PIL images or uint8 arrays.
        predictions: Integers, or texts, of each state.
        probabilities: Of the predicted class, 0 to 1; given with ``predictions``.
        files: (point,), how the images are called in a saved selection.
        truths: (point,), what is right in words, where the class of the mark is not all of it.
    """
    clouds, places = panels.check_clouds(projection.points, labels, class_names)
    for what, answers in (("predictions", predictions), ("probabilities", probabilities)):
        if answers is not None and set(answers) != set(clouds):
            raise DataError(f"{what} are of the states {sorted(answers)}; expected {sorted(clouds)}")
    looks, names = style.class_style(class_names, families), [class_names[label] for label in places]
    colors, markers = zip(*(looks[name] for name in names), strict=True)
    truths = names if truths is None else _column(truths, names, "truths")
    data: dict[str, Any] = {"label": truths, "color": colors, "marker": [BOKEH_MARKERS[marker] for marker in markers]}
    for turn, (state, points) in enumerate(clouds.items()):
        data[f"x{turn}"], data[f"y{turn}"] = points.T.tolist()
        if predictions is not None:
            guesses = _column(predictions[state], names, f"predictions of {state!r}")
            told = [guess if isinstance(guess, str) else class_names[guess] for guess in guesses]
            wrong = [guess != truth for guess, truth in zip(told, truths, strict=True)]
            data |= {f"prediction{turn}": told, f"ring{turn}": np.asarray(wrong, float).tolist()}
        if probabilities is not None:
            chances = _column(probabilities[state], names, f"probabilities of {state!r}")
            data[f"probability{turn}"] = [f"{float(chance):.1%}" for chance in chances]
    if images is not None:
        pictures = [read_image(image) for image in _column(images, names, "images")]
        for picture in pictures:
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
        data["picture"] = [_address(picture) for picture in pictures]
    if files is not None:
        data["file"] = _column(files, names, "files")
    # All columns in one source, so that what is tapped on one map is marked on the others.
    source, window = ColumnDataSource(data), panels.square_window(clouds.values())
    card = Div(text="Point at a mark.", width=250, styles={"font-size": "15px", "overflow": "auto"})
    maps = [_draw_map(source, state, turn, window, card) for turn, state in enumerate(clouds)]
    # The classes that occur, in a row under the first map, where they take no width from it.
    marks, present = [maps[0].renderers[-1]], [name for name in class_names if name in names]
    items = [LegendItem(label=name, renderers=marks, index=names.index(name)) for name in present]
    key: dict[str, Any] = {"label_text_font_size": "13px", "orientation": "horizontal", "ncols": 5, "spacing": 4}
    maps[0].add_layout(Legend(items=items, **key), "below")
    words = (
        f"<h1 style='font-size:22px;margin:4px 0'>{html.escape(title)}</h1><p style='font-size:15px;margin:4px 0'>"
        f"{html.escape(projection.describe())} A ring marks a wrong prediction. Tap a mark to find it on every map; "
        "draw around some with the lasso, and save them as a list.</p>"
    )
    # As wide and as high as the window, whatever it is.
    side = column(card, _save_button(source, len(maps) - 1), width=260, sizing_mode="stretch_height")
    shown = row(*maps, side, sizing_mode="stretch_both")
    page = file_html(column(Div(text=words), shown, sizing_mode="stretch_both"), INLINE, title)
    # A page without a language is read out with the wrong one.
    return write_text(path, page.replace("<html>", '<html lang="en">', 1))


def _asset(name: str) -> str:
    """A page or script beside this module."""
    return resources.files("gcpl_lab.views").joinpath(name).read_text(encoding="utf-8")


def _save_button(source: Any, turn: int) -> Button:
    """Saves what is selected, or all, as ``selection.csv`` with file, class, prediction and probability."""
    button = Button(label="Save selection as CSV", button_type="primary", width=250)
    button.js_on_event("button_click", CustomJS(args={"source": source, "turn": turn}, code=_asset("hover_save.js")))
    return button


def _column(values: Sequence[Any] | np.ndarray, names: Sequence[str], what: str) -> list[Any]:
    if len(values) != len(names):
        raise DataError(f"{what} has {len(values)} entries for {len(names)} points")
    return list(values)


def _draw_map(source: Any, state: str, turn: int, window: panels.Window, card: Any) -> Any:
    """The marks of one state in its window, and a ring around each wrong prediction; details go to the card."""
    (x, y), half = window[0].tolist(), window[1]
    tools: dict[str, Any] = {"tools": "pan,wheel_zoom,box_zoom,lasso_select,reset,tap", "active_scroll": "wheel_zoom"}
    ranges = {"x_range": (x - half, x + half), "y_range": (y - half, y + half)}
    plot = bokeh_figure(sizing_mode="stretch_both", title=state, match_aspect=True, **tools, **ranges)
    plot.toolbar.logo = None  # it links to a page on the network
    plot.title.text_font_size = "18px"
    plot.axis.visible, plot.grid.visible = False, False
    place = {"x": f"x{turn}", "y": f"y{turn}", "source": source, "line_color": style.INK}
    if f"ring{turn}" in source.data:
        plot.scatter(**place, size=19, marker="circle", fill_alpha=0, line_width=1.5, line_alpha=f"ring{turn}")
    shades = {"fill_color": "color", "fill_alpha": 0.85, "nonselection_alpha": 0.15}
    marks = plot.scatter(**place, size=11, marker="marker", line_width=0.5, **shades)
    # Beside the maps the card covers no mark, as a tooltip over them would.
    shown = CustomJS(args={"source": source, "card": card, "state": state, "turn": turn}, code=_asset("hover_card.js"))
    plot.add_tools(HoverTool(renderers=[marks], tooltips=None, callback=shown))
    return plot
