"""``gcpl-lab init``: what is found in the images, and a notebook that runs."""

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gcpl_lab.cli.app import app
from gcpl_lab.data.folders import draw_sets, read_pictures
from gcpl_lab.errors import DataError, ModelError
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.workshop.project import create_project, open_project, report_data


def image(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes, five images for support and three for test each, all different."""
    seed = 0
    for part, count in (("support", 5), ("test", 3)):
        for name in ("red_coat", "blue_coat"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                image(seed).save(tmp_path / "images" / part / name / f"{number}.png")
                seed += 1
    return tmp_path / "images"


def test_a_clean_set_is_reported_as_such(images: Path) -> None:
    report = report_data(*read_pictures(images))
    assert report["classes"] == ["blue coat", "red coat"]
    support = report["sets"]["support"]
    assert support["counts"] == {"blue coat": 5, "red coat": 5}
    assert support["shorter_side"] == {"least": 40, "median": 40, "most": 40}
    assert support["formats"] == {"PNG RGB": 10}
    assert report["sets"]["test"]["pictures"] == 6
    assert report["duplicates"] == report["leakage"] == []
    assert report["summary"] == [
        "support: 10 images of 2 classes, 5 of each.",
        "test: 6 images of 2 classes, 3 of each.",
        "test: fewer than 20 images of some classes; their accuracies say little.",
        "No test image looks like a support image.",
    ]
    assert "There is no test/ folder" in report_data(*read_pictures(images / "support"))["summary"][-1]


def test_leakage_and_duplicates_are_found_and_named(images: Path) -> None:
    support, test = images / "support", images / "test"
    # the same image, larger and as JPEG, in the test set; a mirror image of another under the other class
    Image.open(support / "red_coat" / "0.png").resize((144, 120)).save(test / "red_coat" / "copy.jpg", quality=70)
    mirror = Image.open(support / "red_coat" / "1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirror.save(support / "blue_coat" / "wrong.png")
    report = report_data(*read_pictures(images))
    (leak,) = report["leakage"]
    assert (Path(leak["first"]["file"]).name, Path(leak["second"]["file"]).name) == ("0.png", "copy.jpg")
    assert leak["same_class"] is True
    (pair,) = report["duplicates"]
    assert {pair["first"]["class"], pair["second"]["class"]} == {"red coat", "blue coat"}
    assert pair["mirrored"] is True
    assert report["summary"][0].startswith("Test images that look like a support image: 1;")
    assert any("two different classes" in line for line in report["summary"])


def test_images_that_cannot_be_used_are_named_and_are_no_duplicates(images: Path) -> None:
    folder = images / "support" / "red_coat"
    (folder / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    image(100, (6, 6)).save(folder / "small.png")
    image(103).convert("CMYK").save(folder / "print.jpg")
    (images / "test" / "red_coat" / "empty.png").write_bytes(b"")
    report = report_data(*read_pictures(images))
    found, told = (report["sets"][name] for name in ("support", "test"))
    corrupt, small = found["unusable"]
    assert ("corrupt.jpg" in corrupt, "small.png" in small, "empty.png" in told["unusable"][0]) == (True, True, True)
    assert (found["unusable_indices"], told["unusable_indices"]) == ([10, 12], [6])
    assert report["summary"][0].startswith("Unusable files of support: 2;")
    assert found["formats"] == {"PNG RGB": 10, "JPEG CMYK": 1}
    assert found["pictures"] == 13
    assert report["duplicates"] == report["leakage"] == []


def test_a_project_holds_settings_report_and_notebook(images: Path, tmp_path: Path) -> None:
    folder, seen = tmp_path / "mine", []
    files, report = create_project(folder, images, shots=4, seed=3, on_progress=lambda *done: seen.append(done))
    assert seen[-1] == (16, 16)
    written = ["data_report.json", "data_report.md", "notebook.ipynb", "project.json", "what_models_see.png"]
    assert sorted(path.name for path in files) == sorted(os.listdir(folder)) == written
    assert json.loads((folder / "data_report.json").read_text()) == report
    assert "| red coat | 5 | 3 |" in (folder / "data_report.md").read_text()
    found = open_project(folder)
    assert found.settings == GCPLConfig(preset="tiny", seed=3)
    expected = draw_sets(images, 4, 3)
    assert [path.resolve() for path in found.support.images] == [path.resolve() for path in expected[0].images]
    assert len(found.test) == 6
    create_project(tmp_path / "again", images, shots=4, seed=3)
    for file in written:
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert "- No test image looks like a support image." in notebook.cells[0].source
    code = [cell.source.replace("%matplotlib inline", "") for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 7
    assert all(compile(source, "cell", "exec") and len(source.splitlines()) <= 15 for source in code)


def test_what_stands_in_the_way_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="full: exists and is not empty"):
        create_project(tmp_path / "full", images)
    with pytest.raises(DataError, match=r"class 'blue coat' has 5 images, fewer than 16 exemplars; .* --shots 5"):
        create_project(tmp_path / "mine", images)
    with pytest.raises(DataError, match=r"5 images, fewer than 5 exemplars and one test image; .* --shots 4"):
        create_project(tmp_path / "mine", images / "support", shots=5)
    with pytest.raises(ModelError, match="neither a preset nor a folder"):
        create_project(tmp_path / "mine", images, preset="sd-9", shots=2)
    assert not (tmp_path / "mine").exists()
    (tmp_path / "full" / "project.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="has the format 'other'"):
        open_project(tmp_path / "full")


def test_the_program_makes_a_project(images: Path, tmp_path: Path) -> None:
    options = ["--images", str(images), "--shots", "2"]
    answer = json.loads(CliRunner().invoke(app, ["init", str(tmp_path / "mine"), *options, "--json"]).stdout)
    assert answer.keys() == {"folder", "files", "report"}
    shown = CliRunner().invoke(app, ["init", str(tmp_path / "other"), *options]).stdout
    assert "- No test image looks like a support image." in shown
    assert f"then open {tmp_path / 'other' / 'notebook.ipynb'}." in shown


@pytest.mark.slow
def test_the_notebook_runs(images: Path, tmp_path: Path, random_pair: Any) -> None:
    from nbclient import NotebookClient

    create_project(tmp_path / "mine", images, shots=3, preset=str(random_pair.folder))
    path = tmp_path / "mine" / "project.json"
    values = json.loads(path.read_text())
    values["settings"] |= {"num_steps": 3, "batch_size": 2, "num_evidence": 2}
    path.write_text(json.dumps(values))
    notebook = nbformat.read(tmp_path / "mine" / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "mine")}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "6 exemplars, 6 test images, 2 classes: blue coat, red coat" in printed
    assert "accuracy " in printed
    assert (tmp_path / "mine" / "prompts" / "prompts.json").is_file()


def long_set(folder: Path, count: int = 4) -> Path:
    """Two classes of grey images of three to one, with a block that a crop never sees at one of the ends."""
    for label, left in (("a", 5), ("b", 250)):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = np.random.default_rng([left, index]).integers(90, 160, (100, 300, 3), dtype=np.uint8)
            pixels[30:70, left : left + 40] = 255
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


def test_long_images_are_counted_and_shown_as_the_models_see_them(tmp_path: Path, random_pair: Any) -> None:
    images = long_set(tmp_path / "images")
    Image.new("RGB", (300, 100)).save(images / "a" / "0_mask.png")
    files, report = create_project(tmp_path / "mine", images, shots=3, preset=str(random_pair.folder))
    assert (report["fit"], report["sets"]["support"]["longer"], report["sets"]["support"]["masks"]) == ("pad", 9, 1)
    told = "\n".join(report["summary"])
    assert "Images longer than 5 to 4: 9; more than a fifth of each would be cut off by a crop; bars keep it" in told
    assert "Images with the name of another one but for ending or 'mask': 1" in told
    assert report["models"]["accuracies"].keys() >= {"colour_histogram", "hog", "probe", "zero_shot"}
    assert report["summary"][0] == report["models"]["sentence"]
    sheet = np.asarray(Image.open(next(path for path in files if path.suffix == ".png")))
    assert (sheet[112 + 8, 12] > 80).all()  # the bars have the border's grey
    assert (sheet[112 + 48 : 112 + 52, 8 : 8 + 30].max(axis=(0, 1)) > 240).all()  # the block is in its place


def test_copies_stay_on_one_side_and_leakage_counts_images(images: Path, tmp_path: Path) -> None:
    pool = images / "support"
    for name in ("red_coat", "blue_coat"):
        for number in range(5):
            Image.open(pool / name / f"{number}.png").resize((96, 80)).save(pool / name / f"copy_{number}.png")
    support, test = draw_sets(pool, 3, 0)
    stems = [{path.stem.removeprefix("copy_") + path.parent.name for path in part.images} for part in (support, test)]
    assert len(test)
    assert not stems[0] & stems[1]
    for number in range(2):
        copy = Image.open(pool / "red_coat" / "0.png").resize((60, 50 + number))
        copy.save(images / "test" / "red_coat" / f"x{number}.png")
    report = report_data(*read_pictures(images))
    assert len(report["leakage"]) == 4
    assert any(line.startswith("Test images that look like a support image: 2;") for line in report["summary"])
    assert any(
        line.startswith("Images that look the same as another one of their set: 22,") for line in report["summary"]
    )


def test_names_are_text_and_no_markup(images: Path, tmp_path: Path) -> None:
    evil = images / "support" / "<img src=x>|$a$"
    (images / "support" / "red_coat").rename(evil)
    (images / "test" / "red_coat").rename(images / "test" / evil.name)
    create_project(tmp_path / "mine", images, shots=2)
    for file in ("data_report.md", "notebook.ipynb"):
        text = (tmp_path / "mine" / file).read_text()
        assert "<img" not in text
    assert "| &lt;img src=x&gt;\\|\\$a\\$ | 5 | 3 |" in (tmp_path / "mine" / "data_report.md").read_text()


def test_images_with_several_labels_get_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    rows = ["file_name,labels,caption"]
    for index in range(4):
        image(index).save(folder / f"{index}.png")
        rows.append(f"{index}.png,{'cat;dog' if index else 'cat'},{'a cat' if index == 2 else ''}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    files, report = create_project(tmp_path / "mine", folder)
    assert {path.name for path in files} == {"data_report.json", "data_report.md", "what_models_see.png"}
    assert report["sets"]["support"]["counts"] == {"cat": 4, "dog": 3}
    assert "support: 1 of 4 images have a caption." in report["summary"]
    assert report["summary"][-1].startswith("Several labels an image: gcpl-lab train lmpt --metadata")
