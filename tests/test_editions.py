"""Editions of a notebook: the form is checked, solutions go or fold, failures name the cell."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from typer.testing import CliRunner

from gcpl_lab.cli.app import app
from gcpl_lab.errors import DataError, LabError
from tools import editions

HEADER = """\
# 07 · A notebook

**The question:** is it so?

After this notebook you can say
- one thing,
- two things,
- three things.

About 1.5 minutes on two CPU cores. No network is needed."""

QUESTIONS = """\
## Check yourself

**1.** Is it so?

<details><summary>yes</summary>Right: it is.</details>
<details><summary>no</summary>No: it is
not so.</details>

**2.** And this?

<details><summary>yes</summary>No.</details>
<details><summary>no</summary>Right.</details>
<details><summary>perhaps</summary>No.</details>"""


HINT = "<details><summary>Hint</summary>Think.</details>"
CHECKED = "'right' if answer == 4 else 'still wrong: not twice the value'"


def cell(kind: str, source: str, *tags: str) -> Any:
    make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    return make(source, metadata={"tags": list(tags)} if tags else {})


def small() -> Any:
    cells = [cell("markdown", HEADER), cell("code", 'preset = "tiny"  # or another')]
    cells += [cell("code", "value = 2\nvalue"), cell("code", "assert value == 2", "sanity")]
    cells += [cell("markdown", "## Exercises")]
    solutions = (("code", "print(2 * value)"), ("markdown", "Because."), ("code", "value / 2"))
    for number, (task, solution) in enumerate(zip(("Double it.", "Say why.", "Halve it."), solutions, strict=True), 1):
        title = f"### Exercise {number} · easy · 5 minutes"
        cells += [cell("markdown", f"{title}\n\n{task}\n\n{HINT}\n\n**Expected:** 4."), cell(*solution, "solution")]
    cells[6:6] = [cell("code", "answer = None", "exercise"), cell("code", CHECKED, "check")]
    cells[8].source = f"answer = 2 * value\n{CHECKED}"
    cells += [cell("markdown", QUESTIONS), cell("markdown", "## What we found"), cell("code", "print(value)", "found")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"jupytext": {"formats": "ipynb,py:percent"}, "kernelspec": kernel}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def write(folder: Path, notebook: Any, name: str = "07_small") -> Path:
    jupytext.write(notebook, folder / f"{name}.py", fmt="py:percent")
    return folder / f"{name}.py"


def changed(place: int, source: str | None = None) -> Any:
    """The notebook with another cell at a place, or without it."""
    notebook = small()
    if source is None:
        del notebook.cells[place]
    else:
        notebook.cells[place].source = source
    return notebook


EXERCISE = small().cells[5].source


@pytest.mark.parametrize(
    ("notebook", "problem"),
    [
        (changed(0, HEADER.replace("# 07 ·", "# Seven:")), "does not begin with a title"),
        (changed(0, HEADER.replace("- two things,\n", "")), "three points"),
        (changed(0, HEADER.replace("About 1.5 minutes", "Some minutes")), "line on minutes"),
        (changed(0, HEADER.replace("1.5", "4")), "states 4 minutes; expected at most 3"),
        (changed(1, 'preset = "sd-1.4"'), "preset"),
        (changed(2, 'preset = "tiny"'), "exactly once"),
        (changed(2, "\n".join(["value = 2"] * 16)), "16 lines"),
        (changed(0, HEADER.replace("is it so?", "It is.")), "lacks its question"),
        (changed(3, "value"), "asserts nothing"),
        (changed(3), "sanity"),
        (changed(5), r"exercises are \['### Exercise 2"),
        (changed(5, EXERCISE.replace("easy", "nice")), r"expected 1 to 3"),
        (
            changed(5, EXERCISE.replace("Hint", "Help")),
            "'### Exercise 1 · easy · 5 minutes' lacks its '<details><summary>Hint",
        ),
        (changed(5, EXERCISE.replace("**Expected:**", "So:")), "lacks its '..Expected:.. '"),
        (changed(7), "no exercise has a cell tagged 'check'"),
        (changed(10), r"'### Exercise 2 · easy · 5 minutes' is followed by \[\]"),
        (changed(10, "<details>Because</details>"), "folds itself"),
        (changed(13, QUESTIONS.replace("**2.**", "**3.**")), "numbered"),
        (changed(13, QUESTIONS.replace("Right.", "No.")), "question 2 has 3 options, 0 of them right"),
        (changed(13, QUESTIONS.replace("No: it is\nnot so.", "Right too.")), "question 1 has 2 options, 2 of them"),
        (changed(13, "The end."), "'## Check yourself' is not the cell before"),
        (changed(14, "## The end"), "the last cells are not '## What we found'"),
        (changed(15), "the last cells are not '## What we found'"),
    ],
)
def test_each_broken_rule_is_named(notebook: Any, problem: str) -> None:
    found = editions.check_form(notebook)
    assert any(re.search(problem, each) for each in found), found


def test_a_good_notebook_has_no_problems_after_the_text_format(tmp_path: Path) -> None:
    assert editions.check_form(small()) == []
    assert editions.stated_minutes(small()) == 1.5
    with pytest.raises(DataError, match="lacks its line"):
        editions.stated_minutes(changed(0, "# 07 · Title"))
    first, second = (editions.read_source(write(tmp_path, small())) for _ in range(2))
    assert [each.id for each in first.cells] == [each.id for each in second.cells]
    assert editions.check_form(first) == [], "tags and sources survive the text format"


def test_students_get_no_solutions_and_no_pairing() -> None:
    source = small()
    made = editions.make_edition(source, "student")
    kept = [each.source for each in source.cells if "solution" not in each.metadata.get("tags", [])]
    assert [each.source for each in made.cells] == kept
    assert "formats" not in made.metadata.jupytext
    assert len(source.cells) == 16, "the source stays as it is"
    assert source.metadata.jupytext.formats == "ipynb,py:percent"


def test_instructors_get_them_folded() -> None:
    made = editions.make_edition(small(), "instructor")
    code, text = [each for each in made.cells if "solution" in each.metadata.get("tags", [])][:2]
    assert code.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}
    assert text.source == "<details><summary>Solution</summary>\n\nBecause.\n\n</details>"
    nbformat.validate(made)
    with pytest.raises(DataError, match="student, instructor"):
        editions.make_edition(small(), "teacher")


def test_sources_are_found_by_name_and_number(tmp_path: Path) -> None:
    for name in ("07_small", "03_other"):
        write(tmp_path, small(), name)
    (tmp_path / "notes.py").write_text("")
    found = {(): ["03_other", "07_small"], ("07",): ["07_small"], ("03_other",): ["03_other"]}
    assert {names: [path.stem for path in editions.list_sources(tmp_path, names)] for names in found} == found
    with pytest.raises(DataError, match=r"no notebook 09.*03_other, 07_small"):
        editions.list_sources(tmp_path, ["07", "09"])
    with pytest.raises(DataError, match="no notebook source"):
        editions.list_sources(tmp_path / "nowhere")


def test_a_widget_leaves_its_picture_only() -> None:
    notebook = small()
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "Box()"}
    notebook.cells[2].outputs = [
        nbformat.v4.new_output("display_data", {**view, "image/png": "aa"}),
        nbformat.v4.new_output("display_data", copy.deepcopy(view)),
        nbformat.v4.new_output("stream", name="stdout", text="kept"),
    ]
    notebook.metadata["widgets"] = {"state": {}}
    notebook.cells[2].metadata["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    editions.strip_traces(notebook)
    assert [dict(output.get("data", {})) for output in notebook.cells[2].outputs] == [{"image/png": "aa"}, {}]
    assert notebook.cells[2].outputs[1].text == "kept"
    assert "widgets" not in notebook.metadata
    assert "execution" not in notebook.cells[2].metadata


def test_a_figure_without_its_two_lines_is_found() -> None:
    notebook = small()
    notebook.cells[3].outputs = [nbformat.v4.new_output("display_data", {"image/png": "aa"})]
    assert editions.unread_figures(notebook) == ["assert value == 2"]
    notebook.cells[4].source = "**What you see.** A line.\n\n**What it does not say.** Why.\n\n## Exercises"
    assert editions.unread_figures(notebook) == []


def test_seconds_leave_solutions_out() -> None:
    notebook = small()
    times = {"iopub.execute_input": "2026-01-01T00:00:00.5Z", "shell.execute_reply": "2026-01-01T00:00:03Z"}
    for place in (1, 2, 8):
        notebook.cells[place].metadata["execution"] = times
    assert editions.seconds_of(notebook) == 5.0


def test_a_notebook_is_checked_run_and_written(tmp_path: Path) -> None:
    (row,) = editions.write_course(write(tmp_path, small()).parent, tmp_path / "out", "instructor")
    cells = nbformat.read(row["file"], as_version=4).cells
    outputs = [output for each in cells if each.cell_type == "code" for output in each.outputs]
    answers = [output.data["text/plain"] for output in outputs if "still" in str(output) or "right" in str(output)]
    assert answers == ["'still wrong: not twice the value'", "'right'"], "solutions run too"
    assert [editions.texts_of(each) for each in cells[-1:]] == ["2\n"]
    assert 0 < row["seconds"] < 60
    assert not any("execution" in each.metadata for each in cells)


@pytest.mark.parametrize(
    ("notebook", "message"),
    [
        (changed(3, "assert value == 3, 'look above'"), r"# 07 · A notebook: a cell failed(.|\n)*look above"),
        (changed(2, "import os\nos._exit(1)"), "# 07 · A notebook: (the kernel died|a cell failed)"),
        (changed(3, "value"), "common form:\n- .*asserts nothing"),
    ],
)
def test_what_goes_wrong_is_told_and_nothing_is_written(tmp_path: Path, notebook: Any, message: str) -> None:
    with pytest.raises(LabError, match=message):
        editions.write_edition(write(tmp_path, notebook), tmp_path / "out")
    assert not (tmp_path / "out" / "07_small.ipynb").exists()


def test_the_command_writes_editions(tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["course", "07", "--source", str(write(tmp_path, small()).parent), *words])

    file = str(tmp_path / "out" / "07_small.ipynb")
    options = ("--no-execute", "--target", str(tmp_path / "out"))
    (row,) = json.loads(run(*options, "--edition", "instructor", "--json").output)["notebooks"]
    assert row == {"notebook": "07_small", "file": file, "seconds": None, "stated_minutes": 1.5}
    written = nbformat.read(file, as_version=4).cells
    assert len(written) == 17, "one cell tells how to unfold"
    assert not any(each.outputs for each in written if each.cell_type == "code")
    assert "not run" in run(*options).stdout
    same = run("--target", str(tmp_path), "--edition", "instructor")
    assert (same.exit_code, "target" in same.output) == (2, True)
    assert run("--edition", "teacher").exit_code == 2
