"""Names in any script: fonts are found among those that are installed, by the letters that a figure has."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

USUAL = "DejaVu Sans"
"""Comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew. Letters from right to left are put in order by it."""

PREFERRED = ("Noto Sans CJK JP", "Noto Sans JP", "Hiragino Sans", "Yu Gothic", "MS Gothic", "IPAexGothic", "Noto Sans")
"""Of several that have the letters at hand, these are taken first."""

_INSTALL = {
    "Noto Sans CJK (on Debian fonts-noto-cjk)": ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "FULLWIDTH"),
    "Noto Emoji (the one in black and white)": ("EMOJI",),
}
_told: set[str] = set()


class LabFigure(Figure):
    """A figure whose letters are drawn in fonts that have them; where none has, it is said once and not of each."""

    def draw(self, renderer: Any) -> None:
        """As every figure, wherever it is shown or saved."""
        give_fonts(self)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            super().draw(renderer)


def give_fonts(figure: Figure) -> None:
    """Append to the fonts of each text those that have its letters; letters that none has are one warning."""
    boxes: set[str] = set()
    for text in figure.findobj(lambda artist: isinstance(artist, Text) and not artist.get_text().isascii()):
        families = tuple(text.get_fontfamily())  # type: ignore[attr-defined]
        found, left = _fonts_for(frozenset(_lacking(_files(families), text.get_text())))  # type: ignore[attr-defined]
        if set(found) - set(families):
            text.set_fontfamily([*families, *(name for name in found if name not in families)])  # type: ignore[attr-defined]
        boxes |= left
    if boxes - _told:
        _told.update(boxes)
        shown = "".join(sorted(boxes)[:20])
        warnings.warn(
            f"no installed font has the letters {shown}, which are drawn as boxes; install {_advice(boxes)} and start "
            "anew",
            stacklevel=3,
        )


def _advice(letters: Iterable[str]) -> str:
    """Which typefaces have these letters."""
    names = {letter: unicodedata.name(letter, "EMOJI") for letter in letters}
    scripts = {
        "EMOJI" if unicodedata.category(letter) == "So" else name.split()[0].split("-")[0]
        for letter, name in names.items()
    }
    known = [name for name, own in _INSTALL.items() if scripts & set(own)]
    others = scripts - {script for own in _INSTALL.values() for script in own}
    return " and ".join([*known, *(f"Noto Sans {script.title()}" for script in sorted(others))])


@cache
def _fonts_for(letters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed typefaces that together have as many of the letters as there are, and the letters that are left."""
    found: list[str] = []
    while letters:
        best = min(_candidates(), key=lambda entry: len(_lacking([entry.fname], letters)), default=None)
        left = letters if best is None else frozenset(_lacking([best.fname], letters))
        if best is None or left == letters:
            break
        found, letters = [*found, best.name], left
    return tuple(found), letters


@cache
def _candidates() -> list[font_manager.FontEntry]:
    """Every installed typeface once, in its regular weight; the font of last resort has a box for every letter."""
    rank = {name: place for place, name in enumerate(PREFERRED)}
    entries = [entry for entry in font_manager.fontManager.ttflist if entry.style == "normal"]
    entries.sort(key=lambda entry: (rank.get(entry.name, len(rank)), entry.name, entry.weight != 400))
    return list(
        {entry.name: entry for entry in reversed(entries) if not entry.name.startswith("Last Resort")}.values()
    )[::-1]


def _files(families: Iterable[str]) -> list[str]:
    installed = set(font_manager.get_font_names())
    return [font_manager.findfont(name) for name in families if name in installed]


def _lacking(files: Iterable[str], letters: Iterable[str]) -> set[str]:
    """Letters that none of some font files has."""
    left = {letter for letter in letters if letter.isprintable() and not letter.isspace()}
    for file in files:
        try:
            font = font_manager.get_font(file)
        except (RuntimeError, OSError):
            continue
        if font.scalable:  # pictures of letters in fixed sizes, as of emoji, cannot be drawn
            left = {letter for letter in left if not font.get_char_index(ord(letter))}
    return left
