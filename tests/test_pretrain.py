"""How the tiny pair is made: true captions, reproducible batches, resumable stages, whole exports.

All on made-up pictures and toy models; what training hours give is measured elsewhere.
"""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gcpl_lab.data.captions import (
    ATTRIBUTE_WORDS,
    COARSE_NAMES,
    SPOKEN_NAMES,
    TEMPLATES,
    AttributeScale,
    attribute_words,
    caption_vocabulary,
    measure_attributes,
    photo_caption,
    scene_caption,
    spoken_name,
)
from gcpl_lab.data.fashion import FASHION_CLASSES, FASHION_FAMILIES, RawFashion, family_of, read_raw_fashion
from gcpl_lab.data.scenes import CANVAS_SIZE, compose_scene
from gcpl_lab.errors import ArtifactError, DataError
from tools import pretrain
from tools.pretrain import PretrainData, StageConfig, train_stage


def made_up_raw(count: int = 120) -> RawFashion:
    """Rectangles of random size, place and tone on black, of all ten classes."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, 28, 28), np.uint8)
    for image in images:
        top, left = rng.integers(1, 8, 2)
        bottom, right = rng.integers(16, 27, 2)
        image[top:bottom, left:right] = rng.integers(40, 256) - rng.integers(0, 20, (bottom - top, right - left))
    labels = np.arange(count) % 10
    return RawFashion(images, labels, images[:20], labels[:20])


@pytest.fixture(scope="module")
def data() -> PretrainData:
    return PretrainData(made_up_raw())


# ------------------------------------------------------------------------------------------------- captions


def test_spoken_names_are_chances_inside_the_family() -> None:
    assert SPOKEN_NAMES.keys() == set(FASHION_CLASSES)
    for name, chances in SPOKEN_NAMES.items():
        assert sum(chances.values()) == pytest.approx(1)
        assert min(chances.values()) > 0
        assert {family_of(spoken) for spoken in chances} == {family_of(name)}
        assert name in chances


def test_names_are_spoken_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    label = FASHION_CLASSES.index("coat")
    spoken = [spoken_name(label, rng) for _ in range(4000)]
    assert spoken.count("top") / 4000 == pytest.approx(0.4, abs=0.04)  # standard error 0.008
    for name, chance in SPOKEN_NAMES["coat"].items():
        assert spoken.count(name) / 4000 == pytest.approx(0.6 * chance, abs=0.04)
    assert set(spoken) == {"top", *SPOKEN_NAMES["coat"]}


def test_measured_attributes_by_hand() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 4:24, 10:18] = 51  # 20 rows, 8 columns, value 0.2, symmetric around the middle
    found = measure_attributes(image)
    assert found["tone"][0] == pytest.approx(0.2)
    assert found["length"][0] == 20
    assert found["width"][0] == pytest.approx(8 / 20)
    assert found["fill"][0] == pytest.approx(1.0)
    for name in ("shading", "texture", "symmetry", "front", "balance", "sleeves"):
        assert found[name][0] == pytest.approx(0.0, abs=1e-6), name
    brighter = image.copy()
    brighter[0, 4:14, 10:14] = 102
    changed = measure_attributes(brighter)
    for name in ("tone", "shading", "texture", "symmetry", "balance"):
        assert changed[name][0] > found[name][0], name


def test_an_empty_picture_has_finite_attributes() -> None:
    assert all(np.isfinite(values).all() for values in measure_attributes(np.zeros((2, 28, 28), np.uint8)).values())


def test_levels_are_thirds_within_the_family(data: PretrainData) -> None:
    measured = measure_attributes(data.images)
    for family, attributes in ATTRIBUTE_WORDS.items():
        members = [i for i, label in enumerate(data.labels) if family_of(FASHION_CLASSES[label]) == family]
        for name in attributes:
            values = measured[name][members]
            levels = np.array([data.levels[i][name] for i in members])
            assert set(levels) <= {0, 1, 2}
            order = np.argsort(values, kind="stable")
            assert (np.diff(levels[order]) >= 0).all(), f"{family} {name}: a higher value has a lower level"
        tones = np.array([data.levels[i]["tone"] for i in members])
        assert np.abs(np.bincount(tones, minlength=3) - len(members) / 3).max() <= 2


def test_the_scale_is_the_pretraining_parts_own(data: PretrainData) -> None:
    other = AttributeScale.fit(data.images[:60], data.labels[:60])
    assert other.cuts != data.scale.cuts
    assert AttributeScale.fit(data.images, data.labels) == data.scale


def test_attribute_words_are_true(data: PretrainData) -> None:
    rng = np.random.default_rng(0)
    for index, label in enumerate(data.labels):
        words = attribute_words(int(label), data.levels[index], 3, rng)
        truth = ATTRIBUTE_WORDS[family_of(FASHION_CLASSES[label])]
        allowed = {truth[name][level] for name, level in data.levels[index].items()}
        assert len(set(words)) == 3
        assert set(words) <= allowed


def test_photo_captions_are_reproducible_and_tell_only_true_words(data: PretrainData) -> None:
    rng, again = np.random.default_rng(5), np.random.default_rng(5)
    every_word = {word for family in ATTRIBUTE_WORDS.values() for words in family.values() for word in words}
    told = 0
    for index in range(0, 120, 7):
        label = int(data.labels[index])
        caption = photo_caption(label, data.levels[index], rng)
        assert caption == photo_caption(label, data.levels[index], again)
        family = family_of(FASHION_CLASSES[label])
        true_words = {ATTRIBUTE_WORDS[family][name][level] for name, level in data.levels[index].items()}
        # "black" and "product" of the templates are no attribute words, so every other word must be true
        found = {word.strip(",") for word in caption.split()} & every_word
        assert found <= true_words, caption
        names = {*SPOKEN_NAMES[FASHION_CLASSES[label]], COARSE_NAMES[family]}
        assert any(name in caption for name in names), caption
        told += len(found)
    assert told > 15


def test_no_template_word_is_an_attribute_word() -> None:
    words = {word for template in TEMPLATES for word in template.replace("{}", "").split()}
    assert not words & {word for family in ATTRIBUTE_WORDS.values() for row in family.values() for word in row}


def test_scene_captions_name_most_items(data: PretrainData) -> None:
    rng = np.random.default_rng(0)
    labels = [FASHION_CLASSES.index(name) for name in ("trousers", "bag", "sandal", "coat")]
    levels = [data.levels[int(np.flatnonzero(data.labels == label)[0])] for label in labels]
    named = []
    for _ in range(500):
        caption = scene_caption(labels, levels, rng)
        named.append(caption.count(", a ") + caption.count(" and a ") + 1)
    assert np.mean(named) == pytest.approx(3.0, abs=0.15)  # 4 · 0.75, standard error 0.04
    assert min(named) >= 1
    assert max(named) == 4
    assert scene_caption(labels, levels, np.random.default_rng(1)) == scene_caption(
        labels, levels, np.random.default_rng(1)
    )


def test_every_caption_word_is_one_token(data: PretrainData, random_pair: Any) -> None:
    known = " ".join(caption_vocabulary()).replace("-", " ").split()
    assert [word for word in known if len(random_pair.diffusion.word_ids(word)) != 1] == []


# ----------------------------------------------------------------------------------------- scenes and batches


def test_scenes_show_every_item() -> None:
    rng = np.random.default_rng(0)
    for count in range(1, 6):
        scene = compose_scene([np.full((28, 28), 50 * (i + 1), np.uint8) for i in range(count)], rng)
        assert scene.shape == (CANVAS_SIZE, CANVAS_SIZE)
        assert scene.dtype == np.uint8
        assert set(np.unique(scene)) >= {50 * count}
    again = [compose_scene([np.full((28, 28), 9, np.uint8)], np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(*again)


def test_clip_batches_are_half_photographs_half_scenes(data: PretrainData) -> None:
    pictures, captions = data.clip_batch(9, np.random.default_rng(0))
    assert pictures.shape == (9, CANVAS_SIZE, CANVAS_SIZE)
    assert pictures.dtype == np.uint8
    assert len(captions) == 9
    again, same_captions = data.clip_batch(9, np.random.default_rng(0))
    assert np.array_equal(pictures, again)
    assert captions == same_captions
    other, _ = data.clip_batch(9, np.random.default_rng(1))
    assert not np.array_equal(pictures, other)


def test_pretraining_sees_its_own_part_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "PRETRAIN_PART", range(0, 50))
    raw = made_up_raw()
    part = PretrainData(raw)
    assert np.array_equal(part.images, raw.train_images[:50])
    assert len(part.labels) == len(part.levels) == 50


def test_families_hold_every_class_once() -> None:
    assert sorted(name for members in FASHION_FAMILIES.values() for name in members) == sorted(FASHION_CLASSES)


# ------------------------------------------------------------------------------------------------- training


def toy() -> nn.Module:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).reshape(2, 3) / 10)
        model.bias.zero_()
    return model


def toy_loss(model: nn.Module) -> Any:
    def loss_at(step: int) -> Tensor:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        loss: Tensor = (model(inputs) - inputs[:, :2]).square().mean()
        return loss

    return loss_at


def run_stage(folder: Path, config: StageConfig, stop: int | None = None) -> nn.Module:
    model = toy()
    stage = train_stage("toy", model, toy_loss(model), config, folder, checkpoint_seconds=0.0)
    for record in stage:
        if record["step"] == stop:
            break
    stage.close()
    return model


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stop", [20, 40])
def test_a_resumed_stage_equals_an_uninterrupted_one(tmp_path: Path, average: float, stop: int) -> None:
    config = StageConfig(num_steps=50, learning_rate=0.05, ema=average)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole = run_stage(tmp_path / "whole", config)
    run_stage(tmp_path / "broken", config, stop=stop)
    assert (tmp_path / "broken" / "toy.safetensors").is_file()
    resumed = run_stage(tmp_path / "broken", config)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not one.requires_grad
    finished = run_stage(tmp_path / "broken", config)
    assert torch.equal(finished.weight, whole.weight)  # type: ignore[arg-type]


def test_a_stage_lowers_its_loss_and_logs(tmp_path: Path) -> None:
    model = run_stage(tmp_path, StageConfig(num_steps=60, learning_rate=0.05))
    with torch.no_grad():
        losses = [float(toy_loss(module)(1000)) for module in (toy(), model)]
    assert losses[1] < losses[0] / 2
    lines = (tmp_path / "toy.log.jsonl").read_text().splitlines()
    assert len(lines) == 3


def test_the_weight_average_is_what_is_kept(tmp_path: Path) -> None:
    for name in ("last", "average"):
        (tmp_path / name).mkdir()
    last = run_stage(tmp_path / "last", StageConfig(num_steps=50, learning_rate=0.05))
    average = run_stage(tmp_path / "average", StageConfig(num_steps=50, learning_rate=0.05, ema=0.9))
    assert not torch.equal(last.weight, average.weight)  # type: ignore[arg-type]


def test_a_damaged_stage_checkpoint_is_named(tmp_path: Path) -> None:
    run_stage(tmp_path, StageConfig(num_steps=20))
    (tmp_path / "toy.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"toy\.safetensors"):
        run_stage(tmp_path, StageConfig(num_steps=20))


def test_learning_rates_by_hand() -> None:
    config = StageConfig(num_steps=100, learning_rate=2.0, decay_share=0.5)
    rates = [pretrain._learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)  # warm-up over ten steps
    assert rates[9:51] == pytest.approx([2.0] * 42)
    assert rates[75] == pytest.approx(1.0)  # the cosine's middle
    assert rates[99] < 0.01


@pytest.mark.parametrize("stage", ["vae", "clip", "denoiser"])
def test_every_real_stage_takes_a_step(data: PretrainData, random_pair: Any, tmp_path: Path, stage: str) -> None:
    torch.manual_seed(0)
    tokenizer = random_pair.diffusion.tokenizer
    parts: dict[str, Any] = {"vae": pretrain.build_vae()}
    if stage != "vae":
        parts["clip"] = pretrain.build_clip(len(tokenizer))
    if stage == "denoiser":
        parts["denoiser"] = pretrain.build_denoiser()
    short = StageConfig(num_steps=1, batch_size=4)
    config = pretrain.PretrainConfig(vae=short, clip=short, denoiser=short)
    before = {name: value.clone() for name, value in parts[stage].state_dict().items()}
    run = {
        "vae": lambda: pretrain.train_vae(data, parts["vae"], config, tmp_path),
        "clip": lambda: pretrain.train_clip(data, parts["clip"], tokenizer, config, tmp_path),
        "denoiser": lambda: pretrain.train_denoiser(
            data, parts["denoiser"], parts["vae"], parts["clip"], tokenizer, config, tmp_path
        ),
    }[stage]
    (record,) = run()
    assert np.isfinite(record["loss"])
    after = parts[stage].state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert len(moved) > 0.9 * len(before)


def test_the_latent_scale_makes_latents_unit(data: PretrainData) -> None:
    torch.manual_seed(0)
    vae = pretrain.build_vae().eval()
    pretrain.set_latent_scale(data, vae)
    means, _ = pretrain.encode_latents(data, vae)
    assert float((means[0] * vae.config.scaling_factor).std()) == pytest.approx(1.0, abs=0.01)


# --------------------------------------------------------------------------------------------------- export


def test_the_export_is_whole_and_names_no_machine(random_pair: Any) -> None:
    files = {path.relative_to(random_pair.folder).as_posix(): path for path in random_pair.folder.rglob("*.*")}
    for part in (
        "vae/config.json",
        "unet/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ):
        assert f"diffusion/{part}" in files
    assert {"clip/open_clip_config.json", "clip/open_clip_model.safetensors"} <= files.keys()
    assert not [name for name in files if name.endswith((".bin", ".pt", ".ckpt", ".pkl"))]
    for name, path in files.items():
        if name.endswith((".json", ".txt")):
            assert str(random_pair.folder.parent) not in path.read_text(encoding="utf-8"), name


def test_every_text_has_tokens(random_pair: Any) -> None:
    tokenizer = random_pair.diffusion.tokenizer
    for text in ("coat", "Größe", "長靴", "🧥", "x7#"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids
        assert tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")


# ------------------------------------------------------------------------------------------------ raw files


def idx(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def raw_folder(tmp_path: Path) -> Path:
    raw = made_up_raw(20)
    for part, images, labels in (
        ("train", raw.train_images, raw.train_labels),
        ("t10k", raw.test_images, raw.test_labels),
    ):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels.astype(np.uint8))))
    return tmp_path


def test_raw_files_are_read(raw_folder: Path) -> None:
    expected, found = made_up_raw(20), read_raw_fashion(raw_folder)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert found.train_labels.dtype == np.int64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file. Install the Debian package"),
        (b"no gzip", "is no readable gzip file"),
        (gzip.compress(b"\0\0\x0d\x01" + bytes(20)), "is no IDX file of unsigned bytes"),
        (gzip.compress(b"\0\0\x08\x03" + bytes(3)), "ends after 7 bytes, inside its header of 16"),
        (gzip.compress(b"\0\0"), "is no IDX file"),
        (gzip.compress(idx(np.zeros((2, 28, 28), np.uint8))[:-1]), "holds 1567 bytes where its header"),
    ],
)
def test_damaged_raw_files_are_named(raw_folder: Path, content: bytes | None, message: str) -> None:
    path = raw_folder / "train-images-idx3-ubyte.gz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"train-images-idx3-ubyte\.gz: {message}"):
        read_raw_fashion(raw_folder)
