"""Features inside the denoiser, and what the text encoder makes of prompts."""

import numpy as np
import pytest
import torch

from gcpl_lab.evaluation import features
from gcpl_lab.evaluation.features import denoiser_features, denoiser_layers, prompt_outputs
from gcpl_lab.gcpl.prompts import ClassPrompts


@pytest.fixture(scope="module")
def latents(random_pair) -> torch.Tensor:
    return torch.randn((5, *random_pair.diffusion.latent_shape), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def hidden(random_pair) -> torch.Tensor:
    return random_pair.diffusion.encode_texts(["a photo of a shirt", "a photo of a bag"])


def test_the_blocks_are_named_and_each_gives_features(diffusion, latents, hidden):
    names = denoiser_layers(diffusion)
    assert names.index("down_blocks.0") < names.index("mid_block") < names.index("up_blocks.0")
    for layer in names:
        found = denoiser_features(diffusion, latents, hidden[:1], layer=layer)
        assert found.shape[0] == len(latents)
        assert found.ndim == 2
        assert np.isfinite(found).all()
        assert len(np.unique(found, axis=0)) == len(latents)


def test_the_value_is_the_mean_over_places_and_noises_of_the_layers_output(diffusion, latents, hidden):
    found = denoiser_features(diffusion, latents, hidden[:1], timestep=0.5)
    generator, steps = torch.Generator().manual_seed(0), torch.full((5,), diffusion.num_timesteps // 2)
    seen = []
    handle = diffusion.denoiser.mid_block.register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    for _ in range(features.NUM_NOISES):
        noise = torch.randn((1, *latents.shape[1:]), generator=generator).expand_as(latents)
        with torch.no_grad():
            diffusion.predict_noise(diffusion.add_noise(latents, noise, steps), steps, hidden[:1].expand(5, -1, -1))
    handle.remove()
    assert found == pytest.approx(torch.stack(seen).mean(dim=(0, 3, 4)).numpy(), abs=1e-5)


def test_batches_do_not_matter_and_no_hook_stays(diffusion, latents, hidden, monkeypatch):
    whole = denoiser_features(diffusion, latents, hidden[:1])
    monkeypatch.setattr(features, "BATCH_SIZE", 2)
    assert denoiser_features(diffusion, latents, hidden[:1]) == pytest.approx(whole, abs=1e-5)
    assert not diffusion.denoiser.mid_block._forward_hooks
    with pytest.raises(RuntimeError):
        denoiser_features(diffusion, latents[:, :1], hidden[:1])
    assert not diffusion.denoiser.mid_block._forward_hooks, "a failed pass must not leave its hook behind"


@pytest.mark.parametrize("change", [{"layer": "up_blocks.0"}, {"timestep": 0.8}])
def test_every_setting_changes_the_features(diffusion, latents, hidden, change):
    one, other = (denoiser_features(diffusion, latents, hidden[:1], **settings) for settings in ({}, change))
    assert one.shape != other.shape or not np.allclose(one, other, atol=1e-6)


def test_each_image_may_hear_a_prompt_of_its_own(diffusion, latents, hidden):
    found = denoiser_features(diffusion, latents, hidden[[0, 1, 0, 1, 0]])
    shirts = denoiser_features(diffusion, latents, hidden[:1])
    assert found[0] == pytest.approx(shirts[0], abs=1e-5)
    assert not np.allclose(found[1], shirts[1], atol=1e-7)


@pytest.mark.parametrize(
    ("num_prompts", "change", "message"),
    [
        (1, {"layer": "middle"}, "no layer 'middle'; its blocks are down_blocks.0"),
        (1, {"timestep": 1.0}, "timestep is 1.0"),
        (2, {}, "2 prompts for 5 images"),
    ],
)
def test_what_is_refused(diffusion, latents, hidden, num_prompts, change, message):
    with pytest.raises(ValueError, match=message):
        denoiser_features(diffusion, latents, hidden[:num_prompts], **change)


def test_prompt_outputs_are_the_text_encoders_and_leave_the_prompts_alone(diffusion):
    prompts = ClassPrompts(diffusion, ["shirt", "bag"], num_vectors=2)
    start = prompts.vectors.detach().clone()
    found = prompt_outputs(diffusion, prompts, {20: start + 0.1, 0: start})
    assert list(found) == [0, 20]
    wanted = diffusion.encode_prompts(*prompts()).detach().flatten(1).numpy()
    assert np.array_equal(found[0], wanted)
    assert not np.allclose(found[20], wanted)
    assert torch.equal(prompts.vectors.detach(), start)
    with pytest.raises(ValueError, match=r"step 7 has shape \(1, 2, "):
        prompt_outputs(diffusion, prompts, {7: start[:1]})
