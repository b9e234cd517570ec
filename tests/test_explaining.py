"""What lay behind a mistake, on examples of three classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.explaining import explain_mistake, find_mistakes

NAMES = ("shirt", "bag", "coat")
TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], np.uint8)
PROBABILITIES = np.array([[0.9, 0.2, 0.1], [0.6, 0.05, 0.1], [0.5, 0.1, 0.99]])
THRESHOLDS = np.array([0.3, 0.3, 0.5])


def test_the_surest_mistakes_come_first() -> None:
    assert find_mistakes(PROBABILITIES, TARGETS, THRESHOLDS) == [(1, 1), (2, 0)]
    assert find_mistakes(TARGETS.astype(float), TARGETS, THRESHOLDS) == []
    with pytest.raises(DataError, match=r"thresholds have shape \(2,\); expected \(3,\)"):
        find_mistakes(PROBABILITIES, TARGETS, THRESHOLDS[:2])


def test_a_mistake_is_explained() -> None:
    arguments = {
        "probabilities": PROBABILITIES,
        "targets": TARGETS,
        "thresholds": THRESHOLDS,
        "feature": torch.tensor([1.0, 0.0]),
        "train_features": F.normalize(torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.9, 0.5]]), dim=-1),
        "train_targets": TARGETS,
        "class_names": NAMES,
        "num_neighbours": 2,
    }
    mistake = explain_mistake(1, 1, **arguments)
    assert mistake.missed
    assert mistake.sentence() == "bag is there and was missed: probability 0.05, threshold 0.30"
    assert [entry["image"] for entry in mistake.neighbours] == [0, 2]
    assert mistake.neighbours[1]["names"] == ["coat"]
    # The one training image with a bag shows a shirt too; of the two with a shirt one shows a bag.
    assert mistake.companions == [{"name": "shirt", "share": 1.0, "present": True}]
    assert [entry["name"] for entry in mistake.classes] == ["shirt", "coat", "bag"]
    other = explain_mistake(2, 0, **arguments)
    assert not other.missed
    assert other.companions == [{"name": "bag", "share": 0.5, "present": False}]
    for image, message in ((0, "the decision is right"), (7, "is outside")):
        with pytest.raises(DataError, match=message):
            explain_mistake(image, 0, **arguments)
