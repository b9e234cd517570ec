"""Views of a finished run: the deck says what the run measured, whatever methods are registered today."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from pptx import Presentation
from typer.testing import CliRunner

from gcpl_lab.cli.app import app
from gcpl_lab.errors import ArtifactError
from gcpl_lab.experiments.run_views import make_animation, make_deck, make_map
from gcpl_lab.experiments.runs import STATES, load_states
from gcpl_lab.storage import read_json, write_json, write_tensors

LEARNED = {"gcpl": 0.75, "comple": 0.74, "discriminative": 0.78}
SHARES = {"zero_shot_clip": 0.5, "linear_probe": 0.7, "zero_shot_diffusion": 0.6, **LEARNED}


@pytest.fixture
def run(tmp_path):
    measured = {"seed": 4, "shots": 2, "calibration_error": 0.01, "train_seconds": 2.0, "predict_seconds": 1.5}
    rows = [{"name": name, "accuracy": share, **measured} for name, share in SHARES.items()]
    data = {"name": "fashion/test", "checksum": "c0ffee" * 8, "classes": ["shirt", "coat"], "shots": 2, "test_size": 40}
    write_json(tmp_path / "results.json", {"command": "gcpl-lab demo --seed 4", "data": data, "methods": rows})
    for name in LEARNED:
        write_json(tmp_path / "prompts" / name / "prompts.json", {"config": {"contrast_weight": 0.1}})
    return tmp_path


def add_states(run, count=12):
    rng = np.random.default_rng(0)
    tensors = {"labels": torch.arange(count) % 2, "images": torch.zeros(count, 48, 48, 3, dtype=torch.uint8)}
    for state in ("before", "after"):
        tensors[f"profiles.{state}"] = torch.from_numpy(rng.normal(size=(count, 4)).astype(np.float32))
        tensors[f"predictions.{state}"] = torch.zeros(count, dtype=torch.int64)
        tensors[f"probabilities.{state}"] = torch.full((count,), 0.5)
    tensors["journey"] = torch.from_numpy(rng.normal(size=(3, 2, 5)).astype(np.float32))
    facts = {"steps": [0, 10, 20], "class_names": ["shirt", "coat"], "families": {}, "seed": 4}
    write_tensors(run / STATES, tensors, {"facts": json.dumps(facts)})


def read_deck(path):
    """The words of every slide, and the native charts."""
    deck = Presentation(str(path))
    charts = [shape.chart for page in deck.slides for shape in page.shapes if shape.has_chart]
    texts = [[shape.text_frame.text for shape in page.shapes if shape.has_text_frame] for page in deck.slides]
    return ["\n".join(text) for text in texts], charts


def test_the_deck_says_what_was_measured(run):
    result = CliRunner().invoke(app, ["slides", str(run), "--json"])
    assert result.exit_code == 0, result.output
    pages, charts = read_deck(json.loads(result.stdout)["files"][0])
    assert [page.split("\n")[0] for page in pages] == [
        "Does a learned prompt tell look-alike images apart?",
        "The data",
        "The method",
        "Before and after: numbers",
        "Every method on the same images",
        "What it costs",
        "What does not hold",
        "Limits",
    ]
    assert "78% of the test images recognised, up from 60%" in pages[0].replace("\n", " ")
    assert "2 images of each of 2 classes" in pages[1]
    assert "+18.0 points" in pages[3]
    assert "CoMPLe's contrast (λ = 0.1)" in pages[6]
    assert all("gcpl-lab demo --seed 4 · seed 4 · data c0ffeec0" in page for page in pages)
    assert list(charts[1].series[0].values) == sorted(SHARES.values(), reverse=True)


def test_a_run_opens_without_a_method_of_today_and_with_one_that_is_unknown(run):
    results = read_json(run / "results.json")
    rows = [row for row in results["methods"] if row["name"] != "discriminative"]
    unknown = {**rows[0], "name": "from_another_time", "accuracy": 0.9}
    write_json(run / "results.json", {**results, "methods": [*rows, unknown]})
    shutil.rmtree(run / "prompts" / "discriminative")
    pages, charts = read_deck(make_deck(run)[0])
    assert "GCPL: 75% of the test images recognised" in pages[0]
    assert "from_another_time, reaches 90%" in pages[0]
    assert "discriminative" not in "\n".join(pages).lower()
    assert list(charts[0].plots[0].categories) == ["GCPL", "CoMPLe", "Zero-shot diffusion"]


def test_deck_map_and_animation_are_made_of_the_kept_states(run):
    add_states(run)
    path = make_deck(run, "dark", method="pca")[0]
    assert path.name == "slides_dark.pptx"
    (page,) = [page for page in read_deck(path)[0] if page.startswith("Before and after: map")]
    assert "trust the numbers before the map" in page
    page = make_map(run, "pca").read_text(encoding="utf-8")
    assert "Before: class names" in page
    assert "After: learned prompts" in page
    names = [path.relative_to(run / "animation").as_posix() for path in make_animation(run, "pca")]
    assert names == ["journey.gif", "journey.html", "before_after.gif", "before_after.html"]


def test_a_run_without_states_says_what_to_do(run):
    with pytest.raises(ArtifactError, match="run gcpl-lab demo again"):
        load_states(run)
    write_tensors(run / STATES, {"labels": torch.zeros(1)}, {"facts": "{}"})
    with pytest.raises(ArtifactError, match="incomplete"):
        load_states(run)


@pytest.mark.parametrize("change", [{"methods": [{"name": "gcpl"}]}, {"data": {}}, {"methods": None}, {}])
def test_results_of_something_else_are_refused(run, change):
    results = read_json(run / "results.json")
    # What was changed is not of a demonstration; what was not lacks learned prompts.
    message = "not of a demonstration" if change else "holds zero_shot_clip, linear_probe, but no learned prompts"
    write_json(run / "results.json", {**results, "methods": results["methods"][:2], **change})
    with pytest.raises(ArtifactError, match=message):
        make_deck(run)


def test_help_loads_no_view():
    code = (
        "import sys, gcpl_lab.cli.app; "
        "sys.exit(', '.join({'pptx', 'bokeh', 'matplotlib', 'torch', 'PIL'} & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
