"""Fewer denoiser evaluations for the same decision: a shortlist by CLIP, then a race that drops who is far behind.

A :class:`Plan` is learned from labelled support images by cross-validation: which (t, ε) tell most, how many are of
use, which classes CLIP rules out, and at which lead a rival is dropped. :class:`Race` follows it. Shortcuts that were
tried and left out, and what they gave, are listed in ``benchmarks/README.md``.

Gain: a fiftieth and less of the published evaluations at equal accuracy (``benchmarks/classifier_cost.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor

from gcpl_lab.data.episodes import cross_validation_folds
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.calibration import FittedLogits, fit_logits, fit_temperature, log_losses

MARGINS = np.geomspace(0.05, 20.0, 60)
"""Leads in logits that are tried as the lead at which a rival is dropped."""

COVERAGE = 0.98
"""Share of the support images that all evidence decides rightly whose true class the shortlist must keep."""


@dataclass(frozen=True)
class RaceEvidence:
    """What a race found out.

    Attributes:
        errors: float32 (image, class, step); NaN where nothing was evaluated.
        timesteps: int64 (step,).
        num_evaluations: Denoiser evaluations spent, all images together.
        logits: float64 (image, class), calibrated on the support images; a class that was dropped stands as far behind
            the winner as it was then.
    """

    errors: np.ndarray
    timesteps: np.ndarray
    num_evaluations: int
    logits: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What a race does, learned from support images.

    Attributes:
        samples: int64 (step,): which of the pool's (t, ε) each step looks at.
        scales: (step,): spread of the errors there; an error is divided by it, so that all steps count alike.
        fits: How the mean scaled error after 1, 2, … steps (and the prior) becomes logits.
        prior_fit: How the prior alone does; None without a prior.
        margin: Lead in logits at which a rival is dropped.
        shortlist_margin: Classes this far behind in the prior's logits are never evaluated; inf keeps all.
        temperature: Factor on the logits in the end, as an image stops where its lead happens to be large.
        measured: Shares and means that cross-validation measured on the support images.
    """

    samples: np.ndarray
    scales: np.ndarray
    fits: tuple[FittedLogits, ...]
    prior_fit: FittedLogits | None
    margin: float
    shortlist_margin: float
    temperature: float
    measured: dict[str, float]

    def logits(self, errors: np.ndarray, prior: np.ndarray | None, num_steps: int) -> np.ndarray:
        """After the first steps (0: of the prior alone), (image, class); NaN where a class was not evaluated."""
        if num_steps == 0:
            return np.zeros(errors.shape[:2]) if self.prior_fit is None else self.prior_fit([_given(prior)])
        source = -(errors[:, :, :num_steps] / self.scales[:num_steps]).mean(axis=2, dtype=np.float64)
        seen = ~np.isnan(source)
        sources = [np.where(seen, source, 0.0), *([] if prior is None else [prior])]
        return np.where(seen, self.fits[num_steps - 1](sources), np.nan)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, which has no infinity: a margin that drops nobody is None."""
        return {
            "samples": self.samples.tolist(),
            "scales": self.scales.tolist(),
            "fits": [fit.as_dict() for fit in self.fits],
            "prior_fit": None if self.prior_fit is None else self.prior_fit.as_dict(),
            "margin": _finite(self.margin),
            "shortlist_margin": _finite(self.shortlist_margin),
            "temperature": self.temperature,
            "measured": {name: _finite(value) for name, value in self.measured.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], num_classes: int, pool_size: int) -> Plan:
        """Back from JSON, for ``num_classes`` prompts and a pool of ``pool_size`` (t, ε).

        Raises:
            KeyError, TypeError, ValueError: Something is missing or does not fit, naming it.
        """
        if values.get("tree") or values.get("probes") or values.get("stopping", "posterior") != "posterior":
            raise ValueError("the plan was calibrated with shortcuts that this version no longer has")
        samples, scales = np.asarray(values["samples"], np.int64), np.asarray(values["scales"], float)
        known = np.unique(samples)
        if not len(samples) or known[0] < 0 or known[-1] >= pool_size or len(known) < len(samples):
            raise ValueError(
                f"the plan's samples are {samples.tolist()}; expected different ones of 0 to {pool_size - 1}"
            )
        if len(scales) != len(samples) or not (scales > 0).all():
            raise ValueError(f"the plan's scales are {scales.tolist()}; expected {len(samples)} numbers above 0")
        prior_fit = None if values["prior_fit"] is None else FittedLogits.from_dict(values["prior_fit"])
        fits = tuple(map(FittedLogits.from_dict, values["fits"]))
        if len(fits) != len(samples):
            raise ValueError(f"the plan has {len(fits)} fits; expected one for each of its {len(samples)} samples")
        num_sources = 1 if prior_fit is None else 2
        for fit, wanted in [*((fit, num_sources) for fit in fits), *([(prior_fit, 1)] if prior_fit else [])]:
            if fit.weights.shape != (wanted,) or fit.offsets.shape != (num_classes,):
                raise ValueError(
                    f"a fit of the plan has {fit.weights.size} weights and {fit.offsets.size} offsets; expected "
                    f"{wanted} and {num_classes}"
                )
        margin, shortlist = (
            np.inf if values[name] is None else float(values[name]) for name in ("margin", "shortlist_margin")
        )
        measured = dict(values["measured"])
        return cls(samples, scales, fits, prior_fit, margin, shortlist, float(values["temperature"]), measured)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _given(prior: np.ndarray | None) -> np.ndarray:
    if prior is None:
        raise DataError("CLIP's scores are missing; the plan was learned with them")
    return prior


class Race:
    """A diffusion classifier that does less for the same answer.

    Attributes:
        plan_: What :meth:`plan_from` learned.
    """

    def __init__(self, classifier: Any, *, pool_size: int = 32, error_rate: float = 0.02, max_steps: int = 12) -> None:
        """Keep the settings.

        Args:
            classifier: A :class:`~gcpl_lab.gcpl.classifier.DiffusionClassifier`, which gives the errors.
            pool_size: (t, ε) that calibration chooses from, 1 or more.
            error_rate: Share of images that the stopping rule may decide wrongly where all evidence decides rightly.
            max_steps: Most (t, ε) an image is judged by, 1 or more.
        """
        if pool_size < 1 or max_steps < 1:
            raise ValueError(f"pool_size is {pool_size} and max_steps {max_steps}; expected 1 or more")
        if not 0 < error_rate < 1:
            raise ValueError(f"error_rate is {error_rate}; expected a share between 0 and 1")
        self.classifier, self.pool_size = classifier, pool_size
        self.error_rate, self.max_steps = error_rate, max_steps
        self.plan_: Plan | None = None

    def with_passes(self, batch_size: int) -> Race:
        """The same race, from now on with passes of this many evaluations."""
        self.classifier.batch_size = batch_size
        return self

    def plan_from(self, errors: np.ndarray, labels: np.ndarray, clip_scores: np.ndarray | None = None) -> Race:
        """Learn the plan from support images that the prompts have not seen; returns itself.

        Args:
            errors, labels: (image, class, pool) and int64 (image,).
            clip_scores: Zero-shot logits (image, class) of CLIP: the shortlist is made from them, and they are joined
                with the denoiser's evidence.
        """
        prior = self._prior(clip_scores, len(labels))
        self.plan_ = learn_plan(
            errors,
            np.asarray(labels),
            prior=prior,
            max_steps=self.max_steps,
            error_rate=self.error_rate,
            seed=self.classifier.seed,
        )
        return self

    def classify(self, latents: Tensor, clip_scores: np.ndarray | None = None) -> RaceEvidence:
        """Decide about scaled z0 (image, channel, height, width) by the plan, with CLIP's logits if it wants them."""
        if self.plan_ is None:
            raise DataError("this race has no plan; call plan_from(errors, labels) with support images")
        plan, classifier, num_images = self.plan_, self.classifier, len(latents)
        prior = self._prior(clip_scores, num_images)
        if (prior is None) != (plan.prior_fit is None):
            said = "missing" if prior is None else "given"
            raise DataError(f"CLIP's scores are {said}; the plan was learned the other way")
        chosen = torch.from_numpy(plan.samples)
        timesteps, noises = (each[chosen] for each in classifier.samples(self.pool_size))
        errors = np.full((num_images, classifier.num_classes, len(plan.samples)), np.nan, np.float32)

        def logits_after(num_steps: int, running: np.ndarray) -> np.ndarray:
            triples = np.argwhere(running)
            triples = np.column_stack([triples, np.full(len(triples), num_steps - 1)])
            found = classifier.errors(torch.from_numpy(triples), latents, timesteps, noises)
            errors[tuple(triples.T)] = found.numpy()
            return plan.logits(errors, prior, num_steps)

        first = plan.logits(errors, prior, 0)
        logits, spent = run_race(first, logits_after, len(plan.samples), plan.margin, plan.shortlist_margin)
        return RaceEvidence(errors, timesteps.numpy(), int(spent.sum()), plan.temperature * logits)

    def _prior(self, clip_scores: np.ndarray | None, num_images: int) -> np.ndarray | None:
        if clip_scores is None:
            return None
        if clip_scores.shape != (num_images, self.classifier.num_classes):
            raise DataError(
                f"clip_scores have the shape {clip_scores.shape}; expected ({num_images}, "
                f"{self.classifier.num_classes}), one logit an image and class"
            )
        result: np.ndarray = log_softmax(np.asarray(clip_scores, np.float64), axis=1)
        return result


