"""Methods × seeds on one split, the short demonstration, and the sentences about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.baselines import multilabel as multilabel_baselines
from gcpl_lab.baselines.multilabel import OneVsRestProbe
from gcpl_lab.data.multilabel import MultiLabelSet, split_validation
from gcpl_lab.data.wardrobe import load_wardrobe
from gcpl_lab.errors import DataError
from gcpl_lab.experiments.multilabel import (
    ABLATION,
    ABLATION_TITLES,
    CANDIDATES,
    MULTILABEL_METHODS,
    NUM_PROBE_PARTS,
    PUBLISHED,
    PUBLISHED_LOSS,
    MultiLabelExperiment,
    run_ablation,
    run_multilabel_comparison,
    run_tails,
    run_validation,
)
from gcpl_lab.experiments.multilabel_reports import (
    caveats_of,
    demo_experiment,
    draw_worst_mistake,
    read_prompts,
    run_lmpt_demo,
)
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.models.presets import TINY_FOLDER

FAST = {"num_context": 4, "num_epochs": 2}


@pytest.fixture(scope="module")
def experiment(random_pair: Any) -> MultiLabelExperiment:
    train, test = load_wardrobe("train"), load_wardrobe("test")
    return MultiLabelExperiment(
        train.subset(np.arange(0, 520, 5)), test.subset(np.arange(0, 520, 10)), clip=random_pair.clip, settings=FAST
    )


@pytest.mark.parametrize("method", MULTILABEL_METHODS)
def test_every_method_gives_a_row(
    experiment: MultiLabelExperiment, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PUBLISHED, "num_epochs", 2)
    outcome = experiment.run(method, seed=1)
    assert outcome.row["name"] == method
    assert {
        "seed",
        "map",
        "map_head",
        "map_medium",
        "map_tail",
        "f1_macro",
        "calibration_error",
        "classes",
        "train_seconds",
        "predict_seconds",
    } <= outcome.row.keys()
    assert outcome.logits.shape == outcome.probabilities.shape == experiment.test.targets.shape
    assert ((outcome.probabilities >= 0) & (outcome.probabilities <= 1)).all()
    assert (outcome.model is None) == (method in ("zero_shot_clip", "linear_probe"))
    again = experiment.run(method, seed=1)
    np.testing.assert_array_equal(outcome.logits, again.logits)


def altered(experiment: MultiLabelExperiment, **settings: Any) -> MultiLabelExperiment:
    """The same pictures with other settings, not encoded again."""
    other = MultiLabelExperiment(experiment.train, experiment.test, clip=experiment.clip, settings={**FAST, **settings})
    other.views, other.test_features = experiment.views, experiment.test_features
    return other


@pytest.mark.parametrize(("flip", "refit"), [(True, True), (False, True), (True, False)])
def test_the_probe_learns_from_what_prompts_learn_from(
    experiment: MultiLabelExperiment, monkeypatch: pytest.MonkeyPatch, flip: bool, refit: bool
) -> None:
    other = altered(experiment, flip=flip, refit=refit, num_epochs=1)
    prompts, fitted, make = other.run("coop_bce", 3).model, [], multilabel_baselines._fit

    def fit(views: torch.Tensor, targets: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        fitted.append((views, targets, strength))
        return make(views, targets, strength)

    monkeypatch.setattr(multilabel_baselines, "_fit", fit)
    logits = other.run("linear_probe", 3).logits
    training, _ = split_validation(other.train.targets, other.config.validation_share, 3)
    num_views, chosen = 2 if flip else 1, np.arange(len(other.train)) if refit else training
    assert prompts is not None
    assert prompts.num_train_ == len(chosen)
    # First the strength on several parts, then the training part for scale and thresholds, then all there is.
    tried = NUM_PROBE_PARTS * len(OneVsRestProbe.STRENGTHS)
    assert {strength for *_, strength in fitted[:tried]} == set(OneVsRestProbe.STRENGTHS)
    assert len(fitted) == tried + 1 + refit
    views, targets, chosen_strength = fitted[tried]
    assert torch.equal(views, other.views[:num_views, training])
    np.testing.assert_array_equal(targets, other.train.targets[training])
    assert {strength for *_, strength in fitted[tried:]} == {chosen_strength} == {other.probe_strength}
    count = len(fitted)
    other.run("linear_probe", 4)
    assert len(fitted) == count + 1 + refit  # the strength is that of the training set, not of a seed
    if refit:
        assert torch.equal(fitted[-1][0], other.views[:num_views, chosen])
        weights, offsets = make(*fitted[-1])
        np.testing.assert_allclose(logits, other.test_features.numpy() @ weights + offsets, rtol=1e-4, atol=1e-4)


def test_what_the_probe_says_depends_on_held_out_scenes_and_mirror_images(experiment: MultiLabelExperiment) -> None:
    found = {
        (flip, refit): altered(experiment, flip=flip, refit=refit).run("linear_probe", 0).logits
        for flip, refit in ((True, True), (False, True), (True, False))
    }
    assert not np.allclose(found[True, True], found[False, True], atol=1e-3)
    assert not np.allclose(found[True, True], found[True, False], atol=1e-3)


def test_the_published_method_is_the_whole_command(experiment: MultiLabelExperiment) -> None:
    odd = {
        "num_context": 3,
        "initial_words": "of",
        "num_epochs": 2,
        "class_position": "front",
        "reading": "pooled",
        "class_specific": False,
        "schedule": "linear",
        "optimizer": "adamw",
        "batch_size": 5,
        "reweight": False,
        "focal": False,
        "mix": 0.1,
        "keep": "best",
        "patience": 1,
    }
    other = altered(experiment, **odd)
    configs = {}
    for method in ("lmpt_published", "lmpt_published_loss"):
        made: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LMPTClassifier, "learn", lambda self, *_, made=made, **__: made.append(self.config) or ())
            with pytest.raises(DataError, match="learned nothing yet"):
                other.run(method, 0)
        configs[method] = made[0].as_dict()
    whole = configs["lmpt_published"]
    expected = {
        "num_context": 16,
        "initial_words": "",
        "ending": ".",
        "class_specific": True,
        "class_position": "end",
        "reading": "token",
        "token_offset": 2,
        "position_hinge": "sum",
        "classification": "distribution_balanced",
        "mix": 0.5,
        "contrast_reduction": "mean",
        "negative_scale": 5.0,
        "mu": 0.3,
        "margin": 0.2,
        "reweight_gamma": 2.0,
        "scale": "clip",
        "optimizer": "sgd",
        "learning_rate": 5e-4,
        "schedule": "constant",
        "batch_size": 64,
        "num_epochs": 50,
        "keep": "last",
        "focal": True,
        "reweight": True,
    }
    assert {name: whole[name] for name in expected} == expected
    assert configs["lmpt_published_loss"] == other.config.as_dict() | PUBLISHED_LOSS
    assert PUBLISHED_LOSS.items() < PUBLISHED.items()
    assert CANDIDATES["published_loss"] == PUBLISHED_LOSS


def test_coop_hears_no_captions_and_lmpt_does(experiment: MultiLabelExperiment) -> None:
    other = ["a bag"] * len(experiment.train)
    settings: dict[str, Any] = {"mix": 0.5, "contrast_reduction": "weighted", "margin": 1.0}
    first = [experiment.run("any", 0, {"mix": 1.0}, captions).logits for captions in (None, other)]
    np.testing.assert_array_equal(*first)
    second = [experiment.run("any", 0, settings, captions).logits for captions in (None, other)]
    assert not np.array_equal(*second)


def test_the_comparison_is_resumed_and_summarised(experiment: MultiLabelExperiment, tmp_path: Path) -> None:
    asked: list[str] = []
    arguments: dict[str, Any] = {"methods": ("coop_bce", "linear_probe"), "seeds": (0, 1), "on_trial": asked.append}
    result = run_multilabel_comparison(tmp_path, experiment, **arguments)
    assert len(asked) == 4
    assert run_multilabel_comparison(tmp_path, experiment, **arguments)["methods"] == result["methods"]
    assert len(asked) == 4
    probe = next(entry for entry in result["summary"]["map"] if entry["method"] == "linear_probe")
    assert probe["num_seeds"] == 2
    rows = {(row["name"], row["seed"]): row["map"] for row in result["methods"]}
    difference = np.mean([rows["linear_probe", seed] - rows["coop_bce", seed] for seed in (0, 1)])
    assert probe["difference"] == pytest.approx(difference)


def test_the_ablation_needs_captions_and_known_variants(experiment: MultiLabelExperiment, tmp_path: Path) -> None:
    assert ABLATION.keys() == ABLATION_TITLES.keys()
    assert ABLATION["full_stop"] == {"ending": "."}
    assert ABLATION["token_reading_no_words"] == {**ABLATION["token_reading"], "token_offset": None}
    with pytest.raises(ValueError, match="magic: no variants"):
        run_ablation(tmp_path, experiment, variants=("magic",))
    train = experiment.train
    bare = MultiLabelSet(train.name, train.images, train.targets, train.class_names, (None,) * len(train), "0" * 64)
    with pytest.raises(DataError, match="no picture has a caption"):
        run_ablation(tmp_path, MultiLabelExperiment(bare, experiment.test, clip=experiment.clip))
    assert not list(tmp_path.iterdir())


def test_the_same_settings_by_two_names_are_trained_once(experiment: MultiLabelExperiment, tmp_path: Path) -> None:
    asked: list[str] = []
    result = run_ablation(
        tmp_path,
        experiment,
        seeds=(0,),
        variants=("coop_bce", "lmpt", "no_captions"),
        noise_shares=(),
        on_trial=asked.append,
    )
    assert asked == ["coop_bce, seed 0", "lmpt, seed 0"]  # without captions LMPT is CoOp: its loss is the plain one
    assert [row["name"] for row in result["methods"]] == ["coop_bce", "lmpt", "no_captions"]
    coop, lmpt, silent = (row["map"] for row in result["methods"])
    assert silent == coop != lmpt
    assert [entry["method"] for entry in result["summary"]["map"]] == ["coop_bce", "lmpt", "no_captions"]


def test_settings_are_chosen_on_parts_of_the_training_pictures(
    experiment: MultiLabelExperiment, tmp_path: Path
) -> None:
    part = experiment.part(1)
    images = [set(map(str, data.images)) for data in (part.train, part.test)]
    assert not images[0] & images[1]
    assert images[0] | images[1] == set(map(str, experiment.train.images))
    np.testing.assert_array_equal(
        part.views[0].numpy(), MultiLabelExperiment(part.train, part.test, clip=experiment.clip).views[0].numpy()
    )
    asked: list[str] = []
    candidates: dict[str, Any] = {"chosen": {}, "slow": {"learning_rate": 1e-9}}
    # Test pictures that cannot be read: whoever touches them fails.
    gone = replace(experiment.test, images=tuple(Path("gone.png") for _ in experiment.test.images))
    unseen = MultiLabelExperiment(experiment.train, gone, clip=experiment.clip, settings=FAST)
    arguments: dict[str, Any] = {"candidates": candidates, "num_parts": 2, "on_trial": asked.append}
    result = run_validation(tmp_path, unseen, **arguments)
    assert len(asked) == 4
    assert run_validation(tmp_path, unseen, **arguments)["methods"] == result["methods"]
    assert len(asked) == 4
    assert {entry["method"]: entry["num_seeds"] for entry in result["summary"]["map"]} == {"chosen": 2, "slow": 2}
    assert result["candidates"]["slow"] == {"learning_rate": 1e-9}


def test_tails_count_once_each(experiment: MultiLabelExperiment, tmp_path: Path) -> None:
    other = MultiLabelExperiment(
        experiment.train, experiment.test.subset(np.arange(30)), clip=experiment.clip, settings=FAST
    )
    result = run_tails(tmp_path, [experiment, other], methods=("coop_bce", "zero_shot_clip"), seeds=(0, 1))
    assert [entry["num_seeds"] for entry in result["summary"]["map"]] == [2, 2]
    assert len(result["tails"]) == 2
    rows = run_multilabel_comparison(tmp_path / "tail_1", other, methods=("coop_bce", "zero_shot_clip"), seeds=(0, 1))[
        "methods"
    ]
    mean = np.mean([row["map"] for row in rows if row["name"] == "coop_bce"])
    assert result["tails"][1]["methods"][0]["map"] == pytest.approx(mean)
    assert (tmp_path / "results.json").is_file()


def test_what_cannot_be_compared_is_refused(experiment: MultiLabelExperiment) -> None:
    with pytest.raises(ValueError, match="'magic' is no method"):
        experiment.run("magic", 0)
    test = experiment.test
    other = MultiLabelSet(
        test.name, test.images, test.targets, tuple(f"class {i}" for i in range(10)), test.captions, test.checksum
    )
    with pytest.raises(DataError, match="they must be the same"):
        MultiLabelExperiment(experiment.train, other)


def test_prompts_are_read_and_a_mistake_is_drawn(experiment: MultiLabelExperiment) -> None:
    outcome = experiment.run("lmpt", 0)
    reading = read_prompts(outcome)
    assert len(reading["contexts"]) == 10 * 4
    assert len(reading["moved_toward"]) == 10
    assert draw_worst_mistake(experiment, outcome) is not None
    assert draw_worst_mistake(experiment, outcome, place=10**6) is None
    with pytest.raises(ValueError, match="learned no prompts"):
        read_prompts(experiment.run("zero_shot_clip", 0))


def test_caveats_name_what_ranks_higher() -> None:
    rows = [
        {"name": "lmpt", "map": 0.5, "map_head": 0.5, "map_medium": 0.5, "map_tail": 0.3},
        {"name": "linear_probe", "map": 0.4, "map_head": 0.4, "map_medium": 0.4, "map_tail": 0.4},
    ]
    assert caveats_of(rows)[1:] == ["LMPT is not the best on the tail; above it: Linear probe."]


@pytest.mark.skipif(not (TINY_FOLDER / "clip").is_dir(), reason="the trained tiny CLIP is not there yet")
def test_the_demonstration(tmp_path: Path) -> None:
    demo = run_lmpt_demo(tmp_path, demo_experiment(settings={"num_epochs": 5}), seed=0)
    assert [row["name"] for row in demo.rows] == [
        "zero_shot_clip",
        "linear_probe",
        "coop_bce",
        "coop_asl",
        "coop_db",
        "lmpt",
    ]
    by_name = {row["name"]: row["map"] for row in demo.rows}
    assert by_name["lmpt"] > by_name["zero_shot_clip"]
    assert len(demo.figures) == 4
    assert all(Path(figure.png_path).is_file() for figure in demo.figures)
    assert (tmp_path / "prompts/lmpt/prompts.json").is_file()
    assert "LMPT" in demo.answer
    assert demo.caveats
