"""A GCPL update at the true shape of Stable Diffusion 1.4, beside the bare denoiser's forward and backward pass.

    python benchmarks/gcpl_step.py                          # bfloat16 and float32, writes results/gcpl_step.json
    python benchmarks/gcpl_step.py --shape sd-1.x-small     # a structural copy, in seconds

The weights are random: time and memory do not depend on them. An update is one of the training loop: a batch of
cached moments is sampled, prompts are encoded, the denoiser runs forth and back, AdamW moves the vectors. The bare
pass is the denoiser alone on tensors that are there already, with the gradient going to the prompts' hidden states.
Peak memory is the process's resident memory sampled while an update runs, or CUDA's own count on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from gcpl_lab.backbones.diffusion import FrozenDiffusion
from gcpl_lab.backbones.shapes import (
    CONTEXT_LENGTH,
    DIFFUSION_SHAPES,
    DiffusionShape,
    build_denoiser,
    build_text_encoder,
    build_vae,
)
from gcpl_lab.methods.gcpl import GCPL, Exemplars, ExemplarSampler
from gcpl_lab.methods.prompts import ClassPrompts
from gcpl_lab.storage import write_json
from gcpl_lab.training.loop import TrainingConfig, train
from gcpl_lab.training.runtime import (
    default_device,
    describe_machine,
    describe_versions,
    make_accelerator,
    mixed_precision,
    prepare_for_device,
)

MOST_TIMES_THE_BARE_PASS = 1.15
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    return FrozenDiffusion(tokenizer=tokenizer, scheduler=scheduler, name="random weights", **parts).to(device)


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's own tokenizer, from the vocabulary that open_clip carries."""
    from transformers import CLIPTokenizer

    from gcpl_lab.backbones.shapes import save_tokenizer

    save_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def bare_seconds(diffusion: FrozenDiffusion, batch_size: int, repeats: int, autocast: bool) -> list[float]:
    """Forward and backward pass of the denoiser on ready tensors."""
    device, dtype = diffusion.device, diffusion.dtype
    noisy = torch.randn(batch_size, *diffusion.latent_shape, device=device, dtype=dtype)
    steps = torch.full((batch_size,), 500, device=device)
    width = diffusion.embedding_table.shape[1]
    hidden = torch.randn(batch_size, CONTEXT_LENGTH, width, device=device, dtype=dtype, requires_grad=True)
    seconds = []
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            predicted = diffusion.denoiser(noisy, steps, hidden, return_dict=False)[0]
        predicted.float().square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat:
            seconds.append(time.perf_counter() - began)
    return seconds


def update_seconds(diffusion: FrozenDiffusion, batch_size: int, repeats: int, precision: str) -> list[float]:
    """Updates of the training loop."""
    device = diffusion.device
    prompts = ClassPrompts(diffusion, ["coat", "shirt", "dress", "bag"], num_vectors=1).to(device)
    moments = torch.zeros(2, 8, *diffusion.latent_shape)
    exemplars = Exemplars(moments, moments, torch.arange(8) % 4)
    accelerator = make_accelerator(device.type == "cpu", mixed_precision(precision, diffusion.dtype))  # type: ignore[arg-type]
    config = TrainingConfig(num_steps=repeats + 1, learning_rate=5e-4)
    sampler = ExemplarSampler(diffusion, exemplars, batch_size=batch_size)
    ends = [0.0]
    for record in train(GCPL(diffusion, prompts), sampler, config, accelerator=accelerator):
        if device.type == "cuda":
            torch.cuda.synchronize()
        ends.append(record.seconds)
    return [later - earlier for earlier, later in pairwise(ends[1:])]


def measure(shape: str, precisions: list[str], batch_size: int, repeats: int, tokenizer_folder: Path) -> dict[str, Any]:
    """Both ways, alternating in time, with and without gradient checkpointing.

    Args:
        shape: A name in ``DIFFUSION_SHAPES``.
        precisions: Of ``"float32"`` and ``"bfloat16"``, the type of the frozen weights.
        batch_size: Pictures an update.
        repeats: Timed passes of each kind after one that warms up.
        tokenizer_folder: Where a tokenizer is written.
    """
    tokenizer, rows = clip_tokenizer(tokenizer_folder), []
    for precision in precisions:
        diffusion = build(DIFFUSION_SHAPES[shape], DTYPES[precision], default_device(), tokenizer)
        prepare_for_device(diffusion.denoiser, diffusion.device, precision)  # type: ignore[arg-type]
        diffusion.vae.to("cpu")
        for checkpointed in (False, True):
            if checkpointed:
                diffusion.denoiser.enable_gradient_checkpointing()
            autocast = precision == "bfloat16"
            bare = bare_seconds(diffusion, batch_size, repeats, autocast)
            with measured_peak(diffusion.device) as peak:
                update = update_seconds(diffusion, batch_size, repeats, precision)
            diffusion.denoiser.disable_gradient_checkpointing()
            rows.append({
                "precision": precision, "checkpointed": checkpointed, "update_seconds": statistics.median(update),
                "bare_seconds": statistics.median(bare), "update_spread": max(update) - min(update),
                "bare_spread": max(bare) - min(bare),
                "ratio": statistics.median(update) / statistics.median(bare), "peak_bytes": peak.bytes,
            })  # fmt: skip
        del diffusion
    return {
        "name": "gcpl_step", "shape": shape, "batch_size": batch_size, "repeats": repeats,
        "most_times_the_bare_pass": MOST_TIMES_THE_BARE_PASS, "machine": describe_machine(),
        "versions": describe_versions(), "rows": rows,
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="sd-1.4", choices=list(DIFFUSION_SHAPES))
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "float32"], choices=list(DTYPES))
    parser.add_argument("--batch-size", type=int, default=1, help="pictures an update")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each kind")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "gcpl_step.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.shape, options.precision, options.batch_size, options.repeats, Path(folder))
    write_json(options.output, result)
    table = Table(title=f"{options.shape}, {options.batch_size} pictures an update")
    for heading in ("precision", "checkpointed", "update", "bare pass", "update / bare", "peak memory"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["precision"], "yes" if row["checkpointed"] else "no", f"{row['update_seconds']:.2f} s",
            f"{row['bare_seconds']:.2f} s", f"{row['ratio']:.2f}", f"{row['peak_bytes'] / 1e9:.2f} GB",
        )  # fmt: skip
    console = Console(width=100)
    console.print(table)
    console.print(f"At most {MOST_TIMES_THE_BARE_PASS} times the bare pass is aimed at. {result['machine']}")


if __name__ == "__main__":
    main()
