"""The multi-label verbs, on a random CLIP."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gcpl_lab.cli.app import app
from gcpl_lab.errors import DataError
from gcpl_lab.storage import read_json

FAST = ("--set", "num_context=4", "--set", "num_epochs=2")


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """Sixteen small pictures with two labels in a metadata file, split in half."""
    rng = np.random.default_rng(0)
    lines = ["file_name,labels,caption,split"]
    for index in range(16):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        labels = ("bag", "coat;bag", "coat")[index % 3]
        lines.append(f"{index}.png,{labels},a {labels.split(';')[0]},{'train' if index < 8 else 'test'}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def run(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_train_and_evaluate(random_pair: Any, own_data: Path, tmp_path: Path) -> None:
    data, output = ("--metadata", own_data / "metadata.csv", "--rows"), tmp_path / "prompts"
    told = run("train", "lmpt", *data, "split=train", "-o", output, "--preset", random_pair.folder, *FAST, "--json")
    answer = json.loads(told.stdout)
    assert (answer["pictures"], answer["classes"]) == (8, ["bag", "coat"])
    report = json.loads(run("evaluate", output, *data, "split=test", "--json").stdout)
    assert 0 < report["map"] <= 1
    assert [entry["num_train"] for entry in report["classes"]] == [6, 5]
    assert "Average precision of each class" in run("evaluate", output, *data, "split=test").output
    other = own_data / "other.csv"
    other.write_text((own_data / "metadata.csv").read_text().replace("coat", "shirt"))
    with pytest.raises(DataError, match="label 'shirt' is no known class"):
        run("evaluate", output, "--metadata", other)


def test_ablate_writes_a_table_and_figures(random_pair: Any, own_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ablation"
    told = run(
        "ablate",
        "lmpt",
        "--folder",
        folder,
        "--seeds",
        1,
        "--metadata",
        own_data / "metadata.csv",
        "--preset",
        random_pair.folder,
        *FAST,
        "--set",
        "validation_share=0.3",
    )
    assert "without captions" in told.output
    content = read_json(folder / "results.json")
    assert {entry["share"] for entry in content["caption_noise"]} == {0.0, 0.1, 0.25, 0.5, 1.0}
    assert {row["name"] for row in read_json(folder / "methods" / "results.json")["methods"]} >= {"lmpt", "coop_bce"}
    assert sorted(path.name for path in (folder / "figures").glob("*.png")) == [
        "ablation.png",
        "caption_noise.png",
        "comparison.png",
    ]
    # Every trial is kept: a rerun computes none of them.
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("trials/*.json")}
    run(
        "ablate",
        "lmpt",
        "--folder",
        folder,
        "--seeds",
        1,
        "--metadata",
        own_data / "metadata.csv",
        "--preset",
        random_pair.folder,
        *FAST,
        "--set",
        "validation_share=0.3",
        "--json",
    )
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("trials/*.json")}


def test_ablate_can_choose_settings_and_draw_tails(
    random_pair: Any, own_data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from gcpl_lab.data import wardrobe
    from gcpl_lab.experiments import multilabel as multilabel_experiment

    monkeypatch.setattr(
        multilabel_experiment.run_validation,
        "__kwdefaults__",
        {**multilabel_experiment.run_validation.__kwdefaults__, "candidates": {"chosen": {}, "other": {"mix": 0.9}}},
    )
    options = ("--preset", random_pair.folder, *FAST, "--set", "validation_share=0.3")
    run(
        "ablate",
        "lmpt",
        "--folder",
        tmp_path / "parts",
        "--metadata",
        own_data / "metadata.csv",
        "--validation",
        1,
        *options,
    )
    assert {row["name"] for row in read_json(tmp_path / "parts/results.json")["methods"]} == {"chosen", "other"}

    built: list[tuple[Any, ...]] = []

    def build(raw: Path, target: Path, seed: int, tail_order: tuple[str, ...]) -> None:
        built.append((raw, seed, tail_order))
        target.mkdir(parents=True)

    def load(split: str, folder: Path) -> Any:
        return bundled(split).subset(np.arange(0, 520, 5))

    bundled = wardrobe.load_wardrobe
    monkeypatch.setattr(wardrobe, "build_wardrobe", build)
    monkeypatch.setattr(wardrobe, "load_wardrobe", load)
    for _ in range(2):  # scenes that are there are not built again
        told = run(
            "ablate", "lmpt", "--folder", tmp_path / "tails", "--tails", 2, "--raw", "raw", "--seeds", 1, *options
        )
    assert [(str(raw), seed) for raw, seed, _ in built] == [("raw", 1), ("raw", 2)]
    assert built[0][2] != built[1][2]
    assert "CoOp + BCE" in told.output
    assert len(read_json(tmp_path / "tails/results.json")["tails"]) == 2


def test_wrong_options_are_explained(own_data: Path) -> None:
    for arguments, message in (
        (("train", "lmpt", "--set", "lambda=1"), "unknown settings lambda"),
        (("train", "lmpt", "--set", "mix=7"), "mix is 7"),
        (("train", "lmpt", "--set", "mix"), "is no condition"),
        (("train", "lmpt", "--list", "a.txt"), "--list needs --labels"),
        (("train", "lmpt", "--list", "a.txt", "--metadata", "b.csv"), "two ways to name pictures"),
    ):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 2
        assert message in " ".join(result.output.replace("│", " ").split())


def test_caption_needs_a_model(own_data: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "nothing", ignore_errors=True)
    result = CliRunner().invoke(app, ["caption", str(own_data), str(tmp_path / "nothing"), "-o", "new.csv"])
    assert "cannot be loaded" in str(result.exception)
    assert not (own_data / "new.csv").exists()
