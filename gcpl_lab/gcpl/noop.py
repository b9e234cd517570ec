"""NoOp: the noise is trained, not the prompts; one learned ε at each timestep takes the place of many random ones."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.classifier import DiffusionClassifier
from gcpl_lab.gcpl.discriminative import errors_under
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.models.diffusion import FrozenDiffusion

NUM_RIVALS = 4
"""Of each image in an update, drawn at random, or all there are."""


def noise_loss(errors: Tensor) -> Tensor:
    """Cross entropy of softmax over candidates of −z-score of the errors.

    Args:
        errors: (image, candidate), the own class first; three candidates or more, as two always have z-scores ±1.
    """
    if errors.ndim != 2 or errors.shape[1] < 3:
        raise ValueError(f"errors has shape {tuple(errors.shape)}; expected (image, candidate), 3 candidates or more")
    spread = errors.std(dim=1, correction=0, keepdim=True).clamp_min(1e-12)
    scores = (errors - errors.mean(dim=1, keepdim=True)) / spread
    return F.cross_entropy(-scores, torch.zeros(len(errors), dtype=torch.int64, device=errors.device))


class NoOp:
    """The noises of a diffusion classifier, trained so that it tells the exemplars right; an objective.

    The authors' small network that adds an offset for each image is left out: what is learned is one noise a timestep.

    Source: Wang et al. 2025, https://arxiv.org/abs/2508.11330, and the authors' ``main.py``
    """

    def __init__(self, classifier: DiffusionClassifier, num_samples: int) -> None:
        """Start from the classifier's own noises at its own timesteps."""
        if classifier.num_classes < 3:
            raise DataError(f"learned noises need three classes or more, got {classifier.num_classes}")
        self.classifier = classifier
        self.timesteps, noises = classifier.samples(num_samples)
        self.noises = nn.Parameter(noises.to(classifier.diffusion.device))

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The noises alone, (sample, channel, height, width)."""
        return [self.noises]

    def __call__(self, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """``loss`` of scaled latents, samples (image,) and candidates (image, candidate)."""
        latents, samples, candidates = batch
        diffusion: FrozenDiffusion = self.classifier.diffusion
        noise, timesteps = self.noises[samples], self.timesteps[samples]
        noisy = diffusion.add_noise(latents.to(noise.device), noise, timesteps)
        errors = errors_under(diffusion, self.classifier.hidden, candidates, noisy, noise, timesteps)
        return {"loss": noise_loss(errors)}


class NoiseSampler:
    """Batches for :class:`NoOp`, each from its step's number: images, a timestep each, own class and random rivals."""

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        exemplars: Exemplars,
        num_samples: int,
        batch_size: int = 16,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        self._latents, self._labels = diffusion.scale_latents(exemplars.means), exemplars.labels.numpy()
        self.num_samples, self.batch_size, self._flip, self._seed = num_samples, batch_size, flip, seed

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The batch of one update."""
        rng = np.random.default_rng([self._seed, 41, step])
        images = rng.permutation(len(self._labels))[: self.batch_size]
        flips = rng.integers(0, 2 if self._flip else 1, len(images))
        every = np.arange(int(self._labels.max()) + 1)
        rivals = [rng.permutation(every[every != own])[:NUM_RIVALS] for own in self._labels[images]]
        candidates = np.column_stack([self._labels[images], np.stack(rivals)])
        samples = rng.integers(0, self.num_samples, len(images))
        return self._latents[flips, images], torch.from_numpy(samples), torch.from_numpy(candidates)


class TunedClassifier(DiffusionClassifier):
    """A diffusion classifier with learned noises in the place of random ones."""

    def __init__(self, objective: NoOp) -> None:
        vars(self).update(vars(objective.classifier))
        self._learned = objective.noises.detach().cpu()

    def samples(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Timesteps, and the noises that were learned, of so many samples alone."""
        if num_samples != len(self._learned):
            raise DataError(f"{len(self._learned)} noises were learned, and {num_samples} are asked for")
        return super().samples(num_samples)[0], self._learned
