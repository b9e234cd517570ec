"""What captions pull: LMPT over its epochs beside labels alone, captions alone, and captions of other images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcpl_lab.data.multilabel import head_medium_tail, replace_captions, split_validation
from gcpl_lab.evaluation.multilabel import map_with_interval
from gcpl_lab.experiments.multilabel import MultiLabelExperiment
from gcpl_lab.lmpt.batches import encode_captions
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.lmpt.losses import class_aware_margins
from gcpl_lab.storage import read_tensors, write_tensors
from gcpl_lab.views.hills import CaptionDistances
from gcpl_lab.views.style import label_text

WAYS: dict[str, dict[str, Any]] = {
    "Labels only": {"mix": 1.0},
    "Captions only": {"mix": 0.0},
    "LMPT": {},
    "LMPT, shuffled captions": {},
}
CONTROLS = ("LMPT, shuffled captions",)
CAPTIONS = "captions.safetensors"
HELD_OUT = 0.4
"""Share of the training images whose captions are kept from training, so that rare classes have some."""
LEAST = 3
"""Captions with and without a class that hills are drawn of."""

Arrays = dict[str, np.ndarray]


def follow_captions(experiment: MultiLabelExperiment, seed: int) -> Arrays:
    """Learn in each of ``WAYS`` and keep the prompts' features at some epochs, as arrays for a file.

    ``captions`` (caption, feature) and ``targets`` (caption, class) are held out from all of them; ``counts`` (class,)
    are all training images with each class, ``margins`` (class,) those of the loss; ``way/epoch`` are the prompts'
    features (class, feature); ``way/map`` the mean average precision of the tail on the test images, with the ends of
    its interval. Nothing where a class has too few images for both parts, or too few have captions.
    """
    train = experiment.train
    learned, held_out = split_validation(train.targets, HELD_OUT, seed)
    captioned = np.array([bool(caption) for caption in train.captions])
    kinds = np.unique(train.targets[learned][captioned[learned]], axis=0)
    if not train.targets[learned].any(axis=0).all() or len(kinds) < 2 or not captioned[held_out].any():
        return {}
    texts = [train.captions[place] for place in held_out]
    captions, present = encode_captions(experiment.clip, texts)
    found: Arrays = {"captions": captions[present].numpy(), "targets": train.targets[held_out][present.numpy()]}
    views, targets = experiment.views[:, torch.from_numpy(learned)], train.targets[learned]
    found["counts"] = train.class_counts()
    found["margins"] = class_aware_margins(targets.sum(axis=0), experiment.config.margin).numpy()
    known = [train.captions[place] for place in learned]
    for way, settings in WAYS.items():
        taught = replace_captions(known, targets, 1.0, seed) if way in CONTROLS else known
        config = {**experiment.config.as_dict(), **settings, "seed": seed, "refit": False}
        model = LMPTClassifier(clip=experiment.clip, **config)
        for epoch, features in _epochs(model, views, targets, train.class_names, taught):
            found[f"{way}/{epoch}"] = features
        tail = head_medium_tail(found["counts"])["tail"]
        logits = model.scores_of(experiment.test_features)
        found[f"{way}/map"] = np.array(map_with_interval(logits[:, tail], experiment.test.targets[:, tail]))
    return found


def _epochs(
    model: LMPTClassifier,
    views: torch.Tensor,
    targets: np.ndarray,
    names: Sequence[str],
    captions: Sequence[str | None],
) -> Iterator[tuple[int, np.ndarray]]:
    """The prompts' features before training and after 1, 2, 4, 8 ... epochs and the last."""
    last, start = model.config.num_epochs, True
    for record in model.learn(views, targets, names, captions):
        if start:
            start = False
            yield 0, model.start_features_.numpy()
        epoch, rest = divmod(record.step * last, model.num_steps_)
        if rest == 0 and (epoch & (epoch - 1) == 0 or epoch == last):
            with torch.no_grad():
                yield epoch, model.objective_.text_features().cpu().numpy()


def keep_captions(path: str | Path, found: Arrays, class_names: Sequence[str]) -> None:
    """Write what :func:`follow_captions` found, for slides."""
    tensors = {name: torch.from_numpy(values) for name, values in found.items()}
    write_tensors(path, tensors, {"class_names": json.dumps(list(class_names))})


def load_captions(path: str | Path) -> tuple[Arrays, list[str]]:
    """What :func:`keep_captions` wrote, and the class names; nothing where there is no file."""
    if not Path(path).is_file():
        return {}, []
    tensors, header = read_tensors(path)
    return {name: values.numpy() for name, values in tensors.items()}, json.loads(header["class_names"])


@dataclass(frozen=True)
class Pair:
    """A class and the one that its name is nearest to."""

    label: int
    rival: int
    part: str  # head or tail


def choose_pairs(found: Mapping[str, np.ndarray]) -> list[Pair]:
    """A head and a tail class with their look-alikes: those with the most held-out captions of both kinds."""
    way = next(iter(WAYS))
    start = found[f"{way}/0"]
    alike = (start - start.mean(axis=0)) @ (start - start.mean(axis=0)).T
    np.fill_diagonal(alike, -np.inf)
    rivals, targets = alike.argmax(axis=1), found["targets"].astype(bool)

    def captions(label: int) -> int:
        mine, other = targets[:, label], targets[:, rivals[label]]
        return int(min(mine.sum(), (other & ~mine).sum()))

    pairs = []
    for part, labels in head_medium_tail(found["counts"]).items():
        if part != "medium" and len(labels):
            best = max((int(label) for label in labels), key=captions)
            if captions(best) >= LEAST:
                pairs.append(Pair(best, int(rivals[best]), part))
    return pairs


def epochs_of(found: Mapping[str, np.ndarray]) -> list[int]:
    """The epochs at which prompts were kept."""
    way = next(iter(WAYS))
    return sorted(int(key.partition("/")[2]) for key in found if key.startswith(f"{way}/") and key != f"{way}/map")


def caption_columns(
    found: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    pairs: Sequence[Pair],
    epochs: Sequence[int] | None = None,
) -> tuple[dict[str, dict[str, CaptionDistances]], dict[str, str]]:
    """Columns for ``caption_hills``, and what stands under each: the tail's mean average precision."""
    targets, margins = found["targets"].astype(bool), found["margins"]
    kept = epochs_of(found)
    shown = list(epochs) if epochs is not None else sorted({kept[0], *kept[1:2], kept[-1]})
    columns: dict[str, dict[str, CaptionDistances]] = {way: {} for way in WAYS}
    scores = {}
    for way in WAYS:
        for pair in pairs:
            mine, other = targets[:, pair.label], targets[:, pair.rival] & ~targets[:, pair.label]
            for epoch in shown:
                distances = 1 - found["captions"] @ found[f"{way}/{epoch}"][pair.label]
                mine_called, other_called = (label_text(class_names[place], 16) for place in (pair.label, pair.rival))
                name = f"{pair.part}: {mine_called}\n(not {other_called})\nepoch {epoch}"
                columns[way][name] = CaptionDistances(distances[mine], distances[other], float(margins[pair.label]))
        value, low, high = 100 * found[f"{way}/map"]
        scores[way] = f"tail mAP {value:.0f} ({low:.0f}\N{EN DASH}{high:.0f})"
    return columns, scores
