"""How the bundled long-tailed scenes were composed, with captions that people might write.

Training scenes hold images of ``SUPPORT_PART``, test scenes official test images; none of them is in the few-shot
set beside them, and none occurs twice. The lists have the format of the published VOC-LT and COCO-LT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from gcpl_lab.data.multilabel import head_medium_tail
from gcpl_lab.data.samples import FASHION_CLASSES, FASHION_FAMILIES, SAMPLES_FORMAT
from gcpl_lab.errors import DataError
from gcpl_lab.storage import file_checksum, write_json, write_text
from tools.captions import AttributeScale, attribute_words, join_phrases
from tools.raw_fashion import PRETRAIN_PART, SUPPORT_PART, RawFashion, family_of, read_raw_fashion
from tools.samples import LICENSE, build_set, few_shot_images
from tools.scenes import compose_scene

TAIL_ORDER = ("t-shirt", "sneaker", "trousers", "pullover", "bag", "dress", "ankle boot", "shirt", "coat", "sandal")
"""Classes from the most to the least frequent: every family of look-alikes has frequent and rare ones."""

NUM_TRAIN, NUM_TEST = 520, 520
MOST_FREQUENT, LEAST_FREQUENT, PARETO_POWER = 410, 9, 6.0

NAMED_SHARE = 0.78
"""Chance that a caption names an item."""

WRONG_SHARE = 0.11
"""Share of captions in which one item goes by the name of a look-alike."""

_CAPTIONS = (
    "{}",
    "{}",
    "a photo of {}",
    "a photo of {}",
    "a picture of {}",
    "a picture with {}",
    "here are {}",
    "this is {}",
    "a product photo of {}",
    "{} on a black background",
    "I see {}",
    "there is {}",
    "{} in one photo",
)


@dataclass(frozen=True)
class _Scene:
    """One scene before it is drawn: class id and image (index in the published files) of every item."""

    labels: tuple[int, ...]
    images: tuple[int, ...]


def build_wardrobe(
    raw_folder: str | Path, target: str | Path, seed: int = 0, tail_order: Sequence[str] = TAIL_ORDER
) -> Path:
    """Compose the scenes out of the published Fashion-MNIST files and write them with lists and captions.

    Needs the bundled few-shot set, because its images are left out. Equal arguments and versions of Pillow and
    numpy give equal bytes.

    Args:
        raw_folder: Holds the four published files, see :func:`tools.raw_fashion.read_raw_fashion`.
        target: Folder to make, or an earlier set to replace.
        seed: Draws scenes and captions, 0 or more.
        tail_order: The ten classes from the most to the least frequent in training; another order draws
            another tail.

    Returns:
        ``target`` as a path.

    Raises:
        DataError: The raw files or the few-shot set are absent or damaged, the order is not one of the ten
            classes, or ``target`` exists and is no sample set.
    """
    if sorted(tail_order) != sorted(FASHION_CLASSES):
        raise DataError(f"tail_order is {tuple(tail_order)}; expected each of {', '.join(FASHION_CLASSES)} once")
    return build_set(target, partial(_write_set, raw_folder=raw_folder, seed=seed, tail_order=tail_order))


def draw_tail_order(number: int) -> tuple[str, ...]:
    """The ten classes from the most to the least frequent, drawn at random; the same for the same number from 0."""
    return tuple(str(name) for name in np.random.default_rng([number, 31]).permutation(FASHION_CLASSES))


def train_class_counts(tail_order: Sequence[str] = TAIL_ORDER) -> np.ndarray:
    """Training scenes with each class: a Pareto (Lomax) tail over the ranks, int64 in the order of class ids.

    n(rank) = n₀ · (1 + rank/s)^(−6), with s such that the last rank has ``LEAST_FREQUENT`` scenes; the power
    is the one that VOC-LT was drawn with (Wu et al. 2020, section 4.1).
    """
    ranks = np.arange(len(tail_order))
    scale = ranks[-1] / ((MOST_FREQUENT / LEAST_FREQUENT) ** (1 / PARETO_POWER) - 1)
    by_rank = np.rint(MOST_FREQUENT * (1 + ranks / scale) ** -PARETO_POWER).astype(np.int64)
    counts = np.zeros(len(FASHION_CLASSES), np.int64)
    counts[[FASHION_CLASSES.index(name) for name in tail_order]] = by_rank
    return counts


def _write_set(folder: Path, raw_folder: str | Path, seed: int, tail_order: Sequence[str]) -> None:
    taken = {part: few_shot_images(part) for part in ("train", "test")}
    raw = read_raw_fashion(raw_folder)
    rng = np.random.default_rng([seed, 0])
    counts = train_class_counts(tail_order)
    train_pool = [index for index in SUPPORT_PART if index not in taken["train"]]
    train = _draw_scenes(_place_classes(counts, NUM_TRAIN, rng), raw.train_labels, train_pool, rng)
    even = np.full(len(FASHION_CLASSES), round(2.4 * NUM_TEST / len(FASHION_CLASSES)))
    test_pool = [index for index in range(len(raw.test_labels)) if index not in taken["test"]]
    test = _draw_scenes(_place_classes(even, NUM_TEST, rng), raw.test_labels, test_pool, rng)
    captions = _write_captions(raw, train, np.random.default_rng([seed, 1]))
    for split, scenes, images in (("train", train, raw.train_images), ("test", test, raw.test_images)):
        _write_split(folder, split, scenes, images, np.random.default_rng([seed, 2, split == "test"]))
    paths = [_image_path("train", index) for index in range(len(train))]
    lines = (f"{path} {caption}\n" for path, caption in zip(paths, captions, strict=True))
    write_text(folder / "train_captions.txt", "".join(lines))
    write_text(folder / "labels.txt", "".join(f"{name} {index}\n" for index, name in enumerate(FASHION_CLASSES)))
    write_text(folder / "LICENSE", LICENSE)
    write_text(folder / "README.md", _readme(train, test, captions, seed))
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".txt"))
    checksums = {path.relative_to(folder).as_posix(): file_checksum(path) for path in files}
    write_json(
        folder / "checksums.json", {"format": SAMPLES_FORMAT, "name": "wardrobe_lt", "seed": seed, "files": checksums}
    )


def _image_path(split: str, index: int) -> str:
    return f"images/{split}/{index:04d}.png"


def _write_split(
    folder: Path, split: str, scenes: Sequence[_Scene], images: np.ndarray, rng: np.random.Generator
) -> None:
    """Images, the list with label ids, and beside it which published images each scene holds."""
    listed, sources = [], []
    for number, scene in enumerate(scenes):
        name = _image_path(split, number)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        canvas = compose_scene([images[index] for index in scene.images], rng)
        Image.fromarray(canvas).save(folder / name, optimize=True)
        listed.append(" ".join([name, *(str(label) for label in sorted(set(scene.labels)))]))
        sources.append(" ".join([name, *(str(index) for index in scene.images)]))
    write_text(folder / f"{split}.txt", "\n".join(listed) + "\n")
    write_text(folder / f"{split}_sources.txt", "\n".join(sources) + "\n")


def _place_classes(counts: np.ndarray, num_scenes: int, rng: np.random.Generator) -> np.ndarray:
    """Choose which scenes have which class: bool (scene, class) with exactly ``counts`` scenes a class.

    Rare classes go first, so that they meet each other as often as chance has it; frequent ones then fill the
    scenes that are still below the size drawn for them.
    """
    mean = counts.sum() / num_scenes
    sizes = np.clip(np.rint(rng.normal(mean, 0.8, num_scenes)), 1, 4)
    placed = np.zeros((num_scenes, len(counts)), bool)
    for label in np.argsort(counts, kind="stable"):
        room = np.maximum(sizes - placed.sum(axis=1), 0.3) ** 2
        room[placed.sum(axis=1) >= 5] = 0  # a scene holds five items at most
        chosen = rng.choice(num_scenes, counts[label], replace=False, p=room / room.sum())
        placed[chosen, label] = True
    for empty in np.flatnonzero(~placed.any(axis=1)):
        full = int(placed.sum(axis=1).argmax())
        label = int(np.where(placed[full], counts, -1).argmax())
        placed[full, label], placed[empty, label] = False, True
    return placed


def _draw_scenes(placed: np.ndarray, labels: np.ndarray, pool: Sequence[int], rng: np.random.Generator) -> list[_Scene]:
    """Fill scenes with 2–5 images, each used once: one of every class, and now and then a second one."""
    members = np.asarray(pool)
    stacks = [list(rng.permutation(members[labels[members] == label])) for label in range(placed.shape[1])]
    scenes = []
    for row in placed:
        classes = np.flatnonzero(row)
        extra = int(rng.choice(3, p=(0.6, 0.3, 0.1)))
        num_items = int(np.clip(len(classes) + extra, 2, 5))
        items = rng.permutation([*classes, *rng.choice(classes, num_items - len(classes))])
        chosen = tuple(int(stacks[label].pop()) for label in items)
        scenes.append(_Scene(tuple(int(label) for label in items), chosen))
    return scenes


def _write_captions(raw: RawFashion, scenes: Sequence[_Scene], rng: np.random.Generator) -> list[str]:
    """One caption a scene: most items by their true names, some with words on how they look, a few mistaken."""
    part = slice(PRETRAIN_PART.start, PRETRAIN_PART.stop)
    scale = AttributeScale.fit(raw.train_images[part], raw.train_labels[part])
    captions = []
    for scene in scenes:
        members = list(scene.images)
        levels = scale.levels(raw.train_images[members], raw.train_labels[members])
        named = [item for item in range(len(levels)) if rng.random() < NAMED_SHARE] or [int(rng.integers(len(levels)))]
        names = {item: FASHION_CLASSES[scene.labels[item]] for item in named}
        if rng.random() < WRONG_SHARE:
            _mistake_one(names, {FASHION_CLASSES[label] for label in scene.labels}, rng)
        parts = []
        for item in rng.permutation(named):
            words = attribute_words(scene.labels[item], levels[item], int(rng.choice(3, p=(0.6, 0.3, 0.1))), rng)
            parts.append(_noun_phrase([*words, names[item]]))
        parts = list(dict.fromkeys(parts))  # nobody writes "a shirt and a shirt"
        captions.append(_CAPTIONS[int(rng.integers(len(_CAPTIONS)))].format(join_phrases(parts)))
    return captions


def _mistake_one(names: dict[int, str], present: set[str], rng: np.random.Generator) -> None:
    """Give one named item the name of a look-alike that is not in the scene, where there is one."""
    choices = [
        (item, other)
        for item, name in names.items()
        for other in FASHION_FAMILIES[family_of(name)]
        if other not in present
    ]
    if choices:
        item, other = choices[int(rng.integers(len(choices)))]
        names[item] = other


def _noun_phrase(words: Sequence[str]) -> str:
    article = "" if words[-1] == "trousers" else "an " if words[0][0] in "aeiou" else "a "
    return article + " ".join(words)


def caption_quality(
    targets: np.ndarray, captions: Sequence[str | None], class_names: Sequence[str]
) -> tuple[float, float]:
    """How well captions name what is there.

    Args:
        targets: (image, class), 0 or 1.
        captions: One an image.
        class_names: Searched for as whole words; "shirt" is not found in "t-shirt".

    Returns:
        The share of present classes that their caption names, and the share of captions that name an absent one.
    """
    named = np.array([[_mentions(caption or "", name) for name in class_names] for caption in captions])
    present = np.asarray(targets).astype(bool)
    return float((named & present).sum() / present.sum()), float((named & ~present).any(axis=1).mean())


def _mentions(caption: str, name: str) -> bool:
    return f" {name} " in f" {caption.replace(',', ' ')} "


def _targets(scenes: Sequence[_Scene]) -> np.ndarray:
    targets = np.zeros((len(scenes), len(FASHION_CLASSES)), np.uint8)
    for row, scene in enumerate(scenes):
        targets[row, list(scene.labels)] = 1
    return targets


def _readme(train: Sequence[_Scene], test: Sequence[_Scene], captions: Sequence[str], seed: int) -> str:
    targets = _targets(train)
    train_counts, test_counts = targets.sum(axis=0, dtype=int), _targets(test).sum(axis=0, dtype=int)
    part_of = {label: part for part, labels in head_medium_tail(train_counts).items() for label in labels}
    rows = [
        f"| {label} | {FASHION_CLASSES[label]} | {part_of[label]} | {train_counts[label]} | {test_counts[label]} |"
        for label in np.argsort(-train_counts, kind="stable")
    ]
    named, wrong = caption_quality(targets, captions, FASHION_CLASSES)
    return _README.format(
        rows="\n".join(rows),
        num_train=len(train),
        num_test=len(test),
        named=round(100 * named),
        wrong=round(100 * wrong),
        seed=seed,
        first=SUPPORT_PART.start,
        last=SUPPORT_PART.stop - 1,
        train_items=sum(len(scene.labels) for scene in train),
        test_items=sum(len(scene.labels) for scene in test),
    )


_README = """\
# Scenes of several garments, long-tailed, with captions

