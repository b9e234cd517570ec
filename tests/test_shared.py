"""What ``fast/`` shares between prompts changes nothing but the order of the arithmetic, and can be switched off."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from gcpl_lab import fast
from gcpl_lab.errors import LabError
from gcpl_lab.fast.shared import SharedPrediction, why_not_shared
from gcpl_lab.models.diffusion import FrozenDiffusion
from tests.made_up import randn


@pytest.fixture
def build(known_diffusion: Any) -> Callable[..., FrozenDiffusion]:
    """Makes models with Stable Diffusion 1.x's plan of blocks and few channels."""
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

    def make(prediction_type: str = "epsilon", **settings: Any) -> FrozenDiffusion:
        known = known_diffusion(prediction_type)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            denoiser = UNet2DConditionModel(**(plan | settings))
        parts = {name: getattr(known, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler", "name")}
        return FrozenDiffusion(denoiser=denoiser, **parts)

    return make


PAIRS = (torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 3, 3]), torch.tensor([0, 1, 2, 2, 0, 1, 0, 1, 2, 0]))
"""Several prompts for each of four latents: all is shared."""

SINGLE = (torch.arange(4), torch.tensor([0, 2, 2, 1]))
"""One prompt a latent, one of them twice: keys and values alone are shared."""


def answers(diffusion: FrozenDiffusion, hidden: torch.Tensor, *, shared: bool, pairs: Any = PAIRS) -> torch.Tensor:
    predict = SharedPrediction(diffusion) if shared else type(diffusion).predict_noise.__get__(diffusion)
    return predict(randn(4, *diffusion.latent_shape), torch.tensor([3, 250, 600, 999]), hidden, *pairs)


def prompts_of(diffusion: FrozenDiffusion) -> torch.Tensor:
    return diffusion.encode_texts(["coat", "bag", "shirt"])


def is_untouched(denoiser: torch.nn.Module) -> bool:
    parts = list(denoiser.modules())
    return not any("forward" in vars(part) or part._forward_pre_hooks or part._forward_hooks for part in parts)


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
@pytest.mark.parametrize("pairs", [PAIRS, SINGLE], ids=["all", "keys alone"])
def test_predictions_and_gradients_equal_those_one_by_one(build: Any, kind: str, pairs: Any) -> None:
    diffusion, found = build(**KINDS[kind]), []
    assert why_not_shared(diffusion.denoiser) == ""
    for shared in (True, False):
        hidden = randn(3, 5, 16, seed=2).requires_grad_()
        predicted = answers(diffusion, hidden, shared=shared, pairs=pairs)
        (predicted * randn(*predicted.shape, seed=3)).mean().backward()
        found.append((predicted.detach(), hidden.grad))
        assert hidden.grad is not None
        assert all(value.abs().max() > 1e-5 for value in hidden.grad)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        frozen = answers(diffusion, randn(3, 5, 16, seed=2), shared=True, pairs=pairs)
    torch.testing.assert_close(frozen, found[1][0], rtol=0, atol=1e-5)
    if pairs is PAIRS:  # prompts do matter: a cache that mixed them up would be seen
        assert float((frozen[0] - frozen[1]).abs().max()) > 1e-3


def test_the_common_part_runs_once_a_row_and_leaves_the_model_as_it_was(diffusion: FrozenDiffusion) -> None:
    hidden, denoiser = prompts_of(diffusion), diffusion.denoiser
    expected, before = answers(diffusion, hidden, shared=False), diffusion.checksum()
    rows: dict[str, list[int]] = {"conv_in": [], "conv_out": []}
    handles = [
        getattr(denoiser, name).register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(len(output)))
        for name, seen in rows.items()
    ]
    spent = diffusion.num_denoiser_evaluations
    try:
        found = answers(diffusion, hidden, shared=True)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    # Once for the four rows; the second is the replay, which only hands them out.
    assert rows == {"conv_in": [4, 10], "conv_out": [10]}
    assert diffusion.num_denoiser_evaluations == spent + 10
    assert diffusion.checksum() == before
    assert is_untouched(denoiser)


def test_what_others_replaced_comes_back_and_an_error_leaves_nothing(diffusion: FrozenDiffusion) -> None:
    with pytest.raises(RuntimeError):
        SharedPrediction(diffusion)(randn(4, 9, 8, 8), torch.tensor([1, 2, 3, 4]), prompts_of(diffusion), *PAIRS)
    assert is_untouched(diffusion.denoiser)
    module = diffusion.denoiser.conv_in
    own = module.forward
    module.forward = marked = lambda value: own(value)
    try:
        answers(diffusion, prompts_of(diffusion), shared=True)
        assert module.forward is marked
    finally:
        del module.forward


