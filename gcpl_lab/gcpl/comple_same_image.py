"""CoMPLe with the negatives that its paper describes: the same image under the prompts of other classes.

L = ‖ε − ε_θ(z_t, t, h_c)‖² − λ · mean_r ‖ε − ε_θ(z_t, t, h_r)‖², over rivals r of the own class c.

Unlike the published contrast it separates; but where an image is clearly a rival's it has no minimum, and a prompt is
paid for answering anything wrong there. docs/rivals.md works out both expectations.
"""

from __future__ import annotations

from torch import Tensor

from gcpl_lab.gcpl.discriminative import Discriminative
from gcpl_lab.gcpl.objectives import OBJECTIVES, register_objective
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import NoisyBatch
from gcpl_lab.models.diffusion import FrozenDiffusion


def same_image_loss(errors: Tensor, contrast_weight: float) -> Tensor:
    """The own prompt's error less λ times the mean error under the rivals' prompts.

    Args:
        errors: (image, sample, candidate), the own class first; two candidates or more.
        contrast_weight: λ ≥ 0.
    """
    if contrast_weight < 0:
        raise ValueError(f"contrast_weight is {contrast_weight}; expected 0 or more")
    if errors.shape[-1] < 2:
        raise ValueError(f"errors has shape {tuple(errors.shape)}; expected two candidates or more")
    return errors[..., 0].mean() - contrast_weight * errors[..., 1:].mean()


@register_objective(
    "comple_same_image",
    title="CoMPLe, same image",
    defaults={"contrast_weight": 0.1, "num_rivals": 3},
    stage=OBJECTIVES["discriminative"].facts["stage"],
    starts_from="gcpl",
    quick=False,
)
class CoMPLeSameImage(Discriminative):
    """See the module: candidates, warm start and length are those of the discriminative objective, to compare them."""

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        prompts: ClassPrompts,
        contrast_weight: float = 0.1,
        num_rivals: int | None = 3,
    ) -> None:
        super().__init__(diffusion, prompts, num_rivals=num_rivals)
        self.contrast_weight = contrast_weight

    def __call__(self, batch: NoisyBatch) -> dict[str, Tensor]:
        """``loss``, the ``own`` error and the ``contrast``, the mean error under rivals."""
        errors = self.candidate_errors(batch)
        own, contrast = errors.detach()[..., 0].mean(), errors.detach()[..., 1:].mean()
        return {"loss": same_image_loss(errors, self.contrast_weight), "own": own, "contrast": contrast}
