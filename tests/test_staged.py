"""The published decision in stages: which samples a stage takes, whom it keeps, and what it spends."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.gcpl.classifier import DiffusionClassifier, spaced_timesteps
from gcpl_lab.gcpl.staged import published_timesteps, stage_samples
from tests.made_up import CLEAN, LABELS, LATENTS, randn


@pytest.fixture
def known(known_diffusion: Any) -> DiffusionClassifier:
    """Its errors are multiples of an image's distance to each class's clean latent."""
    return DiffusionClassifier(known_diffusion(), CLEAN.flatten(1)[:, None])


def test_staged_equals_exact_when_nothing_is_eliminated(known: DiffusionClassifier, diffusion: Any) -> None:
    chosen = DiffusionClassifier(diffusion, diffusion.encode_texts(["coat", "bag", "shirt"]), batch_size=16)
    latents = randn(3, 4, 8, 8)
    exact, staged = chosen.exact(latents, 6), chosen.staged(latents, (3, 3), (2, 6))
    np.testing.assert_allclose(staged.errors, exact.errors, rtol=1e-5)
    assert staged.timesteps.tolist() == exact.timesteps.tolist()
    assert staged.num_evaluations == exact.num_evaluations
    assert known.staged(LATENTS, (50, 1), (2, 3)).num_evaluations == len(LABELS) * 6 * 3  # more than there are


@pytest.mark.parametrize("schedule", ["nested", "published"])
@pytest.mark.parametrize("batch_size", [8, 256])
def test_staged_spends_what_it_states_and_keeps_the_best(
    known: DiffusionClassifier, schedule: Any, batch_size: int
) -> None:
    exact, done = known.exact(LATENTS, 9).errors, list[int]()
    known.batch_size, known.diffusion.num_denoiser_evaluations = batch_size, 0
    evidence = known.staged(LATENTS, (3, 2, 1), (2, 5, 9), done.append, schedule=schedule)
    # 6 classes on 2 samples, 3 on 3 more, 2 on 4 more; of the published 5 one was seen, and 4 are new
    second, third = (3, 4) if schedule == "nested" else (4, 3)
    spent, seen = len(LABELS) * (6 * 2 + 3 * second + 2 * third), ~np.isnan(evidence.errors)
    assert evidence.num_evaluations == known.diffusion.num_denoiser_evaluations == seen.sum() == spent
    assert (np.sort(seen.sum(2), axis=1) == [2, 2, 2, 2 + second, 9, 9]).all()
    if schedule == "nested":
        np.testing.assert_allclose(evidence.errors[seen], exact[seen], rtol=1e-5)
    else:
        assert evidence.timesteps.tolist() == published_timesteps(1000, 9).tolist()
    for image, finalists in enumerate(seen.all(2)):
        nearest = np.argsort((LATENTS[image] - CLEAN).square().mean((1, 2, 3)).numpy())
        assert set(np.flatnonzero(finalists)) == set(nearest[:2])
    assert class_scores(evidence.errors, "absolute").argmax(1).tolist() == LABELS.tolist()
    assert done == {8: [2, 4, 6, 7], 256: [7]}[batch_size]


def test_of_equal_classes_the_first_are_kept(known_diffusion: Any) -> None:
    """Whatever else is equal: the answer does not depend on how a library sorts."""
    same = DiffusionClassifier(known_diffusion(), CLEAN[:1].expand(20, -1, -1, -1).flatten(1)[:, None])
    seen = ~np.isnan(same.staged(LATENTS[:2], (3, 1), (2, 4)).errors)
    assert [np.flatnonzero(image).tolist() for image in seen.all(2)] == [[0, 1, 2]] * 2


@pytest.mark.parametrize(
    ("to_keep", "n_samples", "message"),
    [
        ((5, 1), (50,), "to_keep has 2 stages and n_samples 1"),
        ((), (), "at least 1"),
        ((1, 5), (5, 50), r"to_keep is \(1, 5\)"),
        ((5, 0), (5, 50), r"to_keep is \(5, 0\)"),
        ((5, 1), (50, 50), r"n_samples is \(50, 50\)"),
        ((5, 1), (0, 50), r"n_samples is \(0, 50\)"),
    ],
)
def test_wrong_stages_are_named(known: DiffusionClassifier, to_keep: Any, n_samples: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        known.staged(LATENTS, to_keep, n_samples)


@pytest.mark.parametrize("stages", [(4,), (5, 20), (50, 500), (3, 7, 11), (1, 2, 3), (2, 500)])
def test_stages_take_samples_evenly(stages: tuple[int, ...]) -> None:
    order, spacing = np.concatenate(stage_samples(stages)), stages[-1] / stages[0]
    assert sorted(order.tolist()) == list(range(stages[-1]))
    assert np.abs(np.sort(order[: stages[0]]) - (np.arange(stages[0]) + 0.5) * spacing).max() <= 1
    for count in stages[1:]:
        assert np.diff(np.sort(order[:count])).max() <= 2 * math.ceil(stages[-1] / count)


def released_stages(n_samples: tuple[int, ...]) -> list[list[int]]:
    """Of 1,000 timesteps those that the released code evaluates anew in each stage, by its rule on lists."""
    most, seen, stages = max(n_samples), set[int](), []
    grid = list(range(1000 // most // 2, 1000, 1000 // most))[:most]
    for count in n_samples:
        wanted = grid[len(grid) // count // 2 :: len(grid) // count][:count]
        stages.append([t for t in wanted if t not in seen])
        seen |= set(wanted)
    return stages


@pytest.mark.parametrize(
    ("n_samples", "counts"),
    [((50, 500), [50, 500]), ((20, 50, 100, 500), [20, 70, 150, 500]), ((2, 5, 9), [2, 6, 9]), ((25, 300), [25, 300])],
)
def test_published_stages_are_those_of_the_released_code(n_samples: tuple[int, ...], counts: list[int]) -> None:
    stages, timesteps = stage_samples(n_samples, "published"), published_timesteps(1000, n_samples[-1])
    assert np.cumsum([len(stage) for stage in stages]).tolist() == counts
    assert [timesteps[stage].tolist() for stage in stages] == released_stages(n_samples)
    assert np.cumsum([len(stage) for stage in stage_samples(n_samples)]).tolist() == list(n_samples)


def test_the_published_grid_has_whole_steps() -> None:
    assert torch.equal(published_timesteps(1000, 500), torch.arange(1, 1000, 2))
    uneven = published_timesteps(1000, 300)
    assert (len(uneven), int(uneven[0]), int(uneven[-1]), int(spaced_timesteps(1000, 300)[-1])) == (300, 1, 898, 998)
    assert published_timesteps(1000, 4, (0.5, 0.9)).tolist() == [550, 650, 750, 850]
    with pytest.raises(ValueError, match="n_samples ends with 1500, and the range has 1000 timesteps"):
        published_timesteps(1000, 1500)
    with pytest.raises(ValueError, match="schedule is 'theirs'; expected 'nested' or 'published'"):
        stage_samples((5, 9), "theirs")  # type: ignore[arg-type]
