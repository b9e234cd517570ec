"""Verbs for the workshop: ``course`` writes its notebooks, ``catch-up`` restores what earlier ones leave.

``register`` adds them to the program; heavy libraries load inside the verbs that need them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gcpl_lab.cli.options import JsonOption, console


def register(app: typer.Typer) -> None:
    """Add the verbs of this module.

    Args:
        app: The program.
    """
    app.command("course")(course)
    app.command("catch-up")(catch_up)


def course(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Names or numbers such as 03; all by default.")] = None,
    edition: Annotated[str, typer.Option(help="student (no solutions) or instructor (solutions folded).")] = "student",
    source: Annotated[Path, typer.Option(help="Folder of the text sources.")] = Path("notebooks"),
    target: Annotated[Path, typer.Option(help="Folder for the .ipynb files.")] = Path("notebooks"),
    execute: Annotated[bool, typer.Option(help="Run every cell; without, notebooks have no outputs.")] = True,
    ship: Annotated[bool, typer.Option(help="Copy the states that are left to data_samples/course.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the workshop's notebooks from their text sources, in order, as students or instructors get them."""
    from gcpl_lab.workshop.editions import EDITIONS, write_course

    if edition not in EDITIONS:
        raise typer.BadParameter(f"edition is {edition!r}; expected one of {', '.join(EDITIONS)}")
    if edition == "instructor" and source.resolve() == target.resolve():
        raise typer.BadParameter("the instructor edition needs a --target of its own, such as runs/instructor")
    with console.status("") as status:
        rows = write_course(source, target, edition, notebooks or (), execute, status.update)
    shipped = _ship() if ship else []
    if as_json:
        sys.stdout.write(json.dumps({"notebooks": rows, "shipped": shipped}, indent=2) + "\n")
        return
    Console().print(_table(rows))
    if shipped:
        Console().print(f"Shipped in data_samples/course: what notebooks {', '.join(shipped)} left.")


def _ship() -> list[str]:
    from gcpl_lab.data.samples import find_samples
    from gcpl_lab.workshop.course import ship_states

    return ship_states(find_samples("fashion").parent / "course")


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("notebook", "took", "stated"):
        table.add_column(heading, justify="left" if heading == "notebook" else "right")
    for row in rows:
        took = "not run" if row["seconds"] is None else f"{row['seconds']:.0f} s"
        table.add_row(escape(row["file"]), took, f"{60 * row['stated_minutes']:.0f} s")
    return table


def catch_up(
    notebook: Annotated[str, typer.Argument(help="Number of the notebook to catch up with, such as 05.")],
    replace: Annotated[bool, typer.Option(help="Overwrite what your own run has left.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore what the notebooks up to this one leave, so that it and the next one can be opened at once."""
    from gcpl_lab.workshop.course import catch_up as restore
    from gcpl_lab.workshop.course import course_folder

    done = restore(notebook.zfill(2), replace)
    if as_json:
        sys.stdout.write(json.dumps(done, indent=2) + "\n")
        return
    lines = [f"{number} {what}" for number, what in done.items()] or [
        "nothing to restore: no earlier notebook leaves any"
    ]
    Console().print(escape(f"{course_folder()}: {', '.join(lines)}"), soft_wrap=True)
    if "kept" in done.values():
        Console().print("What was there already was kept; --replace overwrites it.")
