"""Slides for a room: 16:9, text of 18 points or more, charts that can be edited, and where the numbers come from.

Make a :class:`Deck`, ``add`` what :func:`to_slide` makes of figures, :class:`Bars` or words, and ``save`` it.
"""

from __future__ import annotations

import io
import math
import re
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache, partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image, ImageFont
from pptx import Presentation
from pptx.chart.data import CategoryChartData
from pptx.dml.color import RGBColor
from pptx.enum.chart import XL_CHART_TYPE, XL_LABEL_POSITION
from pptx.enum.text import MSO_ANCHOR, MSO_AUTO_SIZE, PP_ALIGN
from pptx.oxml import parse_xml
from pptx.oxml.ns import nsdecls
from pptx.util import Inches, Pt

from gcpl_lab.errors import DataError
from gcpl_lab.storage import write_atomically
from gcpl_lab.views import panels, style
from gcpl_lab.views.letters import letters_of_at_least, shorten
from gcpl_lab.views.plots import figure_files
from gcpl_lab.views.report import read_png

SMALLEST = 18.0  # points; nothing on a slide is written smaller
THINNEST = 0.2  # width of the thinnest letter by its size
LEADING = 1.3  # height of a line by the size of its letters
WIDTH, HEIGHT, MARGIN = 13.333, 7.5, 0.5  # inches
MOST_BARS = 12
FONTS = {"latin": "Arial", "ea": "Yu Gothic", "cs": "Arial"}
"""Latin, East Asian and complex scripts; a program without one takes what it has."""
HANG = 0.4  # inches from a bullet to its line
WIDEST_NAME = 5.0  # inches; the rest of the chart is for the bars


@dataclass(frozen=True)
class Box:
    """A place on a slide, in inches from the upper left corner."""

    left: float
    top: float
    width: float
    height: float

    @property
    def lengths(self) -> list[Inches]:
        return [Inches(value) for value in astuple(self)]


_INNER = WIDTH - 2 * MARGIN
_PLACES = ((0.35, 0.85), (1.25, 1.0), (2.35, 4.4), (1.4, 5.3), (6.85, 0.45))  # top and height
TITLE, MESSAGE, FIGURE, TEXT, LINE = (Box(MARGIN, top, _INNER, height) for top, height in _PLACES)

_COLORS = ("ground", "text", "quiet", "rule", "accent", "on_accent")
THEMES = {
    "light": dict(zip(_COLORS, ("FFFFFF", "1A1A1A", "4D4D4D", "D0D0D0", "0072B2", "FFFFFF"), strict=True)),
    "dark": dict(zip(_COLORS, ("16191D", "F2F2F2", "C4C9CF", "4A5058", "56B4E9", "16191D"), strict=True)),
}


@dataclass(frozen=True)
class Provenance:
    """Where a deck's numbers come from; one line on every slide, and the whole in the notes."""

    seed: int | str  # of the run; several are given as text, such as "0-4"
    checksum: str  # of the data; the first eight characters are shown
    command: str  # makes the numbers again
    version: str = ""  # of gcpl_lab; this one by default

    def line(self, shown: int = 8) -> str:
        """All of it, with so many characters of the checksum, as notes hold it."""
        return self._with(self.command, shown)

    def short_line(self) -> str:
        """What a slide has room for: of a long command the two ends."""
        command, kept = " ".join(self.command.split()), len(self.command)
        while kept > 8 and text_width(self._with(shorten(command, kept)), SMALLEST) > LINE.width:
            kept -= 1
        return self._with(shorten(command, kept))

    def _with(self, command: str, shown: int = 8) -> str:
        # The package stands above this room, but whoever reads this line has loaded it.
        version = self.version or sys.modules["gcpl_lab"].__version__
        return f"{command} · seed {self.seed} · data {self.checksum[:shown]} · gcpl_lab {version}"


