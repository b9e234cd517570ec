"""Captions for pictures that have none, from a Hugging Face image-to-text model; nothing here runs by itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gcpl_lab.data.readers import list_images, read_images
from gcpl_lab.errors import DataError, ModelError
from gcpl_lab.storage import write_text

COLUMNS = ("file_name", "labels", "caption")


def caption_folder(
    folder: str | Path,
    model: str | Path,
    output: str = "metadata.csv",
    *,
    batch_size: int = 8,
    max_new_tokens: int = 30,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Caption every picture of a folder that has no caption yet, and write the metadata file.

    The file is written anew, whole, after every batch: an interrupted run goes on where it stopped. Rows and
    columns that are there already are kept, and no caption is overwritten. A new file gets an empty column
    ``labels`` to fill in; :func:`gcpl_lab.data.multilabel.read_metadata` reads the result.

    Args:
        folder: Pictures directly in it, by suffix.
        model: Name on the Hugging Face hub, or a folder: BLIP and other models that write text about a picture.
            Weights must be safetensors; code from the hub is never run.
        output: Name of the file in ``folder``.
        batch_size: Pictures a pass.
        max_new_tokens: Longest caption, in tokens.
        device: Where the model runs, such as ``"cuda"``.
        on_progress: Called with (captioned, to caption) after every batch.

    Returns:
        The path of the metadata file.

    Raises:
        DataError: The folder holds no picture, pictures cannot be read (all are named), or an earlier file has
            no column ``file_name`` or a row of another length.
        ModelError: The model cannot be found or loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with pictures in it")
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(f"batch_size is {batch_size} and max_new_tokens {max_new_tokens}; expected 1 or more")
    files = list_images(folder)
    if not files:
        raise DataError(f"{folder}: holds no picture; expected files such as photo.jpg directly in it")
    path = folder / output
    columns, rows = _read_rows(path)
    missing = [file for file in files if not rows.get(file.name, {}).get("caption", "").strip()]
    if not missing:
        return path
    describe = _load_captioner(model, max_new_tokens, device)
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        for file, caption in zip(batch, describe(read_images(batch)), strict=True):
            row = rows.setdefault(file.name, dict.fromkeys(columns, "") | {"file_name": file.name})
            row["caption"] = caption
        write_text(path, _to_csv(columns, rows))
        if on_progress:
            on_progress(start + len(batch), len(missing))
    return path


def _read_rows(path: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Columns and rows by file name of an earlier file, or the columns of a new one."""
    if not path.exists():
        return list(COLUMNS), {}
    try:
        table = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except (UnicodeDecodeError, IsADirectoryError, csv.Error) as error:
        raise DataError(f"{path}: is no CSV in UTF-8 ({error}); choose another output name") from error
    if not table or "file_name" not in table[0]:
        raise DataError(f"{path}: its first line names no column 'file_name'; choose another output name")
    header, rows = table[0], {}
    for number, cells in enumerate(table[1:], start=2):
        if cells and len(cells) != len(header):
            raise DataError(
                f"{path}, row {number}: has {len(cells)} columns; expected {len(header)} ({', '.join(header)})"
            )
        if cells:
            row = dict(zip(header, cells, strict=True))
            rows[row["file_name"]] = row
    columns = header if "caption" in header else [*header, "caption"]
    return columns, {name: dict.fromkeys(columns, "") | row for name, row in rows.items()}


def _to_csv(columns: Sequence[str], rows: dict[str, dict[str, str]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    return stream.getvalue()


def _load_captioner(model: str | Path, max_new_tokens: int, device: str) -> Callable[[Sequence[Any]], list[str]]:
    """A function from pictures to one line of text each."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
        network = AutoModelForImageTextToText.from_pretrained(model, trust_remote_code=False, use_safetensors=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"captioning model {str(model)!r} cannot be loaded ({error}). Give a folder, or a name on the hub that was "
            "fetched before (such as Salesforce/blip-image-captioning-base), of a model that writes text about a "
            "picture, with safetensors weights"
        ) from error
    network = network.eval().to(device)

    @torch.no_grad()
    def describe(images: Sequence[Any]) -> list[str]:
        inputs = processor(images=list(images), return_tensors="pt").to(device)
        ids = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return [" ".join(text.split()) for text in processor.batch_decode(ids, skip_special_tokens=True)]

    return describe
