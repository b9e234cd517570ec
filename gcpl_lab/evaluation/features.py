"""What the frozen networks make of pictures and prompts, as points that maps and separations can be made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.models.diffusion import FrozenDiffusion


def denoiser_layers(diffusion: FrozenDiffusion) -> list[str]:
    """Names of the layers whose features can be taken: the blocks of the U-Net, from the input to the output.

    Args:
        diffusion: The frozen model.

    Returns:
        Such as ``["down_blocks.0", ..., "mid_block", ..., "up_blocks.1"]``.
    """
    denoiser = diffusion.denoiser
    down = [f"down_blocks.{index}" for index in range(len(denoiser.down_blocks))]
    up = [f"up_blocks.{index}" for index in range(len(denoiser.up_blocks))]
    return [*down, *(["mid_block"] if getattr(denoiser, "mid_block", None) is not None else []), *up]


@torch.no_grad()
def denoiser_features(
    diffusion: FrozenDiffusion,
    latents: Tensor,
    hidden: Tensor,
    *,
    layer: str = "mid_block",
    timestep: float = 0.3,
    num_noises: int = 4,
    seed: int = 0,
    batch_size: int = 256,
) -> np.ndarray:
    """Features of pictures inside the denoiser: a layer's output, averaged over places and over noises.

    Every picture sees the same noises at the same timestep, so that pictures differ by what they show. All see the
    same prompt too, unless each is given one of its own.

    Args:
        diffusion: The frozen model.
        latents: z0, scaled, (image, channel, height, width).
        hidden: The prompt's hidden states, (1, token, dim) for all pictures or (image, token, dim).
        layer: A name of :func:`denoiser_layers`, or of any other module of the denoiser.
        timestep: As a share of the noise schedule, 0 to below 1.
        num_noises: Noises that are averaged, 1 or more.
        seed: Of the noises.
        batch_size: Most pictures in one pass.

    Returns:
        float32 (image, feature): the layer's channels.

    Raises:
        ValueError: An unknown layer, a timestep outside, no noise, or another number of prompts.
    """
    if not 0 <= timestep < 1:
        raise ValueError(f"timestep is {timestep}; expected a share of the schedule, 0 or more and below 1")
    if num_noises < 1:
        raise ValueError(f"num_noises is {num_noises}; expected 1 or more")
    if len(hidden) not in (1, len(latents)):
        raise ValueError(f"{len(hidden)} prompts for {len(latents)} pictures; expected one for all or one each")
    module = _find_layer(diffusion, layer)
    hidden = hidden.expand(len(latents), -1, -1)
    steps = torch.full((len(latents),), int(timestep * diffusion.num_timesteps))
    generator = torch.Generator().manual_seed(seed)
    taken: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: taken.append(_pool(output)))
    try:
        total: Tensor | float = 0.0
        for _ in range(num_noises):
            noise = torch.randn((1, *latents.shape[1:]), generator=generator).expand_as(latents)
            noisy = diffusion.add_noise(latents, noise.to(latents), steps)
            taken.clear()
            for chosen in torch.arange(len(latents)).split(batch_size):
                diffusion.predict_noise(noisy[chosen], steps[chosen], hidden[chosen.to(hidden.device)])
            total = total + torch.cat(taken)
    finally:
        handle.remove()
    assert isinstance(total, Tensor)
    features: np.ndarray = (total / num_noises).numpy()
    return features


def _find_layer(diffusion: FrozenDiffusion, layer: str) -> nn.Module:
    try:
        module: nn.Module = diffusion.denoiser.get_submodule(layer)
    except AttributeError:
        known = ", ".join(denoiser_layers(diffusion))
        raise ValueError(f"the denoiser has no layer {layer!r}; its blocks are {known}") from None
    return module


def _pool(output: Any) -> Tensor:
    """Channels of a layer's output, averaged over places; a down block's skip connections are left aside."""
    values: Tensor = output[0] if isinstance(output, tuple) else output
    if values.ndim == 4:
        return values.detach().float().mean(dim=(2, 3)).cpu()
    if values.ndim == 3:  # (image, place, channel), as inside attention
        return values.detach().float().mean(dim=1).cpu()
    return values.detach().float().cpu()


@torch.no_grad()
def prompt_outputs(
    diffusion: FrozenDiffusion, prompts: ClassPrompts, states: Mapping[int, Tensor]
) -> dict[int, np.ndarray]:
    """What the text encoder makes of the class prompts at every saved step of a training run.

    The vectors are where training works; these outputs are all that the denoiser hears of them.

    Args:
        diffusion: The frozen model that the prompts were learned through.
        prompts: Gives the template; its vectors stay as they are.
        states: Training step to vectors (class, V, dim), such as ``GCPLClassifier.states_``.

    Returns:
        Step to float32 (class, token · dim), in ascending order of steps.

    Raises:
        ValueError: A state of another shape than the prompts' vectors.
    """
    now = prompts.vectors.detach().clone()
    for step, vectors in states.items():
        if vectors.shape != now.shape:
            raise ValueError(f"the state of step {step} has shape {tuple(vectors.shape)}; expected {tuple(now.shape)}")
    found = {}
    try:
        for step in sorted(states):
            prompts.vectors.copy_(states[step])
            found[step] = diffusion.encode_prompts(*prompts()).float().flatten(1).cpu().numpy()
    finally:
        prompts.vectors.copy_(now)
    return found
