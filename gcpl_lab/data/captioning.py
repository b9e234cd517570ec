"""Captions for images that have none, from a Hugging Face image-to-text model; nothing here runs by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gcpl_lab.data.readers import list_images, read_images
from gcpl_lab.data.tables import read_csv, write_csv
from gcpl_lab.errors import DataError, ModelError

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
    """Caption every image of a folder that has no caption yet, and write the metadata file, whose path is returned.

    The file is written anew, whole, after every batch: an interrupted run goes on where it stopped. Rows and
    columns that are there already are kept, and no caption is overwritten. A new file gets an empty column
    ``labels`` to fill in; :func:`gcpl_lab.data.lists.read_metadata` reads the result.

    Args:
        model: Name on the Hugging Face hub, or a folder: BLIP and other models that write text about an image.
            Weights must be safetensors; code from the hub is never run.
        output: Name of the file in ``folder``.
        on_progress: Called with (captioned, to caption) after every batch.

    Raises:
        DataError: The folder holds no image, images cannot be read (all are named), or an earlier file is no such CSV.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with images in it")
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(f"batch_size is {batch_size} and max_new_tokens {max_new_tokens}; expected 1 or more")
    files = list_images(folder)
    if not files:
        raise DataError(f"{folder}: holds no image; expected files such as photo.jpg directly in it")
    path = folder / output
    columns, table = read_csv(path) if path.exists() else (list(COLUMNS), [])
    if "file_name" not in columns:
        raise DataError(f"{path}: its first line names no column 'file_name'; choose another output name")
    columns += [] if "caption" in columns else ["caption"]
    rows = {row["file_name"]: row for _, row in table}
    missing = [file for file in files if not rows.get(file.name, {}).get("caption", "").strip()]
    if not missing:
        return path
    describe = _load_captioner(model, max_new_tokens, device)
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        for file, caption in zip(batch, describe(read_images(batch)), strict=True):
            rows.setdefault(file.name, {"file_name": file.name})["caption"] = caption
        write_csv(path, [{column: row.get(column, "") for column in columns} for row in rows.values()])
        if on_progress:
            on_progress(start + len(batch), len(missing))
    return path


def _load_captioner(model: str | Path, max_new_tokens: int, device: str) -> Callable[[Sequence[Any]], list[str]]:
    """A function from images to one line of text each."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    options = {"trust_remote_code": False, "local_files_only": Path(model).is_dir()}  # a folder asks nobody
    try:
        processor = AutoProcessor.from_pretrained(model, **options)
        network = AutoModelForImageTextToText.from_pretrained(model, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"captioning model {str(model)!r} cannot be loaded ({error}). Give a folder, or a name on the hub that was "
            "fetched before (such as Salesforce/blip-image-captioning-base), of a model that writes text about an "
            "image, with safetensors weights"
        ) from error
    network = network.eval().to(device)

    @torch.no_grad()
    def describe(images: Sequence[Any]) -> list[str]:
        inputs = processor(images=list(images), return_tensors="pt").to(device)
        ids = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return [" ".join(text.split()) for text in processor.batch_decode(ids, skip_special_tokens=True)]

    return describe
