"""Few-shot experiments: every method on the same images, with what is frozen computed once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.baselines.base import BASELINES, FeatureSupport, LatentSupport, PixelSupport
from gcpl_lab.baselines.pixels import read_pixels
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import iter_images
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.metrics import accuracy, accuracy_within_family, expected_calibration_error, log_loss
from gcpl_lab.evaluation.mirroring import choose_mirroring
from gcpl_lab.experiments.base import Experiment, OnStep, Stopwatch
from gcpl_lab.experiments.registry import METHODS, Titles, start_of
from gcpl_lab.experiments.tif import smallest_class_distance, timestep_weights
from gcpl_lab.gcpl.calibration import WEIGHTINGS, Reading, Weighting, class_scores, fit_reading, probabilities
from gcpl_lab.gcpl.classifier import DiffusionClassifier, Evidence
from gcpl_lab.gcpl.encoding import read_exemplars, read_latents
from gcpl_lab.gcpl.estimator import GCPLClassifier, make_classifier
from gcpl_lab.gcpl.growing import GrownClassifier
from gcpl_lab.gcpl.noop import NoiseSampler, NoOp, TunedClassifier
from gcpl_lab.gcpl.objectives import OBJECTIVES, Stage
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.registry import Entry
from gcpl_lab.training.device import default_device
from gcpl_lab.training.loop import TrainingConfig, train

METHOD_TITLES = Titles(METHODS.entries)
QUICK_METHODS = Titles(lambda: METHODS.entries(slow=False))
"""All but those that take minutes."""

NAMED_WEIGHTING: Weighting = "relative"
"""How errors under bare class names are averaged, unless the settings say: there are no exemplars to choose on, and on
images that are not judged here this was better (docs/gcpl_settings.md)."""

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
"""GCPL as its authors' script runs it, with four images a class and update (docs/gcpl_settings.md)."""
PUBLISHED_IMAGES, PUBLISHED_STAGES = 4, ((5, 1), (10, 100))
"""Classes kept after each stage of their classifier, and samples a class, a fifth of theirs: 550 evaluations an image
of ten classes."""


@dataclass(frozen=True)
class Outcome:
    """One method on one episode."""

    method: str
    shots: int  # images a class it learned from, 0 for zero-shot methods
    seed: int
    scores: np.ndarray  # float (test image, class), larger is better
    probabilities: np.ndarray  # (test image, class)
    row: dict[str, Any]  # what results.json holds
    model: GCPLClassifier | None = None  # of an objective
    scorer: Any = None  # of a baseline: what it learned
    evidence: Evidence | None = None  # errors on the test images, of a diffusion classifier


@dataclass(frozen=True)
class Seen:
    """What a reading was fitted on: labelled images among the exemplars."""

    errors: np.ndarray  # (image, class, sample)
    labels: np.ndarray
    exemplars: Exemplars


