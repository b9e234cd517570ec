"""``gcpl-lab init``: what is found in the pictures, and a notebook that runs."""

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gcpl_lab.cli.app import app as cli
from gcpl_lab.data.readers import read_class_folders
from gcpl_lab.errors import DataError, ModelError
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.workshop.project import (
    create_project,
    draw_sets,
    open_project,
    read_pictures,
    read_support_and_test,
    report_data,
)


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Two classes, five pictures for support and three for test each, all different."""
    seed = 0
    for part, count in (("support", 5), ("test", 3)):
        for name in ("red_coat", "blue_coat"):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for number in range(count):
                picture(seed).save(tmp_path / "pictures" / part / name / f"{number}.png")
                seed += 1
    return tmp_path / "pictures"


def test_a_clean_set_is_reported_as_such(photographs: Path) -> None:
    report = report_data(*read_pictures(photographs))
    assert report["classes"] == ["blue coat", "red coat"]
    assert report["sets"]["support"]["counts"] == {"blue coat": 5, "red coat": 5}
    assert report["sets"]["test"]["pictures"] == 6
    assert report["sets"]["support"]["shorter_side"] == {"least": 40, "median": 40, "most": 40}
    assert report["sets"]["support"]["formats"] == {"PNG RGB": 10}
    assert report["duplicates"] == report["leakage"] == []
    assert "No test picture looks like a support picture." in report["summary"]
    assert "support: 10 pictures of 2 classes, 5 of each." in report["summary"]


def test_leakage_and_duplicates_are_found_and_named(photographs: Path) -> None:
    support, test = photographs / "support", photographs / "test"
    # the same photograph, larger and as JPEG, in the test set; a mirror image of another under the other class
    Image.open(support / "red_coat" / "0.png").resize((144, 120)).save(test / "red_coat" / "copy.jpg", quality=70)
    mirror = Image.open(support / "red_coat" / "1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirror.save(support / "blue_coat" / "wrong.png")
    report = report_data(*read_pictures(photographs))
    (leak,) = report["leakage"]
    assert (Path(leak["first"]["file"]).name, Path(leak["second"]["file"]).name) == ("0.png", "copy.jpg")
    assert leak["same_class"] is True
    (pair,) = report["duplicates"]
    assert {pair["first"]["class"], pair["second"]["class"]} == {"red coat", "blue coat"}
    assert pair["mirrored"] is True
    assert report["summary"][0].startswith("1 test pictures look like support pictures")
    assert any("two different classes" in line for line in report["summary"])


def test_every_odd_kind_of_file_is_taken_or_refused_by_name(photographs: Path) -> None:
    """Corrupt, tiny and animated ones are refused; CMYK, 16-bit and rotated ones count like any other."""
    folder = photographs / "support" / "red_coat"
    (folder / "corrupt.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    picture(100, (6, 6)).save(folder / "tiny.png")
    picture(101).save(folder / "animated.webp", save_all=True, append_images=[picture(102)])
    picture(103).convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(np.random.default_rng(9).integers(0, 65535, (40, 48), dtype=np.uint16)).save(folder / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(104, (64, 40)).save(folder / "turned.jpg", exif=turned)
    report = report_data(*read_pictures(photographs))
    found = report["sets"]["support"]
    assert [any(name in message for message in found["unusable"]) for name in ("corrupt", "tiny", "animated")] == [
        True
    ] * 3
    assert len(found["unusable"]) == 3
    assert report["summary"][0].startswith("3 pictures of support cannot be used")
    assert found["formats"]["JPEG CMYK"] == 1
    assert found["pictures"] == 16
    assert report["duplicates"] == []


def test_support_and_test_must_have_the_same_classes(photographs: Path) -> None:
    (photographs / "test" / "red_coat").rename(photographs / "test" / "red_cape")
    with pytest.raises(DataError, match=r"support/ and test/ have different classes \(red cape, red coat in one"):
        read_pictures(photographs)


def test_without_a_test_folder_the_rest_is_the_test_set(photographs: Path) -> None:
    support, test = draw_sets(photographs / "support", shots=3, seed=1)
    assert np.bincount(support.labels).tolist() == [3, 3]
    assert np.bincount(test.labels).tolist() == [2, 2]
    assert not set(support.images) & set(test.images)
    assert len(draw_sets(photographs, shots=3, seed=1, most_test=2)[1]) == 2


def test_train_is_another_name_for_support(photographs: Path) -> None:
    (photographs / "support").rename(photographs / "train")
    assert [len(part) for part in read_pictures(photographs)] == [10, 6]


def test_a_published_set_is_read_by_its_name(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, root: Path, split: str) -> object:
        asked.append((name, root, split))
        return split

    monkeypatch.setattr("gcpl_lab.workshop.project.load_published", load)
    assert read_support_and_test(photographs, "dtd") == ("train", "test")
    assert asked == [("dtd", photographs, "train"), ("dtd", photographs, "test")]
    assert [len(part) for part in read_support_and_test(photographs)] == [10, 6]
    with pytest.raises(DataError, match=r"support: has no test set; expected support/ and test/ with one sub-folder"):
        read_support_and_test(photographs / "support")


# ------------------------------------------------------------------------------------------- the project


def test_a_project_holds_settings_report_and_notebook(photographs: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = create_project(tmp_path / "mine", photographs, shots=4, seed=3, on_progress=lambda *done: seen.append(done))
    assert seen[-1] == (16, 16)
    assert (
        sorted(path.name for path in made.files)
        == sorted(os.listdir(tmp_path / "mine"))
        == ["data_report.json", "data_report.md", "notebook.ipynb", "project.json"]
    )
    assert json.loads((tmp_path / "mine" / "data_report.json").read_text()) == made.report
    page = (tmp_path / "mine" / "data_report.md").read_text()
    assert "| red coat | 5 | 3 |" in page
    assert all(line in page for line in made.summary)
    found = open_project(tmp_path / "mine")
    assert found.settings == GCPLConfig(preset="tiny", seed=3)
    expected = draw_sets(photographs, 4, 3)
    assert [path.resolve() for path in found.support.images] == [path.resolve() for path in expected[0].images]
    assert len(found.test) == 6


def test_the_notebook_is_valid_and_short_celled(photographs: Path, tmp_path: Path) -> None:
    create_project(tmp_path / "mine", photographs, shots=2)
    notebook = nbformat.read(tmp_path / "mine" / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert max(len(cell.source.splitlines()) for cell in notebook.cells if cell.cell_type == "code") <= 15
    assert "No test picture looks like a support picture." in notebook.cells[0].source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source.replace("%matplotlib inline", ""), "cell", "exec")


def test_the_same_pictures_make_the_same_files(photographs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        create_project(tmp_path / name, photographs, shots=2)
    for file in os.listdir(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_what_stands_in_the_way_is_named(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="full: exists and is not empty"):
        create_project(tmp_path / "full", photographs)
    with pytest.raises(DataError, match=r"class 'blue coat' has 5 pictures, fewer than 16 exemplars; .* --shots 5"):
        create_project(tmp_path / "mine", photographs)
    with pytest.raises(DataError, match=r"5 pictures, fewer than 5 exemplars and one test picture; .* --shots 4"):
        create_project(tmp_path / "mine", photographs / "support", shots=5)
    with pytest.raises(ModelError, match="neither a preset nor a folder"):
        create_project(tmp_path / "mine", photographs, preset="sd-9", shots=2)
    assert not (tmp_path / "mine").exists()


def test_the_program_makes_a_project(photographs: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["init", str(tmp_path / "mine"), "--images", str(photographs), "--shots", "2", "--json"]
    )
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["report"]["sets"]["test"]["pictures"] == 6
    shown = CliRunner().invoke(cli.app, ["init", str(tmp_path / "other"), "--images", str(photographs), "--shots", "2"])
    assert "No test picture looks like a support picture." in shown.stdout
    assert "notebook.ipynb" in shown.stdout


@pytest.mark.slow
def test_the_notebook_runs(photographs: Path, tmp_path: Path, random_pair: Any) -> None:
    from nbclient import NotebookClient

    create_project(tmp_path / "mine", photographs, shots=3, preset=str(random_pair.folder))
    path = tmp_path / "mine" / "project.json"
    values = json.loads(path.read_text())
    values["settings"] |= {"num_steps": 3, "batch_size": 2, "num_evidence": 2}
    path.write_text(json.dumps(values))
    notebook = nbformat.read(tmp_path / "mine" / "notebook.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "mine")}}).execute()
    printed = "".join(
        out.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for out in cell.outputs
        if out.output_type == "stream" and out.name == "stdout"
    )
    assert "6 exemplars, 6 test pictures, 2 classes: blue coat, red coat" in printed
    assert "accuracy " in printed
    assert (tmp_path / "mine" / "prompts" / "prompts.json").is_file()


def test_cifar_photographs_through_the_reader(tmp_path: Path) -> None:
    """Real pictures of twenty classes, where the shared folder is there: read, drawn, reported."""
    import zipfile

    archive = Path(__file__).parents[2] / "shared" / "data" / "cifar100.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} is not there")
    with zipfile.ZipFile(archive) as whole:
        names = sorted({name.split("/")[2] for name in whole.namelist() if name.count("/") == 3})[:20]
        for name in whole.namelist():
            parts = name.split("/")
            if len(parts) == 4 and parts[2] in names and parts[1] == "test":
                whole.extract(name, tmp_path)
    pool = read_class_folders(tmp_path / "cifar100" / "test")
    assert (len(pool), len(pool.class_names)) == (400, 20)
    report = report_data(pool)
    assert report["sets"]["support"]["unusable"] == []
    assert report["sets"]["support"]["shorter_side"]["most"] == 32
