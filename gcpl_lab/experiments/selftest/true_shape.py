"""Part: how fast, in the shape of Stable Diffusion 1.4 and ViT-B/16 with random weights made on the spot.

Beside ours stand, in the same run, the published procedures and the bare denoiser on tensors that are there already. In
the form for a CPU the shapes are small copies, named as such.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from gcpl_lab import fast
from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.evaluation.timing import alternate, check_aim, make_row, make_rows, paired_ratio
from gcpl_lab.experiments.plan import make_plan
from gcpl_lab.experiments.profile import measure_profile
from gcpl_lab.experiments.published import (
    CHECKPOINTED,
    FLOOR,
    OURS,
    PUBLISHED,
    Material,
    PublishedLMPT,
    lmpt_batches,
    lmpt_objective,
    lmpt_updates,
    make_variants,
)
from gcpl_lab.experiments.selftest.parts import Findings, NotHere, first_line, register_part
from gcpl_lab.gcpl.classifier import DiffusionClassifier
from gcpl_lab.lmpt.encoding import encode_views
from gcpl_lab.lmpt.objective import LMPT
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.models.shapes import DIFFUSION_SHAPES, SMALL_CLIP, random_clip, random_diffusion
from gcpl_lab.storage import write_json
from gcpl_lab.training.device import prepare_for_device, wait_for_device
from gcpl_lab.training.machine import (
    allocated_bytes,
    describe_device,
    describe_machine,
    describe_versions,
    measured_peak,
)

AIMS = {"floor": 1.15, "published": 3.0, "classifying": 1.1, "lmpt": 100.0, "peak_gb": 24.0}
"""What an H100-class card should reach with batches of eight in bfloat16; a missed one is said, and fails nothing."""

CLIP_NAME = "ViT-B-16-quickgelu"


@dataclass
class Sizes:
    """How much is measured: on a GPU, or in the form for a CPU."""

    shape: str = "sd-1.4"
    clip: Any = CLIP_NAME
    clip_name: str = CLIP_NAME
    batches: tuple[int, ...] = (8, 1, 4, 16)  # the first is compared with the published procedure
    precisions: tuple[str, ...] = ("bfloat16", "float16")
    repeats: int = 9
    evaluations: int = 64
    product: int = 8192
    rows: list[dict[str, Any]] = field(default_factory=list)
    aims: list[dict[str, Any]] = field(default_factory=list)


SMALL: dict[str, Any] = {"shape": "sd-1.x-small", "clip": SMALL_CLIP, "clip_name": "a small copy of ViT-B/16"}
SMALL |= {"batches": (4,), "precisions": ("bfloat16",), "repeats": 2, "evaluations": 16, "product": 1024}


@register_part("true_shape", title="Speed in the true shape", seconds={"cuda": 110, "cpu": 30})
def true_shape(found: Findings) -> None:
    """Updates, memory, classification, LMPT, products; a profile for the planner and a result to keep."""
    sizes = Sizes(**SMALL) if found.small else Sizes()
    if not found.small and not describe_device()["bfloat16"]:
        sizes.precisions = ("float16",)
    found.folder.mkdir(parents=True, exist_ok=True)
    found.figures |= {"shape": sizes.shape, "clip": sizes.clip_name}
    for precision in sizes.precisions:
        found.piece(precision, partial(measure_diffusion, found, sizes, precision), 30, may_not_fit=True)
    found.piece("LMPT", partial(measure_lmpt, found, sizes), 20, may_not_fit=True)
    found.piece("compiled", partial(measure_compiled, found, sizes), 130, may_not_fit=True)
    found.figures |= {"rows": sizes.rows, "aims": sizes.aims}
    missed = [aim["what"] for aim in sizes.aims if not aim["met"]]
    found.headline = "; ".join(f"{aim['what']}: {aim['value']:.3g}" for aim in sizes.aims[:2])
    found.headline += f" (missed: {', '.join(missed)})" if missed and not found.small else ""
    write_result(found, sizes)


def measure_diffusion(found: Findings, sizes: Sizes, precision: str) -> None:
    """Everything of the diffusion model in one precision; what is compared comes first."""
    diffusion = make_diffusion(found, sizes, precision)
    for batch in sizes.batches:
        name = f"{precision}, batch {batch}"
        found.piece(name, partial(measure_updates, found, sizes, diffusion, precision, batch), may_not_fit=True)
    if precision != sizes.precisions[0]:
        return
    found.piece("classifying", partial(measure_classifying, sizes, diffusion), 10, may_not_fit=True)
    found.piece("products", partial(measure_products, found, sizes, diffusion), 10)
    found.piece("profile", partial(keep_profile, found, sizes, diffusion), 20, may_not_fit=True)


def make_diffusion(found: Findings, sizes: Sizes, precision: str) -> FrozenDiffusion:
    """A model in the shape, with random weights; the one before goes."""
    allocated_bytes(found.device)
    shape, dtype = DIFFUSION_SHAPES[sizes.shape], getattr(torch, precision)
    diffusion = random_diffusion(shape, dtype, found.device, found.folder / "tokenizer")
    prepare_for_device(diffusion.denoiser, found.device, "auto")
    return diffusion


def measure_updates(found: Findings, sizes: Sizes, diffusion: FrozenDiffusion, precision: str, batch: int) -> None:
    """Updates of one size in turn: ours, with checkpointing, the floor and, for the first size, as published."""
    variants = make_variants(Material.noise(diffusion, batch), sizes.repeats + 2)
    if batch != sizes.batches[0]:
        variants.pop(PUBLISHED)
    peaks = {}
    for name in (CHECKPOINTED, OURS):  # the smaller first
        with measured_peak(found.device) as peak:
            variants[name]()
        peaks[name] = peak.bytes / 1e9
    seconds = alternate(variants, sizes.repeats)
    rows = make_rows(seconds, published=PUBLISHED if PUBLISHED in seconds else None, floor=FLOOR)
    for row in rows:
        what = row["what"]
        more = {"precision": precision, "variant": what, "batch": batch, "peak_gb": peaks.get(what)}
        sizes.rows.append(
            row | {"what": f"{precision}, batch {batch}: {what}", **more, "per_second": 1 / row["seconds"]}
        )
    if precision == sizes.precisions[0] and PUBLISHED in seconds:
        above = paired_ratio(seconds[OURS], seconds[FLOOR])
        speed_up = paired_ratio(seconds[PUBLISHED], seconds[OURS])
        sizes.aims += [
            check_aim("an update over the bare denoiser", above, most=AIMS["floor"]),
            check_aim("images a second over the published procedure", speed_up, least=AIMS["published"]),
            check_aim(f"GB at peak, batch {batch}", peaks[OURS], most=AIMS["peak_gb"]),
        ]


def measure_classifying(sizes: Sizes, diffusion: FrozenDiffusion) -> None:
    """Denoiser evaluations a second: the classifier on eight classes, and the bare denoiser."""
    classes, count = 8, sizes.evaluations
    hidden = diffusion.encode_texts([f"a photo of a thing {index}" for index in range(classes)])
    latents, classifier = (
        torch.zeros(1, *diffusion.latent_shape),
        DiffusionClassifier(diffusion, hidden, batch_size=count),
    )
    shape = (count, *diffusion.latent_shape)
    noisy = torch.zeros(shape, device=diffusion.device, dtype=diffusion.dtype)
    timesteps = torch.full((count,), 500, device=diffusion.device)
    each = hidden.repeat(count // classes, 1, 1)

    @torch.no_grad()
    def bare() -> None:
        diffusion.denoiser(noisy, timesteps, each, return_dict=False)
        wait_for_device(diffusion.device)

    name, floor = "classifying", "classifying: bare denoiser"
    seconds = alternate({name: lambda: classifier.exact(latents, count // classes), floor: bare}, sizes.repeats)
    for row in make_rows(seconds, floor=floor, evaluations={name: count, floor: count}):
        sizes.rows.append(row | {"per_second": count / row["seconds"]})
    ratio = paired_ratio(seconds[name], seconds[floor])
    sizes.aims.append(check_aim("classifying over the bare denoiser", ratio, most=AIMS["classifying"]))


def measure_products(found: Findings, sizes: Sizes, diffusion: FrozenDiffusion) -> None:
    """TFLOP/s of the bare denoiser's forward and backward, and of a large product of matrices."""
    size, dtype = sizes.product, diffusion.dtype
    left = torch.randn(size, size, device=found.device, dtype=dtype)

    def product() -> None:
        torch.mm(left, left)
        wait_for_device(found.device)

    bare = make_variants(Material.noise(diffusion, sizes.batches[0]), 1)[FLOOR]
    with FlopCounterMode(display=False) as counter:
        bare()
    seconds = alternate({"product": product, "denoiser": bare}, sizes.repeats)
    rates = {"product": 2 * size**3, "denoiser": counter.get_total_flops()}
    for name, operations in rates.items():
        found.figures[f"TFLOP/s: {name}"] = operations / float(np.median(seconds[name])) / 1e12
    sizes.rows.append(make_row(f"a product of {size} × {size} matrices", seconds["product"]))


