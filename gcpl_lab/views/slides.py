"""Slides for a room: 16:9, text of 18 points or more, charts that can be edited, and where the numbers come from.

Example:
    >>> from gcpl_lab.views.slides import Bars, Deck, Provenance, slide_figure, to_slide
    >>> deck = Deck(Provenance(seed=0, checksum="ab12", command="gcpl-lab demo"), theme="light")
    >>> bars = Bars(["GCPL", "Linear probe"], [0.77, 0.76], low=[0.72, 0.71], high=[0.82, 0.81])
    >>> deck.add(to_slide(bars, "Accuracy", "The two are level.", notes="300 test photographs."))
    >>> with figure_style("slide"):
    ...     figure = slide_figure()
    ...     plot_map(figure.subplots(), points, labels, class_names)
    >>> deck.add(to_slide(figure, "The map", "Shirts lie among T-shirts.", notes="", alt="A map of ten classes."))
    >>> deck.save("runs/demo/slides.pptx")
"""

from __future__ import annotations

import io
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.storage import write_atomically
from gcpl_lab.views import style
from gcpl_lab.views.letters import letters_of_at_least

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST = 18.0
"""Points; nothing on a slide is written smaller."""

WIDTH, HEIGHT = 13.333, 7.5
MARGIN = 0.5
FONT = "DejaVu Sans"


@dataclass(frozen=True)
class Box:
    """A place on a slide, in inches from the upper left corner."""

    left: float
    top: float
    width: float
    height: float


_INNER = WIDTH - 2 * MARGIN
TITLE = Box(MARGIN, 0.35, _INNER, 0.85)
MESSAGE = Box(MARGIN, 1.25, _INNER, 1.0)
PICTURE = Box(MARGIN, 2.35, _INNER, 4.4)
TEXT = Box(MARGIN, 1.4, _INNER, 5.3)
LINE = Box(MARGIN, 6.85, _INNER, 0.45)

THEMES = {
    "light": {"ground": "FFFFFF", "text": "1A1A1A", "quiet": "4D4D4D", "accent": "0072B2", "rule": "D0D0D0"},
    "dark": {"ground": "16191D", "text": "F2F2F2", "quiet": "C4C9CF", "accent": "56B4E9", "rule": "4A5058"},
}


@dataclass(frozen=True)
class Provenance:
    """Where a deck's numbers come from; one line on every slide.

    Attributes:
        seed: Of the run; several are given as text, such as "0-4".
        checksum: Of the data; the first eight characters are shown, the whole stands in the notes.
        command: What makes the numbers again.
        version: Of gcpl_lab; this one by default.
    """

    seed: int | str
    checksum: str
    command: str
    version: str = ""

    def line(self) -> str:
        """As shown on the slide."""
        return f"{self.command} · seed {self.seed} · data {self.checksum[:8]} · gcpl_lab {self._version()}"

    def whole(self) -> str:
        """As written in the notes."""
        return (
            f"Command: {self.command}\nSeed: {self.seed}\nData checksum: {self.checksum}\ngcpl_lab: {self._version()}"
        )

    def _version(self) -> str:
        # The package stands above this room, but whoever reads this line has loaded it.
        return self.version or str(sys.modules["gcpl_lab"].__version__)


@dataclass(frozen=True)
class Bars:
    """Numbers with intervals that become a chart which PowerPoint can edit.

    Attributes:
        names: (bar,), from top to bottom.
        values: (bar,); 0 to 1 where ``unit`` is ``"%"``.
        low: (bar,), lower ends of the intervals, or None.
        high: (bar,), upper ends.
        unit: Written after the number.
        axis: What the bars measure.
    """

    names: Sequence[str]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    unit: str = "%"
    axis: str = "accuracy"

    def __post_init__(self) -> None:
        count = len(self.names)
        for title, column in (("values", self.values), ("low", self.low), ("high", self.high)):
            if column is not None and (len(column) != count or not all(math.isfinite(value) for value in column)):
                raise DataError(f"Bars: {title} must be {count} finite numbers, one a name; it is {list(column)}")
        if not 1 <= count <= MOST_BARS:
            raise DataError(f"Bars: {count} bars; a slide holds 1 to {MOST_BARS} with names of {SMALLEST:.0f} points")
        for name in self.names:
            if text_width(name, SMALLEST) > WIDEST_NAME:
                raise DataError(f"Bars: the name {name!r} is wider than {WIDEST_NAME} inches at 18 points; shorten it")
        if (self.low is None) != (self.high is None):
            raise DataError("Bars: an interval needs both low and high")

    def words(self) -> list[str]:
        """One line a bar: name, number, interval."""
        factor, digits = (100, 1) if self.unit == "%" else (1, 1)
        lines = []
        for place, (name, value) in enumerate(zip(self.names, self.values, strict=True)):
            text = f"{name}: {factor * value:.{digits}f} {self.unit}"
            if self.low is not None and self.high is not None:
                text += f" ({factor * self.low[place]:.{digits}f} to {factor * self.high[place]:.{digits}f})"
            lines.append(text)
        return lines


