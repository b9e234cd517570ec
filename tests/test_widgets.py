"""Widgets without a browser: controls are set, buttons clicked, and the pictures and files that follow looked at."""

import csv
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.errors import ArtifactError, DataError, TrainingError
from gcpl_lab.gcpl.classifier import Evidence, class_scores
from gcpl_lab.training.loop import StepRecord
from gcpl_lab.views.stepwise import plot_race, race_leads, race_order, threshold_table
from gcpl_lab.views.widgets import (
    ClassifierRace,
    JourneySlider,
    NoiseSlider,
    PairExplorer,
    SampleReviewer,
    SlideBuilder,
    ThresholdExplorer,
    TrainingMonitor,
    View,
)

NAMES = ["bag", "boot", "shirt"]


@pytest.fixture(autouse=True)
def no_figure_is_left_open() -> Iterator[None]:
    import matplotlib.pyplot as plt

    yield
    assert plt.get_fignums() == []


def evidence(num_images: int = 6, num_samples: int = 8) -> tuple[Evidence, np.ndarray]:
    """Errors that favour the true class, but for one bag that looks like a shirt."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_images) % 3
    errors = rng.uniform(0.9, 1.1, (num_images, 3, num_samples)).astype(np.float32)
    errors[np.arange(num_images), labels] -= 0.3
    errors[3, 2] -= 0.6
    return Evidence(errors, np.linspace(100, 900, num_samples).astype(np.int64), errors.size), labels


def grey_pictures(count: int) -> list[np.ndarray]:
    return [np.full((12, 12), 20 * index, np.uint8) for index in range(count)]


def is_picture(view: View) -> bool:
    with Image.open(io.BytesIO(view.picture.value)) as image:
        return image.format == "PNG" and image.width > 100


# ------------------------------------------------------------------------------------------- every view


def every_view(folder: Path) -> list[View]:
    found, labels = evidence()
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (20, 3))
    return [
        JourneySlider({step: rng.normal(size=(3, 2, 5)) for step in (0, 10, 20)}, NAMES),
        ClassifierRace(found, NAMES, grey_pictures(6), labels),
        PairExplorer(found, labels, NAMES, grey_pictures(6)),
        ThresholdExplorer(rng.random((20, 3)), targets, [200, 50, 5], NAMES),
        SampleReviewer(grey_pictures(2), folder / "review.csv", ids=["a", "b"]),
    ]


def test_every_view_carries_its_picture_beside_the_widget(tmp_path: Path) -> None:
    import base64

    for view in every_view(tmp_path):
        bundle = view._repr_mimebundle_()
        assert is_picture(view)
        assert base64.b64decode(bundle["image/png"]) == view.picture.value
        assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
        assert bundle["text/plain"] == view.sentence


def test_every_control_can_be_focused_and_says_what_it_does(tmp_path: Path) -> None:
    import ipywidgets

    for view in every_view(tmp_path):
        controls = [w for w in vars(view).values() if isinstance(w, ipywidgets.ValueWidget | ipywidgets.Button)]
        controls = [w for w in controls if not isinstance(w, ipywidgets.HTML | ipywidgets.Image)]
        assert controls
        for control in controls:
            assert control.description
            assert not isinstance(control, ipywidgets.Dropdown | ipywidgets.Select), "JupyterLab takes its arrow keys"
            assert control.tooltip or isinstance(control, ipywidgets.IntProgress)
            assert getattr(control, "continuous_update", False) is False, "a slider draws when it is let go"


def test_an_unexpected_error_is_shown_with_where_it_happened_and_goes_away(tmp_path: Path) -> None:
    view = every_view(tmp_path)[0]

    def fail() -> None:
        raise ZeroDivisionError("<b>by nothing</b>")

    view.guarded(fail)()
    assert isinstance(view.error, ZeroDivisionError)
    assert "&lt;b&gt;by nothing" in view.problem.value
    assert "in fail" in view.problem.value
    view.guarded(lambda: None)()
    assert view.error is None
    assert view.problem.value == ""


def test_states_that_were_drawn_are_kept_and_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = every_view(tmp_path)[0]
    first = view.picture.value
    view.step.value = 0
    assert view.picture.value != first
    monkeypatch.setattr("gcpl_lab.views.widgets.sliders.plot_journey_step", None)
    view.step.value = 20
    assert view.error is None
    assert view.picture.value == first


# ------------------------------------------------------------------------------------------- training


def records(count: int, seconds: float = 0.0, stopped: list[int] | None = None) -> Any:
    for step in range(1, count + 1):
        time.sleep(seconds)
        if (yield StepRecord(step, 1 / step, {"own": 0.5}, 0.1, 0.3 if step % 2 else None, float(step))):
            if stopped is not None:
                stopped.append(step)
            return


def test_monitor_shows_all_records_and_its_end() -> None:
    monitor = TrainingMonitor(records(5), num_steps=5, seconds_between_pictures=0)
    monitor.wait()
    assert [record.step for record in monitor.history] == [1, 2, 3, 4, 5]
    assert not monitor.running
    assert monitor.bar.value == monitor.bar.max == 5
    assert monitor.stop_button.disabled
    assert "Training finished: update 5 of 5, loss 0.2000; own 0.5000; validation 0.3000" in monitor.sentence
    assert is_picture(monitor)


def test_stop_button_ends_the_run_as_at_its_last_update() -> None:
    stopped: list[int] = []
    monitor = TrainingMonitor(records(10**9, 0.005, stopped))
    while not monitor.history:
        time.sleep(0.005)
    monitor.stop_button.click()
    monitor.wait()
    assert stopped == [monitor.history[-1].step]
    count = len(monitor.history)
    time.sleep(0.05)
    assert len(monitor.history) == count
    assert monitor.sentence.startswith("Training stopped")
    assert not any(thread.name == "gcpl_lab training" for thread in threading.enumerate())


def test_a_stopped_model_predicts_with_probabilities(
    diffusion: Any, pictures: tuple[list[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gcpl_lab import GCPLClassifier

    images, labels = pictures
    model = GCPLClassifier(
        objective="discriminative", num_vectors=1, num_steps=10**6, batch_size=2, num_evidence=2, diffusion=diffusion
    )
    monitor = TrainingMonitor(model.steps(images, labels, NAMES))
    while not monitor.history:
        time.sleep(0.02)
    monitor.stop()
    monitor.wait()
    last = monitor.history[-1].step
    assert last < 10**6
    assert np.array_equal(model.states_[last], model.prompts_.vectors.detach())
    chances = model.predict_proba(images[:2])
    assert chances.shape == (2, 3)
    np.testing.assert_allclose(chances.sum(axis=1), 1)


def test_error_of_a_run_is_shown_and_raised_where_it_is_waited_for() -> None:
    def broken() -> Iterator[StepRecord]:
        yield StepRecord(1, 0.5, {}, 0.1, None, 0.1)
        raise TrainingError("step 2: the loss is not finite; lower the learning rate")

    monitor = TrainingMonitor(broken())
    with pytest.raises(TrainingError, match="lower the learning rate"):
        monitor.wait()
    assert "lower the learning rate" in monitor.problem.value
    assert monitor.stop_button.disabled
    assert len(monitor.history) == 1


def test_drawing_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: an update takes a second, a picture two, so a picture may come every 18 updates."""
    clock, drawn = [0.0], []

    def draw(self: TrainingMonitor, state: str) -> None:
        drawn.append((state, clock[0]))
        clock[0] += 2

    def slow_records() -> Iterator[StepRecord]:
        for step in range(1, 101):
            clock[0] += 1
            yield StepRecord(step, 0.5, {}, 0.1, None, 0.1)

    monkeypatch.setattr("gcpl_lab.views.widgets.training.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(TrainingMonitor, "_draw", draw)
    TrainingMonitor(slow_records(), seconds_between_pictures=5).wait()
    times = [at for state, at in drawn if state == "running"]
    assert times[0] == 2 + 5
    assert np.diff(times).tolist() == [2 + 18] * 5


# ------------------------------------------------------------------------------------------- sliders


def test_journey_says_how_far_the_tokens_moved() -> None:
    start = np.zeros((3, 1, 2))
    end = start.copy()
    end[1] = [3, 4]
    view = JourneySlider({0: start, 7: end}, NAMES)
    assert view.step.options == (0, 7)
    assert "Step 7 of 7: the tokens have moved 1.67 on average, boot farthest (5.00)" in view.sentence
    view.step.value = 0
    assert "moved 0.00 on average" in view.sentence


@pytest.mark.parametrize(
    ("states", "message"),
    [({0: np.zeros((3, 1, 2))}, "train first"), ({0: np.zeros((2, 1, 2)), 1: np.zeros((2, 1, 2))}, "one row a class")],
)
def test_journey_refuses_what_is_none(states: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        JourneySlider(states, NAMES)


def test_noise_slider_changes_picture_and_errors(diffusion: Any) -> None:
    view = NoiseSlider(diffusion, grey_pictures(8)[7], ["a photo of a bag", "a shirt"], timestep=100)
    before, sentence = view.picture.value, view.sentence
    view.timestep.value = 900
    assert view.picture.value != before
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


def test_the_estimate_of_a_perfect_denoiser_is_the_photograph(diffusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    view = NoiseSlider(diffusion, grey_pictures(8)[7], ["a bag"])
    monkeypatch.setattr(diffusion, "predict_noise", lambda noisy, steps, hidden: view._noise)
    _, estimate, errors = view._denoise(600, ["a bag"])
    assert errors == [0.0]
    np.testing.assert_allclose(estimate, view._latent, atol=1e-4)


@pytest.mark.parametrize("prompts", [[], ["a", "b", "c"], "a photo"])
def test_noise_slider_takes_one_or_two_prompts(prompts: Any) -> None:
    with pytest.raises(DataError, match="one or two texts"):
        NoiseSlider(None, None, prompts)  # type: ignore[arg-type]


def test_race_order_spans_the_schedule_from_the_start_and_keeps_the_stages() -> None:
    errors = np.ones((3, 8))
    assert race_order(errors).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    errors[0, [0, 2, 3, 5, 6, 7]] = np.nan
    assert race_order(errors)[:2].tolist() == [1, 4]
    assert sorted(race_order(errors)) == list(range(8))


@pytest.mark.parametrize("weighting", ["relative", "absolute"])
def test_the_race_ends_where_the_classifier_decides(weighting: Any) -> None:
    found, _ = evidence()
    for errors, scores in zip(found.errors, class_scores(found.errors, weighting), strict=True):
        end = race_leads(errors, weighting)[-1]
        np.testing.assert_allclose(end - end.mean(), scores - scores.mean(), atol=1e-6)


def test_dropped_classes_end_where_they_were_dropped() -> None:
    errors = np.array([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, np.nan, np.nan], [2.0, 2.0, 2.0, 2.0]])
    leads = race_leads(errors, "absolute")
    # The classes that were never dropped have errors 1 and 2, hence the mean 1.5.
    np.testing.assert_allclose(leads, [[0.5, -1.5, -0.5]] * 2 + [[0.5, np.nan, -0.5]] * 2)
    with pytest.raises(DataError, match="one class or more"):
        race_leads(np.full((2, 3), np.nan))


def test_dropped_classes_are_grey_and_said_to_be_out() -> None:
    from gcpl_lab.views import style

    leads = race_leads(np.array([[1.0, 1.0], [3.0, np.nan], [2.0, 2.0]]), "absolute")
    with style.figure_style():
        ax = style.new_figure(9, 5).subplots()
        plot_race(ax, leads, 2, NAMES)
    assert [text.get_text() for text in ax.texts] == ["bag", "boot, out", "shirt"]
    colors = [line.get_color() for line in ax.lines if line.get_linestyle() == "-"]
    assert style.GREY in colors


def test_race_says_who_leads_and_who_is_left() -> None:
    found, labels = evidence()
    found.errors[1, 0, 4:] = np.nan
    view = ClassifierRace(found, NAMES, grey_pictures(6), labels)
    view.image.value = 1
    assert "After 8 of 8 samples boot leads" in view.sentence
    assert "2 of 3 classes are in. It is a boot." in view.sentence
    before = view.picture.value
    view.samples.value = 2
    assert view.picture.value != before
    assert "3 of 3 classes are in" in view.sentence


def test_race_without_pictures_and_with_wrong_numbers() -> None:
    found, labels = evidence()
    assert is_picture(ClassifierRace(found, NAMES))
    for options in ({"images": grey_pictures(2)}, {"labels": labels[:2]}):
        with pytest.raises(DataError, match="as many as the evidence"):
            ClassifierRace(found, NAMES, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- classes


def test_pair_explorer_starts_with_the_most_confused_pair_and_counts_its_mistakes() -> None:
    found, labels = evidence()
    view = PairExplorer(found, labels, NAMES, grey_pictures(6))
    assert {view.first.value, view.second.value} == {"bag", "shirt"}
    assert "1 of 2 bag are taken for shirt" in view.sentence
    assert "0 of 2 shirt are taken for bag" in view.sentence
    before = view.picture.value
    view.second.value = "boot"
    assert view.picture.value != before
    view.second.value = view.first.value
    assert "choose two different ones" in view.problem.value


def test_pair_explorer_measures_the_gap_of_own_and_other_prompt() -> None:
    errors = np.array([[[1.0, 2.0], [3.0, 2.0]]], np.float32)
    view = PairExplorer(Evidence(errors, np.array([100, 500]), 4), [0], ["a", "b"], grey_pictures(1))
    np.testing.assert_allclose(view._gaps(0, 1), [[1.0, 0.0]])  # (3 − 1) / 2 and (2 − 2) / 2
    assert "evidence strongest at t = 100: +100.0%" in view.sentence


def test_pair_explorer_takes_the_predictions_that_were_made() -> None:
    found, labels = evidence()
    view = PairExplorer(found, labels, NAMES, grey_pictures(6), predicted=labels, pair=("bag", "shirt"))
    assert "0 of 2 bag are taken for shirt" in view.sentence
    staged = Evidence(np.where(found.errors > 1, np.nan, found.errors), found.timesteps, 1)
    with pytest.raises(DataError, match=r"exact\(\)"):
        PairExplorer(staged, labels, NAMES, grey_pictures(6))


def test_threshold_table_by_hand() -> None:
    table = threshold_table(
        np.array([[0.9, 0.1, 0.2], [0.6, 0.2, 0.2], [0.4, 0.3, 0.2]]), np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]]), 0.5
    )
    np.testing.assert_allclose(table["precision"], [0.5, np.nan, np.nan])
    np.testing.assert_allclose(table["recall"], [0.5, np.nan, 0])
    np.testing.assert_allclose(table["F1"], [0.5, np.nan, 0])


