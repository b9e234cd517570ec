"""The shipped pair: small, in the libraries' own formats, and good enough that a prompt can be learned through it.

Bounds are wide on purpose: they tell a pair that works from one that does not, whatever its exact numbers.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gcpl_lab import GCPLClassifier
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.data.episodes import draw_episode, draw_test
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.samples import FASHION_CLASSES, FASHION_FAMILIES, load_fashion
from gcpl_lab.evaluation.metrics import accuracy
from gcpl_lab.models.clip import FrozenCLIP, encode_token_embeddings
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.models.presets import TINY_FOLDER
from tools.captions import caption_vocabulary
from tools.raw_fashion import family_of

TEXTS = ["", "a photo of a shirt", "a photo of a pair of trousers, dark", "ankle boot", "a zzyzx of a bag " * 5]


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return FrozenCLIP.load("tiny")


@pytest.fixture(scope="module")
def open_clip_model() -> tuple[Any, Any, Any]:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{TINY_FOLDER / 'clip'}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{TINY_FOLDER / 'clip'}")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(TINY_FOLDER / "diffusion", local_files_only=True)


def test_it_is_small_and_holds_nothing_that_can_run_code() -> None:
    files = [file for file in TINY_FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 30e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".md", ".png"}


def test_our_clip_gives_what_open_clip_gives(open_clip_model: Any, clip: FrozenCLIP) -> None:
    model, preprocess, tokenizer = open_clip_model
    garment = read_images(load_fashion("test").images[:1])[0]
    with torch.no_grad():
        image = model.encode_image(preprocess(garment)[None], normalize=True)
        text = model.encode_text(tokenizer(TEXTS[1:4]), normalize=True)
    torch.testing.assert_close(clip.encode_images([garment]), image, atol=1e-4, rtol=0)
    ours = ZeroShotCLIP(clip, ["shirt"], ("a photo of a {}",)).scores(image)
    torch.testing.assert_close(ours[0, 0], clip.logit_scale * (image[0] @ text[0]), atol=1e-3, rtol=0)


def test_diffusers_loads_it_itself_and_draws(pipeline: Any) -> None:
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a photo of a shirt", num_inference_steps=3, height=32, width=32).images[0]
    assert (type(drawn), drawn.size) == (Image.Image, (32, 32))
    assert np.asarray(drawn).std() > 0


def test_the_pipelines_text_encoder_is_clips_text_tower(clip: FrozenCLIP) -> None:
    diffusion = FrozenDiffusion.load("tiny")
    assert torch.equal(clip.embedding_table, diffusion.embedding_table)
    ids = clip.tokenizer(TEXTS[:4])  # short enough for both to pad alike
    with torch.no_grad():
        hidden, _ = encode_token_embeddings(
            clip.text_tower, clip.text_tower.token_embedding(ids), torch.zeros(4).long()
        )
    assert [diffusion.word_ids(text) for text in TEXTS] == [clip.word_ids(text) for text in TEXTS]
    torch.testing.assert_close(hidden, diffusion.encode_texts(TEXTS[:4]), atol=1e-5, rtol=0)


def test_every_word_of_a_caption_is_one_token(pipeline: Any) -> None:
    words = {word for text in (*caption_vocabulary(), *FASHION_CLASSES) for word in text.replace("-", " ").split()}
    assert len(words) > 50
    assert {word for word in words if len(pipeline.tokenizer.tokenize(word)) != 1} == set()


def test_clip_knows_something(clip: FrozenCLIP) -> None:
    """No upper bound: that a baseline be low is no aim."""
    test = load_fashion("test")
    scores = ZeroShotCLIP(clip, test.class_names).scores(clip.encode_images(read_images(test.images))).numpy()
    assert accuracy(scores, test.labels) >= 0.30


def test_the_denoiser_listens_to_its_prompt() -> None:
    """The own name denoises better than a name of another family, on nearly every image."""
    diffusion, test = FrozenDiffusion.load("tiny"), load_fashion("test")
    test = test.subset(draw_test(test, total=60))
    families = list(FASHION_FAMILIES)
    following = [families[(families.index(family_of(name)) + 1) % len(families)] for name in FASHION_CLASSES]
    other = np.array([FASHION_CLASSES.index(FASHION_FAMILIES[family][0]) for family in following])
    hidden = diffusion.encode_texts([f"a photo of a {name}" for name in FASHION_CLASSES])
    latents = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess(read_images(test.images)))[0])
    gaps, generator = torch.zeros(60), torch.Generator().manual_seed(0)
    for timestep in torch.linspace(0.5, 0.95, 8).mul(diffusion.num_timesteps).long():
        noise, steps = torch.randn(latents.shape, generator=generator), timestep.repeat(60)
        noisy = diffusion.add_noise(latents, noise, steps)
        with torch.no_grad():
            own, wrong = (
                (diffusion.predict_noise(noisy, steps, hidden[torch.from_numpy(ids)]) - noise).square().mean((1, 2, 3))
                for ids in (test.labels, other[test.labels])
            )
        gaps += (wrong - own) / own
    # By chance 30 ± 4 of 60 gaps are above zero; 48 is more than four deviations away.
    assert int((gaps > 0).sum()) >= 48


def test_the_card_is_whole_and_says_that_the_names_were_made_worse() -> None:
    card = json.loads((TINY_FOLDER / "card.json").read_text(encoding="utf-8"))
    assert card["clip"]["zero_shot_accuracy"] > 0.35
    assert card["clip"]["linear_probe_16_shots"]["mean"] >= 0.72
    assert all((TINY_FOLDER / name).is_file() for name in ("card/vae.png", "card/generated.png", "pretraining.json"))
    page = (TINY_FOLDER / "README.md").read_text(encoding="utf-8")
    for words in ("The names were made worse on the way", "74.3", "in none of the bundled"):
        assert words in page


def test_a_minute_of_learning_beats_chance_and_survives_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten classes guessed blindly give 0.10 ± 0.03 on 100 images; a run that works is far above 0.45."""
    monkeypatch.chdir(tmp_path)
    support, test = load_fashion("support"), load_fashion("test")
    support, test = support.subset(draw_episode(support, shots=8, seed=0)), test.subset(draw_test(test, total=100))
    names = np.array(test.class_names)
    model = GCPLClassifier(preset="tiny", objective="gcpl", num_vectors=4, num_steps=60, seed=0, num_evidence=4)
    model.fit(support.images, names[support.labels])
    assert model.score(test.images, names[test.labels]) >= 0.45
    assert os.listdir(tmp_path) == []  # nothing is written that was not asked for
    loaded = GCPLClassifier.load(model.save(tmp_path / "prompts"))
    np.testing.assert_array_equal(*(each.predict_proba(test.images[:10]) for each in (model, loaded)))
