"""Zero-shot CLIP: class names in a template, or in several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.baselines.base import FeatureSupport, register_baseline, register_multilabel_baseline
from gcpl_lab.models.clip import FrozenCLIP

PLAIN_TEMPLATE = ("a photo of a {}",)
ENSEMBLE_TEMPLATES = (
    *PLAIN_TEMPLATE,
    *("a picture of a {}", "a product photo of a {}", "a {} on a black background", "this is a {}"),
)
ENSEMBLE = {"templates": ENSEMBLE_TEMPLATES}


class ZeroShotCLIP:
    """Cosine of image and class-name features, times CLIP's own scale; several templates are averaged (ensembling).

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020
    """

    def __init__(self, clip: FrozenCLIP, class_names: Sequence[str], templates: Sequence[str] = PLAIN_TEMPLATE):
        features = torch.stack([clip.encode_texts([t.format(name) for name in class_names]) for t in templates])
        self.text_features = F.normalize(features.mean(0), dim=-1).cpu()
        self.scale = clip.logit_scale

    def scores(self, features: Tensor) -> Tensor:
        return self.scale * features @ self.text_features.T


@register_multilabel_baseline("zero_shot_clip", title="Zero-shot CLIP", shots=False)
@register_baseline("zero_shot_clip_ensemble", title="Zero-shot CLIP, 5 templates", defaults=ENSEMBLE, shots=False)
@register_baseline("zero_shot_clip", title="Zero-shot CLIP", shots=False)
def fit_zero_shot(support: FeatureSupport, templates: Sequence[str] = PLAIN_TEMPLATE) -> ZeroShotCLIP:
    """Nothing but the class names; for several labels an image, cosines rank the images of each class."""
    return ZeroShotCLIP(support.clip, support.class_names, templates)
