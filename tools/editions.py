"""The notebooks of the course: one text source each, checked for its form, run, and written as two editions.

The source (``notebooks/NN_name.py``, jupytext's percent format) holds everything, solutions included. The student
edition leaves the solutions out; the instructor edition folds them away. ``gcpl-lab course`` runs this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from gcpl_lab.errors import DataError, LabError
from gcpl_lab.storage import write_text

EDITIONS = ("student", "instructor")
MOST_LINES, MOST_MINUTES = 15, 3.0
TIME_LIMIT = 600
"""Seconds that one cell may take before it is stopped."""

SOLUTION, SANITY, EXERCISE, CHECK, FOUND = "solution", "sanity", "exercise", "check", "found"
"""Tags of cells: a solution, the check of the run itself, a cell to fill, its check, and what was found.

An exercise is a text cell, then perhaps a cell to fill and its check, then solutions."""

WRONG, RIGHT = "still wrong", "right"
"""How the answer of a check begins."""

SEEN = ("**What you see.**", "**What it does not say.**")
"""The two lines behind every figure."""

_STATED = re.compile(r"^About (\d+(?:\.\d)?) minutes? on two CPU cores\. No network is needed\.$", re.MULTILINE)
_EXERCISE = re.compile(r"### Exercise (\d) · (easy|medium|hard) · \d+ minutes\n")
_OPTION = re.compile(r"<details><summary>.+?</summary>(?P<answer>.+?)</details>", re.DOTALL)
_WIDGET = "application/vnd.jupyter.widget-view+json"
_HINT = """*Instructor edition: solutions are folded away behind their exercises. Click ••• (or the triangle) to
open one.