Scenes of two to five real product photographs on one 64 × 64 canvas, cut from Fashion-MNIST: {num_train} for
training ({train_items} items), {num_test} for testing ({test_items} items). A scene's labels are the classes that
are in it. How many training scenes have a class falls on a Pareto tail; in the test set all classes are alike.

| id | class | part | training scenes | test scenes |
| --- | --- | --- | --- | --- |
{rows}

Head classes have at least 100 training scenes, tail classes fewer than 20.

- `train.txt`, `test.txt`: one scene a line, its path and label ids; `labels.txt`: names and ids;
  `train_captions.txt`: path and caption. This is the format of the published VOC-LT and COCO-LT lists.
- `train_sources.txt`, `test_sources.txt`: which published photographs (counted from 0) each scene holds.
  Training scenes hold training images {first} to {last}, which the tiny models inside `gcpl_lab` never saw; test
  scenes hold official test images. No photograph is used twice, none is in `../fashion`.
- Captions are made up as people write them: wording varies, {named} % of the classes in a scene are named, and
  {wrong} % of the captions call one item by the name of a look-alike that is not there.
- `checksums.json`: SHA-256 of every picture and list, verified whenever the set is loaded.

Built from the published files (the Debian package `dataset-fashion-mnist`, or torchvision's download) by

    from tools.wardrobe import build_wardrobe
    build_wardrobe(raw_folder, "data_samples/wardrobe_lt", seed={seed})

Source: Han Xiao, Kashif Rasul, Roland Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms, 2017, [arXiv 1708.07747](https://arxiv.org/abs/1708.07747),
<https://github.com/zalandoresearch/fashion-mnist>. Copyright 2017 Zalando SE, MIT licence (see `LICENSE`).
"""
