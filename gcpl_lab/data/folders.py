"""Labelled images from a folder or a list, and what is learned from and tested on of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gcpl_lab.data.duplicates import without_copies
from gcpl_lab.data.episodes import draw_episode, draw_test
from gcpl_lab.data.lists import read_longtail_list, read_metadata
from gcpl_lab.data.multilabel import split_validation
from gcpl_lab.data.published import load_published
from gcpl_lab.data.readers import read_class_folders
from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.data.tables import find_column, read_table
from gcpl_lab.errors import DataError

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
TABLE_SUFFIXES = (".csv", ".jsonl", ".json", ".tsv", ".txt", ".parquet", ".xlsx", ".xls", ".ods", ".arrow", ".feather")
"""A file ``metadata`` with one of these says something about the images: it is understood or refused."""
LABEL_COLUMNS, FILE_COLUMNS, CAPTION_COLUMNS = ("label", "labels"), ("file_name", "filename"), ("caption", "captions")
PARTS = frozenset(("support", "train", "test", "val", "valid", "validation"))


def read_image_folder(folder: str | Path, name: str | None = None) -> ImageSet:
    """Read labelled images as the Hugging Face ``imagefolder`` convention has them.

    A ``metadata.csv`` or ``metadata.jsonl`` with the columns ``file_name`` and ``label`` (or ``labels``) says which
    class each image has; images that it does not list are no part of the set. Without such a file, or where it has
    ``file_name`` and captions alone, the sub-folders are the classes; one that is not understood is refused. The
    set is named after the folder by default.

    Source: https://huggingface.co/docs/datasets/image_dataset
    """
    folder = Path(folder)
    file = _find_metadata(folder)
    column = _label_column(file) if file else None
    if file is None or column is None:
        refuse_parts(folder)
        return read_class_folders(folder, name)
    found = read_metadata(file, labels_column=column, name=name)
    counts = found.targets.sum(axis=1)
    for index in np.flatnonzero(counts != 1):
        raise DataError(
            f"{found.origins[index]}: {found.images[index].name} has {counts[index]} classes; expected one an "
            "image (several are for gcpl-lab train lmpt)"
        )
    if len(found.class_names) < 2:
        raise DataError(f"{file}: has one class only ({found.class_names[0]}); expected two or more to tell apart")
    return ImageSet(found.name, found.images, found.targets.argmax(axis=1), found.class_names, found.checksum)


def _find_metadata(folder: Path) -> Path | None:
    """The one metadata file of a folder; DataError for one of another name or kind, and for two."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [path for path in inside if path.stem.casefold() == "metadata" and path.suffix.lower() in TABLE_SUFFIXES]
    for file in files:
        if file.name not in METADATA_FILES or not file.is_file():
            raise DataError(
                f"{file}: is not read, and nothing is guessed at without it; expected {METADATA_FILES[0]} (with "
                f"commas) or {METADATA_FILES[1]}: save it as one of them, or remove it"
            )
    if len(files) > 1:
        raise DataError(f"{folder}: has {' and '.join(METADATA_FILES)}; expected one of them: remove the other")
    return files[0] if files else None


def _label_column(file: Path) -> str | None:
    """The column of classes; None for a file that is understood and has captions alone."""
    columns = list(dict.fromkeys(column for _, row in read_table(file) for column in row))
    if not columns:
        raise DataError(f"{file}: holds no row; expected the columns file_name and label, and one row an image")
    try:
        column, named = find_column(columns, LABEL_COLUMNS), find_column(columns, FILE_COLUMNS)
        captions = find_column(columns, CAPTION_COLUMNS)
    except DataError as error:
        raise DataError(f"{file}, line 1: {error}") from None
    if column is None and not (named and captions):
        raise DataError(
            f"{file}, line 1: has the columns {', '.join(columns)}; expected file_name and label: rename those with "
            "paths and classes, or remove the file to take sub-folders as classes"
        )
    return column


def refuse_parts(folder: Path) -> None:
    """Refuse sub-folders that are parts of a set, such as ``support/`` and ``test/``, as classes."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if names and PARTS.issuperset(name.casefold() for name in names):
        raise DataError(
            f"{folder}: its sub-folders {', '.join(names)} are parts of a set and no classes; did you mean "
            f"{folder / names[0]}?"
        )


def read_scenes(folder: str | Path) -> MultiLabelSet | None:
    """Images with any number of labels, where a folder's metadata file gives one of them none or several; else None."""
    file = _find_metadata(Path(folder))
    column = _label_column(file) if file else None
    if file is None or column is None:
        return None
    found = read_metadata(file, labels_column=column)
    return found if (found.targets.sum(axis=1) != 1).any() else None


