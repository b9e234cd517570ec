"""Races on evidence that is made by hand or drawn from a known law."""

from dataclasses import replace

import numpy as np
import pytest

from gcpl_lab.fast.joined import JoinedEvidence
from gcpl_lab.fast.probes import Probes
from gcpl_lab.fast.racing import (
    Plan,
    PromptTree,
    _cheapest,
    _fewest_steps,
    _simulate,
    capital,
    choose_samples,
    group_prompts,
    learn_plan,
    lower_bound,
    race,
    representatives,
    shortlisted,
)
from gcpl_lab.gcpl.classifier import probabilities

NUM_CLASSES = 6
TELLING = (3, 7, 9, 12)
"""Samples of the drawn evidence that tell anything."""


def draw(num_images: int, seed: int, num_classes: int = NUM_CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Errors (image, class, 16): in the telling samples lower for the true class, elsewhere noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_images) % num_classes
    errors = rng.normal(10, 1, (num_images, num_classes, 16)) * np.linspace(0.5, 2, 16)
    for sample in TELLING:
        errors[np.arange(num_images), labels, sample] -= 1.8 * np.linspace(0.5, 2, 16)[sample]
    return errors.astype(np.float32), labels


def prior_of(labels: np.ndarray, seed: int, num_classes: int = NUM_CLASSES) -> np.ndarray:
    """Log-probabilities that know the class most of the time."""
    logits = np.random.default_rng(seed).normal(0, 1, (len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += 2
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def run(plan: Plan, errors: np.ndarray, prior: np.ndarray | None = None):  # type: ignore[no-untyped-def]
    asked: list[tuple[int, ...]] = []

    def ask(triples: np.ndarray) -> np.ndarray:
        asked.extend(map(tuple, triples.tolist()))
        return errors[triples[:, 0], triples[:, 1], plan.samples[triples[:, 2]]]

    outcome = race(ask, plan, len(errors), errors.shape[1], prior)
    assert len(asked) == len(set(asked)) == outcome.num_pairs  # nothing is asked twice, and all of it is counted
    assert outcome.num_pairs == (~np.isnan(outcome.errors)).sum()
    return outcome


def simple_plan(**changes: object) -> Plan:
    """Two steps, logits = 2 · (minus mean error), then whatever is asked for."""
    fit = JoinedEvidence(np.array([2.0]), np.zeros(3), 1.0, 0.0)
    settings: dict[str, object] = {
        "samples": np.array([0, 1]),
        "scales": np.ones(2),
        "fits": (fit, fit),
        "prior_fit": None,
        "stopping": "none",
        "error_rate": 0.1,
        "margin": np.inf,
        "bound": 1.0,
        "shortlist_margin": np.inf,
        "tree": None,
        "tree_steps": 1,
        "tree_margin": np.inf,
        "probes": None,
        "probe_margin": np.inf,
        "temperature": 1.0,
        "measured": {},
    }
    return Plan(**(settings | changes))  # type: ignore[arg-type]


ERRORS = np.array([[[1.0, 2.0], [2.0, 1.5], [4.0, 9.0]]], np.float32)


def test_a_race_without_stopping_is_the_mean() -> None:
    outcome = run(simple_plan(), ERRORS)
    np.testing.assert_allclose(outcome.logits, [[-3.0, -3.5, -13.0]])
    assert (outcome.num_pairs, outcome.num_rows) == (6, 2)


def test_a_race_by_hand() -> None:
    """After a step the logits are -2, -4, -8: with a margin of 3 the last class goes, 6 behind."""
    outcome = run(simple_plan(stopping="posterior", margin=3.0), ERRORS)
    assert (outcome.num_pairs, outcome.num_rows) == (5, 2)
    np.testing.assert_allclose(outcome.logits, [[-3.0, -3.5, -9.0]])
    assert np.isnan(outcome.errors[0, 2, 1])
    # With a margin of 1 one class is left after the first step, and nothing more is looked at.
    outcome = run(simple_plan(stopping="posterior", margin=1.0), ERRORS)
    assert (outcome.num_pairs, outcome.num_rows) == (3, 1)
    np.testing.assert_allclose(outcome.logits, [[-2.0, -4.0, -8.0]])


def test_a_shortlist_by_hand() -> None:
    """Prior logits 0, -1, -5 with a margin of 2: two classes run; the third stays 5 behind."""
    prior = np.array([[0.0, -1.0, -5.0]])
    known = JoinedEvidence(np.array([1.0]), np.zeros(3), 1.0, 0.0)
    both = JoinedEvidence(np.array([2.0, 1.0]), np.zeros(3), 1.0, 0.0)
    plan = simple_plan(prior_fit=known, fits=(both, both), shortlist_margin=2.0)
    outcome = run(plan, ERRORS, prior)
    assert outcome.num_pairs == 4
    np.testing.assert_allclose(outcome.logits, [[-3.0, -4.5, -8.0]])
    alone = run(simple_plan(prior_fit=known, fits=(both, both), shortlist_margin=0.5), ERRORS, prior)
    assert alone.num_pairs == 0  # decided without looking
    np.testing.assert_allclose(alone.logits, prior)


def test_a_tree_by_hand() -> None:
    """Classes 0 and 1 on one branch, 2 on another: 0 and 2 are looked at first, and 2's branch stays closed."""
    tree = PromptTree(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.0]))
    outcome = run(simple_plan(tree=tree, tree_margin=3.0), ERRORS)
    assert outcome.num_pairs == 5
    np.testing.assert_allclose(outcome.logits, [[-3.0, -3.5, -9.0]])
    everything = run(simple_plan(tree=tree), ERRORS)
    np.testing.assert_allclose(everything.logits, run(simple_plan(), ERRORS).logits)


