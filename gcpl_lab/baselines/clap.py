"""CLAP: class prototypes that are held near the text features, each class as firmly as zero-shot CLIP knows it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.baselines.base import FeatureSupport, Tuned, feature_batches, register_baseline
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.training.loop import TrainingConfig

CLAP_TRAINING = TrainingConfig(num_steps=300, learning_rate=0.1, optimizer="sgd", gradient_clip=0.0)
"""The authors'; ``num_steps`` counts epochs here."""
BATCH_SIZE = 256


class CLAP(Tuned):
    """Cross entropy of prototypes that start at the text features t_c, plus mean_c λ_c‖w_c − t_c‖².

    λ_c is the mean probability that zero-shot CLIP gives the right class on its exemplars, so that no validation is
    needed; an objective for the training loop.

    Args:
        zero_shot: Of the same classes.
        features: Unit features (image, feature) of the exemplars.
        labels: Class ids (image,).

    Source: Silva-Rodríguez et al. 2024, https://arxiv.org/abs/2312.12730
    """

    def __init__(self, zero_shot: ZeroShotCLIP, features: Tensor, labels: Tensor) -> None:
        self.start, self.scale = zero_shot.text_features, zero_shot.scale
        self.prototypes = nn.Parameter(self.start.clone())
        own = F.one_hot(labels, len(self.start)).float()
        self.firmness = (own * zero_shot.scores(features).softmax(1)).sum(0) / own.sum(0)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [self.prototypes]

    def __call__(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The loss of (features (image, feature), labels (image,)), and ``penalty``, its second term."""
        penalty = (self.firmness * (self.prototypes - self.start).square().sum(1)).mean()
        return {"loss": super().__call__(batch)["loss"] + penalty, "penalty": penalty.detach()}

    def _logits(self, inputs: Tensor) -> Tensor:
        return self.scale * inputs @ F.normalize(self.prototypes, dim=1).T


@register_baseline("clap", title="CLAP")
def fit_clap(support: FeatureSupport) -> CLAP:
    """λ from the images as they are; batches of either view."""
    model = CLAP(ZeroShotCLIP(support.clip, support.class_names), support.features[0], support.labels)
    support.train(model, feature_batches(support.features, support.labels, BATCH_SIZE, support.seed), CLAP_TRAINING)
    return model
