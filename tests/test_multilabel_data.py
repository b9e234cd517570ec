import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.multilabel import (
    MultiLabelSet,
    head_medium_tail,
    read_longtail_list,
    read_metadata,
    split_validation,
    write_longtail_list,
)
from gcpl_lab.errors import DataError

COCO = Path(__file__).parents[2] / "shared" / "data" / "coco_small.zip"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for index in range(4):
        Image.new("L", (8, 8), index).save(tmp_path / f"pictures/{index}.png")
    (tmp_path / "labels.txt").write_text("traffic_light 0\ncat 1 \nteddy bear 2\n")
    (tmp_path / "train.txt").write_text("pictures/0.png 0 2 \npictures/1.png 1\npictures/2.png\n\npictures/3.png 2 0 1")
    (tmp_path / "captions.txt").write_text(
        "pictures/1.png a cat\npictures/0.png a light. A bear.\npictures/2.png\npictures/3.png all of them\n"
    )
    return tmp_path


def read(folder: Path, captions: str | None = "captions.txt", **changes: bool) -> MultiLabelSet:
    captions_file = folder / captions if captions else None
    return read_longtail_list(folder / "train.txt", folder / "labels.txt", folder, captions_file, **changes)


# ------------------------------------------------------------------------------ the published lists


def test_the_published_format_is_read(folder: Path) -> None:
    data = read(folder)
    assert data.class_names == ("traffic light", "cat", "teddy bear")
    assert data.targets.dtype == np.uint8
    np.testing.assert_array_equal(data.targets, [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    assert data.captions == ("a light. A bear.", "a cat", None, "all of them")
    np.testing.assert_array_equal(data.class_counts(), [2, 2, 2])
    assert data.origin(3) == f"{folder / 'train.txt'}, line 5"
    assert len(data) == 4
    assert data.name == "train"


def test_labels_may_stand_alone_and_captions_in_the_order_of_the_list(folder: Path) -> None:
    (folder / "labels.txt").write_text("boeing 737\ncat\nbear")
    (folder / "captions.txt").write_text("one\n\nthree\nfour\n")
    data = read(folder)
    assert data.class_names == ("boeing 737", "cat", "bear")
    assert data.captions == ("one", None, "three", "four")
    assert read(folder, captions=None).captions == (None,) * 4


def test_writing_and_reading_again_gives_the_same_set(folder: Path) -> None:
    data = read(folder)
    again = folder / "again"
    write_longtail_list(data, again / "list.txt", again / "labels.txt", folder, again / "captions.txt")
    back = read_longtail_list(again / "list.txt", again / "labels.txt", folder, again / "captions.txt")
    assert back.images == data.images
    assert back.captions == data.captions
    assert back.class_names == data.class_names
    assert back.checksum == data.checksum
    np.testing.assert_array_equal(back.targets, data.targets)


def test_writing_refuses_what_the_format_cannot_hold(folder: Path) -> None:
    data = read(folder)
    with pytest.raises(DataError, match="does not lie below"):
        write_longtail_list(data, folder / "out.txt", folder / "l.txt", folder / "elsewhere")
    blank = folder / "two words.png"
    Image.new("L", (8, 8)).save(blank)
    spoilt = MultiLabelSet("one", (blank,), np.ones((1, 1)), ("a",), (None,), "0")
    with pytest.raises(DataError, match="holds a blank"):
        write_longtail_list(spoilt, folder / "out.txt", folder / "l.txt", folder)
    assert not (folder / "out.txt").exists()


@pytest.mark.parametrize("value", ["3", "-1", "cat", "1.0"])
def test_a_wrong_label_id_is_named_with_its_line(folder: Path, value: str) -> None:
    (folder / "train.txt").write_text(f"pictures/0.png 0\npictures/1.png 1 {value}\n")
    with pytest.raises(DataError, match=rf"train.txt, line 2: label id is '{value}'; expected .* 0 to 2"):
        read(folder, captions=None)


def test_missing_pictures_are_all_reported_at_once(folder: Path) -> None:
    (folder / "train.txt").write_text("pictures/0.png 0\n" + "".join(f"gone/{n}.png 1\n" for n in range(25)))
    with pytest.raises(DataError, match="25 of 26 listed pictures are missing") as caught:
        read(folder, captions=None)
    message = str(caught.value)
    assert "gone/0.png" in message
    assert "line 2)" in message
    assert "gone/19.png" in message
    assert "gone/20.png" not in message
    assert "... and 5 more" in message


def test_duplicates_are_named_with_both_lines(folder: Path) -> None:
    (folder / "train.txt").write_text("pictures/0.png 0\npictures/1.png 1\npictures/0.png 2\n")
    with pytest.raises(DataError, match=r"pictures/0.png: .*line 1 and .*line 3"):
        read(folder, captions=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\ntwo\nthree\n", "has 3 lines and the list has 4 pictures"),
        ("one\ntwo\nthree\nfour\nfive\n", "has 5 lines and the list has 4 pictures"),
        ("pictures/0.png a\npictures/1.png b\nother.png c\npictures/3.png d", "line 3: picture 'other.png' is not in"),
        ("pictures/0.png a\npictures/0.png b\npictures/2.png c\npictures/3.png d", "line 2: .* a second time"),
    ],
)
def test_captions_that_do_not_fit_the_list_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / "captions.txt").write_text(text)
    with pytest.raises(DataError, match=rf"captions.txt.*{message}"):
        read(folder)


