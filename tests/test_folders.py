"""Labelled images from class folders, or from a metadata file beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data import folders
from gcpl_lab.data.folders import draw_labelled, draw_sets, read_image_folder, read_pictures, read_support_and_test
from gcpl_lab.data.readers import read_class_folders
from gcpl_lab.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images in one folder, two of them below it."""
    for index, name in enumerate(("a.png", "b.png", "more/c.png", "more/d.png")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (60 * index, 0, 0)).save(path)
    return tmp_path / "images"


def write_csv(folder: Path, *lines: str) -> None:
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("column", ["label", "labels"])
def test_classes_from_a_file_in_both_formats(folder: Path, column: str) -> None:
    rows = [("more/d.png", "worn pipe"), ("a.png", "new pipe"), ("b.png", "worn pipe")]
    write_csv(folder, f"file_name,{column}", *(",".join(row) for row in rows))
    found = read_image_folder(folder)
    assert (found.name, found.class_names) == ("images", ("new pipe", "worn pipe"))
    assert [path.relative_to(folder).as_posix() for path in found.images] == ["more/d.png", "a.png", "b.png"]
    assert found.labels.tolist() == [1, 0, 1]
    assert read_image_folder(folder, "mine").name == "mine"
    (folder / "metadata.csv").unlink()
    lines = [json.dumps({"file_name": name, column: label}) for name, label in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    assert read_image_folder(folder).checksum == found.checksum
    write_csv(folder, "file_name,label", "a.png,new")
    with pytest.raises(DataError, match=r"has metadata.csv and metadata.jsonl; expected one of them"):
        read_image_folder(folder)


def test_class_folders_where_the_file_has_captions_alone(folder: Path) -> None:
    (folder / "less").mkdir()
    (folder / "a.png").rename(folder / "less" / "a.png")
    write_csv(folder, "file_name,caption", "b.png,a thing")
    assert read_image_folder(folder).class_names == read_class_folders(folder).class_names == ("less", "more")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file_name,label", "a.png,new", "b.png,"], r"line 3: b.png has 0 classes; expected one an image"),
        (["file_name,label", "a.png,new;worn"], r"line 2: a.png has 2 classes; .* gcpl-lab train lmpt"),
        (["file_name,label", "a.png,new", "b.png,new"], r"metadata.csv: has one class only \(new\)"),
        (["file_name,label", "a.png,new", "e.png,worn"], r"1 of 2 listed images are missing"),
        (["file_name,label", "a.png,new", "a.png,worn"], r"a.png"),
        (["picture,label", "a.png,new"], r"has no 'file_name'; the columns are picture, label"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, lines: list[str], message: str) -> None:
    write_csv(folder, *lines)
    with pytest.raises(DataError, match=message):
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


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, five images for support and three for test each."""
    for part, count in (("support", 5), ("test", 3)):
        for name in ("red_coat", "blue_coat"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (32, 32), 20 * number).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def test_train_is_another_name_for_support(images: Path) -> None:
    (images / "support").rename(images / "train")
    assert [len(part) for part in read_pictures(images)] == [10, 6]


def test_both_parts_must_have_the_same_classes(images: Path) -> None:
    (images / "test" / "red_coat").rename(images / "test" / "red_cape")
    with pytest.raises(DataError, match=r"support/ and test/ have different classes \(red cape, red coat in one"):
        read_pictures(images)


def test_without_a_test_folder_the_rest_is_the_test_set(images: Path) -> None:
    support, test = draw_sets(images / "support", shots=3, seed=1)
    assert np.bincount(support.labels).tolist() == [3, 3]
    assert np.bincount(test.labels).tolist() == [2, 2]
    assert not set(support.images) & set(test.images)
    assert len(draw_sets(images, shots=3, seed=1, most_test=2)[1]) == 2


def test_a_published_set_is_read_by_its_name(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "load_published", lambda *asked: asked)
    assert read_support_and_test(images, "dtd") == (("dtd", images, "train"), ("dtd", images, "test"))
    assert [len(part) for part in read_support_and_test(images)] == [10, 6]
    with pytest.raises(DataError, match=r"support: has no test set; expected support/ and test/ with one sub-folder"):
        read_support_and_test(images / "support")


def test_a_left_out_image_that_cannot_be_read_is_told_before_anything_is_learned(tmp_path: Path) -> None:
    """Found by an exercise: sixty updates were made, and only their measurement met the file."""
    rng = np.random.default_rng(0)
    for name in ("bag", "coat"):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "bag" / "zz_broken.png").write_text("no image")
    with pytest.raises(DataError, match=r"1 images cannot be used:\n.*zz_broken\.png"):
        draw_sets(tmp_path, 2, seed=0, most_test=100)
    listed = "file_name,labels,split\n" + "".join(f"bag/{n}.png,bag,train\ncoat/{n}.png,coat,train\n" for n in range(4))
    (tmp_path / "metadata.csv").write_text(listed + "bag/zz_broken.png,bag,test\ncoat/0.png,coat,test\n")
    source = {"file": str(tmp_path / "metadata.csv"), "rows": {"split": "train"}}
    with pytest.raises(DataError, match=r"1 images cannot be used:\n.*zz_broken\.png"):
        draw_labelled(source, {"rows": {"split": "test"}}, 0.2, seed=0)
