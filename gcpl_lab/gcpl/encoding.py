"""Exemplars and latents of images from anywhere: one image at a time is in memory, and a few of their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.readers import iter_images
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.models.diffusion import FrozenDiffusion

PART = 64
"""Images whose pixels are held, and that the VAE encodes in one pass where memory allows."""

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


def read_exemplars(
    diffusion: FrozenDiffusion,
    images: Sequence[Any],
    labels: Sequence[int] | np.ndarray,
    fit: str,
    encode_moments: Encode | None = None,
) -> Exemplars:
    """Read images and encode them as exemplars, with a checksum of what was read.

    Args:
        diffusion, labels, encode_moments: See :meth:`~gcpl_lab.gcpl.sampling.Exemplars.encode`.
        images: Paths, PIL images or uint8 arrays.
        fit: The square that is seen of each, one of ``gcpl_lab.data.framing.FITS``.

    Raises:
        DataError: Images that cannot be used, all of them named.
    """
    digest, parts, ids, reader = hashlib.sha256(), list[Exemplars](), np.asarray(labels), iter_images(images, fit)
    for start in range(0, len(images), PART):
        pixels = diffusion.preprocess(islice(reader, PART))
        digest.update(pixels.numpy().tobytes())
        parts.append(Exemplars.encode(diffusion, pixels, ids[start : start + PART], encode_moments))
    means, log_variances = (
        torch.cat(each, 1) for each in zip(*((p.means, p.log_variances) for p in parts), strict=True)
    )
    return Exemplars(means, log_variances, torch.from_numpy(ids).long(), digest.hexdigest())


def read_latents(
    diffusion: FrozenDiffusion, images: Sequence[Any], fit: str, encode_moments: Encode | None = None
) -> Tensor:
    """Scaled latents (image, channel, height, width) of images; arguments and errors as above."""
    encode, reader = encode_moments or diffusion.encode_moments, iter_images(images, fit)
    means = [encode(diffusion.preprocess(chain([first], islice(reader, PART - 1))))[0] for first in reader]
    return diffusion.scale_latents(torch.cat(means) if means else torch.empty(0, *diffusion.latent_shape))
