"""Graded changes of photographs: how far may the pictures of tomorrow differ from those that were learned?

Five kinds, each at the same five severities for a 28-pixel and a 512-pixel picture, because strengths are told in
shares of the picture and not in pixels. Severity 0 is the picture itself. Pure functions: a picture in, a new
picture of the same kind, size and mode out.

| kind | strength at severities 1 to 5 |
| --- | --- |
| ``blur`` | Gaussian blur, standard deviation 2, 4, 6, 8, 12 % of the shorter side |
| ``noise`` | normal noise, standard deviation 4, 8, 15, 25, 40 % of the full range, alike in all channels |
| ``contrast`` | 75, 55, 40, 25, 12 % of the distance from the picture's mean brightness is left |
| ``rotation`` | 5, 15, 30, 60, 90 degrees anticlockwise; corners take the median colour of the border |
| ``inversion`` | brightness is inverted where it is at least 75, 50, 25, 6 and 0 % of the full range |

Inversion is graded by a threshold and not by mixing the picture with its negative: half of each would be plain
grey, so a middle severity would be the hardest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from gcpl_lab.errors import DataError

Picture = TypeVar("Picture", Image.Image, np.ndarray)
"""A PIL picture of mode L or RGB, or a uint8 array (height, width), (height, width, 1) or (height, width, 3)."""


def blur(picture: Picture, share: float) -> Picture:
    """Gaussian blur.

    Args:
        picture: See ``Picture``.
        share: Standard deviation as a share of the shorter side, 0 or more.
    """
    _check_strength("the share of a blur", share, 0, np.inf)
    return _through_pil(picture, lambda opened: opened.filter(ImageFilter.GaussianBlur(share * min(opened.size))))


def add_noise(picture: Picture, share: float, seed: int = 0) -> Picture:
    """Normal noise on the brightness; a grey picture stays grey.

    Args:
        picture: See ``Picture``.
        share: Standard deviation as a share of the full range, 0 or more.
        seed: Of the noise. One seed gives one pattern, which ``share`` only scales.
    """
    _check_strength("the share of noise", share, 0, np.inf)

    def noisy(values: np.ndarray) -> np.ndarray:
        pattern = np.random.default_rng([seed, 31]).standard_normal(values.shape[:2])
        return values + 255 * share * pattern.reshape(*pattern.shape, *[1] * (values.ndim - 2))

    return _through_array(picture, noisy)


def change_contrast(picture: Picture, share: float) -> Picture:
    """Draw every value towards the picture's mean.

    Args:
        picture: See ``Picture``.
        share: Of the distance from the mean that is left: 1 changes nothing, 0 leaves an even grey.
    """
    _check_strength("the share of contrast", share, 0, 1)
    return _through_array(picture, lambda values: values.mean() + share * (values - values.mean()))


def rotate(picture: Picture, degrees: float) -> Picture:
    """Turn about the centre, keeping the size; what turns in from outside has the border's median colour.

    Args:
        picture: See ``Picture``.
        degrees: Anticlockwise.
    """

    def turned(opened: Image.Image) -> Image.Image:
        values = np.asarray(opened).reshape(opened.height, opened.width, -1)
        border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
        colour = tuple(int(value) for value in np.median(border, axis=0))
        fill = colour if len(colour) > 1 else colour[0]
        return opened.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=fill)

    return _through_pil(picture, turned)


def invert(picture: Picture, threshold: float) -> Picture:
    """Invert what is bright: v becomes 1 − v where v is at least the threshold.

    Args:
        picture: See ``Picture``.
        threshold: As a share of the full range: 0 gives the negative, above 1 changes nothing.
    """
    _check_strength("the threshold of inversion", threshold, 0, np.inf)
    # PIL inverts values that are not below its threshold.
    return _through_pil(picture, lambda opened: ImageOps.solarize(opened, threshold=int(np.ceil(255 * threshold))))


class Shift(NamedTuple):
    """One kind of change.

    Attributes:
        apply: Takes a picture, a strength and a seed.
        strengths: At severities 1 to 5.
        label: Of the strengths, for an axis; ``{}`` stands for the strength.
        share: Whether a strength is a share, to be written in percent.
    """

    apply: Callable[[Any, float, int], Any]
    strengths: tuple[float, ...]
    label: str
    share: bool = True


SHIFTS: dict[str, Shift] = {
    "blur": Shift(lambda picture, value, _: blur(picture, value), (0.02, 0.04, 0.06, 0.08, 0.12), "blur {}"),
    "noise": Shift(add_noise, (0.04, 0.08, 0.15, 0.25, 0.40), "noise {}"),
    "contrast": Shift(
        lambda picture, value, _: change_contrast(picture, value), (0.75, 0.55, 0.40, 0.25, 0.12), "contrast left {}"
    ),
    "rotation": Shift(lambda picture, value, _: rotate(picture, value), (5, 15, 30, 60, 90), "rotated {}°", False),
    "inversion": Shift(
        lambda picture, value, _: invert(picture, value), (0.75, 0.50, 0.25, 0.06, 0.0), "inverted from {}"
    ),
}
"""Every kind by its name; the module's table says what the strengths mean."""

