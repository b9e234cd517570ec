import json
import math

import numpy as np
import pytest

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.separation import (
    fisher_ratio,
    measure_separation,
    measure_within_families,
    neighbour_correctness,
    profile_points,
)

# Two classes of two points: means (0, 1) and (10, 1), so 4 * 25 between and 4 * 1 within.
SQUARE = np.array([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]])
SQUARE_LABELS = np.array([0, 0, 1, 1])


@pytest.fixture
def cloud() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 12)
    return rng.normal(size=(4, 5))[labels] * 1.5 + rng.normal(size=(48, 5)), labels


def figures(separation) -> list[float]:
    return [separation.silhouette.value, separation.neighbour_accuracy.value, separation.fisher_ratio]


def test_two_clusters_by_hand():
    separation = measure_separation(SQUARE, SQUARE_LABELS)
    other = (10 + math.sqrt(104)) / 2
    assert separation.fisher_ratio == pytest.approx(25)
    assert separation.silhouette.value == pytest.approx((other - 2) / other)
    assert separation.neighbour_accuracy == (1, 1, 1)
    assert (separation.num_points, separation.num_classes, separation.notes) == (4, 2, ())


def test_neighbours_by_hand():
    # 0 finds 1; 1 and 1.8 find each other across the border; 4 finds 1.8.
    points = np.array([[0.0], [1.0], [1.8], [4.0]])
    assert neighbour_correctness(points, np.array([0, 0, 1, 1])).tolist() == [1, 0, 0, 1]


def test_equally_near_neighbours_share_the_vote_and_a_lone_point_has_none():
    correct = neighbour_correctness(np.array([[0.0], [-1.0], [1.0]]), np.array([0, 1, 0]))
    assert correct[0] == 0.5
    assert math.isnan(correct[1])
    assert correct[2] == 1


def test_shift_rotation_scale_order_and_names_change_nothing(cloud):
    points, labels = cloud
    wanted = figures(measure_separation(points, labels))
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    order = np.random.default_rng(1).permutation(len(points))
    renamed = np.array(["d", "b", "a", "c"])[labels]
    for other, names in (
        (points + 7, labels),
        (points @ rotation, labels),
        (points * 40, labels),
        (points[order], labels[order]),
        (points, renamed),
    ):
        assert figures(measure_separation(other, names)) == pytest.approx(wanted, rel=1e-9)


def test_dimensions_are_not_standardised(cloud):
    points, labels = cloud
    stretched = points * np.array([100, 1, 1, 1, 1])
    assert figures(measure_separation(stretched, labels)) != pytest.approx(figures(measure_separation(points, labels)))


def test_intervals_hold_the_value_and_follow_seed_and_number(cloud):
    points, labels = cloud
    first = measure_separation(points, labels)
    for estimate in (first.silhouette, first.neighbour_accuracy):
        assert estimate.low < estimate.value < estimate.high
    assert measure_separation(points, labels) == first
    assert measure_separation(points, labels, seed=1).silhouette != first.silhouette
    none = measure_separation(points, labels, num_bootstrap=0)
    assert none.silhouette.value == first.silhouette.value
    assert math.isnan(none.silhouette.low)


def test_families_are_measured_alone_and_averaged(cloud):
    points, labels = cloud
    names = ["shirt", "coat", "sandal", "bag"]
    families = {"tops": ("shirt", "coat"), "shoes": ("sandal",), "hats": ("cap",)}
    separation = measure_within_families(points, labels, names, families)
    assert list(separation.within_family) == ["tops"]
    tops = labels < 2
    assert figures(separation.within_family["tops"]) == pytest.approx(
        figures(measure_separation(points[tops], labels[tops]))
    )
    assert figures(separation) == pytest.approx(figures(measure_separation(points, labels)))
    assert separation.within_family_mean.num_families == 1

    both = measure_within_families(points, labels, names, {"tops": names[:2], "others": names[2:]})
    parts = both.within_family.values()
    mean = both.within_family_mean
    assert mean.silhouette.value == pytest.approx(np.mean([part.silhouette.value for part in parts]))
    assert mean.neighbour_accuracy.value == pytest.approx(np.mean([part.neighbour_accuracy.value for part in parts]))
    assert mean.fisher_ratio == pytest.approx(np.mean([part.fisher_ratio for part in parts]))
    assert mean.silhouette.low < mean.silhouette.value < mean.silhouette.high


