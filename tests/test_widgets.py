"""Widgets without a browser: controls are set, buttons clicked, and the figures and files that follow looked at."""

import base64
import csv
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jupyter_client.manager import start_new_kernel
from PIL import Image

from gcpl_lab import GCPLClassifier
from gcpl_lab.errors import ArtifactError, DataError, TrainingError
from gcpl_lab.evaluation.costs import Costs
from gcpl_lab.gcpl.classifier import Evidence
from gcpl_lab.views import style, widgets
from gcpl_lab.views.moving import moving_tokens
from gcpl_lab.views.widgets.base import View

NAMES = ["bag", "boot", "shirt"]
COSTS = Costs(10.0, 4.0, 1.0)


@pytest.fixture(autouse=True)
def no_figure_is_left_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def measured() -> tuple[Evidence, np.ndarray]:
    """Errors that favour the true class, but for one bag that looks like a shirt; and the labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(6) % 3
    errors = rng.uniform(0.9, 1.1, (6, 3, 8)).astype(np.float32)
    errors[np.arange(6), labels] -= 0.3
    errors[3, 2] -= 0.6
    return Evidence(errors, np.linspace(100, 900, 8).astype(np.int64), errors.size), labels


FOUND, LABELS = measured()
DROPPED = Evidence(FOUND.errors.copy(), FOUND.timesteps, 1)
DROPPED.errors[1, 0, 4:] = np.nan
IMAGES = [np.full((12, 12), 20 * index, np.uint8) for index in range(8)]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    figures = tmp_path / "run" / "figures"
    figures.mkdir(parents=True)
    for name, colour in (("losses", "grey"), ("token_journey", "silver")):
        Image.new("RGB", (160, 100), colour).save(figures / f"{name}.png")
    return figures.parent


def record(step: int, **values: float) -> Any:
    """What the monitor reads of a StepRecord."""
    return SimpleNamespace(step=step, loss=1 / step, values=values, seconds=float(step))


@pytest.fixture
def every_widget(tmp_path: Path, diffusion: Any) -> list[View]:
    rng = np.random.default_rng(1)
    monitor = widgets.TrainingMonitor(iter([record(1)]), num_steps=1)
    monitor.wait()
    return [
        widgets.NoiseSlider(diffusion, IMAGES[7]),
        widgets.ClassifierRace(FOUND, NAMES, IMAGES[:6], LABELS),
        widgets.PairExplorer(FOUND, LABELS, NAMES, IMAGES[:6]),
        widgets.ThresholdExplorer(
            rng.random((20, 3)), rng.integers(0, 2, (20, 3)), [200, 50, 5], NAMES, np.full(3, 0.4)
        ),
        widgets.CostExplorer(rng.dirichlet(np.ones(3), 20), np.eye(3, dtype=int)[np.arange(20) % 3], COSTS),
        widgets.Player(moving_tokens({step: rng.normal(size=(3, 1, 4)) for step in (0, 5, 10)}, NAMES)),
        widgets.SampleReviewer(IMAGES[:2], tmp_path / "review.csv", ids=["a", "b"]),
        monitor,
    ]


def another_value(control: Any) -> Any:
    """What an arrow key makes of a control."""
    if hasattr(control, "options") and not isinstance(control, ipywidgets.Combobox):
        values = [value for _, value in control._options_full]
        return values[(values.index(control.value) + 1) % len(values)]
    if isinstance(control.value, str):
        return f"{control.value} and more"
    return control.value + control.step if control.value + control.step <= control.max else control.value - control.step


def test_every_control_of_every_widget_changes_what_is_shown_and_back(every_widget: list[View]) -> None:
    shown = {type(widget) for widget in every_widget}
    views = {found for name in widgets.__all__ if issubclass(type(found := getattr(widgets, name)), type(View))}
    assert {view for view in views if issubclass(view, View)} == shown
    for widget in every_widget:
        before, said, values = widget.png.value, widget.sentence, [control.value for control in widget._inputs]
        for control in widget._inputs:
            control.value = another_value(control)
            if widget.error is None:  # one class against itself is refused, and the figure stays
                assert (widget.png.value, widget.sentence) != (before, said), control.description
            for back, value in zip(widget._inputs[::-1], values[::-1], strict=True):
                back.value = value
            assert (widget.png.value, widget.sentence, widget.error) == (before, said, None)


def fail() -> None:
    raise ZeroDivisionError("<b>by nothing</b>")


def test_every_widget_carries_its_figure_and_says_what_its_controls_do_and_what_fails(every_widget: list[View]) -> None:
    for widget in every_widget:
        bundle = widget._repr_mimebundle_()
        static = base64.b64decode(bundle["image/png"])
        # A player has the strip of all its states there.
        assert static.startswith(b"\x89PNG")
        assert (static == widget.png.value) is not isinstance(widget, widgets.Player)
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
        assert bundle["text/plain"] == widget.sentence != ""
        assert f'role="status">{widget.sentence[:10]}' in widget.status.value
        with Image.open(io.BytesIO(widget.png.value)) as image:
            assert image.format == "PNG"
            assert image.width > 100
        parts = [part for part in vars(widget).values() if not isinstance(part, ipywidgets.HTML | ipywidgets.Image)]
        for control in (part for part in parts if isinstance(part, ipywidgets.ValueWidget | ipywidgets.Button)):
            assert control.description or isinstance(control, ipywidgets.Play)
            assert not isinstance(control, ipywidgets.Dropdown | ipywidgets.Select), "JupyterLab takes its arrow keys"
            assert control.tooltip or isinstance(control, ipywidgets.IntProgress)
            assert getattr(control, "continuous_update", False) is False, "a slider draws when it is let go"
        widget.guarded(fail)()
        assert isinstance(widget.error, ZeroDivisionError)
        assert 'role="alert"' in widget.problem.value
        assert "ZeroDivisionError: &lt;b&gt;by nothing" in widget.problem.value
        assert "in fail" in widget.problem.value
        widget.guarded(widget.redraw)()
        assert (widget.error, widget.problem.value) == (None, "")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("NoiseSlider", (None, None, ["a", "b", "c"]), "one or two texts"),
        ("NoiseSlider", (None, None, "a photo"), "one or two texts"),
        ("ClassifierRace", (FOUND, NAMES, None, LABELS[:2]), "2 entries; expected 6, one for each image"),
        ("PairExplorer", (FOUND, LABELS, NAMES, IMAGES[:6], LABELS + 1), "a prediction is no index from 0 to 2"),
        ("PairExplorer", (DROPPED, LABELS, NAMES, IMAGES[:6]), r"exact\(\)"),
        ("ThresholdExplorer", (np.ones((2, 2)), np.ones((2, 2), int), [9, 9], ["a"]), "1 entries; expected 2"),
        ("SampleReviewer", (IMAGES[:2],), "give ids"),
        ("SampleReviewer", (IMAGES[:2], "review.csv", ["a", "a"]), "more than one image"),
        ("SampleReviewer", ([],), "no image"),
    ],
)
def test_a_widget_refuses_what_it_cannot_show(name: str, arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        getattr(widgets, name)(*arguments)


def test_monitor_shows_any_objective_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gcpl_lab.views.widgets.training.SECONDS_BETWEEN_FIGURES", 0)
    monitor = widgets.TrainingMonitor((record(step, norm=step / 2) for step in range(1, 6)), num_steps=5)
    monitor.wait()
    assert [record.step for record in monitor.history] == [1, 2, 3, 4, 5]
    assert (monitor.running, monitor.bar.value, monitor.bar.max) == (False, 5, 5)
    assert (monitor.stop_button.disabled, monitor.stop_button.description) == (True, "Finished")
    assert monitor.sentence.startswith("Training finished: update 5 of 5, loss 0.2000; norm 2.5000; ")


def test_stop_button_ends_the_run_and_the_model_predicts(diffusion: Any, pictures: tuple[list[Any], Any]) -> None:
    images, labels = pictures
    settings = {"num_vectors": 1, "num_steps": 10**6, "batch_size": 2, "num_evidence": 2}
    model = GCPLClassifier(objective="discriminative", diffusion=diffusion, **settings)
    monitor = widgets.TrainingMonitor(model.steps(images, labels, NAMES))
    while not monitor.history:
        time.sleep(0.02)
    monitor.stop_button.click()
    monitor.wait()
    last = monitor.history[-1].step
    assert last < 10**6
    assert monitor.sentence.startswith(f"Training stopped: update {last}, ")
    assert not any(thread.name == "gcpl_lab training" for thread in threading.enumerate())
    assert np.array_equal(model.states_[last], model.prompts_.vectors.detach())
    np.testing.assert_allclose(model.predict_proba(images[:2]).sum(axis=1), np.ones(2))


@pytest.mark.parametrize("error", [TrainingError("lower the learning rate"), KeyError("lower the learning rate")])
def test_error_of_a_run_is_shown_and_raised_where_it_is_waited_for(error: Exception) -> None:
    def broken() -> Iterator[Any]:
        yield record(1)
        raise error

    monitor = widgets.TrainingMonitor(broken())
    with pytest.raises(type(error), match="lower the learning rate"):
        monitor.wait()
    assert "lower the learning rate" in monitor.problem.value
    assert ("those of the last update" in monitor.problem.value) == isinstance(error, KeyError)
    assert (monitor.stop_button.description, len(monitor.history)) == ("Failed", 1)


def test_drawing_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: an update takes a second, a figure two, so a figure may come every 18 updates."""
    clock, drawn = [0.0], []

    def redraw(self: widgets.TrainingMonitor) -> None:
        drawn.append((self._phase, clock[0]))
        clock[0] += 2

    def slow_records() -> Iterator[Any]:
        for step in range(1, 101):
            clock[0] += 1
            yield record(step)

    monkeypatch.setattr("gcpl_lab.views.widgets.training.SECONDS_BETWEEN_FIGURES", 5)
    monkeypatch.setattr("gcpl_lab.views.widgets.training.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(widgets.TrainingMonitor, "redraw", redraw)
    widgets.TrainingMonitor(slow_records()).wait()
    times = [at for phase, at in drawn if phase == "running"]
    assert times[0] == 2 + 5
    assert np.diff(times).tolist() == [2 + 18] * 5


def test_noise_slider_changes_figure_and_errors(diffusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    view = widgets.NoiseSlider(diffusion, IMAGES[7], ["a photo of a bag", "a shirt"], timestep=100)
    before, sentence = view.png.value, view.sentence
    view.timestep.value = 900
    assert view.png.value != before
    assert "Timestep 900 of 1000: error" in view.sentence
    view.timestep.value = 100
    assert view.sentence == sentence
    view.prompts[1].value = ""
    assert "is better by" not in view.sentence
    view.prompts[0].value = " "
    assert isinstance(view.error, DataError)
    assert "both prompts are empty" in view.problem.value
    view.prompts[1].value = "a boot"
    assert view.error is None
    # The estimate of a perfect denoiser is the image itself.
    monkeypatch.setattr(diffusion, "predict_noise", lambda noisy, steps, hidden: view._noise)
    _, estimate, errors = view._denoise(600, ["a bag"])
    assert errors == [0.0]
    np.testing.assert_allclose(estimate, view._latent, atol=1e-4)


def test_race_says_who_leads_and_who_is_left() -> None:
    view = widgets.ClassifierRace(DROPPED, NAMES, IMAGES[:6], LABELS)
    view.image.value = 1
    assert "After 8 of 8 samples boot leads" in view.sentence
    assert "2 of 3 classes are in. It is a boot." in view.sentence
    before = view.png.value
    view.samples.value = 2
    assert view.png.value != before
    assert "3 of 3 classes are in" in view.sentence
    assert widgets.ClassifierRace(FOUND, NAMES).png.value


def test_pair_explorer_starts_with_the_most_confused_pair_and_counts_its_mistakes() -> None:
    view = widgets.PairExplorer(FOUND, LABELS, NAMES, IMAGES[:6])
    assert {view.first.value, view.second.value} == {"bag", "shirt"}
    assert "1 of 2 bag are taken for shirt" in view.sentence
    assert "0 of 2 shirt are taken for bag" in view.sentence
    view.second.value = view.first.value
    assert "choose two different ones" in view.problem.value
    view = widgets.PairExplorer(FOUND, LABELS, NAMES, IMAGES[:6], predicted=LABELS, pair=("bag", "shirt"))
    assert "0 of 2 bag are taken for shirt" in view.sentence
    errors = np.array([[[1.0, 2.0], [3.0, 2.0]]], np.float32)
    view = widgets.PairExplorer(Evidence(errors, np.array([100, 500]), 4), [0], ["a", "b"], IMAGES[:1])
    assert "evidence strongest at t = 100: +100.0%" in view.sentence  # (3 − 1) / 2, against (2 − 2) / 2


def test_threshold_explorer_moves_between_fitted_and_common_thresholds() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (30, 3))
    view = widgets.ThresholdExplorer(rng.random((30, 3)), targets, [200, 50, 5], NAMES, np.array([0.2, 0.5, 0.8]))
    assert view.sentence.startswith("The fitted thresholds give")
    fitted = view.png.value
    view.threshold.value = 0.0
    assert view.source.value == "one for all classes"
    assert "recall 100%" in view.sentence
    assert "90 labels are predicted" in view.sentence
    everything = view.png.value
    view.part.value = "tail"
    assert view.error is None
    assert len({fitted, everything, view.png.value}) == 3
    view = widgets.ThresholdExplorer(np.ones((2, 2)), np.ones((2, 2), int), [200, 300], ["a", "b"])
    view.part.value = "medium"
    assert "no class is in the part" in view.problem.value


def test_review_writes_every_decision_and_resumes_after_a_restart(tmp_path: Path) -> None:
    path, images, ids = tmp_path / "review.csv", IMAGES[:3], ["a", "b", "c"]
    view = widgets.SampleReviewer(images, path, ids, labels=["bag"] * 3)
    assert not path.exists()
    view.reason.value = 'too "dark", cut off'
    view.reject.click()
    (row,) = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    assert row.pop("decided_at")
    assert row == {"id": "a", "label": "bag", "decision": "reject", "reason": 'too "dark", cut off'}
    assert (view.present_id, view.reason.value) == ("b", "")
    again = widgets.SampleReviewer(images, path, ids)
    assert (again.present_id, again.bar.value) == ("b", 1)
    again.accept.click()
    again.accept.click()
    assert "All are decided" in again.sentence
    assert list(tmp_path.iterdir()) == [path], "nothing half written is left"
    # A decision can be taken again, and rows of another round stay.
    other = widgets.SampleReviewer(images[:2], path, ["a", "d"])
    other.back.click()
    assert (other.present_id, other.reason.value) == ("a", 'too "dark", cut off')
    other.accept.click()
    decisions = {name: row["decision"] for name, row in widgets.review.read_review(path).items()}
    assert decisions == {"a": "accept", "b": "accept", "c": "accept"}
    assert other.present_id == "d"


def test_a_decision_that_cannot_be_written_does_not_count(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = widgets.SampleReviewer(sorted(run_folder.glob("figures/*.png")), run_folder / "review.csv")
    full = Mock(side_effect=ArtifactError("review.csv: cannot be written (No space left on device)"))
    monkeypatch.setattr("gcpl_lab.views.widgets.review.write_text", full)
    view.accept.click()
    assert (view.present_id, view.decisions) == ("figures/losses.png", {})  # named by its path
    assert "No space left on device" in view.problem.value
    assert "decide again" in view.problem.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,verdict\na,yes\n", "its columns are"),
        ("id,label,decision,reason,decided_at\na,,maybe,,\n", "line 2: the decision is 'maybe'"),
        ("id,label,decision,reason,decided_at\na,,accept,,\na,,reject,,\n", "line 3: 'a' was decided before"),
    ],
)
def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "review.csv"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=message):
        widgets.SampleReviewer(IMAGES[:1], path, ["a"])
    assert path.read_text() == text


