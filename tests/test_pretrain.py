"""How the tiny pair is made: true captions, reproducible batches, resumable stages, whole exports, a measured card.

All on made-up images and toy models; what training hours give is measured elsewhere.
"""

import json
import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gcpl_lab.baselines.features import LinearProbe
from gcpl_lab.data.samples import FASHION_CLASSES
from gcpl_lab.errors import ArtifactError
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import write_json
from tools import model_card, pretrain
from tools.captions import (
    ATTRIBUTE_WORDS,
    COARSE_NAMES,
    SPOKEN_NAMES,
    TEMPLATES,
    AttributeScale,
    attribute_words,
    measure_attributes,
    photo_caption,
    scene_caption,
    spoken_name,
)
from tools.pretrain import PretrainData, StageConfig, train_stage
from tools.raw_fashion import RawFashion, family_of
from tools.scenes import CANVAS_SIZE, compose_scene


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


def words_of(data: PretrainData, index: int) -> set[str]:
    """The true attribute words of one made-up image."""
    truth = ATTRIBUTE_WORDS[family_of(FASHION_CLASSES[data.labels[index]])]
    return {truth[name][level] for name, level in data.levels[index].items()}


def test_names_are_spoken_inside_the_family_and_as_often_as_stated() -> None:
    assert SPOKEN_NAMES.keys() == set(FASHION_CLASSES)
    for name, chances in SPOKEN_NAMES.items():
        assert sum(chances.values()) == pytest.approx(1)
        assert min(chances.values()) > 0
        assert {family_of(spoken) for spoken in chances} == {family_of(name)}
        assert name in chances
    rng = np.random.default_rng(0)
    spoken = [spoken_name(FASHION_CLASSES.index("coat"), rng) for _ in range(4000)]
    expected = {"top": 0.4} | {name: 0.6 * chance for name, chance in SPOKEN_NAMES["coat"].items()}
    assert set(spoken) == set(expected)
    for name, chance in expected.items():
        assert spoken.count(name) / 4000 == pytest.approx(chance, abs=0.04)  # standard error 0.008


def test_measured_attributes_by_hand() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    assert all(np.isfinite(values).all() for values in measure_attributes(image).values())
    image[0, 4:24, 10:18] = 51  # 20 rows, 8 columns, value 0.2, symmetric around the middle
    found = measure_attributes(image)
    for name, value in {"tone": 0.2, "length": 20, "width": 8 / 20, "fill": 1.0}.items():
        assert found[name][0] == pytest.approx(value), name
    for name in ("shading", "texture", "symmetry", "front", "balance", "sleeves"):
        assert found[name][0] == pytest.approx(0.0, abs=1e-6), name
    image[0, 4:14, 10:14] = 102
    brighter = measure_attributes(image)
    for name in ("tone", "shading", "texture", "symmetry", "balance"):
        assert brighter[name][0] > found[name][0], name


def test_levels_are_thirds_within_the_family(data: PretrainData) -> None:
    measured = measure_attributes(data.images)
    for family, attributes in ATTRIBUTE_WORDS.items():
        members = [i for i, label in enumerate(data.labels) if family_of(FASHION_CLASSES[label]) == family]
        for name in attributes:
            levels = np.array([data.levels[i][name] for i in members])
            assert set(levels) <= {0, 1, 2}
            order = np.argsort(measured[name][members], kind="stable")
            assert (np.diff(levels[order]) >= 0).all(), f"{family} {name}: a higher value has a lower level"
        tones = np.array([data.levels[i]["tone"] for i in members])
        assert np.abs(np.bincount(tones, minlength=3) - len(members) / 3).max() <= 2
    whole, half = (AttributeScale.fit(data.images[:num], data.labels[:num]) for num in (120, 60))
    assert whole == data.scale != half


def test_captions_are_reproducible_and_tell_only_true_words(data: PretrainData) -> None:
    every_word = {word for family in ATTRIBUTE_WORDS.values() for words in family.values() for word in words}
    assert not every_word & {word for template in TEMPLATES for word in template.replace("{}", "").split()}
    rng, again, told = np.random.default_rng(5), np.random.default_rng(5), 0
    for index in range(0, 120, 7):
        label = int(data.labels[index])
        caption = photo_caption(label, data.levels[index], rng)
        assert caption == photo_caption(label, data.levels[index], again)
        found = {word.strip(",") for word in caption.split()} & every_word
        assert found <= words_of(data, index), caption
        names = {*SPOKEN_NAMES[FASHION_CLASSES[label]], COARSE_NAMES[family_of(FASHION_CLASSES[label])]}
        assert any(name in caption for name in names), caption
        told += len(found)
        words = set(attribute_words(label, data.levels[index], 3, np.random.default_rng(index)))
        assert len(words) == 3
        assert words <= words_of(data, index)
    assert told > 15


