"""The estimator: scikit-learn's manners, files, resumption, and no setting without effect.

The models have random weights, so nothing is asked here about how well it recognises anything.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.special import softmax

from gcpl_lab import GCPLClassifier
from gcpl_lab.data.readers import read_images
from gcpl_lab.errors import ArtifactError, DataError, ModelError, TrainingError
from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.gcpl.growing import GrownClassifier
from gcpl_lab.gcpl.objectives import GCPL, OBJECTIVES, register_objective
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, NoisyBatch
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import read_checked, read_json, write_json
from gcpl_lab.training.loop import end_early
from tests.made_up import SMALL_SETTINGS

ANIMALS = np.array(["zebra", "ant", "moth"])


def small(diffusion: Any, objective: Any = "gcpl", **settings: Any) -> GCPLClassifier:
    return GCPLClassifier(objective=objective, diffusion=diffusion, **(SMALL_SETTINGS | settings))


@pytest.fixture(scope="module")
def fitted(random_pair: Any, pictures: Any) -> GCPLClassifier:
    images, ids = pictures
    return small(random_pair.diffusion).fit(images, ANIMALS[ids])


def test_classes_scores_and_probabilities(fitted: GCPLClassifier, pictures: Any) -> None:
    images, ids = pictures
    assert fitted.classes_.tolist() == list(fitted.class_names_) == ["ant", "moth", "zebra"]  # sorted
    scores, chances, predicted = fitted.decision_function(images), fitted.predict_proba(images), fitted.predict(images)
    assert predicted.tolist() == fitted.classes_[scores.argmax(1)].tolist()
    assert fitted.score(images, ANIMALS[ids]) == pytest.approx(np.mean(predicted == ANIMALS[ids]))
    np.testing.assert_allclose(chances, softmax(fitted.temperature_ * scores, axis=1), rtol=1e-4, atol=1e-6)


def test_paths_images_and_arrays_are_alike(fitted: GCPLClassifier, pictures: Any, tmp_path: Path) -> None:
    arrays = pictures[0][::4]
    shown, paths = [Image.fromarray(array) for array in arrays], [tmp_path / f"{index}.png" for index in range(3)]
    for image, path in zip(shown, paths, strict=True):
        image.save(path)
    for sources in (shown, list(map(str, paths)), [arrays[0], shown[1], paths[2]]):
        assert np.array_equal(fitted.decision_function(sources), fitted.decision_function(arrays))


def test_one_image_at_a_time_is_in_memory(diffusion: Any, pictures: Any, most_alive: Callable[[], int]) -> None:
    images, ids = list(pictures[0]) * 6, np.tile(pictures[1], 6)
    many = small(diffusion, num_steps=1, classification="exact").fit(images, ids)
    assert many.predict(images).shape == ids.shape
    assert 0 < most_alive() <= 2
    few = many.predict_proba(pictures[0])  # of each of which the VAE sees the same, whatever is beside it
    np.testing.assert_allclose(many.predict_proba(images)[: len(few)], few, rtol=1e-4, atol=1e-6)


def test_labels_and_names_of_any_kind(diffusion: Any, pictures: Any, tmp_path: Path) -> None:
    """Labels come back as they were, also from a file, and make no difference to the prompts."""
    (images, ids), names = pictures, ["Größe 42", "coat " * 300, "長靴"]
    first = small(diffusion).fit(images, ids, names)
    assert first.classes_.tolist() == [0, 1, 2]
    assert np.isfinite(first.predict_proba(images[:2])).all()
    for number, labels in enumerate(((ids + 7).tolist(), np.array(["a", "b", "c"])[ids], ids.astype(float))):
        other = small(diffusion).fit(images, labels, names)
        assert torch.equal(other.prompts_.vectors, first.prompts_.vectors)
        loaded = GCPLClassifier.load(other.save(tmp_path / str(number)), diffusion=diffusion)
        assert other.predict(images[:2]).dtype == loaded.predict(images[:2]).dtype == np.asarray(labels).dtype
        assert loaded.classes_.tolist() == sorted(set(np.asarray(labels).tolist()))


def test_history_states_and_evaluations_are_kept(diffusion: Any, pictures: Any) -> None:
    before, models = diffusion.checksum(), []
    for _ in range(2):
        model = small(diffusion, "discriminative", num_rivals=1)
        model.journey_every = 1
        models.append(model.fit(*pictures))
    assert [record.step for record in model.history_] == sorted(model.states_)[1:] == [1, 2, 3, 4]
    assert torch.equal(model.states_[4], model.prompts_.vectors.detach())
    assert not torch.equal(model.states_[0], model.states_[2])
    assert ["accuracy" in record.values for record in model.history_] == [False, False, True, True]
    # 2 · 4 for GCPL; 12 images · 3 classes · 2 samples for the rivals; 2 · 2 · 2 · 2 candidates afterwards
    assert model.train_evaluations_ == 8 + 72 + 16
    assert diffusion.checksum() == before
    assert torch.equal(models[0].prompts_.vectors, model.prompts_.vectors)  # equal seeds give equal results
    assert np.array_equal(*(one.predict_proba(pictures[0]) for one in models))


def test_a_warm_start_takes_the_place_of_gcpl(diffusion: Any, pictures: Any) -> None:
    gcpl, whole, warm = (small(diffusion, name) for name in ("gcpl", "discriminative", "discriminative"))
    exemplars = Exemplars.encode(diffusion, diffusion.preprocess(read_images(pictures[0])), pictures[1])
    start = gcpl.fit(*pictures).prompts_.vectors.detach()
    records = list(warm.learn(exemplars, ["0", "1", "2"], warm_start=start))
    assert [record.step for record in records] == [1, 2]
    assert torch.equal(warm.prompts_.vectors, whole.fit(*pictures).prompts_.vectors)
    assert torch.equal(warm.states_[0], start)


def test_steps_can_be_left_or_ended(diffusion: Any, pictures: Any, tmp_path: Path) -> None:
    images, ids = pictures
    model = small(diffusion, num_steps=5).fit(images, ids)
    records = model.steps(images, ids)
    next(records), next(records)
    assert model.predict(images[:2]).shape == (2,)
    for forbidden in (lambda: model.predict_proba(images[:2]), lambda: model.save(tmp_path / "run")):
        with pytest.raises(DataError, match="training was stopped before its end"):
            forbidden()
    assert not (tmp_path / "run").exists()
    end_early(records)  # as if the second update were the last
    assert model.predict_proba(images[:2]).shape == (2, 3)
    assert torch.equal(model.states_[2], model.prompts_.vectors.detach())


KINDS: dict[str, dict[str, Any]] = {
    "gcpl": {},
    "comple": {"objective": "comple"},
    "discriminative": {"objective": "discriminative"},
    "fast": {"classification": "fast", "num_evidence": 4, "num_folds": 2},
}
"""Runs in which a setting has something to change."""

CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("gcpl", {"num_vectors": 3, "initial": ("random", "coarse"), "templates": (("a photo of a {}", "one {}"),)}),
    ("gcpl", {"objective": "comple", "num_steps": 3, "batch_size": 5, "learning_rate": 0.03, "schedule": "constant"}),
    ("gcpl", {"weight_decay": 0.5, "gradient_clip": 1e-5, "timestep_range": ((0.5, 0.9),), "num_evidence": 3}),
    ("gcpl", {"classification": "fast", "evidence_batch_size": 5, "evidence_bfloat16": False, "flip": False}),
    ("gcpl", {"weighting": "relative", "class_offsets": False, "precision": "bfloat16", "seed": 1}),
    ("gcpl", {"micro_batch_size": 3, "gradient_checkpointing": True}),
    ("comple", {"contrast_weight": 0.3}),
    ("discriminative", {"discriminative_steps": 3, "discriminative_batch_size": 3, "discriminative_rate": 0.02}),
    ("discriminative", {"num_samples": 1, "num_rivals": 1, "temperature": 3.0, "options": {"own_weight": 0.0}}),
    ("fast", {"evidence_pool": 5, "num_folds": 3}),
]
"""By the kind of run; of a tuple each value is another."""

SEPARATELY_TESTED = {"fit", "preset", "checkpoint_every", "error_rate"}


@pytest.fixture(scope="module")
def outcome(random_pair: Any, pictures: Any) -> Any:
    """What a setting may change: the losses, the answers, or the number of passes."""

    @functools.cache
    def run(settings: str) -> tuple[Any, ...]:
        (images, ids), passes, denoiser = pictures, list[int](), random_pair.diffusion.denoiser
        model = small(random_pair.diffusion, preset=str(random_pair.folder), **json.loads(settings))
        parts = (denoiser, denoiser.mid_block.resnets[1])
        hooks = [part.register_forward_pre_hook(lambda *_: passes.append(1)) for part in parts]
        try:
            model.fit(images, ids, ["coat", "bag", "shoe"], coarse_words=["top", "shoe", "bag"])
            scores = model.decision_function(images[:3])
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(record.loss for record in model.history_), scores.round(7).tolist(), len(passes)

    return lambda **settings: run(json.dumps(settings))


def test_every_setting_is_tested() -> None:
    assert {name for _, changes in CHANGES for name in changes} | SEPARATELY_TESTED == GCPLConfig().as_dict().keys()


@pytest.mark.parametrize(
    ("kind", "name", "value"), [(kind, *change) for kind, all_ in CHANGES for change in all_.items()]
)
def test_every_setting_changes_something(outcome: Any, kind: str, name: str, value: Any) -> None:
    changes = [{name: one} for one in (value if isinstance(value, tuple) else (value,))]
    found = [outcome(**KINDS[kind] | change) for change in ({}, *changes)]
    assert all(one != other for one, other in itertools.combinations(found, 2))


@pytest.mark.parametrize(
    ("name", "value"), [("micro_batch_size", 3), ("gradient_checkpointing", True), ("evidence_batch_size", 5)]
)
def test_how_the_work_is_cut_up_changes_no_result(outcome: Any, name: str, value: int) -> None:
    # In bfloat16 a last digit of the prompts may become the third digit of an error.
    plain, cut = outcome(evidence_bfloat16=False), outcome(evidence_bfloat16=False, **{name: value})
    assert cut[0] == pytest.approx(plain[0], rel=1e-5)
    np.testing.assert_allclose(cut[1], plain[1], atol=1e-5)
    assert cut[2] > plain[2]


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("batch_size", [2, 11])
def test_an_image_is_judged_alike_whatever_is_beside_it(
    diffusion: Any, pictures: Any, batch_size: int, bfloat16: bool
) -> None:
    """3 classes · 2 samples: no two images fit into a pass of up to 11, so not a digit depends on the others."""
    model = small(diffusion, evidence_batch_size=batch_size, evidence_bfloat16=bfloat16, num_steps=0).fit(*pictures)
    latents = model.encode(pictures[0])
    together = model.evidence(latents).errors
    for first, last in ((0, 1), (3, 8), (11, 12)):
        np.testing.assert_array_equal(model.evidence(latents[first:last]).errors, together[first:last])


def test_weights_are_loaded_in_the_precision_and_again_from_the_file(
    random_pair: Any, pictures: Any, tmp_path: Path
) -> None:
    """The prompts stay float32; whoever reads them gets the weights they were learned on, whatever is preferred."""
    model = GCPLClassifier(preset=str(random_pair.folder), precision="bfloat16", **SMALL_SETTINGS).fit(*pictures)
    assert model.diffusion.dtype is torch.bfloat16  # loaded when it was needed
    assert model.prompts_.vectors.dtype is model.prompts_.vectors.grad.dtype is torch.float32  # type: ignore[union-attr]
    again = GCPLClassifier.load(model.save(tmp_path), preset=str(random_pair.folder))
    assert again.diffusion.dtype is torch.bfloat16
    assert np.array_equal(again.decision_function(pictures[0][:2]), model.decision_function(pictures[0][:2]))


def test_a_folder_of_models_that_a_file_names_is_opened_only_when_asked(
    random_pair: Any, pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path is saved whole, so that what the message says to give works from any folder."""
    monkeypatch.chdir(random_pair.folder.parent)
    model = GCPLClassifier(random_pair.folder.name, diffusion=random_pair.diffusion, **SMALL_SETTINGS).fit(*pictures)
    saved, place = model.save(tmp_path / "prompts"), str(random_pair.folder.resolve())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=re.escape(f"--preset {place!r}")):
        GCPLClassifier.load(saved)
    assert GCPLClassifier.load(saved, preset=place).config.preset == place
    assert GCPLClassifier.load(saved, random_pair.diffusion).config.preset == random_pair.diffusion.name


