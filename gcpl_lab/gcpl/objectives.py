"""Learning class prompts through a frozen diffusion model: GCPL, CoMPLe and the discriminative objective.

An :class:`ExemplarSampler` turns cached latents into batches, each from its step's number alone; an
objective turns a batch into scalars. The loop that joins them is ``gcpl_lab.training.loop.train``.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.errors import DataError
from gcpl_lab.fast.cpu_linear import without_autocast
from gcpl_lab.fast.shared_prefix import SharedDenoiser
from gcpl_lab.fast.template_tower import TemplateTower
from gcpl_lab.gcpl.classifier import spaced_timesteps
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, NoisyBatch
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.processor import own_kernels


def _check_same_shape(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} has shape {tuple(first.shape)} and {second_name} has {tuple(second.shape)}; "
            "they must be equal"
        )


def denoising_loss(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the predicted noise (GCPL, eq. 4): what a class prompt is trained to lower.

    The mean over all elements, as in the public code, instead of the sum over one latent: the two differ
    by the constant number of elements, and the mean does not depend on the picture's size.

    Args:
        predicted: ε_θ(z_t, t, h), (batch, channel, height, width).
        noise: ε, the same shape.

    Returns:
        A scalar ≥ 0.

    Source: Chattopadhyay et al. 2024, https://arxiv.org/abs/2409.01835
    """
    _check_same_shape("predicted", predicted, "noise", noise)
    return F.mse_loss(predicted.float(), noise.float())


