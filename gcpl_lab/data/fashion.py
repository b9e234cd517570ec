"""Fashion-MNIST as published, and the bundled few-shot set that is cut from it.

The 60,000 training photographs are parted once and for all, so that nothing leaks: the tiny backbones
see ``PRETRAIN_PART`` only, exemplars and training scenes come from ``SUPPORT_PART``, and everything that
is measured comes from the official test photographs.

Source: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747 (MIT licence).
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gcpl_lab.errors import DataError

FASHION_CLASSES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""Fine class names in the order of the published label ids 0 to 9."""

FASHION_FAMILIES = {
    "tops": ("t-shirt", "pullover", "dress", "coat", "shirt"),
    "footwear": ("sandal", "sneaker", "ankle boot"),
    "trousers": ("trousers",),
    "bags": ("bag",),
}
"""Families of look-alikes; a family of one class has no look-alike in the set."""

PRETRAIN_PART = range(0, 50_000)
SUPPORT_PART = range(50_000, 60_000)

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class RawFashion:
    """The published arrays: images uint8 (count, 28, 28), labels int64 (count,) from 0 to 9."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def _read_idx(path: Path) -> np.ndarray:
    """Read one gzip-compressed IDX file of unsigned bytes (the format of the MNIST family)."""
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file. Install the Debian package dataset-fashion-mnist, or let torchvision "
            "download it (torchvision.datasets.FashionMNIST(root, download=True)) and pass its raw folder."
        ) from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: is no readable gzip file ({error}); fetch it again") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: is no IDX file of unsigned bytes (it starts with {content[:4]!r})")
    num_axes = content[3]
    start = 4 + 4 * num_axes
    if len(content) < start:
        raise DataError(f"{path}: ends after {len(content)} bytes, inside its header of {start}; fetch it again")
    shape = struct.unpack(f">{num_axes}I", content[4:start])
    values = np.frombuffer(content, dtype=np.uint8, offset=start)
    if values.size != int(np.prod(shape)):
        raise DataError(f"{path}: holds {values.size} bytes where its header {shape} promises {int(np.prod(shape))}")
    return values.reshape(shape).copy()


def read_raw_fashion(folder: str | Path = DEBIAN_FOLDER) -> RawFashion:
    """Read the four published files.

    Args:
        folder: Holds ``train-images-idx3-ubyte.gz`` and the three others: the Debian package's folder or
            torchvision's ``FashionMNIST/raw``.

    Raises:
        DataError: A file is absent or damaged; the message names it and the way to get it.
    """
    folder = Path(folder)
    parts = [
        _read_idx(folder / f"{part}-{kind}.gz")
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    return RawFashion(parts[0], parts[1].astype(np.int64), parts[2], parts[3].astype(np.int64))


def family_of(class_name: str) -> str:
    """The family a fashion class belongs to, such as ``"tops"`` for ``"shirt"``."""
    for family, members in FASHION_FAMILIES.items():
        if class_name in members:
            return family
    raise DataError(f"{class_name!r} is no fashion class; expected one of {', '.join(FASHION_CLASSES)}")
