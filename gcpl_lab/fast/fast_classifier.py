"""The diffusion classifier with fewer and cheaper denoiser evaluations; each shortcut can be switched off.

Exact shortcuts change nothing but the order of the arithmetic: the part of the denoiser before the first
cross-attention runs once for each (image, t, ε), and the prompts' keys and values are made once. Statistical ones
change what is looked at: telling (t, ε) chosen on support images, balanced noises, rivals dropped as soon as the lead
over them is large enough, classes shortlisted by CLIP, look-alike classes judged together first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.special import log_softmax, ndtri, softmax
from scipy.stats import qmc
from torch import Tensor

from gcpl_lab.errors import DataError
from gcpl_lab.fast.racing import Plan, Stopping, group_prompts, learn_plan, race
from gcpl_lab.fast.shared_prefix import SharedDenoiser
from gcpl_lab.gcpl.classifier import DiffusionClassifier, Evidence, spaced_timesteps
from gcpl_lab.models.diffusion import FrozenDiffusion


@dataclass(frozen=True)
class Shortcuts:
    """What a :class:`FastClassifier` leaves out. ``Shortcuts.none()`` is the plain classifier.

    Attributes:
        share_prefix: Exact. Run what comes before the first cross-attention once for each (image, t, ε).
        cache_keys: Exact. Make keys and values of every prompt once.
        choose_samples: Take the (t, ε) that tell most on the support images, instead of a random order.
        noise: ``"independent"``; ``"antithetic"``: each noise is used with both signs at one timestep; or
            ``"stratified"``: a scrambled Sobol sequence, which spreads every coordinate evenly.
        stopping: ``"none"``; ``"posterior"`` drops a rival once the leader is ahead by a margin found on the support
            images; ``"e_process"`` once a bet on the paired differences has paid off; ``"empirical_bernstein"`` once
            a bound on their mean is above 0.
        error_rate: Share of images that the stopping rule may decide wrongly where all evidence decides rightly.
        shortlist: Leave out classes that CLIP finds unlikely (needs CLIP's scores).
        coverage: Share of the support images which all classes and steps decide rightly that shortlist, tree and probes
            keep right, each.
        class_tree: Judge branches of look-alike classes by one of them first: for many classes.
        tree_steps: (t, ε) for that.
        probes: Let the errors under a few prompts foretell those of all others: for many classes.
        max_steps: Most (t, ε) an image is judged by.
        standard_errors: Fewer are taken where their log-loss on held-out support images is within this many standard
            errors of the least: 0 for the best answer, 1 for nearly as good a one at less cost.
    """

    share_prefix: bool = True
    cache_keys: bool = True
    choose_samples: bool = True
    noise: Literal["independent", "antithetic", "stratified"] = "independent"
    stopping: Stopping = "posterior"
    error_rate: float = 0.02
    shortlist: bool = True
    coverage: float = 0.98
    class_tree: bool = False
    tree_steps: int = 2
    probes: bool = False
    max_steps: int = 12
    standard_errors: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("noise", ("independent", "antithetic", "stratified")), ("stopping", get_args(Stopping))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")

    @classmethod
    def none(cls, **changes: Any) -> Shortcuts:
        """No shortcut but those given."""
        plain = cls(share_prefix=False, cache_keys=False, choose_samples=False, stopping="none", shortlist=False)
        return replace(plain, **changes)

    @classmethod
    def exact(cls, num_prompts: int, batch_size: int) -> Shortcuts:
        """The shortcuts that change nothing but the rounding.

        Kept keys and values grow with the number of prompts, and what a pass needs with ``batch_size``; they are kept
        while there are no more prompts than evaluations in a pass, so that they are a small part of its memory.
        """
        return cls.none(share_prefix=True, cache_keys=num_prompts <= batch_size)


@dataclass(frozen=True)
class FastEvidence(Evidence):
    """Evidence of a race, with its verdict.

    ``errors`` are NaN where nothing was evaluated: classes that were dropped, and all of an image that was decided
    without looking.

    Attributes:
        logits: float64 (image, class), calibrated on the support images; larger is likelier.
        equivalent_evaluations: The cost in whole denoiser evaluations, by FLOPs: shared parts count once.
    """

    logits: np.ndarray
    equivalent_evaluations: float

    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, (image, class)."""
        result: np.ndarray = softmax(self.logits, axis=1)
        return result


class FastClassifier(DiffusionClassifier):
    """A diffusion classifier that does less for the same answer.

    ``exact`` and ``staged`` work as in the plain classifier, with the exact shortcuts. ``calibrate`` learns the
    statistical ones from labelled images, and ``classify`` uses them.

    Example:
        >>> fast = FastClassifier(diffusion, hidden, bfloat16=True)
        >>> fast.calibrate(support_latents, support_labels, clip_scores=support_logits)
        >>> fast.classify(latents, clip_scores=logits).logits.argmax(1)

    Attributes:
        shortcuts: Which are on.
        plan_: What ``calibrate`` learned.
        calibration_evaluations_: What that cost.
    """

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        hidden: Tensor,
        *,
        shortcuts: Shortcuts | None = None,
        pool_size: int = 32,
        timestep_range: tuple[float, float] = (0.0, 1.0),
        **settings: Any,
    ) -> None:
        """Keep prompts and settings.

        Args:
            diffusion: The frozen model.
            hidden: Hidden states of the class prompts, (class, context length, dim).
            shortcuts: By default all but the class tree.
            pool_size: (t, ε) that ``calibrate`` chooses from.
            timestep_range: Part of the noise schedule; all of it by default, since the telling part is found.
            **settings: Further ones of :class:`DiffusionClassifier`.
        """
        super().__init__(diffusion, hidden, timestep_range=timestep_range, **settings)
        if pool_size < 1:
            raise ValueError(f"pool_size is {pool_size}; expected 1 or more")
        self.shortcuts, self.pool_size = shortcuts or Shortcuts(), pool_size

    # ------------------------------------------------------------------------------------- exact shortcuts

    @cached_property
    def shared(self) -> SharedDenoiser:
        """What the prompts share; its ``statement`` says it in words."""
        return SharedDenoiser(
            self.diffusion, self.hidden, share_prefix=self.shortcuts.share_prefix, cache_keys=self.shortcuts.cache_keys
        )

    def _predict(
        self, latents: Tensor, noises: Tensor, timesteps: Tensor, image: Tensor, label: Tensor, sample: Tensor
    ) -> Tensor:
        # Each (image, sample) is one row, however many classes ask for it.
        found, rows = torch.unique(image * len(timesteps) + sample, return_inverse=True)
        images, samples = found // len(timesteps), found % len(timesteps)
        device = self.diffusion.device
        noisy = self.diffusion.add_noise(latents[images].to(device), noises[samples].to(device), timesteps[samples])
        return self.shared.predict_noise(noisy, timesteps[samples], rows, label)

    def _errors(self, triples: Tensor, latents: Tensor, timesteps: Tensor, noises: Tensor) -> Tensor:
        if not self.shared.shares_prefix:
            return super()._errors(triples, latents, timesteps, noises)
        # In one pass as many classes of a row as there are.
        order = torch.argsort(triples[:, 0] * len(timesteps) + triples[:, 2], stable=True)
        errors = super()._errors(triples[order], latents, timesteps, noises)
        result = torch.empty_like(errors)
        result[order] = errors
        return result

    # ------------------------------------------------------------------------------- statistical shortcuts

    def _noises(self, num_samples: int) -> Tensor:
        kind = self.shortcuts.noise
        if kind == "independent":
            return super()._noises(num_samples)
        if kind == "antithetic":
            half = super()._noises((num_samples + 1) // 2)
            return torch.stack([half, -half], dim=1).flatten(0, 1)[:num_samples]
        shape = self.diffusion.latent_shape
        points = qmc.Sobol(int(np.prod(shape)), scramble=True, rng=self.seed).random(_power_of_two(num_samples))
        uniform = points[:num_samples].clip(1e-6, 1 - 1e-6)
        return torch.from_numpy(ndtri(uniform)).float().reshape(num_samples, *shape)

    def _timesteps(self, num_samples: int) -> Tensor:
        if self.shortcuts.noise != "antithetic":
            return super()._timesteps(num_samples)
        pairs = spaced_timesteps(self.diffusion.num_timesteps, (num_samples + 1) // 2, self.timestep_range)
        return pairs.repeat_interleave(2)[:num_samples]

    def calibrate(self, latents: Tensor, labels: np.ndarray, clip_scores: np.ndarray | None = None) -> FastClassifier:
        """Learn the statistical shortcuts from support images; never give it test images.

        Args:
            latents: z0, (image, channel, height, width), scaled.
            labels: int64 (image,).
            clip_scores: Logits (image, class) of CLIP for these images, not trained on them (zero-shot ones, or of
                held-out folds): the shortlist is made from them and they are joined with the denoiser's evidence.

        Returns:
            Itself.
        """
        labels = np.asarray(labels)
        if len(labels) != len(latents):
            raise DataError(f"{len(latents)} latents and {len(labels)} labels; expected one label each")
        prior = self._prior(clip_scores, len(latents))
        pool = self.exact(latents, self.pool_size)
        self.calibration_evaluations_ = pool.num_evaluations
        return self.plan_from(pool, labels, prior)

    def plan_from(self, pool: Evidence, labels: np.ndarray, prior: np.ndarray | None = None) -> FastClassifier:
        """The second half of :meth:`calibrate`: learn from evidence on the pool that is known already.

        Args:
            pool: ``exact(latents, pool_size)`` of support images.
            labels: int64 (image,).
            prior: CLIP's log-probabilities (image, class).
        """
        cuts = self.shortcuts
        self.plan_: Plan = learn_plan(
            pool.errors,
            labels,
            prior=prior,
            max_steps=cuts.max_steps,
            choose=cuts.choose_samples,
            standard_errors=cuts.standard_errors,
            stopping=cuts.stopping,
            error_rate=cuts.error_rate,
            shortlist=cuts.shortlist,
            coverage=cuts.coverage,
            tree=group_prompts(self.hidden.float().cpu().numpy()) if cuts.class_tree else None,
            tree_steps=cuts.tree_steps,
            probes=cuts.probes,
            seed=self.seed,
        )
        return self

    def classify(self, latents: Tensor, clip_scores: np.ndarray | None = None) -> FastEvidence:
        """Decide with the calibrated shortcuts.

        Args:
            latents: z0, (image, channel, height, width), scaled.
            clip_scores: As for :meth:`calibrate`.
        """
        if not hasattr(self, "plan_"):
            raise DataError("this classifier is not calibrated; call calibrate(latents, labels) with support images")
        plan, num_images = self.plan_, len(latents)
        chosen = torch.from_numpy(plan.samples)
        timesteps, noises = self._timesteps(self.pool_size)[chosen], self._noises(self.pool_size)[chosen]

        def ask(triples: np.ndarray) -> np.ndarray:
            return self._errors(torch.from_numpy(triples), latents, timesteps, noises).numpy()

        outcome = race(ask, plan, num_images, self.num_classes, self._prior(clip_scores, num_images))
        cost = self.shared.equivalent_evaluations(outcome.num_pairs, outcome.num_rows)
        return FastEvidence(outcome.errors, timesteps.numpy(), outcome.num_pairs, outcome.logits, cost)

    def _prior(self, clip_scores: np.ndarray | None, num_images: int) -> np.ndarray | None:
        if clip_scores is None:
            return None
        if clip_scores.shape != (num_images, self.num_classes):
            raise DataError(
                f"clip_scores have the shape {clip_scores.shape}; expected ({num_images}, {self.num_classes}), one "
                "logit an image and class"
            )
        result: np.ndarray = log_softmax(np.asarray(clip_scores, np.float64), axis=1)
        return result


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
