"""What is given to ``fit`` and to the losses, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.readers import list_lines
from gcpl_lab.data.sets import check_class_names, check_targets
from gcpl_lab.errors import DataError


def check_training(
    num_images: int, targets: Any, class_names: Sequence[str] | None, captions: Sequence[str | None] | None
) -> np.ndarray:
    """What is given to ``fit``, as uint8 targets (image, class), or an error that names the item.

    Raises:
        DataError: Numbers differ, a target is neither 0 nor 1, there is one class only, or a class has no image.
    """
    targets = check_targets(targets)
    if len(targets) != num_images:
        raise DataError(f"{num_images} images and {len(targets)} rows of targets; expected one row an image")
    if targets.shape[1] < 2:
        raise DataError(f"targets have {targets.shape[1]} classes; expected two or more, one column each")
    if class_names is not None:
        if len(class_names) != targets.shape[1]:
            raise DataError(f"class_names has {len(class_names)} names; expected {targets.shape[1]}, one a column")
        check_class_names(class_names)
    names = [f"class {i}" for i in range(targets.shape[1])] if class_names is None else [str(n) for n in class_names]
    empty = [name for name, count in zip(names, targets.sum(axis=0), strict=True) if count == 0]
    if empty:
        raise DataError(
            f"{len(empty)} classes have no image; add some, or leave their columns out:" + list_lines(empty)
        )
    if captions is not None:
        if isinstance(captions, str) or len(captions) != num_images:
            raise DataError(
                f"{len(captions)} captions for {num_images} images; expected one an image (None where there is none)"
            )
        for index, caption in enumerate(captions):
            if caption is not None and not isinstance(caption, str):
                raise DataError(f"caption {index} is {caption!r}; expected a text or None")
    return targets


Counts = Tensor | np.ndarray | Sequence[int] | Sequence[float]
"""Number of training images with each class, (class,), from 1 upwards."""


def check_loss(name: str, values: Tensor, targets: Tensor) -> None:
    if values.ndim != 2 or values.shape != targets.shape:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)} and targets {tuple(targets.shape)}; expected the same, "
            "(image, class)"
        )
    if not torch.equal(targets * targets, targets):  # only 0 and 1 are their own squares
        raise ValueError("targets hold a value other than 0 and 1; expected 1 where the image has the class, else 0")


def counts_of(class_counts: Counts, like: Tensor | None = None) -> Tensor:
    """As float32 (class,), on the device and for the classes of a tensor (image, class)."""
    counts = torch.as_tensor(class_counts, dtype=torch.float32, device=None if like is None else like.device)
    if counts.ndim != 1 or (like is not None and len(counts) != like.shape[1]):
        expected = "" if like is None else f", ({like.shape[1]},)"
        raise ValueError(f"class_counts has shape {tuple(counts.shape)}; expected one number a class{expected}")
    if bool((counts < 1).any()):
        index = int((counts < 1).nonzero()[0])
        raise ValueError(
            f"class_counts is {float(counts[index]):g} for class {index}; expected 1 or more: leave a class without "
            "training images out, or count it as 1"
        )
    return counts
