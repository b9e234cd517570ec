"""Whatever a file holds, readers read it or refuse it with an error of ours; and every command says so in one line."""

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import gcpl_lab.cli.app as cli
from gcpl_lab.data.lists import read_longtail_list, read_metadata
from gcpl_lab.data.readers import read_image
from gcpl_lab.data.tables import read_csv, read_table
from gcpl_lab.errors import LabError
from gcpl_lab.experiments.runs import read_run
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.settings import Settings
from gcpl_lab.storage import read_json, read_tensors
from gcpl_lab.training.artifacts import load_class_prompts
from gcpl_lab.views.widgets.review import read_review

INPUTS = 2000
"""Generated for each reader."""

CSV = b'file_name,labels,caption\n0.png,cat;dog,"a cat, and a dog"\n1.png,,\n'
JSONL = b'{"file_name": "0.png", "labels": ["cat", "dog"], "caption": null}\n{"file_name": "1.png", "labels": "cat"}\n'
LIST = b"0.png 0 1\n1.png 1\n\n"
REVIEW = b"id,label,decision,reason,decided_at\na/1.png,,accept,,2026-01-01T00:00:00+00:00\n"
ROW = {"name": "gcpl", "seed": 0, "accuracy": 0.5, "calibration_error": 0.1, "train_seconds": 1, "predict_seconds": 1}
DATA = {"checksum": "ab", "test_size": 10, "classes": ["a"], "shots": 4, "name": "mine"}
RESULTS = json.dumps({"data": DATA, "methods": [ROW], "versions": {}}).encode()
PIECES = [b"\xff", b"\x00", b"\\ud83d", b"\xc3\x28", b"\xef\xbb\xbf", b"9" * 400, b"[" * 2000, b"\r\n"]
PIECES += [piece.encode() for piece in "\" ' , ; \t { } [ ] null 1e999 -1 /etc/passwd ../ NaN =cmd()".split(" ")]


def altered(whole: bytes, number: int) -> bytes:
    """One to four changes of a file that is right: bytes put in, taken out or doubled, and the file cut."""
    rng, content = random.Random(number), bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content) + 1)
        stop = min(len(content), start + rng.choice((0, 1, 3, 20)))
        kind = rng.randrange(5)
        new = (rng.choice(PIECES), b"", bytes(content[start:stop]) * 2, rng.randbytes(stop - start + 1), b"")[kind]
        content[start : stop if kind < 4 else len(content)] = new
    return bytes(content)


def tables(path: Path) -> None:
    list(read_table(path))
    read_csv(path)


def lists(path: Path) -> None:
    """One of the three files is the altered one."""
    content, folder = path.read_bytes(), path.parent
    whole = {"train.txt": LIST, "labels.txt": b"cat 0\ndog 1\n", "captions.txt": b"0.png a\n1.png b\n"}
    whole[sorted(whole)[len(content) % 3]] = content
    for name, text in whole.items():
        (folder / name).write_bytes(text)
    read_longtail_list(folder / "train.txt", folder / "labels.txt", folder, folder / "captions.txt")


def prompts(path: Path) -> None:
    (path.parent / "prompts.json").write_bytes(path.read_bytes())
    load_class_prompts(path.parent)