SEVERITIES = (0, 1, 2, 3, 4, 5)


def shift_picture(picture: Picture, kind: str, severity: int, seed: int = 0) -> Picture:
    """Change one picture.

    Args:
        picture: See ``Picture``; it stays as it is.
        kind: A name in ``SHIFTS``.
        severity: 0 (a copy) to 5.
        seed: Of the noise; the other kinds draw nothing.

    Raises:
        DataError: An unknown kind, a severity outside, or a picture of another mode or dtype.
    """
    if kind not in SHIFTS:
        raise DataError(f"kind of shift {kind!r} is unknown; expected one of {', '.join(SHIFTS)}")
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise DataError(f"severity is {severity!r}; expected a whole number from 0 (unchanged) to {SEVERITIES[-1]}")
    _check_picture(picture)
    if severity == 0:
        return picture.copy()
    shift = SHIFTS[kind]
    changed: Picture = shift.apply(picture, shift.strengths[severity - 1], seed)
    return changed


def shift_pictures(pictures: Sequence[Picture], kind: str, severity: int, seed: int = 0) -> list[Picture]:
    """Change many pictures, each with a noise of its own that is the same at every severity.

    Args:
        pictures: See ``Picture``.
        kind: A name in ``SHIFTS``.
        severity: 0 to 5.
        seed: Of the noises; picture i has the noise of ``seed`` and i.
    """
    seeds = np.random.SeedSequence([seed, 37]).generate_state(max(1, len(pictures)))
    return [
        shift_picture(picture, kind, severity, int(own))
        for picture, own in zip(pictures, seeds[: len(pictures)], strict=True)
    ]


def describe_strength(kind: str, severity: int) -> str:
    """What a severity means, in words for a figure: ``"blur 4 %"``, ``"rotated 30°"``, ``"unchanged"``."""
    if severity == 0:
        return "unchanged"
    shift = SHIFTS[kind]
    strength = shift.strengths[severity - 1]
    return shift.label.format(f"{100 * strength:g} %" if shift.share else f"{strength:g}")


# ------------------------------------------------------------------------------------------ both kinds


def _check_picture(picture: Image.Image | np.ndarray) -> None:
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (1, 3))):
            raise DataError(
                f"the array is {picture.dtype} of shape {picture.shape}; expected uint8 (height, width), "
                "(height, width, 1) or (height, width, 3)"
            )
    elif not isinstance(picture, Image.Image):
        raise DataError(f"the picture is a {type(picture).__name__}; expected a PIL picture or a uint8 array")
    elif picture.mode not in ("L", "RGB"):
        raise DataError(f"the picture has mode {picture.mode!r}; expected 'L' or 'RGB': read_image gives RGB")


def _check_strength(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise DataError(f"{what} is {value}; expected {low} " + ("or more" if high == np.inf else f"to {high}"))


def _through_pil(picture: Picture, change: Callable[[Image.Image], Image.Image]) -> Picture:
    _check_picture(picture)
    if isinstance(picture, Image.Image):
        return change(picture)
    plain = picture[:, :, 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    return np.asarray(change(Image.fromarray(plain))).reshape(picture.shape).copy()


def _through_array(picture: Picture, change: Callable[[np.ndarray], np.ndarray]) -> Picture:
    _check_picture(picture)
    values = change(np.asarray(picture).astype(np.float64))
    result = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return Image.fromarray(result) if isinstance(picture, Image.Image) else result
