"""Estimators with scikit-learn's manners: ``fit``, ``predict``, ``predict_proba``, ``score``, ``classes_``."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.episodes import cross_validation_folds
from gcpl_lab.data.readers import check_class_names, read_images
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation.metrics import log_loss
from gcpl_lab.fast.fast_classifier import FastClassifier, FastEvidence, Shortcuts
from gcpl_lab.fast.racing import Plan
from gcpl_lab.gcpl.classifier import (
    WEIGHTINGS,
    Evidence,
    Reading,
    Schedule,
    Weighting,
    class_scores,
    fit_reading,
    probabilities,
)
from gcpl_lab.gcpl.objectives import GCPL, CoMPLe, Discriminative, ValidationLoss, hardest_rivals
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler
from gcpl_lab.gcpl.settings import GCPLConfig, ObjectiveName
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import read_json, tensor_checksum, write_json
from gcpl_lab.training.artifacts import load_class_prompts, save_class_prompts
from gcpl_lab.training.device import (
    MEASURED_SECONDS,
    MeasuredFormat,
    default_device,
    leave_device,
    make_training_accelerator,
    measure_formats,
    prepare_for_device,
    training_form,
    weights_dtype,
)
from gcpl_lab.training.loop import Journal, Objective, StepRecord, TrainingConfig, end_early, train
from gcpl_lab.training.machine import describe_versions
from gcpl_lab.training.memory import FORWARD_ADVICE, MemoryFit
from gcpl_lab.training.processes import (
    all_gather_rows,
    all_reduce,
    broadcast_number,
    is_main_process,
    processes,
    wait_for_everyone,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

Answer = TypeVar("Answer", bound=Evidence)

VAE_BATCH_SIZE = 64
"""Pictures in one pass of the VAE, where memory allows."""

DENOISING_EPSILON, DISCRIMINATIVE_EPSILON = 1e-6, 1e-5
"""AdamW's epsilon. A thousandth of the elements of a first gradient are below 5e-7, where 1e-8 would magnify rounding
so much that two processes, whose passes are smaller, end with prompts more than 1e-5 apart. Typical elements are 2e-4
under the denoising losses and 1e-2 under the cross-entropy."""

MAX_STATES = 100
"""Kept states of a long run; a checkpoint holds them all."""

MAX_TEMPERATURE_IMAGES = 160
"""Temperature and offsets have few degrees of freedom; more support photographs change them little."""


class GCPLClassifier:
    """Learn one class prompt for each class through a frozen diffusion model, and classify by denoising error.

    Example:
        >>> model = GCPLClassifier(preset="tiny", objective="gcpl", seed=0)
        >>> model.fit(images, labels)                      # paths, PIL pictures or uint8 arrays
        >>> model.predict(others), model.predict_proba(others)

    Attributes:
        classes_: The distinct labels, sorted; columns of ``predict_proba`` are in this order.
        class_names_: The words the prompts started from, one a class.
        prompts_: The learned :class:`~gcpl_lab.gcpl.prompts.ClassPrompts`.
        temperature_: Fitted on the support photographs.
        offsets_: Added to the classes' scores, (class,), fitted with the temperature.
        weighting_: How errors are averaged: what the settings say, or chosen with the temperature.
        support_errors_, support_labels_: What the temperature was fitted on, (image, class, sample) and (image,); of a
            classifier that was loaded from a folder they are absent.
        history_: One :class:`~gcpl_lab.training.loop.StepRecord` an update, those before a resumption included.
        states_: Vectors (class, V, dim) at the start and every ``journey_every`` updates, by their step; of very
            long runs about ``MAX_STATES``.
        best_step_: Where cross-validation stopped (0: no update is best), else None.
        train_evaluations_: Denoiser evaluations spent on training since it was last started, by all processes.
        training_format_: With ``precision="measured"`` what was measured before the first update.
        evidence_format_: With ``evidence_bfloat16=None`` what was measured when it first looked at photographs.
        fast_: With ``classification="fast"`` the calibrated
            :class:`~gcpl_lab.fast.fast_classifier.FastClassifier`; ``fast_.plan_`` is what it learned.
    """

    def __init__(
        self,
        preset: str = "tiny",
        objective: ObjectiveName = "gcpl",
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
            objective: ``"gcpl"``, ``"comple"`` or ``"discriminative"``.
            num_vectors: Learned vectors a class.
            num_steps: Updates.
            seed: Of everything random.
            diffusion: A loaded model to share between estimators.
            **settings: Further fields of :class:`~gcpl_lab.gcpl.settings.GCPLConfig`.
        """
        self.config = GCPLConfig(
            preset=preset, objective=objective, num_vectors=num_vectors, num_steps=num_steps, seed=seed, **settings
        )
        self._diffusion = diffusion
        self.training_format_: MeasuredFormat | None = None
        self.evidence_format_: MeasuredFormat | None = None
        self.journey_every = 10

    @property
    def diffusion(self) -> FrozenDiffusion:
        """The frozen model, loaded when first asked for."""
        if self._diffusion is None:
            self._diffusion = self._load(default_device(), weights_dtype(self.config.precision, default_device()))
        return self._diffusion

    def _load(self, device: str, dtype: torch.dtype) -> FrozenDiffusion:
        diffusion = FrozenDiffusion.load(self.config.preset, device=device, dtype=dtype)
        prepare_for_device(diffusion.denoiser, device, self.config.precision)
        return diffusion

    @property
    def timestep_range(self) -> tuple[float, float]:
        """The part of the noise schedule in use."""
        return self.config.timestep_range or self.diffusion.evidence_range

    # -------------------------------------------------------------------------------------- training

    def fit(
        self,
        images: Sequence[Any],
        labels: Sequence[Any] | np.ndarray,
        class_names: Sequence[str] | None = None,
        *,
        coarse_words: Sequence[str] | None = None,
        checkpoint_folder: str | Path | None = None,
        calibration: tuple[Sequence[Any], Sequence[Any] | np.ndarray] | None = None,
    ) -> GCPLClassifier:
        """Learn the class prompts.

        Args:
            images: Paths, PIL pictures or uint8 arrays of any size.
            labels: One a picture, of any sortable kind.
            class_names: Words for the classes in sorted order of their labels; by default the labels as text.
            coarse_words: One a class, for ``initial="coarse"``.
            checkpoint_folder: Where an interrupted fit leaves its state and goes on from.
            calibration: With ``classification="fast"``: further pictures and their labels that it is calibrated on,
                none of them among ``images`` (errors on what was learned from are too good, and margins found on
                them too narrow) and none that will be tested on. Without them ``num_folds`` further trainings
                find out how held-out exemplars fare.

        Raises:
            DataError: Pictures, labels or names that do not fit together, naming the item.
            TrainingError: The loss stopped being finite.
        """
        for _ in self.steps(
            images,
            labels,
            class_names,
            coarse_words=coarse_words,
            checkpoint_folder=checkpoint_folder,
            calibration=calibration,
        ):
            pass
        return self

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
        """:meth:`fit`, one record an update, for plotting or stopping on the way."""
        classes, ids = _check_labels(images, labels)
        names = [str(label) for label in classes] if class_names is None else list(class_names)
        if len(names) != len(classes):
            raise DataError(f"class_names has {len(names)} names for {len(classes)} classes ({classes.tolist()[:10]})")
        check_class_names(names)
        if calibration is not None:
            self._check_calibration(calibration, classes)
        pixels = self.diffusion.preprocess(read_images(images))
        cache = self.config.cache_encodings
        exemplars = Exemplars.encode(self.diffusion, pixels, ids, self._encode_moments, cache=cache)
        known = None
        if calibration is not None:
            known = self.encode(calibration[0]), np.searchsorted(classes, np.asarray(calibration[1]))
        leave_device(self.diffusion.vae, self.diffusion.device)
        yield from self.learn(
            exemplars,
            names,
            classes=classes,
            coarse_words=coarse_words,
            checkpoint_folder=checkpoint_folder,
            calibration=known,
        )

    def _check_calibration(
        self, calibration: tuple[Sequence[Any], Sequence[Any] | np.ndarray], classes: np.ndarray
    ) -> None:
        images, labels = calibration
        if self.config.classification != "fast":
            raise DataError(
                f"{len(images)} pictures to calibrate on are given, and classification is "
                f"{self.config.classification!r}, which needs none; set classification='fast', or leave them out"
            )
        if len(images) != len(labels) or len(images) < 2:
            raise DataError(
                f"{len(images)} pictures and {len(labels)} labels to calibrate on; expected one label a picture, and "
                "at least two pictures"
            )
        if strange := sorted({str(label) for label in np.asarray(labels).tolist()} - set(map(str, classes.tolist()))):
            raise DataError(
                f"pictures to calibrate on have the labels {', '.join(strange[:5])}, which are not learned; expected "
                f"some of {', '.join(map(str, classes.tolist()[:10]))}"
            )

    def learn(
        self,
        exemplars: Exemplars,
        class_names: Sequence[str],
        *,
        classes: np.ndarray | None = None,
        coarse_words: Sequence[str] | None = None,
        warm_start: Tensor | None = None,
        checkpoint_folder: str | Path | None = None,
        calibration: tuple[Tensor, np.ndarray] | None = None,
    ) -> Generator[StepRecord, bool | None, None]:
        """Learn from photographs whose latents are cached already.

        Args:
            exemplars: Cached moments; labels are 0 to class − 1.
            class_names: One a class.
            classes: What ``predict`` answers; by default 0 to class − 1.
            coarse_words: See :meth:`fit`.
            warm_start: Vectors (class, V, dim) of a GCPL run; the discriminative objective then skips its own.
            checkpoint_folder: See :meth:`fit`.
            calibration: See :meth:`fit`: scaled latents, and labels 0 to class − 1.
        """
        config, diffusion = self.config, self.diffusion
        if config.classification == "fast" and calibration is None:  # too few exemplars: rather now than at the end
            cross_validation_folds(exemplars.labels.numpy(), config.num_folds, config.seed)
        self.classes_ = np.arange(len(class_names)) if classes is None else np.asarray(classes)
        self._begin(class_names, coarse_words, warm_start)
        before = diffusion.num_denoiser_evaluations
        folder = Path(checkpoint_folder) if checkpoint_folder else None
        everything, held_out = exemplars, None
        self.best_step_: int | None = None
        if config.early_stopping == "validation":
            exemplars, held_out = self._hold_out(exemplars)
        elif config.early_stopping == "cross_validation":
            self.best_step_ = self._cross_validated_step(exemplars, coarse_words, warm_start, folder)
        ended = False
        with training_form(diffusion.denoiser, config.gradient_checkpointing, config.compile_denoiser):
            if not self._warm_started:
                ended = yield from self._run(self._denoising_objective(), exemplars, folder, held_out)
            if config.objective == "discriminative" and not ended:
                yield from self._run(self._discriminative_objective(exemplars), exemplars, folder, held_out)
        self.train_evaluations_ = int(all_reduce(torch.tensor(diffusion.num_denoiser_evaluations - before)))
        self._fit_temperature(everything)
        if config.classification == "fast":
            self._calibrate(everything, coarse_words, calibration)

    def _begin(self, class_names: Sequence[str], coarse_words: Sequence[str] | None, warm_start: Tensor | None) -> None:
        """The prompts before the first update; nothing of an earlier fit is left."""
        config, diffusion = self.config, self.diffusion
        self.class_names_ = tuple(class_names)
        self.prompts_ = ClassPrompts(
            diffusion,
            class_names,
            num_vectors=config.num_vectors,
            templates=config.templates,
            initial=config.initial,
            coarse_words=coarse_words,
            seed=config.seed,
        ).to(diffusion.device)
        if warm_start is not None:
            with torch.no_grad():
                self.prompts_.vectors.copy_(warm_start)
        self.history_: list[StepRecord] = []
        self.states_ = {0: self.prompts_.vectors.detach().cpu().clone()}
        for name in ("temperature_", "fast_", "support_errors_", "support_labels_"):
            vars(self).pop(name, None)
        self.training_format_ = None
        self.offsets_ = np.zeros(len(self.class_names_))
        # Until it is chosen: relative, which reads errors without offsets better.
        self.weighting_: Weighting = "relative" if config.weighting == "chosen" else config.weighting
        self._warm_started = config.objective == "discriminative" and warm_start is not None

    def _denoising_objective(self) -> GCPL:
        if self.config.objective == "comple":
            return CoMPLe(self.diffusion, self.prompts_, self.config.contrast_weight)
        return GCPL(self.diffusion, self.prompts_)

    def _discriminative_objective(self, exemplars: Exemplars) -> Discriminative:
        config, rivals = self.config, None
        num_classes = len(self.class_names_)
        if config.num_rivals is not None and config.num_rivals < num_classes - 1:
            latents = self.diffusion.scale_latents(exemplars.means[0])
            errors = self._evidence(latents, config.num_samples, config.seed + 1).errors
            rivals = hardest_rivals(errors, exemplars.labels.numpy(), config.num_rivals)
        return Discriminative(
            self.diffusion, self.prompts_, temperature=config.temperature, gcpl_share=config.gcpl_share, rivals=rivals
        )

    def _hold_out(self, exemplars: Exemplars) -> tuple[Exemplars, Exemplars]:
        """Part the exemplars into those to learn from and those to validate on, class by class."""
        labels = exemplars.labels.numpy()
        smallest = int(np.bincount(labels).min())
        held = max(1, round(self.config.validation_share * smallest))
        if held >= smallest:
            raise DataError(
                f"early_stopping='validation' needs at least 2 pictures of every class, the smallest has {smallest}"
            )
        folds = cross_validation_folds(labels, max(2, round(smallest / held)), self.config.seed)
        return exemplars.subset(folds[0][0]), exemplars.subset(folds[0][1])

    def _cross_validated_step(
        self, exemplars: Exemplars, coarse_words: Sequence[str] | None, warm_start: Tensor | None, folder: Path | None
    ) -> int:
        """The number of updates, of those validated and none at all, with the best accuracy on held-out folds.

        With ``folder``, finished folds are kept there and not learned again after an interruption.
        """
        path = folder / "cross_validation.json" if folder else None
        identity = self._identity(exemplars) if path else ""
        found: dict[str, Any] = {"identity": identity, "folds": []}
        if path and path.is_file():
            found = read_json(path)
        if found.get("identity") != identity:
            raise ArtifactError(
                f"{path}: belongs to a run with other settings, data or model than this one; "
                "give this run another folder, or delete the file to start anew"
            )
        if int(broadcast_number(len(found["folds"]))) != len(found["folds"]):
            raise ArtifactError(f"{path}: processes find it in different states; expected a folder all machines share")
        folds = cross_validation_folds(exemplars.labels.numpy(), self.config.num_folds, self.config.seed)
        for train_ids, held_ids in folds[len(found["folds"]) :]:
            fold = self._right_in_fold(exemplars, train_ids, held_ids, coarse_words, warm_start)
            found["folds"].append([[step, right] for step, right in fold.items()])
            if path and is_main_process():
                write_json(path, found)
        correct: dict[int, int] = {}
        for step, right in (pair for fold in found["folds"] for pair in fold):
            correct[step] = correct.get(step, 0) + right
        # Of equally good numbers the smallest: it costs least and has moved least from the words.
        return max(sorted(correct), key=lambda step: correct[step])

    def _right_in_fold(
        self,
        exemplars: Exemplars,
        train_ids: np.ndarray,
        held_ids: np.ndarray,
        coarse_words: Sequence[str] | None,
        warm_start: Tensor | None,
    ) -> dict[int, int]:
        """How many held-out photographs are told right after each validated number of updates, from 0."""
        config, fold = self.config, self._fold()
        latents = self.diffusion.scale_latents(exemplars.means[0][torch.from_numpy(held_ids)])
        labels = exemplars.labels.numpy()[held_ids]

        def num_right() -> int:
            scores = class_scores(fold.evidence(latents).errors, fold.weighting_)
            return int((scores.argmax(1) == labels).sum())

        fold._begin(self.class_names_, coarse_words, warm_start)
        right = {0: num_right()}
        total = (config.discriminative_steps if config.objective == "discriminative" else 0) + (
            0 if self._warm_started else config.num_steps
        )
        for record in fold.learn(
            exemplars.subset(train_ids), self.class_names_, coarse_words=coarse_words, warm_start=warm_start
        ):
            if record.step % config.validate_every == 0 or record.step == total:
                right[record.step] = num_right()
        return right

    def _fold(self) -> GCPLClassifier:
        """The same settings on the same frozen model, for training on a part of the exemplars."""
        plain = {"early_stopping": "none", "classification": "exact"}
        return GCPLClassifier(diffusion=self.diffusion, **{**self.config.as_dict(), **plain})

    def _validation(self, objective: Objective, held_out: Exemplars) -> Callable[[], float]:
        """What early stopping lowers: the denoising loss, or the discriminative ranking's log-loss."""
        config = self.config
        if not isinstance(objective, Discriminative):
            return ValidationLoss(
                self.diffusion,
                self.prompts_,
                held_out,
                timestep_range=self.timestep_range,
                seed=config.seed + 3,
                batch_size=config.evidence_batch_size,
            )
        latents, labels = self.diffusion.scale_latents(held_out.means[0]), held_out.labels.numpy()

        def ranking_loss() -> float:
            scores = class_scores(self._evidence(latents, config.num_evidence, config.seed + 3).errors)
            return log_loss(probabilities(scores, config.temperature), labels)

        return ranking_loss

    def _run(
        self, objective: Objective, exemplars: Exemplars, folder: Path | None, held_out: Exemplars | None
    ) -> Generator[StepRecord, bool | None, bool]:
        """One objective's updates; returns whether the caller ended them early."""
        config = self.config
        discriminative = isinstance(objective, Discriminative)
        sampler = ExemplarSampler(
            self.diffusion,
            exemplars,
            batch_size=config.discriminative_batch_size if discriminative else config.batch_size,
            num_samples=config.num_samples if discriminative else 1,
            timestep_range=self.timestep_range,
            num_templates=len(config.templates),
            flip=config.flip,
            seed=config.seed + (1000 if discriminative else 0),
        )
        training = TrainingConfig(
            num_steps=config.discriminative_steps if discriminative else config.num_steps,
            learning_rate=config.discriminative_rate if discriminative else config.learning_rate,
            validate_every=config.validate_every,
            patience=config.patience,
            checkpoint_every=config.checkpoint_every,
            micro_batch_size=config.micro_batch_size,
            epsilon=DISCRIMINATIVE_EPSILON if discriminative else DENOISING_EPSILON,
            schedule=config.schedule,
            weight_decay=config.weight_decay,
            gradient_clip=config.gradient_clip,
        )
        done = config.num_steps if discriminative and not self._warm_started else 0
        checkpoint = folder / f"{type(objective).__name__.lower()}.checkpoint.safetensors" if folder else None
        journal = Journal(every=max(self.journey_every, training.num_steps // MAX_STATES))
        records = train(
            objective,
            sampler,
            training,
            validate=self._validation(objective, held_out) if held_out is not None else None,
            checkpoint=checkpoint,
            fingerprint=self._identity(exemplars) if checkpoint else "",
            stop_after=None if self.best_step_ is None else self.best_step_ - done,
            accelerator=self._accelerator(objective, sampler, folder),
            journal=journal,
        )
        known = len(self.history_)
        for _ in records:
            self._follow(journal, done, known)
            if (yield self.history_[-1]):
                end_early(records)
                self.states_[self.history_[-1].step] = self.prompts_.vectors.detach().cpu().clone()
                return True
        self._follow(journal, done, known)
        return False

    def _follow(self, journal: Journal, done: int, known: int) -> None:
        """Take over what is new in the journal of a stage, which began after ``done`` updates and ``known`` records."""
        new = journal.records[len(self.history_) - known :]
        self.history_ += [replace(record, step=done + record.step) for record in new]
        for step, (vectors,) in journal.states.items():
            self.states_.setdefault(done + step, vectors)

    def _accelerator(self, objective: Objective, batch_at: Callable[[int], Any], folder: Path | None) -> Accelerator:
        before = self.diffusion.num_denoiser_evaluations
        accelerator, self.training_format_ = make_training_accelerator(
            objective, batch_at, self.diffusion, self.config.precision, self.training_format_, folder
        )
        self.diffusion.num_denoiser_evaluations = before  # what is measured teaches nothing
        return accelerator

    def _identity(self, exemplars: Exemplars) -> str:
        """Settings, data, start and model of a run: what a checkpoint must share with the run that goes on from it."""
        tensors = {"means": exemplars.means, "labels": exemplars.labels, "start": self.states_[0]}
        data, model = tensor_checksum(tensors.items()), self.diffusion.checksum()
        return repr((self.config.identity(), self.timestep_range, self.class_names_, data, model))

    def _fit_temperature(self, exemplars: Exemplars) -> None:
        chosen = np.random.default_rng([self.config.seed, 19]).permutation(len(exemplars.labels))
        chosen = np.sort(chosen[:MAX_TEMPERATURE_IMAGES])
        latents = self.diffusion.scale_latents(exemplars.means[0][torch.from_numpy(chosen)])
        # The very noises that test photographs will see: a part of a prompt's head start is theirs.
        self.support_errors_, self.support_labels_ = self.evidence(latents).errors, exemplars.labels.numpy()[chosen]
        reading = fit_reading(
            self.support_errors_,
            self.support_labels_,
            weighting=self.config.weighting,
            class_offsets=self.config.class_offsets,
            seed=self.config.seed,
        )
        self.weighting_, self.temperature_, self.offsets_ = reading.weighting, reading.temperature, reading.offsets

    def _calibrate(
        self, exemplars: Exemplars, coarse_words: Sequence[str] | None, known: tuple[Tensor, np.ndarray] | None
    ) -> None:
        """Learn the fast classifier's plan from photographs that the prompts have not seen."""
        config, labels = self.config, exemplars.labels.numpy()
        if known is None:
            pool = self._cross_fitted(exemplars, coarse_words)
        else:
            pool, labels = self._evidence(known[0], config.evidence_pool, config.seed), known[1]
        self.fast_ = self._classifier(config.seed).plan_from(pool, labels)

    def _cross_fitted(self, exemplars: Exemplars, coarse_words: Sequence[str] | None) -> Evidence:
        """What every exemplar shows under prompts that were learned without its fold."""
        config, labels = self.config, exemplars.labels.numpy()
        updates = config.num_steps + (config.discriminative_steps if config.objective == "discriminative" else 0)
        if self.best_step_ is not None:  # a warm start has seen all exemplars: the folds make their own
            updates = self.best_step_ + (config.num_steps if self._warm_started else 0)
        parts = []
        folds = cross_validation_folds(labels, config.num_folds, config.seed)
        for inside, outside in folds:
            fold = self._fold()
            fold._begin(self.class_names_, coarse_words, None)  # there may be no update at all
            records = fold.learn(exemplars.subset(inside), self.class_names_, coarse_words=coarse_words)
            deque(islice(records, updates), maxlen=0)  # up to the last update, before temperature and offsets
            records.close()
            latents = self.diffusion.scale_latents(exemplars.means[0][torch.from_numpy(outside)])
            parts.append(fold._evidence(latents, config.evidence_pool, config.seed))
        back = np.argsort(np.concatenate([outside for _, outside in folds]))
        errors = np.concatenate([part.errors for part in parts])[back]
        return Evidence(errors, parts[0].timesteps, sum(part.num_evaluations for part in parts))

    # ------------------------------------------------------------------------------------- answering

    def _classifier(self, seed: int, norm: Literal["l1", "l2"] = "l2") -> FastClassifier:
        with torch.no_grad():
            hidden = self.diffusion.encode_prompts(*self.prompts_())
        if self.config.evidence_bfloat16 is None and self.evidence_format_ is None:
            self.evidence_format_ = measure_evidence(self.diffusion, hidden, self.config)
        return make_classifier(self.diffusion, hidden, self.config, seed, self.evidence_format_, norm)

    def encode(self, images: Sequence[Any]) -> Tensor:
        """Scaled latents (image, channel, height, width) of pictures."""
        pixels = self.diffusion.preprocess(read_images(images))
        return self.diffusion.scale_latents(self._encode_moments(pixels)[0])

    def _encode_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The VAE's moments of pictures: every process encodes its share, in passes that fit into memory."""
        own = pixels[processes().share(len(pixels))]
        if len(own):
            moments = MemoryFit(VAE_BATCH_SIZE, FORWARD_ADVICE)(lambda size: self.diffusion.encode_moments(own, size))
        else:
            moments = (torch.empty(0, *self.diffusion.latent_shape),) * 2
        means, log_variances = (all_gather_rows(values, len(pixels)) for values in moments)
        return means, log_variances

    def evidence(self, latents: Tensor) -> Evidence:
        """Errors (image, class, timestep) of scaled latents under the learned prompts: every class on every (t, ε)."""
        self._check_fitted()
        return self._evidence(latents, self.config.num_evidence, self.config.seed)

    def _evidence(self, latents: Tensor, num_samples: int, seed: int) -> Evidence:
        """Every process judges its share of the pictures; all get the whole."""
        classifier, share = self._classifier(seed), latents[processes().share(len(latents))]
        own = in_fitting_passes(classifier, lambda: classifier.exact(share, num_samples))
        errors = all_gather_rows(torch.from_numpy(own.errors), len(latents)).numpy()
        return Evidence(errors, own.timesteps, int(errors.size))

    def staged_evidence(
        self,
        latents: Tensor,
        to_keep: Sequence[int],
        n_samples: Sequence[int],
        *,
        schedule: Schedule = "nested",
        norm: Literal["l1", "l2"] = "l2",
    ) -> Evidence:
        """The published decision in stages under the learned prompts; errors of dropped classes are NaN.

        Args:
            latents: Scaled, (image, channel, height, width).
            to_keep, n_samples, schedule: See :meth:`~gcpl_lab.gcpl.classifier.DiffusionClassifier.staged`.
            norm: Of errors; the GCPL authors' script has L1.
        """
        self._check_fitted()
        classifier = self._classifier(self.config.seed, norm)
        return in_fitting_passes(classifier, lambda: classifier.staged(latents, to_keep, n_samples, schedule=schedule))

    def classify(self, latents: Tensor) -> FastEvidence:
        """What the fast classifier finds out about scaled latents, and what that took.

        Raises:
            DataError: It was not calibrated.
        """
        self._check_finished()
        if not hasattr(self, "fast_"):
            raise DataError(
                "this classifier has no fast one beside it; set classification='fast' before fit, which calibrates it"
            )
        num_images = len(latents)
        share = latents[processes().share(num_images)]
        own = in_fitting_passes(self.fast_, lambda: self.fast_.classify(share))
        errors, logits = (all_gather_rows(torch.from_numpy(part), num_images) for part in (own.errors, own.logits))
        spent, whole = all_reduce(torch.tensor([own.num_evaluations, own.equivalent_evaluations], dtype=torch.float64))
        return FastEvidence(errors.numpy(), own.timesteps, int(spent), logits.numpy(), float(whole))

    def decision_function(self, images: Sequence[Any]) -> np.ndarray:
        """Scores (image, class); larger is better.

        Minus the mean error plus the class's offset; with ``classification="fast"`` logits.
        """
        self._check_fitted()
        latents = self.encode(images)
        if self.config.classification == "fast":
            return self.classify(latents).logits
        return self.scores(self.evidence(latents))

    def scores(self, evidence: Evidence) -> np.ndarray:
        """Scores (image, class) of evidence under the learned prompts, with the fitted offsets of the classes."""
        return Reading(self.weighting_, 1.0, self.offsets_).scores(evidence.errors)

    def predict(self, images: Sequence[Any]) -> np.ndarray:
        """The label of the class whose prompt denoises each picture best, (image,)."""
        best = self.decision_function(images).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, images: Sequence[Any]) -> np.ndarray:
        """Probabilities (image, class) with the temperature fitted on the support photographs."""
        self._check_finished()
        temperature = 1.0 if self.config.classification == "fast" else self.temperature_  # logits have theirs in them
        return probabilities(self.decision_function(images), temperature)

    def score(self, images: Sequence[Any], labels: Sequence[Any] | np.ndarray) -> float:
        """Accuracy."""
        if len(images) != len(labels):
            raise DataError(f"{len(images)} pictures and {len(labels)} labels; expected one label a picture")
        return float((self.predict(images) == np.asarray(labels)).mean())

    def _check_fitted(self) -> None:
        if not hasattr(self, "prompts_"):
            raise DataError("this classifier has learned nothing yet; call fit(images, labels) or load(folder) first")

    def _check_finished(self) -> None:
        self._check_fitted()
        if not hasattr(self, "temperature_"):
            raise DataError(
                "training was stopped before its end, where the temperature of probabilities is fitted; predict and "
                "decision_function work already, for the rest let fit or steps run through"
            )

    # ----------------------------------------------------------------------------------------- files

    def save(self, folder: str | Path) -> Path:
        """Write the learned prompts and all that explains them; never the frozen model.

        Args:
            folder: Made where it does not exist.

        Raises:
            DataError: Nothing was learned, or training was stopped before its end.
        """
        self._check_finished()
        metadata = {
            "config": self.config.as_dict(),
            "class_names": list(self.class_names_),
            "classes": self.classes_.tolist(),
            "temperature": self.temperature_,
            "offsets": self.offsets_.tolist(),
            "weighting": self.weighting_,
            **({"plan": self.fast_.plan_.as_dict()} if hasattr(self, "fast_") else {}),
            **{name: asdict(found) for name in FORMATS if (found := getattr(self, f"{name}_"))},
            "diffusion": {
                "name": self.diffusion.name,
                "checksum": self.diffusion.checksum(),
                "weights": str(self.diffusion.dtype).removeprefix("torch."),
            },
            "versions": describe_versions(),
        }
        if is_main_process():
            save_class_prompts(folder, self.prompts_.vectors.detach(), metadata)
        wait_for_everyone()
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, diffusion: FrozenDiffusion | None = None) -> GCPLClassifier:
        """Read a saved classifier.

        Args:
            folder: Written by :meth:`save`.
            diffusion: A loaded model to use; by default the preset's.

        Raises:
            ArtifactError: The folder is damaged or foreign, or its prompts were learned on other frozen weights.
        """
        vectors, metadata = load_class_prompts(folder)
        try:
            config = GCPLConfig.from_dict(metadata["config"])
            names, classes, temperature = metadata["class_names"], metadata["classes"], float(metadata["temperature"])
            offsets = np.asarray(metadata["offsets"], float).reshape(len(names))
            weighting = metadata.get("weighting", config.weighting)
            if weighting not in WEIGHTINGS:
                raise ValueError(f"weighting is {weighting!r}; expected one of {', '.join(WEIGHTINGS)}")
            learned_on, weights = metadata["diffusion"]["checksum"], metadata["diffusion"].get("weights", "float32")
            dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[weights]
            plan = None
            formats = {name: MeasuredFormat(**metadata[name]) for name in FORMATS if name in metadata}
            if config.classification == "fast":
                plan = Plan.from_dict(metadata["plan"], len(names), config.evidence_pool)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{Path(folder) / 'prompts.json'}: is incomplete or was changed ({error}); restore it or train again"
            ) from error
        model = cls(diffusion=diffusion, **config.as_dict())
        if diffusion is None:  # in the precision they were learned with, whatever this machine prefers
            model._diffusion = model._load(default_device(), dtype)
        if model.diffusion.checksum() != learned_on:
            raise ArtifactError(
                f"{folder}: its prompts were learned on other frozen weights than those of {model.diffusion.name!r}; "
                "load the model they were learned on, or train again"
            )
        model.class_names_, model.classes_, model.temperature_ = tuple(names), np.asarray(classes), temperature
        model.offsets_, model.weighting_ = offsets, weighting
        for name, measured in formats.items():
            setattr(model, f"{name}_", measured)
        model.prompts_ = ClassPrompts(
            model.diffusion, names, num_vectors=vectors.shape[1], templates=config.templates, initial="random"
        ).to(model.diffusion.device)
        with torch.no_grad():
            model.prompts_.vectors.copy_(vectors)
        if plan is not None:
            model.fast_ = model._classifier(config.seed)
            model.fast_.plan_ = plan
        return model


