"""Names in any script: a font that has their letters is found, and where there is none it is said."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from gcpl_lab.views import fonts
from gcpl_lab.views.plots import save_figure
from gcpl_lab.views.style import figure_style, label_text, new_figure


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


def forget() -> None:
    for found in (fonts._fonts_for, fonts._candidates):
        found.cache_clear()
    fonts._told.clear()


@pytest.fixture
def installed() -> Iterator[None]:
    """What a test installs is gone after it."""
    before = font_manager.fontManager.ttflist[:]
    only = (fonts.USUAL, "Last Resort High-Efficiency")
    font_manager.fontManager.ttflist[:] = [entry for entry in before if entry.name in only]
    forget()
    yield
    font_manager.fontManager.ttflist[:] = before
    forget()


def draw(words: str, folder: Path) -> None:
    with figure_style():
        figure = new_figure(2, 1)
        figure.text(0.1, 0.5, words)
    save_figure(figure, folder, "figure")


@pytest.mark.usefixtures("installed")
def test_fonts_are_found_by_the_letters_at_hand(tmp_path: Path) -> None:
    for place, (name, letters) in enumerate(
        {"Letters of Nobody": "ไทยกข", "Half of Them": "コー", "Rest": "トコ"}.items()
    ):
        font_manager.fontManager.addfont(build_font(tmp_path / f"{place}.ttf", name, letters))
    assert fonts._fonts_for(frozenset("ไทย")) == (("Letters of Nobody",), frozenset())
    assert set(fonts._fonts_for(frozenset("コート"))[0]) == {"Half of Them", "Rest"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw("coat ไทย กข コート Größe ёж חולצה قميص", tmp_path)


@pytest.mark.usefixtures("installed")
def test_what_no_font_has_is_said_once_with_the_font_to_install(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        draw("coat コート 가 👕", tmp_path)
        draw("コート", tmp_path)
    assert len(told) == 1  # and not of every letter, every time it is drawn
    assert "Noto Sans CJK (on Debian fonts-noto-cjk) and Noto Emoji" in str(told[0].message)
    with pytest.warns(UserWarning, match="install Noto Sans Devanagari and"):
        draw("हनद", tmp_path)


def ink_of(words: str) -> np.ndarray:
    """What is drawn of a text at a large size, without the ground around it."""
    with figure_style():
        figure = new_figure(4, 2)
        figure.text(0.1, 0.3, words, fontsize=60)
        figure.canvas.draw()
    dark = np.asarray(figure.canvas.buffer_rgba())[..., 0] < 128  # type: ignore[attr-defined]
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    return dark[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_letters_from_right_to_left_are_put_in_order() -> None:
    """The first letter of a Hebrew word stands at its right end."""
    word, first = ink_of("אל"), ink_of("א")
    height, width = first.shape
    assert (word[-height:, -width:] == first).mean() > 0.97
    assert (word[-height:, :width] == first).mean() < 0.9


def test_numbers_beside_a_name_from_right_to_left_stay_in_their_order() -> None:
    """The name comes first, as in every other row, and the number after it ends the line."""
    name = label_text("אל")
    words, number = ink_of(f"{name} 12 %"), ink_of("%")
    height, width = number.shape
    assert (words[-height:, -width:] == number).mean() > 0.95
    assert label_text("boot") == "boot"
