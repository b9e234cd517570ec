"""Sets of labelled images that stay on disk: with one class each, or with any number of classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from gcpl_lab.errors import DataError
from gcpl_lab.storage import folder_checksum

CAPTION_SEPARATOR = " | "
"""Parts the captions of one image where several people wrote one."""
TURNS = frozenset("LRE RLE LRO RLO PDF LRI RLI FSI PDI".split())
"""Marks that turn the letters around them; right-to-left scripts need none."""


class _Images:
    """What both kinds of sets share: their length, and parts of them."""

    name: str
    images: tuple[Path, ...]
    checksum: str

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Self:
        """The images at whole-numbered ``indices`` (count,), in that order, with all class names kept."""
        chosen = np.asarray(indices)
        if chosen.size and (chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer)):
            raise DataError(
                f"{self.name}: indices are {chosen.dtype} of shape {chosen.shape}; expected whole numbers (count,); "
                "turn a mask into indices with numpy.flatnonzero"
            )
        chosen = chosen.astype(np.int64)
        for index in chosen[(chosen < 0) | (chosen >= len(self))]:
            raise DataError(f"{self.name}: index {index} is outside; expected 0 to {len(self) - 1}")
        # The part's checksum follows from the whole set's and from the choice.
        changes: dict[str, Any] = {
            "checksum": folder_checksum([(self.checksum, ",".join(str(index) for index in chosen))])
        }
        for of_images in ("images", "labels", "targets", "captions", "origins"):
            values = getattr(self, of_images, ())
            if isinstance(values, np.ndarray):
                changes[of_images] = values[chosen]
            elif values:
                changes[of_images] = tuple(values[index] for index in chosen)
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class ImageSet(_Images):
    """Images with one class each; what does not fit together is refused by a DataError."""

    name: str
    images: tuple[Path, ...]
    labels: np.ndarray  # int64 (image,): indices of class_names
    class_names: tuple[str, ...]  # as they go into a prompt
    checksum: str  # of all names and bytes: 64 hexadecimal digits
    families: dict[str, tuple[str, ...]] = field(default_factory=dict)  # look-alikes; empty where none are known

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        labels, num_classes = np.asarray(self.labels), len(self.class_names)
        if labels.ndim != 1 or len(labels) != len(self.images):
            raise DataError(
                f"{self.name}: labels have shape {labels.shape} and there are {len(self.images)} images; "
                f"expected one label an image, shape ({len(self.images)},)"
            )
        if labels.size and not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{self.name}: labels are {labels.dtype}; expected whole class indices")
        for index in np.flatnonzero((labels < 0) | (labels >= num_classes)):
            raise DataError(
                f"{self.name}: label {index} is {labels[index]}; expected a class index from 0 to {num_classes - 1}"
            )
        members = [member for family in self.families.values() for member in family]
        if self.families and sorted(members) != sorted(self.class_names):
            raise DataError(
                f"{self.name}: the families hold {sorted(members)}; "
                f"expected every class exactly once: {sorted(self.class_names)}"
            )
        object.__setattr__(self, "labels", labels.astype(np.int64))

    @property
    def family_ids(self) -> np.ndarray:
        """int64 (class,): the family index of every class; all 0 when no families are known."""
        family_of = {member: index for index, members in enumerate(self.families.values()) for member in members}
        return np.array([family_of.get(name, 0) for name in self.class_names], np.int64)

    def only(self, class_names: Sequence[str]) -> ImageSet:
        """The images of these classes alone; labels count in the order that is given here."""
        unknown = [name for name in class_names if name not in self.class_names]
        if unknown:
            raise DataError(f"{self.name}: no class {unknown[0]!r}; expected some of {', '.join(self.class_names)}")
        ids = [self.class_names.index(name) for name in class_names]
        part = self.subset(np.flatnonzero(np.isin(self.labels, ids)))
        left = {family: tuple(name for name in names if name in class_names) for family, names in self.families.items()}
        return replace(
            part,
            labels=np.array([ids.index(label) for label in part.labels], np.int64),
            class_names=tuple(class_names),
            families={family: members for family, members in left.items() if members},
            checksum=folder_checksum([(part.checksum, ",".join(class_names))]),
        )


@dataclass(frozen=True, eq=False)
class MultiLabelSet(_Images):
    """Images with any number of classes each; what does not fit together is refused by a DataError."""

    name: str
    images: tuple[Path, ...]  # all different
    targets: np.ndarray  # uint8 (image, class): 1 where the image has the class
    class_names: tuple[str, ...]  # as they go into a prompt
    captions: tuple[str | None, ...]  # one an image, several joined by CAPTION_SEPARATOR
    checksum: str  # of all names, labels, captions and bytes: 64 hexadecimal digits
    origins: tuple[str, ...] = ()  # where each image is listed ("train.txt, line 3"), for messages
    warnings: tuple[str, ...] = ()  # what a reader noticed and let pass, such as a class without any image

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        object.__setattr__(self, "targets", check_targets(self.targets, self.name))
        expected = (len(self.images), len(self.class_names))
        if self.targets.shape != expected:
            raise DataError(
                f"{self.name}: targets have shape {self.targets.shape}; expected {expected}, "
                "one row an image and one column a class"
            )
        for what, values in (("captions", self.captions), ("origins", self.origins)):
            if len(values) != len(self.images) and (values or what == "captions"):
                raise DataError(
                    f"{self.name}: {len(values)} {what} for {len(self.images)} images; "
                    "expected one an image (None where there is none)"
                )

    def class_counts(self) -> np.ndarray:
        """int64 (class,): the number of images with each class."""
        counts: np.ndarray = self.targets.sum(axis=0, dtype=np.int64)
        return counts


def plain_name(name: str) -> str:
    """A class name with single blanks and composed letters (NFC): one class is one name, however it was typed."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def check_class_names(names: Sequence[str]) -> None:
    """Refuse, by a DataError, names that are no text, empty, or equal but for blanks or how an accent is spelt.

    Any language is fine; control characters, halves of characters and the like are not.
    """
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise DataError(f"class name {index} is {name!r} ({type(name).__name__}); expected a text")
        plain = unicodedata.normalize("NFC", " ".join(name.split()))
        for letter in plain:
            if unicodedata.category(letter) in ("Cc", "Cs", "Cn") or unicodedata.bidirectional(letter) in TURNS:
                raise DataError(f"class name {index} is {name!a}: {letter!a} is no letter; rename the class")
        if all(unicodedata.category(letter) == "Cf" for letter in plain):
            raise DataError(f"class name {index} is {name!r}; expected at least one visible character")
        if plain in seen:
            raise DataError(
                f"class name {index} is {name!r}, as is class name {seen[plain]}; expected every name once: "
                "rename one, or merge the two classes"
            )
        seen[plain] = index


