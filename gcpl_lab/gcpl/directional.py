"""Directional tokens: a class vector may turn, and its norm stays that of a word.

Learned tokens otherwise grow; what grows, an objective can be lowered by without learning anything about a class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.gcpl.objectives import GCPL, Stage, register_objective
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import NoisyBatch
from gcpl_lab.models.diffusion import FrozenDiffusion


@register_objective(
    "directional", title="Directional tokens", defaults={"pull": 1e-4}, stage=Stage(), alone=True, quick=False
)
class Directional(GCPL):
    """L_GCPL on vectors v = m·u with ‖u‖ = 1, m the mean norm of the vocabulary, less κ·cos(u, first word).

    Gradients lose their part along u, and every update ends on the sphere again; the authors descend with a step of
    their own, here it is the loop's AdamW.

    Source: Kim et al. 2026, https://arxiv.org/abs/2512.13672
    """

    def __init__(self, diffusion: FrozenDiffusion, prompts: ClassPrompts, pull: float = 1e-4) -> None:
        """Put the vectors on the sphere; ``pull`` is κ ≥ 0, towards the direction that each started in."""
        super().__init__(diffusion, prompts)
        self.pull = pull
        self.norm = float(diffusion.embedding_table.detach().float().norm(dim=1).mean())
        self.first = F.normalize(prompts.vectors.detach(), dim=-1)
        self._hook = prompts.vectors.register_hook(self._along_the_sphere)
        self.end_update()

    def _along_the_sphere(self, gradient: Tensor) -> Tensor:
        direction = F.normalize(self.prompts.vectors.detach(), dim=-1)
        return gradient - (gradient * direction).sum(-1, keepdim=True) * direction

    @torch.no_grad()
    def end_update(self) -> None:
        """Back to the sphere, along the radius."""
        self.prompts.vectors.copy_(self.norm * F.normalize(self.prompts.vectors, dim=-1))

    def end(self) -> None:
        """The last update was made; whoever trains these vectors next is free again."""
        self.end_update()
        self._hook.remove()

    def __call__(self, batch: NoisyBatch) -> dict[str, Tensor]:
        """``loss``, and ``likeness``, the mean cosine to the first words."""
        self.end_update()
        values = super().__call__(batch)
        likeness = F.cosine_similarity(self.prompts.vectors, self.first, dim=-1).mean()
        return {**values, "loss": values["loss"] - self.pull * likeness, "likeness": likeness.detach()}
