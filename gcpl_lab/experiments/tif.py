"""TiF's weights of timesteps: an error counts as far as it tells small differences of images from large ones.

Source: Yue et al. 2024, https://arxiv.org/abs/2403.02649, and the authors' ``diffusion_classifier.py``
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import erfc
from torch import Tensor

NUM_COARSER = 500  # larger distances that are summed up, one after another in steps of 1
PERCENTILE = 0.1  # of the squared distances at one place of the latents: the smallest difference of two classes
MOST_IMAGES = 160  # that are looked at, taken evenly: pairs at every place are many


def smallest_class_distance(latents: Tensor, labels: Tensor) -> float:
    """How far latents (image, channel, height, width) of different classes lie apart at least, over all places."""
    chosen = torch.linspace(0, len(latents) - 1, min(len(latents), MOST_IMAGES)).long()
    places, differ = latents[chosen].flatten(2).permute(2, 0, 1), labels[chosen, None] != labels[None, chosen]
    squares = (torch.cdist(part, part).square()[:, differ].numpy() for part in places.split(64))
    return float(np.sqrt(sum(np.percentile(part, PERCENTILE, axis=1).sum() for part in squares)))


def timestep_weights(products: np.ndarray, distance: float) -> np.ndarray:
    """w_t = fine / (fine + coarse), divided by the mean of all w_t, float64 (timestep,).

    Two images at a distance d are taken for each other after noising with probability
    erfc(d·√ᾱ_t / (2√2·√(1 − ᾱ_t))); fine is that of the smallest distance of two classes, coarse the sum over larger
    ones; ``products`` are ᾱ_t.
    """
    scale = np.sqrt(products / (8 * (1 - products)))[:, None]
    fine = erfc(scale[:, 0] * distance)
    coarse = erfc(scale * (distance + 1 + np.arange(NUM_COARSER))).sum(axis=1)
    weights: np.ndarray = fine / (fine + coarse + 1e-18)  # as published: nothing counts where nothing is mistaken
    return weights / max(float(weights.mean()), np.finfo(float).tiny)
