"""The diffusion classifier on a denoiser whose answer is known."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.errors import TrainingError
from gcpl_lab.gcpl.classifier import (
    DiffusionClassifier,
    class_scores,
    fit_reading,
    fit_temperature,
    probabilities,
    published_timesteps,
    spaced_timesteps,
    stage_samples,
)

NUM_CLASSES = 6


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def known(known_diffusion: object) -> object:
    return known_diffusion()


@pytest.fixture
def clean() -> torch.Tensor:
    """The clean latent that each class's prompt stands for."""
    return randn(NUM_CLASSES, 2, 4, 4)


def classifier(known: object, clean: torch.Tensor, **settings: object) -> DiffusionClassifier:
    return DiffusionClassifier(known, clean.flatten(1)[:, None], **settings)  # type: ignore[arg-type]


LABELS = np.array([3, 0, 5, 5, 1, 2, 4])


def latents_of(clean: torch.Tensor) -> torch.Tensor:
    return clean[torch.from_numpy(LABELS)] + 0.2 * randn(len(LABELS), 2, 4, 4, seed=9)


# --------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize(("norm", "power"), [("l2", 2), ("l1", 1)])
def test_exact_errors_equal_their_closed_form(known: object, clean: torch.Tensor, norm: str, power: int) -> None:
    """Under the prompt h the error is (signal/noise)^p · mean |z0 − h|^p, for every noise."""
    latents = latents_of(clean)
    evidence = classifier(known, clean, norm=norm).exact(latents, 5)
    assert evidence.timesteps.tolist() == [100, 300, 500, 700, 900]
    products = known.scheduler.alphas_cumprod[evidence.timesteps]
    ratio = (products / (1 - products)).sqrt() ** power
    distance = (latents[:, None] - clean[None]).abs().pow(power).mean((2, 3, 4))
    expected = distance[:, :, None] * ratio
    np.testing.assert_allclose(evidence.errors, expected.numpy(), rtol=2e-3, atol=1e-5)
    assert evidence.errors.dtype == np.float32


def test_exact_is_right_and_counts_its_evaluations(known: object, clean: torch.Tensor) -> None:
    evidence = classifier(known, clean).exact(latents_of(clean), 4)
    for weighting in ("relative", "absolute"):
        assert class_scores(evidence.errors, weighting).argmax(1).tolist() == LABELS.tolist()  # type: ignore[arg-type]
    assert evidence.num_evaluations == known.num_denoiser_evaluations == len(LABELS) * NUM_CLASSES * 4
    assert evidence.errors.shape == (len(LABELS), NUM_CLASSES, 4)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 60, 10_000])
def test_the_pass_size_changes_passes_and_no_result(known: object, clean: torch.Tensor, batch_size: int) -> None:
    latents = latents_of(clean)
    expected = classifier(known, clean).exact(latents, 4).errors
    known.denoiser.num_passes = 0
    found = classifier(known, clean, batch_size=batch_size).exact(latents, 4).errors
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # 7 images · 6 classes · 4 samples: 24 for each image, whole images or a part of one in a pass
    assert known.denoiser.num_passes == {1: 168, 7: 28, 30: 7, 60: 4, 10_000: 1}[batch_size]


