import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.fashion import DEBIAN_FOLDER, FASHION_CLASSES, SUPPORT_PART
from gcpl_lab.data.multilabel import head_medium_tail, read_longtail_list
from gcpl_lab.data.samples import find_samples
from gcpl_lab.data.wardrobe import (
    TAIL_ORDER,
    build_wardrobe,
    caption_quality,
    draw_tail_order,
    load_wardrobe,
    train_class_counts,
)
from gcpl_lab.errors import DataError
from gcpl_lab.storage import read_json

FOLDER = find_samples("wardrobe_lt")


def sources(split: str) -> list[list[int]]:
    lines = (FOLDER / f"{split}_sources.txt").read_text(encoding="utf-8").splitlines()
    return [[int(value) for value in line.split()[1:]] for line in lines]


def test_the_tail_is_long() -> None:
    train, test = load_wardrobe("train"), load_wardrobe("test")
    assert 500 <= len(train) <= 900
    assert len(test) >= 500
    counts = train.class_counts()
    assert [len(part) >= 3 for part in head_medium_tail(counts).values()] == [True] * 3
    assert counts.min() >= 8
    assert test.class_counts().min() >= 60
    np.testing.assert_array_equal(counts, train_class_counts())
    ordered = counts[[FASHION_CLASSES.index(name) for name in TAIL_ORDER]]
    assert (np.diff(ordered) < 0).all()
    assert train.class_names == test.class_names == FASHION_CLASSES


def test_another_tail_is_drawn_for_each_number() -> None:
    orders = [draw_tail_order(number) for number in range(5)]
    assert len(set(orders)) == 5
    assert all(sorted(order) == sorted(TAIL_ORDER) for order in orders)
    assert draw_tail_order(3) == orders[3]


def test_scenes_hold_two_to_five_items_and_no_photograph_twice() -> None:
    for split, length in (("train", len(load_wardrobe("train"))), ("test", len(load_wardrobe("test")))):
        scenes = sources(split)
        assert len(scenes) == length
        assert {len(scene) for scene in scenes} == {2, 3, 4, 5}
        every = [index for scene in scenes for index in scene]
        assert len(every) == len(set(every))


def test_photographs_come_from_their_parts_and_not_from_the_few_shot_set() -> None:
    few_shot = read_json(find_samples("fashion") / "checksums.json")["files"]
    for split, prefix in (("train", "train_"), ("test", "test_")):
        every = {index for scene in sources(split) for index in scene}
        taken = {int(Path(name).stem.split("_")[1]) for name in few_shot if Path(name).name.startswith(prefix)}
        assert taken
        assert not every & taken
        if split == "train":
            assert every <= set(SUPPORT_PART)


def test_captions_name_most_and_are_sometimes_wrong() -> None:
    train = load_wardrobe("train")
    assert all(train.captions)
    named, wrong = caption_quality(train.targets, train.captions, train.class_names)
    assert 0.7 < named < 0.9
    assert 0.07 < wrong < 0.13
    assert len(set(train.captions)) > 0.8 * len(train)
    assert set(load_wardrobe("test").captions) == {None}


def test_caption_quality_tells_shirt_from_t_shirt() -> None:
    targets = np.array([[1, 0], [1, 1]])
    named, wrong = caption_quality(targets, ["a t-shirt", "a shirt, a t-shirt and more"], ["t-shirt", "shirt"])
    assert (named, wrong) == (1.0, 0.0)
    assert caption_quality(targets, ["a shirt", None], ["t-shirt", "shirt"]) == (0.0, 0.5)


def test_pictures_are_small_grey_and_within_the_limit() -> None:
    train = load_wardrobe("train")
    for path in train.images[:20]:
        with Image.open(path) as picture:
            assert picture.size == (64, 64)
            assert picture.mode == "L"
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 3_000_000
    assert (FOLDER / "LICENSE").is_file()
    for name, count in zip(train.class_names, train.class_counts(), strict=True):
        assert f"| {name} |" in (FOLDER / "README.md").read_text(encoding="utf-8")
        assert f"| {count} |" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_it_is_read_by_the_reader_of_the_published_lists() -> None:
    data = read_longtail_list(
        FOLDER / "train.txt", FOLDER / "labels.txt", FOLDER, FOLDER / "train_captions.txt", require_all_classes=True
    )
    assert data.checksum == load_wardrobe("train").checksum
    assert not data.warnings


def test_damage_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "wardrobe_lt"
    shutil.copytree(FOLDER, copy)
    (copy / "images/train/0003.png").write_bytes(b"no picture")
    (copy / "images/test/0007.png").unlink()
    with pytest.raises(DataError, match="2 files differ") as caught:
        load_wardrobe("test", copy)
    assert "damaged: images/train/0003.png" in str(caught.value)
    assert "missing: images/test/0007.png" in str(caught.value)
    (copy / "checksums.json").write_text('{"format": 7, "files": {}}')
    with pytest.raises(DataError, match="has format 7"):
        load_wardrobe("train", copy)
    (copy / "checksums.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        load_wardrobe("train", copy)
    with pytest.raises(DataError, match="split is 'val'"):
        load_wardrobe("val")  # type: ignore[arg-type]


def test_building_refuses_a_foreign_folder_and_a_wrong_order(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(DataError, match="is no sample set"):
        build_wardrobe(DEBIAN_FOLDER, tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"
    with pytest.raises(DataError, match="tail_order is"):
        build_wardrobe(DEBIAN_FOLDER, tmp_path / "other", tail_order=("bag",))


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    built = build_wardrobe(DEBIAN_FOLDER, tmp_path / "again")
    files = sorted(path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(built) for path in built.rglob("*") if path.is_file())
    assert all((built / name).read_bytes() == (FOLDER / name).read_bytes() for name in files)
    assert not [path for path in tmp_path.iterdir() if path.name != "again"]


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_another_order_and_seed_draw_another_tail(tmp_path: Path) -> None:
    order = tuple(reversed(TAIL_ORDER))
    built = build_wardrobe(DEBIAN_FOLDER, tmp_path / "other", seed=1, tail_order=order)
    data = load_wardrobe("train", built)
    np.testing.assert_array_equal(data.class_counts(), train_class_counts(order))
    assert data.checksum != load_wardrobe("train").checksum
