"""The square that a model sees of an image of any shape: all of it with bars, its middle, or all of it squashed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gcpl_lab.errors import DataError

FITS = ("pad", "crop", "squash")
"""``"pad"`` puts bars of the border's mean colour beside the whole image, ``"crop"`` takes the square in the middle,
``"squash"`` resizes both sides to the same length."""

LONGEST = 1.25
"""Longer side to shorter side up to which a crop loses a fifth of an image at most."""


def frame(image: Image.Image, fit: str) -> Image.Image:
    """The square of an RGB image that a model sees, before its own resizing; a square image is left as it is.

    Args:
        fit: One of ``FITS``.
    """
    width, height = image.size
    if width == height:
        return image
    if fit == "squash":
        return image.resize((max(width, height),) * 2, Image.Resampling.BICUBIC)
    if fit not in FITS:
        raise DataError(f"fit is {fit!r}; expected one of {', '.join(FITS)}")
    side = min(width, height) if fit == "crop" else max(width, height)
    square = Image.new("RGB", (side, side), _border_colour(image) if fit == "pad" else None)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _border_colour(image: Image.Image) -> tuple[int, int, int]:
    """Mean of the two sides that bars are put beside: such bars stand out least."""
    pixels = np.asarray(image)
    sides = pixels[[0, -1]] if image.width > image.height else pixels[:, [0, -1]]
    red, green, blue = sides.reshape(-1, 3).mean(axis=0).round().astype(int).tolist()
    return red, green, blue


def lost_share(size: tuple[int, int]) -> float:
    """The part of an image that a crop to its middle loses: 0 for a square one, below 1."""
    return 1 - min(size) / max(size)


def choose_fit(sources: Iterable[Any], fit: str = "auto") -> str:
    """``"pad"`` where one of the images that are learned from would lose more than a fifth to a crop, else ``"crop"``.

    Args:
        sources: Paths, PIL images or arrays; of files only the headers are read.
        fit: What the settings say; anything but ``"auto"`` stays.
    """
    if fit != "auto":
        return fit
    for source in sources:
        try:
            if isinstance(source, str | Path):
                with Image.open(source) as opened:
                    sides: tuple[int, ...] = opened.size
            else:
                sides = source.size if isinstance(source, Image.Image) else source.shape[:2]
            if max(sides) > LONGEST * min(sides):
                return "pad"
        except (OSError, ValueError, AttributeError, SyntaxError, Image.DecompressionBombError):
            continue  # reading it will say what is wrong
    return "crop"


def check_saved_fit(metadata: Mapping[str, Any]) -> str:
    """What saved prompts were learned with; those of earlier versions, which say nothing, with ``"crop"``."""
    fit = str(metadata.get("fit", "crop"))
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}; expected one of {', '.join(FITS)}")
    return fit
