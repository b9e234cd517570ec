"""What the verbs of the command line have in common: options, where they write, and answers as JSON."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

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
