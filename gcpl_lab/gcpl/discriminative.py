"""Discriminative class prompts: the quantity that the classifier ranks is trained directly.

This project's own objective, and an example of one in a file of its own. In a trial two details decided everything: the
errors of one image are averaged over several (t, ε) before the softmax, and they are relative, as in the decision.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.objectives import GCPL, Stage, register_objective
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import NoisyBatch
from gcpl_lab.models.diffusion import FrozenDiffusion


def errors_under(
    diffusion: FrozenDiffusion, hidden: Tensor, candidates: Tensor, noisy: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Mean squared errors of noisy latents, each under its candidates (sample, candidate), rows of ``hidden``."""
    rows = torch.arange(len(noisy)).repeat_interleave(candidates.shape[1])
    predicted = diffusion.predict_noise(noisy, timesteps, hidden, rows, candidates.flatten())
    errors = (predicted - noise[rows.to(noise.device)]).square().flatten(1).mean(1)
    return errors.reshape(candidates.shape)


def relative_errors(errors: Tensor) -> Tensor:
    """Errors (batch, sample, class) divided by their mean over classes, which is held constant in the gradient.

    A noisy (t, ε) raises every class's error alike; dividing takes that common part away.
    """
    return errors / errors.detach().mean(dim=-1, keepdim=True).clamp_min(1e-12)


def discriminative_loss(errors: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the classifier's own ranking: softmax over classes of −τ · mean relative error.

    The errors of one image are averaged over its (t, ε) *before* the softmax; a softmax of each single (t, ε) overfits
    noise.

    Args:
        errors: ‖ε − ε_θ‖², (batch, sample, class): all classes saw the same (z_t, t, ε) of a sample.
        targets: int64 (batch,): the index of the true class among the candidates.
        temperature: τ > 0.
    """
    if errors.ndim != 3 or targets.shape != errors.shape[:1]:
        raise ValueError(
            f"errors has shape {tuple(errors.shape)} and targets {tuple(targets.shape)}; expected "
            "(batch, sample, class) and (batch,), one an image"
        )
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    return F.cross_entropy(-temperature * relative_errors(errors.float()).mean(dim=1), targets)


@register_objective(
    "discriminative",
    title="Discriminative prompts",
    defaults={"temperature": 30.0, "num_rivals": 3, "own_weight": 1.0},
    stage=Stage("discriminative_steps", "discriminative_batch_size", "discriminative_rate", "num_samples", 1000, 1e-5),
    starts_from="gcpl",
)
class Discriminative(GCPL):
    """The classifier's own ranking, trained: softmax over candidate classes of mean relative errors.

    Candidates of an image are its own class and its class's hardest rivals; all see the same (z_t, t, ε).
    """

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        prompts: ClassPrompts,
        temperature: float = 30.0,
        num_rivals: int | None = None,
        own_weight: float = 1.0,
    ) -> None:
        """Take the prompts, warm-started from GCPL as a rule.

        Args:
            diffusion, prompts: See :class:`GCPL`.
            temperature: τ on relative errors.
            num_rivals: How many rivals :meth:`begin` chooses for each class; None: all other classes.
            own_weight: β of the own class's relative error beside the cross entropy; it keeps prompts on their images.
        """
        super().__init__(diffusion, prompts)
        num_classes = len(prompts.class_names)
        if num_classes < 2:
            raise DataError("the discriminative objective needs at least two classes, got one")
        self.temperature, self.num_rivals, self.own_weight = temperature, num_rivals, own_weight
        every = torch.arange(num_classes)
        self.candidates = torch.stack([torch.cat([every[[c]], every[every != c]]) for c in range(num_classes)])

    def begin(self, labels: np.ndarray, errors: Callable[[], np.ndarray]) -> None:
        """Choose each class's rivals by what the exemplars show under the present prompts.

        Args:
            labels: int64 (image,).
            errors: Computes the exemplars' errors (image, class, sample).
        """
        num_classes = len(self.candidates)
        if self.num_rivals is not None and self.num_rivals < num_classes - 1:
            rivals = hardest_rivals(errors(), labels, self.num_rivals)
            self.candidates = torch.cat([torch.arange(num_classes)[:, None], rivals], dim=1)

    def unit(self, batch: NoisyBatch) -> int:
        """All samples of an image: its errors are averaged before the softmax."""
        return batch.num_samples

    def candidate_errors(self, batch: NoisyBatch) -> Tensor:
        """Mean squared errors (image, sample, candidate); the own class comes first."""
        candidates = self.candidates.to(batch.labels.device)[batch.labels]
        classes, prompts = candidates.unique(return_inverse=True)
        hidden = self.diffusion.encode_prompts(*self.prompts(classes, batch.template))
        noisy = self.diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        errors = errors_under(self.diffusion, hidden, prompts, noisy, batch.noise, batch.timesteps)
        return errors.reshape(-1, batch.num_samples, candidates.shape[1])

    def __call__(self, batch: NoisyBatch) -> dict[str, Tensor]:
        """``loss``, its two terms ``cross_entropy`` and ``own``, and the batch's ``accuracy``."""
        errors = self.candidate_errors(batch)
        targets = torch.zeros(len(errors), dtype=torch.int64, device=errors.device)
        cross_entropy, relative = discriminative_loss(errors, targets, self.temperature), relative_errors(errors)
        own = relative[..., 0].mean()
        accuracy = (relative.detach().mean(1).argmin(1) == 0).float().mean()
        loss = cross_entropy + self.own_weight * own
        return {"loss": loss, "cross_entropy": cross_entropy.detach(), "own": own.detach(), "accuracy": accuracy}


def hardest_rivals(errors: np.ndarray, labels: np.ndarray, num_rivals: int) -> Tensor:
    """The classes whose prompts fit each class's own images best besides its own.

    Args:
        errors: (image, class, timestep) of the exemplars under the present prompts.
        labels: int64 (image,).
        num_rivals: How many a class; cut to the number of other classes.

    Returns:
        int64 (class, rival), the hardest first.
    """
    profile = (errors / errors.mean(axis=1, keepdims=True)).mean(axis=2)
    fit = np.stack([profile[labels == label].mean(0) for label in range(errors.shape[1])])
    np.fill_diagonal(fit, np.inf)
    return torch.from_numpy(np.argsort(fit, axis=1, kind="stable")[:, : min(num_rivals, len(fit) - 1)].copy())
