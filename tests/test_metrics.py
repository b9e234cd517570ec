"""Metrics against counts made by hand."""

import math

import numpy as np
import pytest

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation import metrics
from gcpl_lab.evaluation.metrics import accuracy, accuracy_within_family, check_rows, confusion_matrix, log_loss

SCORES = np.array(
    [
        [3.0, 2.0, 1.0, 0.0],  # shirt, told right
        [2.0, 3.0, 1.0, 0.0],  # shirt, taken for a coat: wrong inside the family
        [0.0, 2.0, 3.0, 1.0],  # coat, taken for a bag: right inside the family
        [1.0, 0.0, 2.0, 3.0],  # sneaker, told right
        [1.0, 0.0, 3.0, 2.0],  # bag, told right
    ]
)
LABELS = np.array([0, 0, 1, 3, 2])
NAMES = ("shirt", "coat", "bag", "sneaker")
TOPS = {"tops": ("shirt", "coat"), "bags": ("bag",)}


def test_accuracy_within_a_family_ignores_the_other_families() -> None:
    # Shirt right, shirt taken for a coat, coat beats shirt although a bag beats both; the others have no look-alike.
    assert accuracy_within_family(SCORES, LABELS, NAMES, TOPS) == pytest.approx(2 / 3)
    assert accuracy(SCORES, LABELS) == 3 / 5
    louder = SCORES + np.array([0, 0, 100, 100])
    assert accuracy_within_family(louder, LABELS, NAMES, TOPS) == pytest.approx(2 / 3)
    assert accuracy(louder, LABELS) == 2 / 5


def test_two_families_are_counted_by_image_and_without_look_alikes_there_is_no_number() -> None:
    families = {"tops": ("shirt", "coat"), "others": ("sneaker", "bag")}
    assert accuracy_within_family(SCORES, LABELS, NAMES, families) == pytest.approx(4 / 5)
    assert math.isnan(accuracy_within_family(SCORES, LABELS, NAMES, {"bags": ("bag",)}))
    assert math.isnan(accuracy_within_family(SCORES[4:], LABELS[4:], NAMES, TOPS))


def test_log_loss_by_hand() -> None:
    chances = np.array([[0.5, 0.5], [0.25, 0.75]])
    assert log_loss(chances, np.array([0, 0])) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert log_loss(np.array([[0.0, 1.0]]), np.array([0])) == pytest.approx(-math.log(1e-12))


def test_calibration_error_by_hand() -> None:
    # Four images at confidence 0.8, of which three are right, and one at 0.6 that is wrong:
    # 4/5 · |0.75 − 0.8| + 1/5 · |0 − 0.6| = 0.16
    chances = np.array([[0.8, 0.2]] * 4 + [[0.4, 0.6]])
    assert metrics.expected_calibration_error(chances, np.array([0, 0, 0, 1, 0])) == pytest.approx(0.16, abs=1e-6)


def test_confusion_matrix_counts_classes_that_never_occur() -> None:
    expected = [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert confusion_matrix(SCORES, LABELS).tolist() == expected
    assert confusion_matrix(SCORES[:1], LABELS[:1]).shape == (4, 4)


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (np.zeros(3), [0, 1, 2], r"image: values have shape \(3,\) and labels \(3,\); expected \(row, column\)"),
        (np.zeros((3, 2)), [0, 1], r"shape \(3, 2\) and labels \(2,\)"),
        (np.zeros((0, 2)), [], "neither of them 0"),
        (np.array([[1.0, 0], [np.nan, 0]]), [0, 1], "image 1 holds a value that is not finite; leave it out"),
    ],
)
def test_rows_that_do_not_fit_are_named(values: np.ndarray, labels: list[int], message: str) -> None:
    for infinite in (False, True):
        with pytest.raises(DataError, match=message):
            check_rows("image", values, np.array(labels), infinite)


def test_infinite_values_are_allowed_where_it_is_said() -> None:
    scores, labels = np.array([[1.0, -np.inf]]), np.array([0])
    assert check_rows("image", scores, labels, infinite=True)[0].tolist() == scores.tolist()
    with pytest.raises(DataError, match="image 0 holds"):
        check_rows("image", scores, labels)
