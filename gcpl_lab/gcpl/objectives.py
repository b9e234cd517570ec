"""What class prompts are trained for: GCPL, CoMPLe and the discriminative objective.

An objective is anything with ``trainable_parameters()`` and a call that turns a batch into a dict with ``"loss"``; with
``begin(labels, errors)``, it is told once what the exemplars show before its first update, and with ``end()`` that the
last one was made. It is registered once, here or in a cell of a notebook, with ``@register_objective``; settings,
commands, comparisons, figures and slides know it from then on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import NoisyBatch
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.registry import Registry
from gcpl_lab.training.device import without_autocast

OBJECTIVES = Registry("objective")
"""Facts of an entry: ``stage``, a :class:`Stage`; ``starts_from``, the objective whose prompts it goes on from;
``reads_clip=True`` where it is given ``clip``, the preset's own, and batches with CLIP's features; ``alone=True`` where
a class learns from its own images alone; ``quick=False`` where a comparison runs it only for those who ask."""

register_objective = OBJECTIVES.register


@dataclass(frozen=True)
class Stage:
    """Which settings an objective's updates take their length, size and rate from, by name.

    Attributes:
        num_steps, batch_size, learning_rate: Fields of :class:`~gcpl_lab.gcpl.settings.GCPLConfig`.
        num_samples: The field with the (t, ε) pairs of each image; None: one.
        seed_offset: Keeps its draws apart from those of the objective before it.
        epsilon: AdamW's. Rounding must not be magnified: a thousandth of the elements of a first gradient are below
            5e-7; typical ones are 2e-4 under denoising losses and 1e-2 under a cross entropy.
    """

    num_steps: str = "num_steps"
    batch_size: str = "batch_size"
    learning_rate: str = "learning_rate"
    num_samples: str | None = None
    seed_offset: int = 0
    epsilon: float = 1e-6


def denoising_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise (GCPL, eq. 4); the mean over elements, as in the public code.

    Args:
        predicted: ε_θ(z_t, t, h), (batch, channel, height, width).
        noise: ε, the same shape.

    Source: Chattopadhyay et al. 2024, https://arxiv.org/abs/2409.01835
    """
    if predicted.shape != noise.shape:  # torch would repeat what it can
        raise ValueError(f"predicted has shape {tuple(predicted.shape)} and noise {tuple(noise.shape)}; expected equal")
    return F.mse_loss(predicted.float(), noise.float())


