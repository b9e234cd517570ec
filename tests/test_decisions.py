"""Prediction sets, costs, novelty and monitoring, against hand-worked values and against MAPIE."""

import numpy as np
import pytest
from scipy.stats import binomtest

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation import costs as money
from gcpl_lab.evaluation.costs import (
    Costs,
    choose_threshold,
    count_mistakes,
    decide_each,
    measure_process,
    weighted_confusion,
)
from gcpl_lab.evaluation.monitoring import bet_against, features_p_value, find_drift
from gcpl_lab.evaluation.novelty import measure_novelty
from gcpl_lab.evaluation.prediction_sets import measure_coverage, predict_sets, smallest_error_rate
from gcpl_lab.pilot.verdict import sample_size


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of three classes that are right, and labels drawn from them."""
    chances = rng.dirichlet((0.6, 0.6, 0.6), count)
    return chances, np.array([rng.choice(3, p=row) for row in chances])


def test_sets_are_those_of_mapie_and_of_the_ranked_quantile():
    from mapie.classification import SplitConformalClassifier
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    for count, promised in ((99, 0.9), (60, 0.8), (37, 0.95)):
        points, labels = rng.normal(size=(count + 250, 2)), rng.integers(3, size=count + 250)
        points[:, 0] += labels
        model = LogisticRegression().fit(points[:200], labels[:200])
        known, new = slice(200, 200 + count), slice(200 + count, None)
        oracle = SplitConformalClassifier(model, promised, conformity_score="lac", prefit=True)
        oracle.conformalize(points[known], labels[known])
        before, now = model.predict_proba(points[known]), model.predict_proba(points[new])
        sets = predict_sets(before, np.eye(3, dtype=int)[labels[known]], now, promised)
        np.testing.assert_array_equal(sets, oracle.predict_set(points[new])[1][:, :, 0])
        scores = np.sort(1 - before[np.arange(count), labels[known]])
        limit = scores[int(np.ceil((count + 1) * promised)) - 1]  # the ⌈(n + 1)·0.9⌉-th smallest
        np.testing.assert_array_equal(sets, 1 - now <= limit)


def test_the_promised_coverage_is_kept_over_fifty_splits():
    chances, labels = draw(np.random.default_rng(1), 400)
    targets, held = np.eye(3, dtype=int)[labels], 0
    for split in range(50):
        order = np.random.default_rng(split).permutation(400)
        known, new = order[:200], order[200:]
        sets = predict_sets(chances[known], targets[known], chances[new], 0.9)
        found = measure_coverage(sets, targets[new], 0.9)
        held += round(found["measured"] * 200)
    # Splits of one set are not independent, so a split counts as one draw: the mean of fifty must look like 90 %.
    interval = binomtest(round(held / 50), 200).proportion_ci(0.95)
    assert interval.low <= 0.9 <= interval.high


def test_each_label_is_held_as_often_as_promised():
    rng, held = np.random.default_rng(2), np.zeros((2, 4))
    for _ in range(50):
        chances = rng.uniform(size=(200, 4)) ** np.array([1, 1, 2, 3])
        targets = (rng.uniform(size=chances.shape) < chances).astype(int)
        sets = predict_sets(chances[:100], targets[:100], chances[100:], 0.8, by_label=True)
        held += [(sets & targets[100:].astype(bool)).sum(axis=0), targets[100:].sum(axis=0)]
    np.testing.assert_allclose(held[0] / held[1], 0.8, atol=0.05)
    # By hand: 9 images have the label, so ⌊10 · 0.2⌋ = 2 of them may lie below: the limit is the second smallest.
    known = np.linspace(0.1, 0.9, 9)[:, None]
    sets = predict_sets(known, np.ones((9, 1), int), np.array([[0.15], [0.2], [0.5]]), 0.8, by_label=True)
    assert sets.ravel().tolist() == [False, True, True]


@pytest.mark.parametrize(("promised", "count"), [(0.99, 50), (1.5, 50), (0.9, 8)])
def test_a_promise_that_cannot_be_kept_is_refused(promised: float, count: int):
    chances, labels = draw(np.random.default_rng(3), count)
    with pytest.raises(DataError, match="coverage"):
        predict_sets(chances, np.eye(3, dtype=int)[labels], chances, promised)
    assert smallest_error_rate(9) == 0.1


def test_mistakes_by_hand():
    said, true = np.eye(3, dtype=int)[[0, 1, 1, 2]], np.eye(3, dtype=int)[[0, 2, 0, 0]]
    # No normal class: each of three wrong answers misses one class and reports another.
    assert [each.tolist() for each in count_mistakes(said, true)] == [[0, 1, 1, 1], [0, 1, 1, 1]]
    # Class 0 is normal: it can be neither missed nor reported.
    assert [each.tolist() for each in count_mistakes(said, true, normal=0)] == [[0, 1, 0, 0], [0, 1, 1, 1]]


def test_costs_agree_with_a_spreadsheet():
    said, true = np.eye(2, dtype=int)[[0, 0, 1, 1, 0]], np.eye(2, dtype=int)[[0, 1, 1, 0, 1]]
    costs = Costs(miss=10, false_alarm=2, review=0.5, machine=0.01, normal=0)
    sent = np.array([False, True, False, False, False])
    found = measure_process(said, true, costs, reviewed=sent)
    # Sheet: image 1 machine; 2 review; 3 machine; 4 one false alarm; 5 one miss. Σ = 0.5 + 2 + 10 + 5·0.01 = 12.55.
    assert found["cost"] == pytest.approx(12.55 / 5 * 1000)
    assert (found["misses"], found["false_alarms"], found["reviews"]) == (200, 200, 200)
    matrix = weighted_confusion(np.array([[1, 1], [2, 1]]), costs)
    np.testing.assert_allclose(matrix, [[0, 2 / 5 * 1000], [20 / 5 * 1000, 0]])


def test_the_threshold_is_the_cheapest_and_keeps_the_limit():
    certainty, true = np.array([0.1, 0.2, 0.2, 0.8, 0.9]), np.eye(2, dtype=int)[[0, 0, 0, 1, 1]]
    said, costs = np.eye(2, dtype=int)[[1, 1, 0, 1, 1]], Costs(3, 1, 1)
    # Two wrong answers cost 4 each. Sent are none: 8; the first: 4 + 1; the first three: 3; four: 4; all: 5.
    assert choose_threshold(certainty, said, true, costs) == (0.8, 600)
    assert choose_threshold(certainty, said, true, costs, most_reviewed=0.3) == (0.2, 1000)
    assert choose_threshold(certainty, said, true, Costs(3, 1, 0)) == (0.8, 0)
    assert choose_threshold(certainty, said, true, Costs(100, 1, 50), most_reviewed=0.1)[0] == 0.1  # nobody


def test_break_even_points_make_both_equal():
    true = np.eye(2, dtype=int)[[0, 1] * 10]
    said = true.copy()
    said[:4] = said[:4, ::-1]
    costs = Costs(5, 1, 2, normal=0)
    ours = measure_process(said, true, costs)
    people = measure_process(true, true, costs, reviewed=np.ones(20, bool))
    at = money.break_even(ours, people, costs, set_up=1200)
    again = Costs(at["miss"], 1, 2, normal=0)
    assert measure_process(said, true, again)["cost"] == pytest.approx(people["cost"])
    assert at["images_a_month"] * 12 * (people["cost"] - ours["cost"]) / 1000 == pytest.approx(1200)
    assert money.break_even(people, ours, costs, set_up=1200)["images_a_month"] is None
    with pytest.raises(DataError, match="review is -1"):
        Costs(1, 1, -1)


def test_the_planned_sample_shows_the_difference_as_often_as_planned():
    size = sample_size(0.8, 0.7)
    assert size == 294  # Fleiss, table A.4, without correction
    rng, z = np.random.default_rng(5), 1.959964
    first, second = rng.binomial(size, 0.8, 4000) / size, rng.binomial(size, 0.7, 4000) / size
    mean = (first + second) / 2
    shown = np.abs(first - second) > z * np.sqrt(2 * mean * (1 - mean) / size)
    assert 0.78 < shown.mean() < 0.83


def test_novelty_finds_the_score_that_tells():
    rng, labels = np.random.default_rng(6), np.repeat(np.arange(4), 30)
    parts = []
    for _ in range(2):
        distances = rng.uniform(0.8, 1.0, (120, 4))
        distances[np.arange(120), labels] = rng.uniform(0, 0.2, 120)
        parts.append({"probabilities": rng.dirichlet(np.ones(4), 120), "distances": distances})
    found = measure_novelty(parts[0], labels, parts[1], labels)
    assert found["score"] == "feature distance"
    assert found["auroc"] == 1
    assert found["noticed"]["value"] == 1
    assert found["refused"]["value"] < 0.12
    assert found["scores"]["probability"]["value"] < 0.7
    with pytest.raises(DataError, match="leaves nothing"):
        measure_novelty({"probabilities": np.ones((4, 2)) / 2}, labels[:4], parts[1], labels)


def test_the_martingale_bets_on_ranks():
    # By hand: nothing seen is larger than either score, so p = u / 4 and u / 5 of the tie-breaker's first two draws.
    first, second = np.random.default_rng(7).random(2) / [4, 5]
    wealth = np.full(3, 1 / 3)
    for p in (first, second):
        wealth = (0.99 * wealth + 0.01 * wealth.mean()) * (1 + np.array([-1, 0, 1]) * (p - 0.5))
    assert bet_against([0.1, 0.2, 0.3], [0.4, 0.5], seed=7)[-1] == pytest.approx(wealth.sum())
    with pytest.raises(DataError, match="0 calibration scores"):
        bet_against([], [0.4])


def test_an_unchanged_stream_hardly_ever_alarms_and_a_changed_one_does():
    rng, level = np.random.default_rng(8), 0.05
    alarms = [bet_against(rng.normal(size=100), rng.normal(size=300), seed).max() >= 1 / level for seed in range(200)]
    later = [bet_against(rng.normal(size=100), rng.normal(1.0, size=300), seed) for seed in range(20)]
    delays = [int(np.argmax(values >= 1 / level)) + 1 if values.max() >= 1 / level else 300 for values in later]
    assert sum(alarms) <= 17  # 99 % of binomial(200, 0.05)
    assert np.median(delays) < 40


def test_the_kernel_test_is_what_the_formula_says_and_sees_a_crowd():
    rng = np.random.default_rng(10)
    before, crowd = rng.normal(size=(120, 8)), rng.normal(size=(60, 8))
    crowd[:20] = 0.4 + rng.normal(0, 0.05, (20, 8))  # each of them well inside what was there before
    assert features_p_value(before, crowd, 500) < 0.01
    unchanged = [features_p_value(*rng.normal(size=(2, 30, 3)), 99, seed) for seed in range(200)]
    assert 0.01 <= np.mean(np.array(unchanged) <= 0.05) <= 0.1
    # By hand: of 0, 0 and 1, 1 the median of the squared distances 0, 1, 1, 1, 1, 0 is 1. One of three ways to part the
    # four in two and two is as far apart as this one: itself, and its mirror.
    points = np.array([[0.0], [0.0], [1.0], [1.0]])
    assert features_p_value(points[:2], points[2:], 6000) == pytest.approx(1 / 3, abs=0.03)


def test_all_tests_together_alarm_in_few_unchanged_streams():
    rng, alarms = np.random.default_rng(11), 0
    for seed in range(60):
        parts = []
        for count in (100, 110):
            features = rng.normal(size=(count, 6))
            parts.append({"probabilities": rng.dirichlet(np.ones(3), count), "features": features})
            parts[-1] |= {"distances": np.abs(features[:, :3]), "errors": np.abs(features[:, 3:])}
        alarms += any(test["alarm"] for test in find_drift(*parts, seed=seed).values())
    assert alarms <= 8  # 99 % of binomial(60, 0.05)


def test_the_cost_explorer_follows_its_sliders():
    from gcpl_lab.views.widgets import CostExplorer

    chances, labels = draw(np.random.default_rng(9), 60)
    targets = np.eye(3, dtype=int)[labels]
    view = CostExplorer(chances, targets, Costs(10, 2, 0.5))
    view.sent.value = 1.0
    assert "1,000 images cost 500 EUR (500 to 500)" in view.sentence
    view.review.value = 2.0
    assert "1,000 images cost 2,000 EUR" in view.sentence
    view.sent.value = 0.0
    spent = measure_process(decide_each(chances)[1], targets, Costs(10, 2, 2))["cost"]
    assert f"1,000 images cost {spent:,.0f} EUR" in view.sentence
    assert view.error is None
