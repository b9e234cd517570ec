"""Where is a method worth its price? Situations that change what is learned from or what is judged, all by one rule.

A situation turns a support pool and a test set into cases: exemplars that are learned from as they stand, images that
are judged, and which of these belong to which level of what is varied. It is registered once, with
``@register_situation``; the command, the figures and the verdict know it from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.data.shifts import SHIFTS, shift_pictures
from gcpl_lab.errors import DataError
from gcpl_lab.registry import Registry
from gcpl_lab.storage import folder_checksum

SITUATIONS = Registry("situation")
"""Facts of an entry: ``varied``, what its levels are, for an axis; ``plain``, the level that changes nothing."""
register_situation = SITUATIONS.register

Levels = dict[tuple[str, str], np.ndarray]
"""Which test images, int64, belong to (group, level); a group is one curve a method."""


@dataclass(frozen=True)
class Draw:
    """What a situation is made of."""

    support: ImageSet  # the pool
    test: ImageSet  # images to judge on
    shots: int  # exemplars a class, where the situation does not say otherwise
    seed: int  # of everything that is drawn

    def exemplars(self, shots: int | None = None) -> ImageSet:
        """Those of an ordinary episode."""
        return self.support.subset(draw_episode(self.support, shots or self.shots, self.seed))

    def rng(self, stream: int) -> np.random.Generator:
        """Random numbers of the situation's own."""
        return np.random.default_rng([self.seed, 53, stream])


@dataclass(frozen=True)
class Case:
    """Exemplars, all of them learned from, and images to judge on, with the levels that these belong to."""

    name: str
    exemplars: ImageSet
    test: ImageSet
    levels: Levels
    grows: bool = False  # from the case before: its prompts stay, and decisions that stay are counted


Situation = Callable[[Draw], Iterator[Case]]


def _whole(test: ImageSet, *levels: tuple[str, str]) -> Levels:
    return dict.fromkeys(levels, np.arange(len(test)))


def changed(original: ImageSet, what: str, **fields: Any) -> ImageSet:
    """A set with other fields, and a checksum that tells it from the one it was made of."""
    return replace(original, checksum=folder_checksum([(original.checksum, what)]), **fields)