class Huber(GCPL):
    """As a cell of a notebook would have it: one class, with a setting of its own."""

    def __init__(self, diffusion: FrozenDiffusion, prompts: ClassPrompts, delta: float = 1e6) -> None:
        super().__init__(diffusion, prompts)
        self.delta = delta

    def __call__(self, batch: NoisyBatch) -> dict[str, torch.Tensor]:
        return {"loss": F.huber_loss(self.predict(batch), batch.noise, delta=self.delta)}


@pytest.mark.parametrize("name", ["huber", "Huber"])
def test_an_objective_registered_in_one_place_is_known_everywhere(
    diffusion: Any, pictures: Any, own_registries: None, tmp_path: Path, name: str
) -> None:
    """By the decorator under a name of its own, or as a bare class."""
    images, frozen = pictures[0], diffusion.checksum()
    if name == "huber":
        register_objective("huber", title="Huber loss", defaults={"delta": 1e6})(Huber)
    wide, narrow = (small(diffusion, Huber, **given).fit(*pictures) for given in ({}, {"delta": 0.1}))
    assert OBJECTIVES.titles()[name] == ("Huber loss" if name == "huber" else "Huber")
    assert list(OBJECTIVES).count(name) == 1
    assert (narrow.config.objective, narrow.config.options) == (name, {"delta": 0.1})
    # Below a wide bend it is half the squared error, which AdamW learns from as from the whole.
    plain = small(diffusion).fit(*pictures)
    assert wide.history_[0].loss == pytest.approx(plain.history_[0].loss / 2)
    assert narrow.history_[0].loss < wide.history_[0].loss
    assert not torch.equal(narrow.prompts_.vectors, narrow.states_[0])
    assert diffusion.checksum() == frozen
    by_name = small(diffusion, name, delta=0.1).fit(*pictures)
    assert torch.equal(by_name.prompts_.vectors, narrow.prompts_.vectors)
    loaded = GCPLClassifier.load(narrow.save(tmp_path), diffusion=diffusion)
    assert loaded.config == narrow.config
    assert np.array_equal(loaded.predict_proba(images), narrow.predict_proba(images))
    del OBJECTIVES._entries[name]  # as in a program that has not run the cell
    needed = f"objective '{name}', which is not registered here; define the class Huber again or import .*{__name__}"
    with pytest.raises(ArtifactError, match=needed):
        GCPLClassifier.load(tmp_path, diffusion=diffusion)


