"""Few-shot experiments: every method on the same photographs, with what is frozen computed once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.baselines.clip_features import (
    ENSEMBLE_TEMPLATES,
    CoOp,
    LinearProbe,
    NearestClassMean,
    TipAdapter,
    TipAdapterF,
    ZeroShotCLIP,
    feature_batches,
)
from gcpl_lab.baselines.pixels import PixelForest, SmallNetwork, read_pixels, shifted_batches
from gcpl_lab.data.episodes import cross_validation_folds, draw_episode
from gcpl_lab.data.readers import ImageSet, read_images
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.metrics import accuracy, accuracy_within_family, expected_calibration_error, log_loss
from gcpl_lab.gcpl.classifier import (
    WEIGHTINGS,
    DiffusionClassifier,
    Evidence,
    Reading,
    Weighting,
    class_scores,
    fit_reading,
    probabilities,
)
from gcpl_lab.gcpl.estimator import GCPLClassifier, make_classifier
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.lmpt.estimator import encode_views
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import default_device
from gcpl_lab.training.loop import Objective, StepRecord, TrainingConfig, train

GENERATIVE_METHODS = ("gcpl", "comple", "discriminative")
METHOD_TITLES = {
    "zero_shot_clip": "Zero-shot CLIP",
    "zero_shot_clip_ensemble": "Zero-shot CLIP, 5 templates",
    "nearest_class_mean": "Nearest class mean",
    "linear_probe": "Linear probe",
    "coop_unified": "CoOp, unified",
    "coop_class_specific": "CoOp, class-specific",
    "tip_adapter": "Tip-Adapter",
    "tip_adapter_f": "Tip-Adapter-F",
    "pixel_forest": "Random forest on pixels",
    "small_network": "Small network from scratch",
    "zero_shot_diffusion": "Zero-shot diffusion",
    "diffusion_offsets": "Zero-shot diffusion, offsets",
    "gcpl": "GCPL",
    "comple": "CoMPLe",
    "discriminative": "Discriminative prompts",
    "gcpl_published": "GCPL, published settings",
}
METHODS = tuple(METHOD_TITLES)
QUICK_METHODS = tuple(name for name in METHODS if name != "gcpl_published")
"""All but one, whose published decision takes minutes."""

ADAPTER_TRAINING = TrainingConfig(num_steps=200, learning_rate=2e-3)
"""How CoOp's contexts are tuned on cached features. One context for all classes swings at this rate and carries
rounding with it; what more updates would bring is in docs/gcpl_settings.md."""

TIP_ADAPTER_TRAINING = TrainingConfig(
    num_steps=20, learning_rate=1e-3, epsilon=1e-4, weight_decay=0.01, gradient_clip=0.0
)
"""The authors' for Tip-Adapter-F; ``num_steps`` counts epochs here, see :meth:`FewShotExperiment._train_keys`."""
TIP_ADAPTER_BATCH = 256

NETWORK_TRAINING = TrainingConfig(num_steps=200, learning_rate=3e-3, weight_decay=0.05)
NETWORK_BATCH = 64

NAMED_WEIGHTING: Weighting = "relative"
"""How errors under bare class names are averaged, unless the settings say: there are no exemplars to choose on, and on
photographs that are not judged here this was better (docs/gcpl_settings.md)."""

COARSE_WORD = "object"
"""Where the authors' script starts a token for a set that it has no word for."""

PUBLISHED_SETTINGS: dict[str, Any] = {
    "num_vectors": 1,
    "initial": "coarse",
    "num_steps": 500,
    "learning_rate": 2e-3,
    "schedule": "constant",
    "weight_decay": 0.01,
    "gradient_clip": 0.0,
    "timestep_range": (0.0, 1.0),
    "weighting": "absolute",
    "class_offsets": False,
}
"""GCPL as its authors' script runs it, with four pictures a class and update (docs/gcpl_settings.md)."""
PUBLISHED_PICTURES = 4
PUBLISHED_STAGES = (5, 1), (10, 100)
"""Classes kept after each stage of their classifier, and samples a class, a fifth of theirs: 550 evaluations a
photograph of ten classes."""


