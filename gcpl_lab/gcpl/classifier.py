"""The diffusion classifier: an image belongs to the class whose prompt denoises it best.

Every class sees the same (t, ε); timesteps are evenly spaced and the noises are drawn once from the seed,
for all images, so that error profiles of different images can be compared.

Source: Li et al. 2023, https://arxiv.org/abs/2303.16203
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp
from torch import Tensor

from gcpl_lab.data.episodes import cross_validation_folds
from gcpl_lab.errors import TrainingError
from gcpl_lab.models.diffusion import FrozenDiffusion

Schedule = Literal["nested", "published"]
Weighting = Literal["relative", "absolute"]


@dataclass(frozen=True)
class Evidence:
    """What the classifier saw of some images.

    Attributes:
        errors: float32 (image, class, sample): mean (absolute or squared) error of the predicted noise; NaN
            where a class had been dropped before that sample.
        timesteps: int64 (sample,).
        num_evaluations: Denoiser evaluations spent, all images together.
    """

    errors: np.ndarray
    timesteps: np.ndarray
    num_evaluations: int


def spaced_timesteps(num_timesteps: int, num_samples: int, timestep_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Evenly spaced timesteps, starting half a spacing into the range (from T/n/2 in the published schedule).

    Returns:
        int64 (sample,), increasing.
    """
    low, high = timestep_range
    # Multiplied before it is divided: whole numbers stay whole, and are not cut to the one below.
    spacings = (high - low) * num_timesteps * (torch.arange(num_samples, dtype=torch.float64) + 0.5) / num_samples
    return (low * num_timesteps + spacings).long().clamp(max=num_timesteps - 1)


def class_scores(errors: np.ndarray, weighting: Weighting = "relative") -> np.ndarray:
    """One number for each class, larger is better: minus the mean error over the samples.

    Args:
        errors: (image, class, sample); classes with NaN were dropped and get −inf.
        weighting: ``"relative"`` divides every sample's errors by their mean over the classes that are left,
            so that all timesteps count alike; ``"absolute"`` is the published mean.

    Returns:
        (image, class).
    """
    if weighting == "relative":
        errors = errors / np.nanmean(errors, axis=1, keepdims=True)
    return np.where(np.isnan(errors).any(axis=2), -np.inf, -errors.mean(axis=2))