def test_every_class_and_image_sees_the_same_noise(
    known: object, clean: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With z0 = 0, z_t tells ε: it is the same for all classes and images, and another for every sample."""
    seen: dict[int, list[torch.Tensor]] = {}
    answer = known.predict_noise

    def spy(noisy: torch.Tensor, timesteps: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        for value, step in zip(noisy, timesteps.tolist(), strict=True):
            seen.setdefault(step, []).append(value)
        return answer(noisy, timesteps, hidden)

    monkeypatch.setattr(known, "predict_noise", spy)
    classifier(known, clean, batch_size=5).exact(torch.zeros(3, 2, 4, 4), 4)
    assert {step: len(values) for step, values in seen.items()} == {125: 18, 375: 18, 625: 18, 875: 18}
    for values in seen.values():
        assert all(torch.equal(value, values[0]) for value in values)
    assert not torch.equal(seen[625][0], seen[875][0])


def test_seeds_repeat(diffusion: object) -> None:
    hidden, latents = diffusion.encode_texts(["coat", "bag"]), randn(2, 4, 8, 8)

    def errors(seed: int) -> np.ndarray:
        return DiffusionClassifier(diffusion, hidden, seed=seed).exact(latents, 2).errors

    assert np.array_equal(errors(0), errors(0))
    assert not np.allclose(errors(0), errors(1))


def test_no_images_give_no_errors(known: object, clean: torch.Tensor) -> None:
    evidence = classifier(known, clean).exact(torch.empty(0, 2, 4, 4), 4)
    assert evidence.errors.shape == (0, NUM_CLASSES, 4)
    assert evidence.num_evaluations == 0


def test_progress_ends_with_all_images(known: object, clean: torch.Tensor) -> None:
    for run in ("exact", "staged"):
        done: list[int] = []
        chosen = classifier(known, clean, batch_size=8)
        if run == "exact":
            chosen.exact(latents_of(clean), 4, progress=done.append)
        else:
            chosen.staged(latents_of(clean), (2, 1), (2, 4), progress=done.append)
        assert done == sorted(set(done))
        assert len(done) > 1
        assert done[-1] == len(LABELS)


def test_an_answer_that_is_not_finite_stops(known: object, clean: torch.Tensor) -> None:
    clean[2, 0, 0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"the denoiser's answer is not finite at a timestep from 100 to 900"):
        classifier(known, clean).exact(latents_of(torch.zeros_like(clean)), 5)


def test_memory_that_runs_out_names_the_way_out(
    known: object, clean: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(known, "predict_noise", full)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        classifier(known, clean, batch_size=9).exact(latents_of(clean), 4)
    assert "memory ran out with 9 denoiser evaluations in one pass; lower batch_size" in raised.value.__notes__[0]


def test_an_unknown_norm_is_refused(known: object, clean: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="norm is 'l3'; expected 'l1' or 'l2'"):
        classifier(known, clean, norm="l3")


# -------------------------------------------------------------------------------------------------- staged


def test_staged_equals_exact_when_nothing_is_eliminated(diffusion: object) -> None:
    hidden, latents = diffusion.encode_texts(["coat", "bag", "shirt"]), randn(3, 4, 8, 8)
    chosen = DiffusionClassifier(diffusion, hidden, batch_size=16)
    exact, staged = chosen.exact(latents, 6), chosen.staged(latents, (3, 3), (2, 6))
    np.testing.assert_allclose(staged.errors, exact.errors, rtol=1e-5)
    assert staged.timesteps.tolist() == exact.timesteps.tolist()
    assert staged.num_evaluations == exact.num_evaluations


def test_staged_spends_what_it_states_and_keeps_the_best(known: object, clean: torch.Tensor) -> None:
    latents = latents_of(clean)
    evidence = classifier(known, clean).staged(latents, (3, 2, 1), (2, 5, 9))
    # 6 classes on 2 samples, 3 on 3 more, 2 on 4 more
    assert evidence.num_evaluations == known.num_denoiser_evaluations == len(LABELS) * (6 * 2 + 3 * 3 + 2 * 4)
    assert (~np.isnan(evidence.errors)).sum() == evidence.num_evaluations
    exact = classifier(known, clean).exact(latents, 9).errors
    spent = ~np.isnan(evidence.errors)
    np.testing.assert_allclose(evidence.errors[spent], exact[spent], rtol=1e-5)
    counts = np.sort(spent.sum(2), axis=1)
    assert (counts == [2, 2, 2, 5, 9, 9]).all()
    finalists = spent.all(2)
    for image, label in enumerate(LABELS):
        nearest = np.argsort((latents[image] - clean).square().mean((1, 2, 3)).numpy())
        assert nearest[0] == label
        assert set(np.flatnonzero(finalists[image])) == set(nearest[:2])  # the errors are multiples of the distance
    assert class_scores(evidence.errors, "absolute").argmax(1).tolist() == LABELS.tolist()


def test_staged_may_keep_more_than_there_are(known: object, clean: torch.Tensor) -> None:
    evidence = classifier(known, clean).staged(latents_of(clean), (50, 1), (2, 3))
    assert evidence.num_evaluations == len(LABELS) * NUM_CLASSES * 3


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
def test_wrong_stages_are_named(
    known: object, clean: torch.Tensor, to_keep: tuple[int, ...], n_samples: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(known, clean).staged(latents_of(clean), to_keep, n_samples)


@pytest.mark.parametrize("stages", [(4,), (5, 20), (50, 500), (3, 7, 11), (1, 2, 3), (2, 500)])
def test_stages_take_samples_evenly(stages: tuple[int, ...]) -> None:
    order = np.concatenate(stage_samples(stages))
    assert sorted(order.tolist()) == list(range(stages[-1]))
    first = np.sort(order[: stages[0]])
    spacing = stages[-1] / stages[0]
    assert np.abs(first - (np.arange(stages[0]) + 0.5) * spacing).max() <= 1
    for count in stages[1:]:
        gaps = np.diff(np.sort(order[:count]))
        assert gaps.max() <= 2 * math.ceil(stages[-1] / count)


def released_stages(n_samples: tuple[int, ...], num_timesteps: int = 1000) -> list[list[int]]:
    """Timesteps that the released code evaluates anew in each stage, by its rule on lists of timesteps."""
    most = max(n_samples)
    grid = list(range(num_timesteps // most // 2, num_timesteps, num_timesteps // most))[:most]
    seen: set[int] = set()
    stages = []
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
    stages = stage_samples(n_samples, "published")
    assert np.cumsum([len(stage) for stage in stages]).tolist() == counts
    timesteps = published_timesteps(1000, n_samples[-1])
    assert [timesteps[stage].tolist() for stage in stages] == released_stages(n_samples)
    assert np.cumsum([len(stage) for stage in stage_samples(n_samples)]).tolist() == list(n_samples)


def test_published_schedule_of_four_stages_costs_more() -> None:
    def evaluations(schedule: Any) -> int:
        stages = stage_samples((20, 50, 100, 500), schedule)
        return sum(left * len(stage) for left, stage in zip((101, 20, 10, 5), stages, strict=True))

    assert evaluations("published") == 5570
    assert evaluations("nested") == 5120


def test_the_published_grid_has_whole_steps() -> None:
    assert torch.equal(published_timesteps(1000, 500), torch.arange(1, 1000, 2))
    uneven = published_timesteps(1000, 300)
    assert (len(uneven), int(uneven[0]), int(uneven[-1])) == (300, 1, 898)
    assert int(spaced_timesteps(1000, 300)[-1]) == 998
    assert published_timesteps(1000, 4, (0.5, 0.9)).tolist() == [550, 650, 750, 850]
    with pytest.raises(ValueError, match="n_samples ends with 1500, and the range has 1000 timesteps"):
        published_timesteps(1000, 1500)
    with pytest.raises(ValueError, match="schedule is 'theirs'; expected 'nested' or 'published'"):
        stage_samples((5, 9), "theirs")  # type: ignore[arg-type]


def test_the_published_schedule_runs_and_keeps_the_best(known: object, clean: torch.Tensor) -> None:
    evidence = classifier(known, clean).staged(latents_of(clean), (3, 2, 1), (2, 5, 9), schedule="published")
    assert evidence.num_evaluations == len(LABELS) * (6 * 2 + 3 * 4 + 2 * 3)  # 5 samples less the one that was seen
    assert (~np.isnan(evidence.errors)).sum() == evidence.num_evaluations
    assert evidence.timesteps.tolist() == published_timesteps(known.num_timesteps, 9).tolist()
    assert class_scores(evidence.errors, "absolute").argmax(1).tolist() == LABELS.tolist()


# ------------------------------------------------------------------------------------ timesteps and scores


def test_timesteps_start_half_a_spacing_in() -> None:
    assert spaced_timesteps(1000, 4).tolist() == [125, 375, 625, 875]
    assert spaced_timesteps(1000, 2, (0.5, 1.0)).tolist() == [625, 875]
    assert spaced_timesteps(1000, 1).tolist() == [500]
    assert spaced_timesteps(10, 10).tolist() == list(range(10))
    published = torch.arange(1000 // 50 // 2, 1000, 1000 // 50)  # Li et al.: from T/n/2 in steps of T/n
    assert torch.equal(spaced_timesteps(1000, 50), published)


def test_scores_by_hand() -> None:
    errors = np.array([[[1.0, 10.0], [3.0, 30.0]], [[2.0, 10.0], [2.0, 30.0]]])
    np.testing.assert_allclose(class_scores(errors, "absolute"), [[-5.5, -16.5], [-6.0, -16.0]])
    np.testing.assert_allclose(class_scores(errors), [[-0.5, -1.5], [-0.75, -1.25]])


def test_relative_scores_ignore_how_hard_a_timestep_is() -> None:
    errors = np.abs(np.random.default_rng(0).normal(size=(4, 5, 6))) + 0.1
    scaled = errors * np.array([1, 10, 100, 1, 0.1, 5.0])
    np.testing.assert_allclose(class_scores(scaled), class_scores(errors))


def test_classes_that_were_dropped_never_win() -> None:
    errors = np.array([[[1.0, np.nan], [2.0, 4.0], [3.0, 2.0]]])
    scores = class_scores(errors)
    assert scores[0, 0] == -np.inf
    # first sample: mean 2, second sample: mean 3 of the two that are left
    np.testing.assert_allclose(scores[0, 1:], [-(1 + 4 / 3) / 2, -(1.5 + 2 / 3) / 2])
    assert probabilities(scores, 5.0)[0, 0] == 0.0
    assert probabilities(scores, 5.0).sum() == pytest.approx(1.0)


def test_probabilities_by_hand() -> None:
    found = probabilities(np.array([[0.0, -1.0], [5.0, 5.0]]), math.log(3))
    np.testing.assert_allclose(found, [[0.75, 0.25], [0.5, 0.5]])
    huge = probabilities(np.array([[1e5, -1e5, 0.0]]), 100.0)
    np.testing.assert_allclose(huge, [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("temperature", [0.5, 8.0, 200.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    """Labels drawn from softmax(τ·scores): the fit finds τ; 20 000 labels tell it to a few percent."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 5)) * 2 / temperature
    chances = probabilities(scores, temperature).cumsum(axis=1)
    labels = (rng.random((len(scores), 1)) > chances).sum(axis=1).clip(max=4)
    assert fit_temperature(scores, labels) == pytest.approx(temperature, rel=0.05)


# --------------------------------------------------------------------------------------- reading of the errors


def errors_with(own: tuple[float, float], spread: tuple[float, float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Errors (image, class, 2): at each of two samples the own class is better by ``own``, amid noise of ``spread``."""
    rng, labels = np.random.default_rng(seed), np.arange(60) % 3
    errors = np.array([10.0, 1.0]) + rng.normal(size=(60, 3, 2)) * np.array(spread)
    errors[np.arange(60), labels] -= np.array(own)
    return errors, labels


def test_the_weighting_with_less_held_out_loss_is_chosen() -> None:
    # Large errors without a word to say drown small ones in the plain mean, and the other way round.
    quiet, labels = errors_with(own=(0.0, 0.3), spread=(2.0, 0.1))
    assert fit_reading(quiet, labels).weighting == "relative"
    loud, labels = errors_with(own=(1.0, 0.0), spread=(0.5, 0.5))
    assert fit_reading(loud, labels).weighting == "absolute"
    assert fit_reading(loud, labels, class_offsets=False).weighting == "absolute"
    assert fit_reading(quiet, labels, weighting="absolute").weighting == "absolute"


def test_a_reading_scores_as_it_was_fitted() -> None:
    errors, labels = errors_with(own=(0.0, 0.3), spread=(0.1, 0.1))
    reading = fit_reading(errors, labels, weighting="relative")
    np.testing.assert_allclose(reading.scores(errors), class_scores(errors, "relative") + reading.offsets)
    assert reading.offsets.mean() == pytest.approx(0, abs=1e-12)
    plain = fit_reading(errors, labels, weighting="relative", class_offsets=False)
    assert not plain.offsets.any()
    assert plain.temperature == pytest.approx(fit_temperature(class_scores(errors, "relative"), labels))


def test_one_photograph_a_class_can_choose_nothing() -> None:
    errors, labels = errors_with(own=(1.0, 0.0), spread=(0.5, 0.5))
    assert fit_reading(errors[:3], labels[:3]).weighting == "relative"  # the first: no fold can be held out
