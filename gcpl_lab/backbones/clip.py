"""The frozen CLIP: image features, and text features from token embeddings that may be learned."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gcpl_lab.backbones.cpu_linear import linear, use_fast_products
from gcpl_lab.backbones.presets import Preset, find_preset, resolve
from gcpl_lab.backbones.template_tower import added_mask
from gcpl_lab.errors import ModelError
from gcpl_lab.storage import tensor_checksum


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
    the start token, which hears nothing but itself, once when this is made. Blocks are called without
    ``nn.MultiheadAttention``'s bookkeeping, which costs more than the products of a small tower. A tower of another
    build than open_clip's plain causal one goes the long way.

    Attention is among the rows of a prompt. A few rows attend as they stand, with a mask between prompts: sorting them
    by prompt and back would cost more than the products that the mask throws away.
    """

    MOST_IN_ONE = 128
    """Rows up to which all attend in one piece; the products thrown away grow with their square."""

    def __init__(self, text_tower: Any, start: Tensor, end_positions: Tensor) -> None:
        """Lay the rows out, and run the tower on the start token.

        Args:
            text_tower: See :func:`encode_token_embeddings`.
            start: Embedding of the token in front of every prompt, (dim,).
            end_positions: int64 (batch,), at least 1: where each prompt's end token stands.
        """
        self.text_tower, self.end_positions = text_tower, end_positions
        transformer = text_tower.transformer
        self.is_plain = (
            text_tower.attn_mask is not None and not transformer.grad_checkpointing and _is_plain(transformer.resblocks)
        )
        if not self.is_plain:
            return
        positions = torch.arange(int(end_positions.max()) + 1, device=end_positions.device)
        needed = (positions > 0) & (positions <= end_positions[:, None])
        self._needed = needed.flatten().nonzero().flatten()
        # Where each (prompt, position) finds its row. The start token's stands last; what lies behind an end gets
        # the same one, and is never looked at.
        places = torch.full_like(needed, len(self._needed), dtype=torch.int64)
        places[needed] = torch.arange(len(self._needed), device=places.device)
        self._ends = places.gather(1, end_positions[:, None]).flatten()
        position = text_tower.positional_embedding.detach()
        self._position = position[: len(positions)].repeat(len(needed), 1)[self._needed]
        self._in_one = len(self._needed) <= self.MOST_IN_ONE
        if self._in_one:
            prompt, place = self._needed // len(positions), self._needed % len(positions)
            hears = (prompt[:, None] == prompt) & (place[:, None] >= place)
            hears = F.pad(hears, (0, 1), value=True)  # everybody hears the start token
            self._mask = added_mask(hears, position.dtype)
            self._mask_of_ends = self._mask[self._ends]
        else:
            self._places, self._mask_of_ends = places.flatten(), (positions <= end_positions[:, None])[:, None, None]
        self._start = self._run_start(start.to(position.dtype) + position[0])

    @torch.no_grad()
    def _run_start(self, hidden: Tensor) -> list[Tensor]:
        """Query, key and value (1, 3 · dim) of the start token in every block."""
        found, hidden = [], hidden[None]
        for block in self.text_tower.transformer.resblocks:
            found.append(linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias))
            hidden = _close_block(block, hidden, found[-1].chunk(3, dim=1)[2])
        return found

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Features (batch, feature), not normalised, of token embeddings (batch, token, dim) without positions.

        Gradients reach every position up to the end token but the first.
        """
        if not self.is_plain:
            return encode_token_embeddings(self.text_tower, embeddings, self.end_positions)[1]
        *blocks, last = self.text_tower.transformer.resblocks
        hidden = embeddings.flatten(0, 1).index_select(0, self._needed).to(self._position.dtype) + self._position
        for block, start in zip(blocks, self._start, strict=False):
            projected = linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias)
            query, key, value = self._by_head(block, projected, start)
            if self._in_one:
                mixed = F.scaled_dot_product_attention(query[:, :, :-1], key, value, attn_mask=self._mask)
            else:
                mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            mixed = mixed.transpose(1, 2).reshape(-1, hidden.shape[1])
            hidden = _close_block(block, hidden, mixed if self._in_one else mixed.index_select(0, self._needed))
        return _project(self.text_tower, self.text_tower.ln_final(self._run_last(last, hidden)))

    def _run_last(self, block: Any, hidden: Tensor) -> Tensor:
        """The last block on the end tokens, (batch, dim)."""
        dim, heads = hidden.shape[1], block.attn.num_heads
        normed, weight, bias = block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias
        query = linear(normed.index_select(0, self._ends), weight[:dim], bias[:dim])
        query = query.view(1 if self._in_one else len(query), -1, heads, dim // heads).transpose(1, 2)
        key, value = self._by_head(block, linear(normed, weight[dim:], bias[dim:]), self._start[-1][:, dim:])
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self._mask_of_ends)
        return _close_block(block, hidden.index_select(0, self._ends), mixed.transpose(1, 2).reshape(-1, dim))

    def _by_head(self, block: Any, projected: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        """Rows (row, parts · dim) and the start token's as ``parts`` tensors (batch, head, token, dim of a head).

        In one piece the batch is 1 and the start token stands last; else prompts are the batch, and it stands first.
        """
        dim, heads, rows = block.attn.embed_dim, block.attn.num_heads, torch.cat([projected, start])
        rows = rows if self._in_one else rows.index_select(0, self._places)
        shape = (1 if self._in_one else len(self.end_positions), -1, rows.shape[1] // dim, heads, dim // heads)
        return rows.view(shape).permute(2, 0, 3, 1, 4).unbind()


def _is_plain(blocks: Any) -> bool:
    from open_clip.transformer import ResidualAttentionBlock

    return all(type(block) is ResidualAttentionBlock and block.attn._qkv_same_embed_dim for block in blocks)


def _close_block(block: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """What follows attention in a residual block, row by row (row, dim)."""
    hidden = hidden + block.ls_1(block.attn.out_proj(mixed))
    result: Tensor = hidden + block.ls_2(block.mlp(block.ln_2(hidden)))
    return result


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """open_clip logs its every step to the root logger; a notebook needs none of it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


