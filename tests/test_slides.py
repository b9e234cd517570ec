"""Decks opened again: what is on every slide, how large it is, and that nothing lies on anything else."""

import io
from itertools import combinations

import pytest
from PIL import Image
from pptx import Presentation
from pptx.util import Emu

from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.views.letters import letters_of_at_least, shown_texts
from gcpl_lab.views.slides import (
    LEADING,
    MOST_BARS,
    PICTURE,
    SMALLEST,
    TEXT,
    THEMES,
    Bars,
    Box,
    Deck,
    Provenance,
    fit_text,
    slide_figure,
    text_width,
    to_slide,
    wrap_text,
)
from gcpl_lab.views.style import figure_style, new_figure

ORIGIN = Provenance(3, "ab12cd34" * 8, "gcpl-lab demo --seed 3", "9.9")
BARS = Bars(["Zero-shot CLIP, 5 templates", "Linear probe"], [0.7, 0.6], [0.65, 0.5], [0.8, 0.64])


def drawn(context="slide"):
    with figure_style(context):
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


def sides(shape):
    return shape.left, shape.top, shape.left + shape.width, shape.top + shape.height


def test_slides_are_wide_and_nothing_leaves_or_overlaps(saved):
    deck, _ = saved
    assert deck.slide_width / deck.slide_height == pytest.approx(16 / 9, abs=1e-3)
    assert len(deck.slides) == 3
    for page in deck.slides:
        for shape in page.shapes:
            left, top, right, bottom = sides(shape)
            assert left >= 0
            assert top >= 0
            assert right <= deck.slide_width
            assert bottom <= deck.slide_height
        for one, other in combinations(page.shapes, 2):
            a, b = sides(one), sides(other)
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (one.name, other.name)


def test_text_is_large_notes_and_provenance_are_there(saved):
    deck, _ = saved
    for page, said in zip(deck.slides, ("Say hello.", "Numbers.", "Look up."), strict=True):
        runs = [
            run
            for shape in page.shapes
            if shape.has_text_frame
            for part in shape.text_frame.paragraphs
            for run in part.runs
        ]
        assert runs
        assert all(run.font.size.pt >= SMALLEST for run in runs)
        assert any("seed 3" in run.text and "ab12cd34" in run.text and "9.9" in run.text for run in runs)
        notes = page.notes_slide.notes_text_frame.text
        assert said in notes
        assert ORIGIN.checksum in notes


def test_pictures_and_charts_say_what_they_show(saved):
    deck, _ = saved
    chart = next(shape for shape in deck.slides[1].shapes if shape.has_chart)
    picture = deck.slides[2].shapes[2]
    for shape, words in ((chart, "Linear probe: 60.0 % (50.0 to 64.0)"), (picture, "A rising line.")):
        assert words in shape._element.xpath(".//p:cNvPr")[0].get("descr")
    assert picture.width / Emu(914400) * 180 < picture.image.size[0]  # at least 180 dots an inch: twice a screen's


def test_the_chart_is_native_and_holds_numbers_and_intervals(saved):
    deck, _ = saved
    chart = next(shape for shape in deck.slides[1].shapes if shape.has_chart).chart
    assert list(chart.plots[0].categories) == BARS.names
    assert list(chart.series[0].values) == BARS.values
    assert chart.font.size.pt >= SMALLEST
    read = {
        side: [float(value.text) for value in chart._chartSpace.xpath(f".//c:errBars/c:{side}//c:v")]
        for side in ("plus", "minus")
    }
    assert read["plus"] == pytest.approx([0.1, 0.04])
    assert read["minus"] == pytest.approx([0.05, 0.1])


def test_every_picture_lies_beside_the_deck_in_three_formats(saved):
    _, paths = saved
    assert [path.suffix for path in paths] == [".pptx", *(".png", ".svg", ".pdf") * 2]
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".pptx": b"PK"}
    assert all(path.read_bytes().startswith(starts[path.suffix]) for path in paths)
    assert paths[4].name == "03_a_curve.png"


def test_text_shrinks_to_eighteen_points_and_then_is_an_error():
    box = Box(0, 0, 4, 1.0)
    assert fit_text("short", box, 30, "it") == 30
    middle = fit_text("a few words that need two lines", box, 30, "it")
    assert SMALLEST <= middle < 30
    with pytest.raises(DataError, match="shorten it"):
        fit_text("word " * 200, box, 30, "it")
    lines = wrap_text("many words " * 9 + "x" * 60, 18, 4)
    assert all(text_width(line, 18) <= 4 for line in lines)
    assert "".join(lines).replace(" ", "") == "manywords" * 9 + "x" * 60
    assert text_width("shirt", 36) == pytest.approx(2 * text_width("shirt", 18))
    assert text_width("猫", 36) == pytest.approx(0.5)