def test_threshold_explorer_moves_between_fitted_and_common_thresholds() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (30, 3))
    view = ThresholdExplorer(rng.random((30, 3)), targets, [200, 50, 5], NAMES, np.array([0.2, 0.5, 0.8]))
    assert view.sentence.startswith("The fitted thresholds give")
    before = view.picture.value
    view.threshold.value = 0.0
    assert view.source.value == "one for all classes"
    assert "recall 100%" in view.sentence
    assert "90 labels are predicted" in view.sentence
    assert view.picture.value != before
    everything = view.picture.value
    view.part.value = "tail"
    assert view.picture.value != everything
    assert view.error is None


def test_an_empty_part_of_the_tail_says_so() -> None:
    view = ThresholdExplorer(np.ones((2, 2)), np.ones((2, 2), int), [200, 300], ["a", "b"])
    view.part.value = "medium"
    assert "no class is in the part" in view.problem.value


# ------------------------------------------------------------------------------------------- review


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_review_writes_every_decision_and_resumes_after_a_restart(tmp_path: Path) -> None:
    path, images, ids = tmp_path / "review.csv", grey_pictures(3), ["a", "b", "c"]
    view = SampleReviewer(images, path, ids, labels=["bag"] * 3)
    assert not path.exists()
    view.reason.value = 'too "dark", cut off'
    view.reject.click()
    assert [(row["id"], row["decision"], row["reason"]) for row in rows_of(path)] == [
        ("a", "reject", 'too "dark", cut off')
    ]
    assert view.present_id == "b"
    assert view.reason.value == ""
    again = SampleReviewer(images, path, ids, labels=["bag"] * 3)
    assert again.present_id == "b"
    assert again.bar.value == 1
    again.accept.click()
    again.accept.click()
    assert "All are decided" in again.sentence
    assert [row["decision"] for row in rows_of(path)] == ["reject", "accept", "accept"]
    assert list(tmp_path.iterdir()) == [path], "nothing half written is left"


