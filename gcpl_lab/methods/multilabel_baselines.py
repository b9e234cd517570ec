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

    Every view of an image is an example of its own, so that the probe learns from what prompts learn from.

    Attributes:
        strength: The chosen inverse regularisation C.
    """

    STRENGTHS = tuple(10 ** (half / 2) for half in range(-2, 7))
    """0.1 to 1000 in steps of √10; on validation splits of the bundled scenes the best lay at 10 to 100."""

    def __init__(
        self, views: Tensor, targets: np.ndarray, validation_features: Tensor, validation_targets: np.ndarray
    ) -> None:
        """Fit with every strength, and keep the one with the best mAP on the validation images.

        A class that no training image has, or all of them, gets a constant score.

        Args:
            views: Unit features (view, image, feature) of the training images, such as photographs and mirror images.
            targets: 0/1 (image, class).
            validation_features: Unit features (image, feature) of the validation images, each as it is.
            validation_targets: 0/1 (image, class).
        """
        fits = {strength: _fit(views, targets, strength) for strength in self.STRENGTHS}
        quality = {
            strength: _mean_precision(validation_features.numpy() @ weights + offsets, validation_targets)
            for strength, (weights, offsets) in fits.items()
        }
        self.strength = max(quality, key=lambda strength: quality[strength])
        self._weights, self._offsets = fits[self.strength]

    def refit(self, views: Tensor, targets: np.ndarray) -> None:
        """Fit again with the chosen strength, on all images there are.

        Args:
            views: (view, image, feature), as those before.
            targets: 0/1 (image, class).
        """
        self._weights, self._offsets = _fit(views, targets, self.strength)

    def scores(self, features: Tensor) -> Tensor:
        """Logits (image, class)."""
        return torch.from_numpy(features.numpy() @ self._weights + self._offsets).float()


def _fit(views: Tensor, targets: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (feature, class) and offsets (class,) from features (view, image, feature)."""
    features, targets = views.flatten(0, 1).double().numpy(), np.tile(targets, (len(views), 1))
    weights, offsets = np.zeros((features.shape[1], targets.shape[1])), np.zeros(targets.shape[1])
    for label in range(targets.shape[1]):
        if 0 < targets[:, label].sum() < len(targets):
            # Few features, many images: ten times as fast as the usual solver, and nearer to the optimum.
            model = LogisticRegression(C=strength, solver="newton-cholesky").fit(features, targets[:, label])
            weights[:, label], offsets[label] = model.coef_[0], model.intercept_[0]
    return weights, offsets


def _mean_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Over the classes that have a positive image; 0 where none has."""
    known = np.flatnonzero(targets.any(axis=0))
    values = [average_precision_score(targets[:, label], scores[:, label]) for label in known]
    return float(np.mean(values)) if values else 0.0
