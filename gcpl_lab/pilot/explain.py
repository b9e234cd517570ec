"""What went wrong? An error that a person reports, looked at from five sides; and which corrections teach most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from gcpl_lab.baselines.features import LinearProbe
from gcpl_lab.data.readers import read_image
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.costs import answers_of, certainty_of
from gcpl_lab.evaluation.prediction_sets import mean_with_interval
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.evidence import evidence_map
from gcpl_lab.lmpt.estimator import encode_views
from gcpl_lab.pilot.data import PilotData, targets_of
from gcpl_lab.pilot.trials import Judge
from gcpl_lab.views import style
from gcpl_lab.views.evidence import plot_error_map

CAUSES = {
    "label doubtful": "it is sure, and the nearest exemplars agree with it: have a second person label this image",
    "unlike the training images": "stranger than 95 % of the calibration images: add some like it, or refuse it",
    "look-alike pair": "often taken for each other: add exemplars that differ in what tells the two apart",
    "caption or name": "the name of the class says little to the frozen model: try another, or the trade's words",
    "threshold": "the truth came second, or just missed its threshold: move it, or send such images to a person",
}
"""Likely causes, and what to do."""
NEAREST, ROUNDS = 5, 5


def explain_error(
    judge: Judge, calibration: Mapping[str, np.ndarray], data: PilotData, image: str | Path, truth: str
) -> dict[str, Any]:
    """Why an image was answered wrongly, as far as numbers tell.

    Args:
        judge: The method taken, with its answers on the ``calibration`` images.
        data: Of the pilot.
        image: A file.
        truth: What a person says it is; with several labels, one that was missed or is not there.

    Returns:
        ``answer``, ``certainty``, ``nearest`` exemplars, ``evidence`` for both classes, ``co_occurring`` classes,
        ``stranger_than`` (share of the calibration images), and the likely ``causes``, the likeliest first.
    """
    names = data.class_names
    if truth not in names:
        raise DataError(f"{truth!r} is no class of this pilot; expected one of {', '.join(names)}")
    found, wanted = judge.answer([image]), names.index(truth)
    chances, held = found["probabilities"][0], targets_of(judge.exemplars).astype(bool)
    said, similar = int(chances.argmax()), judge.similarities([image])[0]
    order = np.argsort(-similar, kind="stable")[:NEAREST]
    together = targets_of(data.pool)[targets_of(data.pool)[:, wanted] == 1].sum(axis=0)
    sure = float(certainty_of(found["probabilities"], judge.thresholds)[0])
    stranger = float((calibration["distances"].min(axis=1) < found["distances"][0].min()).mean())
    named = (
        (judge.clip.encode_texts([f"a photo of a {name}" for name in names]) @ judge.features[0].T).argmax(0).numpy()
    )
    weights = {
        "unlike the training images": 2.0 * (stranger > 0.95),
        "label doubtful": 1.5 * (sure > 0.9) * float(np.mean(held[order, said] & ~held[order, wanted])),
        "look-alike pair": 1.0 * (said in (wanted, _rival(data, calibration["probabilities"], wanted))),
        "threshold": 0.9 * (wanted in np.argsort(-chances)[:2] and said != wanted),
        "caption or name": 0.8 * bool((named[held[:, wanted]] != wanted).mean() > 0.6),
    }
    likely = sorted((cause for cause in weights if weights[cause] >= 0.75), key=lambda cause: -weights[cause])
    evidence = {f"probability of {names[label]}": float(chances[label]) for label in dict.fromkeys([wanted, said])}
    for label in dict.fromkeys([wanted, said]) if "errors" in found else ():
        evidence[f"denoising error under {names[label]}"] = float(found["errors"][0, label])
    answers = answers_of(found["probabilities"], judge.thresholds)[0]
    near = [(judge.exemplars.images[place].name, _named(names, held[place]), float(similar[place])) for place in order]
    partners = {names[label]: int(together[label]) for label in np.argsort(-together) if label != wanted}
    return {
        "file": Path(image).name,
        "truth": truth,
        "answer": _named(names, answers),
        "likeliest": names[said],
        "certainty": sure,
        "nearest": [dict(zip(("file", "classes", "similarity"), entry, strict=True)) for entry in near],
        "evidence": evidence,
        "co_occurring": {name: count for name, count in list(partners.items())[:3] if count},
        "stranger_than": stranger,
        "causes": [{"cause": cause, "do": CAUSES[cause]} for cause in likely or ["threshold"]],
    }


def draw_evidence(
    judge: Judge, names: Sequence[str], image: str | Path, truth: str, answer: str, num_samples: int = 64
) -> Figure | None:
    """What in an image speaks for truth and answer; None where both are one, or no denoiser decides."""
    model = judge.model
    if not isinstance(model, GCPLClassifier) or truth == answer:
        return None
    classifier, latent = model.classifier(model.config.seed), model.encode([image])[0]
    found = evidence_map(classifier, latent, names.index(truth), names.index(answer), num_samples)
    with style.figure_style():
        figure = style.new_figure(10, 5)
        plot_error_map(figure.subplots(1, 2), np.asarray(read_image(image)), found.numpy(), truth, answer)
    return figure


def _named(names: Sequence[str], chosen: np.ndarray) -> list[str]:
    return [name for name, has in zip(names, chosen, strict=True) if has]


def _rival(data: PilotData, probabilities: np.ndarray, wanted: int) -> int | None:
    """The class that calibration images of a class are most often taken for; None where they never are."""
    if not isinstance(data.calibration, ImageSet):
        return None
    taken = probabilities[data.calibration.labels == wanted].argmax(axis=1)
    counts = np.bincount(taken[taken != wanted], minlength=probabilities.shape[1])
    return int(counts.argmax()) if counts.any() else None


def compare_teaching(judge: Judge, data: PilotData, *, num_draws: int = 5, seed: int = 0) -> dict[str, Any]:
    """Do corrections that are chosen teach more than random ones? Five rounds, a linear probe, accuracy on test images.

    In every round the images of the pool that the probe is least sure of join the exemplars; beside it as many at
    random. Both begin with the same exemplars of each draw.

    Returns:
        ``rounds`` (images added so far), ``chosen`` and ``random`` (mean accuracy a round), and ``gain`` after the last
        round with its interval over draws. Empty with several labels, or where the pool holds too few images.
    """
    num_classes, pool = len(data.class_names), data.pool
    spare = len(pool) - len(judge.exemplars)
    per_round = min(num_classes, spare // (2 * ROUNDS))
    if not isinstance(pool, ImageSet) or per_round < 1:
        return {}
    views, labels = encode_views(judge.clip, pool.images, fit=judge.fit), torch.from_numpy(pool.labels)
    test, wanted = encode_views(judge.clip, data.test.images, flip=False, fit=judge.fit)[0], data.test.labels  # type: ignore[union-attr]
    curves: dict[str, list[list[float]]] = {"chosen": [], "random": []}
    for draw in range(num_draws):
        rng = np.random.default_rng([seed, 73, draw])
        order = rng.permutation(len(pool))
        shots = len(judge.exemplars) // num_classes
        start = [order[pool.labels[order] == label][:shots] for label in range(num_classes)]
        for way, curve in curves.items():
            known, values = np.concatenate(start), []
            for _ in range(ROUNDS + 1):
                probe = LinearProbe(views[:, known], labels[known], seed)
                values.append(float((probe.scores(test).numpy().argmax(axis=1) == wanted).mean()))
                left = np.setdiff1d(order, known)
                sure = torch.softmax(probe.scores(views[0, torch.from_numpy(left)]), 1).max(1).values.numpy()
                ranked = np.argsort(sure, kind="stable") if way == "chosen" else rng.permutation(len(left))
                known = np.append(known, left[ranked[:per_round]])
            curve.append(values)
    gain = mean_with_interval(np.array(curves["chosen"])[:, -1] - np.array(curves["random"])[:, -1])
    means = {way: np.mean(curve, axis=0).tolist() for way, curve in curves.items()}
    rounds = [number * per_round for number in range(ROUNDS + 1)]
    return {"rounds": rounds, **means, "num_draws": num_draws, "gain": gain._asdict()}
