"""What a baseline is fitted from, and the two registries that name all of them.

A baseline is a function or class ``fit(support, **defaults)`` whose answer has ``scores(inputs)``: logits (image,
class), for softmax, or for a sigmoid where images have several labels. Facts of an entry: ``sees="pixels"`` where it
takes a :class:`PixelSupport` instead of a :class:`FeatureSupport`, ``sees="latents"`` where a :class:`LatentSupport`;
``shots=False`` where it learns from no image; ``choose``, for several labels, a function from all that is learned from
to further settings of ``fit``, asked once a data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.data.episodes import cross_validation_folds
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.registry import Registry
from gcpl_lab.training.loop import Objective, StepRecord, TrainingConfig, train

BASELINES = Registry("baseline")
register_baseline = BASELINES.register
MULTILABEL_BASELINES = Registry("multi-label baseline")
register_multilabel_baseline = MULTILABEL_BASELINES.register

Batches = Callable[[int], tuple[Tensor, Tensor]]
"""Inputs and labels of an update, by its number."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """The exemplars that a baseline is fitted from."""

    class_names: Sequence[str]
    labels: Tensor  # int64 (image,); for several labels an image 0/1 (image, class)
    seed: int = 0
    flip: bool = True  # learn from mirror images of pixels too
    on_step: Callable[[StepRecord, int], None] | None = None  # told of every update and of the number of updates

    def train(self, objective: Objective, batches: Batches, config: TrainingConfig) -> None:
        """Run all updates of an objective and tell of them."""
        for record in train(objective, batches, config):
            if self.on_step is not None:
                self.on_step(record, config.num_steps)

    def folds(self) -> list[tuple[Tensor, Tensor]]:
        """Exemplars to learn from and exemplars held out, int64, of up to four folds; none where a class has one."""
        return exemplar_folds(self.labels, self.seed)


@dataclass(frozen=True, kw_only=True)
class FeatureSupport(Support):
    """Exemplars as CLIP sees them: unit features float32 (view, image, feature), of images and mirror images."""

    clip: FrozenCLIP
    features: Tensor


@dataclass(frozen=True, kw_only=True)
class PixelSupport(Support):
    """Exemplars as they are: float32 (image, 3, height, width) in [-1, 1]."""

    pixels: Tensor


@dataclass(frozen=True, kw_only=True)
class LatentSupport(Support):
    """Exemplars as the denoiser sees them: scaled latents (view, image, channel, height, width), as for features."""

    diffusion: FrozenDiffusion
    latents: Tensor


class Tuned:
    """Base of what is tuned with cross entropy of ``_logits``: an objective for the training loop, and its scores."""

    def _logits(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross entropy of (inputs (image, ...), labels (image,))."""
        inputs, labels = batch
        return {"loss": F.cross_entropy(self._logits(inputs), labels)}

    @torch.no_grad()
    def scores(self, inputs: Tensor) -> Tensor:
        return self._logits(inputs)


def exemplar_folds(labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """See :meth:`Support.folds`; labels are class ids (image,)."""
    smallest = int(labels.unique(return_counts=True)[1].min())
    parts = cross_validation_folds(labels.numpy(), min(4, smallest), seed) if smallest >= 2 else []
    return [(torch.from_numpy(inside), torch.from_numpy(outside)) for inside, outside in parts]


def feature_batches(views: Tensor, labels: Tensor, batch_size: int, seed: int) -> Batches:
    """Batches for the training loop from features (view, image, feature), each from its step's number.

    No image is twice in one.
    """

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, 17, step]).generate_state(1)[0]))
        chosen = torch.randperm(len(labels), generator=generator)[:batch_size]
        view = torch.randint(len(views), (len(chosen),), generator=generator)
        return views[view, chosen], labels[chosen]

    return batch_at
