"""States between notebooks: saved, refused where they do not fit, shipped and restored."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.workshop import course


class FrozenThing:
    """A frozen model as far as states ask: a name and a checksum."""

    name = "tiny"

    def __init__(self, checksum: str = "a" * 64) -> None:
        self._checksum = checksum

    def checksum(self) -> str:
        return self._checksum


class SavedModel:
    def save(self, folder: str | Path) -> Path:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "prompts.json").write_text("{}")
        return Path(folder)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(course.COURSE_VARIABLE, str(tmp_path / "course"))
    return tmp_path / "course"


def save(notebook: str = "03", frozen: FrozenThing | None = None, value: float = 1.0) -> Path:
    return course.save_state(
        notebook,
        frozen or FrozenThing(),
        models={"gcpl": SavedModel()},
        tensors={"norms": torch.full((3,), value)},
        facts={"class_names": ["coat", "shirt"], "seed": 0},
    )


# ------------------------------------------------------------------------------------------ save and load


def test_a_state_comes_back(folder: Path) -> None:
    assert save() == folder / "03"
    state = course.load_state("03", FrozenThing())
    assert state.notebook == "03"
    assert state.folder == folder / "03"
    assert (state.folder / "gcpl" / "prompts.json").is_file()
    assert state.facts == {"class_names": ["coat", "shirt"], "seed": 0}
    torch.testing.assert_close(state.tensors["norms"], torch.ones(3))


def test_saving_again_replaces_the_whole_state(folder: Path) -> None:
    save()
    course.save_state("03", FrozenThing(), tensors={"other": torch.zeros(1)})
    state = course.load_state("03", FrozenThing())
    assert list(state.tensors) == ["other"]
    assert state.facts == {}
    assert not (folder / "03" / "gcpl").exists()
    assert [path.name for path in folder.iterdir()] == ["03"], "nothing half-made is left"


def test_a_failing_save_leaves_the_earlier_state(folder: Path) -> None:
    save()

    class Broken:
        def save(self, folder: str | Path) -> Path:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        course.save_state("03", FrozenThing(), models={"gcpl": Broken()})
    assert course.load_state("03", FrozenThing()).facts["seed"] == 0
    assert [path.name for path in folder.iterdir()] == ["03"]


def test_without_the_variable_states_lie_below_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(course.COURSE_VARIABLE)
    assert course.course_folder() == Path(course.__file__).parents[2] / "runs" / "course"


@pytest.mark.parametrize("number", ["3", "003", "x", ""])
def test_numbers_have_two_digits(number: str) -> None:
    with pytest.raises(DataError, match="two digits"):
        course.load_state(number, FrozenThing())


def test_an_absent_state_names_the_notebook_and_the_command() -> None:
    with pytest.raises(ArtifactError, match=r"notebook 04 has left nothing.*gcpl-lab catch-up 04"):
        course.load_state("04", FrozenThing())


def test_a_state_of_other_weights_is_refused() -> None:
    save()
    with pytest.raises(ArtifactError, match="other frozen weights"):
        course.load_state("03", FrozenThing("b" * 64))

    class OtherKind(FrozenThing):
        pass

    with pytest.raises(ArtifactError, match="other frozen weights"):
        course.load_state("03", OtherKind())


def test_damage_is_noticed(folder: Path) -> None:
    save()
    (folder / "03" / "state.safetensors").write_bytes((save("04", value=2.0) / "state.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match="do not belong together"):
        course.load_state("03", FrozenThing())
    header = json.loads((folder / "04" / "state.json").read_text())
    (folder / "04" / "state.json").write_text(json.dumps(header | {"format_version": 99}))
    with pytest.raises(ArtifactError, match="format version 99"):
        course.load_state("04", FrozenThing())
    (folder / "04" / "state.json").write_text('{"format": "another"}')
    with pytest.raises(ArtifactError, match="no state of a notebook"):
        course.load_state("04", FrozenThing())


# ------------------------------------------------------------------------------------- ship and catch up


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """States of notebooks 03, 04 and 06, shipped; what the bundled models are is decided here."""
    for notebook in ("03", "04", "06"):
        save(notebook)
    target = tmp_path / "samples" / "course"
    assert course.ship_states(target) == ["03", "04", "06"]
    monkeypatch.setattr(course, "find_samples", lambda name: tmp_path / "samples" / name)
    monkeypatch.setenv(course.COURSE_VARIABLE, str(tmp_path / "later"))
    monkeypatch.setattr(course, "_check_weights", lambda *_: None)
    return target


def test_catching_up_restores_what_came_before(shipped: Path, tmp_path: Path) -> None:
    assert course.catch_up("05") == {"03": "restored", "04": "restored"}
    assert sorted(path.name for path in (tmp_path / "later").iterdir()) == ["03", "04"]
    assert course.load_state("04", FrozenThing()).facts["seed"] == 0
    assert course.catch_up("06") == {"03": "kept", "04": "kept", "06": "restored"}


def test_ones_own_work_is_kept_unless_told_otherwise(shipped: Path) -> None:
    save("03", value=7.0)
    assert course.catch_up("03") == {"03": "kept"}
    assert float(course.load_state("03", FrozenThing()).tensors["norms"][0]) == 7
    assert course.catch_up("03", replace=True) == {"03": "restored"}
    assert float(course.load_state("03", FrozenThing()).tensors["norms"][0]) == 1


def test_nothing_to_restore_before_the_first_state(shipped: Path) -> None:
    assert course.catch_up("02") == {}


def test_damaged_missing_and_extra_shipped_files_are_listed(shipped: Path) -> None:
    (shipped / "03" / "state.json").write_text("{}")
    (shipped / "04" / "state.safetensors").unlink()
    (shipped / "06" / "more.txt").write_text("?")
    with pytest.raises(ArtifactError) as caught:
        course.catch_up("06")
    for what in ("damaged: 03/state.json", "missing: 04/state.safetensors", "extra: 06/more.txt"):
        assert what in str(caught.value)


def test_states_of_other_tiny_models_are_refused(
    tmp_path: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(course.COURSE_VARIABLE, str(tmp_path / "later"))
    monkeypatch.setattr(course, "find_samples", lambda name: tmp_path / "samples" / name)
    for part in ("03", "04", "06"):
        header = json.loads((shipped / part / "state.json").read_text())
        header["frozen"]["kind"] = "FrozenDiffusion"
        (shipped / part / "state.json").write_text(json.dumps(header))
    monkeypatch.setattr(course, "_verify", lambda _: None)
    from gcpl_lab.models import diffusion

    loaded = []

    def load(name: str) -> SimpleNamespace:
        loaded.append(name)
        return SimpleNamespace(checksum=lambda: "a" * 64)

    monkeypatch.setattr(diffusion.FrozenDiffusion, "load", load)
    assert course.catch_up("06") == {"03": "restored", "04": "restored", "06": "restored"}
    assert loaded == ["tiny"], "the weights are read once"
    monkeypatch.setattr(diffusion.FrozenDiffusion, "load", lambda _: SimpleNamespace(checksum=lambda: "c" * 64))
    with pytest.raises(ArtifactError, match="other tiny models than the bundled ones"):
        course.catch_up("06", replace=True)


def test_only_sets_of_states_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    save()
    with pytest.raises(DataError, match="no set of shipped states"):
        course.ship_states(tmp_path / "mine")
    course.ship_states(tmp_path / "course_set")
    save("04")
    assert course.ship_states(tmp_path / "course_set") == ["03", "04"]


def test_there_is_nothing_to_ship_before_a_notebook_ran(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no notebook has left a state"):
        course.ship_states(tmp_path / "course_set")


# ------------------------------------------------------------------------------------------ command line


def test_catch_up_on_the_command_line(shipped: Path) -> None:
    from gcpl_lab.cli.app import app

    first = CliRunner().invoke(app, ["catch-up", "4", "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.output) == {"03": "restored", "04": "restored"}
    second = CliRunner().invoke(app, ["catch-up", "04"])
    assert "03 kept" in second.output
    assert "--replace" in second.output
    assert "nothing to restore" in CliRunner().invoke(app, ["catch-up", "02"]).output


def test_the_instructor_edition_does_not_overwrite_the_students(tmp_path: Path) -> None:
    from gcpl_lab.cli.app import app

    done = CliRunner().invoke(
        app, ["course", "--edition", "instructor", "--source", str(tmp_path), "--target", str(tmp_path)]
    )
    assert done.exit_code == 2
    assert "target" in done.output
    assert CliRunner().invoke(app, ["course", "--edition", "teacher"]).exit_code == 2
