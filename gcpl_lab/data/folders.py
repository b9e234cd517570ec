"""One class a picture from a folder of one's own: class folders, or a list of files and classes beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gcpl_lab.data.multilabel import read_metadata, read_table
from gcpl_lab.data.readers import ImageSet, read_class_folders
from gcpl_lab.errors import DataError

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
LABEL_COLUMNS = ("label", "labels")


def read_image_folder(folder: str | Path, name: str | None = None) -> ImageSet:
    """Read labelled pictures as the Hugging Face ``imagefolder`` convention has them.

    A ``metadata.csv`` or ``metadata.jsonl`` with the columns ``file_name`` and ``label`` (or ``labels``) says which
    class each picture has; pictures that it does not list are no part of the set. Without such a file, or where it
    has captions alone, the sub-folders are the classes.

    Args:
        folder: Holds the file or the class folders.
        name: Names the set; the folder's name by default.

    Returns:
        The set; classes are in the order of their names, families are empty.

    Raises:
        DataError: As :func:`~gcpl_lab.data.readers.read_class_folders` and
            :func:`~gcpl_lab.data.multilabel.read_metadata`; also two metadata files, a picture with no class or with
            several, and fewer than two classes.

    Source: https://huggingface.co/docs/datasets/image_dataset
    """
    folder = Path(folder)
    files = [folder / file for file in METADATA_FILES if (folder / file).is_file()]
    if len(files) > 1:
        raise DataError(f"{folder}: has {' and '.join(METADATA_FILES)}; expected one of them: remove the other")
    column = _label_column(files[0]) if files else None
    if column is None:
        return read_class_folders(folder, name)
    found = read_metadata(files[0], labels_column=column, name=name)
    counts = found.targets.sum(axis=1)
    if (wrong := np.flatnonzero(counts != 1)).size:
        raise DataError(
            f"{found.origins[wrong[0]]}: {found.images[wrong[0]].name} has {counts[wrong[0]]} classes; expected one a "
            "picture (several are for gcpl-lab train lmpt)"
        )
    if len(found.class_names) < 2:
        raise DataError(f"{files[0]}: has one class only ({found.class_names[0]}); expected two or more to tell apart")
    return ImageSet(found.name, found.images, found.targets.argmax(axis=1), found.class_names, found.checksum)


def _label_column(file: Path) -> str | None:
    """The column that holds the classes; None where the file has captions or the like alone."""
    first = next(read_table(file), None)
    return next((column for column in LABEL_COLUMNS if first and column in first[1]), None)
