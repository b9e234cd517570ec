"""The published architectures as configurations, with random weights: time and memory do not depend on the weights.

A copy of a shape tests and times everything but recognition: the same blocks, in the published width or a narrower one.

Source: the configurations published with the weights (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion, quiet_libraries
from gcpl_lab.storage import write_json, write_text

CONTEXT_LENGTH = 77
VOCABULARY = 49408


@dataclass(frozen=True)
class DiffusionShape:
    """What one Stable Diffusion differs from another in.

    Attributes:
        channels: Of the denoiser's four levels; each a multiple of 32.
        heads: Attention heads of each level (diffusers calls this ``attention_head_dim``).
        latent_size: Side of the latents; images are eight times as large.
        text_width: Of the token embeddings and of the denoiser's cross-attention.
        text_layers: Blocks of the text encoder.
        text_heads: Its attention heads.
        text_activation: ``"quick_gelu"`` for OpenAI's tower, ``"gelu"`` for LAION's.
        linear_projection: Whether attention blocks project with linear layers (SD 2.x) or convolutions (SD 1.x).
        vae_channels: Of the VAE's four levels.
        prediction_type: ``"epsilon"`` or ``"v_prediction"``.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    latent_size: int = 64
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_activation: str = "quick_gelu"
    linear_projection: bool = False
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    prediction_type: str = "epsilon"


DIFFUSION_SHAPES = {
    "sd-1.4": DiffusionShape(),
    "sd-1.5": DiffusionShape(),
    "sd-2.1-base": DiffusionShape(
        heads=(5, 10, 20, 20),
        text_width=1024,
        text_layers=23,
        text_heads=16,
        text_activation="gelu",
        linear_projection=True,
    ),
    # The blocks of SD 1.x with few channels, for 64-px images: seconds instead of minutes.
    "sd-1.x-small": DiffusionShape(
        channels=(32, 64, 128, 128),
        heads=(2, 2, 2, 2),
        latent_size=8,
        text_width=32,
        text_layers=2,
        text_heads=2,
        vae_channels=(32, 32, 64, 64),
    ),
}

SMALL_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": VOCABULARY, "width": 32, "heads": 2, "layers": 2},
}
"""The blocks of OpenAI's ViT-B/16 with few channels, for 64-px images, in the words of open_clip's configurations."""


def build_denoiser(shape: DiffusionShape) -> Any:
    """A ``UNet2DConditionModel`` of this shape with random weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=shape.latent_size,
        block_out_channels=shape.channels,
        cross_attention_dim=shape.text_width,
        attention_head_dim=shape.heads,
        use_linear_projection=shape.linear_projection,
    )


def build_text_encoder(shape: DiffusionShape) -> Any:
    """A ``CLIPTextModel`` of this shape with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.text_width,
            intermediate_size=4 * shape.text_width,
            num_hidden_layers=shape.text_layers,
            num_attention_heads=shape.text_heads,
            max_position_embeddings=CONTEXT_LENGTH,
            hidden_act=shape.text_activation,
            projection_dim=shape.text_width,
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=VOCABULARY - 1,
        )
    )


def build_vae(shape: DiffusionShape) -> Any:
    """An ``AutoencoderKL`` of this shape with random weights."""
    from diffusers import AutoencoderKL

    levels = len(shape.vae_channels)
    return AutoencoderKL(
        sample_size=8 * shape.latent_size,
        block_out_channels=shape.vae_channels,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        scaling_factor=0.18215,
    )


def build_clip(model_config: dict[str, Any]) -> Any:
    """An open_clip ``CLIP`` of this configuration with random weights."""
    import open_clip

    return open_clip.model.CLIP(
        embed_dim=model_config["embed_dim"],
        vision_cfg=model_config["vision_cfg"],
        text_cfg=model_config["text_cfg"],
        quick_gelu=model_config.get("quick_gelu", False),
    )


def build_scheduler(prediction_type: str = "epsilon") -> Any:
    """The noise schedule of Stable Diffusion, as a ``DDPMScheduler``."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


@contextmanager
def made_as(dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> Iterator[None]:
    """Modules that are made inside have random weights of this type on this device at once, never in float32 before."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(before)


def random_diffusion(
    shape: DiffusionShape, dtype: torch.dtype, device: torch.device | str, folder: Path
) -> FrozenDiffusion:
    """A frozen diffusion model of random weights.

    Args:
        shape: What to build.
        dtype: Of the weights.
        device: Where they are made.
        folder: A tokenizer is written there.
    """
    from transformers import CLIPTokenizer

    save_tokenizer(folder)
    with quiet_libraries(), made_as(dtype, device):
        parts = {"denoiser": build_denoiser(shape), "text_encoder": build_text_encoder(shape), "vae": build_vae(shape)}
    tokenizer, scheduler = CLIPTokenizer.from_pretrained(folder), build_scheduler(shape.prediction_type)
    made = FrozenDiffusion(tokenizer=tokenizer, scheduler=scheduler, name="random weights", **parts)
    return made.to(device)


def random_clip(model_config: dict[str, Any], dtype: torch.dtype, device: torch.device | str) -> FrozenCLIP:
    """A frozen CLIP of random weights.

    Args:
        model_config: As in open_clip's ``model_configs`` (``embed_dim``, ``vision_cfg``, ``text_cfg``).
        dtype: Of the towers.
        device: Where they are.
    """
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_clip(model_config)
    scale = model.logit_scale.detach().clone()
    model.to(device, dtype).logit_scale.data = scale.to(device)
    transform = open_clip.image_transform(model_config["vision_cfg"]["image_size"], is_train=False)
    return FrozenCLIP(
        model=model, tokenizer=open_clip.tokenizer.SimpleTokenizer(), transform=transform, name="random weights"
    )


def save_tokenizer(folder: Path) -> None:
    """Write CLIP's byte-pair vocabulary, which open_clip carries, as transformers reads it."""
    import open_clip
    from open_clip.tokenizer import default_bpe

    encoder = open_clip.tokenizer.SimpleTokenizer().encoder
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as stream:
        merges = stream.read().split("\n")[1 : VOCABULARY - 256 - 2 - 256 + 1]
    named = {
        token.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): index
        for token, index in encoder.items()
    }
    write_text(folder / "vocab.json", json.dumps(named, ensure_ascii=False))
    write_text(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": CONTEXT_LENGTH,
            "tokenizer_class": "CLIPTokenizer",
        },
    )