def test_a_decision_can_be_taken_again_and_foreign_rows_stay(tmp_path: Path) -> None:
    path = tmp_path / "review.csv"
    SampleReviewer(grey_pictures(1), path, ["other"]).accept.click()
    view = SampleReviewer(grey_pictures(2), path, ["a", "b"])
    view.accept.click()
    view.back.click()
    assert view.present_id == "a"
    view.reject.click()
    assert {row["id"]: row["decision"] for row in rows_of(path)} == {"other": "accept", "a": "reject"}
    assert view.present_id == "b"


def test_a_decision_that_cannot_be_written_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    view = SampleReviewer(grey_pictures(2), tmp_path / "review.csv", ["a", "b"])
    monkeypatch.setattr("gcpl_lab.views.widgets.review.write_text", full)
    view.accept.click()
    assert view.present_id == "a"
    assert view.decisions == {}
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
        SampleReviewer(grey_pictures(1), path, ["a"])
    assert path.read_text() == text


def test_review_needs_names_that_differ(tmp_path: Path, few_shot_folder: Path) -> None:
    paths = sorted((few_shot_folder / "test").rglob("*.png"))[:2]
    assert SampleReviewer(paths, tmp_path / "r.csv").present_id == "bag/0.png"
    with pytest.raises(DataError, match="give ids"):
        SampleReviewer(grey_pictures(2))
    with pytest.raises(DataError, match="more than one picture"):
        SampleReviewer(grey_pictures(2), ids=["a", "a"])
    with pytest.raises(DataError, match="no picture"):
        SampleReviewer([])


