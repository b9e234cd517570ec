"""The self-test: outcomes, time and isolation of its parts, some of them for real; and little installed."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gcpl_lab.errors import LabError
from gcpl_lab.experiments.selftest import parts, runner
from gcpl_lab.experiments.selftest.equality import FLOAT32, Trace, report
from gcpl_lab.experiments.selftest.parts import Findings, NotHere

ROOT = Path(__file__).parents[1]


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    return Findings(torch.device("cpu"), tmp_path)


def test_a_figure_outside_its_bounds_fails_and_so_does_one_that_is_no_number(findings: Findings) -> None:
    findings.check("inside", 0.5, least=0.5, most=0.5)
    assert not findings.failures
    findings.check("large", 2.0, most=1)
    findings.check("small", 2.0, least=3)
    findings.check("none", math.nan, most=1)
    assert findings.failures[:2] == ["large is 2; expected at most 1", "small is 2; expected at least 3"]
    assert findings.failures[2].startswith("none is nan")
    assert findings.figures["large"] == {"value": 2.0, "most": 1}


def test_pieces_stand_for_themselves(findings: Findings) -> None:
    def raising(error: Exception) -> Any:
        def run() -> None:
            raise error

        return run

    ran: list[str] = []
    findings.piece("broken", raising(ZeroDivisionError("by zero\nsecond line")))
    findings.piece("absent", raising(NotHere("no such unit")))
    findings.piece("large", raising(torch.OutOfMemoryError("CUDA out of memory. Tried")), may_not_fit=True)
    findings.piece("equal", raising(torch.OutOfMemoryError("CUDA out of memory. Tried")))
    findings.piece("fine", lambda: ran.append("fine"))
    findings.ends = time.time() + 10
    findings.piece("late", lambda: ran.append("late"), seconds=20)
    assert ran == ["fine"]
    assert findings.failures[0] == "broken: ZeroDivisionError: by zero"
    assert findings.failures[1].startswith("equal: OutOfMemoryError")
    assert findings.figures["absent"] == "not here: no such unit"
    assert findings.figures["large"] == "does not fit into memory"
    assert findings.figures["late"].startswith("left out")


def test_order_does_not_hang_on_what_was_imported_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner.known_parts() == list(runner.MODULES)
    monkeypatch.setattr(parts.PARTS, "_entries", dict(reversed(parts.PARTS._entries.items())))
    assert runner.known_parts() == list(runner.MODULES)


@pytest.fixture
def own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts in place of the real ones."""
    monkeypatch.setattr(runner, "MODULES", ())
    monkeypatch.setattr(parts.PARTS, "_entries", {})

    @parts.register_part("good", title="Good", seconds={"cuda": 5, "cpu": 5})
    def good(found: Findings) -> None:
        found.check("ratio", math.inf, least=0)
        found.headline = "infinite"

    @parts.register_part("bad", title="Bad", seconds={"cuda": 50, "cpu": 50})
    def bad(found: Findings) -> None:
        found.figures["before"] = 1
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    @parts.register_part("absent", title="Absent", seconds={"cuda": 5, "cpu": 5})
    def absent(found: Findings) -> None:
        raise NotHere("one GPU alone")


