"""One epoch of LMPT on the bundled scenes: the published procedure beside ours, with the same mathematics.

    python benchmarks/lmpt_epoch.py                # prints a table, writes benchmarks/results/lmpt_epoch.json

Published, as in the authors' train.py: every step reads and transforms its pictures, runs the image tower on them,
and runs the text tower on prompts of the full context length. Ours: image features are cached, the text tower sees
as many positions as the longest prompt needs. Captions are encoded once in both, as the authors do. Both use batches
of 64, AdamW and the same order of pictures; augmentation is off, so that their losses can be compared step by step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gcpl_lab.backbones.clip import FrozenCLIP, encode_token_embeddings
from gcpl_lab.config import LMPTConfig
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.wardrobe import load_wardrobe
from gcpl_lab.methods.lmpt import LMPT, Batch, CachedBatches, encode_captions
from gcpl_lab.methods.prompts import ContextPrompts
from gcpl_lab.multilabel import encode_views
from gcpl_lab.storage import write_json
from gcpl_lab.training.loop import TrainingConfig, train
from gcpl_lab.training.runtime import describe_machine

MOST_APART = 1e-4


class PublishedObjective(LMPT):
    """The same loss, with the image tower in every step and prompts of the full context length."""

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Of (pixels (image, 3, size, size), targets, captions, has_caption)."""
        pixels, *rest = batch
        features = F.normalize(self.clip.model.encode_image(pixels).float(), dim=-1)
        return super().__call__(Batch(features, *rest))

    def encode(self, ids: Tensor, embeddings: Tensor) -> Tensor:
        """Unit features from all positions of the context, with autograd through each of them."""
        missing = self.clip.context_length - ids.shape[1]
        ids = F.pad(ids, (0, missing), value=self.clip.pad_id)
        behind = self.clip.embedding_table[ids[:, -missing:]] if missing else embeddings[:, :0]
        ends = (ids == self.clip.end_id).int().argmax(dim=1)
        whole = torch.cat([embeddings, behind], dim=1)
        return F.normalize(encode_token_embeddings(self.clip.text_tower, whole, ends)[1].float(), dim=-1)


def make(kind: type[LMPT], clip: FrozenCLIP, config: LMPTConfig) -> LMPT:
    """A fresh objective with the settings of ``config``."""
    data = load_wardrobe("train")
    prompts = ContextPrompts(clip, data.class_names, num_context=config.num_context,
                             initial_words=config.initial_words, seed=config.seed)  # fmt: skip
    return kind(
        clip, prompts, class_counts=data.class_counts(), num_images=len(data), mix=config.mix,
        classification=config.classification, reading=config.reading, margin=config.margin,
        reweight_gamma=config.reweight_gamma, contrast_reduction=config.contrast_reduction, scale="clip",
    )  # fmt: skip


def run_steps(
    objective: LMPT, batch_at: Callable[[int], Any], num_steps: int, rate: float
) -> tuple[list[float], float]:
    """Losses of some steps, and the seconds they took."""
    config = TrainingConfig(num_steps=num_steps, learning_rate=rate, schedule="constant")
    began = time.perf_counter()
    losses = [record.loss for record in train(objective, batch_at, config)]
    return losses, time.perf_counter() - began


def text_tower_alone(objective: LMPT, num_steps: int) -> float:
    """Seconds of the text tower's forward and backward passes: what no caching can save."""
    began = time.perf_counter()
    for _ in range(num_steps):
        objective.text_features().sum().backward()
        objective.prompts.context.grad = None
    return time.perf_counter() - began


def measure(preset: str, repeats: int, num_context: int) -> dict[str, Any]:
    """Time both procedures, alternating, after a check that they compute the same."""
    clip, data, config = (
        FrozenCLIP.load(preset),
        load_wardrobe("train"),
        LMPTConfig(preset=preset, num_context=num_context),
    )
    targets = torch.from_numpy(data.targets).float()
    captions, has_caption = encode_captions(clip, data.captions, config.reading)
    began = time.perf_counter()
    views = encode_views(clip, data.images, flip=False)
    caching = time.perf_counter() - began
    batches = CachedBatches(views, targets, captions, has_caption, config.batch_size, seed=0)
    # The same order of pictures: their numbers go through the same batches.
    numbers = CachedBatches(torch.arange(float(len(data)))[None, :, None], targets, captions, has_caption,
                            config.batch_size, seed=0)  # fmt: skip

    def published_batch(step: int) -> tuple[Tensor, ...]:
        chosen = numbers(step)
        pictures = read_images([data.images[int(i)] for i in chosen.features[:, 0]])
        return torch.stack([clip.transform(picture) for picture in pictures]), *chosen[1:]

    rate, steps = config.learning_rate, batches.steps_an_epoch
    ours, _ = run_steps(make(LMPT, clip, config), batches, 10, rate)
    published, _ = run_steps(make(PublishedObjective, clip, config), published_batch, 10, rate)
    apart = float(np.abs(np.array(ours) - np.array(published)).max())
    if apart > MOST_APART:
        raise SystemExit(f"the losses of the first ten steps differ by {apart:.2e}; expected at most {MOST_APART}")
    seconds: dict[str, list[float]] = {"published procedure": [], "cached features": [], "text tower alone": []}
    for _ in range(repeats):
        seconds["published procedure"].append(
            run_steps(make(PublishedObjective, clip, config), published_batch, steps, rate)[1]
        )
        seconds["cached features"].append(run_steps(make(LMPT, clip, config), batches, steps, rate)[1])
        seconds["text tower alone"].append(text_tower_alone(make(LMPT, clip, config), steps))
    median = {what: float(np.median(values)) for what, values in seconds.items()}
    rows = [
        {"what": what, "seconds": median[what], "spread": float(max(values) - min(values)),
         "ratio_to_published": median["published procedure"] / median[what],
         "ratio_to_floor": median[what] / median["text tower alone"]}
        for what, values in seconds.items()
    ]  # fmt: skip
    return {
        "name": "lmpt_epoch", "machine": describe_machine(), "preset": preset, "images": len(data), "steps": steps,
        "batch_size": config.batch_size, "num_context": num_context, "repeats": repeats, "caching_seconds": caching,
        "largest_loss_difference": apart, "losses": {"published": published, "ours": ours}, "rows": rows,
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", help="name of the frozen models, or a folder")
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each procedure")
    parser.add_argument("--num-context", type=int, default=4, help="context vectors a class")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "lmpt_epoch.json")
    options = parser.parse_args()
    result = measure(options.preset, options.repeats, options.num_context)
    write_json(options.output, result)
    table = Table(
        title=f"An epoch of LMPT, {result['images']} scenes in batches of {result['batch_size']}, "
        f"{result['num_context']} context vectors"
    )
    for heading in ("what", "seconds (median)", "spread", "published / this", "this / text tower"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in result["rows"]:
        table.add_row(row["what"], f"{row['seconds']:.3f}", f"{row['spread']:.3f}",
                      f"{row['ratio_to_published']:.1f}", f"{row['ratio_to_floor']:.1f}")  # fmt: skip
    console = Console(width=100)
    console.print(table)
    console.print(f"Losses of the first ten steps differ by at most {result['largest_loss_difference']:.1e}; caching "
                  f"took {result['caching_seconds']:.2f} s once. {result['machine']}")  # fmt: skip


if __name__ == "__main__":
    main()
