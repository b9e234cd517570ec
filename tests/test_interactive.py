"""Pages that move or answer the mouse: what each shows, and that it works offline, escaped and without a mouse."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from bokeh.core.enums import MarkerType
from PIL import Image
from typer.testing import CliRunner

from gcpl_lab.cli.app import app
from gcpl_lab.errors import DataError
from gcpl_lab.experiments import run_views
from gcpl_lab.experiments.runs import RunStates
from gcpl_lab.storage import write_json
from gcpl_lab.views import interactive
from gcpl_lab.views.interactive import BOKEH_MARKERS, frames_of, write_flip_book, write_gif
from gcpl_lab.views.moving import moving_tokens
from gcpl_lab.views.projection import Projection
from gcpl_lab.views.style import MARKERS, class_style, figure_style, new_figure

NAMES = ["shirt", "<b>coat</b>"]
LABELS = np.array([0, 1, 1])
PATHS = np.array([[[0.0, 0], [1, 1]], [[0, 1], [1, 0]], [[0, 2], [2, 0]]])
BEFORE = np.array([[0.0, 0], [1, 1], [2, 0]])


def moving(after):
    return Projection({"before": BEFORE, "after": np.array(after)}, "pca", 7, {"before": 0.9, "after": 0.8}, "PCA")


@pytest.fixture(scope="module")
def frames():
    return frames_of(moving_tokens(dict(zip((0, 10, 20), PATHS, strict=True)), NAMES).pages(), width=600)


def test_a_journey_has_a_page_a_state(frames):
    assert [frame.caption.split(":")[0] for frame in frames] == ["Step 0 of 20", "Step 10 of 20", "Step 20 of 20"]
    assert len({frame.picture.size for frame in frames}) == 1
    assert len({frame.picture.tobytes() for frame in frames}) == 3


def test_figures_become_pages_of_one_width():
    with figure_style():
        pages = interactive.frames_of([(new_figure(4, 3), "one"), (new_figure(4, 3), "two")], width=400)
    assert [(page.picture.size, page.caption) for page in pages] == [((400, 300), "one"), ((400, 300), "two")]


def test_without_ffmpeg_gif_and_flip_book_are_made_and_one_line_says_so(tmp_path, monkeypatch):
    states = RunStates(*[{}] * 2, *[np.zeros(0)] * 3, PATHS, [0, 10, 20], [], NAMES, {}, 0, None)
    write_json(tmp_path / "results.json", {})
    monkeypatch.setattr(run_views, "load_states", lambda _: states)
    monkeypatch.setattr(interactive.shutil, "which", lambda _: None)
    result = CliRunner().invoke(app, ["animate", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "animation").iterdir()} == {"journey.gif", "journey.html"}
    assert result.output.count("No MP4: ffmpeg is not installed; the GIF and the page hold the same.") == 1


def test_a_movie_is_written_where_ffmpeg_is(frames, tmp_path, monkeypatch):
    told = []

    def run(command, input, **_):
        told.append((command, input.count(b"IHDR")))
        Path(command[-1]).write_bytes(b"movie")

    monkeypatch.setattr(interactive.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(interactive.subprocess, "run", run)
    (path,) = interactive.write_movie(tmp_path / "a.mp4", frames)
    assert path.read_bytes() == b"movie"
    ((command, count),) = told
    assert command[0] == "/bin/ffmpeg"
    assert count == len(frames) + 3  # the end stays


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="this machine has no ffmpeg")
def test_a_movie_can_be_read_back_with_all_its_pages(frames, tmp_path):
    (path,) = interactive.write_movie(tmp_path / "a.mp4", frames)
    command = ["ffmpeg", "-hide_banner", "-i", str(path), "-f", "null", "-"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "yuv420p" in told
    assert int(re.findall(r"frame=\s*(\d+)", told)[-1]) == len(frames) + 3


def test_the_gif_rests_at_both_ends_and_goes_on(frames, tmp_path):
    with Image.open(write_gif(tmp_path / "a.gif", frames)) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (3, frames[0].picture.size, 0)
        for place, milliseconds in enumerate((2000, 350, 2000)):
            gif.seek(place)
            assert gif.info["duration"] == milliseconds
            shown = np.asarray(gif.convert("RGB"), int)
            assert np.abs(shown - np.asarray(frames[place].picture, int)).mean() < 3


def test_the_flip_book_is_whole_and_can_be_used_without_a_mouse(frames, tmp_path):
    page = write_flip_book(tmp_path / "a.html", frames, title="<Way>", alt='Tokens "part".').read_text("utf-8")
    assert not re.search(r"https?:|<link|src=\"(?!data:)", page)
    assert "&lt;Way&gt;" in page
    assert "Tokens &#34;part&#34;." in page
    for needed in ('type="range"', "prefers-reduced-motion", "ArrowLeft", "Home", 'aria-live="polite"', 'id="play"'):
        assert needed in page
    pages = json.loads(re.search(r"const pages = (\[.*?\]), alt", page, re.DOTALL).group(1))
    assert [entry["caption"] for entry in pages] == [frame.caption for frame in frames]
    assert all(entry["src"].startswith("data:image/png;base64,iVBOR") for entry in pages)


def hover_page(path, **more):
    options = {
        "images": [np.full((28, 28), 80 * place, np.uint8) for place in range(3)],
        "predictions": {"before": [0, 0, 1], "after": [0, 1, 1]},
        "probabilities": {"before": [0.5, 0.25, 1.0], "after": [0.5, 0.75, 1.0]},
        "files": ["one", "</script><script>alert(1)</script>", "three"],
        "title": "A <map>",
        **more,
    }
    projection = moving([[0.0, 1], [1, 2], [2, 1]])
    return interactive.write_hover_map(path, projection, LABELS, NAMES, **options).read_text(encoding="utf-8")


def columns(page):
    """The page's one data source, as bokeh reads it."""
    text = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL).group(1)
    waiting = [json.loads(html.unescape(text))]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and value.get("name") == "ColumnDataSource":
            return dict(value["attributes"]["data"]["entries"])
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    raise AssertionError("the page has no data source")