MOST_BARS = 12
WIDEST_NAME = 5.0
"""Inches; the rest of the picture is for the bars."""


@dataclass(frozen=True)
class Slide:
    """What ``to_slide`` made; ``Deck.add`` takes it.

    Attributes:
        title: One line on top.
        message: What one should see, or the lines of a slide of words.
        notes: For the speaker.
        alt: What the picture shows.
        files: Ending (png, svg, pdf) to bytes of the picture.
        bars: Of a native chart.
    """

    title: str
    message: str | tuple[str, ...]
    notes: str
    alt: str
    files: dict[str, bytes]
    bars: Bars | None


def slide_figure(width: float = PICTURE.width, height: float = PICTURE.height) -> Figure:
    """An empty figure of the size of the picture on a slide, so that its letters keep their size.

    Call it inside ``style.figure_style("slide")``.
    """
    return style.new_figure(width, height)


def to_slide(
    figure: Figure | Bars | str | Path | None,
    title: str,
    message: str | Sequence[str],
    notes: str,
    *,
    alt: str | None = None,
) -> Slide:
    """Make one slide of a figure, a chart, a picture or words.

    A figure whose letters would come out smaller than 18 points is laid out anew for the slide, with larger ones.

    Args:
        figure: A matplotlib figure, numbers for a native chart, the path of a PNG (an SVG and a PDF of the same
            name beside it are taken along), or None for a slide of words.
        title: Short.
        message: What one should see, a sentence or two; for a slide of words, its lines.
        notes: What the speaker says.
        alt: What the figure shows, for those who do not see it; a chart says its numbers itself.

    Returns:
        The slide, for ``Deck.add``.

    Raises:
        DataError: No title, no alt text for a picture, or a figure with more words than fit in such letters.
    """
    if not title.strip():
        raise DataError("the slide has no title; every slide needs one that says what it is about")
    words = message if isinstance(message, str) else tuple(message)
    if figure is None:
        return Slide(title, words, notes, "", {}, None)
    if isinstance(figure, Bars):
        drawn = _draw_bars(figure)
        described = alt or f"Bar chart of {figure.axis}. " + "; ".join(figure.words()) + "."
        return Slide(title, words, notes, described, _files_of(drawn), figure)
    if not alt:
        raise DataError(f"slide {title!r}: the picture has no alt text; say in a sentence what it shows")
    if isinstance(figure, str | Path):
        return Slide(title, words, notes, alt, _read_picture(Path(figure)), None)
    with letters_of_at_least(figure, SMALLEST, PICTURE.width, PICTURE.height, f"slide {title!r}"):
        return Slide(title, words, notes, alt, _files_of(figure), None)


def _read_picture(path: Path) -> dict[str, bytes]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such picture; save the figure before the slides") from None
    if not content.startswith(b"\x89PNG"):
        raise ArtifactError(f"{path}: is no PNG; give the PNG that save_figure wrote")
    others = {end: path.with_suffix(f".{end}") for end in ("svg", "pdf")}
    return {"png": content, **{end: other.read_bytes() for end, other in others.items() if other.is_file()}}


def _files_of(figure: Figure) -> dict[str, bytes]:
    """The figure as PNG (twice the slide's 96 dots an inch), SVG and PDF."""
    import matplotlib

    ways: dict[str, dict[str, Any]] = {
        "png": {"dpi": 192 * max(1.0, PICTURE.width / figure.get_figwidth()), "metadata": {"Software": None}},
        "svg": {"metadata": {"Date": None}},
        "pdf": {"metadata": {"CreationDate": None}},
    }
    files = {}
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "gcpl_lab"}):
        for ending, options in ways.items():
            stream = io.BytesIO()
            figure.savefig(stream, format=ending, **options)
            files[ending] = stream.getvalue()
    return files


