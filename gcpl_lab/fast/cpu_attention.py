"""Self-attention of many places in bfloat16 on a processor that has bfloat16 products and no tiles (AMX).

There torch's own attention is hardly faster in bfloat16 than in float32, and it is half of a pass of Stable
Diffusion at 512 pixels, though single products are four times as fast or more. Here the queries of a head are taken
in chunks, so that their scores stay in the processor's cache, and everything between the products is as little as can
be. Numbers are rounded to bfloat16 where torch keeps float32: the scores. Each query's largest score is therefore taken
off inside the product, in two more columns, so that what is rounded is small where the weight is large.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST_PLACES = 1024
"""With fewer, torch's own attention is not what a pass waits for."""

CHUNK = 512
"""Queries whose scores are in memory at a time: with 4096 keys, 4 MB."""

MARGIN = 1.0
"""Scores are taken relative to the largest one less this: most of the weight lies a little below the largest."""


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ / √dim) v, and its gradients, from scores that are computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        queries, keys, values = (_heads(tensor) for tensor in (query * query.shape[-1] ** -0.5, key, value))
        answer = torch.empty_like(queries)
        reference, total = queries.new_empty((2, *queries.shape[:2]), dtype=torch.float32)
        scratch = queries.new_empty(CHUNK, keys.shape[1])
        for head, wide_keys in enumerate(_with_ones(keys)):
            for chunk in _chunks(queries.shape[1]):
                some = queries[head, chunk]
                scores = scratch[: len(some)]
                torch.mm(some, keys[head].T, out=scores)
                largest = scores.amax(-1).float() - MARGIN
                torch.mm(_less(some, largest), wide_keys.T, out=scores).exp_()
                reference[head, chunk], total[head, chunk] = largest, scores.sum(-1, dtype=torch.float32)
                answer[head, chunk] = torch.mm(scores, values[head]) / total[head, chunk, None]
        ctx.save_for_backward(query, key, value, answer, reference, total)
        return answer.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, answer, reference, total = ctx.saved_tensors
        scale, dtype = query.shape[-1] ** -0.5, query.dtype
        queries, keys, values = (_heads(tensor) for tensor in (query * scale, key, value))
        # A weight is exp(score) / total; the division is done on the gradient's few columns.
        divided = _heads(gradient).float() / total[..., None]
        expected = (divided * answer.float()).sum(-1)
        divided = divided.to(dtype)
        of_queries = torch.empty_like(queries)
        of_keys, of_values = keys.new_zeros((2, *keys.shape), dtype=torch.float32)
        scratch = queries.new_empty(2, CHUNK, keys.shape[1])
        for head, (wide_keys, wide_values) in enumerate(zip(_with_ones(keys), _with_ones(values), strict=True)):
            for chunk in _chunks(queries.shape[1]):
                some, arriving = queries[head, chunk], divided[head, chunk]
                weights, changes = scratch[:, : len(some)]
                torch.mm(_less(some, reference[head, chunk]), wide_keys.T, out=weights).exp_()
                of_values[head] += torch.mm(weights.T, arriving)
                torch.mm(_less(arriving, expected[head, chunk]), wide_values.T, out=changes).mul_(weights)
                torch.mm(changes, keys[head], out=of_queries[head, chunk])
                of_keys[head] += torch.mm(changes.T, some)
        found = of_queries * scale, of_keys.to(dtype), of_values.to(dtype)
        return found[0].view(query.shape), found[1].view(key.shape), found[2].view(value.shape)


def _heads(tensor: Tensor) -> Tensor:
    """(picture, head, place, dim) as (picture · head, place, dim), each head in one piece of memory."""
    return tensor.reshape(-1, *tensor.shape[-2:]).contiguous()


def _chunks(places: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, places)) for first in range(0, places, CHUNK)]


def _with_ones(rows: Tensor) -> Tensor:
    """Two more columns, which a product adds :func:`_less` through."""
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 2)], -1)


def _less(rows: Tensor, number: Tensor) -> Tensor:
    """What, multiplied with rows :func:`_with_ones`, gives the products less a number a row, to sixteen bits."""
    high = (-number).to(rows.dtype)
    low = (-number - high.float()).to(rows.dtype)
    return torch.cat([rows, high[:, None], low[:, None]], -1)


def chunked_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention in bfloat16, chunk by chunk.

    It errs by up to three times what ``scaled_dot_product_attention`` errs in bfloat16; both err by some thousandths
    (``tests/test_cpu_attention.py``).

    Args:
        query: bfloat16 (picture, head, place, dim).
        key: bfloat16 (picture, head, other place, dim).
        value: Shaped as ``key``.

    Returns:
        bfloat16, shaped as ``query``. It can be differentiated once.

    Raises:
        TypeError: Another type than bfloat16.
    """
    types = {tensor.dtype for tensor in (query, key, value)}
    if types != {torch.bfloat16}:
        raise TypeError(f"chunked attention is for bfloat16; found {', '.join(sorted(map(str, types)))}")
    answer: Tensor = _Attention.apply(query, key, value)
    return answer


class ChunkedSelfAttention(AttnProcessor2_0):
    """What an attention layer of diffusers asks: :func:`chunked_attention` where it is of use, else torch's own."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attend.

        Args:
            attn: The layer, as :func:`attend_in_chunks` takes it.
            hidden_states: (picture, place, channel).
            args: Of another kind of attention.
            kwargs: The same.
        """
        others = [value for value in (*args, *kwargs.values()) if value is not None]
        if others or hidden_states.shape[1] < LEAST_PLACES or attn.to_q.weight.dtype != torch.bfloat16:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        answer = chunked_attention(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](answer))


def attend_in_chunks(denoiser: nn.Module) -> int:
    """Let a denoiser's self-attention go chunk by chunk; returns in how many layers.

    Args:
        denoiser: A model of diffusers. Layers that do more than attend are left as they are.
    """
    from diffusers.models.attention import BasicTransformerBlock

    chosen = [
        block.attn1
        for block in denoiser.modules()
        if isinstance(block, BasicTransformerBlock)
        and not block.attn1.is_cross_attention
        and type(block.attn1.processor) is AttnProcessor2_0
        and _only_attends(block.attn1)
    ]
    for layer in chosen:
        layer.set_processor(ChunkedSelfAttention())
    return len(chosen)


def _only_attends(layer: Attention) -> bool:
    extras = (layer.spatial_norm, layer.group_norm, layer.norm_q, layer.norm_k)
    return (
        all(extra is None for extra in extras)
        and not layer.residual_connection
        and layer.rescale_output_factor == 1.0
        and not layer.fused_projections
    )
