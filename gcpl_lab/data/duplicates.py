"""Copies of a picture among others, by perceptual hash: what a test picture must not be of a support picture.

A hash says which of the 255 lowest spatial frequencies are stronger than their median, so it survives another
size, JPEG quality or brightness. Copies made this way differ in at most 24 bits (95 of 100 of them, on garments,
CIFAR-100 and textile); two different pictures of these sets differed in 30 or more. Cropped copies are not found.

Source: Zauner 2010, http://phash.org/docs/pubs/thesis_zauner.pdf (the frequency hash, there with 64 bits)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from gcpl_lab.data.readers import ImageSource, read_image
from gcpl_lab.errors import DataError

SIDE, FREQUENCIES = 32, 16
MAX_DISTANCE = 24
_ROWS = 512


class Duplicate(NamedTuple):
    """Two pictures that look the same.

    Attributes:
        first: Index into the first set.
        second: Index into the second set (into the first, where there is one set only).
        distance: Bits in which their hashes differ, 0 to ``MAX_DISTANCE``.
        mirrored: Whether one is the mirror image of the other.
    """

    first: int
    second: int
    distance: int
    mirrored: bool


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """255 bits that follow what a picture looks like, as uint8 (32,).

    Args:
        image: Of any size; only its brightness counts.
    """
    from scipy.fft import dctn

    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64)
    # The first coefficient is the mean brightness, which says nothing about the picture.
    lowest = dctn(grey, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return np.packbits(lowest > np.median(lowest))


def mirrored_hash(hashes: np.ndarray) -> np.ndarray:
    """Hashes of the mirror images, from the hashes alone.

    Mirroring changes the sign of the odd horizontal frequencies; the median stays close to zero, so a bit of such
    a frequency turns around.

    Args:
        hashes: uint8 (..., 32).
    """
    odd = np.tile(np.arange(FREQUENCIES) % 2 == 1, FREQUENCIES)[1:]
    return hashes ^ np.packbits(odd)


def hash_images(
    sources: Sequence[ImageSource], on_progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Hashes of pictures, one read at a time, and what is wrong with those that cannot be read.

    Args:
        sources: As for :func:`~gcpl_lab.data.readers.read_image`.
        on_progress: Called with the pictures done and their number.

    Returns:
        uint8 (picture, 32), zeros for a picture that cannot be read; and (index, message) of each of those.
    """
    hashes, failures = np.zeros((len(sources), 32), np.uint8), []
    for index, source in enumerate(sources):
        try:
            hashes[index] = perceptual_hash(read_image(source))
        except DataError as error:
            failures.append((index, str(error)))
        if on_progress:
            on_progress(index + 1, len(sources))
    return hashes, failures


def find_duplicates(
    first: np.ndarray, second: np.ndarray | None = None, *, max_distance: int = MAX_DISTANCE, mirrored: bool = True
) -> list[Duplicate]:
    """Pairs of pictures whose hashes are nearly equal, the nearest first.

    Args:
        first: Hashes uint8 (picture, 32).
        second: Hashes of another set; None looks for pairs within ``first``.
        max_distance: Most bits that may differ, 0 to 255.
        mirrored: Look for mirror images too.
    """
    for name, hashes in (("first", first), ("second", second)):
        if hashes is not None and (hashes.ndim != 2 or hashes.shape[1] != 32 or hashes.dtype != np.uint8):
            raise DataError(f"{name} hashes are {hashes.dtype} of shape {hashes.shape}; expected uint8 (pictures, 32)")
    other = first if second is None else second
    found: list[Duplicate] = []
    for flipped in (False, True) if mirrored else (False,):
        compared = mirrored_hash(other) if flipped else other
        for start in range(0, len(first), _ROWS):
            rows = first[start : start + _ROWS, None, :]
            distances = np.bitwise_count(rows ^ compared[None]).sum(axis=2, dtype=np.int64)
            for row, column in np.argwhere(distances <= max_distance):
                if second is None and column <= start + row:
                    continue
                found.append(Duplicate(int(start + row), int(column), int(distances[row, column]), flipped))
    nearest: dict[tuple[int, int], Duplicate] = {}
    for pair in sorted(found, key=lambda pair: (pair.distance, pair.mirrored)):
        nearest.setdefault((pair.first, pair.second), pair)
    return sorted(nearest.values(), key=lambda pair: (pair.distance, pair.first, pair.second))
