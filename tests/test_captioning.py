"""Captioning a folder with a tiny BLIP of random weights: what it says means nothing, where it goes does."""

import csv
import json
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data import captioning
from gcpl_lab.data.captioning import caption_folder
from gcpl_lab.data.lists import read_metadata
from gcpl_lab.errors import DataError, ModelError


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("captioner")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "shirt", "bag", "dark", "photo", "of"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": 5, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    text = {"vocab_size": len(words), "max_position_embeddings": 40, "encoder_hidden_size": 16} | tokens | size
    vision = {"image_size": 16, "patch_size": 8} | size
    config = transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BlipForConditionalGeneration(config)
    model.save_pretrained(folder, safe_serialization=True)
    processor = transformers.BlipImageProcessor(size={"height": 16, "width": 16})
    transformers.BlipProcessor(processor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        image = Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / f"photo {index}.png")
    return tmp_path / "images"


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_image_gets_a_row(captioner: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = caption_folder(folder, captioner, batch_size=2, max_new_tokens=4, on_progress=lambda *n: seen.append(n))
    rows = rows_of(path)
    assert path == folder / "metadata.csv"
    assert [row["file_name"] for row in rows] == [f"photo {i}.png" for i in range(5)]
    assert list(rows[0]) == ["file_name", "labels", "caption"]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert {file.suffix for file in folder.iterdir()} == {".png", ".csv"}
    assert len(read_metadata(path, class_names=("shirt", "bag"))) == 5


def test_code_beside_a_captioner_is_not_run(
    captioner: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its files say; nobody is asked, neither the network nor the person."""

    def forbidden(*_arguments: Any, **_words: Any) -> None:
        raise AssertionError("a folder of models opened a socket or asked on standard input")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr("builtins.input", forbidden)
    copy, mark = Path(shutil.copytree(captioner, tmp_path / "model")), tmp_path / "it_ran"
    (copy / "other.py").write_text(f"open({str(mark)!r}, 'w').close()")
    kinds = ("AutoConfig", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor", "AutoModelForImageTextToText")
    for path in copy.glob("*config.json"):
        if isinstance(content := json.loads(path.read_text()), dict):
            path.write_text(json.dumps(content | {"auto_map": dict.fromkeys(kinds, "other.Other")}))
    with suppress(ModelError):
        caption_folder(folder, copy, max_new_tokens=2)
    assert not mark.exists()


def use_stand_in(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """A captioner that counts; it is interrupted at one of its calls. Returns the sizes of its batches."""
    calls: list[int] = []

    def describe(images: Any) -> list[str]:
        calls.append(len(images))
        if len(calls) == fail_at:
            raise KeyboardInterrupt
        return [f'a "dark", wide photo {sum(calls)}-{i}' for i in range(len(images))]

    monkeypatch.setattr(captioning, "_load_captioner", lambda *_: describe)
    return calls


def test_an_interrupted_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_in(monkeypatch, fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        caption_folder(folder, "any", batch_size=2)
    kept = rows_of(folder / "metadata.csv")
    assert len(kept) == 4
    calls = use_stand_in(monkeypatch)
    caption_folder(folder, "any", batch_size=2)
    assert calls == [1]
    assert rows_of(folder / "metadata.csv")[:4] == kept
    monkeypatch.setattr(captioning, "_load_captioner", None)  # nothing is left to caption, so no model may load
    caption_folder(folder, "any")


def test_earlier_rows_columns_and_captions_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_in(monkeypatch)
    path = folder / "metadata.csv"
    path.write_text('file_name,split,labels,caption\nphoto 1.png,train,bag,"mine, by hand"\nelsewhere.png,test,bag,\n')
    caption_folder(folder, "any")
    rows = {row["file_name"]: row for row in rows_of(path)}
    assert list(rows["photo 1.png"].values()) == ["photo 1.png", "train", "bag", "mine, by hand"]
    assert list(rows["elsewhere.png"].values()) == ["elsewhere.png", "test", "bag", ""]
    assert rows["photo 0.png"]["caption"]
    assert rows["photo 0.png"]["split"] == ""


def test_what_cannot_be_captioned_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for place, model, message in (
        (tmp_path / "nowhere", "any", "no such folder"),
        (tmp_path / "empty", "any", "holds no image"),
        (folder, tmp_path / "empty", "cannot be loaded"),
    ):
        with pytest.raises((DataError, ModelError), match=message):
            caption_folder(place, model)
    assert not (folder / "metadata.csv").exists()
    use_stand_in(monkeypatch)
    (folder / "photo 9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"photo 9.png"):
        caption_folder(folder, "any")
    (folder / "photo 9.png").unlink()
    bad = {"name,caption\nx,y\n": "names no column 'file_name'", "file_name,caption\nx\n": "line 2: has 1 columns"}
    for content, message in bad.items():
        (folder / "metadata.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            caption_folder(folder, "any")
    with pytest.raises(ValueError, match="batch_size is 0"):
        caption_folder(folder, "any", batch_size=0)