def renamed(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """The same images under other class names, one a class."""
    new = dict(zip(images.class_names, names, strict=True))
    families = {family: tuple(new[name] for name in members) for family, members in images.families.items()}
    return changed(images, "names " + ",".join(names), class_names=tuple(names), families=families)


def joined(parts: Sequence[ImageSet]) -> ImageSet:
    """Several sets of the same classes as one, in order."""
    images, labels = [image for part in parts for image in part.images], np.concatenate([p.labels for p in parts])
    checksum = folder_checksum([(part.checksum, "") for part in parts])
    return replace(parts[0], images=tuple(images), labels=labels, checksum=checksum)


@register_situation("few_shots", title="Few images", varied="images a class", plain="")
def few_shots(draw: Draw) -> Iterator[Case]:
    """1 to 16 exemplars a class."""
    for shots in (1, 2, 4, 8, 16):
        yield Case(f"{shots}", draw.exemplars(shots), draw.test, _whole(draw.test, ("all classes", f"{shots}")))


@register_situation("look_alikes", title="Look-alikes alone", varied="images a class", plain="")
def look_alikes(draw: Draw) -> Iterator[Case]:
    """Each family of look-alikes as a task of its own."""
    for family, members in draw.support.families.items():
        if len(members) < 2:
            continue
        test = draw.test.only(members)
        for shots in (4, 16):
            exemplars = draw.exemplars(shots).only(members)
            yield Case(f"{family} {shots}", exemplars, test, _whole(test, (family, f"{shots}")))


def mark_corner(image: Any, strength: float) -> np.ndarray:
    """A copy with a square in the upper left corner, a seventh of the shorter side wide, mixed with white."""
    values = np.array(read_images([image])[0], np.float64)
    side = max(1, min(values.shape[:2]) // 7)
    values[:side, :side] += strength * (255 - values[:side, :side])
    return np.rint(values).astype(np.uint8)


@register_situation("shortcut", title="Shortcut", varied="strength of the mark", plain="0")
def shortcut(draw: Draw) -> Iterator[Case]:
    """A mark on every exemplar of one class: gone at test, or on a look-alike.

    Judged are, of the marked class, images without the mark, and, of a look-alike of it, images with the mark.
    """
    families = [members for members in draw.support.families.values() if len(members) > 1]
    if not families:
        raise DataError(f"{draw.support.name}: no family of look-alikes is known; a shortcut needs two such classes")
    rng, exemplars, labels = draw.rng(1), draw.exemplars(), draw.test.labels
    members = families[rng.integers(len(families))]
    marked, other = (draw.support.class_names.index(str(name)) for name in rng.permutation(members)[:2])
    # Beside the images that are judged stands one of every class: methods are never judged on a part of the classes.
    unmarked = draw.test.subset(
        np.concatenate([np.flatnonzero(labels == marked), np.unique(labels, return_index=True)[1]])
    )
    alike = draw.test.subset(np.flatnonzero(labels == other))
    of_class = int((labels == marked).sum())
    for strength in (0.0, 0.25, 0.5, 1.0):
        what, level = f"mark {strength}", f"{strength:g}"
        pairs = zip(exemplars.images, exemplars.labels, strict=True)
        seen = tuple(mark_corner(image, strength) if label == marked else image for image, label in pairs)
        moved = changed(alike, what, images=tuple(mark_corner(image, strength) for image in alike.images))
        test = joined([unmarked, moved])
        levels = {("mark gone", level): np.arange(of_class)}
        levels["mark on a look-alike", level] = np.arange(len(unmarked), len(test))
        yield Case(level, changed(exemplars, f"{what} on {marked}", images=seen), test, levels)


Remedy = Callable[[Image.Image], Image.Image]
REMEDIES: dict[str, Remedy] = {
    "contrast": partial(ImageOps.autocontrast, preserve_tone=True),
    "noise": partial(Image.Image.filter, filter=ImageFilter.MedianFilter(5)),
}
"""The usual ones; of medians and Gaussian filters the one that helped a linear probe most on images of the pool."""


def _redrawn(original: ImageSet, shown: Iterable[Image.Image], what: str) -> ImageSet:
    return changed(original, what, images=tuple(np.asarray(image) for image in shown))


def _shifted(draw: Draw, kinds: Iterable[str], remedy: Remedy = Image.Image.copy) -> tuple[ImageSet, Levels]:
    """A third of the test images under each kind at severities 0, 2 and 4, and then set right; where each stands."""
    part = draw.test.subset(np.arange(0, len(draw.test), 3))
    pictures, levels = read_images(part.images), Levels()
    parts = [_redrawn(part, map(remedy, pictures), "0")]
    for kind in kinds:
        levels[kind, "0"] = np.arange(len(part))
        for severity in (2, 4):
            levels[kind, f"{severity}"] = len(parts) * len(part) + np.arange(len(part))
            shown = shift_pictures(pictures, kind, severity, draw.seed)
            parts.append(_redrawn(part, map(remedy, shown), f"{kind} {severity} {draw.seed}"))
    return joined(parts), levels


@register_situation("shift", title="Shift", varied="severity", plain="0")
def shift(draw: Draw) -> Iterator[Case]:
    """Exemplars as they are; test images blurred, noisy, pale, turned or inverted."""
    yield Case("all", draw.exemplars(), *_shifted(draw, SHIFTS))


@register_situation("remedied", title="Shift, set right first", varied="severity", plain="0")
def remedied(draw: Draw) -> Iterator[Case]:
    """As the shifts, but every image, exemplars too, is set right first: stretched contrast, or a median of 5 × 5."""
    exemplars = draw.exemplars()
    for kind, remedy in REMEDIES.items():
        learned = _redrawn(exemplars, map(remedy, read_images(exemplars.images)), kind)
        yield Case(kind, learned, *_shifted(draw, [kind], remedy))


@register_situation("names", title="Wrong names, no names", varied="names", plain="own")
def names(draw: Draw) -> Iterator[Case]:
    """Class names as they are, those of a look-alike (each family turned by one), or letters."""
    own, exemplars = draw.support.class_names, draw.exemplars()
    turned = {name: m[(i + 1) % len(m)] for m in draw.support.families.values() for i, name in enumerate(m)}
    letters = [chr(ord("A") + place) for place in range(len(own))]
    for level, used in (("own", own), ("swapped", [turned.get(name, name) for name in own]), ("letters", letters)):
        test = renamed(draw.test, used)
        yield Case(level, renamed(exemplars, used), test, _whole(test, ("all classes", level)))


@register_situation("label_noise", title="Wrong labels", varied="wrong labels", plain="0 %")
def label_noise(draw: Draw) -> Iterator[Case]:
    """A share of every class's exemplars bears the label of another class, drawn at random."""
    exemplars, num_classes = draw.exemplars(), len(draw.support.class_names)
    for share in (0.0, 0.1, 0.2, 0.4):
        rng, labels = draw.rng(2), exemplars.labels.copy()
        for label in range(num_classes):
            members = rng.permutation(np.flatnonzero(exemplars.labels == label))
            wrong = members[: round(share * len(members))]
            labels[wrong] = (label + rng.integers(1, num_classes, len(members))[: len(wrong)]) % num_classes
        level = f"{100 * share:.0f} %"
        given = changed(exemplars, f"wrong labels {share} {draw.seed}", labels=labels)
        yield Case(level.replace(" ", ""), given, draw.test, _whole(draw.test, ("all classes", level)))


@register_situation("imbalance", title="Imbalance", varied="largest to smallest class", plain="1:1")
def imbalance(draw: Draw) -> Iterator[Case]:
    """Class sizes fall evenly on a logarithmic scale, in a drawn order; judged are all, and the rarest third."""
    exemplars, num_classes = draw.exemplars(), len(draw.support.class_names)
    order = draw.rng(3).permutation(num_classes)
    rare = np.flatnonzero(np.isin(draw.test.labels, order[-(-2 * num_classes // 3) :]))
    for ratio in (1, 4, 16):
        sizes = np.maximum(1, np.rint(draw.shots * ratio ** (-np.arange(num_classes) / (num_classes - 1)))).astype(int)
        counts = dict(zip(order.tolist(), sizes.tolist(), strict=True))
        kept = [np.flatnonzero(exemplars.labels == label)[: counts[label]] for label in range(num_classes)]
        level = f"{ratio}:1"
        levels = _whole(draw.test, ("all classes", level)) | {("rarest third", level): rare}
        yield Case(f"{ratio}", exemplars.subset(np.concatenate(kept)), draw.test, levels)


@register_situation("one_class_more", title="One class more", varied="learned", plain="without it")
def one_class_more(draw: Draw) -> Iterator[Case]:
    """All classes but the one that is drawn, then all: what do the old ones lose, and is the new one found?

    Learned prompts: the new class's alone is learned, the old ones stay to the digit; other methods are fitted anew.
    Counted too is which share of the decisions for images of old classes stays.
    """
    every, exemplars = list(draw.support.class_names), draw.exemplars()
    new = int(draw.rng(4).integers(len(every)))
    old = [name for place, name in enumerate(every) if place != new]
    order = [*old, every[new]]
    before, after = draw.test.only(old), draw.test.only(order)
    known = after.labels < len(old)
    yield Case("without", exemplars.only(old), before, _whole(before, ("old classes", "without it")))
    levels = {("old classes", "with it"): np.flatnonzero(known), ("new class", "with it"): np.flatnonzero(~known)}
    yield Case("with", exemplars.only(order), after, levels, grows=True)
