"""Names in any script: a font that has their letters is found, and where there is none it is said."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from gcpl_lab.views import fonts
from gcpl_lab.views.plots import save_figure
from gcpl_lab.views.style import figure_style, new_figure


def build_font(path: Path, name: str, letters: str) -> Path:
    """A font in which every letter is a square."""
    pen = TTGlyphPen(None)
    for step, point in enumerate(((0, 0), (0, 500), (500, 500), (500, 0))):
        (pen.lineTo if step else pen.moveTo)(point)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"letter{number}" for number in range(len(letters)))]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): names[number + 1] for number, letter in enumerate(letters)})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed() -> Iterator[None]:
    """What a test installs is gone after it."""
    before = font_manager.fontManager.ttflist[:]
    fonts.fallback_fonts.cache_clear()
    yield
    font_manager.fontManager.ttflist[:] = before
    fonts.fallback_fonts.cache_clear()


@pytest.mark.usefixtures("installed")
def test_a_font_is_known_by_its_letters_and_not_by_its_name(tmp_path: Path) -> None:
    name = "Letters of Nobody"
    font_manager.fontManager.addfont(build_font(tmp_path / "own.ttf", name, fonts.SCRIPTS["Thai"] + "กข"))
    font_manager.fontManager.addfont(build_font(tmp_path / "other.ttf", "Another", "ไ"))  # not enough of it
    with figure_style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert name in plt.rcParams["font.family"]
        assert "Another" not in plt.rcParams["font.family"]
        figure = new_figure(2, 1)
        figure.text(0.1, 0.5, "coat ไทย กข Größe ёж")
        save_figure(figure, tmp_path, "figure")


@pytest.mark.usefixtures("installed")
def test_letters_that_become_boxes_are_named(tmp_path: Path) -> None:
    font_manager.fontManager.ttflist[:] = [
        entry
        for entry in font_manager.fontManager.ttflist
        if entry.name in (fonts.USUAL, "Last Resort High-Efficiency")
    ]
    with figure_style():
        assert fonts.fallback_fonts() == ()
        figure = new_figure(2, 1)
        figure.text(0.1, 0.5, "coat コート")
        with pytest.warns(
            UserWarning, match="no font has the letters コトー, which are drawn as boxes; install"
        ) as told:
            save_figure(figure, tmp_path, "figure")
        assert len(told) == 1  # and not of every letter, every time it is drawn