def read_pictures(images: str | Path) -> tuple[ImageSet, ImageSet | None]:
    """Support pool of a folder of images, and its test set where there is one.

    Args:
        images: Class folders, or images with a ``metadata.csv`` or ``metadata.jsonl``; or a folder with ``support/``
            (or ``train/``) and ``test/``, one of the two in each. The two must have the same classes.
    """
    images = Path(images)
    pools = [images / name for name in ("support", "train") if (images / name).is_dir()]
    if not (pools and (images / "test").is_dir()):
        return read_image_folder(images), None
    support, test = read_image_folder(pools[0]), read_image_folder(images / "test")
    if support.class_names != test.class_names:
        only = sorted(set(support.class_names) ^ set(test.class_names))
        raise DataError(
            f"{images}: {pools[0].name}/ and test/ have different classes ({', '.join(only)} in one of them alone); "
            "expected the same classes in both"
        )
    return support, test


def read_support_and_test(images: str | Path, published: str | None = None) -> tuple[ImageSet, ImageSet]:
    """Support pool and test set, both of which must be there: of a folder, or of a published set kept in it."""
    if published is not None:
        return load_published(published, images, "train"), load_published(published, images, "test")
    support, test = read_pictures(images)
    if test is None:
        raise DataError(f"{images}: has no test set; expected support/ and test/ with one sub-folder a class in each")
    return support, test


def draw_sets(images: str | Path, shots: int, seed: int, most_test: int | None = None) -> tuple[ImageSet, ImageSet]:
    """Exemplars and at most ``most_test`` test images of a folder, as for :func:`read_pictures`; 0 shots take all.

    Without a ``test/`` the images that are not drawn are the test set, but for those that look like an exemplar.
    """
    pool, test = read_pictures(images)
    chosen = draw_episode(pool, shots, seed) if shots else np.arange(len(pool))
    if test is None:
        return pool.subset(chosen), leave_out(pool, chosen, seed, most_test)
    if most_test is not None and most_test < len(test):
        test = test.subset(draw_test(test, total=most_test, seed=seed))
    return pool.subset(chosen), test


def leave_out(pool: ImageSet, chosen: np.ndarray, seed: int, most: int | None = None) -> ImageSet:
    """At most so many images of a pool outside the chosen ones, none of which looks like a chosen one."""
    left = pool.subset(np.setdiff1d(np.arange(len(pool)), chosen))
    left = left.subset(np.sort(np.random.default_rng([seed, 97]).permutation(len(left))[:most]))
    return left.subset(without_copies(left.images, [pool.images[index] for index in chosen]))


def read_labelled(split: Literal["train", "test"], source: Mapping[str, Any]) -> MultiLabelSet:
    """Images with several labels: of a list, of a metadata file, or the bundled scenes where the source names neither.

    Args:
        split: Of the bundled scenes, or of those in the folder ``scenes``.
        source: Arguments of :func:`~gcpl_lab.data.lists.read_longtail_list` where it has a ``list_file``, of
            :func:`~gcpl_lab.data.lists.read_metadata` where it has a ``file``; paths may be texts.
    """
    if "list_file" in source:
        return read_longtail_list(**source)
    return read_metadata(**source) if "file" in source else load_wardrobe(split, source.get("scenes"))


def draw_labelled(
    source: Mapping[str, Any], test: Mapping[str, Any] | None, held_out: float, seed: int
) -> tuple[MultiLabelSet, MultiLabelSet]:
    """Images with several labels to learn from, and others to measure on.

    Args:
        source: See :func:`read_labelled`; the bundled scenes have a test set of their own.
        test: What differs in the source of the test images; without it a part of the source's images is left out, but
            for those that look like one that is learned from.
        held_out: That part, a share, in which labels are as frequent as in the rest; 0 leaves none out.
        seed: Of the part.
    """
    train = read_labelled("train", source)
    if "list_file" not in source and "file" not in source:
        return train, read_labelled("test", source)
    if test is not None:
        others = read_labelled("test", {**source, **test})
        return train, others.subset(without_copies(others.images, []))  # says now which cannot be read
    if not held_out:
        return train, train.subset([])
    learned, left = split_validation(train.targets, held_out, seed)
    train, others = train.subset(learned), train.subset(left)
    return train, others.subset(without_copies(others.images, train.images))
