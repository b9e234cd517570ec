"""The bundled sets: found, and verified by checksum before they are used.

``data_samples/fashion`` holds small PNG files, so it can be looked at with any file browser and is read by the same
code as a user's own class folders; ``data_samples/wardrobe_lt`` holds long-tailed scenes of garments in the published
text format. ``tools/samples.py`` and ``tools/wardrobe.py`` of the repository made them.

Source: Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747 (MIT licence)
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from gcpl_lab.data.lists import read_longtail_list
from gcpl_lab.data.readers import list_images, list_lines
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.storage import file_checksum, folder_checksum, read_json

FASHION_CLASSES = "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
"""Fine class names in the order of the published label ids 0 to 9."""

FASHION_FAMILIES = {
    "tops": ("t-shirt", "pullover", "dress", "coat", "shirt"),
    "footwear": ("sandal", "sneaker", "ankle boot"),
    "trousers": ("trousers",),
    "bags": ("bag",),
}
"""Families of look-alikes; a family of one class has no look-alike in the set."""

SAMPLES_VARIABLE = "GCPL_LAB_SAMPLES"
"""Environment variable with the path of a ``data_samples`` folder elsewhere."""

SAMPLES_FORMAT = 1
"""Of ``checksums.json``."""


def find_samples(name: str) -> Path:
    """Find a folder of ``data_samples``: in ``GCPL_LAB_SAMPLES``, beside the package, or in the current folder."""
    chosen = os.environ.get(SAMPLES_VARIABLE)
    # A place that was chosen by hand is the only one: a mistake there must not fall back silently.
    roots = [Path(chosen)] if chosen else [Path(__file__).parents[2] / "data_samples", Path.cwd() / "data_samples"]
    for root in roots:
        if (root / name / "checksums.json").is_file():
            return root / name
    listed = ", ".join(str(root / name) for root in roots)
    raise DataError(
        f"sample set {name!r}: no checksums.json in {listed}; run from a clone of the repository, "
        f"or set {SAMPLES_VARIABLE} to its data_samples folder"
    )


def load_fashion(split: Literal["support", "test"]) -> ImageSet:
    """Load the bundled fashion images: 28 × 28 grey PNG files of ten classes, with families of look-alikes.

    Exemplars are drawn from ``"support"``; ``"test"`` is only ever measured on. Every file is verified.
    """
    if split not in ("support", "test"):
        raise DataError(f"split is {split!r}; expected 'support' or 'test'")
    folder = find_samples("fashion")
    checksums = verify_files(folder, split)
    label_of = {folder_of_class(name): label for label, name in enumerate(FASHION_CLASSES)}
    listed = sorted((label_of[name.split("/")[0]], name) for name in checksums)
    return ImageSet(
        name=f"fashion/{split}",
        images=tuple(folder / split / name for _, name in listed),
        labels=np.array([label for label, _ in listed], np.int64),
        class_names=FASHION_CLASSES,
        checksum=folder_checksum(checksums.items()),
        families=dict(FASHION_FAMILIES),
    )


def load_wardrobe(split: Literal["train", "test"], folder: str | Path | None = None) -> MultiLabelSet:
    """Load the bundled scenes: 64 × 64 grey PNG files with targets over the ten fashion classes, all verified.

    ``"train"`` has captions, ``"test"`` none. ``folder`` holds another set of the same layout.
    """
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}; expected 'train' or 'test'")
    folder = Path(folder) if folder is not None else find_samples("wardrobe_lt")
    verify_files(folder)
    captions = folder / "train_captions.txt" if split == "train" else None
    data = read_longtail_list(folder / f"{split}.txt", folder / "labels.txt", folder, captions)
    return replace(data, name=f"wardrobe_lt/{split}", warnings=())


def folder_of_class(class_name: str) -> str:
    """The name of a class's folder: without blanks."""
    return class_name.replace(" ", "_")


def verify_files(folder: Path, part: str = "") -> dict[str, str]:
    """Compare the files of a bundled set, or of one folder in it, with its ``checksums.json``.

    Returns their checksums by path below the folder; a DataError lists all that are damaged, missing or extra.
    """
    path, prefix = folder / "checksums.json", f"{part}/" if part else ""
    try:
        content = read_json(path)
        if content["format"] != SAMPLES_FORMAT:
            raise DataError(f"{path}: has format {content['format']!r}; expected {SAMPLES_FORMAT}")
        listed = [(name, str(checksum)) for name, checksum in content["files"].items() if name.startswith(prefix)]
    except ArtifactError as error:
        raise DataError(str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no list of checksums of a sample set; restore it from the repository") from error
    folder, checksums = folder / part, {name.removeprefix(prefix): checksum for name, checksum in listed}
    problems = [f"missing: {name}" for name in sorted(checksums) if not (folder / name).is_file()]
    inside = [image for each in folder.rglob("*") if each.is_dir() for image in list_images(each)]
    problems += [
        f"extra: {name}"
        for name in sorted({image.relative_to(folder).as_posix() for image in inside} - checksums.keys())
    ]
    for name in sorted(checksums):
        if (folder / name).is_file() and file_checksum(folder / name) != checksums[name]:
            problems.append(f"damaged: {name}")
    if problems:
        raise DataError(
            f"{folder}: {len(problems)} files differ from checksums.json; restore the folder from the repository:"
            + list_lines(problems)
        )
    return checksums
