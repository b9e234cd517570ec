"""A probe on the frozen denoiser's own features: do the prompts matter, or the diffusion model alone?

Source: Xiang et al. 2023, https://arxiv.org/abs/2303.09769
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.baselines.base import LatentSupport, register_baseline
from gcpl_lab.baselines.features import PLAIN_STRENGTH, LinearProbe, flatten_views, held_out_loss
from gcpl_lab.models.diffusion import FrozenDiffusion

TIMESTEPS = (0.02, 0.1, 0.2, 0.4, 0.6)
"""Shares of the schedule that are tried."""
POOLED = 2
"""Side of the grid that a block's output is averaged to: where something is counts a little."""
BATCH_SIZE = 64


def denoiser_blocks(denoiser: Any) -> dict[str, nn.Module]:
    """The blocks whose outputs are tried, by name, from the input to the output."""
    parts = {"down": denoiser.down_blocks, "middle": [denoiser.mid_block], "up": denoiser.up_blocks}
    return {f"{part}.{place}": block for part, blocks in parts.items() for place, block in enumerate(blocks)}


@contextmanager
def _recorded(blocks: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What each block answers in a pass; blocks that answer several values name the image first."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def denoiser_features(diffusion: FrozenDiffusion, latents: Tensor, share: float, seed: int) -> dict[str, Tensor]:
    """What every block makes of noisy latents under an empty prompt: float32 (image, channel · 4) by block.

    Args:
        diffusion: The frozen model.
        latents: Scaled, (image, channel, height, width).
        share: The timestep, as a share of the schedule.
        seed: Of the noise, the same one for all images.
    """
    timestep, parts = torch.tensor([int(share * diffusion.num_timesteps)]), []
    noise = torch.randn(diffusion.latent_shape, generator=torch.Generator().manual_seed(seed)).to(diffusion.device)
    hidden = diffusion.encode_texts([""])
    with _recorded(denoiser_blocks(diffusion.denoiser)) as found:
        for chunk in latents.split(BATCH_SIZE):
            size = len(chunk)
            noisy = diffusion.add_noise(chunk.to(diffusion.device), noise.expand(size, -1, -1, -1), timestep)
            diffusion.predict_noise(noisy, timestep.expand(size), hidden.expand(size, -1, -1))
            pooled = {name: F.adaptive_avg_pool2d(value.float(), POOLED) for name, value in found.items()}
            parts.append({name: value.flatten(1).cpu() for name, value in pooled.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class DenoiserProbe:
    """A linear probe on one block's features at one timestep, standardised on the exemplars.

    Args:
        support: The exemplars.
        share, block: Where the features come from.
        features: Theirs there, (view, image, feature).
    """

    def __init__(self, support: LatentSupport, share: float, block: str, features: Tensor) -> None:
        self.support, self.share, self.block = support, share, block
        flat = features.flatten(0, 1)
        self.mean, self.spread = flat.mean(0), flat.std(0).clamp_min(1e-6)
        self.views = self._standardised(features)

    def _standardised(self, features: Tensor) -> Tensor:
        return F.normalize((features - self.mean) / self.spread, dim=-1)

    def held_out_loss(self) -> float:
        """Of a probe of plain strength on these features."""
        return held_out_loss(*flatten_views(self.views, self.support.labels, self.support.seed), PLAIN_STRENGTH)

    def fit(self) -> DenoiserProbe:
        """Learn the probe, its strength chosen too."""
        self.probe = LinearProbe(self.views, self.support.labels, self.support.seed)
        return self

    def scores(self, latents: Tensor) -> Tensor:
        found = denoiser_features(self.support.diffusion, latents, self.share, self.support.seed)
        return self.probe.scores(self._standardised(found[self.block]))


@register_baseline("denoiser_probe", title="Probe on the denoiser", sees="latents")
def fit_denoiser_probe(support: LatentSupport) -> DenoiserProbe:
    """Timestep and block with the least held-out log-loss; of one exemplar a class the middle of both."""
    found: list[DenoiserProbe] = []
    for share in TIMESTEPS:
        views = [denoiser_features(support.diffusion, view, share, support.seed) for view in support.latents]
        found += [
            DenoiserProbe(support, share, block, torch.stack([view[block] for view in views])) for block in views[0]
        ]
    best = min(found, key=DenoiserProbe.held_out_loss) if support.folds() else found[len(found) // 2]
    return best.fit()
