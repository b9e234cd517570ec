"""What further objectives and learned noises give beside GCPL, on images that no method learned from or is tested on.

    python benchmarks/objectives.py

- MC-TI: strength γ and scale s of CLIP's contrast, from names and from GCPL's prompts; each read by the denoiser, by
  CLIP, and by the product of both probabilities;
- directional tokens, CoMPLe with the same image's errors, and GCPL itself, read in the same three ways;
- NoOp: learned noises beside random ones at 1 to 32 evaluations a class;
- TiF's weights of timesteps beside the present ones, for every objective.

Judged is on images of the support pool outside the exemplars; every variant sees the same. Each trial is kept, and a
rerun goes on from there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import KEPT, benchmark_options, make_result, publish

from gcpl_lab import load_fashion
from gcpl_lab.evaluation.calibration import fit_temperature
from gcpl_lab.evaluation.compare import Trial, paired_difference
from gcpl_lab.experiments.base import run_all
from gcpl_lab.experiments.compare import left_over
from gcpl_lab.experiments.few_shot import NOISE_TRAINING, FewShotExperiment, Seen
from gcpl_lab.gcpl.calibration import Reading, fit_reading, probabilities
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.noop import NoiseSampler, NoOp, TunedClassifier
from gcpl_lab.training.loop import train

SHOTS = 16
READINGS = ("denoiser", "CLIP", "both")
"""Who reads the learned prompts."""

MCTI: dict[str, dict[str, Any]] = {
    f"MC-TI, γ={weight:g}, s={scale:g}": {"token_weight": weight, "token_scale": scale}
    for weight, scale in ((0.01, 10.0), (0.1, 10.0), (1.0, 10.0), (10.0, 10.0), (1.0, 100.0))
}
PROMPTS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "GCPL": ("gcpl", {}, False),
    **{title: ("mc_ti", settings, False) for title, settings in MCTI.items()},
    "MC-TI after GCPL, γ=1, s=10": ("mc_ti", {"token_weight": 1.0}, True),
    "Directional tokens": ("directional", {}, False),
    "CoMPLe, same image": ("comple_same_image", {}, True),
}
"""Objective, its settings, and whether it goes on from GCPL's prompts."""
NOISES = {f"NoOp, {number}": number for number in (1, 2, 4, 8, 16, 32)}


@dataclass
class Study:
    """One draw's experiments, and GCPL's prompts, which several variants start from."""

    seed: int
    steps: int | None = None  # updates of every training; None: the package's
    experiment: FewShotExperiment = field(init=False)
    gcpl: GCPLClassifier | None = None

    def __post_init__(self) -> None:
        support = load_fashion("support")
        self.experiment = FewShotExperiment(support, support.subset(left_over(support, SHOTS, self.seed)))
        experiment, chosen = self.experiment, self.experiment.draw(SHOTS, self.seed)
        self.features = experiment.views[:, torch.from_numpy(chosen)]
        self.exemplars = replace(experiment._exemplars.subset(chosen), features=self.features)
        self.labels = self.exemplars.labels.numpy()

    def learned(self, objective: str, settings: dict[str, Any], after: bool) -> GCPLClassifier:
        """A classifier after its last update."""
        if (objective, after) == ("gcpl", False) and self.gcpl:
            return self.gcpl
        start = self.learned("gcpl", {}, False).prompts_.vectors.detach() if after else None
        settings = settings | ({"num_steps": self.steps} if self.steps else {})
        model = GCPLClassifier(objective=objective, seed=self.seed, diffusion=self.experiment.diffusion, **settings)
        for _ in model.learn(self.exemplars, self.experiment.support.class_names, warm_start=start):
            pass
        self.gcpl = model if objective == "gcpl" else self.gcpl
        return model

    def prompts(self, variant: str) -> dict[str, Any]:
        """Accuracies of learned prompts by reading, and of the denoiser's with other weights of timesteps."""
        experiment, model = self.experiment, self.learned(*PROMPTS[variant])
        evidence = model.evidence(experiment.test_latents)
        reading = Reading(model.weighting_, model.temperature_, model.offsets_)
        chances = [probabilities(reading.scores(evidence.errors), reading.temperature)]
        with torch.no_grad():
            texts = experiment.clip.encode_prompts(*model.prompts_(torch.arange(len(model.class_names_)))).cpu()
        own, judged = (part.numpy() @ texts.numpy().T for part in (self.features[0], experiment.test_features))
        chances.append(probabilities(judged, fit_temperature(own, self.labels)))
        chances.append(chances[0] * chances[1])
        found = dict(zip(READINGS, map(self._accuracy, chances), strict=True))
        seen = Seen(model.support_errors_, model.support_labels_, self.exemplars)
        return found | {"readings": experiment.readings(evidence, seen, self.seed)}

    def noises(self, variant: str) -> dict[str, Any]:
        """Accuracies with learned and with random noises under GCPL's prompts, at equal numbers of evaluations."""
        model, diffusion, number = self.learned("gcpl", {}, False), self.experiment.diffusion, NOISES[variant]
        objective = NoOp(model.classifier(self.seed), number)
        sampler = NoiseSampler(diffusion, self.exemplars, number, flip=model.mirroring_.flip, seed=self.seed)
        for _ in train(objective, sampler, replace(NOISE_TRAINING, num_steps=self.steps or NOISE_TRAINING.num_steps)):
            pass
        found, own = {}, diffusion.scale_latents(self.exemplars.means[0])
        for name, classifier in (("learned", TunedClassifier(objective)), ("random", model.classifier(self.seed))):
            errors, judged = (classifier.exact(some, number).errors for some in (own, self.experiment.test_latents))
            for weighting in ("relative", "absolute"):
                reading = fit_reading(errors, self.labels, weighting=weighting, seed=self.seed)  # type: ignore[arg-type]
                found[f"{name}, {weighting}"] = self._accuracy(reading.scores(judged))
        return found

    def _accuracy(self, scores: np.ndarray) -> float:
        return float((scores.argmax(1) == self.experiment.test.labels).mean())


