"""Parts of a long tail, and a validation split that keeps rare classes in both parts."""

import numpy as np
import pytest

from gcpl_lab.data.multilabel import head_medium_tail, replace_captions, split_validation
from gcpl_lab.errors import DataError


def test_head_medium_and_tail_meet_at_100_and_20() -> None:
    parts = head_medium_tail([100, 99, 20, 19, 0, 500])
    assert {name: list(ids) for name, ids in parts.items()} == {"head": [0, 5], "medium": [1, 2], "tail": [3, 4]}


def long_tail(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((300, 8)) < (0.7, 0.4, 0.2, 0.1, 0.03, 0.02, 0.01, 0.005)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_split_keeps_shares_and_rare_classes(seed: int) -> None:
    targets = long_tail(seed)
    train, validation = split_validation(targets, 0.2, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(300))
    assert abs(len(validation) - 60) <= 6
    counts, there = targets.sum(axis=0, dtype=int), targets[validation].sum(axis=0, dtype=int)
    assert (np.abs(there - 0.2 * counts) <= 2).all()
    assert ((there > 0) & (there < counts))[counts >= 2].all()
    assert (there[counts == 1] == 0).all(), "a class with one image trains"
    np.testing.assert_array_equal(validation, split_validation(targets, 0.2, seed)[1])
    assert list(validation) != list(split_validation(targets, 0.2, seed + 1)[1])


def test_split_of_bound_and_unlabelled_images() -> None:
    # Two images hold all of two classes; the rest holds nothing.
    targets = np.zeros((12, 2), np.uint8)
    targets[:2] = 1
    train, validation = split_validation(targets, 0.25)
    assert targets[train].sum(axis=0).tolist() == targets[validation].sum(axis=0).tolist() == [1, 1]
    assert 2 <= len(validation) <= 4


def test_split_refuses_a_wrong_share() -> None:
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(DataError, match="validation share"):
            split_validation(long_tail(0), share)
    with pytest.raises(DataError, match="1 images cannot be parted"):
        split_validation(np.ones((1, 1)), 0.5)


def test_captions_are_replaced_by_those_of_other_images() -> None:
    targets = np.eye(4, dtype=np.uint8)[[0, 1, 2, 3, 0, 1, 2, 3]]
    captions: list[str | None] = [f"caption {i % 4}" for i in range(8)]
    captions[5] = None
    half, every = (replace_captions(captions, targets, share, seed=1) for share in (0.5, 1.0))
    changed = [i for i in range(8) if half[i] != captions[i]]
    assert len(changed) == 4  # half of seven, rounded
    assert all(every[i] == half[i] for i in changed)
    assert half[5] is every[5] is None
    assert all(every[i] != captions[i] for i in range(8) if i != 5)
    assert replace_captions(captions, targets, 0.0) == tuple(captions)
    with pytest.raises(DataError, match="share of wrong captions is 2"):
        replace_captions(captions, targets, 2)
    with pytest.raises(DataError, match="the same classes"):
        replace_captions(captions, np.ones((8, 2)), 0.5)
