"""How an image's denoising errors become scores and probabilities: weighting, temperature and offsets of the classes.

All of it is fitted on the support images; none of it ever sees a test image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from gcpl_lab.evaluation.calibration import fit_logits, fit_temperature, log_losses

Weighting = Literal["relative", "absolute"]
WEIGHTINGS: tuple[Weighting, ...] = ("relative", "absolute")


def class_scores(errors: np.ndarray, weighting: Weighting = "relative") -> np.ndarray:
    """One number for each class, larger is better: minus the mean error over the samples.

    Args:
        errors: (image, class, sample); classes with NaN were dropped and get −inf.
        weighting: ``"relative"`` divides every sample's errors by their mean over the classes that are left, so that
            all timesteps count alike; ``"absolute"`` is the published mean.

    Returns:
        (image, class).
    """
    if weighting == "relative":
        errors = errors / np.nanmean(errors, axis=1, keepdims=True)
    return np.where(np.isnan(errors).any(axis=2), -np.inf, -errors.mean(axis=2))


def probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax over classes of ``temperature`` × scores, (image, class)."""
    exponentials = np.exp(temperature * (scores - scores.max(axis=1, keepdims=True)).astype(np.float64))
    result: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


@dataclass(frozen=True)
class Reading:
    """How errors are read.

    Attributes:
        weighting: Of the mean over (t, ε), see :func:`class_scores`.
        temperature: Factor on scores under the softmax.
        offsets: float64 (class,), added to the scores.
    """

    weighting: Weighting
    temperature: float
    offsets: np.ndarray

    def scores(self, errors: np.ndarray) -> np.ndarray:
        """Scores (image, class) of errors (image, class, sample); larger is better."""
        scores = class_scores(errors, self.weighting)
        return (scores + self.offsets).astype(scores.dtype)


def fit_reading(
    errors: np.ndarray,
    labels: np.ndarray,
    *,
    weighting: Weighting | Literal["chosen"] = "chosen",
    class_offsets: bool = True,
    seed: int = 0,
) -> Reading:
    """Temperature, offsets and, where asked for, the weighting with the least log-loss on labelled images.

    Args:
        errors: (image, class, sample) of a support set.
        labels: int64 (image,).
        weighting: ``"chosen"`` tries both and keeps the one with less log-loss (with offsets: cross-validated).
        class_offsets: Fit one offset a class, against prompts that win too often; False leaves them at 0.
        seed: Of the folds.
    """
    tried: tuple[Weighting, ...] = WEIGHTINGS if weighting == "chosen" else (weighting,)
    readings, losses = list[Reading](), list[float]()
    for one in tried:
        scores = class_scores(errors, one)
        if class_offsets:
            fitted = fit_logits([scores], labels, weight_penalty=0.0, seed=seed)
            temperature = max(float(fitted.weights[0]), 1e-6)
            offsets, loss = fitted.offsets / temperature, fitted.held_out_loss
        else:
            temperature, offsets = fit_temperature(scores, labels), np.zeros(scores.shape[1])
            loss = float(log_losses(temperature * scores, labels).mean())
        readings.append(Reading(one, temperature, offsets))
        losses.append(np.inf if np.isnan(loss) else loss)
    return readings[int(np.argmin(losses))]