@pytest.mark.usefixtures("own_parts")
def test_a_part_passes_fails_or_is_skipped() -> None:
    good, bad, absent = (runner.run_part(name, "cpu", "", 60) for name in ("good", "bad", "absent"))
    assert (good["outcome"], good["headline"], good["figures"]["ratio"]["value"]) == ("pass", "infinite", "inf")
    assert (bad["outcome"], bad["figures"]) == ("fail", {"before": 1})  # what was found before is not lost
    assert bad["reason"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert (absent["outcome"], absent["reason"]) == ("skip", "one GPU alone")


@pytest.mark.usefixtures("own_parts")
def test_parts_that_do_not_fit_are_skipped_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = SimpleNamespace(run=runner.run_part, end=lambda: None)
    monkeypatch.setattr(runner, "Worker", lambda: inside)
    told: list[str] = []
    found = runner.run_selftest(tmp_path, budget=20, on_part=told.append)
    outcomes = {part["name"]: part["outcome"] for part in found["parts"]}
    assert outcomes == {"good": "pass", "bad": "skip", "absent": "skip"}
    assert (told, found["verdict"]) == (["Good", "Absent"], "pass")
    assert found["parts"][1]["reason"] == "takes about 50 s, and 20 s of 20 s are left"
    assert json.loads((tmp_path / "selftest.json").read_text()) == found
    again = runner.run_selftest(tmp_path, ["absent", "bad"])
    assert [part["name"] for part in again["parts"]] == ["bad", "absent"]  # the more telling first
    assert again["verdict"] == "fail"
    assert {"name", "outcome", "seconds", "figures"} <= again["parts"][0].keys()
    with pytest.raises(LabError, match="'none' is no registered part of the self-test; expected one of good, bad"):
        runner.run_selftest(tmp_path, ["none"])


def misbehave(connection: Any) -> None:
    """In the other process: does what the part's name says."""
    while True:
        name, *_ = connection.recv()
        if name == "crash":
            os._exit(3)
        if name == "hang":
            time.sleep(600)
        connection.send({"outcome": name, "reason": str(os.getpid())})


def test_no_part_takes_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process serves until a part fails, ends it or hangs; then a fresh one does."""
    monkeypatch.setattr(runner, "GRACE", 0.5)
    worker = runner.Worker(misbehave)
    try:
        rows = {name: worker.run(name, "cpu", "", 200) for name in ("pass", "skip", "fail")}
        crashed, after = worker.run("crash", "cpu", "", 200), worker.run("pass", "cpu", "", 200)
        hanging, last = worker.run("hang", "cpu", "", 0), worker.run("pass", "cpu", "", 200)
    finally:
        worker.end()
    first, second, third = (rows[name]["reason"] for name in ("pass", "skip", "fail"))
    assert first == second == third
    assert (crashed["outcome"], crashed["reason"]) == ("fail", "its process was ended (exit code 3)")
    assert (hanging["outcome"], hanging["reason"]) == ("fail", "did not end within 0 s")
    assert len({first, after["reason"], last["reason"]}) == 3


def test_traces_are_compared_by_hand(findings: Findings) -> None:
    wanted = Trace(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0], [10.0]]))
    report(findings, "same", wanted, wanted, FLOAT32)
    assert not findings.failures
    got = Trace(torch.tensor([1.0, 2.1]), torch.tensor([[3.0, 4.5], [0.0, 1.0]]), torch.tensor([[0.0], [9.0]]))
    report(findings, "other", got, wanted, FLOAT32)
    values = [findings.figures[f"other: {name}"]["value"] for name in ("losses", "first gradient", "gradients")]
    assert values == pytest.approx([0.05, 0.1, 0.1])
    assert findings.figures["other: prompts"]["value"] == pytest.approx(0.1)
    assert len(findings.failures) == 4


# ------------------------------------------------------------------------------------------- for real, on a CPU


def test_memory_runs_out_for_real(tmp_path: Path) -> None:
    """Through the program: the machine is described, and passes are halved until they fit."""
    command = [sys.executable, "-m", "gcpl_lab", "selftest", "--only", "machine", "--only", "filling", "--json"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    machine, filling = json.loads(done.stdout)["parts"]
    assert (machine["outcome"], filling["outcome"]) == ("pass", "pass")
    passes = filling["figures"]["passes"]
    assert passes[0] == filling["figures"]["batch"] > passes[-1] > 0
    assert sum(passes[-(filling["figures"]["batch"] // passes[-1]) :]) == filling["figures"]["batch"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_parts_on_a_cpu(tmp_path: Path) -> None:
    report = runner.run_selftest(tmp_path, budget=1e9)
    assert [part["name"] for part in report["parts"]] == list(runner.MODULES)
    assert {part["name"]: part["reason"] for part in report["parts"]} == dict.fromkeys(runner.MODULES, "")
    assert report["verdict"] == "pass"
    (kept,) = (tmp_path / "true_shape").glob("cpu_*.json")
    assert json.loads(kept.read_text())["rows"]
    (profile,) = (tmp_path / "true_shape").glob("sd-1.x-small-*.json")
    from gcpl_lab.experiments.profile import load_profile

    assert load_profile(str(profile)).preset == "sd-1.x-small"


WITHOUT = "jupyterlab ipywidgets umap numba seaborn bokeh pptx nbclient nbformat jupytext IPython matplotlib".split()

HIDE = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {WITHOUT} else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""

LEARN = """
import numpy as np
from gcpl_lab import GCPLClassifier, LMPTClassifier
rng, labels = np.random.default_rng(0), np.arange(8) % 2
images = [rng.integers(150 * label, 100 + 150 * label, (40, 32), dtype=np.uint8) for label in labels]
model = GCPLClassifier(num_steps=2, batch_size=4, num_evidence=1).fit(images, labels)
assert model.predict_proba(images).shape == (8, 2)
targets = np.stack([labels, 1 - labels], 1)
model = LMPTClassifier(num_epochs=1, batch_size=4).fit(images, targets, ["dark", "bright"], ["dark", None] * 4)
assert model.predict(images).shape == (8, 2)
"""


def test_it_learns_and_classifies_with_little_installed(tmp_path: Path) -> None:
    """On a GPU machine there may be none of the notebook's and the figures' libraries."""
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}

    def program(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)

    for name in WITHOUT:
        assert "ModuleNotFoundError" in program("-c", f"import {name}").stderr
    done = program("-c", LEARN)
    assert done.returncode == 0, done.stderr
    done = program("-m", "gcpl_lab", "selftest", "--only", "machine")
    assert done.returncode == 0, done.stderr
    assert "PASS" in done.stdout


def test_a_part_that_fails_is_the_programs_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from gcpl_lab.cli.app import app

    row = {"name": "equality", "title": "The CPU's numbers", "seconds": 3.0, "figures": {}, "headline": ""}
    rows = [
        row | {"outcome": "fail", "reason": "gcpl, float32: losses is 0.1"},
        row | {"outcome": "skip", "reason": ""},
    ]
    made = {"verdict": "fail", "machine": {"device": "a card"}, "parts": rows}
    monkeypatch.setattr("gcpl_lab.experiments.selftest.run_selftest", lambda *_args, **_options: made)
    shown = CliRunner().invoke(app, ["selftest", "--folder", str(tmp_path)])
    assert shown.exit_code == 1
    assert "FAIL on a card: 0 pass, 1 fail, 1 skip" in shown.output
    assert "losses is 0.1" in shown.output
    assert json.loads(CliRunner().invoke(app, ["selftest", "--json"]).stdout)["parts"] == rows
