"""A GCPL update at the true shape of Stable Diffusion 1.4: the published procedure, ours, and the bare denoiser.

    python benchmarks/gcpl_step.py                          # bfloat16 and float32, writes results/gcpl_step.json
    python benchmarks/gcpl_step.py --shape sd-1.x-small     # a structural copy, in seconds

The weights are random: time and memory do not depend on them. All three handle the same number of images of one
class. Published is the procedure of ``gcpl_train.py``, where it is shown to end where ours does: pixels through the
VAE, an optimiser over the whole vocabulary. Ours is an update of the training loop: cached moments are sampled, the
prompt is encoded, the denoiser runs forward and backward, AdamW moves the vectors. The floor is the denoiser alone on
tensors that are there already, with the gradient going to the prompt's hidden states. One precision is in memory at a
time, so bfloat16 is compared with float32 by their medians.

Peak memory is the process's resident memory sampled while one of our updates runs (with every library and the VAE's
weights, which stay), or CUDA's own count on a GPU.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from gcpl_train import Material, draws_of, updates_as_published, updates_of
from measuring import alternate, benchmark_options, check_aim, make_result, make_rows, paired_ratio, publish

from gcpl_lab import fast
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import (
    checkpointed_activations,
    default_device,
    make_accelerator,
    prepare_for_device,
    wait_for_device,
)
from tools.shapes import DIFFUSION_SHAPES, DiffusionShape, build_denoiser, build_text_encoder, build_vae, save_tokenizer

PUBLISHED, OURS, CHECKPOINTED = "published procedure", "ours", "ours, gradient checkpointing"
FLOOR = "bare denoiser (floor)"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEAST_SPEED_UP, LEAST_SPEED_UP_BFLOAT16, MOST_ABOVE_FLOOR = 1.4, 3.5, 1.15


@dataclass
class Peak:
    """Bytes at peak; filled in when measuring ends."""

    bytes: int = 0


@contextmanager
def measured_peak(device: torch.device) -> Iterator[Peak]:
    """The most memory that is held inside the block: of the GPU, or resident of this process."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated()
        return
    process, ended = psutil.Process(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    peak.bytes = process.memory_info().rss
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def build(shape: DiffusionShape, dtype: torch.dtype, device: str, tokenizer: Any) -> FrozenDiffusion:
    """A frozen model of random weights, made in its final type so that float32 is never held beside it."""
    from diffusers import DDPMScheduler

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        parts = {"denoiser": build_denoiser(shape), "text_encoder": build_text_encoder(shape), "vae": build_vae(shape)}
    finally:
        torch.set_default_dtype(before)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    frozen = FrozenDiffusion(tokenizer=tokenizer, scheduler=scheduler, name="random weights", **parts)
    return fast.enable(frozen.to(device))


def material_of(diffusion: FrozenDiffusion, batch_size: int) -> Material:
    """One class with two images of noise, in the published recipe: one vector, any timestep."""
    size, latents = diffusion.image_size, (2, 2, *diffusion.latent_shape)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((2, 2, 3, size, size), generator=generator) * 2 - 1
    exemplars = Exemplars(torch.randn(latents, generator=generator), torch.full(latents, -4.0), torch.zeros(2).long())
    config = GCPLConfig(num_vectors=1, learning_rate=5e-4, timestep_range=(0.0, 1.0))
    return Material(diffusion, ("coat",), pixels, exemplars, exemplars, 0.0, config, passes=batch_size)


def make_variants(material: Material, num_updates: int) -> dict[str, Callable[[], Any]]:
    """One update each, a call at a time.

    Args:
        material: One class.
        num_updates: Calls of each variant.
    """
    diffusion = material.diffusion
    device, mixed = diffusion.device, "bf16" if diffusion.dtype is torch.bfloat16 else "no"
    accelerator = make_accelerator(device.type == "cpu", mixed)
    published = updates_as_published(material, draws_of(material, num_updates), 0)
    plain, checkpointed = (
        updates_of(material, material.prompts(), num_updates, accelerator=accelerator) for _ in range(2)
    )
    batch = material.sampler()(0)
    noisy = diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*material.prompts()())[batch.labels]

    def run_published() -> None:
        with accelerator.autocast():
            next(published)
        wait_for_device(device)

    def run_ours() -> None:
        next(plain)
        wait_for_device(device)

    def run_checkpointed() -> None:
        with checkpointed_activations(diffusion.denoiser):
            next(checkpointed)
        wait_for_device(device)

    def run_floor() -> None:
        conditioning = hidden.clone().requires_grad_()
        with accelerator.autocast():
            answer = diffusion.predict_noise(noisy, batch.timesteps, conditioning)
        (answer - batch.noise).square().mean().backward()
        wait_for_device(device)

    return {PUBLISHED: run_published, OURS: run_ours, CHECKPOINTED: run_checkpointed, FLOOR: run_floor}