Guesses of the room: ask for the line that appears under the buttons, and paste all lines into
`from gcpl_lab.views.widgets import tally_guesses; tally_guesses(\"\"\"...\"\"\")`.*"""


def list_sources(folder: str | Path, names: Sequence[str] = ()) -> list[Path]:
    """The notebooks' text sources in order, or those with these names or numbers such as "03".

    Raises:
        DataError: No sources, or a name that fits none.
    """
    sources = sorted(Path(folder).glob("[0-9][0-9]_*.py"))
    if not sources:
        raise DataError(f"{folder}: no notebook source such as 03_gcpl.py; run this where the project was cloned")
    known = {name for path in sources for name in (path.stem, path.stem[:2])}
    if unknown := [name for name in names if name not in known]:
        expected = ", ".join(path.stem for path in sources)
        raise DataError(f"no notebook {', '.join(unknown)} in {folder}; expected some of {expected}")
    return [path for path in sources if not names or path.stem in names or path.stem[:2] in names]


def read_source(path: str | Path) -> Any:
    """A source as a notebook (nbformat), solutions included, with cell ids that are the same every time."""
    import jupytext

    notebook = jupytext.read(path)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"{Path(path).stem[:2]}-{place:02d}"
    return notebook


def _tags(cell: Any) -> list[str]:
    return list(cell.metadata.get("tags", []))


def stated_minutes(notebook: Any) -> float:
    """What the header promises for two CPU cores; a DataError where that line is missing."""
    found = _STATED.search(notebook.cells[0].source)
    if not found:
        raise DataError(
            "the header lacks its line 'About 1 minute on two CPU cores. No network is needed.' (a line of its own)"
        )
    return float(found.group(1))


def check_form(notebook: Any) -> list[str]:
    """What is missing from the common form of a source with its solutions, in sentences; empty where all is well."""
    cells, header = notebook.cells, notebook.cells[0]
    code = [cell for cell in cells if cell.cell_type == "code"]
    titled = header.cell_type == "markdown" and re.match(r"# \d\d · \S", header.source)
    minutes = _STATED.search(header.source)
    stated = float(minutes.group(1)) if minutes else MOST_MINUTES
    points = re.findall(r"^- ", header.source, re.M) if "After this notebook you can say" in header.source else []
    presets = [place for place, cell in enumerate(code) if re.search(r'^preset = "tiny"', cell.source, re.M)]
    sane = [cell for cell in code if SANITY in _tags(cell)]
    solutions = [cell for cell in cells if SOLUTION in _tags(cell)]
    preset = 'the line preset = "tiny" does not stand'
    rules = {
        "the first cell does not begin with a title such as '# 03 · One class token'": titled,
        "the header lacks its question, '**The question:** ...?'": re.search(
            r"\*\*The question:\*\* [^?]+\?", header.source
        ),
        "the header lacks 'After this notebook you can say' with three points": len(points) == 3,
        "the header lacks its line on minutes and network": minutes,
        f"the header states {stated:g} minutes; expected at most {MOST_MINUTES:g}": 0 < stated <= MOST_MINUTES,
        f"{preset} exactly once, in one of the first three code cells": len(presets) == 1 and presets[0] <= 2,
        "not one cell is tagged 'sanity', or it asserts nothing": len(sane) == 1 and "assert " in sane[0].source,
        "no solution is code": any(cell.cell_type == "code" for cell in solutions),
        "a solution folds itself; the instructor edition does that": not any("<details" in s.source for s in solutions),
        "the last cells are not '## What we found' and code tagged 'found'": _ends_with_findings(cells),
    }
    problems = [problem for problem, holds in rules.items() if not holds]
    for cell in code:
        first, *others = cell.source.splitlines() or [""]
        if len(others) >= MOST_LINES:
            problems.append(f"a cell has {1 + len(others)} lines, more than {MOST_LINES}: {first!r}")
    return problems + _check_exercises(cells) + _check_questions(cells[-3].source if len(cells) > 2 else "")


def _ends_with_findings(cells: list[Any]) -> bool:
    title, numbers = cells[-2:]
    return title.source.startswith("## What we found") and numbers.cell_type == "code" and FOUND in _tags(numbers)


def _check_exercises(cells: list[Any]) -> list[str]:
    """Problems of the exercises: their headings, hints and ranges; what follows them; one or more with a check."""
    places = [place for place, cell in enumerate(cells) if cell.source.startswith("### Exercise ")]
    found = [_EXERCISE.match(cells[place].source) for place in places]
    problems = []
    if [match.group(1) for match in found if match] != ["1", "2", "3"]:
        titles = [cells[place].source.splitlines()[0] for place in places]
        problems.append(
            f"exercises are {titles}; expected 1 to 3, each '### Exercise n · easy · 5 minutes' in its own cell"
        )
    if not any(CHECK in _tags(cell) for cell in cells):
        problems.append("no exercise has a cell tagged 'check'")
    for place in places:
        title, kinds, behind = cells[place].source.splitlines()[0], [], place + 1
        while behind < len(cells) and _tags(cells[behind]):
            kinds += _tags(cells[behind])
            behind += 1
        if kinds[:1] not in ([EXERCISE], [SOLUTION]) or SOLUTION not in kinds:
            problems.append(f"{title!r} is followed by {kinds}; expected exercise and check, or neither, then solution")
        for part in ("<details><summary>Hint</summary>", "**Expected:** "):
            if part not in cells[place].source:
                problems.append(f"{title!r} lacks its {part!r}")
    return problems


def _check_questions(text: str) -> list[str]:
    """Problems of '## Check yourself': two questions, each with two to four options, of which exactly one is right."""
    if not text.startswith("## Check yourself"):
        return ["'## Check yourself' is not the cell before '## What we found'"]
    parts = re.split(r"^\*\*(\d)\.\*\* ", text, flags=re.M)[1:]
    if parts[::2] != ["1", "2"]:
        return [f"the questions are numbered {parts[::2]}; expected **1.** and **2.**"]
    problems = []
    for number, part in zip(parts[::2], parts[1::2], strict=True):
        answers = [found.group("answer").strip() for found in _OPTION.finditer(part)]
        num_right = sum(answer.startswith("Right") for answer in answers)
        if not 2 <= len(answers) <= 4 or num_right != 1:
            options = f"{len(answers)} options, {num_right} of them right"
            problems.append(f"question {number} has {options}; expected 2 to 4 and 1")
    return problems


def make_edition(notebook: Any, edition: str) -> Any:
    """A copy of a source: ``"student"`` leaves its solutions out, ``"instructor"`` folds them."""
    import nbformat

    if edition not in EDITIONS:
        raise DataError(f"edition is {edition!r}; expected one of {', '.join(EDITIONS)}")
    made = nbformat.from_dict(notebook)
    # Paired with its source, a student's notebook would overwrite it when saved, solutions and all.
    made.metadata.get("jupytext", {}).pop("formats", None)
    if edition == "student":
        made.cells = [cell for cell in made.cells if SOLUTION not in _tags(cell)]
        return made
    for cell in made.cells:
        if SOLUTION in _tags(cell) and cell.cell_type == "code":
            cell.metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
        elif SOLUTION in _tags(cell):
            cell.source = f"<details><summary>Solution</summary>\n\n{cell.source}\n\n</details>"
    made.cells.insert(1, nbformat.v4.new_markdown_cell(_HINT, id="instructor-hint"))
    return made


def execute(notebook: Any, folder: str | Path) -> Any:
    """Run every cell of any edition, in place, with ``folder`` as the kernel's working folder.

    Returns:
        The notebook with outputs, and with each cell's times in its metadata.

    Raises:
        LabError: A cell failed or took too long, with the cell's own message.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    title = notebook.cells[0].source.splitlines()[0]
    resources, quiet = {"metadata": {"path": str(folder)}}, ["--IPKernelApp.log_level=ERROR"]
    client = NotebookClient(
        notebook, timeout=TIME_LIMIT, kernel_name="python3", resources=resources, extra_arguments=quiet
    )
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise LabError(f"{title}: a cell failed:\n{error}") from error
    except AssertionError as error:  # nbclient's own, where the kernel is gone; a cell's assertion never comes here
        raise LabError(f"{title}: the kernel died; memory may have run out") from error
    return notebook


