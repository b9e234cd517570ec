"""Decks opened again: what is on every slide, how large it is, and that nothing lies on anything else."""

import io
import re
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from pptx import Presentation
from pptx.util import Emu

from gcpl_lab import views
from gcpl_lab.errors import DataError, LabError
from gcpl_lab.views import slides
from gcpl_lab.views.letters import letters_of_at_least, shown_texts
from gcpl_lab.views.slides import FIGURE, SMALLEST, THEMES, Bars, Deck, Provenance, slide_figure, to_slide
from gcpl_lab.views.style import figure_style, new_figure

ORIGIN = Provenance(3, "ab12cd34" * 8, "gcpl-lab demo --seed 3", "9.9")
BARS = Bars(["Zero-shot CLIP, 5 templates", "Linear probe"], [0.7, 0.6], [0.65, 0.5], [0.8, 0.64])


def drawn():
    with figure_style("slide"):
        figure = slide_figure()
        figure.subplots().plot([0, 1])
        figure.draw_without_rendering()
    return figure


@pytest.fixture(scope="module", params=list(THEMES))
def saved(request, tmp_path_factory):
    deck = Deck(ORIGIN, request.param)
    deck.add(to_slide(None, "Words", ["one", "two"], "Say hello."))
    deck.add(to_slide(BARS, "Accuracy", "Level.", "Numbers."))
    deck.add(to_slide(drawn(), "A curve", "It rises.", "Look up.", alt="A rising line."))
    paths = deck.save(tmp_path_factory.mktemp("deck") / "talk.pptx")
    return Presentation(str(paths[0])), paths


def test_slides_are_wide_and_nothing_leaves_or_overlaps(saved):
    deck, _ = saved
    assert deck.slide_width / deck.slide_height == pytest.approx(16 / 9, abs=1e-3)
    assert len(deck.slides) == 3
    for page in deck.slides:
        sides = [(shape.left, shape.top, shape.left + shape.width, shape.top + shape.height) for shape in page.shapes]
        for left, top, right, bottom in sides:
            assert min(left, top, deck.slide_width - right, deck.slide_height - bottom) >= 0
        for a, b in combinations(sides, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_text_is_large_notes_and_provenance_are_there(saved):
    deck, _ = saved
    for page, said in zip(deck.slides, ("Say hello.", "Numbers.", "Look up."), strict=True):
        frames = [shape.text_frame for shape in page.shapes if shape.has_text_frame]
        runs = [run for frame in frames for part in frame.paragraphs for run in part.runs]
        assert min(run.font.size.pt for run in runs) >= SMALLEST
        assert any("seed 3" in run.text and "ab12cd34" in run.text and "9.9" in run.text for run in runs)
        notes = page.notes_slide.notes_text_frame.text
        assert said in notes
        assert ORIGIN.checksum in notes


def test_images_and_charts_say_what_they_show(saved):
    deck, _ = saved
    chart, image = deck.slides[1].shapes[2], deck.slides[2].shapes[2]
    for shape, words in ((chart, "Linear probe: 60.0 % (50.0 to 64.0)"), (image, "A rising line.")):
        assert words in shape._element.xpath(".//p:cNvPr")[0].get("descr")
    assert image.width / Emu(914400) * 180 < image.image.size[0]  # at least 180 dots an inch: twice a screen's


def test_the_chart_is_native_and_holds_numbers_and_intervals(saved):
    deck, _ = saved
    chart = deck.slides[1].shapes[2].chart
    assert list(chart.plots[0].categories) == BARS.names
    assert list(chart.series[0].values) == BARS.values
    assert chart.font.size.pt >= SMALLEST
    for side, expected in (("plus", [0.1, 0.04]), ("minus", [0.05, 0.1])):
        lengths = chart._chartSpace.xpath(f".//c:errBars/c:{side}//c:v")
        assert [float(value.text) for value in lengths] == pytest.approx(expected)


def test_every_figure_lies_beside_the_deck_in_three_formats(saved):
    _, paths = saved
    assert [path.suffix for path in paths] == [".pptx", *(".png", ".svg", ".pdf") * 2]
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".pptx": b"PK"}
    assert all(path.read_bytes().startswith(starts[path.suffix]) for path in paths)
    assert paths[4].name == "03_a_curve.png"


def test_text_shrinks_to_eighteen_points_and_then_is_an_error():
    box = slides.Box(0, 0, 4, 1.0)
    assert slides.fit_text("short", box, 30, "it") == 30
    middle = slides.fit_text("a few words that need two lines", box, 30, "it")
    assert SMALLEST <= middle < 30
    with pytest.raises(DataError, match="shorten it"):
        slides.fit_text("word " * 200, box, 30, "it")
    lines = slides.wrap_text("many words " * 9 + "x" * 60, 18, 4)
    assert all(slides.text_width(line, 18) <= 4 for line in lines)
    assert "".join(lines).replace(" ", "") == "manywords" * 9 + "x" * 60
    assert slides.text_width("shirt", 36) == pytest.approx(2 * slides.text_width("shirt", 18))
    assert slides.text_width("猫", 36) == pytest.approx(0.5)


