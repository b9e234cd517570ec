"""Every method on the same images: right shapes, honest costs, and nothing seen that must not be seen.

The models have random weights; how well a method recognises anything is measured elsewhere.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest

import gcpl_lab.baselines.base as base
import gcpl_lab.experiments.few_shot as experiments
from gcpl_lab.baselines import coop, pixels, tip_adapter
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.errors import DataError
from gcpl_lab.experiments.few_shot import METHOD_TITLES, METHODS, QUICK_METHODS, FewShotExperiment, Outcome
from gcpl_lab.gcpl.calibration import class_scores, fit_reading
from gcpl_lab.gcpl.objectives import GCPL, register_objective

ZERO_SHOT = ("zero_shot_clip", "zero_shot_clip_ensemble", "zero_shot_diffusion")
LEARNED = ("gcpl", "comple", "discriminative")
ON_REQUEST = ("comple_same_image", "mc_ti", "directional")
TIMES = ("train_seconds", "predict_seconds")
PROMISED = {"name", "seed", "accuracy", "accuracy_within_family", "denoiser_evaluations", *TIMES}

Make = Callable[..., FewShotExperiment]


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {coop: "ADAPTER_TRAINING", tip_adapter: "TIP_ADAPTER_TRAINING", pixels: "NETWORK_TRAINING"}
    for module, name in names.items():
        monkeypatch.setattr(module, name, replace(getattr(module, name), num_steps=3))
    monkeypatch.setattr(experiments, "PUBLISHED_SETTINGS", {**experiments.PUBLISHED_SETTINGS, "num_steps": 2})
    monkeypatch.setattr(experiments, "PUBLISHED_STAGES", ((2, 1), (1, 3)))
    monkeypatch.setattr(experiments, "NOISE_TRAINING", replace(experiments.NOISE_TRAINING, num_steps=2))
    monkeypatch.setattr(pixels.PixelForest, "NUM_TREES", 5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_for_every_test_image(few_shot: FewShotExperiment, method: str) -> None:
    outcome = few_shot.run(method, 2, 0)
    shape = (len(few_shot.test), 3)
    assert outcome.scores.shape == outcome.probabilities.shape == shape
    assert np.isfinite(outcome.scores).all()
    np.testing.assert_allclose(outcome.probabilities.sum(1), 1, rtol=1e-6)
    assert outcome.row.keys() >= PROMISED
    assert outcome.row["name"] == outcome.method == method
    assert outcome.row["accuracy"] == pytest.approx((outcome.scores.argmax(1) == few_shot.test.labels).mean())
    assert outcome.shots == outcome.row["shots"] == (0 if method in ZERO_SHOT else 2)
    assert (outcome.model is not None) == (method in (*LEARNED, *ON_REQUEST))
    diffusion = (*LEARNED, *ON_REQUEST, "noop", "zero_shot_diffusion", "diffusion_offsets")
    assert (outcome.evidence is not None) == (method in diffusion)
    assert all(outcome.row[name] >= 0 for name in TIMES)


def test_an_objective_that_is_registered_later_is_a_method(few_shot: FewShotExperiment, own_registries: None) -> None:
    @register_objective("mine", title="My objective", starts_from="gcpl")
    class Mine(GCPL):
        """Goes on from GCPL's prompts, registered as a cell of a notebook does it."""

    assert list(METHODS)[-6:] == ["mine", *ON_REQUEST, "gcpl_published", "noop"]
    assert "mine" in QUICK_METHODS
    assert METHOD_TITLES["mine"] == "My objective"
    gcpl, outcome = few_shot.run("gcpl", 2, 0), few_shot.run("mine", 2, 0)
    assert outcome.row.keys() == gcpl.row.keys()
    assert outcome.row["train_evaluations"] == 2 * gcpl.row["train_evaluations"]
    np.testing.assert_array_equal(outcome.model.states_[0], gcpl.model.prompts_.vectors.detach())


