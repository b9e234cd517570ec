"""The hover page: offline, escaped, one mark a photograph on every map."""

import json
import re

import numpy as np
import pytest

from gcpl_lab.errors import DataError
from gcpl_lab.views.hover import BOKEH_MARKERS, write_hover_map
from gcpl_lab.views.projection import Projection
from gcpl_lab.views.style import MARKERS, class_style

NAMES = ["shirt", "<b>coat</b>"]
POINTS = {"before": np.array([[0.0, 0], [1, 1], [2, 0]]), "after": np.array([[0.0, 1], [1, 2], [2, 1]])}
PROJECTION = Projection(POINTS, "pca", 7, {"before": 0.9, "after": 0.8}, "PCA fitted on both")
LABELS = np.array([0, 1, 1])


def write(path, **more):
    options = {
        "images": [np.full((28, 28), 80 * place, np.uint8) for place in range(3)],
        "predictions": {"before": [0, 0, 1], "after": [0, 1, 1]},
        "probabilities": {"before": [0.5, 0.25, 1.0], "after": [0.5, 0.75, 1.0]},
        "captions": ["one", "</script><script>alert(1)</script>", "three"],
        "title": "A <map>",
        **more,
    }
    return write_hover_map(path, PROJECTION, LABELS, NAMES, **options).read_text(encoding="utf-8")


def columns(page):
    """The page's one data source, as bokeh reads it."""
    text = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL).group(1)
    found = []

    def walk(value):
        if isinstance(value, dict):
            if value.get("name") == "ColumnDataSource":
                found.append(dict(value["attributes"]["data"]["entries"]))
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    import html

    walk(json.loads(html.unescape(text)))
    return found[0]


def test_nothing_is_fetched_and_nothing_can_be_smuggled_in(tmp_path):
    page = write(tmp_path / "map.html")
    assert not re.search(r"""<(script|img|link|iframe)[^>]*\b(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*[\"']?https?:", page)
    assert "<script>alert(1)" not in page
    assert "A <map>" not in page
    assert page.lstrip().startswith("<!DOCTYPE html>")
    assert '<html lang="en">' in page


def test_every_photograph_has_its_facts_on_every_map(tmp_path):
    data = columns(write(tmp_path / "map.html"))
    looks = class_style(NAMES)
    assert data["label"] == [NAMES[label] for label in LABELS]
    assert data["color"] == [looks[NAMES[label]][0] for label in LABELS]
    assert data["marker"] == [BOKEH_MARKERS[looks[NAMES[label]][1]] for label in LABELS]
    assert data["prediction0"] == ["shirt", "shirt", "<b>coat</b>"]
    assert data["ring0"] == [0, 1, 0]  # one prediction is wrong before, none after
    assert data["ring1"] == [0, 0, 0]
    assert data["probability1"] == ["50.0%", "75.0%", "100.0%"]
    assert data["x1"] == [0, 1, 2]
    assert data["y1"] == [1, 2, 1]
    assert all(picture.startswith("data:image/png;base64,iVBOR") for picture in data["picture"])
    assert len(set(data["picture"])) == 3


def test_what_is_not_given_is_not_shown(tmp_path):
    data = columns(write(tmp_path / "a.html", images=None, predictions=None, probabilities=None, captions=None))
    assert data.keys() == {"label", "color", "marker", "x0", "y0", "x1", "y1"}


def test_markers_are_as_different_as_in_figures():
    from bokeh.core.enums import MarkerType

    assert list(BOKEH_MARKERS) == list(MARKERS)
    assert len(set(BOKEH_MARKERS.values())) == len(MARKERS)
    assert set(BOKEH_MARKERS.values()) <= set(MarkerType)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"predictions": {"before": [0, 0, 1]}}, "no state 'after'"),
        ({"probabilities": [0.5]}, "1 entries for 3 points"),
        ({"captions": ["x"]}, "1 entries for 3 points"),
    ],
)
def test_columns_of_another_length_are_named(tmp_path, more, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "map.html", **more)
    assert not (tmp_path / "map.html").exists()
