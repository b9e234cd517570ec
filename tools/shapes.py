"""The published architectures as configurations: copies with random weights, and memory counted without running.

A copy of a shape tests and times everything but recognition: the same blocks, in the published width or a
narrower one, saved in the very formats that presets are loaded from. And since a step's tensors follow from
the shape alone, the memory that it takes can be counted before anything is downloaded.

Source: the configurations published with the weights (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gcpl_lab.experiments.profile import LiveBytes
from gcpl_lab.models.presets import StepMemory
from gcpl_lab.storage import write_json, write_tensors, write_text

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


def save_diffusion(shape: DiffusionShape, folder: str | Path, *, seed: int = 0) -> Path:
    """Write a pipeline of random weights in the diffusers format, with CLIP's own tokenizer.

    Args:
        shape: What to build.
        folder: Receives ``vae/``, ``unet/``, ``text_encoder/``, ``tokenizer/``, ``scheduler/`` and
            ``model_index.json``.
        seed: Of the weights.

    Returns:
        The folder.
    """
    from diffusers import DDPMScheduler

    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, build in (("unet", build_denoiser), ("text_encoder", build_text_encoder), ("vae", build_vae)):
            build(shape).save_pretrained(folder / name, safe_serialization=True)
    DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type=shape.prediction_type,
    ).save_pretrained(folder / "scheduler")
    save_tokenizer(folder / "tokenizer")
    parts = {
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **parts})
    return folder


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


def save_clip(model_config: dict[str, Any], folder: str | Path, *, seed: int = 0) -> Path:
    """Write an open_clip model of random weights in open_clip's own folder format.

    Args:
        model_config: As in open_clip's ``model_configs`` (``embed_dim``, ``vision_cfg``, ``text_cfg``).
        folder: Receives ``open_clip_config.json`` and ``open_clip_model.safetensors``.
        seed: Of the weights.
    """
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_clip(model_config)
    size = model_config["vision_cfg"]["image_size"]
    preprocess = {
        "size": size,
        "mean": list(OPENAI_DATASET_MEAN),
        "std": list(OPENAI_DATASET_STD),
        "mode": "RGB",
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    write_json(folder / "open_clip_config.json", {"model_cfg": model_config, "preprocess_cfg": preprocess})
    write_tensors(folder / "open_clip_model.safetensors", model.state_dict(), {"format": "pt"})
    return folder


def build_clip(model_config: dict[str, Any]) -> Any:
    """An open_clip ``CLIP`` of this configuration with random weights."""
    import open_clip

    return open_clip.model.CLIP(
        embed_dim=model_config["embed_dim"],
        vision_cfg=model_config["vision_cfg"],
        text_cfg=model_config["text_cfg"],
        quick_gelu=model_config.get("quick_gelu", False),
    )


# ------------------------------------------------------------------------------------------- memory


def count_diffusion_memory(shape: DiffusionShape, dtype: torch.dtype = torch.float32) -> StepMemory:
    """Count a GCPL step's tensors on shapes alone: nothing is computed and no memory is taken.

    The operations run on fake tensors with the CPU's fused attention; on a GPU the fused kernels keep the
    same tensors, and the allocator adds some percent.

    Args:
        shape: What runs.
        dtype: Of the frozen weights and of the activations.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            denoiser, text_encoder = build_denoiser(shape), build_text_encoder(shape)
            vae = build_vae(shape)
            weights = [*denoiser.parameters(), *text_encoder.parameters(), *text_encoder.buffers()]
            for part in (denoiser, text_encoder):
                part.requires_grad_(False).eval()
            plain = _peak_of_step(denoiser, text_encoder, shape, weights, backward=True)
            classifying = _peak_of_step(denoiser, text_encoder, shape, weights, backward=False)
            denoiser.enable_gradient_checkpointing()
            denoiser.train()  # diffusers checkpoints in training mode alone
            checkpointed = _peak_of_step(denoiser, text_encoder, shape, weights, backward=True)
            return StepMemory(
                sum(map(_bytes, weights)), sum(map(_bytes, vae.parameters())), plain, checkpointed, classifying
            )
    finally:
        torch.set_default_dtype(before)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _peak_of_step(
    denoiser: nn.Module, text_encoder: Any, shape: DiffusionShape, weights: list[Tensor], *, backward: bool
) -> int:
    noisy = torch.zeros(1, 4, shape.latent_size, shape.latent_size)
    step = torch.zeros(1, dtype=torch.int64)
    tokens = torch.zeros(1, CONTEXT_LENGTH, shape.text_width, requires_grad=backward)
    ids = torch.zeros(1, CONTEXT_LENGTH, dtype=torch.int64)
    handle = text_encoder.get_input_embeddings().register_forward_hook(lambda _module, _inputs, _output: tokens)
    live = LiveBytes([*weights, noisy, step, tokens, ids])
    try:
        with live, torch.set_grad_enabled(backward):
            hidden = text_encoder(input_ids=ids).last_hidden_state if backward else tokens
            predicted = denoiser(noisy, step, hidden, return_dict=False)[0]
            loss = predicted.float().square().mean()
            if backward:
                loss.backward()
    finally:
        handle.remove()
    return live.peak


def count_clip_memory(model_config: dict[str, Any]) -> StepMemory:
    """The same for LMPT in float32: a prompt forward and backward through its tower, an image through the other.

    Args:
        model_config: As for :func:`save_clip`.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from gcpl_lab.models.clip import encode_token_embeddings

    with FakeTensorMode():
        model = build_clip(model_config).requires_grad_(False).eval()
        weights = [*model.parameters(), *model.buffers()]
        size, text = model_config["vision_cfg"]["image_size"], model_config["text_cfg"]
        tokens = torch.zeros(1, text["context_length"], text["width"], requires_grad=True)
        ends = torch.zeros(1, dtype=torch.int64)
        pixels = torch.zeros(1, 3, size, size)
        training, classifying = LiveBytes([*weights, tokens, ends]), LiveBytes([*weights, pixels])
        with training:
            encode_token_embeddings(model, tokens, ends)[1].square().mean().backward()
        with classifying, torch.no_grad():
            model.encode_image(pixels)
    return StepMemory(sum(map(_bytes, weights)), 0, training.peak, training.peak, classifying.peak)
