"""What several test modules make up: numbers by seed, images of a known law, settings that train in a moment."""

from typing import Any

import numpy as np
import torch

SMALL_SETTINGS: dict[str, Any] = {
    "num_vectors": 2,
    "num_steps": 2,
    "batch_size": 4,
    "discriminative_steps": 2,
    "discriminative_batch_size": 2,
    "num_samples": 2,
    "num_evidence": 2,
}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CLEAN = randn(6, 2, 4, 4)
"""The clean latent that the prompt of each of six classes stands for, where ``known_diffusion`` denoises."""

LABELS = np.array([3, 0, 5, 5, 1, 2, 4])

LATENTS = CLEAN[torch.from_numpy(LABELS)] + 0.2 * randn(len(LABELS), 2, 4, 4, seed=9)
"""Images of these labels: noisy copies of their classes' clean latents."""
