"""What a notebook of the workshop leaves for the next ones, and how somebody who fell behind gets it.

A state is a folder: ``state.json`` (facts, and which frozen weights it was made with), ``state.safetensors``
and saved classifiers. Notebooks write theirs to ``runs/course/NN``; the states of one complete run of all
notebooks are shipped in ``data_samples/course``, and :func:`catch_up` copies them to where notebooks look.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gcpl_lab.data.readers import list_lines
from gcpl_lab.data.samples import find_samples
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.storage import (
    file_checksum,
    read_json,
    read_tensors,
    tensor_checksum,
    write_json,
    write_tensors,
    write_text,
)

if TYPE_CHECKING:
    from torch import Tensor

COURSE_VARIABLE = "GCPL_LAB_COURSE"
"""Environment variable with another folder for the states than ``runs/course``."""

FORMAT = "gcpl_lab.course_state"
FORMAT_VERSION = 1
TENSORS, FACTS = "state.safetensors", "state.json"


class Frozen(Protocol):
    """A frozen model: FrozenDiffusion or FrozenCLIP."""

    name: str

    def checksum(self) -> str:
        """SHA-256 over its weights."""


class Saveable(Protocol):
    """A classifier that can be written to a folder."""

    def save(self, folder: str | Path) -> Path:
        """Write everything that loading needs."""


@dataclass(frozen=True)
class CourseState:
    """What a notebook left.

    Attributes:
        notebook: Its number, two digits.
        folder: Where it lies; saved classifiers are sub-folders under their names.
        tensors: By name.
        facts: Plain JSON values by name.
    """

    notebook: str
    folder: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def course_folder() -> Path:
    """Where the states lie: ``$GCPL_LAB_COURSE``, else ``runs/course`` beside ``data_samples``."""
    chosen = os.environ.get(COURSE_VARIABLE)
    return Path(chosen) if chosen else find_samples("fashion").parents[1] / "runs" / "course"


def _check_number(notebook: str) -> str:
    if not re.fullmatch(r"\d\d", notebook):
        raise DataError(f"notebook {notebook!r}: expected its number as two digits, such as '03'")
    return notebook


def save_state(
    notebook: str,
    frozen: Frozen,
    *,
    models: Mapping[str, Saveable] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Keep what later notebooks start from.

    Args:
        notebook: Number of the notebook that saves, two digits.
        frozen: The frozen model that everything was made with; its checksum is kept.
        models: Fitted classifiers by name.
        tensors: By name.
        facts: Plain JSON values by name.

    Returns:
        The folder. An earlier state of this notebook is replaced when the new one is whole.
    """
    folder = course_folder() / _check_number(notebook)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{notebook}.") as scratch:
        built = Path(scratch) / "built"
        for name, model in (models or {}).items():
            model.save(built / name)
        write_tensors(built / TENSORS, dict(tensors or {}))
        write_json(
            built / FACTS,
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "notebook": notebook,
                "frozen": {"kind": type(frozen).__name__, "name": frozen.name, "checksum": frozen.checksum()},
                "tensors": tensor_checksum((tensors or {}).items()),
                "facts": dict(facts or {}),
            },
        )
        _replace(built, folder, Path(scratch) / "replaced")
    return folder


def _replace(built: Path, folder: Path, replaced: Path) -> None:
    if folder.exists():
        folder.rename(replaced)
    built.rename(folder)


def load_state(notebook: str, frozen: Frozen) -> CourseState:
    """What an earlier notebook left.

    Args:
        notebook: Its number, two digits.
        frozen: The frozen model in use; states of other weights are refused.

    Raises:
        ArtifactError: There is none, it is damaged, or it was made with other frozen weights; the message says
            what to run.
    """
    folder = course_folder() / _check_number(notebook)
    remedy = f"run notebook {notebook}, or (preset 'tiny' only) the command: gcpl-lab catch-up {notebook}"
    if not (folder / FACTS).is_file():
        raise ArtifactError(f"{folder}: notebook {notebook} has left nothing here yet; {remedy}")
    header = _read_header(folder)
    made_with, present = header["frozen"], (type(frozen).__name__, frozen.checksum())
    if (made_with["kind"], made_with["checksum"]) != present:
        raise ArtifactError(
            f"{folder}: was made with other frozen weights ({made_with['kind']} {made_with['name']!r}) than those in "
            f"use ({present[0]} {frozen.name!r}); {remedy} --replace"
        )
    tensors, _ = read_tensors(folder / TENSORS)
    if tensor_checksum(tensors.items()) != header["tensors"]:
        raise ArtifactError(f"{folder}: {FACTS} and {TENSORS} do not belong together; {remedy} --replace")
    return CourseState(notebook, folder, tensors, header["facts"])