@dataclass(frozen=True)
class Outcome:
    """One method on one episode.

    Attributes:
        method: Its name in ``METHODS``.
        shots: Photographs a class it learned from (0 for zero-shot methods).
        seed: Of the episode and of the method.
        scores: float (test image, class), larger is better.
        probabilities: (test image, class).
        row: What ``results.json`` holds.
        model: The fitted classifier of a generative method, else None.
        evidence: Errors on the test images where the method is a diffusion classifier, else None.
    """

    method: str
    shots: int
    seed: int
    scores: np.ndarray
    probabilities: np.ndarray
    row: dict[str, Any]
    model: GCPLClassifier | None = None
    evidence: Evidence | None = None


class FewShotExperiment:
    """All methods on episodes of one support pool and one test set."""

    def __init__(
        self,
        support: ImageSet,
        test: ImageSet,
        *,
        preset: str = "tiny",
        settings: Mapping[str, Any] | None = None,
        on_step: Callable[[str, StepRecord, int], None] | None = None,
    ) -> None:
        """Take the data; models load and pictures are encoded when a method first needs them.

        Args:
            support: The pool that episodes are drawn from.
            test: What is classified; same classes in the same order.
            preset: The frozen pair.
            settings: Fields of :class:`~gcpl_lab.gcpl.settings.GCPLConfig` for the generative methods.
            on_step: Called with (method, record, number of steps) after every update, for progress.
        """
        if support.class_names != test.class_names:
            raise DataError(
                f"support has the classes {support.class_names} and test {test.class_names}; they must be the same"
            )
        missing = [name for label, name in enumerate(test.class_names) if not (test.labels == label).any()]
        if missing:
            raise DataError(f"{test.name}: no test picture of {', '.join(missing)}; add some or leave the class out")
        self.support, self.test, self.preset = support, test, preset
        self.settings = dict(settings or {})
        if self.settings.get("classification", "exact") != "exact":
            raise DataError(
                f"classification is {self.settings['classification']!r}; a comparison looks at every class on every "
                "(t, ε), so leave it at 'exact'"
            )
        self.on_step = on_step or (lambda *_event: None)
        self._gcpl: dict[tuple[int, int], Outcome] = {}
        self._named: dict[int, tuple[DiffusionClassifier, GCPLConfig, Evidence, float]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: the data and the settings, without models, listeners or what was computed."""
        return partial(FewShotExperiment, preset=self.preset, settings=self.settings), (self.support, self.test)

    # ------------------------------------------------------------------------------- what is frozen

    @cached_property
    def diffusion(self) -> FrozenDiffusion:
        """The frozen denoiser of the preset."""
        return FrozenDiffusion.load(self.preset, device=default_device())

    @cached_property
    def clip(self) -> FrozenCLIP:
        """The frozen CLIP of the preset."""
        return FrozenCLIP.load(self.preset, device=default_device())

    @cached_property
    def _support_views(self) -> Tensor:
        return encode_views(self.clip, self.support.images)

    @cached_property
    def _test_features(self) -> Tensor:
        return encode_views(self.clip, self.test.images, flip=False)[0]

    @cached_property
    def _exemplars(self) -> Exemplars:
        pixels = self.diffusion.preprocess(read_images(self.support.images))
        cache = bool(self.settings.get("cache_encodings", True))
        return Exemplars.encode(self.diffusion, pixels, self.support.labels, cache=cache)

    @cached_property
    def test_latents(self) -> Tensor:
        """Scaled latents of the test images."""
        pixels = self.diffusion.preprocess(read_images(self.test.images))
        return self.diffusion.scale_latents(self.diffusion.encode_moments(pixels)[0])

    @cached_property
    def _pixels(self) -> tuple[Tensor, Tensor]:
        """Pixels of the support and of the test images."""
        return read_pixels(read_images(self.support.images)), read_pixels(read_images(self.test.images))

    # -------------------------------------------------------------------------------------- running

    def run(self, method: str, shots: int, seed: int) -> Outcome:
        """Learn one method from an episode and classify the test images.

        Seconds count what the method itself does; reading and encoding photographs is done once for all methods.

        Args:
            method: A name in ``METHODS``.
            shots: Photographs a class.
            seed: Of the episode and of the method.
        """
        if method not in METHODS:
            raise ValueError(f"{method!r} is no method; expected one of {', '.join(METHODS)}")
        if method in GENERATIVE_METHODS:
            return self._run_generative(method, shots, seed)
        if method in ("zero_shot_diffusion", "diffusion_offsets"):
            return self._run_named_prompts(method, shots, seed)
        if method == "gcpl_published":
            return self._run_published(method, shots, seed)
        return self._run_cheap_method(method, shots, seed)

    def _outcome(
        self,
        method: str,
        shots: int,
        seed: int,
        scores: np.ndarray,
        probability: np.ndarray,
        extra: dict[str, Any],
        **kept: Any,
    ) -> Outcome:
        labels = self.test.labels
        among = accuracy_within_family(scores, labels, self.test.class_names, self.test.families)
        row = {
            "name": method,
            "seed": seed,
            "shots": shots,
            "accuracy": accuracy(scores, labels),
            "accuracy_within_family": None if math.isnan(among) else among,  # no families are known; JSON has no nan
            "log_loss": log_loss(probability, labels),
            "calibration_error": expected_calibration_error(probability, labels),
            "train_evaluations": 0,
            "denoiser_evaluations": 0,
            **extra,
        }
        return Outcome(method, shots, seed, scores, probability, row, **kept)

    def _run_generative(self, method: str, shots: int, seed: int) -> Outcome:
        if method == "gcpl" and (shots, seed) in self._gcpl:
            return self._gcpl[shots, seed]
        model = GCPLClassifier(self.preset, method, seed=seed, diffusion=self.diffusion, **self.settings)  # type: ignore[arg-type]
        start, vectors = None, None
        if method == "discriminative":  # its warm start is the GCPL run of the same episode
            start = self._run_generative("gcpl", shots, seed)
            assert start.model is not None
            vectors = start.model.prompts_.vectors.detach()
        chosen = draw_episode(self.support, shots, seed)
        exemplars, latents = self._exemplars.subset(chosen), self.test_latents
        total = model.config.discriminative_steps if method == "discriminative" else model.config.num_steps
        began = time.perf_counter()
        for record in model.learn(exemplars, self.support.class_names, warm_start=vectors):
            self.on_step(method, record, total)
        trained = time.perf_counter()
        evidence = model.evidence(latents)
        scores = model.scores(evidence)
        extra = {
            "train_evaluations": model.train_evaluations_ + (start.row["train_evaluations"] if start else 0),
            "denoiser_evaluations": evidence.num_evaluations,
            "train_seconds": trained - began + (start.row["train_seconds"] if start else 0.0),
            "predict_seconds": time.perf_counter() - trained,
            "temperature": model.temperature_,
            "weighting": model.weighting_,
            "accuracy_without_offsets": accuracy(scores - model.offsets_, self.test.labels),
            "readings": self._readings(evidence, model.support_errors_, model.support_labels_, seed),
        }
        chances = probabilities(scores, model.temperature_)
        outcome = self._outcome(method, shots, seed, scores, chances, extra, model=model, evidence=evidence)
        if method == "gcpl":
            self._gcpl[shots, seed] = outcome
        return outcome

    def _readings(
        self, evidence: Evidence, support_errors: np.ndarray, support_labels: np.ndarray, seed: int
    ) -> dict[str, float]:
        """Accuracy with each weighting, without and with offsets: what a choice among them is worth."""
        found: dict[str, float] = {}
        for weighting in WEIGHTINGS:
            found[weighting] = accuracy(class_scores(evidence.errors, weighting), self.test.labels)
            fitted = fit_reading(support_errors, support_labels, weighting=weighting, seed=seed)
            found[f"{weighting}, offsets"] = accuracy(fitted.scores(evidence.errors), self.test.labels)
        return found

    def _run_published(self, method: str, shots: int, seed: int) -> Outcome:
        """GCPL's published training and staged decision on the same exemplars; only the model is shared with ours."""
        names = self.support.class_names
        model = GCPLClassifier(
            self.preset,
            "gcpl",
            seed=seed,
            diffusion=self.diffusion,
            batch_size=PUBLISHED_PICTURES * len(names),
            **PUBLISHED_SETTINGS,
        )
        exemplars, latents = self._exemplars.subset(draw_episode(self.support, shots, seed)), self.test_latents
        began = time.perf_counter()
        for record in model.learn(exemplars, names, coarse_words=[COARSE_WORD] * len(names)):
            self.on_step(method, record, model.config.num_steps)
        trained = time.perf_counter()
        evidence = model.staged_evidence(latents, *PUBLISHED_STAGES, schedule="published", norm="l1")
        dropped = class_scores(evidence.errors, "absolute")
        # A class that was dropped has a mean over fewer samples; it stays behind all that went further.
        means = -np.nanmean(evidence.errors, axis=2)
        scores = np.where(np.isfinite(dropped), dropped, means - np.nanmax(evidence.errors))
        extra = {
            "train_evaluations": model.train_evaluations_,
            "denoiser_evaluations": evidence.num_evaluations,
            "train_seconds": trained - began,
            "predict_seconds": time.perf_counter() - trained,
        }
        # As for names: the published decision knows no temperature.
        return self._outcome(method, shots, seed, scores, probabilities(scores, 1.0), extra)

    def _run_named_prompts(self, method: str, shots: int, seed: int) -> Outcome:
        """Class names as prompts; as a control, with the offsets and temperature that learned prompts get too."""
        classifier, config, evidence, seconds = self._named_prompts(seed)
        # Nothing is learned without a photograph, no temperature either: 1, as published.
        wanted = self.settings.get("weighting", NAMED_WEIGHTING)
        plain: Weighting = NAMED_WEIGHTING if wanted == "chosen" else wanted
        reading, learned = Reading(plain, 1.0, np.zeros(len(self.test.class_names))), 0
        extra: dict[str, Any] = {"train_seconds": 0.0}
        if method == "diffusion_offsets":
            learned, began = shots, time.perf_counter()
            chosen = draw_episode(self.support, shots, seed)
            latents = self.diffusion.scale_latents(self._exemplars.subset(chosen).means[0])
            seen, labels = classifier.exact(latents, config.num_evidence), self.support.labels[chosen]
            reading = fit_reading(seen.errors, labels, weighting=self.settings.get("weighting", "chosen"), seed=seed)
            extra = {"train_evaluations": seen.num_evaluations, "train_seconds": time.perf_counter() - began}
            without = accuracy(class_scores(evidence.errors, reading.weighting), self.test.labels)
            extra |= {
                "accuracy_without_offsets": without,
                "readings": self._readings(evidence, seen.errors, labels, seed),
            }
        extra |= {
            "denoiser_evaluations": evidence.num_evaluations,
            "predict_seconds": seconds,
            "weighting": reading.weighting,
        }
        scores = reading.scores(evidence.errors)
        return self._outcome(
            method, learned, seed, scores, probabilities(scores, reading.temperature), extra, evidence=evidence
        )

    def _named_prompts(self, seed: int) -> tuple[DiffusionClassifier, GCPLConfig, Evidence, float]:
        """Class names as prompts, and what the test images show under them and in how many seconds; once a seed."""
        if seed not in self._named:
            latents, config = self.test_latents, GCPLClassifier(self.preset, seed=seed, **self.settings).config
            hidden = self.diffusion.encode_texts([config.templates[0].format(name) for name in self.test.class_names])
            classifier = make_classifier(self.diffusion, hidden, config, seed)
            began = time.perf_counter()
            evidence = classifier.exact(latents, config.num_evidence)
            self._named[seed] = classifier, config, evidence, time.perf_counter() - began
        return self._named[seed]

    def _run_cheap_method(self, method: str, shots: int, seed: int) -> Outcome:
        """Whatever needs no denoiser: CLIP's features, or pixels alone."""
        chosen = torch.from_numpy(draw_episode(self.support, shots, seed))
        labels = torch.from_numpy(self.support.labels)[chosen]
        on_pixels = method in ("pixel_forest", "small_network")
        support, test = self._pixels if on_pixels else (self._support_views, self._test_features)  # before the clock
        began = time.perf_counter()
        if on_pixels:
            scorer = self._fit_on_pixels(method, support[chosen], labels, seed)
        else:
            scorer = self._fit_clip_method(method, support[:, chosen], labels, seed)
        trained = time.perf_counter()
        logits = scorer.scores(test)
        extra = {"train_seconds": trained - began, "predict_seconds": time.perf_counter() - trained}
        learned = 0 if method.startswith("zero_shot") else shots
        return self._outcome(method, learned, seed, logits.numpy(), torch.softmax(logits.double(), 1).numpy(), extra)

    def _fit_on_pixels(self, method: str, pixels: Tensor, labels: Tensor, seed: int) -> Any:
        flip = bool(self.settings.get("flip", True))
        if method == "pixel_forest":
            return PixelForest(pixels, labels, seed, flip=flip)
        network = SmallNetwork(len(self.support.class_names), seed)
        batches = shifted_batches(pixels, labels, NETWORK_BATCH, seed, flip=flip)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # training from nothing magnifies rounding, which depends on the number of threads
        try:
            self._train_adapter(method, network, batches, NETWORK_TRAINING)
        finally:
            torch.set_num_threads(threads)
        return network

    def _fit_clip_method(self, method: str, views: Tensor, labels: Tensor, seed: int) -> Any:
        names, clip = self.support.class_names, self.clip
        if method == "nearest_class_mean":
            return NearestClassMean(views[0], labels, clip.logit_scale)
        if method == "linear_probe":
            return LinearProbe(views, labels, seed)
        if method == "zero_shot_clip_ensemble":
            return ZeroShotCLIP(clip, names, ENSEMBLE_TEMPLATES)
        zero_shot = ZeroShotCLIP(clip, names)
        if method == "zero_shot_clip":
            return zero_shot
        if method == "tip_adapter":
            return TipAdapter(zero_shot, views[0], labels)
        if method == "tip_adapter_f":
            return self._fit_tip_adapter_f(method, zero_shot, views, labels, seed)
        prompts = ContextPrompts(
            clip,
            names,
            num_context=4,
            class_specific=method == "coop_class_specific",
            initial_words="a photo of a",
            seed=seed,
        ).to(clip.device)
        objective = CoOp(clip, prompts)
        self._train_adapter(method, objective, feature_batches(views, labels, 64, seed), ADAPTER_TRAINING)
        return objective

    def _fit_tip_adapter_f(
        self, method: str, zero_shot: ZeroShotCLIP, views: Tensor, labels: Tensor, seed: int
    ) -> TipAdapterF:
        """Keys trained on every exemplar; weight and sharpness from keys that were trained without a fold."""
        smallest = int(np.bincount(labels.numpy()).min())
        right = np.zeros(len(TipAdapterF.settings()), np.int64)
        folds = cross_validation_folds(labels.numpy(), min(4, smallest), seed) if smallest >= 2 else []
        for inside, outside in ((torch.from_numpy(i), torch.from_numpy(o)) for i, o in folds):
            part = self._train_keys(
                None, TipAdapterF(zero_shot, views[0, inside], labels[inside]), views[:, inside], labels[inside], seed
            )
            right += part.held_out_right(views[0, outside], labels[outside])
        model = self._train_keys(method, TipAdapterF(zero_shot, views[0], labels), views, labels, seed)
        if folds:
            model.weight, model.sharpness = TipAdapterF.settings()[int(right.argmax())]
        return model

    def _train_keys(
        self, method: str | None, model: TipAdapterF, views: Tensor, labels: Tensor, seed: int
    ) -> TipAdapterF:
        """The model, trained; without a method's name nobody is told of it."""
        batches_an_epoch = -(-len(labels) // TIP_ADAPTER_BATCH)
        config = replace(TIP_ADAPTER_TRAINING, num_steps=TIP_ADAPTER_TRAINING.num_steps * batches_an_epoch)
        self._train_adapter(method, model, feature_batches(views, labels, TIP_ADAPTER_BATCH, seed), config)
        return model

    def _train_adapter(
        self, method: str | None, objective: Objective, batches: Callable[[int], Any], config: TrainingConfig
    ) -> None:
        for record in train(objective, batches, config):
            if method is not None:
                self.on_step(method, record, config.num_steps)
