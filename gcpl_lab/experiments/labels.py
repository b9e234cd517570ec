"""One run of images with several labels: results, what it keeps for its pictures, and these pictures.

What a person wants to see of it: which labels it learned and how surely, what it says of single images, its gravest
mistakes, and how the prompts got there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcpl_lab.data.readers import iter_images
from gcpl_lab.data.sets import MultiLabelSet
from gcpl_lab.errors import ArtifactError, explain
from gcpl_lab.evaluation.explaining import find_mistakes
from gcpl_lab.evaluation.multilabel import map_with_interval, multilabel_report
from gcpl_lab.experiments.base import Stopwatch
from gcpl_lab.experiments.captions import CAPTIONS, follow_captions, keep_captions
from gcpl_lab.experiments.figures import WORDS, draw_figures, save_caption_hills, save_drawn
from gcpl_lab.experiments.multilabel import MULTILABEL_TITLES, MultiLabelExperiment, MultiLabelOutcome
from gcpl_lab.experiments.runs import PROMPTS
from gcpl_lab.experiments.sentences import WORDS as SENTENCES
from gcpl_lab.experiments.sentences import labels_answer, limits_of, scenes_caveats
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.storage import read_tensors, write_tensors
from gcpl_lab.views import multilabel, plots, style
from gcpl_lab.views.moving import Moving, moving_precision, moving_tokens
from gcpl_lab.views.multilabel import Answer
from gcpl_lab.views.projection import Projection, project
from gcpl_lab.views.report import MULTILABEL_COLUMNS, ReportFigure, write_report

LABELS, SHOWN = "labels.safetensors", "multilabel"
BESIDE = ("zero_shot_clip", "linear_probe")
"""What learned prompts are shown beside; with controls CoOp too, which learns from the labels alone."""
SIDE = 160  # pixels of a kept image
NUM_ANSWERS = 4
STATES = {"before": "Before: class names", "after": "After: learned prompts"}
LOSSES = {"classification": "labels", "contrast": "captions"}
NOTHING = "no label"


@dataclass(frozen=True)
class LabelStates:
    """What a run's pictures are made of; of both ``STATES`` where there are two."""

    images: np.ndarray  # uint8 (image, height, width, channel): what the model sees of the test images
    targets: np.ndarray  # uint8 (image, class)
    counts: np.ndarray  # (class,): training images with each
    logits: dict[str, np.ndarray]  # (image, class), comparable within a class
    probabilities: dict[str, np.ndarray]  # (image, class)
    thresholds: dict[str, np.ndarray]  # (class,)
    cosines: dict[int, np.ndarray]  # updates to (image, class), of images and prompts on their way
    contexts: dict[int, np.ndarray]  # updates to (class or 1, vector, dim)
    class_names: list[str]
    files: list[str]  # folder and file name of each image
    seed: int

    @cached_property
    def rarest(self) -> np.ndarray:
        """The label of each image that fewest training images have; the number of classes where it has none."""
        ranked = np.where(self.targets == 1, self.counts, self.counts.max() + 1)
        return np.where(self.targets.any(axis=1), ranked.argmin(axis=1), len(self.class_names))

    def say(self, rows: np.ndarray) -> list[str]:
        """Names of the labels that are set in rows (image, class)."""
        named = [[self.class_names[place] for place in np.flatnonzero(row)] for row in rows]
        return [", ".join(names) or NOTHING for names in named]

    def said(self, state: str) -> list[str]:
        """What is said of each image."""
        return self.say(self.probabilities[state] >= self.thresholds[state])

    def project(self, method: str) -> Projection:
        """Both states on one map; a label's logits count by their spread over the images, as a ranking does."""
        states = {}
        for state, title in STATES.items():
            logits = self.logits[state]
            spread = logits.std(axis=0)
            states[title] = (logits - logits.mean(axis=0)) / np.where(spread > 0, spread, 1)
        return project(states, method, self.seed)

    def answers(self, chosen: Sequence[tuple[int, int | None]]) -> list[Answer]:
        """Cards of images, each with the label that was decided wrongly, if one is meant."""
        chances, borders, shown = self.probabilities["after"], self.thresholds["after"], list[Answer]()
        for image, label in chosen:
            order = np.argsort(-chances[image], kind="stable")
            columns = (self.class_names, self.targets[image].tolist(), chances[image].tolist(), borders.tolist())
            keys = ("name", "present", "probability", "threshold")
            rows = [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]
            title, wrong = f"shows {self.say(self.targets[image : image + 1])[0]}", None
            if label is not None:
                wrong = self.class_names[label]
                title = f"{wrong} {'missed' if self.targets[image, label] else 'seen, not there'}"
            shown.append(Answer(self.images[image], title, [rows[place] for place in order], wrong))
        return shown

    def drawn(self, most: int = NUM_ANSWERS) -> list[Answer]:
        """Images that nobody chose: the seed draws them."""
        order = np.random.default_rng([self.seed, 101]).permutation(len(self.targets))
        return self.answers([(int(image), None) for image in order[:most]])

    def mistakes(self, most: int = NUM_ANSWERS) -> list[Answer]:
        """The surest wrong decisions, one an image."""
        wrong = find_mistakes(self.probabilities["after"], self.targets, self.thresholds["after"])
        first = dict(reversed(wrong))
        return self.answers([(image, first[image]) for image in list(dict(wrong))[:most]])


