"""What README says about the code is so: its examples run as they stand, and files are as long as it says."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from gcpl_lab.gcpl.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def registered() -> Any:
    """Whatever an example registers is gone afterwards."""
    before = dict(OBJECTIVES._entries)
    yield
    OBJECTIVES._entries = before


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("registered")
def test_the_examples_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GCPL_LAB_SAMPLES", str(ROOT / "data_samples"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(blocks) == 2
    assert "(5, 10)" in capsys.readouterr().out
    assert (tmp_path / "runs" / "mine" / "prompts.safetensors").is_file()
    assert "huber" in OBJECTIVES


def test_files_are_about_as_long_as_the_table_says() -> None:
    rows = re.findall(r"^\| (`[^|]*\.py`) \| (\d+) \|", README, re.MULTILINE)
    assert len(rows) > 5
    for files, stated in rows:
        paths = [ROOT / "gcpl_lab" / name for name in re.findall(r"`([^`]*)`", files)]
        found = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        assert abs(found - int(stated)) <= 0.1 * found, files


def test_every_file_that_pages_link_to_is_there() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_every_name_that_a_notebook_imports_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gcpl_lab"):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
