"""Self-attention over thousands of places in bfloat16 on a CPU, by matrix products.

On a processor with bfloat16 products, but without AMX tiles, torch's ``scaled_dot_product_attention`` is about as slow
in bfloat16 as in float32, while matrix products are several times as fast (``benchmarks/gcpl_step.py --operations``).
Here the queries are taken in chunks and everything large is such a product. Probabilities are never kept: the backward
pass makes those of a chunk anew, as FlashAttention does (Dao et al., 2022, arXiv:2205.14135).

Products add up in float32 but answer in bfloat16, and a rounded score s is off by up to |s| / 512, which the
exponential makes an error of the same size in the probability. So each query's scores come out of the product relative
to a shift near those that carry weight, where |s| is small: the shift is one more column of the product. For scores
that are spread normally with mean μ and variance σ² the weight lies around μ + σ², or at the largest if that is less;
where this guess is found wrong, the mean score under the probabilities themselves takes its place. Shifts change
nothing but rounding. The scores are still rounded once more than in torch's attention, which keeps them in float32: on
random numbers errors are up to twice as large as its own (``tests/test_chunked_attention.py`` holds them to that).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST_PLACES = 1024
"""From here on it gains; with 256 places torch's own attention is as fast."""
CHUNK = 512
"""Queries a chunk: of 64 to 512 the fastest, by up to a third."""
GROUPS = 8
"""Columns that weights are added up in."""
VECTOR = 16
"""Numbers of a vector of the processor, in float32."""
FURTHEST_ABOVE, FURTHEST_BELOW = 6.0, 1.0
"""A query's shift is found anew where its largest score is so far above or below it."""


@torch.compiler.disable
def attend(query: Tensor, key: Tensor, value: Tensor, chunk: int = CHUNK) -> Tensor:
    """Softmax attention, equal to ``scaled_dot_product_attention`` up to rounding, with gradients to all three.

    Args:
        query: (batch, head, query, dim), in memory as it likes.
        key: (batch, head, place, dim).
        value: (batch, head, place, dim).
        chunk: Queries at a time.

    Returns:
        (batch, head, query, dim), with the heads of a place side by side in memory.
    """
    mixed: Tensor = _ChunkedAttention.apply(query, key, value, chunk)
    return mixed


class _ChunkedAttention(torch.autograd.Function):
    """One head after the other: (query, dim) matrices, whose chunks of scores stay in the processor's cache."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, chunk: int) -> Tensor:
        batch, heads, num_queries, dim = query.shape
        exact, scale = torch.promote_types(query.dtype, torch.float32), dim**-0.5
        mixed = query.new_empty(batch, num_queries, heads, dim).transpose(1, 2)
        shifts = query.new_empty((batch, heads, num_queries, 1), dtype=exact)
        totals = torch.empty_like(shifts)
        scores = query.new_empty(chunk, key.shape[2])
        # The product with the values adds up the weights too, by groups: the rounding of the parts evens out.
        groups = torch.eye(GROUPS, dtype=key.dtype).repeat(-(-key.shape[2] // GROUPS), 1)[: key.shape[2]]
        with torch.autocast(query.device.type, enabled=False):
            for place in _heads(query):
                keys, values = _with_ones(key[place]), torch.cat([value[place], groups], dim=1)
                shifts[place] = _expected_shift(query[place].to(exact), key[place].to(exact), scale)
                for part in _chunks(num_queries, chunk):
                    some, shift = query[place][part], shifts[place][part]
                    weights = _scores(some, shift, keys, scale, scores)
                    top = weights.amax(-1, keepdim=True)
                    wrong = (top > FURTHEST_ABOVE) | (top < -FURTHEST_BELOW)
                    if wrong.any():
                        mean = (weights.softmax(-1) * weights).sum(-1, keepdim=True, dtype=exact) / scale
                        shift += mean.where(wrong, 0)
                        weights = _scores(some, shift, keys, scale, scores)
                    sums = weights.exp_() @ values
                    totals[place][part] = sums[:, dim:].sum(-1, keepdim=True, dtype=exact)
                    mixed[place][part] = sums[:, :dim] / totals[place][part]
        ctx.save_for_backward(query, key, value, mixed, shifts, totals)
        ctx.chunk = chunk
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mixed, shifts, totals = ctx.saved_tensors
        gradient, exact, dim = gradients[0], shifts.dtype, query.shape[-1]
        scale = dim**-0.5
        to_query, to_key, to_value = (_like_heads(tensor) for tensor in (query, key, value))
        scores, changes = query.new_empty(2, ctx.chunk, key.shape[2]).unbind()
        product = query.new_empty(dim, key.shape[2])
        rounded = torch.empty_like(product, dtype=exact)
        with torch.autocast(query.device.type, enabled=False):
            for place in _heads(query):
                keys, values = _with_ones(key[place]), _with_ones(value[place])
                sum_key, sum_value = query.new_zeros((2, *product.shape), dtype=exact).unbind()
                for part in _chunks(query.shape[2], ctx.chunk):
                    some, wanted, total = query[place][part], gradient[place][part], totals[place][part]
                    weights = _scores(some, shifts[place][part], keys, scale, scores).exp_()
                    # With probabilities p = weights / total: ∂L/∂s = p (g·v - Σ p g·v), and Σ p g·v = g·mixed.
                    own = (wanted.to(exact) * mixed[place][part]).sum(-1, keepdim=True)
                    change = torch.mm(_minus(wanted, own), values.t(), out=changes[: len(some)]).mul_(weights)
                    to_query[place][part] = (change @ keys)[:, :dim] * (scale / total)
                    for found, rows, columns in ((sum_key, some, change), (sum_value, wanted, weights)):
                        torch.mm((rows / total).to(rows.dtype).t(), columns, out=product)
                        found += rounded.copy_(product)  # adding the other type would make a new tensor of it
                to_key[place], to_value[place] = sum_key.t() * scale, sum_value.t()
        return to_query, to_key, to_value, None


def _heads(tensor: Tensor) -> Iterator[tuple[int, int]]:
    return ((sample, head) for sample in range(tensor.shape[0]) for head in range(tensor.shape[1]))


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _like_heads(tensor: Tensor) -> Tensor:
    """Room for (batch, head, place, dim) with the heads of a place side by side, as projections want it."""
    batch, heads, places, dim = tensor.shape
    return tensor.new_empty(batch, places, heads, dim).transpose(1, 2)


def _padded(rows: Tensor, *columns: Tensor) -> Tensor:
    """Rows with more columns, and zeros up to whole vectors of the processor."""
    width = rows.shape[1] + sum(column.shape[1] for column in columns)
    return torch.cat([rows, *columns, rows.new_zeros(len(rows), -width % VECTOR)], dim=1)


def _with_ones(rows: Tensor) -> Tensor:
    return _padded(rows, rows.new_ones(len(rows), 2))


def _minus(rows: Tensor, shift: Tensor) -> Tensor:
    """Two more columns, so that a product with :func:`_with_ones` is less by ``shift``, to twice the digits."""
    high = shift.to(rows.dtype)
    return _padded(rows, -high, (high - shift).to(rows.dtype))


def _scores(query: Tensor, shift: Tensor, keys: Tensor, scale: float, room: Tensor) -> Tensor:
    """scale · (q·k - shift), (query, place): scaled and shifted before it is rounded."""
    room = room[: len(query)]
    return torch.addmm(room, _minus(query, shift), keys.t(), beta=0, alpha=scale, out=room)


def _expected_shift(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Where each query's weight lies if its products q·k are spread normally, before scaling: (query, 1)."""
    mean = key.mean(0)
    covariance = (key - mean).t() @ (key - mean) / len(key)
    variance = ((query @ covariance) * query).sum(-1, keepdim=True).clamp(min=0)
    largest = variance.sqrt() * math.sqrt(2 * math.log(len(key)))
    return (query @ mean).unsqueeze(-1) + torch.minimum(scale * variance, largest)


