"""CoOp: context vectors around the class names, tuned with cross entropy."""

from __future__ import annotations

from torch import Tensor, nn

from gcpl_lab.baselines.base import FeatureSupport, Tuned, feature_batches, register_baseline
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.training.loop import TrainingConfig

ADAPTER_TRAINING = TrainingConfig(num_steps=200, learning_rate=2e-3)
"""One context for all classes swings at this rate and carries rounding with it; what more updates would bring is in
docs/gcpl_settings.md."""
BATCH_SIZE = 64


class CoOp(Tuned):
    """Context vectors tuned with cross entropy on cached image features; an objective for the training loop.

    Source: Zhou et al. 2022, https://arxiv.org/abs/2109.01134
    """

    def __init__(self, clip: FrozenCLIP, prompts: ContextPrompts) -> None:
        self.clip, self.prompts = clip, prompts

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [self.prompts.context]

    def _logits(self, inputs: Tensor) -> Tensor:
        return self.clip.logit_scale * inputs @ self.clip.encode_prompts(*self.prompts()).cpu().T


@register_baseline("coop_class_specific", title="CoOp, class-specific", defaults={"class_specific": True})
@register_baseline("coop_unified", title="CoOp, unified", defaults={"class_specific": False})
def fit_coop(support: FeatureSupport, class_specific: bool) -> CoOp:
    """One context for all classes, or one for each."""
    form = {"num_context": 4, "class_specific": class_specific, "initial_words": "a photo of a"}
    prompts = ContextPrompts(support.clip, support.class_names, **form, seed=support.seed)  # type: ignore[arg-type]
    model = CoOp(support.clip, prompts.to(support.clip.device))
    batches = feature_batches(support.features, support.labels, BATCH_SIZE, support.seed)
    support.train(model, batches, ADAPTER_TRAINING)
    return model
