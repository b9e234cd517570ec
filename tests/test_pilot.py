"""A pilot from images to a decision, on small made images and the shipped models, and the watch after it."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pptx import Presentation
from typer.testing import CliRunner

from gcpl_lab.cli.app import app
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation.captions import check_captions, name_classes, read_words
from gcpl_lab.evaluation.monitoring import find_drift
from gcpl_lab.pilot import Pilot
from gcpl_lab.pilot.config import write_config
from gcpl_lab.pilot.data import PilotData
from gcpl_lab.pilot.explain import CAUSES, likely_causes
from gcpl_lab.pilot.images import check_images, find_shortcuts
from gcpl_lab.pilot.page import write_pages
from gcpl_lab.pilot.verdict import decide, plan_trial

SETTINGS = {"methods": "gcpl, linear_probe", "shots": 2, "draws": 2, "num_steps": 4, "test_images": 24}
SECRETS = (b"Copyright of Somebody", b"body 12345")


def paint(folder: Path, name: str, grey: int, seed: int) -> Path:
    """A noisy square whose brightness is its class."""
    values = np.random.default_rng(seed).normal(grey, 12, (32, 32)).clip(0, 255).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / name)
    return folder / name


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pilot, dict[str, Any]]:
    """A pilot that has run once."""
    folder = tmp_path_factory.mktemp("pilot")
    counts = {"watch.NUM_UNCHANGED": 20, "watch.NUM_CHANGED": 4, "watch.MOST_SHIFTED": 24, "sense.SAMPLES_A_CLASS": 2}
    for name, count in counts.items():
        pytest.MonkeyPatch().setattr(f"gcpl_lab.pilot.{name}", count)
    for label, grey in enumerate((40, 120, 220)):
        for number in range(22):
            paint(folder / "images" / "dark grey bright".split()[label], f"{number}.png", grey, 100 * label + number)
    exif = Image.Exif()
    exif[0x8298] = SECRETS[0].decode()  # copyright
    exif.get_ifd(0x8769)[0xA431] = SECRETS[1].decode()  # serial number of the camera
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 30.0)  # latitude
    told = folder / "images" / "dark" / "0.png"
    Image.open(told).save(told.with_suffix(".jpg"), exif=exif)
    told.unlink()
    Pilot.create(folder / "run", folder / "images")
    text = (folder / "run" / "pilot.toml").read_text()
    for name, value in SETTINGS.items():
        text = re.sub(rf"^{name} = \S.*", f"{name} = {json.dumps(value)}", text, flags=re.MULTILINE)
    (folder / "run" / "pilot.toml").write_text(text)
    pilot = Pilot(folder / "run")
    return pilot, pilot.run()


def copy_of(pilot: Pilot, folder: Path) -> Pilot:
    shutil.copytree(pilot.folder, folder)
    return Pilot(folder)


def test_everything_is_measured_and_written(done: tuple[Pilot, dict[str, Any]]):
    pilot, found = done
    assert json.loads((pilot.folder / "pilot.json").read_text()) == found
    wanted = {"fit_of_models", "methods", "coverage", "none_of_these", "cost", "verdict", "versions", "checksums"}
    assert wanted <= found.keys()
    assert {"promised", "measured", "low", "high", "num_images"} <= found["coverage"].keys()
    assert found["verdict"]["decision"] in ("go", "no-go", "not yet")
    assert found["chosen"]["accuracy"]["value"] > 0.9
    assert found["none_of_these"]["auroc"] > 0.5
    assert found["cost"]["everything reviewed"] == 500
    page, card = (pilot.folder / "pilot.html").read_text(), (pilot.folder / "card.md").read_text()
    assert found["verdict"]["sentence"] in page.replace("&#39;", "'")
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert found["checksums"]["images"] in card
    deck = Presentation(str(pilot.folder / "pilot.pptx"))
    assert 3 <= len(deck.slides) <= 8
    assert len(list((pilot.folder / "samples").glob("*.png"))) == 6
    learned = [entry for entry in found["methods"] if not entry["simple"]]
    assert [len(entry["points"]) for entry in learned] == [2]
    assert learned[0]["num_points"] == 3  # two draws with two images a class, one with one


def test_a_promise_is_measured_over_fifty_divisions(done: tuple[Pilot, dict[str, Any]]):
    splits = done[1]["coverage"]["splits"]
    assert splits["num_splits"] == 50
    assert splits["low"] <= 0.9 <= splits["high"]
    assert splits["value"] >= 0.89  # 24 calibration images promise 23/25


def test_an_unfit_pair_is_the_first_line_of_the_page(done: tuple[Pilot, dict[str, Any]], tmp_path: Path):
    pilot, found = done
    fit = {**found["fit_of_models"], "fit": False, "sentence": "Use larger models (--preset sd-1.5)."}
    pages = copy_of(pilot, tmp_path / "run")
    write_pages(pages.folder, {**found, "fit_of_models": fit}, pages.data)
    first = re.sub("<[^>]+>", "", (pages.folder / "pilot.html").read_text().split("<main>")[1]).split("\n")[1]
    assert first == "This pair of frozen models is unfit for these images. Use larger models (--preset sd-1.5)."


def test_what_a_file_tells_is_counted_and_never_copied(done: tuple[Pilot, dict[str, Any]]):
    pilot, found = done
    assert found["images"]["exif"] == {"place": 1, "owner": 1, "of": sum(found["images"]["num_images"].values())}
    page = (pilot.folder / "pilot.html").read_text()
    pictures = [base64.b64decode(part.split('"')[0]) for part in page.split("base64,")[1:]]
    with zipfile.ZipFile(pilot.folder / "pilot.pptx") as deck:
        pictures += [deck.read(name) for name in deck.namelist()]
    assert not any(secret in picture for picture in [*pictures, page.encode()] for secret in SECRETS)


def test_copies_with_other_labels_are_named(tmp_path: Path):
    files = (paint(tmp_path / "a", "0.png", 100, 0), paint(tmp_path / "b", "0.png", 200, 1), tmp_path / "b" / "1.jpg")
    Image.open(files[0]).save(files[2], quality=95)  # saved again, under another class
    images = ImageSet("made", files, np.array([0, 1, 1]), ("a", "b"), "0" * 64)
    found = check_images(PilotData(images.subset([0, 1]), images.subset([2]), images.subset([])))
    assert (found["copies"], found["copies_across_parts"]) == (1, 2)
    assert found["labels_that_disagree"] == [["0.png", "1.jpg"]]


def test_a_killed_run_goes_on_and_says_the_same(done: tuple[Pilot, dict[str, Any]], tmp_path: Path):
    settings = "methods='linear_probe, nearest_class_mean', shots=2, draws=2, test_images=24"
    script = f"from gcpl_lab.pilot import Pilot; import sys; Pilot(sys.argv[1], {settings}).run()"
    found = []
    for stops in (("stages/fit_of_models.json", "trials/*.json"), ()):
        folder = tmp_path / f"{len(stops)}"
        Pilot.create(folder, done[0].folder.parent / "images")
        command = [sys.executable, "-c", script, str(folder)]
        for wanted in stops:
            running = subprocess.Popen(command)
            while not list(folder.glob(wanted)):
                assert running.poll() is None, "it ended before it could be killed"
                time.sleep(0.01)
            running.kill()
            running.wait()
            assert not (folder / "pilot.json").exists()
        subprocess.run(command, check=True)
        found.append(json.loads((folder / "pilot.json").read_text()))
        for row in found[-1]["methods"]:
            del row["train_seconds"], row["predict_seconds"]
    assert found[0] == found[1]


def test_a_second_run_takes_what_is_there(done: tuple[Pilot, dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    pilot, found = done
    monkeypatch.setattr("gcpl_lab.experiments.few_shot.FewShotExperiment._run_objective", None)  # no prompts anew
    again = Pilot(pilot.folder).run()
    assert again == found


def test_an_interrupted_run_goes_on(done: tuple[Pilot, dict[str, Any]], tmp_path: Path):
    pilot, found = done
    copy_of(pilot, tmp_path / "run")
    kept = sorted((tmp_path / "run" / "trials").glob("*.json"))
    kept[0].unlink()
    (tmp_path / "run" / "stages" / "watch.json").unlink()
    again = Pilot(tmp_path / "run").run()
    same = ("chosen", "coverage", "none_of_these", "watch", "teaching")
    assert {name: again[name] for name in same} == {name: found[name] for name in same}


def test_the_watch_is_quiet_and_then_alarms(done: tuple[Pilot, dict[str, Any]], tmp_path: Path):
    pilot, _ = done
    rng = np.random.default_rng(0)
    for number, grey in enumerate(rng.choice((40, 120, 220), 30).tolist()):
        path = paint(tmp_path / "new", f"usual_{number}.png", grey, 9000 + number)
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    found = pilot.watch(tmp_path / "new")
    assert (found["alarms"], found["new"], found["num_images"]) == ([], 30, 30)
    assert pilot.watch(tmp_path / "new")["known"] == 30  # nothing is answered twice
    (tmp_path / "seen.csv").write_text("file,label\nusual_0.png,dark\nusual_1.png,grey\n")
    assert pilot.watch(tmp_path / "new", reviews=tmp_path / "seen.csv")["reviewed"]["num_images"] == 2
    later = datetime.fromtimestamp(1_700_000_020)
    assert copy_of(pilot, tmp_path / "run").watch(tmp_path / "new", since=later)["num_images"] == 30  # of the log
    (tmp_path / "run" / "watch.jsonl").unlink()
    found = Pilot(tmp_path / "run").watch(tmp_path / "new", since=later)
    assert (found["num_images"], found["passed_over"]) == (10, 20)
    for number in range(60):
        path = paint(tmp_path / "new", f"strange_{number}.png", 5 if number % 2 else 250, 8000 + number)
        os.utime(path, (1_700_001_000 + number, 1_700_001_000 + number))
    command = ["pilot", "watch", str(pilot.folder), str(tmp_path / "new"), "--json", "--since", "2001-01-31"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 3, result.output
    told = json.loads(result.stdout)
    assert {"name", "after", "figures"} <= told["alarms"][0].keys()
    assert told["alarms"][0]["figures"]["martingale"] >= told["alarms"][0]["figures"]["limit"]
    assert "Control charts" in (pilot.folder / "watch.html").read_text()


def test_an_error_is_explained(done: tuple[Pilot, dict[str, Any]], tmp_path: Path):
    pilot, _ = done
    found = pilot.explain(paint(tmp_path, "odd.png", 120, 5), "bright")
    assert found["answer"] == ["grey"]
    assert found["nearest"][0]["classes"] == ["grey"]
    assert found["causes"]
    assert ("figure" in found) == (pilot.results["chosen"]["method"] == "gcpl")
    with pytest.raises(DataError, match="no error to explain"):
        pilot.explain(tmp_path / "odd.png", "grey")
    with pytest.raises(DataError, match="'green' is no class"):
        pilot.explain(tmp_path / "odd.png", "green")


@pytest.mark.parametrize(
    ("cause", "signs"),
    [
        ("label doubtful", {"sure": 0.99, "nearest_agree": 1.0}),
        ("unlike the training images", {"stranger_than": 0.99, "sure": 0.99, "nearest_agree": 1.0}),
        ("look-alike pair", {"look_alikes": True, "came_second": True}),
        ("caption or name", {"misnamed": 0.9}),
        ("threshold", {"came_second": True, "misnamed": 0.9}),
        ("threshold", {}),
    ],
)
def test_each_cause_has_its_signs(cause: str, signs: dict[str, Any]):
    none = {"stranger_than": 0.5, "sure": 0.5, "nearest_agree": 0.0, "look_alikes": False}
    found = likely_causes(**{**none, "came_second": False, "misnamed": 0.0, **signs})
    assert found[0] == cause
    assert set(found) <= CAUSES.keys()


def test_corrections_join_the_next_exemplars(done: tuple[Pilot, dict[str, Any]], tmp_path: Path):
    pilot = copy_of(done[0], tmp_path / "run")
    for number, grey in enumerate((40, 80, 120, 170)):
        paint(tmp_path / "new", f"{number}.png", grey, 700 + number)
    (tmp_path / "seen.csv").write_text("file,label\n0.png,dark\n1.png,grey\n2.png,grey\n3.png,bright\nlost.png,dark\n")
    result = CliRunner().invoke(
        app, ["pilot", "correct", str(pilot.folder), str(tmp_path / "seen.csv"), str(tmp_path / "new"), "--most", "2"]
    )
    assert result.exit_code == 0, result.output
    rows = (pilot.folder / "corrections.csv").read_text().splitlines()
    assert rows[0] == "file,label"
    judge = pilot.judge(done[1]["chosen"]["method"])
    sure = judge.answer([tmp_path / "new" / f"{number}.png" for number in range(4)])["probabilities"].max(axis=1)
    labels = [("dark", "grey", "grey", "bright")[place] for place in np.argsort(sure)[:2]]
    assert [row.split(",")[1] for row in rows[1:]] == labels  # those that it is least sure of, with their labels
    with pytest.raises(ArtifactError, match="its images changed"):
        Pilot(pilot.folder).watch(tmp_path / "new")
    settings = {"methods": "linear_probe, nearest_class_mean", "generated": False}
    again = Pilot(pilot.folder, **settings)
    found = again.run()
    exemplars = again.judge("linear_probe").exemplars
    assert (found["corrections"], len(exemplars)) == (2, 8)
    assert [path.parent.name for path in exemplars.images[-2:]] == ["corrections"] * 2
    assert "2 images that people corrected" in (pilot.folder / "card.md").read_text()
    rest = again.correct(tmp_path / "seen.csv", tmp_path / "new")
    assert sorted(rest) == sorted(f"{place}.png" for place in np.argsort(sure)[2:])  # none is taken twice
    (tmp_path / "both.csv").write_text("file,label\n0.png,dark;grey\n")
    with pytest.raises(ArtifactError, match="has 2 labels"):
        again.correct(tmp_path / "both.csv", tmp_path / "new")
    with pytest.raises(DataError, match="taken before"):
        again.correct(tmp_path / "seen.csv", tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"miss": -1.0}, "miss is -1"),
        ({"methods": "gcpl"}, "no simple one"),
        ({"methods": "gcpl, magic"}, "magic cannot be used"),
        ({"shots": 14}, "none is left to calibrate on"),
        ({"normal_class": "white"}, "normal_class is 'white'"),
        ({"coverage": 0.99}, "cannot promise"),
    ],
)
def test_bad_settings_are_named(done: tuple[Pilot, dict[str, Any]], change: dict[str, Any], message: str):
    pilot, _ = done
    with pytest.raises((DataError, ArtifactError), match=message):
        Pilot(pilot.folder, **change).run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[costs\n", "is no TOML"),
        ("miss = 1\n", "stands outside the sections"),
        ("[costs]\nmiss = 1\n", "has no images"),
        ("miss", "has no miss; expected images"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str):
    if text == "miss":  # a whole file without this line
        write_config(tmp_path, "bundled:fashion", "classes", "tiny")
        text = re.sub(r"^miss =.*\n", "", (tmp_path / "pilot.toml").read_text(), flags=re.MULTILINE)
    (tmp_path / "pilot.toml").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        Pilot(tmp_path)


def test_bad_images_are_named(tmp_path: Path):
    for number in range(30):
        paint(tmp_path / "one" / "dark", f"{number}.png", 40, number)
    with pytest.raises(DataError, match="one class"):
        Pilot.create(tmp_path / "run 1", tmp_path / "one").run()
    paint(tmp_path / "one" / "grey", "0.png", 120, 99)
    with pytest.raises(DataError, match="'grey' has 0 images besides the test images"):
        Pilot.create(tmp_path / "run 2", tmp_path / "one").run()
    for number in range(30):
        paint(tmp_path / "one" / "grey", f"{number}.png", 120, 100 + number)
    (tmp_path / "one" / "grey" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        Pilot.create(tmp_path / "run 3", tmp_path / "one", "tiny").run()
    with pytest.raises(DataError, match="no such folder"):
        Pilot.create(tmp_path / "run 4", tmp_path / "absent")
    assert not (tmp_path / "run 4").exists()


def test_nothing_is_overwritten(done: tuple[Pilot, dict[str, Any]], tmp_path: Path):
    pilot, _ = done
    with pytest.raises(DataError, match="exists"):
        Pilot.create(pilot.folder, pilot.folder.parent / "images")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        pilot.watch(tmp_path / "empty")
    (tmp_path / "columns.csv").write_text("name,decision\na,b\n")
    with pytest.raises(ArtifactError, match="expected file and label"):
        pilot.watch(pilot.folder, reviews=tmp_path / "columns.csv")
    shutil.copytree(pilot.folder, tmp_path / "old")
    results = json.loads((tmp_path / "old" / "pilot.json").read_text())
    (tmp_path / "old" / "pilot.json").write_text(json.dumps({**results, "format": "gcpl_lab pilot 0"}))
    with pytest.raises(ArtifactError, match="run it again"):
        Pilot(tmp_path / "old").watch(tmp_path)


def test_reviewed_samples_enter_the_page(done: tuple[Pilot, dict[str, Any]]):
    pilot, _ = done
    review = pilot.review_samples()
    review.accept.click()
    review.reject.click()
    again = pilot.run()
    assert again["reviewed_samples"]["value"] == 0.5
    assert "People accepted 50.0 %" in (pilot.folder / "pilot.html").read_text()
    (pilot.folder / "samples_review.csv").unlink()


def test_a_shortcut_is_found(tmp_path: Path):
    files = []
    for number in range(40):
        values = np.random.default_rng(number).integers(0, 255, (32, 32), np.uint8)
        values[0] = 255 * (number % 2)  # the first row says the class
        path = tmp_path / f"{np.random.default_rng(900 + number).integers(10**8):08d}.png"
        Image.fromarray(values).save(path)
        files.append(path)
    labels = np.arange(40) % 2
    found = {entry["cue"]: entry for entry in find_shortcuts(files, labels)}
    assert found["border colours"]["warning"]
    assert not found["file name"]["warning"]
    assert "folder" not in found
    for number, path in enumerate(files):  # one camera saw nearly all of a class, and a few of the other
        camera = tmp_path / f"camera {number % 2 if number > 3 else 0}"
        camera.mkdir(exist_ok=True)
        files[number] = path.rename(camera / path.name)
    assert {entry["cue"]: entry for entry in find_shortcuts(files, labels)}["folder"]["warning"]


def test_captions_and_the_trades_words(tmp_path: Path):
    (tmp_path / "words.csv").write_text("term,class\ntrainer,sneaker\n")
    words = read_words(tmp_path / "words.csv", ("sneaker", "bag"))
    captions = ("A trainer on a shelf", "two bags", None, "two bags")
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], np.uint8)
    images = tuple(tmp_path / f"{place}.png" for place in range(4))
    found = check_captions(
        MultiLabelSet("made", images, targets, ("sneaker", "bag"), captions, "0" * 64), words, tmp_path / "c.csv"
    )
    assert (found["empty"], found["copied"], found["contradictions"]) == (1, 1, 1)
    assert found["by_class"][0]["covered"]["value"] == 0.5
    assert name_classes(captions, words) == ["A trainer on a shelf, sneaker", "two bags", None, "two bags"]
    (tmp_path / "words.csv").write_text("term,class\nboot,shoe\n")
    with pytest.raises(DataError, match=r"line 2: term 'boot' of class 'shoe'"):
        read_words(tmp_path / "words.csv", ("sneaker", "bag"))


def test_the_verdict_follows_its_rules(done: tuple[Pilot, dict[str, Any]]):
    pilot, found = done
    sure = {"value": 0.95, "low": 0.9, "high": 0.98}
    cheap = [{"name": "taken, with reviews", "cost": 50.0, "low": 40.0, "high": 60.0}]
    cheap += [
        {"name": f"{what} reviewed", "cost": 500.0, "low": 500.0, "high": 500.0} for what in ("everything", "nothing")
    ]
    good = {**found, "chosen": {**found["chosen"], "accuracy": sure}, "processes": cheap}
    good |= {
        "coverage": {**found["coverage"], "high": 0.95},
        "reviews": {"value": 0.05, "low": 0.0, "high": 0.1},
        "fit_of_models": {**found["fit_of_models"], "fit": True},
    }
    assert decide(pilot.config, good)["decision"] == "go"
    unsure = {**good, "chosen": {**good["chosen"], "accuracy": {**sure, "low": 0.5}}}
    assert decide(pilot.config, unsure)["decision"] == "not yet"
    unfit = decide(pilot.config, {**good, "fit_of_models": {**found["fit_of_models"], "fit": False}})
    assert unfit["decision"] == "no-go"
    assert "larger preset" in unfit["would_change_it"][0]
    assert plan_trial(0.8, 0.8, 1000)["difference"] == 0.05


def test_another_class_mix_is_noticed():
    rng, parts = np.random.default_rng(0), []
    for labels in (rng.integers(3, size=90), np.zeros(50, int)):
        answers = {"probabilities": np.eye(3)[labels], "distances": rng.uniform(size=(len(labels), 3))}
        parts.append({**answers, "features": rng.normal(size=(len(labels), 4))})
    found = find_drift(*parts)
    assert found["class mix"]["alarm"]
    assert not found["feature distance"]["alarm"]
    assert not found["CLIP features"]["alarm"]


def test_several_labels(tmp_path: Path):
    pilot = Pilot.create(tmp_path / "run", "bundled:wardrobe")
    assert pilot.config.kind == "labels"
    settings = {"draws": 2, "num_epochs": 1, "test_images": 60}
    found = Pilot(tmp_path / "run", **settings).run()
    assert found["captions"]["num_images"] == found["images"]["num_images"]["pool"]
    assert found["none_of_these"] is None
    assert len(found["methods"][0]["points"]) == 3
    corrected = (tmp_path / "run" / "metadata_corrected.csv").read_text().splitlines()
    assert corrected[0] == "file_name,labels,caption,note"
    assert len(corrected) == 1 + found["captions"]["num_images"]
    assert 0.5 < found["coverage"]["measured"] <= 1
    assert {entry["method"] for entry in found["methods"]} == {"lmpt", "linear_probe", "zero_shot_clip"}