def measure(
    shape: str, precisions: list[str], batch_size: int, repeats: int, tokenizer_folder: Path, clock: str = "wall"
) -> dict[str, Any]:
    """All variants in turn, one precision after the other; peak memory of ours before that.

    Args:
        shape: A name in ``DIFFUSION_SHAPES``.
        precisions: Of ``"float32"`` and ``"bfloat16"``, the type of the frozen weights.
        batch_size: Images an update; the published procedure takes them one by one.
        repeats: Timed rounds after one that warms up.
        tokenizer_folder: Where a tokenizer is written.
        clock: As in ``measuring``.
    """
    from transformers import CLIPTokenizer

    save_tokenizer(tokenizer_folder)
    tokenizer, rows, aims = CLIPTokenizer.from_pretrained(tokenizer_folder), [], []
    seconds: dict[str, Any] = {}
    for precision in precisions:
        diffusion = build(DIFFUSION_SHAPES[shape], DTYPES[precision], default_device(), tokenizer)
        prepare_for_device(diffusion.denoiser, diffusion.device, precision)  # type: ignore[arg-type]
        variants = make_variants(material_of(diffusion, batch_size), repeats + 2)
        peaks = {}
        for name in (CHECKPOINTED, OURS):  # the smaller first: freed memory may stay with the process
            with measured_peak(diffusion.device) as peak:
                variants[name]()
            peaks[name] = peak.bytes
        found = seconds[precision] = alternate(variants, repeats, clock=clock)
        for row in make_rows(found, published=PUBLISHED, floor=FLOOR):
            what = row["what"]
            rows.append(
                row
                | {
                    "what": f"{precision}: {what}",
                    "precision": precision,
                    "variant": what,
                    "peak_gb": peaks[what] / 1e9 if what in peaks else None,
                }
            )
        aims += [
            check_aim(
                f"{precision}: times faster than the published procedure",
                paired_ratio(found[PUBLISHED], found[OURS]),
                least=LEAST_SPEED_UP,
            ),
            check_aim(
                f"{precision}: time of the bare denoiser",
                paired_ratio(found[OURS], found[FLOOR]),
                most=MOST_ABOVE_FLOOR,
            ),
        ]
        del diffusion, variants
    if {"float32", "bfloat16"} <= seconds.keys():
        faster = statistics.median(seconds["float32"][PUBLISHED]) / statistics.median(seconds["bfloat16"][OURS])
        aims.append(
            check_aim(
                "bfloat16 against the published procedure in float32: times faster",
                faster,
                least=LEAST_SPEED_UP_BFLOAT16,
            )
        )
    return make_result("gcpl_step", rows, repeats, clock=clock, shape=shape, batch_size=batch_size, aims=aims)


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "gcpl_step", preset=None)
    parser.add_argument("--shape", default="sd-1.4", choices=list(DIFFUSION_SHAPES))
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "float32"], choices=list(DTYPES))
    parser.add_argument("--batch-size", type=int, default=1, help="images an update")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(
            options.shape, options.precision, options.batch_size, options.repeats, Path(folder), options.clock
        )
    publish(result, f"An update in the shape of {options.shape}, images: {options.batch_size}", options.output)


if __name__ == "__main__":
    main()
