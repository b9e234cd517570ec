"""What a long-tailed set with several labels is looked at by: its parts, a validation split, and wrong captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gcpl_lab.data.sets import check_targets
from gcpl_lab.errors import DataError


def head_medium_tail(train_counts: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """``head`` (100 training images or more), ``medium`` and ``tail`` (below 20) class ids, int64, ascending.

    Source: Wu et al. 2020, https://arxiv.org/abs/2007.09654, section 4.1
    """
    counts = np.asarray(train_counts)
    head, tail = counts >= 100, counts < 20
    parts = {"head": head, "medium": ~(head | tail), "tail": tail}
    return {name: np.flatnonzero(chosen) for name, chosen in parts.items()}


def split_validation(targets: np.ndarray, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Part images so that every class keeps its share, and rare classes stay in both parts where they can.

    Iterative stratification: the rarest class that is left is dealt out first, each image to the part that
    still wants the class most. A class with two images or more wants at least one in each part; where the
    dealing failed that (its images were bound by even rarer classes), single images are moved.

    Returns:
        Training and validation indices, int64, each ascending; ``share`` of the images is in the second.

    Source: Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data", algorithm 1
    """
    targets = check_targets(targets)
    if not 0 < share < 1:
        raise DataError(f"the validation share is {share}; expected a number above 0 and below 1")
    if len(targets) < 2:
        raise DataError(f"{len(targets)} images cannot be parted; expected two or more")
    rng = np.random.default_rng(seed)
    counts = targets.sum(axis=0, dtype=np.int64)
    wanted = np.where(counts >= 2, np.clip(share * counts, 1, np.maximum(counts - 1, 1)), 0.0)
    wishes = np.stack([counts - wanted, wanted])
    sizes = np.array([(1 - share) * len(targets), share * len(targets)])
    part = np.full(len(targets), -1)
    while (part < 0).any():
        left = (targets * (part < 0)[:, None]).sum(axis=0)
        if not left.any():  # images without any class
            label, members = None, rng.permutation(np.flatnonzero(part < 0))
        else:
            label = int(np.where(left > 0, left, len(targets) + 1).argmin())
            members = rng.permutation(np.flatnonzero((part < 0) & (targets[:, label] == 1)))
        for image in members:
            # Most wanted for this class, then the emptier part, then training.
            chosen = max((0, 1), key=lambda side: (0.0 if label is None else wishes[side, label], sizes[side], -side))
            part[image] = chosen
            wishes[chosen] -= targets[image]
            sizes[chosen] -= 1
    _move_singles(targets, part)
    return np.flatnonzero(part == 0), np.flatnonzero(part == 1)


def _move_singles(targets: np.ndarray, part: np.ndarray) -> None:
    """Give every class with two images or more one in each part, unless that takes another class's last one."""
    counts = targets.sum(axis=0, dtype=np.int64)
    for label in np.argsort(counts, kind="stable"):
        for side in (0, 1):
            if counts[label] < 2 or (targets[part == side, label] == 1).any():
                continue
            for image in np.flatnonzero((part != side) & (targets[:, label] == 1)):
                others = targets[(part != side) & (np.arange(len(part)) != image)].sum(axis=0)
                if (others[(targets[image] == 1) & (counts >= 2)] > 0).all():
                    part[image] = side
                    break
    if not (part == 0).any() or not (part == 1).any():
        part[-1] = 1 - part[-1]


def replace_captions(
    captions: Sequence[str | None], targets: np.ndarray, share: float, seed: int = 0
) -> tuple[str | None, ...]:
    """Give part of the images the caption of another image with other classes: how a bad captioner is imitated.

    Images without a caption stay so. The smaller of two shares replaces a part of what the larger one does, by the
    same captions.
    """
    if not 0 <= share <= 1:
        raise DataError(f"the share of wrong captions is {share}; expected 0 to 1")
    targets = check_targets(targets)
    if len(captions) != len(targets):
        raise DataError(f"{len(captions)} captions for {len(targets)} rows of targets; expected one a row")
    rng = np.random.default_rng([seed, 29])
    captioned = np.array([index for index, caption in enumerate(captions) if caption], np.int64)
    result = list(captions)
    for index in rng.permutation(captioned)[: round(share * len(captioned))]:
        others = captioned[(targets[captioned] != targets[index]).any(axis=1)]
        if not len(others):
            raise DataError("all captioned images have the same classes; there is no wrong caption to give")
        result[index] = captions[int(rng.choice(others))]
    return tuple(result)
