"""Graded changes of images: how far may the images of tomorrow differ from those that were learned?

Five kinds, each at the same five severities for a 28-pixel and a 512-pixel image, because strengths are told in
shares of the image and not in pixels (degrees for rotation). Severity 0 is the image itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from gcpl_lab.errors import DataError

Picture = TypeVar("Picture", Image.Image, np.ndarray)
"""A PIL image of mode L or RGB, or a uint8 array (height, width), (height, width, 1) or (height, width, 3)."""


def blur(image: Image.Image, share: float) -> Image.Image:
    """Gaussian blur; ``share`` of the shorter side is its standard deviation."""
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def add_noise(image: Image.Image, share: float, seed: int = 0) -> Image.Image:
    """Normal noise of ``share`` of the full range, alike in all channels; one seed gives one pattern."""
    values = np.asarray(image)
    pattern = np.random.default_rng([seed, 31]).standard_normal(values.shape[:2])
    return _from_values(values + 255 * share * pattern.reshape(*pattern.shape, *[1] * (values.ndim - 2)))


def change_contrast(image: Image.Image, share: float) -> Image.Image:
    """Draw every value towards the image's mean: 1 changes nothing, 0 leaves an even grey."""
    values = np.asarray(image).astype(np.float64)
    return _from_values(values.mean() + share * (values - values.mean()))


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Turn anticlockwise about the centre, keeping the size; corners take the border's median colour."""
    values = np.asarray(image).reshape(image.height, image.width, -1)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    colour = tuple(int(value) for value in np.median(border, axis=0))
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=colour if len(colour) > 1 else colour[0])


def invert(image: Image.Image, threshold: float) -> Image.Image:
    """Invert what is bright: v becomes 1 − v where v is at least the threshold, a share of the full range.

    Not graded by mixing the image with its negative: half of each would be plain grey, and a middle severity hardest.
    """
    # PIL inverts values that are not below its threshold.
    return ImageOps.solarize(image, threshold=int(np.ceil(255 * threshold)))


class Shift(NamedTuple):
    """One kind of change."""

    apply: Callable[..., Image.Image]  # takes a PIL image and a strength
    strengths: tuple[float, ...]  # at severities 1 to 5
    label: str  # for an axis; {} stands for the strength
    share: bool = True  # whether a strength is written in percent
    random: bool = False  # whether apply takes a seed too


SHIFTS: dict[str, Shift] = {
    "blur": Shift(blur, (0.02, 0.04, 0.06, 0.08, 0.12), "blur {}"),
    "noise": Shift(add_noise, (0.04, 0.08, 0.15, 0.25, 0.40), "noise {}", random=True),
    "contrast": Shift(change_contrast, (0.75, 0.55, 0.40, 0.25, 0.12), "contrast left {}"),
    "rotation": Shift(rotate, (5, 15, 30, 60, 90), "rotated {}°", share=False),
    "inversion": Shift(invert, (0.75, 0.50, 0.25, 0.06, 0.0), "inverted from {}"),
}

SEVERITIES = (0, 1, 2, 3, 4, 5)


def shift_picture(picture: Picture, kind: str, severity: int, seed: int = 0) -> Picture:
    """A changed copy of one image, of the same kind, size and mode; ``seed`` is that of the noise."""
    if kind not in SHIFTS:
        raise DataError(f"kind of shift {kind!r} is unknown; expected one of {', '.join(SHIFTS)}")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise DataError(f"severity is {severity!r}; expected a whole number from 0 (unchanged) to {SEVERITIES[-1]}")
    _check_image(picture)
    if severity == 0:
        return picture.copy()
    shift: Shift = SHIFTS[kind]
    arguments: list[Any] = [shift.strengths[severity - 1], *([seed] if shift.random else [])]
    if isinstance(picture, Image.Image):
        return shift.apply(picture, *arguments)
    plain = picture[:, :, 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    return np.asarray(shift.apply(Image.fromarray(plain), *arguments)).reshape(picture.shape).copy()


def shift_pictures(pictures: Sequence[Picture], kind: str, severity: int, seed: int = 0) -> list[Picture]:
    """Changed copies of many images; the noise of image i follows from ``seed`` and i, and severity only scales it."""
    seeds = np.random.SeedSequence([seed, 37]).generate_state(max(1, len(pictures)))
    return [shift_picture(picture, kind, severity, int(own)) for picture, own in zip(pictures, seeds, strict=False)]


def describe_strength(kind: str, severity: int) -> str:
    """What a severity means, in words for a figure: ``"blur 4 %"``, ``"rotated 30°"``, ``"unchanged"``."""
    if severity == 0:
        return "unchanged"
    shift, strength = SHIFTS[kind], SHIFTS[kind].strengths[severity - 1]
    return shift.label.format(f"{100 * strength:g} %" if shift.share else f"{strength:g}")


def _from_values(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _check_image(image: object) -> None:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3))):
            raise DataError(
                f"the array is {image.dtype} of shape {image.shape}; expected uint8 (height, width), "
                "(height, width, 1) or (height, width, 3)"
            )
    elif not isinstance(image, Image.Image):
        raise DataError(f"the image is a {type(image).__name__}; expected a PIL image or a uint8 array")
    elif image.mode not in ("L", "RGB"):
        raise DataError(f"the image has mode {image.mode!r}; expected 'L' or 'RGB': read_image gives RGB")
