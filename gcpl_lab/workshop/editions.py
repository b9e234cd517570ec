"""The workshop's notebooks: one text source each, checked for its form, run, and written as two editions.

The source (``notebooks/NN_name.py``, jupytext's percent format) holds everything, solutions included. The
student edition leaves the solutions out; the instructor edition folds them away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from gcpl_lab.errors import DataError, LabError
from gcpl_lab.storage import write_text

Edition = Literal["student", "instructor"]
EDITIONS: tuple[Edition, ...] = ("student", "instructor")

MOST_LINES = 15
MOST_MINUTES = 3.0
TIME_LIMIT = 600
"""Seconds that one cell may take before it is stopped."""

SOLUTION, SANITY = "solution", "sanity"
_STATED = re.compile(r"^About (\d+(?:\.\d)?) minutes? on two CPU cores\. No network is needed\.$", re.MULTILINE)
_OPTION = re.compile(r"<details><summary>(?P<option>.+?)</summary>(?P<answer>.+?)</details>", re.DOTALL)
_WIDGET = "application/vnd.jupyter.widget-view+json"
_HINT = (
    "*Instructor edition: solutions are folded away behind their exercises. Click ••• (or the triangle) to open one.*"
)


# -------------------------------------------------------------------------------------------- the source


def list_sources(folder: str | Path, names: Sequence[str] = ()) -> list[Path]:
    """The notebooks' text sources in order.

    Args:
        folder: ``notebooks``.
        names: File names without ending, or numbers such as "03"; all where empty.

    Raises:
        DataError: No sources, or a name that fits none.
    """
    sources = sorted(Path(folder).glob("[0-9][0-9]_*.py"))
    if not sources:
        raise DataError(f"{folder}: no notebook source such as 03_gcpl.py; run this where the project was cloned")
    chosen = [path for path in sources if not names or path.stem in names or path.stem[:2] in names]
    unknown = [name for name in names if not any(name in (path.stem, path.stem[:2]) for path in sources)]
    if unknown:
        raise DataError(
            f"no notebook {', '.join(unknown)} in {folder}; expected some of {', '.join(path.stem for path in sources)}"
        )
    return chosen


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
    """What the header promises for two CPU cores.

    Raises:
        DataError: The line is missing.
    """
    found = _STATED.search(notebook.cells[0].source)
    if not found:
        raise DataError(
            "the header lacks its line 'About 1 minute on two CPU cores. No network is needed.' (a line of its own)"
        )
    return float(found.group(1))


# ---------------------------------------------------------------------------------------------- the form


def check_form(notebook: Any) -> list[str]:
    """What is missing from the common form, in sentences; empty where all is well.

    Args:
        notebook: A source with its solutions, as :func:`read_source` gives it.
    """
    cells = notebook.cells
    student = [cell for cell in cells if SOLUTION not in _tags(cell)]
    problems = _check_header(cells[0])
    problems += _check_code([cell for cell in cells if cell.cell_type == "code"])
    problems += _check_sanity(student)
    problems += _check_exercises(cells)
    problems += check_questions(student[-1].source)
    return problems


def _check_header(header: Any) -> list[str]:
    problems = []
    if header.cell_type != "markdown" or not re.match(r"# \d\d · \S", header.source):
        problems.append("the first cell does not begin with a title such as '# 03 · One class token'")
    if "After this notebook you can say" not in header.source or len(re.findall(r"^- ", header.source, re.M)) != 3:
        problems.append("the header lacks 'After this notebook you can say' with three points")
    found = _STATED.search(header.source)
    if not found:
        problems.append("the header lacks its line on minutes and network")
    elif not 0 < float(found.group(1)) <= MOST_MINUTES:
        problems.append(f"the header states {found.group(1)} minutes; expected at most {MOST_MINUTES:g}")
    return problems


def _check_code(cells: Sequence[Any]) -> list[str]:
    problems = [
        f"a cell has {len(cell.source.splitlines())} lines, more than {MOST_LINES}: {cell.source.splitlines()[0]!r}"
        for cell in cells
        if len(cell.source.splitlines()) > MOST_LINES
    ]
    named = [place for place, cell in enumerate(cells) if re.search(r'^preset = "tiny"', cell.source, re.M)]
    if len(named) != 1 or named[0] > 2:
        problems.append('the line preset = "tiny" does not stand exactly once, in one of the first three code cells')
    return problems


def _check_sanity(student: Sequence[Any]) -> list[str]:
    last = [cell for cell in student if cell.cell_type == "code"][-1]
    if SANITY not in _tags(last) or "assert " not in last.source:
        return ["the last code cell of the student edition is not tagged 'sanity', or asserts nothing"]
    return []


def _check_exercises(cells: Sequence[Any]) -> list[str]:
    problems = []
    places = [i for i, cell in enumerate(cells) if cell.source.startswith("### Exercise ")]
    titles = [cells[i].source.split("\n")[0].split()[2].rstrip(".:") for i in places]
    if titles != ["1", "2", "3"]:
        problems.append(f"exercises are numbered {titles}; expected 1, 2 and 3, each '### Exercise n' in its own cell")
    for i in places:
        if i + 1 >= len(cells) or SOLUTION not in _tags(cells[i + 1]):
            problems.append(f"{cells[i].source.splitlines()[0]!r} is not followed by a cell tagged 'solution'")
    solutions = [cell for cell in cells if SOLUTION in _tags(cell)]
    if not any(cell.cell_type == "code" for cell in solutions):
        problems.append("no solution is code")
    if any("<details" in cell.source for cell in solutions):
        problems.append("a solution folds itself; the instructor edition does that")
    return problems


def check_questions(text: str) -> list[str]:
    """Problems of the last cell: two questions, each with two to four options, of which exactly one is right.

    Args:
        text: Markdown of the cell ``## Check yourself``.
    """
    if not text.startswith("## Check yourself"):
        return ["the last cell is not '## Check yourself'"]
    parts = re.split(r"^\*\*(\d)\.\*\* ", text, flags=re.M)[1:]
    if parts[::2] != ["1", "2"]:
        return [f"the questions are numbered {parts[::2]}; expected **1.** and **2.**"]
    problems = []
    for number, part in zip(parts[::2], parts[1::2], strict=True):
        answers = [found.group("answer").strip() for found in _OPTION.finditer(part)]
        num_right = sum(answer.startswith("Right") for answer in answers)
        if not 2 <= len(answers) <= 4 or num_right != 1:
            problems.append(
                f"question {number} has {len(answers)} options, {num_right} of them right; expected 2 to 4 and 1"
            )
    return problems


# -------------------------------------------------------------------------------------------- editions


def make_edition(notebook: Any, edition: Edition) -> Any:
    """A copy of a source for students or instructors.

    Args:
        notebook: With its solutions.
        edition: ``"student"`` leaves solutions out; ``"instructor"`` folds them.
    """
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
    """Run every cell, in place, where participants run it.

    Args:
        notebook: Any edition.
        folder: The kernel's working folder.

    Returns:
        The notebook with outputs, and with each cell's times in its metadata.

    Raises:
        LabError: A cell failed or took too long, with the cell's own message.
    """
    import os

    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    client = NotebookClient(
        notebook,
        timeout=TIME_LIMIT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    try:
        client.execute(env=environment)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        title = notebook.cells[0].source.splitlines()[0]
        raise LabError(f"{title}: a cell failed:\n{error}") from error
    except AssertionError as error:
        # nbclient trips over its own clean-up where the kernel is gone; a cell's assertion never comes here.
        title = notebook.cells[0].source.splitlines()[0]
        raise LabError(f"{title}: the kernel died; memory may have run out") from error
    return notebook


def seconds_of(notebook: Any, without: str = SOLUTION) -> float:
    """Seconds that an executed notebook's cells took together.

    Args:
        notebook: From :func:`execute`.
        without: Cells with this tag are not counted.
    """
    total = 0.0
    for cell in notebook.cells:
        times = cell.metadata.get("execution", {})
        if without not in _tags(cell) and "iopub.execute_input" in times:
            began, ended = (
                datetime.fromisoformat(times[name]) for name in ("iopub.execute_input", "shell.execute_reply")
            )
            total += (ended - began).total_seconds()
    return total


def strip_traces(notebook: Any) -> Any:
    """Take out, in place, what says when and with which widgets a notebook ran; pictures and texts stay."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            for output in cell.outputs:
                # A view without its kernel is an error message in a viewer; the picture beside it stays.
                if output.get("data", {}).pop(_WIDGET, None) is not None:
                    output.data.pop("text/plain", None)
            cell.outputs = [output for output in cell.outputs if output.get("data") != {}]
    return notebook


def write_edition(
    source: Path, target: str | Path, edition: Edition = "student", run: bool = True
) -> tuple[Path, float | None]:
    """Check, run and write one notebook.

    Args:
        source: ``notebooks/NN_name.py``.
        target: Folder for ``NN_name.ipynb``.
        edition: See :func:`make_edition`.
        run: Execute it; without, the notebook is written without outputs.

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
    made, seconds = make_edition(notebook, edition), None
    target = Path(target)
    target.mkdir(parents=True, exist_ok=True)
    if run:
        seconds = seconds_of(execute(made, target))
    strip_traces(made)
    nbformat.validate(made)
    path = write_text(target / f"{source.stem}.ipynb", nbformat.writes(made) + "\n")
    return path, seconds


def write_course(
    source: str | Path = "notebooks",
    target: str | Path = "notebooks",
    edition: Edition = "student",
    names: Sequence[str] = (),
    run: bool = True,
    on_notebook: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Write several notebooks in order, since later ones start from what earlier ones left.

    Args:
        source: Folder of the text sources.
        target: Folder for the notebooks.
        edition: See :func:`make_edition`.
        names: Which ones; all where empty.
        run: Execute them.
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
