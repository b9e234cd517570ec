"""What the verbs of the command line have in common: options, where they write, and answers as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gcpl_lab.errors import LabError

console = Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on standard output.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of everything random.")]
WorkersOption = Annotated[
    int, typer.Option(min=0, help="Processes that learn side by side; 0: as many as are of use, two on a CPU.")
]


def print_json(value: Any, as_json: bool) -> None:
    """Print ``value`` on standard output where JSON was asked for."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


SeedsOption = Annotated[
    str,
    typer.Option(help="A number of seeds, counted from 0, or the seeds themselves joined by commas: 5, or 101,102."),
]


def parse_seeds(text: str) -> list[int]:
    """The seeds that ``--seeds`` names: ``"5"`` is 0 to 4, ``"101,102"`` these two, ``"7,"`` the one.

    Raises:
        typer.BadParameter: No whole number of 0 or more, a number of seeds below 1, or a seed twice.
    """
    parts = [part.strip() for part in text.split(",")]
    single = len(parts) == 1
    if not single and parts[-1] == "":
        parts.pop()
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise typer.BadParameter(
            f"{text!r}: expected how many seeds (5 for 0 to 4), or the seeds joined by commas (101,102; one alone: 7,)"
        )
    numbers = [int(part) for part in parts]
    if single and numbers[0] < 1:
        raise typer.BadParameter(f"{text!r}: expected 1 seed or more; seed 0 alone is '0,'")
    if repeated := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise typer.BadParameter(f"{text!r}: names {', '.join(map(str, repeated))} twice; each seed counts once")
    return list(range(numbers[0])) if single else numbers


def find_tools() -> None:
    """Let ``tools/`` be imported: how the bundled data and models were made is part of a clone, not of the package.

    Raises:
        LabError: The package was installed without the repository around it.
    """
    root = Path(__file__).parents[2]
    if not (root / "tools" / "pretrain.py").is_file():
        raise LabError(f"{root / 'tools'}: is not there; this command needs a clone of the repository")
    if str(root) not in sys.path:
        sys.path.append(str(root))
