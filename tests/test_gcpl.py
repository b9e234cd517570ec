"""Objectives and their batches: what they show the denoiser, what they compute, and what they may move."""

from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.objectives import (
    GCPL,
    CoMPLe,
    Discriminative,
    ValidationLoss,
    comple_loss,
    denoising_loss,
    discriminative_loss,
    hardest_rivals,
    relative_errors,
)
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler, NoisyBatch
from gcpl_lab.training.loop import TrainingConfig, train

NAMES = ["coat", "ankle boot", "bag"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_exemplars(num_classes: int = 3, shots: int = 4, spread: float = -40.0) -> Exemplars:
    """Latents that tell their image (its number) and side (plus 100 when mirrored); no posterior spread."""
    count = num_classes * shots
    means = torch.arange(count, dtype=torch.float32)[None, :, None, None, None].expand(2, count, 4, 8, 8).clone()
    means[1] += 100
    return Exemplars(means, torch.full_like(means, spread), torch.arange(num_classes).repeat_interleave(shots))


def sampler(diffusion: object, **settings: object) -> ExemplarSampler:
    exemplars = settings.pop("exemplars", None) or make_exemplars()
    return ExemplarSampler(diffusion, exemplars, **({"batch_size": 6} | settings))  # type: ignore[arg-type]


def shown(diffusion: object, batch: NoisyBatch) -> tuple[np.ndarray, np.ndarray]:
    """Which image, and whether mirrored, each sample of a batch shows."""
    values = (batch.latents[:, 0, 0, 0] / diffusion.vae.config.scaling_factor).round().int().numpy()
    return values % 100, values // 100


def equal(first: NoisyBatch, second: NoisyBatch) -> bool:
    return all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in ("latents", "noise", "timesteps", "labels")
    )


# ------------------------------------------------------------------------------------------------ exemplars


def test_exemplars_are_the_pictures_and_their_mirror_images(diffusion: object) -> None:
    pixels = randn(3, 3, 32, 32).clamp(-1, 1)
    exemplars = Exemplars.encode(diffusion, pixels, [0, 1, 1])
    for view, expected in enumerate((pixels, pixels.flip(-1))):
        means, log_variances = diffusion.encode_moments(expected)
        assert torch.equal(exemplars.means[view], means)
        assert torch.equal(exemplars.log_variances[view], log_variances)
    assert exemplars.labels.tolist() == [0, 1, 1]


def test_exemplars_need_one_label_each() -> None:
    with pytest.raises(DataError, match="3 pictures and 2 labels"):
        Exemplars(torch.zeros(2, 3, 4, 8, 8), torch.zeros(2, 3, 4, 8, 8), torch.tensor([0, 1]))


# -------------------------------------------------------------------------------------------------- sampler


def test_a_batch_depends_on_seed_and_step_alone(diffusion: object) -> None:
    one, other = sampler(diffusion), sampler(diffusion)
    other(0), other(1)  # what was drawn before does not matter
    assert equal(one(5), other(5))
    assert not equal(one(5), one(6))
    assert not equal(one(5), sampler(diffusion, seed=1)(5))


def test_global_randomness_is_left_alone(diffusion: object) -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    sampler(diffusion)(0)
    assert torch.equal(torch.randn(2), expected)


def test_groups_hold_different_classes_and_classes_are_balanced(diffusion: object) -> None:
    batches = [sampler(diffusion, batch_size=9)(step) for step in range(20)]
    for batch in batches:
        assert batch.group_size == 3
        for group in batch.labels.split(3):
            assert sorted(group.tolist()) == [0, 1, 2]
    small = [sampler(diffusion, batch_size=2)(step) for step in range(200)]
    assert all(batch.group_size == 2 and len(set(batch.labels.tolist())) == 2 for batch in small)
    counts = torch.cat([batch.labels for batch in small]).bincount()
    assert counts.sum() == 400
    assert counts.min() > 100  # 133 expected, standard deviation below 10


