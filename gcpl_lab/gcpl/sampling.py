"""Batches of noisy exemplars, each drawn from its step's number alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.errors import DataError
from gcpl_lab.models.diffusion import FrozenDiffusion


@dataclass(frozen=True)
class Exemplars:
    """The VAE's view of the training photographs, cached once.

    Attributes:
        means: (flip, image, channel, height, width): posterior means, as they are and mirrored; not scaled.
        log_variances: The same shape.
        labels: int64 (image,).
        pixels: (image, 3, size, size) in [-1, 1] where updates are to encode them anew; None: what is cached serves.
    """

    means: Tensor
    log_variances: Tensor
    labels: Tensor
    pixels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.means.shape[1] != len(self.labels):
            raise DataError(f"{self.means.shape[1]} pictures and {len(self.labels)} labels; expected one label each")

    def subset(self, indices: np.ndarray) -> Exemplars:
        """Some of the photographs, int64 (count,)."""
        chosen = torch.from_numpy(indices)
        pixels = None if self.pixels is None else self.pixels[chosen]
        return Exemplars(self.means[:, chosen], self.log_variances[:, chosen], self.labels[chosen], pixels)

    @classmethod
    def encode(
        cls,
        diffusion: FrozenDiffusion,
        pixels: Tensor,
        labels: Sequence[int] | np.ndarray,
        encode_moments: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        *,
        cache: bool = True,
    ) -> Exemplars:
        """Run the VAE once on every picture and its mirror image.

        Args:
            diffusion: The frozen model.
            pixels: (image, 3, size, size) in [-1, 1].
            labels: One class id a picture.
            encode_moments: Takes the place of the model's own, for instance to share the work among processes.
            cache: False: updates encode the pictures of their batch anew.
        """
        encode_moments = encode_moments or diffusion.encode_moments
        plain, mirrored = encode_moments(pixels), encode_moments(pixels.flip(-1))
        return cls(
            torch.stack([plain[0], mirrored[0]]),
            torch.stack([plain[1], mirrored[1]]),
            torch.as_tensor(np.asarray(labels), dtype=torch.int64),
            None if cache else pixels,
        )


@dataclass(frozen=True)
class NoisyBatch:
    """What the denoiser is shown in one step.

    Attributes:
        latents: z0, (batch, channel, height, width), scaled.
        noise: ε, the same shape.
        timesteps: int64 (batch,).
        labels: int64 (batch,).
        template: Which of the prompts' templates this step uses.
        group_size: Consecutive samples of this many are of different classes (CoMPLe contrasts within them).
        num_samples: Consecutive samples of this many show the same photograph (discriminative objective).
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    labels: Tensor
    template: int = 0
    group_size: int = 1
    num_samples: int = 1

    def __len__(self) -> int:
        """Samples."""
        return len(self.labels)

    def __getitem__(self, part: slice) -> NoisyBatch:
        """Some consecutive samples, for a process or a pass of its own."""
        return replace(
            self,
            latents=self.latents[part],
            noise=self.noise[part],
            timesteps=self.timesteps[part],
            labels=self.labels[part],
        )


class ExemplarSampler:
    """Batches of noisy exemplars, each drawn from (seed, step) alone.

    The noise of a sample depends on the seed, the step and the sample's place in the whole batch, so it is
    the same whichever process computes it.
    """

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        exemplars: Exemplars,
        *,
        batch_size: int,
        num_samples: int = 1,
        timestep_range: tuple[float, float] = (0.0, 1.0),
        num_templates: int = 1,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        """Keep what batches are drawn from.

        Args:
            diffusion: Gives the noise schedule and the latents' scale.
            exemplars: Cached moments.
            batch_size: Photographs a step, drawn in rounds of every class once.
            num_samples: (t, ε) pairs for each photograph.
            timestep_range: Part of the schedule that timesteps are drawn from, as fractions.
            num_templates: Steps go through the templates in turn.
            flip: Show mirror images half of the time.
            seed: Of everything that is drawn.
        """
        low, high = timestep_range
        if not 0 <= low < high <= 1:
            raise ValueError(f"timestep_range is {timestep_range}; expected two fractions 0 ≤ low < high ≤ 1")
        if batch_size < 1 or num_samples < 1:
            raise ValueError(f"batch_size is {batch_size} and num_samples {num_samples}; expected 1 or more")
        self._diffusion, self._exemplars = diffusion, exemplars
        self.batch_size, self.num_samples, self.num_templates = batch_size, num_samples, num_templates
        self._flip, self._seed, self._generator = flip, seed, torch.Generator()
        steps = diffusion.num_timesteps
        self._first_timestep, self._last_timestep = int(low * steps), max(int(low * steps) + 1, int(high * steps))
        labels = exemplars.labels.numpy()
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __call__(self, step: int) -> NoisyBatch:
        """The batch of one step."""
        rng = np.random.default_rng([self._seed, 11, step])
        rounds = -(-self.batch_size // len(self._members))
        order = np.concatenate([rng.permutation(len(self._members)) for _ in range(rounds)])[: self.batch_size]
        members = [self._members[group] for group in order]
        images = torch.from_numpy(np.array([those[rng.integers(len(those))] for those in members]))
        flips = torch.from_numpy(rng.integers(0, 2 if self._flip else 1, self.batch_size))
        images, flips = (value.repeat_interleave(self.num_samples) for value in (images, flips))
        timesteps = rng.integers(self._first_timestep, self._last_timestep, len(images))
        means, log_variances = self._moments(flips, images)
        draws = [self._normal(step, slot, means.shape[1:]) for slot in range(len(images))]
        latents = means + (0.5 * log_variances).exp() * torch.stack([draw[0] for draw in draws])
        device = self._diffusion.device
        return NoisyBatch(
            latents=self._diffusion.scale_latents(latents).to(device),
            noise=torch.stack([draw[1] for draw in draws]).to(device),
            timesteps=torch.from_numpy(timesteps).to(device),
            labels=self._exemplars.labels[images].to(device),
            template=step % self.num_templates,
            group_size=min(len(self._members), self.batch_size),
            num_samples=self.num_samples,
        )

    def _moments(self, flips: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log-variances of photographs, mirrored where ``flips`` is 1: cached, or encoded now."""
        exemplars = self._exemplars
        if exemplars.pixels is None:
            return exemplars.means[flips, images], exemplars.log_variances[flips, images]
        pixels = exemplars.pixels[images]
        return self._diffusion.encode_moments(torch.where(flips.bool()[:, None, None, None], pixels.flip(-1), pixels))

    def _normal(self, step: int, slot: int, shape: torch.Size) -> Tensor:
        seed = np.random.SeedSequence([self._seed, 13, step, slot]).generate_state(1, np.uint64)[0]
        return torch.randn((2, *shape), generator=self._generator.manual_seed(int(seed >> 1)))
