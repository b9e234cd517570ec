"""Recipes: every file is valid and holds the published figures; one of each kind runs on small data."""

import json
import shlex
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gcpl_lab.cli.app import app
from gcpl_lab.errors import ArtifactError, DataError, ModelError
from gcpl_lab.experiments.multilabel import PUBLISHED
from gcpl_lab.experiments.recipes import load_recipe, run_recipe
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.models.presets import PRESETS, has_part

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "recipes").glob("*.json"))
# Table 1 of the GCPL paper and table 2 of the LMPT paper, as in the design: GCPL, CoMPLe, zero-shot CLIP; mAP.
GCPL_FIGURES = {
    "stanford_cars": (88.47, 87.69, 65.56),
    "flowers102": (93.45, 90.73, 70.73),
    "crc5k": (74.76, 76.36, 21.49),
    "isic2018": (48.84, 49.27, 14.43),
    "lc25000": (93.44, 94.83, 25.40),
    "cornseeds": (43.42, 45.79, 18.47),
    "fractals": (90.76, 88.83, 9.25),
}
LMPT_FIGURES = {"voc_lt_rn50": 85.44, "voc_lt_vit_b_16": 87.88, "coco_lt_rn50": 58.97, "coco_lt_vit_b_16": 66.19}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_every_published_experiment_has_a_recipe() -> None:
    assert {path.stem for path in FILES} == GCPL_FIGURES.keys() | LMPT_FIGURES.keys()


@each_file
def test_a_recipe_is_valid_and_holds_the_published_figures(path: Path) -> None:
    recipe = load_recipe(path)
    values = recipe.values
    assert values["name"] == path.stem
    assert has_part(PRESETS[values["preset"]], "diffusion" if recipe.method == "gcpl" else "clip")
    assert all(row["ours"] is None for row in values["results"])
    figures = {row["method"]: row["published"] for row in values["results"]}
    if recipe.method == "gcpl":
        assert (figures["gcpl"], figures["comple"], figures["zero_shot_clip"]) == GCPL_FIGURES[path.stem]
        config = recipe.gcpl_config("gcpl", 102)
        assert config.num_steps * config.batch_size == 500 * 4 * 102
        assert (config.num_vectors, config.initial, config.learning_rate) == (1, "coarse", 5e-4)
        assert (config.schedule, config.weight_decay, config.gradient_clip) == ("constant", 0.01, 0.0)
        assert (values["shots"], values["classifier"]["schedule"]) == (16, "published")
        assert " " not in values["coarse_word"]
    else:
        assert figures == {"lmpt": LMPT_FIGURES[path.stem]}
        negative_scale, mu = (2.0, 0.2) if path.stem.startswith("coco") else (5.0, 0.3)
        expected = PUBLISHED | {"negative_scale": negative_scale, "mu": mu}
        assert expected.items() <= recipe.lmpt_config().as_dict().items()
        assert "here the prompts at the end of the schedule are kept" in values["notes"][0]
        assert not any("part of the training pictures" in note for note in values["notes"])


@each_file
def test_its_command_is_one_of_the_program(path: Path) -> None:
    program, *arguments = shlex.split(load_recipe(path).values["command"])
    assert program == "gcpl-lab"
    assert (ROOT / arguments[1]).resolve() == path
    helped = CliRunner().invoke(app, [arguments[0], "--help"])
    assert helped.exit_code == 0
    # The weights are not here, so the command ends in the message that fetches them, before images are read.
    with pytest.raises(ModelError, match="hf download"):
        app([*[arguments[0], str(path)], *arguments[2:]], standalone_mode=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is no recipe of gcpl_lab"),
        ({"settings": {"num_stepz": 3}}, "unknown settings num_stepz"),
        ({"settings": {"num_steps": -1}}, "num_steps is -1; expected 0 or more"),
        ({"objectives": ["gcp"]}, "objective is 'gcp'"),
        ({"preset": "../models"}, "names the models '../models'; expected one of tiny, .*--set preset=FOLDER"),
    ],
)
def test_a_wrong_recipe_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = json.loads((ROOT / "recipes" / "flowers102.json").read_text()) | change
    (tmp_path / "mine.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match=message):
        load_recipe(tmp_path / "mine.json")


def test_a_gcpl_recipe_runs_on_folders(
    tmp_path: Path, random_pair: Any, few_shot_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, stages = load_recipe(ROOT / "recipes" / "crc5k.json"), []
    small = {"preset": str(random_pair.folder), "num_steps": 2}
    recipe.values["classifier"] |= {"to_keep": [2, 1], "n_samples": [2, 4]}
    fit = create_autospec(GCPLClassifier.fit, side_effect=GCPLClassifier.fit)
    monkeypatch.setattr(GCPLClassifier, "fit", fit)
    answer = run_recipe(recipe, few_shot_folder, tmp_path / "out", settings=small, shots=2, on_stage=stages.append)
    assert answer == json.loads((tmp_path / "out" / "results.json").read_text())
    assert answer["changed"] == {**small, "shots": 2}
    assert all(0 <= row["ours"] <= 100 for row in answer["results"])
    assert stages[0] == "gcpl: learning 3 prompts from 6 images"
    assert [call.kwargs["coarse_words"] for call in fit.call_args_list] == [["tissue"] * 3] * 2
    with pytest.raises(DataError, match="has no test set; expected support/ and test/"):
        run_recipe(recipe, few_shot_folder / "test", tmp_path / "other", settings=small, shots=1)


def test_an_lmpt_recipe_runs_on_lists(tmp_path: Path, random_pair: Any) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for split, count in (("train", 20), ("test", 6)):
        rows, captions = [], []
        for number in range(count):
            name = f"{split}{number}.png"
            Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / "images" / name)
            rows.append(f"{name} {number % 2} 2" if number % 3 else f"{name} {number % 2}")
            captions.append(f"{name} a picture of something")
        (tmp_path / f"voc_lt_{split}.txt").write_text("\n".join(rows) + "\n")
        (tmp_path / "voc_lt_captions.txt").write_text("\n".join(captions) + "\n") if split == "train" else None
    (tmp_path / "voc_labels.txt").write_text("cat 0\ndog 1\nperson 2\n")
    recipe = load_recipe(ROOT / "recipes" / "voc_lt_vit_b_16.json")
    small = {"preset": str(random_pair.folder), "num_epochs": 1, "num_context": 4}
    (row,) = run_recipe(recipe, tmp_path, tmp_path / "out", settings=small)["results"]
    assert row["published"] == 87.88
    assert 0 < row["ours"] <= 100
