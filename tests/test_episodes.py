"""Draws by seed: prefixes, balance, and classes that are too small."""

from pathlib import Path

import numpy as np
import pytest

from gcpl_lab.data.episodes import cross_validation_folds, draw_episode, draw_test
from gcpl_lab.data.readers import ImageSet
from gcpl_lab.errors import DataError


def make_set(*sizes: int) -> ImageSet:
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = tuple(Path(f"{index}.png") for index in range(len(labels)))
    return ImageSet("made", images, labels, tuple(f"class {label}" for label in range(len(sizes))), "0" * 64)


def test_an_episode_holds_each_class_in_turn() -> None:
    pool = make_set(9, 12, 10)
    chosen = draw_episode(pool, 4, seed=1)
    assert chosen.dtype == np.int64
    assert pool.labels[chosen].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(chosen.tolist())) == 12
    np.testing.assert_array_equal(chosen, draw_episode(pool, 4, seed=1))
    assert chosen.tolist() != draw_episode(pool, 4, seed=2).tolist()


@pytest.mark.parametrize("seed", [0, 7])
def test_fewer_shots_are_a_prefix(seed: int) -> None:
    pool = make_set(16, 20)
    for shots in range(1, 16):
        fewer, more = draw_episode(pool, shots, seed), draw_episode(pool, shots + 1, seed)
        np.testing.assert_array_equal(fewer.reshape(2, shots), more.reshape(2, shots + 1)[:, :shots])


def test_episodes_that_cannot_be_drawn() -> None:
    pool = make_set(9, 3)
    with pytest.raises(DataError, match="'class 1' has 3 pictures, fewer than the 4 shots"):
        draw_episode(pool, 4, seed=0)
    for shots in (0, -1, 1.5, True):
        with pytest.raises(DataError, match="shots is"):
            draw_episode(pool, shots, seed=0)
    with pytest.raises(DataError, match="seed is -1"):
        draw_episode(pool, 1, seed=-1)


def test_test_draws() -> None:
    pool = make_set(6, 9, 7)
    per_class = draw_test(pool, per_class=5, seed=2)
    assert np.bincount(pool.labels[per_class]).tolist() == [5, 5, 5]
    assert sorted(draw_test(pool).tolist()) == list(range(22))
    total = draw_test(pool, total=11, seed=2)
    assert sorted(np.bincount(pool.labels[total]).tolist()) == [3, 4, 4]
    np.testing.assert_array_equal(total, draw_test(pool, total=11, seed=2))
    assert total.tolist() != draw_test(pool, total=11, seed=3).tolist()


def test_a_class_that_runs_out_leaves_its_share() -> None:
    pool = make_set(2, 30, 30)
    chosen = draw_test(pool, total=20, seed=0)
    assert np.bincount(pool.labels[chosen]).tolist() == [2, 9, 9]
    assert len(draw_test(pool, total=62, seed=0)) == 62


def test_test_draws_that_cannot_be_made() -> None:
    with pytest.raises(DataError, match="class 'class 1' has no test picture"):
        draw_test(make_set(4, 0, 4), per_class=2)
    pool = make_set(4, 5)
    with pytest.raises(DataError, match="one of the two"):
        draw_test(pool, per_class=1, total=2)
    with pytest.raises(DataError, match="'class 0' has 4 pictures"):
        draw_test(pool, per_class=5)
    with pytest.raises(DataError, match="total is 10"):
        draw_test(pool, total=10)
    with pytest.raises(DataError, match="total is 1; expected a whole number, 2 or more"):
        draw_test(pool, total=1)


def test_folds_are_a_stratified_partition() -> None:
    labels = make_set(10, 7, 4).labels
    folds = cross_validation_folds(labels, 4, seed=5)
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(21))
    for train, held in folds:
        assert not set(train.tolist()) & set(held.tolist())
        assert len(train) + len(held) == 21
        assert len(held) in (5, 6)
        for size, count in zip((10, 7, 4), np.bincount(labels[held], minlength=3), strict=True):
            assert abs(count - size / 4) < 1
    again = cross_validation_folds(labels, 4, seed=5)
    assert all(np.array_equal(first[1], second[1]) for first, second in zip(folds, again, strict=True))
    other = cross_validation_folds(labels, 4, seed=6)
    assert any(not np.array_equal(first[1], second[1]) for first, second in zip(folds, other, strict=True))


def test_folds_that_cannot_be_made() -> None:
    with pytest.raises(DataError, match="label 7 has 2 pictures, fewer than the 3 folds"):
        cross_validation_folds([5, 5, 5, 7, 7], 3, seed=0)
    with pytest.raises(DataError, match="num_folds is 1"):
        cross_validation_folds([0, 0], 1, seed=0)
    with pytest.raises(DataError, match="whole numbers"):
        cross_validation_folds([], 2, seed=0)
