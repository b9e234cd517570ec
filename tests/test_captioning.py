"""Captioning a folder with a tiny BLIP of random weights: what it says means nothing, where it goes does."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data import captioning
from gcpl_lab.data.captioning import caption_folder
from gcpl_lab.data.multilabel import read_metadata
from gcpl_lab.errors import DataError, ModelError


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
        BlipTextConfig,
        BlipVisionConfig,
    )

    folder = tmp_path_factory.mktemp("captioner")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "shirt", "bag", "dark", "photo", "of"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer.from_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = BlipTextConfig(
        vocab_size=len(words),
        max_position_embeddings=40,
        bos_token_id=5,
        eos_token_id=3,
        pad_token_id=0,
        sep_token_id=3,
        encoder_hidden_size=16,
        **size,
    )
    vision = BlipVisionConfig(image_size=16, patch_size=8, **size)
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BlipForConditionalGeneration(config)
    model.save_pretrained(folder, safe_serialization=True)
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / f"photo {index}.png")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_picture_gets_a_row(captioner: Path, pictures: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = caption_folder(
        pictures, captioner, batch_size=2, max_new_tokens=4, on_progress=lambda *numbers: seen.append(numbers)
    )
    rows = rows_of(path)
    assert path == pictures / "metadata.csv"
    assert [row["file_name"] for row in rows] == [f"photo {i}.png" for i in range(5)]
    assert list(rows[0]) == ["file_name", "labels", "caption"]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert {file.suffix for file in pictures.iterdir()} == {".png", ".csv"}
    data = read_metadata(path, class_names=("shirt", "bag"))
    assert len(data) == 5


def stand_in(calls: list[int], fail_at: int | None = None) -> Any:
    def load(model: Any, max_new_tokens: int, device: str) -> Any:
        def describe(images: Any) -> list[str]:
            calls.append(len(images))
            if len(calls) == fail_at:
                raise KeyboardInterrupt
            return [f'a "dark", wide photo {sum(calls)}-{i}' for i in range(len(images))]

        return describe

    return load


def test_an_interrupted_run_goes_on(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(captioning, "_load_captioner", stand_in(calls, fail_at=3))
    with pytest.raises(KeyboardInterrupt):
        caption_folder(pictures, "any", batch_size=2)
    kept = rows_of(pictures / "metadata.csv")
    assert len(kept) == 4
    calls.clear()
    monkeypatch.setattr(captioning, "_load_captioner", stand_in(calls))
    caption_folder(pictures, "any", batch_size=2)
    assert calls == [1]
    assert rows_of(pictures / "metadata.csv")[:4] == kept

    def refuse(*_: Any) -> Any:
        raise AssertionError("nothing is left to caption, so no model may load")

    monkeypatch.setattr(captioning, "_load_captioner", refuse)
    caption_folder(pictures, "any")


def test_earlier_rows_columns_and_captions_are_kept(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioning, "_load_captioner", stand_in([]))
    path = pictures / "metadata.csv"
    path.write_text('file_name,split,labels,caption\nphoto 1.png,train,bag,"mine, by hand"\nelsewhere.png,test,bag,\n')
    caption_folder(pictures, "any")
    rows = {row["file_name"]: row for row in rows_of(path)}
    assert rows["photo 1.png"] == {
        "file_name": "photo 1.png",
        "split": "train",
        "labels": "bag",
        "caption": "mine, by hand",
    }
    assert rows["elsewhere.png"]["caption"] == ""
    assert rows["photo 0.png"]["caption"]
    assert rows["photo 0.png"]["split"] == ""


def test_what_cannot_be_captioned_is_named(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such folder"):
        caption_folder(tmp_path / "nowhere", "any")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        caption_folder(tmp_path / "empty", "any")
    with pytest.raises(ModelError, match="cannot be loaded"):
        caption_folder(pictures, tmp_path / "empty")
    assert not (pictures / "metadata.csv").exists()
    monkeypatch.setattr(captioning, "_load_captioner", stand_in([]))
    (pictures / "photo 9.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"photo 9.png"):
        caption_folder(pictures, "any")
    (pictures / "photo 9.png").unlink()
    (pictures / "metadata.csv").write_text("name,caption\nx,y\n")
    with pytest.raises(DataError, match="names no column 'file_name'"):
        caption_folder(pictures, "any")
    (pictures / "metadata.csv").write_text("file_name,caption\nx\n")
    with pytest.raises(DataError, match="row 2: has 1 columns; expected 2"):
        caption_folder(pictures, "any")
    with pytest.raises(ValueError, match="batch_size is 0"):
        caption_folder(pictures, "any", batch_size=0)
