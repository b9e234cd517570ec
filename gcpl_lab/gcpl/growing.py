"""Classes that come later: their tokens are learned, and those of the known classes stay as they are, to the digit.

Temperature, weighting and known offsets stay too: read by absolute errors, an image keeps its decision or goes to a
new class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.calibration import log_losses
from gcpl_lab.gcpl.calibration import Reading, class_scores
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars


class KnownClasses:
    """A classifier of some of the classes, and where these stand among all.

    Attributes:
        places: Of each known class, int64; ``new``, of those to learn.
    """

    def __init__(self, classifier: Any, class_names: Sequence[str], settings: Any) -> None:
        """Take a :class:`~gcpl_lab.gcpl.estimator.GCPLClassifier`, refused unless it has the same settings."""
        classifier._check_finished()
        before, now = classifier.config.identity(), settings.identity()
        if changed := [f"{name} {before[name]!r} (now {now[name]!r})" for name in now if before[name] != now[name]]:
            raise DataError(f"known classes were learned with {', '.join(changed)}; learn new ones with equal settings")
        names = list(class_names)
        if not set(classifier.class_names_) < set(names):
            known = ", ".join(classifier.class_names_)
            raise DataError(
                f"known classes are {known}; expected these and a further one among those to learn: {names}"
            )
        self.classifier, self.places = classifier, np.array([names.index(n) for n in classifier.class_names_])
        self.new = np.setdiff1d(np.arange(len(names)), self.places)

    def keep(self, prompts: ClassPrompts) -> None:
        """Set the known vectors to what they were: no decay and no rounding stays in them."""
        with torch.no_grad():
            prompts.vectors[self.places] = self.classifier.prompts_.vectors.to(prompts.vectors.device)

    def without_gradient(self, prompts: ClassPrompts) -> Any:
        """Let no gradient reach the known vectors; ``remove()`` of what is returned ends that."""
        learned = torch.zeros(len(prompts.vectors), 1, 1, device=prompts.vectors.device)
        learned[self.new] = 1
        return prompts.vectors.register_hook(lambda gradient: gradient * learned)

    def shown(self, exemplars: Exemplars, batch_size: int) -> tuple[Exemplars, int]:
        """Images of the new classes alone, and so many an update as these would have among all."""
        chosen = np.flatnonzero(np.isin(exemplars.labels.numpy(), self.new))
        every = len(self.new) + len(self.places)
        return exemplars.subset(chosen), max(1, round(batch_size * len(self.new) / every))

    def first_of_each(self, order: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
        """At most so many images in all, or one of each class: the first of an order, int64, evenly of each class."""
        each = max(1, most // (len(self.new) + len(self.places)))
        return np.concatenate([order[labels[order] == label][:each] for label in np.unique(labels)])

    def read(self, errors: np.ndarray, labels: np.ndarray, class_offsets: bool) -> Reading:
        """The classifier's own reading, with the offsets of the new classes that have the least log-loss."""
        known = self.classifier
        offsets = np.zeros(errors.shape[1])
        offsets[self.places] = known.offsets_
        scores = class_scores(errors, known.weighting_).astype(np.float64)

        def loss(logits: np.ndarray) -> float:
            offsets[self.new] = logits / known.temperature_
            return float(log_losses(known.temperature_ * (scores + offsets), labels).mean())

        if class_offsets:
            loss(minimize(loss, np.zeros(len(self.new))).x)
        return Reading(known.weighting_, known.temperature_, offsets)
