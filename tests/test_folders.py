"""Labelled pictures from class folders, or from a metadata file beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.folders import read_image_folder
from gcpl_lab.data.readers import read_class_folders, read_images
from gcpl_lab.errors import DataError
from gcpl_lab.workshop.project import read_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures in one folder, two of them below it."""
    for index, name in enumerate(("a.png", "b.png", "more/c.png", "more/d.png")):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (60 * index, 0, 0)).save(path)
    return tmp_path / "pictures"


def write_csv(folder: Path, *lines: str) -> None:
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("column", ["label", "labels"])
def test_classes_from_a_csv_file(folder: Path, column: str) -> None:
    write_csv(folder, f"file_name,{column}", "more/d.png,worn pipe", "a.png,new pipe", "b.png,worn pipe")
    found = read_image_folder(folder)
    assert found.class_names == ("new pipe", "worn pipe")
    assert [path.relative_to(folder).as_posix() for path in found.images] == ["more/d.png", "a.png", "b.png"]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.name == "pictures"
    assert read_image_folder(folder, "mine").name == "mine"


def test_classes_from_json_lines_are_the_same_set(folder: Path) -> None:
    rows = [("a.png", "new"), ("more/c.png", "worn")]
    write_csv(folder, "file_name,label", *(",".join(row) for row in rows))
    table = read_image_folder(folder)
    (folder / "metadata.csv").unlink()
    lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    found = read_image_folder(folder)
    assert (found.class_names, found.images, found.checksum) == (table.class_names, table.images, table.checksum)
    np.testing.assert_array_equal(found.labels, table.labels)


def test_class_folders_where_the_file_has_captions_alone(folder: Path) -> None:
    (folder / "less").mkdir()
    (folder / "a.png").rename(folder / "less" / "a.png")
    write_csv(folder, "file_name,caption", "b.png,a thing")
    assert read_image_folder(folder).class_names == read_class_folders(folder).class_names == ("less", "more")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file_name,label", "a.png,new", "b.png,"], r"line 3: b.png has 0 classes; expected one a picture"),
        (["file_name,label", "a.png,new;worn"], r"line 2: a.png has 2 classes; .* gcpl-lab train lmpt"),
        (["file_name,label", "a.png,new", "b.png,new"], r"metadata.csv: has one class only \(new\)"),
        (["file_name,label", "a.png,new", "e.png,worn"], r"1 of 2 listed pictures are missing"),
        (["file_name,label", "a.png,new", "a.png,worn"], r"a.png"),
        (["picture,label", "a.png,new"], r"has no 'file_name'; the columns are picture, label"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, lines: list[str], message: str) -> None:
    write_csv(folder, *lines)
    with pytest.raises(DataError, match=message):
        read_image_folder(folder)


def test_two_metadata_files_are_one_too_many(folder: Path) -> None:
    write_csv(folder, "file_name,label", "a.png,new")
    (folder / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"has metadata.csv and metadata.jsonl; expected one of them"):
        read_image_folder(folder)


def test_support_and_test_may_have_a_file_each(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "test")
    write_csv(tmp_path / "test", "file_name,label", "a.png,new", "b.png,worn")
    for name, shade in (("new", 10), ("worn", 90)):
        (tmp_path / "support" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (shade, 0, 0)).save(tmp_path / "support" / name / "x.png")
    support, test = read_pictures(tmp_path)
    assert test is not None
    assert support.class_names == test.class_names == ("new", "worn")


def test_pictures_of_foreign_formats_are_not_passed_over(tmp_path: Path) -> None:
    """A telephone's photograph that nobody can read here would be missing without a trace."""
    for name in ("new", "worn"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), "red" if name == "new" else "blue").save(tmp_path / name / "still.gif")
    (tmp_path / "new" / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "new" / "Thumbs.db").write_bytes(b"no picture")
    found = read_class_folders(tmp_path)
    assert [path.name for path in found.images] == ["photo.HEIC", "still.gif", "still.gif"]
    with pytest.raises(DataError, match=r"1 pictures cannot be used:\n.*photo.HEIC: is no picture that can be read"):
        read_images(found.images)
