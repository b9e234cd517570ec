"""The views in JupyterLab: cells run, keys move a slider and the picture changes, the stop button stops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pptx import Presentation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# One cell each; the number of a cell below is its place here.
CELLS = [
    """
import numpy as np
from gcpl_lab import FrozenDiffusion, GCPLClassifier, load_fashion
from gcpl_lab.views.widgets import *
diffusion = FrozenDiffusion.load("tiny")
support = load_fashion("support")
support = support.subset([i for c in (0, 2, 6) for i in np.flatnonzero(support.labels == c)[:4]])
names = [support.class_names[c] for c in (0, 2, 6)]
labels = np.repeat(np.arange(3), 4)
model = GCPLClassifier("tiny", num_steps=100_000, batch_size=4, num_evidence=8, diffusion=diffusion)
model.journey_every = 2
""",
    'monitor = TrainingMonitor(model.steps(support.images, labels, names), num_steps=100_000, title="GCPL")\nmonitor',
    "monitor.wait()",
    'print("ended after", len(monitor.history), model.predict_proba(support.images[:1]).shape)',
    "JourneySlider(model.states_, names)",
    'prompts = ["a photo of a shirt", "a photo of a bag"]\n'
    "noise = NoiseSlider(diffusion, support.images[9], prompts, timestep=700)\nnoise",
    "evidence = model.evidence(model.encode(support.images))\nClassifierRace(evidence, names, support.images, labels)",
    "PairExplorer(evidence, labels, names, support.images, pair=(names[0], names[2]))",
    "rng = np.random.default_rng(0)\n"
    "targets = (rng.random((80, 6)) < 0.3).astype(int)\n"
    "chances = np.clip(0.5 * targets + 0.6 * rng.random((80, 6)), 0, 1)\n"
    'many = ["shirt", "coat", "dress", "sneaker", "bag", "sandal"]\n'
    "ThresholdExplorer(chances, targets, [180, 120, 60, 30, 12, 8], many)",
    'SampleReviewer(support.images, "review.csv", labels=[names[c] for c in labels])',
    """
from pathlib import Path
from gcpl_lab.views.slides import Provenance
Path("figures").mkdir()
for name, view in {"losses": monitor, "noise and its removal": noise}.items():
    Path(f"figures/{name}.png").write_bytes(view.picture.value)