def test_labels_belong_to_the_images_and_every_image_comes(diffusion: object) -> None:
    seen = set()
    for step in range(40):
        batch = sampler(diffusion)(step)
        images, _ = shown(diffusion, batch)
        assert (images // 4).tolist() == batch.labels.tolist()
        seen |= set(images.tolist())
    assert seen == set(range(12))


def test_half_of_the_pictures_are_mirrored_unless_told_otherwise(diffusion: object) -> None:
    def share(flip: bool) -> float:
        return float(np.mean([shown(diffusion, sampler(diffusion, flip=flip)(step))[1] for step in range(60)]))

    assert share(False) == 0.0
    assert 0.35 < share(True) < 0.65  # 360 draws, standard deviation 0.026


def test_the_noise_of_a_place_does_not_depend_on_the_batch_size(diffusion: object) -> None:
    small, large = sampler(diffusion, batch_size=3)(7), sampler(diffusion, batch_size=12)(7)
    assert torch.equal(small.noise, large.noise[:3])
    flat = large.noise.flatten(1)
    assert float((flat @ flat.T / flat.shape[1]).fill_diagonal_(0).abs().max()) < 0.3  # independent of each other


def test_noise_is_normal_and_the_posterior_is_sampled(diffusion: object) -> None:
    exemplars = make_exemplars(spread=2 * np.log(0.5))  # standard deviation 0.5
    batches = [sampler(diffusion, exemplars=exemplars, batch_size=12)(step) for step in range(10)]
    noise = torch.stack([batch.noise for batch in batches])
    assert abs(float(noise.mean())) < 0.03  # 30720 values: standard error 0.006
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)
    factor = diffusion.vae.config.scaling_factor
    rest = torch.cat([batch.latents / factor for batch in batches])
    rest = rest - rest.mean((1, 2, 3), keepdim=True)
    assert float(rest.std()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 1.0), (0.25, 0.75), (0.999, 1.0)])
def test_timesteps_stay_in_their_range(diffusion: object, low: float, high: float) -> None:
    chosen = sampler(diffusion, batch_size=60, timestep_range=(low, high))
    steps = torch.cat([chosen(step).timesteps for step in range(8)])
    assert int(steps.min()) >= int(low * 1000)
    assert int(steps.max()) < int(high * 1000)
    width = (high - low) * 1000
    assert float(steps.float().mean()) == pytest.approx(1000 * (low + high) / 2, abs=max(1.0, 0.1 * width))


def test_several_samples_show_one_photograph(diffusion: object) -> None:
    batch = sampler(diffusion, batch_size=4, num_samples=3)(0)
    images, sides = shown(diffusion, batch)
    assert (images.reshape(4, 3) == images.reshape(4, 3)[:, :1]).all()
    assert (sides.reshape(4, 3) == sides.reshape(4, 3)[:, :1]).all()
    assert batch.num_samples == 3
    assert len(batch.timesteps.unique()) > 4
    assert not torch.equal(batch.noise[0], batch.noise[1])


