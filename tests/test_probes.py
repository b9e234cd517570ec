"""Probes on errors that are made by hand or drawn from a known law."""

import json

import numpy as np
import pytest

from gcpl_lab.fast.probes import Probes, learn_probes, order_probes

U, W = np.array([1.0, -1.0, 1.0, -1.0]), np.array([1.0, 1.0, -1.0, -1.0])


def drawn(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors (image, 8 classes) of two directions and a common part, and evidence that is minus them."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(7).normal(0, 1, (2, 8))
    errors = rng.normal(0, 1, (num_images, 2)) @ directions + rng.normal(10, 3, (num_images, 1))
    return errors, -errors


def test_the_order_by_hand() -> None:
    """Rows sum to zero. The first class is the longest; what is left of the others is 1, 4 and 5 times W."""
    errors = np.stack([10 * U, -9 * U + 0.5 * W, 2 * W, -U - 2.5 * W], axis=1)
    assert order_probes(errors)[:2].tolist() == [0, 3]
    # What all classes of an image have in common, and what all images have in common, tells nothing.
    assert order_probes(errors + 7 * W[:, None] + np.arange(4.0))[:2].tolist() == [0, 3]


def test_there_are_no_more_probes_than_images_or_classes() -> None:
    assert sorted(order_probes(np.random.default_rng(0).normal(0, 1, (3, 5)))) != list(range(5))
    assert len(order_probes(np.random.default_rng(0).normal(0, 1, (3, 5)))) == 3
    assert sorted(order_probes(np.random.default_rng(0).normal(0, 1, (9, 5)))) == list(range(5))


def test_three_probes_foretell_a_table_of_two_directions() -> None:
    """Two directions and the common part are three unknowns of an image."""
    errors, evidence = drawn(60, 0)
    unseen, truth = drawn(20, 1)
    labels = evidence.argmax(axis=1)
    probes, held_out = learn_probes(errors, evidence, labels, order_probes(errors)[:3])
    wanted = truth - truth.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(probes.foretell(unseen[:, probes.classes]), wanted, atol=0.05)
    np.testing.assert_allclose(held_out, evidence - evidence.mean(axis=1, keepdims=True), atol=0.05)
    with_two = learn_probes(errors, evidence, labels, order_probes(errors)[:2])[0]
    assert np.abs(with_two.foretell(unseen[:, with_two.classes]) - wanted).max() > 0.5


def test_what_is_foretold_is_held_out() -> None:
    """Evidence that has nothing to do with errors: an image that was learned from seems foretold, a held-out not."""
    rng = np.random.default_rng(0)
    errors, evidence = rng.normal(0, 1, (40, 12)), rng.normal(0, 1, (40, 12))
    labels = evidence.argmax(axis=1)
    probes, held_out = learn_probes(errors, evidence, labels, np.arange(10))
    wanted = (evidence - evidence.mean(axis=1, keepdims=True)).ravel()
    own = np.corrcoef(probes.foretell(errors[:, :10]).ravel(), wanted)[0, 1]
    assert own > 0.1 > np.corrcoef(held_out.ravel(), wanted)[0, 1]


def test_probes_go_to_json_and_back() -> None:
    errors, evidence = drawn(40, 0)
    probes, _ = learn_probes(errors, evidence, evidence.argmax(axis=1), np.array([5, 2, 1]))
    values = json.loads(json.dumps(probes.as_dict(), allow_nan=False))
    again = Probes.from_dict(values, 8, 1)
    assert again.as_dict() == probes.as_dict()
    np.testing.assert_array_equal(again.foretell(errors[:, :3]), probes.foretell(errors[:, :3]))


@pytest.mark.parametrize(
    ("change", "num_sources", "message"),
    [
        ({"classes": [5, 2, 8]}, 1, r"\[5, 2, 8\]; expected some of 0 to 7"),
        ({"classes": []}, 1, "expected some of"),
        ({"classes": [5, 2]}, 1, r"shapes .*\(3, 8\).*; expected .*\(2, 8\)"),
        ({}, 2, r"expected .*\(2,\)"),
        ({"intercepts": [float("inf")] * 8}, 1, "not finite"),
    ],
)
def test_damaged_probes_are_refused(change: dict[str, list[float]], num_sources: int, message: str) -> None:
    errors, evidence = drawn(40, 0)
    values = learn_probes(errors, evidence, evidence.argmax(axis=1), np.array([5, 2, 1]))[0].as_dict()
    with pytest.raises(ValueError, match=message):
        Probes.from_dict(values | change, 8, num_sources)