class FrozenCLIP:
    """An open_clip model whose weights stay as they are.

    Attributes:
        model: The open_clip model.
        tokenizer: Its tokenizer (open_clip's own or a Hugging Face one).
        transform: Picture → (3, size, size), with the statistics the model was trained with.
        name: Where it came from.
    """

    def __init__(self, *, model: Any, tokenizer: Any, transform: Any, name: str) -> None:
        self.model = model.requires_grad_(False).eval()
        use_fast_products(model)
        self.tokenizer, self.transform, self.name = tokenizer, transform, name
        self.text_tower = model if hasattr(model, "positional_embedding") else model.text
        if not hasattr(self.text_tower, "token_embedding") or not hasattr(self.text_tower, "ln_final"):
            raise ModelError(
                f"{name}: its text tower is a {type(self.text_tower).__name__}; learned prompts need the plain CLIP "
                "kind (open_clip's CLIP or CustomTextCLIP with TextTransformer)"
            )
        self._probe_special_tokens()

    @classmethod
    def load(
        cls,
        preset: str | Preset = "tiny",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> FrozenCLIP:
        """Load a preset's CLIP with open_clip's own loader, from safetensors only.

        Args:
            preset: Name in ``PRESETS``, or a folder that holds ``clip/`` or is an open_clip model itself.
            device: Where the weights go.
            dtype: Of both towers; the factor on cosines stays float32.

        Raises:
            ModelError: The weights are not in the folder or cache and cannot be fetched; found out before
                open_clip loads.
        """
        found = find_preset(preset) if isinstance(preset, str) else preset
        path = resolve(found, "clip")

        import open_clip

        if path.is_dir():
            source, options = f"local-dir:{path}", {}
        else:
            # A file of weights says nothing about pictures: what they were trained with stands in open_clip's table.
            trained = open_clip.get_pretrained_cfg(found.clip_source, found.clip_weights)
            source = found.clip_source
            options = {
                "pretrained": str(path),
                **{f"image_{name}": trained[name] for name in ("mean", "std", "interpolation", "resize_mode")},
            }
        try:
            with _quiet_open_clip():
                model, _, transform = open_clip.create_model_and_transforms(source, device=device, **options)
                tokenizer = open_clip.get_tokenizer(source)
        except (RuntimeError, OSError, ValueError) as error:
            raise ModelError(
                f"preset {found.name!r}: CLIP {source!r} in {path} cannot be loaded ({error}); "
                "it is damaged or of another architecture: fetch or save it anew"
            ) from error
        scale = model.logit_scale.detach().clone()
        model.to(dtype).logit_scale.data = scale
        return cls(model=model, tokenizer=tokenizer, transform=transform, name=found.name)

    def _probe_special_tokens(self) -> None:
        """Find start, end and padding from the tokenizer's own output: it works with every tokenizer."""
        ids = self.tokenizer(["a"])[0].tolist()
        self.context_length = int(self.text_tower.context_length)
        self.start_id, self.pad_id = int(ids[0]), int(ids[-1])
        self.end_id = int(max(ids[:3]))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.text_tower.positional_embedding.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the towers' weights."""
        dtype: torch.dtype = self.text_tower.positional_embedding.dtype
        return dtype

    @property
    def logit_scale(self) -> float:
        """The learned factor on cosines."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def embedding_table(self) -> Tensor:
        """The frozen token embeddings, (vocabulary, dim)."""
        table: Tensor = self.text_tower.token_embedding.weight
        return table

    def checksum(self) -> str:
        """SHA-256 over every frozen weight; equal before and after any training."""
        return tensor_checksum(self.model.state_dict().items())

    def word_ids(self, text: str) -> list[int]:
        """Token ids of ``text`` alone, without start, end or padding; never truncated."""
        if hasattr(self.tokenizer, "encode"):
            return [int(index) for index in self.tokenizer.encode(text)]
        return [int(index) for index in self.tokenizer.tokenizer(text, add_special_tokens=False).input_ids]

    def word_of(self, token_id: int) -> str:
        """What a token id stands for, its end-of-word mark kept as ``</w>``."""
        if hasattr(self.tokenizer, "decoder"):
            return str(self.tokenizer.decoder[token_id])
        return str(self.tokenizer.tokenizer.convert_ids_to_tokens(token_id))

    def prompt_tower(self, ids: Tensor) -> PromptTower:
        """The text tower for prompts with these ids, int64 (batch, token), whatever their embeddings become."""
        ends = (ids.to(self.device) == self.end_id).int().argmax(dim=1)
        return PromptTower(self.text_tower, self.embedding_table.detach()[self.start_id], ends)

    def encode_prompts(self, ids: Tensor, embeddings: Tensor | None = None, tower: PromptTower | None = None) -> Tensor:
        """Unit text features of prompts, (batch, feature).

        Only as many positions run as each prompt needs; the towers are causal, so the rest changes nothing.

        Args:
            ids: int64 (batch, token) with start, end and padding.
            embeddings: (batch, token, dim), the start token's in front; or None for the table's.
            tower: The :meth:`prompt_tower` of these ids, where they are encoded again and again.
        """
        tower = tower or self.prompt_tower(ids)
        num_tokens = int(tower.end_positions.max()) + 1
        if embeddings is None:
            embeddings = self.text_tower.token_embedding(ids[:, :num_tokens].to(self.device))
        return F.normalize(tower(embeddings[:, :num_tokens].to(self.device)).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit text features (batch, feature) of plain texts."""
        return self.encode_prompts(self.tokenizer(list(texts)))

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image], batch_size: int = 64, flip: bool = False) -> Tensor:
        """Unit image features, float32 (count, feature), on the CPU.

        Args:
            images: RGB pictures of any size.
            batch_size: Pictures a pass.
            flip: Encode the mirror images.
        """
        self.model.visual.to(self.device)  # training sends it away when it has cached
        features = []
        for start in range(0, len(images), batch_size):
            pixels = torch.stack([self.transform(image.convert("RGB")) for image in images[start : start + batch_size]])
            pixels = pixels.flip(-1) if flip else pixels
            features.append(self._encode_pixels(pixels).cpu())
        return torch.cat(features) if features else torch.empty(0, int(self.model.visual.output_dim))

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pixels.to(self.device, self.dtype))
        return F.normalize(features.float(), dim=-1)
