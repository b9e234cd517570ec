"""The frozen CLIP: image features, and text features from token embeddings that may be learned."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gcpl_lab.errors import ArtifactError, ModelError
from gcpl_lab.global_state import global_state_kept
from gcpl_lab.models.checks import LOADING, check_clip, check_keys, load_tokenizer
from gcpl_lab.models.presets import Preset, check_bundled, find_clip_weights, find_preset, resolve
from gcpl_lab.storage import read_tensors, tensor_checksum


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """open_clip logs its every step to the root logger; a notebook needs none of it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _build(preset: Preset, path: Path, device: torch.device | str) -> tuple[Any, Any, Any]:
    """Model without its weights, transform and tokenizer, of a folder that was looked at first or a published name."""
    check_bundled(path)
    text = check_clip(path) if path.is_dir() else {}
    import open_clip

    if path.is_dir():
        source, options = f"local-dir:{path}", {}
    else:
        # A file of weights says nothing about images: what they were trained with stands in open_clip's table.
        source, trained = preset.clip_source, open_clip.get_pretrained_cfg(preset.clip_source, preset.clip_weights)
        options = {f"image_{name}": trained[name] for name in ("mean", "std", "interpolation", "resize_mode")}
    # open_clip would take whatever file of weights it finds in a folder, pickled ones too.
    model, _, transform = open_clip.create_model_and_transforms(source, device=device, load_weights=False, **options)
    if text.get("hf_tokenizer_name"):
        return model, transform, FolderTokenizer(path, int(model.context_length))
    return model, transform, open_clip.get_tokenizer(source)


def _fill(model: Any, path: Path) -> None:
    """Put the weights of a safetensors file in their places, all of them and no others."""
    tensors, _ = read_tensors(path)
    own = model.state_dict()
    if "logit_scale" in tensors and tensors["logit_scale"].numel() == 1:  # with or without an axis
        tensors["logit_scale"] = tensors["logit_scale"].reshape(own["logit_scale"].shape)
    misshapen = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    check_keys(path, own.keys() - tensors.keys(), tensors.keys() - own.keys(), misshapen)
    model.load_state_dict(tensors)


class FolderTokenizer:
    """What open_clip makes of a folder's tokenizer, by CLIP's class alone: its own would take any that is named."""

    def __init__(self, folder: Path, context_length: int) -> None:
        from open_clip.tokenizer import get_clean_fn

        self.tokenizer, self.context_length = load_tokenizer(folder), context_length
        self._clean = get_clean_fn("whitespace")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 (text, context length) with start, end and padding."""
        cleaned = [self._clean(text) for text in texts]
        how: dict[str, Any] = {"max_length": self.context_length, "padding": "max_length", "truncation": True}
        ids: Tensor = self.tokenizer(cleaned, return_tensors="pt", **how).input_ids
        return ids


class FrozenCLIP:
    """An open_clip model whose weights stay as they are.

    Attributes:
        model: The open_clip model.
        tokenizer: Its tokenizer (open_clip's own or a Hugging Face one).
        transform: Image → (3, size, size), with the statistics the model was trained with.
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
    def load(
        cls, preset: str | Preset = "tiny", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> FrozenCLIP:
        """Load a preset's CLIP, or a folder that holds ``clip/`` or is an open_clip model, from safetensors only.

        ``dtype`` is that of both towers; the factor on cosines stays float32.

        Raises:
            ModelError: The weights are nowhere and cannot be fetched; found out before open_clip loads.
        """
        found = find_preset(preset) if isinstance(preset, str) else preset
        path = resolve(found, "clip")

        weights = find_clip_weights(path) if path.is_dir() else path
        assert weights is not None  # resolve() has looked
        try:
            with LOADING, global_state_kept(), _quiet_open_clip():
                model, transform, tokenizer = _build(found, path, device)
                _fill(model, weights)
        except (RuntimeError, OSError, ValueError, TypeError, ArtifactError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"preset {found.name!r}: CLIP in {path} cannot be loaded ({error}); "
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

    def encode_prompts(self, ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Unit text features of prompts, float32 (batch, feature).

        Only as many positions run as the longest prompt needs; the tower is causal, so the rest changes nothing.

        Args:
            ids: int64 (batch, token) with start, end and padding.
            embeddings: (batch, token, dim); None takes the table's.
        """
        ids = ids.to(self.device)
        ends = (ids == self.end_id).int().argmax(dim=1)
        num_tokens = int(ends.max()) + 1
        if embeddings is None:
            embeddings = self.text_tower.token_embedding(ids)
        _, features = encode_token_embeddings(self.text_tower, embeddings[:, :num_tokens].to(self.device), ends)
        return F.normalize(features.float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit text features (batch, feature) of plain texts."""
        return self.encode_prompts(self.tokenizer(list(texts)))

    @torch.no_grad()
    def encode_images(self, images: Iterable[Image.Image], batch_size: int = 64, flip: bool = False) -> Tensor:
        """Unit features float32 (count, feature), on the CPU, of images or (``flip``) of their mirror images."""
        return self.encode_views(images, (flip,), batch_size)[0]

    @torch.no_grad()
    def encode_views(
        self, images: Iterable[Image.Image], flips: Sequence[bool] = (False, True), batch_size: int = 64
    ) -> Tensor:
        """The same for each of ``flips``, (view, count, feature); images may be read while they are gone through."""
        self.model.visual.to(self.device)  # training sends it away when it has cached
        images, parts = iter(images), []
        while seen := [self.transform(image.convert("RGB")) for image in islice(images, batch_size)]:
            pixels = torch.stack(seen)
            views = [self._encode_pixels(pixels.flip(-1) if flip else pixels).cpu() for flip in flips]
            parts.append(torch.stack(views))
        empty = torch.empty(len(flips), 0, int(self.model.visual.output_dim))
        return torch.cat(parts, dim=1) if parts else empty

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pixels.to(self.device, self.dtype))
        return F.normalize(features.float(), dim=-1)


def encode_token_embeddings(text_tower: Any, embeddings: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Run an open_clip text tower on token embeddings instead of token ids.

    Args:
        text_tower: An open_clip ``CLIP`` or the ``text`` of a ``CustomTextCLIP`` (plain CLIP kind).
        embeddings: (batch, token, dim) before positions are added, in any dtype; token ≤ context length.
        ends: int64 (batch,): where each prompt's end token stands.

    Returns:
        Hidden states (batch, token, dim) after the final norm, and features (batch, feature), not normalised.
    """
    num_tokens, mask = embeddings.shape[1], text_tower.attn_mask
    position = text_tower.positional_embedding[:num_tokens]
    hidden = embeddings.to(position.dtype) + position
    if mask is not None:
        mask = mask[:num_tokens, :num_tokens].to(hidden.dtype)
    hidden = text_tower.ln_final(text_tower.transformer(hidden, attn_mask=mask))
    pooled, projection = hidden[torch.arange(len(hidden), device=hidden.device), ends], text_tower.text_projection
    if projection is None:
        return hidden, pooled
    return hidden, projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
