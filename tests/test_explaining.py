"""How prompts moved and what lay behind a mistake, on examples of three classes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.explaining import compare_prompts, explain_mistake, find_mistakes, read_contexts

NAMES = ("shirt", "bag", "coat")
TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], np.uint8)
PROBABILITIES = np.array([[0.9, 0.2, 0.1], [0.6, 0.05, 0.1], [0.5, 0.1, 0.99]])
THRESHOLDS = np.array([0.3, 0.3, 0.5])


def test_context_vectors_find_their_words() -> None:
    words = ["dark</w>", "light</w>", "long</w>", "x</w>", "piece"]
    tower: Any = SimpleNamespace(embedding_table=torch.eye(5), word_of=lambda index: words[index])
    context = torch.stack([torch.eye(5)[[2, 0]], torch.eye(5)[[1, 1]]]) * 3
    rows = read_contexts(tower, context, NAMES[:2], num_words=2)
    told = [f"{row['name']} {row['position']} {row['words'][0]}" for row in rows]
    assert told == ["shirt 1 long", "shirt 2 dark", "bag 1 light", "bag 2 light"]
    assert rows[0]["similarities"][0] == pytest.approx(1.0)
    assert 0 < rows[0]["random_similarity"] < 1
    assert {row["name"] for row in read_contexts(tower, context[:1], NAMES)} == {"all classes"}
    with pytest.raises(DataError, match="2 entries for 3 class names"):
        read_contexts(tower, context, NAMES)


def test_who_moved_toward_whom() -> None:
    before = torch.eye(3)
    after = before.clone()
    after[0] = torch.tensor([0.6, 0.8, 0.0])  # the shirt goes to where the bag began
    change = compare_prompts(before, after, NAMES)
    assert (change.moves[0]["name"], change.moves[0]["toward"]) == ("shirt", "bag")
    assert change.moves[0]["change"] > 0.5
    assert len(change.moves) == 6
    np.testing.assert_allclose(change.travelled, [0.4, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.diagonal(change.after), 1, atol=1e-6)
    assert change.after[0, 1] > change.before[0, 1]
    with pytest.raises(DataError, match="one row a class"):
        compare_prompts(before, after, NAMES[:2])


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
