"""Several kinds of evidence about the same images, joined to one calibrated opinion with a few fitted weights.

A source is any number an image and class that is larger for likelier classes: minus the denoising error in one band
of noise levels, or CLIP's log-probabilities. Each source gets one weight, each class one offset. With independent
sources whose numbers are log-likelihoods the right weights are equal (a product of experts); fitted weights correct
what is not so: errors on no scale of probabilities, noise levels that tell more than others, sources that repeat
each other. Where a few hundred labelled photographs are at hand, maps may say more: what one class's number tells
about the others, as when a wrong name points to another class than its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from gcpl_lab.data.episodes import cross_validation_folds

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
"""On the mean square of the offsets in logits; the largest leaves next to none."""

WEIGHT_PENALTY = 1e-3
"""On the squared weights of sources brought to unit spread: keeps sources that tell the same alike, and weights finite
where the support set is separable."""


MAP_PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""On the squares of a map's entries, summed and divided by the number of classes, for sources of unit spread."""


@dataclass(frozen=True)
class JoinedEvidence:
    """logits = Σ weight · source + offset, and where there are maps Σ (source less its mean over classes) · map.

    Attributes:
        weights: float64 (source,), 0 or more, in logits a unit of the source.
        offsets: float64 (class,), mean zero.
        penalty: Strength on the offsets that cross-validation chose.
        held_out_loss: Log-loss of held-out images; nan where a class had one image, or the penalty was given.
        maps: float64 (source, class, class): row by row what a class's number adds to the logits of all; or None.
        map_penalty: Strength on the maps that cross-validation chose; None without maps.
    """

    weights: np.ndarray
    offsets: np.ndarray
    penalty: float
    held_out_loss: float
    maps: np.ndarray | None = None
    map_penalty: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, which has no nan: a loss that is not known is None. Maps are not kept.

        Raises:
            ValueError: There are maps.
        """
        if self.maps is not None:
            raise ValueError("this evidence has maps, which are not written down; fit it without them")
        loss = None if np.isnan(self.held_out_loss) else self.held_out_loss
        return {
            "weights": self.weights.tolist(),
            "offsets": self.offsets.tolist(),
            "penalty": self.penalty,
            "held_out_loss": loss,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JoinedEvidence:
        """Back from JSON.

        Raises:
            KeyError, TypeError, ValueError: Something is missing or no finite number.
        """
        weights, offsets = (np.asarray(values[name], float) for name in ("weights", "offsets"))
        if not (np.isfinite(weights).all() and np.isfinite(offsets).all()):
            raise ValueError("weights or offsets are not finite; expected numbers")
        loss = values["held_out_loss"]
        return cls(weights, offsets, float(values["penalty"]), float("nan") if loss is None else float(loss))

    def logits(self, sources: Sequence[np.ndarray]) -> np.ndarray:
        """Of sources (image, class) in the order of the fit, float64 (image, class)."""
        stacked = _stack(sources)
        maps = np.zeros(0) if self.maps is None else self.maps.ravel()
        return _logits(np.concatenate([self.weights, self.offsets, maps]), stacked, _centred(stacked, self.maps))

    def probabilities(self, sources: Sequence[np.ndarray]) -> np.ndarray:
        """Softmax of the logits, (image, class)."""
        result: np.ndarray = softmax(self.logits(sources), axis=1)
        return result


def fit_joined(
    sources: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    offsets: bool = True,
    penalty: float | None = None,
    maps: bool = False,
    seed: int = 0,
) -> JoinedEvidence:
    """Weights and offsets, and where it helps maps, with the least regularised log-loss on labelled images.

    Args:
        sources: Each (image, class), of photographs that no source was trained on (or of its held-out folds): a
            source that has seen its answers looks better than it is and gets too much weight.
        labels: int64 (image,).
        offsets: Fit one offset a class, against classes that win too often.
        penalty: On the offsets; None has cross-validated log-loss choose among ``PENALTIES``.
        maps: Fit maps too, if with one of ``MAP_PENALTIES`` the cross-validated log-loss is less than without. They
            want some hundred images: each has as many numbers as there are pairs of classes.
        seed: Of the folds.

    Raises:
        ValueError: Sources of different shape or with numbers that are not finite.
    """
    stacked = _stack(sources)
    if stacked.shape[1] != len(labels):
        raise ValueError(f"sources hold {stacked.shape[1]} images and there are {len(labels)} labels; expected as many")
    scale = np.maximum((stacked - stacked.mean(axis=2, keepdims=True)).std(axis=(1, 2)), 1e-12)
    stacked = stacked / scale[:, None, None]
    candidates = (PENALTIES if offsets else (PENALTIES[-1],)) if penalty is None else (penalty,)
    smallest = int(np.bincount(labels, minlength=stacked.shape[2]).min()) if penalty is None or maps else 0
    folds = cross_validation_folds(labels, min(4, smallest), seed) if smallest >= 2 else []
    best, loss = candidates[-1], float("nan")
    if folds and penalty is None:
        losses = {one: _held_out_loss(stacked, labels, folds, one, offsets, None) for one in candidates}
        best = min(losses, key=lambda one: losses[one])
        loss = losses[best]
    map_penalty = None
    if folds and maps:
        tried: dict[float | None, float] = {
            one: _held_out_loss(stacked, labels, folds, best, offsets, one) for one in MAP_PENALTIES
        }
        tried[None] = loss if penalty is None else _held_out_loss(stacked, labels, folds, best, offsets, None)
        least = min(MAP_PENALTIES, key=lambda one: tried[one])
        if tried[least] < tried[None]:
            map_penalty, loss = least, tried[least]
    found = _minimise(stacked, labels, best, offsets, map_penalty)
    num, num_classes = len(stacked), stacked.shape[2]
    shifts = found[num : num + num_classes]
    mapped = None
    if map_penalty is not None:
        mapped = found[num + num_classes :].reshape(num, num_classes, num_classes) / scale[:, None, None]
    return JoinedEvidence(found[:num] / scale, shifts - shifts.mean(), best, loss, mapped, map_penalty)


def band_sources(errors: np.ndarray, timesteps: np.ndarray, num_bands: int) -> list[np.ndarray]:
    """Minus the mean error of the samples in each of some bands of noise levels, as sources.

    Args:
        errors: (image, class, sample), complete.
        timesteps: (sample,).
        num_bands: Bands with equally many samples; 1 is the plain mean, as many as samples weighs each.

    Returns:
        One (image, class) a band, from little noise to much.
    """
    if not 1 <= num_bands <= len(timesteps):
        raise ValueError(f"num_bands is {num_bands}; expected 1 to {len(timesteps)}, the number of samples")
    bands = np.array_split(np.argsort(timesteps, kind="stable"), num_bands)
    return [-errors[:, :, band].mean(axis=2, dtype=np.float64) for band in bands]


def fit_bands(
    errors: np.ndarray,
    timesteps: np.ndarray,
    labels: np.ndarray,
    *,
    others: Sequence[np.ndarray] = (),
    choices: Sequence[int] = (1, 2, 4, 8),
    maps: bool = False,
    seed: int = 0,
) -> tuple[int, JoinedEvidence]:
    """How many bands of noise levels get a weight of their own, by cross-validated log-loss, and the fit with these.

    Args:
        errors: (image, class, sample), complete.
        timesteps: (sample,).
        labels: int64 (image,).
        others: Further sources, behind the bands.
        choices: Numbers of bands; those above the number of samples are left out. 1 is the plain mean.
        maps: See :func:`fit_joined`.
        seed: Of the folds.

    Returns:
        The number of bands, and the joined evidence of ``[*band_sources(errors, timesteps, bands), *others]``.
    """
    fits = {
        number: fit_joined([*band_sources(errors, timesteps, number), *others], labels, maps=maps, seed=seed)
        for number in choices
        if number <= len(timesteps)
    }
    best = min(fits, key=lambda number: (np.nan_to_num(fits[number].held_out_loss, nan=np.inf), number))
    return best, fits[best]


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """log Σ exp over the last axis of finite numbers; scipy's, which takes every case in its stride, is much slower."""
    top = logits.max(axis=-1)
    result: np.ndarray = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
    return result


