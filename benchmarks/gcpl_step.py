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
from pathlib import Path
from typing import Any

import torch
from measuring import alternate, benchmark_options, check_aim, make_result, make_rows, paired_ratio, publish

from gcpl_lab.experiments.published import CHECKPOINTED, FLOOR, OURS, PUBLISHED, Material, make_variants
from gcpl_lab.models.shapes import DIFFUSION_SHAPES, random_diffusion
from gcpl_lab.training.device import default_device, prepare_for_device
from gcpl_lab.training.machine import measured_peak

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEAST_SPEED_UP, LEAST_SPEED_UP_BFLOAT16, MOST_ABOVE_FLOOR = 1.4, 3.5, 1.15


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
    rows: list[dict[str, Any]] = []
    aims: list[dict[str, Any]] = []
    seconds: dict[str, Any] = {}
    for precision in precisions:
        diffusion = random_diffusion(DIFFUSION_SHAPES[shape], DTYPES[precision], default_device(), tokenizer_folder)
        prepare_for_device(diffusion.denoiser, diffusion.device, precision)  # type: ignore[arg-type]
        variants = make_variants(Material.noise(diffusion, batch_size), repeats + 2)
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
