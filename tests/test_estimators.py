"""The estimator: scikit-learn's manners, files, resumption, and no setting without effect.

The models have random weights, so nothing is asked here about how well it recognises anything.
"""

import functools
import json
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gcpl_lab.gcpl.estimator as estimators
from gcpl_lab import GCPLClassifier
from gcpl_lab.errors import ArtifactError, DataError, ModelError, TrainingError
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import read_json, read_tensors, write_json
from gcpl_lab.training import device as runtime

SMALL: dict[str, Any] = {
    "num_vectors": 2,
    "num_steps": 2,
    "batch_size": 4,
    "discriminative_steps": 2,
    "discriminative_batch_size": 2,
    "num_samples": 2,
    "num_evidence": 2,
}
COARSE = ["top", "shoe", "bag"]


def small(diffusion: object, objective: str = "gcpl", **settings: Any) -> GCPLClassifier:
    return GCPLClassifier(objective=objective, diffusion=diffusion, **(SMALL | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fitted(random_pair: object, pictures: Any) -> GCPLClassifier:
    images, ids = pictures
    return small(random_pair.diffusion).fit(images, np.array(["zebra", "ant", "moth"])[ids])


# ------------------------------------------------------------------------------------------- its manners


def test_classes_are_the_sorted_labels(fitted: GCPLClassifier, pictures: Any) -> None:
    images, ids = pictures
    assert fitted.classes_.tolist() == ["ant", "moth", "zebra"]
    assert fitted.class_names_ == ("ant", "moth", "zebra")
    scores = fitted.decision_function(images)
    assert scores.shape == (12, 3)
    predicted = fitted.predict(images)
    assert predicted.tolist() == [fitted.classes_[index] for index in scores.argmax(1)]
    truth = np.array(["zebra", "ant", "moth"])[ids]
    assert fitted.score(images, truth) == pytest.approx(np.mean(predicted == truth))


def test_probabilities_are_the_scores_at_the_fitted_temperature(fitted: GCPLClassifier, pictures: Any) -> None:
    images, _ = pictures
    chances, scores = fitted.predict_proba(images), fitted.decision_function(images)
    np.testing.assert_allclose(chances.sum(1), 1)
    assert (chances.argmax(1) == scores.argmax(1)).all()
    ratio = np.log(chances[:, 0] / chances[:, 1])
    rounding = 1e-6 * max(1.0, fitted.temperature_)
    np.testing.assert_allclose(ratio, fitted.temperature_ * (scores[:, 0] - scores[:, 1]), rtol=1e-4, atol=rounding)


def test_paths_pictures_and_arrays_are_alike(fitted: GCPLClassifier, pictures: Any, tmp_path: Path) -> None:
    images = pictures[0][::4]
    shown = [Image.fromarray(image) for image in images]
    paths = []
    for index, picture in enumerate(shown):
        picture.save(tmp_path / f"{index}.png")
        paths.append(tmp_path / f"{index}.png")
    expected = fitted.decision_function(images)
    for sources in (shown, paths, [str(path) for path in paths], [images[0], shown[1], paths[2]]):
        assert np.array_equal(fitted.decision_function(sources), expected)


def test_labels_of_any_kind_give_the_same_prompts(diffusion: object, pictures: Any) -> None:
    images, ids = pictures
    names = ["coat", "bag", "shoe"]
    first = small(diffusion).fit(images, ids, names)
    assert first.classes_.tolist() == [0, 1, 2]
    for labels in ((ids + 7).tolist(), np.array(["a", "b", "c"])[ids], ids.astype(float)):
        other = small(diffusion).fit(images, labels, names)
        assert torch.equal(other.prompts_.vectors, first.prompts_.vectors)
        assert other.predict(images[:2]).dtype == np.asarray(labels).dtype


def test_equal_seeds_give_equal_results(diffusion: object, pictures: Any) -> None:
    images, ids = pictures
    first, again = (small(diffusion, "discriminative").fit(images, ids) for _ in range(2))
    assert torch.equal(first.prompts_.vectors, again.prompts_.vectors)
    assert first.temperature_ == again.temperature_
    assert np.array_equal(first.predict_proba(images), again.predict_proba(images))


def test_history_states_and_evaluations_are_kept(diffusion: object, pictures: Any) -> None:
    images, ids = pictures
    model = small(diffusion, "discriminative", num_rivals=1)
    model.journey_every = 1
    before = diffusion.checksum()
    model.fit(images, ids)
    assert [record.step for record in model.history_] == [1, 2, 3, 4]
    assert sorted(model.states_) == [0, 1, 2, 3, 4]
    assert torch.equal(model.states_[4], model.prompts_.vectors.detach())
    assert not torch.equal(model.states_[0], model.states_[2])
    assert "accuracy" in model.history_[2].values
    assert "accuracy" not in model.history_[1].values
    # 2 · 4 for GCPL; 12 pictures · 3 classes · 2 samples for the rivals; 2 · 2 · 2 · 2 candidates afterwards
    assert model.train_evaluations_ == 8 + 72 + 16
    assert diffusion.checksum() == before


def test_a_warm_start_takes_the_place_of_gcpl(diffusion: object, pictures: Any) -> None:
    images, ids = pictures
    gcpl, whole = small(diffusion).fit(images, ids), small(diffusion, "discriminative").fit(images, ids)
    exemplars = estimators.Exemplars.encode(diffusion, diffusion.preprocess(estimators.read_images(images)), ids)
    warm = small(diffusion, "discriminative")
    records = list(warm.learn(exemplars, ["0", "1", "2"], warm_start=gcpl.prompts_.vectors))
    assert [record.step for record in records] == [1, 2]
    assert torch.equal(warm.prompts_.vectors, whole.prompts_.vectors)
    assert torch.equal(warm.states_[0], gcpl.prompts_.vectors.detach())


def test_steps_can_be_left(diffusion: object, pictures: Any, tmp_path: Path) -> None:
    images, ids = pictures
    model = small(diffusion, num_steps=5).fit(images, ids)
    for record in model.steps(images, ids):
        if record.step == 2:
            break
    assert model.predict(images[:2]).shape == (2,)
    for forbidden in (lambda: model.predict_proba(images[:2]), lambda: model.save(tmp_path / "run")):
        with pytest.raises(DataError, match="training was stopped before its end"):
            forbidden()
    assert not (tmp_path / "run").exists()


def test_the_preset_is_loaded_when_it_is_needed(random_pair: object, pictures: Any) -> None:
    model = GCPLClassifier(preset=str(random_pair.folder), **(SMALL | {"num_steps": 0}))
    assert model.diffusion.checksum() == random_pair.diffusion.checksum()
    with pytest.raises(ModelError, match="'sd-3' is neither a preset nor a folder"):
        GCPLClassifier(preset="sd-3").fit(*pictures)


# --------------------------------------------------------------------------------- settings with an effect

WORSENING = {"objective": "comple", "contrast_weight": 5.0, "num_steps": 5, "learning_rate": 0.3}
"""With λ ≥ 1 CoMPLe drives the norm of predictions without end, so the denoising loss grows."""

KINDS: dict[str, dict[str, Any]] = {
    "gcpl": {},
    "comple": {"objective": "comple"},
    "discriminative": {"objective": "discriminative"},
    "validated": {"early_stopping": "validation", "validate_every": 1},
    "worsening": {"early_stopping": "validation", "validate_every": 1, **WORSENING},
    "fast": {"classification": "fast", "num_evidence": 4, "num_folds": 2},
    "folded": {"early_stopping": "cross_validation", "validate_every": 1, "num_folds": 2},
}
"""Runs in which a setting has something to change."""

CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "objective": ("gcpl", {"objective": "comple"}),
    "num_vectors": ("gcpl", {"num_vectors": 3}),
    "initial": ("gcpl", {"initial": "random"}),
    "templates": ("gcpl", {"templates": ("a photo of a {}", "one {}")}),
    "num_steps": ("gcpl", {"num_steps": 3}),
    "batch_size": ("gcpl", {"batch_size": 5}),
    "learning_rate": ("gcpl", {"learning_rate": 0.03}),
    "schedule": ("gcpl", {"schedule": "constant"}),
    "weight_decay": ("gcpl", {"weight_decay": 0.5}),
    "gradient_clip": ("gcpl", {"gradient_clip": 1e-5}),
    "timestep_range": ("gcpl", {"timestep_range": (0.5, 0.9)}),
    "contrast_weight": ("comple", {"contrast_weight": 0.3}),
    "discriminative_steps": ("discriminative", {"discriminative_steps": 3}),
    "discriminative_batch_size": ("discriminative", {"discriminative_batch_size": 3}),
    "num_samples": ("discriminative", {"num_samples": 1}),
    "num_rivals": ("discriminative", {"num_rivals": 1}),
    "discriminative_rate": ("discriminative", {"discriminative_rate": 0.02}),
    "temperature": ("discriminative", {"temperature": 3.0}),
    "gcpl_share": ("discriminative", {"gcpl_share": 0.0}),
    "early_stopping": ("gcpl", {"early_stopping": "validation"}),
    "validation_share": ("validated", {"validation_share": 0.5}),
    "num_folds": ("folded", {"num_folds": 3}),
    "validate_every": ("validated", {"validate_every": 2}),
    "patience": ("worsening", {"patience": 1}),
    "num_evidence": ("gcpl", {"num_evidence": 3}),
    "classification": ("gcpl", {"classification": "fast", "num_folds": 2}),
    "evidence_pool": ("fast", {"evidence_pool": 5}),
    "evidence_batch_size": ("gcpl", {"evidence_batch_size": 5}),
    "evidence_bfloat16": ("gcpl", {"evidence_bfloat16": False}),
    "evidence_sharing": ("gcpl", {"evidence_sharing": False}),
    "weighting": ("gcpl", {"weighting": "relative"}),
    "class_offsets": ("gcpl", {"class_offsets": False}),
    "flip": ("gcpl", {"flip": False}),
    "precision": ("gcpl", {"precision": "bfloat16"}),
    "micro_batch_size": ("gcpl", {"micro_batch_size": 3}),
    "gradient_checkpointing": ("gcpl", {"gradient_checkpointing": True}),
    "seed": ("gcpl", {"seed": 1}),
}
TESTED_BELOW = {"preset", "checkpoint_every", "compile_denoiser", "error_rate", "cache_encodings"}


@pytest.fixture(scope="module")
def outcome(random_pair: object, pictures: Any) -> Any:
    """What a setting may change: the losses, the answers, or the number of passes."""

    @functools.lru_cache
    def run(config: GCPLConfig) -> tuple[Any, ...]:
        images, ids = pictures
        model = GCPLClassifier(diffusion=random_pair.diffusion, **config.as_dict())
        passes = []
        denoiser = random_pair.diffusion.denoiser
        hooks = [
            part.register_forward_pre_hook(lambda *_: passes.append(1))
            for part in (denoiser, denoiser.mid_block.resnets[1])
        ]
        try:
            model.fit(images, ids, ["coat", "bag", "shoe"], coarse_words=COARSE)
            scores = model.decision_function(images[:3])
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(record.loss for record in model.history_), scores.round(7).tobytes(), len(passes)

    return run


def test_every_setting_is_tested() -> None:
    assert CHANGES.keys() | TESTED_BELOW == GCPLConfig().as_dict().keys()


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_changes_something(outcome: Any, name: str) -> None:
    kind, change = CHANGES[name]
    config = replace(GCPLConfig(**SMALL), **KINDS[kind])
    assert outcome(replace(config, **change)) != outcome(config)


def test_coarse_words_are_another_start(outcome: Any) -> None:
    config = GCPLConfig(**SMALL)
    found = {start: outcome(replace(config, initial=start))[0] for start in ("name", "coarse", "random")}
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("change", [{"micro_batch_size": 3}, {"gradient_checkpointing": True}])
def test_how_the_work_is_cut_up_changes_no_result(outcome: Any, change: dict[str, Any]) -> None:
    # In bfloat16 a last digit of the prompts may become the third digit of an error.
    config = GCPLConfig(**SMALL, evidence_bfloat16=False)
    plain, cut = outcome(config), outcome(replace(config, **change))
    assert cut[0] == pytest.approx(plain[0], rel=1e-5)
    scores = [np.frombuffer(values, np.float32) for values in (cut[1], plain[1])]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert cut[2] > plain[2]


@pytest.mark.parametrize("objective", ["gcpl", "discriminative"])
def test_encoding_in_every_update_changes_no_result(
    random_pair: object, pictures: Any, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """What is cached is what the VAE says each time; without the cache it is asked in every update."""
    diffusion, asked = random_pair.diffusion, []
    encode = type(diffusion).encode_moments

    def counted(self: Any, pixels: torch.Tensor, *batch_size: int) -> Any:
        asked.append(len(pixels))
        return encode(self, pixels, *batch_size)

    monkeypatch.setattr(type(diffusion), "encode_moments", counted)
    found = []
    for cache in (True, False):
        asked.clear()
        model = small(
            diffusion, objective=objective, early_stopping="validation", evidence_bfloat16=False, cache_encodings=cache
        ).fit(*pictures)
        assert len(asked) == 2 + (0 if cache else len(model.history_))
        assert asked[:2] == [12, 12]
        found.append((model.prompts_.vectors.detach(), torch.tensor([record.loss for record in model.history_])))
    for cached, anew in zip(*found, strict=True):
        torch.testing.assert_close(cached, anew, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("batch_size", [2, 4, 11])
def test_a_photograph_is_judged_alike_whatever_is_beside_it(
    random_pair: object, pictures: Any, batch_size: int, bfloat16: bool
) -> None:
    """3 classes · 2 samples: no two photographs fit into a pass of up to 11, so not a digit depends on the others."""
    model = small(random_pair.diffusion, evidence_batch_size=batch_size, evidence_bfloat16=bfloat16, num_steps=0)
    latents = model.fit(*pictures).encode(pictures[0])
    together = model.evidence(latents).errors
    for first, last in ((0, 1), (3, 8), (11, 12)):
        np.testing.assert_array_equal(model.evidence(latents[first:last]).errors, together[first:last])


@pytest.mark.parametrize("batch_size", [2, 7, 512])  # with 2, keys of three prompts are not kept
def test_sharing_between_prompts_changes_no_evidence(random_pair: object, pictures: Any, batch_size: int) -> None:
    found, passes = [], []
    block = random_pair.diffusion.denoiser.mid_block.resnets[1]
    for sharing in (True, False):
        model = small(
            random_pair.diffusion,
            evidence_sharing=sharing,
            evidence_batch_size=batch_size,
            evidence_bfloat16=False,
            num_steps=0,
        ).fit(*pictures)
        rows: list[int] = []
        hook = block.register_forward_pre_hook(lambda _module, inputs, rows=rows: rows.append(len(inputs[0])))
        spent = random_pair.diffusion.num_denoiser_evaluations
        found.append(model.evidence(model.encode(pictures[0])))
        hook.remove()
        passes.append(max(rows))
        assert random_pair.diffusion.num_denoiser_evaluations - spent == found[-1].num_evaluations == 12 * 3 * 2
    np.testing.assert_allclose(found[0].errors, found[1].errors, rtol=0, atol=1e-5)
    assert passes == [{2: 2, 7: 6, 512: 72}[batch_size]] * 2  # the memory bound: 3 · 2 for each of 12 photographs


@pytest.mark.parametrize("chosen", ["float32", "bfloat16"])
def test_the_measured_format_is_used_and_kept_with_the_prompts(
    random_pair: object, pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    images, ids = pictures
    calls = []

    def measure(run: Any, repeats: int = 5) -> Any:
        calls.append(run("float32"))
        return estimators.MeasuredFormat(chosen, {"float32": 1.0, "bfloat16": 2.0})

    monkeypatch.setattr(estimators, "_MEASURED", type(estimators._MEASURED)())
    monkeypatch.setattr(estimators, "measure_formats", measure)
    spent = random_pair.diffusion.num_denoiser_evaluations
    model = small(random_pair.diffusion, evidence_bfloat16=None).fit(images, ids)
    assert random_pair.diffusion.num_denoiser_evaluations - spent == 2 * 4 + 12 * 3 * 2  # measuring does not count
    other = small(random_pair.diffusion, evidence_bfloat16=chosen == "bfloat16").fit(images, ids)
    np.testing.assert_array_equal(model.decision_function(images), other.decision_function(images))
    folder = model.save(tmp_path / "run")
    recorded = json.loads((folder / "prompts.json").read_text())["evidence_format"]
    assert recorded == {"chosen": chosen, "seconds": {"float32": 1.0, "bfloat16": 2.0}}
    estimators._MEASURED.clear()  # on another machine
    again = GCPLClassifier.load(folder, random_pair.diffusion)
    np.testing.assert_array_equal(again.decision_function(images), model.decision_function(images))
    assert len(calls) == 1
    assert other.evidence_format_ is None


def test_a_format_is_measured_on_the_model_itself(random_pair: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "_MEASURED", type(estimators._MEASURED)())
    diffusion = random_pair.diffusion
    hidden = diffusion.encode_texts(["coat", "bag"])
    found = estimators.measure_evidence(diffusion, hidden, GCPLConfig(evidence_batch_size=2))
    assert found.chosen in found.seconds
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert estimators.measure_evidence(diffusion, hidden, GCPLConfig()) is found


@pytest.mark.parametrize("chosen", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", ["gcpl", "discriminative"])
def test_training_goes_on_in_the_format_that_was_measured(
    random_pair: object, pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, objective: str
) -> None:
    images, ids = pictures
    calls = []

    def measure(run: Any, repeats: int = 5) -> Any:
        calls.append([run(name) for name in ("float32", "bfloat16")])
        return runtime.MeasuredFormat(chosen, {"float32": 1.0, "bfloat16": 2.0})

    monkeypatch.setattr(runtime, "measure_formats", measure)
    monkeypatch.setattr(runtime, "_TRAINING", type(runtime._TRAINING)())
    settings = {"objective": objective, "discriminative_steps": 2, "evidence_bfloat16": False, "checkpoint_every": 1}
    model = small(random_pair.diffusion, precision="measured", **settings)
    plain = small(random_pair.diffusion, precision="float32", **settings).fit(images, ids)
    records = model.steps(images, ids, checkpoint_folder=tmp_path / "run")
    next(records)
    records.close()  # interrupted; the program that goes on is on a machine that would choose otherwise
    other = "bfloat16" if chosen == "float32" else "float32"
    monkeypatch.setattr(runtime, "measure_formats", lambda *_: runtime.MeasuredFormat(other, {other: 1.0}))  # type: ignore[arg-type]
    monkeypatch.setattr(runtime, "_TRAINING", type(runtime._TRAINING)())
    model = small(random_pair.diffusion, precision="measured", **settings)
    deque(model.steps(images, ids, checkpoint_folder=tmp_path / "run"), maxlen=0)
    assert len(calls) == 1
    assert model.training_format_ == runtime.MeasuredFormat(chosen, {"float32": 1.0, "bfloat16": 2.0})  # type: ignore[arg-type]
    assert model.train_evaluations_ <= plain.train_evaluations_
    same = bool((model.prompts_.vectors == plain.prompts_.vectors).all())
    assert same == (chosen == "float32")
    torch.testing.assert_close(model.prompts_.vectors, plain.prompts_.vectors, rtol=0, atol=0.2)
    recorded = GCPLClassifier.load(model.save(tmp_path / "saved"), random_pair.diffusion)
    assert recorded.training_format_ == model.training_format_


def test_training_in_both_formats_is_really_timed(random_pair: object, pictures: Any, tmp_path: Path) -> None:
    images, ids = pictures
    model = small(random_pair.diffusion, precision="measured").fit(images, ids)
    assert model.training_format_ is not None
    assert all(seconds > 0 for seconds in model.training_format_.seconds.values())
    again = small(random_pair.diffusion, precision="measured").fit(images, ids)
    assert again.training_format_ is model.training_format_  # once a program
    (tmp_path / runtime.TRAINING_FORMAT).write_text("{}")
    with pytest.raises(ArtifactError, match="is damaged"):
        runtime.settle_training_format(None, None, None, tmp_path / runtime.TRAINING_FORMAT)


# ------------------------------------------------------------------------------------------ the fast classifier

FAST: dict[str, Any] = {"classification": "fast", "num_folds": 2, "num_evidence": 4, "evidence_pool": 6}


@pytest.fixture(scope="module")
def fast(random_pair: object, pictures: Any) -> GCPLClassifier:
    images, ids = pictures
    return small(random_pair.diffusion, **FAST).fit(images, np.array(["zebra", "ant", "moth"])[ids])


def test_the_fast_classifier_answers_with_its_plan(fast: GCPLClassifier, pictures: Any) -> None:
    images, _ = pictures
    found = fast.classify(fast.encode(images))
    np.testing.assert_array_equal(fast.decision_function(images), found.logits)
    np.testing.assert_allclose(fast.predict_proba(images), found.probabilities())
    assert fast.predict(images).tolist() == fast.classes_[found.logits.argmax(1)].tolist()
    assert found.num_evaluations == (~np.isnan(found.errors)).sum() <= 12 * 3 * len(fast.fast_.plan_.samples)
    assert fast.evidence(fast.encode(images)).errors.shape == (12, 3, 4)  # complete evidence is still to be had


def test_many_classes_are_probed(random_pair: object) -> None:
    config = GCPLConfig(classification="fast")
    hidden = random_pair.diffusion.encode_texts(["coat"]).expand(estimators.MANY_CLASSES, -1, -1)
    for count, probed in ((estimators.MANY_CLASSES, True), (estimators.MANY_CLASSES - 1, False)):
        made = estimators.make_classifier(random_pair.diffusion, hidden[:count], config, 0)
        assert made.shortcuts.probes == probed


def test_the_plan_is_learned_on_photographs_that_the_prompts_have_not_seen(
    random_pair: object, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every exemplar is judged once, under prompts of the other folds."""
    images, ids = pictures
    learned, judged = [], []
    subset, evidence = estimators.Exemplars.subset, GCPLClassifier._evidence

    def keep_subset(self: Any, chosen: Any) -> Any:
        learned.append(set(np.asarray(chosen).tolist()))
        return subset(self, chosen)

    def keep_evidence(self: GCPLClassifier, latents: torch.Tensor, num_samples: int, seed: int) -> Any:
        judged.append((num_samples, latents))
        return evidence(self, latents, num_samples, seed)

    monkeypatch.setattr(estimators.Exemplars, "subset", keep_subset)
    monkeypatch.setattr(GCPLClassifier, "_evidence", keep_evidence)
    model = small(random_pair.diffusion, **FAST).fit(images, ids)
    assert [len(part) for part in learned] == [6, 6]
    encoded = model.encode(images)
    for inside, (_, latents) in zip(learned, [(n, part) for n, part in judged if n == 6], strict=True):
        outside = sorted(set(range(12)) - inside)
        torch.testing.assert_close(latents, encoded[outside], rtol=0, atol=1e-5)


def test_photographs_to_calibrate_on_spare_the_folds(random_pair: object, pictures: Any) -> None:
    images, ids = pictures
    names = np.array(["zebra", "ant", "moth"])[ids]
    settings = FAST | {"num_folds": 4}  # more than the exemplars of a class
    chosen, rest = np.flatnonzero(np.arange(12) % 4 < 2), np.flatnonzero(np.arange(12) % 4 >= 2)
    model = small(random_pair.diffusion, **settings)
    with pytest.raises(DataError, match="has 2 pictures, fewer than the 4 folds"):
        model.fit([images[i] for i in chosen], names[chosen])
    calibration = [images[i] for i in rest], names[rest]
    spent = random_pair.diffusion.num_denoiser_evaluations
    model.fit([images[i] for i in chosen], names[chosen], calibration=calibration)
    # Two updates of four, temperature on six photographs, and the pool on the other six.
    assert random_pair.diffusion.num_denoiser_evaluations - spent == 2 * 4 + 6 * 3 * 4 + 6 * 3 * 6
    wanted = model._evidence(model.encode(calibration[0]), 6, 0)
    again = model._classifier(0).plan_from(wanted, np.searchsorted(model.classes_, calibration[1])).plan_
    assert model.fast_.plan_.as_dict() == again.as_dict()


def test_the_plan_keeps_to_the_error_rate(random_pair: object, pictures: Any) -> None:
    """Errors that tell the classes apart more and more surely: who may err more, drops classes sooner."""
    labels = np.arange(60) % 3
    rng = np.random.default_rng(0)
    errors = rng.normal(1, 0.1, (60, 3, 6)).astype(np.float32)
    errors[np.arange(60), labels] -= 0.1
    pool, plans = estimators.Evidence(errors, np.arange(6), errors.size), []
    for error_rate in (0.02, 0.4):
        model = small(random_pair.diffusion, **FAST, error_rate=error_rate)
        hidden = random_pair.diffusion.encode_texts(["coat", "bag", "shoe"])
        plans.append(
            estimators.make_classifier(random_pair.diffusion, hidden, model.config, 0).plan_from(pool, labels).plan_
        )
    assert [plan.error_rate for plan in plans] == [0.02, 0.4]
    assert plans[1].margin < plans[0].margin
    assert plans[1].measured["race_evaluations"] < plans[0].measured["race_evaluations"]


def test_photographs_to_calibrate_on_are_checked(random_pair: object, pictures: Any) -> None:
    images, ids = pictures
    with pytest.raises(DataError, match="classification is 'exact', which needs none"):
        small(random_pair.diffusion).fit(images, ids, calibration=(images, ids))
    model = small(random_pair.diffusion, **FAST)
    with pytest.raises(DataError, match="2 pictures and 1 labels to calibrate on"):
        model.fit(images, ids, calibration=(images[:2], ids[:1]))
    with pytest.raises(DataError, match="the labels 7, 9, which are not learned; expected some of 0, 1, 2"):
        model.fit(images, ids, calibration=(images[:2], [9, 7]))


def test_a_saved_plan_answers_the_same(fast: GCPLClassifier, pictures: Any, tmp_path: Path) -> None:
    images, _ = pictures
    folder = fast.save(tmp_path / "run")
    again = GCPLClassifier.load(folder, fast.diffusion)
    assert again.fast_.plan_.as_dict() == fast.fast_.plan_.as_dict()
    np.testing.assert_array_equal(again.predict_proba(images), fast.predict_proba(images))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: plan.update(samples=[0, 6]), "the plan's samples are"),
        (lambda plan: plan.update(scales=[0.0] * len(plan["scales"])), "the plan's scales are"),
        (lambda plan: plan.update(stopping="soon"), "the plan's stopping is 'soon'"),
        (lambda plan: plan["fits"].append(plan["fits"][0]), "fits; expected one for each of its"),
        (lambda plan: plan["fits"][0].update(offsets=[0.0]), "1 weights and 1 offsets; expected 1 and 3"),
        (lambda plan: plan["fits"][0].update(weights=[float("nan")]), "not finite"),
        (lambda plan: plan.pop("margin"), "'margin'"),
    ],
)
def test_a_damaged_plan_is_refused(fast: GCPLClassifier, tmp_path: Path, change: Any, said: str) -> None:
    folder = fast.save(tmp_path / "run")
    metadata = json.loads((folder / "prompts.json").read_text())
    change(metadata["plan"])
    (folder / "prompts.json").write_text(json.dumps(metadata))
    with pytest.raises(ArtifactError, match=f"incomplete or was changed .*{said}"):
        GCPLClassifier.load(folder, fast.diffusion)


def test_an_exact_classifier_has_no_fast_one(fitted: GCPLClassifier, pictures: Any) -> None:
    with pytest.raises(DataError, match="set classification='fast' before fit"):
        fitted.classify(fitted.encode(pictures[0][:1]))


def test_the_denoiser_is_compiled_for_training_alone(
    random_pair: object, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    small(random_pair.diffusion, num_steps=1).fit(*pictures)
    assert compiled == []
    small(random_pair.diffusion, num_steps=1, compile_denoiser=True).fit(*pictures)
    assert compiled == [random_pair.diffusion.denoiser]
    assert random_pair.diffusion.denoiser._compiled_call_impl is None


def test_checkpoints_are_as_frequent_as_asked(diffusion: object, pictures: Any, tmp_path: Path) -> None:
    for every, expected in ((1, [1, 2, 3]), (2, [2, 2, 3])):
        seen = []
        model = small(diffusion, num_steps=3, checkpoint_every=every)
        for _ in model.steps(*pictures, checkpoint_folder=tmp_path / str(every)):
            file = tmp_path / str(every) / "gcpl.checkpoint.safetensors"
            seen.append(json.loads(read_tensors(file)[1]["progress"])["step"] if file.is_file() else 2)
        assert seen == expected


def test_weights_are_loaded_in_the_precision_and_again_from_the_file(
    random_pair: object, pictures: Any, tmp_path: Path
) -> None:
    """The prompts stay float32; whoever reads them gets the weights they were learned on, whatever is preferred."""
    model = GCPLClassifier(preset=str(random_pair.folder), precision="bfloat16", **(SMALL | {"num_steps": 1}))
    model.fit(*pictures)
    assert model.diffusion.dtype is torch.bfloat16
    assert model.prompts_.vectors.dtype is torch.float32
    assert model.prompts_.vectors.grad.dtype is torch.float32
    again = GCPLClassifier.load(model.save(tmp_path))
    assert again.diffusion.dtype is torch.bfloat16
    assert np.array_equal(again.decision_function(pictures[0][:2]), model.decision_function(pictures[0][:2]))


def test_the_pass_size_changes_passes_and_no_answer(outcome: Any) -> None:
    config = GCPLConfig(**SMALL)
    losses, scores, passes = outcome(config)
    bounded = outcome(replace(config, evidence_batch_size=5))
    assert bounded[0] == losses
    assert bounded[2] > passes
    found, expected = (np.frombuffer(values, np.float32) for values in (bounded[1], scores))
    assert len(expected) == 9
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ------------------------------------------------------------------------------------------ early stopping


def test_cross_validation_stops_at_a_validated_step_of_the_whole_schedule(diffusion: object, pictures: Any) -> None:
    images, ids = pictures
    settings = {"num_steps": 5, "validate_every": 2, "num_folds": 2}
    model = small(diffusion, early_stopping="cross_validation", **settings).fit(images, ids)
    assert model.best_step_ in (0, 2, 4, 5)
    assert [record.step for record in model.history_] == list(range(1, model.best_step_ + 1))
    whole = small(diffusion, **settings)
    for record in whole.steps(images, ids):
        if record.step == model.best_step_:
            break
    expected = whole.prompts_.vectors if model.best_step_ else whole.states_[0]
    assert torch.equal(model.prompts_.vectors.detach(), expected.detach())


def test_no_update_at_all_can_be_best(diffusion: object, pictures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images, ids = pictures
    monkeypatch.setattr(GCPLClassifier, "_right_in_fold", lambda *_: {0: 4, 2: 4, 4: 3})
    model = small(diffusion, early_stopping="cross_validation", num_steps=4).fit(images, ids)
    assert (model.best_step_, model.history_, list(model.states_)) == (0, [], [0])
    assert torch.equal(model.prompts_.vectors.detach(), model.states_[0])


def test_a_fold_counts_what_is_told_right_from_the_start_on(diffusion: object, pictures: Any) -> None:
    images, ids = pictures
    model = small(diffusion, num_steps=3, validate_every=2)
    exemplars = estimators.Exemplars.encode(diffusion, diffusion.preprocess(estimators.read_images(images)), ids)
    model._begin(["0", "1", "2"], None, None)
    held = np.array([0, 4, 8])
    right = model._right_in_fold(exemplars, np.setdiff1d(np.arange(12), held), held, None, None)
    assert list(right) == [0, 2, 3]
    latents = diffusion.scale_latents(exemplars.means[0][torch.from_numpy(held)])
    scores = estimators.class_scores(model.evidence(latents).errors, "absolute")
    assert right[0] == int((scores.argmax(1) == ids[held]).sum())


def test_folds_that_are_done_are_not_learned_again(
    diffusion: object, pictures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, ids = pictures
    settings = {"early_stopping": "cross_validation", "num_folds": 3, "num_steps": 2, "validate_every": 1}
    learned: list[int] = []
    original = GCPLClassifier._right_in_fold

    def interrupted(*arguments: Any) -> dict[int, int]:
        if len(learned) == 2:
            raise KeyboardInterrupt
        learned.append(1)
        return original(*arguments)

    monkeypatch.setattr(GCPLClassifier, "_right_in_fold", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small(diffusion, **settings).fit(images, ids, checkpoint_folder=tmp_path)
    monkeypatch.setattr(GCPLClassifier, "_right_in_fold", original)
    whole = small(diffusion, **settings).fit(images, ids)
    spent = diffusion.num_denoiser_evaluations
    resumed = small(diffusion, **settings).fit(images, ids, checkpoint_folder=tmp_path)
    first = diffusion.num_denoiser_evaluations - spent
    assert resumed.best_step_ == whole.best_step_
    assert torch.equal(resumed.prompts_.vectors, whole.prompts_.vectors)
    small(diffusion, **settings).fit(images, ids, checkpoint_folder=tmp_path)
    again = diffusion.num_denoiser_evaluations - spent - first
    assert again < first < whole.train_evaluations_
    with pytest.raises(ArtifactError, match=r"cross_validation\.json: belongs to a run with other settings"):
        small(diffusion, seed=1, **settings).fit(images, ids, checkpoint_folder=tmp_path)


@pytest.mark.parametrize("best", [2, 3])
def test_cross_validation_cuts_both_stages(
    diffusion: object, pictures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, best: int
) -> None:
    monkeypatch.setattr(GCPLClassifier, "_cross_validated_step", lambda *_: best)
    images, ids = pictures
    for steps in (list(range(1, best + 1)), []):  # run, and found finished
        model = small(diffusion, "discriminative", early_stopping="cross_validation")
        assert [record.step for record in model.steps(images, ids, checkpoint_folder=tmp_path)] == steps


def test_held_out_pictures_choose_the_prompts(diffusion: object, pictures: Any) -> None:
    images, ids = pictures
    model = small(diffusion, early_stopping="validation", validate_every=1, **WORSENING)
    model.journey_every = 1
    model.fit(images, ids)
    losses = [record.validation for record in model.history_]
    assert len(losses) == 5
    assert np.argmin(losses) < 4
    assert torch.equal(model.prompts_.vectors.detach(), model.states_[1 + int(np.argmin(losses))])


def test_nothing_can_be_held_out_of_single_pictures(diffusion: object, pictures: Any) -> None:
    images, ids = pictures
    with pytest.raises(DataError, match="at least 2 pictures of every class, the smallest has 1"):
        small(diffusion, early_stopping="validation").fit(images[::4], ids[::4])


# -------------------------------------------------------------------------------------------- interruption


TWO_STAGES = {"num_steps": 4, "discriminative_steps": 4, "num_rivals": 1}


@pytest.fixture(scope="module")
def whole(random_pair: object, pictures: Any) -> GCPLClassifier:
    return small(random_pair.diffusion, "discriminative", **TWO_STAGES).fit(*pictures)


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
def test_a_resumed_fit_equals_an_uninterrupted_one(
    diffusion: object, pictures: Any, whole: GCPLClassifier, tmp_path: Path, stop: int
) -> None:
    """Stopped in GCPL's updates (1, 3), between the two stages (4), and in the discriminative ones (5, 7)."""
    images, ids = pictures
    broken = small(diffusion, "discriminative", checkpoint_every=2, **TWO_STAGES)
    broken.journey_every = 1
    steps = broken.steps(images, ids, checkpoint_folder=tmp_path)
    for record in steps:
        if record.step == stop:
            break
    steps.close()
    resumed = small(diffusion, "discriminative", checkpoint_every=3, **TWO_STAGES)  # how often may change
    resumed.journey_every = 1
    records = list(resumed.steps(images, ids, checkpoint_folder=tmp_path))
    assert torch.equal(resumed.prompts_.vectors, whole.prompts_.vectors)
    assert resumed.temperature_ == whole.temperature_
    assert [record.step for record in records] == list(range(2 * (stop // 2) + 1, 9))
    assert [record.loss for record in records] == [record.loss for record in whole.history_[2 * (stop // 2) :]]
    for key in ("step", "loss", "values", "learning_rate"):
        assert [getattr(r, key) for r in resumed.history_] == [getattr(r, key) for r in whole.history_]
    assert sorted(resumed.states_) == list(range(9))
    assert torch.equal(resumed.states_[8], whole.states_[8])
    assert torch.equal(resumed.states_[4], whole.states_[4])


def test_a_checkpoint_of_other_settings_data_names_or_model_is_refused(
    diffusion: object, pictures: Any, tmp_path: Path
) -> None:
    images, ids = pictures
    small(diffusion).fit(images, ids, checkpoint_folder=tmp_path)
    denoiser = next(diffusion.denoiser.parameters())
    with pytest.raises(ArtifactError, match=r"gcpl\.checkpoint\.safetensors: belongs to a run with other"):
        small(diffusion, seed=1).fit(images, ids, checkpoint_folder=tmp_path)
    with pytest.raises(ArtifactError, match="belongs to a run with other"):
        small(diffusion).fit(images[::-1], ids, checkpoint_folder=tmp_path)
    with pytest.raises(ArtifactError, match="belongs to a run with other"):
        small(diffusion).fit(images, ids, ["coat", "bag", "shoe"], checkpoint_folder=tmp_path)
    kept = denoiser.detach().clone()
    try:
        with torch.no_grad():
            denoiser.view(-1)[0] += 1e-3
        with pytest.raises(ArtifactError, match="belongs to a run with other"):
            small(diffusion).fit(images, ids, checkpoint_folder=tmp_path)
    finally:
        with torch.no_grad():
            denoiser.copy_(kept)


def test_a_loss_that_is_not_finite_keeps_the_last_good_prompts(diffusion: object, pictures: Any) -> None:
    images, ids = pictures
    model = small(diffusion, num_steps=6)
    steps = model.steps(images, ids)
    next(steps), next(steps)
    good = model.prompts_.vectors.detach().clone()
    hook = diffusion.denoiser.register_forward_hook(lambda _module, _inputs, output: (output[0] * np.nan,))
    try:
        with pytest.raises(TrainingError, match="step 3: the loss"):
            next(steps)
    finally:
        hook.remove()
    assert torch.equal(model.prompts_.vectors.detach(), good)


# --------------------------------------------------------------------------------------------------- files


def test_save_and_load(fitted: GCPLClassifier, diffusion: object, pictures: Any, tmp_path: Path) -> None:
    fitted.save(tmp_path / "run")
    loaded = GCPLClassifier.load(tmp_path / "run", diffusion=diffusion)
    images = pictures[0]
    assert loaded.config == fitted.config
    assert loaded.class_names_ == fitted.class_names_
    assert np.array_equal(loaded.predict(images), fitted.predict(images))
    assert np.array_equal(loaded.predict_proba(images), fitted.predict_proba(images))
    again = loaded.save(tmp_path / "again")
    assert read_json(again / "prompts.json") == read_json(tmp_path / "run" / "prompts.json")
    assert sum(path.stat().st_size for path in again.iterdir()) < 10_000  # never the frozen model


def test_whole_number_labels_stay_whole_numbers(diffusion: object, pictures: Any, tmp_path: Path) -> None:
    images, ids = pictures
    model = small(diffusion).fit(images, ids + 5, ["coat", "bag", "長靴"])
    loaded = GCPLClassifier.load(model.save(tmp_path), diffusion=diffusion)
    assert loaded.predict(images[:2]).dtype == (ids + 5).dtype
    assert loaded.classes_.tolist() == [5, 6, 7]


def test_prompts_of_other_frozen_weights_are_refused(
    fitted: GCPLClassifier, random_pair: object, tmp_path: Path
) -> None:
    fitted.save(tmp_path)
    other = FrozenDiffusion.load(str(random_pair.folder))
    with torch.no_grad():
        next(other.denoiser.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ArtifactError, match="learned on other frozen weights than those of"):
        GCPLClassifier.load(tmp_path, diffusion=other)


@pytest.mark.parametrize("missing", ["config", "class_names", "classes", "temperature", "diffusion"])
def test_incomplete_metadata_is_named(fitted: GCPLClassifier, diffusion: object, tmp_path: Path, missing: str) -> None:
    fitted.save(tmp_path)
    metadata = read_json(tmp_path / "prompts.json")
    del metadata[missing]
    write_json(tmp_path / "prompts.json", metadata)
    with pytest.raises(ArtifactError):
        GCPLClassifier.load(tmp_path, diffusion=diffusion)


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0] * 12, None, "all 12 pictures have the label 0; expected at least two classes"),
        ([0, 1] * 5, None, "12 pictures and 10 labels"),
        ([0, 1] * 6, ["coat"], "class_names has 1 names for 2 classes"),
        ([0, 1] * 6, ["coat", ""], "class name 1 is ''"),
        ([0, 1] * 6, ["coat", " \t"], "class name 1 is ' .t'"),
        ([0, 1] * 6, ["coat", "coat"], "class name 1 is 'coat', as is class name 0"),
        ([[0], [1]] * 6, None, r"labels have shape \(12, 1\)"),
    ],
)
def test_labels_that_do_not_fit_are_named(
    diffusion: object, pictures: Any, labels: Any, names: list[str] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        small(diffusion).fit(pictures[0], labels, names)


def test_no_pictures_and_unreadable_pictures_are_named(diffusion: object, pictures: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures were given"):
        small(diffusion).fit([], [])
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: is empty"):
        small(diffusion).fit([*pictures[0][:11], tmp_path / "empty.png"], pictures[1])


def test_coarse_words_are_asked_for(diffusion: object, pictures: Any) -> None:
    with pytest.raises(DataError, match="one coarse word a class"):
        small(diffusion, initial="coarse").fit(*pictures)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_nothing_is_answered_before_fit(diffusion: object, pictures: Any, method: str) -> None:
    with pytest.raises(DataError, match="has learned nothing yet"):
        getattr(small(diffusion), method)(pictures[0])


def test_nothing_is_saved_before_fit(diffusion: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has learned nothing yet"):
        small(diffusion).save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_score_needs_one_label_a_picture(fitted: GCPLClassifier, pictures: Any) -> None:
    with pytest.raises(DataError, match="12 pictures and 3 labels"):
        fitted.score(pictures[0], [0, 1, 2])


@pytest.mark.parametrize("name", ["長靴", "Größe 42", "coat " * 300])
def test_any_name_can_be_learned(diffusion: object, pictures: Any, name: str) -> None:
    images, ids = pictures
    model = small(diffusion).fit(images, ids, ["coat", "bag", name])
    assert np.isfinite(model.predict_proba(images[:2])).all()


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("most", [5, 0])
def test_classifying_makes_smaller_passes_where_memory_runs_out(
    fitted: GCPLClassifier, pictures: Any, most: int, tmp_path: Path
) -> None:
    """A device whose memory ends at ``most`` evaluations in a pass."""
    model = GCPLClassifier.load(fitted.save(tmp_path), fitted.diffusion)
    latents, sizes = model.encode(pictures[0]), list[int]()
    expected = model.evidence(latents).errors

    def run_out(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = fitted.diffusion.denoiser.register_forward_pre_hook(run_out)
    try:
        if most:
            np.testing.assert_allclose(model.evidence(latents).errors, expected, rtol=1e-2)  # bfloat16 rounds
            assert max(sizes[-3:]) <= most < sizes[0]
        else:
            with pytest.raises(TrainingError, match="memory ran out with a single piece.*'bfloat16', or free the"):
                model.evidence(latents)
    finally:
        handle.remove()
