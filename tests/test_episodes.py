"""Draws by seed: prefixes, balance, and classes that are too small."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gcpl_lab.data.episodes import cross_validation_folds, draw_episode, draw_test
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError


def make_set(*sizes: int) -> ImageSet:
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = tuple(Path(f"{index}.png") for index in range(len(labels)))
    return ImageSet("made", images, labels, tuple(f"class {label}" for label in range(len(sizes))), "0" * 64)


def test_an_episode_holds_each_class_in_turn() -> None:
    pool = make_set(9, 12, 10)
    chosen = draw_episode(pool, 4, seed=1)
    assert (chosen.dtype, len(set(chosen.tolist()))) == (np.int64, 12)
    assert pool.labels[chosen].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_array_equal(chosen, draw_episode(pool, 4, seed=1))
    assert chosen.tolist() != draw_episode(pool, 4, seed=2).tolist()


@pytest.mark.parametrize("seed", [0, 7])
def test_fewer_shots_are_a_prefix(seed: int) -> None:
    pool = make_set(16, 20)
    for shots in range(1, 16):
        fewer, more = draw_episode(pool, shots, seed), draw_episode(pool, shots + 1, seed)
        np.testing.assert_array_equal(fewer.reshape(2, shots), more.reshape(2, shots + 1)[:, :shots])


def test_test_draws() -> None:
    pool = make_set(6, 9, 7)
    assert np.bincount(pool.labels[draw_test(pool, per_class=5, seed=2)]).tolist() == [5, 5, 5]
    assert sorted(draw_test(pool).tolist()) == list(range(22))
    total, again, other = (draw_test(pool, total=11, seed=seed).tolist() for seed in (2, 2, 3))
    assert sorted(np.bincount(pool.labels[total]).tolist()) == [3, 4, 4]
    assert total == again != other
    pool = make_set(2, 30, 30)  # the first class runs out and leaves its share
    assert np.bincount(pool.labels[draw_test(pool, total=20, seed=0)]).tolist() == [2, 9, 9]
    assert len(draw_test(pool, total=62, seed=0)) == 62


def test_draws_for_different_purposes_are_not_coupled() -> None:
    """With one seed, exemplars, test images and folds out of one set come in orders of their own."""
    pool = make_set(50)
    drawn = [draw_episode(pool, 50, seed=3), draw_test(pool, per_class=50, seed=3)]
    drawn.append(np.concatenate([held for _, held in cross_validation_folds(pool.labels, 50, seed=3)]))
    for one, other in itertools.combinations(drawn, 2):
        assert sorted(one) == sorted(other)
        assert (one == other).mean() < 0.2


def test_folds_are_a_stratified_partition() -> None:
    labels = make_set(10, 7, 4).labels
    folds = cross_validation_folds(labels, 4, seed=5)
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(21))
    for train, held in folds:
        assert sorted([*train, *held]) == list(range(21))
        assert len(held) in (5, 6)
        assert (np.abs(np.bincount(labels[held], minlength=3) - np.array([10, 7, 4]) / 4) < 1).all()
    again, other = (cross_validation_folds(labels, 4, seed=seed) for seed in (5, 6))
    assert all(np.array_equal(first[1], second[1]) for first, second in zip(folds, again, strict=True))
    assert any(not np.array_equal(first[1], second[1]) for first, second in zip(folds, other, strict=True))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: draw_episode(make_set(9, 3), 4, 0), "'class 1' has 3 images, fewer than the 4 shots"),
        *((lambda shots=shots: draw_episode(make_set(9, 3), shots, 0), "shots is") for shots in (0, -1, 1.5, True)),
        (lambda: draw_episode(make_set(9, 3), 1, -1), "seed is -1"),
        (lambda: draw_test(make_set(4, 0, 4), per_class=2), "class 'class 1' has no test image"),
        (lambda: draw_test(make_set(4, 5), per_class=1, total=2), "one of the two"),
        (lambda: draw_test(make_set(4, 5), per_class=5), "'class 0' has 4 images"),
        (lambda: draw_test(make_set(4, 5), total=10), "total is 10"),
        (lambda: draw_test(make_set(4, 5), total=1), "total is 1; expected a whole number, 2 or more"),
        (lambda: cross_validation_folds([5, 5, 5, 7, 7], 3, 0), "label 7 has 2 images, fewer than the 3 folds"),
        (lambda: cross_validation_folds([0, 0], 1, 0), "num_folds is 1"),
        (lambda: cross_validation_folds([], 2, 0), "whole numbers"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw()
