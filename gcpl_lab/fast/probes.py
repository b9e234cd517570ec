"""A few prompts whose errors foretell those of all others.

The errors of one image under many prompts are far from independent: prompts that say the same of tone, shape or kind
rise and fall together, so a table (image, class) has a much lower rank than it has classes. A linear map learned on
support images therefore knows, from the errors under a few prompts at a single (t, ε), about how every class will
fare: only those that may win are looked at, and what was foretold of them stays a source of evidence beside their own
errors. How many probes are needed hardly grows with the number of classes.

A tree of prompts does the same with a cruder map: a class gets the error of the prompt that speaks for its branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import qr
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import KFold, cross_val_predict

from gcpl_lab.fast.joined import JoinedEvidence, fit_joined

STRENGTHS = np.geomspace(1e-2, 1e3, 11)
"""Ridge penalties that leaving one image out chooses among; errors are in units of their spread."""


@dataclass(frozen=True)
class Probes:
    """Prompts that are looked at first, and what their errors say about all classes.

    Attributes:
        classes: int64 (probe,).
        weights: float64 (probe, class): evidence of a class for a unit of each probe's error.
        intercepts: float64 (class,).
        fit: How foretold evidence (and the prior) becomes logits, before any other look.
    """

    classes: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray
    fit: JoinedEvidence

    def foretell(self, errors: np.ndarray) -> np.ndarray:
        """Evidence float64 (image, class) from the probes' scaled errors (image, probe); more is likelier."""
        result: np.ndarray = errors.astype(np.float64) @ self.weights + self.intercepts
        return result

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "classes": self.classes.tolist(),
            "weights": self.weights.tolist(),
            "intercepts": self.intercepts.tolist(),
            "fit": self.fit.as_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], num_classes: int, num_sources: int) -> Probes:
        """Back from JSON.

        Args:
            values: Of :meth:`as_dict`.
            num_classes: That the prompts are for.
            num_sources: 1, or 2 with a prior.

        Raises:
            KeyError, TypeError, ValueError: Something is missing or does not fit, naming it.
        """
        classes, fit = np.asarray(values["classes"], np.int64), JoinedEvidence.from_dict(values["fit"])
        weights, intercepts = (np.asarray(values[name], float) for name in ("weights", "intercepts"))
        if not len(classes) or classes.min() < 0 or classes.max() >= num_classes:
            raise ValueError(f"the probes are {classes.tolist()}; expected some of 0 to {num_classes - 1}")
        if not (np.isfinite(weights).all() and np.isfinite(intercepts).all()):
            raise ValueError("weights or intercepts of the probes are not finite; expected numbers")
        found = (weights.shape, intercepts.shape, fit.weights.shape, fit.offsets.shape)
        wanted = ((len(classes), num_classes), (num_classes,), (num_sources,), (num_classes,))
        if found != wanted:
            raise ValueError(f"weights, intercepts and fit of the probes have the shapes {found}; expected {wanted}")
        return cls(classes, weights, intercepts, fit)


def order_probes(errors: np.ndarray) -> np.ndarray:
    """Classes by how much each still tells when those before it are known.

    QR with column pivoting of the errors, taken relative to each image's mean: the next class is the one with the
    largest part that is no linear combination of those before it.

    Args:
        errors: (image, class), at one (t, ε).

    Returns:
        int64 (min(image, class),).
    """
    relative = errors - errors.mean(axis=1, keepdims=True, dtype=np.float64)
    order = qr(relative - relative.mean(axis=0), mode="r", pivoting=True)[1]
    return np.asarray(order[: min(errors.shape)], np.int64)


def learn_probes(
    errors: np.ndarray,
    evidence: np.ndarray,
    labels: np.ndarray,
    classes: np.ndarray,
    *,
    prior: np.ndarray | None = None,
    penalty: float | None = None,
    seed: int = 0,
) -> tuple[Probes, np.ndarray]:
    """The linear map from some classes' errors to the evidence of all, and its calibration.

    Args:
        errors: (image, class), at the first (t, ε), scaled; all classes of support images.
        evidence: (image, class), what is foretold: minus the mean error over all (t, ε) that count.
        labels: int64 (image,).
        classes: int64 (probe,): the first of :func:`order_probes`.
        prior: (image, class), such as CLIP's log-probabilities.
        penalty: On the offsets of the calibration, see :func:`~gcpl_lab.fast.joined.fit_joined`.
        seed: Of the folds.

    Returns:
        The probes, and what is foretold of these images (image, class) while each is held out: an image that the map
        was learned from is foretold too well, and whoever weighs such numbers trusts them too much.
    """
    seen = errors[:, classes].astype(np.float64)
    # What all classes of an image have in common decides nothing.
    wanted = evidence - evidence.mean(axis=1, keepdims=True)
    ridge = RidgeCV(STRENGTHS).fit(seen, wanted)
    folds = KFold(min(5, len(seen)), shuffle=True, random_state=seed)
    held_out: np.ndarray = cross_val_predict(Ridge(ridge.alpha_), seen, wanted, cv=folds)
    fit = fit_joined([held_out, *([] if prior is None else [prior])], labels, penalty=penalty, seed=seed)
    return Probes(np.asarray(classes, np.int64), ridge.coef_.T, ridge.intercept_, fit), held_out
