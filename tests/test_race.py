"""The race: by hand on small tables, learned on errors of a known law, and inside the estimator."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from gcpl_lab import GCPLClassifier
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation.calibration import FittedLogits
from gcpl_lab.fast.race import COVERAGE, Plan, Race, choose_samples, learn_plan, run_race, shortlisted
from gcpl_lab.gcpl.classifier import DiffusionClassifier
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.storage import read_checked
from tests.made_up import CLEAN, randn

NUM_CLASSES = len(CLEAN)
TELLING = (3, 7, 9, 12)
"""Samples of the drawn errors that tell anything."""


def draw(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors (image, class, 16): in the telling samples lower for the true class, elsewhere noise."""
    rng, labels = np.random.default_rng(seed), np.arange(num_images) % NUM_CLASSES
    errors = rng.normal(10, 1, (num_images, NUM_CLASSES, 16)) * np.linspace(0.5, 2, 16)
    for sample in TELLING:
        errors[np.arange(num_images), labels, sample] -= 1.8 * np.linspace(0.5, 2, 16)[sample]
    return errors.astype(np.float32), labels


def clip_scores(labels: np.ndarray, seed: int) -> np.ndarray:
    """Logits that know the class most of the time."""
    return np.random.default_rng(seed).normal(0, 1, (len(labels), NUM_CLASSES)) + 2 * np.eye(NUM_CLASSES)[labels]


