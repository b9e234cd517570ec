"""Copies of images are found, other images are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from gcpl_lab.data.duplicates import MAX_DISTANCE, Duplicate, find_duplicates, hash_images, perceptual_hash
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.errors import DataError


def cloud(seed: int) -> Image.Image:
    """Random low frequencies: as different from another as images are."""
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    return small.resize((96, 96), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


def hashes_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([perceptual_hash(image) for image in images])


def test_a_pure_wave_sets_the_bits_of_its_frequency() -> None:
    """cos(πk(x + ½)/32) is one coefficient of the transform: positive with the wave, negative with its inverse."""
    wave = np.cos(np.pi * 3 * (np.arange(32) + 0.5) / 32)
    up, down = (Image.fromarray(np.tile(np.uint8(128 + sign * 100 * wave), (32, 1))) for sign in (1, -1))
    assert [np.unpackbits(perceptual_hash(image))[2] for image in (up, down)] == [1, 0]  # (0, 3), the mean left out
    assert perceptual_hash(up).shape == (32,)


CHANGES = {
    "smaller": lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
    "larger": lambda image: image.resize((300, 300), Image.Resampling.BICUBIC),
    "jpeg": lambda image: as_jpeg(image, 40),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_near(change: str) -> None:
    originals = [cloud(seed) for seed in range(8)]
    differing = hashes_of([CHANGES[change](image) for image in originals]) ^ hashes_of(originals)
    assert np.bitwise_count(differing).sum(axis=1, dtype=int).max() <= MAX_DISTANCE


def test_other_images_are_far() -> None:
    hashes = hashes_of([cloud(seed) for seed in range(30)])
    assert find_duplicates(hashes) == []
    assert len(find_duplicates(hashes, max_distance=255)) == 30 * 29 // 2


def test_bundled_images_are_told_apart_and_their_copies_found() -> None:
    originals = [Image.open(path).convert("RGB") for path in load_fashion("test").images[::25]]
    copies = [as_jpeg(image.resize((112, 112), Image.Resampling.BICUBIC), 60) for image in originals]
    assert find_duplicates(hashes_of(originals)) == []
    found = find_duplicates(hashes_of(originals), hashes_of(copies))
    assert {(pair.first, pair.second) for pair in found} == {(index, index) for index in range(len(originals))}


def test_mirror_images_are_found_and_named() -> None:
    hashes = hashes_of([cloud(1), cloud(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    (pair,) = find_duplicates(hashes)
    assert (pair.first, pair.second, pair.mirrored) == (0, 1, True)
    assert pair.distance <= 12
    assert find_duplicates(hashes, mirrored=False) == []


def test_pairs_by_hand() -> None:
    """Hashes 0 and 1 differ in one bit, 2 in all 256 of both."""
    hashes = np.zeros((3, 32), np.uint8)
    hashes[1, 0], hashes[2] = 1, 255
    assert find_duplicates(hashes, mirrored=False) == [Duplicate(0, 1, 1, False)]
    assert find_duplicates(hashes[:1], hashes, max_distance=0, mirrored=False) == [Duplicate(0, 0, 0, False)]
    assert find_duplicates(hashes, max_distance=0, mirrored=False) == []


def test_more_images_than_one_block_of_rows() -> None:
    hashes = np.random.default_rng(0).integers(0, 256, (1100, 32), dtype=np.uint8)
    hashes[1050] = hashes[3]
    assert find_duplicates(hashes) == [Duplicate(3, 1050, 0, False)]


def test_what_cannot_be_read_is_reported_beside_the_hashes(tmp_path: Path) -> None:
    cloud(0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    seen: list[tuple[int, int]] = []
    hashes, failures = hash_images([tmp_path / "good.png", tmp_path / "bad.png"], lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    ((index, message),) = failures
    assert index == 1
    assert "bad.png" in message
    assert np.array_equal(hashes[0], perceptual_hash(cloud(0)))


def test_hashes_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"second hashes are int64 of shape \(2, 3\); expected uint8 \(images, 32\)"):
        find_duplicates(np.zeros((1, 32), np.uint8), np.zeros((2, 3), np.int64))
