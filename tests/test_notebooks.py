"""Notebooks keep the common form, run, show their pictures, and say what their text sources say."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import nbformat
import pytest

from gcpl_lab.data.samples import find_samples
from gcpl_lab.workshop import course
from tools import editions

ROOT = Path(__file__).parents[1]
SOURCES = editions.list_sources(ROOT / "notebooks")
MOST_MINUTES_TOGETHER = 15

each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def read(source: Path) -> Any:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


# ------------------------------------------------------------------------------------------- the sources


def test_the_notebooks_are_numbered_without_a_gap() -> None:
    assert [source.stem[:2] for source in SOURCES] == [f"{number:02d}" for number in range(12)]


@each_source
def test_a_source_has_the_common_form(source: Path) -> None:
    """A question, stated minutes, short cells, a sanity cell, three exercises, two questions to check, findings."""
    notebook = editions.read_source(source)
    assert editions.check_form(notebook) == []
    assert notebook.cells[0].source.startswith(f"# {source.stem[:2]} · ")


@each_source
def test_a_source_says_image_for_what_a_model_looks_at(source: Path) -> None:
    words = re.compile(r"\bpictures?\b(?! of a …)|photograph|\ba (?=ankle|image)|We play that|shall be near")
    texts = [cell.source for cell in editions.read_source(source).cells if cell.cell_type == "markdown"]
    assert not [found.group() for text in texts for found in words.finditer(text)]


@each_source
def test_a_source_starts_a_kernel_of_the_running_python(source: Path) -> None:
    assert editions.read_source(source).metadata.kernelspec.name == "python3"


def test_all_together_fit_a_quarter_of_an_hour() -> None:
    stated = [editions.stated_minutes(editions.read_source(source)) for source in SOURCES]
    assert sum(stated) <= MOST_MINUTES_TOGETHER, dict(zip((s.stem for s in SOURCES), stated, strict=True))


# ------------------------------------------------------------------------------- the committed notebooks


@each_source
def test_the_committed_notebook_is_the_student_edition_of_its_source(source: Path) -> None:
    expected, committed = editions.make_edition(editions.read_source(source), "student"), read(source)
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == [
        (cell.cell_type, cell.source) for cell in expected.cells
    ], f"{source.name} and its ipynb differ; write it anew with: gcpl-lab course {source.stem}"
    assert not any(editions.SOLUTION in cell.metadata.get("tags", []) for cell in committed.cells)
    # With the pairing in it, saving in JupyterLab would overwrite the source, solutions and all.
    assert "formats" not in committed.metadata.get("jupytext", {})


@each_source
def test_the_committed_notebook_was_run_from_top_to_bottom(source: Path) -> None:
    notebook = read(source)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert "error" not in [output.output_type for output in outputs_of(notebook)]
    assert any("image/png" in output.get("data", {}) for output in outputs_of(notebook))
    assert notebook.metadata.kernelspec.name == "python3"
    assert source.with_suffix(".ipynb").stat().st_size < 2e6


@each_source
def test_the_committed_notebook_carries_pictures_and_no_widget(source: Path) -> None:
    notebook = read(source)
    assert "widgets" not in notebook.metadata
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    for output in outputs_of(notebook):
        assert not [kind for kind in output.get("data", {}) if "widget" in kind]


@each_source
def test_every_figure_is_read_beside_it(source: Path) -> None:
    assert editions.unread_figures(read(source)) == []


@each_source
def test_checks_fail_before_an_exercise_is_done_and_the_findings_are_numbers(source: Path) -> None:
    cells = read(source).cells
    checks = [editions.texts_of(cell) for cell in cells if editions.CHECK in cell.metadata.get("tags", [])]
    assert checks
    assert all(text.strip("'\n").startswith(editions.WRONG) for text in checks), checks
    assert len(re.findall(r"\d", editions.texts_of(cells[-1]))) >= 4


@each_source
def test_no_warning_and_no_path_of_a_machine_is_shown(source: Path) -> None:
    for output in outputs_of(read(source)):
        assert output.get("name") != "stderr", output.text
        text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        assert "/home/" not in text
        assert str(ROOT) not in text


# -------------------------------------------------------------------------------------------- the states


def test_the_shipped_states_fit_the_bundled_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is restored, which checks all files and the frozen weights they were made with."""
    monkeypatch.setenv(course.COURSE_VARIABLE, str(tmp_path))
    restored = course.catch_up("11")
    assert {"03", "04", "05"} <= set(restored)
    assert set(restored.values()) == {"restored"}
    assert sum(file.stat().st_size for file in find_samples("course").rglob("*")) < 5e6


# ------------------------------------------------------------------------------------------- running them


@pytest.fixture(scope="module")
def left_by_earlier_ones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("course")


def solved(executed: Any) -> list[str]:
    """The first words of the checks' answers after the solutions, which begin right behind them."""
    answers = []
    for cell, behind in pairwise(executed.cells):
        if editions.CHECK in cell.metadata.get("tags", []):
            answers.append(editions.texts_of(behind).strip("'\n").splitlines()[-1].strip("'").split(" ")[0].rstrip(":"))
    return answers


@pytest.mark.slow
@pytest.mark.timeout(900)
@each_source
def test_the_notebook_runs_in_its_stated_time(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left_by_earlier_ones: Path
) -> None:
    """With its solutions, on what the notebooks before it left; solutions do not count as a student's time."""
    monkeypatch.setenv(course.COURSE_VARIABLE, str(left_by_earlier_ones))
    if source != SOURCES[0]:
        course.catch_up(f"{int(source.stem[:2]) - 1:02d}")
    notebook = editions.make_edition(editions.read_source(source), "instructor")
    executed = editions.execute(notebook, tmp_path)
    assert any("image/png" in output.get("data", {}) for output in outputs_of(executed))
    assert [text for text in solved(executed) if text != editions.RIGHT] == []
    assert list(tmp_path.iterdir()) == [], "a notebook writes below runs/ only"
    seconds, stated = editions.seconds_of(executed), 60 * editions.stated_minutes(notebook)
    assert seconds <= 2 * stated, f"took {seconds:.0f} s, more than twice the stated {stated:.0f} s"