def test_drawing_in_two_threads_leaves_the_settings_as_they_were() -> None:
    """Without turns, the first to enter restores the settings while the second is still drawing."""
    before, entered = dict(matplotlib.rcParams), threading.Event()

    def draw() -> None:
        with style.figure_style("slide"):
            entered.set()
            time.sleep(0.05)

    other = threading.Thread(target=draw)
    other.start()
    entered.wait()
    draw()
    other.join()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_a_notebook_run_without_browser_keeps_the_finished_figure(tmp_path: Path) -> None:
    """Of the monitor too, whose first figure is an empty one; nbconvert shows it where there is no widget state."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    cells = [
        "from types import SimpleNamespace\n"
        "from gcpl_lab.views.widgets import TrainingMonitor\n"
        "records = (SimpleNamespace(step=i, loss=1 / i, values={}, seconds=0.1) for i in range(1, 9))\n"
        "monitor = TrainingMonitor(records, num_steps=8)\nmonitor",
        "monitor.wait()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", store_widget_state=False)
    client.execute(cwd=str(Path(__file__).parents[1]))
    (output,) = notebook.cells[0].outputs
    assert notebook.cells[1].outputs == []
    assert "Training finished: update 8 of 8" in output.data["text/plain"]
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert output.data["image/png"].strip()[:200] in page.replace("\n", "")


KERNEL_SECONDS = 120
MONITOR = """
import time
from types import SimpleNamespace
from gcpl_lab.views.widgets import TrainingMonitor
def endless():
    step, stop = 0, None
    while not stop:
        time.sleep(0.01)
        step += 1
        stop = yield SimpleNamespace(step=step, loss=1 / step, values={}, seconds=0.01 * step)