def test_probes_by_hand() -> None:
    """Class 0 is looked at first: its error of 1 foretells 0, -1 and -5, and with a margin of 2 the third class goes.

    What is foretold then counts beside the errors: -3 + 0 against -3.5 - 1.
    """
    foretold = JoinedEvidence(np.array([1.0]), np.zeros(3), 1.0, 0.0)
    both = JoinedEvidence(np.array([2.0, 1.0]), np.zeros(3), 1.0, 0.0)
    probes = Probes(np.array([0]), np.array([[0.0, -1.0, -5.0]]), np.zeros(3), foretold)
    outcome = run(simple_plan(probes=probes, probe_margin=2.0, fits=(both, both)), ERRORS)
    assert outcome.num_pairs == 4  # the probe, class 1 at the first step, and both at the second
    np.testing.assert_allclose(outcome.logits, [[-3.0, -4.5, -8.0]])
    alone = run(simple_plan(probes=probes, probe_margin=0.5, fits=(both, both)), ERRORS)
    assert alone.num_pairs == 1
    np.testing.assert_allclose(alone.logits - alone.logits.max(), [[0.0, -1.0, -5.0]])


def test_whom_the_prior_decides_is_not_probed() -> None:
    known = JoinedEvidence(np.array([1.0]), np.zeros(3), 1.0, 0.0)
    both, all_three = (JoinedEvidence(np.ones(count), np.zeros(3), 1.0, 0.0) for count in (2, 3))
    probes = Probes(np.array([2]), np.array([[0.0, -1.0, -5.0]]), np.zeros(3), both)
    plan = simple_plan(probes=probes, prior_fit=known, fits=(all_three,) * 2, shortlist_margin=2.0)
    outcome = run(plan, np.repeat(ERRORS, 2, axis=0), np.array([[0.0, -9.0, -9.0], [0.0, -1.0, -9.0]]))
    assert np.isnan(outcome.errors[0]).all()
    assert (~np.isnan(outcome.errors[1])).tolist() == [[True, True], [True, True], [True, False]]
    np.testing.assert_allclose(outcome.logits[0], [0.0, -9.0, -9.0])


def test_a_prior_that_does_not_fit_the_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="prior is given; the plan was learned the other way"):
        race(lambda triples: np.zeros(len(triples)), simple_plan(), 1, 3, np.zeros((1, 3)))


