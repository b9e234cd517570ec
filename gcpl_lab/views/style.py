"""One look for every figure: colours that survive colour-vision deficiency, markers, readable type.

Nothing here chooses a matplotlib backend or changes a setting for good: ``figure_style`` is a context.
"""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gcpl_lab.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#E69F00", "#0072B2", "#009E73", "#56B4E9", "#783018", "#000000", "#6018D8", "#D55E00", "#F0E442", "#CC79A7")
"""Okabe and Ito's eight colours, with a brown and a violet.

The order is chosen so that any six in a row, hence the members of one family, differ by a CIE76 ΔE of at
least 24 to normal, deuteranopic and protanopic eyes (Machado et al. 2009); over all ten it is at least 17.
"""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")
"""One more than there are colours, so that pairs of both repeat only after 110 classes."""

PART_LOOKS = {
    "all": (PALETTE[5], "o"),
    "head": (PALETTE[6], "s"),
    "medium": (PALETTE[3], "^"),
    "tail": (PALETTE[7], "D"),
}
"""Colour and marker of all classes of a long tail and of its parts, the same in every figure; ΔE of at least 40."""

INK = "#1A1A1A"
GREY = "#5F5F5F"
FAINT = "#D0D0D0"

FONT_SIZES = {"figure": 12.0, "slide": 18.0}

# Fonts with Chinese, Japanese and Korean letters; the ones that are installed back up the default font.
_WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans JP", "Hiragino Sans", "Yu Gothic", "MS Gothic", "IPAexGothic")


def family_order(class_names: Sequence[str], families: Mapping[str, Sequence[str]] | None) -> list[int]:
    """The one order of classes in every figure: family by family, then the classes of no family.

    Args:
        class_names: (class,).
        families: Family name to the names of its classes; names that are not in the set are passed over.

    Returns:
        Places in ``class_names``, each once.
    """
    known = {name: place for place, name in enumerate(class_names)}
    if len(known) != len(class_names):
        twice = next(name for name in class_names if list(class_names).count(name) > 1)
        raise DataError(f"class name {twice!r} occurs more than once; every class needs a name of its own")
    members = [name for family in (families or {}).values() for name in family if name in known]
    return [known[name] for name in dict.fromkeys([*members, *class_names])]


def family_spans(
    class_names: Sequence[str], families: Mapping[str, Sequence[str]] | None
) -> list[tuple[str, int, int]]:
    """Where each family lies in ``family_order``: (family, first place, place after the last)."""
    spans: list[tuple[str, int, int]] = []
    taken: set[str] = set()
    start = 0
    for family, names in (families or {}).items():
        members = {name for name in names if name in class_names} - taken
        taken |= members
        if members:
            spans.append((family, start, start + len(members)))
            start += len(members)
    return spans


def class_style(
    class_names: Sequence[str], families: Mapping[str, Sequence[str]] | None = None
) -> dict[str, tuple[str, str]]:
    """Colour and marker of every class; look-alikes of one family differ clearly in both.

    Args:
        class_names: (class,), all different.
        families: Family name to the names of its classes.

    Returns:
        Class name to (colour as #RRGGBB, matplotlib marker), in the order of ``class_names``.
    """
    order = family_order(class_names, families)
    style = {
        class_names[place]: (PALETTE[turn % len(PALETTE)], MARKERS[turn % len(MARKERS)])
        for turn, place in enumerate(order)
    }
    return {name: style[name] for name in class_names}


# matplotlib's settings are the whole process's: a widget that draws beside a cell must wait its turn.
_settings_in_use = threading.RLock()


@contextmanager
def figure_style(context: str = "figure") -> Iterator[None]:
    """The package's matplotlib settings, for the length of a ``with`` block.

    Args:
        context: ``"figure"`` (12 pt, for a page or notebook) or ``"slide"`` (18 pt, for the back row).
    """
    import matplotlib

    if context not in FONT_SIZES:
        raise DataError(f"style context {context!r} is unknown; expected one of {', '.join(FONT_SIZES)}")
    size = FONT_SIZES[context]
    with _settings_in_use, matplotlib.rc_context(_settings(size)):
        yield


def _settings(size: float) -> Any:
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    return {
        "font.family": ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in installed)],
        **dict.fromkeys(("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), size),
        "axes.titlesize": size * 1.15,
        "figure.titlesize": size * 1.3,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "savefig.facecolor": "white",
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.titlelocation": "left",
        "axes.titlepad": size * 0.7,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK),
        "axes.grid": False,
        "lines.linewidth": 2.0,
        "image.interpolation": "nearest",
        "svg.fonttype": "path",
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches that pyplot does not know, so that none can be left open.

    Call it inside ``figure_style``. A notebook shows it as the last expression of a cell.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label_text(name: str, limit: int = 24) -> str:
    """A class name as drawn in a figure: at most ``limit`` characters, a dollar sign being no mathematics.

    A longer name is cut in its middle: names of one set often begin alike.
    """
    name = " ".join(str(name).split())
    if len(name) > limit:
        name = f"{name[: limit // 2].rstrip()}…{name[len(name) - (limit - 1) // 2 :].lstrip()}"
    return name.replace("$", r"\$")


def width_of(ax: Axes) -> float:
    """Present width of the axes in inches; a layout that takes place later may change it."""
    return ax.get_position().width * ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]


def wrap_lines(text: str, width: float, size: float) -> str:
    """Break ``text`` into lines of at most ``width`` inches at ``size`` points, by an average letter's width."""
    columns = max(12, int(width * 72 / (0.55 * size)))
    lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, columns) or [""]]
    return "\n".join(lines).replace("$", r"\$")
