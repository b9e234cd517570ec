"""Published sets of look-alike classes, through the packages that carry them.

Fine-grained sets come from torchvision, which downloads and checks them; the textile images come from the PyPI
package ``conformal-clip-data``. What is read here is lists of paths and labels: images stay on disk.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gcpl_lab.data.readers import read_class_folders
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError
from gcpl_lab.storage import file_checksum, folder_checksum

Split = Literal["train", "test"]
TEXTILE_PACKAGE = "conformal_clip_data"
TEXTILE_FOLDER = "data/textile_images/simulated"

# Licences as the authors state them.
PUBLISHED = {
    "flowers102": ("Flowers102", "train"),  # not stated; robots.ox.ac.uk/~vgg/data/flowers/102
    "oxford_iiit_pet": ("OxfordIIITPet", "trainval"),  # CC BY-SA 4.0; robots.ox.ac.uk/~vgg/data/pets
    "fgvc_aircraft": ("FGVCAircraft", "trainval"),  # non-commercial research; ~vgg/data/fgvc-aircraft
    "food101": ("Food101", "train"),  # not stated; data.vision.ee.ethz.ch/cvl/datasets_extra/food-101
    "dtd": ("DTD", "train"),  # for research; robots.ox.ac.uk/~vgg/data/dtd
    "eurosat": ("EuroSAT", ""),  # MIT; github.com/phelber/EuroSAT
    "textile": ("", ""),  # MIT; arxiv.org/abs/2501.12596
}
"""torchvision's class, and its name of the split that exemplars are drawn from; each empty where there is none.

EuroSAT and the textile images have no official split: half of each class, drawn once, is the test set.
"""

_SPLIT_SEED = 0


def load_published(name: str, root: str | Path = "", split: Split = "train", *, download: bool = False) -> ImageSet:
    """One part of a published set.

    Args:
        name: A name in ``PUBLISHED``.
        root: Where torchvision keeps its sets; not needed for ``"textile"``.
        split: ``"train"``, the pool that exemplars are drawn from, or ``"test"``.

    Raises:
        DataError: An unknown name or split, or images or a package that are not there, with how to get them.
    """
    if name not in PUBLISHED:
        raise DataError(f"{name!r} is no published set; expected one of {', '.join(PUBLISHED)}")
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}; expected 'train' or 'test'")
    if name == "textile":
        spec = importlib.util.find_spec(TEXTILE_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(
                "the textile images are in a package that is not installed; install it with: "
                "pip install conformal-clip-data (42 MB, MIT), or gcpl-lab[textile]"
            )
        return _half(read_class_folders(Path(spec.submodule_search_locations[0]) / TEXTILE_FOLDER, "textile"), split)
    dataset = _torchvision_set(name, root, split, download)
    if PUBLISHED[name][1]:
        return _image_set(f"{name}/{split}", dataset)
    return _half(_image_set(name, dataset), split)


def _torchvision_set(name: str, root: str | Path, split: Split, download: bool) -> Any:
    from torchvision import datasets

    class_name, train = PUBLISHED[name]
    options = {"split": train if split == "train" else "test"} if train else {}
    try:
        return getattr(datasets, class_name)(root=str(root), download=download, **options)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{name}: cannot be read below {str(root)!r} ({error}). Fetch it once where there is a network with: "
            f"load_published({name!r}, {str(root)!r}, download=True)"
        ) from error


def _paths_and_labels(dataset: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """torchvision's sets keep their lists under different names, and offer no public one."""
    if hasattr(dataset, "samples"):
        return tuple(zip(*dataset.samples, strict=True))  # type: ignore[return-value]
    files = getattr(dataset, "_image_files", None) or getattr(dataset, "_images", None)
    if not files:
        raise DataError(
            f"{type(dataset).__name__}: this version of torchvision keeps its list of images elsewhere; copy them "
            "into class folders and use read_class_folders"
        )
    return files, dataset._labels


def _image_set(name: str, dataset: Any) -> ImageSet:
    """A set of torchvision's, sorted by class, as class folders are, with names as they go into a prompt."""
    files, labels = _paths_and_labels(dataset)
    order = np.argsort(np.asarray(labels), kind="stable")
    images = tuple(Path(files[index]) for index in order)
    if missing := [path for path in images if not path.is_file()]:
        raise DataError(
            f"{name}: {len(missing)} of {len(images)} listed images are not there, such as {missing[0]}; "
            "delete the folder and fetch the set again"
        )
    class_names = tuple(" ".join(label.replace("_", " ").split()) for label in dataset.classes)
    checksum = folder_checksum((f"{path.parent.name}/{path.name}", file_checksum(path)) for path in images)
    return ImageSet(name, images, np.asarray(labels, np.int64)[order], class_names, checksum)


def _half(whole: ImageSet, split: Split) -> ImageSet:
    """The first or second half of each class in one fixed random order."""
    chosen: list[int] = []
    for label in range(len(whole.class_names)):
        members = np.flatnonzero(whole.labels == label)
        order = np.random.default_rng([_SPLIT_SEED, label]).permutation(members)
        middle = len(order) // 2
        chosen += sorted(order[:middle] if split == "train" else order[middle:])
    return whole.subset(np.array(chosen, np.int64))
