"""How the bundled few-shot set was cut out of Fashion-MNIST: the same seed gives the same bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from gcpl_lab.data.samples import FASHION_CLASSES, SAMPLES_FORMAT, find_samples, folder_of_class
from gcpl_lab.errors import DataError
from gcpl_lab.storage import file_checksum, write_json, write_text
from tools.raw_fashion import SUPPORT_PART, RawFashion, family_of, read_raw_fashion


def build_fashion(
    raw_folder: str | Path, target: str | Path, seed: int = 0, support_per_class: int = 64, test_per_class: int = 50
) -> Path:
    """Cut the bundled few-shot set out of the published Fashion-MNIST files.

    Support images come from the part of the training images that the tiny models never see, test images from
    the official ones. Equal arguments and versions of Pillow give equal bytes.

    Args:
        raw_folder: Holds the four published files, see :func:`tools.raw_fashion.read_raw_fashion`.
        target: Folder to make, or an earlier set to replace.
        seed: Draws the images, 0 or more.
        support_per_class: Support images of each class, 1 or more.
        test_per_class: Test images of each class, 1 or more.

    Returns:
        ``target`` as a path.

    Raises:
        DataError: The raw files are absent or damaged, a class has too few images, or ``target`` exists and is
            no sample set.
    """
    raw = read_raw_fashion(raw_folder)

    def write(folder: Path) -> None:
        files = _write_split(raw, folder, "support", seed, support_per_class)
        files |= _write_split(raw, folder, "test", seed, test_per_class)
        write_json(
            folder / "checksums.json", {"format": SAMPLES_FORMAT, "name": "fashion", "seed": seed, "files": files}
        )
        write_text(folder / "LICENSE", LICENSE)
        write_text(folder / "README.md", _readme(seed, support_per_class, test_per_class))

    return build_set(target, write)


def build_set(target: str | Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a folder beside ``target``, and put it in the place of ``target`` when it is whole.

    Raises:
        DataError: ``target`` exists and is no sample set.
    """
    target = Path(target)
    if target.exists() and not (target / "checksums.json").is_file():
        raise DataError(f"{target}: exists and is no sample set; choose another folder or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        built, replaced = Path(scratch) / "built", Path(scratch) / "replaced"
        write(built)
        if target.exists():
            target.rename(replaced)
        try:
            built.rename(target)
        except OSError:
            if replaced.exists():
                replaced.rename(target)
            raise
    return target


def bundled_images(part: str) -> set[int]:
    """Which of the published images the bundled sets hold, in class folders or in scenes.

    Whatever judges the frozen models looks at others, so that nothing bundled has a say in how they were made.

    Args:
        part: Of the published files, ``"train"`` or ``"test"``; exemplars and training scenes come from ``"train"``.

    Returns:
        Indices in the published files, counted from 0.
    """
    scenes = (find_samples("wardrobe_lt") / f"{part}_sources.txt").read_text(encoding="utf-8").splitlines()
    return few_shot_images(part) | {int(index) for line in scenes for index in line.split()[1:]}


def few_shot_images(part: str) -> set[int]:
    """Those in the class folders of the few-shot set alone."""
    split = "support" if part == "train" else "test"
    return {int(file.stem.rpartition("_")[2]) for file in find_samples("fashion").glob(f"{split}/*/*.png")}


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
                f"{split}: {per_class} images of class {name!r} were asked for; "
                f"expected 1 to {len(members)}, which is what the published part holds"
            )
        rng = np.random.default_rng([seed, ("support", "test").index(split), label])
        class_folder = folder / split / folder_of_class(name)
        class_folder.mkdir(parents=True)
        for index in np.sort(rng.choice(members, per_class, replace=False)):
            path = class_folder / f"{prefix}_{index:05d}.png"
            Image.fromarray(images[index]).save(path, optimize=True)
            checksums[path.relative_to(folder).as_posix()] = file_checksum(path)
    return checksums


def _readme(seed: int, support_per_class: int, test_per_class: int) -> str:
    rows = [
        f"| {label} | {name} | `{folder_of_class(name)}` | {family_of(name)} | {support_per_class} | {test_per_class} |"
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

    from tools.samples import build_fashion
    build_fashion(raw_folder, "data_samples/fashion", seed={seed}, support_per_class={support_per_class}, \
test_per_class={test_per_class})

Source: Han Xiao, Kashif Rasul, Roland Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms, 2017, [arXiv 1708.07747](https://arxiv.org/abs/1708.07747),
<https://github.com/zalandoresearch/fashion-mnist>. Copyright 2017 Zalando SE, MIT licence (see `LICENSE`).
"""

LICENSE = """\
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