def pairwise_noise_distances(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean squared distance of every prediction to every sample's noise, by inner products.

    Args:
        predicted: (batch, channel, height, width).
        noise: The same shape.

    Returns:
        (batch, batch): entry [i, j] is ‖ε_i − ε_θ^j‖² / number of elements.
    """
    if predicted.shape != noise.shape:
        raise ValueError(f"predicted has shape {tuple(predicted.shape)} and noise {tuple(noise.shape)}; expected equal")
    flat_predicted, flat_noise = predicted.float().flatten(1), noise.float().flatten(1)
    squares = flat_noise.square().sum(1)[:, None] + flat_predicted.square().sum(1)[None, :]
    return (squares - 2 * flat_noise @ flat_predicted.T) / flat_predicted.shape[1]


def comple_loss(predicted: Tensor, noise: Tensor, contrast_weight: float) -> Tensor:
    """CoMPLe as published: own noise near, the noises of the batch's other samples far.

    For i ≠ j the noise ε_i is independent of everything prediction j depends on, so the expected contrast is a constant
    plus E‖ε_θ‖²: it only rewards predictions of larger norm (see :func:`expected_contrast`).

    Args:
        predicted: ε_θ(z_t^j, t, h_{c_j}), (batch, channel, height, width).
        noise: ε_j, the same shape; batch ≥ 2, the samples of different classes.
        contrast_weight: λ ≥ 0; with λ ≥ 1 the loss has no minimum.

    Source: Chattopadhyay et al. 2024, https://arxiv.org/abs/2409.01835
    """
    if contrast_weight < 0:
        raise ValueError(f"contrast_weight is {contrast_weight}; expected 0 or more")
    batch = len(predicted)
    if batch < 2:
        raise ValueError(f"the contrast needs at least two samples in a batch, got {batch}")
    distances = pairwise_noise_distances(predicted, noise)
    own = distances.diagonal().sum()
    return own / batch - contrast_weight * (distances.sum() - own) / (batch * (batch - 1))


def expected_contrast(predicted: Tensor) -> Tensor:
    """CoMPLe's second term on average over fresh noises: E‖ε_i − ε_θ‖² per element = 1 + mean(ε_θ²)."""
    return 1 + predicted.float().square().mean()


@register_objective("gcpl", title="GCPL", stage=Stage(), alone=True)
class GCPL:
    """L_GCPL: every class's vectors lower the denoising error of their own exemplars.

    Source: Chattopadhyay et al. 2024, https://arxiv.org/abs/2409.01835, eq. 4.
    """

    def __init__(self, diffusion: FrozenDiffusion, prompts: ClassPrompts) -> None:
        self.diffusion, self.prompts = diffusion, prompts

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The class vectors alone."""
        return [self.prompts.vectors]

    def unit(self, batch: NoisyBatch) -> int:
        """How many consecutive samples belong together: each stands for itself."""
        return 1

    def predict(self, batch: NoisyBatch) -> Tensor:
        """The noise that each sample's own class prompt predicts, shaped as the latents."""
        classes, index = batch.labels.unique(return_inverse=True)  # each prompt is encoded once
        hidden = self.diffusion.encode_prompts(*self.prompts(classes, batch.template))
        noisy = self.diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        return self.diffusion.predict_noise(noisy, batch.timesteps, hidden, prompts=index)

    def __call__(self, batch: NoisyBatch) -> dict[str, Tensor]:
        """``loss`` of one batch, and ``prediction_norm``, the mean square of the prediction (1 for true noise)."""
        predicted = self.predict(batch)
        return {"loss": denoising_loss(predicted, batch.noise), "prediction_norm": predicted.detach().square().mean()}


@register_objective("comple", title="CoMPLe", defaults={"contrast_weight": 0.1}, stage=Stage())
class CoMPLe(GCPL):
    """L_CoMPLe: GCPL minus λ times the distance to the other samples' noises, as published.

    Recorded beside the loss: ``own`` (the GCPL term), ``contrast`` (the second term, without λ), ``expected_contrast``
    (what it is for any independent noise) and ``prediction_norm`` (the mean square, which the contrast drives).
    """

    def __init__(self, diffusion: FrozenDiffusion, prompts: ClassPrompts, contrast_weight: float = 0.1) -> None:
        super().__init__(diffusion, prompts)
        self.contrast_weight = contrast_weight

    def unit(self, batch: NoisyBatch) -> int:
        """A group of different classes: the contrast is among its samples."""
        return batch.group_size

    def __call__(self, batch: NoisyBatch) -> dict[str, Tensor]:
        """``loss`` and the recorded terms, averaged over the samples, each contrasted within its group.

        A sample that is left over alone has no negatives: its contrast is 0, and its own term counts.
        """
        if batch.group_size < 2:
            raise DataError("CoMPLe needs at least two classes in a batch; raise batch_size above 1")
        predicted = self.predict(batch)
        with without_autocast(predicted.device.type):  # inner products of latents need float32
            own = denoising_loss(predicted, batch.noise)
            loss, contrast = torch.zeros_like(own), torch.zeros_like(own)
            groups = zip(predicted.split(batch.group_size), batch.noise.split(batch.group_size), strict=True)
            for group, noise in groups:
                share, of_group = len(group) / len(predicted), denoising_loss(group, noise)
                if len(group) == 1:
                    loss = loss + share * of_group
                    continue
                loss = loss + share * comple_loss(group, noise, self.contrast_weight)
                contrast = contrast + share * (of_group - comple_loss(group, noise, 1.0)).detach()
        return {
            "loss": loss,
            "own": own.detach(),
            "contrast": contrast,
            "expected_contrast": expected_contrast(predicted.detach()),
            "prediction_norm": predicted.detach().square().mean(),
        }