def keep_profile(found: Findings, sizes: Sizes, diffusion: FrozenDiffusion) -> None:
    """Write what ``gcpl-lab plan --profile`` reads, and what it says of a published training."""
    profile = measure_profile(diffusion, preset=sizes.shape, batch_size=sizes.batches[0], num_steps=3)
    write_json(found.folder / f"{sizes.shape}-{card_name()}.json", asdict(profile))
    plan = make_plan("sd-1.4", num_classes=10, num_shots=16, num_test=0, profile=profile)  # the published recipe
    found.figures["minutes: 10 classes, 16 images each, 500 updates"] = plan.training.seconds / 60


def measure_compiled(found: Findings, sizes: Sizes) -> None:
    """Updates of the first size with a compiled denoiser, which the package itself does not compile."""
    if found.small:
        raise NotHere("compiling takes minutes on a CPU")
    diffusion = make_diffusion(found, sizes, sizes.precisions[0])
    diffusion.denoiser.compile(dynamic=False)
    run = make_variants(Material.noise(diffusion, sizes.batches[0]), sizes.repeats + 2)[OURS]
    began = time.perf_counter()
    try:
        run()
    except Exception as error:  # a compiler that is not there is no fault of ours
        raise NotHere(first_line(error)) from error
    found.figures["seconds of compiling"] = time.perf_counter() - began
    with measured_peak(found.device) as peak:
        seconds = alternate({OURS: run}, sizes.repeats, warm_ups=0)[OURS]
    what = f"{sizes.precisions[0]}, batch {sizes.batches[0]}: ours, compiled"
    sizes.rows.append(make_row(what, seconds, peak_gb=peak.bytes / 1e9, per_second=1 / float(np.median(seconds))))


