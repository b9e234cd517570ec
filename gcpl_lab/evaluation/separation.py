"""How well classes come apart, measured in the original space and never on a map."""

from __future__ import annotations

import math
from typing import NamedTuple

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


class Separation(NamedTuple):
    """Two figures that look at different things."""

    silhouette: Estimate  # mean silhouette, -1 to 1; 0 means that classes overlap completely
    neighbour_accuracy: Estimate  # leave-one-out nearest-neighbour accuracy, 0 to 1


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


def _mean_with_bootstrap(values: np.ndarray, rng: np.random.Generator) -> Estimate:
    """The mean of the finite values, and its interval from resampled ones."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    means = values[rng.integers(len(values), size=(NUM_BOOTSTRAP, len(values)))].mean(axis=1)
    return Estimate(float(values.mean()), *np.percentile(means, [2.5, 97.5]).tolist())


def measure_separation(points: np.ndarray, labels: np.ndarray) -> Separation:
    """Measure how well classes come apart: points (point, dim), finite, with labels (point,) of two classes or more.

    Distances are euclidean and the dimensions are not standardised: the relative errors of a profile share one unit
    already, and timesteps that carry only noise would get the weight of those that carry the evidence. Both figures are
    unchanged by shifting, rotating or scaling the whole cloud; the only point of a class has no say in either.

    The intervals resample the points' own silhouettes and hits while their neighbours stay: they tell how
    sure the mean is for this many images, not what another training run would give.
    """
    points, labels = check_rows("point", points, labels)
    names, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise DataError(f"labels name {len(names)} class for {len(points)} points; separation needs two or more")
    silhouettes = np.full(len(points), np.nan)
    if len(names) < len(points):  # of a lone point scikit-learn would say 0
        silhouettes = silhouette_samples(cdist(points, points), labels, metric="precomputed")
        silhouettes = np.where(counts[index] > 1, silhouettes, np.nan)
    rng = np.random.default_rng(0)
    silhouette = _mean_with_bootstrap(silhouettes, rng)
    return Separation(silhouette, _mean_with_bootstrap(neighbour_correctness(points, labels), rng))
