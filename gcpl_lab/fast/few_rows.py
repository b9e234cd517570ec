"""A plain text tower on the few rows of all prompts together, with its gradient written down.

A few dozen rows take as long to be recorded, sorted and summed up as to be multiplied. So all rows attend in one
piece, under a mask between prompts, a block keeps just what its gradient needs, and the frozen weights get none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gcpl_lab.fast.cpu_linear import PackedProduct, without_autocast
from gcpl_lab.fast.template_tower import added_mask


class _Norm(NamedTuple):
    """A layer norm over the last dimension."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def forth(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed rows, and the mean and inverse deviation that :meth:`back` asks for."""
        found: tuple[Tensor, Tensor, Tensor] = torch.native_layer_norm(
            rows, self.weight.shape, self.weight, self.bias, self.epsilon
        )
        return found

    def back(self, gradient: Tensor, rows: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
        """Gradient of the rows."""
        found: Tensor = torch.ops.aten.native_layer_norm_backward(
            gradient, rows, self.weight.shape, mean, inverse, self.weight, self.bias, [True, False, False]
        )[0]
        return found


class PlainBlock(NamedTuple):
    """Weights of a residual block: attention, then two layers with a GELU between, each behind a norm.

    The projection's queries are divided by the root of a head's dimension already, so that attention need not be.
    """

    num_heads: int
    norm: _Norm
    projection: PackedProduct
    out: PackedProduct
    inner_norm: _Norm
    widen: PackedProduct
    narrow: PackedProduct


class PlainTower(NamedTuple):
    """Weights of a text tower behind its token embeddings."""

    blocks: tuple[PlainBlock, ...]
    norm: _Norm
    projection: PackedProduct | None


class _Kept(NamedTuple):
    """What the gradient of a block needs of its forward pass."""

    rows: Tensor
    statistics: Sequence[Tensor]
    by_head: tuple[Tensor, ...]
    weights: Tensor
    attended: Tensor
    inner_statistics: Sequence[Tensor]
    widened: Tensor


def read_tower(text_tower: Any, num_rows: int, num_prompts: int) -> PlainTower | None:
    """The frozen weights of open_clip's causal text tower; None where it learns or computes anything else.

    Args:
        text_tower: Its blocks are open_clip's ``ResidualAttentionBlock``.
        num_rows: How many will run through its blocks.
        num_prompts: How many will leave them.
    """
    if any(parameter.requires_grad for parameter in text_tower.parameters()):
        return None
    *others, last = text_tower.transformer.resblocks
    blocks = [_read_block(block, num_rows, num_rows) for block in others]
    known = [block for block in [*blocks, _read_block(last, num_rows, num_prompts)] if block is not None]
    if len(known) <= len(others):
        return None
    projection, packed = text_tower.text_projection, None
    if isinstance(projection, nn.Linear):
        packed = PackedProduct(projection.weight, projection.bias, num_prompts)
    elif projection is not None:
        packed = PackedProduct(projection.t(), None, num_prompts)
    return PlainTower(tuple(known), _read_norm(text_tower.ln_final), packed)


def _read_block(block: Any, num_rows: int, num_asked: int) -> PlainBlock | None:
    attention, mlp = block.attn, block.mlp
    if not (
        isinstance(block.ls_1, nn.Identity)
        and isinstance(block.ls_2, nn.Identity)
        and len(mlp) == 3
        and type(mlp.gelu) is nn.GELU
        and mlp.gelu.approximate == "none"
    ):
        return None
    weight, bias = attention.in_proj_weight.detach().clone(), attention.in_proj_bias.detach().clone()
    for of_query in (weight[: attention.embed_dim], bias[: attention.embed_dim]):
        of_query *= (attention.embed_dim // attention.num_heads) ** -0.5
    out, widen, narrow = (
        PackedProduct(layer.weight, layer.bias, num_asked) for layer in (attention.out_proj, mlp.c_fc, mlp.c_proj)
    )
    return PlainBlock(
        attention.num_heads,
        _read_norm(block.ln_1),
        PackedProduct(weight, bias, num_rows),
        out,
        _read_norm(block.ln_2),
        widen,
        narrow,
    )


def _read_norm(norm: nn.LayerNorm) -> _Norm:
    return _Norm(norm.weight, norm.bias, norm.eps)


class FewRows:
    """Where the rows of all prompts stand in one matrix, and the tower they run through.

    The start token hears nothing but itself, so it stands there once, in front, for all prompts.
    """

    def __init__(
        self, tower: PlainTower, start: Tensor, positions: Tensor, needed: Tensor, end_positions: Tensor
    ) -> None:
        """Lay the rows out.

        Args:
            tower: Its weights.
            start: The start token's row, (dim,), its position added.
            positions: Embeddings of the positions, (token, dim).
            needed: bool (batch, token): what stands between a prompt's start and its end, the end included.
            end_positions: int64 (batch,).
        """
        self.tower, self.start = tower, start[None]
        self.needed = needed.flatten().nonzero().flatten()
        prompt, place = self.needed // len(positions), self.needed % len(positions)
        self.positions = positions[place]
        hears = F.pad((prompt[:, None] == prompt) & (place[:, None] >= place), (1, 0, 1, 0))
        hears[:, 0] = True
        self.mask = added_mask(hears, positions.dtype)
        self.ends = (place == end_positions[prompt]).nonzero().flatten() + 1
        self.mask_of_ends = self.mask[self.ends]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Unit features (batch, feature), in float32 at least.

        Args:
            embeddings: Of the tokens, (batch, token, dim), without positions; no gradient reaches the start token or
                what stands behind an end.
        """
        answer: Tensor = _Encode.apply(embeddings, self)
        return answer


class _Encode(torch.autograd.Function):
    """Blocks one after the other, the last for the end tokens alone, then norm, projection and unit length."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, layout: FewRows) -> Tensor:
        tower = layout.tower
        rows = embeddings.flatten(0, 1).index_select(0, layout.needed).to(layout.positions.dtype)
        rows = torch.cat([layout.start, rows.add_(layout.positions)])
        ctx.layout, ctx.shape, ctx.dtype, ctx.kept = layout, embeddings.shape, embeddings.dtype, []
        *blocks, last = tower.blocks
        for block in blocks:
            rows, kept = _forth(block, rows, layout.mask)
            ctx.kept.append(kept)
        rows, kept = _forth(last, rows, layout.mask_of_ends, layout.ends)
        ctx.kept.append(kept)
        features, *statistics = tower.norm.forth(rows)
        ctx.rows, ctx.statistics = rows, statistics
        if tower.projection is not None:
            features = tower.projection.forth(features)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        ctx.lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min_(1e-12)
        ctx.unit = features / ctx.lengths
        return ctx.unit.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layout, (*others, kept) = ctx.layout, ctx.kept
        tower, unit = layout.tower, ctx.unit
        *blocks, last = tower.blocks
        with without_autocast(gradient.device.type):
            # What points along a unit vector does not change it.
            gradient = torch.addcmul(gradient, unit, (unit * gradient).sum(dim=-1, keepdim=True), value=-1)
            gradient = gradient.div_(ctx.lengths).to(ctx.rows.dtype)
            if tower.projection is not None:
                gradient = tower.projection.back(gradient)
            gradient = tower.norm.back(gradient, ctx.rows, *ctx.statistics)
            gradient = _back(last, gradient, kept, layout.ends)
            for block, kept in zip(reversed(blocks), reversed(others), strict=True):
                gradient = _back(block, gradient, kept)
        whole = gradient.new_zeros(ctx.shape, dtype=ctx.dtype)
        whole.view(-1, ctx.shape[-1]).index_copy_(0, layout.needed, gradient[1:].to(ctx.dtype))
        return whole, None


def _forth(block: PlainBlock, rows: Tensor, mask: Tensor, asked: Tensor | None = None) -> tuple[Tensor, _Kept]:
    """A block's answer for the rows that are asked for (None: all), and what its gradient needs.

    Args:
        block: Its weights.
        rows: (row, dim).
        mask: (asked row, row): 0 where a row hears another, -inf elsewhere.
        asked: int64 (asked row,): their places, each once.
    """
    normed, *statistics = block.norm.forth(rows)
    # Query, key and value, (head, row, dim of a head) each, out of (row, 3 · dim).
    by_head = block.projection.forth(normed).view(len(rows), 3, block.num_heads, -1).permute(1, 2, 0, 3)
    query, key, value = by_head.unbind()
    asking = rows
    if asked is not None:
        query, asking = query.index_select(1, asked), rows.index_select(0, asked)
    weights = torch.baddbmm(mask, query, key.mT).softmax(dim=-1)
    attended = asking + block.out.forth(torch.bmm(weights, value).transpose(0, 1).flatten(1))
    normed, *inner_statistics = block.inner_norm.forth(attended)
    widened = block.widen.forth(normed)
    answer = attended + block.narrow.forth(F.gelu(widened))
    return answer, _Kept(rows, statistics, (query, key, value), weights, attended, inner_statistics, widened)


def _back(block: PlainBlock, gradient: Tensor, kept: _Kept, asked: Tensor | None = None) -> Tensor:
    """Gradient of a block's rows (row, dim) from that of its answer (asked row, dim)."""
    widened = torch.ops.aten.gelu_backward(block.narrow.back(gradient), kept.widened)
    gradient = gradient + block.inner_norm.back(block.widen.back(widened), kept.attended, *kept.inner_statistics)
    query, key, value = kept.by_head
    mixed = block.out.back(gradient).view(len(gradient), block.num_heads, -1).transpose(0, 1)
    scores = torch._softmax_backward_data(torch.bmm(mixed, value.mT), kept.weights, -1, mixed.dtype)
    of_query = torch.bmm(scores, key)
    if asked is not None:
        of_query = torch.zeros_like(key).index_copy_(1, asked, of_query)
    projected = torch.cat([of_query, torch.bmm(scores.mT, query), torch.bmm(kept.weights.mT, mixed)])
    projected = projected.transpose(0, 1).flatten(1)
    of_rows = block.norm.back(block.projection.back(projected), kept.rows, *kept.statistics)
    return of_rows + gradient if asked is None else of_rows.index_add_(0, asked, gradient)
