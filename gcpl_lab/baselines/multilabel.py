"""What LMPT has to beat on images with several labels: one logistic regression a class on the same frozen CLIP.

Zero-shot CLIP is that of :mod:`gcpl_lab.baselines.zero_shot`. CoOp with a multi-label loss is LMPT without captions, so
it is a row of :mod:`gcpl_lab.experiments.multilabel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from gcpl_lab.baselines.base import FeatureSupport, register_multilabel_baseline
from gcpl_lab.data.multilabel import split_validation
from gcpl_lab.evaluation.multilabel import average_precisions

NUM_PARTS = 10
"""Parts of the training images that choose the probe's strength: those that LMPT's settings are chosen on."""
PART_SEED = 1000
"""Keeps the splits that settings are chosen on apart from the validation splits of the reported seeds."""


class OneVsRestProbe:
    """One logistic regression a class on image features; a class that no image has, or all, gets a constant score.

    Args:
        views: Unit features (view, image, feature), such as images and mirror images, each an example of its own.
        targets: 0/1 (image, class).
        strength: C > 0, the same for every class.
        text_features: Unit text features (class, feature) of the class names: each class's cosine stands beside the
            features then, so that its weights are w_c + α_c·t_c, as in LP++.
        blend: Factor on these cosines; the larger, the less the penalty holds α_c.
    """

    STRENGTHS = tuple(10 ** (half / 2) for half in range(7))
    """C from 1 to 1000; on parts of the bundled scenes the best lie at 10 to 30."""

    def __init__(
        self,
        views: Tensor,
        targets: np.ndarray,
        strength: float,
        text_features: Tensor | None = None,
        blend: float = 1.0,
    ) -> None:
        features, targets = views.flatten(0, 1).double().numpy(), np.tile(targets, (len(views), 1))
        num_classes = targets.shape[1]
        self.weights, self.offsets = np.zeros((features.shape[1], num_classes)), np.zeros(num_classes)
        names = None if text_features is None else blend * text_features.double().numpy()
        for label in range(num_classes):
            if 0 < targets[:, label].sum() < len(targets):
                seen = features if names is None else np.column_stack([features, features @ names[label]])
                # Few features, many images: ten times as fast as the usual solver, and nearer to the optimum.
                model = LogisticRegression(C=strength, solver="newton-cholesky").fit(seen, targets[:, label])
                weights, self.offsets[label] = model.coef_[0], model.intercept_[0]
                self.weights[:, label] = weights if names is None else weights[:-1] + weights[-1] * names[label]

    def scores(self, features: Tensor) -> Tensor:
        return torch.from_numpy(features.numpy() @ self.weights + self.offsets).float()


def draw_part(targets: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Where settings are chosen: indices of the training images to learn from, and of those to judge on."""
    return split_validation(targets, 0.25, PART_SEED + number)


def choose_settings(
    support: FeatureSupport, candidates: Sequence[dict[str, Any]], fit: Callable[..., OneVsRestProbe]
) -> dict[str, Any]:
    """The candidate with the best mAP on parts of the training images, classes weighed as if even.

    It is chosen once for all seeds, like LMPT's settings: one part holds two or three images of a rare class, so that
    its favourite is left to chance.
    """
    views, targets = support.features, support.labels.numpy()
    quality = np.zeros(len(candidates))
    for number in range(NUM_PARTS):
        learned, judged = draw_part(targets, number)
        for place, settings in enumerate(candidates):
            probe = fit(views[:, torch.from_numpy(learned)], targets[learned], **settings)
            scores = probe.scores(views[0, torch.from_numpy(judged)]).numpy()
            found = [value for value in average_precisions(scores, targets[judged], even=True) if value is not None]
            quality[place] += np.mean(found) if found else 0.0
    return candidates[int(quality.argmax())]


def choose_strength(support: FeatureSupport) -> dict[str, Any]:
    """The probe's strength."""
    return choose_settings(support, [{"strength": strength} for strength in OneVsRestProbe.STRENGTHS], OneVsRestProbe)


@register_multilabel_baseline("linear_probe", title="Linear probe", choose=choose_strength)
def fit_one_vs_rest(support: FeatureSupport, strength: float) -> OneVsRestProbe:
    """On every view, with the strength that was chosen for the training set."""
    return OneVsRestProbe(support.features, support.labels.numpy(), strength)
