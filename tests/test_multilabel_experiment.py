"""Methods × seeds on one split, the ablation, tails, and the choice of settings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.baselines.base import MULTILABEL_BASELINES, FeatureSupport
from gcpl_lab.baselines.multilabel import NUM_PARTS, OneVsRestProbe, choose_strength
from gcpl_lab.data.multilabel import replace_captions, split_validation
from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.errors import DataError
from gcpl_lab.experiments.multilabel import (
    ABLATION,
    CANDIDATES,
    MULTILABEL_METHODS,
    MULTILABEL_TITLES,
    PUBLISHED,
    PUBLISHED_LOSS,
    MultiLabelExperiment,
    run_ablation,
    run_multilabel_comparison,
    run_tails,
    run_validation,
)
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.lmpt.losses import binary_cross_entropy, register_loss

FAST = {"num_context": 4, "num_epochs": 2}


@pytest.fixture(scope="module")
def experiment(random_pair: Any) -> MultiLabelExperiment:
    train, test = (
        load_wardrobe("train").subset(np.arange(0, 520, 5)),
        load_wardrobe("test").subset(np.arange(0, 520, 10)),
    )
    return MultiLabelExperiment(train, test, clip=random_pair.clip, settings=FAST)


def altered(experiment: MultiLabelExperiment, **settings: Any) -> MultiLabelExperiment:
    """The same images with other settings, not encoded again."""
    other = MultiLabelExperiment(experiment.train, experiment.test, clip=experiment.clip, settings=FAST | settings)
    other.views, other.test_features = experiment.views, experiment.test_features
    return other


@pytest.mark.parametrize("method", MULTILABEL_METHODS)
def test_every_method_gives_a_row(
    experiment: MultiLabelExperiment, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MULTILABEL_METHODS["lmpt_published"].defaults, "num_epochs", 2)  # type: ignore[arg-type]
    outcome = experiment.run(method, seed=1)
    assert outcome.row["name"] == method
    promised = "seed map map_head map_medium map_tail f1_macro calibration_error classes train_seconds predict_seconds"
    assert set(promised.split()) <= outcome.row.keys()
    assert outcome.logits.shape == outcome.probabilities.shape == experiment.test.targets.shape
    assert ((outcome.probabilities >= 0) & (outcome.probabilities <= 1)).all()
    assert (outcome.model is None) == (method in MULTILABEL_BASELINES)
    np.testing.assert_array_equal(outcome.logits, experiment.run(method, seed=1).logits)


def test_coop_with_a_loss_that_is_registered_later_is_a_method(
    experiment: MultiLabelExperiment, own_registries: None
) -> None:
    @register_loss("doubled", title="Doubled")
    def doubled(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 2 * binary_cross_entropy(logits, targets)

    assert list(MULTILABEL_TITLES)[-1] == "coop_doubled"
    assert MULTILABEL_TITLES["coop_doubled"] == "CoOp + Doubled"
    config = experiment.run("coop_doubled", 0).model.config
    assert (config.classification, config.mix) == ("doubled", 1.0)


@pytest.mark.parametrize(("flip", "refit"), [(True, True), (False, True), (True, False)])
def test_the_probe_learns_from_what_prompts_learn_from(
    experiment: MultiLabelExperiment, monkeypatch: pytest.MonkeyPatch, flip: bool, refit: bool
) -> None:
    other = altered(experiment, flip=flip, refit=refit, num_epochs=1)
    prompts, fitted, make = other.run("coop_bce", 3).model, [], OneVsRestProbe.__init__

    def fit(self: OneVsRestProbe, views: torch.Tensor, targets: np.ndarray, strength: float) -> None:
        fitted.append((views, targets, strength))
        make(self, views, targets, strength)

    monkeypatch.setattr(OneVsRestProbe, "__init__", fit)
    logits = other.run("linear_probe", 3).logits
    training, _ = split_validation(other.train.targets, other.config.validation_share, 3)
    num_views, chosen = 2 if flip else 1, np.arange(len(other.train)) if refit else training
    assert prompts.num_train_ == len(chosen)
    # First the strength on several parts, then the training part for scale and thresholds, then all there is.
    tried = NUM_PARTS * len(OneVsRestProbe.STRENGTHS)
    assert {strength for *_, strength in fitted[:tried]} == set(OneVsRestProbe.STRENGTHS)
    assert len(fitted) == tried + 1 + refit
    views, targets, _ = fitted[tried]
    assert torch.equal(views, other.views[:num_views, training])
    np.testing.assert_array_equal(targets, other.train.targets[training])
    count = len(fitted)
    other.run("linear_probe", 4)
    assert len(fitted) == count + 1 + refit  # the strength is that of the training set, not of a seed
    everything = FeatureSupport(
        class_names=other.train.class_names,
        labels=torch.from_numpy(other.train.targets),
        clip=other.clip,
        features=other.views[:num_views],
    )
    strength = choose_strength(everything)["strength"]
    assert {used for *_, used in fitted[tried : count + 1 + refit]} == {strength}
    if refit:
        probe = OneVsRestProbe(other.views[:num_views], other.train.targets, strength)
        np.testing.assert_allclose(logits, probe.scores(other.test_features).numpy(), rtol=1e-4, atol=1e-4)


def test_the_published_method_is_the_whole_command(
    experiment: MultiLabelExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd: dict[str, Any] = {"num_context": 3, "initial_words": "of", "class_position": "front", "reading": "pooled"}
    odd |= {"class_specific": False, "schedule": "linear", "optimizer": "adamw", "batch_size": 5}
    odd |= {"reweight": False, "focal": False, "mix": 0.1}
    other, made = altered(experiment, **odd), []
    monkeypatch.setattr(LMPTClassifier, "learn", lambda self, *_, **__: made.append(self.config.as_dict()) or ())
    for method in ("lmpt_published", "lmpt_published_loss"):
        with pytest.raises(DataError, match="learned nothing yet"):
            other.run(method, 0)
    whole, loss = made
    prompts = {"num_context": 16, "initial_words": "", "class_position": "end", "reading": "token", "token_offset": 2}
    training = {"optimizer": "sgd", "learning_rate": 5e-4, "batch_size": 64, "num_epochs": 50}
    assert (PUBLISHED_LOSS | prompts | training).items() <= PUBLISHED.items()
    assert (PUBLISHED["negative_scale"], PUBLISHED["mu"], PUBLISHED["reweight_gamma"]) == (5.0, 0.3, 2.0)
    assert {name: whole[name] for name in PUBLISHED} == PUBLISHED
    # What "auto" comes to is known before anything is learned: the images are square.
    assert loss == other.config.as_dict() | PUBLISHED_LOSS | {"fit": "crop"}
    assert CANDIDATES["published_loss"] == PUBLISHED_LOSS


def test_coop_hears_no_captions_and_lmpt_does(experiment: MultiLabelExperiment) -> None:
    other = ["a bag"] * len(experiment.train)
    settings: dict[str, Any] = {"mix": 0.5, "contrast_reduction": "weighted", "margin": 1.0}
    first = [experiment.run("any", 0, {"mix": 1.0}, captions).logits for captions in (None, other)]
    np.testing.assert_array_equal(*first)
    second = [experiment.run("any", 0, settings, captions).logits for captions in (None, other)]
    assert not np.array_equal(*second)


def test_variants_of_the_captions_hear_what_their_names_say(
    experiment: MultiLabelExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Sequence[str | None]] = []
    monkeypatch.setattr(LMPTClassifier, "learn", lambda self, *given, **_: heard.append(given[3]) or ())
    for name in ("lmpt", "captions_wrong_50", "captions_own"):
        with pytest.raises(DataError, match="learned nothing yet"):
            experiment.run(name, 3)
    train, (plain, wrong, own) = experiment.train, heard
    assert plain == train.captions
    assert wrong == replace_captions(train.captions, train.targets, 0.5, 3)
    assert experiment._captions("captions_wrong_12.5", 3) == replace_captions(train.captions, train.targets, 0.125, 3)
    # Two garments a scene on average: the two names that are nearest to the image, the nearer one first.
    assert round(train.targets.sum(axis=1).mean()) == 2
    names = experiment.clip.encode_texts([f"a photo of a {name}" for name in train.class_names])
    nearest = (experiment.views[0] @ names.T).argsort(dim=1, descending=True)[:, :2].tolist()
    assert own == [f"a photo of {train.class_names[a]} and {train.class_names[b]}" for a, b in nearest]
    with pytest.raises(DataError, match="the share of wrong captions is 1.5"):
        experiment.run("captions_wrong_150", 0)


def test_the_comparison_is_resumed_and_summarised(experiment: MultiLabelExperiment, tmp_path: Path) -> None:
    asked: list[str] = []
    arguments: dict[str, Any] = {"methods": ("coop_bce", "linear_probe"), "seeds": (0, 1), "on_trial": asked.append}
    result = run_multilabel_comparison(tmp_path, experiment, **arguments)
    assert len(asked) == 4
    assert run_multilabel_comparison(tmp_path, experiment, **arguments)["methods"] == result["methods"]
    assert len(asked) == 4
    assert [entry["num_seeds"] for entry in result["summary"]["map"]] == [2, 2]


def test_what_cannot_be_compared_is_refused(experiment: MultiLabelExperiment, tmp_path: Path) -> None:
    train = experiment.train
    bare = MultiLabelExperiment(replace(train, captions=(None,) * len(train)), experiment.test, clip=experiment.clip)
    for other, variants, message in (
        (experiment, ("magic",), "magic: no variants"),
        (bare, tuple(ABLATION), "no image has a caption"),
    ):
        with pytest.raises((ValueError, DataError), match=message):
            run_ablation(tmp_path, other, variants=variants)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="'magic' is no registered method"):
        experiment.run("magic", 0)
    others = replace(experiment.test, class_names=tuple(f"class {i}" for i in range(10)))
    with pytest.raises(DataError, match="they must be the same"):
        MultiLabelExperiment(train, others)


def test_the_same_settings_by_two_names_are_trained_once(experiment: MultiLabelExperiment, tmp_path: Path) -> None:
    asked: list[str] = []
    variants = ("coop_bce", "lmpt", "no_captions")
    asked_for: dict[str, Any] = {"seeds": (0,), "variants": variants, "noise_shares": (), "on_trial": asked.append}
    result = run_ablation(tmp_path, experiment, **asked_for)
    # Without captions LMPT is CoOp: its loss is the plain one.
    assert asked == ["coop_bce, seed 0 (1 of 2)", "lmpt, seed 0 (2 of 2)"]
    assert [row["name"] for row in result["methods"]] == list(variants)
    coop, lmpt, silent = (row["map"] for row in result["methods"])
    assert silent == coop != lmpt
    assert [entry["method"] for entry in result["summary"]["map"]] == list(variants)


def test_settings_are_chosen_on_parts_of_the_training_images(experiment: MultiLabelExperiment, tmp_path: Path) -> None:
    part = experiment.part(1)
    assert sorted(part.train.images + part.test.images) == sorted(experiment.train.images)
    anew = MultiLabelExperiment(part.train, part.test, clip=experiment.clip)
    np.testing.assert_array_equal(part.views[0].numpy(), anew.views[0].numpy())
    asked: list[str] = []
    candidates: dict[str, Any] = {"chosen": {}, "slow": {"learning_rate": 1e-9}}
    # Test images that cannot be read: whoever touches them fails.
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
    fewer = experiment.test.subset(np.arange(30))
    other = MultiLabelExperiment(experiment.train, fewer, clip=experiment.clip, settings=FAST)
    methods = ("coop_bce", "zero_shot_clip", "captions_own")  # a variant of the ablation among them
    result = run_tails(tmp_path, [experiment, other], methods=methods, seeds=(0, 1))
    assert [entry["num_seeds"] for entry in result["summary"]["map"]] == [2, 2, 2]
    assert len(result["tails"]) == 2
    again = run_multilabel_comparison(tmp_path / "tail_1", other, methods=methods, seeds=(0, 1))
    mean = np.mean([row["map"] for row in again["methods"] if row["name"] == "coop_bce"])
    assert result["tails"][1]["methods"][0]["map"] == pytest.approx(mean)
    assert (tmp_path / "results.json").is_file()
