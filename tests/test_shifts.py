from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.samples import load_fashion
from gcpl_lab.data.shifts import (
    SEVERITIES,
    SHIFTS,
    add_noise,
    blur,
    change_contrast,
    describe_strength,
    invert,
    rotate,
    shift_picture,
    shift_pictures,
)
from gcpl_lab.errors import DataError


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """A bag: something is in its middle, and it is neither symmetric nor black and white."""
    bags = load_fashion("test")
    with Image.open(bags.images[int(np.flatnonzero(bags.labels == 8)[0])]) as opened:
        return opened.convert("L")


@pytest.mark.parametrize("kind", SHIFTS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_kind_size_and_mode_stay(photograph, kind, severity):
    colour = photograph.convert("RGB")
    before = np.asarray(photograph).copy()
    for picture in (photograph, colour):
        found = shift_picture(picture, kind, severity)
        assert isinstance(found, Image.Image)
        assert (found.mode, found.size) == (picture.mode, picture.size)
    grey = np.asarray(photograph)
    for array in (grey, grey[:, :, None], np.asarray(colour)):
        changed = shift_picture(array, kind, severity)
        assert (changed.shape, changed.dtype) == (array.shape, np.uint8)
        assert changed is not array
        assert changed.flags.writeable
    # An array and a picture, and a grey and a coloured picture, tell the same.
    assert np.array_equal(shift_picture(grey, kind, severity), np.asarray(shift_picture(photograph, kind, severity)))
    assert np.array_equal(
        np.asarray(shift_picture(colour, kind, severity))[..., 1], shift_picture(grey, kind, severity)
    )
    assert np.array_equal(np.asarray(photograph), before), "the picture that was given was changed"


@pytest.mark.parametrize("kind", SHIFTS)
def test_severity_0_changes_nothing_and_every_further_one_changes_more(photograph, kind):
    values = np.asarray(photograph).astype(float)
    assert np.array_equal(np.asarray(shift_picture(photograph, kind, 0)), values)
    distances = [np.abs(np.asarray(shift_picture(photograph, kind, s)) - values).mean() for s in SEVERITIES]
    assert distances[0] == 0
    assert all(later > earlier for earlier, later in pairwise(distances)), distances


def test_blur_of_a_point_has_the_stated_width_and_keeps_the_light():
    picture = np.zeros((101, 101), np.uint8)
    picture[50, 50] = 255
    # Of an 8-bit point little is left to measure, so a block is blurred: variances add up.
    picture[45:56, 45:56] = 255
    blurred = blur(picture, 0.05).astype(float)
    assert blurred.sum() == pytest.approx(picture.sum(dtype=float), rel=0.02)
    rows = np.arange(101) - 50
    spread = (blurred.sum(1) * rows**2).sum() / blurred.sum()
    assert spread == pytest.approx((11**2 - 1) / 12 + (0.05 * 101) ** 2, rel=0.08)


def test_blur_means_the_same_at_every_size(photograph):
    large = photograph.resize((112, 112), Image.Resampling.BICUBIC)
    small = np.asarray(blur(photograph, 0.08)).astype(float)
    reduced = np.asarray(blur(large, 0.08).resize((28, 28), Image.Resampling.BOX)).astype(float)
    plain = np.asarray(large.resize((28, 28), Image.Resampling.BOX)).astype(float)
    assert np.abs(small - reduced).mean() < 0.15 * np.abs(plain - small).mean() + 2


def test_noise_has_the_stated_spread_and_one_pattern_a_seed():
    even = np.full((200, 200, 3), 128, np.uint8)
    noisy = add_noise(even, 0.08).astype(float) - 128
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.02)
    assert abs(noisy.mean()) < 0.3
    assert np.array_equal(noisy[..., 0], noisy[..., 2]), "a grey picture stays grey"
    twice = add_noise(even, 0.16).astype(float) - 128
    assert np.corrcoef(noisy.ravel(), twice.ravel())[0, 1] > 0.999
    assert np.array_equal(add_noise(even, 0.08, seed=1), add_noise(even, 0.08, seed=1))
    assert not np.array_equal(add_noise(even, 0.08, seed=1), add_noise(even, 0.08, seed=2))


def test_contrast_by_hand():
    picture = np.array([[0, 100], [100, 200]], np.uint8)
    assert change_contrast(picture, 1.0).tolist() == picture.tolist()
    assert change_contrast(picture, 0.5).tolist() == [[50, 100], [100, 150]]
    assert change_contrast(picture, 0.0).tolist() == [[100, 100], [100, 100]]


def test_rotation_by_hand_and_the_corners_colour():
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert np.array_equal(rotate(picture, 90), np.rot90(picture))
    assert np.array_equal(rotate(picture, 0), picture)
    framed = np.full((21, 21, 3), (200, 10, 60), np.uint8)
    framed[8:13, 8:13] = 0
    turned = rotate(framed, 45)
    assert turned[0, 0].tolist() == turned[-1, -1].tolist() == [200, 10, 60]


def test_inversion_by_hand():
    picture = np.array([[0, 63, 64, 127, 128, 255]], np.uint8)
    assert invert(picture, 0.0).tolist() == [[255, 192, 191, 128, 127, 0]]
    assert invert(picture, 0.25).tolist() == [[0, 63, 191, 128, 127, 0]]  # 0.25 · 255 = 63.75
    assert invert(picture, 1.01).tolist() == picture.tolist()
    assert np.array_equal(invert(invert(picture, 0), 0), picture)


def test_many_pictures_have_noises_of_their_own_that_severity_only_scales(photograph):
    even = [np.full((30, 30), 128, np.uint8)] * 2
    first, second = shift_pictures(even, "noise", 1)
    assert not np.array_equal(first, second)
    stronger, _ = shift_pictures(even, "noise", 2)
    assert np.corrcoef(first.ravel(), stronger.ravel())[0, 1] > 0.99
    assert np.array_equal(shift_pictures(even[:1], "noise", 1)[0], first), "the number of pictures must not matter"
    assert not np.array_equal(shift_pictures(even, "noise", 1, seed=5)[0], first)
    assert shift_pictures([], "noise", 1) == []


def test_strengths_in_words():
    assert describe_strength("blur", 0) == "unchanged"
    assert describe_strength("blur", 2) == "blur 4 %"
    assert describe_strength("rotation", 3) == "rotated 30°"
    assert describe_strength("inversion", 5) == "inverted from 0 %"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: shift_picture(p, "fog", 1), "'fog' is unknown; expected one of blur, noise"),
        (lambda p: shift_picture(p, "blur", 6), "severity is 6; expected a whole number from 0"),
        (lambda p: shift_picture(p, "blur", 1.5), "severity is 1.5"),
        (lambda p: shift_picture(p, "blur", True), "severity is True"),
        (lambda p: shift_picture(p.convert("CMYK"), "blur", 0), "mode 'CMYK'; expected 'L' or 'RGB'"),
        (lambda p: shift_picture(np.zeros((4, 4)), "blur", 1), "float64 of shape"),
        (lambda p: shift_picture("a.png", "blur", 1), "is a str; expected a PIL picture"),
        (lambda p: blur(p, -1), "share of a blur is -1; expected 0 or more"),
        (lambda p: change_contrast(p, 1.5), "share of contrast is 1.5; expected 0 to 1"),
        (lambda p: add_noise(p, float("nan")), "share of noise is nan"),
    ],
)
def test_what_is_refused(photograph, call, message):
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        call(photograph)
