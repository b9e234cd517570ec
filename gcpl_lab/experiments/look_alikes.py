"""What a run keeps of its look-alikes: how the test images score under every method, on the way, and under controls.

A control learns as the first objective does, but from labels that are shuffled among the look-alikes: what parts them
there is no learning of classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.evaluation.features import prompt_outputs
from gcpl_lab.evaluation.look_alikes import choose_look_alikes, measure_look_alikes, relative_scores
from gcpl_lab.evaluation.reading import mean_similarity, prompt_similarity
from gcpl_lab.experiments.caching import OutcomeCache
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.registry import BEFORE, title_of
from gcpl_lab.gcpl.estimator import GCPLClassifier, make_classifier
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.training.memory import FORWARD_ADVICE, MemoryFit

EARLY_STEPS = (1, 4, 16, 64)
"""States between names and the end in which test images are judged too."""
NUM_CONTROLS, CONTROL_STEPS = 3, 16
"""Shufflings; updates after which images are judged under each, and of all but the first, which goes on as long as
true labels do."""
MOST_EARLY = 30
"""Images a class that are judged in these states, on half of the samples; one in three under every prompt."""
CONTROL = "shuffled"
CONTROL_TITLE = "Shuffled labels"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class LookAlikes:
    """Scores of the test images of some sets of look-alikes; a key is a method, a dot and the step of its prompts.

    Attributes:
        sets: The classes of each set, three or two.
        rows: Places of the images in the test set, (image,).
        labels: Places in ``names``, (image,).
        errors: Key to (image, class, sample), NaN where an image was not judged.
        scores: Method without prompts on the way to (image, class).
        similarities: Method to (step, 1 + set): number of updates, and the mean centred cosine of each set's prompts.
    """

    sets: list[list[str]]
    rows: np.ndarray
    labels: np.ndarray
    errors: Arrays
    scores: Arrays
    similarities: Arrays

    @cached_property
    def names(self) -> list[str]:
        """The classes of all sets."""
        return [name for members in self.sets for name in members]

    def judged(self, key: str, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Scores (image, class) under these classes alone, and labels, of their images that were judged."""
        places = [self.names.index(name) for name in classes]
        mine = np.isin(self.labels, places)
        labels = np.array([places.index(label) for label in self.labels[mine]], dtype=np.int64)
        if key in self.scores:
            return self.scores[key][mine][:, places], labels
        errors = self.errors[key][mine][:, places]
        known = np.isfinite(errors).all(axis=(1, 2))
        return relative_scores(errors[known]), labels[known]

    @staticmethod
    def step_of(key: str) -> int | None:
        """The step of a key's prompts; None for a method without any."""
        step = key.rpartition(".")[2]
        return int(step) if step.isdigit() else None

    @staticmethod
    def title(key: str) -> str:
        """What tables call a key's method."""
        method = key.rpartition(".")[0] or key
        return CONTROL_TITLE if method.startswith(CONTROL) else title_of(method)

    def keys(self, method: str) -> list[str]:
        """The keys of one method, by growing step."""
        found = [key for key in self.errors if key.rpartition(".")[0] == method]
        return sorted(found, key=lambda key: self.step_of(key) or 0)

    @cached_property
    def methods(self) -> list[str]:
        """Methods with prompts: class names, what was learned, and controls, in the order in which they were kept."""
        return list(dict.fromkeys(key.rpartition(".")[0] for key in self.errors))

    @property
    def tracked(self) -> str:
        """The learned method whose states on the way were judged too, else the first."""
        learned = [name for name in self.methods if name != BEFORE and not name.startswith(CONTROL)]
        return max(learned, key=lambda name: len(self.keys(name)))

    def last(self, method: str) -> str:
        """The key of a method's last state."""
        return self.keys(method)[-1]

    def table(self) -> list[dict[str, Any]]:
        """``look_alikes`` of ``results.json``: last states, then methods without prompts, then states on the way."""
        ends = [self.last(method) for method in self.methods]
        keys = [*ends, *self.scores, *(key for key in self.errors if key not in ends)]
        return [
            measure_look_alikes(self.title(key), *self.judged(key, classes), classes, self.step_of(key))
            for classes in self.sets
            for key in keys
        ]

    def arrays(self) -> Arrays:
        """What is written to a file, with the names of the sets beside it."""
        parts = {"errors": self.errors, "scores": self.scores, "similarities": self.similarities}
        flat = {f"{part}/{key}": values for part, found in parts.items() for key, values in found.items()}
        return {"look_alikes/rows": self.rows, "look_alikes/labels": self.labels, **flat}

    @classmethod
    def from_arrays(cls, sets: Sequence[Sequence[str]], arrays: Mapping[str, np.ndarray]) -> LookAlikes:
        """Read what :meth:`arrays` gave."""
        parts: dict[str, Arrays] = {"errors": {}, "scores": {}, "similarities": {}}
        for name, values in arrays.items():
            part, _, key = name.partition("/")
            if part in parts:
                parts[part][key] = values
        return cls([list(names) for names in sets], arrays["look_alikes/rows"], arrays["look_alikes/labels"], **parts)


