"""From scores to calibrated logits: one weight for each source of evidence, and one offset for each class.

A source is any number an image and class that is larger for likelier classes: minus a denoising error, or CLIP's
log-probabilities. For several labels an image: one scale and one bias for all classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax

from gcpl_lab.data.episodes import cross_validation_folds

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
"""On the mean square of the offsets in logits; the largest leaves next to none."""

# For sources of unit spread: keep those that tell the same alike, and weights finite where classes are separable.
WEIGHT_PENALTY, LARGEST_WEIGHT = 1e-3, 1e3


@dataclass(frozen=True)
class FittedLogits:
    """logits = Σ weight · source + offset; offsets take away the head start of prompts that denoise families well."""

    weights: np.ndarray  # float64 (source,), 0 or more, in logits a unit of the source
    offsets: np.ndarray  # float64 (class,), mean zero
    penalty: float  # strength on the offsets that cross-validation chose
    held_out_loss: float  # log-loss of held-out images; nan where a class had one image, or the penalty was given

    def __call__(self, sources: Sequence[np.ndarray]) -> np.ndarray:
        """Logits float64 (image, class) of sources (image, class) in the order of the fit."""
        return np.tensordot(self.weights, np.stack(sources), axes=1) + self.offsets

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, which has no nan."""
        loss = None if np.isnan(self.held_out_loss) else self.held_out_loss
        lists = {"weights": self.weights.tolist(), "offsets": self.offsets.tolist()}
        return lists | {"penalty": self.penalty, "held_out_loss": loss}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FittedLogits:
        """Back from JSON; a KeyError, TypeError or ValueError where something is missing or no finite number."""
        weights, offsets = (np.asarray(values[name], float) for name in ("weights", "offsets"))
        if not (np.isfinite(weights).all() and np.isfinite(offsets).all()):
            raise ValueError("weights or offsets are not finite; expected numbers")
        loss = values["held_out_loss"]
        return cls(weights, offsets, float(values["penalty"]), float("nan") if loss is None else float(loss))


def fit_logits(
    sources: Sequence[np.ndarray],
    labels: np.ndarray,
    *,
    penalty: float | None = None,
    weight_penalty: float = WEIGHT_PENALTY,
    seed: int = 0,
) -> FittedLogits:
    """Weights and offsets with the least regularised log-loss on labelled images.

    Args:
        sources: Each (image, class), of images that no source was trained on (or of its held-out folds): a source that
            has seen its answers gets too much weight.
        labels: int64 (image,).
        penalty: On the offsets; None has cross-validated log-loss choose among ``PENALTIES``.
        weight_penalty: On the squares of the weights, for sources of unit spread.

    Raises:
        ValueError: Sources of different shape or with numbers that are not finite.
    """
    shapes = {source.shape for source in sources}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or next(iter(shapes))[0] != len(labels):
        raise ValueError(
            f"sources have the shapes {sorted(shapes)} and there are {len(labels)} labels; expected one shape "
            f"({len(labels)}, class) for all"
        )
    stacked = np.stack([np.asarray(source, np.float64) for source in sources])
    if not np.isfinite(stacked).all():
        source, image, label = (int(index) for index in np.argwhere(~np.isfinite(stacked))[0])
        raise ValueError(f"source {source} is not finite for image {image} and class {label}")
    scale = np.maximum((stacked - stacked.mean(axis=2, keepdims=True)).std(axis=(1, 2)), 1e-12)
    stacked /= scale[:, None, None]
    loss = float("nan")
    if penalty is None:
        penalty, loss = _choose_penalty(stacked, labels, weight_penalty, seed)
    weights, offsets = _minimise(stacked, labels, penalty, weight_penalty)
    return FittedLogits(weights / scale, offsets - offsets.mean(), penalty, loss)


def _choose_penalty(stacked: np.ndarray, labels: np.ndarray, weight_penalty: float, seed: int) -> tuple[float, float]:
    """The penalty on offsets with the least held-out log-loss of sources (source, image, class), and that loss."""
    smallest = int(np.bincount(labels, minlength=stacked.shape[2]).min())
    if smallest < 2:  # nothing can be held out
        return PENALTIES[-1], float("nan")
    losses = np.zeros(len(PENALTIES))
    for inside, outside in cross_validation_folds(labels, min(4, smallest), seed):
        for index, penalty in enumerate(PENALTIES):
            weights, offsets = _minimise(stacked[:, inside], labels[inside], penalty, weight_penalty)
            logits = np.tensordot(weights, stacked[:, outside], axes=1) + offsets
            losses[index] -= log_softmax(logits, axis=1)[np.arange(len(outside)), labels[outside]].sum() / len(labels)
    best = int(losses.argmin())
    return PENALTIES[best], float(losses[best])


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The factor on scores (image, class) with the least log-loss on labelled images (image,), never test images."""

    def loss(log_temperature: float) -> float:
        return float(log_losses(np.exp(log_temperature) * scores.astype(np.float64), labels).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2.0, 12.0), method="bounded").x))


def log_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """−log softmax of each image's own class, (..., image) of logits (..., image, class)."""
    result: np.ndarray = -log_softmax(logits, axis=-1)[..., np.arange(len(labels)), labels]
    return result


def _minimise(
    stacked: np.ndarray, labels: np.ndarray, penalty: float, weight_penalty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (source,) and offsets (class,) for sources (source, image, class) of unit spread."""
    num, num_images, num_classes = stacked.shape
    own = np.arange(num_images), labels

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, offsets = parameters[:num], parameters[num:]
        logits = np.tensordot(weights, stacked, axes=1) + offsets
        log_chances = log_softmax(logits, axis=1)
        residuals = np.exp(log_chances)
        residuals[own] -= 1
        loss = -log_chances[own].mean() + weight_penalty * weights @ weights + penalty * (offsets**2).mean()
        of_weights = np.tensordot(stacked, residuals, axes=([1, 2], [0, 1])) / num_images + 2 * weight_penalty * weights
        of_offsets = residuals.mean(axis=0) + 2 * penalty * offsets / num_classes
        return float(loss), np.concatenate([of_weights, of_offsets])

    start = np.concatenate([np.full(num, 1 / num), np.zeros(num_classes)])
    # Of no source a larger number speaks against a class.
    bounds = [(0.0, LARGEST_WEIGHT)] * num + [(None, None)] * num_classes
    found: np.ndarray = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found[:num], found[num:]


def fit_sigmoid(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Scale (above 0) and bias with which sigmoid(scale · score + bias) fits the targets, both (image, class), best.

    One pair for all classes: classes with a handful of images could not support their own. The order of the
    scores within a class stays as it is. Where all scores or all targets are equal nothing can be fitted: 1 and 0.

    Source: Platt 1999, "Probabilistic outputs for support vector machines", without his prior
    """
    from sklearn.linear_model import LogisticRegression

    values, answers = np.asarray(scores, np.float64).ravel(), np.asarray(targets).ravel()
    centre, spread = float(values.mean()), float(values.std())
    if len(np.unique(answers)) < 2 or spread == 0:
        return 1.0, 0.0
    # A weak pull towards a scale of 0 keeps separable scores from an infinite one.
    model = LogisticRegression(C=1e4, max_iter=1000).fit(((values - centre) / spread)[:, None], answers)
    # Scores that rank worse than chance would turn the order around; a flat sigmoid is all they support.
    scale = max(float(model.coef_[0, 0]), 1e-3) / spread
    return scale, float(model.intercept_[0]) - scale * centre