def texts_of(cell: Any) -> str:
    """What an executed cell printed or returned, without figures."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts.append(output.get("text") or data.get("text/markdown") or data.get("text/plain") or "")
    return "\n".join(parts)


def unread_figures(notebook: Any) -> list[str]:
    """First lines of executed cells whose figure is not followed by what one sees and what it does not say."""
    unread = []
    for cell, behind in pairwise(notebook.cells):
        drawn = cell.cell_type == "code" and any("image/png" in output.get("data", {}) for output in cell.outputs)
        if drawn and SOLUTION not in _tags(cell) and not all(part in behind.source for part in SEEN):
            unread.append(cell.source.splitlines()[0])
    return unread


def seconds_of(notebook: Any) -> float:
    """Seconds that the cells of an executed notebook took together, without solutions."""
    total = 0.0
    for cell in notebook.cells:
        times = cell.metadata.get("execution", {})
        if SOLUTION not in _tags(cell) and "iopub.execute_input" in times:
            began, ended = map(datetime.fromisoformat, (times["iopub.execute_input"], times["shell.execute_reply"]))
            total += (ended - began).total_seconds()
    return total


def strip_traces(notebook: Any) -> Any:
    """Take out, in place, what says when and with which widgets a notebook ran; figures and texts stay."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            for output in cell.outputs:
                # A view without its kernel is an error message in a viewer; the figure beside it stays.
                if output.get("data", {}).pop(_WIDGET, None) is not None:
                    output.data.pop("text/plain", None)
            cell.outputs = [output for output in cell.outputs if output.get("data") != {}]
    return notebook


def write_edition(
    source: Path, target: str | Path, edition: str = "student", run: bool = True
) -> tuple[Path, float | None]:
    """Check ``notebooks/NN_name.py``, run it (or leave it without outputs) and write ``NN_name.ipynb``.

    Returns:
        The written file, and the seconds that the student's cells took (None without ``run``).

    Raises:
        DataError: The form is not kept; all problems are listed.
        LabError: A cell failed; nothing is written.
    """
    import nbformat

    notebook = read_source(source)
    if problems := check_form(notebook):
        raise DataError(f"{source}: does not have the common form:\n- " + "\n- ".join(problems))
    made, target = make_edition(notebook, edition), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    seconds = seconds_of(execute(made, target)) if run else None
    nbformat.validate(strip_traces(made))
    return write_text(target / f"{source.stem}.ipynb", nbformat.writes(made) + "\n"), seconds


def write_course(
    source: str | Path = "notebooks",
    target: str | Path = "notebooks",
    edition: str = "student",
    names: Sequence[str] = (),
    run: bool = True,
    on_notebook: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Write several notebooks in order, since later ones start from what earlier ones left.

    Args:
        names: Which ones; all where empty.
        on_notebook: Called with each name before its turn.

    Returns:
        A row a notebook: ``notebook``, ``file``, ``seconds`` (or None), ``stated_minutes``.
    """
    rows: list[dict[str, Any]] = []
    for path in list_sources(source, names):
        if on_notebook:
            on_notebook(path.stem)
        file, seconds = write_edition(path, target, edition, run)
        stated = stated_minutes(read_source(path))
        rows.append({"notebook": path.stem, "file": str(file), "seconds": seconds, "stated_minutes": stated})
    return rows
