"""Pages that move: what stands on the first, the last and those between; the book works without a server."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.errors import DataError
from gcpl_lab.views.animation import Frame, journey_frames, map_frames, write_flip_book, write_gif
from gcpl_lab.views.projection import Projection

NAMES = ["shirt", "coat"]
PATHS = np.array([[[0.0, 0], [1, 1]], [[0, 1], [1, 0]], [[0, 2], [2, 0]]])


def moving(after=((5.0, 5), (6, 6), (0, 0))):
    points = {"before": np.array([[0.0, 0], [1, 1], [2, 2]]), "after": np.array(after)}
    return Projection(points, "pca", 0, {"before": 1.0, "after": 1.0}, "PCA")


@pytest.fixture(scope="module")
def frames():
    return journey_frames(PATHS, [0, 10, 20], NAMES)


def test_a_journey_has_a_page_a_state(frames):
    assert [frame.caption for frame in frames] == ["step 0 of 20", "step 10 of 20", "step 20 of 20"]
    assert len({frame.picture.size for frame in frames}) == 1
    assert len({frame.picture.tobytes() for frame in frames}) == 3


def test_a_map_begins_and_ends_with_what_was_measured_and_says_what_was_not():
    frames = map_frames(moving(), np.array([0, 1, 1]), NAMES, num_between=2)
    assert [frame.caption for frame in frames] == [
        "before",
        "between before and after, 33% of the way (drawn in)",
        "between before and after, 67% of the way (drawn in)",
        "after",
    ]
    still = map_frames(moving(((0.0, 0), (1, 1), (2, 2))), np.array([0, 1, 1]), NAMES, num_between=1)
    area = (0, 60, 840, 608)  # below the caption
    assert len({frame.picture.crop(area).tobytes() for frame in still}) == 1  # points that stay do not move


def test_the_gif_rests_at_both_ends_and_goes_on(frames, tmp_path):
    with Image.open(write_gif(tmp_path / "a.gif", frames, seconds=0.3, rest=1.5)) as gif:
        assert gif.n_frames == 3
        assert gif.size == frames[0].picture.size
        assert gif.info["loop"] == 0
        durations = []
        for place in range(3):
            gif.seek(place)
            durations.append(gif.info["duration"])
            shown = np.asarray(gif.convert("RGB"), int)
            assert np.abs(shown - np.asarray(frames[place].picture, int)).mean() < 3
    assert durations == [1500, 300, 1500]


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


def test_bad_input_is_named(frames, tmp_path):
    with pytest.raises(DataError, match=r"expected finite \(step, class, 2\)"):
        journey_frames(PATHS[:1], [0], NAMES)
    with pytest.raises(DataError, match="two or more"):
        map_frames(Projection({"one": np.zeros((3, 2))}, "pca", 0, {}, ""), np.zeros(3, int), NAMES)
    with pytest.raises(DataError, match="of one size"):
        write_gif(tmp_path / "a.gif", [frames[0], Frame(Image.new("RGB", (3, 3)), "x")])
    with pytest.raises(DataError, match=r"0\.02"):
        write_gif(tmp_path / "a.gif", frames, seconds=0.001)
    with pytest.raises(DataError, match="alt text"):
        write_flip_book(tmp_path / "a.html", frames, title="t", alt=" ")
    assert not list(tmp_path.iterdir())
