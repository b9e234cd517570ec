"""How well classes come apart, measured in the original space and never on a map.

Three figures that look at different things: the Fisher ratio (scatter of the class means against scatter
inside the classes), the silhouette (is a point nearer to its own class than to the next one) and
leave-one-out nearest-neighbour accuracy (is its nearest fellow of its own class).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_samples

from gcpl_lab.errors import DataError


class Estimate(NamedTuple):
    """A mean over points with the ends of its 95 % bootstrap interval; all NaN where it is not defined."""

    value: float
    low: float
    high: float


UNDEFINED = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class FamilyMean:
    """Unweighted mean of a measurement over the families that hold more than one class."""

    silhouette: Estimate
    neighbour_accuracy: Estimate
    fisher_ratio: float
    num_families: int


@dataclass(frozen=True)
class Separation:
    """What ``measure_separation`` found.

    Attributes:
        silhouette: Mean silhouette, -1 to 1; 0 means that classes overlap completely.
        neighbour_accuracy: Leave-one-out nearest-neighbour accuracy, 0 to 1.
        fisher_ratio: trace(between-class scatter) / trace(within-class scatter), 0 to infinity.
        num_points: Points measured.
        num_classes: Classes among them.
        notes: What could not be measured, and for which classes.
        within_family: The same inside each family of look-alikes, by family.
        within_family_mean: Their mean, or None where no family was given or none has two classes.
    """

    silhouette: Estimate
    neighbour_accuracy: Estimate
    fisher_ratio: float
    num_points: int
    num_classes: int
    notes: tuple[str, ...] = ()
    within_family: dict[str, Separation] = field(default_factory=dict)
    within_family_mean: FamilyMean | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; a figure that is not finite becomes None, because JSON has no NaN."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def profile_points(errors: np.ndarray) -> np.ndarray:
    """Turn error profiles into points that can be compared between images.

    Every error is divided by its mean over the classes at the same image and timestep, and 1 is taken away:
    a picture that is hard for every prompt, or a timestep at which all errors are large, says nothing about
    the class, and this scale vanishes.

    Args:
        errors: (image, class, timestep), finite; every mean over classes > 0.

    Returns:
        (image, class * timestep), each row's mean 0; class varies slowest.

    Raises:
        DataError: Wrong number of axes, a value that is not finite, or a mean that is not positive.
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
    points: np.ndarray = (errors / mean - 1).reshape(len(errors), -1)
    return points


def fisher_ratio(points: np.ndarray, labels: np.ndarray) -> float:
    """trace(between-class scatter) / trace(within-class scatter).

    Args:
        points: (point, dim).
        labels: (point,).

    Returns:
        0 where all class means agree; infinity where every class is one place; NaN where all points are one.
    """
    centre = points.mean(axis=0)
    between = within = 0.0
    for label in np.unique(labels):
        members = points[labels == label]
        mean = members.mean(axis=0)
        between += len(members) * float(np.square(mean - centre).sum())
        within += float(np.square(members - mean).sum())
    if within > 0:
        return between / within
    return math.inf if between > 0 else math.nan


def neighbour_correctness(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For every point, whether its nearest other point has its label.

    Where several others are equally near, the share of them with the right label: no order of the points
    may decide.

    Args:
        points: (point, dim), at least two.
        labels: (point,).

    Returns:
        (point,), from 0 to 1; NaN for the only point of a class, which has no fellow to be found.
    """
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    nearest = distances == distances.min(axis=1, keepdims=True)
    same = labels[:, None] == labels[None, :]
    correct = (nearest & same).sum(axis=1) / nearest.sum(axis=1)
    return np.where(same.sum(axis=1) > 1, correct, np.nan)


def _silhouettes(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Silhouette of every point; NaN for the only point of a class (scikit-learn would say 0)."""
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) >= len(points):
        return np.full(len(points), np.nan)
    values = silhouette_samples(cdist(points, points), labels, metric="precomputed")
    return np.where(counts[index] > 1, values, np.nan)