SlideBuilder(".", "deck.pptx", Provenance(seed=0, checksum="0" * 64, command="gcpl-lab demo"))
""",
]
MONITOR, WAITING, AFTER, JOURNEY, NOISE, RACE, PAIR, THRESHOLDS, REVIEW, SLIDES = range(1, 11)


def output_of(page: Any, cell: int) -> Any:
    return page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea-output")


def run(page: Any, cell: int) -> None:
    """Run one cell, as Shift+Enter in it does; again where JupyterLab has forgotten it while the kernel started."""
    code = page.locator(".jp-CodeCell").nth(cell)
    for _ in range(5):
        code.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        for _ in range(50):
            if (
                "[ ]" not in code.locator(".jp-InputPrompt").first.inner_text()
            ):  # [*], or a number: the kernel was asked
                return
            page.wait_for_timeout(100)
    raise AssertionError(f"cell {cell} was not run")


def picture_of(page: Any, cell: int) -> bytes:
    """The PNG that a view shows now, taken from the page."""
    image = output_of(page, cell).locator("img.widget-image")
    image.wait_for()
    return bytes(image.evaluate("async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))"))


def words_of(page: Any, cell: int) -> str:
    return str(output_of(page, cell).locator("[role=status]").inner_text())


def check_that_a_key_changes_the_picture(page: Any, cell: int, control: str, key: str) -> None:
    before, words = picture_of(page, cell), words_of(page, cell)
    assert before.startswith(b"\x89PNG")
    output_of(page, cell).locator(control).first.press(key)
    # The status line is written after the picture; innerHTML makes a new element each time, so ask by selector.
    output_of(page, cell).locator("[role=status]").filter(has_not_text=words).or_(
        output_of(page, cell).get_by_role("alert")
    ).wait_for()
    assert output_of(page, cell).get_by_role("alert").count() == 0, output_of(page, cell).inner_text()
    assert picture_of(page, cell) != before, f"the words of cell {cell} changed, its picture did not"


def check_the_slide_builder(page: Any, artifacts: Path, deck: Path) -> None:
    """What does not fit is said; what is written and added is in the deck."""
    view = output_of(page, SLIDES)

    def press(button: str, then: str) -> None:
        view.get_by_role("button", name=button).press("Space")
        view.get_by_text(then).wait_for()

    press("Add slide", "the slide has no title")
    words = ["One step of denoising", "The right prompt is nearer.", "Point at the errors.", "Four small pictures."]
    for box, text in zip(view.locator("input[type=text]").all(), words, strict=True):
        box.fill(text)
        box.press("Enter")
    press("Add slide", "Slide 1 was added.")
    assert view.get_by_role("alert").count() == 0
    view.first.screenshot(path=artifacts / "slide_builder.png")
    press("Save deck", "deck.pptx and 1 pictures were written.")
    (slide,) = Presentation(str(deck)).slides
    written = [shape.text_frame.text for shape in slide.shapes if shape.has_text_frame]
    assert words[:2] == written[:2]
    assert words[2] in slide.notes_slide.notes_text_frame.text


def test_views_in_jupyterlab(
    lab: Callable[[list[str]], str], open_page: Callable[..., Any], artifacts: Path, tmp_path: Path
) -> None:
    page = open_page(lab(CELLS), height=1400)
    page.locator(".jp-CodeCell").nth(len(CELLS) - 1).wait_for()
    # The name of the kernel is shown before it is there, and a cell that is run too early is forgotten.
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    for cell in range(AFTER + 1):
        run(page, cell)
    page.wait_for_function(
        "cell => /running: update [0-9]+ of 100000/.test(document.querySelectorAll('.jp-CodeCell')[cell].innerText)",
        arg=MONITOR,
    )
    output_of(page, MONITOR).first.screenshot(path=artifacts / "monitor_running.png")
    # A cell waits for the end by now, and another one for that; the button is heard nevertheless. The space bar
    # presses a button; Enter belongs to JupyterLab, which opens the cell for writing.
    output_of(page, MONITOR).get_by_role("button", name="Stop").press("Space")
    output_of(page, MONITOR).get_by_text("Training stopped: update").wait_for()
    output_of(page, AFTER).get_by_text("ended after").wait_for()
    assert "(1, 3)" in output_of(page, AFTER).inner_text()
    assert output_of(page, MONITOR).count() == 1, "the view and its picture must not both be shown"
    assert output_of(page, WAITING).count() == 0, "the waiting cell must not show the view again"

    for cell in range(JOURNEY, len(CELLS)):
        run(page, cell)
    for cell in (JOURNEY, NOISE, RACE, PAIR, THRESHOLDS, REVIEW, SLIDES):
        output_of(page, cell).locator("[role=status]").wait_for()
    for cell, control, key in (
        (JOURNEY, ".noUi-handle", "ArrowLeft"),
        (NOISE, ".noUi-handle", "ArrowLeft"),
        (RACE, ".noUi-handle >> nth=1", "ArrowLeft"),
        (PAIR, "button >> nth=-2", "Space"),
        (THRESHOLDS, ".noUi-handle", "ArrowLeft"),
        (REVIEW, "button:has-text('Reject')", "Space"),
        (SLIDES, "button:has-text('noise')", "Space"),
    ):
        check_that_a_key_changes_the_picture(page, cell, control, key)
    assert (tmp_path / "work" / "review.csv").read_text().count("reject") == 1

    for cell, name in (
        (MONITOR, "monitor"),
        (JOURNEY, "journey"),
        (NOISE, "noise"),
        (RACE, "race"),
        (PAIR, "pair"),
        (THRESHOLDS, "thresholds"),
        (REVIEW, "reviewer"),
    ):
        output_of(page, cell).first.screenshot(path=artifacts / f"{name}.png")
    check_the_slide_builder(page, artifacts, tmp_path / "work" / "deck.pptx")

    # An error is said in the view, and goes away with its cause.
    for box in output_of(page, NOISE).locator("input[type=text]").all():
        box.fill("")
        box.press("Enter")
    alert = output_of(page, NOISE).get_by_role("alert")
    alert.wait_for()
    assert "both prompts are empty" in alert.inner_text()
    output_of(page, NOISE).first.screenshot(path=artifacts / "noise_error.png")