class Table:
    """A classifier whose errors (image, class, pool) are written down; latents are numbers of images."""

    seed, num_classes = 0, NUM_CLASSES

    def __init__(self, table: np.ndarray) -> None:
        self.table = torch.from_numpy(table)

    def samples(self, num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.arange(num_samples), torch.arange(num_samples)

    def errors(self, triples: torch.Tensor, latents: torch.Tensor, timesteps: Any, noises: Any) -> torch.Tensor:
        assert len(triples.unique(dim=0)) == len(triples)  # nothing is asked twice
        return self.table[latents[triples[:, 0]], triples[:, 1], timesteps[triples[:, 2]]]


def race(plan: Plan, errors: np.ndarray, scores: np.ndarray | None = None) -> Any:
    runner = Race(Table(errors), pool_size=errors.shape[2])  # type: ignore[arg-type]
    runner.plan_ = plan
    found = runner.classify(torch.arange(len(errors)), scores)
    assert found.num_evaluations == (~np.isnan(found.errors)).sum()
    return found


LOGITS = np.array([[[0.0, 0.0, 0.0]], [[-2.0, -4.0, -8.0]], [[-3.0, -3.5, -13.0]]])
"""(step, image, class): before anything was looked at, and after one and two steps."""


@pytest.mark.parametrize(
    ("prior", "margins", "logits", "asked"),
    [
        ([0, 0, 0], (np.inf,), [-3.0, -3.5, -13.0], [3, 3]),
        # After a step the last class is 6 behind: with a margin of 3 it goes, and stays 6 behind the winner.
        ([0, 0, 0], (3.0,), [-3.0, -3.5, -9.0], [3, 2]),
        # With a margin of 1 one class is left after the first step, and nothing more is looked at.
        ([0, 0, 0], (1.0,), [-2.0, -4.0, -8.0], [3]),
        # Prior logits 0, -1, -5: within 2 two classes run, and the third stays 5 behind.
        ([0, -1, -5], (np.inf, 2.0), [-3.0, -4.5, -8.0], [2, 2]),
        # Within 0.5 it is decided without looking.
        ([0, -1, -5], (np.inf, 0.5), [0.0, -1.0, -5.0], []),
    ],
)
def test_a_race_by_hand(prior: list[float], margins: Any, logits: list[float], asked: list[int]) -> None:
    table, running_classes = LOGITS + np.array(prior), list[int]()

    def logits_after(step: int, running: np.ndarray) -> np.ndarray:
        running_classes.append(int(running.sum()))
        return np.where(running, table[step], np.nan)  # nothing is known of the others

    found, spent = run_race(table[0], logits_after, 2, *margins)
    np.testing.assert_allclose(found, [logits])
    assert running_classes == asked
    assert spent.tolist() == [sum(asked)]


def test_the_logits_of_a_plan_by_hand() -> None:
    """Two steps, errors divided by 1 and 2; logits = 2 · (minus their mean) + prior."""
    both, known = (FittedLogits(np.array(weights), np.zeros(3), 1.0, 0.0) for weights in ([2.0, 1.0], [3.0]))
    plan = Plan(np.arange(2), np.array([1.0, 2.0]), (both, both), known, np.inf, np.inf, 1.0, {})
    errors, prior = np.array([[[1.0, 4.0], [2.0, 3.0], [4.0, np.nan]]]), np.array([[0.0, -1.0, -5.0]])
    np.testing.assert_allclose(plan.logits(errors, prior, 0), 3 * prior)
    np.testing.assert_allclose(plan.logits(errors, prior, 1), [[-2.0, -5.0, -13.0]])
    np.testing.assert_allclose(plan.logits(errors, prior, 2), [[-3.0, -4.5, np.nan]])
    with pytest.raises(DataError, match="CLIP's scores are missing"):
        plan.logits(errors, None, 0)


@functools.cache
def learned(error_rate: float = 0.02, with_clip: bool = False) -> Plan:
    errors, labels = draw(240, 0)
    prior = log_softmax(clip_scores(labels, 2), axis=1) if with_clip else None
    return learn_plan(errors, labels, prior=prior, error_rate=error_rate)


UNSEEN, TRUTH = draw(600, 1)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_a_learned_race_saves_and_keeps_its_error_rate(rate: float) -> None:
    plan = learned(rate)
    full, found = race(replace(plan, margin=np.inf), UNSEEN), race(plan, UNSEEN)
    right, still = full.logits.argmax(1) == TRUTH, found.logits.argmax(1) == TRUTH
    assert right.mean() > 0.85
    assert (right & ~still).mean() <= rate + 0.02
    assert still.mean() > right.mean() - rate - 0.02
    assert found.num_evaluations < 0.7 * full.num_evaluations
    assert plan.measured["race_evaluations"] == pytest.approx(found.num_evaluations / 600, rel=0.1)
    assert plan.measured["race_accuracy"] == pytest.approx(still.mean(), abs=0.05)


def test_who_may_err_more_drops_classes_sooner_and_seeds_repeat() -> None:
    assert learned(0.1).margin < learned(0.01).margin
    assert learned(0.1).measured["race_evaluations"] < learned(0.01).measured["race_evaluations"]
    assert learn_plan(*draw(240, 0), error_rate=0.1).as_dict() == learned(0.1).as_dict()
    assert sorted(choose_samples(*draw(120, 0), 4).tolist()) == sorted(TELLING)  # what tells most comes first


def test_the_temperature_makes_early_answers_as_sure_as_they_are_right() -> None:
    plan, rows = learned(0.1), np.arange(600)
    fitted = race(plan, UNSEEN).logits
    assert softmax(fitted, axis=1).max(1).mean() == pytest.approx((fitted.argmax(1) == TRUTH).mean(), abs=0.05)
    for factor in (0.5, 2.0):
        other = race(replace(plan, temperature=factor * plan.temperature), UNSEEN).logits
        np.testing.assert_allclose(other, factor * fitted)
        assert log_softmax(fitted, axis=1)[rows, TRUTH].mean() > log_softmax(other, axis=1)[rows, TRUTH].mean()


def test_the_shortlist_keeps_the_true_class_and_saves() -> None:
    plan, scores = learned(with_clip=True), clip_scores(TRUTH, 3)
    listed = shortlisted(plan.logits(UNSEEN, log_softmax(scores, axis=1), 0), plan.shortlist_margin)
    assert listed[np.arange(600), TRUTH].mean() >= COVERAGE - 0.04
    assert listed.sum(1).mean() < 0.9 * NUM_CLASSES
    without = race(replace(plan, shortlist_margin=np.inf), UNSEEN, scores)
    assert race(plan, UNSEEN, scores).num_evaluations < without.num_evaluations
    assert learned().shortlist_margin == np.inf


def test_wrong_answers_cost_no_evaluations() -> None:
    """Half of the images show nothing of their class: whom they end with decides no margin."""
    errors, labels = draw(240, 0)
    errors[::2] = np.random.default_rng(3).normal(errors.mean(axis=(0, 1)), 1, errors[::2].shape)
    plan = learn_plan(errors, labels)
    assert plan.measured["held_out_accuracy"] - plan.measured["race_accuracy"] <= 0.02 + 1e-9
    assert plan.margin < np.inf
    few = learn_plan(*draw(NUM_CLASSES, 0), max_steps=3)  # one image a class is enough to run
    assert race(few, UNSEEN[:12]).logits.shape == (12, NUM_CLASSES)


@pytest.mark.parametrize("with_clip", [False, True])
def test_a_plan_goes_to_json_and_back(with_clip: bool) -> None:
    plan, scores = learned(with_clip=with_clip), clip_scores(TRUTH, 8)
    scores, wrong = (scores, None) if with_clip else (None, scores)
    for one in (plan, replace(plan, margin=np.inf, shortlist_margin=np.inf)):
        again = Plan.from_dict(json.loads(json.dumps(one.as_dict(), allow_nan=False)), NUM_CLASSES, 16)
        np.testing.assert_array_equal(race(again, UNSEEN, scores).logits, race(one, UNSEEN, scores).logits)
        assert again.as_dict() == one.as_dict()
    with pytest.raises(DataError, match=f"scores are {'missing' if with_clip else 'given'}; the plan was learned the"):
        race(plan, UNSEEN, wrong)


ANOTHER_FIT = FittedLogits(np.ones(1), np.zeros(NUM_CLASSES), 1.0, 0.0).as_dict()


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ({"samples": [0, 16]}, "the plan's samples are .*; expected different ones of 0 to 15"),
        ({"scales": [0.0]}, "the plan's scales are"),
        ({"fits": []}, "the plan has 0 fits; expected one for each of its"),
        ({"prior_fit": ANOTHER_FIT}, "1 weights and 6 offsets; expected 2 and 6"),
        ({"tree": {"branches": [0]}}, "shortcuts that this version no longer has"),
        ({"probes": {"classes": [0]}}, "shortcuts that this version no longer has"),
        ({"stopping": "e_process"}, "shortcuts that this version no longer has"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(flaw: dict[str, Any], said: str) -> None:
    """Also one of an earlier version with what has gone; one without that is read."""
    written = learned().as_dict() | {"stopping": "posterior", "tree": None, "probes": None}
    assert Plan.from_dict(written, NUM_CLASSES, 16).as_dict() == learned().as_dict()
    with pytest.raises(ValueError, match=said):
        Plan.from_dict(written | flaw, NUM_CLASSES, 16)
    with pytest.raises(ValueError, match="1 weights and 6 offsets; expected 1 and 4"):
        Plan.from_dict(written, 4, 16)


def latents_of(num: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Noisy copies of the classes' clean latents, and their labels."""
    labels = np.arange(num) % NUM_CLASSES
    return CLEAN[torch.from_numpy(labels)] + 0.9 * randn(num, 2, 4, 4, seed=seed), labels


@pytest.mark.parametrize("with_clip", [False, True])
def test_a_calibrated_race_is_right_and_counts_what_it_looks_at(known_diffusion: Any, with_clip: bool) -> None:
    model = known_diffusion()
    runner = Race(DiffusionClassifier(model, CLEAN.flatten(1)[:, None]), pool_size=6)
    (support, known), (latents, labels) = latents_of(36, 1), latents_of(24, 2)
    scores = [3 * clip_scores(some, 3) if with_clip else None for some in (known, labels)]
    runner.plan_from(runner.classifier.exact(support, 6).errors, known, scores[0])
    assert model.num_denoiser_evaluations == 36 * NUM_CLASSES * 6
    found = runner.classify(latents, scores[1])
    assert (found.logits.argmax(1) == labels).mean() > 0.9
    assert found.num_evaluations == model.num_denoiser_evaluations - 36 * NUM_CLASSES * 6
    assert found.num_evaluations == (~np.isnan(found.errors)).sum() < 24 * NUM_CLASSES * 6
    exact, chosen = runner.classifier.exact(latents, 6), runner.plan_.samples  # type: ignore[union-attr]
    assert found.timesteps.tolist() == exact.timesteps[chosen].tolist()
    seen = ~np.isnan(found.errors)
    np.testing.assert_allclose(found.errors[seen], exact.errors[:, :, chosen][seen], rtol=1e-5)
    alone = [runner.classify(latents[i : i + 1], None if scores[1] is None else scores[1][i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(np.concatenate([one.logits for one in alone]), found.logits[:4], rtol=1e-4, atol=1e-4)


def test_a_race_says_what_is_missing_or_wrong(known_diffusion: Any) -> None:
    classifier = DiffusionClassifier(known_diffusion(), CLEAN.flatten(1)[:, None])
    runner, (latents, labels) = Race(classifier), latents_of(12, 1)
    with pytest.raises(DataError, match="has no plan; call plan_from"):
        runner.classify(latents)
    with pytest.raises(DataError, match=r"shape \(12, 5\); expected \(12, 6\)"):
        runner.plan_from(np.ones((12, 6, 4)), labels, np.zeros((12, 5)))
    for name, value in (("pool_size", 0), ("max_steps", 0), ("error_rate", 0.0), ("error_rate", 1.0)):
        with pytest.raises(ValueError, match=f"{name} (is )?{value}"):
            Race(classifier, **{name: value})


SETTINGS: dict[str, Any] = {"num_vectors": 2, "num_steps": 2, "batch_size": 4, "num_evidence": 4, "evidence_pool": 6}
SETTINGS |= {"classification": "fast", "num_folds": 2}

LEARNED = np.array([0, 1, 4, 5, 8, 9])
"""Two images of each class; the other two are two places further."""


@pytest.fixture(scope="module", params=["with CLIP", "without CLIP"])
def fitted(request: Any, random_pair: Any, pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> GCPLClassifier:
    preset = random_pair.folder
    if request.param == "without CLIP":
        preset = tmp_path_factory.mktemp("without_clip")
        (preset / "diffusion").symlink_to(random_pair.folder / "diffusion")
    model = GCPLClassifier(preset=str(preset), diffusion=random_pair.diffusion, **SETTINGS)
    model.fit(pictures[0], np.array(["zebra", "ant", "moth"])[pictures[1]])
    assert (model.fast_.plan_.prior_fit is not None) == (request.param == "with CLIP")
    return model


def test_the_estimator_answers_with_its_plan(fitted: GCPLClassifier, pictures: Any, tmp_path: Path) -> None:
    images, latents = pictures[0], fitted.encode(pictures[0])
    found = fitted.classify(latents, fitted._clip_scores(images, fitted.class_names_))
    np.testing.assert_array_equal(fitted.decision_function(images), found.logits)
    np.testing.assert_allclose(fitted.predict_proba(images), softmax(found.logits, axis=1))
    assert fitted.predict(images).tolist() == fitted.classes_[found.logits.argmax(1)].tolist()
    assert found.num_evaluations <= 12 * 3 * len(fitted.fast_.plan_.samples)
    assert fitted.evidence(latents).errors.shape == (12, 3, 4)  # complete evidence is still to be had
    again = GCPLClassifier.load(fitted.save(tmp_path), fitted.diffusion)
    assert again.fast_.plan_.as_dict() == fitted.fast_.plan_.as_dict()
    np.testing.assert_array_equal(again.predict_proba(images), fitted.predict_proba(images))
    metadata = read_checked(tmp_path / "prompts.json")
    metadata["plan"]["tree"] = {"branches": [0]}
    (tmp_path / "prompts.json").write_text(json.dumps(metadata))
    with pytest.raises(ArtifactError, match="incomplete or was changed .*shortcuts that this version no longer has"):
        GCPLClassifier.load(tmp_path, fitted.diffusion)


def test_folds_never_judge_the_images_that_they_learned(
    diffusion: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every exemplar is judged once, under prompts of the other folds."""
    learned, judged = [], []
    subset, errors = Exemplars.subset, GCPLClassifier.errors

    def keep_subset(self: Any, chosen: np.ndarray) -> Any:
        learned.append(set(chosen.tolist()))
        return subset(self, chosen)

    def keep_errors(self: Any, latents: torch.Tensor, num_samples: int, *seed: int) -> Any:
        judged.extend([latents] if num_samples == SETTINGS["evidence_pool"] else [])
        return errors(self, latents, num_samples, *seed)

    monkeypatch.setattr(Exemplars, "subset", keep_subset)
    monkeypatch.setattr(GCPLClassifier, "errors", keep_errors)
    model = GCPLClassifier(diffusion=diffusion, **SETTINGS).fit(*pictures)
    encoded = model.encode(pictures[0])
    assert [len(part) for part in learned] == [6, 6]
    for inside, latents in zip(learned, judged, strict=True):
        torch.testing.assert_close(latents, encoded[sorted(set(range(12)) - inside)], rtol=0, atol=1e-5)


def test_images_to_calibrate_on_spare_the_folds(diffusion: Any, pictures: Any) -> None:
    (images, ids), model = pictures, GCPLClassifier(diffusion=diffusion, **SETTINGS | {"num_folds": 4})
    learn, rest = ([images[i] for i in part] for part in (LEARNED, LEARNED + 2))
    with pytest.raises(DataError, match=r"has 2 \w+, fewer than the 4 folds"):
        model.fit(learn, ids[LEARNED])
    spent = diffusion.num_denoiser_evaluations
    model.fit(learn, ids[LEARNED], calibration=(rest, ids[LEARNED + 2]))
    # Two updates of four, temperature on six images, and the pool on the other six.
    assert diffusion.num_denoiser_evaluations - spent == 2 * 4 + 6 * 3 * 4 + 6 * 3 * 6


def test_what_a_calibration_needs_is_said(diffusion: Any, pictures: Any) -> None:
    (images, ids), (fast, exact) = pictures, (SETTINGS, SETTINGS | {"classification": "exact"})
    for settings, labels, message in (
        (exact, [0, 1], "classification is 'exact', which needs none"),
        (fast, [0], "2 images and 1 labels to calibrate on"),
        (fast, [9, 7], "the labels 7, 9, which are not learned; expected some of 0, 1, 2"),
    ):
        with pytest.raises(DataError, match=message):
            GCPLClassifier(diffusion=diffusion, **settings).fit(images, ids, calibration=(images[:2], labels))
    model = GCPLClassifier(diffusion=diffusion, **exact).fit(images, ids)
    with pytest.raises(DataError, match="set classification='fast' before fit"):
        model.classify(model.encode(images[:1]))