def _draw_bars(bars: Bars) -> Figure:
    """The native chart as a picture, for the files beside the deck."""
    from matplotlib.ticker import PercentFormatter

    with style.figure_style("slide"):
        figure = slide_figure()
        ax = figure.subplots()
        places = range(len(bars.names))
        ax.barh(places, bars.values, color="#0072B2", height=0.7)
        if bars.low is not None and bars.high is not None:
            reach = [
                [value - low for value, low in zip(bars.values, bars.low, strict=True)],
                [high - value for value, high in zip(bars.values, bars.high, strict=True)],
            ]
            ax.errorbar(bars.values, places, xerr=reach, fmt="none", ecolor=style.INK, capsize=4)
        ax.set_yticks(places, [style.label_text(name, 32) for name in bars.names])
        ax.invert_yaxis()
        ax.set_xlabel(bars.axis if bars.unit == "%" else f"{bars.axis} ({bars.unit})")
        if bars.unit == "%":
            ax.set_xlim(0, 1)
            ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.draw_without_rendering()
    return figure


# ------------------------------------------------------------------------------------------- text that fits


def text_width(text: str, points: float) -> float:
    """Inches that a line of bold DejaVu Sans takes: an upper bound for the narrower fonts of offices."""
    letters = "".join(letter for letter in text if unicodedata.east_asian_width(letter) not in "WF")
    return (float(_letters().getlength(letters)) / 100 + len(text) - len(letters)) * points / 72


@cache
def _letters() -> Any:
    """The font at 100 points; opening it for every word takes longer than all else."""
    from matplotlib import font_manager
    from PIL import ImageFont

    path = font_manager.findfont(font_manager.FontProperties(family=FONT, weight="bold"))
    return ImageFont.truetype(str(path), 100)