def probabilities(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax over classes of ``temperature`` × scores, (image, class)."""
    logits = temperature * (scores - scores.max(axis=1, keepdims=True)).astype(np.float64)
    exponentials = np.exp(logits)
    result: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least log-loss on labelled images (a support set, never the test set).

    Args:
        scores: (image, class).
        labels: int64 (image,).
    """

    def log_loss(log_temperature: float) -> float:
        chosen = probabilities(scores, float(np.exp(log_temperature)))[np.arange(len(labels)), labels]
        return float(-np.log(np.clip(chosen, 1e-12, None)).mean())

    return float(np.exp(minimize_scalar(log_loss, bounds=(-2.0, 12.0), method="bounded").x))


def fit_offsets(scores: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[float, np.ndarray]:
    """Temperature and one offset a class with the least regularised log-loss on labelled images.

    Some prompts denoise whole families better than their neighbours' prompts do and win too often; an offset
    takes that head start away. The penalty on offsets is chosen by cross-validated log-loss.

    Args:
        scores: (image, class) of the support set, never the test set.
        labels: int64 (image,).
        seed: Of the folds.

    Returns:
        The temperature, and offsets float64 (class,) in units of the scores with mean zero: add them to scores.
    """
    penalty, _ = _cross_validated_penalty(scores, labels, seed)
    found = _minimise_log_loss(scores, labels, np.log(fit_temperature(scores, labels)), penalty)
    temperature = float(np.exp(found[0]))
    return temperature, (found[1:] - found[1:].mean()) / temperature


def _cross_validated_penalty(scores: np.ndarray, labels: np.ndarray, seed: int) -> tuple[float, float]:
    """The penalty on offsets with the least held-out log-loss, and that loss.

    Where a class has one image alone, nothing can be held out: the largest penalty, and an infinite loss.
    """
    smallest = int(np.bincount(labels, minlength=scores.shape[1]).min())
    if smallest < 2:
        return OFFSET_PENALTIES[-1], np.inf
    start = np.log(fit_temperature(scores, labels))
    folds = cross_validation_folds(labels, min(4, smallest), seed)
    losses = []
    for candidate in OFFSET_PENALTIES:
        held = np.empty(len(labels))
        for inside, outside in folds:
            found = _minimise_log_loss(scores[inside], labels[inside], start, candidate)
            held[outside] = _negative_log(scores[outside], labels[outside], found)
        losses.append(float(held.mean()))
    best = int(np.argmin(losses))
    return OFFSET_PENALTIES[best], losses[best]


@dataclass(frozen=True)
class Reading:
    """How the errors of a photograph become scores and probabilities.

    Attributes:
        weighting: Of the mean over (t, ε), see :func:`class_scores`.
        temperature: Factor on scores under the softmax.
        offsets: float64 (class,), added to the scores.
    """

    weighting: Weighting
    temperature: float
    offsets: np.ndarray

    def scores(self, errors: np.ndarray) -> np.ndarray:
        """Scores (image, class) of errors (image, class, sample); larger is better."""
        scores = class_scores(errors, self.weighting)
        return (scores + self.offsets).astype(scores.dtype)


WEIGHTINGS: tuple[Weighting, ...] = ("relative", "absolute")


def fit_reading(
    errors: np.ndarray,
    labels: np.ndarray,
    *,
    weighting: Weighting | Literal["chosen"] = "chosen",
    class_offsets: bool = True,
    seed: int = 0,
) -> Reading:
    """Temperature, offsets and, where asked for, the weighting with the least log-loss on labelled images.

    Args:
        errors: (image, class, sample) of a support set, never the test set.
        labels: int64 (image,).
        weighting: ``"chosen"`` tries both and keeps the one with less log-loss (with offsets: cross-validated).
        class_offsets: Fit one offset a class; False leaves them at 0.
        seed: Of the folds.
    """
    tried: tuple[Weighting, ...] = WEIGHTINGS if weighting == "chosen" else (weighting,)

    def held_out_loss(candidate: Weighting) -> float:
        scores = class_scores(errors, candidate)
        if class_offsets:
            return _cross_validated_penalty(scores, labels, seed)[1]
        start = np.concatenate([[np.log(fit_temperature(scores, labels))], np.zeros(scores.shape[1])])
        return float(_negative_log(scores, labels, start).mean())

    best = min(tried, key=held_out_loss) if len(tried) > 1 else tried[0]
    scores = class_scores(errors, best)
    if class_offsets:
        return Reading(best, *fit_offsets(scores, labels, seed))
    return Reading(best, fit_temperature(scores, labels), np.zeros(scores.shape[1]))


OFFSET_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
"""On the mean square of the offsets in logits; the largest leaves next to none."""


def _negative_log(scores: np.ndarray, labels: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    logits = np.exp(parameters[0]) * (scores - scores.max(axis=1, keepdims=True)) + parameters[1:]
    result: np.ndarray = logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return result


def _minimise_log_loss(scores: np.ndarray, labels: np.ndarray, start: float, penalty: float) -> np.ndarray:
    def objective(parameters: np.ndarray) -> float:
        return float(_negative_log(scores, labels, parameters).mean() + penalty * (parameters[1:] ** 2).mean())

    first = np.concatenate([[start], np.zeros(scores.shape[1])])
    bounds = [(-2.0, 12.0)] + [(None, None)] * scores.shape[1]
    found: np.ndarray = minimize(objective, first, method="L-BFGS-B", bounds=bounds).x
    return found


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
            bfloat16: Autocast the denoiser: faster where the processor has bfloat16 products; errors change in
                about the third digit, for all classes alike.
        """
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm is {norm!r}; expected 'l1' or 'l2'")
        self.diffusion, self.hidden, self.norm = diffusion, hidden.detach(), norm
        self.timestep_range, self.seed, self.batch_size = timestep_range, seed, max(1, batch_size)
        self.bfloat16 = bfloat16

    @property
    def num_classes(self) -> int:
        """How many prompts compete."""
        return len(self.hidden)

    def _timesteps(self, num_samples: int) -> Tensor:
        return spaced_timesteps(self.diffusion.num_timesteps, num_samples, self.timestep_range)

    def _noises(self, num_samples: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn((num_samples, *self.diffusion.latent_shape), generator=generator)

    def _predict(
        self, latents: Tensor, noises: Tensor, timesteps: Tensor, image: Tensor, label: Tensor, sample: Tensor
    ) -> Tensor:
        """Predicted noises of triples, one by one."""
        device = self.diffusion.device
        noisy = self.diffusion.add_noise(latents[image].to(device), noises[sample].to(device), timesteps[sample])
        return self.diffusion.predict_noise(noisy, timesteps[sample], self.hidden[label.to(device)])

    @torch.no_grad()
    def _errors(self, triples: Tensor, latents: Tensor, timesteps: Tensor, noises: Tensor) -> Tensor:
        """Errors of (image, class, sample) index triples int64 (count, 3), in bounded passes."""
        device, results = self.diffusion.device, []
        for image, label, sample in (chunk.unbind(1) for chunk in triples.split(self.batch_size)):
            noise = noises[sample].to(device)
            try:
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
                    predicted = self._predict(latents, noises, timesteps, image, label, sample)
            except torch.OutOfMemoryError as error:  # stays what it is: whoever can makes smaller passes
                error.add_note(
                    f"memory ran out with {len(image)} denoiser evaluations in one pass; lower batch_size "
                    f"(it is {self.batch_size})"
                )
                raise
            difference = (predicted - noise).flatten(1)
            results.append((difference.abs() if self.norm == "l1" else difference.square()).mean(1).cpu())
            if not bool(torch.isfinite(results[-1]).all()):
                raise TrainingError(
                    f"the denoiser's answer is not finite at a timestep from {int(timesteps[sample].min())} to "
                    f"{int(timesteps[sample].max())}, so no class can be judged; load the model in float32 or "
                    "bfloat16, and check the prompts for values that are not finite"
                )
        return torch.cat(results) if results else torch.empty(0)

    def exact(self, latents: Tensor, num_samples: int, progress: Callable[[int], None] | None = None) -> Evidence:
        """Every class on every sample.

        A pass holds whole images, or a part of one. So where two do not fit into a pass, the rounding of an image's
        errors depends on no other image: neither on what is judged beside it nor on the number of processes.

        Args:
            latents: z0, (image, channel, height, width), scaled.
            num_samples: (t, ε) pairs; timesteps evenly spaced over the range.
            progress: Called with the number of images that are done.
        """
        timesteps = self._timesteps(num_samples)
        noises = self._noises(num_samples)
        images_a_pass = max(1, self.batch_size // (self.num_classes * num_samples))
        parts = []
        for start in range(0, len(latents), images_a_pass):
            chunk = latents[start : start + images_a_pass]
            grid = torch.cartesian_prod(
                torch.arange(len(chunk)), torch.arange(self.num_classes), torch.arange(num_samples)
            ).reshape(-1, 3)
            errors = self._errors(grid, chunk, timesteps, noises)
            parts.append(errors.reshape(len(chunk), self.num_classes, num_samples))
            if progress:
                progress(start + len(chunk))
        found = torch.cat(parts).numpy() if parts else np.empty((0, self.num_classes, num_samples), np.float32)
        return Evidence(found, timesteps.numpy(), int(found.size))

    @torch.no_grad()
    def evidence_map(self, latent: Tensor, class_a: int, class_b: int, num_samples: int) -> Tensor:
        """Where in the picture the evidence for one class against another lies.

        Args:
            latent: z0, (channel, height, width), scaled.
            class_a: Index of a prompt.
            class_b: Index of another.
            num_samples: (t, ε) pairs that are averaged.

        Returns:
            float32 (height, width) of the latent: mean squared error under b minus that under a; positive
            speaks for a.
        """
        timesteps = self._timesteps(num_samples)
        noises = self._noises(num_samples).to(self.diffusion.device)
        noisy = self.diffusion.add_noise(latent.to(self.diffusion.device).expand_as(noises), noises, timesteps)
        squares = []
        for label in (class_a, class_b):
            hidden = self.hidden[label].expand(num_samples, -1, -1)
            squares.append((self.diffusion.predict_noise(noisy, timesteps, hidden) - noises).square().mean(1))
        return (squares[1] - squares[0]).mean(0).cpu()

    def staged(
        self,
        latents: Tensor,
        to_keep: Sequence[int] = (5, 1),
        n_samples: Sequence[int] = (50, 500),
        progress: Callable[[int], None] | None = None,
        *,
        schedule: Schedule = "nested",
    ) -> Evidence:
        """The published procedure in stages: all classes on few samples, the best ones on more.

        Stage k evaluates the classes that are left, then keeps the ``to_keep[k]`` with the least mean error.
        ``class_scores(errors, "absolute")`` of the result is best for the class that was kept to the end.

        Args:
            latents: z0, (image, channel, height, width), scaled.
            to_keep: Classes left after each stage, not increasing; 1 in the end.
            n_samples: Samples of each class that is still in, after each stage; increasing.
            progress: Called with the number of images that are done.
            schedule: Which (t, ε) a stage takes, see :func:`stage_samples`: ``"nested"`` gives each class exactly
                ``n_samples[k]`` up to stage k; ``"published"`` is the released code's.

        Raises:
            ValueError: Stages of different length or order, or more samples than the published grid has timesteps.
        """
        _check_stages(to_keep, n_samples)
        total = n_samples[-1]
        timesteps = self._timesteps(total)
        if schedule == "published":
            timesteps = published_timesteps(self.diffusion.num_timesteps, total, self.timestep_range)
        noises = self._noises(total)
        stages = stage_samples(n_samples, schedule)
        errors = np.full((len(latents), self.num_classes, total), np.nan, np.float32)
        spent, images_a_pass = 0, max(1, 4 * self.batch_size // (self.num_classes * n_samples[0]))
        for start in range(0, len(latents), images_a_pass):
            part = errors[start : start + images_a_pass]  # a view: filled in place
            images = np.arange(len(part))[:, None, None]
            left = np.tile(np.arange(self.num_classes), (len(part), 1))  # (image, class that is still in)
            seen = np.empty(0, np.int64)
            for keep, samples in zip(to_keep, stages, strict=True):
                triples = np.broadcast_arrays(images, left[:, :, None], samples)
                grid = torch.from_numpy(np.stack(triples, axis=-1).reshape(-1, 3))
                found = self._errors(grid, latents[start : start + images_a_pass], timesteps, noises)
                part[tuple(triples)] = found.reshape(triples[0].shape).numpy()
                spent, seen = spent + len(grid), np.concatenate([seen, samples])
                means = part[images, left[:, :, None], seen].mean(axis=2)
                best = np.argsort(means, axis=1, kind="stable")[:, :keep]
                left = np.sort(np.take_along_axis(left, best, axis=1), axis=1)
            if progress:
                progress(start + len(part))
        return Evidence(errors, timesteps.numpy(), spent)


def stage_samples(n_samples: Sequence[int], schedule: Schedule = "nested") -> list[np.ndarray]:
    """Which of the last stage's samples each stage evaluates for the first time.

    The released code (Li et al., ``eval_prob_adaptive.py``) takes every (n_last // n_k)-th sample from half that
    spacing on for stage k and skips what an earlier stage had. With the two stages of the paper's short schedules the
    stages never overlap, and both schedules give the same counts. With three and more they overlap by chance:
    20, 50, 100, 500 samples a class become 20, 70, 150, 500, which for 101 classes and 20, 10, 5, 1 kept are 5,570
    evaluations instead of 5,120.

    Args:
        n_samples: Increasing; each class's samples after each stage.
        schedule: ``"nested"``: exactly so many, each stage's own taken evenly out of those that are left;
            ``"published"``: as the released code.

    Returns:
        One int64 (sample,) a stage, indices below ``n_samples[-1]``; together each index once.
    """
    if schedule not in ("nested", "published"):
        raise ValueError(f"schedule is {schedule!r}; expected 'nested' or 'published'")
    total = n_samples[-1]
    stages: list[np.ndarray] = []
    left = np.arange(total)
    for count in n_samples:
        if schedule == "published":
            wanted = np.arange(total // count // 2, total, total // count)[:count]
            taken = np.intersect1d(wanted, left)
        else:
            new = count - (total - len(left))
            taken = left[((np.arange(new) + 0.5) * len(left) / new).astype(np.int64)]
        stages.append(taken)
        left = np.setdiff1d(left, taken)
    return stages


def published_timesteps(
    num_timesteps: int, num_samples: int, timestep_range: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """The released code's grid: whole steps of T // n from half a step on, so it ends early where n does not divide T.

    300 samples of 1,000 timesteps reach 898; :func:`spaced_timesteps` reaches 998.

    Args:
        num_timesteps: T.
        num_samples: n.
        timestep_range: Part of the noise schedule, as fractions; the released code takes all of it.

    Returns:
        int64 (sample,), increasing.

    Raises:
        ValueError: There are fewer timesteps than samples: the step would be 0.

    Source: Li et al. 2023, https://arxiv.org/abs/2303.16203, ``eval_prob_adaptive.py``
    """
    low, high = (round(share * num_timesteps) for share in timestep_range)
    step = (high - low) // num_samples
    if step < 1:
        raise ValueError(
            f"n_samples ends with {num_samples}, and the range has {high - low} timesteps; the published grid has "
            f"whole steps between them, so expected at most {high - low} (schedule='nested' has no such bound)"
        )
    return low + torch.arange(step // 2, high - low, step)[:num_samples]


def _check_stages(to_keep: Sequence[int], n_samples: Sequence[int]) -> None:
    if len(to_keep) != len(n_samples) or not to_keep:
        raise ValueError(
            f"to_keep has {len(to_keep)} stages and n_samples {len(n_samples)}; expected the same, at least 1"
        )
    if any(b > a for a, b in pairwise(to_keep)) or min(to_keep) < 1:
        raise ValueError(f"to_keep is {tuple(to_keep)}; expected numbers of 1 or more that do not grow")
    if any(b <= a for a, b in pairwise(n_samples)) or min(n_samples) < 1:
        raise ValueError(f"n_samples is {tuple(n_samples)}; expected growing numbers of 1 or more")
