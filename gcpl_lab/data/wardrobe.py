"""The bundled long-tailed scenes of garments, in the published text format; ``tools/wardrobe.py`` made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from gcpl_lab.data.lists import read_longtail_list
from gcpl_lab.data.samples import find_samples, verify_files
from gcpl_lab.data.sets import MultiLabelSet
from gcpl_lab.errors import DataError


def load_wardrobe(split: Literal["train", "test"], folder: str | Path | None = None) -> MultiLabelSet:
    """Load the bundled scenes: 64 × 64 grey PNG files with targets over the ten fashion classes, all verified.

    ``"train"`` has captions, ``"test"`` none. ``folder`` holds another set of the same layout.
    """
    if split not in ("train", "test"):
        raise DataError(f"split is {split!r}; expected 'train' or 'test'")
    folder = Path(folder) if folder is not None else find_samples("wardrobe_lt")
    verify_files(folder)
    captions = folder / "train_captions.txt" if split == "train" else None
    data = read_longtail_list(folder / f"{split}.txt", folder / "labels.txt", folder, captions)
    return replace(data, name=f"wardrobe_lt/{split}", warnings=())
