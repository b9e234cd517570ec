"""Methods on the same draws of exemplars, answers kept image by image; and a method of draw 0, asked again later."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from gcpl_lab.baselines.base import BASELINES, MULTILABEL_BASELINES
from gcpl_lab.baselines.pixels import read_pixels
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.multilabel import split_validation
from gcpl_lab.data.readers import iter_images
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.captions import Words, name_classes
from gcpl_lab.evaluation.compare import Trial
from gcpl_lab.evaluation.costs import Costs, decide_each
from gcpl_lab.evaluation.multilabel import sigmoid
from gcpl_lab.experiments.base import run_all
from gcpl_lab.experiments.few_shot import FewShotExperiment
from gcpl_lab.experiments.multilabel import MultiLabelExperiment
from gcpl_lab.experiments.registry import MULTILABEL_METHODS
from gcpl_lab.gcpl.calibration import Reading, probabilities
from gcpl_lab.gcpl.encoding import read_latents
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.lmpt.estimator import LMPTClassifier, encode_views
from gcpl_lab.pilot.config import PilotConfig
from gcpl_lab.pilot.data import PilotData, targets_of

MODELS = "models"
Trials = FewShotExperiment | MultiLabelExperiment
Answers = Mapping[str, np.ndarray]


class PilotExperiment(FewShotExperiment):
    """Every draw of exemplars is followed by the images that people have corrected, the last ones of the pool."""

    num_corrections = 0

    def draw(self, shots: int, seed: int) -> np.ndarray:
        """Exemplars and corrections, int64."""
        usual = len(self.support) - self.num_corrections
        drawn = draw_episode(self.support.subset(np.arange(usual)), shots, seed)
        return np.append(drawn, np.arange(usual, len(self.support)))

    def __reduce__(self) -> tuple[Any, ...]:
        return *super().__reduce__(), {"num_corrections": self.num_corrections}


def run_method(experiment: Trials, method: str, shots: int, seed: int) -> Any:
    """The outcome of a method; with several labels it learns from all images of the pool."""
    if isinstance(experiment, FewShotExperiment):
        return experiment.run(method, shots, seed)
    return experiment.run(method, seed)


def answer_trial(whole: Trials, folder: Path, most: int, trial: Trial) -> dict[str, Any]:
    """A method's answers on calibration and test images; of draw 0 with ``most`` shots its prompts are saved."""
    experiment = whole
    if isinstance(whole, MultiLabelExperiment) and trial.shots < most:  # the same images for all methods of a draw
        chosen, _ = split_validation(whole.train.targets, 1 - trial.shots / most, trial.seed)
        train = whole.train.subset(chosen)
        experiment = MultiLabelExperiment(train, whole.test, preset=whole.preset, settings=whole.settings)
        experiment.views = whole.views[:, torch.from_numpy(chosen)]
        experiment.test_features = whole.test_features
    found = run_method(experiment, trial.method, trial.shots, trial.seed)
    if found.model is not None and (trial.shots, trial.seed) == (most, 0):
        found.model.save(folder / MODELS / trial.method)
    kept = {"probabilities": found.probabilities}
    if getattr(found, "evidence", None) is not None:
        kept["errors"] = found.evidence.errors.mean(axis=2)
    seconds = {name: found.row[name] for name in ("train_seconds", "predict_seconds")}
    return seconds | {name: np.round(values.astype(np.float64), 6).tolist() for name, values in kept.items()}


def is_simple(method: str, kind: str) -> bool:
    """Whether a method is a baseline: no prompts are learned."""
    return method in (BASELINES if kind == "classes" else MULTILABEL_BASELINES)


def check_methods(config: PilotConfig) -> None:
    """Refuse, by a DataError, methods that are unknown or cannot be asked again later, and no simple one among them."""
    known = [*OBJECTIVES, *BASELINES] if config.kind == "classes" else [*MULTILABEL_METHODS]
    if unknown := [name for name in config.method_names if name not in known]:
        raise DataError(f"methods: {', '.join(unknown)} cannot be used; expected some of {', '.join(known)}")
    if not any(is_simple(name, config.kind) for name in config.method_names):
        raise DataError(f"methods: {config.methods} has no simple one to be measured by; add linear_probe")


def make_experiment(config: PilotConfig, data: PilotData, words: Words) -> Trials:
    """Methods judge calibration and test images together; captions and class prompts have the trade's words."""
    pool, judged = data.pool, data.judged
    if isinstance(pool, ImageSet):
        made = PilotExperiment(pool, judged, preset=config.preset, settings={"num_steps": config.num_steps})
        made.num_corrections = data.num_corrections
        return made
    names = tuple(", ".join(terms[:3]) for terms in words.values())  # the class, and up to two of the trade's words
    pool = replace(pool, class_names=names, captions=tuple(name_classes(pool.captions, words)))
    judged = replace(judged, class_names=names)
    return MultiLabelExperiment(pool, judged, preset=config.preset, settings={"num_epochs": config.num_epochs})


