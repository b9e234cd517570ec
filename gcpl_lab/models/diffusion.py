"""The frozen latent diffusion model: encode, add noise, predict the noise, decode.

Loaded by diffusers and transformers from a pipeline folder in the diffusers format (or the hub's cache);
the weights never change, and a learned prompt enters as token embeddings.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from gcpl_lab.errors import ArtifactError, ModelError
from gcpl_lab.global_state import global_state_kept
from gcpl_lab.models.checks import (
    LOADING,
    check_keys,
    check_part,
    check_pipeline,
    check_scheduler,
    check_text_encoder,
    find_weights,
    load_tokenizer,
)
from gcpl_lab.models.presets import WEIGHTS, Preset, check_bundled, find_preset, resolve
from gcpl_lab.storage import CachedChecksum


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' loading bars and advice away from users' notebooks."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    modules = (diffusers_logging, transformers_logging)
    before = [(module.get_verbosity(), module.is_progress_bar_enabled()) for module in modules]
    for module in modules:
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, (level, bars) in zip(modules, before, strict=True):
            module.set_verbosity(level)
            if bars:
                module.enable_progress_bar()


def _load_parts(source: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The five parts of a pipeline, each from one file that was looked at first."""
    check_bundled(source)
    check_pipeline(source)
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    check_scheduler(source / "scheduler" / "scheduler_config.json")
    check_text_encoder(source / "text_encoder" / "config.json", CLIPTextConfig)
    for part, kind in (("vae", AutoencoderKL), ("unet", UNet2DConditionModel)):
        check_part(source / part / "config.json", kind)
    return {
        "vae": _load_part(AutoencoderKL, source / "vae", torch_dtype=dtype),
        "denoiser": _load_part(UNet2DConditionModel, source / "unet", torch_dtype=dtype),
        "text_encoder": _load_part(CLIPTextModel, source / "text_encoder", dtype=dtype),
        "tokenizer": load_tokenizer(source / "tokenizer"),
        "scheduler": DDPMScheduler.from_pretrained(source / "scheduler", local_files_only=True),
    }


