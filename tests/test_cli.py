"""The program: what it prints, how it ends, and that no error costs a user earlier results."""

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import gcpl_lab.cli.app as cli
from gcpl_lab.cli.answers import LiveProgress, make_table
from gcpl_lab.cli.comparing import ablation_tables, comparison, method_names, method_table
from gcpl_lab.cli.options import parse_seeds, parse_settings
from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.errors import DataError
from gcpl_lab.experiments.few_shot import METHODS
from gcpl_lab.experiments.multilabel import run_validation
from gcpl_lab.experiments.registry import is_quick
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.storage import read_json
from tests.made_up import SMALL_SETTINGS

ROOT = Path(__file__).parents[1]
SETS = [part for name, value in SMALL_SETTINGS.items() for part in ("--set", f"{name}={value}")]
Ended = namedtuple("Ended", "code out err")


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
    pipes: Any = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A suite that runs in the background inherits an ignored Ctrl-C, which Python would pass on.
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env=environment, **pipes)


FILE = Path(__file__)
WRITING = (
    *("train gcpl {support} -o", "train lmpt -o", "recipe mine.json --data . -o", "demo --folder"),
    *("compare --folder", "ablate lmpt --folder", "init --images {support}"),
)


@pytest.fixture
def preset(random_pair: Any) -> str:
    return str(random_pair.folder)


@pytest.fixture
def support(few_shot_folder: Path) -> Path:
    return few_shot_folder / "support"


@pytest.fixture
def train(program: Any, support: Path, preset: str) -> Any:
    """Runs ``train gcpl`` with few steps."""

    def run(output: Path, *more: object, images: Path = support, shots: int = 2) -> Ended:
        return program("train", "gcpl", images, "-o", output, "--preset", preset, "--shots", shots, *SETS, *more)

    return run


