"""What went wrong? An error that a person reports, looked at from five sides; corrections, and which teach most."""

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
from gcpl_lab.data.tables import write_csv
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.costs import decide_each
from gcpl_lab.evaluation.prediction_sets import mean_with_interval
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.evidence import evidence_map
from gcpl_lab.pilot.data import CORRECTIONS, PilotData, read_labels, targets_of
from gcpl_lab.pilot.trials import Judge
from gcpl_lab.storage import file_checksum, write_atomically
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


def explain_error(judge: Judge, data: PilotData, image: str | Path, truth: str) -> dict[str, Any]:
    """Why an image was answered wrongly, as far as numbers tell.

    Args:
        judge: The method taken, with its answers on the calibration images.
        data: Of the pilot.
        image: A file.
        truth: What a person says it is; with several labels, one that was missed or is not there.

    Returns:
        ``answer``, ``certainty``, ``nearest`` exemplars, ``evidence`` for both classes, ``co_occurring`` classes,
        ``stranger_than`` (share of the calibration images), and the likely ``causes``, the likeliest first.
    """
    names, calibration = np.array(data.class_names), judge.answers[0]
    if truth not in data.class_names:
        raise DataError(f"{truth!r} is no class of this pilot; expected one of {', '.join(names)}")
    found, wanted = judge.answer([image]), data.class_names.index(truth)
    chances, held, targets = found["probabilities"][0], targets_of(judge.exemplars) == 1, targets_of(data.pool)
    known, said = judge.features[0].numpy(), int(chances.argmax())
    if judge.thresholds is None and said == wanted:
        raise DataError(f"{image}: is answered {truth!r}, which is what it is said to be; there is no error to explain")
    similar = known @ found["features"][0]
    order = np.argsort(-similar, kind="stable")[:NEAREST]
    (sure,), (answers,) = decide_each(found["probabilities"], judge.thresholds)
    stranger = float((calibration["distances"].min(axis=1) < found["distances"].min()).mean())
    taken = calibration["probabilities"][targets_of(data.calibration)[:, wanted] == 1].argmax(axis=1)
    rivals = np.bincount(taken[taken != wanted], minlength=len(names))  # what images of this class are taken for
    texts = judge.clip.encode_texts([f"a photo of a {name}" for name in names]).numpy()
    likely = likely_causes(
        stranger_than=stranger,
        sure=float(sure),
        nearest_agree=float(np.mean(held[order, said] & ~held[order, wanted])),
        look_alikes=bool(judge.thresholds is None and said != wanted and rivals[said] == rivals.max() > 0),
        came_second=said == wanted or int(np.argsort(-chances)[1]) == wanted,
        misnamed=float(((texts @ known.T).argmax(axis=0)[held[:, wanted]] != wanted).mean()),
    )
    evidence = {}
    for label in dict.fromkeys([wanted, said]):
        evidence[f"probability of {names[label]}"] = float(chances[label])
        if "errors" in found:
            evidence[f"denoising error under {names[label]}"] = float(found["errors"][0, label])
    together = targets[targets[:, wanted] == 1].sum(axis=0)
    partners = [label for label in np.argsort(-together)[:4] if label != wanted and together[label]]
    files = judge.exemplars.images
    near = [(files[place].name, names[held[place]].tolist(), float(similar[place])) for place in order]
    return {
        "file": Path(image).name,
        "truth": truth,
        "answer": names[answers == 1].tolist(),
        "likeliest": data.class_names[said],
        "certainty": float(sure),
        "nearest": [dict(zip(("file", "classes", "similarity"), entry, strict=True)) for entry in near],
        "evidence": evidence,
        "co_occurring": {data.class_names[label]: int(together[label]) for label in partners},
        "stranger_than": stranger,
        "causes": [{"cause": cause, "do": CAUSES[cause]} for cause in likely],
    }


def likely_causes(
    stranger_than: float, sure: float, nearest_agree: float, look_alikes: bool, came_second: bool, misnamed: float
) -> list[str]:
    """Names in ``CAUSES``, the likeliest first, at least one, from shares (0 to 1) and facts.

    Args:
        stranger_than: Of calibration images that are less strange; ``sure``: the certainty of the answer.
        nearest_agree: Of the nearest exemplars that have the class answered and not the true one.
        look_alikes: Calibration images of the true class are taken for the one answered most often.
        came_second: The true class came second, or first and below its threshold.
        misnamed: Of the true class's exemplars that lie nearer to another class's name.
    """
    weights = {
        "unlike the training images": 2.0 * (stranger_than > 0.95),
        "label doubtful": 1.5 * (sure > 0.9) * nearest_agree,
        "look-alike pair": 1.0 * look_alikes,
        "threshold": 0.9 * came_second,
        "caption or name": 0.8 * (misnamed > 0.6),
    }
    likely = sorted((cause for cause in weights if weights[cause] >= 0.75), key=lambda cause: -weights[cause])
    return likely or ["threshold"]


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


def add_corrections(
    judge: Judge, data: PilotData, labels: Mapping[str, list[str]], images: Path, folder: Path, most: int
) -> list[str]:
    """Take reviewed files, the least sure first, into ``corrections.csv`` of a pilot's ``folder``; their names."""
    target, single = folder / CORRECTIONS, isinstance(data.pool, ImageSet)
    kept = read_labels(target, data.class_names, single) if target.is_file() else {}
    files = {images / name: named for name, named in labels.items() if (images / name).is_file()}
    places = {path: f"corrections/{file_checksum(path)[:16]}.png" for path in files}
    new = [path for path in files if places[path] not in kept]
    if not new:
        raise DataError(f"{images}: has none of the reviewed files that was not taken before; nothing to learn from")
    sure, _ = decide_each(judge.answer(new)["probabilities"], judge.thresholds)
    chosen = [new[place] for place in np.argsort(sure, kind="stable")[:most]]
    for path in chosen:
        image = read_image(path)
        write_atomically(folder / places[path], lambda to, image=image: image.save(to, format="PNG"))  # type: ignore[misc]
        kept[places[path]] = files[path]
    write_csv(target, [{"file": file, "label": ";".join(named)} for file, named in kept.items()])
    return [path.name for path in chosen]


def compare_teaching(judge: Judge, data: PilotData, seed: int = 0, num_draws: int = 5) -> dict[str, Any]:
    """Do corrections that are chosen teach more than random ones? Five rounds, a linear probe, accuracy on test images.

    In every round the images of the pool that the probe is least sure of join the exemplars; beside it as many at
    random. Both begin with the same exemplars of each draw.

    Returns:
        ``rounds`` (images added so far), ``chosen`` and ``random`` (means, and lower and upper ends of their intervals
        over draws), and ``gain`` after the last round with its interval. Empty with several labels, or where the pool
        holds too few images.
    """
    num_classes, pool = len(data.class_names), data.pool
    per_round = min(num_classes, (len(pool) - len(judge.exemplars)) // (2 * ROUNDS))
    if not isinstance(pool, ImageSet) or per_round < 1:
        return {}
    views, labels = judge.experiment.views, torch.from_numpy(pool.labels)
    test, wanted = judge.experiment.test_features[len(data.calibration) :], targets_of(data.test).argmax(axis=1)
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
    means = {way: np.transpose([*map(mean_with_interval, np.transpose(rows))]).tolist() for way, rows in curves.items()}
    rounds = [number * per_round for number in range(ROUNDS + 1)]
    return {"rounds": rounds, **means, "num_draws": num_draws, "gain": gain._asdict()}
