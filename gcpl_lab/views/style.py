"""One look for every figure: colours that survive colour-vision deficiency, markers, readable type.

Nothing here chooses a matplotlib backend or changes a setting for good: ``figure_style`` is a context.
"""

from __future__ import annotations

import textwrap
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gcpl_lab.errors import DataError
from gcpl_lab.views.fonts import USUAL, LabFigure
from gcpl_lab.views.letters import shorten

Names = Sequence[str]
Families = Mapping[str, Sequence[str]] | None
"""Family name to the names of its classes, the look-alikes; names that are not in a set are passed over."""

PALETTE = ("#783018", "#E69F00", "#7A7A7A", "#6018D8", "#56B4E9", "#000000", "#0077BB", "#CC3311", "#117733", "#CC79A7")
"""Brown, orange, grey, violet, sky; black, blue, red; green, pink: each visible on white.

Searched for, so that look-alikes differ most: the first five, and the next three, which are the families of the
bundled garments, keep an OKLab distance of at least 0.15 and 0.22 to normal, protanopic, deuteranopic and tritanopic
eyes (Machado et al. 2009), and no two of them are shades of one hue; over all ten it is at least 0.07.
"""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")
"""One more than there are colours, so that pairs of both repeat only after 110 classes."""

PART_LOOKS = {"all": ("#000000", "o"), "head": ("#6018D8", "s"), "medium": ("#56B4E9", "^"), "tail": ("#D55E00", "D")}
"""Colour and marker of all classes of a long tail and of its parts, the same in every figure; ΔE of at least 40."""

METHOD_COLORS = ("#0077BB", "#CC3311", "#117733", "#6018D8", "#E69F00", "#783018", "#CC79A7")
"""Of methods that are followed side by side; controls are grey."""

INK = "#1A1A1A"
GREY = "#5F5F5F"
FAINT = "#D0D0D0"
BLUE = "#0072B2"
"""Of the one thing that a figure shows."""

FONT_SIZES = {"figure": 12.0, "slide": 18.0}

_SLIDE_FONTS = ("Arial", "Liberation Sans")


def look(turn: int) -> tuple[str, str]:
    """Colour and marker of the thing number ``turn``, whatever it is called: a class, a method, a curve."""
    return PALETTE[turn % len(PALETTE)], MARKERS[turn % len(MARKERS)]


def family_order(class_names: Names, families: Families) -> list[int]:
    """The one order of classes in every figure: places family by family, then the classes of no family."""
    known = {name: place for place, name in enumerate(class_names)}
    if len(known) != len(class_names):
        twice = next(name for name in class_names if list(class_names).count(name) > 1)
        raise DataError(f"class name {twice!r} occurs more than once; every class needs a name of its own")
    members = [name for family in (families or {}).values() for name in family if name in known]
    return [known[name] for name in dict.fromkeys([*members, *class_names])]


def family_spans(class_names: Names, families: Families) -> list[tuple[str, int, int]]:
    """Where each family lies in ``family_order``: (family, first place, place after the last)."""
    spans, start, left = [], 0, set(class_names)
    for family, names in (families or {}).items():
        stop = start + len(left & set(names))
        left -= set(names)
        if stop > start:
            spans.append((family, start, stop))
        start = stop
    return spans


def class_style(class_names: Names, families: Families = None) -> dict[str, tuple[str, str]]:
    """Class name to (colour #RRGGBB, matplotlib marker); look-alikes of one family differ clearly in both."""
    looks = {class_names[place]: look(turn) for turn, place in enumerate(family_order(class_names, families))}
    return {name: looks[name] for name in class_names}


# matplotlib's settings are the whole process's: a widget that draws beside a cell must wait its turn.
_settings_in_use = threading.RLock()


@contextmanager
def figure_style(context: str = "figure") -> Iterator[None]:
    """The package's matplotlib settings for a ``with`` block: ``"figure"`` (12 pt) or ``"slide"`` (18 pt)."""
    if context not in FONT_SIZES:
        raise DataError(f"style context {context!r} is unknown; expected one of {', '.join(FONT_SIZES)}")
    size, installed = FONT_SIZES[context], set(font_manager.get_font_names())
    # On a slide words and figures have one typeface where the machine has it, or one of the same widths.
    first = [name for name in _SLIDE_FONTS if name in installed] if context == "slide" else []
    settings: Any = {
        "font.family": [*first, USUAL],
        **dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), size),
        "axes.titlesize": size * 1.15,
        "figure.titlesize": size * 1.3,
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white"),
        "figure.constrained_layout.use": True,
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.grid"), False),
        "axes.edgecolor": GREY,
        "axes.titlelocation": "left",
        "axes.titlepad": size * 0.7,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
        "lines.linewidth": 2.0,
        "image.interpolation": "nearest",
        "svg.fonttype": "path",
    }
    with _settings_in_use, matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches that pyplot does not know, so that none can be left open.

    Call it inside ``figure_style``. A notebook shows it as the last expression of a cell.
    """
    figure = LabFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def shortened(name: str, limit: int = 24) -> str:
    """A name in one line, cut in its middle to ``limit`` characters; one from right to left turns nothing beside it."""
    short = shorten(" ".join(str(name).split()), limit)
    turned = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in short)
    return f"\u2068{short}\u2069" if turned else short


def label_text(name: str, limit: int = 24) -> str:
    """A name as drawn: shortened, and a dollar sign is no mathematics."""
    return shortened(name, limit).replace("$", r"\$")


def font_size() -> float:
    """The present ``font.size`` in points."""
    return float(matplotlib.rcParams["font.size"])


def width_of(ax: Axes) -> float:
    """Present width of the axes in inches; a layout that takes place later may change it."""
    return ax.get_position().width * ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]


def wrap_lines(text: str, width: float, size: float) -> str:
    """Break ``text`` into lines of at most ``width`` inches at ``size`` points, by an average letter's width."""
    columns = max(12, int(width * 72 / (0.55 * size)))
    lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, columns) or [""]]
    return "\n".join(lines).replace("$", r"\$")
