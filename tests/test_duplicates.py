"""Copies of pictures are found, other pictures are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from gcpl_lab.data.duplicates import (
    MAX_DISTANCE,
    Duplicate,
    find_duplicates,
    hash_images,
    mirrored_hash,
    perceptual_hash,
)
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.errors import DataError


def picture(seed: int, size: int = 96) -> Image.Image:
    """A cloud of random low frequencies: as different from another as photographs are."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return small.resize((size, size), Image.Resampling.BICUBIC)


def distance(first: Image.Image, second: Image.Image) -> int:
    return int(np.bitwise_count(perceptual_hash(first) ^ perceptual_hash(second)).sum())


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def test_a_pure_wave_sets_the_bits_of_its_frequency() -> None:
    """cos(πk(x + ½)/32) is one coefficient of the transform: positive with the wave, negative with its inverse."""
    wave = np.cos(np.pi * 3 * (np.arange(32) + 0.5) / 32)
    up, down = (Image.fromarray(np.tile(np.uint8(128 + sign * 100 * wave), (32, 1))) for sign in (1, -1))
    bits = [np.unpackbits(perceptual_hash(image))[2] for image in (up, down)]  # (0, 3), the mean left out
    assert bits == [1, 0]
    assert perceptual_hash(up).shape == (32,)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
        lambda image: image.resize((300, 300), Image.Resampling.BICUBIC),
        lambda image: as_jpeg(image, 40),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: image.convert("L"),
    ],
    ids=["smaller", "larger", "jpeg", "darker", "grey"],
)
def test_changed_copies_are_near(change: object) -> None:
    for seed in range(8):
        assert distance(picture(seed), change(picture(seed))) <= MAX_DISTANCE


def test_other_pictures_are_far() -> None:
    hashes = np.stack([perceptual_hash(picture(seed)) for seed in range(30)])
    assert find_duplicates(hashes) == []
    assert len(find_duplicates(hashes, max_distance=255)) == 30 * 29 // 2


def test_bundled_pictures_are_told_apart_and_their_copies_found() -> None:
    images = load_fashion("test").images[::25]
    originals = [Image.open(path).convert("RGB") for path in images]
    copies = [as_jpeg(image.resize((112, 112), Image.Resampling.BICUBIC), 60) for image in originals]
    hashes = np.stack([perceptual_hash(image) for image in originals])
    assert find_duplicates(hashes) == []
    found = find_duplicates(hashes, np.stack([perceptual_hash(image) for image in copies]))
    assert {(pair.first, pair.second) for pair in found} == {(index, index) for index in range(len(images))}


def test_mirror_images_are_found_and_named() -> None:
    image = picture(1)
    mirror = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = mirrored_hash(perceptual_hash(image))
    assert np.bitwise_count(turned ^ perceptual_hash(mirror)).sum() <= 12
    hashes = np.stack([perceptual_hash(image), perceptual_hash(mirror)])
    (pair,) = find_duplicates(hashes)
    assert (pair.first, pair.second, pair.mirrored) == (0, 1, True)
    assert find_duplicates(hashes, mirrored=False) == []


def test_pairs_by_hand() -> None:
    """Hashes 0 and 1 differ in one bit, 2 in all 256 of both."""
    hashes = np.zeros((3, 32), np.uint8)
    hashes[1, 0], hashes[2] = 1, 255
    assert find_duplicates(hashes, mirrored=False) == [Duplicate(0, 1, 1, False)]
    assert find_duplicates(hashes[:1], hashes, max_distance=0, mirrored=False) == [Duplicate(0, 0, 0, False)]
    assert find_duplicates(hashes, max_distance=0, mirrored=False) == []


def test_more_pictures_than_one_block_of_rows() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (1100, 32), dtype=np.uint8)
    hashes[1050] = hashes[3]
    assert find_duplicates(hashes) == [Duplicate(3, 1050, 0, False)]


def test_what_cannot_be_read_is_reported_beside_the_hashes(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    seen: list[tuple[int, int]] = []
    hashes, failures = hash_images([tmp_path / "good.png", tmp_path / "bad.png"], lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    assert [index for index, _ in failures] == [1]
    assert "bad.png" in failures[0][1]
    assert np.array_equal(hashes[0], perceptual_hash(picture(0)))


def test_hashes_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"second hashes are int64 of shape \(2, 3\); expected uint8 \(pictures, 32\)"):
        find_duplicates(np.zeros((1, 32), np.uint8), np.zeros((2, 3), np.int64))
