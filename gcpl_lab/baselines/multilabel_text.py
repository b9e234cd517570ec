"""For several labels an image: zero-shot CLIP with standardised scores, and a probe that is blended with the names."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from gcpl_lab.baselines.base import FeatureSupport, register_multilabel_baseline
from gcpl_lab.baselines.multilabel import OneVsRestProbe, choose_settings
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP

BLENDED = [{"strength": strength, "blend": blend} for strength in (1.0, 10.0, 100.0) for blend in (1.0, 4.0, 16.0)]
"""Settings of the blended probe that are tried."""


def standardise_images(scores: Tensor) -> Tensor:
    """Scores (image, class) less each image's mean over classes, by its spread.

    An image that is like every name gains nothing by it. The order of classes within an image stays; the order of
    images within a class, which mean average precision measures, changes.

    Source: Miller et al. 2025 (SPARC, its debiasing), https://arxiv.org/abs/2502.16911
    """
    spread = scores.std(dim=1, correction=0, keepdim=True).clamp_min(1e-6)
    return (scores - scores.mean(dim=1, keepdim=True)) / spread


@register_multilabel_baseline("sparc", title="Zero-shot CLIP, standardised", shots=False)
class StandardisedCLIP:
    """Zero-shot CLIP whose scores are standardised within each image; nothing is learned."""

    def __init__(self, support: FeatureSupport) -> None:
        self.zero_shot = ZeroShotCLIP(support.clip, support.class_names)

    def scores(self, features: Tensor) -> Tensor:
        return standardise_images(self.zero_shot.scores(features))


def _text_features(support: FeatureSupport) -> Tensor:
    return ZeroShotCLIP(support.clip, support.class_names).text_features


def choose_blend(support: FeatureSupport) -> dict[str, Any]:
    """Strength and blend, on the parts of the training images that the plain probe's strength is chosen on."""
    return choose_settings(support, BLENDED, partial(OneVsRestProbe, text_features=_text_features(support)))


@register_multilabel_baseline("text_probe", title="Linear probe with names", choose=choose_blend)
def fit_text_probe(support: FeatureSupport, strength: float, blend: float) -> OneVsRestProbe:
    """One logistic regression a class on the features and on the cosine to the class's own name."""
    targets, names = support.labels.numpy(), _text_features(support)
    return OneVsRestProbe(support.features, targets, strength, names, blend)
