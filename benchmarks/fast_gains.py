"""What each piece of gcpl_lab/fast gains on something that somebody waits for.

    python benchmarks/fast_gains.py    # prints a table, writes benchmarks/results/fast_gains.json

Four kinds of work, each a call of an estimator from images to its answer: fitting GCPL, going on from GCPL's prompts
with the discriminative objective, classifying images exactly (in bfloat16, as by default), and fitting LMPT. Each runs
in turn with ``GCPL_LAB_FAST=0``, everything as the papers have it, and with ``GCPL_LAB_FAST=1``. Both have the same
seeds, so their answers must agree but for rounding; that is checked before anything is timed. The ratio is the median
over rounds. What the race gains, which changes answers, is measured by classifier_cost.py.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from measuring import alternate, benchmark_options, check_aim, make_result, make_row, paired_ratio, publish

from gcpl_lab import fast
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.samples import load_fashion, load_wardrobe
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion

SWITCHES = {"plain": "0", "fast": "1"}
TRAINING, DISCRIMINATIVE = "training GCPL", "training the discriminative objective"
CLASSIFYING, LMPT = "classifying", "an LMPT fit"
SHARED = (TRAINING, DISCRIMINATIVE, CLASSIFYING)
"""What gcpl_lab/fast/shared.py is for; the rest is text.py's."""

LOSSES_APART, SCORES_APART = 1e-4, 5e-3
"""Relative; scores are made in bfloat16, and differ by a tenth of their size from class to class."""

LEAST_GAIN = 1.15


class Work(NamedTuple):
    """Something that somebody waits for.

    Attributes:
        what: Its name in the table.
        run: Does it; returns the losses of all updates, or the scores of the images.
        most_apart: Relative difference of these numbers that rounding may make.
    """

    what: str
    run: Callable[[], np.ndarray]
    most_apart: float


@contextmanager
def switched(name: str) -> Iterator[None]:
    """With ``"plain"`` everything as the papers have it, with ``"fast"`` what gcpl_lab/fast has."""
    before = os.environ.get(fast.VARIABLE)
    os.environ[fast.VARIABLE] = SWITCHES[name]
    try:
        yield
    finally:
        os.environ.pop(fast.VARIABLE) if before is None else os.environ.update({fast.VARIABLE: before})


def losses_of(model: GCPLClassifier | LMPTClassifier) -> np.ndarray:
    """One an update."""
    return np.array([record.loss for record in model.history_])


def works(options: argparse.Namespace) -> list[Work]:
    """All of them, on the bundled images."""
    diffusion, clip = FrozenDiffusion.load(options.preset), FrozenCLIP.load(options.preset)
    support, test, scenes = load_fashion("support"), load_fashion("test"), load_wardrobe("train")
    exemplars = support.subset(draw_episode(support, options.shots, seed=0))
    names, settings = list(support.class_names), {"preset": options.preset, "diffusion": diffusion}
    judged = spread(test, options.images)
    learned = GCPLClassifier(num_steps=options.train_steps, **settings)
    learned.fit(exemplars.images, exemplars.labels, names)
    start = learned.prompts_.vectors.detach().clone()

    def train() -> np.ndarray:
        model = GCPLClassifier(num_steps=options.train_steps, **settings)
        return losses_of(model.fit(exemplars.images, exemplars.labels, names))

    def go_on() -> np.ndarray:
        steps = options.discriminative_steps
        model = GCPLClassifier(objective="discriminative", discriminative_steps=steps, **settings)
        cached = Exemplars.encode(diffusion, diffusion.preprocess(read_images(exemplars.images)), exemplars.labels)
        deque(model.learn(cached, names, warm_start=start), maxlen=0)
        return losses_of(model)

    def classify() -> np.ndarray:
        fast.enable(diffusion)  # as an estimator does when it gets a model: it now follows the switch
        return learned.decision_function(judged.images)

    def fit_lmpt() -> np.ndarray:
        model = LMPTClassifier(options.preset, num_epochs=options.epochs, clip=clip)
        return losses_of(model.fit(scenes.images, scenes.targets, list(scenes.class_names), scenes.captions))

    return [
        Work(TRAINING, train, LOSSES_APART),
        Work(DISCRIMINATIVE, go_on, LOSSES_APART),
        Work(f"{CLASSIFYING} {len(judged)} images", classify, SCORES_APART),
        Work(LMPT, fit_lmpt, LOSSES_APART),
    ]


def spread(data: ImageSet, count: int) -> ImageSet:
    """Some images, spread over the classes."""
    return data.subset(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))


def run_switched(name: str, work: Work) -> np.ndarray:
    """The answer of some work with a switch."""
    with switched(name):
        return work.run()


def check_equal(work: Work) -> float:
    """Largest relative difference between what both answer.

    Raises:
        SystemExit: It is more than rounding makes.
    """
    plain, quick = (run_switched(name, work) for name in SWITCHES)
    apart = float(np.abs(quick - plain).max() / np.abs(plain).max())
    if not apart <= work.most_apart:
        raise SystemExit(
            f"{work.what}: answers with and without gcpl_lab/fast differ by {apart:.1e}; expected at most "
            f"{work.most_apart:.0e}"
        )
    return apart


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Check that answers agree, then time both in turn."""
    every = works(options)
    check = {work.what: {"apart": check_equal(work), "most": work.most_apart} for work in every}
    variants = {f"{work.what}: {name}": partial(run_switched, name, work) for work in every for name in SWITCHES}
    # What was just checked has warmed up.
    seconds = alternate(variants, options.repeats, warm_ups=0, clock=options.clock)
    rows, gains = [], {}
    for work in every:
        plain, quick = (seconds[f"{work.what}: {name}"] for name in SWITCHES)
        gains[work.what] = paired_ratio(plain, quick)
        rows.append(make_row(f"{work.what}: plain", plain, ratio_to_plain=1.0))
        rows.append(make_row(f"{work.what}: fast", quick, ratio_to_plain=gains[work.what]))
    shared = {what: gain for what, gain in gains.items() if what.startswith(SHARED)}
    most = max(shared, key=lambda what: shared[what])
    return make_result(
        "fast_gains",
        rows,
        options.repeats,
        clock=options.clock,
        preset=options.preset,
        shots=options.shots,
        updates=options.train_steps,
        discriminative_updates=options.discriminative_steps,
        epochs=options.epochs,
        check=check,
        gains=gains,
        aims=[
            check_aim(f"shared.py, where it gains most ({most})", shared[most], least=LEAST_GAIN),
            check_aim("text.py, on an LMPT fit", gains[LMPT], least=LEAST_GAIN),
        ],
    )


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "fast_gains")
    parser.add_argument("--shots", type=int, default=16, help="images a class to learn from")
    parser.add_argument("--train-steps", type=int, default=240, help="updates of GCPL")
    parser.add_argument("--discriminative-steps", type=int, default=50, help="updates of the discriminative objective")
    parser.add_argument("--epochs", type=int, default=50, help="of LMPT")
    parser.add_argument("--images", type=int, default=100, help="test images to classify")
    options = parser.parse_args()
    publish(measure(options), "What gcpl_lab/fast gains", options.output)


if __name__ == "__main__":
    main()