def run_pilot_trials(
    config: PilotConfig, experiment: Trials, folder: Path, num_workers: int, on_trial: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows of every method and draw, with a quarter, half and all exemplars; those that are kept are not run again.

    Learning prompts is dear: fewer exemplars are tried with the first draw alone. ``shots`` of a row are images a class
    or, with several labels, images of the pool.
    """
    shots = config.shots if isinstance(experiment, FewShotExperiment) else len(experiment.train)
    counts, line = sorted({max(1, shots // 4), max(1, shots // 2), shots}), "{method}, {shots} images, draw {seed}"
    trials = [
        Trial(method, count, seed)
        for seed, count, method in itertools.product(range(config.draws), counts, config.method_names)
        if seed == 0 or count == shots or is_simple(method, config.kind)
    ]
    key, run = f"pilot {experiment.fingerprint()}", partial(answer_trial, experiment, folder, shots)
    return run_all(folder, trials, run, key, line, num_workers, on_trial)


class Judge:
    """A method of draw 0, asked about any images: its saved prompts, or a baseline fitted on the exemplars again.

    Args:
        method: Its name.
        shots: Images a class that it learned from.
        experiment: Of the pilot, with the frozen models that all judges share.
        folder: Of the pilot, which holds the prompts.

    Attributes:
        exemplars, features: What it learned from, and CLIP's features of these and of their mirror images.
        model: Its learned prompts; None of a baseline.
        thresholds: Of probabilities, (class,); None where an image has one class.
        answers: Of the calibration images, and of the test images or those that came in, where they are known.
        costs, limit, spent: Money; the certainty below which a person looks; what calibration images cost with it.
    """

    answers: Sequence[Answers] = ()
    costs = Costs(0, 0, 0)
    limit = spent = 0.0

    def __init__(self, method: str, shots: int, experiment: Trials, folder: Path) -> None:
        self.method, self.experiment, self.clip, self.fit = method, experiment, experiment.clip, experiment.fit
        self.exemplars: Any = experiment.pool
        self.features = experiment.views
        single, baselines = isinstance(experiment, FewShotExperiment), MULTILABEL_BASELINES
        if isinstance(experiment, FewShotExperiment):
            chosen, baselines = experiment.draw(shots, 0), BASELINES
            self.exemplars, self.features = experiment.pool.subset(chosen), self.features[:, torch.from_numpy(chosen)]
        self.model: Any = None
        if method in baselines:
            found = run_method(experiment, method, shots, 0)
            learned: tuple[Any, Any] = (found.scorer, None) if single else found.scorer
            self._scorer, self._scale = learned
            self._sees = baselines[method].facts.get("sees")
            self.thresholds: np.ndarray | None = getattr(found, "thresholds", None)
        else:
            self.model = (GCPLClassifier if single else LMPTClassifier).load(folder / MODELS / method)
            self.thresholds = getattr(self.model, "thresholds_", None)

    def decide(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Certainty and answers on a part of ``answers``, see :func:`~gcpl_lab.evaluation.costs.decide_each`."""
        return decide_each(self.answers[part]["probabilities"], self.thresholds)

    def answer(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """``features`` (image, feature), ``probabilities``, ``distances`` and a denoiser's ``errors`` by class."""
        seen, model = self.encode(images), self.model
        found = {"features": seen.numpy().round(4), "distances": self.distances(seen)}
        if isinstance(model, GCPLClassifier):
            errors = model.errors(model.encode(images), model.config.num_evidence)
            scores = Reading(model.weighting_, 1.0, model.offsets_).scores(errors)
            return found | {"errors": errors.mean(axis=2), "probabilities": probabilities(scores, model.temperature_)}
        if model is not None:
            return found | {"probabilities": np.asarray(model.predict_proba(images))}
        if self._sees == "pixels":
            seen = read_pixels(iter_images(images, self.fit))
        elif self._sees == "latents":
            seen = read_latents(self.experiment.diffusion, images, self.fit)  # type: ignore[union-attr]
        logits = self._scorer.scores(seen).double().numpy()
        return found | {"probabilities": sigmoid(logits, self._scale) if self._scale else softmax(logits, axis=1)}

    def encode(self, images: Sequence[Any]) -> torch.Tensor:
        """CLIP's features of images, (image, feature)."""
        return encode_views(self.clip, images, flip=False, fit=self.fit)[0]

    def distances(self, features: torch.Tensor) -> np.ndarray:
        """One minus the cosine of features to the nearest exemplar with each class, (image, class); 2 without one."""
        similar, held = (features @ self.features[0].T).numpy(), targets_of(self.exemplars).astype(bool)
        return np.stack([1 - similar[:, has].max(axis=1, initial=-1.0) for has in held.T], axis=1)
