"""Sets with several labels from the published lists and from metadata files, and what is wrong with a file."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.lists import read_longtail_list, read_metadata
from gcpl_lab.data.sets import MultiLabelSet
from gcpl_lab.errors import DataError

COCO = Path(__file__).parents[2] / "shared" / "data" / "coco_small.zip"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.new("L", (8, 8), index).save(tmp_path / f"images/{index}.png")
    (tmp_path / "labels.txt").write_text("traffic_light 0\ncat 1 \nteddy bear 2\n")
    (tmp_path / "train.txt").write_text("images/0.png 0 2 \nimages/1.png 1\nimages/2.png\n\nimages/3.png 2 0 1")
    (tmp_path / "captions.txt").write_text(
        "images/1.png a cat\nimages/0.png a light. A bear.\nimages/2.png\nimages/3.png all of them\n"
    )
    return tmp_path


def read(folder: Path, captions: str | None = "captions.txt") -> MultiLabelSet:
    captions_file = folder / captions if captions else None
    return read_longtail_list(folder / "train.txt", folder / "labels.txt", folder, captions_file)


def test_the_published_format_is_read(folder: Path) -> None:
    data = read(folder)
    assert (data.name, len(data)) == ("train", 4)
    assert data.class_names == ("traffic light", "cat", "teddy bear")
    assert data.targets.dtype == np.uint8
    np.testing.assert_array_equal(data.targets, [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
    assert data.captions == ("a light. A bear.", "a cat", None, "all of them")
    assert data.origins[3] == f"{folder / 'train.txt'}, line 5"


def test_labels_may_stand_alone_and_captions_in_the_order_of_the_list(folder: Path) -> None:
    (folder / "labels.txt").write_text("boeing 737\ncat\nbear")
    (folder / "captions.txt").write_text("one\n\nthree\nfour\n")
    data = read(folder)
    assert data.class_names == ("boeing 737", "cat", "bear")
    assert data.captions == ("one", None, "three", "four")
    assert read(folder, captions=None).captions == (None,) * 4


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        *(
            ("train.txt", f"images/0.png 0\nimages/1.png 1 {value}\n", f"train.txt, line 2: label id is '{value}'")
            for value in ("3", "-1", "cat", "1.0")
        ),
        ("train.txt", "images/0.png 0\nimages/1.png 7\n", "expected a whole number from 0 to 2"),
        ("train.txt", "images/0.png 0\nimages/1.png 1\nimages/0.png 2\n", r"images/0.png: .*line 1 and .*line 3"),
        ("train.txt", "\n", "lists no image"),
        ("labels.txt", "cat 0\ndog 2\n", "labels.txt: .*ids are 0, 2; expected each of 0 to 1 once"),
        ("labels.txt", "cat 0\ndog 0\n", "labels.txt: .*expected each of 0 to 1 once"),
        ("labels.txt", "cat 0\ncat 1\n", "labels.txt: .*expected every name once"),
        ("labels.txt", "\n", "labels.txt: names no class"),
    ],
)
def test_what_is_wrong_with_a_list_is_named(folder: Path, file: str, content: str, message: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(DataError, match=message):
        read(folder, captions=None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one\ntwo\nthree\n", "captions.txt: has 3 lines and the list has 4 images"),
        (b"one\ntwo\nthree\nfour\nfive\n", "captions.txt: has 5 lines and the list has 4 images"),
        (b"images/0.png a\nimages/1.png b\nother.png c\nimages/3.png d", "line 3: image 'other.png' is not in"),
        (b"images/0.png a\nimages/0.png b\nimages/2.png c\nimages/3.png d", "line 2: .* a second time"),
        (b"\xff\x80", "captions.txt, line 1: is no UTF-8 text"),
        (None, "captions.txt: no such file"),
    ],
)
def test_captions_that_do_not_fit_the_list_are_refused(folder: Path, content: bytes | None, message: str) -> None:
    (folder / "captions.txt").unlink()
    if content is not None:
        (folder / "captions.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(folder)


def test_missing_images_are_all_reported_at_once(folder: Path) -> None:
    (folder / "train.txt").write_text("images/0.png 0\n" + "".join(f"gone/{n}.png 1\n" for n in range(25)))
    with pytest.raises(DataError, match="25 of 26 listed images are missing") as caught:
        read(folder, captions=None)
    message = str(caught.value)
    assert all(words in message for words in ("gone/0.png (", "line 2)", "gone/19.png", "... and 5 more"))
    assert "gone/20.png" not in message


def test_an_empty_class_is_a_warning_and_the_checksum_follows_labels_captions_and_bytes(folder: Path) -> None:
    checksums = {read(folder).checksum, read(folder, captions=None).checksum}
    Image.new("L", (8, 8), 200).save(folder / "images/2.png")
    checksums.add(read(folder).checksum)
    (folder / "train.txt").write_text((folder / "train.txt").read_text().replace("1.png 1", "1.png 0"))
    checksums.add(read(folder).checksum)
    assert len(checksums) == 4
    (folder / "train.txt").write_text("images/0.png 0\n")
    assert read(folder, captions=None).warnings == ("train: 2 classes have no image: cat, teddy bear",)


def test_csv_and_jsonl_metadata_give_the_same(folder: Path) -> None:
    images = folder / "images"
    (images / "metadata.csv").write_text(
        'file_name,labels,captions\n0.png,cat;dog,"a cat, a dog | two animals"\n1.png,,\n2.png,cat,"two\nlines"\n'
    )
    rows = [
        {"filename": "0.png", "labels": ["dog", "cat"], "captions": ["a cat, a dog", "two animals"]},
        {"filename": "1.png", "labels": [], "captions": None},
        {"filename": "2.png", "labels": ["cat"], "captions": "two lines"},
    ]
    (images / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for suffix in ("csv", "jsonl"):
        data = read_metadata(images / f"metadata.{suffix}")
        assert data.name == "images"
        assert data.class_names == ("cat", "dog")
        np.testing.assert_array_equal(data.targets, [[1, 1], [0, 0], [1, 0]])
        assert data.captions == ("a cat, a dog | two animals", None, "two lines")


def test_ids_need_class_names(folder: Path) -> None:
    file = folder / "images/metadata.jsonl"
    file.write_text('{"file_name": "0.png", "labels": [1]}\n{"file_name": "1.png", "labels": [0]}\n')
    with pytest.raises(DataError, match="pass class_names"):
        read_metadata(file)
    np.testing.assert_array_equal(read_metadata(file, class_names=("a", "b")).targets, [[0, 1], [1, 0]])
    with pytest.raises(DataError, match="line 1: label id is '1'; expected a whole number from 0 to 0"):
        read_metadata(file, class_names=("a",))


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("csv", "name,labels\n0.png,cat\n", "line 2: has no 'file_name'; the columns are name, labels"),
        ("csv", "file_name,labels\n0.png,cat\n1.png,cat,more\n", "line 3: has 3 columns; expected 2"),
        ("csv", "file_name,labels\n0.png,lion\n", "line 2: label 'lion' is no known class; expected one of cat, dog"),
        ("csv", "file_name,labels\n0.png,cat\n0.png,dog\n", r"0.png: .*line 2 and .*line 3"),
        ("csv", "file_name,labels\nnone.png,cat\n", r"none.png \(.*line 2\)"),
        ("csv", "file_name,labels\n", "holds no row"),
        ("jsonl", '{"file_name": "0.png", "labels": ["cat"]}\n{broken\n', "line 2: is no JSON"),
        ("jsonl", "[1]\n", "line 1: is a list; expected one object a line"),
        ("jsonl", '{"file_name": "0.png", "labels": 3}\n', "line 1: labels are 3"),
        ("csv", "file_name,labels\n0.png,NaN\n", "labels are 'NaN'; expected .* or nothing"),
    ],
)
def test_bad_rows_are_named(folder: Path, suffix: str, text: str, message: str) -> None:
    file = folder / f"images/metadata.{suffix}"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_metadata(file, class_names=("cat", "dog"))


@pytest.mark.skipif(not COCO.is_file(), reason="../shared/data/coco_small.zip is not there")
def test_coco_small_loads_with_its_own_column_names(tmp_path: Path) -> None:
    with zipfile.ZipFile(COCO) as archive:
        archive.extractall(tmp_path)
    file = tmp_path / "coco_small" / "labels.csv"
    columns: dict[str, Any] = {"image_folder": file.parent / "images"}
    whole = read_metadata(file, **columns)
    assert whole.targets.shape == (601, 80)
    assert sum(caption is not None for caption in whole.captions) == 477
    assert whole.class_counts()[whole.class_names.index("person")] == 311
    parts = [read_metadata(file, rows={"split": split}, **columns) for split in ("train", "test")]
    assert sum(len(part) for part in parts) == 601
    assert parts[0].class_names == parts[1].class_names == whole.class_names
    with pytest.raises(DataError, match="no row has"):
        read_metadata(file, rows={"split": "nothing"}, **columns)
