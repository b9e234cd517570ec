"""Part: losses, gradients and prompts on the device are the CPU's; half precision classifies alike.

The reference is the CPU in float32, and in the form for a CPU the CPU in float64: in both forms rounding is the only
difference. AdamW divides a gradient by its own size, so ten updates magnify it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.samples import load_fashion, load_wardrobe
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.experiments.selftest.parts import Findings, NotHere, register_part
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.lmpt.encoding import encode_views
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import prepare_for_device
from gcpl_lab.training.loop import StepRecord
from gcpl_lab.training.machine import describe_device

NUM_UPDATES = 10
OBJECTIVES = ("gcpl", "comple", "discriminative")


class Bounds(NamedTuple):
    """Of relative differences."""

    losses: float
    first_gradient: float
    gradients: float
    prompts: float  # of what ten updates changed


FLOAT32, TF32 = Bounds(1e-5, 1e-4, 1e-3, 1e-3), Bounds(1e-2, 5e-2, 0.2, 0.3)
MOST_DECIDED_OTHERWISE, NUM_TEST = 3, 100


class Trace(NamedTuple):
    """What ten updates did: losses (update,), gradients and prompts after it (update, element), all float64."""

    losses: Tensor
    gradients: Tensor
    prompts: Tensor


@register_part("equality", title="The CPU's numbers", seconds={"cuda": 45, "cpu": 35})
def equality(found: Findings) -> None:
    """Ten updates of every objective, in float32 and TF32; accuracy in half precision."""
    support, scenes = load_fashion("support"), load_wardrobe("train")
    reference, dtype = torch.device("cpu"), torch.float64 if found.small else torch.float32
    exemplars = few_exemplars(support, FrozenDiffusion.load())
    views = encode_views(FrozenCLIP.load(), scenes.images)

    def compare(name: str, precision: str, bounds: Bounds) -> None:
        if precision == "tf32" and not describe_device().get("tf32"):
            raise NotHere("the device has no TF32")
        wanted, got = (
            trace_lmpt(scenes, views, *where) if name == "lmpt" else trace_gcpl(name, support, exemplars, *where)
            for where in ((reference, dtype, "float32"), (found.device, torch.float32, precision))
        )
        report(found, f"{name}, {precision}", got, wanted, bounds)

    for name in (*OBJECTIVES, "lmpt"):
        found.piece(f"{name}, float32", partial(compare, name, "float32", FLOAT32))
        found.piece(f"{name}, tf32", partial(compare, name, "tf32", TF32))
    found.piece("half precision", partial(half_precision, found, support))
    worst = [each["value"] for key, each in found.figures.items() if key.endswith("float32: losses")]
    found.headline = f"losses of {NUM_UPDATES} updates differ by {max(worst, default=float('nan')):.1e} in float32"


def few_exemplars(support: ImageSet, diffusion: FrozenDiffusion) -> Exemplars:
    """Moments of four bundled images a class."""
    few = support.subset(draw_episode(support, 4, seed=0))
    return Exemplars.encode(diffusion, diffusion.preprocess(read_images(few.images)), few.labels)


def follow(records: Iterator[StepRecord], parameter: Callable[[], Any]) -> Trace:
    """Ten updates; the gradient of each is still in the parameter when its record comes."""
    seen = [
        (record.loss, *(value.detach().cpu().double().flatten() for value in (parameter().grad, parameter())))
        for record in islice(records, NUM_UPDATES)
    ]
    losses, gradients, prompts = zip(*seen, strict=True)
    return Trace(torch.tensor(losses).double(), torch.stack(gradients), torch.stack(prompts))


def trace_gcpl(
    objective: str, support: ImageSet, exemplars: Exemplars, device: torch.device, dtype: torch.dtype, precision: Any
) -> Trace:
    """Of an objective of class prompts, all from the classes' names."""
    diffusion = FrozenDiffusion.load(device=device, dtype=dtype)
    prepare_for_device(diffusion.denoiser, device, precision)
    settings: dict[str, Any] = {"batch_size": 10, "discriminative_batch_size": 2, "num_samples": 2, "num_rivals": None}
    steps: dict[str, Any] = {"num_steps": NUM_UPDATES, "discriminative_steps": NUM_UPDATES, "precision": precision}
    model = GCPLClassifier(objective=objective, diffusion=diffusion, **settings, **steps)
    model.begin(support.class_names)
    model.begin(support.class_names, warm_start=model.prompts_.vectors.detach().clone())  # one objective alone
    return follow(model.train(exemplars), lambda: model.prompts_.vectors)


def trace_lmpt(scenes: MultiLabelSet, views: Tensor, device: torch.device, dtype: torch.dtype, precision: Any) -> Trace:
    """Of LMPT on features that are the same everywhere."""
    clip = FrozenCLIP.load(device=device, dtype=dtype)
    prepare_for_device(clip.model.visual, device, precision)
    model = LMPTClassifier(clip=clip, num_epochs=2, precision=precision)
    records = model.learn(views, scenes.targets, scenes.class_names, scenes.captions)
    return follow(records, lambda: model.objective_.prompts.context)


def report(found: Findings, name: str, got: Trace, wanted: Trace, bounds: Bounds) -> None:
    """Put the relative differences beside their bounds."""
    losses = (got.losses - wanted.losses).abs() / wanted.losses.abs()
    gradients = (got.gradients - wanted.gradients).norm(dim=1) / wanted.gradients.norm(dim=1)
    way = (wanted.prompts[-1] - wanted.prompts[0]).norm()
    found.check(f"{name}: losses", float(losses.max()), most=bounds.losses)
    found.check(f"{name}: first gradient", float(gradients[0]), most=bounds.first_gradient)
    found.check(f"{name}: gradients", float(gradients.max()), most=bounds.gradients)
    prompts = float((got.prompts[-1] - wanted.prompts[-1]).norm() / way)
    found.check(f"{name}: prompts", prompts, most=bounds.prompts)


def half_precision(found: Findings, support: ImageSet) -> None:
    """How many of 100 test images are right after a short training in each precision."""
    few, test = support.subset(draw_episode(support, 4, seed=0)), load_fashion("test")
    some = test.subset(np.arange(0, len(test), len(test) // NUM_TEST))

    def right(precision: Any) -> int:
        model = GCPLClassifier(num_steps=40, precision=precision, batch_size=20, num_evidence=2)
        return round(len(some) * model.fit(few.images, few.labels).score(some.images, some.labels))

    def compare(precision: str) -> None:
        if precision == "float16" and found.small:
            raise NotHere("a CPU does not train in float16")
        apart = abs(right(precision) - expected)
        found.check(f"{precision}: images right, more or less than in float32", apart, most=MOST_DECIDED_OTHERWISE)

    expected = right("float32")
    found.figures["float32: images right of 100"] = expected
    for precision in ("bfloat16", "float16"):
        found.piece(f"accuracy in {precision}", partial(compare, precision))