def _bootstrap(values: np.ndarray, num_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Means of the finite values: the plain mean first, then ``num_bootstrap`` means of resampled points."""
    values = values[np.isfinite(values)]
    if not len(values):
        return np.full(1 + num_bootstrap, np.nan)
    draws = rng.integers(len(values), size=(num_bootstrap, len(values)))
    return np.concatenate([[values.mean()], values[draws].mean(axis=1)])


def _estimate(means: np.ndarray) -> Estimate:
    if not np.isfinite(means).all():
        return UNDEFINED
    if len(means) == 1:
        return Estimate(float(means[0]), math.nan, math.nan)
    low, high = np.percentile(means[1:], [2.5, 97.5])
    return Estimate(float(means[0]), float(low), float(high))


def _check_points(points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points, labels = np.asarray(points, dtype=np.float64), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] == 0:
        raise DataError(f"points has shape {points.shape}; expected (point, dim) with dim at least 1")
    if labels.shape != (len(points),):
        raise DataError(f"labels has shape {labels.shape} for {len(points)} points; expected one label a point")
    if not np.isfinite(points).all():
        row = int(np.argwhere(~np.isfinite(points).all(axis=1))[0, 0])
        raise DataError(f"point {row} holds a value that is not finite; leave it out or mend its source")
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"labels name {len(np.unique(labels))} class for {len(points)} points; separation needs two or more"
        )
    return points, labels


def _measure(
    points: np.ndarray, labels: np.ndarray, num_bootstrap: int, seed: int | tuple[int, int]
) -> tuple[Separation, np.ndarray, np.ndarray]:
    """One separation without families, and the bootstrap means behind its two estimates."""
    names, counts = np.unique(labels, return_counts=True)
    notes = []
    if (counts == 1).any():
        alone = ", ".join(str(name) for name in names[counts == 1])
        notes.append(f"no silhouette and no neighbour for classes with one point: {alone}")
    rng = np.random.default_rng(seed)
    silhouette = _bootstrap(_silhouettes(points, labels), num_bootstrap, rng)
    accuracy = _bootstrap(neighbour_correctness(points, labels), num_bootstrap, rng)
    separation = Separation(
        silhouette=_estimate(silhouette),
        neighbour_accuracy=_estimate(accuracy),
        fisher_ratio=fisher_ratio(points, labels),
        num_points=len(points),
        num_classes=len(names),
        notes=tuple(notes),
    )
    return separation, silhouette, accuracy


def measure_separation(
    points: np.ndarray,
    labels: np.ndarray,
    family_ids: Sequence[object] | np.ndarray | None = None,
    num_bootstrap: int = 500,
    seed: int = 0,
) -> Separation:
    """Measure how well classes come apart, overall and inside families of look-alikes.

    Distances are euclidean and the dimensions are left as they are, not standardised. The relative errors
    of a profile share one unit already; standardising would blow the timesteps that carry only noise up to
    the weight of those that carry the evidence, and would stretch "before" and "after" differently, so that
    they could no longer be compared. All three figures are unchanged by shifting, rotating or scaling the
    whole cloud.

    The intervals resample the points' own silhouettes and hits while their neighbours stay: they tell how
    sure the mean is for this many pictures, not what another training run would give.

    Args:
        points: (point, dim), finite.
        labels: (point,), class ids or names, at least two different.
        family_ids: (point,), the family of each point's class; then every family with two or more classes
            is measured alone.
        num_bootstrap: Resamplings behind the intervals; 0 leaves their ends NaN.
        seed: Of the resampling.

    Returns:
        The separation; ``notes`` names classes of one point, which are left out of silhouette and neighbours.

    Raises:
        DataError: Wrong shapes, a value that is not finite, or fewer than two classes.
    """
    points, labels = _check_points(points, labels)
    overall, _, _ = _measure(points, labels, num_bootstrap, seed)
    if family_ids is None:
        return overall
    ids = np.asarray(family_ids).astype(str)
    if ids.shape != labels.shape:
        raise DataError(f"family_ids has shape {ids.shape} for {len(points)} points; expected one family a point")
    families: dict[str, Separation] = {}
    silhouettes, accuracies = [], []
    for family in dict.fromkeys(ids.tolist()):
        members = ids == family
        if len(np.unique(labels[members])) < 2:
            continue
        # A stream of its own for each family: equal draws would make the mean's interval too wide.
        stream = (seed, 1 + len(families))
        families[family], silhouette, accuracy = _measure(points[members], labels[members], num_bootstrap, stream)
        silhouettes.append(silhouette)
        accuracies.append(accuracy)
    mean = None
    if families:
        mean = FamilyMean(
            silhouette=_estimate(np.mean(silhouettes, axis=0)),
            neighbour_accuracy=_estimate(np.mean(accuracies, axis=0)),
            fisher_ratio=float(np.mean([part.fisher_ratio for part in families.values()])),
            num_families=len(families),
        )
    return replace(overall, within_family=families, within_family_mean=mean)


def measure_within_families(
    points: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    families: Mapping[str, Sequence[str]],
    num_bootstrap: int = 500,
    seed: int = 0,
) -> Separation:
    """``measure_separation`` with families given as names, as ``FASHION_FAMILIES`` gives them.

    Args:
        points: (point, dim).
        labels: (point,), integers that index ``class_names``.
        class_names: (class,).
        families: Family name to the names of its classes; a class in no family is measured overall only.
        num_bootstrap: Resamplings behind the intervals.
        seed: Of the resampling.

    Returns:
        The separation with ``within_family`` and ``within_family_mean`` filled.

    Raises:
        DataError: As ``measure_separation``; or a label that indexes no class name.
    """
    labels = np.asarray(labels)
    if labels.size and (labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(class_names)):
        raise DataError(f"labels must be integers from 0 to {len(class_names) - 1}, the places of the class names")
    family_of = {name: family for family, members in families.items() for name in members}
    # A class in no family is a family of its own; the prefix keeps it apart from a family of the same name.
    ids = [family_of.get(class_names[label], f"\0{class_names[label]}") for label in labels]
    return measure_separation(points, labels, ids, num_bootstrap, seed)
