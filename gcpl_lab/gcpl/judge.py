"""The half of GCPLClassifier that looks at images: errors, scores, predictions, and the files that keep the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.framing import check_saved_fit
from gcpl_lab.data.sets import check_labels
from gcpl_lab.errors import ArtifactError
from gcpl_lab.fast.race import Race, RaceEvidence
from gcpl_lab.gcpl import fast_decision
from gcpl_lab.gcpl.calibration import WEIGHTINGS, Reading, Weighting, probabilities
from gcpl_lab.gcpl.classifier import DiffusionClassifier, Evidence, spaced_timesteps
from gcpl_lab.gcpl.encoding import PART, read_latents
from gcpl_lab.gcpl.evidence import make_classifier
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.gcpl.staged import Schedule
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import default_device, prepare_for_device, weights_dtype
from gcpl_lab.training.estimator import PromptClassifier
from gcpl_lab.training.memory import FORWARD_ADVICE, MemoryFit
from gcpl_lab.training.processes import split_work


class PromptJudge(PromptClassifier):
    """Base of :class:`~gcpl_lab.gcpl.estimator.GCPLClassifier`, which says what the attributes are.

    With several processes each encodes and judges its share of the images, in passes that fit into memory.
    """

    MODEL, CONFIG, METHOD, FITTED, FINISHED = "diffusion", GCPLConfig, "gcpl", "prompts_", "temperature_"

    config: GCPLConfig
    prompts_: ClassPrompts
    classes_: np.ndarray
    class_names_: tuple[str, ...]
    temperature_: float
    offsets_: np.ndarray
    weighting_: Weighting
    fit_: str
    fast_: Race
    _diffusion: FrozenDiffusion | None

    @property
    def diffusion(self) -> FrozenDiffusion:
        """The frozen model, loaded when first asked for, and prepared for this estimator's precision."""
        if self._diffusion is None:
            self._load_model()
        assert self._diffusion is not None
        if self._diffusion.device.type != "cpu":
            prepare_for_device(self._diffusion.denoiser, self._diffusion.device, self.config.precision)
        return self._diffusion

    def _load_model(self, dtype: torch.dtype | None = None) -> None:
        config, device = self.config, default_device()
        dtype = dtype or weights_dtype(config.precision, device)
        self._diffusion = FrozenDiffusion.load(config.preset, device=device, dtype=dtype)

    @property
    def timestep_range(self) -> tuple[float, float]:
        """The part of the noise schedule in use."""
        return self.config.timestep_range or self.diffusion.evidence_range

    def encode(self, images: Sequence[Any]) -> Tensor:
        """Scaled latents (image, channel, height, width) of images."""
        return read_latents(self.diffusion, images, self.fit_, self.encode_moments)

    def encode_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The VAE's moments of images: every process encodes its share, in passes that fit into memory."""
        fit = MemoryFit(PART, FORWARD_ADVICE)
        means, log_variances = split_work(
            pixels, lambda own: fit(lambda size: self.diffusion.encode_moments(own, size))
        )
        return means.contiguous(), log_variances.contiguous()

    def classifier(
        self, seed: int, norm: Literal["l1", "l2"] = "l2", batch_size: int | None = None
    ) -> DiffusionClassifier:
        """A diffusion classifier of the prompts as they are, with noises from ``seed``."""
        with torch.no_grad():
            hidden = self.diffusion.encode_prompts(*self.prompts_())
        return make_classifier(self.diffusion, hidden, self.config, seed, norm, batch_size)

    def evidence(self, latents: Tensor) -> Evidence:
        """Errors (image, class, timestep) of scaled latents under the learned prompts: every class on every (t, ε)."""
        self._check_fitted()
        errors = self.errors(latents, self.config.num_evidence)
        timesteps = spaced_timesteps(self.diffusion.num_timesteps, self.config.num_evidence, self.timestep_range)
        return Evidence(errors, timesteps.numpy(), int(errors.size))

    def errors(self, latents: Tensor, num_samples: int, seed: int | None = None) -> np.ndarray:
        """Errors (image, class, sample) on ``num_samples`` (t, ε) with noises from ``seed`` (that of the settings)."""
        seed = self.config.seed if seed is None else seed
        fit = MemoryFit(self.config.evidence_batch_size, FORWARD_ADVICE)
        found = split_work(
            latents,
            lambda own: [
                torch.from_numpy(fit(lambda n: self.classifier(seed, batch_size=n).exact(own, num_samples).errors))
            ],
        )
        return found[0].numpy()

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

        See :meth:`~gcpl_lab.gcpl.classifier.DiffusionClassifier.staged`; the GCPL authors' script has the norm L1.
        """
        self._check_fitted()
        seed, fit = self.config.seed, MemoryFit(self.config.evidence_batch_size, FORWARD_ADVICE)
        return fit(lambda n: self.classifier(seed, norm, n).staged(latents, to_keep, n_samples, schedule=schedule))

    def decision_function(self, images: Sequence[Any]) -> np.ndarray:
        """Scores (image, class); larger is better.

        Minus the mean error plus the class's offset; with ``classification="fast"`` logits.
        """
        self._check_fitted()
        latents = self.encode(images)
        if self.config.classification != "fast":
            reading = Reading(self.weighting_, 1.0, self.offsets_)
            return reading.scores(self.errors(latents, self.config.num_evidence))
        self._check_finished()
        with_clip = self.fast_.plan_ is not None and self.fast_.plan_.prior_fit is not None
        return self.classify(latents, self._clip_scores(images, self.class_names_) if with_clip else None).logits

    def classify(self, latents: Tensor, clip_scores: np.ndarray | None = None) -> RaceEvidence:
        """What the fast classifier finds out about scaled latents, and what that took.

        Args:
            latents: (image, channel, height, width).
            clip_scores: CLIP's zero-shot logits (image, class), where the race was calibrated with them.
        """
        self._check_finished()
        race = getattr(self, "fast_", None) or fast_decision.make_race(self)
        return fast_decision.run(race, latents, clip_scores)

    @cached_property
    def _clip(self) -> FrozenCLIP | None:
        return fast_decision.load_clip(self.config.preset)

    def _clip_scores(self, images: Sequence[Any], class_names: Sequence[str]) -> np.ndarray | None:
        """CLIP's zero-shot logits (image, class) for the fast classifier, where the preset has a CLIP."""
        if self._clip is None:
            return None
        return fast_decision.clip_scores(self._clip, self.config.templates[0], images, class_names, self.fit_)

    def scores(self, evidence: Evidence) -> np.ndarray:
        """Scores (image, class) of evidence under the learned prompts, with the fitted offsets of the classes."""
        return Reading(self.weighting_, 1.0, self.offsets_).scores(evidence.errors)

    def predict(self, images: Sequence[Any]) -> np.ndarray:
        """The label of the class whose prompt denoises each image best, (image,)."""
        best = self.decision_function(images).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, images: Sequence[Any]) -> np.ndarray:
        """Probabilities (image, class) with the temperature fitted on the support images."""
        self._check_finished()
        temperature = 1.0 if self.config.classification == "fast" else self.temperature_  # logits have theirs in them
        return probabilities(self.decision_function(images), temperature)

    def score(self, images: Sequence[Any], labels: Sequence[Any] | np.ndarray) -> float:
        """Accuracy."""
        self._check_fitted()
        labels = check_labels(labels, len(images), self.classes_)
        return float((self.predict(images) == labels).mean())

    @classmethod
    def load(cls, folder: str | Path, diffusion: FrozenDiffusion | None = None, preset: str | None = None) -> Self:
        """Read a saved classifier.

        Args:
            folder: Written by :meth:`save`.
            diffusion: A loaded model to use; by default the preset's.
            preset: Where it is loaded from, in place of the saved name; prompts that were learned on a folder of models
                need it, because a folder that a file names is not opened unasked.

        Raises:
            ArtifactError: The folder is damaged or foreign, its prompts were learned on other frozen weights, or for an
                objective that is not known here.
        """
        return cls._open(folder, diffusion, preset)

    @classmethod
    def _check_config(cls, path: Path, metadata: dict[str, Any]) -> None:
        name = metadata["config"]["objective"]
        if name not in OBJECTIVES:
            module, _, qualname = metadata.get("objective_class", f"?.{name}").rpartition(".")
            raise ArtifactError(
                f"{path}: was learned for the objective {name!r}, which is not registered here; define the class "
                f"{qualname} again or import the module {module} that registers it, then load"
            )

    def _saved(self) -> tuple[Tensor, dict[str, Any]]:
        target = OBJECTIVES[self.config.objective].target
        facts = {
            "class_names": list(self.class_names_),
            "classes": self.classes_.tolist(),
            "temperature": self.temperature_,
            "offsets": self.offsets_.tolist(),
            "weighting": self.weighting_,
            "fit": self.fit_,
            "objective_class": f"{target.__module__}.{target.__qualname__}",
        }
        if hasattr(self, "fast_") and self.fast_.plan_ is not None:
            facts["plan"] = self.fast_.plan_.as_dict()
        return self.prompts_.vectors, facts

    def _read(self, vectors: Tensor, metadata: dict[str, Any]) -> None:
        names = metadata["class_names"]
        self.class_names_, self.classes_ = tuple(names), np.asarray(metadata["classes"])
        self.fit_ = check_saved_fit(metadata)
        self.temperature_ = float(metadata["temperature"])
        self.offsets_ = np.asarray(metadata["offsets"], float).reshape(len(names))
        self.weighting_ = metadata.get("weighting", self.config.weighting)
        if self.weighting_ not in WEIGHTINGS:
            raise ValueError(f"weighting is {self.weighting_!r}; expected one of {', '.join(WEIGHTINGS)}")
        self.prompts_ = ClassPrompts.of(self.diffusion, names, vectors, self.config.templates)
        if self.config.classification == "fast":
            self.fast_ = fast_decision.make_race(self, metadata["plan"])
