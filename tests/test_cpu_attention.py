"""Self-attention in chunks: as near to the truth as bfloat16 allows, forth and back, and only where it is of use."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.fast import cpu_attention
from gcpl_lab.fast.cpu_attention import ChunkedSelfAttention, attend_in_chunks, chunked_attention
from gcpl_lab.training import device as runtime


def draw(places: int, others: int, dim: int, size: float) -> list[Tensor]:
    """Queries, keys with a common part, values and a gradient, in bfloat16."""
    torch.manual_seed(places + dim)
    shapes = ((2, 3, places, dim), (2, 3, others, dim), (2, 3, others, dim), (2, 3, places, dim))
    query, key, value, gradient = (torch.randn(shape) * size for shape in shapes)
    return [tensor.bfloat16() for tensor in (query, key + torch.randn(1, 3, 1, dim), value, gradient)]


def answer_and_gradients(attend: Any, tensors: list[Tensor]) -> list[Tensor]:
    *inputs, gradient = (tensor.clone() for tensor in tensors)
    for tensor in inputs:
        tensor.requires_grad_()
    answer = attend(*inputs)
    return [answer.detach(), *torch.autograd.grad(answer, inputs, gradient)]


@pytest.mark.parametrize(("places", "others", "dim"), [(1024, 1024, 40), (1100, 700, 80), (5, 9, 8), (513, 3, 16)])
@pytest.mark.parametrize("size", [0.3, 1.0, 2.0])
def test_errors_stay_within_those_of_the_format(places: int, others: int, dim: int, size: float) -> None:
    """Against float64 on the same numbers: at most three times torch's own error."""
    tensors = draw(places, others, dim, size)
    truth = answer_and_gradients(F.scaled_dot_product_attention, [tensor.double() for tensor in tensors])
    own = answer_and_gradients(F.scaled_dot_product_attention, tensors)
    found = answer_and_gradients(chunked_attention, tensors)
    for what, true, torchs, ours in zip(("answer", "query", "key", "value"), truth, own, found, strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours - true).norm()) <= 3 * float((torchs - true).norm()), what


def test_scores_of_any_height_do_not_overflow() -> None:
    """A query that is far from all keys but one: its weight is one, whatever the scores are."""
    query = torch.full((1, 1, 3, 4), 60.0).bfloat16()
    key = torch.tensor([[60.0] * 4, [-60.0] * 4]).bfloat16().expand(1, 1, 2, 4)
    value = torch.tensor([[1.0, 2, 3, 4], [-9, -9, -9, -9]]).bfloat16().expand(1, 1, 2, 4)
    torch.testing.assert_close(chunked_attention(query, key, value), value[:, :, :1].expand(1, 1, 3, 4))
    low = chunked_attention(query, -key.abs() * torch.tensor([1.0, 2.0]).bfloat16()[:, None], value)
    torch.testing.assert_close(low, value[:, :, :1].expand(1, 1, 3, 4))


def test_it_is_for_bfloat16() -> None:
    with pytest.raises(TypeError, match=r"for bfloat16; found torch\.bfloat16, torch\.float32"):
        chunked_attention(torch.zeros(1, 1, 2, 4), *torch.zeros(2, 1, 1, 2, 4).bfloat16())


@pytest.fixture
def denoiser(diffusion: Any) -> Any:
    return copy.deepcopy(diffusion.denoiser).to(torch.bfloat16)


def gradient_of(denoiser: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    noisy = torch.randn(2, denoiser.config.in_channels, *[denoiser.config.sample_size] * 2).to(denoiser.dtype)
    given = hidden.to(denoiser.dtype, copy=True).requires_grad_()
    answer = denoiser(noisy, torch.tensor([100, 900]), given, return_dict=False)[0]
    answer.float().square().mean().backward()
    assert given.grad is not None
    return answer.detach().float(), given.grad.float()


def test_a_whole_denoiser_answers_as_before(denoiser: Any, diffusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.randn(2, diffusion.context_length, diffusion.embedding_table.shape[1]).bfloat16()
    before = gradient_of(denoiser, hidden)
    asked: list[int] = []
    inside = cpu_attention.chunked_attention

    def attend(query: Tensor, *others: Tensor) -> Tensor:
        asked.append(query.shape[2])
        return inside(query, *others)

    monkeypatch.setattr(cpu_attention, "chunked_attention", attend)
    layers = attend_in_chunks(denoiser)
    assert layers > 0
    few = gradient_of(denoiser, hidden)
    assert asked == []  # too few places: torch's own
    assert all(torch.equal(one, other) for one, other in zip(before, few, strict=True))
    monkeypatch.setattr(cpu_attention, "LEAST_PLACES", 1)
    found = gradient_of(denoiser, hidden)
    assert len(asked) == layers
    for one, other in zip(before, found, strict=True):
        assert 0 < float((one - other).norm()) < 0.03 * float(one.norm())
    asked.clear()
    gradient_of(denoiser.float(), hidden)
    assert asked == []  # other weights: torch's own
    gradient_of(denoiser.bfloat16(), hidden)
    assert len(asked) == layers


def test_layers_that_do_more_than_attend_are_left(denoiser: Any) -> None:
    from diffusers.models.attention import BasicTransformerBlock

    blocks = [module for module in denoiser.modules() if isinstance(module, BasicTransformerBlock)]
    blocks[0].attn1.rescale_output_factor = 2.0
    assert attend_in_chunks(denoiser) == len(blocks) - 1
    assert not isinstance(blocks[0].attn1.processor, ChunkedSelfAttention)
    assert not any(isinstance(block.attn2.processor, ChunkedSelfAttention) for block in blocks)
    assert attend_in_chunks(denoiser) == 0  # they have it already


@pytest.mark.parametrize(
    ("instructions", "dtype", "chosen"),
    [
        ({"avx512_bf16": True, "amx": False}, torch.bfloat16, True),
        ({"avx512_bf16": True, "amx": True}, torch.bfloat16, False),
        ({"avx512_bf16": False, "amx": False}, torch.bfloat16, False),
        ({"avx512_bf16": True, "amx": False}, torch.float32, False),
    ],
)
def test_a_processor_is_given_what_suits_it(
    denoiser: Any, instructions: dict[str, bool], dtype: torch.dtype, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "bfloat16_instructions", lambda: instructions)
    denoiser.to(dtype)
    runtime.prepare_for_device(denoiser, "cpu", "auto")
    assert any(isinstance(module, ChunkedSelfAttention) for module in denoiser.attn_processors.values()) == chosen
    weight = next(parameter for parameter in denoiser.parameters() if parameter.dim() == 4 and parameter.shape[2] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last) == (dtype == torch.bfloat16)


def test_the_librarys_own_attention_can_be_asked_for(denoiser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "bfloat16_instructions", lambda: {"avx512_bf16": True, "amx": False})
    monkeypatch.setenv("GCPL_LAB_KERNELS", "library")
    runtime.prepare_for_device(denoiser.bfloat16(), "cpu", "auto")
    assert not any(isinstance(module, ChunkedSelfAttention) for module in denoiser.attn_processors.values())
