"""The bundled photographs: whole, verified on load, and rebuilt to the same pictures."""

import gzip
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data import samples
from gcpl_lab.data.fashion import DEBIAN_FOLDER, FASHION_CLASSES, SUPPORT_PART, read_raw_fashion
from gcpl_lab.data.readers import read_class_folders, read_images
from gcpl_lab.data.samples import build_fashion, find_samples, load_fashion
from gcpl_lab.errors import DataError

SHIPPED = Path(__file__).parents[1] / "data_samples" / "fashion"


# ------------------------------------------------------------------------------------------- as shipped


@pytest.mark.parametrize(("split", "per_class"), [("support", 64), ("test", 50)])
def test_shipped_splits(split: str, per_class: int) -> None:
    found = load_fashion(split)
    assert found.class_names == FASHION_CLASSES
    assert np.bincount(found.labels).tolist() == [per_class] * 10
    assert found.labels.tolist() == sorted(found.labels.tolist())
    assert found.family_ids.tolist() == [0, 2, 0, 0, 0, 1, 0, 1, 3, 1]
    assert found.checksum == read_class_folders(SHIPPED / split).checksum
    assert {image.size for image in read_images(found.images[:20])} == {(28, 28)}
    for path, label in zip(found.images, found.labels, strict=True):
        assert path.parent.name == FASHION_CLASSES[label].replace(" ", "_")


def test_support_comes_from_the_part_that_pretraining_never_sees() -> None:
    indices = [int(path.stem.removeprefix("train_")) for path in load_fashion("support").images]
    assert all(index in SUPPORT_PART for index in indices)
    assert len(set(indices)) == 640
    assert all(path.name.startswith("test_") for path in load_fashion("test").images)


def test_shipped_folder_is_small_and_licensed() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 4_000_000
    assert "Copyright © 2017 Zalando SE" in (SHIPPED / "LICENSE").read_text(encoding="utf-8")
    readme = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for word in ("arxiv.org/abs/1708.07747", "| 9 | ankle boot | `ankle_boot` | footwear | 64 | 50 |", "640", "500"):
        assert word in readme


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="needs the published files (Debian: dataset-fashion-mnist)")
def test_shipped_pictures_are_the_published_ones(tmp_path: Path) -> None:
    raw = read_raw_fashion()
    for split, images, labels in (
        ("support", raw.train_images, raw.train_labels),
        ("test", raw.test_images, raw.test_labels),
    ):
        found = load_fashion(split)
        for path, label in zip(found.images, found.labels, strict=True):
            index = int(path.stem.split("_")[1])
            assert labels[index] == label
            with Image.open(path) as image:
                np.testing.assert_array_equal(np.asarray(image), images[index])
    rebuilt = build_fashion(DEBIAN_FOLDER, tmp_path / "fashion")
    names = {path.relative_to(rebuilt) for path in rebuilt.rglob("*")}
    assert names == {path.relative_to(SHIPPED) for path in SHIPPED.rglob("*")}
    assert (rebuilt / "README.md").read_text() == (SHIPPED / "README.md").read_text()


