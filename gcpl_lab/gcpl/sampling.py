"""Exemplars, and batches of noisy exemplars that are each drawn from (seed, step) alone."""

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
    """The VAE's view of the training images, computed once.

    Attributes:
        means: (flip, image, channel, height, width): posterior means, as they are and mirrored; not scaled.
        log_variances: The same shape.
        labels: int64 (image,).
        source: Checksum of the images, where a run is to be known again; moments differ a little between machines.
        features: CLIP's unit features (flip, image, feature), for an objective that reads them.
    """

    means: Tensor
    log_variances: Tensor
    labels: Tensor
    source: str = ""
    features: Tensor | None = None

    def subset(self, indices: np.ndarray) -> Exemplars:
        """Some of the images, int64 (count,)."""
        chosen = torch.from_numpy(indices)
        features = None if self.features is None else self.features[:, chosen]
        return Exemplars(self.means[:, chosen], self.log_variances[:, chosen], self.labels[chosen], features=features)

    @classmethod
    def encode(
        cls,
        diffusion: FrozenDiffusion,
        pixels: Tensor,
        labels: Sequence[int] | np.ndarray,
        encode_moments: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Exemplars:
        """Run the VAE once on every image and its mirror image.

        Args:
            diffusion, pixels, labels: The frozen model; (image, 3, size, size) in [-1, 1]; one class id an image.
            encode_moments: Instead of the model's own, for instance to share the work among processes.
        """
        if len(pixels) != len(labels):
            raise DataError(f"{len(pixels)} images and {len(labels)} labels; expected one label each")
        encode_moments = encode_moments or diffusion.encode_moments
        moments = zip(encode_moments(pixels), encode_moments(pixels.flip(-1)), strict=True)
        means, log_variances = (torch.stack(both) for both in moments)
        return cls(means, log_variances, torch.as_tensor(np.asarray(labels), dtype=torch.int64))


@dataclass(frozen=True)
class NoisyBatch:
    """What the denoiser is shown in one update.

    Attributes:
        latents: z0, (batch, channel, height, width), scaled.
        noise: ε, the same shape.
        timesteps: int64 (batch,).
        labels: int64 (batch,).
        template: Which of the prompts' templates this update uses.
        group_size: Consecutive samples of this many are of different classes (CoMPLe contrasts within them).
        num_samples: Consecutive samples of this many show the same image (discriminative objective).
        features: CLIP's unit features (batch, feature) of what is shown, where the exemplars have them.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    labels: Tensor
    template: int = 0
    group_size: int = 1
    num_samples: int = 1
    features: Tensor | None = None

    def __len__(self) -> int:
        """Samples."""
        return len(self.labels)

    def __getitem__(self, part: slice) -> NoisyBatch:
        """Some consecutive samples."""
        names = ("latents", "noise", "timesteps", "labels", *(() if self.features is None else ("features",)))
        return replace(self, **{name: getattr(self, name)[part] for name in names})


class ExemplarSampler:
    """Batches of noisy exemplars; a sample's noise depends on the seed, the step and its place in the batch alone."""

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
            diffusion, exemplars: The noise schedule, the latents' scale, and the images.
            batch_size: Images an update, drawn in rounds of every class once.
            num_samples: (t, ε) pairs for each image.
            timestep_range: Part of the schedule, as fractions.
            num_templates: Updates go through the templates in turn.
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
        self._timesteps = int(low * steps), max(int(low * steps) + 1, int(high * steps))
        labels = exemplars.labels.numpy()
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def __call__(self, step: int) -> NoisyBatch:
        """The batch of one update."""
        rng, num_classes = np.random.default_rng([self._seed, 11, step]), len(self._members)
        rounds = -(-self.batch_size // num_classes)
        order = np.concatenate([rng.permutation(num_classes) for _ in range(rounds)])[: self.batch_size]
        members = [self._members[group] for group in order]
        images = torch.from_numpy(np.array([those[rng.integers(len(those))] for those in members]))
        flips = torch.from_numpy(rng.integers(0, 2 if self._flip else 1, self.batch_size))
        images, flips = (value.repeat_interleave(self.num_samples) for value in (images, flips))
        timesteps = rng.integers(*self._timesteps, len(images))
        exemplars, device = self._exemplars, self._diffusion.device
        means, log_variances = exemplars.means[flips, images], exemplars.log_variances[flips, images]
        draws = []
        for place in range(len(images)):
            seed = np.random.SeedSequence([self._seed, 13, step, place]).generate_state(1, np.uint64)[0]
            draws.append(torch.randn((2, *means.shape[1:]), generator=self._generator.manual_seed(int(seed >> 1))))
        of_latents, noise = torch.stack(draws, dim=1).to(device)  # drawn on the CPU: the same everywhere
        latents = means.to(device) + (0.5 * log_variances.to(device)).exp() * of_latents
        return NoisyBatch(
            latents=self._diffusion.scale_latents(latents),
            noise=noise,
            timesteps=torch.from_numpy(timesteps).to(device),
            labels=exemplars.labels[images].to(device),
            template=step % self.num_templates,
            group_size=min(num_classes, self.batch_size),
            num_samples=self.num_samples,
            features=None if exemplars.features is None else exemplars.features[flips, images].to(device),
        )