def test_no_family_of_two_has_no_mean(cloud):
    points, labels = cloud
    separation = measure_within_families(points, labels, ["a", "b", "c", "d"], {})
    assert separation.within_family == {}
    assert separation.within_family_mean is None


def test_class_of_one_point_is_left_out_and_said():
    points = np.vstack([SQUARE, [[100.0, 100.0]]])
    separation = measure_separation(points, np.array([0, 0, 1, 1, 7]))
    assert separation.neighbour_accuracy.value == 1
    assert separation.silhouette.value == pytest.approx(measure_separation(SQUARE, SQUARE_LABELS).silhouette.value)
    assert "one point: 7" in separation.notes[0]

    alone = measure_separation(SQUARE, np.arange(4))
    assert math.isnan(alone.silhouette.value)
    assert math.isnan(alone.neighbour_accuracy.value)
    assert alone.fisher_ratio == math.inf


def test_identical_classes_and_identical_points():
    assert fisher_ratio(SQUARE, np.array([0, 1, 0, 1])) == pytest.approx(4 / 100)
    assert math.isnan(fisher_ratio(np.ones((4, 2)), SQUARE_LABELS))
    twice = np.array([[0.0], [1.0], [0.0], [1.0]])
    assert fisher_ratio(twice, SQUARE_LABELS) == 0


def test_as_dict_is_strict_json(cloud):
    separation = measure_within_families(SQUARE, np.arange(4), list("abcd"), {"f": "abcd"})
    text = json.dumps(separation.as_dict(), allow_nan=False)
    read = json.loads(text)
    assert read["fisher_ratio"] is None
    assert read["silhouette"] == {"value": None, "low": None, "high": None}
    assert read["within_family"]["f"]["num_points"] == 4
    points, labels = cloud
    assert json.loads(json.dumps(measure_separation(points, labels).as_dict()))["neighbour_accuracy"]["value"] > 0


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (SQUARE, [0, 0, 0, 0], "1 class for 4 points"),
        (SQUARE, [0, 1], "labels has shape"),
        (SQUARE[:, 0], [0, 0, 1, 1], "points has shape"),
        (np.where(SQUARE == 10, np.nan, SQUARE), [0, 0, 1, 1], "point 2 holds a value that is not finite"),
    ],
)
def test_bad_points_are_named(points, labels, message):
    with pytest.raises(DataError, match=message):
        measure_separation(points, np.array(labels))


def test_bad_families_and_labels_are_named():
    with pytest.raises(DataError, match="family_ids has shape"):
        measure_separation(SQUARE, SQUARE_LABELS, family_ids=["a"])
    with pytest.raises(DataError, match="integers from 0 to 1"):
        measure_within_families(SQUARE, np.array([0, 0, 1, 2]), ["a", "b"], {})


def test_profiles_by_hand_and_without_scale():
    errors = np.array([[[1.0, 4.0], [3.0, 4.0]]])
    assert profile_points(errors).tolist() == [[-0.5, 0.0, 0.5, 0.0]]
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.5, 1.5, size=(6, 3, 4))
    scaled = errors * rng.uniform(1, 9, size=(6, 1, 4))
    assert profile_points(scaled) == pytest.approx(profile_points(errors))


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        (np.ones((3, 4)), "expected \\(image, class, timestep\\)"),
        (np.full((1, 2, 1), np.inf), r"errors\[0, 0, 0\] is inf"),
        (np.zeros((1, 2, 1)), "expected > 0"),
    ],
)
def test_bad_profiles_are_named(errors, message):
    with pytest.raises(DataError, match=message):
        profile_points(errors)
