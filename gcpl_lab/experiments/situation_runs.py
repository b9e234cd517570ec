"""Methods in situations: run what is missing, keep every result, and what pairs of methods reach together."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcpl_lab.data.episodes import draw_test
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.evaluation.compare import Trial, paired_difference
from gcpl_lab.experiments.base import run_all
from gcpl_lab.experiments.compare import left_over
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.situations import SITUATIONS, Case, Draw
from gcpl_lab.gcpl.estimator import GCPLClassifier

COSTS = ("train_seconds", "predict_seconds", "train_evaluations", "denoiser_evaluations")


@dataclass(frozen=True)
class SituationTrial(Trial):
    """One method in one case of a situation."""

    situation: str
    case: str


class GivenExperiment(FewShotExperiment):
    """All of the support is learned from, each method once; ``before`` are classes that are known already."""

    before: GivenExperiment | None = None

    def draw(self, shots: int, seed: int) -> np.ndarray:
        """Everything."""
        return np.arange(len(self.support))

    def run(self, method: str, shots: int, seed: int) -> Outcome:
        """As for any experiment; the outcome is kept for the case that grows from this one."""
        if method not in self._outcomes:
            self._outcomes[method] = super().run(method, shots, seed)
        return self._outcomes[method]

    @cached_property
    def _outcomes(self) -> dict[str, Outcome]:
        return {}

    def known(self, method: str, shots: int, seed: int) -> GCPLClassifier | None:
        """The prompts of the classes before."""
        return self.before.run(method, shots, seed).model if self.before else None

    def share_kept(self, method: str, shots: int, seed: int) -> float:
        """Of the images of classes that were known before: the share whose decision stayed."""
        assert self.before is not None
        names, earlier = self.before.test.class_names, self.before.run(method, shots, seed).scores
        old = np.isin(self.test.labels, [self.test.class_names.index(name) for name in names])
        decided = np.array(self.test.class_names)[self.run(method, shots, seed).scores[old].argmax(1)]
        return float((decided == np.array(names)[earlier.argmax(1)]).mean())


@dataclass
class _Judge:
    """A trial's result, in whatever process it is asked for; images as they are in ``whole`` are encoded there."""

    whole: FewShotExperiment
    shots: int
    num_test: int
    held_out: bool
    _cases: dict[tuple[str, int], dict[str, tuple[Case, GivenExperiment]]] = field(default_factory=dict)

    def draw_of(self, seed: int) -> Draw:
        """Exemplars come from the pool; judged is on test images, or on what the largest episode leaves of the pool."""
        support, test = self.whole.support, self.whole.test
        if self.held_out:
            test = support.subset(left_over(support, self.shots, seed))
        judged = draw_test(test, total=min(self.num_test, len(test)), seed=seed)
        return Draw(support, test.subset(judged), self.shots, seed)

    def __call__(self, trial: Trial) -> dict[str, Any]:
        assert isinstance(trial, SituationTrial)
        case, experiment = self._case(trial.situation, trial.seed, trial.case)
        smallest = int(np.bincount(case.exemplars.labels).min())
        outcome = experiment.run(trial.method, smallest, trial.seed)
        right = outcome.scores.argmax(1) == case.test.labels
        accuracy = [[group, level, float(right[part].mean())] for (group, level), part in case.levels.items()]
        if case.grows:
            stayed = experiment.share_kept(trial.method, smallest, trial.seed)
            accuracy.append(["old decisions that stay", next(iter(case.levels))[1], stayed])
        chances = np.round(outcome.probabilities, 6).tolist()
        costs = {name: outcome.row[name] for name in COSTS}
        return {"accuracy": accuracy, **costs, "labels": case.test.labels.tolist(), "chances": chances}

    def _case(self, situation: str, seed: int, name: str) -> tuple[Case, GivenExperiment]:
        if (situation, seed) not in self._cases:  # trials come draw by draw: one is kept
            self._cases, before = {(situation, seed): {}}, None
            for case in SITUATIONS[situation].target(self.draw_of(seed)):
                whole, given = self.whole, (case.exemplars, case.test)
                experiment = GivenExperiment(*given, preset=whole.preset, settings=whole.settings)
                experiment.diffusion, experiment.clip, experiment.fit = whole.diffusion, whole.clip, whole.fit
                experiment.before, before = before if case.grows else None, experiment
                self._lend(experiment)
                self._cases[situation, seed][case.name] = case, experiment
        return self._cases[situation, seed][name]

    def _lend(self, experiment: GivenExperiment) -> None:
        """Encodings that are known; pixels are read anew, which takes no time."""
        whole = self.whole
        learned, judged = (_places(whole, images) for images in (experiment.support, experiment.test))
        if learned is not None and learned[0] == "support":
            experiment.views = whole.views[:, torch.from_numpy(learned[1])]
            moments = whole._exemplars.subset(learned[1])
            experiment._exemplars = replace(moments, labels=torch.from_numpy(experiment.support.labels))
        if judged is not None:
            of_pool, places = judged[0] == "support", torch.from_numpy(judged[1])
            experiment.test_features = (whole.views[0] if of_pool else whole.test_features)[places]
            means = whole.diffusion.scale_latents(whole._exemplars.means[0]) if of_pool else whole.test_latents
            experiment.test_latents = means[places]