def test_telling_samples_are_chosen_first() -> None:
    errors, labels = draw(120, 0)
    assert sorted(choose_samples(errors, labels, 4).tolist()) == sorted(TELLING)


def test_chosen_samples_are_worth_more_than_random_ones() -> None:
    errors, labels = draw(120, 0)
    unseen, truth = draw(300, 1)
    right = {}
    for choose in (True, False):
        plan = learn_plan(errors, labels, choose=choose, stopping="none", max_steps=4)
        right[choose] = (run(plan, unseen).logits.argmax(1) == truth).mean()
    assert right[True] > 0.85 > right[False] + 0.1


def test_the_posterior_rule_saves_and_keeps_its_error_rate() -> None:
    errors, labels = draw(240, 0)
    unseen, truth = draw(600, 1)
    full = run(learn_plan(errors, labels, stopping="none"), unseen)
    spent, apart = [], []
    for rate in (0.01, 0.1):
        plan = learn_plan(errors, labels, error_rate=rate)
        found = run(plan, unseen)
        spent.append(found.num_pairs)
        apart.append(((full.logits.argmax(1) == truth) & (found.logits.argmax(1) != truth)).mean())
        assert apart[-1] <= rate + 0.02
        assert (found.logits.argmax(1) == truth).mean() > (full.logits.argmax(1) == truth).mean() - rate - 0.02
    assert spent[1] < spent[0] < 0.7 * full.num_pairs


def log_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(probabilities(logits, 1.0)[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("with_prior", [False, True])
def test_a_simulated_race_ends_as_the_race_does(with_prior: bool) -> None:
    errors, labels = draw(60, 4)
    prior = prior_of(labels, 5) if with_prior else None
    plan = learn_plan(*draw(120, 2), prior=prior_of(draw(120, 2)[1], 3) if with_prior else None, error_rate=0.1)
    logits = plan.prior_logits(prior, errors.shape[:2])
    active = shortlisted(logits, plan.shortlist_margin)
    seen, known = errors[:, :, plan.samples], [] if prior is None else [prior]
    table = np.stack([logits, *(plan.logits(seen, known, step) for step in range(1, len(plan.samples) + 1))])
    final, spent = _simulate(
        table,
        active,
        np.zeros_like(active),
        np.where(active, 0.0, logits - logits.max(axis=1, keepdims=True)),
        plan.margin,
    )
    outcome = run(plan, errors, prior)
    assert plan.temperature != 1
    np.testing.assert_allclose(outcome.logits, plan.temperature * final, rtol=1e-4, atol=1e-4)
    assert spent.sum() == outcome.num_pairs < errors.shape[0] * errors.shape[1] * len(plan.samples)


def test_the_temperature_makes_early_answers_as_sure_as_they_are_right() -> None:
    (errors, labels), (unseen, wanted) = draw(240, 0), draw(600, 1)
    plan = learn_plan(errors, labels, error_rate=0.1)
    fitted = run(plan, unseen)
    for factor in (0.5, 2.0):
        other = run(replace(plan, temperature=factor * plan.temperature), unseen)
        np.testing.assert_array_equal(other.logits.argmax(1), fitted.logits.argmax(1))
        assert other.num_pairs == fitted.num_pairs
        assert log_loss(fitted.logits, wanted) < log_loss(other.logits, wanted)
    sure = probabilities(fitted.logits, 1.0).max(axis=1).mean()
    assert sure == pytest.approx((fitted.logits.argmax(1) == wanted).mean(), abs=0.05)


def test_the_shortlist_keeps_its_coverage() -> None:
    (errors, labels), truth = draw(240, 0), draw(600, 1)[1]
    prior, later = prior_of(labels, 2), prior_of(truth, 3)
    sizes = []
    for coverage in (0.8, 0.95, 1.0):
        plan = learn_plan(errors, labels, prior=prior, coverage=coverage, stopping="none")
        listed = shortlisted(plan.prior_logits(later, later.shape), plan.shortlist_margin)
        assert listed[np.arange(600), truth].mean() >= coverage - 0.04
        assert plan.measured["shortlist_recall"] >= coverage - 1e-9
        sizes.append(listed.sum(1).mean())
    assert sizes[0] < sizes[1] < sizes[2]
    off = learn_plan(errors, labels, prior=prior, shortlist=False)
    assert off.shortlist_margin == np.inf


def test_fewer_steps_are_taken_where_more_tell_hardly_more() -> None:
    losses = np.array([[2.0, 2.0], [1.2, 0.9], [1.0, 1.0], [1.0, 0.98]])  # differences from the last: 0.2 and -0.08
    assert _fewest_steps(losses, 0.0) == 3
    assert _fewest_steps(losses, 1.0) == 1  # mean 0.06, standard error 0.14
    assert _fewest_steps(losses[:2], 1.0) == 1


def test_what_is_learned_is_repeatable() -> None:
    errors, labels = draw(60, 0)
    first, second = (learn_plan(errors, labels, seed=3) for _ in range(2))
    assert first.samples.tolist() == second.samples.tolist()
    assert first.measured == second.measured


def test_one_image_a_class_is_enough_to_run() -> None:
    errors, labels = draw(NUM_CLASSES, 0)
    plan = learn_plan(errors, labels, max_steps=3)
    assert run(plan, draw(12, 1)[0]).logits.shape == (12, NUM_CLASSES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"max_steps": 0}, "max_steps is 0"), ({"error_rate": 0.0}, "error_rate is 0.0"), ({"coverage": 1.5}, "1.5")],
)
def test_wrong_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learn_plan(*draw(24, 0), **settings)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ the e-process


