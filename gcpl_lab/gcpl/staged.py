"""The published decision in stages: every class on few (t, ε), the best ones on more.

Source: Li et al. 2023, https://arxiv.org/abs/2303.16203, and the released ``eval_prob_adaptive.py``
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Schedule = Literal["nested", "published"]


def staged_evidence(
    classifier: Any, latents: Tensor, to_keep: Sequence[int], n_samples: Sequence[int], schedule: Schedule
) -> tuple[np.ndarray, np.ndarray, int]:
    """Stage k evaluates the classes that are left and keeps the ``to_keep[k]`` with the least mean error.

    ``class_scores(errors, "absolute")`` of the result is best for the class that was kept to the end.

    Args:
        classifier: A :class:`~gcpl_lab.gcpl.classifier.DiffusionClassifier`.
        latents: z0, (image, channel, height, width), scaled.
        to_keep: Classes left after each stage, not increasing; 1 in the end.
        n_samples: Samples of each class that is still in, after each stage; increasing.
        schedule: Which (t, ε) a stage takes, see :func:`stage_samples`; ``"published"`` has the released code's
            timesteps too.

    Returns:
        Errors float32 (image, class, sample), NaN where a class had been dropped; timesteps; evaluations spent.

    Raises:
        ValueError: Stages of different length or order, or more samples than the published grid has timesteps.
    """
    check_stages(to_keep, n_samples)
    total, stages, spent = n_samples[-1], stage_samples(n_samples, schedule), 0
    timesteps, noises = classifier.samples(total)
    if schedule == "published":
        timesteps = published_timesteps(classifier.diffusion.num_timesteps, total, classifier.timestep_range)
    errors = np.full((len(latents), classifier.num_classes, total), np.nan, np.float32)
    images_a_pass = max(1, 4 * classifier.batch_size // (classifier.num_classes * n_samples[0]))
    for start in range(0, len(latents), images_a_pass):
        part = errors[start : start + images_a_pass]  # a view: filled in place
        images, seen = np.arange(len(part))[:, None, None], np.empty(0, np.int64)
        left = np.tile(np.arange(classifier.num_classes), (len(part), 1))  # (image, class that is still in)
        for keep, samples in zip(to_keep, stages, strict=True):
            triples = np.broadcast_arrays(images, left[:, :, None], samples)
            grid = torch.from_numpy(np.stack(triples, axis=-1).reshape(-1, 3))
            found = classifier.errors(grid, latents[start : start + images_a_pass], timesteps, noises)
            part[tuple(triples)] = found.reshape(triples[0].shape).numpy()
            spent, seen = spent + len(grid), np.concatenate([seen, samples])
            means = part[images, left[:, :, None], seen].mean(axis=2)
            best = np.argsort(means, axis=1, kind="stable")[:, :keep]
            left = np.sort(np.take_along_axis(left, best, axis=1), axis=1)
    return errors, timesteps.numpy(), spent


def stage_samples(n_samples: Sequence[int], schedule: Schedule = "nested") -> list[np.ndarray]:
    """Which of the last stage's samples each stage evaluates for the first time.

    The released code takes every (n_last // n_k)-th sample from half that spacing on for stage k and skips what an
    earlier stage had. With two stages these never overlap. With three and more they do by chance: 20, 50, 100, 500
    samples a class become 20, 70, 150, 500, which for 101 classes and 20, 10, 5, 1 kept are 5,570 evaluations instead
    of 5,120.

    Args:
        n_samples: Increasing; each class's samples after each stage.
        schedule: ``"nested"``: exactly so many, each stage's own taken evenly out of those that are left;
            ``"published"``: as the released code.

    Returns one int64 (sample,) a stage, indices below ``n_samples[-1]``; together each index once.
    """
    if schedule not in ("nested", "published"):
        raise ValueError(f"schedule is {schedule!r}; expected 'nested' or 'published'")
    total = n_samples[-1]
    stages: list[np.ndarray] = []
    left = np.arange(total)
    for count in n_samples:
        if schedule == "published":
            taken = np.intersect1d(np.arange(total // count // 2, total, total // count)[:count], left)
        else:
            new = count - (total - len(left))
            taken = left[((np.arange(new) + 0.5) * len(left) / new).astype(np.int64)]
        stages.append(taken)
        left = np.setdiff1d(left, taken)
    return stages


def published_timesteps(
    num_timesteps: int, num_samples: int, timestep_range: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """The released code's grid: whole steps of T // n from half a step on, so it ends early where n does not divide T.

    300 samples of 1,000 timesteps reach 898; :func:`~gcpl_lab.gcpl.classifier.spaced_timesteps` reaches 998.

    T is ``num_timesteps``, n is ``num_samples``; the released code takes all of the range, fractions of the schedule.
    A ValueError says where there are fewer timesteps than samples: the step would be 0.
    """
    low, high = (round(share * num_timesteps) for share in timestep_range)
    step = (high - low) // num_samples
    if step < 1:
        raise ValueError(
            f"n_samples ends with {num_samples}, and the range has {high - low} timesteps; the published grid has "
            f"whole steps between them, so expected at most {high - low} (schedule='nested' has no such bound)"
        )
    return low + torch.arange(step // 2, high - low, step)[:num_samples]


def check_stages(to_keep: Sequence[int], n_samples: Sequence[int]) -> None:
    """Refuse stages of different length or order."""
    if len(to_keep) != len(n_samples) or not to_keep:
        raise ValueError(
            f"to_keep has {len(to_keep)} stages and n_samples {len(n_samples)}; expected the same, at least 1"
        )
    if any(b > a for a, b in pairwise(to_keep)) or min(to_keep) < 1:
        raise ValueError(f"to_keep is {tuple(to_keep)}; expected numbers of 1 or more that do not grow")
    if any(b <= a for a, b in pairwise(n_samples)) or min(n_samples) < 1:
        raise ValueError(f"n_samples is {tuple(n_samples)}; expected growing numbers of 1 or more")
