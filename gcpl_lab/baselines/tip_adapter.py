"""Tip-Adapter: zero-shot CLIP plus a vote of the support images, with and without training.

Source: Zhang et al. 2022, https://arxiv.org/abs/2207.09519, and the authors' ``main.py``
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.baselines.base import FeatureSupport, Tuned, feature_batches, register_baseline
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.training.loop import TrainingConfig

TIP_ADAPTER_TRAINING = TrainingConfig(
    num_steps=20, learning_rate=1e-3, epsilon=1e-4, weight_decay=0.01, gradient_clip=0.0
)
"""The authors' for Tip-Adapter-F; ``num_steps`` counts epochs here."""
START = (1.17, 1.0)
"""α and β while keys are trained, of the authors' configurations."""
BATCH_SIZE = 256


class TipAdapter(Tuned):
    """Zero-shot logits plus a vote of the support images by similarity.

    Its keys can be trained (Tip-Adapter-F): an objective for the training loop.

    Args:
        features: Unit features (image, feature) of the support images, the keys.
        labels: Class ids (image,).
        setting: The vote's weight α and sharpness β; by default chosen by leaving each support image out in turn.
    """

    WEIGHTS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
    SHARPNESSES = (1.0, 2.0, 5.5, 10.0, 20.0, 40.0)
    SETTINGS = tuple(product(WEIGHTS, SHARPNESSES))

    def __init__(
        self, zero_shot: ZeroShotCLIP, features: Tensor, labels: Tensor, setting: tuple[float, float] | None = None
    ) -> None:
        self.zero_shot = zero_shot
        self.keys = nn.Parameter(features.clone())
        self.values = F.one_hot(labels, len(zero_shot.text_features)).float()
        self.setting = setting or self.SETTINGS[int(self.right(features, labels, own_votes=False).argmax())]

    def _logits(self, inputs: Tensor, setting: tuple[float, float] | None = None, own_votes: bool = True) -> Tensor:
        weight, sharpness = setting or self.setting
        votes = torch.exp(-sharpness * (1 - inputs @ self.keys.T))
        votes = votes if own_votes else votes.fill_diagonal_(0)
        return self.zero_shot.scores(inputs) + weight * votes @ self.values

    @torch.no_grad()
    def right(self, features: Tensor, labels: Tensor, own_votes: bool = True) -> np.ndarray:
        """How many images each of ``SETTINGS`` tells right, int64 (setting,); the keys themselves without own votes."""
        found = [self._logits(features, setting, own_votes).argmax(1) == labels for setting in self.SETTINGS]
        return np.array([int(right.sum()) for right in found])

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [self.keys]


@register_baseline("tip_adapter", title="Tip-Adapter")
def fit_tip_adapter(support: FeatureSupport) -> TipAdapter:
    """Of the images as they are."""
    return TipAdapter(ZeroShotCLIP(support.clip, support.class_names), support.features[0], support.labels)


@register_baseline("tip_adapter_f", title="Tip-Adapter-F")
def fit_tip_adapter_f(support: FeatureSupport) -> TipAdapter:
    """Keys trained on every exemplar; α and β by cross-validation (the authors: on a validation set)."""
    zero_shot, views, labels = ZeroShotCLIP(support.clip, support.class_names), support.features, support.labels
    folds = support.folds()
    right = np.zeros(len(TipAdapter.SETTINGS), np.int64)
    for inside, outside in folds:
        part = replace(support, features=views[:, inside], labels=labels[inside], on_step=None)
        right += _train_keys(zero_shot, part).right(views[0, outside], labels[outside])
    model = _train_keys(zero_shot, support)
    if folds:
        model.setting = TipAdapter.SETTINGS[int(right.argmax())]
    return model


def _train_keys(zero_shot: ZeroShotCLIP, support: FeatureSupport) -> TipAdapter:
    model = TipAdapter(zero_shot, support.features[0], support.labels, START)
    batches_an_epoch = -(-len(support.labels) // BATCH_SIZE)
    config = replace(TIP_ADAPTER_TRAINING, num_steps=TIP_ADAPTER_TRAINING.num_steps * batches_an_epoch)
    support.train(model, feature_batches(support.features, support.labels, BATCH_SIZE, support.seed), config)
    return model