monitor = TrainingMonitor(endless())
print(monitor.stop_button.comm.comm_id)
"""


def printed(client: Any) -> str:
    """The next text that a cell prints."""
    while True:
        message = client.get_iopub_msg(timeout=KERNEL_SECONDS)
        assert message["msg_type"] != "error", message["content"]
        if message["msg_type"] == "stream" and (text := str(message["content"]["text"]).strip()):
            return text


def click(client: Any, comm: str) -> None:
    """What JupyterLab sends when a button is clicked: a message for a subshell, which runs beside the cell."""
    client.control_channel.send(client.session.msg("create_subshell_request", {}))
    subshell = client.get_control_msg(timeout=KERNEL_SECONDS)["content"]["subshell_id"]
    data = {"method": "custom", "content": {"event": "click"}}
    message = client.session.msg("comm_msg", {"comm_id": comm, "data": data})
    message["header"]["subshell_id"] = subshell
    client.shell_channel.send(message)


@pytest.mark.timeout(600)
def test_a_run_that_a_cell_waits_for_stops_by_its_button_and_by_an_interrupt() -> None:
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=KERNEL_SECONDS)
    try:
        for how in ("button", "interrupt"):
            client.execute(MONITOR)
            comm = printed(client)
            client.execute("print('waits', flush=True)\nmonitor.wait()\nprint('ended:', monitor.sentence)")
            assert printed(client) == "waits"
            time.sleep(0.5)  # from the printed word to the waiting itself
            client.execute("print('next cell')")
            if how == "button":
                click(client, comm)
            else:
                manager.interrupt_kernel()
            assert printed(client).startswith("ended: Training stopped: update")
            assert printed(client) == "next cell"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
