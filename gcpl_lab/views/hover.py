"""A map under the mouse: one HTML file without network, with the photograph behind every mark.

Example:
    >>> from gcpl_lab.views.hover import write_hover_map
    >>> projection = project({"before": before, "after": after})
    >>> write_hover_map("runs/demo/map.html", projection, test.labels, test.class_names, images=test.images,
    ...                 predictions={"before": first, "after": second}, families=test.families)
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.data.readers import read_image
from gcpl_lab.errors import DataError
from gcpl_lab.storage import write_text
from gcpl_lab.views import style
from gcpl_lab.views.projection import Projection

THUMBNAIL = 96
"""Pixels of the longer side, as stored in the file."""

BOKEH_MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle",
    "D": "diamond",
    "v": "inverted_triangle",
    "P": "plus",
    "X": "square_x",
    "p": "star",
    "h": "hex",
    "<": "diamond_cross",
    ">": "circle_cross",
}
"""The nearest of bokeh's markers for each of ``style.MARKERS``, all different."""

Answers = Mapping[str, Any] | Sequence[Any] | np.ndarray


def write_hover_map(
    path: str | Path,
    projection: Projection,
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    images: Sequence[Any] | None = None,
    predictions: Answers | None = None,
    probabilities: Answers | None = None,
    captions: Sequence[str] | None = None,
    families: Mapping[str, Sequence[str]] | None = None,
    title: str = "Map of the photographs",
) -> Path:
    """Write a page with one map a state, side by side in the same window; details appear under the mouse.

    Args:
        path: Of the page.
        projection: Of all states together; each state has the same points in the same order.
        labels: (point,), integers that index ``class_names``.
        class_names: (class,).
        images: (point,), paths, PIL pictures or uint8 arrays.
        predictions: (point,) integers, one array for all states or one a state by its name.
        probabilities: (point,), of the predicted class, 0 to 1; given like ``predictions``.
        captions: (point,), texts.
        families: Family name to its class names.
        title: Of the page.

    Returns:
        ``path``.

    Raises:
        DataError: Columns that do not have one entry a point.
    """
    from bokeh.embed import file_html
    from bokeh.layouts import column, row
    from bokeh.models import Div
    from bokeh.resources import INLINE

    places = np.asarray(labels)
    source, fields = _source(projection, places, class_names, images, predictions, probabilities, captions, families)
    x, y = _window(projection)
    plots = [
        _plot(source, state, turn, fields, x, y, class_names, legend=turn == len(projection.points) - 1)
        for turn, state in enumerate(projection.points)
    ]
    trust = ", ".join(f"{html.escape(name)} {value:.2f}" for name, value in projection.trustworthiness.items())
    words = (
        f"<h1 style='font-size:22px;margin:4px 0'>{html.escape(title)}</h1><p style='font-size:15px;margin:4px 0'>"
        f"{html.escape(projection.note)}; seed {projection.seed}; trustworthiness of the map: {trust}. "
        "A ring marks a wrong prediction. Tap a mark to find it on every map.</p>"
    )
    # The maps may be wider than the window; the words are not.
    heading = Div(text=words, styles={"max-width": "96vw"})
    page = file_html(column(heading, row(*plots)), INLINE, title)
    # A page without a language is read out with the wrong one.
    return write_text(path, page.replace("<html>", '<html lang="en">', 1))


def _column(values: Answers | None, state: str, count: int, what: str) -> list[Any] | None:
    if values is None:
        return None
    if isinstance(values, Mapping):
        if state not in values:
            raise DataError(f"{what} has no state {state!r}; it has {', '.join(values)}")
        values = values[state]
    if len(values) != count:
        raise DataError(f"{what} of the state {state!r} has {len(values)} entries for {count} points")
    return list(values)


