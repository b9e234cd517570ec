"""Fashion-MNIST as published, and which part of it serves what.

The 60,000 training images are parted once and for all, so that nothing leaks: the tiny models see
``PRETRAIN_PART`` only, exemplars and training scenes come from ``SUPPORT_PART``, and everything that is measured
comes from the official test images.

Source: Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747 (MIT licence)
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gcpl_lab.data.samples import FASHION_CLASSES, FASHION_FAMILIES
from gcpl_lab.errors import DataError

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


def read_raw_fashion(folder: str | Path = DEBIAN_FOLDER) -> RawFashion:
    """Read the four published files.

    Args:
        folder: Holds ``train-images-idx3-ubyte.gz`` and the three others: the Debian package's folder or
            torchvision's ``FashionMNIST/raw``.

    Raises:
        DataError: A file is absent or damaged; the message names it and the way to get it.
    """
    train_images, train_labels, test_images, test_labels = (
        _read_idx(Path(folder) / f"{part}-{kind}.gz")
        for part in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    return RawFashion(train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64))


def _read_idx(path: Path) -> np.ndarray:
    """One gzip-compressed IDX file of unsigned bytes (the format of the MNIST family)."""
    try:
        content = gzip.decompress(path.read_bytes())
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


def family_of(class_name: str) -> str:
    """The family a fashion class belongs to, such as ``"tops"`` for ``"shirt"``."""
    for family, members in FASHION_FAMILIES.items():
        if class_name in members:
            return family
    raise DataError(f"{class_name!r} is no fashion class; expected one of {', '.join(FASHION_CLASSES)}")
