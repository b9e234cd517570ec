"""Ranking and decisions of several labels an image, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.multilabel import (
    average_precisions,
    calibration_error,
    choose_thresholds,
    decision_quality,
    map_with_interval,
    mean_average_precision,
    multilabel_report,
)

RNG = np.random.default_rng(0)
TARGETS = (RNG.random((80, 5)) < (0.6, 0.3, 0.2, 0.1, 0.05)).astype(np.uint8)
SCORES = np.round(RNG.normal(TARGETS, 1.0), 1)  # rounded: ties occur


def test_average_precision_equals_scikit_learn() -> None:
    expected = average_precision_score(TARGETS, SCORES, average=None)
    assert average_precisions(SCORES, TARGETS) == pytest.approx(expected, abs=1e-9)
    assert mean_average_precision(SCORES, TARGETS) == pytest.approx(expected.mean(), abs=1e-9)
    assert average_precisions(3 * SCORES - 7, TARGETS) == average_precisions(SCORES, TARGETS)  # the order alone counts
    # Ranked: hit, miss, hit: (1/1 + 2/3) / 2.
    assert average_precisions(np.array([[3.0], [2.0], [1.0]]), np.array([[1], [0], [1]])) == pytest.approx([5 / 6])


def test_even_classes_are_weighed_as_if_equally_frequent() -> None:
    """Repeating a class's positives changes its average precision; with ``even`` it does not."""
    scores, targets = SCORES[:, :2], TARGETS[:, :2]
    rare = np.flatnonzero(targets[:, 1])
    rows = np.concatenate([np.arange(80), *[rare] * 3])
    plain = [average_precisions(scores, targets)[1], average_precisions(scores[rows], targets[rows])[1]]
    assert plain[1] > plain[0] + 0.1
    # One class alone is as frequent as the average already.
    assert average_precisions(scores[:, 1:], targets[:, 1:], even=True) == pytest.approx(plain[:1])
    # By hand: hits 1 and 3 of 4 weigh 1/4 each, misses 2 and 4 too; the class beside it has no other share.
    hand = average_precisions(
        np.array([[4.0, 4], [3, 3], [2, 2], [1, 1]]), np.array([[1, 1], [0, 0], [1, 0], [0, 0]]), even=True
    )
    # Mean share 3/8: of the first class a hit weighs (3/8)/2, a miss (5/8)/2.
    assert hand == pytest.approx([(1 + 2 * 3 / (2 * 3 + 5)) / 2, 1.0])
    assert average_precisions(np.zeros((2, 2)), np.array([[1, 0], [1, 0]]), even=True) == [pytest.approx(1), None]


def test_report_parts_the_classes_and_leaves_out_those_without_positives() -> None:
    targets = np.column_stack([TARGETS, np.zeros(80, np.uint8)])
    scores = np.column_stack([SCORES, np.zeros(80)])
    report = multilabel_report(scores, targets, [300, 100, 99, 20, 19, 3], list("abcdef"))
    single = average_precisions(SCORES, TARGETS)
    parts = {"map": single, "map_head": single[:2], "map_medium": single[2:4], "map_tail": single[4:]}
    assert {name: report[name] for name in parts} == pytest.approx({name: np.mean(parts[name]) for name in parts})
    assert report["classes_without_positives"] == ["f"]
    assert [entry["part"] for entry in report["classes"]] == ["head", "head", "medium", "medium", "tail", "tail"]
    assert list(report["classes"][5].values()) == ["f", "tail", None, 3, 0]
    assert report["classes"][0]["num_test"] == int(TARGETS[:, 0].sum())
    all_head = multilabel_report(SCORES, TARGETS, [500] * 5, list("abcde"))
    assert (all_head["map_tail"], all_head["map_head"]) == (None, all_head["map"])


def test_the_interval_of_a_mean_lies_around_it_where_labels_are_rare() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((120, 30)) < 0.02).astype(np.uint8)
    scores = rng.normal(size=targets.shape) + targets
    found = map_with_interval(scores, targets)
    assert found.value == mean_average_precision(scores, targets)
    assert 0 <= found.low < found.value < found.high <= 1
    assert found.value - found.low == pytest.approx(found.high - found.value)
    assert np.isnan(map_with_interval(scores, np.zeros_like(targets)).value)


def test_decisions_equal_scikit_learn() -> None:
    predicted = SCORES >= 0.5
    quality = decision_quality(SCORES, TARGETS, 0.5)
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        for average in ("macro", "micro"):
            expected = score(TARGETS, predicted, average=average, zero_division=0)
            assert quality[f"{name}_{average}"] == pytest.approx(expected, abs=1e-9)
    assert set(decision_quality(SCORES, np.zeros_like(TARGETS), 99.0).values()) == {0.0}


def test_chosen_thresholds_are_the_best_ones() -> None:
    thresholds = choose_thresholds(SCORES, TARGETS)
    for label, threshold in enumerate(thresholds):
        best = max(f1_score(TARGETS[:, label], SCORES[:, label] >= value) for value in SCORES[:, label])
        assert f1_score(TARGETS[:, label], SCORES[:, label] >= threshold) == pytest.approx(best)
    fixed = decision_quality(SCORES, TARGETS, 0.0)["f1_macro"]
    assert decision_quality(SCORES, TARGETS, thresholds)["f1_macro"] > fixed
    # Classes without positives take the median of the others.
    targets = np.column_stack([TARGETS[:, :2], np.zeros(80, np.uint8)])
    thresholds = choose_thresholds(SCORES[:, :3], targets)
    assert thresholds[2] == pytest.approx(np.median(thresholds[:2]))
    assert np.isfinite(choose_thresholds(SCORES, np.zeros_like(TARGETS))).all()


def test_calibration_by_hand_and_of_true_probabilities() -> None:
    probabilities = np.array([[0.9, 0.9], [0.9, 0.2]])
    # Bin of 0.9: said 2.7, happened 1; bin of 0.2: said 0.2, happened 1; four statements.
    expected = (1.7 + 0.8) / 4
    assert calibration_error(probabilities, np.array([[1, 0], [0, 1]])) == pytest.approx(expected)
    rng = np.random.default_rng(1)
    true = rng.random((4000, 5))
    assert calibration_error(true, rng.random(true.shape) < true) < 0.02
    assert calibration_error(true**3, rng.random(true.shape) < true) > 0.1


def test_bad_input_is_named() -> None:
    broken = SCORES.copy()
    broken[3, 1] = np.nan
    for scores, targets, message in (
        (SCORES[:, :4], TARGETS, r"scores have shape \(80, 4\) and targets \(80, 5\)"),
        (broken, TARGETS, "score of image 3, class 1 is nan"),
        (SCORES, TARGETS.astype(int) - 1, "target of image 0, class 0 is -1"),
        (SCORES, np.zeros_like(TARGETS), "no class has a positive"),
    ):
        with pytest.raises(DataError, match=message):
            mean_average_precision(scores, targets)
    with pytest.raises(DataError, match="put a sigmoid on logits"):
        calibration_error(SCORES, TARGETS)
    with pytest.raises(DataError, match="class_names has 2 entries; expected 5"):
        multilabel_report(SCORES, TARGETS, [1] * 5, ["a", "b"])
