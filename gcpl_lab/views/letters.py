"""The letters of a figure: how large they come out at another size, and whether they stay whole and apart."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from gcpl_lab.errors import DataError

ROUNDING = 0.05  # points that a size may miss by
OVERLAP = 0.2  # share of the smaller of two texts that is covered where they lie on each other
ADVICE = "draw fewer or shorter words, on slide_figure() inside figure_style('slide')"


@contextmanager
def letters_of_at_least(figure: Figure, points: float, width: float, height: float, what: str) -> Iterator[None]:
    """A figure laid out so that its letters have a least size where it is shown; afterwards it is as it was.

    A figure whose letters are large enough stays as it is. Another is laid out anew in the proportions of its place,
    so small that its usual letters come out at ``points``; smaller ones are enlarged to that.

    Args:
        points: Least size of every letter when shown.
        width, height: Inches of the place where the figure is shown, as large as fits.
        what: Names the figure in errors.

    Raises:
        DataError: With such letters the layout fails, or words are cut off or lie on each other that did not before.
    """
    texts, size = shown_texts(figure), figure.get_size_inches().copy()
    sizes = [float(text.get_fontsize()) for text in texts]
    if not texts or min(sizes) * min(width / size[0], height / size[1]) >= points - ROUNDING:
        yield
        return
    before = {text.get_text() for text in _troubled(figure, texts)}
    least = float(np.median(sizes))
    changed: dict[Text, float] = {}
    try:
        figure.set_size_inches(width * least / points, height * least / points)
        # Larger words need more room, and with another room an axis may choose other ticks.
        for _ in range(3):
            small = [text for text in _laid_out(figure, what, points) if float(text.get_fontsize()) < least - ROUNDING]
            for text in small:
                changed.setdefault(text, float(text.get_fontsize()))
                text.set_fontsize(least)
            if not small:
                break
        for text in _troubled(figure, _laid_out(figure, what, points)):
            if text.get_text() not in before:
                words = f"{text.get_text()[:40]!r} is cut off or lies on other words"
                raise DataError(f"{what}: with letters of {points:.0f} points {words}; {ADVICE}")
        yield
    finally:
        for text, former in changed.items():
            text.set_fontsize(former)
        figure.set_size_inches(*size)


def shorten(text: str, limit: int) -> str:
    """A text of at most ``limit`` characters: of a longer one the two ends."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2].rstrip()}…{text[len(text) - (limit - 1) // 2 :].lstrip()}"


def distinct(names: Sequence[str], limit: int = 12) -> list[str]:
    """Names that stay apart when they are shortened: with numbers before them where they would not."""
    told = {shorten(" ".join(name.split()), limit) for name in names}
    return list(names) if len(told) == len(names) else [f"{number} {name}" for number, name in enumerate(names, 1)]


def shown_texts(figure: Figure) -> list[Text]:
    """Every text that is drawn, when the figure has been laid out."""
    figure.draw_without_rendering()
    hidden: set[Text] = set()
    for ax in figure.axes:
        drawn = ax.axison and ax.get_visible()
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not (drawn and low - slack <= tick.get_loc() <= high + slack):
                    hidden |= {tick.label1, tick.label2}
            if not drawn:
                hidden |= {axis.label, axis.offsetText}
    found = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in found if text.get_visible() and text.get_text().strip() and text not in hidden]


def _laid_out(figure: Figure, what: str, points: float) -> list[Text]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*layout not applied.*")
        try:
            return shown_texts(figure)
        except UserWarning as warning:
            problem = f"with letters of {points:.0f} points no room is left to draw in"
            raise DataError(f"{what}: {problem}; {ADVICE}") from warning


def _troubled(figure: Figure, texts: list[Text]) -> list[Text]:
    """Texts that leave the figure or lie on another one; slanted ones are passed over, their boxes being too large."""
    boxes = {text: text.get_window_extent() for text in texts if float(text.get_rotation()) % 90 == 0}
    left, bottom, right, top = figure.bbox.extents
    sides = {text: (box.x0 - left, box.y0 - bottom, right - box.x1, top - box.y1) for text, box in boxes.items()}
    bad = [text for text, room in sides.items() if min(room) < -2]
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        shared = max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0))
        if shared > OVERLAP * min(a.width * a.height, b.width * b.height):
            bad += [one, other]
    return bad