def test_a_row_and_a_baseline_of_ones_own_need_no_more_than_a_function(
    few_shot: FewShotExperiment, own_registries: None
) -> None:
    @base.register_baseline("guess", shots=False)
    def guess(support: base.FeatureSupport) -> Any:
        return SimpleNamespace(scores=lambda features: features[:, : len(support.class_names)])

    @METHODS.register("copy", title="A copy", quick=False, defaults={"of": "guess"})
    def copy(experiment: FewShotExperiment, method: str, shots: int, seed: int, of: str) -> Outcome:
        return experiment.run(of, shots, seed)

    assert list(METHODS)[-1] == "copy"
    assert "copy" not in QUICK_METHODS
    outcome = few_shot.run("copy", 2, 0)
    assert (outcome.row["name"], outcome.row["shots"], outcome.scores.shape) == ("guess", 0, (12, 3))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ZERO_SHOT])
def test_another_seed_learns_from_other_images(few_shot: FewShotExperiment, method: str) -> None:
    assert set(draw_episode(few_shot.support, 2, 0)) != set(draw_episode(few_shot.support, 2, 1))
    assert not np.array_equal(few_shot.run(method, 2, 0).scores, few_shot.run(method, 2, 1).scores)


def test_evaluations_are_counted(few_shot: FewShotExperiment) -> None:
    """Settings of the fixture: 2 updates of 4; 2 discriminative ones of 2 images × 2 (t, ε) × 3 prompts."""
    rows = {name: few_shot.run(name, 2, 0).row for name in ("zero_shot_diffusion", "linear_probe", *LEARNED)}
    of_test = len(few_shot.test) * 3 * 2
    found = {name: (row["train_evaluations"], row["denoiser_evaluations"]) for name, row in rows.items()}
    assert found["zero_shot_diffusion"] == (0, of_test)
    assert found["linear_probe"] == (0, 0)
    assert found["gcpl"] == found["comple"] == (2 * 4, of_test)
    assert found["discriminative"] == (2 * 4 + 2 * 2 * 2 * 3, of_test)  # it pays for its warm start


def test_offsets_alone_move_every_score_of_a_class_by_one_number(make_few_shot: Make) -> None:
    few_shot = make_few_shot(weighting="relative")  # else exemplars choose it, and names have the pool's
    names, offsets = few_shot.run("zero_shot_diffusion", 2, 0), few_shot.run("diffusion_offsets", 2, 0)
    moved = offsets.scores - names.scores
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-6)
    assert np.abs(moved[0]).max() > 0
    assert moved[0].mean() == pytest.approx(0, abs=1e-6)
    assert offsets.row["train_evaluations"] == 2 * 3 * 3 * 2  # support images × prompts × (t, ε)


def test_names_have_the_weighting_of_the_pool_and_offsets_the_one_of_their_exemplars(
    make_few_shot: Make, few_shot: FewShotExperiment
) -> None:
    names = few_shot.run("zero_shot_diffusion", 2, 0)
    assert names.row["weighting"] == "relative"
    np.testing.assert_array_equal(names.scores, class_scores(names.evidence.errors, "relative"))
    assert few_shot.run("diffusion_offsets", 2, 0).row["weighting"] in ("relative", "absolute")
    asked = make_few_shot(weighting="absolute")
    for method in ("zero_shot_diffusion", "diffusion_offsets"):
        assert asked.run(method, 2, 0).row["weighting"] == "absolute"


@pytest.mark.parametrize("method", ["gcpl", "diffusion_offsets"])
def test_readings_are_what_each_choice_would_have_given(few_shot: FewShotExperiment, method: str) -> None:
    outcome = few_shot.run(method, 2, 0)
    readings, labels = outcome.row["readings"], few_shot.test.labels
    for weighting in ("relative", "absolute"):
        plain = class_scores(outcome.evidence.errors, weighting).argmax(1) == labels  # type: ignore[arg-type]
        assert readings[weighting] == pytest.approx(plain.mean())
    own = outcome.row["weighting"]
    assert readings[own] == outcome.row["accuracy_without_offsets"]
    assert readings[f"{own}, offsets"] == outcome.row["accuracy"]
    if outcome.model is not None:
        model = outcome.model
        other = fit_reading(model.support_errors_, model.support_labels_, weighting="relative", seed=0)
        right = other.scores(outcome.evidence.errors).argmax(1) == labels
        assert readings["relative, offsets"] == pytest.approx(right.mean())