def pairwise_noise_distances(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean squared distance of every prediction to every sample's noise.

    Computed by expansion into inner products, so no (batch, batch, element) tensor is ever made.

    Args:
        predicted: (batch, channel, height, width).
        noise: the same shape.

    Returns:
        (batch, batch): entry [i, j] is ‖ε_i − ε_θ^j‖² / number of elements.
    """
    _check_same_shape("predicted", predicted, "noise", noise)
    flat_predicted, flat_noise = predicted.float().flatten(1), noise.float().flatten(1)
    products = flat_noise @ flat_predicted.T
    squares = flat_noise.square().sum(1)[:, None] + flat_predicted.square().sum(1)[None, :]
    return (squares - 2 * products) / flat_predicted.shape[1]


def comple_loss(predicted: Tensor, noise: Tensor, contrast_weight: float) -> Tensor:
    """CoMPLe as published: own noise near, the noises of the batch's other samples far.

    For i ≠ j the noise ε_i is independent of everything prediction j depends on, so the expected contrast
    term is a constant plus E‖ε_θ‖²: in expectation it only rewards predictions of larger norm, whatever the
    classes are (see :func:`expected_contrast`).

    Args:
        predicted: ε_θ(z_t^j, t, h_{c_j}), (batch, channel, height, width).
        noise: ε_j, the same shape; batch ≥ 2, the samples of different classes.
        contrast_weight: λ ≥ 0; with λ ≥ 1 the loss has no minimum.

    Returns:
        A scalar, which may be negative.

    Source: Chattopadhyay et al. 2024, https://arxiv.org/abs/2409.01835
    """
    if contrast_weight < 0:
        raise ValueError(f"contrast_weight is {contrast_weight}; expected 0 or more")
    batch = len(predicted)
    if batch < 2:
        raise ValueError(f"the contrast needs at least two samples in a batch, got {batch}")
    distances = pairwise_noise_distances(predicted, noise)
    own = distances.diagonal().sum()
    others = distances.sum() - own
    return own / batch - contrast_weight * others / (batch * (batch - 1))


def expected_contrast(predicted: Tensor) -> Tensor:
    """What CoMPLe's second term is on average over fresh noises: 1 + mean(ε_θ²).

    E‖ε_i − ε_θ^j‖² = E‖ε_i‖² + ‖ε_θ^j‖² because an independent ε_i has mean zero; per element, E‖ε_i‖² is 1.

    Args:
        predicted: (batch, channel, height, width).
    """
    return 1 + predicted.float().square().mean()


def relative_errors(errors: Tensor) -> Tensor:
    """Errors divided by their mean over the candidate classes, which is held constant in the gradient.

    A noisy or difficult (t, ε) raises every class's error alike; dividing takes that common part away, and
    timesteps with small errors count as much as those with large ones.

    Args:
        errors: (batch, sample, class), ‖ε − ε_θ‖² ≥ 0.
    """
    return errors / errors.detach().mean(dim=-1, keepdim=True).clamp_min(1e-12)


def discriminative_loss(errors: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross entropy of the classifier's own ranking: softmax over classes of −τ · mean relative error.

    The errors of one image are averaged over its (t, ε) *before* the softmax; a softmax of each single
    (t, ε) overfits noise.

    Args:
        errors: (batch, sample, class): every candidate class saw the same (z_t, t, ε) of a sample.
        targets: int64 (batch,): the index of the true class among the candidates.
        temperature: τ > 0, the factor on relative errors; large values sharpen.

    Returns:
        A scalar ≥ 0.
    """
    if errors.ndim != 3:
        raise ValueError(f"errors has shape {tuple(errors.shape)}; expected (batch, sample, class)")
    if targets.shape != errors.shape[:1]:
        raise ValueError(f"targets has shape {tuple(targets.shape)}; expected ({errors.shape[0]},), one an image")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    if targets.numel() and not (0 <= int(targets.min()) and int(targets.max()) < errors.shape[2]):
        raise ValueError(
            f"targets reach from {int(targets.min())} to {int(targets.max())}; "
            f"expected class indices from 0 to {errors.shape[2] - 1}"
        )
    logits = -temperature * relative_errors(errors.float()).mean(dim=1)
    return F.cross_entropy(logits, targets)


class ValidationLoss:
    """The denoising loss of held-out photographs on fixed noise and timesteps: equal prompts, equal loss.

    Call it without arguments, as the training loop's ``validate``.
    """

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        prompts: ClassPrompts,
        exemplars: Exemplars,
        *,
        num_samples: int = 8,
        timestep_range: tuple[float, float] = (0.0, 1.0),
        seed: int = 0,
        batch_size: int = 256,
    ) -> None:
        """Draw the noises once.

        Args:
            diffusion: The frozen model.
            prompts: The prompts that are being trained.
            exemplars: Photographs that training never sees.
            num_samples: Evenly spaced timesteps for each photograph, each with a noise of its own.
            timestep_range: Part of the schedule, as fractions.
            seed: Of the noises.
            batch_size: Most denoiser evaluations in one pass.
        """
        self.diffusion, self.prompts, self.batch_size = diffusion, prompts, batch_size
        latents = diffusion.scale_latents(exemplars.means[0])
        timesteps = spaced_timesteps(diffusion.num_timesteps, num_samples, timestep_range)
        generator = torch.Generator().manual_seed(seed)
        self._latents = latents.repeat_interleave(num_samples, 0)
        self._noise = torch.randn(self._latents.shape, generator=generator)
        self._timesteps = timesteps.repeat(len(latents))
        self._labels = exemplars.labels.repeat_interleave(num_samples)

    @torch.no_grad()
    def __call__(self) -> float:
        """Mean squared error of the predicted noise under the present prompts."""
        hidden = self.diffusion.encode_prompts(*self.prompts())
        total = 0.0
        for part in torch.arange(len(self._labels)).split(self.batch_size):
            latents, noise = (values[part].to(self.diffusion.device) for values in (self._latents, self._noise))
            noisy = self.diffusion.add_noise(latents, noise, self._timesteps[part])
            predicted = self.diffusion.predict_noise(noisy, self._timesteps[part], hidden[self._labels[part]])
            total += float(denoising_loss(predicted, noise)) * len(part)
        return total / len(self._labels)


class PromptEncoder:
    """Hidden states of class prompts while these are learned: what stands in front of the vectors is encoded once."""

    def __init__(self, diffusion: FrozenDiffusion, prompts: ClassPrompts) -> None:
        self._diffusion, self._prompts = diffusion, prompts
        self._towers: dict[int, TemplateTower | None] = {}

    def __call__(self, classes: Tensor, template: int) -> Tensor:
        """(class, context length, dim) of some classes, int64 (class,), in one template."""
        if template not in self._towers:
            self._towers[template] = self._diffusion.template_tower(self._prompts.beginning(template))
        ids, embeddings = self._prompts(classes, template)
        return self._diffusion.encode_prompts(ids, embeddings, self._towers[template])


