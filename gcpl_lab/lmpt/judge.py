"""The half of LMPTClassifier that looks at images: scores, predictions, and the files that keep the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.framing import check_saved_fit
from gcpl_lab.data.sets import check_targets
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.multilabel import mean_average_precision, measure_scores, sigmoid
from gcpl_lab.lmpt.encoding import encode_views, load_clip
from gcpl_lab.lmpt.losses import LOSSES
from gcpl_lab.lmpt.objective import LMPT
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.training.device import prepare_for_device
from gcpl_lab.training.estimator import PromptClassifier


class LabelJudge(PromptClassifier):
    """Base of :class:`~gcpl_lab.lmpt.estimator.LMPTClassifier`, which says what the attributes are."""

    MODEL, CONFIG, METHOD, FITTED, FINISHED = "clip", LMPTConfig, "lmpt", "objective_", "thresholds_"

    config: LMPTConfig
    objective_: LMPT
    classes_: np.ndarray
    class_counts_: np.ndarray
    given_counts_: np.ndarray
    num_train_: int
    sigmoid_: tuple[float, float]
    thresholds_: np.ndarray
    fit_: str
    _clip: FrozenCLIP | None

    @property
    def clip(self) -> FrozenCLIP:
        """The frozen model, loaded when first asked for, and prepared for this estimator's precision."""
        if self._clip is None:
            self._load_model()
        assert self._clip is not None
        if self._clip.device.type != "cpu":
            prepare_for_device(self._clip.model.visual, self._clip.device, self.config.precision)
        return self._clip

    def _load_model(self, dtype: torch.dtype | None = None) -> None:
        self._clip = load_clip(self.config, dtype)

    def new_objective(self, kind: type[LMPT] = LMPT) -> LMPT:
        """A fresh one of the settings, for the classes and counts that are known."""
        config = self.config
        prompts = ContextPrompts(
            self.clip,
            [str(name) for name in self.classes_],
            num_context=config.num_context,
            class_specific=config.class_specific,
            class_position=config.class_position,
            initial_words=config.initial_words,
            ending=config.ending,
            seed=config.seed,
        ).to(self.clip.device)
        same = (
            *("mix", "classification", "reading", "token_offset", "position_hinge", "contrast_reduction"),
            *("scale", "margin", "class_aware_margin", "reweight_gamma", "reweight"),
        )
        return kind(
            self.clip,
            prompts,
            class_counts=self.class_counts_,
            num_images=self.num_train_,
            loss_settings=config.chosen(LOSSES[config.classification].defaults),
            **{name: getattr(config, name) for name in same},
        )

    def _logits(self, features: Tensor) -> np.ndarray:
        values: np.ndarray = self.objective_.scores(features).numpy().astype(np.float64)
        return values

    def decision_function(self, images: Sequence[Any]) -> np.ndarray:
        """Logits (image, class); larger is better, and comparable within a class."""
        self._check_fitted()
        return self._logits(encode_views(self.clip, images, flip=False, fit=self.fit_)[0])

    def scores_of(self, features: Tensor) -> np.ndarray:
        """Logits (image, class) of cached unit features (image, feature)."""
        self._check_fitted()
        return self._logits(features)

    def predict_proba(self, images: Sequence[Any]) -> np.ndarray:
        """Probability of each class by itself, (image, class): sigmoids, so rows do not sum to one."""
        self._check_finished()
        return sigmoid(self.decision_function(images), self.sigmoid_)

    def predict(self, images: Sequence[Any]) -> np.ndarray:
        """uint8 (image, class): 1 where the probability reaches the class's threshold."""
        self._check_finished()
        return (self.predict_proba(images) >= self.thresholds_).astype(np.uint8)

    def score(self, images: Sequence[Any], targets: Any) -> float:
        """Mean average precision over the classes that have a positive image."""
        targets = self._check_targets(len(images), targets)
        return mean_average_precision(self.decision_function(images), targets)

    def evaluate(self, images: Sequence[Any], targets: Any) -> dict[str, Any]:
        """Everything that is measured on labelled images, see :func:`measure_scores`.

        Args:
            images: Paths, PIL images or uint8 arrays.
            targets: 0/1, images × classes.
        """
        targets = self._check_targets(len(images), targets)
        self._check_finished()
        logits = self.decision_function(images)
        return measure_scores(logits, self.sigmoid_, self.thresholds_, targets, self.given_counts_, self.classes_)

    def _check_targets(self, num_images: int, targets: Any) -> np.ndarray:
        self._check_fitted()
        targets = check_targets(targets)
        if targets.shape != (num_images, len(self.classes_)):
            raise DataError(
                f"targets have shape {targets.shape}; expected ({num_images}, {len(self.classes_)}): one row an image "
                "and one column for each class that was learned"
            )
        return targets

    @classmethod
    def load(cls, folder: str | Path, *, clip: FrozenCLIP | None = None, preset: str | None = None) -> Self:
        """Read a saved classifier.

        Args:
            folder: Written by :meth:`save`.
            clip: A loaded model to use; by default the preset's.
            preset: Where it is loaded from, in place of the saved name; prompts that were learned on a folder of models
                need it, because a folder that a file names is not opened unasked.

        Raises:
            ArtifactError: The folder is damaged or foreign, or its prompts were learned on other frozen weights.
        """
        return cls._open(folder, clip, preset)

    def _saved(self) -> tuple[Tensor, dict[str, Any]]:
        objective = self.objective_
        facts = {
            "class_names": self.classes_.tolist(),
            "class_counts": self.class_counts_.tolist(),
            "given_counts": self.given_counts_.tolist(),
            "num_train": self.num_train_,
            "log_scale": float(objective.log_scale.detach()),
            "bias": float(objective.bias.detach()),
            "sigmoid": list(self.sigmoid_),
            "thresholds": self.thresholds_.tolist(),
            "fit": self.fit_,
        }
        return objective.prompts.context.detach().cpu().expand(len(self.classes_), -1, -1), facts

    def _read(self, vectors: Tensor, metadata: dict[str, Any]) -> None:
        self.classes_, self.fit_ = np.asarray(metadata["class_names"]), check_saved_fit(metadata)
        self.class_counts_ = np.asarray(metadata["class_counts"], np.int64)
        self.given_counts_ = np.asarray(metadata["given_counts"], np.int64)
        self.num_train_ = int(metadata["num_train"])
        self.objective_ = self.new_objective()
        context, thresholds = self.objective_.prompts.context, np.asarray(metadata["thresholds"], np.float64)
        if vectors.shape[1:] != context.shape[1:] or thresholds.shape != self.classes_.shape:
            raise ValueError(
                f"contexts of shape {tuple(vectors.shape)} and {thresholds.shape[0]} thresholds do not fit its settings"
            )
        with torch.no_grad():
            context.copy_(vectors[: len(context)])
            self.objective_.log_scale.fill_(float(metadata["log_scale"]))
            self.objective_.bias.fill_(float(metadata["bias"]))
        scale, bias = (float(value) for value in metadata["sigmoid"])
        self.sigmoid_, self.thresholds_ = (scale, bias), thresholds