def test_steps_go_through_the_templates_in_turn(diffusion: object) -> None:
    chosen = sampler(diffusion, num_templates=3)
    assert [chosen(step).template for step in range(5)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    "settings", [{"timestep_range": (0.5, 0.5)}, {"timestep_range": (0.0, 1.5)}, {"batch_size": 0}, {"num_samples": 0}]
)
def test_wrong_sampler_settings_are_named(diffusion: object, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        sampler(diffusion, **settings)


# ----------------------------------------------------------------------------------------------- objectives


@pytest.fixture
def batch(diffusion: object) -> NoisyBatch:
    exemplars = Exemplars(randn(2, 12, 4, 8, 8), torch.full((2, 12, 4, 8, 8), -6.0), make_exemplars().labels)
    return ExemplarSampler(diffusion, exemplars, batch_size=6)(0)


@pytest.fixture
def prompts(diffusion: object) -> ClassPrompts:
    return ClassPrompts(diffusion, NAMES, num_vectors=2)


def predictions(diffusion: object, prompts: ClassPrompts, batch: NoisyBatch, labels: torch.Tensor) -> torch.Tensor:
    """The denoiser's answers with every sample's prompt encoded on its own."""
    with torch.no_grad():
        hidden = torch.cat([diffusion.encode_prompts(*prompts(label[None])) for label in labels])
        noisy = diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        return diffusion.predict_noise(noisy, batch.timesteps, hidden)


def test_gcpl_is_the_denoising_loss_under_the_own_prompt(
    diffusion: object, prompts: ClassPrompts, batch: NoisyBatch
) -> None:
    expected = denoising_loss(predictions(diffusion, prompts, batch, batch.labels), batch.noise)
    values = GCPL(diffusion, prompts)(batch)
    torch.testing.assert_close(values["loss"].detach(), expected, atol=1e-5, rtol=1e-5)
    other = denoising_loss(predictions(diffusion, prompts, batch, (batch.labels + 1) % 3), batch.noise)
    assert abs(float(other - expected)) > 1e-5  # the prompt matters, so the test above means something


def test_comple_contrasts_inside_groups_of_different_classes(
    diffusion: object, prompts: ClassPrompts, batch: NoisyBatch
) -> None:
    predicted = predictions(diffusion, prompts, batch, batch.labels)
    values = CoMPLe(diffusion, prompts, contrast_weight=0.3)(batch)
    groups = [comple_loss(predicted[part], batch.noise[part], 0.3) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(values["loss"].detach(), torch.stack(groups).mean(), atol=1e-5, rtol=1e-5)
    rest = values["own"] - 0.3 * values["contrast"]
    torch.testing.assert_close(rest, values["loss"].detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values["prediction_norm"], predicted.square().mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values["expected_contrast"], 1 + values["prediction_norm"])
    assert not any(value.requires_grad for name, value in values.items() if name != "loss")


def test_a_sample_left_over_counts_with_its_own_term_alone(diffusion: object, prompts: ClassPrompts) -> None:
    """Groups of 3, 3 and 1: the last one has no rival, but its photograph is learned from as the others are."""
    exemplars = Exemplars(randn(2, 12, 4, 8, 8), torch.full((2, 12, 4, 8, 8), -6.0), make_exemplars().labels)
    batch = ExemplarSampler(diffusion, exemplars, batch_size=7)(0)
    predicted = predictions(diffusion, prompts, batch, batch.labels)
    values = CoMPLe(diffusion, prompts, contrast_weight=0.3)(batch)
    own = (predicted - batch.noise).square().mean((1, 2, 3))
    groups = [comple_loss(predicted[part], batch.noise[part], 0.3) for part in (slice(0, 3), slice(3, 6))]
    expected = (3 * groups[0] + 3 * groups[1] + own[6]) / 7
    torch.testing.assert_close(values["loss"].detach(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values["own"], own.mean(), atol=1e-5, rtol=1e-5)
    rest = values["own"] - 0.3 * values["contrast"]
    torch.testing.assert_close(rest, values["loss"].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gcpl", "comple", "discriminative"])
def test_parts_of_a_batch_average_to_the_whole(diffusion: object, prompts: ClassPrompts, name: str) -> None:
    """What processes and passes rely on: every scalar is the mean over samples, cut between units."""
    exemplars = Exemplars(randn(2, 12, 4, 8, 8), torch.full((2, 12, 4, 8, 8), -6.0), make_exemplars().labels)
    objective = OBJECTIVES[name](diffusion, prompts)
    draws = ExemplarSampler(diffusion, exemplars, batch_size=4, num_samples=1 + (name == "discriminative"))
    batch = draws(2)
    unit = objective.unit(batch)
    assert unit == {"gcpl": 1, "comple": 3, "discriminative": 2}[name]
    parts = [batch[:unit], batch[unit:]]
    assert [len(part) for part in parts] == {"gcpl": [1, 3], "comple": [3, 1], "discriminative": [2, 6]}[name]
    whole, found = objective(batch), [objective(part) for part in parts]
    for key in whole:
        mean = sum(values[key].detach() * len(part) / len(batch) for values, part in zip(found, parts, strict=True))
        torch.testing.assert_close(mean, whole[key].detach(), atol=1e-5, rtol=1e-5)


def test_only_the_classes_of_a_batch_are_encoded(diffusion: object, prompts: ClassPrompts, batch: NoisyBatch) -> None:
    sizes: list[int] = []
    norm = diffusion.text_encoder.final_layer_norm
    hook = norm.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    objective = GCPL(diffusion, prompts)
    objective(batch[:1]), objective(batch)
    hook.remove()
    assert sizes == [1, 1, 3]  # the beginning, once for both batches, and the classes of each


def test_comple_costs_no_more_evaluations_than_gcpl(
    diffusion: object, prompts: ClassPrompts, batch: NoisyBatch
) -> None:
    spent = []
    for objective in (GCPL(diffusion, prompts), CoMPLe(diffusion, prompts)):
        before = diffusion.num_denoiser_evaluations
        objective(batch)
        spent.append(diffusion.num_denoiser_evaluations - before)
    assert spent == [6, 6]


def test_comple_without_weight_is_gcpl(diffusion: object, prompts: ClassPrompts, batch: NoisyBatch) -> None:
    torch.testing.assert_close(CoMPLe(diffusion, prompts, 0.0)(batch)["loss"], GCPL(diffusion, prompts)(batch)["loss"])


def test_comple_needs_two_samples(diffusion: object, prompts: ClassPrompts) -> None:
    with pytest.raises(ValueError, match="raise batch_size above 1"):
        CoMPLe(diffusion, prompts)(sampler(diffusion, batch_size=1)(0))


@pytest.mark.parametrize("rivals", [None, [[1], [2], [0]]])
def test_discriminative_is_the_loss_of_the_candidates_errors(
    diffusion: object, prompts: ClassPrompts, rivals: list[list[int]] | None
) -> None:
    exemplars = Exemplars(randn(2, 12, 4, 8, 8), torch.full((2, 12, 4, 8, 8), -6.0), make_exemplars().labels)
    batch = ExemplarSampler(diffusion, exemplars, batch_size=3, num_samples=2)(0)
    given = None if rivals is None else torch.tensor(rivals)
    candidates = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 0, 1]] if rivals is None else [[0, 1], [1, 2], [2, 0]])
    objective = Discriminative(diffusion, prompts, temperature=20.0, gcpl_share=0.5, rivals=given)
    assert objective.candidates.tolist() == candidates.tolist()
    before = diffusion.num_denoiser_evaluations
    values = objective(batch)
    assert diffusion.num_denoiser_evaluations - before == 6 * candidates.shape[1]
    columns = []
    for place in range(candidates.shape[1]):
        predicted = predictions(diffusion, prompts, batch, candidates[batch.labels][:, place])
        columns.append((predicted - batch.noise).square().mean((1, 2, 3)))
    errors = torch.stack(columns, 1).reshape(3, 2, -1)
    cross_entropy = discriminative_loss(errors, torch.zeros(3, dtype=torch.int64), 20.0)
    own = relative_errors(errors)[..., 0].mean()
    torch.testing.assert_close(values["cross_entropy"], cross_entropy, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(values["own"], own, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values["loss"].detach(), values["cross_entropy"] + 0.5 * values["own"])
    right = (relative_errors(errors).mean(1).argmin(1) == 0).float().mean()
    assert float(values["accuracy"]) == pytest.approx(float(right))


def test_discriminative_needs_two_classes(diffusion: object) -> None:
    with pytest.raises(DataError, match="at least two classes"):
        Discriminative(diffusion, ClassPrompts(diffusion, ["coat"]))


def test_hardest_rivals_by_hand() -> None:
    # Two images of class 0, one of each other; two timesteps. Class 0's nearest is 2, then 3; class 3 fits nobody.
    near = np.array(
        [[1.0, 4.0, 2.0, 3.0], [1.0, 4.0, 2.0, 3.0], [2.0, 1.0, 3.0, 4.0], [3.0, 2.0, 1.0, 4.0], [9.0, 9.0, 8.0, 1.0]]
    )
    errors = np.stack([near, 100 * near], axis=2)  # the second timestep is harder for all classes alike
    labels = np.array([0, 0, 1, 2, 3])
    assert hardest_rivals(errors, labels, 2).tolist() == [[2, 3], [0, 2], [1, 0], [2, 0]]
    assert hardest_rivals(errors, labels, 9).shape == (4, 3)


def test_hardest_rivals_count_every_timestep_alike() -> None:
    errors = np.array([[[1.0, 100.0], [2.0, 130.0], [1.2, 180.0]]])  # sums favour class 1, relative errors class 2
    errors = np.concatenate([errors] * 3)
    relative = (errors / errors.mean(1, keepdims=True)).mean(2)[0]
    assert relative[2] < relative[1]
    assert errors.sum(2)[0, 1] < errors.sum(2)[0, 2]
    assert hardest_rivals(errors, np.array([0, 1, 2]), 1)[0].tolist() == [2]


def test_the_validation_loss_is_fixed_and_follows_the_prompts(diffusion: object, prompts: ClassPrompts) -> None:
    exemplars = Exemplars(randn(2, 4, 4, 8, 8), torch.zeros(2, 4, 4, 8, 8), torch.tensor([0, 1, 2, 1]))
    loss, again = (ValidationLoss(diffusion, prompts, exemplars, num_samples=2, seed=3) for _ in range(2))
    first = loss()
    assert first == loss() == again()
    bounded = ValidationLoss(diffusion, prompts, exemplars, num_samples=2, seed=3, batch_size=3)()
    assert bounded == pytest.approx(first, rel=1e-5)
    with torch.no_grad():
        prompts.vectors.mul_(3)
    assert loss() != first


def test_the_validation_loss_equals_its_definition(known_diffusion: object) -> None:
    """Under a prompt that names the clean latent h the error is ᾱ/(1 − ᾱ) · mean((z0 − h)²), for every noise."""
    model = known_diffusion()
    clean, means = randn(2, 2, 4, 4), randn(1, 3, 2, 4, 4, seed=1)
    labels = torch.tensor([1, 0, 1])
    model.encode_prompts = lambda hidden: hidden
    exemplars = Exemplars(means, torch.zeros_like(means), labels)
    found = ValidationLoss(model, lambda: (clean.flatten(1)[:, None],), exemplars, num_samples=2)()  # type: ignore[arg-type]
    products = model.scheduler.alphas_cumprod[torch.tensor([250, 750])]
    distances = (2.0 * means[0] - clean[labels]).square().mean((1, 2, 3))  # 2.0: the stand-in's scaling factor
    assert found == pytest.approx(float(distances.mean() * (products / (1 - products)).mean()), rel=1e-3)


OBJECTIVES = {"gcpl": GCPL, "comple": CoMPLe, "discriminative": Discriminative}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_class_tokens_learn(diffusion: object, prompts: ClassPrompts, name: str) -> None:
    """Gradients reach the vectors of the classes in the batch; the frozen weights keep every bit."""
    exemplars = Exemplars(randn(2, 12, 4, 8, 8), torch.full((2, 12, 4, 8, 8), -6.0), make_exemplars().labels)
    before, start = diffusion.checksum(), prompts.vectors.detach().clone()
    objective = OBJECTIVES[name](diffusion, prompts)
    assert [parameter is prompts.vectors for parameter in objective.trainable_parameters()] == [True]
    draws = ExemplarSampler(diffusion, exemplars, batch_size=3, num_samples=1 + (name == "discriminative"))
    objective(draws(0))["loss"].backward()
    assert prompts.vectors.grad is not None
    assert prompts.vectors.grad.dtype == torch.float32
    assert float(prompts.vectors.grad.flatten(1).norm(dim=1).min()) > 0
    parts = (diffusion.vae, diffusion.denoiser, diffusion.text_encoder)
    assert all(parameter.grad is None for part in parts for parameter in part.parameters())
    list(train(objective, draws, TrainingConfig(num_steps=2, learning_rate=0.01)))
    assert diffusion.checksum() == before
    assert not torch.equal(prompts.vectors.detach(), start)


def test_a_class_that_is_not_in_the_batch_does_not_move(diffusion: object, prompts: ClassPrompts) -> None:
    exemplars = Exemplars(randn(2, 4, 4, 8, 8), torch.full((2, 4, 4, 8, 8), -6.0), torch.tensor([0, 0, 2, 2]))
    GCPL(diffusion, prompts)(ExemplarSampler(diffusion, exemplars, batch_size=4)(0))["loss"].backward()
    norms = prompts.vectors.grad.flatten(1).norm(dim=1)  # type: ignore[union-attr]
    assert (norms > 0).tolist() == [True, False, True]


def test_training_lowers_the_loss_it_is_given(diffusion: object, prompts: ClassPrompts, batch: NoisyBatch) -> None:
    records = list(train(GCPL(diffusion, prompts), lambda step: batch, TrainingConfig(8, 0.05, schedule="constant")))
    losses = [record.loss for record in records]
    assert losses[-1] < losses[0]


def test_templates_reach_the_loss(diffusion: object, batch: NoisyBatch) -> None:
    prompts = ClassPrompts(diffusion, NAMES, num_vectors=2, templates=["a photo of a {}", "{} on a black background"])
    second = NoisyBatch(batch.latents, batch.noise, batch.timesteps, batch.labels, template=1)
    losses = [GCPL(diffusion, prompts)(shown)["loss"].detach() for shown in (batch, second)]
    assert float(losses[0]) != float(losses[1])


# ------------------------------------------------------------------------------------------------ shortcuts


@pytest.mark.parametrize("kind", [GCPL, CoMPLe, Discriminative])
def test_every_shortcut_can_be_turned_off(kind: type, diffusion: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With GCPL_LAB_KERNELS=library the text encoder runs whole and no keys are kept; loss and gradient are equal."""
    batch, found = sampler(diffusion)(0), []
    pairs = len(batch.labels) * (len(NAMES) if kind is Discriminative else 1)
    asked_for = next(layer for name, layer in diffusion.denoiser.named_modules() if name.endswith("attn2.to_k"))
    rows: list[int] = []
    handle = asked_for.register_forward_pre_hook(lambda _layer, inputs: rows.append(len(inputs[0])))
    try:
        for kernels, tower in (("own", "TemplateTower"), ("library", "NoneType")):
            monkeypatch.setenv("GCPL_LAB_KERNELS", kernels)
            prompts = ClassPrompts(diffusion, NAMES, num_vectors=2)
            objective = kind(diffusion, prompts)
            loss = objective(batch)["loss"]
            loss.backward()
            found.append((loss.detach(), prompts.vectors.grad))
            assert [type(kept).__name__ for kept in objective._encode._towers.values()] == [tower]
    finally:
        handle.remove()
    assert rows == [len(NAMES), pairs, pairs]  # once a class, then answered from these; then for every pair
    for own, library in zip(*found, strict=True):
        torch.testing.assert_close(own, library, atol=1e-5, rtol=1e-4)
