"""Are the images fit? Copies, labels that disagree, what gives a class away, and what a file tells."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from gcpl_lab.data.duplicates import find_duplicates, hash_images
from gcpl_lab.data.readers import list_lines, read_image
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.fit_of_models import LOGISTIC, cross_validate
from gcpl_lab.pilot.data import PilotData, rarest_labels, targets_of

SHORTCUT_IMAGES = 400
"""Most images that the shortcut probe reads."""
MOST_FOLDERS = 50
BORDER = 0.05
"""Share of each side that counts as border."""
OWNER = {"Artist", "Copyright", "CameraOwnerName", "BodySerialNumber", "LensSerialNumber", "XPAuthor", "HostComputer"}
PERSONAL = {"place": {"GPSInfo"}, "owner": OWNER}
"""EXIF entries that are counted, and never read out."""


def check_images(data: PilotData) -> dict[str, Any]:
    """Counts, sizes, copies across parts, labels that disagree between copies, shortcuts, and what EXIF tells."""
    parts = {"pool": data.pool, "calibration": data.calibration, "test": data.test}
    files = [path for part in parts.values() for path in part.images]
    owner = np.repeat(list(parts), [len(part) for part in parts.values()])
    targets = np.concatenate([targets_of(part) for part in parts.values()])
    hashes, failures = hash_images(files)
    if failures:
        raise DataError(f"{len(failures)} images cannot be used:" + list_lines([message for _, message in failures]))
    pairs = find_duplicates(hashes)
    across = [pair for pair in pairs if owner[pair.first] != owner[pair.second]]
    doubtful = [pair for pair in pairs if (targets[pair.first] != targets[pair.second]).any()]
    sizes, personal = Counter[str](), Counter[str](place=0, owner=0)
    for path in files:
        with Image.open(path) as image:
            sizes["{} x {}".format(*image.size)] += 1
            exif = image.getexif()
            names = {ExifTags.TAGS.get(tag) for tag in (*exif, *exif.get_ifd(ExifTags.IFD.Exif))}
            personal.update(what for what, entries in PERSONAL.items() if names & entries)
    return {
        "num_images": {name: len(part) for name, part in parts.items()},
        "class_counts": {name: targets_of(part).sum(axis=0).tolist() for name, part in parts.items()},
        "sizes": dict(sizes.most_common(10)),
        "copies": len(pairs),
        "copies_across_parts": len({index for pair in across for index in pair[:2]}),
        "labels_that_disagree": [[files[pair.first].name, files[pair.second].name] for pair in doubtful[:20]],
        "num_labels_that_disagree": len(doubtful),
        "exif": {**personal, "of": len(files)},
        "faces": "not checked: look at the images yourself before they are shown to others",
        "shortcuts": find_shortcuts(files, rarest_labels(targets)),
    }


def find_shortcuts(files: Sequence[Path], labels: np.ndarray, seed: int = 0) -> list[dict[str, Any]]:
    """How well the class can be told from what should say nothing: border colours, size and compression, file, folder.

    A logistic regression on each alone, cross-validated, gives ``accuracy``, ``largest_class``, ``num_images`` and
    ``warning`` for each ``cue``: an interval above the largest class, as a model may learn that instead of the thing.
    Folders that are the classes themselves are no cue.
    """
    chosen = np.sort(np.random.default_rng([seed, 71]).permutation(len(files))[:SHORTCUT_IMAGES])
    files, labels = [files[place] for place in chosen], labels[chosen]
    counts = np.bincount(labels)
    if np.count_nonzero(counts) < 2 or counts[counts > 0].min() < 2:
        return []
    folders, cues = sorted({path.parent for path in files}), dict(CUES)
    pairs = {(path.parent, label) for path, label in zip(files, labels.tolist(), strict=True)}
    if 1 < len(folders) <= MOST_FOLDERS and len(pairs) > len(folders):
        cues["folder"] = lambda path: [float(path.parent == folder) for folder in folders]
    inputs = {cue: (LOGISTIC, np.array([cues[cue](path) for path in files], np.float64)) for cue in cues}
    largest, shares = float(counts.max() / len(labels)), cross_validate(inputs, labels, seed)
    same = {"largest_class": largest, "num_images": len(labels)}
    return [{"cue": cue, "accuracy": shares[cue], **same, "warning": shares[cue]["low"] > largest} for cue in cues]


def _border(path: Path) -> list[float]:
    """Mean and spread of the border's colours."""
    pixels = np.asarray(read_image(path), np.float64)
    high, wide = (max(1, round(BORDER * side)) for side in pixels.shape[:2])
    border = np.ones(pixels.shape[:2], bool)
    border[high:-high, wide:-wide] = False
    return [*pixels[border].mean(axis=0), *pixels[border].std(axis=0)]


def _file(path: Path) -> list[float]:
    """Width, height, and bytes a pixel."""
    with Image.open(path) as image:
        width, height = image.size
    return [width, height, path.stat().st_size / (width * height)]


def _name(path: Path) -> list[float]:
    """Length, last number, and how often each letter occurs; the folder's name does not count."""
    digits, letters = re.findall(r"\d+", path.stem), Counter(path.stem.lower())
    number = float(digits[-1][-9:]) if digits else -1.0
    return [len(path.stem), number, *(letters[chr(97 + place)] for place in range(26))]


CUES: dict[str, Callable[[Path], list[float]]] = {
    "border colours": _border,
    "size and compression": _file,
    "file name": _name,
}