@dataclass(frozen=True)
class Bars:
    """Numbers with intervals that become a chart which PowerPoint can edit."""

    names: Sequence[str]  # (bar,), from top to bottom
    values: Sequence[float]  # (bar,); 0 to 1 where unit is "%"
    low: Sequence[float] | None = None  # (bar,), lower ends of the intervals
    high: Sequence[float] | None = None  # (bar,), upper ends
    unit: str = "%"  # written after the number
    axis: str = "accuracy"  # what the bars measure

    def __post_init__(self) -> None:
        count = len(self.names)
        object.__setattr__(self, "names", [printable(name) for name in self.names])
        for title, column in (("values", self.values), ("low", self.low), ("high", self.high)):
            if column is not None and (len(column) != count or not all(map(_is_finite, column))):
                raise DataError(f"Bars: {title} must be {count} finite numbers, one a name; it is {list(column)}")
        if not 1 <= count <= MOST_BARS:
            raise DataError(f"Bars: {count} bars; a slide holds 1 to {MOST_BARS} with names of {SMALLEST:.0f} points")
        for name in self.names:
            if text_width(name, SMALLEST) > WIDEST_NAME:
                raise DataError(f"Bars: the name {name!r} is wider than {WIDEST_NAME} inches at 18 points; shorten it")
        if (self.low is None) != (self.high is None):
            raise DataError("Bars: an interval needs both low and high")
        for name, low, value, high in zip(self.names, self.low or (), self.values, self.high or (), strict=False):
            if not low <= value <= high:
                raise DataError(f"Bars: {name!r} is {value} with the interval {low} to {high}; expected it inside")

    def words(self) -> list[str]:
        """One line a bar: name, number, interval."""
        factor = 100 if self.unit == "%" else 1
        lines = [f"{name}: {factor * x:.1f} {self.unit}" for name, x in zip(self.names, self.values, strict=True)]
        if self.low is None or self.high is None:
            return lines
        ends = [f"{factor * low:.1f} to {factor * high:.1f}" for low, high in zip(self.low, self.high, strict=True)]
        return [f"{line} ({interval})" for line, interval in zip(lines, ends, strict=True)]

    def labels(self) -> list[str]:
        """What stands at the end of each bar."""
        return [f"{100 * x:.1f}%" if self.unit == "%" else f"{x:.1f} {self.unit}".strip() for x in self.values]

    def reach(self) -> np.ndarray | None:
        """How far the intervals go below and above the values, (2, bar), or None without intervals."""
        if self.low is None or self.high is None:
            return None
        return np.abs(np.subtract([self.low, self.high], self.values))


@dataclass(frozen=True)
class Slide:
    """What ``to_slide`` made; ``Deck.add`` takes it."""

    title: str
    message: str | tuple[str, ...]  # what one should see, or the lines of a slide of words
    notes: str  # for the speaker
    alt: str  # what the figure shows
    files: dict[str, bytes]  # ending (png, svg, pdf) to the figure
    bars: Bars | None  # of a native chart

    def __post_init__(self) -> None:
        for name in ("title", "notes", "alt"):
            object.__setattr__(self, name, printable(getattr(self, name)))
        lines = self.message
        message = printable(lines) if isinstance(lines, str) else tuple(printable(line) for line in lines)
        object.__setattr__(self, "message", message)

    @property
    def lines(self) -> Box:
        """The place of a slide's words; bullets hang to the left of it."""
        hang = 0.0 if isinstance(self.message, str) else HANG
        return Box(TEXT.left + hang, TEXT.top, TEXT.width - hang, TEXT.height)

    def texts(self) -> list[tuple[str, str, Box, float]]:
        """Title and message: what each is, its words, its place and its largest size in points."""
        words = self.message if isinstance(self.message, str) else "\n".join(self.message)
        body = ("the message", words, MESSAGE, 22.0) if self.files else ("the text", words, self.lines, 26.0)
        return [("the title", self.title, TITLE, 32.0), body]


