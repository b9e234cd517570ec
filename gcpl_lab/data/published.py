"""Published sets of look-alike classes, through the packages that carry them.

Fine-grained sets come from torchvision, which downloads and checks them; the textile pictures come from the PyPI
package ``conformal-clip-data``. What is read here is lists of paths and labels: pictures stay on disk.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gcpl_lab.data.readers import ImageSet, read_class_folders
from gcpl_lab.errors import DataError
from gcpl_lab.storage import file_checksum, folder_checksum

Split = Literal["train", "test"]
TEXTILE_PACKAGE = "conformal_clip_data"
TEXTILE_FOLDER = "data/textile_images/simulated"


@dataclass(frozen=True)
class PublishedSet:
    """One published set.

    Attributes:
        dataset: torchvision's class; empty for the textile pictures.
        splits: torchvision's names of our ``"train"`` and ``"test"``; None where the set has no official split.
        classes: How many there are.
        licence: As its authors state it.
        source: Where it is described.
        options: Further arguments of torchvision's class.
    """

    dataset: str
    splits: dict[Split, str] | None
    classes: int
    licence: str
    source: str
    options: tuple[tuple[str, Any], ...] = ()


PUBLISHED = {
    "flowers102": PublishedSet(
        "Flowers102",
        {"train": "train", "test": "test"},
        102,
        "not stated",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    ),
    "oxford_iiit_pet": PublishedSet(
        "OxfordIIITPet",
        {"train": "trainval", "test": "test"},
        37,
        "CC BY-SA 4.0",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    "fgvc_aircraft": PublishedSet(
        "FGVCAircraft",
        {"train": "trainval", "test": "test"},
        100,
        "for non-commercial research",
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    ),
    "food101": PublishedSet(
        "Food101",
        {"train": "train", "test": "test"},
        101,
        "not stated",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    "dtd": PublishedSet(
        "DTD",
        {"train": "train", "test": "test"},
        47,
        "for research",
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        (("partition", 1),),
    ),
    "eurosat": PublishedSet("EuroSAT", None, 10, "MIT", "https://github.com/phelber/EuroSAT"),
    "textile": PublishedSet("", None, 3, "MIT", "https://arxiv.org/abs/2501.12596"),
}
"""EuroSAT and the textile pictures have no official split: half of each class, drawn once, is the test set."""

_SPLIT_SEED = 0


def load_published(name: str, root: str | Path = "", split: Split = "train", *, download: bool = False) -> ImageSet:
    """One part of a published set.

    Args:
        name: A name in ``PUBLISHED``.
        root: Where torchvision keeps its sets; not needed for ``"textile"``.
        split: ``"train"``, the pool that exemplars are drawn from, or ``"test"``.
        download: Let torchvision fetch what is not there.

    Raises:
        DataError: An unknown name or split, pictures that are not there, or a package that is not installed; the
            message says how to get them.
    """
    if name not in PUBLISHED:
        raise DataError(f"{name!r} is no published set; expected one of {', '.join(PUBLISHED)}")
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}; expected 'train' or 'test'")
    found = PUBLISHED[name]
    if name == "textile":
        whole = read_class_folders(_textile_folder(), "textile")
        return _half(whole, split)
    dataset = _torchvision_set(name, found, root, split, download)
    images, labels = _paths_and_labels(dataset)
    result = _image_set(f"{name}/{split}" if found.splits else name, images, labels, dataset.classes)
    return result if found.splits else _half(result, split)


def _textile_folder() -> Path:
    spec = importlib.util.find_spec(TEXTILE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the textile pictures are in a package that is not installed; install it with: "
            "pip install conformal-clip-data (42 MB, MIT), or gcpl-lab[textile]"
        )
    return Path(spec.submodule_search_locations[0]) / TEXTILE_FOLDER


def _torchvision_set(name: str, found: PublishedSet, root: str | Path, split: Split, download: bool) -> Any:
    """torchvision's own data set, with its checks."""
    from torchvision import datasets

    options = dict(found.options)
    if found.splits:
        options["split"] = found.splits[split]
    try:
        return getattr(datasets, found.dataset)(root=str(root), download=download, **options)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{name}: cannot be read below {str(root)!r} ({error}). Fetch it once where there is a network with: "
            f"load_published({name!r}, {str(root)!r}, download=True)"
        ) from error


def _paths_and_labels(dataset: Any) -> tuple[list[Path], list[int]]:
    """torchvision's sets keep their lists under different names, and offer no public one."""
    if hasattr(dataset, "samples"):
        return [Path(path) for path, _ in dataset.samples], [int(label) for _, label in dataset.samples]
    files = getattr(dataset, "_image_files", None) or getattr(dataset, "_images", None)
    if not files:
        raise DataError(
            f"{type(dataset).__name__}: this version of torchvision keeps its list of pictures elsewhere; copy them "
            "into class folders and use read_class_folders"
        )
    return [Path(path) for path in files], [int(label) for label in dataset._labels]


def _image_set(name: str, images: Sequence[Path], labels: Sequence[int], classes: Sequence[str]) -> ImageSet:
    """Sorted by class, as class folders are, with names as they go into a prompt."""
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of {len(images)} listed pictures are not there, such as {missing[0]}; "
            "delete the folder and fetch the set again"
        )
    order = np.argsort(np.asarray(labels), kind="stable")
    chosen = [images[index] for index in order]
    return ImageSet(
        name=name,
        images=tuple(chosen),
        labels=np.asarray(labels, np.int64)[order],
        class_names=tuple(" ".join(label.replace("_", " ").split()) for label in classes),
        checksum=folder_checksum((f"{path.parent.name}/{path.name}", file_checksum(path)) for path in chosen),
    )


def _half(whole: ImageSet, split: Split) -> ImageSet:
    """The first or second half of each class in one fixed random order."""
    chosen: list[int] = []
    for label in range(len(whole.class_names)):
        members = np.flatnonzero(whole.labels == label)
        order = np.random.default_rng([_SPLIT_SEED, label]).permutation(members)
        middle = len(order) // 2
        chosen += sorted(order[:middle] if split == "train" else order[middle:])
    return whole.subset(np.array(chosen, np.int64))
