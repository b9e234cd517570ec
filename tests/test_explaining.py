from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.explaining import co_occurrence, compare_prompts, explain_mistake, find_mistakes, read_contexts

NAMES = ("shirt", "bag", "coat")
TARGETS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], np.uint8)


def test_context_vectors_find_their_words() -> None:
    words = ["dark</w>", "light</w>", "long</w>", "x</w>", "piece"]
    tower = SimpleNamespace(embedding_table=torch.eye(5), word_of=lambda index: words[index])
    context = torch.stack([torch.eye(5)[[2, 0]], torch.eye(5)[[1, 1]]]) * 3
    rows = read_contexts(tower, context, NAMES[:2], num_words=2)
    assert [(row["name"], row["position"], row["words"][0]) for row in rows] == [
        ("shirt", 1, "long"),
        ("shirt", 2, "dark"),
        ("bag", 1, "light"),
        ("bag", 2, "light"),
    ]
    assert rows[0]["similarities"][0] == pytest.approx(1.0)
    assert 0 < rows[0]["random_similarity"] < 1
    assert {row["name"] for row in read_contexts(tower, context[:1], NAMES)} == {"all classes"}
    with pytest.raises(DataError, match="2 entries for 3 class names"):
        read_contexts(tower, context, NAMES)


def test_who_moved_toward_whom() -> None:
    before = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), dim=-1)
    after = before.clone()
    after[0] = F.normalize(torch.tensor([0.6, 0.8, 0.0]), dim=-1)  # the shirt goes to where the bag began
    change = compare_prompts(before, after, NAMES)
    assert (change.moves[0]["name"], change.moves[0]["toward"]) == ("shirt", "bag")
    assert change.moves[0]["change"] > 0.5
    assert len(change.moves) == 6
    np.testing.assert_allclose(change.travelled, [0.4, 0, 0], atol=1e-6)
    np.testing.assert_allclose(np.diagonal(change.after), 1, atol=1e-6)
    assert change.after[0, 1] > change.before[0, 1]
    with pytest.raises(DataError, match="one row a class"):
        compare_prompts(before, after, NAMES[:2])


def test_co_occurrence_is_a_share_of_the_row_class() -> None:
    np.testing.assert_allclose(co_occurrence(TARGETS), [[1, 0.5, 0], [1, 1, 0], [0, 0, 1]])
    assert co_occurrence(np.zeros((2, 2))).sum() == 0


def test_the_surest_mistakes_come_first() -> None:
    probabilities = np.array([[0.9, 0.2, 0.1], [0.6, 0.05, 0.1], [0.5, 0.1, 0.99]])
    thresholds = np.array([0.3, 0.3, 0.5])
    assert find_mistakes(probabilities, TARGETS, thresholds) == [(1, 1), (2, 0)]
    assert find_mistakes(TARGETS.astype(float), TARGETS, thresholds) == []
    with pytest.raises(DataError, match=r"thresholds \(2,\)"):
        find_mistakes(probabilities, TARGETS, thresholds[:2])


def test_a_mistake_is_explained() -> None:
    probabilities = np.array([[0.9, 0.2, 0.1], [0.6, 0.05, 0.1], [0.5, 0.1, 0.99]])
    train = F.normalize(torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.9, 0.5]]), dim=-1)
    arguments = {
        "probabilities": probabilities,
        "targets": TARGETS,
        "thresholds": np.array([0.3, 0.3, 0.5]),
        "feature": torch.tensor([1.0, 0.0]),
        "train_features": train,
        "train_targets": TARGETS,
        "class_names": NAMES,
        "num_neighbours": 2,
    }
    mistake = explain_mistake(1, 1, **arguments)
    assert mistake.missed
    assert "bag is there and was missed" in mistake.sentence()
    assert [entry["image"] for entry in mistake.neighbours] == [0, 2]
    assert mistake.neighbours[1]["names"] == ["coat"]
    assert mistake.companions == [{"name": "shirt", "share": 1.0, "present": True}]
    assert [entry["name"] for entry in mistake.classes] == ["shirt", "coat", "bag"]
    assert not explain_mistake(2, 0, **arguments).missed
    with pytest.raises(DataError, match="the decision is right"):
        explain_mistake(0, 0, **arguments)
    with pytest.raises(DataError, match="is outside"):
        explain_mistake(7, 0, **arguments)
