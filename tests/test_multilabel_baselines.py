from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gcpl_lab.methods.lmpt import Batch
from gcpl_lab.methods.multilabel_baselines import OneVsRestProbe, coop
from gcpl_lab.methods.prompts import ContextPrompts


def points(num_images: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Unit features of 8 axes; class i is present where axis i is positive."""
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(num_images, 8, generator=generator), dim=-1)
    return features, (features[:, :3] > 0.1).numpy().astype(np.uint8)


def test_the_probe_learns_each_class_and_chooses_its_strength() -> None:
    features, targets = points(120, 0)
    held_out, wanted = points(60, 1)
    probe = OneVsRestProbe(features, targets, held_out, wanted)
    assert probe.strength in OneVsRestProbe.STRENGTHS
    scores = probe.scores(held_out).numpy()
    assert scores.shape == (60, 3)
    assert ((scores > 0) == wanted).mean() > 0.9


def test_a_class_that_is_always_or_never_there_gets_a_constant() -> None:
    features, targets = points(60, 0)
    targets[:, 1], targets[:, 2] = 0, 1
    scores = OneVsRestProbe(features, targets, features, targets).scores(features)
    assert scores[:, 1:].std() == 0
    assert torch.isfinite(scores).all()


def test_coop_is_the_objective_without_captions(clip: Any) -> None:
    prompts = ContextPrompts(clip, ("shirt", "bag"), num_context=2)
    model = coop(clip, prompts, "asymmetric", class_counts=(5, 3), num_images=8)
    features = F.normalize(torch.randn(4, 128), dim=-1)
    data = Batch(features, torch.eye(4)[:, :2], torch.zeros(4, 128), torch.ones(4, dtype=torch.bool))
    assert model.classification == "asymmetric"
    assert set(model(data)) == {"loss", "classification"}
