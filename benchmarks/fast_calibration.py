"""What the fast classifier is calibrated on, and how far its promises are from what comes true.

    python benchmarks/fast_calibration.py    # prints a table, writes benchmarks/results/fast_calibration.json

A plan says how often it will be right. It learns that from labelled images, and prompts flatter those that they were
trained on. Three plans for the same prompts: calibrated on the exemplars themselves, on held-out exemplars of
cross-fitting folds (what ``classification="fast"`` does by itself), and on further images (what it does where ``fit``
is given some). All of them see CLIP's scores, as there, and all are judged on the test images. What CLIP and the VAE
take is not counted.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
from measuring import (
    alternate,
    benchmark_options,
    check_aim,
    follow,
    learned_prompts,
    make_result,
    make_row,
    outside,
    prompt_options,
    publish,
)
from scipy.special import log_softmax

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.evaluation.metrics import accuracy, expected_calibration_error, log_loss
from gcpl_lab.fast.race import Plan
from gcpl_lab.gcpl import fast_decision
from gcpl_lab.gcpl.calibration import probabilities
from gcpl_lab.models.diffusion import FrozenDiffusion

FOLDS, ITSELF, FURTHER = "held-out exemplars of folds", "the exemplars themselves", "further images"
MOST_PROMISED = 0.03


def judge(plan: Plan, errors: np.ndarray, labels: np.ndarray, prior: np.ndarray | None = None) -> dict[str, Any]:
    """What a plan promises, and how it fares on images whose errors (image, class, pool) are known."""
    logits, spent = follow(plan, errors, prior)
    chances = probabilities(logits, 1.0)
    complete = plan.logits(errors[:, :, plan.samples], prior, len(plan.samples))
    return {
        "evaluations": float(spent.mean()),
        "accuracy": accuracy(chances, labels),
        "log_loss": log_loss(chances, labels),
        "calibration_error": expected_calibration_error(chances, labels),
        "promised_accuracy": plan.measured["race_accuracy"],
        "promised_log_loss": plan.measured["held_out_log_loss"],
        "decided_otherwise": float((logits.argmax(axis=1) != complete.argmax(axis=1)).mean()),
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

    clip = fast_decision.load_clip(options.preset)

    def clip_scores(images: Any) -> np.ndarray | None:
        template = model.config.templates[0]
        return (
            None if clip is None else fast_decision.clip_scores(clip, template, read_images(images), model.class_names_)
        )

    races = {FOLDS: model.fast_}
    for what, known in ((ITSELF, exemplars), (FURTHER, held)):
        race = fast_decision.make_race(model)
        seen = model.errors(model.encode(known.images), options.pool)
        races[what] = race.plan_from(seen, known.labels, clip_scores(known.images))
    latents, scores = model.encode(judged.images), clip_scores(judged.images)
    prior = None if scores is None else log_softmax(scores.astype(np.float64), axis=1)
    errors, few = model.errors(latents, options.pool), slice(min(options.timed_images, len(judged)))
    seconds = alternate(
        {
            what: partial(race.classify, latents[few], None if scores is None else scores[few])
            for what, race in races.items()
        },
        options.repeats,
        clock=options.clock,
    )
    rows, aims = [], []
    for what, race in races.items():
        assert race.plan_ is not None
        found = judge(race.plan_, errors, judged.labels, prior)
        row = make_row(f"calibrated on {what}", [value / few.stop for value in seconds[what]], **found)
        rows.append(row)
        if what != ITSELF:
            too_much = row["promised_accuracy"] - row["accuracy"]
            what = f"accuracy that a plan promises too much, {row['what']}"
            aims.append(check_aim(what, too_much, most=MOST_PROMISED))
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
    prompt_options(parser, support_images=160, support_help="further images")
    parser.add_argument("--timed-images", type=int, default=20, help="images that are timed")
    parser.add_argument("--pool", type=int, default=16, help="(t, ε) to choose from")
    parser.add_argument("--folds", type=int, default=4, help="trainings for the held-out exemplars")
    options = parser.parse_args()
    result = measure(options)
    publish(result, f"Fast classifiers on {result['images']} test images", options.output)


if __name__ == "__main__":
    main()