class ChunkedAttnProcessor(AttnProcessor2_0):
    """diffusers' own processor, but for long self-attention in bfloat16 on a CPU."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        """As diffusers calls it.

        Args:
            attn: The layer.
            hidden_states: (batch, place, channel).
            *args: Left to diffusers, as are ``options``: the prompt, a mask.
            **options: See ``args``.
        """
        if args or any(value is not None for value in options.values()) or not _is_long_bfloat16(attn, hidden_states):
            answer: Tensor = super().__call__(attn, hidden_states, *args, **options)
            return answer
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)
        for layer in attn.to_out:
            mixed = layer(mixed)
        return mixed


def _is_long_bfloat16(attn: Attention, hidden: Tensor) -> bool:
    if hidden.device.type != "cpu" or hidden.ndim != 3 or hidden.shape[1] < LEAST_PLACES:
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
    return dtype is torch.bfloat16


def gains_here() -> bool:
    """Whether the processor has bfloat16 products (AVX-512) and no AMX, which torch's own attention makes use of."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def use_chunked_attention(denoiser: nn.Module, enabled: bool = True) -> None:
    """Give every plain self-attention layer of a diffusers denoiser the processor of this module, or take it away.

    Args:
        denoiser: Left as it is where its own picture size has fewer places than :data:`LEAST_PLACES`, and for layers
            that do more than self-attention or have another processor already; and as a whole on a processor that
            this does not make faster.
        enabled: False gives diffusers' own processor back.
    """
    if enabled and not gains_here():
        return
    side = getattr(getattr(denoiser, "config", None), "sample_size", None)
    if not isinstance(side, int) or side**2 < LEAST_PLACES:
        return
    before, after = AttnProcessor2_0, ChunkedAttnProcessor
    if not enabled:
        before, after = after, before
    for layer in denoiser.modules():
        if isinstance(layer, Attention) and type(layer.processor) is before and _is_plain(layer):
            layer.set_processor(after())


def _is_plain(layer: Attention) -> bool:
    more = (layer.group_norm, layer.spatial_norm, layer.norm_q, layer.norm_k, layer.add_k_proj)
    return (
        not (layer.is_cross_attention or layer.residual_connection or layer.fused_projections)
        and all(part is None for part in more)
        and layer.rescale_output_factor == 1
    )


@contextmanager
def torch_attention(denoiser: nn.Module) -> Iterator[None]:
    """Attention as diffusers and torch do it, inside the block.

    Args:
        denoiser: One that :func:`use_chunked_attention` has changed; others stay as they are.
    """
    changed = any(type(getattr(layer, "processor", None)) is ChunkedAttnProcessor for layer in denoiser.modules())
    use_chunked_attention(denoiser, enabled=False)
    try:
        yield
    finally:
        use_chunked_attention(denoiser, enabled=changed)
