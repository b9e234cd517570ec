"""The images of a pilot, in three parts: to draw exemplars from, to calibrate on, and to judge on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.data.episodes import draw_test
from gcpl_lab.data.folders import read_pictures, read_scenes
from gcpl_lab.data.multilabel import split_validation
from gcpl_lab.data.published import load_published
from gcpl_lab.data.samples import load_fashion, load_wardrobe
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.data.tables import read_csv
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.pilot.config import PilotConfig
from gcpl_lab.storage import file_checksum, folder_checksum

Images = ImageSet | MultiLabelSet
TEST_SHARE = 0.4
"""Of each class, where there is no test set."""
LEAST_CALIBRATION = 20
"""Images; thresholds and promises rest on them."""
CORRECTIONS = "corrections.csv"
"""Images that people have corrected, with the columns file and label: they join the exemplars."""


@dataclass(frozen=True)
class PilotData:
    """Images in three parts that share no image: nothing is judged on the pool, nothing fitted on the test images."""

    pool: Images  # to draw exemplars from; the corrected images are its last
    calibration: Images
    test: Images
    num_corrections: int = 0

    @property
    def judged(self) -> Any:
        """Calibration and then test images, as one set that methods answer on."""
        return join(self.calibration, self.test)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.pool.class_names

    @property
    def checksum(self) -> str:
        """Of all three parts."""
        parts = (self.pool, self.calibration, self.test)
        return folder_checksum((str(place), part.checksum) for place, part in enumerate(parts))


def targets_of(images: Images) -> np.ndarray:
    """uint8 (image, class), one-hot where an image has one class."""
    if isinstance(images, MultiLabelSet):
        return images.targets
    return np.asarray(np.eye(len(images.class_names), dtype=np.uint8)[images.labels])


def rarest_labels(targets: np.ndarray) -> np.ndarray:
    """One class an image, int64 (image,): of several labels the rarest, where one class alone can be looked at."""
    return np.asarray(np.where(targets == 1, 1 / np.maximum(targets.sum(axis=0), 1), 0).argmax(axis=1))


def join(first: Any, second: Any) -> Any:
    """Two sets with the same classes as one."""
    changes = {"checksum": folder_checksum([("0", first.checksum), ("1", second.checksum)])}
    for name in ("images", "captions", "origins"):
        if hasattr(first, name):
            changes[name] = getattr(first, name) + getattr(second, name)
    name = "targets" if isinstance(first, MultiLabelSet) else "labels"
    return replace(first, **changes, **{name: np.concatenate([getattr(first, name), getattr(second, name)])})


def find_kind(images: str) -> str:
    """``"classes"`` or ``"labels"``: whether any image of a folder has none or several labels."""
    if images.startswith(("bundled:", "published:")):
        return "labels" if images == "bundled:wardrobe" else "classes"
    return "labels" if read_scenes(images) else "classes"


def read_data(config: PilotConfig, folder: Path) -> PilotData:
    """Read and part the images that a configuration names; a folder is seen from the pilot's.

    Raises:
        DataError: Images that cannot be used, an unknown normal class, or no images left to calibrate on.
    """
    pool, test = _read(config, folder)
    names = pool.class_names
    if config.normal_class and config.normal_class not in names:
        raise DataError(f"normal_class is {config.normal_class!r}; expected one of {', '.join(names)}, or nothing")
    parts: Any = (_part_classes if isinstance(pool, ImageSet) else _part_labels)(pool, test, config)
    if len(parts[1]) < LEAST_CALIBRATION:
        raise DataError(
            f"{len(parts[1])} images are left to calibrate on; expected {LEAST_CALIBRATION} or more, since "
            "thresholds and promises rest on them: lower shots, or add images"
        )
    file = folder / CORRECTIONS
    if not file.is_file():
        return PilotData(*parts)
    corrected = _corrected(file, parts[0])
    return PilotData(join(parts[0], corrected), parts[1], parts[2], len(corrected))


def _corrected(file: Path, pool: Images) -> Images:
    """The images of ``corrections.csv``, as a set like the pool."""
    labels = read_labels(file, pool.class_names, isinstance(pool, ImageSet))
    paths = tuple(file.parent / name for name in labels)
    if missing := [path for path in paths if not path.is_file()]:
        raise DataError(f"{file}: {missing[0]} is not there; restore it, or delete its line")
    rows = np.array([[name in named for name in pool.class_names] for named in labels.values()], np.uint8)
    checksum = folder_checksum((path.name, file_checksum(path)) for path in paths)
    same: dict[str, Any] = {"name": file.stem, "images": paths, "checksum": checksum}
    if isinstance(pool, MultiLabelSet):
        return replace(pool, **same, targets=rows, captions=(None,) * len(paths), origins=())
    return replace(pool, **same, labels=rows.argmax(axis=1))


def read_labels(path: Path, class_names: Sequence[str], single: bool) -> dict[str, list[str]]:
    """File name to labels, from a review file with the columns file and label; several are joined by ``;``."""
    header, rows = read_csv(path)
    if not {"file", "label"} <= set(header):
        raise ArtifactError(f"{path}: its columns are {', '.join(header)}; expected file and label")
    found = {row["file"]: [label.strip() for label in row["label"].split(";") if label.strip()] for _, row in rows}
    if unknown := sorted({label for labels in found.values() for label in labels} - set(class_names)):
        raise ArtifactError(f"{path}: no class {unknown[0]!r}; expected some of {', '.join(class_names)}")
    if single and (several := [file for file, labels in found.items() if len(labels) != 1]):
        raise ArtifactError(f"{path}: {several[0]} has {len(found[several[0]])} labels; expected one an image")
    return found


def _read(config: PilotConfig, folder: Path) -> tuple[Any, Any]:
    source, _, name = config.images.partition(":")
    if config.images == "bundled:fashion":
        return load_fashion("support"), load_fashion("test")
    if config.images == "bundled:wardrobe":
        return load_wardrobe("train"), load_wardrobe("test")
    if source == "published":
        return load_published(name, "", "train"), load_published(name, "", "test")
    images = folder / config.images
    if config.kind == "classes":
        return read_pictures(images)
    whole = read_scenes(images)
    if whole is None:
        raise DataError(f'{images}: every image has one label; set kind to "classes" in pilot.toml')
    return whole, None


def _part_classes(pool: ImageSet, test: ImageSet | None, config: PilotConfig) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Test images, then calibration images of each class in equal parts as far as they go, the rest for exemplars."""
    counts = np.bincount(pool.labels, minlength=len(pool.class_names))
    if test is None:
        taken = np.maximum(1, (TEST_SHARE * counts).astype(int))
        pool, test = _take(pool, taken, config.seed)
        counts = counts - taken
    left = counts - config.shots
    if left.min() < 1:
        name, few = pool.class_names[int(left.argmin())], int(counts.min())
        raise DataError(
            f"{pool.name}: class {name!r} has {few} images besides the test images; with {config.shots} shots none is "
            f"left to calibrate on: set shots to at most {max(1, few // 2)}, or add images"
        )
    pool, calibration = _take(pool, np.minimum(left, max(1, config.test_images // len(counts))), config.seed)
    if len(test) > config.test_images:
        test = test.subset(draw_test(test, total=max(config.test_images, len(counts)), seed=config.seed))
    return pool, calibration, test


def _take(images: ImageSet, counts: np.ndarray, seed: int) -> tuple[ImageSet, ImageSet]:
    """What is left without so many images of each class, and these, in an order that the seed alone decides."""
    order = np.random.default_rng([seed, 61]).permutation(len(images))
    taken = np.concatenate([order[images.labels[order] == label][:count] for label, count in enumerate(counts)])
    return images.subset(np.setdiff1d(order, taken)), images.subset(np.sort(taken))


def _part_labels(
    pool: MultiLabelSet, test: MultiLabelSet | None, config: PilotConfig
) -> tuple[MultiLabelSet, MultiLabelSet, MultiLabelSet]:
    """Parts that hold the labels in equal shares, as the validation split of LMPT does."""
    if test is None:
        learned, judged = split_validation(pool.targets, TEST_SHARE, config.seed)
        pool, test = pool.subset(learned), pool.subset(judged)
    learned, judged = split_validation(pool.targets, min(0.3, config.test_images / len(pool)), config.seed + 1)
    if len(test) > config.test_images:
        drawn = np.random.default_rng([config.seed, 67]).permutation(len(test))
        test = test.subset(np.sort(drawn[: config.test_images]))
    return pool.subset(learned), pool.subset(judged), test
