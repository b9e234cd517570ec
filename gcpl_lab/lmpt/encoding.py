"""The frozen CLIP of the settings, and image features that are shared among processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gcpl_lab import fast
from gcpl_lab.data.readers import iter_images
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.training.device import default_device, weights_dtype
from gcpl_lab.training.processes import all_gather_rows, processes


def encode_views(clip: FrozenCLIP, images: Sequence[Any], flip: bool = True, fit: str = "crop") -> Tensor:
    """Unit features of images and, with ``flip``, of their mirror images: float32 (view, image, feature).

    Args:
        fit: The square that is seen of each image, one of ``gcpl_lab.data.framing.FITS``.

    Raises:
        DataError: Images that cannot be used, all of them named.
    """
    own = iter_images(images[processes().share(len(images))], fit)
    views = clip.encode_views(own, (False, True) if flip else (False,))
    return torch.stack([all_gather_rows(view, len(images)) for view in views])


def load_clip(config: LMPTConfig, dtype: torch.dtype | None = None) -> FrozenCLIP:
    """The preset's frozen CLIP on this machine's device, in ``dtype`` or in what the precision says."""
    device = default_device()
    return fast.enable(FrozenCLIP.load(config.preset, device, dtype or weights_dtype(config.precision, device)))