def test_scene_captions_name_most_items(data: PretrainData) -> None:
    rng = np.random.default_rng(0)
    labels = [FASHION_CLASSES.index(name) for name in ("trousers", "bag", "sandal", "coat")]
    levels = [data.levels[int(np.flatnonzero(data.labels == label)[0])] for label in labels]
    captions = [scene_caption(labels, levels, rng) for _ in range(500)]
    named = [caption.count(", a ") + caption.count(" and a ") + 1 for caption in captions]
    assert np.mean(named) == pytest.approx(3.0, abs=0.15)  # 4 · 0.75, standard error 0.04
    assert (min(named), max(named)) == (1, 4)
    assert scene_caption(labels, levels, np.random.default_rng(0)) == captions[0]


def test_scenes_show_every_item_and_batches_follow_their_seed(data: PretrainData) -> None:
    rng = np.random.default_rng(0)
    for count in range(1, 6):
        scene = compose_scene([np.full((28, 28), 50 * (i + 1), np.uint8) for i in range(count)], rng)
        assert (scene.shape, scene.dtype) == ((CANVAS_SIZE, CANVAS_SIZE), np.uint8)
        assert 50 * count in scene
    (images, captions), again, other = (data.clip_batch(9, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (images.shape, images.dtype, len(captions)) == ((9, CANVAS_SIZE, CANVAS_SIZE), np.uint8, 9)
    assert np.array_equal(images, again[0])
    assert captions == again[1]
    assert not np.array_equal(images, other[0])


def test_pretraining_sees_its_own_part_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "PRETRAIN_PART", range(0, 50))
    part = PretrainData(made_up_raw())
    assert np.array_equal(part.images, made_up_raw().train_images[:50])
    assert len(part.labels) == len(part.levels) == 50


def run_stage(folder: Path, stop: int | None = None, **changes: Any) -> tuple[nn.Module, float]:
    """A linear model that learns to copy two of three inputs: the model, and its loss on new inputs."""
    folder.mkdir(exist_ok=True)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).reshape(2, 3) / 10)
        model.bias.zero_()

    def loss_at(step: int) -> Tensor:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        loss: Tensor = (model(inputs) - inputs[:, :2]).square().mean()
        return loss

    config = StageConfig(**({"num_steps": 50, "learning_rate": 0.05} | changes))
    stage = train_stage("toy", model, loss_at, config, folder, checkpoint_seconds=0.0)
    for record in stage:
        if record["step"] == stop:
            break
    stage.close()
    return model, float(loss_at(1000).detach())


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("stop", [20, 40])
def test_a_resumed_stage_equals_an_uninterrupted_one(tmp_path: Path, average: float, stop: int) -> None:
    whole, _ = run_stage(tmp_path / "whole", ema=average)
    run_stage(tmp_path / "broken", stop, ema=average)
    for _ in ("resumed", "finished already"):
        model, _ = run_stage(tmp_path / "broken", ema=average)
        for one, other in zip(whole.parameters(), model.parameters(), strict=True):
            assert torch.equal(one, other)
            assert not one.requires_grad


def test_a_stage_lowers_its_loss_logs_keeps_the_weight_average_and_names_damage(tmp_path: Path) -> None:
    last, loss = run_stage(tmp_path / "last")
    assert loss < run_stage(tmp_path / "start", num_steps=1)[1] / 2
    assert len((tmp_path / "last" / "toy.log.jsonl").read_text().splitlines()) == 3
    average, _ = run_stage(tmp_path / "average", ema=0.9)
    assert not torch.equal(last.weight, average.weight)  # type: ignore[arg-type]
    (tmp_path / "last" / "toy.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"toy\.safetensors"):
        run_stage(tmp_path / "last")


def test_learning_rates_by_hand() -> None:
    config = StageConfig(num_steps=100, learning_rate=2.0, decay_share=0.5)
    rates = [pretrain._learning_rate(config, step) for step in range(100)]
    assert (rates[0], rates[75]) == (
        pytest.approx(0.2),
        pytest.approx(1.0),
    )  # warm-up over ten steps; the cosine's middle
    assert rates[9:51] == pytest.approx([2.0] * 42)
    assert rates[99] < 0.01


def test_every_real_stage_takes_a_step(data: PretrainData, random_pair: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer, short = random_pair.diffusion.tokenizer, StageConfig(num_steps=1, batch_size=4)
    config = pretrain.PretrainConfig(vae=short, clip=short, denoiser=short)
    vae, clip, denoiser = pretrain.build_vae(), pretrain.build_clip(len(tokenizer)), pretrain.build_denoiser()
    for model, train, arguments in (
        (vae, pretrain.train_vae, (vae,)),
        (clip, pretrain.train_clip, (clip, tokenizer)),
        (denoiser, pretrain.train_denoiser, (denoiser, vae, clip, tokenizer)),
    ):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        (record,) = train(data, *arguments, config, tmp_path)
        assert np.isfinite(record["loss"])
        moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        assert len(moved) > 0.9 * len(before)


def test_the_latent_scale_makes_latents_unit(data: PretrainData) -> None:
    torch.manual_seed(0)
    vae = pretrain.build_vae().eval()
    pretrain.set_latent_scale(data, vae)
    latents = pretrain.encode_latents(data, vae)[0][0] * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1.0, abs=0.01)


def test_the_export_is_whole_and_names_no_machine(random_pair: Any) -> None:
    files = {path.relative_to(random_pair.folder).as_posix(): path for path in random_pair.folder.rglob("*.*")}
    parts = [f"{part}/config.json" for part in ("vae", "unet", "text_encoder")]
    parts += ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "model_index.json"]
    clip = {"clip/open_clip_config.json", "clip/open_clip_model.safetensors"}
    assert {f"diffusion/{part}" for part in parts} | clip <= files.keys()
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