def test_an_empty_class_is_a_warning_or_an_error(folder: Path) -> None:
    (folder / "train.txt").write_text("pictures/0.png 0\n")
    data = read(folder, captions=None)
    assert data.warnings == ("train: 2 classes have no picture: cat, teddy bear",)
    with pytest.raises(DataError, match="2 classes have no picture: cat, teddy bear; add"):
        read(folder, captions=None, require_all_classes=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 0\ndog 2\n", "ids are 0, 2; expected each of 0 to 1 once"),
        ("cat 0\ndog 0\n", "expected each of 0 to 1 once"),
        ("cat 0\ncat 1\n", "expected every name once"),
        ("\n", "names no class"),
    ],
)
def test_labels_files_with_gaps_are_refused(folder: Path, text: str, message: str) -> None:
    (folder / "labels.txt").write_text(text)
    with pytest.raises(DataError, match=rf"labels.txt: .*{message}"):
        read(folder)


def test_files_that_are_absent_binary_or_empty_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="nothing.txt: no such file"):
        read(folder, captions="nothing.txt")
    (folder / "captions.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="no UTF-8 text"):
        read(folder)
    (folder / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no picture"):
        read(folder, captions=None)


def test_the_checksum_follows_labels_captions_and_bytes(folder: Path) -> None:
    checksums = {read(folder).checksum, read(folder, captions=None).checksum}
    Image.new("L", (8, 8), 200).save(folder / "pictures/2.png")
    checksums.add(read(folder).checksum)
    (folder / "train.txt").write_text((folder / "train.txt").read_text().replace("1.png 1", "1.png 0"))
    checksums.add(read(folder).checksum)
    assert len(checksums) == 4


# ------------------------------------------------------------------------------------------ the set


def test_subset_keeps_everything_in_order(folder: Path) -> None:
    data = read(folder)
    part = data.subset([3, 0])
    assert part.captions == ("all of them", "a light. A bear.")
    assert part.images == (data.images[3], data.images[0])
    np.testing.assert_array_equal(part.targets, data.targets[[3, 0]])
    assert part.origins == (data.origins[3], data.origins[0])
    assert part.checksum != data.checksum
    with pytest.raises(DataError, match="index 4 is outside"):
        data.subset([4])
    with pytest.raises(DataError, match="turn a mask into indices"):
        data.subset(np.array([True, False, True, True]))


def test_a_set_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(DataError, match="target of image 0, class 1 is 2; expected 0 or 1"):
        MultiLabelSet("x", (Path("a"),), np.array([[1, 2]]), ("a", "b"), (None,), "0")
    with pytest.raises(DataError, match=r"targets have shape \(1, 3\); expected \(1, 2\)"):
        MultiLabelSet("x", (Path("a"),), np.ones((1, 3)), ("a", "b"), (None,), "0")
    with pytest.raises(DataError, match="2 captions for 1 pictures"):
        MultiLabelSet("x", (Path("a"),), np.ones((1, 2)), ("a", "b"), (None, None), "0")


def test_head_medium_and_tail_meet_at_100_and_20() -> None:
    parts = head_medium_tail([100, 99, 20, 19, 0, 500])
    assert {name: list(ids) for name, ids in parts.items()} == {"head": [0, 5], "medium": [1, 2], "tail": [3, 4]}


# ------------------------------------------------------------------------------------ metadata files


def test_csv_and_jsonl_metadata_give_the_same(folder: Path) -> None:
    pictures = folder / "pictures"
    (pictures / "metadata.csv").write_text(
        'file_name,labels,captions\n0.png,cat;dog,"a cat, a dog | two animals"\n1.png,,\n2.png,cat,"two\nlines"\n'
    )
    rows = [
        {"file_name": "0.png", "labels": ["dog", "cat"], "captions": ["a cat, a dog", "two animals"]},
        {"file_name": "1.png", "labels": [], "captions": None},
        {"file_name": "2.png", "labels": ["cat"], "captions": "two lines"},
    ]
    (pictures / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for suffix in ("csv", "jsonl"):
        data = read_metadata(pictures / f"metadata.{suffix}")
        assert data.class_names == ("cat", "dog")
        np.testing.assert_array_equal(data.targets, [[1, 1], [0, 0], [1, 0]])
        assert data.captions == ("a cat, a dog | two animals", None, "two lines")
        assert data.name == "pictures"


def test_ids_need_class_names(folder: Path) -> None:
    file = folder / "pictures/metadata.jsonl"
    file.write_text('{"file_name": "0.png", "labels": [1]}\n{"file_name": "1.png", "labels": [0]}\n')
    with pytest.raises(DataError, match="pass class_names"):
        read_metadata(file)
    np.testing.assert_array_equal(read_metadata(file, class_names=("a", "b")).targets, [[0, 1], [1, 0]])
    with pytest.raises(DataError, match="line 1: label id is '1'; expected a whole number from 0 to 0"):
        read_metadata(file, class_names=("a",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,labels\n0.png,cat\n", "line 2: has no 'file_name'; the columns are name, labels"),
        ("file_name,labels\n0.png,cat\n1.png,cat,more\n", "line 3: has 3 columns; expected 2"),
        ("file_name,labels\n0.png,lion\n", "line 2: label 'lion' is no known class; expected one of cat, dog"),
        ("file_name,labels\n0.png,cat\n0.png,dog\n", r"0.png: .*line 2 and .*line 3"),
        ("file_name,labels\nnone.png,cat\n", r"none.png \(.*line 2\)"),
        ("file_name,labels\n", "holds no row"),
    ],
)
def test_bad_rows_are_named(folder: Path, text: str, message: str) -> None:
    file = folder / "pictures/metadata.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_metadata(file, class_names=("cat", "dog"))


def test_bad_json_is_named(folder: Path) -> None:
    file = folder / "pictures/metadata.jsonl"
    file.write_text('{"file_name": "0.png", "labels": ["a"]}\n{broken\n')
    with pytest.raises(DataError, match="line 2: is no JSON"):
        read_metadata(file)
    file.write_text('{"file_name": "0.png", "labels": 3}\n')
    with pytest.raises(DataError, match="line 1: labels are 3"):
        read_metadata(file)


@pytest.mark.skipif(not COCO.is_file(), reason="../shared/data/coco_small.zip is not there")
def test_coco_small_loads_with_its_own_column_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(COCO) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "coco_small"
    columns = {"image_folder": folder / "images", "file_column": "filename", "caption_column": "caption"}
    whole = read_metadata(folder / "labels.csv", **columns)
    assert whole.targets.shape == (601, 80)
    assert sum(caption is not None for caption in whole.captions) == 477
    assert whole.class_counts()[whole.class_names.index("person")] == 311
    parts = [read_metadata(folder / "labels.csv", rows={"split": split}, **columns) for split in ("train", "test")]
    assert sum(len(part) for part in parts) == 601
    assert parts[0].class_names == parts[1].class_names == whole.class_names
    with pytest.raises(DataError, match="no row has"):
        read_metadata(folder / "labels.csv", rows={"split": "nothing"}, **columns)


# ------------------------------------------------------------------------------------------- splits


def long_tail(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((300, 8)) < (0.7, 0.4, 0.2, 0.1, 0.03, 0.02, 0.01, 0.005)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_shares_and_rare_classes(seed: int) -> None:
    targets = long_tail(seed)
    train, validation = split_validation(targets, 0.2, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(300))
    assert abs(len(validation) - 60) <= 6
    counts, there = targets.sum(axis=0, dtype=int), targets[validation].sum(axis=0, dtype=int)
    assert (np.abs(there - 0.2 * counts) <= 2).all()
    for label in np.flatnonzero(counts >= 2):
        assert 0 < there[label] < counts[label]
    for label in np.flatnonzero(counts == 1):
        assert there[label] == 0, "a class with one image trains"


def test_split_follows_its_seed() -> None:
    targets = long_tail(0)
    first, again, other = (split_validation(targets, 0.2, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert list(first) != list(other)


def test_split_of_bound_and_unlabelled_images() -> None:
    # Two images hold all of two classes; the rest holds nothing.
    targets = np.zeros((12, 2), np.uint8)
    targets[:2] = 1
    train, validation = split_validation(targets, 0.25)
    assert targets[train].sum(axis=0).tolist() == targets[validation].sum(axis=0).tolist() == [1, 1]
    assert 2 <= len(validation) <= 4


def test_split_refuses_a_wrong_share() -> None:
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(DataError, match="validation share"):
            split_validation(long_tail(0), share)
    with pytest.raises(DataError, match="1 images cannot be parted"):
        split_validation(np.ones((1, 1)), 0.5)
