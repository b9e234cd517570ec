"""Every method on the same photographs: right shapes, honest costs, and nothing seen that must not be seen.

The models have random weights; how well a method recognises anything is measured elsewhere.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import gcpl_lab.experiments.few_shot as experiments
from gcpl_lab.baselines.pixels import PixelForest
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.errors import DataError
from gcpl_lab.experiments.few_shot import GENERATIVE_METHODS, METHOD_TITLES, METHODS, FewShotExperiment
from gcpl_lab.gcpl.classifier import class_scores, fit_reading

ZERO_SHOT = ("zero_shot_clip", "zero_shot_clip_ensemble", "zero_shot_diffusion")
PROMISED = {
    "name",
    "seed",
    "accuracy",
    "accuracy_within_family",
    "denoiser_evaluations",
    "train_seconds",
    "predict_seconds",
}
TIMES = ("train_seconds", "predict_seconds")

Make = Callable[..., FewShotExperiment]


@pytest.fixture(autouse=True)
def short_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADAPTER_TRAINING", "TIP_ADAPTER_TRAINING", "NETWORK_TRAINING"):
        monkeypatch.setattr(experiments, name, replace(getattr(experiments, name), num_steps=3))
    monkeypatch.setattr(experiments, "PUBLISHED_SETTINGS", {**experiments.PUBLISHED_SETTINGS, "num_steps": 2})
    monkeypatch.setattr(experiments, "PUBLISHED_STAGES", ((2, 1), (1, 3)))
    monkeypatch.setattr(PixelForest, "NUM_TREES", 5)


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMES}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_for_every_test_picture(few_shot: FewShotExperiment, method: str) -> None:
    outcome = few_shot.run(method, 2, 0)
    shape = (len(few_shot.test), 3)
    assert outcome.scores.shape == outcome.probabilities.shape == shape
    assert np.isfinite(outcome.scores).all()
    np.testing.assert_allclose(outcome.probabilities.sum(1), 1, rtol=1e-6)
    assert outcome.row.keys() >= PROMISED
    assert outcome.row["name"] == outcome.method == method
    assert outcome.row["accuracy"] == pytest.approx((outcome.scores.argmax(1) == few_shot.test.labels).mean())
    assert outcome.shots == outcome.row["shots"] == (0 if method in ZERO_SHOT else 2)
    assert (outcome.model is not None) == (method in GENERATIVE_METHODS)
    diffusion = (*GENERATIVE_METHODS, "zero_shot_diffusion", "diffusion_offsets")
    assert (outcome.evidence is not None) == (method in diffusion)
    assert all(outcome.row[name] >= 0 for name in TIMES)


def test_every_method_has_a_title() -> None:
    assert list(METHOD_TITLES) == list(METHODS)
    assert len(set(METHOD_TITLES.values())) == len(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_numbers(make_few_shot: Make, few_shot: FewShotExperiment, method: str) -> None:
    first, again = few_shot.run(method, 2, 3), make_few_shot().run(method, 2, 3)
    assert without_times(first.row) == without_times(again.row)
    np.testing.assert_array_equal(first.scores, again.scores)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ZERO_SHOT])
def test_another_seed_learns_from_other_photographs(few_shot: FewShotExperiment, method: str) -> None:
    assert set(draw_episode(few_shot.support, 2, 0)) != set(draw_episode(few_shot.support, 2, 1))
    assert not np.array_equal(few_shot.run(method, 2, 0).scores, few_shot.run(method, 2, 1).scores)


def test_evaluations_are_counted(few_shot: FewShotExperiment) -> None:
    """Settings of the fixture: 2 updates of 4; 2 discriminative ones of 2 photographs × 2 (t, ε) × 3 prompts."""
    rows = {name: few_shot.run(name, 2, 0).row for name in ("zero_shot_diffusion", "linear_probe", *GENERATIVE_METHODS)}
    of_test = len(few_shot.test) * 3 * 2
    assert rows["zero_shot_diffusion"]["denoiser_evaluations"] == of_test
    assert rows["gcpl"]["denoiser_evaluations"] == rows["discriminative"]["denoiser_evaluations"] == of_test
    assert rows["linear_probe"]["denoiser_evaluations"] == rows["linear_probe"]["train_evaluations"] == 0
    assert rows["zero_shot_diffusion"]["train_evaluations"] == 0
    assert rows["gcpl"]["train_evaluations"] == rows["comple"]["train_evaluations"] == 2 * 4


def test_offsets_alone_move_every_score_of_a_class_by_one_number(make_few_shot: Make) -> None:
    few_shot = make_few_shot(weighting="relative")  # else exemplars choose it, and names have the pool's
    names, offsets = few_shot.run("zero_shot_diffusion", 2, 0), few_shot.run("diffusion_offsets", 2, 0)
    moved = offsets.scores - names.scores
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-6)
    assert np.abs(moved[0]).max() > 0
    assert moved[0].mean() == pytest.approx(0, abs=1e-6)
    assert offsets.row["train_evaluations"] == 2 * 3 * 3 * 2  # support photographs × prompts × (t, ε)


def test_names_have_the_weighting_of_the_pool_and_offsets_the_one_of_their_exemplars(
    make_few_shot: Make, few_shot: FewShotExperiment
) -> None:
    names = few_shot.run("zero_shot_diffusion", 2, 0)
    assert names.evidence is not None
    assert names.row["weighting"] == "relative"
    np.testing.assert_array_equal(names.scores, class_scores(names.evidence.errors, "relative"))
    assert few_shot.run("diffusion_offsets", 2, 0).row["weighting"] in ("relative", "absolute")
    asked = make_few_shot(weighting="absolute")
    for method in ("zero_shot_diffusion", "diffusion_offsets"):
        assert asked.run(method, 2, 0).row["weighting"] == "absolute"


@pytest.mark.parametrize("method", ["gcpl", "diffusion_offsets"])
def test_readings_are_what_each_choice_would_have_given(few_shot: FewShotExperiment, method: str) -> None:
    outcome = few_shot.run(method, 2, 0)
    assert outcome.evidence is not None
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
    seen: list[Any] = []
    real = experiments.GCPLClassifier.learn

    def spy(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append((self.config, options))
        return real(self, *arguments, **options)

    monkeypatch.setattr(experiments.GCPLClassifier, "learn", spy)
    row = few_shot.run("gcpl_published", 2, 0).row
    (config, options), num_classes = seen[0], 3
    assert options["coarse_words"] == ["object"] * num_classes
    assert (config.num_vectors, config.batch_size, config.learning_rate) == (1, 4 * num_classes, 2e-3)
    assert (config.schedule, config.weight_decay, config.gradient_clip) == ("constant", 0.01, 0.0)
    assert (config.timestep_range, config.weighting, config.class_offsets) == ((0.0, 1.0), "absolute", False)
    assert row["train_evaluations"] == 2 * 4 * num_classes
    assert row["denoiser_evaluations"] == len(few_shot.test) * (3 * 1 + 2 * 2)  # 3 classes on 1 sample, 2 on 2 more


def test_tip_adapter_f_is_trained_as_its_authors_do(make_few_shot: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    config = experiments.TIP_ADAPTER_TRAINING
    assert (config.num_steps, config.learning_rate, config.epsilon) == (20, 1e-3, 1e-4)
    assert (config.optimizer, config.schedule, config.weight_decay) == ("adamw", "cosine", 0.01)
    trained: list[int] = []
    real = experiments.train

    def spy(objective: Any, batches: Any, used: Any) -> Any:
        trained.append(used.num_steps)
        assert len(batches(0)[0]) == len(objective.keys)  # one batch an epoch: few photographs
        return real(objective, batches, used)

    monkeypatch.setattr(experiments, "train", spy)
    make_few_shot().run("tip_adapter_f", 4, 0)
    assert trained == [20] * (4 + 1)  # four folds for weight and sharpness, then all exemplars


def test_the_discriminative_objective_pays_for_its_warm_start(few_shot: FewShotExperiment) -> None:
    gcpl, outcome = few_shot.run("gcpl", 2, 0), few_shot.run("discriminative", 2, 0)
    assert outcome.model is not None
    assert gcpl.model is not None
    own = outcome.model.train_evaluations_
    assert own == 2 * 2 * 2 * 3
    assert outcome.row["train_evaluations"] == own + gcpl.row["train_evaluations"]
    assert outcome.row["train_seconds"] > gcpl.row["train_seconds"]
    np.testing.assert_array_equal(outcome.model.states_[0], gcpl.model.prompts_.vectors.detach())


def test_gcpl_is_learned_once_for_itself_and_for_the_warm_start(few_shot: FewShotExperiment) -> None:
    assert few_shot.run("gcpl", 2, 0) is few_shot.run("gcpl", 2, 0)
    assert few_shot.run("gcpl", 2, 0) is not few_shot.run("gcpl", 1, 0)


@pytest.mark.parametrize("method", ZERO_SHOT)
def test_zero_shot_methods_use_no_support_photograph(
    make_few_shot: Make, few_shot: FewShotExperiment, method: str
) -> None:
    shuffled = few_shot.support.subset(np.random.default_rng(5).permutation(len(few_shot.support)))
    wrong = replace(few_shot.support, labels=np.roll(few_shot.support.labels, 4))
    for support in (shuffled, wrong):
        found = make_few_shot(support=support).run(method, 2, 0)
        np.testing.assert_array_equal(found.scores, few_shot.run(method, 2, 0).scores)
        np.testing.assert_array_equal(found.probabilities, few_shot.run(method, 2, 0).probabilities)


@pytest.mark.parametrize("method", ["linear_probe", "tip_adapter", "gcpl"])
def test_the_probe_of_the_test_above_sees_wrong_labels(
    make_few_shot: Make, few_shot: FewShotExperiment, method: str
) -> None:
    """Methods that learn do answer otherwise when the support labels are wrong."""
    wrong = replace(few_shot.support, labels=np.roll(few_shot.support.labels, 4))
    assert not np.array_equal(make_few_shot(support=wrong).run(method, 2, 0).scores, few_shot.run(method, 2, 0).scores)


@pytest.mark.parametrize("method", METHODS)
def test_test_labels_change_no_score_and_no_probability(
    make_few_shot: Make, few_shot: FewShotExperiment, method: str
) -> None:
    permuted = replace(few_shot.test, labels=np.random.default_rng(1).permutation(few_shot.test.labels))
    assert not np.array_equal(permuted.labels, few_shot.test.labels)
    found, expected = make_few_shot(test=permuted).run(method, 2, 0), few_shot.run(method, 2, 0)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_progress_is_told_of_every_update(make_few_shot: Make) -> None:
    told: list[tuple[str, int, int]] = []
    experiment = make_few_shot()
    experiment.on_step = lambda method, record, total: told.append((method, record.step, total))
    for method in ("tip_adapter_f", "discriminative"):
        experiment.run(method, 2, 0)
    assert told == [
        ("tip_adapter_f", 1, 3),
        ("tip_adapter_f", 2, 3),
        ("tip_adapter_f", 3, 3),
        ("gcpl", 1, 2),
        ("gcpl", 2, 2),
        ("discriminative", 1, 2),
        ("discriminative", 2, 2),
    ]


def test_class_lists_that_differ_are_refused(make_few_shot: Make, few_shot: FewShotExperiment) -> None:
    other = replace(few_shot.test, class_names=("bag", "boot", "coat"), families={})
    with pytest.raises(DataError, match="support has the classes .*shirt.* and test .*coat.*; they must be the same"):
        make_few_shot(test=other)


def test_a_class_without_a_test_picture_is_named(make_few_shot: Make, few_shot: FewShotExperiment) -> None:
    without = few_shot.test.subset(np.flatnonzero(few_shot.test.labels != 1))
    with pytest.raises(DataError, match="no test picture of boot; add some or leave the class out"):
        make_few_shot(test=without)


def test_more_shots_than_pictures_are_refused_by_name(few_shot: FewShotExperiment) -> None:
    for method in ("linear_probe", "gcpl"):
        with pytest.raises(DataError, match="class 'bag' has 4 pictures, fewer than the 5 shots"):
            few_shot.run(method, 5, 0)


def test_an_unknown_method_is_refused_with_a_list(few_shot: FewShotExperiment) -> None:
    with pytest.raises(ValueError, match="'magic' is no method; expected one of zero_shot_clip, .*discriminative"):
        few_shot.run("magic", 2, 0)


def test_comparisons_look_at_complete_evidence(few_shot: FewShotExperiment) -> None:
    with pytest.raises(DataError, match="classification is 'fast'; a comparison looks at every class"):
        FewShotExperiment(few_shot.support, few_shot.test, settings={"classification": "fast"})