class FewShotExperiment(Experiment[ImageSet]):
    """All methods on episodes of one support pool and one test set, with the same classes in the same order.

    Args:
        support: The pool that episodes are drawn from.
        settings: Fields of :class:`~gcpl_lab.gcpl.settings.GCPLConfig` for the generative methods.
        on_step: Called with (method, record, number of steps) after every update, for progress.
    """

    role = "support"

    def __init__(
        self,
        support: ImageSet,
        test: ImageSet,
        *,
        preset: str = "tiny",
        settings: Mapping[str, Any] | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        super().__init__(support, test, preset, settings, on_step)
        self.support = support
        missing = [name for label, name in enumerate(test.class_names) if not (test.labels == label).any()]
        if missing:
            raise DataError(f"{test.name}: no test image of {', '.join(missing)}; add some or leave the class out")
        if self.settings.get("classification", "exact") != "exact":
            raise DataError(
                f"classification is {self.settings['classification']!r}; a comparison looks at every class on every "
                "(t, ε), so leave it at 'exact'"
            )
        self.config: GCPLConfig = GCPLClassifier(preset, **self.settings).config
        self._starts: dict[tuple[str, int, int], Outcome] = {}
        self._named: dict[int, tuple[DiffusionClassifier, Evidence, float]] = {}

    @cached_property
    def diffusion(self) -> FrozenDiffusion:
        """The frozen denoiser of the preset."""
        return FrozenDiffusion.load(self.preset, device=default_device())

    @cached_property
    def _exemplars(self) -> Exemplars:
        return read_exemplars(self.diffusion, self.support.images, self.support.labels, self.fit)

    @cached_property
    def test_latents(self) -> Tensor:
        """Scaled latents of the test images."""
        return read_latents(self.diffusion, self.test.images, self.fit)

    @cached_property
    def _pixels(self) -> tuple[Tensor, Tensor]:
        """Pixels of the support and of the test images."""
        support, test = (read_pixels(iter_images(part.images, self.fit)) for part in (self.support, self.test))
        return support, test

    @property
    def _seen(self) -> dict[str, Any]:
        """The settings, with what is seen of an image as it was chosen for all methods."""
        return self.settings | {"fit": self.fit}

    def draw(self, shots: int, seed: int) -> np.ndarray:
        """Which images of the pool are learned from, int64; all of them where shots are 0."""
        return draw_episode(self.support, shots, seed) if shots else np.arange(len(self.support))

    def known(self, method: str, shots: int, seed: int) -> GCPLClassifier | None:
        """A classifier of some of the classes, whose prompts an objective keeps as they are."""
        return None

    def fingerprint(self) -> str:
        """Whatever the diffusion classifiers' results depend on besides method, shots and seed."""
        return repr((self.config, self.support.checksum, self.test.checksum, self.diffusion.checksum()))

    def run(self, method: str, shots: int, seed: int) -> Outcome:
        """Learn one of ``METHODS`` from an episode with so many shots a class and classify the test images.

        Seconds count what the method itself does; reading and encoding images is done once for all methods.
        """
        entry = METHODS[method]
        if method in OBJECTIVES:
            return self._run_objective(entry, shots, seed)
        if method in BASELINES:
            return self._run_baseline(entry, shots, seed)
        outcome: Outcome = entry.target(self, method, shots, seed, **entry.defaults)
        return outcome

    def outcome(
        self, method: str, shots: int, seed: int, scores: np.ndarray, chances: np.ndarray, **more: Any
    ) -> Outcome:
        """See :class:`Outcome`; ``more`` has further cells of the row, and ``model``, ``scorer`` and ``evidence``."""
        kept = {name: more.pop(name, None) for name in ("model", "scorer", "evidence")}
        labels = self.test.labels
        among = accuracy_within_family(scores, labels, self.test.class_names, self.test.families)
        row = {
            "name": method,
            "seed": seed,
            "shots": shots,
            "accuracy": accuracy(scores, labels),
            "accuracy_within_family": None if math.isnan(among) else among,  # no families are known; JSON has no nan
            "log_loss": log_loss(chances, labels),
            "calibration_error": expected_calibration_error(chances, labels),
            "train_evaluations": 0,
            "denoiser_evaluations": 0,
            **more,
        }
        return Outcome(method, shots, seed, scores, chances, row, **kept)

    def _run_baseline(self, entry: Entry, shots: int, seed: int) -> Outcome:
        chosen = torch.from_numpy(self.draw(shots, seed))
        common: dict[str, Any] = {"class_names": self.support.class_names, "seed": seed}
        common |= {"labels": torch.from_numpy(self.support.labels)[chosen]}
        common |= {"on_step": partial(self.on_step, entry.name)}
        support: FeatureSupport | PixelSupport | LatentSupport
        if entry.facts.get("sees") == "pixels":
            pixels, test = self._pixels[0][chosen], self._pixels[1]
            flip = self._mirrored(torch.stack([pixels, pixels.flip(-1)]), common["labels"])
            support = PixelSupport(pixels=pixels, flip=flip, **common)
        elif entry.facts.get("sees") == "latents":
            latents, test = self.diffusion.scale_latents(self._exemplars.means[:, chosen]), self.test_latents
            flip = self._mirrored(latents, common["labels"])
            shown = latents if flip else latents[:1]
            support = LatentSupport(diffusion=self.diffusion, latents=shown, flip=flip, **common)
        else:
            views, test = self.views[:, chosen], self.test_features
            flip = self._mirrored(views, common["labels"])
            support = FeatureSupport(clip=self.clip, features=views if flip else views[:1], flip=flip, **common)
        watch = Stopwatch()
        scorer = entry.target(support, **entry.defaults)
        watch.learned()
        logits = scorer.scores(test)
        learned = shots if entry.facts.get("shots", True) else 0
        chances = torch.softmax(logits.double(), 1).numpy()
        return self.outcome(entry.name, learned, seed, logits.numpy(), chances, scorer=scorer, **watch.row())

    def _mirrored(self, views: Tensor, labels: Tensor) -> bool:
        return choose_mirroring(self.config.flip, views, labels, self.support.class_names).flip

    def _run_objective(self, entry: Entry, shots: int, seed: int) -> Outcome:
        if (entry.name, shots, seed) in self._starts:
            return self._starts[entry.name, shots, seed]
        if known := self.known(entry.name, shots, seed):
            model: GCPLClassifier = GrownClassifier(known)
        else:
            model = GCPLClassifier(self.preset, entry.name, seed=seed, diffusion=self.diffusion, **self._seen)
        stage: Stage = entry.facts.get("stage", Stage())
        vectors, before = None, {"train_evaluations": 0, "train_seconds": 0.0}
        if first := entry.facts.get("starts_from"):  # its warm start is the other objective's run of the same episode
            start = self.run(first, shots, seed)
            assert start.model is not None
            vectors, before = start.model.prompts_.vectors.detach(), start.row
        chosen, latents = self.draw(shots, seed), self.test_latents
        exemplars = self._exemplars.subset(chosen)
        if entry.facts.get("reads_clip"):
            exemplars = replace(exemplars, features=self.views[:, torch.from_numpy(chosen)])
        watch = Stopwatch()
        records = model.learn(exemplars, self.support.class_names, warm_start=vectors)
        self.follow(entry.name, records, lambda: getattr(model.config, stage.num_steps))
        watch.learned()
        evidence = model.evidence(latents)
        seconds = watch.row()
        seen = Seen(model.support_errors_, model.support_labels_, exemplars)
        reading = Reading(model.weighting_, model.temperature_, model.offsets_)
        more = seconds | {"train_seconds": seconds["train_seconds"] + before["train_seconds"]}
        more |= {"train_evaluations": model.train_evaluations_ + before["train_evaluations"]}
        outcome = self.read(entry.name, shots, seed, evidence, reading, seen, model=model, **more)
        if start_of(entry.name) == entry.name:
            self._starts[entry.name, shots, seed] = outcome
        return outcome

    def read(
        self, method: str, shots: int, seed: int, evidence: Evidence, reading: Reading, seen: Seen | None, **more: Any
    ) -> Outcome:
        """What evidence of the test images says; where exemplars were seen, also read in other ways."""
        scores = reading.scores(evidence.errors)
        more |= {"denoiser_evaluations": evidence.num_evaluations, "weighting": reading.weighting}
        more |= {"temperature": reading.temperature, "evidence": evidence}
        if seen is not None:
            more["readings"] = self.readings(evidence, seen, seed)
            more["accuracy_without_offsets"] = more["readings"][reading.weighting]
        return self.outcome(method, shots, seed, scores, probabilities(scores, reading.temperature), **more)

    def readings(self, evidence: Evidence, seen: Seen, seed: int) -> dict[str, float]:
        """Accuracy with each weighting and with TiF's, without and with offsets: what a choice among them is worth."""
        latents = self.diffusion.scale_latents(seen.exemplars.means[0])
        products = self.diffusion.scheduler.alphas_cumprod[torch.from_numpy(evidence.timesteps)].double().numpy()
        tif = timestep_weights(products, smallest_class_distance(latents, seen.exemplars.labels))
        kinds: dict[str, tuple[Weighting, Any]] = {name: (name, 1.0) for name in WEIGHTINGS}
        kinds["TiF"], found = ("absolute", tif), dict[str, float]()
        for name, (weighting, weights) in kinds.items():
            found[name] = accuracy(class_scores(evidence.errors * weights, weighting), self.test.labels)
            fitted = fit_reading(seen.errors * weights, seen.labels, weighting=weighting, seed=seed)
            found[f"{name}, offsets"] = accuracy(fitted.scores(evidence.errors * weights), self.test.labels)
        return found

    def under_names(self, seed: int) -> tuple[DiffusionClassifier, Evidence, float]:
        """Class names as prompts, and what the test images show under them and in how many seconds; once a seed."""
        if seed not in self._named:
            latents, config = self.test_latents, self.config
            hidden = self.diffusion.encode_texts([config.templates[0].format(name) for name in self.test.class_names])
            classifier = make_classifier(self.diffusion, hidden, config, seed)
            began = time.perf_counter()
            evidence = classifier.exact(latents, config.num_evidence)
            self._named[seed] = classifier, evidence, time.perf_counter() - began
        return self._named[seed]


@METHODS.register("diffusion_offsets", title="Zero-shot diffusion, offsets", defaults={"fitted": True})
@METHODS.register("zero_shot_diffusion", title="Zero-shot diffusion", defaults={"fitted": False})
def run_names(experiment: FewShotExperiment, method: str, shots: int, seed: int, fitted: bool) -> Outcome:
    """Class names as prompts; as a control, with the offsets and temperature that learned prompts get too."""
    classifier, evidence, seconds = experiment.under_names(seed)
    wanted: Any = experiment.settings.get("weighting", "chosen" if fitted else NAMED_WEIGHTING)
    # Nothing is learned without an image, no temperature either: 1, as published.
    plain: Weighting = NAMED_WEIGHTING if wanted == "chosen" else wanted
    reading, seen = Reading(plain, 1.0, np.zeros(len(experiment.test.class_names))), None
    more: dict[str, Any] = {"train_seconds": 0.0, "predict_seconds": seconds}
    if fitted:
        watch, exemplars = Stopwatch(), experiment._exemplars.subset(experiment.draw(shots, seed))
        latents = experiment.diffusion.scale_latents(exemplars.means[0])
        found, labels = classifier.exact(latents, experiment.config.num_evidence), exemplars.labels.numpy()
        reading = fit_reading(found.errors, labels, weighting=wanted, seed=seed)
        watch.learned()
        more |= {"train_evaluations": found.num_evaluations, "train_seconds": watch.row()["train_seconds"]}
        seen = Seen(found.errors, labels, exemplars)
    return experiment.read(method, shots if fitted else 0, seed, evidence, reading, seen, **more)


@METHODS.register("gcpl_published", title="GCPL, published settings", quick=False)
def run_published(experiment: FewShotExperiment, method: str, shots: int, seed: int) -> Outcome:
    """GCPL's published training and staged decision on the same exemplars; only the model is shared with ours."""
    names = experiment.support.class_names
    settings = {**PUBLISHED_SETTINGS, "batch_size": PUBLISHED_IMAGES * len(names)}
    model = GCPLClassifier(experiment.preset, "gcpl", seed=seed, diffusion=experiment.diffusion, **settings)
    exemplars = experiment._exemplars.subset(experiment.draw(shots, seed))
    latents, watch = experiment.test_latents, Stopwatch()
    records = model.learn(exemplars, names, coarse_words=[COARSE_WORD] * len(names))
    experiment.follow(method, records, lambda: model.config.num_steps)
    watch.learned()
    evidence = model.staged_evidence(latents, *PUBLISHED_STAGES, schedule="published", norm="l1")
    dropped = class_scores(evidence.errors, "absolute")
    # A class that was dropped has a mean over fewer samples; it stays behind all that went further.
    means = -np.nanmean(evidence.errors, axis=2)
    scores = np.where(np.isfinite(dropped), dropped, means - np.nanmax(evidence.errors))
    chances = probabilities(scores, 1.0)  # as for names: the published decision knows no temperature
    spent = {"train_evaluations": model.train_evaluations_, "denoiser_evaluations": evidence.num_evaluations}
    return experiment.outcome(method, shots, seed, scores, chances, **spent, **watch.row())


NOISE_TRAINING = TrainingConfig(num_steps=100, learning_rate=0.01, gradient_clip=0.0)  # of NoOp's noises


@METHODS.register("noop", title="NoOp", quick=False, starts_from="gcpl")
def run_noop(experiment: FewShotExperiment, method: str, shots: int, seed: int) -> Outcome:
    """Learned noises under the prompts that GCPL learned from the same exemplars; the authors have class names."""
    diffusion, num, start = experiment.diffusion, experiment.config.num_evidence, experiment.run("gcpl", shots, seed)
    assert start.model is not None
    exemplars, latents = experiment._exemplars.subset(experiment.draw(shots, seed)), experiment.test_latents
    before, watch = diffusion.num_denoiser_evaluations, Stopwatch()
    objective = NoOp(start.model.classifier(seed), num)
    sampler = NoiseSampler(diffusion, exemplars, num, flip=start.model.mirroring_.flip, seed=seed)
    experiment.follow(method, train(objective, sampler, NOISE_TRAINING), lambda: NOISE_TRAINING.num_steps)
    classifier = TunedClassifier(objective)
    own, labels = diffusion.scale_latents(exemplars.means[0]), exemplars.labels.numpy()
    found = classifier.exact(own, num)
    reading = fit_reading(found.errors, labels, weighting="relative", seed=seed)
    watch.learned()
    spent = diffusion.num_denoiser_evaluations - before
    evidence = classifier.exact(latents, num)
    more = watch.row() | {"accuracy_with_random_noises": start.row["accuracy"]}
    more["train_seconds"] += start.row["train_seconds"]
    more["train_evaluations"] = start.row["train_evaluations"] + spent
    return experiment.read(method, shots, seed, evidence, reading, Seen(found.errors, labels, exemplars), **more)
