"""Sharing work between prompts changes nothing but the order of the arithmetic."""

from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.fast.shared_prefix import SharedDenoiser, why_not_shared
from gcpl_lab.models.diffusion import FrozenDiffusion


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build_unet(**settings: Any) -> Any:
    """Stable Diffusion 1.x's plan of blocks, with few channels."""
    from diffusers import UNet2DConditionModel

    plan = {
        "sample_size": 8,
        "layers_per_block": 2,
        "block_out_channels": (32, 64),
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "norm_num_groups": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return UNet2DConditionModel(**(plan | settings)).eval().requires_grad_(False)


def build(prediction_type: str = "epsilon", **settings: Any) -> FrozenDiffusion:
    from types import SimpleNamespace

    from tools.pretrain import build_scheduler

    scheduler = build_scheduler()
    scheduler.register_to_config(prediction_type=prediction_type)
    vae = torch.nn.Module()
    vae.config = SimpleNamespace(scaling_factor=1.0, block_out_channels=(1, 2, 3))
    return FrozenDiffusion(
        vae=vae,
        denoiser=build_unet(**settings),
        text_encoder=torch.nn.Module(),
        tokenizer=None,
        scheduler=scheduler,
        name="built",
    )


PAIRS = (torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3]), torch.tensor([0, 1, 2, 2, 0, 1, 0, 1, 2, 0]))


def answers(diffusion: FrozenDiffusion, hidden: torch.Tensor, **settings: bool) -> torch.Tensor:
    shape = diffusion.latent_shape
    noisy, timesteps = randn(4, *shape), torch.tensor([3, 250, 600, 999])
    return SharedDenoiser(diffusion, hidden, **settings).predict_noise(noisy, timesteps, *PAIRS)


KINDS: dict[str, dict[str, Any]] = {
    "stable diffusion 1": {},
    "v prediction": {"prediction_type": "v_prediction"},
    "linear projections, as stable diffusion 2": {"use_linear_projection": True, "attention_head_dim": (2, 4)},
    "prompt at the lower level only": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "no self-attention": {"only_cross_attention": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("prefix", "keys"), [(True, False), (False, True), (True, True)])
def test_sharing_equals_denoising_one_by_one(kind: str, prefix: bool, keys: bool) -> None:
    diffusion, hidden = build(**KINDS[kind]), randn(3, 5, 16, seed=2)
    shared = SharedDenoiser(diffusion, hidden, share_prefix=prefix, cache_keys=keys)
    assert (shared.shares_prefix, shared.caches_keys) == (prefix, keys), shared.statement
    plain = answers(diffusion, hidden, share_prefix=False, cache_keys=False)
    found = answers(diffusion, hidden, share_prefix=prefix, cache_keys=keys)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    # Prompts do matter: a cache that mixed them up would be seen.
    assert float((plain[0] - plain[1]).abs().max()) > 1e-3


def test_sharing_equals_on_the_bundled_architecture(diffusion: FrozenDiffusion) -> None:
    hidden = diffusion.encode_texts(["coat", "bag", "shirt"])
    plain = answers(diffusion, hidden, share_prefix=False, cache_keys=False)
    torch.testing.assert_close(answers(diffusion, hidden), plain, rtol=0, atol=1e-5)


def test_the_common_part_runs_once_a_row_and_leaves_the_model_as_it_was(diffusion: FrozenDiffusion) -> None:
    hidden = diffusion.encode_texts(["coat", "bag", "shirt"])
    seen: list[int] = []
    handle = diffusion.denoiser.conv_in.register_forward_hook(lambda _m, _i, output: seen.append(len(output)))
    later: list[int] = []
    other = diffusion.denoiser.conv_out.register_forward_hook(lambda _m, _i, output: later.append(len(output)))
    before, spent = diffusion.checksum(), diffusion.num_denoiser_evaluations
    try:
        answers(diffusion, hidden)
    finally:
        handle.remove()
        other.remove()
    assert seen == [4, 10]  # once for the four rows; the second is the replay, which only hands them out
    assert later == [10]
    assert diffusion.num_denoiser_evaluations == spent + 10
    assert diffusion.checksum() == before
    assert not [name for name, module in diffusion.denoiser.named_modules() if "forward" in vars(module)]
    assert not [name for name, module in diffusion.denoiser.named_modules() if module._forward_pre_hooks]


def test_an_error_on_the_way_leaves_the_model_as_it_was(diffusion: FrozenDiffusion) -> None:
    hidden = diffusion.encode_texts(["coat", "bag", "shirt"])
    with pytest.raises(RuntimeError):
        SharedDenoiser(diffusion, hidden).predict_noise(randn(4, 9, 8, 8), torch.tensor([1, 2, 3, 4]), *PAIRS)
    assert not [name for name, module in diffusion.denoiser.named_modules() if "forward" in vars(module)]
    assert not [name for name, module in diffusion.denoiser.named_modules() if module._forward_hooks]


def test_a_forward_of_somebody_else_comes_back(diffusion: FrozenDiffusion) -> None:
    module = diffusion.denoiser.conv_in
    own = module.forward
    module.forward = lambda value: own(value)
    marked = module.forward
    try:
        answers(diffusion, diffusion.encode_texts(["coat", "bag", "shirt"]))
        assert module.forward is marked
    finally:
        del module.forward


def test_bfloat16_keys_are_kept_apart_from_float32(diffusion: FrozenDiffusion) -> None:
    hidden = diffusion.encode_texts(["coat", "bag", "shirt"])
    shared, noisy, steps = SharedDenoiser(diffusion, hidden), randn(4, 4, 8, 8), torch.tensor([3, 250, 600, 999])
    with torch.autocast("cpu", torch.bfloat16):
        rough = shared.predict_noise(noisy, steps, *PAIRS)
    exact = shared.predict_noise(noisy, steps, *PAIRS)
    torch.testing.assert_close(
        exact, answers(diffusion, hidden, share_prefix=False, cache_keys=False), rtol=0, atol=1e-5
    )
    assert 0 < float((rough - exact).abs().max()) < 0.2


def test_other_denoisers_are_named_and_run_plainly(known_diffusion: Any) -> None:
    diffusion = known_diffusion()
    clean = randn(3, 2, 4, 4)
    shared = SharedDenoiser(diffusion, clean.flatten(1)[:, None])
    assert not shared.shares_prefix
    assert not shared.caches_keys
    assert shared.statement == (
        "nothing is shared between prompts: the denoiser is a KnownDenoiser, not a UNet2DConditionModel"
    )
    assert shared.prefix_share == shared.keys_share == 0
    assert shared.equivalent_evaluations(12, 3) == 12
    found = shared.predict_noise(clean, torch.tensor([10, 500, 900]), torch.tensor([0, 1]), torch.tensor([2, 1]))
    assert found.shape == (2, 2, 4, 4)


def test_another_way_in_for_the_prompt_is_seen() -> None:
    assert "class_embed_type is 'timestep'" in why_not_shared(build_unet(class_embed_type="timestep"))
    assert "encoder_hid_dim_type is 'text_proj'" in why_not_shared(
        build_unet(encoder_hid_dim=16, encoder_hid_dim_type="text_proj")
    )
    assert why_not_shared(build_unet()) == ""


def test_statements_say_what_is_shared() -> None:
    diffusion, hidden = build(), randn(2, 5, 16)
    both = SharedDenoiser(diffusion, hidden).statement
    assert both == "shared: the part before the first cross-attention and keys and values of the prompts"
    off = SharedDenoiser(diffusion, hidden, share_prefix=False, cache_keys=False).statement
    assert off == "nothing is shared between prompts: as set"


def test_cost_in_whole_evaluations() -> None:
    diffusion, hidden = build(), randn(2, 5, 16)
    shared = SharedDenoiser(diffusion, hidden)
    assert 0.05 < shared.prefix_share < 0.5
    assert 0 < shared.keys_share < 0.1
    # ten classes on one latent: one common part and ten times the rest
    expected = 10 * (1 - shared.prefix_share - shared.keys_share) + shared.prefix_share
    assert shared.equivalent_evaluations(10, 1) == pytest.approx(expected)
    plain = SharedDenoiser(diffusion, hidden, share_prefix=False, cache_keys=False)
    assert plain.equivalent_evaluations(10, 1) == 10
    # The keys' multiplications by hand: two projections (16 → channels) of 5 tokens in every layer.
    layers = [module for name, module in diffusion.denoiser.named_modules() if name.endswith("attn2")]
    flops = sum(2 * 2 * 5 * 16 * layer.inner_dim for layer in layers)
    np.testing.assert_allclose(shared.keys_share * shared._whole_flops, flops)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_prompts_as_they_do_one_by_one(kind: str) -> None:
    diffusion, found = build(**KINDS[kind]), []
    for shared in (True, False):
        hidden = randn(3, 5, 16, seed=2).requires_grad_()
        predicted = answers(diffusion, hidden, share_prefix=shared, cache_keys=shared)
        (predicted * randn(*predicted.shape, seed=3)).mean().backward()
        found.append(hidden.grad)
    assert found[0] is not None
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)
    assert all(value.abs().max() > 1e-5 for value in found[0])


