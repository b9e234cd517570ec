"""open_clip's text tower on token embeddings that may be learned."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.fast.cpu_linear import linear, without_autocast
from gcpl_lab.fast.few_rows import FewRows, read_tower
from gcpl_lab.training.processor import own_kernels


def encode_token_embeddings(text_tower: Any, embeddings: Tensor, end_positions: Tensor) -> tuple[Tensor, Tensor]:
    """Run an open_clip text tower on token embeddings instead of token ids.

    The towers are causal, so positions behind the last end token change nothing: callers pass only as
    many positions as the longest prompt needs.

    Args:
        text_tower: An open_clip ``CLIP`` or the ``text`` of a ``CustomTextCLIP`` (plain CLIP kind).
        embeddings: (batch, token, dim) before positions are added, in any precision; token ≤ context length.
        end_positions: int64 (batch,): where each prompt's end token stands.

    Returns:
        Hidden states (batch, token, dim) after the final norm, and features (batch, feature), not normalised.
    """
    num_tokens = embeddings.shape[1]
    position = text_tower.positional_embedding[:num_tokens]
    hidden = embeddings.to(position.dtype) + position
    mask = text_tower.attn_mask
    if mask is not None:
        mask = mask[:num_tokens, :num_tokens].to(hidden.dtype)
    hidden = text_tower.ln_final(text_tower.transformer(hidden, attn_mask=mask))
    pooled = hidden[torch.arange(len(hidden), device=hidden.device), end_positions]
    return hidden, _project(text_tower, pooled)


def _project(text_tower: Any, pooled: Tensor) -> Tensor:
    """From the width of the tower to that of the features, where the tower has a projection."""
    projection = text_tower.text_projection
    if projection is None:
        return pooled
    result: Tensor = projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
    return result


class PromptTower:
    """An open_clip text tower on prompts of one layout: their features, with no more work than they need.

    The tower is causal and only the end tokens are read, so nothing else is computed: no position behind a prompt's
    end (what is left of all prompts stands in one matrix, row by row), the last block on the end tokens alone, and
    the start token, which hears nothing but itself, once for all prompts. Blocks are called without
    ``nn.MultiheadAttention``'s bookkeeping, which costs more than the products of a small tower. A tower of another
    build than open_clip's plain causal one goes the long way, and so do all with ``GCPL_LAB_KERNELS=library``.

    Attention is among the rows of a prompt. A few rows attend as they stand (:class:`FewRows`): sorting them by prompt
    and back would cost more than the products that a mask throws away. Under autocast they go the way of many.

    Attributes:
        num_tokens: Positions that the longest prompt needs, its end token included.
        few_rows: What a few rows run through, or None.
    """

    MOST_IN_ONE = 128
    """Rows up to which all attend in one piece; the products thrown away grow with their square."""

    def __init__(self, text_tower: Any, start: Tensor, end_positions: Tensor) -> None:
        """Lay the rows out.

        Args:
            text_tower: See :func:`encode_token_embeddings`.
            start: Embedding of the token in front of every prompt, (dim,).
            end_positions: int64 (batch,), at least 1: where each prompt's end token stands.
        """
        self.text_tower, self.end_positions = text_tower, end_positions
        self.num_tokens = int(end_positions.max()) + 1
        transformer = text_tower.transformer
        self.is_plain = (
            own_kernels()
            and text_tower.attn_mask is not None
            and not transformer.grad_checkpointing
            and _is_plain(transformer.resblocks)
        )
        self.few_rows: FewRows | None = None
        if not self.is_plain:
            return
        positions = torch.arange(self.num_tokens, device=end_positions.device)
        needed = (positions > 0) & (positions <= end_positions[:, None])
        position = text_tower.positional_embedding.detach()[: len(positions)]
        start = start.to(position.dtype) + position[0]
        num_rows = int(needed.sum())
        if num_rows <= self.MOST_IN_ONE:
            plain = read_tower(text_tower, num_rows + 1, len(needed))
            if plain is not None:
                self.few_rows = FewRows(plain, start, position, needed, end_positions)
        self._needed = needed.flatten().nonzero().flatten()
        # Where each (prompt, position) finds its row. The start token's stands last; what lies behind an end gets
        # the same one, and is never looked at.
        places = torch.full_like(needed, len(self._needed), dtype=torch.int64)
        places[needed] = torch.arange(len(self._needed), device=places.device)
        self._places = places.flatten()
        self._ends = places.gather(1, end_positions[:, None]).flatten()
        self._up_to_end = (positions <= end_positions[:, None])[:, None, None]
        self._position = position.repeat(len(needed), 1)[self._needed]
        self._start_row = start

    @cached_property
    def _start(self) -> list[Tensor]:
        """Query, key and value (1, 3 · dim) of the start token in every block."""
        found, hidden = [], self._start_row[None]
        with torch.no_grad(), without_autocast(hidden.device.type):
            for block in self.text_tower.transformer.resblocks:
                found.append(linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias))
                hidden = _close_block(block, hidden, found[-1].chunk(3, dim=1)[2])
        return found

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Unit features (batch, feature), in float32 at least, of token embeddings (batch, token, dim).

        Positions are added here. Gradients reach every position up to the end token but the first.
        """
        if self.few_rows is not None and not torch.is_autocast_enabled(embeddings.device.type):
            return self.few_rows(embeddings)
        if self.is_plain:
            features = _project(self.text_tower, self.text_tower.ln_final(self._run_blocks(embeddings)))
        else:
            features = encode_token_embeddings(self.text_tower, embeddings, self.end_positions)[1]
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)

    def _run_blocks(self, embeddings: Tensor) -> Tensor:
        """Rows of the end tokens (batch, dim) behind the last block."""
        *blocks, last = self.text_tower.transformer.resblocks
        hidden = embeddings.flatten(0, 1).index_select(0, self._needed).to(self._position.dtype) + self._position
        for block, start in zip(blocks, self._start, strict=False):
            projected = linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias)
            query, key, value = self._by_head(block, projected, start)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            mixed = mixed.transpose(1, 2).reshape(-1, hidden.shape[1])
            hidden = _close_block(block, hidden, mixed.index_select(0, self._needed))
        return self._run_last(last, hidden)

    def _run_last(self, block: Any, hidden: Tensor) -> Tensor:
        """The last block on the end tokens, (batch, dim)."""
        dim, heads = hidden.shape[1], block.attn.num_heads
        normed, weight, bias = block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias
        query = linear(normed.index_select(0, self._ends), weight[:dim], bias[:dim])
        query = query.view(len(query), 1, heads, dim // heads).transpose(1, 2)
        key, value = self._by_head(block, linear(normed, weight[dim:], bias[dim:]), self._start[-1][:, dim:])
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._up_to_end)
        return _close_block(block, hidden.index_select(0, self._ends), mixed.transpose(1, 2).reshape(-1, dim))

    def _by_head(self, block: Any, projected: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        """Rows (row, parts · dim) and the start token's as ``parts`` tensors (batch, head, token, dim of a head)."""
        dim, heads = block.attn.embed_dim, block.attn.num_heads
        rows = torch.cat([projected, start]).index_select(0, self._places)
        shape = (len(self.end_positions), -1, rows.shape[1] // dim, heads, dim // heads)
        return rows.view(shape).permute(2, 0, 3, 1, 4).unbind()


def _is_plain(blocks: Any) -> bool:
    from open_clip.transformer import ResidualAttentionBlock

    return all(type(block) is ResidualAttentionBlock and block.attn._qkv_same_embed_dim for block in blocks)


def _close_block(block: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """What follows attention in a residual block, row by row (row, dim)."""
    hidden = hidden + block.ls_1(block.attn.out_proj(mixed))
    result: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
    return result