def printable(text: str) -> str:
    """Without control characters and halves of characters, which a file of slides cannot hold; line breaks stay."""
    return "".join(
        letter for letter in text if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs", "Cn")
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def slide_figure(width: float = FIGURE.width, height: float = FIGURE.height) -> Figure:
    """An empty figure of the size it has on a slide; call it inside ``style.figure_style("slide")``."""
    return style.new_figure(width, height)


def to_slide(
    figure: Figure | Bars | str | Path | None,
    title: str,
    message: str | Sequence[str],
    notes: str,
    *,
    alt: str | None = None,
) -> Slide:
    """Make one slide of a figure, a chart or words; letters smaller than 18 points are enlarged.

    Args:
        figure: A matplotlib figure, numbers for a native chart, the path of a PNG (an SVG and a PDF of the same
            name beside it are taken along), or None for a slide of words.
        title: What the slide is about, in a line.
        message: What one should see, a sentence or two; for a slide of words, its lines.
        notes: What the speaker says.
        alt: What the figure shows, for those who do not see it; a chart says its numbers itself.

    Raises:
        DataError: No title, no alt text for a figure, or a figure with more words than fit in such letters.
    """
    if not title.strip():
        raise DataError("the slide has no title; every slide needs one that says what it is about")
    words = message if isinstance(message, str) else tuple(message)
    if figure is None:
        return Slide(title, words, notes, "", {}, None)
    if isinstance(figure, Bars):
        described = alt or f"Bar chart of {figure.axis}. " + "; ".join(figure.words()) + "."
        return Slide(title, words, notes, described, _files_of(_draw_bars(figure)), figure)
    if not alt:
        raise DataError(f"slide {title!r}: the figure has no alt text; say in a sentence what it shows")
    if isinstance(figure, str | Path):
        others = [Path(figure).with_suffix(ending) for ending in (".svg", ".pdf")]
        files = {"png": read_png(figure)} | {path.suffix[1:]: path.read_bytes() for path in others if path.is_file()}
        return Slide(title, words, notes, alt, files, None)
    with letters_of_at_least(figure, SMALLEST, FIGURE.width, FIGURE.height, f"slide {title!r}"):
        return Slide(title, words, notes, alt, _files_of(figure), None)


def _files_of(figure: Figure) -> dict[str, bytes]:
    """The figure as PNG (twice the slide's 96 dots an inch), SVG and PDF."""
    return figure_files(figure, ("png", "svg", "pdf"), 192 * max(1.0, FIGURE.width / figure.get_figwidth()))


def _draw_bars(bars: Bars) -> Figure:
    """The native chart as a figure, for the files beside the deck."""
    with style.figure_style("slide"):
        figure = slide_figure()
        ax = figure.subplots()
        names, intervals = [style.label_text(name, 32) for name in bars.names], None
        if bars.low is not None and bars.high is not None:
            intervals = [bars.low, bars.high]
        panels.bar_rows(ax, names, bars.values, [True] * len(names), intervals)
        ax.set_xlabel(bars.axis if bars.unit == "%" else f"{bars.axis} ({bars.unit})")
        ends = bars.values if bars.high is None else bars.high
        for place, (end, text) in enumerate(zip(ends, bars.labels(), strict=True)):
            ax.annotate(text, (end, place), (8, 0), textcoords="offset points", va="center", weight="bold")
        ax.set_xlim(0, 1.2 * max(*ends, 1e-9))
        if bars.unit == "%":
            panels.percent_axis(ax.xaxis)
        figure.draw_without_rendering()
    return figure


def text_width(text: str, points: float) -> float:
    """Inches that a line of bold DejaVu Sans takes: an upper bound for the narrower fonts of offices."""
    letters = "".join(letter for letter in text if unicodedata.east_asian_width(letter) not in "WF")
    return (float(_font().getlength(letters)) / 100 + len(text) - len(letters)) * points / 72


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The font at 100 points; opening it for every word takes longer than all else."""
    path = font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight="bold"))
    return ImageFont.truetype(str(path), 100)


def wrap_text(text: str, points: float, width: float) -> list[str]:
    """Lines of at most ``width`` inches in letters of ``points``; a word that is longer is broken, line ends stay."""
    lines: list[str] = []
    most = int(width * 72 / points / THINNEST) + 1  # letters of a line: a word is looked at line by line
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            if line and text_width(f"{line} {word}", points) > width:
                lines.append(line)
                line = ""
            while text_width(word[:most], points) > width:
                ends = range(1, min(most, len(word)) + 1)
                cut = max(1, bisect_right(ends, width, key=lambda n: text_width(word[:n], points)))
                lines.append(word[:cut])
                word = word[cut:]
            line = f"{line} {word}".strip()
        lines.append(line)
    return lines


def fit_text(text: str, box: Box, largest: float, what: str) -> float:
    """The largest size, from ``largest`` down to 18 points, at which the text stays in its box; else a DataError."""

    def needed_at(points: float) -> float:
        return len(wrap_text(text, points, box.width)) * LEADING * points / 72

    if (needed := needed_at(SMALLEST)) <= box.height:
        return next(points for points in np.arange(largest, SMALLEST - 1, -1) if needed_at(points) <= box.height)
    raise DataError(
        f"{what} {text[:60]!r} needs {needed:.1f} inches at {SMALLEST:.0f} points and has {box.height:.1f}; "
        "shorten it, or put the rest into the speaker notes"
    )


class Deck:
    """Slides in order, written as PPTX with the figures beside it."""

    def __init__(self, provenance: Provenance, theme: str = "light") -> None:
        """Begin an empty ``"light"`` or ``"dark"`` deck; figures keep the white ground that their colours are for."""
        if theme not in THEMES:
            raise DataError(f"theme {theme!r} is unknown; expected one of {', '.join(THEMES)}")
        self.provenance, self.theme, self.slides = provenance, theme, list[Slide]()
        fit_text(provenance.short_line(), LINE, SMALLEST, "the provenance line")

    def add(self, slide: Slide) -> Deck:
        """Append a slide; text that cannot fit is an error now and not on the wall."""
        for what, words, box, largest in slide.texts():
            fit_text(words, box, largest, f"slide {len(self.slides) + 1}: {what}")
        self.slides.append(slide)
        return self

    def save(self, path: str | Path) -> list[Path]:
        """Write the deck, a ``.pptx``, and beside it every figure; the paths are those of the deck and the figures."""
        path = Path(path)
        if path.suffix != ".pptx":
            raise DataError(f"{path}: a deck is written as .pptx; give a path that ends so")
        if not self.slides:
            raise DataError(f"{path}: the deck has no slides; add some before saving")
        deck: Any = Presentation()
        deck.slide_width, deck.slide_height = Inches(WIDTH), Inches(HEIGHT)
        deck.core_properties.title, deck.core_properties.author = self.slides[0].title, "gcpl_lab"
        for slide in self.slides:
            self._build_slide(deck.slides.add_slide(deck.slide_layouts[5]), slide)
        stream = io.BytesIO()  # an archive that cannot be closed for want of room would complain a second time
        deck.save(stream)
        written = [write_atomically(path, partial(Path.write_bytes, data=stream.getvalue()))]
        for place, slide in enumerate(self.slides, 1):
            name = re.sub(r"[^a-z0-9]+", "_", slide.title.lower()).strip("_")[:40] or "slide"
            for ending, content in slide.files.items():
                target = path.with_suffix("") / f"{place:02d}_{name}.{ending}"
                written.append(write_atomically(target, partial(Path.write_bytes, data=content)))
        return written

    def _build_slide(self, page: Any, slide: Slide) -> None:
        colors = THEMES[self.theme]
        page.background.fill.solid()
        page.background.fill.fore_color.rgb = RGBColor.from_string(colors["ground"])
        title, body = slide.texts()
        _write(page.shapes.title, title, colors["text"], bold=True)
        shape = page.shapes.add_textbox(*body[2].lengths)
        _write(shape, body, colors["text"])
        if not isinstance(slide.message, str):
            _hang_bullets(shape)
        if slide.files:
            bars, png = slide.bars, slide.files["png"]
            shape = _add_picture(page, png) if bars is None else _add_chart(page, bars, colors)
            (properties,) = shape._element.xpath(".//p:cNvPr")
            properties.set("descr", slide.alt)
            properties.set("title", slide.title)
        line = ("the provenance line", self.provenance.short_line(), LINE, SMALLEST)
        _write(page.shapes.add_textbox(*LINE.lengths), line, colors["quiet"])
        notes = f"{slide.notes}\n\n" + (f"The picture shows: {slide.alt}\n\n" if slide.alt else "")
        page.notes_slide.notes_text_frame.text = notes + self.provenance.line(shown=64)


def _write(shape: Any, text: tuple[str, str, Box, float], color: str, bold: bool = False) -> None:
    """Words as large as fit their box; sizes are set here because programs disagree on how they shrink text."""
    what, words, box, largest = text
    points = fit_text(words, box, largest, what)
    shape.left, shape.top, shape.width, shape.height = box.lengths
    frame = shape.text_frame
    frame.word_wrap, frame.auto_size, frame.vertical_anchor = True, MSO_AUTO_SIZE.NONE, MSO_ANCHOR.TOP
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = 0
    frame.text = words
    for paragraph in frame.paragraphs:
        paragraph.alignment = PP_ALIGN.LEFT
        for run in paragraph.runs:
            run.font.size, run.font.bold = Pt(points), bold
            _name_fonts(run)
            run.font.color.rgb = RGBColor.from_string(color)


def _name_fonts(run: Any) -> None:
    """A typeface for each kind of script; python-pptx has a call for the first alone (ECMA-376, 21.1.2.3)."""
    run.font.name = FONTS["latin"]
    for kind in ("ea", "cs"):
        run.font._element.append(parse_xml(f'<a:{kind} {nsdecls("a")} typeface="{FONTS[kind]}"/>'))


def _hang_bullets(shape: Any) -> None:
    """A bullet before every line, its further lines below its words (python-pptx has no call for it)."""
    for paragraph in shape.text_frame.paragraphs:
        properties = paragraph._p.get_or_add_pPr()
        properties.set("marL", str(Inches(HANG)))
        properties.set("indent", str(-Inches(HANG)))
        properties.append(parse_xml(f'<a:buChar {nsdecls("a")} char="•"/>'))
        paragraph.space_after = Pt(8)
    shape.left, shape.width = Inches(TEXT.left), Inches(TEXT.width)


def _add_picture(page: Any, png: bytes) -> Any:
    wide, high = Image.open(io.BytesIO(png)).size
    scale = min(FIGURE.width / wide, FIGURE.height / high)
    box = Box(FIGURE.left + (FIGURE.width - wide * scale) / 2, FIGURE.top, wide * scale, high * scale)
    return page.shapes.add_picture(io.BytesIO(png), *box.lengths)


def _add_chart(page: Any, bars: Bars, colors: dict[str, str]) -> Any:
    paint = {name: RGBColor.from_string(color) for name, color in colors.items()}
    data = CategoryChartData(number_format="0.0%" if bars.unit == "%" else f'0.0" {bars.unit}"')
    data.categories = list(bars.names)
    data.add_series(bars.axis, list(bars.values))
    if bars.high is not None:
        data.add_series("upper end of the interval", list(bars.high))
    shape = page.shapes.add_chart(XL_CHART_TYPE.BAR_CLUSTERED, *FIGURE.lengths, data)
    chart, reach = shape.chart, bars.reach()
    chart.has_legend, chart.has_title = False, False
    chart.font.size, chart.font.name, chart.font.color.rgb = Pt(SMALLEST), "Arial", paint["text"]
    chart.category_axis.reverse_order = True
    chart.category_axis.format.line.color.rgb = paint["rule"]
    chart.value_axis.visible, chart.value_axis.has_major_gridlines = False, False
    chart.value_axis.minimum_scale = 0
    chart.value_axis.maximum_scale = 1.3 * max(*bars.values, *(bars.high or (0.0,)), 1e-9)  # labels have room
    plot, series = chart.plots[0], chart.plots[0].series[0]
    plot.gap_width, plot.overlap = 45, 100
    series.format.fill.solid()
    series.format.fill.fore_color.rgb = paint["accent"]
    # A bar without colour reaches to the end of the interval and carries the number there.
    carrier = series if reach is None else plot.series[1]
    if reach is not None:
        carrier.format.fill.background()
    for place, text in enumerate(bars.labels()):
        label = carrier.points[place].data_label
        label.text_frame.text = text
        label.position = XL_LABEL_POSITION.OUTSIDE_END
        for run in label.text_frame.paragraphs[0].runs:
            run.font.size, run.font.bold, run.font.color.rgb = Pt(SMALLEST), True, paint["text"]
    _make_room_for_names(chart, bars.names)
    if reach is not None:
        _add_intervals(series, reach, colors["text"])
    return shape


def _make_room_for_names(chart: Any, names: Sequence[str]) -> None:
    """Every name on one line beside its bar: left to themselves, programs wrap names and skip every second one."""
    left = (max(text_width(name, SMALLEST) for name in names) + 0.15) / FIGURE.width
    sides = {"x": left, "y": 0.01, "w": 0.91 - left, "h": 0.98}
    parts = "".join(f'<c:{side} val="{value:.4f}"/>' for side, value in sides.items())
    area = chart._chartSpace.xpath("c:chart/c:plotArea")[0]
    for old in area.xpath("c:layout"):
        area.remove(old)
    layout = (
        f'<c:layout {nsdecls("c")}><c:manualLayout><c:layoutTarget val="inner"/><c:xMode val="edge"/>'
        f'<c:yMode val="edge"/>{parts}</c:manualLayout></c:layout>'
    )
    area.insert(0, parse_xml(layout))
    skip = parse_xml(f'<c:tickLblSkip {nsdecls("c")} val="1"/>')
    chart.category_axis._element.xpath("c:noMultiLvlLbl")[0].addprevious(skip)


def _add_intervals(series: Any, reach: np.ndarray, color: str) -> None:
    """Error bars with their own length on each side, which python-pptx has no call for (ECMA-376, 21.2.2.55)."""
    parts = ""
    for side, lengths in (("plus", reach[1]), ("minus", reach[0])):  # the order is the standard's
        points = "".join(f'<c:pt idx="{i}"><c:v>{length:.6f}</c:v></c:pt>' for i, length in enumerate(lengths))
        count = f'<c:formatCode>General</c:formatCode><c:ptCount val="{len(lengths)}"/>'
        parts += f"<c:{side}><c:numLit>{count}{points}</c:numLit></c:{side}>"
    element = parse_xml(
        f'<c:errBars {nsdecls("c", "a")}><c:errBarType val="both"/><c:errValType val="cust"/><c:noEndCap val="0"/>'
        f'{parts}<c:spPr><a:ln w="25400"><a:solidFill><a:srgbClr val="{color}"/></a:solidFill></a:ln></c:spPr>'
        "</c:errBars>"
    )
    series._element.xpath("c:cat")[0].addprevious(element)
