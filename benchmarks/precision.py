"""Number formats and memory layouts on this processor, against float32, for each kind of work.

    python benchmarks/precision.py                 # prints a table, writes benchmarks/results/precision.json

Variants: bfloat16 (autocast: weights and what is learned stay float32), channels last in memory, both, and
torch.compile with float32 and with bfloat16. The kinds of work: updates of GCPL, classifying, updates of LMPT
(which has no convolutions and no denoiser: layouts do not apply). The fastest variant that gains at least a tenth
over float32 is the measured choice of this machine; ``choose_fastest`` in ``gcpl_lab/training/device.py`` is the
rule, the same that ``evidence_bfloat16=None`` goes by.

A faster format may not change what comes out: class prompts are trained and photographs classified in float32 and in
bfloat16 with several seeds, and the accuracies may differ by no more than the seeds do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
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
from scaling import classify, lmpt_updates, training_updates

from gcpl_lab.data.episodes import draw_episode, draw_test
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.evaluation.metrics import accuracy
from gcpl_lab.gcpl.classifier import DiffusionClassifier, class_scores
from gcpl_lab.gcpl.objectives import GCPL
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import LEAST_GAIN, choose_fastest, make_accelerator
from gcpl_lab.training.loop import TrainingConfig, train
from gcpl_lab.training.processor import bfloat16_instructions

FLOAT32 = "float32"
TRAINING, CLASSIFYING, LMPT_EPOCH = "training", "classifying", "lmpt_epoch"


@cache
def compiled_call(denoiser: Any) -> Any:
    """What ``torch.compile`` makes of a denoiser; made once, or every round would trace it anew."""
    denoiser.compile()
    made, denoiser._compiled_call_impl = denoiser._compiled_call_impl, None
    return made


@contextmanager
def memory_form(denoiser: Any, channels_last: bool, compiled: bool) -> Iterator[None]:
    """The denoiser in another form, put back afterwards."""
    if channels_last:
        denoiser.to(memory_format=torch.channels_last)
    if compiled:
        denoiser._compiled_call_impl = compiled_call(denoiser)
    try:
        yield
    finally:
        if channels_last:
            denoiser.to(memory_format=torch.contiguous_format)
        if compiled:
            denoiser._compiled_call_impl = None


FORMS: dict[str, tuple[bool, bool, bool]] = {
    FLOAT32: (False, False, False),
    "bfloat16": (True, False, False),
    "channels last": (False, True, False),
    "bfloat16, channels last": (True, True, False),
    "compiled": (False, False, True),
    "bfloat16, compiled": (True, False, True),
}
"""bfloat16, channels last, compiled."""


def time_training(diffusion: FrozenDiffusion, form: str, point: Mapping[str, int], clock: str) -> float:
    """Seconds of some updates of GCPL."""
    bfloat16, channels_last, compiled = FORMS[form]
    with memory_form(diffusion.denoiser, channels_last, compiled):
        return time_updates(training_updates(diffusion, dict(point), precision_name(bfloat16)), clock)


def time_classifying(diffusion: FrozenDiffusion, form: str, point: Mapping[str, int], clock: str) -> float:
    """Seconds of classifying."""
    bfloat16, channels_last, compiled = FORMS[form]
    with memory_form(diffusion.denoiser, channels_last, compiled):
        return time_call(lambda: classify(diffusion, dict(point), bfloat16), clock)


def precision_name(bfloat16: bool) -> str:
    """What accelerate calls it."""
    return "bf16" if bfloat16 else "no"


def accuracy_of(
    diffusion: FrozenDiffusion,
    exemplars: Exemplars,
    test: tuple[torch.Tensor, np.ndarray],
    names: tuple[str, ...],
    *,
    num_steps: int,
    num_evidence: int,
    seed: int,
    bfloat16: bool,
) -> float:
    """Train and classify in one format; both share every random number."""
    prompts = ClassPrompts(diffusion, names, seed=seed)
    sampler = ExemplarSampler(
        diffusion, exemplars, batch_size=2 * len(names), timestep_range=diffusion.evidence_range, seed=seed
    )
    accelerator = make_accelerator(cpu=True, mixed_precision=precision_name(bfloat16))
    training = TrainingConfig(num_steps, learning_rate=0.02)
    deque(train(GCPL(diffusion, prompts), sampler, training, accelerator=accelerator), maxlen=0)
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*prompts())
    classifier = DiffusionClassifier(
        diffusion, hidden, timestep_range=diffusion.evidence_range, seed=seed, bfloat16=bfloat16
    )
    scores = class_scores(classifier.exact(test[0], num_evidence).errors, "absolute")
    return accuracy(scores, test[1])


def check_accuracy(
    diffusion: FrozenDiffusion, *, num_seeds: int, num_steps: int, num_test: int, num_evidence: int = 4
) -> dict[str, Any]:
    """Accuracies in both formats over seeds, on the same photographs and noises."""
    support, pool = load_fashion("support"), load_fashion("test")
    pool = pool.subset(draw_test(pool, total=num_test, seed=0))
    latents = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess(read_images(pool.images)))[0])
    found: dict[str, list[float]] = {FLOAT32: [], "bfloat16": []}
    for seed in range(num_seeds):
        chosen = support.subset(draw_episode(support, 8, seed))
        pixels = diffusion.preprocess(read_images(chosen.images))
        exemplars = Exemplars.encode(diffusion, pixels, chosen.labels)
        for name, values in found.items():
            values.append(
                accuracy_of(
                    diffusion,
                    exemplars,
                    (latents, pool.labels),
                    tuple(pool.class_names),
                    num_steps=num_steps,
                    num_evidence=num_evidence,
                    seed=seed,
                    bfloat16=name == "bfloat16",
                )
            )
    apart = float(np.abs(np.subtract(found["bfloat16"], found[FLOAT32])).mean())
    return {
        "accuracies": found,
        "apart": apart,
        "seed_spread": float(np.std(found[FLOAT32], ddof=1)),
        "test_images": num_test,
        "updates": num_steps,
    }


def variants_of(
    options: Any, diffusion: FrozenDiffusion, clip: FrozenCLIP
) -> dict[str, dict[str, Callable[[], float]]]:
    """What is timed, by kind of work and form."""
    forms = [form for form in FORMS if options.compile or "compiled" not in form]
    training = {"classes": options.classes, "updates": options.updates}
    classifying = {"images": options.images, "classes": options.classes, "samples": 4}
    epoch = {"images": 64 * options.lmpt_updates, "classes": 20, "context": 4}

    def time_lmpt(form: str) -> float:
        return time_updates(lmpt_updates(clip, epoch, precision_name(FORMS[form][0])), options.clock)

    return {
        TRAINING: {form: partial(time_training, diffusion, form, training, options.clock) for form in forms},
        CLASSIFYING: {form: partial(time_classifying, diffusion, form, classifying, options.clock) for form in forms},
        LMPT_EPOCH: {form: partial(time_lmpt, form) for form in (FLOAT32, "bfloat16")},
    }


def measure(options: Any) -> dict[str, Any]:
    """Time every form of every kind of work in turn, choose, and compare accuracies."""
    diffusion, clip = FrozenDiffusion.load(options.preset), FrozenCLIP.load(options.preset)
    rows, chosen, first_calls = [], {}, {}
    for kind, variants in variants_of(options, diffusion, clip).items():
        # What compiling costs must be earned back; torch keeps compiled code on disk, so a later program waits less.
        first_calls[kind] = {form: time_call(run) for form, run in variants.items() if "compiled" in form}
        seconds = alternate(variants, options.repeats, clock=options.clock)
        chosen[kind] = choose_fastest(seconds)
        for row, values in zip(make_rows(seconds), seconds.values(), strict=True):
            gain = paired_ratio(seconds[FLOAT32], values)
            rows.append(row | {"what": f"{kind}: {row['what']}", "ratio_to_float32": gain})
    check = check_accuracy(diffusion, num_seeds=options.seeds, num_steps=options.check_steps, num_test=options.test)
    aims = [
        check_aim(
            "accuracy of bfloat16 and float32 apart (at most the spread of seeds)",
            check["apart"],
            most=check["seed_spread"],
        )
    ]
    return make_result(
        "precision",
        rows,
        options.repeats,
        clock=options.clock,
        preset=options.preset,
        chosen=chosen,
        first_calls=first_calls,
        least_gain=LEAST_GAIN,
        instructions=bfloat16_instructions(),
        check=check,
        aims=aims,
    )


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "precision")
    parser.add_argument("--classes", type=int, default=10, help="classes in training and classifying")
    parser.add_argument("--updates", type=int, default=3, help="updates of GCPL that are timed in one go")
    parser.add_argument("--images", type=int, default=8, help="photographs that are classified in one go")
    parser.add_argument("--lmpt-updates", type=int, default=4, help="updates of LMPT that are timed in one go")
    parser.add_argument("--seeds", type=int, default=4, help="seeds of the comparison of accuracies")
    parser.add_argument("--check-steps", type=int, default=20, help="updates before accuracies are compared")
    parser.add_argument("--test", type=int, default=100, help="photographs that they are compared on")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    options = parser.parse_args()
    result = measure(options)
    publish(result, "Formats on this processor", options.output)


if __name__ == "__main__":
    main()
