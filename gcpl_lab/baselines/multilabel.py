"""What LMPT has to beat on pictures with several labels: simple uses of the same frozen CLIP.

Zero-shot CLIP is :class:`gcpl_lab.baselines.clip_features.ZeroShotCLIP`: cosines to class names rank the images of
each class. CoOp with a multi-label loss is LMPT without captions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from gcpl_lab.lmpt.objective import LMPT, Classification
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.models.clip import FrozenCLIP


def coop(clip: FrozenCLIP, prompts: ContextPrompts, classification: Classification, **settings: Any) -> LMPT:
    """CoOp tuned with a multi-label loss: the LMPT objective with ``mix=1``, so captions play no part.

    Args:
        clip: Encodes the prompts.
        prompts: Their contexts are trained.
        classification: Which loss.
        **settings: Others of :class:`~gcpl_lab.lmpt.objective.LMPT`, with ``class_counts`` and ``num_images``.
    """
    return LMPT(clip, prompts, classification=classification, mix=1.0, **settings)


class OneVsRestProbe:
    """One logistic regression a class on image features.

    Every view of an image is an example of its own, so that the probe learns from what prompts learn from.
    """

    STRENGTHS = tuple(10 ** (half / 2) for half in range(7))
    """Inverse regularisations C that are worth trying, 1 to 1000; on parts of the bundled scenes the best lie at 10 to
    30."""

    def __init__(self, views: Tensor, targets: np.ndarray, strength: float) -> None:
        """Fit; a class that no image has, or all of them, gets a constant score.

        Args:
            views: Unit features (view, image, feature), such as photographs and mirror images.
            targets: 0/1 (image, class).
            strength: C > 0, the same for every class.
        """
        self._weights, self._offsets = _fit(views, targets, strength)

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
