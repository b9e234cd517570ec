"""The diffusion classifier, and the published one in stages, on a denoiser whose answer is known."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.errors import TrainingError
from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.gcpl.classifier import DiffusionClassifier, spaced_timesteps
from gcpl_lab.gcpl.evidence import evidence_map
from gcpl_lab.gcpl.staged import published_timesteps, stage_samples
from tests.made_up import CLEAN, LABELS, LATENTS, randn

NUM_CLASSES = len(CLEAN)


@pytest.fixture
def known(known_diffusion: Any) -> Any:
    return known_diffusion()


def classifier(known: Any, clean: torch.Tensor = CLEAN, **settings: Any) -> DiffusionClassifier:
    return DiffusionClassifier(known, clean.flatten(1)[:, None], **settings)


@pytest.mark.parametrize(("norm", "power"), [("l2", 2), ("l1", 1)])
def test_exact_errors_equal_their_closed_form(known: Any, norm: str, power: int) -> None:
    """Under the prompt h the error is (signal/noise)^p · mean |z0 − h|^p, for every noise."""
    evidence = classifier(known, norm=norm).exact(LATENTS, 5)
    assert evidence.timesteps.tolist() == [100, 300, 500, 700, 900]
    products = known.scheduler.alphas_cumprod[evidence.timesteps]
    distance = (LATENTS[:, None] - CLEAN[None]).abs().pow(power).mean((2, 3, 4))
    expected = distance[:, :, None] * (products / (1 - products)).sqrt() ** power
    np.testing.assert_allclose(evidence.errors, expected.numpy(), rtol=2e-3, atol=1e-5)
    assert evidence.errors.dtype == np.float32
    assert evidence.num_evaluations == known.num_denoiser_evaluations == len(LABELS) * NUM_CLASSES * 5
    assert class_scores(evidence.errors, "relative").argmax(1).tolist() == LABELS.tolist()
    assert class_scores(evidence.errors, "absolute").argmax(1).tolist() == LABELS.tolist()


def test_a_map_shows_where_two_prompts_differ(known: Any) -> None:
    """By place: the mean over timesteps of the ratio, times the difference of the squared distances."""
    products = known.scheduler.alphas_cumprod[spaced_timesteps(1000, 4)]
    under_a, under_b = ((LATENTS[0] - CLEAN[label]).square().mean(0) for label in (3, 1))
    expected = (products / (1 - products)).mean() * (under_b - under_a)
    torch.testing.assert_close(evidence_map(classifier(known), LATENTS[0], 3, 1, 4), expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 60, 10_000])
def test_the_pass_size_changes_passes_and_no_result(known: Any, batch_size: int) -> None:
    expected = classifier(known).exact(LATENTS, 4).errors
    known.denoiser.num_passes = 0
    found = classifier(known, batch_size=batch_size).exact(LATENTS, 4).errors
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # 7 images · 6 classes · 4 samples: 24 for each image, whole images or a part of one in a pass
    assert known.denoiser.num_passes == {1: 168, 7: 28, 30: 7, 60: 4, 10_000: 1}[batch_size]


def test_errors_are_answered_in_the_order_of_the_question(known: Any) -> None:
    chosen = classifier(known, batch_size=10)
    table = torch.from_numpy(chosen.exact(LATENTS, 4).errors)
    triples = torch.nonzero(torch.ones_like(table))[torch.randperm(168, generator=torch.Generator().manual_seed(0))]
    found = chosen.errors(triples, LATENTS, *chosen.samples(4))
    torch.testing.assert_close(found, table[tuple(triples.T)], rtol=1e-5, atol=0)
    nothing = chosen.exact(LATENTS[:0], 4)
    assert (nothing.errors.shape, nothing.num_evaluations) == ((0, NUM_CLASSES, 4), 0)


def test_every_class_and_image_sees_the_same_noise(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With z0 = 0, z_t tells ε: it is the same for all images and classes, and another for every sample."""
    seen: dict[int, list[torch.Tensor]] = {}
    pairs: list[tuple[int, int]] = []
    answer = known.predict_noise

    def spy(noisy: Any, timesteps: Any, hidden: Any, prompts: Any) -> torch.Tensor:
        for value, step in zip(noisy, timesteps.tolist(), strict=True):
            seen.setdefault(step, []).append(value)
        pairs.extend(zip(timesteps.tolist(), prompts.tolist(), strict=True))
        return answer(noisy, timesteps, hidden, prompts=prompts)

    monkeypatch.setattr(known, "predict_noise", spy)
    classifier(known, batch_size=5).exact(torch.zeros(3, 2, 4, 4), 4)
    assert sorted(pairs) == sorted(3 * [(step, label) for step in (125, 375, 625, 875) for label in range(NUM_CLASSES)])
    assert all(torch.equal(value, values[0]) for values in seen.values() for value in values)
    assert not torch.equal(seen[625][0], seen[875][0])


