"""MC-TI: GCPL, plus CLIP's own contrast between class prompts and images of different classes.

The nearest rival of CoMPLe, and unlike its contrast one that can separate: it compares a prompt with images, not a
prediction with the noises of other images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.objectives import GCPL, Stage, register_objective
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import NoisyBatch
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion


def token_contrast(text_features: Tensor, image_features: Tensor, scale: float) -> Tensor:
    """Cross entropy of each prompt finding its own image among those of the other classes: softmax_j s·cos(t_c, x_j).

    Args:
        text_features: Unit features t_c (class, feature).
        image_features: Unit features x_j (class, feature): one image of each class, in the same order.
        scale: s > 0.
    """
    if text_features.shape != image_features.shape:
        raise ValueError(
            f"text features have shape {tuple(text_features.shape)} and image features {tuple(image_features.shape)}; "
            "expected one of each a class"
        )
    targets = torch.arange(len(text_features), device=text_features.device)
    return F.cross_entropy(scale * text_features @ image_features.T, targets)


@register_objective(
    "mc_ti",
    title="MC-TI",
    defaults={"token_weight": 1.0, "token_scale": 10.0},
    stage=Stage(),
    reads_clip=True,
    quick=False,
)
class MCTI(GCPL):
    """L_GCPL + γ·(token contrast), one image of each class in a group.

    The class prompt's text feature comes from CLIP's own text tower, the denoiser's text encoder with its projection.

    Source: Wang et al. 2025, https://arxiv.org/abs/2410.22317
    """

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        prompts: ClassPrompts,
        token_weight: float = 1.0,
        token_scale: float = 10.0,
        clip: FrozenCLIP | None = None,
    ) -> None:
        """γ is ``token_weight``, s is ``token_scale``, ``clip`` the pair's own."""
        super().__init__(diffusion, prompts)
        if clip is None:
            raise DataError(
                f"MC-TI compares prompts with CLIP's features, and {diffusion.name!r} has no CLIP beside it"
            )
        self.clip, self.token_weight, self.token_scale = clip, token_weight, token_scale

    def unit(self, batch: NoisyBatch) -> int:
        """A group of different classes: the contrast is among its images."""
        return batch.group_size

    def __call__(self, batch: NoisyBatch) -> dict[str, Tensor]:
        """``loss``, and its terms ``own`` and ``contrast``, averaged over the samples."""
        if batch.features is None:
            raise DataError("MC-TI needs batches with CLIP's features; give exemplars that have them")
        values = super().__call__(batch)
        classes, index = batch.labels.unique(return_inverse=True)
        texts = self.clip.encode_prompts(*self.prompts(classes, batch.template))[index]
        groups = zip(texts.split(batch.group_size), batch.features.split(batch.group_size), strict=True)
        parts = [len(group) * token_contrast(group, images, self.token_scale) for group, images in groups]
        contrast, own = torch.stack(parts).sum() / len(batch), values["loss"]
        recorded = {"own": own.detach(), "contrast": contrast.detach()}
        return {**values, "loss": own + self.token_weight * contrast, **recorded}
