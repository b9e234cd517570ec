from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from gcpl_lab.baselines.multilabel import OneVsRestProbe, coop
from gcpl_lab.lmpt.objective import Batch
from gcpl_lab.lmpt.prompts import ContextPrompts


def points(num_images: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Unit features of 8 axes; class i is present where axis i is positive."""
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(num_images, 8, generator=generator), dim=-1)
    return features, (features[:, :3] > 0.1).numpy().astype(np.uint8)


def test_the_probe_learns_each_class() -> None:
    features, targets = points(120, 0)
    held_out, wanted = points(60, 1)
    scores = OneVsRestProbe(features[None], targets, 100.0).scores(held_out).numpy()
    assert scores.shape == (60, 3)
    assert ((scores > 0) == wanted).mean() > 0.9
    assert (min(OneVsRestProbe.STRENGTHS), max(OneVsRestProbe.STRENGTHS)) == (1, 1000)


def test_a_class_that_is_always_or_never_there_gets_a_constant() -> None:
    features, targets = points(60, 0)
    targets[:, 1], targets[:, 2] = 0, 1
    scores = OneVsRestProbe(features[None], targets, 1.0).scores(features)
    assert scores[:, 1:].std() == 0
    assert torch.isfinite(scores).all()


def test_the_probe_is_logistic_regression_on_every_view() -> None:
    features, targets = points(80, 0)
    views, held_out = torch.stack([features, points(80, 2)[0]]), points(60, 1)[0]
    probe = OneVsRestProbe(views, targets, 10.0)
    model = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000)
    model.fit(views.flatten(0, 1).double().numpy(), np.concatenate([targets[:, 1]] * 2))
    expected = model.decision_function(held_out.double().numpy())
    np.testing.assert_allclose(probe.scores(held_out)[:, 1].numpy(), expected, atol=0.01, rtol=0.01)


def test_coop_is_the_objective_without_captions(clip: Any) -> None:
    prompts = ContextPrompts(clip, ("shirt", "bag"), num_context=2)
    model = coop(clip, prompts, "asymmetric", class_counts=(5, 3), num_images=8)
    features = F.normalize(torch.randn(4, 128), dim=-1)
    data = Batch(features, torch.eye(4)[:, :2], torch.zeros(4, 128), torch.ones(4, dtype=torch.bool))
    assert model.classification == "asymmetric"
    assert set(model(data)) == {"loss", "classification"}
