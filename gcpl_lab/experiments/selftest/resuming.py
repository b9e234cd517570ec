"""Part: a run that was interrupted goes on as if it had not been, on the same device and on another one."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.experiments.selftest.parts import Findings, register_part
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import deterministic_kernels

NUM_UPDATES, INTERRUPTED_AFTER = 8, 4
MOST_APART = 1e-3
"""Of prompts that were learned on two devices, as a share of what the updates changed."""


@register_part("resuming", title="Interrupted runs", seconds={"cuda": 20, "cpu": 10}, alone=True)
def resuming(found: Findings) -> None:
    """Equal digits on the same device; a checkpoint of the device opens on the CPU, and the other way round."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, before the first product
    here, cpu = found.device, torch.device("cpu")
    start = vectors_after(0, here, here, None)
    whole = vectors_after(NUM_UPDATES, here, here, None)
    resumed = vectors_after(NUM_UPDATES, here, here, found.folder / "same")
    way = (whole - start).norm()
    found.figures["the same digits, kernels as they are"] = torch.equal(whole, resumed)
    found.check("apart, kernels as they are", float((whole - resumed).norm() / way), most=MOST_APART)
    with deterministic_kernels():
        whole = vectors_after(NUM_UPDATES, here, here, None)
        resumed = vectors_after(NUM_UPDATES, here, here, found.folder / "deterministic")
    found.check("largest difference, deterministic kernels", float((whole - resumed).abs().max()), most=0.0)
    if here.type != "cpu":
        for name, first, then in (("device to CPU", here, cpu), ("CPU to device", cpu, here)):

            def cross(name: str = name, first: torch.device = first, then: torch.device = then) -> None:
                crossed = vectors_after(NUM_UPDATES, first, then, found.folder / name.replace(" ", "_"))
                found.check(f"{name}: apart", float((whole - crossed).norm() / way), most=MOST_APART)

            found.piece(name, cross)
    found.headline = "equal digits" if not found.failures else ""


def vectors_after(num_updates: int, first: torch.device, then: torch.device, folder: Path | None) -> Tensor:
    """Prompts after some updates; with a folder, interrupted on the first device and taken up on the other one."""
    support = load_fashion("support")
    few = support.subset(draw_episode(support, 2, seed=0))

    def model_on(device: torch.device) -> GCPLClassifier:
        diffusion = FrozenDiffusion.load(device=device)
        settings: dict[str, Any] = {"batch_size": 10, "checkpoint_every": 1, "num_evidence": 1, "precision": "float32"}
        return GCPLClassifier(num_steps=NUM_UPDATES, diffusion=diffusion, **settings)

    if folder is not None:
        records = model_on(first).steps(few.images, few.labels, checkpoint_folder=folder)
        for _ in islice(records, INTERRUPTED_AFTER):
            pass
        records.close()  # as an interruption does
    model = model_on(then)
    records = model.steps(few.images, few.labels, checkpoint_folder=folder)
    done = list(islice(records, num_updates or 1))
    if folder is not None and len(done) != NUM_UPDATES - INTERRUPTED_AFTER:
        raise RuntimeError(f"{len(done)} updates were made behind the interruption: it began anew")
    vectors = model.states_[0] if num_updates == 0 else model.prompts_.vectors
    return vectors.detach().cpu().double()
