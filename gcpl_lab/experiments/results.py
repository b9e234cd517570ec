"""What figures of a run are made of besides its outcomes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.gcpl.prompts import ClassPrompts

TEMPLATE = "a photo of a {}"


def conditioning(experiment: FewShotExperiment, outcome: Outcome) -> Tensor:
    """Hidden states of the class prompts, or of the class names where none were learned, (class, token, dim)."""
    diffusion, names = experiment.diffusion, experiment.test.class_names
    if outcome.model is None:
        return diffusion.encode_texts([TEMPLATE.format(name) for name in names])
    prompts = ClassPrompts.of(diffusion, names, outcome.model.prompts_.vectors.detach(), (TEMPLATE,))
    with torch.no_grad():
        return diffusion.encode_prompts(*prompts())


def most_confused_pair(matrix: np.ndarray) -> tuple[int, int]:
    """The two different classes that are taken for each other most, the more often mistaken first."""
    both = matrix + matrix.T
    np.fill_diagonal(both, -1)
    a, b = (int(place) for place in np.unravel_index(both.argmax(), both.shape))
    return (a, b) if matrix[a, b] >= matrix[b, a] else (b, a)