def test_a_deck_refuses_what_would_overflow():
    deck = Deck(ORIGIN)
    for slide in (
        to_slide(None, "long " * 60, "x", ""),
        to_slide(BARS, "t", "long " * 90, ""),
        to_slide(None, "t", ["long " * 30] * int(TEXT.height * 72 / 18 / LEADING), ""),
    ):
        with pytest.raises(DataError, match="needs .* inches"):
            deck.add(slide)
    assert deck.slides == []


def shown_points(figure):
    """Sizes of the letters where the figure is shown on a slide."""
    scale = min(PICTURE.width / figure.get_figwidth(), PICTURE.height / figure.get_figheight())
    return [text.get_fontsize() * scale for text in shown_texts(figure)]


@pytest.mark.parametrize(("width", "height"), [(12, 4.4), (6.4, 4.8), (7.6, 7.8), (4, 9)])
def test_a_figure_for_a_page_is_laid_out_anew_for_the_slide(width, height):
    with figure_style("figure"):
        figure = new_figure(width, height)
        ax = figure.subplots()
        ax.plot([0, 1], label="a line")
        ax.set(xlabel="steps", ylabel="loss", title="A curve")
        ax.text(0.2, 0.6, "small", size=7)
        ax.legend()
        assert min(shown_points(figure)) < SMALLEST - 1
        with letters_of_at_least(figure, SMALLEST, PICTURE.width, PICTURE.height, "it"):
            assert min(shown_points(figure)) >= SMALLEST - 0.05
            assert figure.get_figwidth() / figure.get_figheight() == pytest.approx(PICTURE.width / PICTURE.height)
        slide = to_slide(figure, "t", "m", "", alt="x")
    assert figure.get_size_inches() == pytest.approx([width, height]), "the figure itself stays as it was"
    assert {text.get_fontsize() for text in ax.texts} == {7}
    picture = Image.open(io.BytesIO(slide.files["png"]))
    assert picture.width == pytest.approx(192 * PICTURE.width, abs=2)
    assert picture.height == pytest.approx(192 * PICTURE.height, abs=2)


def test_a_figure_for_the_slide_is_taken_as_it_is():
    figure = drawn()
    with letters_of_at_least(figure, SMALLEST, PICTURE.width, PICTURE.height, "it"):
        assert figure.get_size_inches() == pytest.approx([PICTURE.width, PICTURE.height])


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
    for names, values, low, high, message in (
        (["a"], [float("nan")], None, None, "finite"),
        (["a"], [0.1, 0.2], None, None, "one a name"),
        (["a"], [0.1], [0.0], None, "both low and high"),
        ([], [], None, None, f"1 to {MOST_BARS}"),
        (["w" * 60], [0.1], None, None, "shorten"),
    ):
        with pytest.raises(DataError, match=message):
            Bars(names, values, low, high)
    with pytest.raises(DataError, match="no alt text"):
        to_slide(drawn(), "t", "m", "")
    with pytest.raises(DataError, match="no title"):
        to_slide(None, " ", "m", "")
    with pytest.raises(ArtifactError, match="no such picture"):
        to_slide(tmp_path / "gone.png", "t", "m", "", alt="x")
    (tmp_path / "text.png").write_text("x")
    with pytest.raises(ArtifactError, match="is no PNG"):
        to_slide(tmp_path / "text.png", "t", "m", "", alt="x")
    with pytest.raises(DataError, match="theme"):
        Deck(ORIGIN, "pink")
    with pytest.raises(DataError, match="no slides"):
        Deck(ORIGIN).save(tmp_path / "a.pptx")
    with pytest.raises(DataError, match="ends so"):
        Deck(ORIGIN).save(tmp_path / "a.ppt")


@pytest.mark.parametrize("theme", list(THEMES))
def test_themes_have_enough_contrast(theme):
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    colors = THEMES[theme]
    inside = "FFFFFF" if theme == "light" else "16191D"
    for text, ground in (
        (colors["text"], colors["ground"]),
        (colors["quiet"], colors["ground"]),
        (inside, colors["accent"]),
    ):
        low, high = sorted((luminance(text), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5