def _read_header(folder: Path) -> dict[str, Any]:
    header = read_json(folder / FACTS)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ArtifactError(
            f"{folder / FACTS}: is no state of a notebook (its format is not {FORMAT}); delete {folder}"
        )
    if header.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / FACTS}: has format version {header.get('format_version')}; this gcpl_lab reads "
            f"{FORMAT_VERSION}: delete {folder} and run the notebook again"
        )
    return header


# ------------------------------------------------------------------------------------- shipped states


def ship_states(target: str | Path) -> list[str]:
    """Copy the present states into a folder that can be committed, with the checksum of every file.

    Args:
        target: ``data_samples/course``; an earlier set there is replaced.

    Returns:
        Numbers of the notebooks whose states are in it.

    Raises:
        DataError: There is no state, or ``target`` holds something else.
    """
    target, source = Path(target), course_folder()
    if target.exists() and not (target / "checksums.json").is_file():
        raise DataError(f"{target}: exists and is no set of shipped states; choose another folder or remove it")
    found = sorted(path.parent.name for path in source.glob(f"[0-9][0-9]/{FACTS}"))
    if not found:
        raise DataError(f"{source}: no notebook has left a state here; run them first: gcpl-lab course")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        built = Path(scratch) / "built"
        for notebook in found:
            shutil.copytree(source / notebook, built / notebook)
        write_text(built / "README.md", _README)
        files = {name: file_checksum(built / name) for name in _files_below(built)}
        write_json(built / "checksums.json", {"format": FORMAT_VERSION, "name": "course", "files": files})
        _replace(built, target, Path(scratch) / "replaced")
    return found


_README = """\
# What the notebooks of the workshop leave

One folder a notebook: learned prompts, tensors and numbers that later notebooks start from, made with the bundled
`tiny` models. `gcpl-lab catch-up NN` copies them to `runs/course`, after checking every file and that the present tiny
models made them. Made by running all notebooks in order:

    gcpl-lab course --ship
"""


def _files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def catch_up(notebook: str, replace: bool = False) -> dict[str, str]:
    """Restore what all notebooks up to this one would have left, from the shipped states.

    Args:
        notebook: Number, two digits: afterwards this notebook and the one behind it can be opened.
        replace: Overwrite states that are there already; without it they are kept, being one's own work.

    Returns:
        Notebook number to "restored" or "kept".

    Raises:
        ArtifactError: Shipped files are damaged, or were made with other tiny models than the bundled ones.
    """
    shipped, folder = find_samples("course"), course_folder()
    _check_number(notebook)
    _verify(shipped)
    wanted = [path.parent.name for path in sorted(shipped.glob(f"[0-9][0-9]/{FACTS}"))]
    done: dict[str, str] = {}
    checksums: dict[str, str] = {}
    for number in [number for number in wanted if number <= notebook]:
        if (folder / number / FACTS).is_file() and not replace:
            done[number] = "kept"
            continue
        _check_weights(_read_header(shipped / number)["frozen"], shipped / number, checksums)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{number}.") as scratch:
            shutil.copytree(shipped / number, Path(scratch) / "built")
            _replace(Path(scratch) / "built", folder / number, Path(scratch) / "replaced")
        done[number] = "restored"
    return done


def _verify(shipped: Path) -> None:
    expected = read_json(shipped / "checksums.json")["files"]
    present = set(_files_below(shipped)) - {"checksums.json"}
    problems = [f"missing: {name}" for name in sorted(expected.keys() - present)]
    problems += [f"extra: {name}" for name in sorted(present - expected.keys())]
    problems += [
        f"damaged: {name}"
        for name in sorted(expected.keys() & present)
        if file_checksum(shipped / name) != expected[name]
    ]
    if problems:
        raise ArtifactError(f"{shipped}: restore it from the repository:" + list_lines(problems))


def _check_weights(frozen: Mapping[str, str], folder: Path, known: dict[str, str]) -> None:
    """Refuse a shipped state that the bundled models did not make; ``known`` keeps checksums, by kind."""
    from gcpl_lab.models.clip import FrozenCLIP
    from gcpl_lab.models.diffusion import FrozenDiffusion

    kinds: dict[str, Any] = {"FrozenDiffusion": FrozenDiffusion, "FrozenCLIP": FrozenCLIP}
    kind = frozen["kind"]
    if kind not in kinds:
        raise ArtifactError(f"{folder}: was made with a {kind}; expected one of {', '.join(kinds)}")
    if kind not in known:
        known[kind] = kinds[kind].load("tiny").checksum()
    if frozen["checksum"] != known[kind]:
        raise ArtifactError(
            f"{folder}: was made with other tiny models than the bundled ones; make the states anew with "
            "gcpl-lab course --ship, or run the notebooks"
        )