def _places(whole: FewShotExperiment, images: ImageSet) -> tuple[str, np.ndarray] | None:
    """Where all of these images are in the pool or in the test set; None where some are not."""
    for name, known in (("support", whole.support.images), ("test", whole.test.images)):
        index = {path: place for place, path in enumerate(known)}
        if all(isinstance(image, Path) and image in index for image in images.images):
            return name, np.array([index[image] for image in images.images])
    return None


def run_situations(
    folder: str | Path,
    *,
    situations: Sequence[str] = tuple(SITUATIONS),
    methods: Sequence[str],
    seeds: Sequence[int],
    shots: int = 16,
    num_test: int = 500,
    held_out: bool = False,
    preset: str = "tiny",
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    **running: Any,
) -> dict[str, Any]:
    """Run every trial that has no result yet and write ``results.json``.

    Args:
        folder, **running: See :func:`~gcpl_lab.experiments.base.run_all`.
        situations: Names in ``SITUATIONS``.
        methods: Names of a comparison's methods.
        seeds: Of exemplars, test images and of what is changed; every method sees the same.
        shots: Exemplars a class, where a situation does not say otherwise.
        num_test: Most judged images, drawn anew for each seed where there are more.
        held_out: Judge on the pool outside the exemplars: for choosing settings.
        preset, settings, command: See :func:`~gcpl_lab.experiments.compare.run_comparison`.

    Returns:
        The content of ``results.json``: ``accuracy`` (by situation, group, level, method and seed), ``cost`` a method
        (means over all trials) and ``joined`` (pairs of methods; see :func:`join`).
    """
    whole = FewShotExperiment(load_fashion("support"), load_fashion("test"), preset=preset, settings=settings)
    judge = _Judge(whole, shots, num_test, held_out)
    trials: list[SituationTrial] = []
    for seed in seeds:
        for name in situations:
            cases = [case.name for case in SITUATIONS[name].target(judge.draw_of(seed))]
            trials += [SituationTrial(method, shots, seed, name, case) for case in cases for method in methods]
    sources = [inspect.getsource(SITUATIONS[name].target) for name in sorted(SITUATIONS)]
    fingerprint = repr((whole.fingerprint(), num_test, held_out, sources))
    rows = run_all(folder, trials, judge, fingerprint, "{situation} {case}: {method}, seed {seed}", **running)
    found: dict[str, Any] = {"held_out": held_out, "shots": shots, "num_test": num_test, "joined": joined_pairs(rows)}
    return whole.write_results(folder, command, **found, accuracy=accuracies(rows), cost=costs(rows))


def accuracies(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy by situation, group, level, method and seed, rounded to what so many images can tell."""
    found: dict[str, Any] = {}
    for row in rows:
        for group, level, value in row["accuracy"]:
            of = found.setdefault(row["situation"], {}).setdefault(group, {}).setdefault(level, {})
            of.setdefault(row["method"], {})[str(row["seed"])] = round(value, 4)
    return found


def costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over a method's trials with the most exemplars of :data:`COSTS`."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return {
        method: {name: round(float(np.mean([r[name] for r in rows if r["method"] == method])), 3) for name in COSTS}
        for method in methods
    }


def joined_pairs(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Every pair of methods that was run in an ordinary episode, joined; the pairs that win most first."""
    kept: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if (row["situation"], row["case"]) == ("few_shots", "16"):
            kept.setdefault(row["method"], {})[row["seed"]] = row
    names = list(kept)
    pairs = [join(a, b, kept[a], kept[b]) for place, a in enumerate(names) for b in names[place + 1 :]]
    return sorted(pairs, key=lambda pair: -pair["accuracy"])


def join(
    a: str, b: str, of_a: Mapping[int, Mapping[str, Any]], of_b: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    """Two methods by the product of their probabilities.

    Returns ``accuracy`` together, of each ``alone``, the paired ``gain`` over the better of both (the better on
    average), the ``correlation`` of mistakes, and ``oracle``, the share of images that one of both tells right.
    """
    together, alone, oracle, correlation = {}, ({}, {}), [], []  # type: ignore[var-annotated]
    for seed in sorted(of_a.keys() & of_b.keys()):
        chances = [np.asarray(of[seed]["chances"]) for of in (of_a, of_b)]
        labels = np.asarray(of_a[seed]["labels"])
        right = [chance.argmax(1) == labels for chance in chances]
        product = np.log(np.maximum(chances[0], 1e-6)) + np.log(np.maximum(chances[1], 1e-6))
        together[seed] = float((product.argmax(1) == labels).mean())
        for one, correct in zip(alone, right, strict=True):
            one[seed] = float(correct.mean())
        oracle.append(float((right[0] | right[1]).mean()))
        if right[0].std() and right[1].std():
            correlation.append(float(np.corrcoef(right[0], right[1])[0, 1]))
    better = max(alone, key=lambda one: np.mean(list(one.values())))
    means = [round(float(np.mean(list(one.values()))), 4) for one in (together, *alone)]
    found = {"methods": [a, b], "accuracy": means[0], "alone": means[1:], "num_seeds": len(together)}
    found |= {"oracle": round(float(np.mean(oracle)), 4), "gain": paired_difference(together, better)}
    return found | {"correlation": round(float(np.mean(correlation)), 3) if correlation else None}