def _load_part(kind: Any, folder: Path, **dtype: torch.dtype) -> Any:
    """A model of the library's, whole: without this check one that lacks weights has random ones in their stead."""
    weights = find_weights(folder, WEIGHTS[folder.name])
    assert weights is not None  # resolve() has looked
    variant = weights.name.removeprefix(WEIGHTS[folder.name]).removesuffix(".safetensors").removeprefix(".")
    try:
        model, found = kind.from_pretrained(
            folder,
            variant=variant or None,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told of below
            **dtype,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{weights}: cannot be loaded ({error}); fetch or save it anew") from error
    check_keys(weights, *(found[f"{what}_keys"] for what in ("missing", "unexpected", "mismatched")))
    return model


class FrozenDiffusion:
    """A Stable Diffusion whose weights stay as they are.

    Attributes:
        vae, text_encoder, tokenizer: ``AutoencoderKL``, ``CLIPTextModel``, ``CLIPTokenizer``.
        denoiser: ``UNet2DConditionModel``, predicting noise (epsilon) or velocity (v).
        scheduler: ``DDPMScheduler`` with the model's own noise schedule.
        name, evidence_range: See :class:`~gcpl_lab.models.presets.Preset`.
        device, dtype: Of the denoiser's weights.
        num_timesteps: Length T of the noise schedule.
        latent_shape: (channel, height, width) of one latent.
        image_size: Side of the square images in pixels.
        context_length: Positions of a prompt, start and end included.
        start_id, end_id, pad_id: Token ids around a prompt.
        embedding_table: The frozen token embeddings, (vocabulary, dim).
        num_denoiser_evaluations: (Image, timestep, prompt) triples that the denoiser has seen.
    """

    def __init__(
        self,
        *,
        vae: Any,
        denoiser: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        name: str,
        evidence_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.vae, self.denoiser, self.text_encoder = vae, denoiser, text_encoder
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.name, self.evidence_range = name, evidence_range
        for part in (vae, denoiser, text_encoder):
            part.requires_grad_(False).eval()
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"{name}: its scheduler predicts {scheduler.config.prediction_type!r}; "
                "expected 'epsilon' or 'v_prediction'"
            )
        self.lock = threading.RLock()  # a notebook predicts while another thread trains; see encode_prompts
        self._checksum = CachedChecksum()
        weight = next(denoiser.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        config, side = text_encoder.config, int(denoiser.config.sample_size)
        self.num_timesteps = int(scheduler.config.num_train_timesteps)
        self.latent_shape = int(denoiser.config.in_channels), side, side
        self.image_size = side * 2 ** (len(vae.config.block_out_channels) - 1)
        self.context_length = int(config.max_position_embeddings)
        self.start_id, self.end_id = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
        self.pad_id = int(tokenizer.pad_token_id)
        self.embedding_table: Tensor = text_encoder.get_input_embeddings().weight
        self.num_denoiser_evaluations = 0

    @classmethod
    def load(
        cls, preset: str | Preset = "tiny", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> FrozenDiffusion:
        """Load a preset, or a folder that holds ``diffusion/`` or is a pipeline itself, from safetensors only.

        Raises:
            ModelError: The weights are nowhere and cannot be fetched; found out before the libraries load.
        """
        found = find_preset(preset) if isinstance(preset, str) else preset
        source = resolve(found, "diffusion")

        try:
            with LOADING, global_state_kept(), quiet_libraries():
                model = cls(**_load_parts(source, dtype), name=found.name, evidence_range=found.evidence_range)
        except (OSError, ValueError, RuntimeError, ArtifactError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"{source}: is no complete diffusers pipeline folder ({error})") from error
        return model.to(device)

    def to(self, device: torch.device | str) -> FrozenDiffusion:
        """Move every part to ``device``; returns itself."""
        for part in (self.vae, self.denoiser, self.text_encoder):
            part.to(device)
        self.device = torch.device(device)
        return self

    def checksum(self) -> str:
        """SHA-256 over every frozen weight; equal before and after any training."""
        parts = {"vae": self.vae, "denoiser": self.denoiser, "text_encoder": self.text_encoder}
        return self._checksum(
            {
                f"{name}.{key}": value
                for name, part in parts.items()
                for key, value in part.state_dict(keep_vars=True).items()
            }
        )

    def word_ids(self, text: str) -> list[int]:
        """Token ids of ``text`` alone, without start, end or padding; never truncated."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def word_of(self, token_id: int) -> str:
        """What a token id stands for, its end-of-word mark kept as ``</w>``."""
        return str(self.tokenizer.convert_ids_to_tokens(token_id))

    def encode_prompts(self, ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Hidden states that condition the denoiser, (batch, context length, dim) in the model's dtype.

        The text encoder's own forward pass runs; with ``embeddings``, only what its embedding table would have looked
        up is replaced, so an unchanged embedding gives the identical result.

        Args:
            ids: int64 (batch, context length).
            embeddings: (batch, context length, dim); None takes the table's.
        """
        ids = ids.to(self.device)
        if embeddings is not None and embeddings.shape[:2] != ids.shape:
            raise ValueError(
                f"embeddings has shape {tuple(embeddings.shape)}; expected ({ids.shape[0]}, {ids.shape[1]}, dim)"
            )
        with self.lock:  # the hook is seen by every thread
            handle = None
            if embeddings is not None:
                table: nn.Module = self.text_encoder.get_input_embeddings()
                handle = table.register_forward_hook(lambda _module, _inputs, output: embeddings.to(output))
            try:
                hidden: Tensor = self.text_encoder(input_ids=ids).last_hidden_state
            finally:
                if handle is not None:
                    handle.remove()
        return hidden

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Hidden states of plain texts, (batch, context length, dim); longer texts are cut as the tokenizer does."""
        ids = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            return self.encode_prompts(ids)

    def preprocess(self, images: Iterable[Image.Image]) -> Tensor:
        """Shorter side to ``image_size``, centre square, RGB in [-1, 1]: float32 (batch, 3, size, size)."""
        pixels = [square_pixels(image, self.image_size) for image in images]
        return torch.stack(pixels) if pixels else torch.empty(0, 3, self.image_size, self.image_size)

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the VAE's posterior of pixels (count, 3, size, size) in [-1, 1].

        Returns:
            Two float32 (count, channel, height, width) on the CPU, not yet scaled.
        """
        if not len(pixels):  # the share of a process that has none
            return torch.empty(0, *self.latent_shape), torch.empty(0, *self.latent_shape)
        self.vae.to(self.device)  # training sends it away when it has cached
        means, log_variances = [], []
        for chunk in pixels.split(batch_size):
            posterior = self.vae.encode(chunk.to(self.device, self.dtype)).latent_dist
            # Equal numbers in another memory layout would be rounded otherwise later on.
            means.append(posterior.mean.float().cpu().contiguous())
            log_variances.append(posterior.logvar.float().cpu().contiguous())
        return torch.cat(means), torch.cat(log_variances)

    def scale_latents(self, latents: Tensor) -> Tensor:
        """VAE latents to the denoiser's scale: z0 = s · VAE(x)."""
        return latents * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Scaled latents (batch, channel, height, width) to RGB images."""
        self.vae.to(self.device)
        scaled = (latents / float(self.vae.config.scaling_factor)).to(self.device, self.dtype)
        pixels = self.vae.decode(scaled).sample.float().clamp(-1, 1)
        values = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(value) for value in values]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = sqrt(ᾱ_t) · z0 + sqrt(1 − ᾱ_t) · ε of scaled latents (batch, channel, height, width)."""
        noisy: Tensor = self.scheduler.add_noise(latents, noise, timesteps)
        return noisy

    def predict_noise(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        hidden: Tensor,
        rows: Tensor | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:
        """ε_θ(z_t, t, h) as float32, whether the model predicts noise or velocity.

        For a velocity model v = sqrt(ᾱ_t)·ε − sqrt(1 − ᾱ_t)·z0, so ε = sqrt(ᾱ_t)·v + sqrt(1 − ᾱ_t)·z_t.

        Args:
            noisy: z_t, (row, channel, height, width).
            timesteps: int64 (row,).
            hidden: Hidden states of prompts, (prompt, context length, dim).
            rows: int64 (pair,): which latent of each (latent, prompt) pair; None: each row once.
            prompts: int64 (pair,): its prompt; None: the first latent has the first prompt, and so on.

        Returns:
            (pair, channel, height, width).
        """
        device = self.device
        noisy, timesteps = noisy.to(device), timesteps.to(device)
        if rows is not None:
            noisy, timesteps = noisy[rows.to(device)], timesteps[rows.to(device)]
        hidden = hidden.to(device, self.dtype)
        if prompts is not None:  # plain indexing adds up gradients of a repeated prompt in the order of the threads
            hidden = hidden.index_select(0, prompts.to(device))
        self.num_denoiser_evaluations += len(noisy)
        output: Tensor = self.denoiser(noisy.to(self.dtype), timesteps, hidden, return_dict=False)[0]
        output = output.float()
        if self.scheduler.config.prediction_type == "v_prediction":
            product = self.scheduler.alphas_cumprod.to(device)[timesteps].reshape(-1, 1, 1, 1)
            output = product.sqrt() * output + (1 - product).sqrt() * noisy
        return output

    @torch.no_grad()
    def generate(
        self, hidden: Tensor, *, num_steps: int = 30, guidance: float = 3.0, seed: int = 0
    ) -> list[Image.Image]:
        """One image for each prompt, drawn by diffusers' own Stable Diffusion pipeline.

        Args:
            hidden: (batch, context length, dim).
            num_steps: Denoising steps (DDIM).
            guidance: Classifier-free guidance; 1 switches it off.
            seed: Image i starts from the same noise whatever the prompts are.
        """
        with LOADING:
            from diffusers import DDIMScheduler, StableDiffusionPipeline

        self.vae.to(self.device)
        with quiet_libraries():
            pipeline = StableDiffusionPipeline(
                vae=self.vae,
                unet=self.denoiser,
                text_encoder=self.text_encoder,
                tokenizer=self.tokenizer,
                scheduler=DDIMScheduler.from_config(self.scheduler.config, clip_sample=False),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn((len(hidden), *self.latent_shape), generator=generator)
        images = pipeline(
            prompt_embeds=hidden.to(self.dtype),
            negative_prompt_embeds=self.encode_texts([""]).expand_as(hidden),
            latents=latents.to(self.device, self.dtype),
            num_inference_steps=num_steps,
            guidance_scale=guidance,
            height=self.image_size,
            width=self.image_size,
            output_type="pil",
        ).images
        return list(images)


def square_pixels(image: Image.Image, size: int) -> Tensor:
    """Shorter side to ``size``, centre square, RGB in [-1, 1]: float32 (3, size, size)."""
    width, height = image.size
    factor = size / min(width, height)
    scaled = (max(size, round(width * factor)), max(size, round(height * factor)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.asarray(image.convert("RGB").crop((left, top, left + size, top + size)), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)