def run(trial: Trial, studies: dict[int, Study], steps: int | None) -> dict[str, Any]:
    """One variant on one draw; draws come one after another, and one is kept."""
    if trial.seed not in studies:
        studies.clear()
        studies[trial.seed] = Study(trial.seed, steps)
    study = studies[trial.seed]
    return study.prompts(trial.method) if trial.method in PROMPTS else study.noises(trial.method)


def row(what: str, values: dict[int, float], reference: dict[int, float] | None) -> dict[str, Any]:
    """A line of the table; a difference stands where there is something to be paired with."""
    found = {"what": what, "accuracy": float(np.mean(list(values.values()))), "draws": len(values)}
    return found | (paired_difference(values, reference) if reference else {})


def tables(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over draws, each with its paired difference from GCPL's own reading, or from random noises."""
    by: dict[str, dict[int, dict[str, Any]]] = {}
    for one in rows:
        by.setdefault(one["method"], {})[one["seed"]] = one
    plain, found = {seed: one["denoiser"] for seed, one in by["GCPL"].items()}, list[dict[str, Any]]()
    for variant, draws in by.items():
        of = partial(pick, draws)
        if variant in NOISES:
            for weighting in ("relative", "absolute"):
                random = of(f"random, {weighting}")
                found.append(row(f"random noises, {NOISES[variant]}, {weighting}", random, None))
                found.append(row(f"{variant}, {weighting}", of(f"learned, {weighting}"), random))
            continue
        found += [row(f"{variant}: {who}", of(who), plain) for who in READINGS]
        for name in next(iter(draws.values()))["readings"]:
            read = {seed: one["readings"][name] for seed, one in draws.items()}
            found.append(row(f"{variant}: denoiser, errors {name}", read, plain))
    return found


def pick(draws: dict[int, dict[str, Any]], name: str) -> dict[int, float]:
    """One value of each draw."""
    return {seed: one[name] for seed, one in draws.items()}


def tell(line: str) -> None:
    """A line before every trial."""
    sys.stderr.write(line + "\n")


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "objectives", preset=None)
    parser.add_argument("--seeds", default="101,102,103", help="draws")
    parser.add_argument("--only", default="", help="variants whose names begin so; GCPL always")
    parser.add_argument("--train-steps", type=int, help="updates of each training (default: the package's), to try it")
    options = parser.parse_args()
    variants = [name for name in (*PROMPTS, *NOISES) if name.startswith(options.only) or name == "GCPL"]
    trials = [Trial(name, SHOTS, int(seed)) for seed in options.seeds.split(",") for name in variants]
    studies: dict[int, Study] = {}
    judge, made_of = partial(run, studies=studies, steps=options.train_steps), repr((options.train_steps, PROMPTS))
    rows = run_all(KEPT / "objectives", trials, judge, made_of, on_trial=tell)
    result = make_result("objectives", tables(rows), 1, seeds=options.seeds, shots=SHOTS)
    publish(result, "Objectives and noises, on images outside the exemplars", options.output)


if __name__ == "__main__":
    main()
