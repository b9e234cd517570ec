"""An open_clip text tower on a handful of learned prompts, with no more work than their features need.

The tower is causal and only end tokens are read, so the last block runs for the end tokens alone; and blocks are called
as a few products each, without ``nn.MultiheadAttention``'s bookkeeping, which costs more than the products of a small
tower. The answer is the tower's own but for rounding.

Gain: see ``benchmarks/README.md``, "What fast/ gains".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.models.clip import FrozenCLIP


class FastPrompts:
    """Takes the place of a CLIP's ``encode_prompts``."""

    def __init__(self, clip: FrozenCLIP) -> None:
        """Wrap ``clip``, whose own ``encode_prompts`` answers where its tower is of another build."""
        self.clip = clip
        self.is_plain = all(_is_plain(block) for block in clip.text_tower.transformer.resblocks)

    def __call__(self, ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """See :meth:`~gcpl_lab.models.clip.FrozenCLIP.encode_prompts`."""
        clip, tower = self.clip, self.clip.text_tower
        if embeddings is None or not self.is_plain or tower.attn_mask is None:
            return type(clip).encode_prompts(clip, ids, embeddings)
        ends = (ids.to(clip.device) == clip.end_id).int().argmax(dim=1)
        num_tokens = int(ends.max()) + 1
        position = tower.positional_embedding[:num_tokens]
        hidden = embeddings[:, :num_tokens].to(clip.device, position.dtype) + position
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            hidden = _run_block(block, hidden, None)
        pooled = tower.ln_final(_run_block(last, hidden, ends))[:, 0]
        projection = tower.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
        return F.normalize(pooled.float(), dim=-1)


def _is_plain(block: Any) -> bool:
    """Whether a block is open_clip's usual one: two norms, attention with joined projections, an MLP."""
    attention = getattr(block, "attn", None)
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None
        and isinstance(getattr(block, "ls_1", None), nn.Identity)
        and isinstance(getattr(block, "ls_2", None), nn.Identity)
    )


def _run_block(block: Any, hidden: Tensor, ends: Tensor | None) -> Tensor:
    """A block's answer for (batch, token, dim); with ``ends`` (batch,) for these tokens alone, (batch, 1, dim)."""
    attention, normed = block.attn, block.ln_1(hidden)
    projected = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    batch, num_tokens, dim = hidden.shape
    # (query, key and value; batch, head, token, dim of a head)
    heads = projected.view(batch, num_tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind()
    if ends is None:
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        rows = torch.arange(batch, device=hidden.device)
        hidden, query = hidden[rows, ends][:, None], query[rows, :, ends][:, :, None]
        seen = torch.arange(num_tokens, device=hidden.device) <= ends[:, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
    hidden = hidden + attention.out_proj(attended.transpose(1, 2).reshape(batch, -1, dim))
    answer: Tensor = hidden + block.mlp(block.ln_2(hidden))
    return answer
