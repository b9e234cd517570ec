"""Whether mirror images may be learned from: not where the mirror image of one class looks like another class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LEAST = {"mean": (0.25, 2), "nearest": (0.35, 3)}
"""By what images are compared with: the share, and the number, of those of two classes that are told right, at least
half of all, which must be nearer to the other's mirror images."""
MOST_IMAGES = 2000
_LEFT_RIGHT = {"left": "right", "links": "rechts", "gauche": "droite", "izquierda": "derecha", "左": "右"}
SIDES = _LEFT_RIGHT | {right: left for left, right in _LEFT_RIGHT.items()}
SIDE = re.compile("|".join(rf"\b{word}\b" if word.isascii() else word for word in SIDES))


class Mirroring(NamedTuple):
    """Whether to learn from mirror images, and which two classes spoke against it."""

    flip: bool
    confused: tuple[str, str] | None = None

    def __str__(self) -> str:
        if self.confused is None:
            return "learned from mirror images too" if self.flip else "not learned from mirror images"
        first, second = self.confused
        return f"not learned from mirror images: those of {first!r} look like {second!r} (flip=true learns from them)"


def choose_mirroring(
    flip: bool | str, views: Tensor, labels: Tensor | np.ndarray, class_names: Sequence[str] = ()
) -> Mirroring:
    """What ``flip="auto"`` comes to: False where names, or the exemplars themselves, say that a class has a side.

    Names say it where two differ by left and right alone. Exemplars say it where images of two classes that lie
    nearest to the mean of their own class, or to one image of it, lie nearer still to the mean, or to one, of the
    other's mirror images (each image itself left out). With one image a class only names can tell.

    Args:
        flip: What the settings say; True and False stay.
        views: Images as they are and mirrored, as any model sees them: (2, image, ...).
        labels: Class ids (image,), or 0/1 (image, class): then each combination of labels is a class.
        class_names: Of the ids.
    """
    if flip != "auto":
        return Mirroring(bool(flip))
    plain = {" ".join(re.split(r"[\s_-]+", str(name).casefold())): str(name) for name in class_names}
    for name, original in plain.items():
        other = SIDE.sub(lambda found: SIDES[found[0]], name)
        if other != name and other in plain:
            return Mirroring(False, (original, plain[other]))
    kinds, ids = np.unique(np.asarray(labels), axis=0, return_inverse=True)
    pair = _confused(views, ids.reshape(-1))
    if pair is None:
        return Mirroring(True)
    members = [np.flatnonzero(kinds[one]) if kinds.ndim == 2 else kinds[one : one + 1] for one in pair]
    first, second = (
        ", ".join(class_names[int(id_)] if len(class_names) else str(id_) for id_ in ids) for ids in members
    )
    return Mirroring(False, (first, second))


def _confused(views: Tensor, ids: np.ndarray) -> tuple[int, int] | None:
    """The two classes whose mirror images are taken for each other most often, where that is often enough."""
    chosen = np.random.default_rng(0).permutation(len(ids))[:MOST_IMAGES]
    ids, images = ids[chosen], views[:, torch.from_numpy(chosen)].flatten(2).double()
    counts = np.bincount(ids)
    if len(counts) < 2 or counts.max() < 2:
        return None
    found: list[tuple[float, int, int]] = []
    for rule, (least_share, least_images) in LEAST.items():
        plain, mirrored = (_to_classes(images[0], view, ids, rule) for view in images)
        rows = np.arange(len(ids))
        to_own = plain[rows, ids].copy()
        plain[rows, ids] = mirrored[rows, ids] = np.inf
        right = to_own < plain.min(axis=1)
        turned = right & (mirrored.min(axis=1) < to_own)
        taken = np.zeros((len(counts), len(counts)), np.int64)
        np.add.at(taken, (ids[turned], mirrored.argmin(axis=1)[turned]), 1)
        told = np.bincount(ids[right], minlength=len(counts))
        taken, told, both = taken + taken.T, told[:, None] + told, counts[:, None] + counts
        enough = (taken >= least_images) & (2 * told >= both) & (taken >= least_share * told)
        share = np.where(enough, taken / np.maximum(told, 1), 0)
        first, second = np.unravel_index(share.argmax(), share.shape)
        found.append((float(share[first, second]), int(first), int(second)))
    share_found, one, other = max(found)
    return (one, other) if share_found else None


def _to_classes(images: Tensor, view: Tensor, ids: np.ndarray, rule: str) -> np.ndarray:
    """Distances (image, class) to what a view shows of a class, the image itself left out: to its mean or nearest."""
    own, counts = torch.from_numpy(ids), torch.from_numpy(np.bincount(ids))
    if rule == "nearest":
        between = torch.cdist(images, view).fill_diagonal_(torch.inf)
        absent = torch.full((len(ids), 1), torch.inf, dtype=between.dtype)
        columns = [torch.cat([between[:, own == label], absent], 1).amin(1) for label in range(len(counts))]
        return torch.stack(columns, 1).numpy()
    sums = torch.zeros(len(counts), images.shape[1], dtype=images.dtype).index_add_(0, own, view)
    distances = torch.cdist(images, sums / counts.clamp(min=1)[:, None])
    others = (sums[own] - view) / (counts[own] - 1).clamp(min=1)[:, None]
    distances[torch.arange(len(ids)), own] = (images - others).norm(dim=1).where(counts[own] > 1, torch.inf)
    distances[:, counts == 0] = torch.inf
    return distances.numpy()