# ------------------------------------------------------------------------------------------- slides


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "figures"
    folder.mkdir(parents=True)
    for name, grey in (("losses", 90), ("token_journey", 200)):
        Image.new("RGB", (160, 100), (grey,) * 3).save(folder / f"{name}.png")
    return folder.parent


def builder(run_folder: Path) -> SlideBuilder:
    from gcpl_lab.views.slides import Provenance

    return SlideBuilder(run_folder, run_folder / "deck.pptx", Provenance(0, "ab12cd34ef", "gcpl-lab demo", "0.1"))


def test_slide_builder_writes_the_deck_that_was_chosen(run_folder: Path) -> None:
    from pptx import Presentation

    view = builder(run_folder)
    assert view.figure.options == ("losses", "token journey")
    before = view.picture.value
    view.figure.value = "token journey"
    assert view.picture.value != before
    view.title.value, view.message.value = "Tokens move", "Most of the way is done early."
    view.notes.value, view.alt.value = "Say slowly.", "Ten paths on a plane."
    view.add.click()
    assert view.error is None
    assert view.title.value == ""
    assert "1 slides in the deck" in view.sentence
    view.save.click()
    (slide,) = Presentation(str(run_folder / "deck.pptx")).slides
    assert "Tokens move" in [shape.text_frame.text for shape in slide.shapes if shape.has_text_frame]
    assert "Say slowly." in slide.notes_slide.notes_text_frame.text


