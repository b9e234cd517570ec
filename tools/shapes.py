"""Copies of the published architectures on disk, and memory counted without running.

The shapes are those of ``gcpl_lab.models.shapes``, saved in the very formats that presets are loaded from. And since a
step's tensors follow from the shape alone, the memory that it takes can be counted before anything is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gcpl_lab.experiments.profile import LiveBytes
from gcpl_lab.models.presets import StepMemory
from gcpl_lab.models.shapes import (
    CONTEXT_LENGTH,
    DIFFUSION_SHAPES,
    SMALL_CLIP,
    DiffusionShape,
    build_clip,
    build_denoiser,
    build_scheduler,
    build_text_encoder,
    build_vae,
    save_tokenizer,
)
from gcpl_lab.storage import write_json, write_tensors

__all__ = ["DIFFUSION_SHAPES", "SMALL_CLIP", "DiffusionShape", "save_clip", "save_diffusion"]


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
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, build in (("unet", build_denoiser), ("text_encoder", build_text_encoder), ("vae", build_vae)):
            build(shape).save_pretrained(folder / name, safe_serialization=True)
    build_scheduler(shape.prediction_type).save_pretrained(folder / "scheduler")
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