def test_the_hover_map_fetches_nothing_and_has_the_facts_of_every_photograph(tmp_path):
    page = hover_page(tmp_path / "map.html")
    assert not re.search(r"""<(script|img|link|iframe)[^>]*\b(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*[\"']?https?:", page)
    assert "<script>alert(1)" not in page
    assert "A <map>" not in page
    assert page.lstrip().startswith("<!DOCTYPE html>")
    assert '<html lang="en">' in page

    data, looks = columns(page), class_style(NAMES)
    pictures = data.pop("picture")
    assert all(picture.startswith("data:image/png;base64,iVBOR") for picture in pictures)
    assert len(set(pictures)) == 3
    assert data.pop("file")[0] == "one"
    points = {"x0": [0, 1, 2], "y0": [0, 1, 0], "x1": [0, 1, 2], "y1": [1, 2, 1]}
    rings = {"ring0": [0, 1, 0], "ring1": [0, 0, 0]}  # one prediction is wrong before, none after
    assert data == {
        "label": [NAMES[label] for label in LABELS],
        "color": [looks[NAMES[label]][0] for label in LABELS],
        "marker": [BOKEH_MARKERS[looks[NAMES[label]][1]] for label in LABELS],
        **points,
        "prediction0": ["shirt", "shirt", "<b>coat</b>"],
        "prediction1": ["shirt", "<b>coat</b>", "<b>coat</b>"],
        **rings,
        "probability0": ["50.0%", "25.0%", "100.0%"],
        "probability1": ["50.0%", "75.0%", "100.0%"],
    }


def test_what_is_not_given_is_not_shown(tmp_path):
    nothing = dict.fromkeys(("images", "predictions", "probabilities", "files"))
    data = columns(hover_page(tmp_path / "a.html", **nothing))
    assert data.keys() == {"label", "color", "marker", "x0", "y0", "x1", "y1"}


def test_markers_are_as_different_as_in_figures():
    assert list(BOKEH_MARKERS) == list(MARKERS)
    assert len(set(BOKEH_MARKERS.values())) == len(MARKERS)
    assert set(BOKEH_MARKERS.values()) <= set(MarkerType)


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("of one size", lambda path, frames: write_gif(path, [*frames, interactive.Frame(Image.new("L", (3, 3)), "")])),
        ("alt text", lambda path, frames: write_flip_book(path, frames, title="t", alt=" ")),
        ("are of the states", lambda path, frames: hover_page(path, predictions={"before": [0, 0, 1]})),
        ("1 entries for 3", lambda path, frames: hover_page(path, probabilities={"before": [0.5], "after": [1]})),
        ("1 entries for 3 points", lambda path, frames: hover_page(path, files=["x"])),
    ],
)
def test_bad_input_is_named_and_nothing_written(frames, tmp_path, message, make):
    with pytest.raises(DataError, match=message):
        make(tmp_path / "a", frames)
    assert not list(tmp_path.iterdir())
