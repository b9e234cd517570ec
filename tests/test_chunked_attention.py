"""Attention in chunks is scaled_dot_product_attention up to rounding, and touches nothing that it is not made for."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from gcpl_lab.backbones import chunked_attention
from gcpl_lab.backbones.chunked_attention import (
    ChunkedAttnProcessor,
    attend,
    torch_attention,
    use_chunked_attention,
)
from gcpl_lab.training.runtime import prepare_for_device

Inputs = tuple[Tensor, Tensor, Tensor]


def draw(places: int, dim: int, spread: float = 1.0, dtype: torch.dtype = torch.float64, heads: int = 2) -> Inputs:
    """Queries, keys and values, (1, head, place, dim); queries and keys have this standard deviation."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn((3, 1, heads, places, dim), generator=generator, dtype=torch.float64)
    return tuple(x.to(dtype).requires_grad_() for x in (query * spread, key * spread, value))  # type: ignore[return-value]


def standing_out(inputs: Inputs) -> Inputs:
    """One key that half of the queries attend to far more than to any other, and the other half far less."""
    query, key, value = (x.detach().clone() for x in inputs)
    query[:, :, ::2, 0] += 6
    query[:, :, 1::2, 0] -= 6
    key[:, :, 3, 0] += 9
    return tuple(x.requires_grad_() for x in (query, key, value))  # type: ignore[return-value]


def answers(function: Any, inputs: Inputs) -> list[Tensor]:
    """The mixed values and the gradients to all three, as float64."""
    mixed = function(*inputs)
    towards = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(mixed)
    return [x.detach().double() for x in (mixed, *torch.autograd.grad(mixed, inputs, towards))]


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("arrange", [lambda inputs: inputs, standing_out])
@pytest.mark.parametrize(("places", "chunk"), [(48, 16), (37, 16), (20, 64)])
def test_it_is_torchs_attention_in_float64(places: int, chunk: int, arrange: Any, spread: float) -> None:
    inputs = arrange(draw(places, 5, spread))
    found = answers(lambda *x: attend(*x, chunk=chunk), inputs)
    for one, other in zip(found, answers(F.scaled_dot_product_attention, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda *x: attend(*x, chunk=4), draw(11, 3))


def test_other_memory_layouts_change_nothing() -> None:
    inputs = draw(40, 8)
    others: Inputs = tuple(  # type: ignore[assignment]
        x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs
    )
    for one, other in zip(answers(attend, inputs), answers(attend, others), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.0, 4.0])
def test_bfloat16_errors_are_of_the_size_of_torchs_own(spread: float) -> None:
    rounded = draw(1024, 40, spread, torch.bfloat16)
    exact: Inputs = tuple(x.detach().double().requires_grad_() for x in rounded)  # type: ignore[assignment]
    true = answers(F.scaled_dot_product_attention, exact)
    ours, torchs = answers(attend, rounded), answers(F.scaled_dot_product_attention, rounded)
    for what, mine, other, right in zip(("mixed", "query", "key", "value"), ours, torchs, true, strict=True):
        assert error(mine, right) < 2 * error(other, right) < 0.02, what


def test_scores_near_the_weight_are_not_rounded_by_their_size() -> None:
    """Two keys of nearly the same large score: rounding it would put either first."""
    query, key, value = torch.zeros(3, 1, 1, 64, 8).bfloat16()
    query[..., 0], key[..., 0, 0], key[..., 1, 0], value[..., 0, 1] = 16, 32, 31.875, 1
    found = attend(query, key, value)[0, 0, :, 1].double()
    true = F.scaled_dot_product_attention(query.double(), key.double(), value.double())[0, 0, :, 1]
    torch.testing.assert_close(found, true, rtol=0.01, atol=0)


# ------------------------------------------------------------------------------------------- in a denoiser


def build_unet(side: int) -> Any:
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(1)
        return UNet2DConditionModel(
            sample_size=side, layers_per_block=1, block_out_channels=(16, 32), attention_head_dim=2, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=16,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ).eval().requires_grad_(False)  # fmt: skip


def predict(unet: Any, dtype: torch.dtype, autocast: bool = False) -> tuple[Tensor, Tensor]:
    """A prediction, and the gradient to the prompt's hidden states."""
    generator = torch.Generator().manual_seed(2)
    side = unet.config.sample_size
    noisy = torch.randn((1, 4, side, side), generator=generator).to(dtype)
    hidden = torch.randn((1, 7, 16), generator=generator).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        answer = unet(noisy, torch.tensor([500]), hidden, return_dict=False)[0]
    return answer.detach().float(), torch.autograd.grad(answer.float().square().mean(), hidden)[0].float()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The type of each attention in chunks; a processor that it helps is pretended."""
    seen: list[torch.dtype] = []

    def watched(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append(query.dtype)
        return attend(query, key, value)

    monkeypatch.setattr(chunked_attention, "attend", watched)
    monkeypatch.setattr(chunked_attention, "gains_here", lambda: True)
    return seen


@pytest.mark.parametrize("autocast", [False, True])
def test_a_denoiser_in_bfloat16_uses_it_and_answers_the_same(calls: list[torch.dtype], autocast: bool) -> None:
    unet = build_unet(32).to(torch.float32 if autocast else torch.bfloat16)
    dtype = torch.float32 if autocast else torch.bfloat16
    true = predict(unet.float(), torch.float32)
    unet = unet.to(dtype)
    before = predict(unet, dtype, autocast)
    prepare_for_device(unet, "cpu", "bfloat16")
    after = predict(unet, dtype, autocast)
    assert calls == [torch.bfloat16] * 3  # a block down, two up
    for found, plain, right in zip(after, before, true, strict=True):
        assert error(found, right) < 1.25 * error(plain, right) + 1e-4
    with torch_attention(unet):
        assert all(torch.equal(one, other) for one, other in zip(predict(unet, dtype, autocast), before, strict=True))
    assert len(calls) == 3
    unet.enable_gradient_checkpointing()
    unet.train()
    assert all(torch.equal(one, other) for one, other in zip(predict(unet, dtype, autocast), after, strict=True))
    use_chunked_attention(unet, enabled=False)
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor2_0}


def test_float32_and_small_pictures_stay_as_they_are(calls: list[torch.dtype]) -> None:
    unet = build_unet(32)
    before = predict(unet, torch.float32)
    prepare_for_device(unet, "cpu", "bfloat16")
    assert (
        sum(type(processor) is ChunkedAttnProcessor for processor in unet.attn_processors.values()) == 4
    )  # and the middle
    assert all(torch.equal(one, other) for one, other in zip(predict(unet, torch.float32), before, strict=True))
    small = build_unet(16)
    prepare_for_device(small, "cpu", "bfloat16")
    assert {type(processor) for processor in small.attn_processors.values()} == {AttnProcessor2_0}
    assert calls == []


def test_a_processor_that_it_does_not_help_and_other_attention_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = build_unet(32)
    monkeypatch.setattr(chunked_attention, "gains_here", lambda: False)
    prepare_for_device(unet, "cpu", "bfloat16")
    assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor2_0}
    monkeypatch.setattr(chunked_attention, "gains_here", lambda: True)
    prepare_for_device(unet, "cpu", "bfloat16")
    crossing = [type(processor) for name, processor in unet.attn_processors.items() if "attn2" in name]
    assert set(crossing) == {AttnProcessor2_0}
