"""The frozen latent diffusion model: encode, add noise, predict the noise, decode.

Loaded by diffusers and transformers from a pipeline folder in the diffusers format (or the hub's cache);
the weights never change, and a learned prompt enters as token embeddings.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gcpl_lab.errors import ModelError
from gcpl_lab.fast.cpu_linear import use_fast_products
from gcpl_lab.fast.template_tower import TemplateTower, is_plain
from gcpl_lab.models.presets import Preset, find_preset, resolve
from gcpl_lab.storage import CachedChecksum
from gcpl_lab.training.processor import own_kernels


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


class FrozenDiffusion:
    """A Stable Diffusion whose weights stay as they are.

    Attributes:
        vae: ``AutoencoderKL``.
        denoiser: ``UNet2DConditionModel``, predicting noise (epsilon) or velocity (v).
        text_encoder: ``CLIPTextModel``.
        tokenizer: ``CLIPTokenizer``.
        scheduler: ``DDPMScheduler`` with the model's own noise schedule.
        name: Where the model came from.
        evidence_range: See :class:`~gcpl_lab.models.presets.Preset`.
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
            use_fast_products(part)
        if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"{name}: its scheduler predicts {scheduler.config.prediction_type!r}; "
                "expected 'epsilon' or 'v_prediction'"
            )
        # The hook that puts embeddings in place is seen by every thread that encodes meanwhile, and layers that are
        # replaced for one prediction by every thread that predicts.
        self._one_encoding = threading.Lock()
        self._one_prediction = threading.RLock()
        self._checksum = CachedChecksum()
        self.num_denoiser_evaluations = 0
        """How many (image, timestep, prompt) triples the denoiser has seen; what classification costs."""

    @classmethod
    def load(
        cls, preset: str | Preset = "tiny", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> FrozenDiffusion:
        """Load a preset or a local folder with the libraries' own loaders, from safetensors only.

        Args:
            preset: Name in ``PRESETS``, or a folder that holds ``diffusion/`` or is a pipeline itself.
            device: Where the weights go.
            dtype: Of the frozen weights.

        Raises:
            ModelError: The weights are neither in a folder nor in the hub's cache and cannot be fetched; found out
                before the libraries load.
        """
        found = find_preset(preset) if isinstance(preset, str) else preset
        source = resolve(found, "diffusion")

        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        options: dict[str, Any] = {"use_safetensors": True, "torch_dtype": dtype, "local_files_only": True}
        try:
            with quiet_libraries():
                model = cls(
                    vae=AutoencoderKL.from_pretrained(source, subfolder="vae", **options),
                    denoiser=UNet2DConditionModel.from_pretrained(source, subfolder="unet", **options),
                    text_encoder=CLIPTextModel.from_pretrained(
                        source, subfolder="text_encoder", use_safetensors=True, dtype=dtype, local_files_only=True
                    ),
                    tokenizer=CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", local_files_only=True),
                    scheduler=DDPMScheduler.from_pretrained(source, subfolder="scheduler", local_files_only=True),
                    name=found.name,
                    evidence_range=found.evidence_range,
                )
        except (OSError, ValueError) as error:
            raise ModelError(f"{source}: is no complete diffusers pipeline folder ({error})") from error
        return model.to(device)

    def to(self, device: torch.device | str) -> FrozenDiffusion:
        """Move every part to ``device``; returns itself."""
        for part in (self.vae, self.denoiser, self.text_encoder):
            part.to(device)
        return self

    # ------------------------------------------------------------------------------------ properties

    @property
    def device(self) -> torch.device:
        """Where the denoiser's weights are."""
        device: torch.device = next(self.denoiser.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the denoiser's weights."""
        dtype: torch.dtype = next(self.denoiser.parameters()).dtype
        return dtype

    @property
    def num_timesteps(self) -> int:
        """Length T of the noise schedule."""
        return int(self.scheduler.config.num_train_timesteps)

    @property
    def image_size(self) -> int:
        """Side of the square pictures in pixels."""
        return int(self.denoiser.config.sample_size) * self._downsampling

    @property
    def _downsampling(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(channel, height, width) of one latent."""
        side = int(self.denoiser.config.sample_size)
        return int(self.denoiser.config.in_channels), side, side

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

    # ------------------------------------------------------------------------------------------ text

    @property
    def context_length(self) -> int:
        """Number of positions a prompt has, start and end included."""
        return int(self.text_encoder.config.max_position_embeddings)

    @property
    def start_id(self) -> int:
        """Token id in front of every prompt."""
        return int(self.tokenizer.bos_token_id)

    @property
    def end_id(self) -> int:
        """Token id behind every prompt."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Token id that fills a prompt up."""
        return int(self.tokenizer.pad_token_id)

    def word_ids(self, text: str) -> list[int]:
        """Token ids of ``text`` alone, without start, end or padding; never truncated."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def word_of(self, token_id: int) -> str:
        """What a token id stands for, its end-of-word mark kept as ``</w>``."""
        return str(self.tokenizer.convert_ids_to_tokens(token_id))

    @property
    def embedding_table(self) -> Tensor:
        """The frozen token embeddings, (vocabulary, dim)."""
        table: Tensor = self.text_encoder.get_input_embeddings().weight
        return table

    def template_tower(self, beginning: Tensor) -> TemplateTower | None:
        """The text encoder for prompts that all begin with these ids, whatever follows.

        Args:
            beginning: int64 (token,), the start token and what stands in front of the first learned vector.

        Returns:
            None where the text encoder is of another kind than transformers' CLIP, or must run as its library has it.
        """
        shortens = own_kernels() and is_plain(self.text_encoder)
        return TemplateTower(self.text_encoder, beginning) if shortens else None

    def encode_prompts(
        self, ids: Tensor, embeddings: Tensor | None = None, tower: TemplateTower | None = None
    ) -> Tensor:
        """Hidden states that condition the denoiser.

        The text encoder's own forward pass runs; with ``embeddings`` given, only what its embedding table
        would have looked up is replaced, so an unchanged embedding gives the identical result.

        Args:
            ids: int64 (batch, context length).
            embeddings: (batch, context length, dim), or None for the table's.
            tower: The :meth:`template_tower` of what these prompts begin with, where ones like them are encoded
                again and again; equal up to rounding. Only with ``embeddings``.

        Returns:
            (batch, context length, dim) in the model's dtype.
        """
        ids = ids.to(self.device)
        if embeddings is None:
            with self._one_encoding:
                hidden: Tensor = self.text_encoder(input_ids=ids).last_hidden_state
            return hidden
        if embeddings.shape[:2] != ids.shape:
            raise ValueError(
                f"embeddings has shape {tuple(embeddings.shape)}; expected ({ids.shape[0]}, {ids.shape[1]}, dim)"
            )
        if tower is not None:
            return tower(embeddings.to(self.device))
        table: nn.Module = self.text_encoder.get_input_embeddings()
        with self._one_encoding:
            handle = table.register_forward_hook(lambda _module, _inputs, output: embeddings.to(output))
            try:
                hidden = self.text_encoder(input_ids=ids).last_hidden_state
            finally:
                handle.remove()
        return hidden

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Hidden states of plain texts, (batch, context length, dim); longer texts are cut as the tokenizer does."""
        ids = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.context_length, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            return self.encode_prompts(ids)

    # ---------------------------------------------------------------------------------------- images

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Shorter side to ``image_size``, centre square, RGB in [-1, 1]: float32 (batch, 3, size, size)."""
        return torch.stack([square_pixels(image, self.image_size) for image in images])

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the VAE's posterior, cached once instead of encoding in every step.

        Args:
            pixels: (count, 3, size, size) in [-1, 1].
            batch_size: Pictures a pass.

        Returns:
            Two float32 (count, channel, height, width) on the CPU, not yet scaled.
        """
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
        """Scaled latents (batch, channel, height, width) to RGB pictures."""
        self.vae.to(self.device)
        scaled = (latents / float(self.vae.config.scaling_factor)).to(self.device, self.dtype)
        pixels = self.vae.decode(scaled).sample.float().clamp(-1, 1)
        values = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(value) for value in values]

    # ------------------------------------------------------------------------------------- diffusion

    @cached_property
    def _signal_and_noise(self) -> tuple[Tensor, Tensor]:
        products = self.scheduler.alphas_cumprod.double()
        return products.sqrt().float(), (1 - products).sqrt().float()

    def _coefficients(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = (table[timesteps.cpu()].to(like) for table in self._signal_and_noise)
        shape = (-1, *[1] * (like.ndim - 1))
        return signal.reshape(shape), noise.reshape(shape)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = sqrt(ᾱ_t) · z0 + sqrt(1 − ᾱ_t) · ε.

        Args:
            latents: z0, (batch, channel, height, width), scaled.
            noise: ε, the same shape.
            timesteps: int64 (batch,), 0 to T − 1.
        """
        signal, spread = self._coefficients(timesteps, latents)
        return signal * latents + spread * noise

    def alone(self) -> AbstractContextManager[Any]:
        """No other thread runs the denoiser meanwhile; for whoever changes how it runs."""
        return self._one_prediction

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, hidden: Tensor) -> Tensor:
        """ε_θ(z_t, t, h) as float32, whether the model predicts noise or velocity.

        For a velocity model v = sqrt(ᾱ_t)·ε − sqrt(1 − ᾱ_t)·z0, so ε = sqrt(ᾱ_t)·v + sqrt(1 − ᾱ_t)·z_t.

        Args:
            noisy: z_t, (batch, channel, height, width).
            timesteps: int64 (batch,).
            hidden: (batch, context length, dim), one prompt a sample.
        """
        self.num_denoiser_evaluations += len(noisy)
        inputs = noisy.to(self.device, self.dtype)
        steps = timesteps.to(self.device)
        with self.alone():
            output: Tensor = self.denoiser(inputs, steps, hidden.to(self.device, self.dtype), return_dict=False)[0]
        output = output.float()
        if self.scheduler.config.prediction_type == "v_prediction":
            signal, spread = self._coefficients(timesteps, output)
            output = signal * output + spread * noisy.to(output)
        return output

    @torch.no_grad()
    def generate(
        self, hidden: Tensor, *, num_steps: int = 30, guidance: float = 3.0, seed: int = 0
    ) -> list[Image.Image]:
        """One picture for each prompt, drawn by diffusers' own Stable Diffusion pipeline.

        Args:
            hidden: (batch, context length, dim).
            num_steps: Denoising steps (DDIM).
            guidance: Classifier-free guidance; 1 switches it off.
            seed: Picture i starts from the same noise whatever the prompts are.
        """
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
        with self.alone():
            pictures = pipeline(
                prompt_embeds=hidden.to(self.dtype),
                negative_prompt_embeds=self.encode_texts([""]).expand_as(hidden),
                latents=latents.to(self.device, self.dtype),
                num_inference_steps=num_steps,
                guidance_scale=guidance,
                height=self.image_size,
                width=self.image_size,
                output_type="pil",
            ).images
        return list(pictures)


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