def test_known_keys_are_those_of_these_prompts_in_this_dtype(diffusion: FrozenDiffusion) -> None:
    """The same object asks again with bfloat16 and float32, and with other prompts."""
    shared, noisy, steps = SharedPrediction(diffusion), randn(4, 4, 8, 8), torch.tensor([3, 250, 600, 999])
    hidden = prompts_of(diffusion)
    with torch.autocast("cpu", torch.bfloat16):
        rough = shared(noisy, steps, hidden, *PAIRS)
    exact = shared(noisy, steps, hidden, *PAIRS)
    torch.testing.assert_close(exact, answers(diffusion, hidden, shared=False), rtol=0, atol=1e-5)
    assert 0 < float((rough - exact).abs().max()) < 0.2
    other = shared(noisy, steps, hidden.flip(0), *PAIRS)
    torch.testing.assert_close(other, answers(diffusion, hidden.flip(0), shared=False), rtol=0, atol=1e-5)


def test_a_second_update_learns_from_prompts_of_its_own(build: Any) -> None:
    diffusion, hidden = build(), randn(3, 5, 16, seed=2).requires_grad_()
    shared, found = SharedPrediction(diffusion), []
    noisy, steps = randn(4, *diffusion.latent_shape), torch.tensor([3, 250, 600, 999])
    for _ in range(2):
        found.append(shared(noisy, steps, hidden, *PAIRS))
        found[-1].square().mean().backward()
        with torch.no_grad():
            hidden.mul_(-1)
    assert float((found[0] - found[1]).detach().abs().max()) > 1e-3
    torch.testing.assert_close(found[1], answers(diffusion, -randn(3, 5, 16, seed=2), shared=False), rtol=0, atol=1e-5)


def test_where_nothing_can_be_shared_the_models_own_method_answers(build: Any, known_diffusion: Any) -> None:
    diffusion, clean = known_diffusion(), randn(3, 2, 4, 4).flatten(1)[:, None]
    assert why_not_shared(diffusion.denoiser) == "the denoiser is a KnownDenoiser, not a UNet2DConditionModel"
    noisy, steps = randn(3, 2, 4, 4), torch.tensor([3, 250, 600])
    pairs = torch.tensor([0, 0, 2]), torch.tensor([1, 2, 0])
    expected = diffusion.predict_noise(noisy, steps, clean, *pairs)
    assert torch.equal(SharedPrediction(diffusion)(noisy, steps, clean, *pairs), expected)
    diffusion = build()
    diffusion.denoiser.enable_gradient_checkpointing()
    assert "backward pass" in why_not_shared(diffusion.denoiser)
    with torch.no_grad():
        assert why_not_shared(diffusion.denoiser) == ""
    assert "class_embed_type is 'timestep'" in why_not_shared(build(class_embed_type="timestep").denoiser)
    projecting = build(encoder_hid_dim=16, encoder_hid_dim_type="text_proj")
    assert "encoder_hid_dim_type is 'text_proj', another way in" in why_not_shared(projecting.denoiser)


def test_threads_do_not_meet_each_others_layers(build: Any) -> None:
    diffusion, hidden = build(), randn(3, 5, 16, seed=2)

    @torch.no_grad()
    def ask(number: int) -> torch.Tensor:
        return answers(diffusion, hidden, shared=number % 2 == 0)

    alone = [ask(0), ask(1)]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(ask, range(24))):
            torch.testing.assert_close(found, alone[number % 2], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "method"), [("diffusion", "predict_noise"), ("clip", "encode_prompts")])
def test_the_variable_switches_it_off_and_on(
    random_pair: Any, monkeypatch: pytest.MonkeyPatch, kind: str, method: str
) -> None:
    model = type(getattr(random_pair, kind)).load(str(random_pair.folder))
    assert method not in vars(model)  # nothing is wrapped that did not ask for it
    monkeypatch.delenv(fast.VARIABLE, raising=False)
    assert fast.enable(model) is model
    wrapped = vars(model)[method]
    assert vars(fast.enable(model))[method] is wrapped  # once, however often
    monkeypatch.setenv("GCPL_LAB_FAST", "0")
    assert method not in vars(fast.enable(model))
    assert getattr(model, method).__func__ is getattr(type(model), method)
    monkeypatch.setenv("GCPL_LAB_FAST", "1")
    assert method in vars(fast.enable(model))
    monkeypatch.setenv("GCPL_LAB_FAST", "off")
    with pytest.raises(LabError, match="GCPL_LAB_FAST is 'off'; expected 0 .* or 1"):
        fast.enable(model)
