"""A run of any command can be looked at: what it kept is shown again, and nothing is learned twice."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab import GCPLClassifier, LMPTClassifier, report
from gcpl_lab.data.folders import draw_labelled, draw_sets
from gcpl_lab.errors import ArtifactError
from gcpl_lab.experiments import few_shot
from gcpl_lab.experiments import report as draws
from gcpl_lab.experiments.compare import run_comparison
from gcpl_lab.experiments.figures import WORDS
from gcpl_lab.experiments.labels import LabelStates, load_labels
from gcpl_lab.experiments.runs import load_states
from gcpl_lab.report import find_shown, make_report
from gcpl_lab.storage import read_json, write_json
from tests.made_up import SMALL_SETTINGS


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of a draw are tested where the demonstration is."""
    for name in ("draw_figures", "draw_pictures"):
        monkeypatch.setattr(draws, name, lambda *_given: [])


def train(folder: Path, support: Path, preset: str, shots: int = 2, seed: int = 0) -> GCPLClassifier:
    """What ``gcpl-lab train gcpl`` does."""
    exemplars, others = draw_sets(support, shots, seed, 100)
    model = GCPLClassifier(preset, "gcpl", seed=seed, **SMALL_SETTINGS)
    model.fit(exemplars.images, exemplars.labels, list(exemplars.class_names)).save(folder)
    noted = {"images": str(support), "shots": shots, "seed": seed, "held_out": 100, "command": "gcpl-lab train gcpl"}
    report.note_training(folder, model, exemplars, others, noted)
    return model


@pytest.mark.usefixtures("unpainted")
def test_what_was_trained_is_shown_on_the_images_left_out(
    few_shot_folder: Path, random_pair: Any, tmp_path: Path
) -> None:
    preset, support = str(random_pair.folder), few_shot_folder / "support"
    model = train(tmp_path, support, preset)
    _, others = draw_sets(support, 2, 0, 100)
    place = find_shown(tmp_path, preset)
    rows = {row["name"]: row for row in read_json(place / "results.json")["methods"]}
    assert rows.keys() == {"zero_shot_clip", "linear_probe", "zero_shot_diffusion", "gcpl"}
    assert rows["gcpl"]["accuracy"] == pytest.approx(model.score(others.images, others.labels))
    states = load_states(place)
    assert (len(states.labels), states.steps) == (len(others), sorted(model.states_))
    assert any(key.startswith("shuffled") for key in states.look_alikes.errors)  # type: ignore[union-attr]
    written = (place / "report.html").stat().st_mtime_ns
    find_shown(tmp_path, preset)
    assert (place / "report.html").stat().st_mtime_ns == written
    train(tmp_path, support, preset, seed=1)
    assert read_json(find_shown(tmp_path, preset, controls=False) / "results.json")["methods"][-1]["seed"] == 1
    assert not any(key.startswith("shuffled") for key in load_states(place).look_alikes.errors)  # type: ignore[union-attr]
    train(tmp_path, support, preset, shots=0)
    with pytest.raises(ArtifactError, match="no image was left out of learning to measure on"):
        find_shown(tmp_path, preset)


