"""The demonstration: everything it promises to write is there, whole, and nothing else is."""

import contextlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab import GCPLClassifier
from gcpl_lab.baselines import coop, pixels, tip_adapter
from gcpl_lab.data.samples import FASHION_CLASSES
from gcpl_lab.experiments import demo, figures, sentences
from gcpl_lab.experiments.demo import run_demo
from gcpl_lab.experiments.few_shot import QUICK_METHODS, FewShotExperiment
from gcpl_lab.experiments.report import ShownRun
from gcpl_lab.gcpl.objectives import OBJECTIVES

TWO = ("num_vectors", "num_steps", "num_samples", "num_evidence", "discriminative_steps", "discriminative_batch_size")
SMALL = {**dict.fromkeys(TWO, 2), "batch_size": 4}
LEARNED = [name for name in OBJECTIVES if name in QUICK_METHODS]
SLOW_FIGURES = {"before_after", "samples"}  # UMAP compiles for half a minute; drawing images takes many passes
BASELINE_TRAINING = ((coop, "ADAPTER_TRAINING"), (tip_adapter, "TIP_ADAPTER_TRAINING"), (pixels, "NETWORK_TRAINING"))


class Run:
    """A finished demonstration and what it told while it ran."""

    def __init__(self, place: Path, **options: Any) -> None:
        self.place, self.folder, self.figures = (
            place,
            place / "runs" / "demo",
            set(figures.WORDS["few_shot"])
            | set(figures.WORDS["pictures"])
            | {f"{name}_narrow" for name in ("before_after", "decision_maps") if name in figures.WORDS["pictures"]}
            | {f"{name}_narrow" for name in ("samples",) if name in figures.WORDS["few_shot"]},
        )
        self.methods: list[str] = []
        self.steps: list[tuple[str, int, int]] = []
        chosen = {"shots": 2, "test_total": 20, "settings": SMALL, "multilabel": False, **options}
        with contextlib.chdir(place):
            self.result: ShownRun = run_demo(Path("runs/demo"), on_event=self.hear, **chosen)

    def hear(self, event: str, name: str, *values: Any) -> None:
        if event == "begin":
            self.methods.append(name)
        elif event == "step":
            record, total = values
            self.steps.append((name, record.step, total))