MANY_CLASSES = 20
"""From here on the fast classifier tries probes: with fewer classes they hardly saved anything (docs/growth.md)."""

FORMATS = ("training_format", "evidence_format")
"""What may have been measured; the attributes have an underscore behind."""

_MEASURED: WeakKeyDictionary[FrozenDiffusion, MeasuredFormat] = WeakKeyDictionary()
"""A model is measured once a program, so that all estimators that share it choose alike."""


def measure_evidence(diffusion: FrozenDiffusion, hidden: Tensor, config: GCPLConfig) -> MeasuredFormat:
    """Which number format classifies faster on this machine.

    Args:
        diffusion: The frozen model.
        hidden: Hidden states of prompts, (class, context length, dim).
        config: ``evidence_batch_size`` counts.
    """
    if diffusion not in _MEASURED:
        before = diffusion.num_denoiser_evaluations

        @torch.no_grad()
        def run(name: str, rows: int) -> None:
            noisy = torch.zeros(rows, *diffusion.latent_shape, device=diffusion.device)
            steps = torch.full((rows,), diffusion.num_timesteps // 2)
            with torch.autocast(diffusion.device.type, torch.bfloat16, enabled=name == "bfloat16"):
                diffusion.predict_noise(noisy, steps, hidden[:1].expand(rows, -1, -1)).cpu()

        run("float32", 2)
        began = time.perf_counter()
        run("float32", 2)
        fitting = int(2 * MEASURED_SECONDS / (time.perf_counter() - began))
        rows = int(broadcast_number(min(max(2, fitting), config.evidence_batch_size)))
        _MEASURED[diffusion] = measure_formats(lambda name: run(name, rows))
        diffusion.num_denoiser_evaluations = before  # nothing was classified
    return _MEASURED[diffusion]


def make_classifier(
    diffusion: FrozenDiffusion,
    hidden: Tensor,
    config: GCPLConfig,
    seed: int,
    measured: MeasuredFormat | None = None,
    norm: Literal["l1", "l2"] = "l2",
) -> FastClassifier:
    """The classifier that the settings ask for.

    ``exact`` and ``staged`` take exact shortcuts alone, or none; the statistical ones of ``classification="fast"``
    count for ``classify``. CLIP has no part in them.

    Args:
        diffusion: The frozen model.
        hidden: Hidden states of the class prompts, (class, context length, dim).
        config: Its settings of evidence count.
        seed: Of the noises.
        measured: With ``evidence_bfloat16=None`` what to go by; by default it is measured here.
        norm: Of errors.
    """
    bfloat16 = config.evidence_bfloat16
    if bfloat16 is None:
        bfloat16 = (measured or measure_evidence(diffusion, hidden, config)).chosen == "bfloat16"
    size = config.evidence_batch_size
    shortcuts = Shortcuts.exact(len(hidden), size) if config.evidence_sharing else Shortcuts.none()
    if config.classification == "fast":
        shortcuts = replace(
            shortcuts,
            choose_samples=True,
            stopping="posterior",
            error_rate=config.error_rate,
            max_steps=config.num_evidence,
            probes=len(hidden) >= MANY_CLASSES,
        )
    return FastClassifier(
        diffusion,
        hidden,
        shortcuts=shortcuts,
        pool_size=config.evidence_pool,
        norm=norm,
        timestep_range=config.timestep_range or diffusion.evidence_range,
        seed=seed,
        batch_size=size,
        bfloat16=bfloat16,
    )


def _check_labels(images: Sequence[Any], labels: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct labels in order, and each picture's index among them."""
    if len(images) != len(labels):
        raise DataError(f"{len(images)} pictures and {len(labels)} labels; expected one label a picture")
    if len(images) == 0:
        raise DataError("no pictures were given; expected at least one for each of two classes")
    values = np.asarray(labels)
    if values.ndim != 1:
        raise DataError(f"labels have shape {values.shape}; expected one label a picture, shape ({len(images)},)")
    classes, ids = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"all {len(images)} pictures have the label {classes.tolist()[0]!r}; expected at least two classes"
        )
    return classes, ids


def in_fitting_passes(classifier: FastClassifier, answer: Callable[[], Answer]) -> Answer:
    """An answer of a classifier, asked again with passes of half the size where memory runs out.

    Passes of one classifier are alike, so as a rule it is the first that does not fit and nothing is lost.

    Args:
        classifier: Its ``batch_size`` is that of the passes that fit afterwards.
        answer: Asks it.

    Raises:
        TrainingError: Not even one evaluation in a pass fits.
    """

    def ask(size: int) -> Answer:
        classifier.batch_size = size
        return answer()

    return MemoryFit(classifier.batch_size, FORWARD_ADVICE)(ask)
