"""Graded changes: what each does by hand, that severities rise, and that images keep their kind."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data import shifts
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.data.shifts import SEVERITIES, SHIFTS, add_noise, blur, shift_picture, shift_pictures
from gcpl_lab.errors import DataError


@pytest.fixture(scope="module")
def bag() -> Image.Image:
    """Something is in its middle, and it is neither symmetric nor black and white."""
    bags = load_fashion("test")
    with Image.open(bags.images[int(np.flatnonzero(bags.labels == 8)[0])]) as opened:
        return opened.convert("L")


def changed(change: Any, values: Any, *arguments: float) -> np.ndarray:
    return np.asarray(change(Image.fromarray(np.asarray(values, np.uint8)), *arguments))


@pytest.mark.parametrize("kind", SHIFTS)
def test_kind_size_and_mode_stay_and_further_severities_change_more(bag: Image.Image, kind: str) -> None:
    colour, before, distances = bag.convert("RGB"), np.asarray(bag).copy(), []
    for severity in SEVERITIES:
        for image in (bag, colour):
            found = shift_picture(image, kind, severity)
            assert (type(found), found.mode, found.size) == (Image.Image, image.mode, image.size)
        grey = np.asarray(bag)
        for array in (grey, grey[:, :, None], np.asarray(colour)):
            changed = shift_picture(array, kind, severity)
            assert (changed.shape, changed.dtype, changed.flags.writeable) == (array.shape, np.uint8, True)
            assert changed is not array
        # An array and a PIL image, and a grey and a coloured one, tell the same.
        plain = shift_picture(grey, kind, severity)
        assert np.array_equal(plain, np.asarray(shift_picture(bag, kind, severity)))
        assert np.array_equal(plain, np.asarray(shift_picture(colour, kind, severity))[..., 1])
        distances.append(np.abs(plain.astype(float) - before).mean())
    assert np.array_equal(np.asarray(bag), before), "the image that was given was changed"
    assert distances[0] == 0
    assert all(later > earlier for earlier, later in pairwise(distances)), distances


def test_blur_of_a_block_has_the_stated_width_and_keeps_the_light() -> None:
    image = np.zeros((101, 101), np.uint8)
    image[45:56, 45:56] = 255
    blurred = changed(blur, image, 0.05).astype(float)
    assert blurred.sum() == pytest.approx(image.sum(dtype=float), rel=0.02)
    rows = np.arange(101) - 50
    spread = (blurred.sum(1) * rows**2).sum() / blurred.sum()
    assert spread == pytest.approx((11**2 - 1) / 12 + (0.05 * 101) ** 2, rel=0.08)  # variances add up


def test_blur_means_the_same_at_every_size(bag: Image.Image) -> None:
    large = bag.resize((112, 112), Image.Resampling.BICUBIC)
    small = np.asarray(blur(bag, 0.08)).astype(float)
    reduced, plain = (
        np.asarray(each.resize((28, 28), Image.Resampling.BOX), float) for each in (blur(large, 0.08), large)
    )
    assert np.abs(small - reduced).mean() < 0.15 * np.abs(plain - small).mean() + 2


def test_noise_has_the_stated_spread_and_one_pattern_a_seed() -> None:
    even = np.full((200, 200, 3), 128, np.uint8)
    noisy, twice = (changed(add_noise, even, share).astype(float) - 128 for share in (0.08, 0.16))
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.02)
    assert abs(noisy.mean()) < 0.3
    assert np.array_equal(noisy[..., 0], noisy[..., 2]), "a grey image stays grey"
    assert np.corrcoef(noisy.ravel(), twice.ravel())[0, 1] > 0.999
    assert np.array_equal(changed(add_noise, even, 0.08, 1), changed(add_noise, even, 0.08, 1))
    assert not np.array_equal(changed(add_noise, even, 0.08, 1), changed(add_noise, even, 0.08, 2))


def test_contrast_rotation_and_inversion_by_hand() -> None:
    values = [[0, 100], [100, 200]]
    for share, expected in ((1.0, values), (0.5, [[50, 100], [100, 150]]), (0.0, [[100, 100], [100, 100]])):
        assert changed(shifts.change_contrast, values, share).tolist() == expected
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert np.array_equal(changed(shifts.rotate, image, 90), np.rot90(image))
    assert np.array_equal(changed(shifts.rotate, image, 0), image)
    framed = np.full((21, 21, 3), (200, 10, 60), np.uint8)
    framed[8:13, 8:13] = 0
    assert changed(shifts.rotate, framed, 45)[[0, -1], [0, -1]].tolist() == [[200, 10, 60]] * 2
    values = [[0, 63, 64, 127, 128, 255]]
    assert changed(shifts.invert, values, 0.0).tolist() == [[255, 192, 191, 128, 127, 0]]
    assert changed(shifts.invert, values, 0.25).tolist() == [[0, 63, 191, 128, 127, 0]]  # 0.25 · 255 = 63.75
    assert changed(shifts.invert, values, 1.01).tolist() == values


def test_many_images_have_noises_of_their_own_that_severity_only_scales() -> None:
    even = [np.full((30, 30), 128, np.uint8)] * 2
    first, second = shift_pictures(even, "noise", 1)
    assert not np.array_equal(first, second)
    stronger, _ = shift_pictures(even, "noise", 2)
    assert np.corrcoef(first.ravel(), stronger.ravel())[0, 1] > 0.99
    assert np.array_equal(shift_pictures(even[:1], "noise", 1)[0], first), "the number of images must not matter"
    assert not np.array_equal(shift_pictures(even, "noise", 1, seed=5)[0], first)
    assert shift_pictures([], "noise", 1) == []


def test_strengths_in_words() -> None:
    named = [("blur", 0), ("blur", 2), ("rotation", 3), ("inversion", 5)]
    words = ["unchanged", "blur 4 %", "rotated 30°", "inverted from 0 %"]
    assert [shifts.describe_strength(*each) for each in named] == words


@pytest.mark.parametrize(
    ("image", "kind", "severity", "message"),
    [
        (None, "fog", 1, "'fog' is unknown; expected one of blur, noise"),
        (None, "blur", 6, "severity is 6; expected a whole number from 0"),
        (None, "blur", 1.5, "severity is 1.5"),
        (None, "blur", True, "severity is True"),
        (Image.new("CMYK", (8, 8)), "blur", 0, "mode 'CMYK'; expected 'L' or 'RGB'"),
        (np.zeros((4, 4)), "blur", 1, "float64 of shape"),
        ("a.png", "blur", 1, "is a str; expected a PIL image"),
    ],
)
def test_what_is_refused(bag: Image.Image, image: Any, kind: str, severity: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        shift_picture(bag if image is None else image, kind, severity)