@dataclass(frozen=True)
class LookAlikeSets:
    """The sets of look-alikes of an experiment: chosen on the images to learn from, seen on the test images."""

    sets: list[list[str]]
    places: list[int]  # of the names of all sets, in the experiment's classes
    rows: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, experiment: FewShotExperiment) -> LookAlikeSets:
        test, support = experiment.test, experiment.support
        enough = [name for label, name in enumerate(test.class_names) if (test.labels == label).sum() > 1]
        known = np.isin(support.labels, [support.class_names.index(name) for name in enough])
        sets: list[list[str]] = []
        if len(enough) > 1:
            labels = np.array([enough.index(support.class_names[label]) for label in support.labels[known]])
            chosen = choose_look_alikes(experiment.views[0][known].numpy(), labels, enough, test.families)
            sets = [list(names) for names in chosen]
        places = [test.class_names.index(name) for names in sets for name in names]
        rows = np.flatnonzero(np.isin(test.labels, places))
        return cls(sets, places, rows, np.array([places.index(label) for label in test.labels[rows]], dtype=np.int64))

    def similarities(self, outputs: Mapping[int, np.ndarray], class_names: Sequence[str]) -> np.ndarray:
        """(step, 1 + set): steps, and the mean cosine of each set's prompts, less the mean prompt of all classes."""
        found = []
        for step, prompts in outputs.items():
            matrix = prompt_similarity(torch.from_numpy(prompts)[:, None])
            found.append([step, *(mean_similarity(matrix, class_names, members) for members in self.sets)])
        return np.array(found)

    def early(self) -> np.ndarray:
        """(image, class): which prompts the images are judged under on the way."""
        set_of = np.repeat(np.arange(len(self.sets)), [len(names) for names in self.sets])
        turn = np.array([int((self.labels[:place] == label).sum()) for place, label in enumerate(self.labels)])
        own = set_of[self.labels][:, None] == set_of
        return (own | (turn % 3 == 0)[:, None]) & (turn < MOST_EARLY)[:, None]

    @torch.no_grad()
    def judge(
        self, experiment: FewShotExperiment, model: GCPLClassifier, vectors: Tensor, places: Sequence[int]
    ) -> np.ndarray:
        """Errors (image, class, sample) under prompts with these vectors, on every second sample, NaN elsewhere."""
        prompts = model.prompts_
        parts = torch.func.functional_call(prompts, {"vectors": vectors.to(prompts.vectors)}, ())
        hidden, config = experiment.diffusion.encode_prompts(*parts)[list(places)], model.config
        latents = experiment.test_latents[torch.from_numpy(self.rows)]
        samples = np.arange(0, config.num_evidence, 2)
        image, label = np.nonzero(self.early())
        triples = np.stack([part.repeat(len(samples)) for part in (image, label)] + [np.tile(samples, len(image))], 1)
        fit = MemoryFit(config.evidence_batch_size, FORWARD_ADVICE)

        def measure(size: int) -> Tensor:
            classifier = make_classifier(experiment.diffusion, hidden, config, config.seed, batch_size=size)
            return classifier.errors(torch.from_numpy(triples), latents, *classifier.samples(config.num_evidence))

        errors = np.full((len(self.rows), len(self.places), len(samples)), np.nan, dtype=np.float32)
        errors[triples[:, 0], triples[:, 1], triples[:, 2] // 2] = fit(measure).numpy()
        return errors


def tracked_method(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The outcome whose states on the way are judged: the first that learned prompts from class names."""
    learned = [outcome for outcome in outcomes if outcome.model is not None and outcome.method in OBJECTIVES]
    return next((one for one in learned if not OBJECTIVES[one.method].facts.get("starts_from")), None)


def judge_states(
    _report: Any,
    cache: OutcomeCache,
    experiment: FewShotExperiment,
    chosen: LookAlikeSets,
    trial: tuple[str, int, int],
    controls: bool = True,
) -> Arrays:
    """Errors of the test images in early states of one objective, and under what it learned from shuffled labels."""

    def shuffled() -> Arrays:
        model = cache.run(experiment, *trial).model
        true = prompt_outputs(experiment.diffusion, model.prompts_, model.states_)
        return _learn_controls(experiment, chosen, trial, true)

    def early() -> Arrays:
        model = cache.run(experiment, *trial).model
        steps = [step for step in EARLY_STEPS if step in model.states_ and step < max(model.states_)]
        return {
            f"errors/{trial[0]}.{step}": chosen.judge(experiment, model, model.states_[step], chosen.places)
            for step in steps
        }

    found = cache.arrays(experiment, ("early", *trial), early)
    return cache.arrays(experiment, ("shuffled", *trial), shuffled) | found if controls else found


def _learn_controls(
    experiment: FewShotExperiment, chosen: LookAlikeSets, trial: tuple[str, int, int], true: Mapping[int, np.ndarray]
) -> Arrays:
    """``true`` are the prompts of all classes that were learned from true labels, by their steps."""
    (objective, shots, seed), found = trial, dict[str, np.ndarray]()
    places, own = chosen.places, list(range(len(chosen.places)))
    episode = experiment.draw(shots, seed)
    episode = episode[np.isin(experiment.support.labels[episode], places)]
    truth = np.array([places.index(label) for label in experiment.support.labels[episode]])
    names, exemplars = [name for members in chosen.sets for name in members], experiment._exemplars.subset(episode)
    size = max(1, round(experiment.config.batch_size * len(places) / len(experiment.test.class_names)))
    for turn in range(NUM_CONTROLS):
        labels = torch.from_numpy(shuffle_inside(truth, chosen.sets, np.random.default_rng([seed, 31, turn])))
        settings = {**experiment.settings, "batch_size": size}
        model = GCPLClassifier(experiment.preset, objective, seed=seed, diffusion=experiment.diffusion, **settings)
        model.begin(names)
        deque(islice(model.train(replace(exemplars, labels=labels)), CONTROL_STEPS if turn else None), maxlen=0)
        for step in sorted({CONTROL_STEPS, max(model.states_)} & model.states_.keys()):
            found[f"errors/{CONTROL}{turn}.{step}"] = chosen.judge(experiment, model, model.states_[step], own)
        outputs = prompt_outputs(experiment.diffusion, model.prompts_, model.states_)
        whole = {step: true[step].copy() for step in outputs if step in true}
        for step, prompts in whole.items():  # the classes outside the sets are those of the true labels
            prompts[places] = outputs[step]
        found[f"similarities/{CONTROL}{turn}"] = chosen.similarities(whole, experiment.test.class_names)
    return found


def shuffle_inside(truth: np.ndarray, sets: Sequence[Sequence[str]], rng: np.random.Generator) -> np.ndarray:
    """The labels, shuffled among the images of each set so that every label gets equally many images of every class.

    A permutation leaves more or fewer labels right by chance, and teaches just that share of the truth.
    """
    labels, start = truth.copy(), 0
    for members in sets:
        count, first = len(members), rng.permutation(len(members))
        for place in range(count):
            rows = rng.permutation(np.flatnonzero(truth == start + place))
            labels[rows] = start + (np.arange(len(rows)) + first[place]) % count
        start += count
    return labels


def gather(
    experiment: FewShotExperiment, chosen: LookAlikeSets, outcomes: Sequence[Outcome], judged: Arrays
) -> LookAlikes:
    """Everything about the look-alikes of a run: its outcomes, and what ``judge_states`` gave."""
    arrays: Arrays = {"look_alikes/rows": chosen.rows, "look_alikes/labels": chosen.labels}
    for outcome in outcomes:
        if outcome.evidence is not None and (outcome.model is not None or outcome.method == BEFORE):
            errors = outcome.evidence.errors[chosen.rows][:, chosen.places]
            step = 0 if outcome.model is None else max(outcome.model.states_)
            if np.isfinite(errors).all():
                arrays[f"errors/{outcome.method}.{step}"] = errors
        elif outcome.evidence is None:
            arrays[f"scores/{outcome.method}"] = outcome.scores[chosen.rows][:, chosen.places].astype(np.float32)
        if outcome.model is not None:
            outputs = prompt_outputs(experiment.diffusion, outcome.model.prompts_, outcome.model.states_)
            similar = chosen.similarities(outputs, experiment.test.class_names)
            arrays[f"similarities/{outcome.method}"] = similar
    return LookAlikes.from_arrays(chosen.sets, arrays | judged)