@pytest.mark.usefixtures("unpainted")
def test_a_comparison_is_shown_by_its_first_draw_and_learns_nothing_again(
    few_shot_folder: Path, random_pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: dict[str, Any] = {"images": few_shot_folder, "preset": str(random_pair.folder), "settings": SMALL_SETTINGS}
    run |= {"methods": ["linear_probe", "gcpl", "discriminative"], "shots": [1, 2], "seeds": [3, 4]}
    done = run_comparison(tmp_path, **run)
    monkeypatch.setattr(few_shot.FewShotExperiment, "_run_objective", lambda *_given: pytest.fail("it learns again"))
    place = find_shown(tmp_path, str(random_pair.folder), controls=False)
    found = {row["name"]: row for row in read_json(place / "results.json")["methods"]}
    for row in done["methods"]:
        if (row["shots"], row["seed"]) == (2, 3):
            assert found[row["name"]]["accuracy"] == row["accuracy"]
    assert "(2 seeds)" in (place / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(place)
    run_comparison(tmp_path / "other", **run | {"methods": ["linear_probe"], "reference": "linear_probe"})
    with pytest.raises(ArtifactError, match="none of which learned prompts to show"):
        find_shown(tmp_path / "other", str(random_pair.folder))


@pytest.fixture
def scenes(tmp_path: Path, pictures: Any) -> dict[str, Any]:
    """Where images with none, one or two of three labels are; one has a caption, names are Japanese."""
    lines, names = ["file_name,labels,caption"], ["コート", "シャツ", "bag"]
    for index, (image, label) in enumerate(zip(*pictures, strict=True)):
        Image.fromarray(np.roll(image, index, axis=1)).save(tmp_path / f"{index}.png")
        told = ["", names[label], f"{names[label]};{names[(label + 1) % 3]}"][min(index % 4, 2)]
        lines.append(f"{index}.png,{told},{'a コート' if index == 1 else ''}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return {"source": {"file": str(tmp_path / "metadata.csv")}, "test": None, "held_out": 0.4, "seed": 1}


def test_labels_that_were_learned_are_shown_on_the_images_left_out(
    scenes: dict[str, Any], random_pair: Any, tmp_path: Path
) -> None:
    train_set, others = draw_labelled(**scenes)
    assert not set(train_set.images) & set(others.images)
    preset, run = str(random_pair.folder), tmp_path / "run"
    model = LMPTClassifier(preset, num_epochs=3, batch_size=4, clip=random_pair.clip)
    model.fit(train_set.images, train_set.targets, train_set.class_names, train_set.captions).save(run)
    report.note_training(run, model, train_set, others, {**scenes, "command": "gcpl-lab train lmpt"})
    made = make_report(run, "pca", preset=preset)
    names = [path.relative_to(run / "report").as_posix() for path in made]
    moving = [f"animation/{name}.{ending}" for name in ("precision", "journey") for ending in ("gif", "html")]
    assert names[:2] == ["report.html", "map.html"]
    assert {"slides.pptx", *moving} <= set(names)
    results, page = read_json(run / "report/results.json"), made[0].read_text(encoding="utf-8")
    rows = {row["name"]: row for row in results["methods"]}
    assert rows.keys() == {"zero_shot_clip", "linear_probe", "coop_bce", "lmpt"}
    value = model.score(others.images, others.targets)
    assert rows["lmpt"]["map"] == results["measured"]["map"]["value"] == pytest.approx(value)
    assert all(words["title"] in page for words in WORDS["labels"].values())
    assert f"{len(train_set)} to learn from, {len(others)} to test on" in page
    states = load_labels(run / "report")
    assert min(states.cosines) == 0 < max(states.cosines) == model.config.num_epochs * 2
    right = (states.probabilities["after"] >= states.thresholds["after"]).astype(np.uint8)
    assert np.array_equal(right, model.predict(others.images))
    assert all(states.targets[image, label] != right[image, label] for image, label in wrongly(states))
    metadata = tmp_path / "metadata.csv"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("a コート", "a bag"), encoding="utf-8")
    shutil.rmtree(run / "report")
    with pytest.raises(ArtifactError, match="captions changed since"):
        make_report(run, preset=preset)


def wrongly(states: LabelStates) -> list[tuple[int, int]]:
    """Image and label of every card of a mistake."""
    images = [int(np.flatnonzero((states.images == one.picture).all(axis=(1, 2, 3)))[0]) for one in states.mistakes()]
    labels = [states.class_names.index(str(one.wrong)) for one in states.mistakes()]
    return list(zip(images, labels, strict=True))


def test_an_ablation_has_a_page_and_a_deck(tmp_path: Path) -> None:
    entry = {"shots": 0, "num_seeds": 2, "mean": 0.5, "standard_deviation": 0.01}
    entries = [{**entry, "method": "lmpt", "difference": 0.02, "low": 0.01, "high": 0.03}]
    entries.append({**entry, "method": "coop_bce", "difference": None, "low": None, "high": None})
    rows = [{"name": e["method"], "method": e["method"], "seed": s, "map": 0.5} for e in entries for s in (0, 1)]
    results = {"data": {"name": "scenes", "checksum": "ab" * 32, "classes": ["a"], "test_size": 9}, "methods": rows}
    results |= {"summary": {"map": entries}, "reference": "coop_bce", "caption_noise": [], "preset": "tiny"}
    write_json(tmp_path / "results.json", {**results, "command": "gcpl-lab ablate lmpt"})
    page, deck, *_ = make_report(tmp_path)
    told = page.read_text(encoding="utf-8")
    assert "1 of 1 variants differ" in told
    assert "50.0 ± 0.0 %" in told
    assert deck.name == "slides.pptx"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file; expected a JSON file"):
        make_report(tmp_path)