def guessed(targets: np.ndarray) -> float:
    """What a random ranking has of mean average precision: the mean share of positives of classes that have any."""
    shares = targets.mean(axis=0)
    return float(shares[shares > 0].mean())


def keep_labels(
    experiment: MultiLabelExperiment, before: MultiLabelOutcome, after: MultiLabelOutcome, folder: Path
) -> None:
    """Write what the pictures of this run need."""
    test, model = experiment.test, after.model
    assert model is not None
    seen = [np.asarray(image.resize((SIDE, SIDE))) for image in iter_images(test.images, experiment.fit)]
    counts = experiment.train.class_counts()
    arrays: dict[str, Any] = {"images": np.stack(seen), "targets": test.targets, "counts": counts}
    for state, outcome in zip(STATES, (before, after), strict=True):
        for name in ("logits", "probabilities", "thresholds"):
            arrays[f"{name}.{state}"] = np.asarray(getattr(outcome, name), np.float32)
    objective, first = model.new_objective(), min(model.states_)
    for step, context in model.states_.items():
        with torch.no_grad():
            objective.prompts.context.copy_(context)
            prompts = objective.text_features().cpu()
        arrays[f"cosines.{step - first}"] = (experiment.test_features @ prompts.T).numpy()
        arrays[f"contexts.{step - first}"] = context.numpy()
    facts = {"class_names": list(test.class_names), "seed": after.seed}
    facts["files"] = ["/".join(Path(image).parts[-2:]) for image in test.images]
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    write_tensors(folder / LABELS, tensors, {"facts": json.dumps(facts)})


