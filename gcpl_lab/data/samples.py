"""The bundled sample sets: found, verified by checksum, and built by one seeded command.

``data_samples/fashion`` holds small PNG files, so it can be looked at with any file browser and is read by
the same code as a user's own class folders.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from gcpl_lab.data.fashion import FASHION_CLASSES, FASHION_FAMILIES, SUPPORT_PART, RawFashion, read_raw_fashion
from gcpl_lab.data.readers import ImageSet, list_images, list_lines
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.storage import file_checksum, folder_checksum, read_json, write_json, write_text

SAMPLES_VARIABLE = "GCPL_LAB_SAMPLES"
"""Environment variable with the path of a ``data_samples`` folder elsewhere."""

_FORMAT = 1
_SPLITS = ("support", "test")


def find_samples(name: str) -> Path:
    """Find one bundled set: in ``GCPL_LAB_SAMPLES``, beside the package, or in the current folder.

    Args:
        name: Its folder below ``data_samples``, such as ``"fashion"``.

    Raises:
        DataError: It is in none of these places; the message lists them.
    """
    chosen = os.environ.get(SAMPLES_VARIABLE)
    # A place that was chosen by hand is the only one: a mistake there must not fall back silently.
    roots = [Path(chosen)] if chosen else [Path(__file__).parents[2] / "data_samples", Path.cwd() / "data_samples"]
    for root in roots:
        if (root / name / "checksums.json").is_file():
            return root / name
    listed = ", ".join(str(root / name) for root in roots)
    raise DataError(
        f"sample set {name!r}: no checksums.json in {listed}; run from a clone of the repository, "
        f"or set {SAMPLES_VARIABLE} to its data_samples folder"
    )


def load_fashion(split: Literal["support", "test"]) -> ImageSet:
    """Load the bundled fashion photographs after verifying every file of the split.

    Args:
        split: ``"support"`` (exemplars are drawn from it) or ``"test"`` (only ever measured on).

    Returns:
        28 × 28 grey PNG files of ten classes in the published order, with families of look-alikes.

    Raises:
        DataError: The set is not found, or files are damaged, missing or extra; all are listed.
    """
    if split not in _SPLITS:
        raise DataError(f"split is {split!r}; expected 'support' or 'test'")
    folder = find_samples("fashion")
    checksums = _read_checksums(folder, split)
    _verify(folder / split, checksums)
    labels, images = [], []
    for label, name in enumerate(FASHION_CLASSES):
        names = sorted(entry for entry in checksums if entry.startswith(f"{_folder_name(name)}/"))
        images += [folder / split / entry for entry in names]
        labels += [label] * len(names)
    return ImageSet(
        name=f"fashion/{split}",
        images=tuple(images),
        labels=np.array(labels, np.int64),
        class_names=FASHION_CLASSES,
        checksum=folder_checksum(checksums.items()),
        families=dict(FASHION_FAMILIES),
    )


def bundled_photographs(part: Literal["train", "test"]) -> set[int]:
    """Which of the published photographs the bundled sets hold, in class folders or in scenes.

    Whatever judges the frozen models looks at others, so that nothing bundled has a say in how they were made.

    Args:
        part: Of the published files; exemplars and training scenes come from ``"train"``.

    Returns:
        Indices in the published files, counted from 0.
    """
    split = "support" if part == "train" else "test"
    files = find_samples("fashion").glob(f"{split}/*/*.png")
    scenes = (find_samples("wardrobe_lt") / f"{part}_sources.txt").read_text(encoding="utf-8").splitlines()
    return {int(file.stem.rpartition("_")[2]) for file in files} | {
        int(index) for line in scenes for index in line.split()[1:]
    }


def _folder_name(class_name: str) -> str:
    return class_name.replace(" ", "_")


def _read_checksums(folder: Path, split: str) -> dict[str, str]:
    """Checksum of every file of a split, by its path below the split's folder."""
    path = folder / "checksums.json"
    try:
        content = read_json(path)
        if content["format"] != _FORMAT:
            raise DataError(f"{path}: has format {content['format']!r}; expected {_FORMAT}")
        prefix = f"{split}/"
        files = content["files"].items()
        return {name.removeprefix(prefix): str(checksum) for name, checksum in files if name.startswith(prefix)}
    except ArtifactError as error:
        raise DataError(str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no list of checksums of a sample set; restore it from the repository") from error


def _verify(folder: Path, checksums: dict[str, str]) -> None:
    class_folders = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    present = {path.relative_to(folder).as_posix(): path for each in class_folders for path in list_images(each)}
    problems = [f"missing: {name}" for name in sorted(checksums.keys() - present.keys())]
    problems += [f"extra: {name}" for name in sorted(present.keys() - checksums.keys())]
    for name in sorted(checksums.keys() & present.keys()):
        if file_checksum(present[name]) != checksums[name]:
            problems.append(f"damaged: {name}")
    if problems:
        raise DataError(
            f"{folder}: {len(problems)} files differ from checksums.json; restore the folder from the repository:"
            + list_lines(problems)
        )


# --------------------------------------------------------------------------------------------- building


def build_fashion(
    raw_folder: str | Path, target: str | Path, seed: int = 0, support_per_class: int = 64, test_per_class: int = 50
) -> Path:
    """Cut the bundled few-shot set out of the published Fashion-MNIST files.

    Support photographs come from the part of the training images that the tiny backbones never see, test
    photographs from the official test images. Equal arguments and versions of Pillow give equal bytes. The
    set is built beside ``target`` and swapped in when it is whole.

    Args:
        raw_folder: Holds the four published files, see :func:`gcpl_lab.data.fashion.read_raw_fashion`.
        target: Folder to make, or an earlier set to replace.
        seed: Draws the photographs, 0 or more.
        support_per_class: Support photographs of each class, 1 or more.
        test_per_class: Test photographs of each class, 1 or more.

    Returns:
        ``target`` as a path.

    Raises:
        DataError: The raw files are absent or damaged, a class has too few photographs, or ``target``
            exists and is no sample set.
    """
    target = Path(target)
    if target.exists() and not (target / "checksums.json").is_file():
        raise DataError(f"{target}: exists and is no sample set; choose another folder or remove it")
    raw = read_raw_fashion(raw_folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        built = Path(scratch) / "built"
        files = _write_split(raw, built, "support", seed, support_per_class)
        files |= _write_split(raw, built, "test", seed, test_per_class)
        write_json(built / "checksums.json", {"format": _FORMAT, "name": "fashion", "seed": seed, "files": files})
        write_text(built / "LICENSE", _LICENSE)
        write_text(built / "README.md", _readme(seed, support_per_class, test_per_class))
        _swap(built, target, Path(scratch) / "replaced")
    return target


def _swap(built: Path, target: Path, replaced: Path) -> None:
    """Put ``built`` in the place of ``target``; the earlier folder comes back if that fails."""
    if target.exists():
        target.rename(replaced)
    try:
        built.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise


def _write_split(raw: RawFashion, folder: Path, split: str, seed: int, per_class: int) -> dict[str, str]:
    """Write one split's PNG files below ``folder``; return their checksums by path below it."""
    if split == "support":
        images, labels, prefix = raw.train_images, raw.train_labels, "train"
        pool = np.arange(SUPPORT_PART.start, SUPPORT_PART.stop)
    else:
        images, labels, prefix = raw.test_images, raw.test_labels, "test"
        pool = np.arange(len(labels))
    checksums = {}
    for label, name in enumerate(FASHION_CLASSES):
        members = pool[labels[pool] == label]
        if not 1 <= per_class <= len(members):
            raise DataError(
                f"{split}: {per_class} photographs of class {name!r} were asked for; "
                f"expected 1 to {len(members)}, which is what the published part holds"
            )
        rng = np.random.default_rng([seed, _SPLITS.index(split), label])
        class_folder = folder / split / _folder_name(name)
        class_folder.mkdir(parents=True)
        for index in np.sort(rng.choice(members, per_class, replace=False)):
            path = class_folder / f"{prefix}_{index:05d}.png"
            Image.fromarray(images[index]).save(path, optimize=True)
            checksums[path.relative_to(folder).as_posix()] = file_checksum(path)
    return checksums


def _readme(seed: int, support_per_class: int, test_per_class: int) -> str:
    family_of = {member: family for family, members in FASHION_FAMILIES.items() for member in members}
    rows = [
        f"| {label} | {name} | `{_folder_name(name)}` | {family_of[name]} | {support_per_class} | {test_per_class} |"
        for label, name in enumerate(FASHION_CLASSES)
    ]
    count = len(FASHION_CLASSES)
    rows.append(f"| | together | | | {support_per_class * count} | {test_per_class * count} |")
    return _README.format(
        rows="\n".join(rows),
        seed=seed,
        support_per_class=support_per_class,
        test_per_class=test_per_class,
        first=SUPPORT_PART.start,
        last=SUPPORT_PART.stop - 1,
    )


_README = """\
# Fashion photographs for few-shot experiments

Real product photographs, 28 × 28 pixels, grey on black, cut from Fashion-MNIST. Some classes look alike;
those form a family. Pixels are unchanged.

| id | class | folder | family | support | test |
| --- | --- | --- | --- | --- | --- |
{rows}

- `support/`: the pool that exemplars are drawn from. It comes from training images {first} to {last}, which
  the tiny models inside `gcpl_lab` never saw.
- `test/`: from the official test images. No setting of a prompt or a baseline is chosen on them; 51 of them
  were among the photographs that an earlier pair of tiny models was judged by before it was trained anew.
- A file's name is the photograph's index in the published files, counted from 0.
- `checksums.json`: SHA-256 of every photograph, verified whenever the set is loaded.

Built from the published files (the Debian package `dataset-fashion-mnist`, or torchvision's download) by

    from gcpl_lab.data.samples import build_fashion
    build_fashion(raw_folder, "data_samples/fashion", seed={seed}, support_per_class={support_per_class}, \
test_per_class={test_per_class})

Source: Han Xiao, Kashif Rasul, Roland Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms, 2017, [arXiv 1708.07747](https://arxiv.org/abs/1708.07747),
<https://github.com/zalandoresearch/fashion-mnist>. Copyright 2017 Zalando SE, MIT licence (see `LICENSE`).
"""

_LICENSE = """\
The MIT License (MIT)

Copyright © 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
