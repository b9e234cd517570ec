"""The demonstration: everything it promises to write is there, whole, and nothing else is."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gcpl_lab.experiments.demo as demo
import gcpl_lab.experiments.few_shot as experiments
import gcpl_lab.experiments.reports as reporting
from gcpl_lab import GCPLClassifier
from gcpl_lab.data.fashion import FASHION_CLASSES
from gcpl_lab.errors import DataError
from gcpl_lab.experiments.demo import DemoResult, run_demo
from gcpl_lab.experiments.few_shot import GENERATIVE_METHODS, QUICK_METHODS

SMALL = {
    "num_vectors": 2,
    "num_steps": 2,
    "batch_size": 4,
    "discriminative_steps": 2,
    "discriminative_batch_size": 2,
    "num_samples": 2,
    "num_evidence": 2,
}
FIGURES = {
    "before_after",
    "accuracy",
    "confusion",
    "prompt_similarity",
    "token_journey",
    "losses",
    "comple_norm",
    "timestep_evidence",
    "error_map",
    "samples",
    "reliability",
    "nearest_words",
}
SLOW_FIGURES = {"before_after", "samples"}  # UMAP compiles for half a minute; drawing pictures takes many passes


class Run:
    """A finished demonstration and what it told while it ran."""

    def __init__(self, place: Path, figures: set[str], **options: Any) -> None:
        self.place, self.figures = place, figures
        self.methods: list[str] = []
        self.steps: list[tuple[str, int, int]] = []
        before = Path.cwd()
        os.chdir(place)
        try:
            self.result: DemoResult = run_demo(
                Path("runs/demo"),
                shots=2,
                test_total=20,
                settings=SMALL,
                on_event=self.hear,
                **{"multilabel": False, **options},
            )
        finally:
            os.chdir(before)
        self.folder = place / "runs" / "demo"

    def hear(self, event: str, name: str, *values: Any) -> None:
        if event == "begin":
            self.methods.append(name)
        elif event == "step":
            record, total = values
            self.steps.append((name, record.step, total))


def check_whole(run: Run) -> None:
    """What holds for every demonstration."""
    assert sorted(os.listdir(run.place)) == ["runs"]
    assert os.listdir(run.place / "runs") == ["demo"]
    assert sorted(os.listdir(run.folder)) == [
        "cache",
        "figures",
        "prompts",
        "report.html",
        "results.json",
        "states.safetensors",
    ]
    assert {file.stem for file in (run.folder / "figures").iterdir()} == run.figures
    for name in run.figures:
        with Image.open(run.folder / "figures" / f"{name}.png") as picture:
            assert min(picture.size) >= 400
            assert np.asarray(picture.convert("L")).std() > 1  # not blank
        assert "<svg" in (run.folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")[:2000]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All methods on a few of the bundled photographs, without the two slowest figures."""
    bundled, drawings = demo.load_fashion, reporting._drawings

    def few(split: Any) -> Any:
        found = bundled(split)
        return found.subset([i for c in range(10) for i in np.flatnonzero(found.labels == c)[:6]])

    def quick(*arguments: Any) -> Any:
        return [drawing for drawing in drawings(*arguments) if drawing.name not in SLOW_FIGURES]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_fashion", few)
        patch.setattr(reporting, "_drawings", quick)
        for name in ("ADAPTER_TRAINING", "TIP_ADAPTER_TRAINING", "NETWORK_TRAINING"):
            patch.setattr(experiments, name, replace(getattr(experiments, name), num_steps=3))
        return Run(tmp_path_factory.mktemp("demo"), FIGURES - SLOW_FIGURES)


def test_it_writes_what_it_promises_and_nothing_beside(finished: Run) -> None:
    check_whole(finished)


@pytest.mark.slow
def test_the_whole_demonstration_with_every_figure(tmp_path: Path) -> None:
    check_whole(Run(tmp_path, FIGURES))


def test_results_are_strict_json_with_the_promised_keys(finished: Run) -> None:
    text = (finished.folder / "results.json").read_text(encoding="utf-8")
    results = json.loads(text, parse_constant=pytest.fail)
    assert results == finished.result.results
    assert {"data", "machine", "versions", "methods"} <= results.keys()
    assert {"name", "checksum", "classes", "shots", "test_size"} <= results["data"].keys()
    assert results["data"]["classes"] == list(FASHION_CLASSES)
    assert (results["data"]["shots"], results["data"]["test_size"]) == (2, 20)
    assert re.fullmatch("[0-9a-f]{64}", results["data"]["checksum"])
    assert [row["name"] for row in results["methods"]] == list(QUICK_METHODS)
    for row in results["methods"]:
        assert row["seed"] == 0
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["accuracy_within_family"] <= 1
        assert isinstance(row["denoiser_evaluations"], int)
        assert row["train_seconds"] >= 0
        assert row["predict_seconds"] >= 0


def test_the_report_holds_everything_itself(finished: Run) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(finished.figures)
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "http" not in without_pictures
    assert "<script" not in without_pictures
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", without_pictures)
    assert "gcpl-lab demo" in without_pictures


def test_the_report_says_what_was_measured(finished: Run) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    for sentence in (finished.result.answer, *finished.result.caveats, demo.QUESTION):
        assert sentence.replace("'", "&#39;") in page
    assert finished.result.answer == reporting.answer_of(finished.result.outcomes)


@pytest.mark.parametrize("method", GENERATIVE_METHODS)
def test_the_prompts_can_be_loaded_and_are_those_of_the_run(finished: Run, method: str) -> None:
    (outcome,) = (outcome for outcome in finished.result.outcomes if outcome.method == method)
    assert outcome.model is not None
    loaded = GCPLClassifier.load(finished.folder / "prompts" / method, diffusion=outcome.model.diffusion)
    assert loaded.class_names_ == FASHION_CLASSES
    assert loaded.config.objective == method
    assert np.array_equal(loaded.prompts_.vectors.detach(), outcome.model.prompts_.vectors.detach())


def test_progress_is_told(finished: Run) -> None:
    assert finished.methods == [*QUICK_METHODS, "report"]
    for method in GENERATIVE_METHODS:
        assert [step[1:] for step in finished.steps if step[0] == method] == [(1, 2), (2, 2)]


def test_too_few_test_photographs_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="total is 9"):
        run_demo(tmp_path / "demo", test_total=9)
    assert os.listdir(tmp_path) == []


def test_a_run_that_fails_leaves_earlier_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = tmp_path / "demo" / "results.json"
    earlier.parent.mkdir()
    earlier.write_text("{}", encoding="utf-8")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.FewShotExperiment, "run", fail)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", test_total=10)
    assert os.listdir(tmp_path / "demo") == ["results.json"]
    assert earlier.read_text(encoding="utf-8") == "{}"