# ---------------------------------------------------------------------------------------- verification


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped set that is the one found."""
    shutil.copytree(SHIPPED, tmp_path / "fashion")
    monkeypatch.setenv("GCPL_LAB_SAMPLES", str(tmp_path))
    return tmp_path / "fashion"


def test_the_environment_variable_leads(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_samples("fashion") == copy
    monkeypatch.setenv("GCPL_LAB_SAMPLES", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere.*GCPL_LAB_SAMPLES"):
        load_fashion("support")
    monkeypatch.delenv("GCPL_LAB_SAMPLES")
    assert find_samples("fashion") == SHIPPED


def test_the_current_folder_comes_last(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GCPL_LAB_SAMPLES")
    monkeypatch.setattr(samples, "__file__", str(tmp_path / "installed" / "gcpl_lab" / "data" / "samples.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="'fashion'"):
        find_samples("fashion")
    (tmp_path / "work" / "data_samples").mkdir(parents=True)
    copy.rename(tmp_path / "work" / "data_samples" / "fashion")
    monkeypatch.chdir(tmp_path / "work")
    assert len(load_fashion("test")) == 500


def test_damaged_missing_and_extra_files_are_all_listed(copy: Path) -> None:
    files = sorted((copy / "support" / "bag").iterdir())
    files[0].write_bytes(b"x")
    files[1].rename(copy / "support" / "bag" / "new.png")
    (copy / "support" / "bag" / ".DS_Store").touch()  # file managers leave these everywhere
    with pytest.raises(DataError) as caught:
        load_fashion("support")
    message = str(caught.value)
    assert "3 files differ" in message
    for line in (f"damaged: bag/{files[0].name}", f"missing: bag/{files[1].name}", "extra: bag/new.png"):
        assert line in message
    assert len(load_fashion("test")) == 500  # the other split is whole


def test_a_missing_split_and_a_damaged_list(copy: Path) -> None:
    shutil.rmtree(copy / "test")
    with pytest.raises(DataError, match="500 files differ"):
        load_fashion("test")
    content = json.loads((copy / "checksums.json").read_text())
    for damaged in ("{", "[]", json.dumps(content | {"format": 2}), json.dumps({"format": 1})):
        (copy / "checksums.json").write_text(damaged)
        with pytest.raises(DataError, match=r"checksums\.json"):
            load_fashion("support")


def test_other_splits_are_refused() -> None:
    with pytest.raises(DataError, match="'train'"):
        load_fashion("train")


# -------------------------------------------------------------------------------------------- building


@pytest.fixture
def raw_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Published files in miniature: 400 training and 200 test pictures, whose support part is the second half."""
    monkeypatch.setattr(samples, "SUPPORT_PART", range(200, 400))
    rng = np.random.default_rng(0)
    folder = tmp_path / "raw"
    folder.mkdir()
    for part, count in (("train", 400), ("t10k", 200)):
        arrays = {
            "images-idx3-ubyte": rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            "labels-idx1-ubyte": (np.arange(count) % 10).astype(np.uint8),
        }
        for kind, values in arrays.items():
            header = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{part}-{kind}.gz").write_bytes(gzip.compress(header + values.tobytes(), 1))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_building_twice_gives_equal_bytes(raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "sets" / "fashion"
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


def test_a_failed_build_leaves_the_earlier_set(raw_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "sets" / "fashion"
    build_fashion(raw_folder, target, support_per_class=2, test_per_class=2)
    first = contents(target)
    with pytest.raises(DataError, match="test: 21 photographs of class 't-shirt'.*1 to 20"):
        build_fashion(raw_folder, target, support_per_class=2, test_per_class=21)
    with pytest.raises(DataError, match="support: 0 photographs"):
        build_fashion(raw_folder, target, support_per_class=0, test_per_class=2)
    assert contents(target) == first
    assert [path.name for path in target.parent.iterdir()] == ["fashion"]


def test_a_swap_that_fails_brings_the_earlier_set_back(
    raw_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "sets" / "fashion"
    build_fashion(raw_folder, target, support_per_class=2, test_per_class=2)
    first = contents(target)
    rename = Path.rename

    def fail_for_the_new_set(self: Path, to: Path) -> Path:
        if self.name == "built":
            raise OSError("disk full")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_set)
    with pytest.raises(OSError, match="disk full"):
        build_fashion(raw_folder, target, seed=5, support_per_class=2, test_per_class=2)
    assert contents(target) == first


def test_folders_of_others_are_not_replaced(raw_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").touch()
    with pytest.raises(DataError, match="photos: exists and is no sample set"):
        build_fashion(raw_folder, tmp_path / "photos", support_per_class=2, test_per_class=2)
    assert (tmp_path / "photos" / "mine.txt").exists()


@pytest.mark.parametrize("damage", ["absent", "no gzip", "cut gzip", "no idx", "short"])
def test_damaged_raw_files_are_named(raw_folder: Path, tmp_path: Path, damage: str) -> None:
    path = raw_folder / "t10k-labels-idx1-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(
            {
                "no gzip": b"hello",
                "cut gzip": path.read_bytes()[:30],
                "no idx": gzip.compress(b"hello there"),
                "short": gzip.compress(whole[:-5]),
            }[damage]
        )
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte"):
        build_fashion(raw_folder, tmp_path / "fashion", support_per_class=2, test_per_class=2)
    assert not (tmp_path / "fashion").exists()
