"""Models of the true structure with random weights, found and loaded as the real ones would be.

Small copies of Stable Diffusion 1.x (all its blocks, few channels, 64 px) and of OpenAI's ViT-B/16 are saved in the
formats of diffusers and open_clip, and loaded by preset name from a local folder, with the hub forbidden.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.models.presets import MODELS_VARIABLE
from tools.shapes import DIFFUSION_SHAPES, SMALL_CLIP, build_denoiser, save_clip, save_diffusion


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_diffusion(DIFFUSION_SHAPES["sd-1.x-small"], folder / "sd-1.4" / "diffusion")
    save_clip(SMALL_CLIP, folder / "vit-b-16" / "clip")
    return folder


@pytest.fixture(autouse=True)
def local_models_alone(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets' weights lie in a folder; whoever asks the hub or its cache fails."""

    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"the hub was asked for {arguments} {options}")

    monkeypatch.setenv(MODELS_VARIABLE, str(models))
    for name in ("hf_hub_download", "snapshot_download", "try_to_load_from_cache"):
        monkeypatch.setattr(f"huggingface_hub.{name}", forbidden)


@pytest.fixture(scope="module")
def two_classes() -> tuple[list[np.ndarray], np.ndarray]:
    """Six dark and six bright noisy images."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 6)
    return [rng.integers(150 * label, 100 + 150 * label, (80, 64, 3), dtype=np.uint8) for label in labels], labels


def check_training(model: Any, num_steps: int) -> None:
    losses = [record.loss for record in model.history_]
    assert len(losses) == num_steps
    assert np.isfinite(losses).all()


def test_the_copy_has_the_blocks_of_the_real_one(models: Path) -> None:
    """Every module of the full denoiser is in the small one, and the other way round."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        full = build_denoiser(DIFFUSION_SHAPES["sd-1.4"])
    small = UNet2DConditionModel.from_pretrained(models / "sd-1.4" / "diffusion" / "unet")
    assert sum(parameter.numel() for parameter in full.parameters()) == 859_520_964
    assert [name for name, _ in small.named_parameters()] == [name for name, _ in full.named_parameters()]


def test_the_tokenizer_is_clips_own() -> None:
    import open_clip

    diffusion, clip = FrozenDiffusion.load("sd-1.4"), FrozenCLIP.load("vit-b-16")
    for text in ("a photo of a rusty pipe, 30% worn", "don't panic", "長靴"):
        assert diffusion.word_ids(text) == clip.word_ids(text) == open_clip.tokenizer.SimpleTokenizer().encode(text)
    assert (diffusion.start_id, diffusion.end_id, diffusion.pad_id) == (49406, 49407, 49407)
    assert (diffusion.image_size, diffusion.latent_shape, diffusion.context_length) == (64, (4, 8, 8), 77)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_five_steps_and_a_classification(precision: str, two_classes: tuple[list[np.ndarray], np.ndarray]) -> None:
    images, labels = two_classes
    settings = {"batch_size": 4, "precision": precision, "num_evidence": 2, "evidence_batch_size": 16}
    model = GCPLClassifier("sd-1.4", "gcpl", num_vectors=1, num_steps=5, learning_rate=0.01, **settings)
    frozen = model.diffusion.checksum()
    assert model.diffusion.dtype == getattr(torch, precision)
    check_training(model.fit(images, labels, ["coat", "shirt"]), 5)
    assert model.diffusion.checksum() == frozen
    assert model.prompts_.vectors.dtype == torch.float32
    assert not torch.equal(model.prompts_.vectors.detach().cpu(), model.states_[0])
    assert model.train_evaluations_ == 20
    np.testing.assert_allclose(model.predict_proba(images).sum(1), np.ones(12))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ten_steps_of_lmpt(precision: str, two_classes: tuple[list[np.ndarray], np.ndarray]) -> None:
    images, labels = two_classes
    targets = np.stack([labels == 0, labels == 1, np.ones_like(labels)], 1).astype(int)
    settings = {"num_epochs": 5, "batch_size": 5, "validation_share": 0.2, "refit": False, "precision": precision}
    model = LMPTClassifier("vit-b-16", num_context=4, **settings)
    frozen = model.clip.checksum()
    assert model.clip.model.visual.conv1.weight.dtype == getattr(torch, precision)
    model.fit(images, targets, ["dark", "bright", "noisy"], ["a dark thing"] * 6 + ["a bright thing"] * 6)
    check_training(model, 10)
    assert model.clip.checksum() == frozen
    assert model.predict_proba(images).shape == (12, 3)


def test_quick_gelu_of_the_folder_is_kept(models: Path, tmp_path: Path) -> None:
    """The same weights with the other activation are another model: it is not lost on the way."""
    other = save_clip({**SMALL_CLIP, "quick_gelu": False}, tmp_path / "clip")
    texts = ["a photo of a coat"]
    quick, plain = FrozenCLIP.load("vit-b-16"), FrozenCLIP.load(str(other))
    assert torch.equal(quick.embedding_table, plain.embedding_table)
    assert not torch.allclose(quick.encode_texts(texts), plain.encode_texts(texts), atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_saved_pipelines_prediction_type_is_obeyed(prediction_type: str, tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    shape = replace(DIFFUSION_SHAPES["sd-1.x-small"], prediction_type=prediction_type)
    diffusion = FrozenDiffusion.load(str(save_diffusion(shape, tmp_path)))
    assert diffusion.scheduler.config.prediction_type == prediction_type
    noisy, steps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([200, 700])
    hidden = diffusion.encode_texts(["coat", "bag"])
    with torch.no_grad():
        answer = diffusion.denoiser(noisy, steps, hidden).sample
        found = diffusion.predict_noise(noisy, steps, hidden)
    # diffusers' own conversion of the model's answer into noise
    scheduler = DDPMScheduler.from_config(diffusion.scheduler.config)
    expected = answer
    if prediction_type == "v_prediction":
        product = scheduler.alphas_cumprod[steps][:, None, None, None]
        expected = product.sqrt() * answer + (1 - product).sqrt() * noisy
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