TWO_STAGES = {"num_steps": 4, "discriminative_steps": 4, "num_rivals": 1}


@pytest.fixture(scope="module")
def whole(random_pair: Any, pictures: Any) -> GCPLClassifier:
    return small(random_pair.diffusion, "discriminative", **TWO_STAGES).fit(*pictures)


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
def test_a_resumed_fit_equals_an_uninterrupted_one(
    diffusion: Any, pictures: Any, whole: GCPLClassifier, tmp_path: Path, stop: int
) -> None:
    """Stopped in GCPL's updates (1, 3), between the two stages (4), and in the discriminative ones (5, 7)."""
    settings = {**TWO_STAGES, "checkpoint_every": 2}
    broken = small(diffusion, "discriminative", **settings)
    resumed = small(diffusion, "discriminative", **settings | {"checkpoint_every": 3})  # how often may change
    broken.journey_every = resumed.journey_every = 1
    steps = broken.steps(*pictures, checkpoint_folder=tmp_path)
    assert [next(steps).step for _ in range(stop)][-1] == stop
    steps.close()
    records, done = list(resumed.steps(*pictures, checkpoint_folder=tmp_path)), 2 * (stop // 2)
    assert torch.equal(resumed.prompts_.vectors, whole.prompts_.vectors)
    assert resumed.temperature_ == whole.temperature_
    assert [record.step for record in records] == list(range(done + 1, 9))
    for found, expected in ((records, whole.history_[done:]), (resumed.history_, whole.history_)):
        assert [replace(one, seconds=0.0) for one in found] == [replace(one, seconds=0.0) for one in expected]
    assert sorted(resumed.states_) == list(range(9))
    for step in (4, 8):
        assert torch.equal(resumed.states_[step], whole.states_[step])


def test_a_checkpoint_of_other_settings_data_names_or_model_is_refused(
    diffusion: Any, pictures: Any, tmp_path: Path
) -> None:
    images, ids = pictures
    small(diffusion).fit(images, ids, checkpoint_folder=tmp_path)
    refused = pytest.raises(ArtifactError, match=r"gcpl\.checkpoint\.safetensors: belongs to a run with other")
    others = [({"seed": 1}, (images, ids)), ({}, (images[::-1], ids)), ({}, (images, ids, ["coat", "bag", "shoe"]))]
    for settings, given in others:
        with refused:
            small(diffusion, **settings).fit(*given, checkpoint_folder=tmp_path)
    weight = next(diffusion.denoiser.parameters()).detach().view(-1)
    kept = weight[0].clone()
    weight[0] += 1e-3
    try:
        with refused:
            small(diffusion).fit(images, ids, checkpoint_folder=tmp_path)
    finally:
        weight[0] = kept


@pytest.mark.parametrize("most", [5, 0])
def test_classifying_makes_smaller_passes_where_memory_runs_out(
    fitted: GCPLClassifier, pictures: Any, most: int
) -> None:
    """A device whose memory ends at ``most`` evaluations in a pass."""
    latents, sizes = fitted.encode(pictures[0]), list[int]()
    expected = fitted.evidence(latents).errors

    def run_out(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    refused = pytest.raises(TrainingError, match="memory ran out with a single piece.*'bfloat16', or free the")
    handle = fitted.diffusion.denoiser.register_forward_pre_hook(run_out)
    try:
        with nullcontext() if most else refused:
            np.testing.assert_allclose(fitted.evidence(latents).errors, expected, rtol=1e-2)  # bfloat16 rounds
            assert max(sizes[-3:]) <= most < sizes[0]
    finally:
        handle.remove()


def test_save_and_load(fitted: GCPLClassifier, random_pair: Any, pictures: Any, tmp_path: Path) -> None:
    loaded = GCPLClassifier.load(fitted.save(tmp_path / "run"), diffusion=random_pair.diffusion)
    assert (loaded.config, loaded.class_names_) == (fitted.config, fitted.class_names_)
    assert np.array_equal(loaded.predict_proba(pictures[0]), fitted.predict_proba(pictures[0]))
    again = loaded.save(tmp_path / "again")
    assert read_json(again / "prompts.json") == read_json(tmp_path / "run" / "prompts.json")
    assert sum(path.stat().st_size for path in again.iterdir()) < 10_000  # never the frozen model
    other = FrozenDiffusion.load(str(random_pair.folder))
    next(other.denoiser.parameters()).detach().view(-1)[0] += 1e-3
    with pytest.raises(ArtifactError, match="learned on other frozen weights than those of"):
        GCPLClassifier.load(again, diffusion=other)


@pytest.mark.parametrize("missing", ["config", "class_names", "classes", "temperature", "offsets", "diffusion", None])
def test_incomplete_files_are_refused_and_earlier_ones_read(
    fitted: GCPLClassifier, diffusion: Any, tmp_path: Path, missing: str | None
) -> None:
    """Earlier ones hold settings that have gone, and neither options nor a weighting nor the objective's class."""
    path = fitted.save(tmp_path) / "prompts.json"
    metadata = read_checked(path)
    metadata["config"] |= {"early_stopping": "none", "gcpl_share": 1.0, "precision": "measured"}
    del metadata["weighting"], metadata["objective_class"], metadata["config"]["options"]
    write_json(path, {name: value for name, value in metadata.items() if name != missing})
    if missing:
        with pytest.raises(ArtifactError, match=r"prompts|has vectors of shape"):
            GCPLClassifier.load(tmp_path, diffusion=diffusion)
    else:
        loaded = GCPLClassifier.load(tmp_path, diffusion=diffusion)
        assert (loaded.weighting_, loaded.config) == ("absolute", fitted.config)


def test_input_that_does_not_fit_is_named(
    fitted: GCPLClassifier, diffusion: Any, pictures: Any, tmp_path: Path
) -> None:
    (images, ids), pairs = pictures, [0, 1] * 6
    (tmp_path / "empty.png").touch()
    for given, message in (
        ((images, [0] * 12), "all 12 images have the label 0; expected at least two classes"),
        ((images, [0, 1] * 5), "12 images and 10 labels"),
        ((images, pairs, ["coat"]), "class_names has 1 names for 2 classes"),
        ((images, pairs, ["coat", " \t"]), "class name 1 is ' .t'"),
        ((images, pairs, ["coat", "coat"]), "class name 1 is 'coat', as is class name 0"),
        ((images, [[0], [1]] * 6), r"label 0 is \[0\]; expected one label an image, shape \(12,\)"),
        (([], []), "no images were given"),
        (([*images[:11], tmp_path / "empty.png"], ids), r"empty\.png: is empty"),
    ):
        with pytest.raises(DataError, match=message):
            small(diffusion).fit(*given)
    with pytest.raises(DataError, match="one coarse word a class"):
        small(diffusion, initial="coarse").fit(images, ids)
    with pytest.raises(ModelError, match="'sd-3' is neither a preset nor a folder"):
        GCPLClassifier(preset="sd-3").fit(images, ids)
    with pytest.raises(DataError, match="12 images and 3 labels"):
        fitted.score(images, [0, 1, 2])
    for method in ("predict", "predict_proba", "decision_function", "save"):
        with pytest.raises(DataError, match="has learned nothing yet"):
            getattr(small(diffusion), method)(tmp_path / "run" if method == "save" else images)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["gcpl", "directional", "comple", "discriminative"])
def test_classes_that_come_later_leave_the_known_ones_alone(random_pair: Any, pictures: Any, objective: str) -> None:
    images, ids = np.asarray(pictures[0]), pictures[1]
    old = ids != 1  # the new class stands between the known ones
    settings = {"weight_decay": 0.5, "contrast_weight": 0.1} if objective == "comple" else {"weight_decay": 0.5}
    before = small(random_pair.diffusion, objective, **settings).fit(images[old], ANIMALS[ids[old]])
    frozen, scores = before.prompts_.vectors.detach().clone(), before.decision_function(images)
    grown = GrownClassifier(before).fit(images, ANIMALS[ids])
    assert grown.classes_.tolist() == ["ant", "moth", "zebra"]
    places = [grown.class_names_.index(name) for name in before.class_names_]
    (new,) = set(range(3)) - set(places)
    assert torch.equal(grown.prompts_.vectors[places], frozen)
    assert torch.equal(before.prompts_.vectors, frozen)
    assert all(vectors.shape == grown.prompts_.vectors.shape for vectors in grown.states_.values())
    assert not torch.equal(grown.prompts_.vectors[new].cpu(), grown.states_[0][new])
    assert (grown.temperature_, grown.offsets_[places].tolist()) == (before.temperature_, before.offsets_.tolist())
    after = grown.decision_function(images)
    np.testing.assert_allclose(after[:, places], scores, rtol=1e-3, atol=1e-5)
    kept = np.array(places)[scores.argmax(1)]
    assert set(after.argmax(1)[after.argmax(1) != kept]) <= {new}  # an image stays, or goes to the new class
    chances = softmax(grown.temperature_ * (class_scores(grown.support_errors_, "absolute") + grown.offsets_), axis=1)
    assert chances[:, new].mean() == pytest.approx(1 / 3, abs=0.01)  # where the log-loss has no slope
    if objective in ("gcpl", "directional"):  # a class alone: its share of the evaluations
        assert grown.train_evaluations_ == SMALL_SETTINGS["num_steps"] * round(SMALL_SETTINGS["batch_size"] / 3)


def test_known_classes_must_fit(fitted: GCPLClassifier, random_pair: Any, pictures: Any) -> None:
    images, ids = pictures
    with pytest.raises(DataError, match="learned nothing yet"):
        GrownClassifier(small(random_pair.diffusion))
    with pytest.raises(DataError, match="expected these and a further one"):
        GrownClassifier(fitted).fit(images, ANIMALS[ids])
    with pytest.raises(DataError, match="known classes are ant, moth, zebra; expected these"):
        GrownClassifier(fitted).fit(images, np.array(["ant", "moth", "yak"])[ids])
