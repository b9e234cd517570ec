"""Notebooks run, show their pictures, and say what their text sources say."""

from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
MOST_LINES = 15


def read(source: Path) -> Any:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def read_source(source: Path) -> Any:
    import jupytext

    return jupytext.read(source)


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_is_a_notebook() -> None:
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook_and_source_have_the_same_cells(source: Path) -> None:
    ours, theirs = read_source(source), read(source)
    assert [(cell.cell_type, cell.source) for cell in ours.cells] == [
        (cell.cell_type, cell.source) for cell in theirs.cells
    ], f"{source.name} and its ipynb differ; make notebooks writes them anew"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_committed_notebook_was_run_from_top_to_bottom(source: Path) -> None:
    notebook = read(source)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    kinds = [output.output_type for output in outputs_of(notebook)]
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for output in outputs_of(notebook))
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    assert source.with_suffix(".ipynb").stat().st_size < 2e6


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_warning_and_no_path_of_a_machine_is_shown(source: Path) -> None:
    for output in outputs_of(read(source)):
        assert output.get("name") != "stderr", output.text
        text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        assert "/home/" not in text
        assert str(ROOT) not in text


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_cells_hold_ideas_not_code(source: Path) -> None:
    for cell in read_source(source).cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= MOST_LINES, cell.source


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_the_notebook_runs(source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read_source(source)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert any("image/png" in output.get("data", {}) for output in outputs_of(notebook))
    assert list(tmp_path.iterdir()) == []
