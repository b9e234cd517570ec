"""Fonts for names in any script: found among those that are installed by the letters that they have."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

USUAL = "DejaVu Sans"
"""Comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew."""

PREFERRED = ("Noto Sans CJK JP", "Noto Sans JP", "Hiragino Sans", "Yu Gothic", "MS Gothic", "IPAexGothic")
"""Of several that have the letters of a script, these are taken first."""

SCRIPTS = {
    "Japanese": "コシャツ日本",
    "Chinese": "汉语们",
    "Korean": "한글",
    "Hindi": "हनद",
    "Bengali": "বংল",
    "Tamil": "தமழ",
    "Thai": "ไทย",
    "Amharic": "አማር",
}
"""Letters by which a font is known to have a script."""

ADVICE = "install one that has them, such as Noto Sans CJK (on Debian the package fonts-noto-cjk), and start anew"


@cache
def fallback_fonts() -> tuple[str, ...]:
    """Installed fonts that have a script which the usual one lacks, one a script; looked for once."""
    entries = [entry for entry in font_manager.fontManager.ttflist if entry.style == "normal"]
    rank = {name: place for place, name in enumerate(PREFERRED)}
    # Of a typeface the regular weight; the font of last resort has a box for every letter.
    entries = sorted(entries, key=lambda entry: (rank.get(entry.name, len(rank)), entry.name, entry.weight != 400))
    found, left = [], {script: letters for script, letters in SCRIPTS.items() if _lacking([USUAL], letters)}
    for entry in entries:
        if not left:
            break
        if entry.name in found or entry.name.startswith("Last Resort"):
            continue
        has = [script for script, letters in left.items() if not _lacking_in([entry.fname], letters)]
        if has:
            found.append(entry.name)
            left = {script: letters for script, letters in left.items() if script not in has}
    return tuple(found)


def warn_of_boxes(figure: Figure) -> None:
    """Say which letters of a figure no font of it has, and what to do; Python shows the same warning once."""
    letters: dict[tuple[str, ...], set[str]] = {}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_visible():
            letters.setdefault(tuple(text.get_fontfamily()), set()).update(text.get_text())
    boxes = {letter for families, own in letters.items() for letter in _lacking(families, own)}
    if boxes:
        shown = "".join(sorted(boxes)[:20])
        warnings.warn(f"no font has the letters {shown}, which are drawn as boxes; {ADVICE}", stacklevel=3)


def _lacking(families: Iterable[str], letters: Iterable[str]) -> set[str]:
    """Letters that none of some typefaces has."""
    installed = set(font_manager.get_font_names())
    return _lacking_in([font_manager.findfont(name) for name in families if name in installed], letters)


def _lacking_in(files: Iterable[str], letters: Iterable[str]) -> set[str]:
    left = {letter for letter in letters if letter.isprintable() and not letter.isspace()}
    for file in files:
        try:
            font = font_manager.get_font(file)
        except (RuntimeError, OSError):  # pictures of letters in fixed sizes, as of emoji, cannot be drawn
            continue
        left = {letter for letter in left if not font.get_char_index(ord(letter))}
    return left