def wrap_text(text: str, points: float, width: float) -> list[str]:
    """Lines of at most ``width`` inches; a word that is longer is broken.

    Args:
        text: Any; its own line ends stay.
        points: Size of the letters.
        width: Inches.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            while text_width(word, points) > width:
                cut = next(n for n in range(len(word), 0, -1) if n == 1 or text_width(word[:n], points) <= width)
                lines += [line, word[:cut]] if line else [word[:cut]]
                line, word = "", word[cut:]
            together = f"{line} {word}".strip()
            if text_width(together, points) > width:
                lines.append(line)
                together = word
            line = together
        lines.append(line)
    return lines


LEADING = 1.3
"""Height of a line by the size of its letters."""


def fit_text(text: str, box: Box, largest: float, what: str) -> float:
    """The largest size, from ``largest`` down to 18 points, at which the text stays in its box.

    Raises:
        DataError: It does not fit at 18 points.
    """
    points = largest
    while points >= SMALLEST:
        needed = len(wrap_text(text, points, box.width)) * LEADING * points / 72
        if needed <= box.height:
            return points
        points -= 1
    raise DataError(
        f"{what} {text[:60]!r} needs {needed:.1f} inches at {SMALLEST:.0f} points and has {box.height:.1f}; "
        "shorten it, or put the rest into the speaker notes"
    )


# ---------------------------------------------------------------------------------------------- the deck


class Deck:
    """Slides in order, written as PPTX with the pictures beside it."""

    def __init__(self, provenance: Provenance, theme: str = "light") -> None:
        """Begin an empty deck.

        Args:
            provenance: Shown on every slide.
            theme: ``"light"`` or ``"dark"``; pictures keep their white ground on dark slides, because class colours
                are chosen for it.
        """
        if theme not in THEMES:
            raise DataError(f"theme {theme!r} is unknown; expected one of {', '.join(THEMES)}")
        self.provenance, self.theme, self.slides = provenance, theme, list[Slide]()
        fit_text(provenance.line(), LINE, SMALLEST, "the provenance line")

    def add(self, slide: Slide) -> Deck:
        """Append a slide; text that cannot fit is an error now and not on the wall."""
        fit_text(slide.title, TITLE, 32, f"slide {len(self.slides) + 1}: the title")
        if isinstance(slide.message, str) and slide.files:
            fit_text(slide.message, MESSAGE, 22, f"slide {len(self.slides) + 1}: the message")
        else:
            fit_text(_lines_of(slide), TEXT, 26, f"slide {len(self.slides) + 1}: the text")
        self.slides.append(slide)
        return self

    def save(self, path: str | Path) -> list[Path]:
        """Write the deck and, in a folder of the same name, every picture.

        Args:
            path: Ends in ``.pptx``.

        Returns:
            The deck first, then PNG, SVG and PDF of every picture.
        """
        path = Path(path)
        if path.suffix != ".pptx":
            raise DataError(f"{path}: a deck is written as .pptx; give a path that ends so")
        if not self.slides:
            raise DataError(f"{path}: the deck has no slides; add some before saving")
        deck = self._build()
        written = [write_atomically(path, lambda target: deck.save(str(target)))]
        for place, slide in enumerate(self.slides, 1):
            for ending, content in slide.files.items():
                target = path.with_suffix("") / f"{place:02d}_{_file_name(slide.title)}.{ending}"
                written.append(write_atomically(target, lambda part, content=content: _keep(part, content)))  # type: ignore[misc]
        return written

    def _build(self) -> Any:
        from pptx import Presentation
        from pptx.util import Inches

        deck = Presentation()
        deck.slide_width, deck.slide_height = Inches(WIDTH), Inches(HEIGHT)
        deck.core_properties.title = self.slides[0].title
        deck.core_properties.author = "gcpl_lab"
        for slide in self.slides:
            self._build_slide(deck.slides.add_slide(deck.slide_layouts[5]), slide)
        return deck

    def _build_slide(self, page: Any, slide: Slide) -> None:
        from pptx.dml.color import RGBColor

        colors = THEMES[self.theme]
        page.background.fill.solid()
        page.background.fill.fore_color.rgb = RGBColor.from_string(colors["ground"])
        _write(page.shapes.title, slide.title, TITLE, fit_text(slide.title, TITLE, 32, "title"), colors["text"], True)
        if slide.files:
            message = _lines_of(slide)
            size = fit_text(message, MESSAGE, 22, "message")
            _write(_text_box(page, MESSAGE), message, MESSAGE, size, colors["text"])
            if slide.bars is not None:
                _add_chart(page, slide, colors)
            else:
                _add_picture(page, slide)
        else:
            message = _lines_of(slide)
            _write(_text_box(page, TEXT), message, TEXT, fit_text(message, TEXT, 26, "text"), colors["text"])
        _write(_text_box(page, LINE), self.provenance.line(), LINE, SMALLEST, colors["quiet"])
        notes = f"{slide.notes}\n\n" + (f"The picture shows: {slide.alt}\n\n" if slide.alt else "")
        page.notes_slide.notes_text_frame.text = notes + self.provenance.whole()


def _lines_of(slide: Slide) -> str:
    return slide.message if isinstance(slide.message, str) else "\n".join(f"• {line}" for line in slide.message)


def _keep(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")[:40] or "slide"


def _place(shape: Any, box: Box) -> None:
    from pptx.util import Inches

    shape.left, shape.top, shape.width, shape.height = (
        Inches(value) for value in (box.left, box.top, box.width, box.height)
    )


def _text_box(page: Any, box: Box) -> Any:
    from pptx.util import Inches

    return page.shapes.add_textbox(*(Inches(value) for value in (box.left, box.top, box.width, box.height)))


def _write(shape: Any, text: str, box: Box, points: float, color: str, bold: bool = False) -> None:
    from pptx.dml.color import RGBColor
    from pptx.enum.text import MSO_ANCHOR, MSO_AUTO_SIZE, PP_ALIGN
    from pptx.util import Pt

    _place(shape, box)
    frame = shape.text_frame
    frame.word_wrap, frame.auto_size, frame.vertical_anchor = True, MSO_AUTO_SIZE.NONE, MSO_ANCHOR.TOP
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = 0
    frame.text = text
    for paragraph in frame.paragraphs:
        paragraph.alignment = PP_ALIGN.LEFT
        for run in paragraph.runs:
            run.font.size, run.font.bold, run.font.name = Pt(points), bold, "Arial"
            run.font.color.rgb = RGBColor.from_string(color)


def _describe(shape: Any, title: str, alt: str) -> None:
    (properties,) = shape._element.xpath(".//p:cNvPr")
    properties.set("descr", alt)
    properties.set("title", title)


def _add_picture(page: Any, slide: Slide) -> None:
    from PIL import Image

    wide, high = Image.open(io.BytesIO(slide.files["png"])).size
    scale = min(PICTURE.width / wide, PICTURE.height / high)
    width, height = wide * scale, high * scale
    box = Box(PICTURE.left + (PICTURE.width - width) / 2, PICTURE.top, width, height)
    shape = page.shapes.add_picture(io.BytesIO(slide.files["png"]), 0, 0)
    _place(shape, box)
    _describe(shape, slide.title, slide.alt)


def _add_chart(page: Any, slide: Slide, colors: dict[str, str]) -> None:
    from pptx.chart.data import CategoryChartData
    from pptx.dml.color import RGBColor
    from pptx.enum.chart import XL_CHART_TYPE, XL_LABEL_POSITION
    from pptx.util import Inches, Pt

    bars = slide.bars
    assert bars is not None
    data = CategoryChartData(number_format="0.0%" if bars.unit == "%" else f'0.0" {bars.unit}"')
    data.categories = list(bars.names)
    data.add_series(bars.axis, list(bars.values))
    places = (Inches(value) for value in (PICTURE.left, PICTURE.top, PICTURE.width, PICTURE.height))
    shape = page.shapes.add_chart(XL_CHART_TYPE.BAR_CLUSTERED, *places, data)
    _describe(shape, slide.title, slide.alt)
    chart = shape.chart
    chart.has_legend, chart.has_title = False, False
    chart.font.size, chart.font.name = Pt(SMALLEST), "Arial"
    chart.font.color.rgb = RGBColor.from_string(colors["text"])
    chart.category_axis.reverse_order = True
    chart.category_axis.format.line.color.rgb = RGBColor.from_string(colors["rule"])
    chart.value_axis.visible, chart.value_axis.has_major_gridlines = False, False
    chart.value_axis.minimum_scale = 0
    if bars.unit == "%":
        chart.value_axis.maximum_scale = 1
    plot = chart.plots[0]
    plot.gap_width, plot.has_data_labels = 45, True
    inside = bars.low is not None
    plot.data_labels.font.size, plot.data_labels.font.bold = Pt(SMALLEST), inside
    # Beside the bar a number would lie on the interval; there it stands in the bar's foot.
    plot.data_labels.position = XL_LABEL_POSITION.INSIDE_BASE if inside else XL_LABEL_POSITION.OUTSIDE_END
    written = ("FFFFFF" if colors["accent"] == "0072B2" else "16191D") if inside else colors["text"]
    plot.data_labels.font.color.rgb = RGBColor.from_string(written)
    plot.series[0].format.fill.solid()
    plot.series[0].format.fill.fore_color.rgb = RGBColor.from_string(colors["accent"])
    _make_room_for_names(chart, bars)
    if bars.low is not None and bars.high is not None:
        _add_intervals(plot.series[0], bars, colors["text"])


def _make_room_for_names(chart: Any, bars: Bars) -> None:
    """Every name on one line beside its bar: left to themselves, programs wrap names and skip every second one."""
    from pptx.oxml import parse_xml
    from pptx.oxml.ns import nsdecls

    left = (max(text_width(name, SMALLEST) for name in bars.names) + 0.15) / PICTURE.width
    sides = {"x": left, "y": 0.01, "w": 0.91 - left, "h": 0.98}
    parts = "".join(f'<c:{side} val="{value:.4f}"/>' for side, value in sides.items())
    area = chart._chartSpace.xpath("c:chart/c:plotArea")[0]
    for old in area.xpath("c:layout"):
        area.remove(old)
    area.insert(
        0,
        parse_xml(
            f'<c:layout {nsdecls("c")}><c:manualLayout><c:layoutTarget val="inner"/><c:xMode val="edge"/>'
            f'<c:yMode val="edge"/>{parts}</c:manualLayout></c:layout>'
        ),
    )
    skip = parse_xml(f'<c:tickLblSkip {nsdecls("c")} val="1"/>')
    chart.category_axis._element.xpath("c:noMultiLvlLbl")[0].addprevious(skip)


def _add_intervals(series: Any, bars: Bars, color: str) -> None:
    """Error bars with their own length on each side, which python-pptx has no call for (ECMA-376, 21.2.2.55)."""
    from pptx.oxml import parse_xml
    from pptx.oxml.ns import nsdecls

    assert bars.low is not None
    assert bars.high is not None
    sides = {
        "plus": [high - value for value, high in zip(bars.values, bars.high, strict=True)],
        "minus": [value - low for value, low in zip(bars.values, bars.low, strict=True)],
    }
    parts = ""
    for side, lengths in sides.items():
        points = "".join(f'<c:pt idx="{i}"><c:v>{length:.6f}</c:v></c:pt>' for i, length in enumerate(lengths))
        parts += (
            f"<c:{side}><c:numLit><c:formatCode>General</c:formatCode>"
            f'<c:ptCount val="{len(lengths)}"/>{points}</c:numLit></c:{side}>'
        )
    element = parse_xml(
        f'<c:errBars {nsdecls("c", "a")}><c:errBarType val="both"/><c:errValType val="cust"/><c:noEndCap val="0"/>'
        f'{parts}<c:spPr><a:ln w="25400"><a:solidFill><a:srgbClr val="{color}"/></a:solidFill></a:ln></c:spPr>'
        "</c:errBars>"
    )
    series._element.xpath("c:cat")[0].addprevious(element)
