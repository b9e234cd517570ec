"""What the frozen networks make of images and prompts, as points that maps and separations can be made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gcpl_lab.models.diffusion import FrozenDiffusion

NUM_NOISES = 4  # that features are averaged over; every image sees the same ones
BATCH_SIZE = 256


def denoiser_layers(diffusion: FrozenDiffusion) -> list[str]:
    """Names of the U-Net's blocks from input to output: ``down_blocks.0``, ..., ``mid_block``, ..., ``up_blocks.1``."""
    down = [f"down_blocks.{index}" for index in range(len(diffusion.denoiser.down_blocks))]
    up = [f"up_blocks.{index}" for index in range(len(diffusion.denoiser.up_blocks))]
    return [*down, "mid_block", *up]


@torch.no_grad()
def denoiser_features(
    diffusion: FrozenDiffusion, latents: Tensor, hidden: Tensor, *, layer: str = "mid_block", timestep: float = 0.3
) -> np.ndarray:
    """Features of images inside the denoiser: a layer's output, averaged over places and over noises.

    Args:
        latents: z0, scaled, (image, channel, height, width).
        hidden: The prompt's hidden states, (1, token, dim) for all images or (image, token, dim).
        layer: A name of :func:`denoiser_layers`, or of any other module of the denoiser.
        timestep: As a share of the noise schedule, 0 to below 1; the same for all images.

    Returns:
        float32 (image, channel).
    """
    if not 0 <= timestep < 1:
        raise ValueError(f"timestep is {timestep}; expected a share of the schedule, 0 or more and below 1")
    if len(hidden) not in (1, len(latents)):
        raise ValueError(f"{len(hidden)} prompts for {len(latents)} images; expected one for all or one each")
    try:
        module = diffusion.denoiser.get_submodule(layer)
    except AttributeError:
        known = ", ".join(denoiser_layers(diffusion))
        raise ValueError(f"the denoiser has no layer {layer!r}; its blocks are {known}") from None
    hidden = hidden.expand(len(latents), -1, -1)
    steps = torch.full((len(latents),), int(timestep * diffusion.num_timesteps))
    generator = torch.Generator().manual_seed(0)
    taken: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: taken.append(_pool(output)))
    try:
        for _ in range(NUM_NOISES):
            noise = torch.randn((1, *latents.shape[1:]), generator=generator).expand_as(latents)
            noisy = diffusion.add_noise(latents, noise.to(latents), steps)
            for chosen in torch.arange(len(latents)).split(BATCH_SIZE):
                diffusion.predict_noise(noisy[chosen], steps[chosen], hidden[chosen.to(hidden.device)])
    finally:
        handle.remove()
    features: np.ndarray = torch.cat(taken).unflatten(0, (NUM_NOISES, len(latents))).mean(0).numpy()
    return features


def _pool(output: Any) -> Tensor:
    """Channels of a layer's output, averaged over places; a down block's skip connections are left aside."""
    values: Tensor = (output[0] if isinstance(output, tuple) else output).float().cpu()
    if values.ndim == 3:  # (image, place, channel), as inside attention
        return values.mean(dim=1)
    return values.flatten(2).mean(dim=2) if values.ndim == 4 else values


@torch.no_grad()
def prompt_outputs(
    diffusion: FrozenDiffusion, prompts: nn.Module, states: Mapping[int, Tensor]
) -> dict[int, np.ndarray]:
    """What the text encoder makes of the class prompts at every saved step: all that the denoiser hears of them.

    Args:
        prompts: A ``ClassPrompts``, which gives the template; its vectors stay as they are.
        states: Training step to vectors (class, V, dim), such as ``GCPLClassifier.states_``.

    Returns:
        Step to float32 (class, token · dim), in ascending order of steps.
    """
    now, found = prompts.get_parameter("vectors"), {}
    for step, vectors in sorted(states.items()):
        if vectors.shape != now.shape:
            raise ValueError(f"the state of step {step} has shape {tuple(vectors.shape)}; expected {tuple(now.shape)}")
        parts = torch.func.functional_call(prompts, {"vectors": vectors.to(now)}, ())
        found[step] = diffusion.encode_prompts(*parts).float().flatten(1).cpu().numpy()
    return found
