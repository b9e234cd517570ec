"""The frozen diffusion model against diffusers' own arithmetic and against an answer that is known."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gcpl_lab.errors import ModelError
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.models.presets import Preset
from tests.made_up import randn


def test_noise_is_added_as_diffusers_adds_it(diffusion: Any) -> None:
    given = randn(5, 4, 8, 8), randn(5, 4, 8, 8, seed=1), torch.tensor([0, 1, 500, 998, 999])
    torch.testing.assert_close(diffusion.add_noise(*given), diffusion.scheduler.add_noise(*given), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_velocity_models_give_the_same_noise(known_diffusion: Any, prediction_type: str) -> None:
    """A model that knows the clean latent tells the noise exactly, whichever of the two it predicts."""
    model = known_diffusion(prediction_type)
    clean, noise, steps = randn(4, 2, 4, 4), randn(4, 2, 4, 4, seed=1), torch.tensor([50, 300, 700, 999])
    noisy = model.add_noise(clean, noise, steps)
    torch.testing.assert_close(model.predict_noise(noisy, steps, clean.flatten(1)), noise, atol=2e-4, rtol=0)
    assert model.num_denoiser_evaluations == 4
    with pytest.raises(ModelError, match="its scheduler predicts 'sample'; expected 'epsilon' or 'v_prediction'"):
        known_diffusion("sample")


def test_predictions_are_float32_and_are_the_denoisers(diffusion: Any) -> None:
    noisy, steps, hidden = randn(2, 4, 8, 8), torch.tensor([100, 900]), diffusion.encode_texts(["coat", "bag"])
    predict = type(diffusion).predict_noise.__get__(diffusion)
    with torch.no_grad():
        expected = diffusion.denoiser(noisy, steps, encoder_hidden_states=hidden).sample
        found = predict(noisy, steps, hidden)
        pairs = predict(noisy, steps, hidden, torch.tensor([1, 0, 1]), torch.tensor([1, 0, 0]))
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32
    torch.testing.assert_close(pairs[:2], expected.flip(0), atol=1e-5, rtol=0)
    assert float((pairs[2] - pairs[0]).abs().max()) > 1e-4  # another prompt for the same latent


def test_the_vae_encodes_in_any_passes_and_decoding_turns_the_scale_back(diffusion: Any) -> None:
    pixels = randn(5, 3, 32, 32).clamp(-1, 1)
    means, log_variances = diffusion.encode_moments(pixels, batch_size=2)
    with torch.no_grad():
        posterior = diffusion.vae.encode(pixels).latent_dist
        decoded = ((diffusion.vae.decode(means).sample.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    torch.testing.assert_close(means, posterior.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(log_variances, posterior.logvar, atol=1e-5, rtol=0)
    assert means.shape == (5, *diffusion.latent_shape)
    scaled = diffusion.scale_latents(means)
    torch.testing.assert_close(scaled, 0.7 * means)  # the random pair's scaling factor
    images = np.stack([np.asarray(image, np.float32) for image in diffusion.decode(scaled)])
    assert images.shape == (5, 32, 32, 3)
    assert np.abs(images - decoded).max() <= 0.51


def test_preprocessing_takes_the_middle_square(diffusion: Any) -> None:
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 255  # exactly the middle square is white
    pixels = diffusion.preprocess([Image.fromarray(wide), Image.fromarray(wide.transpose(1, 0, 2))])
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, torch.ones(2, 3, 32, 32))
    for size in ((8, 8), (33, 57), (2048, 300), (300, 8)):
        pixels = diffusion.preprocess([Image.new("RGB", size, (255, 0, 127))])
        expected = torch.tensor([1.0, -1.0, 127 / 127.5 - 1])[:, None, None].expand(3, 32, 32)
        torch.testing.assert_close(pixels[0], expected, atol=1e-6, rtol=0)


def test_generated_images_repeat_with_the_seed(diffusion: Any) -> None:
    hidden = diffusion.encode_texts(["a coat", "a bag"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = diffusion.generate(hidden, num_steps=2)
    assert [image.size for image in first] == [(32, 32), (32, 32)]
    again, other = diffusion.generate(hidden, num_steps=2), diffusion.generate(hidden, num_steps=2, seed=1)
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    alone = diffusion.generate(hidden[:1], num_steps=2)[0]  # from the same noise, whatever stands beside it
    assert np.abs(np.asarray(alone, int) - np.asarray(first[0], int)).max() <= 1
    assert len(diffusion.generate(hidden[:1], num_steps=2, guidance=1.0)) == 1
    assert not any(part.training for part in (diffusion.vae, diffusion.denoiser, diffusion.text_encoder))


def test_inserted_embeddings_are_checked_and_leave_the_table_as_it_was(diffusion: Any) -> None:
    before, ids = diffusion.encode_texts(["coat"]), torch.zeros(1, diffusion.context_length, dtype=torch.int64)
    diffusion.encode_prompts(ids, torch.ones(1, diffusion.context_length, 128))
    assert torch.equal(diffusion.encode_texts(["coat"]), before)
    with pytest.raises(ValueError, match=r"embeddings has shape \(2, 5, 128\); expected \(1, 32, dim\)"):
        diffusion.encode_prompts(ids, torch.zeros(2, 5, 128))


def test_loading_is_silent_and_sees_every_weight(random_pair: Any, capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers.utils import logging

    logging.enable_progress_bar()
    model = FrozenDiffusion.load(str(random_pair.folder))
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
    before = model.checksum()
    assert before == random_pair.diffusion.checksum()
    for part in (model.vae, model.denoiser, model.text_encoder):
        parameter = next(part.parameters())
        assert not parameter.requires_grad
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
        assert model.checksum() != before
        before = model.checksum()


def test_half_precision_weights_take_float32_prompts(random_pair: Any) -> None:
    model = FrozenDiffusion.load(str(random_pair.folder), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.text_encoder.dtype == torch.bfloat16
    embeddings = model.embedding_table[:32].float()[None].clone().requires_grad_()
    hidden = model.encode_prompts(torch.zeros(1, 32, dtype=torch.int64), embeddings)
    model.predict_noise(randn(1, 4, 8, 8), torch.tensor([500]), hidden).square().mean().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.dtype == torch.float32
    assert float(embeddings.grad.abs().sum()) > 0


def test_absent_and_incomplete_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"preset 'sd-1.4'.*offline mode is on.*hf download CompVis/stable-diffusion"):
        FrozenDiffusion.load("sd-1.4")
    (tmp_path / "diffusion").mkdir()
    with pytest.raises(ModelError, match="diffusion: is no complete diffusers pipeline folder"):
        FrozenDiffusion.load(Preset("mine", str(tmp_path / "diffusion"), "", "", "", 0))