def _source(
    projection: Projection,
    labels: np.ndarray,
    class_names: Sequence[str],
    images: Sequence[Any] | None,
    predictions: Answers | None,
    probabilities: Answers | None,
    captions: Sequence[str] | None,
    families: Mapping[str, Sequence[str]] | None,
) -> tuple[Any, list[str]]:
    """All columns in one source, so that what is tapped on one map is marked on the others."""
    from bokeh.models import ColumnDataSource

    count = len(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not count:
        raise DataError(f"labels has shape {labels.shape} and type {labels.dtype}; expected integers, one a point")
    if labels.min() < 0 or labels.max() >= len(class_names):
        raise DataError(f"labels must be integers from 0 to {len(class_names) - 1}, the places of the class names")
    looks = style.class_style(class_names, families)
    names = [class_names[label] for label in labels]
    data: dict[str, list[Any]] = {
        "label": names,
        "color": [looks[name][0] for name in names],
        "marker": [BOKEH_MARKERS[looks[name][1]] for name in names],
    }
    fields = []
    for turn, (state, points) in enumerate(projection.points.items()):
        if points.shape != (count, 2):
            raise DataError(f"state {state!r} has points of shape {points.shape}; expected ({count}, 2)")
        data[f"x{turn}"], data[f"y{turn}"] = points[:, 0].tolist(), points[:, 1].tolist()
        guessed = _column(predictions, state, count, "predictions")
        chances = _column(probabilities, state, count, "probabilities")
        if guessed is not None:
            data[f"prediction{turn}"] = [class_names[int(guess)] for guess in guessed]
            data[f"ring{turn}"] = [0.0 if guess == label else 1.0 for guess, label in zip(guessed, labels, strict=True)]
            fields.append("prediction")
        if chances is not None:
            data[f"probability{turn}"] = [f"{float(chance):.1%}" for chance in chances]
            fields.append("probability")
    if captions is not None:
        data["caption"] = _column(captions, "all", count, "captions") or []
        fields.append("caption")
    if images is not None:
        data["picture"] = [_thumbnail(image) for image in _column(images, "all", count, "images") or []]
        fields.append("picture")
    return ColumnDataSource(data), list(dict.fromkeys(fields))


def _thumbnail(image: Any) -> str:
    picture = read_image(image)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _window(projection: Projection) -> tuple[tuple[float, float], tuple[float, float]]:
    """The same square for every map, so that distances mean the same in each."""
    points = np.concatenate(list(projection.points.values()))
    low, high = points.min(axis=0), points.max(axis=0)
    centre, half = (low + high) / 2, 0.55 * max(float((high - low).max()), 1e-9)
    (x, y), reach = centre.tolist(), half
    return (x - reach, x + reach), (y - reach, y + reach)


def _tooltip(turn: int, fields: Sequence[str]) -> str:
    """HTML of the card; bokeh escapes the values that it fills in."""
    lines = ["<b>@label</b>"]
    if "prediction" in fields:
        chance = f" (@probability{turn})" if "probability" in fields else ""
        lines.append(f"predicted: @prediction{turn}{chance}")
    elif "probability" in fields:
        lines.append(f"probability: @probability{turn}")
    if "caption" in fields:
        lines.append("<i>@caption</i>")
    picture = (
        f'<img src="@picture" alt="photograph of @label" width="{THUMBNAIL}" style="image-rendering:pixelated"><br>'
        if "picture" in fields
        else ""
    )
    return f'<div style="max-width:16em;font-size:15px;color:{style.INK}">{picture}{"<br>".join(lines)}</div>'


def _plot(
    source: Any,
    state: str,
    turn: int,
    fields: Sequence[str],
    x: tuple[float, float],
    y: tuple[float, float],
    class_names: Sequence[str],
    *,
    legend: bool,
) -> Any:
    from bokeh.models import HoverTool, Legend, LegendItem
    from bokeh.plotting import figure

    plot = figure(
        width=760 if legend else 560,
        height=600,
        title=state,
        x_range=x,
        y_range=y,
        tools="pan,wheel_zoom,box_zoom,reset,tap",
        active_scroll="wheel_zoom",
        match_aspect=True,
    )
    # The logo is a link to a page on the network.
    plot.toolbar.logo = None
    plot.title.text_font_size = "18px"
    plot.axis.visible, plot.grid.visible = False, False
    if "prediction" in fields:
        plot.scatter(
            f"x{turn}",
            f"y{turn}",
            source=source,
            size=19,
            marker="circle",
            fill_alpha=0,
            line_color=style.INK,
            line_width=1.5,
            line_alpha=f"ring{turn}",
        )
    marks = plot.scatter(
        f"x{turn}",
        f"y{turn}",
        source=source,
        size=11,
        marker="marker",
        fill_color="color",
        line_color=style.INK,
        line_width=0.5,
        fill_alpha=0.85,
        nonselection_alpha=0.15,
    )
    plot.add_tools(HoverTool(renderers=[marks], tooltips=_tooltip(turn, fields)))
    if legend:
        names = source.data["label"]
        items = [
            LegendItem(label=name, renderers=[marks], index=names.index(name)) for name in class_names if name in names
        ]
        plot.add_layout(Legend(items=items, label_text_font_size="15px"), "right")
    return plot
