"""What a notebook of the workshop leaves for the next ones, and how somebody who fell behind gets it.

A state is a folder: ``state.json`` (facts, and which frozen weights it was made with), ``state.safetensors`` and saved
classifiers. Notebooks write theirs to ``runs/course/NN``; the states of one complete run are shipped in
``data_samples/course`` (by ``tools/ship_course.py``), and :func:`catch_up` copies them to where notebooks look.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcpl_lab.data.samples import find_samples, verify_files
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.storage import read_checked, read_tensors, tensor_checksum, write_checked, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from gcpl_lab.models.clip import FrozenCLIP
    from gcpl_lab.models.diffusion import FrozenDiffusion
    from gcpl_lab.views.widgets import Guess

COURSE_VARIABLE = "GCPL_LAB_COURSE"
FORMAT, FORMAT_VERSION = "gcpl_lab.course_state", 1
TENSORS, FACTS = "state.safetensors", "state.json"


@dataclass(frozen=True)
class CourseState:
    """What a notebook left: tensors and plain JSON values by name; ``folder`` holds saved classifiers by name."""

    notebook: str
    folder: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def course_folder() -> Path:
    """Where the states lie: ``$GCPL_LAB_COURSE``, else ``runs/course`` beside ``data_samples``."""
    chosen = os.environ.get(COURSE_VARIABLE)
    return Path(chosen) if chosen else find_samples("fashion").parents[1] / "runs" / "course"


def guess(name: str, question: str, options: Sequence[str]) -> Guess:
    """A question to guess at before a cell that measures; guesses are kept in ``guesses.json`` beside the states."""
    from gcpl_lab.views.widgets import Guess

    return Guess(name, question, options, course_folder() / "guesses.json")


def _check_number(notebook: str) -> str:
    if not re.fullmatch(r"\d\d", notebook):
        raise DataError(f"notebook {notebook!r}: expected its number as two digits, such as '03'")
    return notebook


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to build in, which takes the place of ``folder`` when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        built = Path(scratch) / "built"
        built.mkdir()
        yield built
        if folder.exists():
            folder.rename(Path(scratch) / "replaced")
        built.rename(folder)


def save_state(
    notebook: str,
    frozen: FrozenDiffusion | FrozenCLIP,
    *,
    models: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Keep what later notebooks start from; an earlier state of this notebook is replaced when the new one is whole.

    Args:
        notebook: Number of the notebook that saves, two digits.
        frozen: The frozen model that everything was made with; its checksum is kept.
        models: Fitted classifiers.
        facts: Plain JSON values.
    """
    folder, kept = course_folder() / _check_number(notebook), dict(tensors or {})
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "notebook": notebook, "frozen": _facts_of(frozen)}
    with replacing(folder) as built:
        for name, model in (models or {}).items():
            model.save(built / name)
        write_tensors(built / TENSORS, kept)
        write_checked(built / FACTS, {**header, "tensors": tensor_checksum(kept.items()), "facts": dict(facts or {})})
    return folder


def load_state(notebook: str, frozen: FrozenDiffusion | FrozenCLIP) -> CourseState:
    """What an earlier notebook left; states made with other weights than ``frozen`` are refused.

    Raises:
        ArtifactError: There is none, or it is damaged or of other weights; the message says what to run.
    """
    folder = course_folder() / _check_number(notebook)
    remedy = f"run notebook {notebook}, or (preset 'tiny' only) the command: gcpl-lab catch-up {notebook}"
    if not (folder / FACTS).is_file():
        raise ArtifactError(f"{folder}: notebook {notebook} has left nothing here yet; {remedy}")
    header = _read_header(folder)
    made_with, present = header["frozen"], _facts_of(frozen)
    if (made_with["kind"], made_with["checksum"]) != (present["kind"], present["checksum"]):
        earlier, now = (f"{each['kind']} {each['name']!r}" for each in (made_with, present))
        differing = f"was made with other frozen weights ({earlier}) than those in use ({now})"
        raise ArtifactError(f"{folder}: {differing}; {remedy} --replace")
    tensors, _ = read_tensors(folder / TENSORS)
    if tensor_checksum(tensors.items()) != header["tensors"]:
        raise ArtifactError(f"{folder}: {FACTS} and {TENSORS} do not belong together; {remedy} --replace")
    return CourseState(notebook, folder, tensors, header["facts"])


def _facts_of(frozen: FrozenDiffusion | FrozenCLIP) -> dict[str, str]:
    return {"kind": type(frozen).__name__, "name": frozen.name, "checksum": frozen.checksum()}


def _read_header(folder: Path) -> dict[str, Any]:
    header = read_checked(folder / FACTS)
    if header.get("format") != FORMAT:
        raise ArtifactError(f"{folder / FACTS}: is no state of a notebook ({FORMAT}); delete {folder}")
    if header.get("format_version") != FORMAT_VERSION:
        found = f"has format version {header.get('format_version')}; this gcpl_lab reads {FORMAT_VERSION}"
        raise ArtifactError(f"{folder / FACTS}: {found}: delete {folder} and run the notebook again")
    return header


def saved_in(folder: Path) -> list[str]:
    """Numbers of the notebooks that have a state there."""
    return sorted(path.parent.name for path in folder.glob(f"[0-9][0-9]/{FACTS}"))


def catch_up(notebook: str, replace: bool = False) -> dict[str, str]:
    """Restore what all notebooks up to this one would have left, from the shipped states.

    Args:
        notebook: Number, two digits: afterwards this notebook and the one behind it can be opened.
        replace: Overwrite states that are there already; without it they are "kept", being one's own work, and the
            others are "restored": the result says which.

    Raises:
        DataError: Shipped files are damaged or missing.
        ArtifactError: They were made with other tiny models than the bundled ones.
    """
    from gcpl_lab.models.clip import FrozenCLIP
    from gcpl_lab.models.diffusion import FrozenDiffusion

    shipped, folder = find_samples("course"), course_folder()
    last, listed, done = _check_number(notebook), verify_files(shipped), dict[str, str]()
    known = [path.name[:2] for path in shipped.parents[1].glob("notebooks/[0-9][0-9]_*.py")]
    if known and notebook not in known:
        raise DataError(f"notebook {notebook!r}: there is none; expected one of {', '.join(sorted(known))}")
    kinds: dict[str, Any] = {"FrozenCLIP": FrozenCLIP, "FrozenDiffusion": FrozenDiffusion}
    present = cache(lambda kind: kinds[kind].load("tiny").checksum())  # weights are read once, and only where needed
    for number in [number for number in saved_in(shipped) if number <= last]:
        if (folder / number / FACTS).is_file() and not replace:
            done[number] = "kept"
            continue
        made_with = _read_header(shipped / number)["frozen"]
        if made_with["checksum"] != present(made_with["kind"]):
            remedy = "make the states anew with gcpl-lab course --ship, or run the notebooks"
            raise ArtifactError(f"{shipped / number}: was made with other tiny models than the bundled ones; {remedy}")
        with replacing(folder / number) as built:
            for name in (name for name in listed if name.startswith(f"{number}/")):
                copied = built / name.removeprefix(f"{number}/")
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(shipped / name, copied)
        done[number] = "restored"
    return done
