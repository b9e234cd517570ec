"""The program: what it prints, how it ends, and that no error costs a user earlier results."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import gcpl_lab.cli.app as cli
from gcpl_lab.cli.options import parse_seeds
from gcpl_lab.errors import DataError
from gcpl_lab.experiments.few_shot import METHODS
from gcpl_lab.storage import read_json, read_tensors

ROOT = Path(__file__).parents[1]
TINY_SETTINGS = {
    "num_vectors": 2,
    "num_steps": 3,
    "batch_size": 4,
    "num_evidence": 2,
    "discriminative_steps": 2,
    "discriminative_batch_size": 2,
    "num_samples": 2,
}
SETS = [part for name, value in TINY_SETTINGS.items() for part in ("--set", f"{name}={value}")]


class Ended(NamedTuple):
    """How a run of the program ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the whole program, errors included, in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["gcpl-lab", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return Ended(code, out, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", err))

    return run


def start(*arguments: str, cwd: Path) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A suite that runs in the background inherits an ignored Ctrl-C, which Python would pass on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def preset(random_pair: Any) -> str:
    return str(random_pair.folder)


@pytest.fixture
def support(few_shot_folder: Path) -> Path:
    return few_shot_folder / "support"


# -------------------------------------------------------------------------------------------------- help


def verbs() -> list[list[str]]:
    """Every verb, groups before their members, as typed."""
    found: list[list[str]] = []

    def collect(command: Any, path: list[str]) -> None:
        found.append(path)
        for name, member in getattr(command, "commands", {}).items():
            collect(member, [*path, name])

    collect(get_command(cli.app), [])
    return found


def test_the_promised_verbs_are_there() -> None:
    names = {path[0] for path in verbs() if path}
    assert {"doctor", "demo", "pretrain", "train", "classify", "compare", "lab"} <= names


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_verb_explains_itself(verb: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*verb, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
    assert len(result.output.split("Usage:")[1].split()) > 10


def test_help_is_quick_and_loads_no_heavy_library(tmp_path: Path) -> None:
    """Measured in CPU time, which other programs on this machine do not lengthen."""
    code = (
        "import sys, time; import gcpl_lab.cli.app as cli\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'open_clip', 'matplotlib', 'sklearn'} & sys.modules.keys()\n"
        "sys.argv = ['gcpl-lab', '--help']\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted(heavy), time.process_time(), file=sys.stderr)"
    )
    process = start("-c", code, cwd=tmp_path)
    out, err = process.communicate()
    assert "Usage:" in out, err
    heavy, seconds = err.strip().rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 1
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------ doctor


def test_doctor_answers_people_and_programs(program: Any) -> None:
    ended = program("doctor", "--json")
    assert ended.code == 0
    report = json.loads(ended.out)
    assert report.keys() == {"machine", "versions", "samples", "presets"}
    assert report["samples"] == {
        "fashion/support": "640 pictures, checksums right",
        "fashion/test": "500 pictures, checksums right",
    }
    assert report["presets"]["tiny"]["state"] == "ready (in a local folder)"
    real = report["presets"]["sd-1.4"]
    assert "hf download" in real["state"] or "ready" in real["state"]
    shown = program("doctor")
    for fact in (real["source"], real["licence"], f"{real['training_gb']} GB", f"{real['download_gb']} GB", "512"):
        assert fact in shown.out
    assert shown.code == 0
    for title in report:
        assert title in shown.out
    assert report["machine"]["system"] in shown.out


def test_doctor_reports_data_that_is_not_usable(program: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("GCPL_LAB_SAMPLES", str(tmp_path))
    ended = program("doctor", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["samples"]["fashion/test"].startswith("not usable: ")


# --------------------------------------------------------------------------------------- train, classify


def train(program: Any, support: Path, output: Path, preset: str, *more: object) -> Ended:
    ended: Ended = program("train", "gcpl", support, "-o", output, "--preset", preset, "--shots", 2, *SETS, *more)
    return ended


@pytest.mark.parametrize("objective", ["gcpl", "comple", "discriminative"])
def test_train_then_classify(program: Any, support: Path, tmp_path: Path, preset: str, objective: str) -> None:
    ended = train(program, support, tmp_path / "prompts", preset, "--objective", objective, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out) == {
        "output": str(tmp_path / "prompts"),
        "classes": ["bag", "boot", "shirt"],
        "pictures": 6,
    }
    assert sorted(os.listdir(tmp_path / "prompts")) == ["prompts.json", "prompts.safetensors"]
    config = read_json(tmp_path / "prompts" / "prompts.json")["config"]
    assert config["objective"] == objective
    assert {name: config[name] for name in TINY_SETTINGS} == TINY_SETTINGS

    file = next((support / "boot").iterdir())
    ended = program("classify", tmp_path / "prompts", support / "bag", file, "--json")
    assert ended.code == 0, ended.err
    answers = json.loads(ended.out)
    assert [answer["file"] for answer in answers] == [*map(str, sorted((support / "bag").iterdir())), str(file)]
    for answer in answers:
        assert answer["probabilities"].keys() == {"bag", "boot", "shirt"}
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["probability"] == max(answer["probabilities"].values())
        assert answer["probabilities"][answer["class"]] == answer["probability"]


def test_classify_takes_the_pictures_of_sub_folders(
    program: Any, support: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Path] = []

    class Stop(Exception): ...

    class Classifier:
        def predict_proba(self, files: list[Path]) -> None:
            judged.extend(files)
            raise Stop

    monkeypatch.setattr("gcpl_lab.gcpl.estimator.GCPLClassifier.load", lambda _folder: Classifier())
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(Stop):
        program("classify", "prompts", support)
    assert [path.parent.name for path in judged] == ["bag"] * 4 + ["boot"] * 4 + ["shirt"] * 4
    assert sorted(judged) == sorted(path for path in support.rglob("*.png"))
    ended = program("classify", "prompts", tmp_path)
    assert ended.code == 1
    assert "holds no picture; expected files that end in" in " ".join(ended.err.split())


def test_train_says_what_it_did(program: Any, support: Path, tmp_path: Path, preset: str) -> None:
    ended = train(program, support, tmp_path / "prompts", preset)
    assert ended.code == 0
    assert ended.out.strip() == f"Learned 3 class prompts from 6 photographs: {tmp_path / 'prompts'}"
    assert "3/3" in ended.err  # the bar at its end


def test_every_picture_is_taken_with_no_shots(program: Any, support: Path, tmp_path: Path, preset: str) -> None:
    ended = program("train", "gcpl", support, "-o", tmp_path, "--preset", preset, "--shots", 0, *SETS, "--json")
    assert json.loads(ended.out)["pictures"] == 12


def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_not_been(
    program: Any, support: Path, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = ("--set", "num_steps=54")
    real, seen = cli._Progress.__call__, []

    def listen(self: Any, event: str, name: str, *values: Any) -> None:
        if event == "step":
            seen.append(values[0].step)
        real(self, event, name, *values)

    def interrupt(self: Any, event: str, name: str, *values: Any) -> None:
        listen(self, event, name, *values)
        if seen and seen[-1] == 52:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli._Progress, "__call__", interrupt)
        ended = train(program, support, tmp_path / "broken", preset, *length)
    assert ended.code == 130
    assert ended.err.count("Interrupted.") == 1
    assert "Traceback" not in ended.err
    assert os.listdir(tmp_path / "broken") == ["checkpoint"]

    monkeypatch.setattr(cli._Progress, "__call__", listen)
    assert train(program, support, tmp_path / "broken", preset, *length).code == 0
    assert seen == [*range(1, 53), *range(51, 55)]  # the last checkpoint stood at 50
    assert train(program, support, tmp_path / "whole", preset, *length).code == 0
    resumed, whole = (read_tensors(tmp_path / name / "prompts.safetensors")[0] for name in ("broken", "whole"))
    assert resumed.keys() == whole.keys()
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


def test_a_finished_folder_can_be_trained_again_with_other_settings(
    program: Any, support: Path, tmp_path: Path, preset: str
) -> None:
    assert train(program, support, tmp_path, preset).code == 0
    first = (tmp_path / "prompts.safetensors").read_bytes()
    assert train(program, support, tmp_path, preset, "--seed", 1).code == 0
    assert (tmp_path / "prompts.safetensors").read_bytes() != first


def test_a_bad_picture_leaves_earlier_prompts_as_they_were(
    program: Any, support: Path, tmp_path: Path, preset: str
) -> None:
    assert train(program, support, tmp_path / "prompts", preset).code == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "prompts").iterdir()}
    broken = tmp_path / "pictures"
    shutil.copytree(support, broken)
    for file in (broken / "boot").iterdir():
        file.write_bytes(b"")
    ended = train(program, broken, tmp_path / "prompts", preset)
    assert ended.code == 1
    assert "boot" in ended.err
    assert "Traceback" not in ended.err
    assert {file.name: file.read_bytes() for file in (tmp_path / "prompts").iterdir()} == before


def test_square_brackets_in_names_are_shown_as_they_are(program: Any, tmp_path: Path, preset: str) -> None:
    pictures = tmp_path / "[bold red]in[/]"
    for name, grey in (("[red]a", 40), ("b", 200)):
        (pictures / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (grey,) * 3).save(pictures / name / "[blue]1.png")
    output = tmp_path / "[green]out"
    ended = program("train", "gcpl", pictures, "-o", output, "--preset", preset, "--shots", 1, *SETS)
    assert ended.code == 0, ended.err
    assert str(output) in ended.out
    shown = program("classify", output, pictures / "[red]a").out.replace("\n", "")
    assert "[blue]1.png" in shown
    missing = program("classify", output, pictures / "[red]a" / "[/red]none.png")
    assert missing.code == 1
    assert "[/red]none.png" in missing.err


# ----------------------------------------------------------------------------------------------- compare


def test_compare_runs_no_trial_twice(program: Any, few_shot_folder: Path, tmp_path: Path, preset: str) -> None:
    arguments = [
        "compare",
        "--folder",
        tmp_path,
        "--images",
        few_shot_folder,
        "--preset",
        preset,
        "--methods",
        "zero_shot_diffusion, gcpl",
        "--shots",
        "1,2",
        "--seeds",
        2,
        *SETS,
    ]
    ended = program(*arguments, "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result == read_json(tmp_path / "results.json")
    assert len(result["methods"]) == 8
    assert {"difference", "low", "high", "p_value"} <= result["summary"][0].keys()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "trials").iterdir()}
    assert len(times) == 8
    shown = program(*arguments)
    assert shown.code == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "trials").iterdir()} == times
    assert "Zero-shot diffusion" in shown.out
    assert str(tmp_path / "results.json") in shown.out


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "gcpl", "nowhere", "--set", "colour=red"], "unknown settings colour"),
        (["train", "gcpl", "nowhere", "--set", "num_steps"], "expected name=value"),
        (["train", "gcpl", "nowhere", "--set", "num_steps=many"], "num_steps is 'many'; expected a whole number"),
        (["train", "gcpl", "nowhere", "--set", "num_steps=2.5"], "num_steps is 2.5; expected a whole number"),
        (["train", "gcpl", "nowhere", "--set", "flip=1"], "flip is 1; expected True or False"),
        (["train", "gcpl", "nowhere", "--set", "seed=3"], "preset, objective and seed are options of their own"),
        (["demo", "--set", "objective=gcpl"], "preset, objective and seed are options of their own"),
        (["train", "gcpl", "nowhere", "--objective", "magic"], "objective is 'magic'; expected 'gcpl'"),
        (["train", "magic"], "No such command 'magic'"),
        (["compare", "--methods", "gcpl,magic"], "no method magic; expected some of"),
        (["compare", "--reference", "magic"], "no method magic"),
        (["compare", "--shots", "1,two"], "expected whole numbers joined by commas"),
        (["compare", "--shots", "0,2"], "expected numbers of 1 or more"),
        (["compare", "--seeds", "0"], "expected 1 seed or more"),
        (["lab", "--notebooks", "nowhere"], "no such folder"),
    ],
)
def test_wrong_arguments_end_with_2_and_a_reason(
    program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = program(*arguments)
    assert ended.code == 2
    assert words in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "gcpl", "nowhere"], "nowhere"),
        (["classify", "nowhere", "picture.png"], "nowhere"),
        (["train", "gcpl", "{support}", "--shots", "2", "--preset", "sd-9"], "'sd-9' is neither a preset nor a folder"),
        (["train", "gcpl", "{support}", "--shots", "5"], "has 4 pictures, fewer than the 5 shots"),
        (["compare", "--images", "{support}"], "has no test set; expected support/ and test/"),
        (["compare", "--published", "cars"], "'cars' is no published set; expected one of flowers102"),
        (["demo", "--test", "501"], "total is 501"),
        (["build-samples", "--raw", "nowhere"], "dataset-fashion-mnist"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_ends_with_1(
    program: Any, support: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = program(*(argument.replace("{support}", str(support)) for argument in arguments))
    assert ended.code == 1
    assert ended.err.count("Error:") == 1
    assert words in " ".join(ended.err.split())
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert os.listdir(tmp_path) == []


def test_a_defect_of_ours_is_not_hidden(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("gcpl_lab.training.machine.describe_machine", broken)
    with pytest.raises(ZeroDivisionError):
        program("doctor")


def test_settings_arrive_with_their_kinds() -> None:
    found = cli._settings(
        ["num_steps=7", "timestep_range=[0.5, 1]", "num_rivals=null", "initial=coarse", 'templates=["a {}", "the {}"]'],
        seed=3,
    )
    assert found == {
        "seed": 3,
        "num_steps": 7,
        "timestep_range": (0.5, 1),
        "num_rivals": None,
        "initial": "coarse",
        "templates": ("a {}", "the {}"),
    }
    with pytest.raises(typer.BadParameter):
        cli._settings(["timestep_range=[1, 0]"])


def test_a_message_is_printed_with_its_brackets(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise DataError(r"C:\[red]file[/red] \[x] [/] is bad")

    monkeypatch.setattr("gcpl_lab.data.folders.read_image_folder", broken)
    ended = program("train", "gcpl", "nowhere")
    assert ended.code == 1
    assert ended.err.strip() == r"Error: C:\[red]file[/red] \[x] [/] is bad"


def test_ctrl_c_ends_a_real_process_with_130(support: Path, tmp_path: Path, preset: str) -> None:
    process = start(
        "-m",
        "gcpl_lab",
        "train",
        "gcpl",
        str(support),
        "-o",
        str(tmp_path / "out"),
        "--preset",
        preset,
        "--shots",
        "2",
        *SETS,
        "--set",
        "num_steps=100000",
        cwd=tmp_path,
    )
    checkpoint = tmp_path / "out" / "checkpoint" / "gcpl.checkpoint.safetensors"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Interrupted." in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("arguments", [["train", "gcpl", "nowhere"], ["train", "gcpl", "x", "--set", "a=1"]])
def test_a_real_process_ends_without_a_traceback(tmp_path: Path, arguments: list[str]) -> None:
    process = start("-m", "gcpl_lab", *arguments, cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == (1 if "--set" not in arguments else 2)
    assert out == ""
    assert "Traceback" not in err
    assert "Error" in err
    assert os.listdir(tmp_path) == []


def test_methods_are_named_once_each() -> None:
    assert cli._method_names("all", "gcpl") == list(METHODS)
    assert cli._method_names("quick", "gcpl") == [name for name in METHODS if name != "gcpl_published"]
    assert cli._method_names(" gcpl ,linear_probe,", "comple") == ["gcpl", "linear_probe"]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("5", [0, 1, 2, 3, 4]), ("1", [0]), ("101,102", [101, 102]), (" 3, 0 ", [3, 0]), ("7,", [7]), ("0,", [0])],
)
def test_seeds_are_a_number_or_a_list(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected how many"),
        ("0", "1 seed or more"),
        ("1.5", "expected how many"),
        ("-1", "expected how many"),
        ("1,,2", "expected how many"),
        ("a,1", "expected how many"),
        (",", "expected how many"),
        ("2,3,2", "names 2 twice"),
    ],
)
def test_seeds_that_are_none_are_named(text: str, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        parse_seeds(text)


def test_tables_of_results_fit_a_terminal_of_80_columns() -> None:
    from rich.console import Console

    from gcpl_lab.experiments.few_shot import METHODS

    row = {
        "accuracy": 0.7833,
        "accuracy_within_family": 0.7458,
        "denoiser_evaluations": 40_000,
        "train_seconds": 127.9,
        "predict_seconds": 43.0,
    }
    summary = row | {
        "num_seeds": 5,
        "mean": 0.612,
        "standard_deviation": 0.011,
        "difference": -0.143,
        "low": -0.173,
        "high": -0.114,
        "p_value": 0.0001,
    }
    tables = [
        cli._method_table([row | {"name": name} for name in METHODS]),
        *cli._comparison_tables(
            [summary | {"method": name, "shots": shots} for shots in (4, 16) for name in METHODS], "gcpl"
        ),
    ]
    assert len(tables) == 3
    for table in tables:
        out = Console(width=80, record=True, file=io.StringIO())
        out.print(table)
        text = out.export_text()
        assert "…" not in text
        assert "40,000" in text
        assert "Tip-Adapter-F" in text
    assert "-14.3 (-17.3 to -11.4)" in text