# ---------------------------------------------------------------------------------------------- its card

SEEN, HELD_OUT, NUM_TEST = 100, 200, 40
BUNDLED = {3, 10, 11}


@pytest.fixture(scope="module")
def card(random_pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random pair with its card, measured on made-up garments."""
    target = tmp_path_factory.mktemp("card") / "pair"
    made = made_up_raw(SEEN + HELD_OUT + NUM_TEST)
    (train, test), (labels, answers) = (np.split(part, [-NUM_TEST]) for part in (made.train_images, made.train_labels))
    raw = RawFashion(train, labels, test, answers)
    shutil.copytree(random_pair.folder, target)
    stages = {name: {"num_steps": 7, "batch_size": 3} for name in ("vae", "clip", "denoiser")}
    curves = {name: [{"step": 20, "loss": 2.5}, {"step": 40, "loss": 1.25}] for name in stages}
    write_json(target / "pretraining.json", {"config": stages, "curves": curves})
    generate = FrozenDiffusion.generate
    few = partialmethod(lambda *given, **more: generate(*given, **more | {"num_steps": 2}))  # noise, either way
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenDiffusion, "generate", few)
        patch.setattr(LinearProbe, "STRENGTHS", (1.0,))  # what is best on random features is not asked here
        for name, value in {
            "read_raw_fashion": lambda _folder: raw,
            "NUM_TEST": NUM_TEST,
            "NUM_SCENES": 30,
            "NUM_DENOISED": 20,
            "PRETRAIN_PART": range(SEEN),
            "SUPPORT_PART": range(SEEN, SEEN + HELD_OUT),
            "bundled_images": {"test": BUNDLED, "train": {SEEN, SEEN + 1}}.__getitem__,
        }.items():
            patch.setattr(model_card, name, value)
        assert model_card.write_card(target, "raw", (0.4, 1.0)) == target / "README.md"
    return target


def test_numbers_are_in_their_ranges_and_leave_bundled_images_out(card: Path) -> None:
    found = json.loads((card / "card.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    vae, clip, denoiser = (found[name] for name in ("vae", "clip", "denoiser"))
    judged = [index % 10 for index in range(NUM_TEST) if index not in BUNDLED]  # bundled images have no say
    assert np.sum(clip["zero_shot_confusion"], axis=1).tolist() == np.bincount(judged).tolist()
    assert clip["zero_shot_accuracy"] == pytest.approx(np.trace(clip["zero_shot_confusion"]) / len(judged))
    assert len(denoiser["timesteps"]) == len(denoiser["error"]) == len(denoiser["caption_gap"]) == 10
    # No mean absolute error is larger than the root of the mean squared error.
    assert 0 < vae["mean_absolute_error"] <= 10 ** (-vae["psnr_db"] / 20) + 1e-9


def test_the_page_shows_the_numbers_and_its_figures_exist(card: Path, random_pair: Any) -> None:
    page = (card / "README.md").read_text(encoding="utf-8")
    found = json.loads((card / "card.json").read_text(encoding="utf-8"))
    shares = [f"{found[name]['zero_shot_accuracy']:.1%}" for name in ("clip", "denoiser")]
    stated = ("7 × 3", "2.500 at step 20 to 1.250 at step 40", f"Training images 0 to {SEEN - 1}")
    for words in (*shares, *stated, *FASHION_CLASSES):
        assert words in page
    for name, rows in (("vae", 2), ("generated", 6)):
        assert f"(card/{name}.png)" in page
        with Image.open(card / "card" / f"{name}.png") as figure:
            assert figure.height == 2 * rows * (32 + 2)
    assert "{" not in page
    assert "nan" not in page.split()
    for file in random_pair.folder.rglob("*.safetensors"):  # measuring leaves the models alone
        assert (card / file.relative_to(random_pair.folder)).read_bytes() == file.read_bytes()
