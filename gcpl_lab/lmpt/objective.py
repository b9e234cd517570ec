"""LMPT: class prompts for images with several labels, most of them rare, tuned with captions beside labels.

    loss = mix · classification(logits, targets) + (1 − mix) · embedding loss(captions, prompts)

The towers are frozen, so features of images and captions are computed once; an update runs the text tower on the class
prompts alone.

Source: Xia et al. 2024, https://arxiv.org/abs/2305.04536
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.evaluation.calibration import fit_sigmoid
from gcpl_lab.lmpt.batches import Batch, Reading
from gcpl_lab.lmpt.losses import LOSSES, class_specific_embedding_loss
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.training.device import without_autocast

CHOICES: dict[str, tuple[str, ...]] = {
    "reading": ("pooled", "token"),
    "contrast_reduction": ("mean", "weighted"),
    "position_hinge": ("each", "sum"),
    "scale": ("learned", "clip"),
}


class LMPT:
    """The objective: a classification loss on labels and an embedding loss on captions, mixed.

    With ``mix=1`` captions play no part, and what remains is CoOp with a multi-label loss.

    Two readings of the embedding loss. ``"pooled"``: cosine of the encoded caption and the encoded prompt. ``"token"``,
    as in the authors' code: input embeddings, caption position p against prompt position m + p, where m is
    ``token_offset``; position 0 holds the start token in both. With the name at the end, prompt positions 1 to M hold
    the contexts: captions give no gradient to the first m − 1 of them, to vector m one that is the same for every
    caption (it meets the start token), and to vectors m + 1 to M one that depends on captions' words. The authors'
    command has m = 2 and M = 16; with m = M, their program's default, no gradient depends on what a caption says.

    What else the authors' code does otherwise stands in docs/lmpt_settings.md.

    Attributes:
        prompts: Their context vectors are trained.
        log_scale, bias: Of the logits scale · cosine + bias; trained too where ``scale="learned"``.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        prompts: ContextPrompts,
        *,
        class_counts: Sequence[int] | np.ndarray,
        num_images: int,
        mix: float = 0.5,
        classification: str = "distribution_balanced",
        reading: Reading = "pooled",
        token_offset: int | None = 2,
        position_hinge: Literal["each", "sum"] = "each",
        contrast_reduction: Literal["mean", "weighted"] = "mean",
        scale: Literal["learned", "clip"] = "learned",
        loss_settings: Mapping[str, Any] | None = None,
        **embedding_settings: Any,
    ) -> None:
        """Take frozen towers and the prompts to train; the settings are those of ``LMPTConfig``.

        Args:
            clip: Encodes the prompts.
            prompts: Class-specific or unified contexts.
            class_counts: n_i ≥ 1, training images with each class.
            num_images: N, training images.
            mix, classification, reading, token_offset, position_hinge, contrast_reduction, scale: See ``LMPTConfig``.
            loss_settings: Of the classification loss.
            **embedding_settings: Of :func:`~gcpl_lab.lmpt.losses.class_specific_embedding_loss`.

        Raises:
            ValueError: A setting is none of those listed, or mix or token_offset is outside.
        """
        named = {"reading": reading, "contrast_reduction": contrast_reduction, "position_hinge": position_hinge}
        for name, value in {**named, "scale": scale}.items():
            if value not in CHOICES[name]:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(CHOICES[name])}")
        if not 0 <= mix <= 1:
            raise ValueError(f"mix is {mix}; expected 0 (captions alone) to 1 (labels alone)")
        num_tokens = prompts.get_buffer("ids").shape[1]
        self.token_offset = prompts.context.shape[1] if token_offset is None else token_offset
        if not 0 <= self.token_offset < num_tokens:
            raise ValueError(
                f"token_offset is {self.token_offset}; expected 0 or more and below the prompts' {num_tokens} "
                "positions, or None: as many as there are context vectors"
            )
        self.clip, self.prompts, self.mix, self.reading, self.scale = clip, prompts, mix, reading, scale
        self.contrast_reduction, self.position_hinge = contrast_reduction, position_hinge
        device = prompts.context.device
        counts = torch.as_tensor(np.asarray(class_counts), dtype=torch.float32, device=device)
        loss = LOSSES[classification].target
        known = {"class_counts": counts, "num_images": num_images, **(loss_settings or {})}
        asked = inspect.signature(loss).parameters
        self.classification_loss = partial(loss, **{name: known[name] for name in known if name in asked})
        self._embedding = {"class_counts": counts, **embedding_settings}
        self.log_scale, self.bias = (
            nn.Parameter(torch.tensor(number).to(device), requires_grad=scale == "learned")
            for number in (math.log(clip.logit_scale), 0.0)
        )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The context vectors; with a learned scale, two numbers more."""
        return [self.prompts.context, *([self.log_scale, self.bias] if self.scale == "learned" else [])]

    @torch.no_grad()
    def start_scale(self, features: Tensor, targets: Tensor) -> None:
        """Set a learned scale and bias to those that fit the starting prompts' cosines to the training labels.

        CLIP's own scale and no bias put every logit far above 0: the first updates would be spent on a bias.

        Args:
            features: (image, feature), unit, of training images.
            targets: (image, class), 0 or 1.
        """
        if self.scale == "learned":
            cosines = _cosines(features.to(self.bias.device), self.text_features())
            scale, bias = fit_sigmoid(cosines.cpu().numpy(), targets.cpu().numpy())
            self.log_scale.fill_(math.log(scale))
            self.bias.fill_(bias)

    def text_features(self) -> Tensor:
        """Unit features of the class prompts, (class, feature)."""
        return self.clip.encode_prompts(*self.prompts())

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``, and its parts ``classification`` and, where captions count, ``contrast``."""
        device = self.prompts.context.device
        features, targets, captions, has_caption = (part.to(device) for part in batch)
        ids, embeddings = self.prompts()
        text = self.clip.encode_prompts(ids, embeddings)
        classification = self.classification_loss(self._logits(features, text), targets)
        if self.mix == 1:
            return {"loss": classification, "classification": classification}
        if not has_caption.all():
            captions, targets = captions[has_caption], targets[has_caption]
        contrast = self._contrast(captions, targets, text, embeddings)
        loss = self.mix * classification + (1 - self.mix) * contrast
        return {"loss": loss, "classification": classification, "contrast": contrast}

    def _contrast(self, captions: Tensor, targets: Tensor, text: Tensor, embeddings: Tensor) -> Tensor:
        if not len(captions):
            return text.sum() * 0  # a batch without captions: nothing to learn, and a gradient of zero
        if self.reading == "pooled":
            distances = 1 - _cosines(captions, text)
        else:
            prompt = F.normalize(embeddings[:, self.token_offset :], dim=-1)
            num_positions = min(prompt.shape[1], captions.shape[1])
            pairs = captions[:, :num_positions].transpose(0, 1), prompt[:, :num_positions].transpose(0, 1)
            distances = 1 - _cosines(*pairs)  # (position, image, class)
            if self.position_hinge == "sum":
                distances = distances.sum(dim=0)
            else:
                distances = distances.transpose(0, 1).flatten(0, 1)
                targets = targets.repeat_interleave(num_positions, dim=0)
        loss = class_specific_embedding_loss(distances, targets, **self._embedding)
        return loss * targets.shape[1] if self.contrast_reduction == "weighted" else loss

    def _logits(self, features: Tensor, text: Tensor) -> Tensor:
        return self.log_scale.exp() * _cosines(features, text) + self.bias

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Logits (image, class), on the CPU; a sigmoid, never a softmax, belongs on them."""
        return self._logits(features.to(self.bias.device), self.text_features()).cpu()


def _cosines(rows: Tensor, others: Tensor) -> Tensor:
    """Products of unit rows (..., row, dim) and (..., other, dim), in float32 under autocast too."""
    with without_autocast(rows.device.type):
        return rows.float() @ others.float().mT