def test_slide_builder_says_what_is_missing_and_takes_slides_away(run_folder: Path) -> None:
    view = builder(run_folder)
    view.drop.click()
    assert "no slide to take away" in view.problem.value
    view.save.click()
    assert "no slides; add some" in view.problem.value
    view.title.value = "Losses"
    view.add.click()
    assert "no alt text" in view.problem.value
    assert view.title.value == "Losses", "what was written stays"
    view.alt.value = "A falling curve."
    view.add.click()
    view.drop.click()
    assert view.slides == []
    assert view.error is None
    with pytest.raises(DataError, match="no picture to choose from"):
        builder(run_folder / "figures")


# ------------------------------------------------------------------------------------------- notebooks


@pytest.mark.slow
def test_a_notebook_run_without_browser_keeps_the_finished_picture(tmp_path: Path) -> None:
    """Of the monitor too, whose first picture is an empty one; nbconvert shows it where there is no widget state."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    cells = [
        "from gcpl_lab.training.loop import StepRecord\n"
        "from gcpl_lab.views.widgets import TrainingMonitor\n"
        "records = (StepRecord(i, 1 / i, {}, 0.1, None, 0.1) for i in range(1, 9))\n"
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


def test_drawing_in_two_threads_leaves_the_settings_as_they_were() -> None:
    import matplotlib

    from gcpl_lab.views.style import figure_style

    before, entered = dict(matplotlib.rcParams), threading.Event()

    def draw(pause: float) -> Callable[[], None]:
        def run() -> None:
            with figure_style("slide"):
                entered.set()
                time.sleep(pause)

        return run

    # Without turns, the first to enter restores the settings while the second is still drawing.
    first = threading.Thread(target=draw(0.05))
    first.start()
    entered.wait()
    second = threading.Thread(target=draw(0.1))
    second.start()
    first.join()
    second.join()
    assert dict(matplotlib.rcParams) == before
