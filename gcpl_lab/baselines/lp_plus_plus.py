"""LP++: a linear probe whose class weights are blended with the text features, with rates that follow from the data."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.baselines.base import FeatureSupport, Tuned, register_baseline
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP

NUM_EPOCHS, MOMENTUM = 300, 0.9
BLEND_EVERY = 10
"""Epochs between two steps of the blending."""
FIRST_BLEND = 250.0
"""The authors' factor on the mean cosine of an image and its own class name."""


class LPPlusPlus(Tuned):
    """Logits f·(w_k + α_k t_k) + b_k, all trained on every exemplar at once; needs no validation.

    The rates are bounds from the loss's curvature: 4N / λ_max(FᵀF) for w and b, N / (4·max_k Σ_i (f_i·t_k)²) for α,
    which moves every tenth epoch. The authors' code never clears α's gradient, so that its steps grow with what nine
    epochs had summed up; here a step follows the gradient of its own epoch.

    Args:
        text_features: Unit features of the class names (class, feature).
        features: Unit features (sample, feature).
        labels: Class ids (sample,).

    Source: Huang et al. 2024, https://arxiv.org/abs/2404.02285
    """

    def __init__(self, text_features: Tensor, features: Tensor, labels: Tensor, num_epochs: int = NUM_EPOCHS) -> None:
        self.text_features, num_classes = text_features, len(text_features)
        own, cosines, num_samples = F.one_hot(labels, num_classes).float(), features @ text_features.T, len(features)
        self.weights = (own.T @ features).requires_grad_()
        self.bias = torch.zeros(num_classes, requires_grad=True)
        means = (own * cosines).sum(0) / own.sum(0)
        self.blend = torch.full((num_classes,), FIRST_BLEND * float(means.mean()), requires_grad=True)
        rate = 4 * num_samples / float(torch.linalg.matrix_norm(features, 2).square())
        optimizer = torch.optim.SGD([self.weights, self.bias], lr=rate, momentum=MOMENTUM)
        blend_rate = num_samples / (4 * float(cosines.square().sum(0).max()))
        blender = torch.optim.SGD([self.blend], lr=blend_rate, momentum=MOMENTUM)
        for epoch in range(num_epochs):
            optimizer.zero_grad()
            blender.zero_grad()
            self((features, labels))["loss"].backward()
            optimizer.step()
            if (epoch + 1) % BLEND_EVERY == 0:
                blender.step()

    def _logits(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weights.T + self.blend * (inputs @ self.text_features.T) + self.bias


@register_baseline("lp_plus_plus", title="LP++")
def fit_lp_plus_plus(support: FeatureSupport) -> LPPlusPlus:
    """On every view."""
    text_features = ZeroShotCLIP(support.clip, support.class_names).text_features
    return LPPlusPlus(text_features, support.features.flatten(0, 1), support.labels.repeat(len(support.features)))