def test_a_second_update_learns_from_prompts_of_its_own() -> None:
    diffusion, hidden = build(), randn(3, 5, 16, seed=2).requires_grad_()
    shared, found = SharedDenoiser(diffusion, hidden), []
    noisy, steps = randn(4, *diffusion.latent_shape), torch.tensor([3, 250, 600, 999])
    for _ in range(2):
        found.append(shared.predict_noise(noisy, steps, *PAIRS))
        found[-1].square().mean().backward()
        with torch.no_grad():
            hidden.mul_(-1)
    assert float((found[0] - found[1]).detach().abs().max()) > 1e-3
    torch.testing.assert_close(found[1], answers(diffusion, -randn(3, 5, 16, seed=2)), rtol=0, atol=1e-6)


def test_layers_that_run_again_later_are_left_alone() -> None:
    diffusion, hidden = build(), randn(3, 5, 16, seed=2).requires_grad_()
    diffusion.denoiser.enable_gradient_checkpointing()
    assert "backward pass" in SharedDenoiser(diffusion, hidden).statement
    with torch.no_grad():
        assert SharedDenoiser(diffusion, hidden).shares_prefix
    diffusion.denoiser.disable_gradient_checkpointing()
    diffusion.denoiser.compile()
    assert "compiled" in SharedDenoiser(diffusion, hidden).statement


def test_threads_do_not_meet_each_others_layers() -> None:
    from concurrent.futures import ThreadPoolExecutor

    diffusion, hidden = build(), randn(3, 5, 16, seed=2)
    noisy, steps = randn(4, *diffusion.latent_shape), torch.tensor([3, 250, 600, 999])
    shared = SharedDenoiser(diffusion, hidden)

    @torch.no_grad()
    def ask(number: int) -> torch.Tensor:
        if number % 2:
            return diffusion.predict_noise(noisy, steps, hidden[:1].expand(4, -1, -1))
        return shared.predict_noise(noisy, steps, *PAIRS)

    alone = [ask(0), ask(1)]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(ask, range(24))):
            torch.testing.assert_close(found, alone[number % 2], rtol=0, atol=1e-5)
