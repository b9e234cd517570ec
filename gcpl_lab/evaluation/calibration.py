"""From scores of several labels a picture to probabilities: one scale and one bias for all classes."""

from __future__ import annotations

import numpy as np

MOST_CERTAIN = 1e4
"""Weak pull towards a scale of 0, in units of one decision: keeps separable scores from an infinite scale."""


def fit_sigmoid(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Platt's scaling: the scale and bias with which sigmoid(scale · score + bias) fits the targets best.

    One pair for all classes: classes with a handful of images could not support their own. The order of the
    scores within a class stays as it is.

    Args:
        scores: (image, class), any finite numbers; spread over at least two values.
        targets: (image, class), 0 or 1.

    Returns:
        Scale (above 0) and bias. Where all targets are equal nothing can be fitted: 1 and 0.

    Source: Platt 1999, "Probabilistic outputs for support vector machines", without his prior
    """
    from sklearn.linear_model import LogisticRegression

    values, answers = np.asarray(scores, np.float64).ravel(), np.asarray(targets).ravel()
    spread = float(values.std())
    if len(np.unique(answers)) < 2 or spread == 0:
        return 1.0, 0.0
    centre = float(values.mean())
    model = LogisticRegression(C=MOST_CERTAIN, max_iter=1000).fit(((values - centre) / spread)[:, None], answers)
    # Scores that rank worse than chance would turn the order around; a flat sigmoid is all they support.
    scale = max(float(model.coef_[0, 0]), 1e-3) / spread
    return scale, float(model.intercept_[0]) - scale * centre
