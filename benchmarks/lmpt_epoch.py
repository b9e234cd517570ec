"""One epoch of LMPT on the bundled scenes: the published procedure beside ours, with the same mathematics.

    python benchmarks/lmpt_epoch.py                # prints a table, writes benchmarks/results/lmpt_epoch.json

Published, as in the authors' train.py: every step reads and transforms its images, runs the image tower on them, and
runs the text tower on prompts of the full context length. Ours: image features are cached, and the text tower runs on
no more than what the prompts need (``gcpl_lab/fast/text.py``). Captions are encoded once in both, as the authors do.
Both use batches of 64, AdamW and the same order of images; augmentation is off, so that their losses can be compared
step by step. Updates are timed from the second on; what is done once is the same in both. An epoch of ours is some
hundredths of a second, so five are timed in a row. Where there are several threads, everything is measured with one,
too: learning side by side (``--workers``) gives each process a part of them. How an epoch grows with images, classes
and context length is measured by scaling.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from measuring import (
    alternate,
    benchmark_options,
    check_aim,
    make_result,
    make_rows,
    paired_ratio,
    publish,
    time_call,
    time_updates,
)
from rich.console import Console
from torch import Tensor

from gcpl_lab import fast
from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.experiments.published import PublishedLMPT, lmpt_batches, lmpt_objective, lmpt_updates
from gcpl_lab.lmpt.encoding import encode_views
from gcpl_lab.lmpt.objective import LMPT
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.training.loop import StepRecord

MOST_APART, CHECKED_STEPS = 1e-4, 10
ONE_THREAD = ", one thread"
PUBLISHED, OURS, FLOOR = "published procedure", "cached features", "text encoder alone (floor)"
LEAST_SPEED_UP = 20.0
EPOCHS_IN_A_ROW = 5


def text_tower_alone(objective: LMPT, num_steps: int) -> None:
    """The text tower's forward and backward passes on the class prompts, as ours has them: what caching cannot save."""
    for _ in range(num_steps):
        objective.text_features().sum().backward()
        objective.prompts.context.grad = None


def with_one_thread(run: Callable[[], float]) -> float:
    """What a variant takes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


def measure(
    preset: str, *, num_context: int, num_steps: int | None, repeats: int, clock: str = "wall"
) -> dict[str, Any]:
    """Check that both procedures compute the same, then time an epoch of each in turn."""
    clip, data = fast.enable(FrozenCLIP.load(preset)), load_wardrobe("train")
    config = LMPTConfig(preset=preset, num_context=num_context)
    encoded: list[Tensor] = []
    caching = time_call(lambda: encoded.append(encode_views(clip, data.images, flip=False)), clock)
    batches, published_batch = lmpt_batches(clip, data, encoded[0], config)

    def records(kind: type[LMPT], num_steps: int) -> Iterator[StepRecord]:
        batch_at = published_batch if kind is PublishedLMPT else batches
        return lmpt_updates(lmpt_objective(kind, clip, data, config), batch_at, num_steps, config)

    losses = {
        name: [record.loss for record in records(kind, CHECKED_STEPS)]
        for name, kind in (("ours", LMPT), ("published", PublishedLMPT))
    }
    apart = float(np.abs(np.subtract(losses["ours"], losses["published"])).max())
    if not apart <= MOST_APART:
        raise SystemExit(
            f"the losses of the first {CHECKED_STEPS} steps differ by {apart:.2e}; expected at most {MOST_APART}"
        )
    steps, bare = num_steps or batches.steps_an_epoch, lmpt_objective(LMPT, clip, data, config)
    in_a_row = EPOCHS_IN_A_ROW * steps
    variants = {
        PUBLISHED: lambda: time_updates(records(PublishedLMPT, steps + 1), clock),
        OURS: lambda: time_updates(records(LMPT, in_a_row + 1), clock) / EPOCHS_IN_A_ROW,
        FLOOR: lambda: time_call(lambda: text_tower_alone(bare, in_a_row), clock) / EPOCHS_IN_A_ROW,
    }
    every = (
        variants
        if torch.get_num_threads() == 1
        else variants | {what + ONE_THREAD: partial(with_one_thread, run) for what, run in variants.items()}
    )
    seconds = alternate(every, repeats, clock=clock)
    share = caching * steps / (config.num_epochs * batches.steps_an_epoch)
    rows, aims = [], []
    for threads in sorted({what.removeprefix(OURS) for what in every if what.startswith(OURS)}):
        rows += make_rows(
            {what + threads: seconds[what + threads] for what in variants},
            published=PUBLISHED + threads,
            floor=FLOOR + threads,
        )
        aims.append(
            check_aim(
                f"times faster than the published procedure, after caching{threads}",
                paired_ratio(seconds[PUBLISHED + threads], seconds[OURS + threads]),
                least=LEAST_SPEED_UP,
            )
        )
    return make_result(
        "lmpt_epoch",
        rows,
        repeats,
        clock=clock,
        preset=preset,
        images=len(data),
        steps=steps,
        batch_size=config.batch_size,
        num_context=num_context,
        once={"caching": caching},
        ratio_with_caching=paired_ratio(seconds[PUBLISHED], np.array(seconds[OURS]) + share),
        check={"apart": apart, "most": MOST_APART, "losses": losses},
        aims=aims,
    )


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "lmpt_epoch")
    parser.add_argument("--num-context", type=int, default=4, help="context vectors a class")
    parser.add_argument("--steps", type=int, help="updates that are timed instead of a whole epoch")
    options = parser.parse_args()
    result = measure(
        options.preset,
        num_context=options.num_context,
        num_steps=options.steps,
        repeats=options.repeats,
        clock=options.clock,
    )
    title = (
        f"{result['steps']} updates of LMPT, {result['images']} scenes in batches of {result['batch_size']}, "
        f"{result['num_context']} context vectors a class"
    )
    publish(result, title, options.output)
    Console().print(
        f"With the caching of features spread over {LMPTConfig().num_epochs} epochs: "
        f"{result['ratio_with_caching']:.3g} times faster."
    )


if __name__ == "__main__":
    main()