def test_capital_by_hand() -> None:
    """One bet won in full: the mean of 1 + share."""
    np.testing.assert_allclose(capital(np.array([[[2.0]]]), 2.0), [[1 + (0.1 + 0.2 + 0.4 + 0.8) / 4]])
    np.testing.assert_allclose(capital(np.array([[[9.0]]]), 2.0), capital(np.array([[[2.0]]]), 2.0))
    np.testing.assert_allclose(capital(np.array([[[np.nan, 0.0]]]), 2.0), [[1.0]])


def test_a_fair_game_makes_nobody_rich() -> None:
    """Ville: under the null the capital ever reaches 1/α with probability α at most."""
    games = np.random.default_rng(0).choice([-1.0, 1.0], (4000, 1, 60))
    reached = np.max([capital(games[:, :, :step], 1.0)[:, 0] for step in range(1, 61)], axis=0)
    for rate in (0.05, 0.2):
        assert (reached >= 1 / rate).mean() <= rate
    better = games + 0.5
    assert (capital(better, 1.5) >= 20).mean() > 0.9


def test_the_e_process_drops_clear_losers_only() -> None:
    rng = np.random.default_rng(0)
    errors = rng.uniform(0, 1, (40, 4, 60)).astype(np.float32)
    errors[:, 2:] += 2  # two hopeless classes; the first two are alike
    labels = rng.integers(0, 2, 40)
    plan = learn_plan(errors, labels, stopping="e_process", error_rate=0.05, max_steps=60, choose=False)
    found = run(plan, errors)
    seen = (~np.isnan(found.errors)).sum(2)
    assert (seen[:, 2:].max(1) <= seen[:, :2].max(1)).all()
    if len(plan.samples) >= 20:
        assert seen[:, 2:].mean() < len(plan.samples)


# ------------------------------------------------------------------------------------------------ the tree


def test_look_alike_prompts_share_a_branch() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 10, (3, 8))
    hidden = np.repeat(centres, 3, axis=0) + rng.normal(0, 0.1, (9, 8))
    tree = group_prompts(hidden.reshape(9, 2, 4))
    assert len(set(tree.branches)) == 3
    for start in (0, 3, 6):
        assert len(set(tree.branches[start : start + 3])) == 1
    assert group_prompts(np.zeros((1, 4))).branches.tolist() == [0]
    assert len(set(group_prompts(hidden, 5).branches)) == 5


