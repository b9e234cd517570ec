"""Methods on the same draws of exemplars, answers kept image by image; and a method of draw 0, asked again later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from gcpl_lab.baselines.base import BASELINES, MULTILABEL_BASELINES, FeatureSupport, LatentSupport, PixelSupport
from gcpl_lab.baselines.pixels import read_pixels
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.framing import choose_fit
from gcpl_lab.data.multilabel import split_validation
from gcpl_lab.data.readers import iter_images
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.calibration import fit_sigmoid
from gcpl_lab.evaluation.captions import name_classes, prompt_names
from gcpl_lab.evaluation.compare import Trial
from gcpl_lab.evaluation.multilabel import choose_thresholds, sigmoid
from gcpl_lab.experiments.base import run_all
from gcpl_lab.experiments.few_shot import FewShotExperiment
from gcpl_lab.experiments.multilabel import MultiLabelExperiment
from gcpl_lab.experiments.registry import MULTILABEL_METHODS
from gcpl_lab.gcpl.calibration import Reading, probabilities
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.lmpt.estimator import LMPTClassifier, encode_views
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.pilot.config import PilotConfig
from gcpl_lab.pilot.data import PilotData, targets_of
from gcpl_lab.training.device import default_device

MODELS = "models"
Trials = FewShotExperiment | MultiLabelExperiment


@dataclass
class Answering:
    """Runs a method on a draw and keeps its answers on calibration and test images; picklable, for workers."""

    experiment: Trials
    folder: Path
    shots: int

    def __call__(self, trial: Trial) -> dict[str, Any]:
        found: Any
        if isinstance(self.experiment, FewShotExperiment):
            found = self.experiment.run(trial.method, trial.shots, trial.seed)
        else:
            found = self._part(trial).run(trial.method, trial.seed)
        if found.model is not None and (trial.shots, trial.seed) == (self.shots, 0):
            found.model.save(self.folder / MODELS / trial.method)
        kept = {"probabilities": found.probabilities}
        if getattr(found, "evidence", None) is not None:
            kept["errors"] = found.evidence.errors.mean(axis=2)
        seconds = {name: found.row[name] for name in ("train_seconds", "predict_seconds")}
        return {**seconds, **{name: np.round(values.astype(np.float64), 6).tolist() for name, values in kept.items()}}

    def _part(self, trial: Trial) -> MultiLabelExperiment:
        """The experiment on so many images of the pool, the same for all methods of a draw."""
        whole = self.experiment
        assert isinstance(whole, MultiLabelExperiment)
        if trial.shots == len(whole.train):
            return whole
        chosen, _ = split_validation(whole.train.targets, 1 - trial.shots / len(whole.train), trial.seed)
        part = MultiLabelExperiment(
            whole.train.subset(chosen), whole.test, preset=whole.preset, settings=whole.settings
        )
        part.views, part.test_features = whole.views[:, torch.from_numpy(chosen)], whole.test_features
        return part


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


def make_experiment(config: PilotConfig, data: PilotData, words: dict[str, list[str]]) -> Trials:
    """Methods judge calibration and test images together; captions and class prompts have the trade's words."""
    pool, judged = data.pool, data.judged
    if isinstance(pool, ImageSet):
        return FewShotExperiment(pool, judged, preset=config.preset, settings={"num_steps": config.num_steps})
    names = prompt_names(words)
    pool = replace(pool, class_names=names, captions=tuple(name_classes(pool.captions, words)))
    judged = replace(judged, class_names=names)
    return MultiLabelExperiment(pool, judged, preset=config.preset, settings={"num_epochs": config.num_epochs})


