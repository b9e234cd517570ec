"""Editions of a notebook: the form is checked, solutions go or fold, failures name the cell."""

import copy
from pathlib import Path
from typing import Any

import nbformat
import pytest

from gcpl_lab.errors import DataError, LabError
from gcpl_lab.workshop import editions

HEADER = """\
# 07 · A notebook

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


def cell(kind: str, source: str, *tags: str) -> Any:
    make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    return make(source, metadata={"tags": list(tags)} if tags else {})


def small() -> Any:
    cells = [
        cell("markdown", HEADER),
        cell("code", 'preset = "tiny"  # or another'),
        cell("code", "value = 2\nvalue"),
        cell("code", "assert value == 2", "sanity"),
        cell("markdown", "## Exercises"),
        cell("markdown", "### Exercise 1\n\nDouble it."),
        cell("code", "print(2 * value)", "solution"),
        cell("markdown", "### Exercise 2\n\nSay why."),
        cell("markdown", "Because.", "solution"),
        cell("markdown", "### Exercise 3\n\nHalve it."),
        cell("code", "value / 2", "solution"),
        cell("markdown", QUESTIONS),
    ]
    metadata = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def write(folder: Path, notebook: Any, name: str = "07_small") -> Path:
    import jupytext

    path = folder / f"{name}.py"
    jupytext.write(notebook, path, fmt="py:percent")
    return path


def replaced(place: int, source: str) -> Any:
    notebook = small()
    notebook.cells[place].source = source
    return notebook


def without(place: int) -> Any:
    notebook = small()
    del notebook.cells[place]
    return notebook


# ---------------------------------------------------------------------------------------------- the form


def test_a_good_notebook_has_no_problems() -> None:
    assert editions.check_form(small()) == []
    assert editions.stated_minutes(small()) == 1.5


@pytest.mark.parametrize(
    ("notebook", "problem"),
    [
        (replaced(0, HEADER.replace("# 07 ·", "# Seven:")), "does not begin with a title"),
        (replaced(0, HEADER.replace("- two things,\n", "")), "three points"),
        (replaced(0, HEADER.replace("About 1.5 minutes", "Some minutes")), "line on minutes"),
        (replaced(0, HEADER.replace("1.5", "4")), "states 4 minutes; expected at most 3"),
        (replaced(1, 'preset = "sd-1.4"'), "preset"),
        (replaced(2, 'preset = "tiny"'), "exactly once"),
        (replaced(2, "\n".join(["value = 2"] * 16)), "16 lines"),
        (replaced(3, "value"), "asserts nothing"),
        (without(3), "sanity"),
        (without(5), r"\['2', '3'\]"),
        (without(8), "'### Exercise 2' is not followed by"),
        (replaced(8, "<details>Because</details>"), "folds itself"),
        (replaced(11, QUESTIONS.replace("**2.**", "**3.**")), "numbered"),
        (replaced(11, QUESTIONS.replace("Right.", "No.")), "question 2 has 3 options, 0 of them right"),
        (replaced(11, QUESTIONS.replace("No: it is\nnot so.", "Right too.")), "question 1 has 2 options, 2 of them"),
        (replaced(11, "The end."), "the last cell is not"),
    ],
)
def test_each_broken_rule_is_named(notebook: Any, problem: str) -> None:
    import re

    found = editions.check_form(notebook)
    assert any(re.search(problem, each) for each in found), found


def test_a_header_without_minutes_is_an_error() -> None:
    with pytest.raises(DataError, match="lacks its line"):
        editions.stated_minutes(replaced(0, "# 07 · Title"))


# ---------------------------------------------------------------------------------------------- editions


def test_students_get_no_solutions_and_no_pairing() -> None:
    source = small()
    made = editions.make_edition(source, "student")
    assert [each.source for each in made.cells] == [
        each.source for each in source.cells if "solution" not in each.metadata.get("tags", [])
    ]
    assert "formats" not in made.metadata.jupytext
    assert len(source.cells) == 12, "the source stays as it is"
    assert source.metadata.jupytext.formats == "ipynb,py:percent"


def test_instructors_get_them_folded() -> None:
    made = editions.make_edition(small(), "instructor")
    assert len(made.cells) == 13, "one cell tells how to unfold"
    code, text = [each for each in made.cells if "solution" in each.metadata.get("tags", [])][:2]
    assert code.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}
    assert text.source == "<details><summary>Solution</summary>\n\nBecause.\n\n</details>"
    nbformat.validate(made)


def test_there_are_two_editions() -> None:
    with pytest.raises(DataError, match="student, instructor"):
        editions.make_edition(small(), "teacher")  # type: ignore[arg-type]


def test_ids_of_cells_are_the_same_every_time(tmp_path: Path) -> None:
    path = write(tmp_path, small())
    first, second = (editions.read_source(path) for _ in range(2))
    assert [each.id for each in first.cells] == [each.id for each in second.cells]
    assert editions.check_form(first) == [], "tags and sources survive the text format"


def test_sources_are_found_by_name_and_number(tmp_path: Path) -> None:
    for name in ("07_small", "03_other"):
        write(tmp_path, small(), name)
    (tmp_path / "notes.py").write_text("")
    assert [path.stem for path in editions.list_sources(tmp_path)] == ["03_other", "07_small"]
    assert [path.stem for path in editions.list_sources(tmp_path, ["07"])] == ["07_small"]
    assert [path.stem for path in editions.list_sources(tmp_path, ["03_other"])] == ["03_other"]
    with pytest.raises(DataError, match=r"no notebook 09.*03_other, 07_small"):
        editions.list_sources(tmp_path, ["07", "09"])
    with pytest.raises(DataError, match="no notebook source"):
        editions.list_sources(tmp_path / "nowhere")


# ----------------------------------------------------------------------------------------------- running


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


def test_seconds_leave_solutions_out() -> None:
    notebook = small()
    times = {"iopub.execute_input": "2026-01-01T00:00:00.5Z", "shell.execute_reply": "2026-01-01T00:00:03Z"}
    for place in (1, 2, 6):
        notebook.cells[place].metadata["execution"] = times
    assert editions.seconds_of(notebook) == 5.0


def test_a_notebook_is_checked_run_and_written(tmp_path: Path) -> None:
    (row,) = editions.write_course(write(tmp_path, small()).parent, tmp_path / "out", "instructor")
    written = nbformat.read(row["file"], as_version=4)
    printed = [
        output.text
        for each in written.cells
        if each.cell_type == "code"
        for output in each.outputs
        if output.output_type == "stream"
    ]
    assert printed == ["4\n"], "solutions run too"
    assert row["stated_minutes"] == 1.5
    assert 0 < row["seconds"] < 60
    assert not any("execution" in each.metadata for each in written.cells)


def test_a_failing_cell_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    notebook = replaced(3, "assert value == 3, 'look at the cell above'")
    path = write(tmp_path, notebook)
    with pytest.raises(LabError, match=r"# 07 · A notebook: a cell failed(.|\n)*look at the cell above"):
        editions.write_edition(path, tmp_path / "out")
    assert not (tmp_path / "out" / "07_small.ipynb").exists()


def test_a_kernel_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="# 07 · A notebook: (the kernel died|a cell failed)"):
        editions.write_edition(write(tmp_path, replaced(2, "import os\nos._exit(1)")), tmp_path / "out")


def test_bad_form_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="common form:\n- .*asserts nothing"):
        editions.write_edition(write(tmp_path, replaced(3, "value")), tmp_path / "out")


def test_without_running_there_are_no_outputs(tmp_path: Path) -> None:
    path, seconds = editions.write_edition(write(tmp_path, small()), tmp_path / "out", run=False)
    assert seconds is None
    assert all(not each.outputs for each in nbformat.read(path, as_version=4).cells if each.cell_type == "code")


def test_the_command_writes_editions(tmp_path: Path) -> None:
    import json

    from typer.testing import CliRunner

    from gcpl_lab.cli.app import app

    write(tmp_path, small())
    options = ["course", "07", "--no-execute", "--source", str(tmp_path), "--target", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*options, "--edition", "instructor", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.output)["notebooks"]
    assert row == {
        "notebook": "07_small",
        "file": str(tmp_path / "out" / "07_small.ipynb"),
        "seconds": None,
        "stated_minutes": 1.5,
    }
    assert len(nbformat.read(row["file"], as_version=4).cells) == 13
    shown = CliRunner().invoke(app, options)
    assert "not run" in shown.output
