"""Classes that come later: their tokens are learned, and those of the known classes stay as they are, to the digit.

Temperature, weighting and known offsets stay too: read by absolute errors, an image keeps its decision or goes to a
new class.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.calibration import log_losses
from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.gcpl.estimator import MAX_TEMPERATURE_IMAGES, GCPLClassifier
from gcpl_lab.gcpl.objectives import OBJECTIVES, Stage
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.training.loop import StepRecord


class GrownClassifier(GCPLClassifier):
    """A :class:`~gcpl_lab.gcpl.estimator.GCPLClassifier` of more classes than one that has learned, with its settings.

    Example:
        >>> model = GrownClassifier(before).fit(images, labels)     # of all classes, known and new

    Attributes:
        known: That classifier; nothing of it changes.
    """

    def __init__(self, known: GCPLClassifier) -> None:
        """Take the classifier and its settings.

        Raises:
            DataError: It has not learned to the end, or is calibrated for ``classification="fast"``.
        """
        known._check_finished()
        if known.config.classification == "fast":
            raise DataError("the known classes are read with classification='fast'; expected 'exact' to add classes")
        super().__init__(diffusion=known.diffusion, **known.config.as_dict() | {"fit": known.fit_})
        self.known = known

    def begin(
        self, class_names: Sequence[str], coarse_words: Sequence[str] | None = None, warm_start: Tensor | None = None
    ) -> None:
        """As for the base class, with the known classes' vectors in their places among ``class_names``.

        Raises:
            DataError: The names are not those of the known classes and at least one more.
        """
        names, known = list(class_names), self.known.class_names_
        if not set(known) < set(names):
            raise DataError(f"known classes are {', '.join(known)}; expected these and a further one: {names}")
        super().begin(class_names, coarse_words, warm_start)
        self._places = np.array([names.index(name) for name in known])
        self._new = np.setdiff1d(np.arange(len(names)), self._places)
        self._keep()
        self.states_ = {0: self.prompts_.vectors.detach().cpu().clone()}

    def _keep(self) -> None:
        """Set the known vectors to what they were: no decay and no rounding stays in them."""
        with torch.no_grad():
            self.prompts_.vectors[self._places] = self.known.prompts_.vectors.to(self.prompts_.vectors.device)

    def train(self, exemplars: Exemplars, folder: Path | None = None) -> Generator[StepRecord, bool | None, None]:
        """The updates of each objective in turn; no gradient reaches the known vectors."""
        learned = torch.zeros(len(self.prompts_.vectors), 1, 1, device=self.prompts_.vectors.device)
        learned[self._new] = 1
        hook = self.prompts_.vectors.register_hook(lambda gradient: gradient * learned)
        try:
            yield from super().train(exemplars, folder)
        finally:
            hook.remove()
            self._keep()

    def _train_objective(
        self, name: str, exemplars: Exemplars, folder: Path | None
    ) -> Generator[StepRecord, bool | None, bool]:
        """Where a class learns alone, new classes see their own images, and as many an update as among all classes."""
        whole, entry = self.config, OBJECTIVES[name]
        if entry.facts.get("alone"):
            field = entry.facts.get("stage", Stage()).batch_size
            exemplars = exemplars.subset(np.flatnonzero(np.isin(exemplars.labels.numpy(), self._new)))
            share = getattr(whole, field) * len(self._new) / len(self.prompts_.vectors)
            self.config = replace(whole, **{field: max(1, round(share))})
        try:
            return (yield from super()._train_objective(name, exemplars, folder))
        finally:
            self.config = whole

    def _calibrate(self, exemplars: Exemplars, chosen: np.ndarray | None = None) -> None:
        """The known classifier's own reading, with the offsets of the new classes that have the least log-loss."""
        labels, known = exemplars.labels.numpy(), self.known
        order = np.random.default_rng([self.config.seed, 19]).permutation(len(labels))
        each = max(1, MAX_TEMPERATURE_IMAGES // len(self.prompts_.vectors))  # as many of a new class as of any other
        first = [order[labels[order] == label][:each] for label in np.unique(labels)]
        super()._calibrate(exemplars, np.sort(np.concatenate(first)))
        offsets = np.zeros(len(self.prompts_.vectors))
        offsets[self._places] = known.offsets_
        scores = class_scores(self.support_errors_, known.weighting_).astype(np.float64)

        def loss(logits: np.ndarray) -> float:
            offsets[self._new] = logits / known.temperature_
            return float(log_losses(known.temperature_ * (scores + offsets), self.support_labels_).mean())

        if self.config.class_offsets:
            loss(minimize(loss, np.zeros(len(self._new))).x)
        self.weighting_, self.temperature_, self.offsets_ = known.weighting_, known.temperature_, offsets