def run_pilot_trials(
    config: PilotConfig, experiment: Trials, folder: Path, num_workers: int, on_trial: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Rows of every method and draw, with a quarter, half and all exemplars; those that are kept are not run again.

    ``shots`` of a row are images a class or, with several labels, images of the pool.
    """
    shots = config.shots if isinstance(experiment, FewShotExperiment) else len(experiment.train)
    counts, line = sorted({max(1, shots // 4), max(1, shots // 2), shots}), "{method}, {shots} images, draw {seed}"
    methods, draws = config.method_names, range(config.draws)
    trials = [Trial(method, count, seed) for seed in draws for count in counts for method in methods]
    key, run = f"pilot {experiment.fingerprint()}", Answering(experiment, folder, shots)
    return run_all(folder, trials, run, key, line, num_workers, on_trial)


class Judge:
    """A method of draw 0, asked about any images: its saved prompts, or a baseline fitted on the exemplars again.

    Args:
        method: Its name.
        config, data: Of the pilot.
        folder: Of the pilot, which holds the prompts.
        names: What class prompts are called.
        clip: The frozen CLIP of its preset, which all judges of a pilot share.

    Attributes:
        exemplars: What it learned from.
        model: Its learned prompts; None of a baseline.
        fit: The square that is seen of an image, see :mod:`gcpl_lab.data.framing`.
        thresholds: Of probabilities, (class,); None where an image has one class.
    """

    def __init__(
        self, method: str, config: PilotConfig, data: PilotData, folder: Path, names: Sequence[str], clip: FrozenCLIP
    ) -> None:
        self.method, self.preset, self.clip, pool = method, config.preset, clip, data.pool
        several = isinstance(pool, MultiLabelSet)
        self.exemplars = pool.subset(draw_episode(pool, config.shots, 0)) if isinstance(pool, ImageSet) else pool
        self.fit = choose_fit(pool.images)
        self.features = encode_views(self.clip, self.exemplars.images, fit=self.fit)
        self.thresholds: np.ndarray | None = None
        self.model: GCPLClassifier | LMPTClassifier | None = None
        if not is_simple(method, config.kind):
            self.model = (LMPTClassifier if several else GCPLClassifier).load(folder / MODELS / method)
            self.thresholds = getattr(self.model, "thresholds_", None)
            return
        self._entry = (MULTILABEL_BASELINES if several else BASELINES)[method]
        self._scorer, self._scale = self._fit(names), (1.0, 0.0)
        if several:  # its sigmoid and thresholds, on images that it did not learn from
            known, wanted = data.calibration.images, targets_of(data.calibration)
            logits = self._logits(known, self._encode(known))
            self._scale = fit_sigmoid(logits, wanted)
            self.thresholds = choose_thresholds(sigmoid(logits, self._scale), wanted)

    def _fit(self, names: Sequence[str]) -> Any:
        exemplars, facts = self.exemplars, self._entry.facts
        labels = exemplars.labels if isinstance(exemplars, ImageSet) else exemplars.targets
        common: dict[str, Any] = {"class_names": names, "labels": torch.from_numpy(labels)}
        if facts.get("sees") == "pixels":
            return self._entry.target(
                PixelSupport(pixels=read_pixels(iter_images(exemplars.images, self.fit)), **common)
            )
        if facts.get("sees") == "latents":
            pixels = self._diffusion.preprocess(iter_images(exemplars.images, self.fit))
            views = torch.stack([self._latents(pixels), self._latents(pixels.flip(-1))])
            return self._entry.target(LatentSupport(diffusion=self._diffusion, latents=views, **common))
        support = FeatureSupport(clip=self.clip, features=self.features, **common)
        settings = {**self._entry.defaults, **(facts["choose"](support) if "choose" in facts else {})}
        return self._entry.target(support, **settings)

    @cached_property
    def _diffusion(self) -> FrozenDiffusion:
        return FrozenDiffusion.load(self.preset, device=default_device())

    def _latents(self, pixels: Tensor) -> Tensor:
        return self._diffusion.scale_latents(self._diffusion.encode_moments(pixels)[0])

    def _logits(self, images: Sequence[Any], features: Tensor) -> np.ndarray:
        sees = self._entry.facts.get("sees", "features")
        if sees == "features":
            seen = features
        elif sees == "latents":
            seen = self._latents(self._diffusion.preprocess(iter_images(images, self.fit)))
        else:
            seen = read_pixels(iter_images(images, self.fit))
        logits: np.ndarray = self._scorer.scores(seen).double().numpy()
        return logits

    def answer(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """``probabilities``, ``distances`` and, of a denoiser, ``errors``: (image, class) each."""
        features, model = self._encode(images), self.model
        found = {"distances": self.distances(features)}
        if isinstance(model, GCPLClassifier):
            errors = model.errors(model.encode(images), model.config.num_evidence)
            scores = Reading(model.weighting_, 1.0, model.offsets_).scores(errors)
            return found | {"errors": errors.mean(axis=2), "probabilities": probabilities(scores, model.temperature_)}
        if model is not None:
            return found | {"probabilities": np.asarray(model.predict_proba(images))}
        logits = self._logits(images, features)
        several = isinstance(self.exemplars, MultiLabelSet)
        return found | {"probabilities": sigmoid(logits, self._scale) if several else softmax(logits, axis=1)}

    def _encode(self, images: Sequence[Any]) -> Tensor:
        """CLIP's features of images, (image, feature)."""
        return encode_views(self.clip, images, flip=False, fit=self.fit)[0]

    def similarities(self, images: Sequence[Any]) -> np.ndarray:
        """Cosines to the exemplars in CLIP's features, (image, exemplar)."""
        found: np.ndarray = (self._encode(images) @ self.features[0].T).numpy()
        return found

    def distances(self, images: Sequence[Any] | Tensor) -> np.ndarray:
        """One minus the cosine to the nearest exemplar with each class, (image, class); 2 where there is none.

        Of images, or of features (image, feature) that CLIP has made of them already.
        """
        features = images if isinstance(images, Tensor) else self._encode(images)
        similar, held = (features @ self.features[0].T).numpy(), targets_of(self.exemplars).astype(bool)
        found: np.ndarray = np.stack([1 - similar[:, has].max(axis=1, initial=-1.0) for has in held.T], axis=1)
        return found
