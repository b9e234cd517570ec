"""None of these: how well a score tells images of unknown classes from those of known ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.prediction_sets import mean_with_interval
from gcpl_lab.evaluation.trust import share_with_interval

Answers = Mapping[str, np.ndarray]


def novelty_scores(answers: Answers, known: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (image,), larger for stranger images, of a model that knows only some classes.

    Prompts of a class are learned from its own images, so leaving a class out afterwards leaves out its column.

    Args:
        answers: ``probabilities``, ``distances`` to the nearest exemplar of each class in CLIP's features and, of a
            denoiser, ``errors``: (image, class) each.
        known: bool (class,).
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
    *,
    most_refused: float = 0.05,
) -> dict[str, Any]:
    """Leave each class out in turn, choose the score and its threshold on calibration images, judge on test images.

    Args:
        calibration, test: As for :func:`novelty_scores`, with labels int (image,).
        most_refused: Share of known images that may be called unknown, which sets the threshold.

    Returns:
        ``score`` that was chosen, ``auroc`` of it with ``low`` and ``high`` over left-out classes, ``scores`` (of all),
        ``noticed`` and ``refused`` (shares of unknown and known test images beyond the threshold), ``num_classes``.
    """
    num_classes = calibration["probabilities"].shape[1]
    if num_classes < 3:
        raise DataError(f"{num_classes} classes: leaving one out leaves nothing to tell apart; expected 3 or more")
    areas: dict[str, list[list[float]]] = {}
    beyond: dict[str, list[list[list[int]]]] = {}
    for left in range(num_classes):
        known = np.arange(num_classes) != left
        before, now = (novelty_scores(answers, known) for answers in (calibration, test))
        strange_before, strange = (labels == left for labels in (calibration_labels, test_labels))
        if not (0 < strange_before.sum() < len(strange_before) and 0 < strange.sum() < len(strange)):
            continue
        for score, values in now.items():
            area = [roc_auc_score(strange_before, before[score]), roc_auc_score(strange, values)]
            areas.setdefault(score, []).append(area)
            above = values > np.quantile(before[score][~strange_before], 1 - most_refused, method="higher")
            counts = [[int((above & part).sum()), int(part.sum())] for part in (strange, ~strange)]
            beyond.setdefault(score, []).append(counts)
    chosen = max(areas, key=lambda score: float(np.mean(areas[score], axis=0)[0]))
    auroc = {score: mean_with_interval(np.array(values)[:, 1])._asdict() for score, values in areas.items()}
    noticed, refused = (share_with_interval(*counts)._asdict() for counts in np.sum(beyond[chosen], axis=0).tolist())
    ends = {"auroc": auroc[chosen]["value"], "low": auroc[chosen]["low"], "high": auroc[chosen]["high"]}
    shares = {"noticed": noticed, "refused": refused, "most_refused": most_refused}
    return {"score": chosen, **ends, "scores": auroc, **shares, "num_classes": num_classes}
