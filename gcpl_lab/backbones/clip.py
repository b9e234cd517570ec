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

from gcpl_lab.backbones.presets import Preset, find_preset, resolve
from gcpl_lab.errors import ModelError
from gcpl_lab.storage import tensor_checksum


def encode_token_embeddings(text_tower: Any, embeddings: Tensor, end_positions: Tensor) -> tuple[Tensor, Tensor]:
    """Run an open_clip text tower on token embeddings instead of token ids.

    The towers are causal, so positions behind the last end token change nothing: callers pass only as
    many positions as the longest prompt needs.

    Args:
        text_tower: An open_clip ``CLIP`` or the ``text`` of a ``CustomTextCLIP`` (plain CLIP kind).
        embeddings: (batch, token, dim) before positions are added; token ≤ context length.
        end_positions: int64 (batch,): where each prompt's end token stands.

    Returns:
        Hidden states (batch, token, dim) after the final norm, and features (batch, feature), not normalised.
    """
    num_tokens = embeddings.shape[1]
    hidden = embeddings + text_tower.positional_embedding[:num_tokens].to(embeddings.dtype)
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


def pool_token_embeddings(text_tower: Any, embeddings: Tensor, end_positions: Tensor) -> Tensor:
    """The features of :func:`encode_token_embeddings` alone, with less work.

    Nothing reads the last block's other positions, so it runs on the end tokens only; and the blocks are called
    without ``nn.MultiheadAttention``'s bookkeeping, which costs more than the products of a small tower. A tower of
    another build than open_clip's plain causal one goes the long way.

    Args:
        text_tower: See :func:`encode_token_embeddings`.
        embeddings: (batch, token, dim) before positions are added.
        end_positions: int64 (batch,).

    Returns:
        (batch, feature), not normalised.
    """
    transformer = text_tower.transformer
    if text_tower.attn_mask is None or transformer.grad_checkpointing or not _is_plain(transformer.resblocks):
        return encode_token_embeddings(text_tower, embeddings, end_positions)[1]
    num_tokens = embeddings.shape[1]
    hidden = embeddings + text_tower.positional_embedding[:num_tokens].to(embeddings.dtype)
    *blocks, last = transformer.resblocks
    for block in blocks:
        hidden = _run_block(block, hidden)
    pooled = text_tower.ln_final(_run_block(last, hidden, end_positions).squeeze(1))
    return _project(text_tower, pooled)


def _is_plain(blocks: Any) -> bool:
    from open_clip.transformer import ResidualAttentionBlock

    return all(type(block) is ResidualAttentionBlock and block.attn._qkv_same_embed_dim for block in blocks)


def _run_block(block: Any, hidden: Tensor, ends: Tensor | None = None) -> Tensor:
    """A causal residual block on (batch, token, dim), or on one position of each row: (batch, 1, dim)."""
    batch, num_tokens, dim = hidden.shape
    heads = block.attn.num_heads
    projected = F.linear(block.ln_1(hidden), block.attn.in_proj_weight, block.attn.in_proj_bias)
    query, key, value = projected.view(batch, num_tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    if ends is None:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        place = ends.view(-1, 1, 1)
        hidden = hidden.take_along_dim(place, dim=1)
        query = query.take_along_dim(place.unsqueeze(-1), dim=2)
        seen = torch.arange(num_tokens, device=ends.device) <= place
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen.unsqueeze(1))
    hidden = hidden + block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).reshape(batch, -1, dim)))
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
        self.tokenizer, self.transform, self.name = tokenizer, transform, name
        self.text_tower = model if hasattr(model, "positional_embedding") else model.text
        if not hasattr(self.text_tower, "token_embedding") or not hasattr(self.text_tower, "ln_final"):
            raise ModelError(
                f"{name}: its text tower is a {type(self.text_tower).__name__}; learned prompts need the plain CLIP "
                "kind (open_clip's CLIP or CustomTextCLIP with TextTransformer)"
            )
        self._probe_special_tokens()

    @classmethod
    def load(cls, preset: str | Preset = "tiny", device: torch.device | str = "cpu") -> FrozenCLIP:
        """Load a preset's CLIP with open_clip's own loader, from safetensors only.

        Args:
            preset: Name in ``PRESETS``, or a folder that holds ``clip/`` or is an open_clip model itself.
            device: Where the weights go.

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

    def encode_prompts(self, ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Unit text features of prompts, (batch, feature).

        Only as many positions run as the longest prompt needs; the towers are causal, so the rest changes
        nothing.

        Args:
            ids: int64 (batch, token) with start, end and padding.
            embeddings: (batch, token, dim), or None for the table's.
        """
        ids = ids.to(self.device)
        ends = (ids == self.end_id).int().argmax(dim=1)
        num_tokens = int(ends.max()) + 1
        if embeddings is None:
            embeddings = self.text_tower.token_embedding(ids[:, :num_tokens])
        features = pool_token_embeddings(self.text_tower, embeddings[:, :num_tokens].to(self.device), ends)
        return F.normalize(features.float(), dim=-1)

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
            features.append(F.normalize(self.model.encode_image(pixels.to(self.device)).float(), dim=-1).cpu())
        return torch.cat(features) if features else torch.empty(0, int(self.model.visual.output_dim))
