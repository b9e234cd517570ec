"""Learning and classifying in the published sizes: pipelines of random weights, from their folders to probabilities.

    python benchmarks/true_shapes.py            # bfloat16 and float32, writes results/true_shapes.json
    python benchmarks/true_shapes.py --small    # structural copies of both models, in seconds

Stable Diffusion 1.4 and ViT-B/16 are saved in the formats of diffusers and open_clip and loaded by preset name from a
local folder, the hub switched off. Then the estimators work as a user's would: GCPL learns two classes from one image
of each (the VAE encodes it and its mirror image, five updates of one image follow, the temperature is fitted) and
classifies images under both prompts; LMPT encodes twelve images and makes ten updates. Time and memory do not depend on
the weights.

Every part runs in a process of its own, so that no part's peak holds what another left behind. Peak memory is the
process's resident memory with every library in it, sampled while the work lasts, or CUDA's own count on a GPU.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gcpl_step import DTYPES
from measuring import CLOCKS, benchmark_options, make_result, make_row, publish

from gcpl_lab.models.diffusion import quiet_libraries
from gcpl_lab.models.presets import MODELS_VARIABLE, find_preset
from gcpl_lab.training.machine import measured_peak
from tools.shapes import DIFFUSION_SHAPES, SMALL_CLIP, save_clip, save_diffusion

NUM_EXAMPLES, LMPT_EPOCHS, LMPT_BATCH = 12, 5, 5  # two of twelve are held out: two updates an epoch


@dataclass
class Watch:
    """Times stages of work and notes the peak memory of each.

    Attributes:
        precision: Named in every row.
        clock: See ``measuring.CLOCKS``.
        rows: Of a result.
    """

    precision: str
    clock: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def stage(self, what: str, work: Callable[[], Any], repeats: int = 1) -> list[Any]:
        """What each call of ``work`` answered; the calls are one row."""
        import torch

        from gcpl_lab.training.device import default_device

        seconds, answers = [], []
        with measured_peak(torch.device(default_device())) as peak:
            for _ in range(repeats):
                began = CLOCKS[self.clock]()
                answers.append(work())
                seconds.append(CLOCKS[self.clock]() - began)
        self.rows.append(make_row(f"{self.precision}: {what}", seconds, calls=repeats, peak_gb=peak.bytes / 1e9))
        return answers


def noise_images(count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Dark and bright noise in turn, and which is which."""
    rng, labels = np.random.default_rng(0), np.arange(count) % 2
    return [rng.integers(150 * label, 100 + 150 * label, (80, 64, 3), dtype=np.uint8) for label in labels], labels


def measure_gcpl(precision: str, clock: str, repeats: int) -> list[dict[str, Any]]:
    """Load, learn two classes, classify; one update and one image a call.

    Args:
        precision: Of the frozen weights.
        clock: See ``measuring.CLOCKS``.
        repeats: Updates, and images.
    """
    from gcpl_lab import GCPLClassifier

    watch, (images, labels) = Watch(precision, clock), noise_images(2)
    model = GCPLClassifier(
        "sd-1.4",
        num_vectors=1,
        num_steps=repeats,
        batch_size=1,
        precision=precision,
        num_evidence=1,
        class_offsets=False,
    )
    watch.stage("loading the diffusion model", lambda: model.diffusion)
    frozen, records = model.diffusion.checksum(), model.steps(images, labels, ["dark", "bright"])
    done = watch.stage("encoding 2 images, and the first GCPL update", lambda: next(records))
    done += watch.stage("a GCPL update of 1 image", lambda: next(records), repeats - 1) if repeats > 1 else []
    losses = [record.loss for record in done]
    watch.stage("fitting the temperature on 2 images", lambda: list(records))
    chances = watch.stage("classifying an image, 2 classes", lambda: model.predict_proba(images[:1]), repeats)
    _require(np.isfinite(losses).all() and len(losses) == repeats, f"losses are {losses}")
    _require(np.allclose(np.sum(chances, axis=-1), 1), f"probabilities are {chances}")
    _require(model.diffusion.checksum() == frozen, "the frozen weights have changed")
    return watch.rows


def measure_lmpt(precision: str, clock: str, repeats: int) -> list[dict[str, Any]]:
    """Load, encode, ten updates, classify.

    Args:
        precision: Of the frozen towers.
        clock: See ``measuring.CLOCKS``.
        repeats: Calls of the classification.
    """
    from gcpl_lab import LMPTClassifier

    watch, (images, labels) = Watch(precision, clock), noise_images(NUM_EXAMPLES)
    targets = np.stack([labels == 0, labels == 1, np.ones_like(labels)], 1).astype(int)
    captions = [f"a {('dark', 'bright')[label]} thing" for label in labels]
    model = LMPTClassifier(
        "vit-b-16",
        num_epochs=LMPT_EPOCHS,
        batch_size=LMPT_BATCH,
        validation_share=0.2,
        refit=False,
        precision=precision,
    )
    watch.stage("loading CLIP", lambda: model.clip)
    watch.stage(
        "encoding 12 images and 10 LMPT updates",
        lambda: model.fit(images, targets, ["dark", "bright", "noisy"], captions),
    )
    chances = watch.stage("classifying 12 images with 3 labels", lambda: model.predict_proba(images), repeats)
    losses = [record.loss for record in model.history_]
    _require(np.isfinite(losses).all() and len(losses) == 10, f"losses are {losses}")
    _require(np.isfinite(chances).all(), f"probabilities are {chances}")
    return watch.rows


def _require(true: Any, what: str) -> None:
    if not true:
        raise SystemExit(f"the run is not what it should be: {what}")


def measure(small: bool, precisions: list[str], repeats: int, folder: Path, clock: str) -> dict[str, Any]:
    """All parts in turn, the models saved first.

    Args:
        small: Structural copies with few channels instead of the published sizes.
        precisions: Of ``"float32"`` and ``"bfloat16"``, the type of the frozen weights.
        repeats: Updates and classifications of each precision.
        folder: Receives the models: 4.9 GB in the published sizes.
        clock: As in ``measuring``.
    """
    import open_clip

    shape, clip = ("sd-1.x-small", "its small copy") if small else ("sd-1.4", find_preset("vit-b-16").clip_source)
    with quiet_libraries():
        save_diffusion(DIFFUSION_SHAPES[shape], folder / "sd-1.4" / "diffusion")
    save_clip(SMALL_CLIP if small else open_clip.get_model_config(clip), folder / "vit-b-16" / "clip")
    before = {name: os.environ.get(name) for name in (MODELS_VARIABLE, "HF_HUB_OFFLINE")}
    os.environ |= {MODELS_VARIABLE: str(folder), "HF_HUB_OFFLINE": "1"}
    rows: list[dict[str, Any]] = []
    try:
        for part in (measure_lmpt, measure_gcpl):
            for precision in precisions:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                    rows += process.submit(part, precision, clock, repeats).result()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return make_result("true_shapes", rows, repeats, clock=clock, shape=shape, clip=clip)


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "true_shapes", preset=None)
    parser.add_argument("--small", action="store_true", help="structural copies with few channels, in seconds")
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "float32"], choices=list(DTYPES))
    parser.add_argument("--folder", type=Path, help="where the models are saved for the time being")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(options.small, options.precision, options.repeats, Path(folder), options.clock)
    publish(result, f"GCPL in the shape of {result['shape']}, LMPT in that of {result['clip']}", options.output)


if __name__ == "__main__":
    main()
