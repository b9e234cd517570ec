"""What look-alikes are measured by: an exact plane, sectors, AUC and d′ with known values, and an unbiased choice."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.look_alikes import (
    CORNERS,
    choose_look_alikes,
    measure_look_alikes,
    pair_margins,
    pair_statistics,
    plane_coordinates,
    relative_scores,
    share_in_own_sector,
    worst_pair,
)
from gcpl_lab.experiments.look_alikes import shuffle_inside

RNG = np.random.default_rng(0)


def test_the_plane_holds_three_scores_exactly():
    errors = RNG.uniform(0.5, 1.5, (40, 3, 5))
    scores = relative_scores(errors)
    np.testing.assert_allclose(scores.sum(axis=1), 0, atol=1e-12)
    points = plane_coordinates(scores)
    distance = np.linalg.norm(scores[:, None] - scores[None], axis=2)
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points[None], axis=2), distance, atol=1e-12)
    # The sector is that of the nearest corner, which is the class with the least relative error.
    relative = (errors / errors.mean(axis=1, keepdims=True)).mean(axis=2)
    nearest = np.linalg.norm(points[:, None] - CORNERS, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, relative.argmin(axis=1))
    # What all classes share moves nothing: a border stays a border.
    np.testing.assert_allclose(plane_coordinates(scores + RNG.normal(size=(40, 1))), points, atol=1e-12)
    np.testing.assert_allclose(
        plane_coordinates(np.array([[2.0, 2.0, 1.0]]))[0] @ (CORNERS[0] - CORNERS[1]), 0, atol=1e-12
    )
    with pytest.raises(DataError, match=r"scores has shape \(2, 4\); expected \(image, 3\)"):
        plane_coordinates(np.zeros((2, 4)))


def test_the_share_counts_largest_scores_with_wilsons_interval():
    scores = np.repeat(np.eye(3), 10, axis=0)
    found = share_in_own_sector(scores, np.repeat([0, 1, 0], 10))
    assert found.value == pytest.approx(2 / 3)
    assert (found.low, found.high) == pytest.approx((0.4878, 0.8077), abs=1e-4)  # Wilson's, by hand for 20 of 30


def test_pair_statistics_are_scikit_learns_auc_and_a_known_distance():
    first, second = RNG.normal(1.0, 1.0, 4000), RNG.normal(0.0, 1.0, 3000)
    found = pair_statistics(first, second)
    labels, margins = np.repeat([1, 0], (4000, 3000)), np.concatenate([first, second])
    assert found.auc.value == pytest.approx(roc_auc_score(labels, margins), abs=1e-12)
    assert found.d_prime == pytest.approx(1.0, abs=0.06)
    assert found.auc.value == pytest.approx(0.7602, abs=0.01)  # Φ(d′ / √2) for normal hills
    assert found.auc.low < 0.7602 < found.auc.high
    swapped = pair_statistics(second, first)
    assert swapped.auc.value == pytest.approx(1 - found.auc.value)
    assert swapped.d_prime == pytest.approx(-found.d_prime)
    assert pair_statistics([0, 1], [3, 5]).d_prime == pytest.approx(-3.5 / math.sqrt((0.5 + 2) / 2))


def test_the_interval_of_an_auc_covers_and_is_no_point_at_the_edge():
    perfect = pair_statistics(np.arange(30) + 100.0, np.arange(30))
    assert perfect.auc.value == perfect.auc.high == 1
    assert 0.85 < perfect.auc.low < 0.99
    assert pair_statistics(np.arange(30.0), np.arange(30) + 100.0).auc.low == 0
    inside = 0
    for _ in range(400):
        low, high = pair_statistics(RNG.normal(1.2, 1, 30), RNG.normal(0, 1, 30)).auc[1:]
        inside += low <= 0.80193 <= high  # Φ(1.2 / √2)
    assert 0.92 <= inside / 400 <= 0.99
    with pytest.raises(DataError, match="1 images of one class and 3 of the other"):
        pair_statistics([1.0], [1.0, 2.0, 3.0])


def test_the_worst_pair_is_the_one_that_comes_apart_least():
    labels = np.repeat([0, 1, 2], 20)
    scores = np.zeros((60, 3))
    scores[np.arange(60), labels] = 1
    scores[labels == 1] = RNG.normal(size=(20, 3)) * 0.01 + [1, 1, 0]  # the images of class 1 look like class 0
    pair, found = worst_pair(scores, labels)
    assert pair == (0, 1)
    assert found == pair_statistics(*pair_margins(scores, labels, (0, 1)))
    row = measure_look_alikes("GCPL", scores, labels, ["a", "b", "c"], step=8)
    assert row["pair"] == ["a", "b"]
    assert row["num_images"] == 60
    assert row["step"] == 8
    assert row["low"] < row["share_in_own_sector"] < row["high"]
    assert row["auc_low"] < row["auc"] <= row["auc_high"]
    assert set(row) >= {"method", "classes", "share_in_own_sector", "low", "high", "auc", "d_prime", "pair"}


def test_look_alikes_are_the_nearest_classes_of_a_family():
    names = ["a", "b", "c", "d", "e", "alone"]
    angles = np.radians([0, 10, 20, 180, 200, 90])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).repeat(3, axis=0)
    labels = np.repeat(np.arange(6), 3)
    families = {"one": ("d", "c", "b", "a"), "two": ("alone",)}
    assert choose_look_alikes(features, labels, names, families) == [("a", "b", "c")]
    assert choose_look_alikes(features, labels, names, {"pair": ("e", "d")}) == [("d", "e")]
    assert choose_look_alikes(features, labels, names, {}) == [("a", "b", "c")]


@pytest.mark.parametrize(("each", "least", "most"), [(16, 5, 6), (3, 1, 1), (1, 0, 1)])
def test_a_shuffle_gives_every_label_as_many_images_of_every_class(each, least, most):
    truth, sets = np.repeat(np.arange(6), each), [["a", "b", "c"], ["d", "e", "f"]]
    for seed in range(5):
        labels = shuffle_inside(truth, sets, np.random.default_rng(seed))
        table = np.array([[(labels[truth == one] == other).sum() for other in range(6)] for one in range(6)])
        inside = np.kron(np.eye(2), np.ones((3, 3))) > 0
        assert not table[~inside].any()
        assert table[inside].min() >= least
        assert table[inside].max() <= most
        assert table.sum(axis=0).tolist() == [each] * 6  # a permutation