def _stack(sources: Sequence[np.ndarray]) -> np.ndarray:
    shapes = {source.shape for source in sources}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"sources have the shapes {sorted(shapes)}; expected one (image, class) for all")
    stacked = np.stack([np.asarray(source, np.float64) for source in sources])
    if not np.isfinite(stacked).all():
        place = [int(index) for index in np.argwhere(~np.isfinite(stacked))[0]]
        raise ValueError(f"source {place[0]} is not finite for image {place[1]} and class {place[2]}")
    return stacked


def _centred(stacked: np.ndarray, maps: object) -> np.ndarray | None:
    """What maps are applied to: a number that all classes share says nothing. None without maps."""
    return None if maps is None else stacked - stacked.mean(axis=2, keepdims=True)


def _logits(parameters: np.ndarray, stacked: np.ndarray, centred: np.ndarray | None = None) -> np.ndarray:
    num, num_classes = len(stacked), stacked.shape[2]
    result: np.ndarray = np.tensordot(parameters[:num], stacked, axes=1) + parameters[num : num + num_classes]
    if centred is not None:
        maps = parameters[num + num_classes :].reshape(num, num_classes, num_classes)
        result = result + np.tensordot(centred, maps, axes=([0, 2], [0, 1]))
    return result


def _minimise(
    stacked: np.ndarray, labels: np.ndarray, penalty: float, offsets: bool, map_penalty: float | None
) -> np.ndarray:
    """Weights, offsets and, where there is a penalty for them, maps, one after another."""
    num, num_images, num_classes = stacked.shape
    rows, centred = np.arange(num_images), _centred(stacked, map_penalty)
    num_mapped = 0 if map_penalty is None else num * num_classes**2

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = _logits(parameters, stacked, centred)
        total = log_sum_exp(logits)
        chances = np.exp(logits - total[:, None])
        loss = float((total - logits[rows, labels]).mean())
        chances[rows, labels] -= 1
        weights, shifts = parameters[:num], parameters[num : num + num_classes]
        loss += WEIGHT_PENALTY * float(weights @ weights) + penalty * float((shifts**2).mean())
        gradients = [
            np.tensordot(stacked, chances, axes=([1, 2], [0, 1])) / num_images + 2 * WEIGHT_PENALTY * weights,
            chances.mean(axis=0) + 2 * penalty * shifts / num_classes,
        ]
        if centred is not None and map_penalty is not None:
            entries = parameters[num + num_classes :]
            loss += map_penalty * float(entries @ entries) / num_classes
            of_maps = np.einsum("sic,id->scd", centred, chances, optimize=True).ravel() / num_images
            gradients.append(of_maps + 2 * map_penalty * entries / num_classes)
        return loss, np.concatenate(gradients)

    # Of no source a larger number may speak against a class, but where a map says so.
    bounds = [(0.0, None)] * num + [(None, None) if offsets else (0.0, 0.0)] * num_classes + [(None, None)] * num_mapped
    start = np.concatenate([np.full(num, 1 / num), np.zeros(num_classes + num_mapped)])
    found: np.ndarray = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


def _held_out_loss(
    stacked: np.ndarray,
    labels: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    penalty: float,
    offsets: bool,
    map_penalty: float | None,
) -> float:
    total, centred = 0.0, _centred(stacked, map_penalty)
    for inside, outside in folds:
        found = _minimise(stacked[:, inside], labels[inside], penalty, offsets, map_penalty)
        logits = _logits(found, stacked[:, outside], None if centred is None else centred[:, outside])
        total += float((log_sum_exp(logits) - logits[np.arange(len(outside)), labels[outside]]).sum())
    return total / len(labels)
