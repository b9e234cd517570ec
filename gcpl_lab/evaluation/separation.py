"""How well classes come apart, measured in the original space and never on a map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_samples

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.metrics import check_rows

NUM_BOOTSTRAP = 500  # resamplings behind every interval


class Estimate(NamedTuple):
    """A mean with the ends of its 95 % interval; all NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FamilyMean:
    """Unweighted mean of a measurement over the families that hold more than one class."""

    silhouette: Estimate
    neighbour_accuracy: Estimate
    fisher_ratio: float
    num_families: int


@dataclass(frozen=True)
class Separation:
    """Three figures that look at different things, and the same inside families where they were asked for."""

    silhouette: Estimate  # mean silhouette, -1 to 1; 0 means that classes overlap completely
    neighbour_accuracy: Estimate  # leave-one-out nearest-neighbour accuracy, 0 to 1
    fisher_ratio: float  # scatter between classes / scatter within classes, 0 to infinity
    num_points: int
    num_classes: int
    notes: tuple[str, ...] = ()  # what could not be measured, and for which classes
    within_family: dict[str, Separation] = field(default_factory=dict)
    within_family_mean: FamilyMean | None = None  # None where no family has two classes

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; a figure that is not finite becomes None, because JSON has no NaN."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def profile_points(errors: np.ndarray) -> np.ndarray:
    """Turn error profiles (image, class, timestep) into points (image, class * timestep), class varying slowest.

    Every error is divided by its mean over the classes at the same image and timestep, and 1 is taken away: how
    hard an image or a timestep is for every prompt says nothing about the class.
    """
    errors = np.asarray(errors, dtype=np.float64)
    if errors.ndim != 3 or 0 in errors.shape:
        raise DataError(f"errors has shape {errors.shape}; expected (image, class, timestep), none of them empty")
    if not np.isfinite(errors).all():
        image, label, step = np.argwhere(~np.isfinite(errors))[0]
        raise DataError(
            f"errors[{image}, {label}, {step}] is {errors[image, label, step]}; expected finite errors of every "
            "class (the staged classifier leaves out eliminated classes: use the exact one for profiles)"
        )
    mean = errors.mean(axis=1, keepdims=True)
    if (mean <= 0).any():
        image, _, step = np.argwhere(mean <= 0)[0]
        raise DataError(f"image {image} has mean error {mean[image, 0, step]} at timestep {step}; expected > 0")
    return np.reshape(errors / mean - 1, (len(errors), -1))


def fisher_ratio(points: np.ndarray, labels: np.ndarray) -> float:
    """trace(between-class scatter) / trace(within-class scatter) of points (point, dim) with labels (point,).

    Infinity where every class is one place; NaN where all points are one.
    """
    names, index = np.unique(labels, return_inverse=True)
    means = np.stack([points[labels == name].mean(axis=0) for name in names])[index]
    between, within = float(np.square(means - points.mean(axis=0)).sum()), float(np.square(points - means).sum())
    if within > 0:
        return between / within
    return math.inf if between > 0 else math.nan


def neighbour_correctness(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For every point of (point, dim), whether its nearest other point has its label, (point,) from 0 to 1.

    Where several others are equally near, the share of them with the right label. NaN for the only point of a class.
    """
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    nearest = distances == distances.min(axis=1, keepdims=True)
    same = labels[:, None] == labels[None, :]
    correct = (nearest & same).sum(axis=1) / nearest.sum(axis=1)
    return np.where(same.sum(axis=1) > 1, correct, np.nan)


def _bootstrap(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mean of the finite values, then those of resampled ones."""
    values = values[np.isfinite(values)]
    if not len(values):
        return np.full(1 + NUM_BOOTSTRAP, np.nan)
    draws = rng.integers(len(values), size=(NUM_BOOTSTRAP, len(values)))
    return np.concatenate([[values.mean()], values[draws].mean(axis=1)])


def _estimate(means: np.ndarray) -> Estimate:
    return Estimate(float(means[0]), *np.percentile(means[1:], [2.5, 97.5]).tolist())


def _measure(
    points: np.ndarray, labels: np.ndarray, seed: int | tuple[int, int]
) -> tuple[Separation, np.ndarray, np.ndarray]:
    """One separation without families, and the bootstrap means behind its two estimates."""
    names, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    alone = ", ".join(str(name) for name in names[counts == 1])
    notes = (f"no silhouette and no neighbour for classes with one point: {alone}",) if alone else ()
    silhouettes = np.full(len(points), np.nan)
    if len(names) < len(points):  # of a lone point scikit-learn would say 0
        silhouettes = silhouette_samples(cdist(points, points), labels, metric="precomputed")
        silhouettes = np.where(counts[index] > 1, silhouettes, np.nan)
    rng = np.random.default_rng(seed)
    silhouette, accuracy = _bootstrap(silhouettes, rng), _bootstrap(neighbour_correctness(points, labels), rng)
    ratio = fisher_ratio(points, labels)
    found = Separation(_estimate(silhouette), _estimate(accuracy), ratio, len(points), len(names), notes)
    return found, silhouette, accuracy


def measure_separation(points: np.ndarray, labels: np.ndarray) -> Separation:
    """Measure how well classes come apart: points (point, dim), finite, with labels (point,) of two classes or more.

    Distances are euclidean and the dimensions are not standardised: the relative errors of a profile share one unit
    already, and timesteps that carry only noise would get the weight of those that carry the evidence. All three
    figures are unchanged by shifting, rotating or scaling the whole cloud.

    The intervals resample the points' own silhouettes and hits while their neighbours stay: they tell how
    sure the mean is for this many images, not what another training run would give.
    """
    points, labels = check_rows("point", points, labels)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise DataError(f"labels name {len(classes)} class for {len(points)} points; separation needs two or more")
    return _measure(points, labels, 0)[0]


def measure_within_families(
    points: np.ndarray, labels: np.ndarray, class_names: Sequence[str], families: Mapping[str, Sequence[str]]
) -> Separation:
    """:func:`measure_separation`, and the same inside every family of look-alikes with two or more classes.

    Args:
        points: (point, dim), finite; ``labels`` (point,) are integers that index ``class_names``.
        families: Family name to the names of its classes; a class in no family is measured overall only.
    """
    overall, points, labels = measure_separation(points, labels), np.asarray(points, float), np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(class_names):
        raise DataError(f"labels must be integers from 0 to {len(class_names) - 1}, the places of the class names")
    family_of = {name: family for family, members in families.items() for name in members}
    of_points = [family_of.get(class_names[label]) for label in labels]
    within: dict[str, Separation] = {}
    means = []
    for family in dict.fromkeys(of_points):
        chosen = np.array([other == family for other in of_points])
        if family is not None and len(np.unique(labels[chosen])) > 1:
            # A stream of its own for each family: equal draws would make the mean's interval too wide.
            within[family], *found = _measure(points[chosen], labels[chosen], (0, 1 + len(within)))
            means.append(found)
    if not within:
        return overall
    silhouette, accuracy = np.mean(means, axis=0)
    ratio = float(np.mean([part.fisher_ratio for part in within.values()]))
    mean = FamilyMean(_estimate(silhouette), _estimate(accuracy), ratio, len(within))
    return replace(overall, within_family=within, within_family_mean=mean)