def run_race(
    first: np.ndarray,
    logits_after: Callable[[int, np.ndarray], np.ndarray],
    num_steps: int,
    margin: float,
    shortlist_margin: float = np.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """All images step by step together, each with the classes that are still in.

    Args:
        first: Logits (image, class) before anything was looked at.
        logits_after: Logits (image, class) after 1, 2, … steps, of the classes that are running, bool (image, class).
        num_steps: At most.
        margin: Lead at which a rival is dropped.
        shortlist_margin: Classes this far behind in ``first`` are out from the beginning.

    Returns:
        Logits (image, class), and evaluations (image,).
    """
    active = shortlisted(first, shortlist_margin)
    behind = np.where(active, 0.0, first - first.max(axis=1, keepdims=True))  # of those dropped, when they were
    logits, spent = np.where(active, first, -np.inf), np.zeros(len(first), np.int64)
    for step in range(1, num_steps + 1):
        running = active & (active.sum(axis=1, keepdims=True) > 1)
        if not running.any():
            break
        spent += running.sum(axis=1)
        logits = np.where(running, logits_after(step, running), logits)
        best = np.where(active, logits, -np.inf).max(axis=1, keepdims=True)
        dropped = running & ~(logits >= best - margin)
        behind = np.where(dropped, logits - best, behind)
        active &= ~dropped
    best = np.where(active, logits, -np.inf).max(axis=1, keepdims=True)
    return np.where(active, logits, best + np.minimum(behind, 0.0)), spent


def shortlisted(logits: np.ndarray, margin: float) -> np.ndarray:
    """Which classes (image, class) are at most ``margin`` behind the best."""
    result: np.ndarray = logits >= logits.max(axis=1, keepdims=True) - margin
    return result


def learn_plan(
    errors: np.ndarray,
    labels: np.ndarray,
    *,
    prior: np.ndarray | None = None,
    max_steps: int = 12,
    error_rate: float = 0.02,
    seed: int = 0,
) -> Plan:
    """Learn a race from labelled images whose errors on a pool of (t, ε) are all known.

    Choices are made on folds that were held out while the rest was fitted: the number of steps (the fewest within one
    standard error of the least log-loss), the shortlist (its margin keeps the true class of ``COVERAGE`` of the images
    that all evidence decides rightly) and the lead at which a rival is dropped (the least at which at most
    ``error_rate`` of the images end wrongly that all classes and steps decide rightly). An image that all evidence
    decides wrongly has nothing to lose.

    Args:
        errors, labels: (image, class, pool) and int64 (image,).
        prior: (image, class), CLIP's log-probabilities.
        max_steps, error_rate: See :class:`Race`.
        seed: Of the folds.
    """
    num_steps, rows = min(max_steps, errors.shape[2]), np.arange(len(labels))
    # One penalty for all fits: it depends on the numbers of images and classes, hardly on what is fitted.
    plain = -(errors / np.maximum(errors.mean(axis=(0, 1)), 1e-12)).mean(axis=2, dtype=np.float64)
    penalty = fit_logits([plain, *([] if prior is None else [prior])], labels, seed=seed).penalty
    table = np.empty((num_steps + 1, *errors.shape[:2]))  # held-out logits after 0, 1, … steps
    for inside, outside in _folds(labels, seed):
        fold = _fit_steps(errors[inside], labels[inside], _part(prior, inside), num_steps, penalty)
        seen = errors[outside][:, :, fold.samples]
        for step in range(num_steps + 1):
            table[step, outside] = fold.logits(seen, _part(prior, outside), step)
    losses = log_losses(table, labels)
    steps = _fewest_steps(losses)
    right = table[steps].argmax(axis=1) == labels
    shortlist_margin = np.inf
    if prior is not None:
        behind = (table[0].max(axis=1) - table[0][rows, labels])[right]
        shortlist_margin = float(np.quantile(behind, COVERAGE, method="higher")) + 1e-9 if len(behind) else np.inf
    active = shortlisted(table[0], shortlist_margin)
    margin, logits, spent = _least_margin(table[: steps + 1], labels, active, shortlist_margin, error_rate)
    whole = _fit_steps(errors, labels, prior, num_steps, penalty)
    measured = {
        "held_out_log_loss": float(losses[steps].mean()),
        "held_out_accuracy": float(right.mean()),
        "shortlist_size": float(active.sum(axis=1).mean()),
        "shortlist_recall": float(active[rows, labels].mean()),
        "race_accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "race_evaluations": float(spent.mean()),
    }
    return Plan(
        whole.samples[:steps],
        whole.scales[:steps],
        whole.fits[:steps],
        whole.prior_fit,
        margin,
        shortlist_margin,
        fit_temperature(logits, labels),
        measured,
    )


def _part(prior: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if prior is None else prior[rows]


def _folds(labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    if smallest >= 2:
        return cross_validation_folds(labels, min(4, smallest), seed)
    # With one image of a class there is nothing to spread: images are dealt out at random.
    fold_of = np.random.default_rng([seed, 37]).permutation(len(labels)) % 4
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(4)]


def _least_margin(
    table: np.ndarray, labels: np.ndarray, active: np.ndarray, shortlist_margin: float, error_rate: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """The least margin that loses few images, and the logits and evaluations of the race with it."""
    complete = np.where(active, table[-1], -np.inf).argmax(axis=1) == labels
    for margin in (*MARGINS, np.inf):
        logits, spent = run_race(table[0], lambda step, _: table[step], len(table) - 1, margin, shortlist_margin)
        if (complete & (logits.argmax(axis=1) != labels)).mean() <= error_rate:
            break
    return float(margin), logits, spent


def _fit_steps(
    errors: np.ndarray, labels: np.ndarray, prior: np.ndarray | None, num_steps: int, penalty: float
) -> Plan:
    """A plan that drops nobody: samples in the order of what they tell, and fits after each."""
    priors = [] if prior is None else [prior]
    prior_fit = fit_logits(priors, labels, penalty=penalty) if priors else None
    order = choose_samples(errors, labels, num_steps, prior_fit(priors) if prior_fit else None)
    chosen = errors[:, :, order]
    scales = np.maximum((chosen - chosen.mean(axis=1, keepdims=True)).std(axis=(0, 1), dtype=np.float64), 1e-12)
    means = [-(chosen / scales)[:, :, :step].mean(axis=2, dtype=np.float64) for step in range(1, num_steps + 1)]
    fits = tuple(fit_logits([mean, *priors], labels, penalty=penalty) for mean in means)
    return Plan(order, scales, fits, prior_fit, np.inf, np.inf, 1.0, {})


def choose_samples(errors: np.ndarray, labels: np.ndarray, count: int, base: np.ndarray | None = None) -> np.ndarray:
    """The most telling (t, ε) of a pool, greedily: each lowers the log-loss most, given those before it.

    Args:
        errors, labels: (image, class, pool) and int64 (image,).
        count: How many.
        base: Logits (image, class) that are known without looking.
    """
    centred = errors - errors.mean(axis=1, keepdims=True, dtype=np.float64)
    centred /= np.maximum(centred.std(axis=(0, 1)), 1e-12)
    centred -= centred.mean(axis=0)  # some prompts denoise all images well; an offset will take that away
    total, chosen, temperatures = np.zeros(errors.shape[:2]), list[int](), np.geomspace(0.2, 30.0, 7)
    for _ in range(count):
        best, lowest = -1, np.inf
        for sample in np.setdiff1d(np.arange(errors.shape[2]), chosen):
            mean = (total + centred[:, :, sample]) / (len(chosen) + 1)
            logits = (0.0 if base is None else base) - temperatures[:, None, None] * mean
            loss = log_losses(logits, labels).mean(axis=1).min()
            if loss < lowest:
                best, lowest = int(sample), float(loss)
        chosen.append(best)
        total += centred[:, :, best]
    return np.array(chosen, np.int64)


def _fewest_steps(losses: np.ndarray) -> int:
    """The fewest steps, at least 1, whose loss (step, image) is within one standard error of the least."""
    best = 1 + int(losses[1:].mean(axis=1).argmin())
    for step in range(1, best):
        difference = losses[step] - losses[best]
        if difference.mean() <= difference.std(ddof=1) / np.sqrt(len(difference)):
            return step
    return best
