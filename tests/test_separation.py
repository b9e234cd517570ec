"""Separation of classes on points whose figures can be worked out by hand."""

import math

import numpy as np
import pytest

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.separation import measure_separation, neighbour_correctness, profile_points

SQUARE = np.array([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]])
SQUARE_LABELS = np.array([0, 0, 1, 1])


@pytest.fixture
def cloud() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 12)
    return rng.normal(size=(4, 5))[labels] * 1.5 + rng.normal(size=(48, 5)), labels


def figures(separation) -> list[float]:
    return [separation.silhouette.value, separation.neighbour_accuracy.value]


def test_two_clusters_by_hand():
    separation = measure_separation(SQUARE, SQUARE_LABELS)
    other = (10 + math.sqrt(104)) / 2
    assert separation.silhouette.value == pytest.approx((other - 2) / other)
    assert separation.neighbour_accuracy == (1, 1, 1)


def test_neighbours_by_hand():
    # 0 finds 1; 1 and 1.8 find each other across the border; 4 finds 1.8.
    points = np.array([[0.0], [1.0], [1.8], [4.0]])
    assert neighbour_correctness(points, np.array([0, 0, 1, 1])).tolist() == [1, 0, 0, 1]
    # Equally near neighbours share the vote, and a lone point has none.
    shared = neighbour_correctness(np.array([[0.0], [-1.0], [1.0]]), np.array([0, 1, 0]))
    assert shared == pytest.approx([0.5, math.nan, 1], nan_ok=True)


def test_shift_rotation_scale_order_and_names_change_nothing_and_stretching_does(cloud):
    points, labels = cloud
    wanted = figures(measure_separation(points, labels))
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    order = np.random.default_rng(1).permutation(len(points))
    renamed = np.array(["d", "b", "a", "c"])[labels]
    for other in (points + 7, points @ rotation, points * 40):
        assert figures(measure_separation(other, labels)) == pytest.approx(wanted, rel=1e-9)
    assert figures(measure_separation(points[order], labels[order])) == pytest.approx(wanted, rel=1e-9)
    assert figures(measure_separation(points, renamed)) == pytest.approx(wanted, rel=1e-9)
    stretched = points * np.array([100, 1, 1, 1, 1])  # dimensions are not standardised
    assert figures(measure_separation(stretched, labels)) != pytest.approx(wanted)


def test_intervals_hold_the_value_and_are_the_same_again(cloud):
    first = measure_separation(*cloud)
    for estimate in (first.silhouette, first.neighbour_accuracy):
        assert estimate.low < estimate.value < estimate.high
    assert measure_separation(*cloud) == first


def test_a_class_of_one_point_is_left_out():
    points = np.vstack([SQUARE, [[100.0, 100.0]]])
    separation = measure_separation(points, np.array([0, 0, 1, 1, 7]))
    assert separation.neighbour_accuracy.value == 1
    assert separation.silhouette.value == pytest.approx(measure_separation(SQUARE, SQUARE_LABELS).silhouette.value)
    assert figures(measure_separation(SQUARE, np.arange(4))) == pytest.approx([math.nan] * 2, nan_ok=True)


def test_profiles_by_hand_and_without_scale():
    assert profile_points(np.array([[[1.0, 4.0], [3.0, 4.0]]])).tolist() == [[-0.5, 0.0, 0.5, 0.0]]
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.5, 1.5, size=(6, 3, 4))
    scaled = errors * rng.uniform(1, 9, size=(6, 1, 4))
    assert profile_points(scaled) == pytest.approx(profile_points(errors))


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: measure_separation(SQUARE, np.zeros(4)), "1 class for 4 points"),
        (lambda: measure_separation(np.where(SQUARE == 10, np.nan, SQUARE), SQUARE_LABELS), "point 2 holds a value"),
        (lambda: profile_points(np.ones((3, 4))), r"expected \(image, class, timestep\)"),
        (lambda: profile_points(np.full((1, 2, 1), np.inf)), r"errors\[0, 0, 0\] is inf"),
        (lambda: profile_points(np.zeros((1, 2, 1))), "expected > 0"),
    ],
)
def test_what_cannot_be_measured_is_named(measure, message):
    with pytest.raises(DataError, match=message):
        measure()
