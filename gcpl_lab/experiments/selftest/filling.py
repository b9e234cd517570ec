"""Part: memory runs out for real, the batch finds its size, and the update stays what it was."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from gcpl_lab.experiments.profile import load_profile
from gcpl_lab.experiments.published import Material
from gcpl_lab.experiments.selftest.parts import Findings, NotHere, register_part
from gcpl_lab.gcpl.objectives import GCPL
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import make_accelerator
from gcpl_lab.training.loop import train
from gcpl_lab.training.machine import filled_memory

NUM_UPDATES = 2
MOST_APART = 1e-4
"""Of losses, relatively: products of other shapes round otherwise."""


class Watched(GCPL):
    """GCPL that writes down how many samples each pass had."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.sizes: list[int] = []

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """As GCPL."""
        self.sizes.append(len(batch))
        return super().__call__(batch)


@register_part("filling", title="Memory that runs out", seconds={"cuda": 20, "cpu": 15})
def filling(found: Findings) -> None:
    """Some updates with all memory, and with so little that a whole batch does not fit."""
    if found.device.type == "mps" or (found.small and not sys.platform.startswith("linux")):
        raise NotHere("only a GPU's memory, or that of a process on Linux, can be filled without harm")
    diffusion, batch_size = FrozenDiffusion.load(device=found.device), 64 if found.small else 1024
    run_updates(Material.noise(diffusion, 8))  # libraries take what they keep
    taken, material = batch_size * load_profile("tiny").memory.training, Material.noise(diffusion, batch_size)
    with filled_memory(found.device, int(0.4 * taken)):
        losses, cut = run_updates(material)
    expected, whole = run_updates(material)
    found.figures |= {"batch": batch_size, "bytes of an update": taken, "passes before": whole, "passes": cut}
    apart = max(abs(one - other) / abs(other) for one, other in zip(losses, expected, strict=True))
    found.check("losses apart, relatively", apart, most=MOST_APART)
    found.check("passes with all memory", len(whole), most=NUM_UPDATES)
    found.check("largest pass of the last update", max(cut[-2:]), most=batch_size // 2)
    found.headline = f"{batch_size} samples in passes of {cut[-1]}; losses differ by {apart:.1e}"


def run_updates(material: Material) -> tuple[list[float], list[int]]:
    """Losses of some updates, and the sizes of all their passes."""
    objective, config = Watched(material.diffusion, material.prompts()), material.training(NUM_UPDATES)
    accelerator = make_accelerator(material.diffusion.device.type == "cpu", "no")
    records = train(objective, material.sampler(), config, accelerator=accelerator)
    return [record.loss for record in records], objective.sizes