def _denoiser_under(diffusion: FrozenDiffusion, hidden: Tensor) -> SharedDenoiser:
    """The denoiser under the prompts of one update, which does what these have in common once."""
    shares = own_kernels()
    return SharedDenoiser(diffusion, hidden, share_prefix=shares, cache_keys=shares)


class GCPL:
    """L_GCPL: every class's vectors lower the denoising error of their own exemplars.

    Source: Chattopadhyay et al. 2024, https://arxiv.org/abs/2409.01835, eq. 4.
    """

    def __init__(self, diffusion: FrozenDiffusion, prompts: ClassPrompts) -> None:
        self.diffusion, self.prompts = diffusion, prompts
        self._encode = PromptEncoder(diffusion, prompts)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The class vectors alone."""
        return [self.prompts.vectors]

    def unit(self, batch: NoisyBatch) -> int:
        """How many consecutive samples belong together: each stands for itself."""
        return 1

    def _predict(self, batch: NoisyBatch) -> Tensor:
        classes, index = batch.labels.unique(return_inverse=True)  # only the classes in the batch are encoded
        hidden = self._encode(classes, batch.template)
        noisy = self.diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        rows = torch.arange(len(noisy))
        return _denoiser_under(self.diffusion, hidden).predict_noise(noisy, batch.timesteps, rows, index)

    def __call__(self, batch: NoisyBatch) -> dict[str, Tensor]:
        """``loss`` of one batch, and ``prediction_norm``, the mean square of the prediction (1 for true noise)."""
        predicted = self._predict(batch)
        return {"loss": denoising_loss(predicted, batch.noise), "prediction_norm": predicted.detach().square().mean()}


class CoMPLe(GCPL):
    """L_CoMPLe: GCPL minus λ times the distance to the other samples' noises, as published.

    Recorded beside the loss: ``own`` (the GCPL term), ``contrast`` (the second term, without λ),
    ``expected_contrast`` (what it is for any independent noise: 1 + the mean square of the prediction) and
    ``prediction_norm`` (the mean square itself, which the contrast drives).
    """

    def __init__(self, diffusion: FrozenDiffusion, prompts: ClassPrompts, contrast_weight: float = 0.1) -> None:
        super().__init__(diffusion, prompts)
        self.contrast_weight = contrast_weight

    def unit(self, batch: NoisyBatch) -> int:
        """A group of different classes: the contrast is among its samples."""
        return batch.group_size

    def __call__(self, batch: NoisyBatch) -> dict[str, Tensor]:
        """``loss`` and the recorded terms, averaged over the samples, each contrasted within its group.

        Where the batch leaves one sample over, it has nobody to be contrasted with: its contrast is 0, and its own
        term counts as everybody's does.
        """
        if batch.group_size < 2:
            raise ValueError("CoMPLe needs at least two classes in a batch; raise batch_size above 1")
        predicted = self._predict(batch)
        with without_autocast(predicted.device.type):  # inner products of latents need float32
            return self._terms(predicted, batch)

    def _terms(self, predicted: Tensor, batch: NoisyBatch) -> dict[str, Tensor]:
        own = denoising_loss(predicted, batch.noise)
        pairs = list(zip(predicted.split(batch.group_size), batch.noise.split(batch.group_size), strict=True))
        weights = torch.tensor([len(pair[0]) for pair in pairs], dtype=torch.float32, device=predicted.device)
        losses = torch.stack([_group_loss(*pair, self.contrast_weight) for pair in pairs])
        contrasts = torch.stack([_contrast(*pair) for pair in pairs]).detach()
        shares = weights / weights.sum()
        norm = predicted.detach().square().mean()
        return {
            "loss": (losses * shares).sum(),
            "own": own.detach(),
            "contrast": (contrasts * shares).sum(),
            "expected_contrast": expected_contrast(predicted.detach()),
            "prediction_norm": norm,
        }


def _group_loss(predicted: Tensor, noise: Tensor, contrast_weight: float) -> Tensor:
    if len(predicted) == 1:
        return denoising_loss(predicted, noise)
    return comple_loss(predicted, noise, contrast_weight)


def _contrast(predicted: Tensor, noise: Tensor) -> Tensor:
    return denoising_loss(predicted, noise) - _group_loss(predicted, noise, 1.0)


class Discriminative:
    """The classifier's own ranking, trained: softmax over candidate classes of mean relative errors.

    Candidates of a photograph are its own class and its class's hardest rivals; every candidate sees the
    same (z_t, t, ε).
    """

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        prompts: ClassPrompts,
        *,
        temperature: float = 30.0,
        gcpl_share: float = 1.0,
        rivals: Tensor | None = None,
    ) -> None:
        """Keep the settings.

        Args:
            diffusion: The frozen model.
            prompts: The class vectors, warm-started from GCPL as a rule.
            temperature: τ on relative errors.
            gcpl_share: β, the weight of the own class's relative error beside the cross entropy; it keeps
                prompts on their photographs.
            rivals: int64 (class, rival): which other classes each class competes with; None for all.
        """
        self.diffusion, self.prompts = diffusion, prompts
        self._encode = PromptEncoder(diffusion, prompts)
        self.temperature, self.gcpl_share = temperature, gcpl_share
        num_classes = len(prompts.class_names)
        if num_classes < 2:
            raise DataError("the discriminative objective needs at least two classes, got one")
        if rivals is None:
            every = torch.arange(num_classes)
            rivals = torch.stack([every[every != label] for label in range(num_classes)])
        self.candidates = torch.cat([torch.arange(num_classes)[:, None], rivals], dim=1)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The class vectors alone."""
        return [self.prompts.vectors]

    def unit(self, batch: NoisyBatch) -> int:
        """All samples of a photograph: its errors are averaged before the softmax."""
        return batch.num_samples

    def __call__(self, batch: NoisyBatch) -> dict[str, Tensor]:
        """``loss``, its two terms ``cross_entropy`` and ``own``, and the batch's ``accuracy``."""
        candidates = self.candidates.to(batch.labels.device)[batch.labels]
        num_candidates = candidates.shape[1]
        classes, index = candidates.unique(return_inverse=True)
        hidden = self._encode(classes, batch.template)
        noisy = self.diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        rows = torch.arange(len(noisy)).repeat_interleave(num_candidates)
        predicted = _denoiser_under(self.diffusion, hidden).predict_noise(noisy, batch.timesteps, rows, index.flatten())
        noise = batch.noise.repeat_interleave(num_candidates, 0)
        errors = (predicted - noise).square().flatten(1).mean(1)
        errors = errors.reshape(-1, batch.num_samples, num_candidates)
        targets = torch.zeros(len(errors), dtype=torch.int64, device=errors.device)  # the own class comes first
        cross_entropy = discriminative_loss(errors, targets, self.temperature)
        own = relative_errors(errors)[..., 0].mean()
        accuracy = (relative_errors(errors.detach()).mean(1).argmin(1) == 0).float().mean()
        return {
            "loss": cross_entropy + self.gcpl_share * own,
            "cross_entropy": cross_entropy.detach(),
            "own": own.detach(),
            "accuracy": accuracy,
        }


def hardest_rivals(errors: np.ndarray, labels: np.ndarray, num_rivals: int) -> Tensor:
    """The classes whose prompts fit each class's own photographs best besides its own.

    Args:
        errors: (image, class, timestep) of the exemplars under the present prompts.
        labels: int64 (image,).
        num_rivals: How many a class; cut to the number of other classes.

    Returns:
        int64 (class, rival), the hardest first.
    """
    relative = errors / errors.mean(axis=1, keepdims=True)
    profile = relative.mean(axis=2)
    num_classes = errors.shape[1]
    fit = np.stack([profile[labels == label].mean(0) for label in range(num_classes)])
    np.fill_diagonal(fit, np.inf)
    return torch.from_numpy(np.argsort(fit, axis=1, kind="stable")[:, : min(num_rivals, num_classes - 1)].copy())