def check_labels(labels: Any, count: int, known: np.ndarray | None = None) -> np.ndarray:
    """One label an image as an array (count,): none missing, all of one kind and, where they are given, ``known``."""
    if not hasattr(labels, "__len__") or isinstance(labels, str) or len(labels) != count:
        found = len(labels) if hasattr(labels, "__len__") else repr(labels)
        raise DataError(f"{count} images and {found} labels; expected one label an image")
    kinds: dict[bool, tuple[int, Any]] = {}
    for index, label in enumerate(labels):
        if isinstance(label, list | tuple | dict | set) or np.ndim(label):
            raise DataError(f"label {index} is {str(label)[:60]}; expected one label an image, shape ({count},)")
        try:
            missing = label is None or label is np.ma.masked or bool(label != label)  # NaN is not equal to itself
        except (TypeError, ValueError):  # pandas' NA cannot tell
            missing = True
        if missing:
            raise DataError(f"label {index} is missing ({label}); give every image a label, or leave the image out")
        kinds.setdefault(isinstance(label, str), (index, label))
    if len(kinds) > 1:
        (first, one), (second, other) = kinds.values()
        raise DataError(
            f"label {first} is {one!r} and label {second} is {other!r}; expected texts alone or numbers alone"
        )
    values = np.asarray(labels)
    if known is not None and len(strange := values[~np.isin(values, known)]):
        told = ", ".join(map(repr, dict.fromkeys(strange.tolist()[:5])))
        raise DataError(f"labels {told} were not learned; expected some of {', '.join(map(repr, known.tolist()[:10]))}")
    return values


def check_targets(targets: Any, name: str = "targets") -> np.ndarray:
    """Targets as uint8 (image, class) from anything array-like of 0 and 1; a DataError calls them by ``name``."""
    values = np.asarray(targets)
    if values.ndim != 2:
        raise DataError(f"{name}: targets have shape {values.shape}; expected (images, classes) with 0 or 1")
    for row, column in np.argwhere((values != 0) & (values != 1)):
        raise DataError(f"{name}: target of image {row}, class {column} is {values[row, column]}; expected 0 or 1")
    return values.astype(np.uint8)