def check_whole(run: Run) -> None:
    """What holds for every demonstration."""
    assert (os.listdir(run.place), os.listdir(run.place / "runs")) == (["runs"], ["demo"])
    expected = {"cache", "figures", "prompts", "report.html", "results.json", "states.safetensors"}
    assert set(os.listdir(run.folder)) == expected
    assert {file.stem for file in (run.folder / "figures").iterdir()} == run.figures
    for name in run.figures:
        with Image.open(run.folder / "figures" / f"{name}.png") as image:
            assert min(image.size) >= 400
            assert np.asarray(image.convert("L")).std() > 1, "it is blank"
        assert "<svg" in (run.folder / "figures" / f"{name}.svg").read_text(encoding="utf-8")[:2000]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All methods on a few of the bundled images, without the two slowest figures."""
    bundled = demo.load_fashion

    def few(split: Any) -> Any:
        found = bundled(split)
        return found.subset([i for c in range(10) for i in np.flatnonzero(found.labels == c)[:6]])

    quick = {name: words for name, words in figures.WORDS["few_shot"].items() if name not in SLOW_FIGURES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_fashion", few)
        patch.setitem(figures.WORDS, "few_shot", quick)
        pictures = {name: words for name, words in figures.WORDS["pictures"].items() if name not in SLOW_FIGURES}
        patch.setitem(figures.WORDS, "pictures", pictures)
        for module, name in BASELINE_TRAINING:
            patch.setattr(module, name, replace(getattr(module, name), num_steps=3))
        return Run(tmp_path_factory.mktemp("demo"))


def test_it_writes_what_it_promises_and_nothing_beside(finished: Run) -> None:
    check_whole(finished)


@pytest.mark.slow
def test_the_whole_demonstration_with_every_figure(tmp_path: Path) -> None:
    check_whole(Run(tmp_path))


def test_results_are_strict_json_with_the_promised_keys(finished: Run) -> None:
    text = (finished.folder / "results.json").read_text(encoding="utf-8")
    results = json.loads(text, parse_constant=pytest.fail)
    assert results == json.loads(json.dumps(finished.result.results))
    assert {"data", "machine", "versions", "methods"} <= results.keys()
    first = results["look_alikes"][0]
    assert first["method"] == "Zero-shot diffusion"
    assert set("classes share_in_own_sector low high auc d_prime pair num_images step".split()) <= first.keys()
    assert {"GCPL", "Shuffled labels"} <= {row["method"] for row in results["look_alikes"]}
    assert results["data"]["classes"] == list(FASHION_CLASSES)
    assert (results["data"]["shots"], results["data"]["test_size"]) == (2, 20)
    assert re.fullmatch("[0-9a-f]{64}", results["data"]["checksum"])
    assert [row["name"] for row in results["methods"]] == list(QUICK_METHODS)
    for row in results["methods"]:
        assert row["seed"] == 0
        assert 0 <= row["accuracy"] <= 1
        assert 0 <= row["accuracy_within_family"] <= 1
        assert isinstance(row["denoiser_evaluations"], int)
        assert min(row["train_seconds"], row["predict_seconds"]) >= 0


def test_the_report_holds_everything_itself_and_says_what_was_measured(finished: Run) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(finished.figures)
    without_figures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "http" not in without_figures
    assert "<script" not in without_figures
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", without_figures)
    assert "gcpl-lab demo" in without_figures
    for sentence in (finished.result.answer, *finished.result.caveats, sentences.QUESTION):
        assert sentence.replace("'", "&#39;") in page


@pytest.mark.parametrize("method", LEARNED)
def test_the_prompts_can_be_loaded_and_are_those_of_the_run(finished: Run, method: str) -> None:
    (outcome,) = (outcome for outcome in finished.result.outcomes if outcome.method == method)
    assert outcome.model is not None
    loaded = GCPLClassifier.load(finished.folder / "prompts" / method, diffusion=outcome.model.diffusion)
    assert loaded.class_names_ == FASHION_CLASSES
    assert loaded.config.objective == method
    assert np.array_equal(loaded.prompts_.vectors.detach(), outcome.model.prompts_.vectors.detach())


def test_progress_is_told(finished: Run) -> None:
    assert finished.methods == [*QUICK_METHODS, "report"]
    for method in LEARNED:
        assert [step[1:] for step in finished.steps if step[0] == method] == [(1, 2), (2, 2)]


def test_it_works_on_own_images_without_families(
    tmp_path: Path, few_shot_folder: Path, random_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("few_shot", "pictures"):
        words = {name: words for name, words in figures.WORDS[part].items() if name in ("accuracy", "decision_maps")}
        monkeypatch.setitem(figures.WORDS, part, words)
    for module, name in BASELINE_TRAINING:
        monkeypatch.setattr(module, name, replace(getattr(module, name), num_steps=2))
    options = {"images": few_shot_folder, "preset": str(random_pair.folder), "shots": 2, "settings": SMALL}
    result = run_demo(tmp_path / "mine", multilabel=False, **options)
    rows = result.results["look_alikes"]
    assert {tuple(sorted(row["classes"])) for row in rows} == {("bag", "boot", "shirt")}
    assert all(row["num_images"] == 12 for row in rows if row["method"] != "Shuffled labels")
    assert (tmp_path / "mine" / "figures" / "decision_maps.png").is_file()
    assert "decision map" in result.report.read_text(encoding="utf-8").lower()


def test_a_run_that_fails_leaves_earlier_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = tmp_path / "demo" / "results.json"
    earlier.parent.mkdir()
    earlier.write_text("{}", encoding="utf-8")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FewShotExperiment, "run", fail)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", test_total=10)
    assert os.listdir(tmp_path / "demo") == ["results.json"]
    assert earlier.read_text(encoding="utf-8") == "{}"
