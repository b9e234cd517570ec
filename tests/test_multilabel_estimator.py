"""LMPTClassifier: manners, files, resuming, bad input; and that it learns on the shipped model."""

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import gcpl_lab
from gcpl_lab.data.multilabel import read_metadata, replace_captions, split_validation
from gcpl_lab.data.wardrobe import load_wardrobe
from gcpl_lab.errors import ArtifactError, DataError, TrainingError
from gcpl_lab.evaluation.multilabel import multilabel_report
from gcpl_lab.lmpt.estimator import LMPTClassifier, sigmoid
from gcpl_lab.lmpt.objective import LMPT
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.presets import TINY_FOLDER
from gcpl_lab.training import device as runtime

NAMES = ("shirt", "ankle boot", "bag")
COCO = Path(__file__).parents[2] / "shared" / "data" / "coco_small.zip"
needs_tiny = pytest.mark.skipif(not (TINY_FOLDER / "clip").is_dir(), reason="the trained tiny CLIP is not there yet")


def cached(num_images: int = 40, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, list[str | None]]:
    """Features of two views, targets of three classes, and captions of most images."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_images, 3)) < (0.6, 0.4, 0.2)).astype(np.uint8)
    targets[:3] = np.eye(3)
    directions = rng.normal(size=(3, 128))
    features = targets @ directions + rng.normal(size=(2, num_images, 128))
    captions = [" and ".join(f"a {NAMES[i]}" for i in np.flatnonzero(row)) or None for row in targets]
    return F.normalize(torch.from_numpy(features).float(), dim=-1), targets, captions


def classifier(clip: Any, **settings: Any) -> LMPTClassifier:
    return LMPTClassifier(
        clip=clip, **{"num_context": 2, "initial_words": "a photo", "num_epochs": 3, "batch_size": 16, **settings}
    )


def learned(clip: Any, folder: Path | None = None, **settings: Any) -> LMPTClassifier:
    model = classifier(clip, **settings)
    for _ in model.learn(*cached()[:2], NAMES, cached()[2], checkpoint_folder=folder):
        pass
    return model


@pytest.fixture(scope="module")
def photos() -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    targets = (rng.random((20, 3)) < 0.5).astype(np.uint8)
    targets[:6] = np.tile(np.eye(3), (2, 1))
    return [rng.integers(0, 255, (20, 24, 3), dtype=np.uint8) for _ in targets], targets


# -------------------------------------------------------------------------------------------- manners


def test_fit_predict_score_save_and_load(clip: Any, photos: Any, tmp_path: Path) -> None:
    images, targets = photos
    frozen = clip.checksum()
    model = classifier(clip)
    assert model.fit(images, targets, NAMES, ["a bag"] * 20) is model
    chances = model.predict_proba(images)
    assert chances.shape == (20, 3)
    assert ((0 < chances) & (chances < 1)).all()
    predicted = model.predict(images)
    np.testing.assert_array_equal(predicted, chances >= model.thresholds_)
    assert model.classes_.tolist() == list(NAMES)
    expected = multilabel_report(model.decision_function(images), targets, targets.sum(0), NAMES)["map"]
    assert model.score(images, targets) == pytest.approx(expected)
    report = model.evaluate(images, targets)
    assert report["map"] == pytest.approx(expected)
    assert {"map_tail", "f1_macro", "f1_micro", "calibration_error", "classes"} <= report.keys()
    assert clip.checksum() == frozen
    again = LMPTClassifier.load(model.save(tmp_path / "prompts"), clip=clip)
    np.testing.assert_array_equal(again.predict_proba(images), chances)
    np.testing.assert_array_equal(again.predict(images), predicted)
    assert again.evaluate(images, targets) == report
    assert again.config == model.config
    assert again.save(tmp_path / "again").is_dir()


def test_names_and_captions_may_be_left_out(clip: Any, photos: Any) -> None:
    model = classifier(clip).fit(*photos)
    assert model.classes_.tolist() == ["class 0", "class 1", "class 2"]
    assert all(record.values["contrast"] == 0 for record in model.history_)


def test_a_shared_context_is_saved_and_loaded(clip: Any, tmp_path: Path) -> None:
    model = learned(clip, class_specific=False)
    again = LMPTClassifier.load(model.save(tmp_path), clip=clip)
    assert again.objective_.prompts.context.shape[0] == 1
    np.testing.assert_array_equal(again.scores_of(cached()[0][0]), model.scores_of(cached()[0][0]))


def test_an_ending_is_saved_and_loaded(clip: Any, tmp_path: Path) -> None:
    model = learned(clip, ending=".", class_position="middle")
    again = LMPTClassifier.load(model.save(tmp_path), clip=clip)
    assert again.config.ending == "."
    np.testing.assert_array_equal(again.scores_of(cached()[0][0]), model.scores_of(cached()[0][0]))


def test_files_from_before_these_settings_are_loaded(clip: Any, tmp_path: Path) -> None:
    model = learned(clip)
    path = model.save(tmp_path) / "prompts.json"
    content = json.loads(path.read_text())
    for name in ("ending", "token_offset", "position_hinge"):
        del content["config"][name]
    path.write_text(json.dumps(content))
    again = LMPTClassifier.load(tmp_path, clip=clip)
    assert again.config == model.config
    np.testing.assert_array_equal(again.scores_of(cached()[0][0]), model.scores_of(cached()[0][0]))


def test_the_package_offers_it() -> None:
    assert gcpl_lab.LMPTClassifier is LMPTClassifier
    assert LMPTClassifier(preset="tiny", num_context=16, seed=3).config == LMPTConfig(num_context=16, seed=3)


def test_the_best_validated_prompts_are_kept(clip: Any) -> None:
    model = learned(clip, num_epochs=6, keep="best")
    measured = [record.validation for record in model.history_ if record.validation is not None]
    assert len(measured) == 6
    assert all(0 <= value <= 1 for value in measured)
    assert model.validation_map_ == pytest.approx(1 - min(measured))
    short = learned(clip, num_epochs=30, patience=1, refit=False, keep="best")
    assert len(short.history_) < short.num_steps_
    last = learned(clip, num_epochs=6)
    assert all(record.validation is None for record in last.history_)
    assert 0 < last.validation_map_ <= 1
    assert len(last.history_) == last.num_steps_  # both learnings go through the whole schedule


def test_the_last_learning_has_every_picture_and_the_best_number_of_epochs(clip: Any) -> None:
    views, targets, _ = cached()
    first, whole = (learned(clip, num_epochs=4, keep="best", refit=refit) for refit in (False, True))
    assert first.num_train_ < whole.num_train_ == len(targets)
    np.testing.assert_array_equal(whole.class_counts_, targets.sum(0))
    done = len(first.history_)
    assert [vars(record) | {"seconds": 0} for record in whole.history_[:done]] == [
        vars(record) | {"seconds": 0} for record in first.history_
    ]
    best = min((r for r in first.history_ if r.validation is not None), key=lambda record: record.validation)
    num_epochs = best.step // (done // 4)
    assert len(whole.history_) == whole.num_steps_ == done + num_epochs * math.ceil(len(targets) / 16)
    np.testing.assert_array_equal(first.thresholds_, whole.thresholds_)
    assert not np.array_equal(first.scores_of(views[0]), whole.scores_of(views[0]))


def test_it_learns_what_the_features_show(clip: Any) -> None:
    views, targets, _ = cached(80, seed=5)
    model = classifier(clip, num_epochs=15, learning_rate=0.02)
    for _ in model.learn(*cached(120)[:2], NAMES):
        pass
    first = learned(clip, num_epochs=1, learning_rate=1e-6)
    held_out = [multilabel_report(m.scores_of(views[0]), targets, targets.sum(0), NAMES)["map"] for m in (model, first)]
    assert model.history_[-1].loss < model.history_[0].loss
    assert all(np.isfinite(held_out))


def test_probabilities_do_not_overflow() -> None:
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0.0, 1e4]), (10.0, 0.0)), [0, 0.5, 1])


def test_half_precision_leaves_contexts_and_cosines_alone(random_pair: Any, tmp_path: Path) -> None:
    settings = {"preset": str(random_pair.folder), "num_epochs": 3}
    found = {}
    for precision in ("float32", "bfloat16"):
        model = LMPTClassifier(**settings, precision=precision)
        for _ in model.learn(*cached()[:2], NAMES, cached()[2]):
            pass
        assert model.clip.dtype is getattr(torch, precision)
        assert model.objective_.prompts.context.dtype is torch.float32
        found[precision] = model.history_[0].loss, model.history_[-1].loss
        again = LMPTClassifier.load(model.save(tmp_path / precision))  # in the precision that it was learned in
        assert again.clip.dtype is model.clip.dtype
        np.testing.assert_array_equal(again.scores_of(cached()[0][0]), model.scores_of(cached()[0][0]))
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.02)
    assert found["bfloat16"] != found["float32"]
    with pytest.raises(ArtifactError, match="other frozen weights"):
        LMPTClassifier.load(tmp_path / "bfloat16", clip=random_pair.clip)


# ------------------------------------------------------------------------------------------- settings

CHANGES: dict[str, Any] = {
    "num_context": 3,
    "class_specific": False,
    "class_position": "front",
    "initial_words": "the",
    "mix": 0.9,
    "ending": ".",
    "token_offset": 0,
    "position_hinge": "sum",
    "classification": "binary_cross_entropy",
    "reading": "token",
    "margin": 0.9,
    "class_aware_margin": False,
    "reweight_gamma": 0.3,
    "reweight": False,
    "contrast_reduction": "weighted",
    "negative_scale": 3.0,
    "mu": 0.1,
    "rebalance": False,
    "negative_tolerant": False,
    "focal": False,
    "scale": "clip",
    "num_epochs": 2,
    "batch_size": 9,
    "optimizer": "sgd",
    "learning_rate": 0.003,
    "schedule": "constant",
    "patience": 1,
    "validation_share": 0.4,
    "flip": False,
    "refit": False,
    "keep": "last",
    "precision": "bfloat16",
    "seed": 1,
}
BASE: dict[str, Any] = {
    "classification": "distribution_balanced",
    "mix": 0.5,
    "margin": 1.2,
    "contrast_reduction": "mean",
    "scale": "learned",
    "initial_words": "a photo",
    "negative_scale": 5.0,
    "mu": 0.3,
    "learning_rate": 0.02,
    "reweight_gamma": 1.0,
    "num_epochs": 5,
    "keep": "best",
}


@pytest.fixture(scope="module")
def usual(random_pair: Any) -> LMPTClassifier:
    return learned(random_pair.clip, **BASE)


def test_every_setting_is_tried() -> None:
    assert CHANGES.keys() == LMPTConfig().as_dict().keys() - {"preset", "checkpoint_every", "cache_encodings"}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_setting_changes_something(clip: Any, usual: LMPTClassifier, name: str) -> None:
    base = {**BASE, "reading": "token"} if name in ("token_offset", "position_hinge") else BASE
    before = usual if base is BASE else learned(clip, **base)
    changed = learned(clip, **{**base, name: CHANGES[name]})
    losses = [[record.loss for record in model.history_] for model in (before, changed)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("flip", [True, False])
def test_encoding_in_every_update_changes_no_result(clip: Any, photos: Any, flip: bool) -> None:
    """What is cached is what the image tower says each time; SGD, because AdamW magnifies rounding."""
    found = []
    settings = {"flip": flip, "batch_size": 6, "optimizer": "sgd"}
    for cache in (True, False):
        asked: list[int] = []
        hook = clip.model.visual.register_forward_pre_hook(lambda _, inputs, asked=asked: asked.append(len(inputs[0])))
        model = classifier(clip, cache_encodings=cache, **settings).fit(*photos, NAMES, ["a bag"] * 20)
        hook.remove()
        learned_first = len(split_validation(photos[1], model.config.validation_share, model.config.seed)[0])
        updates = sum(asked) - (40 if flip else 20)
        assert updates == (0 if cache else 3 * (learned_first + 20))  # three epochs, and three of the refit
        found.append((model.objective_.prompts.context.detach(), torch.tensor([r.loss for r in model.history_])))
    for cached_one, anew in zip(*found, strict=True):
        torch.testing.assert_close(cached_one, anew, atol=1e-5, rtol=1e-5)
    with pytest.raises(DataError, match="cache_encodings is False, and learn was given features alone"):
        learned(clip, cache_encodings=False)


def test_settings_survive_json_and_unknown_ones_are_named() -> None:
    config = LMPTConfig(mix=0.25, reading="token")
    assert LMPTConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    with pytest.raises(ValueError, match="unknown settings lambda"):
        LMPTConfig.from_dict({"lambda": 1})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mix": -0.1}, "mix is -0.1"),
        ({"reading": "word"}, "reading is 'word'"),
        ({"num_epochs": 0}, "num_epochs is 0"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
        ({"margin": 0}, "margin is 0"),
        ({"token_offset": -1}, "token_offset is -1; expected 0 or more, or None"),
        ({"token_offset": 1.5}, "token_offset is 1.5; expected a whole number, or None"),
        ({"position_hinge": "none"}, "position_hinge is 'none'; expected one of each, sum"),
        ({"ending": None}, "ending is None; expected text"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
        ({"patience": -1}, "patience is -1"),
    ],
)
def test_a_wrong_setting_is_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LMPTClassifier(**setting)


# ------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_is_bit_identical(clip: Any, tmp_path: Path, optimizer: str) -> None:
    views, targets, captions = cached()
    whole = learned(clip, optimizer=optimizer)
    stopped = classifier(clip, optimizer=optimizer)
    for record in stopped.learn(views, targets, NAMES, captions, checkpoint_folder=tmp_path):
        if record.step == 3:  # in the second epoch, behind the first checkpoint
            break
    with pytest.raises(DataError, match="stopped before its end"):
        stopped.save(tmp_path / "early")
    assert not (tmp_path / "early").exists()
    resumed = learned(clip, tmp_path, optimizer=optimizer)
    assert [record.step for record in resumed.history_] == list(range(1, resumed.num_steps_ + 1))
    for first, second in zip(
        whole.objective_.trainable_parameters(), resumed.objective_.trainable_parameters(), strict=True
    ):
        assert torch.equal(first, second)
    np.testing.assert_array_equal(whole.thresholds_, resumed.thresholds_)


def test_checkpoints_are_as_frequent_as_asked(clip: Any, tmp_path: Path) -> None:
    views, targets, captions = cached()
    for every, first in ((None, 2), (1, 1), (5, 5)):  # two steps an epoch
        steps = classifier(clip, checkpoint_every=every).learn(
            views, targets, NAMES, captions, checkpoint_folder=tmp_path / str(every)
        )
        seen = [record.step for record in steps if any((tmp_path / str(every)).glob("*.safetensors"))]
        assert seen[0] == first
    with pytest.raises(ValueError, match="checkpoint_every is 0"):
        LMPTClassifier(checkpoint_every=0)


def test_a_checkpoint_of_other_captions_is_refused(clip: Any, tmp_path: Path) -> None:
    learned(clip, tmp_path)
    views, targets, captions = cached()
    with pytest.raises(ArtifactError, match="another run|other settings"):
        list(classifier(clip).learn(views, targets, NAMES, captions[::-1], checkpoint_folder=tmp_path))


# ------------------------------------------------------------------------------------------ bad input


def test_what_does_not_fit_together_is_named(clip: Any, photos: Any, tmp_path: Path) -> None:
    images, targets = photos
    model = classifier(clip)
    wrong = targets.astype(int)
    wrong[3, 1] = 7
    for arguments, message in (
        ((images[:4], targets), "4 pictures and 20 rows of targets"),
        ((images, wrong), "image 3, class 1 is 7; expected 0 or 1"),
        ((images, targets[:, 0]), r"shape \(20,\)"),
        ((images, targets[:, :1]), "have 1 classes; expected two or more"),
        ((images, targets, NAMES[:2]), "class_names has 2 names; expected 3"),
        ((images, targets, ("shirt", "bag", "bag")), "class name 2 is 'bag', as is class name 1"),
        ((images, targets, NAMES, ["a bag"] * 19), "19 captions for 20 pictures"),
        ((images, targets, NAMES, "a bag"), "5 captions for 20 pictures"),
        ((images, targets, NAMES, [*["a bag"] * 19, 3]), "caption 19 is 3"),
        ((images, targets * np.array([1, 0, 1]), NAMES), "1 classes have no picture(.|\n)*ankle boot"),
    ):
        with pytest.raises(DataError, match=message):
            model.fit(*arguments, checkpoint_folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for ask in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(DataError, match="has learned nothing yet"):
            ask(images)


def test_unusual_and_damaged_pictures(clip: Any, photos: Any, tmp_path: Path) -> None:
    images, targets = photos
    mixed: list[Any] = [Image.fromarray(image) for image in images]
    mixed[0], mixed[1], mixed[2] = mixed[0].convert("L"), mixed[1].convert("RGBA"), mixed[2].convert("CMYK")
    assert np.isfinite(classifier(clip, num_epochs=1).fit(mixed, targets).predict_proba(mixed)).all()
    good = tmp_path / "good.png"
    mixed[3].save(good)
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:300])
    with pytest.raises(DataError, match=r"2 pictures cannot be used(.|\n)*broken.png(.|\n)*gone.png"):
        classifier(clip).fit([good, broken, tmp_path / "gone.png", *mixed[3:]], targets)


def test_a_loss_that_is_no_number_stops_before_the_update(clip: Any, tmp_path: Path, monkeypatch: Any) -> None:
    usual_loss, calls = LMPT.classification_loss, []

    def loss(self: LMPT, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return usual_loss(self, logits, targets) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(LMPT, "classification_loss", loss)
    model = classifier(clip)
    with pytest.raises(TrainingError, match="step 4: the loss"):
        list(model.learn(*cached()[:2], NAMES, checkpoint_folder=tmp_path))
    assert torch.isfinite(model.objective_.prompts.context).all()
    assert [path.name for path in tmp_path.iterdir()] == ["lmpt.checkpoint.safetensors"]
    with pytest.raises(DataError, match="stopped before its end"):
        model.predict(np.zeros((1, 9, 9, 3), np.uint8))


def test_damaged_and_foreign_folders(clip: Any, tmp_path: Path) -> None:
    folder = learned(clip).save(tmp_path / "prompts")
    path = folder / "prompts.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"method": None}, "holds no contexts of LMPT"),
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


def test_targets_of_other_classes_are_refused(clip: Any, photos: Any) -> None:
    images, targets = photos
    model = classifier(clip, num_epochs=1).fit(images, targets)
    with pytest.raises(DataError, match=r"shape \(20, 2\); expected \(20, 3\)"):
        model.score(images, targets[:, :2])


# -------------------------------------------------------------------------------------- wrong captions


def test_captions_are_replaced_by_those_of_other_images() -> None:
    targets = np.eye(4, dtype=np.uint8)[[0, 1, 2, 3, 0, 1, 2, 3]]
    captions: list[str | None] = [f"caption {i % 4}" for i in range(8)]
    captions[5] = None
    half = replace_captions(captions, targets, 0.5, seed=1)
    assert half[5] is None
    changed = [i for i in range(8) if half[i] != captions[i]]
    assert len(changed) == 4  # half of seven, rounded
    every = replace_captions(captions, targets, 1.0, seed=1)
    assert all(every[i] == half[i] for i in changed)
    assert all(every[i] != captions[i] for i in range(8) if i != 5)
    assert replace_captions(captions, targets, 0.0) == tuple(captions)
    with pytest.raises(DataError, match="share of wrong captions is 2"):
        replace_captions(captions, targets, 2)
    with pytest.raises(DataError, match="the same classes"):
        replace_captions(captions, np.ones((8, 2)), 0.5)


# ----------------------------------------------------------------------------------- on the real model


@needs_tiny
def test_sixty_scenes_are_enough_to_beat_zero_shot() -> None:
    train, test = load_wardrobe("train"), load_wardrobe("test")
    rng = np.random.default_rng(0)
    rare = np.flatnonzero(train.targets[:, train.class_counts() < 60].any(axis=1))
    chosen = train.subset(np.sort(rng.permutation(rare)[:60]))
    test = test.subset(np.arange(0, len(test), 2))
    model = LMPTClassifier(num_context=4, num_epochs=30, batch_size=16, seed=0)
    model.fit(chosen.images, chosen.targets, chosen.class_names, chosen.captions)
    from gcpl_lab.baselines.clip_features import ZeroShotCLIP
    from gcpl_lab.lmpt.estimator import encode_views

    features = encode_views(model.clip, test.images, flip=False)[0]
    zero_shot = ZeroShotCLIP(model.clip, test.class_names).scores(features).numpy()
    reports = [
        multilabel_report(scores, test.targets, chosen.class_counts(), test.class_names)["map"]
        for scores in (model.scores_of(features), zero_shot)
    ]
    assert reports[0] > reports[1] + 0.04


@needs_tiny
@pytest.mark.skipif(not COCO.is_file(), reason="../shared/data/coco_small.zip is not there")
def test_coco_small_runs_end_to_end(tmp_path: Path) -> None:
    with zipfile.ZipFile(COCO) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "coco_small"
    sets = [
        read_metadata(
            folder / "labels.csv", image_folder=folder / "images", file_column="filename", rows={"split": split}
        )
        for split in ("train", "test")
    ]
    train, test = sets
    assert len(train.class_names) == 80
    model = LMPTClassifier(num_context=4, num_epochs=2, seed=0)
    model.fit(train.images, train.targets, train.class_names, train.captions)
    assert sum(caption is not None for caption in train.captions) > 300
    report = model.evaluate(test.images, test.targets)
    assert len(report["classes"]) == 80
    assert 0 < report["map"] < 1
    assert np.isfinite([record.loss for record in model.history_]).all()
    for entry in report["classes"]:
        assert (entry["average_precision"] is None) == (entry["num_test"] == 0)


@pytest.mark.parametrize("chosen", ["float32", "bfloat16"])
def test_training_goes_on_in_the_format_that_was_measured(
    clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: Any
) -> None:
    calls = []

    def measure(run: Any, repeats: int = 5) -> runtime.MeasuredFormat:
        calls.append([run(name) for name in ("float32", "bfloat16")])
        return runtime.MeasuredFormat(chosen, {"float32": 1.0, "bfloat16": 2.0})

    monkeypatch.setattr(runtime, "measure_formats", measure)
    monkeypatch.setattr(runtime, "_TRAINING", type(runtime._TRAINING)())
    model, plain = learned(clip, tmp_path / "run", precision="measured"), learned(clip, precision="float32")
    assert len(calls) == 1
    runtime._TRAINING.clear()
    again = learned(clip, tmp_path / "run", precision="measured")  # goes on from the end: nothing is measured
    assert len(calls) == 1
    assert (
        again.training_format_
        == model.training_format_
        == runtime.MeasuredFormat(chosen, {"float32": 1.0, "bfloat16": 2.0})
    )
    contexts = [found.objective_.prompts.context.detach() for found in (model, plain, again)]
    assert torch.equal(contexts[0], contexts[1]) == (chosen == "float32")
    assert torch.equal(contexts[0], contexts[2])
    loaded = LMPTClassifier.load(model.save(tmp_path / "saved"), clip=clip)
    assert loaded.training_format_ == model.training_format_
