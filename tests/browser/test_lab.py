"""The widgets in JupyterLab: cells run, keys move a slider and the figure changes, the stop button stops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
    "from gcpl_lab.views.moving import moving_tokens\nPlayer(moving_tokens(model.states_, names))",
    """
prompts = ["a photo of a shirt", "a photo of a bag"]
noise = NoiseSlider(diffusion, support.images[9], prompts, timestep=700)
noise
""",
    "evidence = model.evidence(model.encode(support.images))\nClassifierRace(evidence, names, support.images, labels)",
    "PairExplorer(evidence, labels, names, support.images, pair=(names[0], names[2]))",
    """
rng = np.random.default_rng(0)
targets = (rng.random((80, 6)) < 0.3).astype(int)
chances = np.clip(0.5 * targets + 0.6 * rng.random((80, 6)), 0, 1)
many = ["shirt", "coat", "dress", "sneaker", "bag", "sandal"]
ThresholdExplorer(chances, targets, [180, 120, 60, 30, 12, 8], many)
""",
    'SampleReviewer(support.images, "review.csv", labels=[names[c] for c in labels])',
    """
from gcpl_lab.evaluation.costs import Costs
CostExplorer(rng.dirichlet(np.ones(6), 80), np.eye(6, dtype=int)[np.arange(80) % 6], Costs(10.0, 4.0, 1.0))
""",
    'Guess("01.1", "which is more often right?", ["names", "learned prompts"], "guesses.json")',
]
MONITOR, WAITING, AFTER, JOURNEY, NOISE, RACE, PAIR, THRESHOLDS, REVIEW, COSTS, GUESS = range(1, 12)

# What is pressed in each widget.
KEYS = {
    JOURNEY: (".noUi-handle", "ArrowRight"),
    NOISE: (".noUi-handle", "ArrowLeft"),
    RACE: (".noUi-handle >> nth=1", "ArrowLeft"),
    PAIR: ("button >> nth=-2", "Space"),
    THRESHOLDS: (".noUi-handle", "ArrowLeft"),
    REVIEW: ("button:has-text('Reject')", "Space"),
    COSTS: (".noUi-handle", "ArrowRight"),
}


def output_of(page: Any, cell: int) -> Any:
    return page.locator(".jp-CodeCell").nth(cell).locator(".jp-OutputArea-output")


def run(page: Any, cell: int) -> None:
    """Run one cell, as Shift+Enter in it does; again where JupyterLab has forgotten it while the kernel started."""
    code = page.locator(".jp-CodeCell").nth(cell)
    for _ in range(5):
        code.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        for _ in range(50):
            # [*], or a number: the kernel was asked.
            if "[ ]" not in code.locator(".jp-InputPrompt").first.inner_text():
                return
            page.wait_for_timeout(100)
    raise AssertionError(f"cell {cell} was not run")


def png_of(page: Any, cell: int) -> bytes:
    """The PNG that a widget shows now, taken from the page."""
    image = output_of(page, cell).locator("img.widget-image")
    image.wait_for()
    return bytes(image.evaluate("async e => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer()))"))


def check_that_a_key_changes_the_figure(page: Any, cell: int, control: str, key: str) -> None:
    output = output_of(page, cell)
    status, alert = output.locator("[role=status]"), output.get_by_role("alert")
    status.wait_for()
    before, words = png_of(page, cell), str(status.inner_text())
    assert before.startswith(b"\x89PNG")
    output.locator(control).first.press(key)
    # The status line is written after the figure; innerHTML makes a new element each time, so ask by selector.
    status.filter(has_not_text=words).or_(alert).wait_for()
    assert alert.count() == 0, output.inner_text()
    assert png_of(page, cell) != before, f"the words of cell {cell} changed, its figure did not"


def test_widgets_in_jupyterlab(
    lab: Callable[[list[str]], str], open_page: Callable[..., Any], artifacts: Path, tmp_path: Path
) -> None:
    page = open_page(lab(CELLS), height=1400)
    page.locator(".jp-CodeCell").nth(len(CELLS) - 1).wait_for()
    # The name of the kernel is shown before it is there, and a cell that is run too early is forgotten.
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    for cell in range(AFTER + 1):
        run(page, cell)
    running = "cell => /running: update [0-9]+ of/.test(document.querySelectorAll('.jp-CodeCell')[cell].innerText)"
    page.wait_for_function(running, arg=MONITOR)
    # A cell waits for the end by now, and another one for that; the button works nevertheless. The space bar presses
    # a button; Enter belongs to JupyterLab, which opens the cell for writing.
    output_of(page, MONITOR).get_by_role("button", name="Stop").press("Space")
    output_of(page, MONITOR).get_by_text("Training stopped: update").wait_for()
    output_of(page, AFTER).get_by_text("ended after").wait_for()
    assert "(1, 3)" in output_of(page, AFTER).inner_text()
    assert output_of(page, MONITOR).count() == 1, "the widget and its static figure must not both be shown"
    assert output_of(page, WAITING).count() == 0, "the waiting cell must not show the widget again"
    for cell in range(JOURNEY, len(CELLS)):
        run(page, cell)
    for cell, (control, key) in KEYS.items():
        check_that_a_key_changes_the_figure(page, cell, control, key)
    assert (tmp_path / "work" / "review.csv").read_text().count("reject") == 1
    # The play button goes on by itself, through all states.
    check_that_a_key_changes_the_figure(page, JOURNEY, ".widget-play button", "Space")
    output_of(page, GUESS).get_by_role("button", name="learned prompts").press("Space")
    output_of(page, GUESS).get_by_text("guess | 01.1 | learned prompts").wait_for()
    # An error is said in the widget.
    for box in output_of(page, NOISE).locator("input[type=text]").all():
        box.fill("")
        box.press("Enter")
    output_of(page, NOISE).get_by_role("alert").get_by_text("both prompts are empty").wait_for()
    for cell in (MONITOR, *KEYS):
        output_of(page, cell).first.screenshot(path=artifacts / f"widget_{cell}.png")