def test_a_deck_refuses_what_would_overflow():
    deck = Deck(ORIGIN)
    lines = ["long " * 30] * int(slides.TEXT.height * 72 / 18 / slides.LEADING)
    for given in ((None, "long " * 60, "x", ""), (BARS, "t", "long " * 90, ""), (None, "t", lines, "")):
        slide = to_slide(*given)
        with pytest.raises(DataError, match="needs .* inches"):
            deck.add(slide)
    assert deck.slides == []


def smallest_letters(figure):
    """Points where the figure is shown on a slide."""
    scale = min(FIGURE.width / figure.get_figwidth(), FIGURE.height / figure.get_figheight())
    return min(text.get_fontsize() * scale for text in shown_texts(figure))


@pytest.mark.parametrize(("width", "height"), [(12, 4.4), (6.4, 4.8), (7.6, 7.8), (4, 9)])
def test_a_figure_for_a_page_is_laid_out_anew_for_the_slide(width, height):
    with figure_style("figure"):
        figure = new_figure(width, height)
        ax = figure.subplots()
        ax.plot([0, 1], label="a line")
        ax.set(xlabel="steps", ylabel="loss", title="A curve")
        ax.text(0.2, 0.6, "small", size=7)
        ax.legend()
        assert smallest_letters(figure) < SMALLEST - 1
        with letters_of_at_least(figure, SMALLEST, FIGURE.width, FIGURE.height, "it"):
            assert smallest_letters(figure) >= SMALLEST - 0.05
            assert figure.get_figwidth() / figure.get_figheight() == pytest.approx(FIGURE.width / FIGURE.height)
        slide = to_slide(figure, "t", "m", "", alt="x")
    assert figure.get_size_inches() == pytest.approx([width, height]), "the figure itself stays as it was"
    assert {text.get_fontsize() for text in ax.texts} == {7}
    size = Image.open(io.BytesIO(slide.files["png"])).size
    assert size == pytest.approx((192 * FIGURE.width, 192 * FIGURE.height), abs=2)


def test_a_figure_for_the_slide_is_taken_as_it_is():
    with letters_of_at_least(figure := drawn(), SMALLEST, FIGURE.width, FIGURE.height, "it"):
        assert figure.get_size_inches() == pytest.approx([FIGURE.width, FIGURE.height])


@pytest.mark.parametrize("message", ["cut off or lies on other words", "no room is left"])
def test_more_words_than_fit_are_an_error(message):
    with figure_style("figure"):
        figure = new_figure(9, 9)
        ax = figure.subplots()
        if "room" in message:
            ax.set(ylabel="long\n" * 40, xlabel="long\n" * 40)
        else:
            ax.set_yticks(range(30), [f"class {number}" for number in range(30)])
        with pytest.raises(DataError, match=message):
            to_slide(figure, "t", "m", "", alt="x")
    assert figure.get_size_inches() == pytest.approx([9, 9])


def test_bad_input_is_named(tmp_path):
    (tmp_path / "text.png").write_text("x")
    for make, arguments, message in (
        (Bars, (["a"], [float("nan")]), "finite"),
        (Bars, (["a"], [0.1, 0.2]), "one a name"),
        (Bars, (["a"], [0.1], [0.0]), "both low and high"),
        (Bars, ([], []), f"1 to {slides.MOST_BARS}"),
        (Bars, (["w" * 60], [0.1]), "shorten"),
        (to_slide, (drawn(), "t", "m", ""), "no alt text"),
        (to_slide, (None, " ", "m", ""), "no title"),
        (partial(to_slide, alt="x"), (tmp_path / "gone.png", "t", "m", ""), "no such figure"),
        (partial(to_slide, alt="x"), (tmp_path / "text.png", "t", "m", ""), "is no PNG"),
        (Deck, (ORIGIN, "pink"), "theme"),
        (Deck(ORIGIN).save, (tmp_path / "a.pptx",), "no slides"),
        (Deck(ORIGIN).save, (tmp_path / "a.ppt",), "ends so"),
    ):
        with pytest.raises(LabError, match=message):
            make(*arguments)


def contrast(one, other):
    """Of two colours, as WCAG 2 measures it."""
    parts = np.array([to_rgb(f"#{color}") for color in (one, other)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return (high + 0.05) / (low + 0.05)


def test_words_stand_out_from_their_ground_on_slides_and_in_the_report():
    page = (Path(views.__path__[0]) / "report.html.j2").read_text(encoding="utf-8")
    texts, grounds = (re.findall(rf"[ ;{{]{what}: #([0-9a-f]{{6}})", page) for what in ("color", "background"))
    assert (len(texts), len(grounds)) >= (2, 3)
    pairs = [(text, ground) for text in texts for ground in grounds]
    for theme in THEMES.values():
        pairs += [(theme["text"], theme["ground"]), (theme["quiet"], theme["ground"])]
        pairs += [(theme["on_accent"], theme["accent"])]
    assert min(contrast(*pair) for pair in pairs) >= 4.5
