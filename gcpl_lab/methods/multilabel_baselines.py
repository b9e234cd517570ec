"""What LMPT has to beat on pictures with several labels: simple uses of the same frozen CLIP.

Zero-shot CLIP is :class:`gcpl_lab.methods.baselines.ZeroShotCLIP`: cosines to class names rank the images of
each class. CoOp with a multi-label loss is LMPT without captions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import Tensor

from gcpl_lab.backbones.clip import FrozenCLIP
from gcpl_lab.methods.lmpt import LMPT, Classification
from gcpl_lab.methods.prompts import ContextPrompts


def coop(clip: FrozenCLIP, prompts: ContextPrompts, classification: Classification, **settings: Any) -> LMPT:
    """CoOp tuned with a multi-label loss: the LMPT objective with ``mix=1``, so captions play no part.

    Args:
        clip: Encodes the prompts.
        prompts: Their contexts are trained.
        classification: Which loss.
        **settings: Others of :class:`~gcpl_lab.methods.lmpt.LMPT`, with ``class_counts`` and ``num_images``.
    """
    return LMPT(clip, prompts, classification=classification, mix=1.0, **settings)


class OneVsRestProbe:
    """One logistic regression a class on image features, their common strength chosen on validation images.

    Attributes:
        strength: The chosen inverse regularisation C.
    """

    STRENGTHS = (0.1, 1.0, 10.0, 100.0)

    def __init__(
        self, features: Tensor, targets: np.ndarray, validation_features: Tensor, validation_targets: np.ndarray
    ) -> None:
        """Fit on unit features (image, feature) with targets (image, class) of 0 and 1.

        A class that no training image has, or all of them, gets a constant score.
        """
        fits = {strength: _fit(features.numpy(), targets, strength) for strength in self.STRENGTHS}
        quality = {
            strength: _mean_precision(validation_features.numpy() @ weights + offsets, validation_targets)
            for strength, (weights, offsets) in fits.items()
        }
        self.strength = max(quality, key=lambda strength: quality[strength])
        self._weights, self._offsets = fits[self.strength]

    def scores(self, features: Tensor) -> Tensor:
        """Logits (image, class)."""
        return torch.from_numpy(features.numpy() @ self._weights + self._offsets).float()


def _fit(features: np.ndarray, targets: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (feature, class) and offsets (class,)."""
    weights, offsets = np.zeros((features.shape[1], targets.shape[1])), np.zeros(targets.shape[1])
    for label in range(targets.shape[1]):
        if 0 < targets[:, label].sum() < len(targets):
            model = LogisticRegression(C=strength, max_iter=2000).fit(features, targets[:, label])
            weights[:, label], offsets[label] = model.coef_[0], model.intercept_[0]
    return weights, offsets


def _mean_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Over the classes that have a positive image; 0 where none has."""
    known = np.flatnonzero(targets.any(axis=0))
    values = [average_precision_score(targets[:, label], scores[:, label]) for label in known]
    return float(np.mean(values)) if values else 0.0
