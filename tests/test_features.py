import numpy as np
import pytest
import torch

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
    assert "mid_block" in names
    assert names.index("down_blocks.0") < names.index("mid_block") < names.index("up_blocks.0")
    for layer in names:
        found = denoiser_features(diffusion, latents, hidden[:1], layer=layer, num_noises=1)
        assert found.shape[0] == len(latents)
        assert found.ndim == 2
        assert np.isfinite(found).all()
        assert len(np.unique(found, axis=0)) == len(latents)


def test_the_value_is_the_mean_over_places_and_noises_of_the_layers_output(diffusion, latents, hidden):
    seen = []
    handle = diffusion.denoiser.mid_block.register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    found = denoiser_features(diffusion, latents, hidden[:1], num_noises=2, timestep=0.5, seed=3)
    handle.remove()
    wanted = torch.stack(seen).mean(dim=(0, 3, 4)).numpy()
    assert found == pytest.approx(wanted, abs=1e-5)
    generator = torch.Generator().manual_seed(3)
    steps = torch.full((5,), diffusion.num_timesteps // 2)
    totals = []
    for _ in range(2):
        noise = torch.randn((1, *latents.shape[1:]), generator=generator).expand_as(latents)
        handle = diffusion.denoiser.mid_block.register_forward_hook(lambda _m, _i, out: totals.append(out.clone()))
        with torch.no_grad():
            diffusion.predict_noise(diffusion.add_noise(latents, noise, steps), steps, hidden[:1].expand(5, -1, -1))
        handle.remove()
    assert found == pytest.approx(torch.stack(totals).mean(dim=(0, 3, 4)).numpy(), abs=1e-5)


def test_batches_do_not_matter_and_no_hook_stays(diffusion, latents, hidden):
    whole = denoiser_features(diffusion, latents, hidden[:1])
    parts = denoiser_features(diffusion, latents, hidden[:1], batch_size=2)
    assert parts == pytest.approx(whole, abs=1e-5)
    assert not diffusion.denoiser.mid_block._forward_hooks
    with pytest.raises(RuntimeError):
        denoiser_features(diffusion, latents[:, :1], hidden[:1])
    assert not diffusion.denoiser.mid_block._forward_hooks, "a failed pass must not leave its hook behind"


@pytest.mark.parametrize(
    "change", [{"layer": "up_blocks.0"}, {"timestep": 0.8}, {"num_noises": 1}, {"seed": 1}], ids=lambda c: next(iter(c))
)
def test_every_setting_changes_the_features(diffusion, latents, hidden, change):
    one = denoiser_features(diffusion, latents, hidden[:1])
    other = denoiser_features(diffusion, latents, hidden[:1], **change)
    assert one.shape != other.shape or not np.allclose(one, other, atol=1e-6)


def test_each_picture_may_hear_a_prompt_of_its_own(diffusion, latents, hidden):
    own = hidden[[0, 1, 0, 1, 0]]
    found = denoiser_features(diffusion, latents, own)
    shirts = denoiser_features(diffusion, latents, hidden[:1])
    assert found[0] == pytest.approx(shirts[0], abs=1e-5)
    assert not np.allclose(found[1], shirts[1], atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "middle"}, "no layer 'middle'; its blocks are down_blocks.0"),
        ({"timestep": 1.0}, "timestep is 1.0"),
        ({"num_noises": 0}, "num_noises is 0"),
        ({"hidden": slice(0, 2)}, "2 prompts for 5 pictures"),
    ],
)
def test_what_is_refused(diffusion, latents, hidden, change, message):
    chosen = hidden[change.pop("hidden", slice(0, 1))]
    with pytest.raises(ValueError, match=message):
        denoiser_features(diffusion, latents, chosen, **change)


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
