"""An open_clip text tower on a handful of learned prompts, with no more work than their features need.

The tower is causal and only end tokens are read. So nothing runs behind an end token, the start token, which no prompt
learns, runs once for all prompts, and of the last block the end tokens alone are computed. The rows that are left, of
all prompts, stand in one matrix; a mask keeps each prompt to its own. The answer is the tower's but for rounding.

Gain: see ``benchmarks/README.md``, "What fast/ gains".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.models.clip import FrozenCLIP

MOST_ROWS = 512
"""Positions of the prompts that run together: attention among rows grows with the square of their number."""


class _Layout(NamedTuple):
    """Where the rows of some prompts stand.

    Attributes:
        rows: int64 (row,), of all prompts' positions (batch × token) those that run.
        places: int64 (row,): a row's position in its prompt.
        mask: (row, row), added to the attention's logits: 0 where a row sees another, else −inf.
        ends: int64 (prompt,): rows of the end tokens.
    """

    rows: Tensor
    places: Tensor
    mask: Tensor
    ends: Tensor


class FastPrompts:
    """Takes the place of a CLIP's ``encode_prompts``."""

    def __init__(self, clip: FrozenCLIP) -> None:
        """Wrap ``clip``, whose own ``encode_prompts`` answers where its tower is of another build."""
        self.clip = clip
        tower = clip.text_tower
        self.is_plain = tower.attn_mask is not None and all(_is_plain(block) for block in tower.transformer.resblocks)
        self._known: tuple[Tensor, list[_Layout]] | None = None

    def __call__(self, ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """See :meth:`~gcpl_lab.models.clip.FrozenCLIP.encode_prompts`; the start token's embedding gets no gradient."""
        clip, tower = self.clip, self.clip.text_tower
        if embeddings is None or not self.is_plain or clip.device.type != "cpu":
            return type(clip).encode_prompts(clip, ids, embeddings)
        if self._known is None or self._known[0] is not ids:
            self._known = ids, _lay_out(ids, clip.end_id, clip.dtype)
        embeddings = embeddings.flatten(0, 1).to(clip.dtype)
        pooled = tower.ln_final(torch.cat([_run(tower, layout, embeddings) for layout in self._known[1]]))
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


def _lay_out(ids: Tensor, end_id: int, dtype: torch.dtype) -> list[_Layout]:
    """Of prompts that run together: the first one's start token, and what follows it in each up to its end token."""
    num_tokens, layouts = ids.shape[1], []
    together = max(1, MOST_ROWS // num_tokens)
    for first in range(0, len(ids), together):
        ends = (ids[first : first + together] == end_id).int().argmax(dim=1)
        positions = torch.arange(num_tokens).expand(len(ends), -1)
        runs = (positions > 0) & (positions <= ends[:, None])
        runs[0, 0] = True
        prompts, places = runs.nonzero(as_tuple=True)
        seen = (places == 0) | ((prompts[:, None] == prompts) & (places[:, None] >= places))
        rows = (first + prompts) * num_tokens + places
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
        layouts.append(_Layout(rows, places, mask, (places == ends[prompts]).nonzero().flatten()))
    return layouts


def _run(tower: Any, layout: _Layout, embeddings: Tensor) -> Tensor:
    """Hidden states (prompt, dim) of the end tokens, of embeddings (batch × token, dim)."""
    position = tower.positional_embedding.index_select(0, layout.places)
    hidden = embeddings.index_select(0, layout.rows) + position
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        hidden = _run_block(block, hidden, layout.mask)
    return _run_block(last, hidden, layout.mask, layout.ends)


def _run_block(block: Any, hidden: Tensor, mask: Tensor, wanted: Tensor | None = None) -> Tensor:
    """A block's answer for (row, dim); with ``wanted``, int64, for these rows alone."""
    attention, normed = block.attn, block.ln_1(hidden)
    projected = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    # (query, key and value; 1, head, row, dim of a head)
    query, key, value = projected.view(1, len(hidden), 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
    if wanted is not None:
        hidden, query, mask = hidden.index_select(0, wanted), query.index_select(2, wanted), mask[wanted]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)[0]
    hidden = hidden + attention.out_proj(attended.transpose(0, 1).reshape(hidden.shape))
    answer: Tensor = hidden + block.mlp(block.ln_2(hidden))
    return answer
