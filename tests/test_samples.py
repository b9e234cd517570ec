"""The bundled sets as they are shipped: whole, verified when they are loaded, and parted without a leak."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data import samples
from gcpl_lab.data.multilabel import head_medium_tail
from gcpl_lab.data.readers import read_class_folders
from gcpl_lab.data.samples import FASHION_CLASSES, find_samples, load_fashion, load_wardrobe
from gcpl_lab.errors import DataError
from tools.raw_fashion import SUPPORT_PART
from tools.samples import few_shot_images
from tools.wardrobe import TAIL_ORDER, caption_quality, train_class_counts

SHIPPED = Path(__file__).parents[1] / "data_samples"


@pytest.mark.parametrize(("split", "per_class"), [("support", 64), ("test", 50)])
def test_shipped_few_shot_splits(split: str, per_class: int) -> None:
    found = load_fashion(split)
    assert found.class_names == FASHION_CLASSES
    assert found.labels.tolist() == np.repeat(np.arange(10), per_class).tolist()
    assert found.family_ids.tolist() == [0, 2, 0, 0, 0, 1, 0, 1, 3, 1]
    assert found.checksum == read_class_folders(SHIPPED / "fashion" / split).checksum
    assert Image.open(found.images[0]).size == (28, 28)
    for path, label in zip(found.images, found.labels, strict=True):
        assert path.parent.name == FASHION_CLASSES[label].replace(" ", "_")
        assert path.name.startswith("train_" if split == "support" else "test_")


def test_the_shipped_tail_is_long() -> None:
    train, test = load_wardrobe("train"), load_wardrobe("test")
    counts = train.class_counts()
    assert train.class_names == test.class_names == FASHION_CLASSES
    assert all(len(part) >= 3 for part in head_medium_tail(counts).values())
    assert counts.min() >= 8
    assert test.class_counts().min() >= 60
    np.testing.assert_array_equal(counts, train_class_counts())
    assert (np.diff(counts[[FASHION_CLASSES.index(name) for name in TAIL_ORDER]]) < 0).all()
    with Image.open(train.images[0]) as image:
        assert (image.size, image.mode) == ((64, 64), "L")


def test_no_image_is_used_twice_and_none_of_the_pretraining_part() -> None:
    for part, length in (("train", len(load_wardrobe("train"))), ("test", len(load_wardrobe("test")))):
        lines = (SHIPPED / f"wardrobe_lt/{part}_sources.txt").read_text(encoding="utf-8").splitlines()
        scenes = [[int(value) for value in line.split()[1:]] for line in lines]
        assert len(scenes) == length
        assert {len(scene) for scene in scenes} == {2, 3, 4, 5}
        used = [index for scene in scenes for index in scene] + list(few_shot_images(part))
        assert len(used) == len(set(used))
        assert part == "test" or set(used) <= set(SUPPORT_PART)


def test_captions_name_most_and_are_sometimes_wrong() -> None:
    train = load_wardrobe("train")
    assert all(train.captions)
    # Shares of the items that are named, and of captions that name a wrong one.
    quality = caption_quality(train.targets, train.captions, train.class_names)
    assert quality == (pytest.approx(0.8, abs=0.1), pytest.approx(0.1, abs=0.03))
    assert len(set(train.captions)) > 0.8 * len(train)
    assert set(load_wardrobe("test").captions) == {None}


def test_folders_are_small_and_licensed() -> None:
    for name, size in (("fashion", 4_000_000), ("wardrobe_lt", 3_000_000)):
        assert sum(path.stat().st_size for path in (SHIPPED / name).rglob("*") if path.is_file()) < size
        assert "Copyright © 2017 Zalando SE" in (SHIPPED / name / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped few-shot set that is the one found."""
    shutil.copytree(SHIPPED / "fashion", tmp_path / "fashion")
    monkeypatch.setenv("GCPL_LAB_SAMPLES", str(tmp_path))
    return tmp_path / "fashion"


def test_where_sets_are_looked_for(copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment variable leads, the clone comes next, the current folder last."""
    assert find_samples("fashion") == copy
    monkeypatch.setenv("GCPL_LAB_SAMPLES", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere.*GCPL_LAB_SAMPLES"):
        load_fashion("support")
    monkeypatch.delenv("GCPL_LAB_SAMPLES")
    assert find_samples("fashion") == SHIPPED / "fashion"
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
    with pytest.raises(DataError, match="3 files differ") as caught:
        load_fashion("support")
    for line in (f"damaged: bag/{files[0].name}", f"missing: bag/{files[1].name}", "extra: bag/new.png"):
        assert line in str(caught.value)
    assert len(load_fashion("test")) == 500  # the other split is whole
    shutil.rmtree(copy / "test")
    with pytest.raises(DataError, match="500 files differ"):
        load_fashion("test")
    scenes = Path(shutil.copytree(SHIPPED / "wardrobe_lt", copy.parent / "wardrobe_lt"))
    (scenes / "images/train/0003.png").write_bytes(b"no image")
    (scenes / "images/test/0007.png").unlink()
    with pytest.raises(DataError, match=r"2 files differ.*\n  missing: .*test/0007.png\n  damaged: .*train/0003.png"):
        load_wardrobe("test", scenes)


def test_damaged_lists_of_checksums_and_other_splits_are_refused(copy: Path) -> None:
    content = json.loads((copy / "checksums.json").read_text())
    for damaged in ("{", "[]", json.dumps(content | {"format": 2}), json.dumps({"format": 1})):
        (copy / "checksums.json").write_text(damaged)
        with pytest.raises(DataError, match=r"checksums\.json"):
            load_fashion("support")
        with pytest.raises(DataError, match=r"checksums\.json"):
            load_wardrobe("train", copy)
    with pytest.raises(DataError, match="split is 'train'"):
        load_fashion("train")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="split is 'val'"):
        load_wardrobe("val")  # type: ignore[arg-type]
