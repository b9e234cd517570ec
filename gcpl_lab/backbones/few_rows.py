"""Plain blocks of a text tower on the few rows of all prompts together, with their gradient written down.

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

from gcpl_lab.backbones.cpu_linear import PackedProduct
from gcpl_lab.backbones.template_tower import added_mask


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
    """Weights of a residual block: attention, then two layers with a GELU between, each behind a norm."""

    num_heads: int
    norm: _Norm
    projection: PackedProduct
    out: PackedProduct
    inner_norm: _Norm
    widen: PackedProduct
    narrow: PackedProduct


class _Kept(NamedTuple):
    """What the gradient of a block needs of its forward pass."""

    rows: Tensor
    statistics: tuple[Tensor, Tensor]
    projected: Tensor
    weights: Tensor
    attended: Tensor
    inner_statistics: tuple[Tensor, Tensor]
    widened: Tensor


def read_block(block: Any, num_rows: int) -> PlainBlock | None:
    """The frozen weights of open_clip's ``ResidualAttentionBlock``; None where it learns or computes anything else."""
    attention, mlp = block.attn, block.mlp
    if any(parameter.requires_grad for parameter in block.parameters()) or not (
        isinstance(block.ls_1, nn.Identity) and isinstance(block.ls_2, nn.Identity)
        and len(mlp) == 3 and type(mlp.gelu) is nn.GELU and mlp.gelu.approximate == "none"
    ):  # fmt: skip
        return None
    projection, out, widen, narrow = (
        PackedProduct(weight, bias, num_rows)
        for weight, bias in (
            (attention.in_proj_weight, attention.in_proj_bias),
            *((layer.weight, layer.bias) for layer in (attention.out_proj, mlp.c_fc, mlp.c_proj)),
        )
    )
    norm, inner_norm = (_Norm(found.weight, found.bias, found.eps) for found in (block.ln_1, block.ln_2))
    return PlainBlock(attention.num_heads, norm, projection, out, inner_norm, widen, narrow)


class FewRows:
    """Where the rows of all prompts stand in one matrix, and the blocks they run through.

    The start token hears nothing but itself, so it stands there once, in front, for all prompts.
    """

    def __init__(
        self, blocks: Sequence[PlainBlock], start: Tensor, positions: Tensor, needed: Tensor, end_positions: Tensor
    ) -> None:
        """Lay the rows out.

        Args:
            blocks: At least one.
            start: The start token's row, (dim,), its position added.
            positions: Embeddings of the positions, (token, dim).
            needed: bool (batch, token): what stands between a prompt's start and its end, the end included.
            end_positions: int64 (batch,).
        """
        self.blocks, self.start = tuple(blocks), start[None]
        self.needed = needed.flatten().nonzero().flatten()
        prompt, place = self.needed // len(positions), self.needed % len(positions)
        self.positions = positions[place]
        hears = F.pad((prompt[:, None] == prompt) & (place[:, None] >= place), (1, 0, 1, 0))
        hears[:, 0] = True
        self.mask = added_mask(hears, positions.dtype)
        self.ends = (place == end_positions[prompt]).nonzero().flatten() + 1
        self.mask_of_ends = self.mask[self.ends]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Rows of the end tokens (batch, dim) behind the last block.

        Args:
            embeddings: Of the tokens, (batch, token, dim), without positions; no gradient reaches the start token or
                what stands behind an end. Autocast changes nothing: a few rows gain nothing by it.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            answer: Tensor = _Blocks.apply(embeddings, self)
        return answer


class _Blocks(torch.autograd.Function):
    """Blocks one after the other, the last for the end tokens alone."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, layout: FewRows) -> Tensor:
        rows = embeddings.flatten(0, 1).index_select(0, layout.needed).to(layout.positions.dtype)
        rows = torch.cat([layout.start, rows.add_(layout.positions)])
        ctx.layout, ctx.shape, ctx.dtype, ctx.kept = layout, embeddings.shape, embeddings.dtype, []
        *blocks, last = layout.blocks
        for block in blocks:
            rows, kept = _forth(block, rows, layout.mask)
            ctx.kept.append(kept)
        rows, kept = _forth(last, rows, layout.mask_of_ends, layout.ends)
        ctx.kept.append(kept)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layout, (*others, kept) = ctx.layout, ctx.kept
        *blocks, last = layout.blocks
        with torch.autocast(gradient.device.type, enabled=False):
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
    normed, mean, inverse = block.norm.forth(rows)
    projected = block.projection.forth(normed)
    query, key, value = _by_head(projected, block.num_heads)
    asking = rows
    if asked is not None:
        query, asking = query[:, asked], rows[asked]
    weights = torch.baddbmm(mask, query, key.mT, alpha=query.shape[-1] ** -0.5).softmax(dim=-1)
    mixed = torch.bmm(weights, value).transpose(0, 1).flatten(1)
    attended = asking + block.out.forth(mixed)
    normed, inner_mean, inner_inverse = block.inner_norm.forth(attended)
    widened = block.widen.forth(normed)
    answer = attended + block.narrow.forth(F.gelu(widened))
    return answer, _Kept(rows, (mean, inverse), projected, weights, attended, (inner_mean, inner_inverse), widened)


def _back(block: PlainBlock, gradient: Tensor, kept: _Kept, asked: Tensor | None = None) -> Tensor:
    """Gradient of a block's rows (row, dim) from that of its answer (asked row, dim)."""
    widened = torch.ops.aten.gelu_backward(block.narrow.back(gradient), kept.widened)
    normed = block.widen.back(widened)
    gradient = gradient + block.inner_norm.back(normed, kept.attended, *kept.inner_statistics)
    query, key, value = _by_head(kept.projected, block.num_heads)
    mixed = block.out.back(gradient).view(len(gradient), block.num_heads, -1).transpose(0, 1)
    scores = torch._softmax_backward_data(torch.bmm(mixed, value.mT), kept.weights, -1, mixed.dtype)
    scores *= query.shape[-1] ** -0.5
    of_query = torch.bmm(scores, key)
    if asked is not None:
        of_query = torch.zeros_like(query).index_copy_(1, asked, of_query)
        query = query[:, asked]
    parts = of_query, torch.bmm(scores.mT, query), torch.bmm(kept.weights.mT, mixed)
    projected = torch.stack([part.transpose(0, 1) for part in parts], dim=1).flatten(1)
    of_rows = block.norm.back(block.projection.back(projected), kept.rows, *kept.statistics)
    return of_rows + gradient if asked is None else of_rows.index_add_(0, asked, gradient)


def _by_head(projected: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Query, key and value, (head, row, dim of a head) each, out of (row, 3 · dim)."""
    return projected.view(len(projected), 3, num_heads, -1).permute(1, 2, 0, 3).unbind()
