"""Exemplars and latents of images from anywhere: one image at a time is in memory, and a few of their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.readers import PixelChecksum, in_parts
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
    seen, parts, ids = PixelChecksum(), [], np.asarray(labels)
    for number, part in enumerate(in_parts(images, PART, fit)):
        pixels = diffusion.preprocess(map(seen, part))
        own = ids[number * PART : (number + 1) * PART]
        parts.append(Exemplars.encode(diffusion, pixels, own, encode_moments))
    return Exemplars.join(parts, seen.hexdigest())


def read_latents(
    diffusion: FrozenDiffusion, images: Sequence[Any], fit: str, encode_moments: Encode | None = None
) -> Tensor:
    """Scaled latents (image, channel, height, width) of images; arguments and errors as above."""
    encode = encode_moments or diffusion.encode_moments
    means = [encode(diffusion.preprocess(part))[0] for part in in_parts(images, PART, fit)]
    return diffusion.scale_latents(torch.cat(means) if means else torch.empty(0, *diffusion.latent_shape))
