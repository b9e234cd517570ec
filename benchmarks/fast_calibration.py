"""What the fast classifier is calibrated on, and how far its promises are from what comes true.

    python benchmarks/fast_calibration.py    # prints a table, writes benchmarks/results/fast_calibration.json

A plan says how often it will be right and how seldom it decides otherwise for dropping a class early. It learns that
from labelled photographs, and prompts flatter those that they were trained on. Three plans for the same prompts:
calibrated on the exemplars themselves, on held-out exemplars of cross-fitting folds (what ``classification="fast"``
does by itself), and on further photographs (what it does where ``fit`` is given some). All are judged on the test
photographs.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import (
    alternate,
    benchmark_options,
    check_aim,
    learned_prompts,
    make_result,
    make_row,
    outside,
    prompt_options,
    publish,
)

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.evaluation.metrics import accuracy, expected_calibration_error, log_loss
from gcpl_lab.fast.racing import Plan, race
from gcpl_lab.gcpl.classifier import probabilities
from gcpl_lab.gcpl.estimator import make_classifier
from gcpl_lab.models.diffusion import FrozenDiffusion


def judge(plan: Plan, errors: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What a plan promises, and how it fares on photographs whose errors (image, class, pool) are known."""

    def ask(triples: np.ndarray) -> np.ndarray:
        return errors[triples[:, 0], triples[:, 1], plan.samples[triples[:, 2]]]

    went = race(ask, plan, *errors.shape[:2])
    complete = plan.logits(errors[:, :, plan.samples], [], len(plan.samples))
    chances = probabilities(went.logits, 1.0)
    return {
        "evaluations": went.num_pairs / len(labels),
        "accuracy": accuracy(chances, labels),
        "log_loss": log_loss(chances, labels),
        "calibration_error": expected_calibration_error(chances, labels),
        "promised_accuracy": plan.measured["race_accuracy"],
        "promised_log_loss": plan.measured["held_out_log_loss"],
        "decided_otherwise": float((went.logits.argmax(axis=1) != complete.argmax(axis=1)).mean()),
        "steps": len(plan.samples),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Three plans for the same prompts."""
    support, test = load_fashion("support"), load_fashion("test")
    diffusion, chosen = FrozenDiffusion.load(options.preset), draw_episode(support, 16, options.seed)
    exemplars = support.subset(chosen)
    held = support.subset(outside(support, chosen, options.support_images, options.seed))
    judged = test.subset(np.linspace(0, len(test) - 1, min(options.images, len(test))).astype(int))
    model = learned_prompts(
        options, diffusion, exemplars, classification="fast", evidence_pool=options.pool, num_folds=options.folds
    )
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*model.prompts_())
    plans = {"held-out exemplars of folds": model.fast_.plan_}
    for what, known in (("the exemplars themselves", exemplars), ("further photographs", held)):
        fast = make_classifier(diffusion, hidden, model.config, options.seed)
        plans[what] = fast.calibrate(model.encode(known.images), known.labels).plan_
    latents, few = model.encode(judged.images), slice(min(options.timed_images, len(judged)))
    errors, rows, aims = model.fast_.exact(latents, options.pool).errors, [], []
    racers = {what: make_classifier(diffusion, hidden, model.config, options.seed) for what in plans}
    for what, plan in plans.items():
        racers[what].plan_ = plan
    seconds = alternate(
        {what: partial(racer.classify, latents[few]) for what, racer in racers.items()},
        options.repeats,
        clock=options.clock,
    )
    for what, plan in plans.items():
        found = judge(plan, errors, judged.labels)
        row = make_row(f"calibrated on {what}", [value / few.stop for value in seconds[what]], **found)
        rows.append(row)
        if what != "the exemplars themselves":
            aims.append(
                check_aim(
                    f"accuracy that a plan promises too much, {row['what']}",
                    row["promised_accuracy"] - row["accuracy"],
                    most=0.03,
                )
            )
    return make_result(
        "fast_calibration",
        rows,
        options.repeats,
        clock=options.clock,
        preset=options.preset,
        images=len(judged),
        pool=options.pool,
        exemplars=len(exemplars),
        support_images=len(held),
        folds=options.folds,
        aims=aims,
    )


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "fast_calibration")
    prompt_options(parser, support_images=160, support_help="further photographs")
    parser.add_argument("--timed-images", type=int, default=20, help="photographs that are timed")
    parser.add_argument("--pool", type=int, default=16, help="(t, ε) to choose from")
    parser.add_argument("--folds", type=int, default=4, help="trainings for the held-out exemplars")
    options = parser.parse_args()
    result = measure(options)
    publish(result, f"Fast classifiers on {result['images']} test photographs", options.output)


if __name__ == "__main__":
    main()
