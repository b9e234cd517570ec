"""What docs/gpu.md says can be run: its commands and the scheduler's script are read by the programs they call."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from accelerate.commands.launch import launch_command_parser

from gcpl_lab.cli.app import app
from gcpl_lab.experiments.profile import load_profile
from gcpl_lab.experiments.selftest.runner import MODULES
from gcpl_lab.storage import read_json

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "gpu.md").read_text(encoding="utf-8")


def parse_program(words: list[str]) -> dict[str, Any]:
    """What our command line makes of these words, without running it."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return dict(command.make_context(command.name, list(words)).params)


def parse_launch(words: list[str]) -> tuple[Any, dict[str, Any]]:
    """What accelerate's launcher makes of its part, and our command line of the rest."""
    launch = launch_command_parser().parse_args(words)
    assert (launch.module, launch.training_script) == (True, "gcpl_lab")
    return launch, parse_program(launch.training_script_args)


def commands() -> list[list[str]]:
    """Every command of the page's code, comments away and lines joined."""
    code = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).replace("\\\n", " ")
    return [words for line in code.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_of_the_page_are_understood(words: list[str]) -> None:
    words = words[: words.index(">")] if ">" in words else words
    if words[:2] == ["accelerate", "launch"]:
        launch, ours = parse_launch(words[2:])
        assert launch.num_processes >= 2
        assert ours["preset"] == "sd-1.4"
    else:
        assert words[0] == "gcpl-lab"
        assert set(parse_program(words[1:]).get("only", [])) <= set(MODULES)


def test_every_part_stands_on_the_page() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.M) == list(MODULES)


def table_rows(result: dict[str, Any]) -> list[str]:
    """What the page shows of a result: all rows but those in float16, as it rounds them."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        f"| {row['what']} | {row['seconds']:.3f} | {cell(row['ratio_to_published'], '.2f')} | "
        f"{cell(row['ratio_to_floor'], '.2f')} | {cell(row.get('peak_gb'), '.1f')} |"
        for row in result["rows"]
        if "float16, batch" not in row["what"].replace("bfloat16", "")
    ]


def test_figures_of_the_page_are_the_kept_results() -> None:
    result = read_json(DOCS.parent / "benchmarks" / "results" / "gpu_nvidia_h200.json")
    shown = re.search(r"<!-- rows: begin -->\n(.*?)<!-- rows: end -->", PAGE, re.S)
    assert shown is not None
    assert shown[1].splitlines() == table_rows(result)
    rows, aims = ({each["what"]: each for each in result[name]} for name in ("rows", "aims"))
    assert [name for name, aim in aims.items() if not aim["met"]] == [
        "an update over the bare denoiser",
        "LMPT epochs over the published procedure",
    ]
    # Where the README says it too.
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert f"{1000 * rows['bfloat16, batch 8: ours']['seconds']:.0f} ms" in readme
    assert f"{aims['images a second over the published procedure']['value']:.1f} times" in readme


def test_the_recorded_profile_of_a_gpu_predicts_what_was_measured_there() -> None:
    profile = load_profile("sd-1.4-nvidia-h200")
    rows = read_json(DOCS.parent / "benchmarks" / "results" / "gpu_nvidia_h200.json")["rows"]
    seconds = {row["what"]: row["seconds"] for row in rows}
    for batch in (8, 16):
        assert profile.training_time(1, batch, "bfloat16") == pytest.approx(
            seconds[f"bfloat16, batch {batch}: ours"], rel=0.1
        )
    assert profile.classifying_time(64, "bfloat16") == pytest.approx(seconds["classifying"], rel=0.1)


def test_the_schedulers_script_starts_a_launcher_a_node(tmp_path: Path) -> None:
    """Run with stand-ins for the scheduler's programs; what reaches the launcher is read by the real parsers."""
    script = DOCS / "slurm.sh"
    lines = script.read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=[\w:.%@-]+)?", line) for line in told)
    first = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(line) < first for line in told)  # sbatch reads no further
    stand_ins = {"srun": 'exec "$@"', "scontrol": "printf 'node7\\nnode8\\n'", "accelerate": 'printf "%s\\n" "$@"'}
    for name, body in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "4"}
    environment = {**os.environ, **job, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(script), "my images", "runs/mine"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    name, *words = done.stdout.splitlines()
    assert name == "launch"
    launch, ours = parse_launch(words)
    assert (launch.num_machines, launch.num_processes, launch.machine_rank) == (2, 8, 1)
    assert (launch.main_process_ip, launch.main_process_port) == ("node7", 29500)
    assert (ours["images"], ours["output"]) == (Path("my images"), Path("runs/mine"))
