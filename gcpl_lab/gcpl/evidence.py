"""The classifier that the settings ask for, in passes that fit into memory; and where in an image evidence lies."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gcpl_lab.gcpl.classifier import DiffusionClassifier
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.diffusion import FrozenDiffusion


def make_classifier(
    diffusion: FrozenDiffusion,
    hidden: Tensor,
    config: GCPLConfig,
    seed: int,
    norm: Literal["l1", "l2"] = "l2",
    batch_size: int | None = None,
) -> DiffusionClassifier:
    """The classifier that the settings ask for; arguments as for it, ``batch_size`` by default that of the settings."""
    # Weights in half precision need no autocast: it would compute norms in float32 and cast around them.
    half, size = config.evidence_bfloat16 and diffusion.dtype is torch.float32, batch_size or config.evidence_batch_size
    part = config.timestep_range or diffusion.evidence_range
    return DiffusionClassifier(
        diffusion, hidden, norm=norm, timestep_range=part, seed=seed, batch_size=size, bfloat16=half
    )


@torch.no_grad()
def evidence_map(
    classifier: DiffusionClassifier, latent: Tensor, class_a: int, class_b: int, num_samples: int
) -> Tensor:
    """Where in an image the evidence for one class against another lies.

    Args:
        classifier: Its prompts are compared.
        latent: z0, (channel, height, width), scaled.
        class_a, class_b: Indices of prompts.
        num_samples: (t, ε) pairs that are averaged.

    Returns:
        float32 (height, width) of the latent: mean squared error under b minus that under a; positive is for a.
    """
    diffusion = classifier.diffusion
    timesteps, noises = (each.to(diffusion.device) for each in classifier.samples(num_samples))
    noisy = diffusion.add_noise(latent.to(diffusion.device).expand_as(noises), noises, timesteps)
    rows, prompts = torch.arange(num_samples).repeat(2), torch.tensor([class_a, class_b]).repeat_interleave(num_samples)
    predicted = diffusion.predict_noise(noisy, timesteps, classifier.hidden, rows, prompts)
    under_a, under_b = (predicted - noises.repeat(2, 1, 1, 1)).square().mean(1).split(num_samples)
    return (under_b - under_a).mean(0).cpu()
