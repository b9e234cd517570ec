"""The diffusion classifier: an image belongs to the class whose prompt denoises it best.

Every class sees the same (t, ε); timesteps are evenly spaced, and the noises are drawn once from the seed for all
images, so that errors of different images can be compared.

Source: Li et al. 2023, https://arxiv.org/abs/2303.16203
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.errors import TrainingError
from gcpl_lab.gcpl.staged import Schedule, staged_evidence
from gcpl_lab.models.diffusion import FrozenDiffusion


@dataclass(frozen=True)
class Evidence:
    """What the classifier saw of some images.

    Attributes:
        errors: float32 (image, class, sample): mean (absolute or squared) error of the predicted noise; NaN where a
            class had been dropped before that sample.
        timesteps: int64 (sample,).
        num_evaluations: Denoiser evaluations spent, all images together.
    """

    errors: np.ndarray
    timesteps: np.ndarray
    num_evaluations: int


def spaced_timesteps(num_timesteps: int, num_samples: int, timestep_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Evenly spaced timesteps, from half a spacing into the range on (T/n/2 in the published schedule), int64."""
    low, high = timestep_range
    # Multiplied before it is divided: whole numbers stay whole, and are not cut to the one below.
    spacings = (high - low) * num_timesteps * (torch.arange(num_samples, dtype=torch.float64) + 0.5) / num_samples
    return (low * num_timesteps + spacings).long().clamp(max=num_timesteps - 1)


class DiffusionClassifier:
    """Classify latents by their denoising error under each class's prompt."""

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        hidden: Tensor,
        *,
        norm: Literal["l1", "l2"] = "l2",
        timestep_range: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        batch_size: int = 256,
        bfloat16: bool = False,
    ) -> None:
        """Keep the prompts and the settings.

        Args:
            diffusion: The frozen model.
            hidden: Hidden states of the class prompts, (class, context length, dim).
            norm: Mean absolute or mean squared error.
            timestep_range: Part of the noise schedule, as fractions.
            seed: Of the noises.
            batch_size: Most denoiser evaluations in one pass: the memory bound.
            bfloat16: Autocast the denoiser; errors change in about the third digit, for all classes alike.
        """
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm is {norm!r}; expected 'l1' or 'l2'")
        self.diffusion, self.hidden, self.norm = diffusion, hidden.detach(), norm
        self.timestep_range, self.seed, self.batch_size = timestep_range, seed, max(1, batch_size)
        self.bfloat16, self.num_classes = bfloat16, len(hidden)

    def samples(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """The t of ``num_samples`` samples, int64 (sample,), and their ε, (sample, channel, height, width)."""
        timesteps = spaced_timesteps(self.diffusion.num_timesteps, num_samples, self.timestep_range)
        generator = torch.Generator().manual_seed(self.seed)
        return timesteps, torch.randn((num_samples, *self.diffusion.latent_shape), generator=generator)

    @torch.no_grad()
    def errors(self, triples: Tensor, latents: Tensor, timesteps: Tensor, noises: Tensor) -> Tensor:
        """Errors (triple,) of (image, class, sample), int64 (triple, 3), in passes of at most ``batch_size``.

        Raises:
            TrainingError: The denoiser's answer is not finite.
        """
        device, results = self.diffusion.device, []
        for image, label, sample in (chunk.unbind(1) for chunk in triples.split(self.batch_size)):
            t, noise = timesteps[sample], noises[sample].to(device)
            noisy = self.diffusion.add_noise(latents[image].to(device), noise, t)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
                predicted = self.diffusion.predict_noise(noisy, t, self.hidden, prompts=label)
            difference = (predicted - noise).flatten(1)
            results.append((difference.abs() if self.norm == "l1" else difference.square()).mean(1).cpu())
            if not bool(torch.isfinite(results[-1]).all()):
                raise TrainingError(
                    f"the denoiser's answer is not finite at a timestep from {int(t.min())} to {int(t.max())}, "
                    "so no class can be judged; load the model in float32 or bfloat16, and check the prompts for "
                    "values that are not finite"
                )
        return torch.cat(results) if results else torch.empty(0)

    def exact(self, latents: Tensor, num_samples: int) -> Evidence:
        """Every class on every sample.

        A pass holds whole images, or a part of one. So where two do not fit into a pass, the rounding of an image's
        errors depends on no other image: neither on what is judged beside it nor on the number of processes.

        Args:
            latents: z0, (image, channel, height, width), scaled.
            num_samples: (t, ε) pairs; timesteps evenly spaced over the range.
        """
        timesteps, noises = self.samples(num_samples)
        shape, parts = (self.num_classes, num_samples), []
        images_a_pass = max(1, self.batch_size // (self.num_classes * num_samples))
        for chunk in latents.split(images_a_pass) if len(latents) else ():  # a process may have no share
            grid = torch.cartesian_prod(*map(torch.arange, (len(chunk), *shape))).reshape(-1, 3)
            parts.append(self.errors(grid, chunk, timesteps, noises).reshape(len(chunk), *shape))
        found = torch.cat(parts).numpy() if parts else np.empty((0, *shape), np.float32)
        return Evidence(found, timesteps.numpy(), int(found.size))

    def staged(
        self,
        latents: Tensor,
        to_keep: Sequence[int] = (5, 1),
        n_samples: Sequence[int] = (50, 500),
        *,
        schedule: Schedule = "nested",
    ) -> Evidence:
        """The published procedure in stages, see :func:`~gcpl_lab.gcpl.staged.staged_evidence`."""
        errors, timesteps, spent = staged_evidence(self, latents, to_keep, n_samples, schedule)
        return Evidence(errors, timesteps, spent)
