"""Images with one class each from a folder, and the support pool and test set of a folder or a published set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gcpl_lab.data.episodes import draw_episode, draw_test
from gcpl_lab.data.lists import read_metadata
from gcpl_lab.data.published import load_published
from gcpl_lab.data.readers import read_class_folders
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.data.tables import read_table
from gcpl_lab.errors import DataError

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
LABEL_COLUMNS = ("label", "labels")


def read_image_folder(folder: str | Path, name: str | None = None) -> ImageSet:
    """Read labelled images as the Hugging Face ``imagefolder`` convention has them.

    A ``metadata.csv`` or ``metadata.jsonl`` with the columns ``file_name`` and ``label`` (or ``labels``) says which
    class each image has; images that it does not list are no part of the set. Without such a file, or where it
    has captions alone, the sub-folders are the classes. The set is named after the folder by default.

    Source: https://huggingface.co/docs/datasets/image_dataset
    """
    folder = Path(folder)
    files = [folder / file for file in METADATA_FILES if (folder / file).is_file()]
    if len(files) > 1:
        raise DataError(f"{folder}: has {' and '.join(METADATA_FILES)}; expected one of them: remove the other")
    _, first = next(read_table(files[0]), (0, {})) if files else (0, {})
    column = next((column for column in LABEL_COLUMNS if column in first), None)
    if column is None:  # no file, or one that has captions or the like alone
        return read_class_folders(folder, name)
    found = read_metadata(files[0], labels_column=column, name=name)
    counts = found.targets.sum(axis=1)
    for index in np.flatnonzero(counts != 1):
        raise DataError(
            f"{found.origins[index]}: {found.images[index].name} has {counts[index]} classes; expected one an "
            "image (several are for gcpl-lab train lmpt)"
        )
    if len(found.class_names) < 2:
        raise DataError(f"{files[0]}: has one class only ({found.class_names[0]}); expected two or more to tell apart")
    return ImageSet(found.name, found.images, found.targets.argmax(axis=1), found.class_names, found.checksum)


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
    """Exemplars and at most ``most_test`` test images of a folder, as for :func:`read_pictures`, none in both.

    Without a ``test/`` the images that are not drawn are the test set.
    """
    pool, test = read_pictures(images)
    chosen = draw_episode(pool, shots, seed)
    if test is None:
        test = pool.subset(np.setdiff1d(np.arange(len(pool)), chosen))
    if most_test is not None and most_test < len(test):
        test = test.subset(draw_test(test, total=most_test, seed=seed))
    return pool.subset(chosen), test