@pytest.mark.parametrize("verb", ["", "train", "ablate", *cli.VERBS])
def test_every_verb_explains_itself(verb: str) -> None:
    result = CliRunner().invoke(cli.app, [*verb.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert len(result.output.split("Usage:")[1].split()) > 10


def test_help_is_quick_and_loads_no_heavy_library(tmp_path: Path) -> None:
    """Measured in CPU time, which other programs on this machine do not lengthen."""
    code = (
        "import sys, time; import gcpl_lab.cli.app as cli\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'open_clip', 'matplotlib', 'sklearn', 'pptx', 'bokeh', 'PIL'}\n"
        "heavy &= sys.modules.keys()\n"
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


def test_doctor_answers_people_and_programs(program: Any, monkeypatch: Any, tmp_path: Path) -> None:
    report = json.loads(program("doctor", "--json").out)
    assert report.keys() == {"machine", "versions", "samples", "presets"}
    counts = {"fashion/support": 640, "fashion/test": 500}
    expected = {name: f"{count} images, checksums right" for name, count in counts.items()}
    expected |= {"tiny/diffusion": "12 files, checksums right", "tiny/clip": "6 files, checksums right"}
    assert report["samples"] == expected
    assert report["presets"]["tiny"]["state"] == "ready (in a local folder)"
    real = report["presets"]["sd-1.4"]
    assert "hf download" in real["state"] or "ready" in real["state"]
    shown = program("doctor").out
    facts = (real["source"], real["licence"], f"{real['training_gb']} GB", f"{real['download_gb']} GB", "512")
    for fact in (*facts, *report, report["machine"]["system"]):
        assert fact in shown
    monkeypatch.setenv("GCPL_LAB_SAMPLES", str(tmp_path))
    assert re.search("fashion/test +not usable: ", program("doctor").out)


@pytest.mark.parametrize("objective", ["gcpl", "discriminative"])
def test_train_then_classify(
    program: Any, train: Any, support: Path, tmp_path: Path, preset: str, objective: str
) -> None:
    ended = train(tmp_path / "prompts", "--objective", objective, "--json")
    assert ended.code == 0, ended.err
    classes = ["bag", "boot", "shirt"]
    told = json.loads(ended.out)
    assert (told["output"], told["classes"], told["pictures"]) == (str(tmp_path / "prompts"), classes, 6)
    assert (told["fit"], told["fit_of_models"]["num_images"]) == ("crop", 6)
    assert 0 <= told["held_out"]["low"] <= told["held_out"]["value"] <= told["held_out"]["high"] <= 1
    assert told["fit_of_models"]["sentence"] in " ".join(ended.err.split())
    kept = ["kept", "prompts.json", "prompts.safetensors", "run.json"]
    assert sorted(os.listdir(tmp_path / "prompts")) == kept
    config = read_json(tmp_path / "prompts" / "prompts.json")["config"]
    assert config["objective"] == objective
    assert {name: config[name] for name in SMALL_SETTINGS} == SMALL_SETTINGS

    file, below = next((support / "boot").iterdir()), support.rglob("*.png")
    assert f"or --preset {preset!r}" in program("classify", tmp_path / "prompts", file).err
    ended = program("classify", tmp_path / "prompts", support, file, "--preset", preset, "--json")
    assert ended.code == 0, ended.err
    answers = json.loads(ended.out)
    files = [*sorted(below, key=lambda path: (path.parent, int(path.stem))), file]
    assert [answer["file"] for answer in answers] == list(map(str, files))
    for answer in answers:
        chances = answer["probabilities"]
        assert (list(chances), sum(chances.values())) == (classes, pytest.approx(1))
        assert answer["probability"] == max(chances.values()) == chances[answer["class"]]


def test_an_interrupted_training_ends_with_130_and_goes_on(
    train: Any, support: Path, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process and a real Ctrl-C; then the same command in this process, until its first update."""
    output, length, steps = tmp_path / "out", ("--set", "num_steps=100000"), []
    line = ["train", "gcpl", str(support), "-o", str(output), "--preset", preset, "--shots", "2", *SETS, *length]
    process = start("-m", "gcpl_lab", *line, cwd=tmp_path)
    checkpoint = output / "checkpoint" / "gcpl.checkpoint.safetensors"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()

    def interrupt(_progress: Any, event: str, _name: str, *values: Any) -> None:
        if event == "step":
            steps.append(values[0].step)
            raise KeyboardInterrupt

    monkeypatch.setattr(LiveProgress, "__call__", interrupt)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)  # latents round otherwise: a checkpoint knows the images instead
    try:
        again = train(output, *length)
    finally:
        torch.set_num_threads(threads)
    assert steps, again.err
    assert steps[0] > 50, "the first checkpoint stands at 50"
    for code, told in ((process.returncode, err), (again.code, again.err)):
        assert code == 130, told
        assert told.count("Interrupted.") == 1
        assert "Traceback" not in told
    assert (os.listdir(tmp_path), os.listdir(output)) == (["out"], ["checkpoint"])


def test_other_settings_replace_finished_prompts_and_a_bad_image_leaves_them(
    train: Any, support: Path, tmp_path: Path
) -> None:
    def written() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (tmp_path / "prompts").glob("prompts.*")}

    ended = train(tmp_path / "prompts")
    learned, measured, look = ended.out.strip().splitlines()
    assert f"gcpl-lab report {tmp_path / 'prompts'} (" in look
    assert learned.startswith("Learned 3 class prompts from 6 images (images seen by crop, ")
    assert learned.endswith(f"): {tmp_path / 'prompts'}")
    assert measured.startswith("Accuracy on 6 images that were left out: ")
    assert "chance 33.3%" in measured
    assert "2/2" in ended.err  # the bar at its end
    first = written()
    assert json.loads(train(tmp_path / "prompts", "--seed", 1, "--json", shots=0).out)["pictures"] == 12
    second = written()
    assert first["prompts.safetensors"] != second["prompts.safetensors"]
    shutil.copytree(support, tmp_path / "images")
    for file in (tmp_path / "images" / "boot").iterdir():
        file.write_bytes(b"")
    ended = train(tmp_path / "prompts", images=tmp_path / "images")
    assert (ended.code, "boot" in ended.err, "Traceback" in ended.err) == (1, True, False)
    assert written() == second


def test_square_brackets_in_names_are_shown_as_they_are(program: Any, train: Any, preset: str, tmp_path: Path) -> None:
    images = tmp_path / "[bold red]in[/]"
    for name, grey in (("[red]a", 40), ("b", 200)):
        (images / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (grey,) * 3).save(images / name / "[blue]1.png")
    output = tmp_path / "[green]out"
    ended = train(output, images=images, shots=1)
    assert ended.code == 0, ended.err
    assert str(output) in ended.out
    shown = program("classify", output, images / "[red]a", "--preset", preset).out.replace("\n", "")
    assert "[blue]1.png" in shown
    missing = program("classify", output, images / "[red]a" / "[/red]none.png", "--preset", preset)
    assert missing.code == 1
    assert "[/red]none.png" in missing.err


def test_compare_writes_and_shows_a_table(program: Any, few_shot_folder: Path, tmp_path: Path, preset: str) -> None:
    arguments = ["compare", "--folder", tmp_path, "--images", few_shot_folder, "--preset", preset, *SETS]
    arguments += ["--methods", "zero_shot_diffusion, gcpl", "--shots", "1,2", "--seeds", 2]
    result = json.loads(program(*arguments, "--json").out)
    rows = result.pop("rows")
    assert result == read_json(tmp_path / "results.json")
    assert {"method", "seed", "shots", "accuracy"} <= rows[0].keys()
    assert len(rows) == len(result["methods"]) == len(os.listdir(tmp_path / "trials")) == 8
    shown = program(*arguments)
    assert "Zero-shot diffusion" in shown.out
    assert str(tmp_path / "results.json") in shown.out


TRAIN = "train gcpl nowhere "


@pytest.mark.parametrize(
    ("code", "line", "words"),
    [
        (2, TRAIN + "--set colour=red", "unknown settings colour"),
        (2, TRAIN + "--set num_steps=many", "num_steps is 'many'; expected a whole number"),
        (2, TRAIN + "--set seed=3", "preset, objective and seed are options of their own"),
        (2, TRAIN + "--set cache_encodings=false", "this setting of earlier versions is gone"),
        (2, "demo --set objective=gcpl", "preset, objective and seed are options of their own"),
        (2, TRAIN + "--objective magic", "objective is 'magic'; expected a registered objective"),
        (2, "train magic", "No such command 'magic'"),
        (2, "compare --methods gcpl,magic", "no method magic; expected some of"),
        (2, "compare --reference magic", "no method magic"),
        (2, "compare --shots 0,2", "expected whole numbers of 1 or more joined by commas"),
        (2, "compare --seeds 0", "expected how many seeds, 1 or more"),
        (2, "plan --set num_steps=-1", "num_steps is -1; expected 0 or more"),
        (2, "lab --notebooks nowhere", "no such folder"),
        (2, "train lmpt --set lambda=1", "unknown settings lambda"),
        (2, "train lmpt --set mix", "is no setting; expected name=value"),
        (2, "train lmpt --metadata b.csv --rows split", "is no condition; expected name=value"),
        (2, "train lmpt --list a.txt", "--list needs --labels"),
        (2, "train lmpt --list a.txt --metadata b.csv", "two ways to name images"),
        (2, "ablate lmpt --reference magic", "no method magic; expected some of"),
        (2, "ablate lmpt --tails 1 --validation 1", "ask for one of them"),
        (1, TRAIN, "nowhere"),
        (1, "classify nowhere image.png", "nowhere"),
        (1, "classify nowhere .", "holds no image; expected files that end in"),
        (1, "caption {support}/bag nowhere", "cannot be loaded"),
        (1, "train gcpl {support} --shots 2 --preset sd-9", "'sd-9' is neither a preset nor a folder"),
        (1, "compare --images {support}", "has no test set; expected support/ and test/"),
        (1, "demo --test 501", "total is 501"),
        (1, "build-samples --raw nowhere", "dataset-fashion-mnist"),
        *[(1, f"{verb} {FILE}", "not a directory); choose another folder") for verb in WRITING],
    ],
)
def test_what_a_user_can_mend_is_one_message(
    program: Any, support: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, line: str, words: str
) -> None:
    """Wrong arguments end with 2, what is wrong with files with 1; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    ended = program(*line.replace("{support}", str(support)).split())
    assert ended.code == code
    assert words in " ".join(ended.err.replace("│", " ").split())
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert os.listdir(tmp_path) == []
    if code == 1:
        assert ended.err.count("Error:") == 1


def test_a_full_disk_is_one_message(program: Any, support: Path, train: Any, tmp_path: Path, monkeypatch: Any) -> None:
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("gcpl_lab.storage.os.fsync", full)
    for ended in (program("init", tmp_path / "mine", "--images", support, "--shots", 1), train(tmp_path / "prompts")):
        assert ended.code == 1
        assert ended.err.count("Error:") == 1
        assert "cannot be written (no space left on device). Make room" in " ".join(ended.err.split())


def test_a_defect_of_ours_is_not_hidden_and_a_message_keeps_its_brackets(program: Any, monkeypatch: Any) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "there")
    broken = Mock(side_effect=[ZeroDivisionError, denied, DataError(r"C:\[red]file[/red] \[x] [/] is bad")])
    monkeypatch.setattr("gcpl_lab.data.folders.read_image_folder", broken)
    with pytest.raises(ZeroDivisionError):
        program("train", "gcpl", "nowhere")
    assert program("train", "gcpl", "nowhere").err.strip() == "Error: there: permission denied"
    ended = program("train", "gcpl", "nowhere")
    assert (ended.code, ended.err.strip()) == (1, r"Error: C:\[red]file[/red] \[x] [/] is bad")


def test_settings_arrive_with_their_kinds() -> None:
    texts = ["num_steps=7", "timestep_range=[0.5, 1]", "num_rivals=null", "initial=coarse", 'templates=["a {}", "{}"]']
    found = {"num_steps": 7, "timestep_range": (0.5, 1), "num_rivals": None, "initial": "coarse", "seed": 3}
    assert parse_settings(texts, GCPLConfig, seed=3) == {**found, "templates": ("a {}", "{}")}
    with pytest.raises(typer.BadParameter):
        parse_settings(["timestep_range=[1, 0]"], GCPLConfig)


def test_methods_are_named_once_each_and_seeds_are_a_number_or_a_list() -> None:
    assert method_names("all", "gcpl") == list(METHODS)
    assert method_names("quick", "gcpl") == [name for name in METHODS if is_quick(METHODS[name])]
    assert method_names(" gcpl ,linear_probe,", "comple") == ["gcpl", "linear_probe"]
    read = {"5": [0, 1, 2, 3, 4], "1": [0], "101,102": [101, 102], " 3, 0 ": [3, 0], "7,": [7], "0,": [0]}
    assert {text: parse_seeds(text) for text in read} == read
    for text in ("", "0", "1.5", "-1", "1,,2", "a,1", ","):
        with pytest.raises(typer.BadParameter, match=f"'{text}': expected how many seeds"):
            parse_seeds(text)
    with pytest.raises(typer.BadParameter, match="'2,3,2': names a seed twice"):
        parse_seeds("2,3,2")


def test_tables_of_results_fit_a_terminal_of_80_columns() -> None:
    row = {"accuracy": 0.7833, "accuracy_within_family": 0.7458, "denoiser_evaluations": 40_000}
    row |= {"train_seconds": 127.9, "predict_seconds": 43.0}
    summary = row | {"num_seeds": 5, "mean": 0.612, "standard_deviation": 0.011}
    summary |= {"difference": -0.143, "low": -0.173, "high": -0.114, "p_value": 0.0001}
    several = [summary | {"method": name, "shots": shots} for shots in (4, 16) for name in METHODS]
    tables = [method_table([row | {"name": name} for name in METHODS]), *comparison(several, "gcpl")]
    assert len(tables) == 3
    for table in tables:
        out = Console(width=80, record=True, file=io.StringIO())
        out.print(table)
        text = out.export_text()
        assert "…" not in text
        assert "40,000" in text
        assert "Tip-Adapter-F" in text
    assert "-14.3 (-17.3 to -11.4)" in text
    with_offsets = several[0] | {"method": "gcpl", "standard_deviation": None, "readings": {"absolute": 0.6}}
    with_offsets |= {"offsets": {"difference": 0.015, "low": 0.01, "high": 0.02}}
    told = "GCPL, 4 shots: offsets +1.5 (+1.0 to +2.0); errors read absolute 60.0"
    assert comparison([with_offsets], "gcpl")[1] == told


def test_tables_with_many_numbers_lose_neither_names_nor_digits() -> None:
    entry = {"method": "lmpt", "mean": 0.571, "standard_deviation": 0.116}
    entry |= {"difference": -0.148, "low": -0.157, "high": -0.138}
    result = {"reference": "linear_probe", "summary": {key: [entry] for key in ("map", "map_head", "map_tail")}}
    levels = {f"{shots}": "{value}" for shots in (1, 2, 4, 8, 16, 32)}
    many = make_table({"": "{name}", **levels}, [{"name": "Small network from scratch", "value": "57.1 ± 11.6"}])
    for table, wanted in zip(
        (*ablation_tables(result), many), (("LMPT", "11.6"), ("LMPT", "-13.8)"), ("scratch",)), strict=True
    ):
        out = Console(width=80, record=True, file=io.StringIO())
        out.print(table)
        words = out.export_text().split()
        assert {*wanted} <= {*words}
    assert words.count("11.6") == len(levels)


FAST = ("--set", "num_context=4", "--set", "num_epochs=2")


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    """Of sixteen small images with two labels, split in half."""
    lines = ["file_name,labels,caption,split"]
    for index, pixels in enumerate(np.random.default_rng(0).integers(0, 255, (16, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        labels = ("bag", "coat;bag", "coat")[index % 3]
        lines.append(f"{index}.png,{labels},a {labels.split(';')[0]},{'train' if index < 8 else 'test'}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "metadata.csv"


def test_train_lmpt_and_evaluate(program: Any, preset: str, metadata: Path, tmp_path: Path) -> None:
    output, data = tmp_path / "prompts", ("--metadata", metadata, "--rows")
    learned = output, "--preset", preset
    parts = "split=train", "--test", "split=test"
    made = program("train", "lmpt", *data, *parts, "-o", output, "--preset", preset, *FAST, "--json")
    answer = json.loads(made.out)
    assert (answer["pictures"], answer["classes"]) == (8, ["bag", "coat"])
    assert "checkpoint" not in os.listdir(output)  # other settings may come next
    report = json.loads(program("evaluate", *learned, *data, "split=test", "--json").out)
    assert report["map"] == pytest.approx(answer["held_out"]["value"])
    assert 0 < report["map"] <= 1
    assert [entry["num_train"] for entry in report["classes"]] == [6, 5]
    assert "Average precision of each class" in program("evaluate", *learned, *data, "split=test").out
    metadata.write_text(metadata.read_text().replace("coat", "shirt"))
    assert "label 'shirt' is no known class" in program("evaluate", *learned, "--metadata", metadata).err


@pytest.fixture
def ablate(program: Any, preset: str, tmp_path: Path) -> Any:
    """Runs ``ablate lmpt`` with few epochs; gives its folder and what it printed."""

    def run(*more: object) -> tuple[Path, str]:
        own = ("--preset", preset, *FAST, "--set", "validation_share=0.3", "--seeds", 1)
        ended = program("ablate", "lmpt", "--folder", tmp_path / "ablation", *own, *more)
        assert ended.code == 0, ended.err
        return tmp_path / "ablation", ended.out

    return run


def test_ablate_writes_a_table_and_figures(ablate: Any, metadata: Path) -> None:
    folder, told = ablate("--metadata", metadata)
    assert "without captions" in told
    content = read_json(folder / "results.json")
    assert {entry["share"] for entry in content["caption_noise"]} == {0.0, 0.1, 0.25, 0.5, 1.0}
    assert {row["name"] for row in read_json(folder / "methods/results.json")["methods"]} >= {"lmpt", "coop_bce"}
    figures = ["ablation.png", "caption_noise.png", "comparison.png"]
    assert sorted(path.name for path in (folder / "figures").glob("*.png")) == figures


def test_ablate_can_choose_settings(ablate: Any, metadata: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = {"candidates": {"chosen": {}, "other": {"mix": 0.9}}}
    monkeypatch.setattr(run_validation, "__kwdefaults__", {**run_validation.__kwdefaults__, **candidates})
    folder, _ = ablate("--metadata", metadata, "--validation", 1)
    assert {row["name"] for row in read_json(folder / "results.json")["methods"]} == {"chosen", "other"}


def test_ablate_can_draw_tails(ablate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[Any, ...]] = []

    def build(raw: Path, target: Path, seed: int, tail_order: tuple[str, ...]) -> None:
        built.append((raw, seed, tail_order))
        target.mkdir(parents=True)

    few = {split: load_wardrobe(split).subset(np.arange(0, 520, 5)) for split in ("train", "test")}
    monkeypatch.setattr("tools.wardrobe.build_wardrobe", build)
    monkeypatch.setattr("gcpl_lab.data.samples.load_wardrobe", lambda split, _folder: few[split])
    for _ in range(2):  # scenes that are there are not built again
        folder, told = ablate("--tails", 2, "--raw", "raw")
    assert [(str(raw), seed) for raw, seed, _ in built] == [("raw", 1), ("raw", 2)]
    assert built[0][2] != built[1][2]
    assert "CoOp + BCE" in told
    assert len(read_json(folder / "results.json")["tails"]) == 2
