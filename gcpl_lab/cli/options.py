"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

import json
import reprlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from typer import BadParameter, Option

from gcpl_lab.errors import LabError
from gcpl_lab.settings import LARGEST, Settings
from gcpl_lab.storage import check_writable

Json = Annotated[bool, Option("--json", help="Print the answer as JSON on standard output.")]
Preset = Annotated[str, Option(help="Name of the frozen models, or a folder with diffusion/ and clip/.")]
LearnedOn = Annotated[
    str | None, Option("--preset", help="Folder of models that the prompts were learned on, if it was one.")
]
Objective = Annotated[str, Option(help="Name of a registered objective, such as gcpl.")]
Shots = Annotated[int, Option(min=1, max=LARGEST, help="Images a class to learn from.")]
Seed = Annotated[int, Option(min=0, max=LARGEST, help="Of everything random.")]
Seeds = Annotated[str, Option(help="How many seeds, counted from 0, or the seeds joined by commas: 5, or 101,102.")]
SET_HELP = "A setting of the training, as name=value; may be given several times."
Set = Annotated[list[str], Option("--set", help=SET_HELP)]
Workers = Annotated[int, Option(min=0, max=1000, help="Processes that learn side by side; 0: as many as are of use.")]


def writable(folder: Path) -> Path:
    """A folder for results, which is looked at before anything is computed."""
    check_writable(folder)
    return folder


Folder = Annotated[Path, Option(help="Where every result is kept; a rerun goes on from there.", callback=writable)]
Output = Annotated[Path, Option("--output", "-o", help="Where prompts and results go.", callback=writable)]


def run_options(workers: int) -> dict[str, Any]:
    """How many processes an experiment has, and the command that is written down as having made it."""
    from gcpl_lab.training.workers import useful_workers

    return {"num_workers": workers or useful_workers(), "command": " ".join(["gcpl-lab", *sys.argv[1:]])}


def parse_pairs(texts: list[str], kind: str = "setting", example: str = "num_steps=300") -> dict[str, str]:
    """Texts such as ``name=value`` by name; ``kind`` and ``example`` say what was expected where one is none."""
    parts = [text.partition("=") for text in texts]
    for text, (name, sign, _) in zip(texts, parts, strict=True):
        if not sign or not name:
            raise BadParameter(f"{text!r} is no {kind}; expected name=value, such as {example}")
    return {name: value for name, _, value in parts}


def parse_values(texts: list[str]) -> dict[str, Any]:
    """What ``--set`` was given, by name; values are read as JSON where they are JSON and as text otherwise."""
    found: dict[str, Any] = parse_pairs(texts)
    for name, text in found.items():
        with suppress(ValueError, RecursionError):
            found[name] = json.loads(text)
    return found


def parse_settings(texts: list[str], kind: type[Settings], **others: Any) -> dict[str, Any]:
    """What ``--set`` was given and settings that have an option of their own, checked and in the settings' types."""
    found = parse_values(texts)
    if reserved := {"preset", "objective", "seed"} & found.keys():
        raise BadParameter(f"--set {min(reserved)}: preset, objective and seed are options of their own, see --help")
    if gone := found.keys() & set(kind.REMOVED):
        raise BadParameter(f"--set {min(gone)}: this setting of earlier versions is gone; leave it out")
    try:
        checked = kind.from_dict({**found, **others})
    except (LabError, TypeError, ValueError) as error:
        raise BadParameter(str(error)) from error
    return {name: getattr(checked, name) for name in (*found, *others)}


def parse_numbers(
    text: str, least: int = 1, expected: str = "whole numbers of 1 or more joined by commas"
) -> list[int]:
    """Whole numbers that are joined by commas; one behind the last is allowed."""
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    digits = all(part.isascii() and part.isdigit() and len(part) <= len(str(LARGEST)) for part in parts)
    if not digits or not all(least <= int(part) <= LARGEST for part in parts):
        raise BadParameter(f"{reprlib.repr(text)}: expected {expected}, at most {LARGEST}")
    return [int(part) for part in parts]


def parse_seeds(text: str) -> list[int]:
    """The seeds that ``--seeds`` names: ``"5"`` is 0 to 4, ``"101,102"`` these two, ``"7,"`` the one."""
    single = "," not in text
    expected = "how many seeds, 1 or more (5 for 0 to 4), or the seeds joined by commas (101,102; one alone: 7,)"
    numbers = parse_numbers(text, 1 if single else 0, expected)
    if len(set(numbers)) < len(numbers):
        raise BadParameter(f"{text!r}: names a seed twice; each counts once")
    return list(range(numbers[0])) if single else numbers


def find_tools() -> None:
    """Let ``tools/`` be imported; a LabError where the package was installed without the repository around it."""
    root = Path(__file__).parents[2]
    if not (root / "tools" / "pretrain.py").is_file():
        raise LabError(f"{root / 'tools'}: is not there; this command needs a clone of the repository")
    if str(root) not in sys.path:
        sys.path.append(str(root))