def test_the_nearest_candidate_speaks_for_its_branch() -> None:
    tree = PromptTree(np.array([0, 0, 1, 1]), np.array([0.5, 0.1, 0.0, 0.3]))
    candidates = np.array([[True, True, True, True], [True, False, False, True], [True, True, False, False]])
    expected = [[False, True, True, False], [True, False, False, True], [False, True, False, False]]
    assert representatives(tree, candidates).tolist() == expected


def test_a_tree_over_many_classes_saves() -> None:
    num, per = 36, 6
    branch = np.arange(num) // per
    tree = PromptTree(branch, np.tile(np.arange(per), per).astype(float))

    def drawn(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels = np.arange(images) % num
        errors = rng.normal(10, 0.5, (images, num, 8))
        errors -= 3 * (branch[labels][:, None] == branch)[:, :, None]
        errors[np.arange(images), labels] -= 2
        return errors.astype(np.float32), labels

    errors, labels = drawn(144, 1)
    unseen, truth = drawn(108, 2)
    with_tree = run(learn_plan(errors, labels, tree=tree, stopping="none", max_steps=4), unseen)
    without = run(learn_plan(errors, labels, stopping="none", max_steps=4), unseen)
    assert (with_tree.logits.argmax(1) == truth).mean() >= 0.95
    assert with_tree.num_pairs < 0.5 * without.num_pairs


# ----------------------------------------------------------------------------------------------- the probes


def on_a_grid(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors (image, 36, 8) of classes with two properties of six values each: a class errs by both differences."""
    rng, values = np.random.default_rng(seed), np.arange(36)
    labels = np.arange(num_images) % 36
    apart = np.abs(values % 6 - labels[:, None] % 6) + np.abs(values // 6 - labels[:, None] // 6)
    return (10 + apart[:, :, None] + rng.normal(0, 0.5, (num_images, 36, 8))).astype(np.float32), labels


def test_probes_over_many_classes_save() -> None:
    errors, labels = on_a_grid(144, 1)
    unseen, truth = on_a_grid(108, 2)
    plans = {
        probes: learn_plan(errors, labels, probes=probes, max_steps=4, standard_errors=1.0) for probes in (True, False)
    }
    found = {probes: run(plan, unseen) for probes, plan in plans.items()}
    assert plans[True].probes is not None
    assert (found[True].logits.argmax(1) == truth).mean() >= (found[False].logits.argmax(1) == truth).mean() - 0.05
    assert found[True].num_pairs < 0.75 * found[False].num_pairs
    spent = found[True].num_pairs / len(truth)
    assert plans[True].measured["race_evaluations"] == pytest.approx(spent, rel=0.25)  # what folds had foreseen
    assert plans[True].measured["probe_recall"] > 0.9


def test_the_cheapest_of_those_that_are_right_about_as_often() -> None:
    rights, costs = (0.80, 0.785, 0.77), (30.0, 20.0, 10.0)
    choices = [{"race_accuracy": right, "race_evaluations": cost} for right, cost in zip(rights, costs, strict=True)]
    assert [_cheapest(choices, rate)["race_evaluations"] for rate in (0.01, 0.02, 0.05)] == [30.0, 20.0, 10.0]


def test_few_classes_are_not_probed() -> None:
    errors, labels = draw(120, 0, num_classes=4)
    assert learn_plan(errors, labels, probes=True).as_dict() == learn_plan(errors, labels).as_dict()


def test_wrong_answers_cost_no_evaluations() -> None:
    """Half of the images show nothing of their class: whom they end with decides no margin."""
    errors, labels = draw(240, 0)
    blind = errors.copy()
    blind[::2] = np.random.default_rng(3).normal(errors.mean(axis=(0, 1)), 1, blind[::2].shape)
    seeing, half = (
        learn_plan(some, labels, choose=False, max_steps=16, standard_errors=0.0) for some in (errors, blind)
    )
    assert half.measured["held_out_accuracy"] < seeing.measured["held_out_accuracy"]
    lost = half.measured["held_out_accuracy"] - half.measured["race_accuracy"]
    assert lost <= half.error_rate + 1e-9
    assert half.margin < np.inf


# ------------------------------------------------------------------------------- empirical Bernstein, and files


def test_the_lower_bound_by_hand() -> None:
    """Four differences of 1 ± 0.1 within 2: mean 1, variance 0.04 / 3, and a range of 4."""
    surprise = np.log(2 * 4 * 5 / 0.1)
    expected = 1 - np.sqrt(2 * 0.04 / 3 * surprise / 4) - 7 * 4 * surprise / (3 * 3)
    found = lower_bound(np.array([[[0.9, 1.1, 0.9, 1.1]]]), 2.0, 0.1)
    np.testing.assert_allclose(found, [[expected]])
    assert lower_bound(np.ones((1, 2, 1)), 2.0, 0.1).tolist() == [[-np.inf, -np.inf]]
    np.testing.assert_allclose(
        lower_bound(np.array([[[np.nan, 9.0]]]), 2.0, 0.1), lower_bound(np.array([[[0.0, 2.0]]]), 2.0, 0.1)
    )


def test_the_lower_bound_is_seldom_above_the_mean_at_any_step() -> None:
    draws = np.random.default_rng(5).uniform(-1, 1, (400, 1, 300))  # their mean is 0
    above = np.stack([lower_bound(draws[:, :, :steps], 1.0, 0.05)[:, 0] > 0 for steps in range(2, 301)])
    assert above.any(axis=0).mean() <= 0.05
    telling = lower_bound(draws + 0.8, 1.8, 0.05)
    assert (telling > 0).all()  # and it does decide where there are samples enough
    assert (telling < 0.8).all()


def test_a_race_by_empirical_bernstein_drops_whom_the_bound_rules_out() -> None:
    steps = 60
    fit = JoinedEvidence(np.array([2.0]), np.zeros(3), 1.0, 0.0)
    plan = simple_plan(
        stopping="empirical_bernstein", samples=np.arange(steps), scales=np.ones(steps), fits=(fit,) * steps, bound=1.0
    )
    errors = np.tile(np.array([[[1.0], [1.01], [2.0]]], np.float32), (1, 1, steps))
    outcome = run(plan, errors)
    seen = (~np.isnan(outcome.errors)).sum(axis=2)[0].tolist()
    assert seen[:2] == [steps, steps]
    first = next(n for n in range(2, steps) if lower_bound(np.ones((1, 1, n)), 1.0, 0.05)[0, 0] > 0)
    assert seen[2] == first < steps


@pytest.mark.parametrize("with_probes", [False, True])
@pytest.mark.parametrize("with_prior", [False, True])
def test_a_plan_goes_to_json_and_back(with_prior: bool, with_probes: bool) -> None:
    import json

    errors, labels = draw(60, 1)
    prior = prior_of(labels, 2) if with_prior else None
    plan = learn_plan(errors, labels, prior=prior, tree=group_prompts(np.eye(NUM_CLASSES)), tree_steps=2)
    if with_probes:
        priors = 1 + with_prior
        more, many = (JoinedEvidence(np.ones(count), np.zeros(NUM_CLASSES), 1.0, 0.0) for count in (priors, 1 + priors))
        probes = Probes(np.array([4, 1]), np.ones((2, NUM_CLASSES)), np.arange(6.0), more)
        plan = replace(plan, probes=probes, probe_margin=3.0, fits=(many,) * len(plan.fits))
    text = json.dumps(plan.as_dict(), allow_nan=False)
    again = Plan.from_dict(json.loads(text), NUM_CLASSES, 16)
    unseen, others = draw(30, 7)
    known = prior_of(others, 8) if with_prior else None
    np.testing.assert_array_equal(run(again, unseen, known).logits, run(plan, unseen, known).logits)
    assert again.as_dict() == plan.as_dict()
    with pytest.raises(ValueError, match="samples are .*; expected different ones of 0 to 1"):
        Plan.from_dict(json.loads(text), NUM_CLASSES, 2)
    with pytest.raises(ValueError, match=r"expected [12] and 4|tree has 6 classes; expected 4|probes.*expected"):
        Plan.from_dict(json.loads(text), 4, 16)
