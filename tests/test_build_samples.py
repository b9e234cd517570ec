"""How the bundled sets are made: the published files are read, and building again gives the same bytes."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from gcpl_lab.data.samples import find_samples, load_fashion, load_wardrobe
from gcpl_lab.errors import DataError
from tools import samples
from tools.raw_fashion import DEBIAN_FOLDER, read_raw_fashion
from tools.samples import build_fashion, bundled_images, few_shot_images
from tools.wardrobe import TAIL_ORDER, build_wardrobe, caption_quality, draw_tail_order, train_class_counts

needs_published_files = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="needs the published files (Debian: dataset-fashion-mnist)"
)


def as_idx(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def raw_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Published files in miniature: 400 training and 200 test images, whose support part is the second half."""
    monkeypatch.setattr(samples, "SUPPORT_PART", range(200, 400))
    rng = np.random.default_rng(0)
    folder = tmp_path / "raw"
    folder.mkdir()
    for part, count in (("train", 400), ("t10k", 200)):
        images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)
        for kind, values in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            (folder / f"{part}-{kind}.gz").write_bytes(gzip.compress(as_idx(values), 1))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file. Install the Debian package"),
        (b"no gzip", "is no readable gzip file"),
        (gzip.compress(as_idx(np.zeros((200, 28), np.uint8)))[:30], "is no readable gzip file"),
        (gzip.compress(b"\0\0\x0d\x01" + bytes(20)), "is no IDX file of unsigned bytes"),
        (gzip.compress(b"\0\0\x08\x03" + bytes(3)), "ends after 7 bytes, inside its header of 16"),
        (gzip.compress(b"\0\0"), "is no IDX file"),
        (gzip.compress(as_idx(np.zeros((2, 28, 28), np.uint8))[:-1]), "holds 1567 bytes where its header"),
    ],
)
def test_damaged_raw_files_are_named(raw_folder: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = raw_folder / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"t10k-labels-idx1-ubyte\.gz: {message}"):
        build_fashion(raw_folder, tmp_path / "fashion", support_per_class=2, test_per_class=2)
    assert not (tmp_path / "fashion").exists()


def test_building_twice_gives_equal_bytes(raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, raw = tmp_path / "sets" / "fashion", read_raw_fashion(raw_folder)
    written = np.random.default_rng(0).integers(0, 256, (400, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(raw.train_images, written)
    assert raw.test_labels.tolist() == [label % 10 for label in range(200)]
    assert build_fashion(raw_folder, target, 1, support_per_class=3, test_per_class=2) == target
    first = contents(target)
    assert len(first) == 30 + 20 + 3
    build_fashion(raw_folder, target, 1, support_per_class=3, test_per_class=2)
    assert contents(target) == first
    assert [path.name for path in target.parent.iterdir()] == ["fashion"]  # nothing temporary is left
    monkeypatch.setenv("GCPL_LAB_SAMPLES", str(target.parent))
    support = load_fashion("support")
    assert np.bincount(support.labels).tolist() == [3] * 10
    assert all(int(path.stem[-5:]) >= 200 for path in support.images)
    build_fashion(raw_folder, target, 2, support_per_class=3, test_per_class=2)
    assert contents(target).keys() != first.keys()


def test_a_failed_build_leaves_the_earlier_set(
    raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "sets" / "fashion"
    build_fashion(raw_folder, target, support_per_class=2, test_per_class=2)
    first, rename = contents(target), Path.rename
    for support, test, message in ((2, 21, "test: 21 images of class 't-shirt'.*1 to 20"), (0, 2, "support: 0 images")):
        with pytest.raises(DataError, match=message):
            build_fashion(raw_folder, target, support_per_class=support, test_per_class=test)

    def fail_for_the_new_set(self: Path, to: Path) -> Path:
        if self.name == "built":
            raise OSError("disk full")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_set)
    with pytest.raises(OSError, match="disk full"):
        build_fashion(raw_folder, target, seed=5, support_per_class=2, test_per_class=2)
    assert contents(target) == first
    assert [path.name for path in target.parent.iterdir()] == ["fashion"]


def test_folders_of_others_and_wrong_orders_are_refused(raw_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    for build in (build_fashion, build_wardrobe):
        with pytest.raises(DataError, match="mine: exists and is no sample set"):
            build(raw_folder, tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"
    with pytest.raises(DataError, match="tail_order is"):
        build_wardrobe(raw_folder, tmp_path / "other", tail_order=("bag",))


@needs_published_files
@pytest.mark.parametrize(("name", "build"), [("fashion", build_fashion), ("wardrobe_lt", build_wardrobe)])
def test_the_shipped_sets_are_built_again_to_the_byte(name: str, build, tmp_path: Path) -> None:
    assert contents(build(DEBIAN_FOLDER, tmp_path / "again")) == contents(find_samples(name))
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.slow
@needs_published_files
def test_another_order_and_seed_draw_another_tail(tmp_path: Path) -> None:
    order = tuple(reversed(TAIL_ORDER))
    data = load_wardrobe("train", build_wardrobe(DEBIAN_FOLDER, tmp_path / "other", seed=1, tail_order=order))
    np.testing.assert_array_equal(data.class_counts(), train_class_counts(order))
    assert data.checksum != load_wardrobe("train").checksum


def test_another_tail_is_drawn_for_each_number() -> None:
    orders = [draw_tail_order(number) for number in range(5)]
    assert len(set(orders)) == 5
    assert all(sorted(order) == sorted(TAIL_ORDER) for order in orders)
    assert draw_tail_order(3) == orders[3]


def test_caption_quality_tells_shirt_from_t_shirt() -> None:
    targets = np.array([[1, 0], [1, 1]])
    named, wrong = caption_quality(targets, ["a t-shirt", "a shirt, a t-shirt and more"], ["t-shirt", "shirt"])
    assert (named, wrong) == (1.0, 0.0)
    assert caption_quality(targets, ["a shirt", None], ["t-shirt", "shirt"]) == (0.0, 0.5)


def test_bundled_images_are_those_of_folders_and_scenes() -> None:
    test, train = bundled_images("test"), bundled_images("train")
    assert few_shot_images("test") < test
    assert {6278, 1212, 8190} <= test <= set(range(10_000))  # the three are of the first test scenes
    assert {50751} <= train <= set(range(50_000, 60_000))
