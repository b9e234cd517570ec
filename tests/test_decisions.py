"""Prediction sets, costs, novelty and monitoring, against hand-worked values and against MAPIE."""

import numpy as np
import pytest
from scipy.stats import binomtest

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation import costs as money
from gcpl_lab.evaluation.costs import Costs, choose_threshold, count_mistakes, measure_process, weighted_confusion
from gcpl_lab.evaluation.monitoring import BETS, JUMP, Watch, level_of_look
from gcpl_lab.evaluation.novelty import measure_novelty
from gcpl_lab.evaluation.prediction_sets import measure_coverage, predict_label_sets, predict_sets, smallest_error_rate


def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of three classes that are right, and labels drawn from them."""
    chances = rng.dirichlet((0.6, 0.6, 0.6), count)
    return chances, np.array([rng.choice(3, p=row) for row in chances])


def test_sets_are_those_of_the_ranked_quantile():
    rng = np.random.default_rng(0)
    (known, labels), (new, _) = draw(rng, 99), draw(rng, 50)
    scores = np.sort(1 - known[np.arange(99), labels])
    limit = scores[int(np.ceil(100 * 0.9)) - 1]  # the ⌈(n + 1)·0.9⌉-th smallest
    np.testing.assert_array_equal(predict_sets(known, labels, new, 0.9), 1 - new <= limit)


def test_the_promised_coverage_is_kept_over_fifty_splits():
    chances, labels = draw(np.random.default_rng(1), 400)
    held = 0
    for split in range(50):
        order = np.random.default_rng(split).permutation(400)
        known, new = order[:200], order[200:]
        sets = predict_sets(chances[known], labels[known], chances[new], 0.9)
        found = measure_coverage(sets, np.eye(3, dtype=int)[labels[new]], 0.9)
        held += round(found.measured.value * 200)
    # Splits of one set are not independent, so a split counts as one draw: the mean of fifty must look like 90 %.
    interval = binomtest(round(held / 50), 200).proportion_ci(0.95)
    assert interval.low <= 0.9 <= interval.high


def test_each_label_is_held_as_often_as_promised():
    rng, held = np.random.default_rng(2), np.zeros((2, 4))
    for _ in range(50):
        chances = rng.uniform(size=(200, 4)) ** np.array([1, 1, 2, 3])
        targets = (rng.uniform(size=chances.shape) < chances).astype(int)
        sets = predict_label_sets(chances[:100], targets[:100], chances[100:], 0.8)
        held += [(sets & targets[100:].astype(bool)).sum(axis=0), targets[100:].sum(axis=0)]
    np.testing.assert_allclose(held[0] / held[1], 0.8, atol=0.05)
    # By hand: 9 images have the label, so ⌊10 · 0.2⌋ = 2 of them may lie below: the limit is the second smallest.
    known = np.linspace(0.1, 0.9, 9)[:, None]
    sets = predict_label_sets(known, np.ones((9, 1), int), np.array([[0.15], [0.2], [0.5]]), 0.8)
    assert sets.ravel().tolist() == [False, True, True]


@pytest.mark.parametrize(("promised", "count"), [(0.99, 50), (1.5, 50), (0.9, 8)])
def test_a_promise_that_cannot_be_kept_is_refused(promised: float, count: int):
    chances, labels = draw(np.random.default_rng(3), count)
    with pytest.raises(DataError, match="coverage"):
        predict_sets(chances, labels, chances, promised)
    assert smallest_error_rate(9) == 0.1


def test_mistakes_by_hand():
    said, true = np.eye(3, dtype=int)[[0, 1, 1, 2]], np.eye(3, dtype=int)[[0, 2, 0, 0]]
    # No normal class: each of three wrong answers misses one class and reports another.
    assert [each.tolist() for each in count_mistakes(said, true)] == [[0, 1, 1, 1], [0, 1, 1, 1]]
    # Class 0 is normal: it can be neither missed nor reported.
    assert [each.tolist() for each in count_mistakes(said, true, normal=0)] == [[0, 1, 0, 0], [0, 1, 1, 1]]


def test_costs_agree_with_a_spreadsheet():
    said, true = np.eye(2, dtype=int)[[0, 0, 1, 1, 0]], np.eye(2, dtype=int)[[0, 1, 1, 0, 1]]
    costs = Costs(miss=10, false_alarm=2, review=0.5, machine=0.01)
    sent = np.array([False, True, False, False, False])
    found = measure_process("ours", said, true, costs, reviewed=sent, normal=0)
    # Sheet: image 1 machine; 2 review; 3 machine; 4 one false alarm; 5 one miss. Σ = 0.5 + 2 + 10 + 5·0.01 = 12.55.
    assert found.cost.value == pytest.approx(12.55 / 5 * 1000)
    assert (found.misses, found.false_alarms, found.reviews) == (200, 200, 200)
    matrix = weighted_confusion(np.array([[1, 1], [2, 1]]), costs, normal=0)
    np.testing.assert_allclose(matrix, [[0, 2 / 5 * 1000], [20 / 5 * 1000, 0]])


def test_the_threshold_is_the_cheapest_and_keeps_the_limit():
    rng = np.random.default_rng(4)
    certainty, true = np.round(rng.uniform(size=40), 1), np.eye(2, dtype=int)[rng.integers(2, size=40)]
    said, costs = np.eye(2, dtype=int)[rng.integers(2, size=40)], Costs(3, 1, 1)

    def spent(limit: float) -> float:
        return measure_process("", said, true, costs, reviewed=certainty < limit).cost.value

    limits = [*np.unique(certainty), money.NEVER]
    for most in (1.0, 0.3):
        allowed = [limit for limit in limits if (certainty < limit).mean() <= most]
        chosen = choose_threshold(certainty, said, true, costs, most_reviewed=most)
        assert spent(chosen) == pytest.approx(min(map(spent, allowed)))
        assert (certainty < chosen).mean() <= most


def test_break_even_points_make_both_equal():
    true = np.eye(2, dtype=int)[[0, 1] * 10]
    said = true.copy()
    said[:4] = said[:4, ::-1]
    costs = Costs(5, 1, 2)
    ours = measure_process("ours", said, true, costs, normal=0)
    people = measure_process("people", true, true, costs, reviewed=np.ones(20, bool), normal=0)
    at = money.break_even_miss(ours, people, costs)
    again = Costs(at, 1, 2)
    assert measure_process("", said, true, again, normal=0).cost.value == pytest.approx(people.cost.value)
    images = money.break_even_images(ours, people, set_up=1200)
    assert images * 12 * (people.cost.value - ours.cost.value) / 1000 == pytest.approx(1200)
    assert money.break_even_images(people, ours, set_up=1200) is None
    with pytest.raises(DataError, match="review is -1"):
        Costs(1, 1, -1)


def test_the_planned_sample_shows_the_difference_as_often_as_planned():
    size = money.sample_size(0.8, 0.7)
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


def test_the_martingale_is_mapies():
    from mapie.exchangeability_testing import OnlineMartingaleTest

    rng, oracle = np.random.default_rng(7), OnlineMartingaleTest(jump_size=JUMP, warn=False)
    watch = Watch(rng.normal(size=30).tolist())
    for score in rng.normal(0.5, size=40).tolist():
        ranked = watch._seen.copy()
        watch.update([score])
        p = (sum(known > score for known in ranked) + watch_share(watch, ranked, score)) / (len(ranked) + 1)
        assert watch.values[-1] == pytest.approx(oracle.update_simple_jumper_martingale(p))
    assert len(BETS) == 3


def watch_share(watch: Watch, ranked: list[float], score: float) -> float:
    """The part of its own rank that the watch's tie-breaker drew for the last score, which no other score shares."""
    replayed = np.random.default_rng([watch.seed, 53])
    return float(replayed.random(len(watch.values))[-1])


def test_an_unchanged_stream_hardly_ever_alarms_and_a_changed_one_does():
    rng, alarms, delays = np.random.default_rng(8), 0, []
    for seed in range(200):
        watch = Watch(rng.normal(size=100).tolist(), seed)
        watch.update(rng.normal(size=300).tolist())
        alarms += watch.first_alarm(0.05) is not None
    for seed in range(20):
        watch = Watch(rng.normal(size=100).tolist(), seed)
        watch.update(rng.normal(1.0, size=300).tolist())
        delays.append(watch.first_alarm(0.05) or 300)
    assert alarms <= 17  # 99 % of binomial(200, 0.05)
    assert np.median(delays) < 40
    assert sum(level_of_look(number, 0.05) for number in range(1, 2000)) < 0.05


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
    spent = measure_process("", money.answers_of(chances), targets, Costs(10, 2, 2)).cost.value
    assert f"1,000 images cost {spent:,.0f} EUR" in view.sentence
    assert view.error is None