def results(path: Path) -> None:
    (path.parent / "results.json").write_bytes(path.read_bytes())
    read_run(path.parent)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Whole files that others are made of."""
    folder, found = tmp_path_factory.mktemp("samples"), {}
    for kind in IMAGES:
        Image.linear_gradient("L").resize((24, 16)).convert("P" if kind == "gif" else "L").save(folder / f"x.{kind}")
        found[kind] = (folder / f"x.{kind}").read_bytes()
    header = json.dumps({"v": {"dtype": "F32", "shape": [1, 1, 2], "data_offsets": [0, 8]}}).encode()
    found["tensors"] = len(header).to_bytes(8, "little") + header + bytes(8)
    return found


IMAGES = ("png", "jpeg", "gif", "bmp", "tiff", "webp")
READERS: dict[str, tuple[str, str | bytes, Callable[[Path], Any]]] = {
    "table": ("x.csv", CSV, tables),
    "lines of JSON": ("x.jsonl", JSONL, lambda path: list(read_table(path))),
    "metadata": ("x.csv", CSV, read_metadata),
    "metadata as JSON": ("x.jsonl", JSONL, read_metadata),
    "lists": ("x.txt", LIST, lists),
    "review": ("x.csv", REVIEW, read_review),
    "JSON": ("x.json", RESULTS, read_json),
    "results": ("x.json", RESULTS, results),
    "prompts": ("x.json", b'{"format": "gcpl_lab.class_prompts", "format_version": 1, "class_names": ["a"]}', prompts),
    "tensors": ("x.safetensors", "tensors", read_tensors),
    "image": ("x", "", read_image),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PIL, about damaged TIFF files
@pytest.mark.parametrize("name", READERS)
def test_readers_refuse_what_they_cannot_read(name: str, tmp_path: Path, samples: dict[str, bytes]) -> None:
    file, whole, read = READERS[name]
    for image in ("0.png", "1.png"):
        Image.new("L", (8, 8)).save(tmp_path / image)
    refused = 0
    for number in range(INPUTS):
        kind = whole or IMAGES[number % len(IMAGES)]
        content = kind if isinstance(kind, bytes) else samples[kind]
        (tmp_path / file).write_bytes(altered(content, number))
        try:
            read(tmp_path / file)
        except LabError as error:
            refused += 1
            assert str(tmp_path) in str(error) or name == "lists"  # it names the file
    assert refused > INPUTS / 20


NUMBERS = (-1, 0, 1, 2**31, 2**64, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"))
VALUES = (*NUMBERS, None, True, "", "x", "auto", [], [1], ["{}"], {}, {"a": 1}, [0.2, 0.1], [0.1, 0.2])


@pytest.mark.parametrize("kind", [GCPLConfig, LMPTConfig])
def test_settings_are_taken_or_refused(kind: type[Settings]) -> None:
    names, refused = list(kind().as_dict()), 0
    for number in range(INPUTS):
        rng = random.Random(number)
        values = {rng.choice(names): rng.choice(VALUES) for _ in range(rng.randint(1, 3))}
        try:
            json.dumps(kind.from_dict(values).as_dict(), allow_nan=False)
        except (LabError, ValueError):
            refused += 1
    assert refused > INPUTS / 4


READING = {
    "train gcpl": ("train", "gcpl", "{}"),
    "train lmpt": ("train", "lmpt", "--metadata", "{}"),
    "train lmpt --list": ("train", "lmpt", "--list", "{}", "--labels", "{}"),
    "classify": ("classify", "{}", "{}"),
    "evaluate": ("evaluate", "{}"),
    "compare": ("compare", "--images", "{}"),
    "ablate lmpt": ("ablate", "lmpt", "--metadata", "{}"),
    "init": ("init", "new", "--images", "{}"),
    "recipe": ("recipe", "{}", "--data", "{}"),
    "slides": ("slides", "{}"),
    "map": ("map", "{}"),
    "animate": ("animate", "{}"),
    "lab": ("lab", "--notebooks", "{}"),
    "caption": ("caption", "{}", "nowhere/model"),
}


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("kind", ["missing", "an empty file", "an empty folder", "a picture", "too long a name"])
def test_commands_refuse_other_input_in_one_message(
    command: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / ("x" * 300 if kind == "too long a name" else "given")
    if kind == "an empty file":
        place.touch()
    elif kind == "an empty folder":
        place.mkdir()
    elif kind == "a picture":
        Image.new("L", (8, 8)).save(place, format="PNG")
    if command == "lab" and kind == "an empty folder":
        pytest.skip("an empty folder of notebooks is one")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["gcpl-lab", *(part.format(place) for part in READING[command])])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", "".join(capsys.readouterr()))
    assert end.value.code in (1, 2)
    assert "Traceback" not in told
    assert "Error" in told
    assert "given" in told or "xxx" in told
    assert not list(tmp_path.glob("new")), "nothing is begun"
