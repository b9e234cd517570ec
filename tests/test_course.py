"""States between notebooks: saved, refused where they do not fit, shipped and restored."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gcpl_lab.cli.app import app
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import read_checked
from gcpl_lab.workshop import course
from tools.ship_course import ship_states


class Frozen:
    """A frozen model as far as states ask: a name and a checksum."""

    name = "tiny"

    def __init__(self, checksum: str = "a" * 64) -> None:
        self.checksum = lambda: checksum


Frozen.__name__ = "FrozenDiffusion"  # what a state notes, and what catch_up loads


class Model:
    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def save(self, folder: Path) -> None:
        if self.broken:
            raise OSError("disk full")
        folder.mkdir(parents=True)
        (folder / "prompts.json").write_text("{}")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(course.COURSE_VARIABLE, str(tmp_path / "course"))
    return tmp_path / "course"


def save(notebook: str = "03", value: float = 1.0, **other: Any) -> Path:
    tensors, facts = {"norms": torch.full((3,), value)}, {"class_names": ["coat", "shirt"], "seed": 0}
    given = {"models": {"gcpl": Model()}, "tensors": tensors, "facts": facts} | other
    return course.save_state(notebook, Frozen(), **given)


def load(notebook: str = "03", frozen: Any = None) -> course.CourseState:
    return course.load_state(notebook, frozen or Frozen())


def test_a_state_comes_back_and_is_replaced_whole_or_not_at_all(folder: Path) -> None:
    assert save() == folder / "03"
    with pytest.raises(OSError, match="disk full"):
        save(models={"gcpl": Model(broken=True)}, facts={})
    state = load()
    assert (state.notebook, state.folder) == ("03", folder / "03")
    assert (state.folder / "gcpl" / "prompts.json").is_file()
    assert state.facts == {"class_names": ["coat", "shirt"], "seed": 0}
    torch.testing.assert_close(state.tensors["norms"], torch.ones(3))
    save(models={}, tensors={"other": torch.zeros(1)}, facts={})
    state = load()
    assert (list(state.tensors), state.facts) == (["other"], {})
    assert not (folder / "03" / "gcpl").exists()
    assert [path.name for path in folder.iterdir()] == ["03"], "nothing half-made is left"


def test_without_the_variable_states_lie_below_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(course.COURSE_VARIABLE)
    assert course.course_folder() == Path(course.__file__).parents[2] / "runs" / "course"


def test_what_does_not_fit_is_refused_with_a_remedy(folder: Path) -> None:
    for number in ("3", "003", "x", ""):
        with pytest.raises(DataError, match="two digits"):
            load(number)
    with pytest.raises(ArtifactError, match=r"notebook 04 has left nothing.*gcpl-lab catch-up 04"):
        load("04")
    save()
    for other in (Frozen("b" * 64), SimpleNamespace(name="tiny", checksum=Frozen().checksum)):
        with pytest.raises(ArtifactError, match="other frozen weights .*gcpl-lab catch-up 03 --replace"):
            load(frozen=other)
    (folder / "03" / "state.safetensors").write_bytes((save("04", value=2.0) / "state.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match="do not belong together"):
        load()
    facts = folder / "04" / "state.json"
    other_version = read_checked(facts) | {"format_version": 99}
    for content, told in ((other_version, "format version 99"), ({"format": "another"}, "no state of a notebook")):
        facts.write_text(json.dumps(content))
        with pytest.raises(ArtifactError, match=told):
            load("04")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """States of notebooks 03, 04 and 06, shipped; the bundled model has their checksum."""
    for notebook in ("03", "04", "06"):
        save(notebook)
    target = tmp_path / "samples" / "course"
    assert ship_states(target) == ["03", "04", "06"]
    monkeypatch.setattr(course, "find_samples", lambda name: tmp_path / "samples" / name)
    monkeypatch.setenv(course.COURSE_VARIABLE, str(tmp_path / "later"))
    monkeypatch.setattr(FrozenDiffusion, "load", lambda _: Frozen())
    return target


def test_catching_up_restores_what_came_before(shipped: Path, tmp_path: Path, monkeypatch: Any) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(FrozenDiffusion, "load", lambda name: loaded.append(name) or Frozen())
    assert course.catch_up("02") == {}
    (shipped / "03" / "more.txt").write_text("not listed, so not copied")
    assert course.catch_up("05") == {"03": "restored", "04": "restored"}
    assert loaded == ["tiny"], "the weights are read once"
    assert sorted(path.name for path in (tmp_path / "later").iterdir()) == ["03", "04"]
    assert not (tmp_path / "later" / "03" / "more.txt").exists()
    assert load("04").facts["seed"] == 0
    assert course.catch_up("06") == {"03": "kept", "04": "kept", "06": "restored"}
    monkeypatch.setattr(FrozenDiffusion, "load", lambda _: Frozen("c" * 64))
    with pytest.raises(ArtifactError, match="other tiny models than the bundled ones"):
        course.catch_up("06", replace=True)


def test_ones_own_work_is_kept_unless_told_otherwise(shipped: Path) -> None:
    save("03", value=7.0)
    for replace, done, value in ((False, "kept", 7), (True, "restored", 1)):
        assert course.catch_up("03", replace) == {"03": done}
        assert float(load().tensors["norms"][0]) == value


def test_damaged_and_missing_shipped_files_are_listed(shipped: Path) -> None:
    (shipped / "03" / "state.json").write_text("{}")
    (shipped / "04" / "state.safetensors").unlink()
    with pytest.raises(DataError, match=r"missing: 04/state.safetensors\n.*damaged: 03/state.json"):
        course.catch_up("06")


def test_only_sets_of_states_are_replaced(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no notebook has left a state"):
        ship_states(tmp_path / "set")
    (tmp_path / "mine").mkdir()
    save()
    with pytest.raises(DataError, match="no set of shipped states"):
        ship_states(tmp_path / "mine")
    ship_states(tmp_path / "set")
    save("04")
    assert ship_states(tmp_path / "set") == ["03", "04"]


def test_catch_up_on_the_command_line(shipped: Path) -> None:
    def told(*words: str) -> str:
        return CliRunner().invoke(app, ["catch-up", *words]).output

    assert json.loads(told("4", "--json")) == {"03": "restored", "04": "restored"}
    assert re.search(r"03 kept(.|\n)*--replace", told("04"))
    assert "nothing to restore" in told("02")
