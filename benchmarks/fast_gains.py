"""What gcpl_lab/fast gains on something that somebody waits for: fitting LMPT, from images to prompts.

    python benchmarks/fast_gains.py    # prints a table, writes benchmarks/results/fast_gains.json

A fit runs in turn with ``GCPL_LAB_FAST=0``, everything as the papers have it, and with ``GCPL_LAB_FAST=1``. Both have
the same seeds, so their losses must agree but for rounding; that is checked before anything is timed. The ratio is the
median over rounds. What the race gains, which changes answers, is measured by classifier_cost.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest import mock

import numpy as np
from measuring import alternate, benchmark_options, check_aim, make_result, make_row, paired_ratio, publish

from gcpl_lab import fast
from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.models.clip import FrozenCLIP

SWITCHES = {"plain": "0", "fast": "1"}
MOST_APART = 1e-4
"""Relative difference of losses that rounding may make."""
LEAST_GAIN = 1.15

Work = Callable[[], np.ndarray]
"""Something that somebody waits for; returns the losses of all updates."""


def lmpt_fit(preset: str, num_epochs: int) -> Work:
    """LMPT on the bundled scenes."""
    clip, scenes = FrozenCLIP.load(preset), load_wardrobe("train")

    def fit() -> np.ndarray:
        model = LMPTClassifier(preset, num_epochs=num_epochs, clip=clip)
        model.fit(scenes.images, scenes.targets, list(scenes.class_names), scenes.captions)
        return np.array([record.loss for record in model.history_])

    return fit


def run_switched(name: str, work: Work) -> np.ndarray:
    """The answer of some work, ``"plain"`` as the papers have it, or ``"fast"`` with what gcpl_lab/fast has."""
    with mock.patch.dict("os.environ", {fast.VARIABLE: SWITCHES[name]}):
        return work()


def check_equal(work: Work) -> float:
    """Largest relative difference between what both answer.

    Raises:
        SystemExit: It is more than rounding makes.
    """
    plain, quick = (run_switched(name, work) for name in SWITCHES)
    apart = float(np.abs(quick - plain).max() / np.abs(plain).max())
    if not apart <= MOST_APART:
        raise SystemExit(
            f"answers with and without gcpl_lab/fast differ by {apart:.1e}; expected at most {MOST_APART:.0e}"
        )
    return apart


def main() -> None:
    """Check that answers agree, time both in turn, print and write."""
    parser = benchmark_options(__doc__, "fast_gains")
    parser.add_argument("--epochs", type=int, default=50, help="of LMPT")
    options = parser.parse_args()
    work = lmpt_fit(options.preset, options.epochs)
    apart = check_equal(work)  # which has warmed up
    variants = {name: partial(run_switched, name, work) for name in SWITCHES}
    seconds = alternate(variants, options.repeats, warm_ups=0, clock=options.clock)
    gain = paired_ratio(seconds["plain"], seconds["fast"])
    ratios = {"plain": 1.0, "fast": gain}
    result = make_result(
        "fast_gains",
        [make_row(f"an LMPT fit: {name}", seconds[name], ratio_to_plain=ratios[name]) for name in SWITCHES],
        options.repeats,
        clock=options.clock,
        preset=options.preset,
        epochs=options.epochs,
        apart=apart,
        aims=[check_aim("text.py, on an LMPT fit", gain, least=LEAST_GAIN)],
    )
    publish(result, "What gcpl_lab/fast gains", options.output)


if __name__ == "__main__":
    main()