def test_published_settings_are_the_authors(few_shot: FewShotExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = experiments.GCPLClassifier.learn
    spy = create_autospec(learn, side_effect=learn)
    monkeypatch.setattr(experiments.GCPLClassifier, "learn", spy)
    row, num_classes = few_shot.run("gcpl_published", 2, 0).row, 3
    config, options = spy.call_args.args[0].config, spy.call_args.kwargs
    assert options["coarse_words"] == ["object"] * num_classes
    assert (config.num_vectors, config.batch_size, config.learning_rate) == (1, 4 * num_classes, 2e-3)
    assert (config.schedule, config.weight_decay, config.gradient_clip) == ("constant", 0.01, 0.0)
    assert (config.timestep_range, config.weighting, config.class_offsets) == ((0.0, 1.0), "absolute", False)
    assert row["train_evaluations"] == 2 * 4 * num_classes
    assert row["denoiser_evaluations"] == len(few_shot.test) * (3 * 1 + 2 * 2)  # 3 classes on 1 sample, 2 on 2 more


def test_a_warm_start_is_learned_once(few_shot: FewShotExperiment) -> None:
    gcpl, outcome = few_shot.run("gcpl", 2, 0), few_shot.run("discriminative", 2, 0)
    assert few_shot.run("gcpl", 2, 0) is gcpl is not few_shot.run("gcpl", 1, 0)
    assert outcome.row["train_seconds"] > gcpl.row["train_seconds"]
    np.testing.assert_array_equal(outcome.model.states_[0], gcpl.model.prompts_.vectors.detach())


@pytest.mark.parametrize("method", [*ZERO_SHOT, "linear_probe", "tip_adapter", "gcpl"])
def test_zero_shot_methods_alone_use_no_support_image(
    make_few_shot: Make, few_shot: FewShotExperiment, method: str
) -> None:
    shuffled = few_shot.support.subset(np.random.default_rng(5).permutation(len(few_shot.support)))
    wrong = replace(few_shot.support, labels=np.roll(few_shot.support.labels, 4))
    expected = few_shot.run(method, 2, 0)
    if method not in ZERO_SHOT:
        assert not np.array_equal(make_few_shot(support=wrong).run(method, 2, 0).scores, expected.scores)
        return
    for support in (shuffled, wrong):
        found = make_few_shot(support=support).run(method, 2, 0)
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_alone_and_no_test_label_decides_over_scores_and_probabilities(
    make_few_shot: Make, few_shot: FewShotExperiment, method: str
) -> None:
    expected, again = few_shot.run(method, 2, 0), make_few_shot()
    permuted = replace(few_shot.test, labels=np.random.default_rng(1).permutation(few_shot.test.labels))
    assert not np.array_equal(permuted.labels, few_shot.test.labels)
    again.test = permuted
    found = again.run(method, 2, 0)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    spent = "train_evaluations", "denoiser_evaluations"
    assert [found.row[name] for name in spent] == [expected.row[name] for name in spent]


def test_progress_is_told_of_every_update(make_few_shot: Make) -> None:
    told: list[tuple[str, int, int]] = []
    experiment = make_few_shot()
    experiment.on_step = lambda method, record, total: told.append((method, record.step, total))
    for method in ("tip_adapter_f", "discriminative"):
        experiment.run(method, 2, 0)
    expected = {"tip_adapter_f": 3, "gcpl": 2, "discriminative": 2}
    assert told == [(method, step, total) for method, total in expected.items() for step in range(1, total + 1)]


def test_what_cannot_be_compared_or_run_is_refused(make_few_shot: Make, few_shot: FewShotExperiment) -> None:
    other = replace(few_shot.test, class_names=("bag", "boot", "coat"), families={})
    without = few_shot.test.subset(np.flatnonzero(few_shot.test.labels != 1))
    sets: list[tuple[dict[str, Any], str]] = [
        ({"test": other}, "support has the classes .*shirt.* and test .*coat.*; they must be the same"),
        ({"test": without}, "no test image of boot; add some or leave the class out"),
        ({"classification": "fast"}, "classification is 'fast'; a comparison looks at every class"),
    ]
    for given, message in sets:
        with pytest.raises(DataError, match=message):
            make_few_shot(**given)
    for method in ("linear_probe", "gcpl"):
        with pytest.raises(DataError, match="class 'bag' has 4 [a-z]+, fewer than the 5 shots"):
            few_shot.run(method, 5, 0)
    with pytest.raises(DataError, match="'magic' is no registered method; .* zero_shot_clip, .*discriminative"):
        few_shot.run("magic", 2, 0)
