"""transformers' CLIP text encoder on the prompts of one template, whose beginning is encoded once.

A position of a causal encoder hears only what stands before it. So the words in front of the first learned vector
("start, a photo of a") have the same hidden states, keys and values whatever follows, in every class and every step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.fast.cpu_linear import PLAIN_LINEAR, linear, without_autocast


class TemplateTower:
    """Hidden states of prompts that begin alike; equal to the text encoder's own, with less work.

    Layers are called without their library's bookkeeping, and their three projections as one, from a copy of the
    weights.
    """

    def __init__(self, text_encoder: Any, beginning: Tensor) -> None:
        """Run the encoder on the beginning.

        Args:
            text_encoder: One that :func:`is_plain` says yes to; frozen.
            beginning: int64 (token,): ids of one token or more.
        """
        embeddings, self._layers = text_encoder.embeddings, list(text_encoder.encoder.layers)
        self._final_norm = text_encoder.final_layer_norm
        position = embeddings.position_embedding.weight.detach()
        num_known, num_rows = len(beginning), len(position) - len(beginning)
        self._position = position[num_known:]
        self._projections = [_join_projections(layer.self_attn) for layer in self._layers]
        hears = torch.ones(num_rows, len(position), dtype=torch.bool, device=position.device).tril(num_known)
        self._mask = added_mask(hears, position.dtype)
        self._known: list[Tensor] = []
        # What is kept must serve with and without autocast.
        with torch.no_grad(), without_autocast(position.device.type):
            hidden = (embeddings.token_embedding(beginning.to(position.device)) + position[:num_known])[None]
            for layer, projection in zip(self._layers, self._projections, strict=True):
                self._known.append(linear(layer.layer_norm1(hidden), *projection))
                query, key, value = _by_head(self._known[-1], layer.self_attn.num_heads)
                hidden = _close_layer(layer, hidden, F.scaled_dot_product_attention(query, key, value, is_causal=True))
            self._beginning = self._final_norm(hidden)

    @property
    def num_known(self) -> int:
        """Positions of the beginning."""
        return int(self._beginning.shape[1])

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Hidden states behind the final norm, (batch, context length, dim).

        Args:
            embeddings: Of the tokens, (batch, context length, dim), without positions; those of the beginning are
                not looked at, and no gradient reaches them.
        """
        hidden = embeddings[:, self.num_known :].to(self._position.dtype) + self._position
        for layer, projection, known in zip(self._layers, self._projections, self._known, strict=True):
            rows = linear(layer.layer_norm1(hidden), *projection)
            rows = torch.cat([known.expand(len(rows), -1, -1), rows], dim=1)
            query, key, value = _by_head(rows, layer.self_attn.num_heads)
            mixed = F.scaled_dot_product_attention(query[:, :, self.num_known :], key, value, attn_mask=self._mask)
            hidden = _close_layer(layer, hidden, mixed)
        return torch.cat([self._beginning.expand(len(hidden), -1, -1), self._final_norm(hidden)], dim=1)


def is_plain(text_encoder: Any) -> bool:
    """Whether a text encoder is transformers' ``CLIPTextModel`` and nothing was put into its layers."""
    from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPTextModel

    return type(text_encoder) is CLIPTextModel and all(
        type(layer) is CLIPEncoderLayer
        and type(layer.self_attn) is CLIPAttention
        and all(type(getattr(layer.self_attn, name)) in PLAIN_LINEAR for name in ("q_proj", "k_proj", "v_proj"))
        for layer in text_encoder.encoder.layers
    )


def added_mask(hears: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a row hears and -inf where not: attention would turn truth values into these in every call."""
    return torch.zeros(hears.shape, dtype=dtype, device=hears.device).masked_fill_(~hears, -torch.inf)


def _join_projections(attention: Any) -> tuple[Tensor, Tensor]:
    """Weight (3 · dim, dim) and bias (3 · dim,) of query, key and value."""
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    return torch.cat([part.weight.detach() for part in parts]), torch.cat([part.bias.detach() for part in parts])


def _by_head(rows: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Query, key and value, (batch, head, row, dim of a head) each, out of (batch, row, 3 · dim)."""
    batch, num_rows, width = rows.shape
    return rows.view(batch, num_rows, 3, num_heads, width // 3 // num_heads).permute(2, 0, 3, 1, 4).unbind()


def _close_layer(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """What follows attention: (batch, row, dim) from what came in and (batch, head, row, dim of a head)."""
    hidden = hidden + layer.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))
    result: Tensor = hidden + layer.mlp(layer.layer_norm2(hidden))
    return result
