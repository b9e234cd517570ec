"""The page of a run: whole, escaped, without anything from elsewhere; and its table of methods."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from gcpl_lab.errors import ArtifactError
from gcpl_lab.views.report import ReportFigure, summarise_methods, write_report

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
    Image.new("RGB", (20, 20)).save(tmp_path / "curve.png")
    return ReportFigure("curve", "A curve", "It rises.", tmp_path / "curve.png", 'A rising "line" & no more')


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
    assert "link" not in dict(tags.found)
    (image,) = (attributes for tag, attributes in tags.found if tag == "img")
    assert image["alt"] == 'A rising "line" & no more'
    assert image["src"].startswith("data:image/png;base64,iVBOR")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags.found
    for text in ("Does it?", "Yes.", "It rises.", "not this", "tiny", "gcpl-lab demo --seed 0", "ab12", "two cores"):
        assert text in page
    assert page.index("Yes.") < page.index("It rises.") < page.index("<table") < page.index("What does not hold")


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
    assert summarise_methods([{"name": "x"}], {"x": "Title", "other": "Other"})[0][0] == "Title"


def test_bad_figures_are_named_and_leave_the_old_report(tmp_path, results):
    path, text = tmp_path / "report.html", tmp_path / "text.png"
    path.write_text("old")
    text.write_text("no figure")
    absent = ReportFigure("gone", "", "", tmp_path / "gone.png", "")
    for figures, message in (
        ([absent], "gone.png: no such figure"),
        ([ReportFigure("t", "", "", text, "")], "is no PNG"),
    ):
        with pytest.raises(ArtifactError, match=message):
            write(path, results, figures)
    assert path.read_text() == "old"
