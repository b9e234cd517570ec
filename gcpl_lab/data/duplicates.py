"""Copies of an image among others, by perceptual hash: what a test image must not be of a support image.

A hash says which of the 255 lowest spatial frequencies are stronger than their median, so it survives another
size, JPEG quality or brightness. Copies made this way differ in at most 24 bits (95 of 100 of them, on garments,
CIFAR-100 and textile); two different images of these sets differed in 30 or more. Cropped copies are not found.

Source: Zauner 2010, http://phash.org/docs/pubs/thesis_zauner.pdf (the frequency hash, there with 64 bits)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from gcpl_lab.data.readers import ImageSource, list_lines, read_image
from gcpl_lab.errors import DataError

SIDE, FREQUENCIES = 32, 16
MAX_DISTANCE = 24
_ROWS = 512  # of hashes that are compared at a time, to bound the memory


class Duplicate(NamedTuple):
    """Two images that look the same."""

    first: int
    second: int  # an index into the second set, or into the first where there is one set only
    distance: int  # differing bits
    mirrored: bool  # whether one mirrors the other


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """255 bits that follow what an image of any size looks like, as uint8 (32,); only its brightness counts."""
    from scipy.fft import dctn

    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64)
    # The first coefficient is the mean brightness, which says nothing about the content.
    lowest = dctn(grey, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return np.packbits(lowest > np.median(lowest))


def hash_images(
    sources: Sequence[ImageSource], on_progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Hashes uint8 (image, 32), read one at a time, and (index, message) of images that cannot be read: zeros."""
    hashes, failures = np.zeros((len(sources), 32), np.uint8), []
    for index, source in enumerate(sources):
        try:
            hashes[index] = perceptual_hash(read_image(source))
        except DataError as error:
            failures.append((index, str(error)))
        if on_progress:
            on_progress(index + 1, len(sources))
    return hashes, failures


def without_copies(images: Sequence[ImageSource], originals: Sequence[ImageSource]) -> np.ndarray:
    """Indices of ``images`` that look like none of ``originals``, int64 (count,), ascending; all can be read."""
    (hashes, failures), (known, more) = hash_images(images), hash_images(originals)
    if failures := failures + more:
        raise DataError(f"{len(failures)} images cannot be used:" + list_lines([line for _, line in failures]))
    copies = {pair.second for pair in find_duplicates(known, hashes) if hashes[pair.second].any()}  # not of one colour
    return np.array([index for index in range(len(images)) if index not in copies], np.int64)


def find_duplicates(
    first: np.ndarray, second: np.ndarray | None = None, *, max_distance: int = MAX_DISTANCE, mirrored: bool = True
) -> list[Duplicate]:
    """Pairs of images whose hashes uint8 (image, 32) are nearly equal, the nearest first; mirror images too by default.

    Without a second set, pairs are looked for within the first; at most ``max_distance`` bits of 255 may differ.
    """
    for name, hashes in (("first", first), ("second", second)):
        if hashes is not None and (hashes.ndim != 2 or hashes.shape[1] != 32 or hashes.dtype != np.uint8):
            raise DataError(f"{name} hashes are {hashes.dtype} of shape {hashes.shape}; expected uint8 (images, 32)")
    other = first if second is None else second
    # Mirroring changes the sign of the odd horizontal frequencies; the median stays close to zero, so a bit of such a
    # frequency turns around.
    odd = np.packbits(np.tile(np.arange(FREQUENCIES) % 2 == 1, FREQUENCIES)[1:])
    nearest: dict[tuple[int, int], Duplicate] = {}
    for flipped in (False, True) if mirrored else (False,):
        compared = other ^ odd if flipped else other
        for start in range(0, len(first), _ROWS):
            differing = first[start : start + _ROWS, None] ^ compared[None]
            distances = np.bitwise_count(differing).sum(axis=2, dtype=np.int64)
            for row, column in np.argwhere(distances <= max_distance):
                pair = Duplicate(int(start + row), int(column), int(distances[row, column]), flipped)
                known = nearest.get(pair[:2])
                if (second is not None or pair.first < pair.second) and (not known or pair.distance < known.distance):
                    nearest[pair[:2]] = pair
    return sorted(nearest.values(), key=lambda pair: (pair.distance, pair.first, pair.second))
