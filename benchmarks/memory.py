"""Peak memory of one run on many large photographs, and on many megabytes of captions.

    python benchmarks/memory.py                # 5,000 JPEG files of 4000 x 3000 px (1.4 GB), 112 MB of captions: hours
    python benchmarks/memory.py --images 50    # a look

Images and captions are made here, from their number alone, and stay in ``--folder`` for another run. Each command is a
process of its own, and its peak is what the system counted of it. Updates are few: memory does not depend on them.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import KEPT, benchmark_options, check_aim, make_result, publish
from PIL import Image, ImageDraw

from gcpl_lab.data.tables import write_csv

SIZE, SIDE, MOST_GB = (4000, 3000), 64, 2.0
CLASSES, CAPTIONED = ("disc", "square"), 1000


def photograph(number: int, size: tuple[int, int]) -> Image.Image:
    """Patches of its own, and a disc or a square somewhere on them."""
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.NEAREST)
    side = size[1] // 3
    left, top = (int(rng.integers(0, whole - side)) for whole in size)
    draw = ImageDraw.Draw(image)
    (draw.ellipse, draw.rectangle)[number % 2]((left, top, left + side, top + side), fill=(250, 250, 250))
    return image


def make_photographs(folder: Path, count: int) -> Path:
    """Class folders with so many photographs; those that are there stay."""
    for number in range(count):
        path = folder / CLASSES[number % 2] / f"{number:05d}.jpg"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph(number, SIZE).save(path, quality=60)
    return folder


def make_captions(folder: Path, megabytes: float) -> Path:
    """A metadata file of so many megabytes, about small images."""
    rng, folder_of = np.random.default_rng(0), folder / "images"
    folder_of.mkdir(parents=True, exist_ok=True)
    words, each = [f"word{number}" for number in range(5000)], round(megabytes * 1e6 / CAPTIONED / 9)
    rows = []
    for number in range(CAPTIONED):
        path = folder_of / f"{number:05d}.jpg"
        photograph(number, (SIDE, SIDE)).save(path)
        # Sentences of twenty words, parted as the captions of several people are.
        text = [words[place] for place in rng.integers(0, len(words), each)]
        caption = " | ".join(" ".join(text[start : start + 20]) for start in range(0, each, 20))
        rows.append({"file_name": f"images/{path.name}", "labels": CLASSES[number % 2], "caption": caption})
    return write_csv(folder / "metadata.csv", rows)


def peak_of(arguments: list[str]) -> tuple[float, float]:
    """GB and seconds of a command of the package."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "gcpl_lab", *arguments]
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    _, status, used = os.wait4(os.posix_spawn(command[0], command, os.environ, file_actions=quiet), 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return used.ru_maxrss * unit / 1e9, time.perf_counter() - began


def main() -> None:
    """Make what is not there, measure, print and write."""
    parser = benchmark_options(__doc__, "memory", preset=None)
    parser.add_argument("--images", type=int, default=5000, help="photographs")
    parser.add_argument("--captions", type=float, default=112, help="megabytes of captions")
    parser.add_argument("--folder", type=Path, default=KEPT / "memory", help="where they are kept")
    options = parser.parse_args()
    photographs = make_photographs(options.folder / f"photographs_{options.images}", options.images)
    metadata = make_captions(options.folder / f"captions_{options.captions:g}", options.captions)
    prompts, labels = options.folder / "prompts", options.folder / "labels"
    for folder in (prompts, labels):
        shutil.rmtree(folder, ignore_errors=True)
    few = ["--set", "num_steps=4"]
    commands = {
        "train gcpl": ["train", "gcpl", str(photographs), "--shots", "0", "-o", str(prompts), *few],
        "classify": ["classify", str(prompts), str(photographs), "--json"],
        "train lmpt": ["train", "lmpt", "--metadata", str(metadata), "-o", str(labels), "--set", "num_epochs=2"],
    }
    rows: list[dict[str, Any]] = []
    for name, arguments in commands.items():
        peak, seconds = peak_of(arguments)
        on = f"{options.captions:g} MB of captions" if name == "train lmpt" else f"{options.images} images"
        rows.append({"what": f"{name}: {on}", "seconds": seconds, "peak_gb": peak})
    aims = [check_aim(f"peak memory in GB, {row['what']}", row["peak_gb"], most=MOST_GB) for row in rows]
    publish(make_result("memory", rows, 1, aims=aims, size=SIZE), "Peak memory of a run", options.output)


if __name__ == "__main__":
    main()
