"""Ship what one complete run of the course's notebooks left, for those who fall behind: ``gcpl-lab course --ship``."""

from __future__ import annotations

import shutil
from pathlib import Path

from gcpl_lab.data.samples import SAMPLES_FORMAT
from gcpl_lab.errors import DataError
from gcpl_lab.storage import file_checksums, write_json, write_text
from gcpl_lab.workshop.course import course_folder, replacing, saved_in

CHECKSUMS = "checksums.json"
README = """\
# What the notebooks of the workshop leave

One folder a notebook: learned prompts, tensors and numbers that later notebooks start from, made with the bundled
`tiny` models. `gcpl-lab catch-up NN` copies them to `runs/course`, after checking every file and that the present tiny
models made them. Made by running all notebooks in order:

    gcpl-lab course --ship
"""


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
    if target.exists() and not (target / CHECKSUMS).is_file():
        raise DataError(f"{target}: exists and is no set of shipped states; choose another folder or remove it")
    if not (found := saved_in(source)):
        raise DataError(f"{source}: no notebook has left a state here; run them first: gcpl-lab course")
    with replacing(target) as built:
        for notebook in found:
            shutil.copytree(source / notebook, built / notebook)
        write_text(built / "README.md", README)
        content = {"format": SAMPLES_FORMAT, "name": "course", "files": file_checksums(built)}
        write_json(built / CHECKSUMS, content)
    return found
