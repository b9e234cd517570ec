import re
from html.parser import HTMLParser

import numpy as np
import pytest

from gcpl_lab.errors import ArtifactError
from gcpl_lab.views.plots import save_figure
from gcpl_lab.views.report import ReportFigure, summarise_methods, write_report
from gcpl_lab.views.style import figure_style, new_figure

EVIL = "<script>alert('shirt')</script>"


def method(name, accuracy, seed=0, **more):
    measured = {"accuracy_within_family": 0.5, "denoiser_evaluations": 60_000, "train_seconds": 45.4}
    return {"name": name, "seed": seed, "accuracy": accuracy, **measured, "predict_seconds": 2.06, **more}


@pytest.fixture
def results():
    return {
        "data": {"name": "fashion", "checksum": "ab12", "classes": ["shirt", EVIL], "shots": 16, "test_size": 300},
        "machine": {"processor": "two cores"},
        "versions": {"torch": "2.9"},
        "methods": [method("linear probe", 0.7, denoiser_evaluations=None), method("GCPL", 0.8)],
    }


@pytest.fixture
def figure(tmp_path):
    with figure_style():
        drawn = new_figure(2, 2)
        drawn.subplots().plot(np.arange(3))
    png, _ = save_figure(drawn, tmp_path, "curve")
    return ReportFigure("curve", "A curve", "It rises.", png, 'A rising "line" & no more')


class Tags(HTMLParser):
    """Every opening tag with its attributes, and the order in which tags are closed."""

    void = ("meta", "img")

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def write(path, results, figures=(), **more):
    options = {"question": "Does it?", "answer": "Yes.", "caveats": ["not this"], "limits": ["tiny"], **more}
    return write_report(path, results, figures, **options).read_text(encoding="utf-8")


def test_page_is_whole_self_contained_and_without_script(tmp_path, results, figure):
    page = write(tmp_path / "report.html", results, [figure], command="gcpl-lab demo --seed 0")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not re.search(r"https?:", page)
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    kinds = [tag for tag, _ in tags.found]
    assert "link" not in kinds
    pictures = [attributes for tag, attributes in tags.found if tag == "img"]
    assert [picture["alt"] for picture in pictures] == ['A rising "line" & no more']
    assert all(picture["src"].startswith("data:image/png;base64,iVBOR") for picture in pictures)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags.found
    for text in ("Does it?", "Yes.", "It rises.", "not this", "tiny", "gcpl-lab demo --seed 0", "ab12", "two cores"):
        assert text in page
    assert page.index("Yes.") < page.index("<table") < page.index("It rises.") < page.index("What does not hold")


def test_sections_without_content_are_left_out(tmp_path, results):
    page = write(tmp_path / "report.html", results, caveats=[], limits=[])
    for heading in ("What does not hold", "Limits", "What it looks like", "Command"):
        assert heading not in page
    assert "One seed" in page


def test_methods_are_gathered_over_seeds_and_sorted():
    rows = summarise_methods([method("probe", 0.6), method("GCPL", 0.7, 0), method("GCPL", 0.8, 1)])
    # The standard deviation of 70 and 80 with one degree of freedom less is 7.07.
    assert rows[0] == ("GCPL (2 seeds)", "75.0 ± 7.1 %", "50.0 ± 0.0 %", "60,000", "45", "2.1")
    assert rows[1][:2] == ("probe", "60.0 %")


def test_what_was_not_measured_is_a_dash(results):
    assert summarise_methods(results["methods"])[1] == ("linear probe", "70.0 %", "50.0 %", "–", "45", "2.1")
    assert summarise_methods([{"name": "x"}]) == [("x", "–", "–", "–", "–", "–")]


def test_text_is_dark_enough_on_its_ground(tmp_path, results):
    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    page = write(tmp_path / "report.html", results)
    texts = re.findall(r"[ ;{]color: (#[0-9a-f]{6})", page)
    grounds = re.findall(r"background: (#[0-9a-f]{6})", page)
    assert len(texts) >= 2
    assert len(grounds) >= 3
    for text in texts:
        for ground in grounds:
            assert (luminance(ground) + 0.05) / (luminance(text) + 0.05) >= 4.5


def test_bad_results_and_pictures_are_named_and_leave_the_old_report(tmp_path, results, figure):
    path = tmp_path / "report.html"
    path.write_text("old")
    absent = ReportFigure("gone", "", "", tmp_path / "gone.png", "")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for broken, figures, message in (
        ({}, [], "results has no 'data'"),
        ({**results, "data": {"name": "x"}}, [], "has no 'shots'"),
        ({**results, "methods": [{}]}, [], r"methods'\]\[0\] has no 'name'"),
        (results, [absent], "gone.png: no such picture"),
        (results, [ReportFigure("t", "", "", text, "")], "is no PNG"),
    ):
        with pytest.raises(ArtifactError, match=message):
            write(path, broken, figures)
    assert path.read_text() == "old"


def test_methods_are_shown_by_their_titles() -> None:
    methods = [{"name": "gcpl", "seed": 0, "accuracy": 0.5}, {"name": "own", "seed": 0, "accuracy": 0.4}]
    assert [row[0] for row in summarise_methods(methods, {"gcpl": "GCPL", "other": "Other"})] == ["GCPL", "own"]
    assert [row[0] for row in summarise_methods(methods)] == ["gcpl", "own"]
