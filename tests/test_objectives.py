"""Losses against hand-worked values and closed forms; objectives: what they compute, and what they may move."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.discriminative import Discriminative, discriminative_loss, hardest_rivals, relative_errors
from gcpl_lab.gcpl.objectives import (
    GCPL,
    OBJECTIVES,
    CoMPLe,
    comple_loss,
    denoising_loss,
    expected_contrast,
    pairwise_noise_distances,
)
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler, NoisyBatch
from gcpl_lab.training.loop import TrainingConfig, train
from tests.made_up import randn

CLASS_NAMES = ["coat", "ankle boot", "bag"]


def samples(*rows: list[float]) -> Tensor:
    """(batch, 1, 1, element)."""
    return torch.tensor(rows)[:, None, None, :]


def test_denoising_loss_by_hand_whatever_the_size_of_the_image() -> None:
    predicted, noise = samples([0.0, 2.0], [1.0, 3.0]), samples([1.0, 0.0], [1.0, 0.0])
    # (0-1)² + (2-0)² + (1-1)² + (3-0)² = 1 + 4 + 0 + 9, over four elements
    assert float(denoising_loss(predicted, noise)) == 3.5
    assert float(denoising_loss(predicted.repeat(1, 1, 2, 2), noise.repeat(1, 1, 2, 2))) == 3.5
    for loss in (denoising_loss(predicted.bfloat16(), noise.bfloat16()), comple_loss(predicted.bfloat16(), noise, 0.1)):
        assert loss.dtype == torch.float32


def test_comple_by_hand_whatever_the_order_of_the_batch() -> None:
    predicted, noise = samples([1.0, 0.0], [0.0, 0.0]), samples([1.0, 2.0], [0.0, 4.0])
    # own: ‖(0, 2)‖²/2 = 2 and ‖(0, 4)‖²/2 = 8, mean 5
    # others: ε_1 to prediction 2: (1 + 4)/2 = 2.5; ε_2 to prediction 1: (1 + 16)/2 = 8.5; mean 5.5
    assert pairwise_noise_distances(predicted, noise).tolist() == [[2.0, 2.5], [8.5, 8.0]]
    assert float(comple_loss(predicted, noise, 0.1)) == pytest.approx(5 - 0.1 * 5.5)
    assert float(comple_loss(predicted.flip(0), noise.flip(0), 0.1)) == pytest.approx(5 - 0.1 * 5.5)
    assert float(comple_loss(predicted, noise, 0.0)) == pytest.approx(float(denoising_loss(predicted, noise)))


def test_expected_contrast_is_the_contrast_on_random_noise() -> None:
    """Monte Carlo: 400 draws of 12 distances; the mean lies within four standard errors of the closed form."""
    predicted = 0.5 * randn(4, 2, 4, 4) + 0.3
    noises = [randn(4, 2, 4, 4, seed=seed + 1) for seed in range(400)]
    found = torch.stack([denoising_loss(predicted, noise) - comple_loss(predicted, noise, 1.0) for noise in noises])
    error = float(found.std() / math.sqrt(len(found)))
    assert error < 0.01
    assert abs(float(found.mean() - expected_contrast(predicted))) < 4 * error


def test_the_contrast_only_scales_the_answer() -> None:
    """Free predictions: the minimiser of CoMPLe is GCPL's (ε_j itself) divided by 1 − λ.

    With noises whose sum is exactly zero, the mean of the others' is −ε_j / (B − 1) instead of its expectation 0,
    so the closed form has no sampling error.
    """
    batch, weight, noise = 4, 0.2, randn(4, 1, 2, 2)
    noise = noise - noise.mean(0)
    predicted = torch.zeros_like(noise, requires_grad=True)
    optimizer = torch.optim.SGD([predicted], lr=4.0)
    for _ in range(60):
        optimizer.zero_grad()
        comple_loss(predicted, noise, weight).backward()
        optimizer.step()
    # d/dp_j: (p_j − ε_j) − λ (p_j − mean_{i≠j} ε_i) = 0, mean_{i≠j} ε_i = −ε_j / (B − 1)
    torch.testing.assert_close(predicted.detach(), noise * (1 + weight / (batch - 1)) / (1 - weight))


def test_discriminative_by_hand() -> None:
    # One image, two samples, two classes. Sample 1: errors 1 and 3, mean 2, relative 0.5 and 1.5.
    # Sample 2: errors 4 and 4, relative 1 and 1. Mean relative 0.75 and 1.25; with τ = 2 logits −1.5 and −2.5.
    errors, expected = torch.tensor([[[1.0, 3.0], [4.0, 4.0]]]), math.log(1 + math.exp(-1.0))
    assert float(discriminative_loss(errors, torch.tensor([0]), 2.0)) == pytest.approx(expected)
    assert float(discriminative_loss(errors, torch.tensor([1]), 2.0)) == pytest.approx(expected + 1.0)
    # Averaged before the softmax, samples that contradict each other say nothing: the loss is that of a coin.
    coin = discriminative_loss(torch.tensor([[[1.0, 3.0], [3.0, 1.0]]]), torch.tensor([0]), 50.0)
    assert float(coin) == pytest.approx(math.log(2))


def test_discriminative_invariances() -> None:
    """Neither how hard a sample is nor the order of samples counts; the order of classes is followed."""
    errors, targets = randn(3, 4, 5).square() + 0.1, torch.tensor([0, 4, 2])
    loss, harder = discriminative_loss(errors, targets, 7.0), errors.clone()
    harder[1, 2] *= 1000
    for changed, own in ((harder, targets), (errors.flip(1), targets), (errors.flip(2), 4 - targets)):
        torch.testing.assert_close(discriminative_loss(changed, own, 7.0), loss)


def test_relative_errors_hold_the_mean_constant_in_the_gradient() -> None:
    errors = torch.tensor([[[1.0, 3.0]]], requires_grad=True)
    relative = relative_errors(errors)
    assert relative.tolist() == [[[0.5, 1.5]]]
    relative.sum().backward()  # were the mean not held, the sum would be constant and the gradient zero
    assert errors.grad.tolist() == [[[0.5, 0.5]]]  # type: ignore[union-attr]
    assert relative_errors(torch.zeros(1, 1, 3)).tolist() == [[[0.0, 0.0, 0.0]]]


def test_hardest_rivals_by_hand() -> None:
    # Two images of class 0, one of each other; two timesteps. Class 0's nearest is 2, then 3; class 3 fits nobody.
    rows = [[1.0, 4.0, 2.0, 3.0]] * 2 + [[2.0, 1.0, 3.0, 4.0], [3.0, 2.0, 1.0, 4.0], [9.0, 9.0, 8.0, 1.0]]
    errors, labels = np.stack([rows, 100 * np.array(rows)], axis=2), np.array([0, 0, 1, 2, 3])
    assert hardest_rivals(errors, labels, 2).tolist() == [[2, 3], [0, 2], [1, 0], [2, 0]]
    assert hardest_rivals(errors, labels, 9).shape == (4, 3)
    # Sums favour class 1 (132 against 181.2); relative errors class 2: 0.86 + 1.32 against 1.43 + 0.95.
    errors = np.array([[[1.0, 100.0], [2.0, 130.0], [1.2, 180.0]]] * 3)
    assert hardest_rivals(errors, np.array([0, 1, 2]), 1)[0].tolist() == [2]


OTHER_SHAPES = r"predicted has shape \(2, 1, 2, 2\) and noise \(2, 1, 2, 3\); expected equal"


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        (denoising_loss, (randn(2, 1, 2, 2), randn(2, 1, 2, 3)), OTHER_SHAPES),
        (pairwise_noise_distances, (randn(2, 1, 2, 2), randn(2, 1, 2, 3)), OTHER_SHAPES),
        (comple_loss, (randn(2, 1, 2, 2), randn(2, 1, 2, 3), 0.1), OTHER_SHAPES),
        (comple_loss, (randn(2, 1, 1, 1), randn(2, 1, 1, 1), -0.1), "contrast_weight is -0.1"),
        (comple_loss, (randn(1, 1, 1, 1), randn(1, 1, 1, 1), 0.1), "at least two samples in a batch, got 1"),
        (discriminative_loss, (randn(2, 3), torch.arange(2), 1.0), r"\(2, 3\) .*; expected \(batch, sample, class\)"),
        (discriminative_loss, (randn(2, 1, 3), torch.arange(1), 1.0), r"targets \(1,\); expected .* one an image"),
        (discriminative_loss, (randn(2, 1, 3), torch.arange(2), 0.0), "temperature is 0.0"),
    ],
)
def test_losses_name_what_is_wrong(loss: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(*arguments)


@pytest.fixture
def prompts(diffusion: Any) -> ClassPrompts:
    return ClassPrompts(diffusion, CLASS_NAMES, num_vectors=2, templates=["a photo of a {}", "{} on black"])


def draws(diffusion: Any, labels: Tensor | None = None, **settings: Any) -> ExemplarSampler:
    """Of four exemplars a class, six samples a batch."""
    labels = torch.arange(3).repeat_interleave(4) if labels is None else labels
    shape = (2, len(labels), 4, 8, 8)
    features = torch.nn.functional.normalize(randn(2, len(labels), 128, seed=3), dim=-1)
    exemplars = Exemplars(randn(*shape), torch.full(shape, -6.0), labels, features=features)
    return ExemplarSampler(diffusion, exemplars, **({"batch_size": 6} | settings))


def predictions(diffusion: Any, prompts: ClassPrompts, batch: NoisyBatch, labels: Tensor) -> Tensor:
    """The denoiser's answers with every sample's prompt encoded on its own."""
    with torch.no_grad():
        hidden = torch.cat([diffusion.encode_prompts(*prompts(label[None])) for label in labels])
        noisy = diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        return diffusion.predict_noise(noisy, batch.timesteps, hidden)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), atol=1e-5, rtol=1e-5)


def test_gcpl_is_the_denoising_loss_under_the_own_prompt(diffusion: Any, prompts: ClassPrompts) -> None:
    batch, encoded = draws(diffusion)(0), list[int]()
    expected = denoising_loss(predictions(diffusion, prompts, batch, batch.labels), batch.noise)
    other = denoising_loss(predictions(diffusion, prompts, batch, (batch.labels + 1) % 3), batch.noise)
    norm = diffusion.text_encoder.final_layer_norm
    hook = norm.register_forward_hook(lambda _module, inputs, _output: encoded.append(len(inputs[0])))
    objective = GCPL(diffusion, prompts)
    close(objective(batch)["loss"], expected)
    objective(batch[:1])
    hook.remove()
    assert encoded == [3, 1]  # each class of a batch once
    assert abs(float(other - expected)) > 1e-5  # the prompt matters, so this means something
    close(CoMPLe(diffusion, prompts, 0.0)(batch)["loss"], expected)
    with torch.no_grad():
        assert float(objective(replace(batch, template=1))["loss"]) != float(expected)


@pytest.mark.parametrize("size", [6, 7])
def test_comple_contrasts_inside_groups_of_different_classes(diffusion: Any, prompts: ClassPrompts, size: int) -> None:
    """Of a seventh sample, alone in its group, the own term counts."""
    batch, before = draws(diffusion, batch_size=size)(0), diffusion.num_denoiser_evaluations
    values = CoMPLe(diffusion, prompts, contrast_weight=0.3)(batch)
    assert diffusion.num_denoiser_evaluations - before == size  # no more than GCPL's
    predicted = predictions(diffusion, prompts, batch, batch.labels)
    own = (predicted - batch.noise).square().mean((1, 2, 3))
    groups = [comple_loss(predicted[part], batch.noise[part], 0.3) for part in (slice(0, 3), slice(3, 6))]
    close(values["loss"], (3 * groups[0] + 3 * groups[1] + own[6:].sum()) / size)
    close(values["own"], own.mean())
    close(values["own"] - 0.3 * values["contrast"], values["loss"])
    close(values["prediction_norm"], predicted.square().mean())
    close(values["expected_contrast"], 1 + values["prediction_norm"])
    assert not any(value.requires_grad for name, value in values.items() if name != "loss")
    with pytest.raises(ValueError, match="raise batch_size above 1"):
        CoMPLe(diffusion, prompts)(draws(diffusion, batch_size=1)(0))


ALL_OTHERS = [[0, 1, 2], [1, 0, 2], [2, 0, 1]]


@pytest.mark.parametrize(
    ("num_rivals", "candidates"), [(None, ALL_OTHERS), (2, ALL_OTHERS), (1, [[0, 1], [1, 2], [2, 0]])]
)
def test_discriminative_is_the_loss_of_the_candidates_errors(
    diffusion: Any, prompts: ClassPrompts, num_rivals: int | None, candidates: list[list[int]]
) -> None:
    asked: list[int] = []

    def errors_of_exemplars() -> np.ndarray:
        asked.append(1)
        return np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]])[:, :, None]

    objective = Discriminative(diffusion, prompts, temperature=20.0, num_rivals=num_rivals, own_weight=0.5)
    objective.begin(np.arange(3), errors_of_exemplars)
    assert objective.candidates.tolist() == candidates
    assert asked == ([1] if num_rivals == 1 else [])  # nothing is computed where all others compete
    batch, before = draws(diffusion, batch_size=3, num_samples=2)(0), diffusion.num_denoiser_evaluations
    values = objective(batch)
    assert diffusion.num_denoiser_evaluations - before == 6 * len(candidates[0])
    columns = [
        (predictions(diffusion, prompts, batch, chosen) - batch.noise).square().mean((1, 2, 3))
        for chosen in torch.tensor(candidates)[batch.labels].T
    ]
    errors = torch.stack(columns, dim=1).reshape(3, 2, -1)
    expected, relative = discriminative_loss(errors, torch.zeros(3, dtype=torch.int64), 20.0), relative_errors(errors)
    torch.testing.assert_close(values["cross_entropy"], expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(values["own"], relative[..., 0].mean(), atol=1e-4, rtol=1e-4)
    close(values["loss"], values["cross_entropy"] + 0.5 * values["own"])
    assert float(values["accuracy"]) == pytest.approx(float((relative.mean(1).argmin(1) == 0).float().mean()))
    with pytest.raises(DataError, match="at least two classes"):
        Discriminative(diffusion, ClassPrompts(diffusion, ["coat"]))


SIZES: dict[str, list[int]] = {
    **{name: [1, 3] for name in ("gcpl", "directional")},
    **{name: [3, 1] for name in ("comple", "mc_ti")},
    **{name: [2, 6] for name in ("discriminative", "comple_same_image")},
}


def make(name: str, diffusion: Any, prompts: ClassPrompts, clip: Any) -> Any:
    more = {"clip": clip} if OBJECTIVES[name].facts.get("reads_clip") else {}
    return OBJECTIVES[name].target(diffusion, prompts, **more)


def samples_of(name: str) -> int:
    return 2 if OBJECTIVES[name].facts["stage"].num_samples else 1


@pytest.mark.parametrize(("name", "sizes"), SIZES.items())
def test_parts_of_a_batch_average_to_the_whole(
    diffusion: Any, prompts: ClassPrompts, clip: Any, name: str, sizes: Any
) -> None:
    """What processes and passes rely on: every scalar is the mean over samples, cut between units."""
    objective = make(name, diffusion, prompts, clip)
    batch = draws(diffusion, batch_size=4, num_samples=samples_of(name))(2)
    parts = [batch[: objective.unit(batch)], batch[objective.unit(batch) :]]
    assert [len(part) for part in parts] == sizes
    whole, found = objective(batch), [objective(part) for part in parts]
    for key in whole:
        close(sum(values[key] * len(part) for values, part in zip(found, parts, strict=True)) / len(batch), whole[key])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_class_vectors_learn(diffusion: Any, prompts: ClassPrompts, clip: Any, name: str) -> None:
    """Gradients reach the vectors of the classes in the batch; the frozen weights keep every bit."""
    before, start = (diffusion.checksum(), clip.checksum()), prompts.vectors.detach().clone()
    objective = make(name, diffusion, prompts, clip)
    assert [parameter is prompts.vectors for parameter in objective.trainable_parameters()] == [True]
    batch_at = draws(diffusion, batch_size=3, num_samples=samples_of(name))
    objective(batch_at(0))["loss"].backward()
    assert prompts.vectors.grad.dtype == torch.float32  # type: ignore[union-attr]
    assert float(prompts.vectors.grad.flatten(1).norm(dim=1).min()) > 0  # type: ignore[union-attr]
    parts = (diffusion.vae, diffusion.denoiser, diffusion.text_encoder)
    assert all(parameter.grad is None for part in parts for parameter in part.parameters())
    list(train(objective, batch_at, TrainingConfig(num_steps=2, learning_rate=0.01)))
    assert (diffusion.checksum(), clip.checksum()) == before
    assert not torch.equal(prompts.vectors.detach(), start)


def test_training_lowers_the_loss_and_moves_no_class_that_is_not_shown(diffusion: Any, prompts: ClassPrompts) -> None:
    batch, start = draws(diffusion, torch.tensor([0, 0, 2, 2]), batch_size=4)(0), prompts.vectors.detach().clone()
    records = train(GCPL(diffusion, prompts), lambda _step: batch, TrainingConfig(8, 0.05, schedule="constant"))
    losses = [record.loss for record in records]
    assert losses[-1] < losses[0]
    assert (prompts.vectors.detach() == start).flatten(1).all(dim=1).tolist() == [False, True, False]
