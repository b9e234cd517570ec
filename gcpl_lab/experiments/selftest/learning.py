"""Part: a whole training, classification and LMPT fit with the shipped pair, as a user calls them."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.samples import load_fashion, load_wardrobe
from gcpl_lab.experiments.selftest.parts import Findings, register_part
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.machine import allocated_bytes, measured_peak

MOST_APART = 0.02
"""Of accuracies and of mean average precisions, on the device and on the CPU."""

MOST_LEFT = 128e6
"""Bytes that may be allocated when all models are gone: workspaces of libraries."""


@register_part("learning", title="A whole training", seconds={"cuda": 35, "cpu": 25})
def learning(found: Findings) -> None:
    """Accuracy against the CPU's, seconds, memory at peak and what is left of it."""
    before = allocated_bytes(found.device)
    scores: dict[str, float] = {}
    for name, learn, least in (("GCPL", learn_gcpl, 0.3), ("LMPT", learn_lmpt, 0.3)):
        found.piece(name, partial(_judge, found, name, learn, least, scores))
    if not found.small:
        left = allocated_bytes(found.device) - before
        found.check("bytes left on the device", left, most=MOST_LEFT)
    found.headline = ", ".join(f"{name} {score:.1%}" for name, score in scores.items())


def _judge(found: Findings, name: str, learn: Any, least: float, scores: dict[str, float]) -> None:
    with measured_peak(found.device) as peak:
        scores[name] = score = learn(found, name, found.device)
    found.figures[f"{name}: bytes at peak"] = peak.bytes
    found.check(f"{name}: score", score, least=least)  # far above guessing
    if found.device.type != "cpu":
        apart = abs(score - learn(found, f"{name} on the CPU", torch.device("cpu")))
        found.check(f"{name}: score apart from the CPU's", apart, most=MOST_APART)


def learn_gcpl(found: Findings, name: str, device: torch.device) -> float:
    """Accuracy of class prompts; the VAE has left the device behind the training."""
    support, test = load_fashion("support"), load_fashion("test")
    shots, steps, every = (8, 40, 5) if found.small else (16, 100, 2)
    exemplars, some = support.subset(draw_episode(support, shots, seed=0)), np.arange(0, len(test), every)
    given = None if device == found.device else FrozenDiffusion.load(device=device)
    model = GCPLClassifier(num_steps=steps, batch_size=20, num_evidence=2 if found.small else 4, diffusion=given)
    began = time.perf_counter()
    model.fit(exemplars.images, exemplars.labels)
    learned = time.perf_counter()
    _require_left(found, device, model.diffusion.vae)
    shown = test.subset(some)
    score = model.score(shown.images, shown.labels)
    found.figures[f"{name}: seconds of training"] = learned - began
    found.figures[f"{name}: seconds of classifying {len(shown)}"] = time.perf_counter() - learned
    return score


def learn_lmpt(found: Findings, name: str, device: torch.device) -> float:
    """Mean average precision of LMPT; the image tower has left the device behind the training."""
    train, test = load_wardrobe("train"), load_wardrobe("test")
    given = None if device == found.device else FrozenCLIP.load(device=device)
    model = LMPTClassifier(num_epochs=5 if found.small else 20, refit=not found.small, clip=given)
    began = time.perf_counter()
    model.fit(train.images, train.targets, train.class_names, train.captions)
    found.figures[f"{name}: seconds of training"] = time.perf_counter() - began
    _require_left(found, device, model.clip.model.visual)
    return model.score(test.images, test.targets)


def _require_left(found: Findings, device: torch.device, part: Any) -> None:
    where = next(part.parameters()).device
    if device.type != "cpu" and where.type != "cpu":
        found.failures.append(f"{type(part).__name__} is still on {where} behind the training")
