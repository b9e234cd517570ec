"""None of these: how well a score tells images of unknown classes from those of known ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.prediction_sets import mean_with_interval
from gcpl_lab.evaluation.trust import share_of

Answers = Mapping[str, np.ndarray]


def novelty_scores(answers: Answers, known: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (image,), larger for stranger images, of a model that knows only the ``known`` classes, bool (class,).

    Prompts of a class are learned from its own images, so leaving a class out afterwards leaves out its column.
    """
    rest = answers["probabilities"][:, known]
    found = {"probability": 1 - (rest / np.maximum(rest.sum(axis=1, keepdims=True), 1e-12)).max(axis=1)}
    named = {"distances": "feature distance", "errors": "denoising error"}
    return found | {named[name]: answers[name][:, known].min(axis=1) for name in named if name in answers}


def measure_novelty(
    calibration: Answers,
    calibration_labels: np.ndarray,
    test: Answers,
    test_labels: np.ndarray,
    most_refused: float = 0.05,
) -> dict[str, Any]:
    """Leave each class out in turn, choose the score and its threshold on calibration images, judge on test images.

    Args:
        calibration, test: ``probabilities``, ``distances`` to the nearest exemplar of each class in CLIP's features
            and, of a denoiser, ``errors``: (image, class) each, with labels int (image,).
        most_refused: Share of known images that may be called unknown, which sets the threshold.

    Returns:
        ``score`` that was chosen, ``auroc`` of it with ``low`` and ``high`` over left-out classes, ``scores`` (of all),
        ``noticed`` and ``refused`` (shares of unknown and known test images beyond the threshold), ``num_classes``.
    """
    num_classes = calibration["probabilities"].shape[1]
    if num_classes < 3:
        raise DataError(f"{num_classes} classes: leaving one out leaves nothing to tell apart; expected 3 or more")
    found: dict[str, list[Any]] = {}
    for left in range(num_classes):
        known = np.arange(num_classes) != left
        before, now = (novelty_scores(answers, known) for answers in (calibration, test))
        strange_before, strange = (labels == left for labels in (calibration_labels, test_labels))
        if not (strange_before.any() and strange.any()):
            continue
        for score, values in now.items():
            above = values > np.quantile(before[score][~strange_before], 1 - most_refused, method="higher")
            areas = roc_auc_score(strange_before, before[score]), roc_auc_score(strange, values)
            found.setdefault(score, []).append((*areas, above[strange], above[~strange]))
    chosen = max(found, key=lambda score: float(np.mean([entry[0] for entry in found[score]])))
    scores = {score: mean_with_interval(np.array([entry[1] for entry in found[score]]))._asdict() for score in found}
    noticed, refused = (share_of(np.concatenate([entry[part] for entry in found[chosen]])) for part in (2, 3))
    ends = {"auroc": scores[chosen]["value"], "low": scores[chosen]["low"], "high": scores[chosen]["high"]}
    shares = {"noticed": noticed, "refused": refused, "most_refused": most_refused}
    return {"score": chosen, **ends, "scores": scores, **shares, "num_classes": num_classes}