def measure_lmpt(found: Findings, sizes: Sizes) -> None:
    """An epoch of LMPT on the bundled scenes with cached features, and as published."""
    import open_clip

    model_config = sizes.clip if isinstance(sizes.clip, dict) else open_clip.get_model_config(sizes.clip)
    dtype = torch.float32 if found.small else torch.bfloat16
    clip, data = fast.enable(random_clip(model_config, dtype, found.device)), load_wardrobe("train")
    config, began = LMPTConfig(), time.perf_counter()
    views = encode_views(clip, data.images, flip=False)
    found.figures["LMPT: seconds of caching, once"] = time.perf_counter() - began
    batches, published_batch = lmpt_batches(clip, data, views, config)
    steps, few = batches.steps_an_epoch, 1 if found.small else 3
    rounds = (sizes.repeats + 1) * steps
    ours = lmpt_updates(lmpt_objective(LMPT, clip, data, config), batches, rounds, config)
    published = lmpt_updates(lmpt_objective(PublishedLMPT, clip, data, config), published_batch, rounds, config)

    def epoch() -> float:
        return timed(ours, steps)

    def published_epoch() -> float:
        return timed(published, few) * steps / few  # some of its steps stand for the epoch

    seconds = alternate({PUBLISHED: published_epoch, OURS: epoch}, sizes.repeats)
    for row in make_rows(seconds, published=PUBLISHED):
        sizes.rows.append(row | {"what": f"LMPT epoch: {row['what']}"})
    ratio = paired_ratio(seconds[PUBLISHED], seconds[OURS])
    sizes.aims.append(check_aim("LMPT epochs over the published procedure", ratio, least=AIMS["lmpt"]))


def timed(records: Iterator[Any], count: int) -> float:
    """Seconds of the next ``count`` updates."""
    began = time.perf_counter()
    for _ in range(count):
        next(records)
    return time.perf_counter() - began


def card_name() -> str:
    """The card, or the processor, as part of a file's name."""
    name = str(describe_device().get("card") or describe_machine()["processor"])
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def write_result(found: Findings, sizes: Sizes) -> None:
    """Write ``gpu_<card>.json`` (of a CPU ``cpu_...``) in the form of ``benchmarks/results``."""
    name = f"{'cpu' if found.small else 'gpu'}_{card_name().replace('-', '_')}"
    rates = {key: value for key, value in found.figures.items() if key not in ("rows", "aims")}
    result: dict[str, Any] = {"name": name, "machine": describe_machine() | describe_device()}
    result |= {"versions": describe_versions()}
    result |= {"repeats": sizes.repeats, "shape": sizes.shape, "clip": sizes.clip_name, "figures": rates}
    write_json(found.folder / f"{name}.json", result | {"aims": sizes.aims, "rows": sizes.rows})