def test_seeds_repeat(diffusion: Any) -> None:
    hidden, latents = diffusion.encode_texts(["coat", "bag"]), randn(2, 4, 8, 8)
    first, again, other = (DiffusionClassifier(diffusion, hidden, seed=s).exact(latents, 2).errors for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_what_cannot_be_judged_is_named(known: Any) -> None:
    clean = CLEAN.clone()
    clean[2, 0, 0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"the denoiser's answer is not finite at a timestep from 100 to 900"):
        classifier(known, clean).exact(LATENTS, 5)
    with pytest.raises(ValueError, match="norm is 'l3'; expected 'l1' or 'l2'"):
        classifier(known, norm="l3")


def test_timesteps_start_half_a_spacing_in() -> None:
    assert spaced_timesteps(1000, 4).tolist() == [125, 375, 625, 875]
    assert spaced_timesteps(1000, 2, (0.5, 1.0)).tolist() == [625, 875]
    assert spaced_timesteps(1000, 1).tolist() == [500]
    assert spaced_timesteps(10, 10).tolist() == list(range(10))
    published = torch.arange(1000 // 50 // 2, 1000, 1000 // 50)  # Li et al.: from T/n/2 in steps of T/n
    assert torch.equal(spaced_timesteps(1000, 50), published)


# -------------------------------------------------------------------------- the published decision in stages


def test_staged_equals_exact_when_nothing_is_eliminated(known: Any, diffusion: Any) -> None:
    chosen = DiffusionClassifier(diffusion, diffusion.encode_texts(["coat", "bag", "shirt"]), batch_size=16)
    latents = randn(3, 4, 8, 8)
    exact, staged = chosen.exact(latents, 6), chosen.staged(latents, (3, 3), (2, 6))
    np.testing.assert_allclose(staged.errors, exact.errors, rtol=1e-5)
    assert staged.timesteps.tolist() == exact.timesteps.tolist()
    assert staged.num_evaluations == exact.num_evaluations
    assert (
        classifier(known).staged(LATENTS, (50, 1), (2, 3)).num_evaluations == len(LABELS) * 6 * 3
    )  # more than there are


@pytest.mark.parametrize("schedule", ["nested", "published"])
@pytest.mark.parametrize("batch_size", [8, 256])
def test_staged_spends_what_it_states_and_keeps_the_best(known: Any, schedule: Any, batch_size: int) -> None:
    exact = classifier(known).exact(LATENTS, 9).errors
    known.num_denoiser_evaluations = 0
    chosen = classifier(known, batch_size=batch_size)
    evidence = chosen.staged(LATENTS, (3, 2, 1), (2, 5, 9), schedule=schedule)
    # 6 classes on 2 samples, 3 on 3 more, 2 on 4 more; of the published 5 one was seen, and 4 are new
    second, third = (3, 4) if schedule == "nested" else (4, 3)
    spent, seen = len(LABELS) * (6 * 2 + 3 * second + 2 * third), ~np.isnan(evidence.errors)
    assert evidence.num_evaluations == known.num_denoiser_evaluations == seen.sum() == spent
    assert (np.sort(seen.sum(2), axis=1) == [2, 2, 2, 2 + second, 9, 9]).all()
    if schedule == "nested":
        np.testing.assert_allclose(evidence.errors[seen], exact[seen], rtol=1e-5)
    else:
        assert evidence.timesteps.tolist() == published_timesteps(1000, 9).tolist()
    for image, finalists in enumerate(seen.all(2)):
        nearest = np.argsort((LATENTS[image] - CLEAN).square().mean((1, 2, 3)).numpy())
        assert set(np.flatnonzero(finalists)) == set(nearest[:2])
    assert class_scores(evidence.errors, "absolute").argmax(1).tolist() == LABELS.tolist()


def test_of_equal_classes_the_first_are_kept(known: Any) -> None:
    """Whatever else is equal: the answer does not depend on how a library sorts."""
    same = classifier(known, CLEAN[:1].expand(20, -1, -1, -1))
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
def test_wrong_stages_are_named(known: Any, to_keep: Any, n_samples: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(known).staged(LATENTS, to_keep, n_samples)


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