def load_labels(folder: str | Path) -> LabelStates:
    """Read what :func:`keep_labels` wrote; ArtifactError where it is absent or damaged."""
    path = Path(folder) / LABELS
    tensors, header = read_tensors(path)
    values: dict[str, Any] = {"cosines": {}, "contexts": {}, "logits": {}, "probabilities": {}, "thresholds": {}}
    try:
        for name, tensor in tensors.items():
            part, _, key = name.partition(".")
            if key:
                values[part][int(key) if key.isdecimal() else key] = tensor.numpy()
            else:
                values[part] = tensor.numpy()
        return LabelStates(**values, **json.loads(header["facts"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: is incomplete ({explain(error)}); make the report again") from error


def show_labels(
    folder: Path,
    model: LMPTClassifier,
    train: MultiLabelSet,
    test: MultiLabelSet,
    command: str,
    *,
    controls: bool = True,
    **more: Any,
) -> None:
    """Write results, kept states, figures and page of prompts for images with several labels.

    Args:
        train: What it learned from, all of it.
        test: Images of the same classes that it did not learn from.
        controls: Learn from the labels alone beside it, and from captions of other images where there are captions:
            four trainings more.
        more: Goes into ``results.json`` as it is.
    """
    seed, settings = model.config.seed, model.config.as_dict() | {"fit": model.fit_}
    experiment = MultiLabelExperiment(train, test, preset=model.config.preset, settings=settings, clip=model.clip)
    outcomes = [experiment.run(name, seed) for name in (*BESIDE, *(["coop_bce"] if controls else []))]
    watch = Stopwatch()
    outcomes.append(experiment.outcome_of(model, watch))
    learned, figures = outcomes[-1], folder / "figures"
    ends = [record.seconds for record in model.history_] + [0.0]  # each training counts from its own beginning
    learned.row["train_seconds"] = sum(end for end, after in pairwise(ends) if after < end)
    model.save(folder / SHOWN / PROMPTS / "lmpt")
    keep_labels(experiment, outcomes[0], learned, folder)
    drawn = [*draw_figures(experiment, outcomes, figures), *draw_labels(load_labels(folder), model, figures)]
    if controls and any(train.captions):
        found = follow_captions(experiment, seed)
        keep_captions(folder / SHOWN / CAPTIONS, found, train.class_names)
        drawn += save_caption_hills(found, train.class_names, figures)
    measured: dict[str, Any] = {"map": map_with_interval(learned.logits, test.targets)._asdict()}
    measured["chance"] = guessed(test.targets)
    rows = [outcome.row for outcome in outcomes]
    results = experiment.write_results(
        folder, command, data=experiment.describe_data(), methods=rows, measured=measured, **more
    )
    page: dict[str, Any] = {"question": SENTENCES["labels"]["question"], "answer": labels_answer(results)}
    page |= {"caveats": scenes_caveats(rows), "limits": limits_of(results, "labels")}
    titles: dict[str, Any] = {"titles": MULTILABEL_TITLES, "columns": MULTILABEL_COLUMNS}
    write_report(folder / "report.html", results, drawn, command=command, **page, **titles)


def draw_labels(states: LabelStates, model: LMPTClassifier, folder: Path) -> list[ReportFigure]:
    """Write the figures of single images, and the way of the losses."""
    history, saved = model.history_, list[ReportFigure]()
    steps = np.arange(1, len(history) + 1)
    parts = [name for name in LOSSES if all(name in record.values for record in history)]
    curves = {LOSSES[name]: (steps, np.array([record.values[name] for record in history])) for name in parts}
    for name, words in WORDS["labels"].items():
        shown = {"answers": states.drawn, "mistakes": states.mistakes}.get(name, list)()
        if name != "learning" and not shown:
            continue
        with style.figure_style():
            if name == "learning":
                figure, narrow = style.new_figure(11, 5), None
                plots.plot_losses(figure.subplots(), curves)
            else:  # side by side, and one below the other for a phone
                sizes = (12.5, 0.6 + 3.3 * -(-len(shown) // 2), 2), (6.4, 0.6 + 3.3 * len(shown), 1)
                figure, narrow = (multilabel.draw_answers(style.new_figure(*at), shown, n) for *at, n in sizes)
        saved.append(save_drawn(figure, narrow, folder, f"multilabel_{name}", words))
    return saved


def map_of_labels(states: LabelStates, method: str) -> dict[str, Any]:
    """Arguments of a hover map of both states; an image has the mark of its rarest label."""
    names = [*states.class_names, *([NOTHING] if (states.rarest == len(states.class_names)).any() else [])]
    chosen = {state: states.probabilities[state].max(axis=1) for state in STATES}
    return {
        "projection": states.project(method),
        "labels": states.rarest,
        "class_names": names,
        "images": list(states.images),
        "predictions": {title: states.said(state) for state, title in STATES.items()},
        "probabilities": {title: chosen[state] for state, title in STATES.items()},
        "files": states.files,
        "truths": states.say(states.targets),
        "title": "Test images by what is read of them; each has the mark of its rarest label",
    }


def moving_labels(states: LabelStates) -> dict[str, Moving]:
    """What each label's prompt finds after so many updates, and the way of contexts that are a class's own."""

    def precisions(scores: np.ndarray) -> list[dict[str, Any]]:
        return list(multilabel_report(scores, states.targets, states.counts, states.class_names)["classes"])

    steps = {f"{step} updates": precisions(cosines) for step, cosines in sorted(states.cosines.items())}
    pictures = {"precision": moving_precision(steps, {"class names": precisions(states.logits["before"])})}
    if len(next(iter(states.contexts.values()))) == len(states.class_names):
        pictures["journey"] = moving_tokens(states.contexts, states.class_names)
    return pictures
