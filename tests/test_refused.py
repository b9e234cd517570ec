"""What is not understood is refused by name: metadata files, folders, labels, results, settings and one image alone."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.folders import read_image_folder
from gcpl_lab.data.lists import read_longtail_list, read_metadata
from gcpl_lab.data.readers import read_class_folders, read_image
from gcpl_lab.data.sets import check_class_names, check_labels
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation import metrics
from gcpl_lab.settings import LARGEST

TABLE = "file_name,label\nday1/0.png,cat\nday1/1.png,dog\nday2/0.png,cat\nday2/1.png,dog\n"


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """Two images in each of two folders that are no classes."""
    for day in ("day1", "day2"):
        (tmp_path / day).mkdir()
        for index in range(2):
            Image.new("L", (8, 8), 50 * index).save(tmp_path / day / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.csv", TABLE.replace(",", ";"), "line 1: its columns are parted by semicolons .* expected commas"),
        ("metadata.csv", TABLE.replace(",", "\t"), "line 1: its columns are parted by tabs"),
        ("metadata.csv", "sep=,\n" + TABLE, "line 1: is Excel's 'sep=,'; .* remove the line"),
        ("metadata.csv", TABLE.replace(",label", ", label"), "has the column ' label'; expected 'label'"),
        ("metadata.csv", TABLE.replace("label", "Label"), "has the column 'Label'; expected 'label'"),
        ("metadata.csv", TABLE.replace("file_name", "File_Name"), "has the column 'File_Name'; expected 'file_name'"),
        ("metadata.csv", TABLE.replace("label", "class"), "the columns file_name, class; expected file_name and label"),
        ("metadata.csv", TABLE.split("\n", 1)[1], "the columns day1/0.png, cat; expected file_name and label"),
        ("metadata.csv", "file_name,label\n", "holds no row; expected the columns file_name and label"),
        ("metadata.csv", "", "holds no row"),
        ("metadata.csv", TABLE.replace("label", "label,label", 1), "names the column 'label' twice"),
        ("metadata.csv", TABLE.replace("day2/1.png", "./day1/1.png"), "./day1/1.png: .*line 3 and .*line 5"),
        ("metadata.csv", TABLE.replace("day2/1.png", "../day1.png"), r"line 5: '../day1.png' leads out of"),
        ("metadata.csv", TABLE.replace("day2/1.png", "/etc/1.png"), r"line 5: '/etc/1.png' leads out of"),
        ("metadata.csv", TABLE.replace("day2/1.png", "x" * 5000), "1 of 4 listed images are missing"),
        ("metadata.csv", TABLE.replace("dog", "dog\0"), "line 3: 'label' holds a NUL character"),
        ("metadata.csv", TABLE.replace("dog", '"' + "d" * 140_000 + '"'), "text has more than 131,072 letters"),
        ("METADATA.CSV", TABLE, "METADATA.CSV: is not read, .* expected metadata.csv"),
        ("metadata.tsv", TABLE, "metadata.tsv: is not read"),
        ("metadata.parquet", "PAR1", "metadata.parquet: is not read"),
        (
            "metadata.jsonl",
            '{"file_name":"day1/0.png"}\n{"file_name":"day1/1.png","label":"dog"}\n',
            "line 1: has no 'label'",
        ),
        ("metadata.jsonl", '{"file_name":"day1/0.png","label":"a","label":"b"}\n', "names the column 'label' twice"),
        ("metadata.jsonl", '{"file_name":"day1/0.png","label":"\\ud83d"}\n', r"holds half a character \('\\ud83d'\)"),
    ],
)
def test_sub_folders_are_never_guessed_at_beside_a_metadata_file(
    days: Path, name: str, text: str, message: str
) -> None:
    (days / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_image_folder(days)


def test_what_excel_writes_is_read(days: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (days / "metadata.csv").write_bytes(TABLE.replace("\n", "\r\n").replace("cat", "café").encode(encoding))
        assert read_image_folder(days).class_names == ("café", "dog")
    (days / "metadata.csv").write_bytes(TABLE.replace("cat", "café").encode("latin-1"))
    with pytest.raises(DataError, match=r'metadata.csv, line 2: is no UTF-8 text \(byte 0xe9\).*"CSV UTF-8"'):
        read_image_folder(days)


def test_images_of_a_class_that_would_be_passed_over(days: Path) -> None:
    image = Image.new("L", (8, 8), 9)
    for ending, kind in (("jfif", "JPEG"), ("jpe", "JPEG"), ("ppm", "PPM"), ("tga", "TGA")):
        image.save(days / "day1" / f"x.{ending}", format=kind)
    assert np.bincount(read_class_folders(days).labels).tolist() == [6, 2]
    (days / "day2" / "photo.cr2").write_bytes(b"raw")
    assert len(read_class_folders(days)) == 9  # and refused by name when it is read
    with pytest.raises(DataError, match="photo.cr2: is no image"):
        read_image(days / "day2" / "photo.cr2")
    os.symlink("/nowhere.png", days / "day1" / "link.png")
    with pytest.raises(DataError, match="1 links to nothing in it"):
        read_class_folders(days)
    (days / "day1" / "link.png").rename(days / "day3")  # a class that is a link to nothing
    with pytest.raises(DataError, match="1 links to nothing in it"):
        read_class_folders(days)
    (days / "day3").unlink()
    (days / "day2" / "monday").mkdir()
    image.save(days / "day2" / "monday" / "0.png")
    with pytest.raises(DataError, match="monday: holds 1 images below the class 'day2'"):
        read_class_folders(days)


def test_parts_of_a_set_are_no_classes(days: Path) -> None:
    for before, after in (("day1", "support"), ("day2", "test")):
        (days / before).rename(days / after)
    with pytest.raises(DataError, match="are parts of a set and no classes; did you mean .*/support"):
        read_image_folder(days)


def test_a_folder_name_that_is_no_utf_8(days: Path) -> None:
    os.rename(os.fsencode(days / "day1"), os.fsencode(days) + b"/\x94L")
    with pytest.raises(DataError, match=r"\\x94L: its name is no UTF-8; rename it, such as by convmv"):
        read_class_folders(days)


def test_one_class_however_its_accent_is_spelt(days: Path) -> None:
    (days / "day1").rename(days / "cafe\u0301")
    (days / "day2").rename(days / "caf\u00e9")
    (days / "tea").mkdir()
    Image.new("L", (8, 8)).save(days / "tea" / "0.png")
    found = read_class_folders(days)
    assert set(found.class_names) == {"caf\u00e9", "tea"}
    assert np.bincount(found.labels, minlength=2)[found.class_names.index("caf\u00e9")] == 4
    with pytest.raises(DataError, match="as is class name 0"):
        check_class_names(["caf\u00e9", "cafe\u0301"])
    for name in ("a\x07b", "\ud83d", "\ufffe", "\u202egpj.tac", "a\u2066b"):
        with pytest.raises(DataError, match=r"class name 1 is '.*\\.*is no letter"):
            check_class_names(["a", name])
    check_class_names(["👟", "שלום", "コート"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("cat|dog", "line 2: labels are 'cat|dog'; expected names joined by ';'"),
        ("\"['cat', 'dog']\"", "expected names joined by ';'"),
        ('"cat, dog"', "the label 'cat, dog' holds other labels"),
    ],
)
def test_other_ways_to_join_labels(days: Path, labels: str, message: str) -> None:
    (days / "m.csv").write_text(f"file_name,labels\nday1/0.png,{labels}\nday1/1.png,cat;dog\n")
    with pytest.raises(DataError, match=message):
        read_metadata(days / "m.csv")
    (days / "m.csv").write_text('file_name,labels\nday1/0.png,"tench, Tinca tinca"\nday1/1.png,cat\n')
    assert read_metadata(days / "m.csv").class_names == ("cat", "tench, Tinca tinca")


def test_a_number_is_no_id_where_names_are_numbers(days: Path) -> None:
    (days / "m.csv").write_text("file_name,labels\nday1/0.png,1\nday1/1.png,0\n")
    assert read_metadata(days / "m.csv", class_names=["cat", "dog"]).targets.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(DataError, match="line 3: label '0' is no known class"):
        read_metadata(days / "m.csv", class_names=["1", "2"])


def test_absolute_paths_where_they_are_asked_for(days: Path) -> None:
    (days / "m.csv").write_text(f"file_name,labels\n{days}/day1/0.png,cat\n")
    with pytest.raises(DataError, match="leads out of"):
        read_metadata(
            days / "m.csv", image_folder=days / "day1" / "..", class_names=["cat"], rows={}
        )  # inside, but absolute
    assert len(read_metadata(days / "m.csv", image_folder="/")) == 1
    (days / "l.txt").write_text("../x.png 0\n")
    (days / "names.txt").write_text("cat\n")
    with pytest.raises(DataError, match="l.txt, line 1: '../x.png' leads out of"):
        read_longtail_list(days / "l.txt", days / "names.txt", days)


@pytest.mark.parametrize("missing", [float("nan"), None, np.float32("nan"), np.ma.masked])
def test_missing_labels(missing: Any) -> None:
    for others in (["a", "b"], [0, 1]):
        with pytest.raises(DataError, match="label 1 is missing"):
            check_labels([others[0], missing, others[1]], 3)


def test_labels_of_another_shape_kind_or_class() -> None:
    known = np.array([0, 1])
    assert check_labels(np.array([0, 1, 1]), 3, known).tolist() == [0, 1, 1]
    for labels, message in (
        (known[:, None], r"label 0 is \[0\]; expected one label an image"),
        ([[0, 1], [1]], "expected one label an image"),
        (["0", "1"], "labels '0', '1' were not learned; expected some of 0, 1"),
        ([7, 1], "labels 7 were not learned"),
        ([0, "a"], "label 0 is 0 and label 1 is 'a'"),
        ([0], "2 images and 1 labels"),
        ("ab", "expected one label an image"),
        (5, "2 images and 5 labels"),
    ):
        with pytest.raises(DataError, match=message):
            check_labels(labels, 2, known)


@pytest.mark.parametrize("measure", [metrics.accuracy, metrics.log_loss, metrics.confusion_matrix])
def test_metrics_refuse_labels_that_do_not_fit(measure: Any) -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    for labels in (np.array([[0], [1], [1], [1]]), np.array([0, 1]), np.array([0, 1, 2, 1]), np.array([0, -1, 1, 1])):
        with pytest.raises(DataError):
            measure(scores, labels)
    with pytest.raises(DataError, match="expected whole class ids"):
        measure(scores, np.array(["0", "1", "1", "1"]))
    assert metrics.accuracy(scores, np.array([0, 1, 1, 1])) == 0.75


def test_numbers_that_no_library_takes() -> None:
    from gcpl_lab.gcpl.settings import GCPLConfig

    assert GCPLConfig(seed=LARGEST).seed == LARGEST
    for name, value in (
        ("seed", LARGEST + 1),
        ("num_evidence", 10**20),
        ("learning_rate", float("inf")),
        ("learning_rate", 10**400),
    ):
        with pytest.raises(ValueError, match=f"{name} is .*; expected a number that is finite, at most {LARGEST}"):
            GCPLConfig(**{name: value})
    with pytest.raises(ValueError, match="learning_rate is nan"):
        GCPLConfig(learning_rate=float("nan"))


def test_no_images_have_no_answer_and_one_image_is_no_list(random_pair: Any, pictures: Any) -> None:
    from gcpl_lab import GCPLClassifier

    model = GCPLClassifier(str(random_pair.folder), num_steps=1, num_evidence=1, diffusion=random_pair.diffusion)
    model.fit(*pictures)
    assert (model.predict([]).shape, model.predict_proba([]).shape) == ((0,), (0, 3))
    for one in (pictures[0][0], Path("a.png"), "a.png", Image.fromarray(pictures[0][0])):
        with pytest.raises(DataError, match="expected a list of images"):
            model.predict(one)
    with pytest.raises(DataError, match="labels 9 were not learned"):
        model.score(pictures[0][:2], [0, 9])


def test_captions_alone_need_captions(random_pair: Any, pictures: Any) -> None:
    from gcpl_lab import LMPTClassifier

    model = LMPTClassifier(str(random_pair.folder), mix=0, num_epochs=1, clip=random_pair.clip)
    for captions in (None, [""] * 12):
        with pytest.raises(DataError, match="mix is 0, which learns from captions alone, and no image has one"):
            model.fit(pictures[0], np.eye(3, dtype=np.uint8)[pictures[1]], ["a", "b", "c"], captions)


def test_results_that_were_edited(tmp_path: Path) -> None:
    from gcpl_lab.errors import ArtifactError
    from gcpl_lab.experiments.runs import read_run

    row = {
        "name": "gcpl",
        "seed": 0,
        "accuracy": 0.5,
        "calibration_error": 0.1,
        "train_seconds": 1,
        "predict_seconds": 1,
    }
    data = {"checksum": "ab", "test_size": 10, "classes": ["a", "b"], "shots": 4, "name": "mine"}
    whole: dict[str, Any] = {
        "data": data,
        "methods": [row],
        "versions": {},
        "multilabel": {"data": {"test_size": 2}, "methods": []},
    }
    for key, values in {
        "methods[0].accuracy: 78.3 is greater": {"methods": [{**row, "accuracy": 78.3}]},
        "methods[0]: 'seed' is a required": {
            "methods": [{name: value for name, value in row.items() if name != "seed"}]
        },
        "data.test_size: 0 is less": {"data": {**data, "test_size": 0}},
        "versions": {"versions": None},
        "multilabel: 'data' is a required": {"multilabel": {"methods": []}},
    }.items():
        (tmp_path / "results.json").write_text(json.dumps({**whole, **values}))
        with pytest.raises(ArtifactError, match=r"results.json: " + key.replace("[", r"\[").replace("]", r"\]")):
            read_run(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(whole), encoding="utf-8-sig")
    assert read_run(tmp_path).best == "gcpl"
