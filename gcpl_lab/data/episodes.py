"""Few-shot episodes, test draws and cross-validation folds: which images are used, by seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError

# Separate streams, so that equal seeds do not couple what is drawn for different purposes.
_EPISODE, _TEST, _FOLDS = 0, 1, 2


def draw_episode(image_set: ImageSet, shots: int, seed: int) -> np.ndarray:
    """Draw the exemplars of a few-shot episode: int64 (class · shots,), indices into the set, class by class.

    With the same seed, each class's k exemplars are the first k of its k + 1 exemplars, so curves over the
    number of shots change by added images only. A class with fewer images is named by a DataError.
    """
    _check_count("shots", shots, 1)
    members = _shuffle(image_set.labels, len(image_set.class_names), seed, _EPISODE)
    return _take_each(image_set, members, shots, "shots")


def draw_test(image_set: ImageSet, per_class: int | None = None, total: int | None = None, seed: int = 0) -> np.ndarray:
    """Draw test images, as evenly over the classes as the set allows: int64 (count,), indices, class by class.

    Args:
        image_set: Every class must have an image.
        per_class: Images of each class; give this or ``total``.
        total: Images together, by default all; at least one a class. A class that runs out leaves its share to others.
    """
    if per_class is not None and total is not None:
        raise DataError(f"per_class is {per_class} and total is {total}; expected one of the two")
    members = _shuffle(image_set.labels, len(image_set.class_names), seed, _TEST)
    for name, indices in zip(image_set.class_names, members, strict=True):
        if not len(indices):
            raise DataError(f"{image_set.name}: class {name!r} has no test image; add some or leave the class out")
    if per_class is not None:
        _check_count("per_class", per_class, 1)
        return _take_each(image_set, members, per_class, "test images")
    total = len(image_set) if total is None else total
    _check_count("total", total, len(members))
    if total > len(image_set):
        raise DataError(f"total is {total}, but {image_set.name} has {len(image_set)} images; ask for fewer")
    # One place a class in turn, in a seeded order, until each class has run out.
    available, counts = np.array([len(indices) for indices in members]), np.zeros(len(members), np.int64)
    order = np.random.default_rng([int(seed), _TEST]).permutation(len(members))
    while (left := total - int(counts.sum())) > 0:
        counts[[label for label in order if counts[label] < available[label]][:left]] += 1
    chosen = [indices[:count] for indices, count in zip(members, counts, strict=True)]
    return np.concatenate(chosen).astype(np.int64)


def cross_validation_folds(
    labels: Sequence[int] | np.ndarray, num_folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Part labelled images into folds that each hold every class in equal number, give or take one.

    Returns:
        For every fold, the sorted indices to train on and the sorted indices held out, int64.
    """
    _check_count("num_folds", num_folds, 2)
    values = np.asarray(labels)
    if values.ndim != 1 or not values.size or not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"labels are {values.dtype} of shape {values.shape}; expected whole numbers (count,)")
    kinds, ids, sizes = np.unique(values, return_inverse=True, return_counts=True)
    if sizes.min() < num_folds:
        smallest = int(sizes.argmin())
        raise DataError(
            f"label {kinds[smallest]} has {sizes[smallest]} images, fewer than the {num_folds} folds; "
            f"expected one a fold at least: use at most {sizes[smallest]} folds, or more images"
        )
    fold_of = np.empty(len(values), np.int64)
    # Each class goes on where the last one stopped, which keeps the folds of equal size.
    fold_of[np.concatenate(_shuffle(ids, len(kinds), seed, _FOLDS))] = np.arange(len(values)) % num_folds
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(num_folds)]


def _check_count(what: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise DataError(f"{what} is {value!r}; expected a whole number, {least} or more")


def _shuffle(labels: np.ndarray, num_classes: int, seed: int, stream: int) -> list[np.ndarray]:
    """Indices of every class in an order that depends on seed and class alone, not on the number taken."""
    _check_count("seed", seed, 0)
    return [
        np.random.default_rng([int(seed), stream, label]).permutation(np.flatnonzero(labels == label))
        for label in range(num_classes)
    ]


def _take_each(image_set: ImageSet, members: list[np.ndarray], count: int, what: str) -> np.ndarray:
    for name, indices in zip(image_set.class_names, members, strict=True):
        if len(indices) < count:
            raise DataError(
                f"{image_set.name}: class {name!r} has {len(indices)} images, fewer than the {count} {what}; "
                f"add images or ask for at most {min(len(each) for each in members)}"
            )
    return np.concatenate([indices[:count] for indices in members]).astype(np.int64)
