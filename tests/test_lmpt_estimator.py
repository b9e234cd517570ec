"""LMPTClassifier: the scikit-learn API, files, resuming, bad input; and that it learns on the shipped model."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation.multilabel import multilabel_report, sigmoid
from gcpl_lab.lmpt.encoding import encode_views
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.lmpt.losses import register_loss
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.presets import TINY_FOLDER
from gcpl_lab.storage import read_checked
from gcpl_lab.training.loop import StepRecord, end_early

NAMES = ("shirt", "ankle boot", "bag")


def make_cached() -> tuple[Tensor, np.ndarray, list[str | None]]:
    """Features of two views of 40 images, targets of three classes, and captions of most images."""
    rng = np.random.default_rng(0)
    targets = (rng.random((40, 3)) < (0.6, 0.4, 0.2)).astype(np.uint8)
    targets[:3] = np.eye(3)
    features = targets @ rng.normal(size=(3, 128)) + rng.normal(size=(2, 40, 128))
    captions = [" and ".join(f"a {NAMES[i]}" for i in np.flatnonzero(row)) or None for row in targets]
    return F.normalize(torch.from_numpy(features).float(), dim=-1), targets, captions


VIEWS, TARGETS, CAPTIONS = make_cached()


def classifier(clip: Any, **settings: Any) -> LMPTClassifier:
    return LMPTClassifier(
        clip=clip, **{"num_context": 2, "initial_words": "a photo", "num_epochs": 3, "batch_size": 16, **settings}
    )


def steps(model: LMPTClassifier, folder: Path | None = None) -> Iterator[StepRecord]:
    return model.learn(VIEWS, TARGETS, NAMES, CAPTIONS, checkpoint_folder=folder)


def learned(clip: Any, folder: Path | None = None, **settings: Any) -> LMPTClassifier:
    model = classifier(clip, **settings)
    list(steps(model, folder))
    return model


def context(model: LMPTClassifier) -> Tensor:
    return model.objective_.prompts.context.detach().clone()


def losses(model: LMPTClassifier) -> list[float]:
    return [record.loss for record in model.history_]


@pytest.fixture(scope="module")
def photos() -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    targets = (rng.random((20, 3)) < 0.5).astype(np.uint8)
    targets[:6] = np.tile(np.eye(3), (2, 1))
    return [rng.integers(0, 255, (20, 24, 3), dtype=np.uint8) for _ in targets], targets


# ------------------------------------------------------------------------------------- API and files


def test_fit_predict_score_save_and_load(clip: Any, photos: Any, tmp_path: Path) -> None:
    (images, targets), frozen, model = photos, clip.checksum(), classifier(clip)
    assert model.fit(images, targets, NAMES, ["a bag"] * 20) is model
    chances = model.predict_proba(images)
    assert chances.shape == (20, 3)
    assert ((0 < chances) & (chances < 1)).all()
    predicted = model.predict(images)
    np.testing.assert_array_equal(predicted, chances >= model.thresholds_)
    assert model.classes_.tolist() == list(NAMES)
    expected = multilabel_report(model.decision_function(images), targets, targets.sum(0), NAMES)["map"]
    report = model.evaluate(images, targets)
    assert model.score(images, targets) == report["map"] == pytest.approx(expected)
    assert {"map_tail", "f1_macro", "f1_micro", "calibration_error", "classes"} <= report.keys()
    assert clip.checksum() == frozen
    again = LMPTClassifier.load(model.save(tmp_path / "prompts"), clip=clip)
    np.testing.assert_array_equal(again.predict_proba(images), chances)
    np.testing.assert_array_equal(again.predict(images), predicted)
    assert again.evaluate(images, targets) == report
    assert again.config == model.config
    assert again.save(tmp_path / "again").is_dir()
    with pytest.raises(DataError, match=r"shape \(20, 2\); expected \(20, 3\)"):
        model.score(images, targets[:, :2])


def test_names_and_captions_may_be_left_out(clip: Any, photos: Any) -> None:
    model = classifier(clip).fit(*photos)
    assert model.classes_.tolist() == ["class 0", "class 1", "class 2"]
    assert all(record.values["contrast"] == 0 for record in model.history_)
    assert model.history_[-1].loss < model.history_[0].loss


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({"class_specific": False}, ()),
        ({"ending": ".", "class_position": "middle"}, ()),
        ({}, ("ending", "token_offset", "position_hinge", "options")),  # files from before these settings
    ],
)
def test_saved_contexts_answer_the_same(
    clip: Any, tmp_path: Path, settings: dict[str, Any], absent: tuple[str, ...]
) -> None:
    model = learned(clip, **settings)
    path = model.save(tmp_path) / "prompts.json"
    content = read_checked(path)
    for name in absent:
        del content["config"][name]
    path.write_text(json.dumps(content))
    again = LMPTClassifier.load(tmp_path, clip=clip)
    assert again.config == model.config
    assert context(again).shape == context(model).shape
    np.testing.assert_array_equal(again.scores_of(VIEWS[0]), model.scores_of(VIEWS[0]))


def test_half_precision_leaves_contexts_and_cosines_alone(random_pair: Any, tmp_path: Path) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        model = LMPTClassifier(str(random_pair.folder), num_epochs=3, precision=precision)
        list(steps(model))
        assert model.clip.dtype is getattr(torch, precision)
        assert context(model).dtype is torch.float32
        found[precision] = losses(model)
        folder = model.save(tmp_path / precision)
        with pytest.raises(ArtifactError, match="is not opened unasked"):
            LMPTClassifier.load(folder)
        again = LMPTClassifier.load(folder, preset=str(random_pair.folder))  # in the precision that it was learned in
        assert again.clip.dtype is model.clip.dtype
        np.testing.assert_array_equal(again.scores_of(VIEWS[0]), model.scores_of(VIEWS[0]))
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.02)
    assert found["bfloat16"] != found["float32"]
    with pytest.raises(ArtifactError, match="other frozen weights"):
        LMPTClassifier.load(tmp_path / "bfloat16", clip=random_pair.clip)


def test_damaged_and_foreign_folders(clip: Any, tmp_path: Path) -> None:
    folder = learned(clip, num_epochs=1).save(tmp_path / "prompts")
    path = folder / "prompts.json"
    content = read_checked(path)
    for change, message in (
        ({"method": None}, "was learned by another method than lmpt"),
        ({"config": {**content["config"], "num_context": 3}}, "do not fit its settings"),
        ({"config": {**content["config"], "lambda": 3}}, "incomplete or was changed"),
        ({"thresholds": "none"}, "incomplete or was changed"),
        ({"clip": {"name": "other", "checksum": "0" * 64}}, "other frozen weights"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ArtifactError, match=message):
            LMPTClassifier.load(folder, clip=clip)
    with pytest.raises(ArtifactError, match="no such folder"):
        LMPTClassifier.load(tmp_path / "nowhere", clip=clip)


def test_probabilities_do_not_overflow() -> None:
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0.0, 1e4]), (10.0, 0.0)), [0, 0.5, 1])


# ---------------------------------------------------------------------------------- training, and training again


def test_the_last_learning_has_every_image(clip: Any) -> None:
    """Thresholds stay those of the part that was held out; both trainings go through the whole schedule."""
    first, whole = (learned(clip, num_epochs=4, refit=refit) for refit in (False, True))
    assert first.num_train_ < whole.num_train_ == len(TARGETS)
    np.testing.assert_array_equal(whole.class_counts_, TARGETS.sum(0))
    done, an_epoch = len(first.history_), math.ceil(len(TARGETS) / 16)
    before, after = ([replace(one, seconds=0.0) for one in each.history_[:done]] for each in (first, whole))
    assert before == after
    assert len(whole.history_) == whole.num_steps_ == done + 4 * an_epoch
    np.testing.assert_array_equal(first.thresholds_, whole.thresholds_)
    assert not np.array_equal(first.scores_of(VIEWS[0]), whole.scores_of(VIEWS[0]))
    assert 0 < whole.validation_map_ == first.validation_map_ <= 1


def test_a_run_that_is_ended_early_is_calibrated_and_not_learned_again(clip: Any) -> None:
    model = classifier(clip)
    records = steps(model)
    next(records), next(records)
    end_early(records)
    assert [record.step for record in model.history_] == [1, 2]
    assert model.num_train_ < len(TARGETS)
    assert model.thresholds_.shape == (3,)


# ------------------------------------------------------------------------------------------- settings

SWITCHES = {name: not value for name, value in LMPTConfig().as_dict().items() if isinstance(value, bool)}
CHANGES: dict[str, Any] = (
    SWITCHES
    | {"num_context": 3, "num_epochs": 2, "batch_size": 9, "seed": 1, "token_offset": 0, "ending": "."}
    | {"class_position": "front", "initial_words": "the", "scale": "clip", "precision": "bfloat16"}
    | {"reading": "token", "position_hinge": "sum", "contrast_reduction": "weighted", "schedule": "constant"}
    | {"classification": "binary_cross_entropy", "optimizer": "sgd", "learning_rate": 0.003, "validation_share": 0.4}
    | {"mix": 0.9, "margin": 0.9, "reweight_gamma": 0.3, "negative_scale": 3.0, "mu": 0.1, "flip": False}
)
BASE: dict[str, Any] = {"classification": "distribution_balanced", "contrast_reduction": "mean", "margin": 1.2}
BASE |= {"learning_rate": 0.02, "num_epochs": 5}


@pytest.fixture(scope="module")
def usual(random_pair: Any) -> list[float]:
    return losses(learned(random_pair.clip, **BASE))


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_setting_changes_something(clip: Any, usual: list[float], name: str) -> None:
    assert CHANGES.keys() == LMPTConfig().as_dict().keys() - {"preset", "checkpoint_every", "options", "fit"}
    base = {**BASE, "reading": "token"} if name in ("token_offset", "position_hinge") else BASE
    before = usual if base is BASE else losses(learned(clip, **base))
    assert losses(learned(clip, **{**base, name: CHANGES[name]})) != before


def test_one_image_at_a_time_is_in_memory(
    clip: Any, photos: Any, tmp_path: Path, most_alive: Callable[[], int]
) -> None:
    model = classifier(clip, num_epochs=1)
    model.fit(*photos, NAMES, checkpoint_folder=tmp_path).predict(photos[0])
    assert 0 < most_alive() <= 2


def test_without_the_fast_room_the_result_is_the_same(clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for value in ("1", "0"):
        monkeypatch.setenv("GCPL_LAB_FAST", value)
        model = learned(clip, optimizer="sgd")
        assert ("encode_prompts" in vars(clip)) == (value == "1")
        found.append((context(model), torch.tensor(losses(model))))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------- a loss of one's own


@pytest.mark.usefixtures("own_registries")
def test_a_loss_is_registered_in_one_place(clip: Any, tmp_path: Path) -> None:
    told = []

    @register_loss("mine", defaults={"strength": 1.0, "mu": 0.5})
    def mine(logits: Tensor, targets: Tensor, *, class_counts: Tensor, strength: float, mu: float) -> Tensor:
        told.append((class_counts.tolist(), strength, mu))
        return strength * F.binary_cross_entropy_with_logits(logits, targets)

    plain, strong = (learned(clip, classification="mine", mix=1.0, **own) for own in ({}, {"strength": 3.0}))
    assert told[0][1:] == (1.0, 0.5)  # the loss's own default, until a field of the same name is set
    assert told[-1] == (TARGETS.sum(0).tolist(), 3.0, 0.5)
    learned(clip, classification="mine", mix=1.0, mu=0.2)
    assert told[-1][1:] == (1.0, 0.2)
    assert strong.history_[0].loss == pytest.approx(3 * plain.history_[0].loss)
    assert losses(plain) == pytest.approx(losses(learned(clip, classification="binary_cross_entropy", mix=1.0)))
    assert strong.config.options == {"strength": 3.0}
    again = LMPTClassifier.load(strong.save(tmp_path), clip=clip)
    assert again.config == strong.config
    np.testing.assert_array_equal(again.scores_of(VIEWS[0]), strong.scores_of(VIEWS[0]))
    with pytest.raises(TypeError, match="weakness"):
        LMPTClassifier(classification="mine", weakness=1.0)


# ------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [3, 7, 9])
def test_a_resumed_run_is_bit_identical(clip: Any, tmp_path: Path, optimizer: str, stop: int) -> None:
    """Six updates of the first learning, nine of the second."""
    whole, stopped = learned(clip, optimizer=optimizer), classifier(clip, optimizer=optimizer)
    for record in steps(stopped, tmp_path):
        if record.step == stop:
            break
    with pytest.raises(DataError, match="stopped before its end"):
        stopped.save(tmp_path / "early")
    assert not (tmp_path / "early").exists()
    other = classifier(clip, optimizer=optimizer)
    with pytest.raises(ArtifactError, match="other settings, data or model"):  # here the captions
        list(other.learn(VIEWS, TARGETS, NAMES, CAPTIONS[::-1], checkpoint_folder=tmp_path))
    resumed = learned(clip, tmp_path, optimizer=optimizer)
    assert [replace(one, seconds=0.0) for one in resumed.history_] == [replace(r, seconds=0.0) for r in whole.history_]
    assert len(resumed.history_) == resumed.num_steps_ == 15
    pairs = zip(*(each.objective_.trainable_parameters() for each in (whole, resumed)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    np.testing.assert_array_equal(whole.thresholds_, resumed.thresholds_)


def test_checkpoints_are_as_frequent_as_asked(clip: Any, tmp_path: Path) -> None:
    for every, first in ((None, 2), (5, 5)):  # two steps an epoch
        folder = tmp_path / str(every)
        records = steps(classifier(clip, checkpoint_every=every), folder)
        assert next(record.step for record in records if any(folder.glob("*.safetensors"))) == first


def test_a_checkpoint_does_not_hold_the_captions(clip: Any, photos: Any, tmp_path: Path) -> None:
    """Their checksum knows them again: 112 MB of captions did not fit into the header of a checkpoint."""
    captions = ["word " * 20_000] * len(photos[0])
    for _ in classifier(clip, checkpoint_every=1).steps(*photos, NAMES, captions, checkpoint_folder=tmp_path):
        if found := list(tmp_path.glob("*.safetensors")):
            break
    assert found[0].stat().st_size < 1e6 < sum(map(len, captions))


# ------------------------------------------------------------------------------------------ bad input


def test_what_does_not_fit_together_is_named(clip: Any, photos: Any, tmp_path: Path) -> None:
    (images, targets), model = photos, classifier(clip)
    wrong = targets.astype(int)
    wrong[3, 1] = 7
    for arguments, message in (
        ((images[:4], targets), "4 images and 20 rows of targets"),
        ((images, wrong), "image 3, class 1 is 7; expected 0 or 1"),
        ((images, targets[:, 0]), r"shape \(20,\)"),
        ((images, targets[:, :1]), "have 1 classes; expected two or more"),
        ((images, targets, NAMES[:2]), "class_names has 2 names; expected 3"),
        ((images, targets, ("shirt", "bag", "bag")), "class name 2 is 'bag', as is class name 1"),
        ((images, targets, NAMES, ["a bag"] * 19), "19 captions for 20 images"),
        ((images, targets, NAMES, "a bag"), "5 captions for 20 images"),
        ((images, targets, NAMES, [*["a bag"] * 19, 3]), "caption 19 is 3"),
        ((images, targets * np.array([1, 0, 1]), NAMES), "1 classes have no image(.|\n)*ankle boot"),
        (([*images[:19], tmp_path / "gone.png"], targets), "gone.png"),
    ):
        with pytest.raises(DataError, match=message):
            model.fit(*arguments, checkpoint_folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for ask in (model.predict, model.predict_proba, model.decision_function, model.save):
        with pytest.raises(DataError, match="has learned nothing yet"):
            ask(images)


# ----------------------------------------------------------------------------------- on the real model


@pytest.mark.skipif(not (TINY_FOLDER / "clip").is_dir(), reason="the trained tiny CLIP is not there yet")
def test_sixty_scenes_are_enough_to_beat_zero_shot() -> None:
    train, test = load_wardrobe("train"), load_wardrobe("test")
    rare = np.flatnonzero(train.targets[:, train.class_counts() < 60].any(axis=1))
    chosen = train.subset(np.sort(np.random.default_rng(0).permutation(rare)[:60]))
    test = test.subset(np.arange(0, len(test), 2))
    model = LMPTClassifier(num_context=4, num_epochs=30, batch_size=16, seed=0)
    model.fit(chosen.images, chosen.targets, chosen.class_names, chosen.captions)
    features = encode_views(model.clip, test.images, flip=False)[0]
    zero_shot = ZeroShotCLIP(model.clip, test.class_names).scores(features).numpy()
    learned_map, zero_shot_map = (
        multilabel_report(scores, test.targets, chosen.class_counts(), test.class_names)["map"]
        for scores in (model.scores_of(features), zero_shot)
    )
    assert learned_map > zero_shot_map + 0.04
