"""GCPLClassifier: class prompts learned through a frozen diffusion model, with the scikit-learn API."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.episodes import cross_validation_folds
from gcpl_lab.data.framing import choose_fit
from gcpl_lab.data.readers import iter_images
from gcpl_lab.evaluation.mirroring import choose_mirroring
from gcpl_lab.gcpl import fast_decision
from gcpl_lab.gcpl.calibration import fit_reading
from gcpl_lab.gcpl.checks import check_calibration, check_fit, name_of
from gcpl_lab.gcpl.encoding import read_exemplars
from gcpl_lab.gcpl.evidence import make_classifier
from gcpl_lab.gcpl.judge import PromptJudge
from gcpl_lab.gcpl.objectives import OBJECTIVES, Stage
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import check_writable, tensor_checksum
from gcpl_lab.training.device import checkpointed_activations, leave_device
from gcpl_lab.training.loop import StepRecord, TrainingConfig
from gcpl_lab.training.processes import all_reduce

__all__ = ["GCPLClassifier", "make_classifier"]

MAX_STATES = 100
"""Kept states of a long run; a checkpoint holds them all."""

MAX_TEMPERATURE_IMAGES = 160
"""Temperature and offsets have few degrees of freedom; more support images change them little."""


class GCPLClassifier(PromptJudge):
    """Learn one class prompt for each class through a frozen diffusion model, and classify by denoising error.

    Example:
        >>> model = GCPLClassifier(preset="tiny", objective="gcpl", seed=0)
        >>> model.fit(images, labels)                      # paths, PIL images or uint8 arrays
        >>> model.predict(others), model.predict_proba(others)

    Attributes:
        classes_: The distinct labels, sorted; columns of ``predict_proba`` are in this order.
        class_names_: The words the prompts started from, one a class.
        prompts_: The learned :class:`~gcpl_lab.gcpl.prompts.ClassPrompts`.
        temperature_: Fitted on the support images.
        offsets_: Added to the classes' scores, (class,), fitted with the temperature.
        weighting_: How errors are averaged: what the settings say, or chosen with the temperature.
        fit_: The square that is seen of an image, one of ``gcpl_lab.data.framing.FITS``; kept with the prompts.
        mirroring_: Whether mirror images were learned from, and what spoke against them.
        support_errors_, support_labels_: What the temperature was fitted on, (image, class, sample) and (image,); of a
            classifier that was loaded from a folder they are absent.
        history_, states_: See :class:`~gcpl_lab.training.estimator.PromptClassifier`; states are vectors (class, V,
            dim), after 1, 2, 4, 8 ... and every ``journey_every`` updates, of very long runs about ``MAX_STATES``.
        train_evaluations_: Denoiser evaluations spent on training since it was last started, by all processes.
        fast_: With ``classification="fast"`` the calibrated :class:`~gcpl_lab.fast.race.Race`.
    """

    def __init__(
        self,
        preset: str = "tiny",
        objective: str | Callable[..., Any] = "gcpl",
        num_vectors: int = 4,
        num_steps: int = 240,
        seed: int = 0,
        *,
        diffusion: FrozenDiffusion | None = None,
        **settings: Any,
    ) -> None:
        """Take the settings; nothing is loaded yet.

        Args:
            preset: Name of the frozen pair, or a folder of models.
            objective: A registered objective's name, or a class of your own.
            num_vectors: Learned vectors a class.
            num_steps: Updates.
            seed: Of everything random.
            diffusion: A loaded model to share between estimators.
            **settings: Further fields of :class:`~gcpl_lab.gcpl.settings.GCPLConfig`, and settings of objectives.
        """
        name = objective if isinstance(objective, str) else name_of(objective)
        settings = GCPLConfig.with_options(settings, OBJECTIVES)
        self.config = GCPLConfig(preset, name, num_vectors, num_steps=num_steps, seed=seed, **settings)
        self._diffusion = diffusion
        self.journey_every = 10

    def steps(
        self,
        images: Sequence[Any],
        labels: Sequence[Any] | np.ndarray,
        class_names: Sequence[str] | None = None,
        *,
        coarse_words: Sequence[str] | None = None,
        checkpoint_folder: str | Path | None = None,
        calibration: tuple[Sequence[Any], Sequence[Any] | np.ndarray] | None = None,
    ) -> Generator[StepRecord, bool | None, None]:
        """Learn the class prompts, one record an update, for plotting or stopping on the way; ``fit`` runs them all.

        Args:
            images: Paths, PIL images or uint8 arrays of any size.
            labels: One an image, of any sortable kind.
            class_names: Words for the classes in sorted order of their labels; by default the labels as text.
            coarse_words: One a class, for ``initial="coarse"``.
            checkpoint_folder: Where an interrupted fit leaves its state and goes on from.
            calibration: With ``classification="fast"``: further images and their labels that it is calibrated on, none
                of them among ``images`` (errors on what was learned from are too good) and none that will be tested
                on. Without them ``num_folds`` further trainings find out how held-out exemplars fare.

        Raises:
            DataError: Images, labels or names that do not fit together, naming the item.
            TrainingError: The loss stopped being finite.
        """
        classes, ids, names = check_fit(images, labels, class_names)
        if checkpoint_folder:
            check_writable(checkpoint_folder)
        self.fit_ = choose_fit(images, self.config.fit)
        held_out, scores = None, None
        if calibration is not None:
            check_calibration(self.config.classification, *calibration, classes)
            others, answers = calibration[0], np.searchsorted(classes, np.asarray(calibration[1]))
            held_out = self.encode(others), answers, self._clip_scores(others, names)
        elif self.config.classification == "fast":
            scores = self._clip_scores(images, names)
        exemplars = read_exemplars(self.diffusion, images, ids, self.fit_, self.encode_moments)
        if OBJECTIVES[self.config.objective].facts.get("reads_clip") and self._clip is not None:
            exemplars = replace(exemplars, features=self._clip.encode_views(iter_images(images, self.fit_)))
        if self.diffusion.device.type != "cpu":
            leave_device(self.diffusion.vae)
        given: dict[str, Any] = {"checkpoint_folder": checkpoint_folder, "calibration": held_out, "clip_scores": scores}
        yield from self.learn(exemplars, names, classes=classes, coarse_words=coarse_words, **given)

    def learn(
        self,
        exemplars: Exemplars,
        class_names: Sequence[str],
        *,
        classes: np.ndarray | None = None,
        coarse_words: Sequence[str] | None = None,
        warm_start: Tensor | None = None,
        checkpoint_folder: str | Path | None = None,
        calibration: tuple[Tensor, np.ndarray, np.ndarray | None] | None = None,
        clip_scores: np.ndarray | None = None,
    ) -> Generator[StepRecord, bool | None, None]:
        """Learn from images whose latents are cached already: train, then calibrate.

        Args:
            exemplars: Cached moments; labels are 0 to class − 1.
            class_names: One a class.
            classes: What ``predict`` answers; by default 0 to class − 1.
            coarse_words, checkpoint_folder: See :meth:`steps`.
            warm_start: Vectors (class, V, dim) of a run of the objective that this one starts from; its own is skipped.
            calibration: See :meth:`steps`: scaled latents, labels 0 to class − 1, and CLIP's scores or None.
            clip_scores: CLIP's zero-shot logits (exemplar, class), for ``classification="fast"``.
        """
        fast_wanted = self.config.classification == "fast"
        if fast_wanted and calibration is None:  # too few exemplars: rather now than at the end
            cross_validation_folds(exemplars.labels.numpy(), self.config.num_folds, self.config.seed)
        vars(self).setdefault("fit_", choose_fit((), self.config.fit))
        self.classes_ = np.arange(len(class_names)) if classes is None else np.asarray(classes)
        self.begin(class_names, coarse_words, warm_start)
        before = self.diffusion.num_denoiser_evaluations
        yield from self.train(exemplars, Path(checkpoint_folder) if checkpoint_folder else None)
        self.train_evaluations_ = int(all_reduce(torch.tensor(self.diffusion.num_denoiser_evaluations - before)))
        self._calibrate(exemplars)
        if fast_wanted:
            self.fast_ = fast_decision.calibrate(self, calibration, exemplars, coarse_words, clip_scores)

    def begin(
        self, class_names: Sequence[str], coarse_words: Sequence[str] | None = None, warm_start: Tensor | None = None
    ) -> None:
        """The prompts before the first update; nothing of an earlier fit is left."""
        config, diffusion = self.config, self.diffusion
        self.class_names_ = tuple(class_names)
        chosen = {name: getattr(config, name) for name in ("num_vectors", "templates", "initial", "seed")}
        prompts = ClassPrompts(diffusion, class_names, coarse_words=coarse_words, **chosen)
        self.prompts_ = prompts.to(diffusion.device)
        first = OBJECTIVES[config.objective].facts.get("starts_from")
        self._objectives = [name for name in (first, config.objective) if name]
        if warm_start is not None:
            self._objectives = [config.objective]
            with torch.no_grad():
                self.prompts_.vectors.copy_(warm_start)
        self.history_, self.states_ = [], {0: self.prompts_.vectors.detach().cpu().clone()}
        for name in ("temperature_", "fast_", "support_errors_", "support_labels_"):
            vars(self).pop(name, None)
        self.offsets_ = np.zeros(len(self.class_names_))
        # Until it is chosen: relative, which reads errors without offsets better.
        self.weighting_ = "absolute" if config.weighting == "absolute" else "relative"

    def train(self, exemplars: Exemplars, folder: Path | None = None) -> Generator[StepRecord, bool | None, None]:
        """The updates of each objective in turn."""
        self.mirroring_ = choose_mirroring(self.config.flip, exemplars.means, exemplars.labels, self.class_names_)
        with checkpointed_activations(self.diffusion.denoiser) if self.config.gradient_checkpointing else nullcontext():
            for name in self._objectives:
                if (yield from self._train_objective(name, exemplars, folder)):
                    return

    def _train_objective(
        self, name: str, exemplars: Exemplars, folder: Path | None
    ) -> Generator[StepRecord, bool | None, bool]:
        """One objective's updates; returns whether the caller ended them early."""
        config, entry = self.config, OBJECTIVES[name]
        stage: Stage = entry.facts.get("stage", Stage())
        more = {"clip": self._clip} if entry.facts.get("reads_clip") else {}
        objective = entry.target(self.diffusion, self.prompts_, **config.chosen(entry.defaults), **more)
        if hasattr(objective, "begin"):
            latents = self.diffusion.scale_latents(exemplars.means[0])
            labels = exemplars.labels.numpy()
            objective.begin(labels, lambda: self.errors(latents, config.num_samples, config.seed + 1))
        sampler = ExemplarSampler(
            self.diffusion,
            exemplars,
            batch_size=getattr(config, stage.batch_size),
            num_samples=getattr(config, stage.num_samples) if stage.num_samples else 1,
            timestep_range=self.timestep_range,
            num_templates=len(config.templates),
            flip=self.mirroring_.flip,
            seed=config.seed + stage.seed_offset,
        )
        shared = ("schedule", "weight_decay", "gradient_clip", "checkpoint_every", "micro_batch_size")
        num_steps, rate = getattr(config, stage.num_steps), getattr(config, stage.learning_rate)
        training = TrainingConfig(
            num_steps, rate, epsilon=stage.epsilon, **{name: getattr(config, name) for name in shared}
        )
        file, fingerprint = folder and folder / f"{name}.checkpoint.safetensors", partial(self._fingerprint, exemplars)
        every = max(self.journey_every, num_steps // MAX_STATES)
        updates = self._updates(
            objective, sampler, training, checkpoint=file, fingerprint=fingerprint, keep_every=every
        )
        ended = yield from updates
        if hasattr(objective, "end"):
            objective.end()
        return ended

    def _fingerprint(self, exemplars: Exemplars) -> str:
        """Settings, data, start and model of a run: what a checkpoint must share with the run that goes on from it."""
        tensors = {"labels": exemplars.labels, "start": self.states_[0]}
        tensors |= {} if exemplars.source else {"means": exemplars.means}
        data, model = exemplars.source + tensor_checksum(tensors.items()), self.diffusion.checksum()
        return repr((self.config.identity(), self.timestep_range, self.class_names_, data, model))

    def _calibrate(self, exemplars: Exemplars, chosen: np.ndarray | None = None) -> None:
        """Temperature, offsets and weighting, from what some exemplars, or the chosen, show under learned prompts."""
        if chosen is None:
            chosen = np.random.default_rng([self.config.seed, 19]).permutation(len(exemplars.labels))
            chosen = np.sort(chosen[:MAX_TEMPERATURE_IMAGES])
        latents = self.diffusion.scale_latents(exemplars.means[0][torch.from_numpy(chosen)])
        # The very noises that test images will see: a part of a prompt's head start is theirs.
        self.support_errors_ = self.errors(latents, self.config.num_evidence)
        self.support_labels_ = exemplars.labels.numpy()[chosen]
        config, errors, labels = self.config, self.support_errors_, self.support_labels_
        reading = fit_reading(
            errors, labels, weighting=config.weighting, class_offsets=config.class_offsets, seed=config.seed
        )
        self.weighting_, self.temperature_, self.offsets_ = reading.weighting, reading.temperature, reading.offsets
