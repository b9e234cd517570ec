"""Verbs that make views of a finished run: ``slides``, ``map``, ``animate``.

``register`` adds them to the program; heavy libraries load inside the verbs that need them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from gcpl_lab.cli.options import JsonOption

RunArgument = Annotated[Path, typer.Argument(help="Folder written by gcpl-lab demo.")]
MethodOption = Annotated[str, typer.Option(help="Of the map: umap, densmap, pca or tsne.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module.

    Args:
        app: The program.
    """
    app.command("slides")(slides)
    app.command("map")(hover_map)
    app.command("animate")(animate)


def _report(paths: list[Path], as_json: bool, what: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps({"files": [str(path) for path in paths]}, indent=2) + "\n")
    else:
        Console().print(f"{what}: {escape(str(paths[0]))}", soft_wrap=True)


def slides(
    folder: RunArgument = Path("runs/demo"),
    theme: Annotated[str, typer.Option(help="light or dark.")] = "light",
    method: MethodOption = "umap",
    as_json: JsonOption = False,
) -> None:
    """Make a deck of slides of a run, with every picture as PNG, SVG and PDF beside it."""
    from gcpl_lab.experiments.run_views import make_deck

    paths = make_deck(folder, theme, method)
    _report(paths, as_json, f"Slides, and {len(paths) - 1} pictures beside them")


def hover_map(
    folder: RunArgument = Path("runs/demo"), method: MethodOption = "umap", as_json: JsonOption = False
) -> None:
    """Make one page with the test photographs of a run on a map, each shown under the mouse."""
    from gcpl_lab.experiments.run_views import make_map

    _report([make_map(folder, method)], as_json, "Map")


def animate(
    folder: RunArgument = Path("runs/demo"), method: MethodOption = "umap", as_json: JsonOption = False
) -> None:
    """Make the token journey and the before-and-after map move, as GIF and as a page to turn by hand."""
    from gcpl_lab.experiments.run_views import make_animation

    paths = make_animation(folder, method)
    _report(paths, as_json, f"{len(paths)} files")
