"""Denoising losses against hand-worked tensors, naive loops and closed forms."""

import math

import pytest
import torch
from torch import Tensor

from gcpl_lab.gcpl.objectives import (
    comple_loss,
    denoising_loss,
    discriminative_loss,
    expected_contrast,
    pairwise_noise_distances,
    relative_errors,
)


def samples(*rows: list[float]) -> Tensor:
    """(batch, 1, 1, element)."""
    return torch.tensor(rows)[:, None, None, :]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_denoising_loss_by_hand() -> None:
    # (0-1)² + (2-0)² + (1-1)² + (3-0)² = 1 + 4 + 0 + 9, over four elements
    assert float(denoising_loss(samples([0.0, 2.0], [1.0, 3.0]), samples([1.0, 0.0], [1.0, 0.0]))) == 3.5


def test_denoising_loss_does_not_depend_on_the_size_of_the_picture() -> None:
    predicted, noise = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    larger = denoising_loss(predicted.repeat(1, 1, 2, 2), noise.repeat(1, 1, 2, 2))
    torch.testing.assert_close(larger, denoising_loss(predicted, noise))


def test_losses_are_float32_for_half_precision_inputs() -> None:
    predicted, noise = randn(3, 2, 4, 4).bfloat16(), randn(3, 2, 4, 4, seed=1).bfloat16()
    assert denoising_loss(predicted, noise).dtype == torch.float32
    assert comple_loss(predicted, noise, 0.1).dtype == torch.float32


def test_pairwise_distances_equal_the_naive_loop() -> None:
    predicted, noise = randn(5, 3, 4, 2), randn(5, 3, 4, 2, seed=1)
    distances = pairwise_noise_distances(predicted, noise)
    for i in range(5):
        for j in range(5):
            expected = (noise[i] - predicted[j]).square().mean()
            torch.testing.assert_close(distances[i, j], expected, atol=1e-5, rtol=1e-5)


def test_comple_by_hand() -> None:
    predicted, noise = samples([1.0, 0.0], [0.0, 0.0]), samples([1.0, 2.0], [0.0, 4.0])
    # own: ‖(0, 2)‖²/2 = 2 and ‖(0, 4)‖²/2 = 8, mean 5
    # others: ε_1 to prediction 2: (1 + 4)/2 = 2.5; ε_2 to prediction 1: (1 + 16)/2 = 8.5; mean 5.5
    assert float(comple_loss(predicted, noise, 0.1)) == pytest.approx(5 - 0.1 * 5.5)
    assert float(comple_loss(predicted, noise, 0.0)) == pytest.approx(float(denoising_loss(predicted, noise)))


def test_comple_does_not_depend_on_the_order_of_the_batch() -> None:
    predicted, noise, order = randn(6, 2, 3, 3), randn(6, 2, 3, 3, seed=1), torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(comple_loss(predicted[order], noise[order], 0.3), comple_loss(predicted, noise, 0.3))


def test_expected_contrast_is_the_contrast_on_random_noise() -> None:
    """Monte Carlo: 400 draws of 12 distances; the mean lies within four standard errors of the closed form."""
    predicted = 0.5 * randn(4, 2, 4, 4) + 0.3
    contrasts = []
    for seed in range(400):
        noise = randn(4, 2, 4, 4, seed=seed + 1)
        contrasts.append(denoising_loss(predicted, noise) - comple_loss(predicted, noise, 1.0))
    found = torch.stack(contrasts)
    error = float(found.std() / math.sqrt(len(found)))
    assert error < 0.01
    assert abs(float(found.mean() - expected_contrast(predicted))) < 4 * error


def test_the_contrast_only_scales_the_answer() -> None:
    """Free predictions: the minimiser of CoMPLe is GCPL's (ε_j itself) divided by 1 − λ.

    With noises whose sum is exactly zero, the mean of the others' is −ε_j / (B − 1) instead of its expectation 0,
    so the closed form has no sampling error.
    """
    batch, weight = 4, 0.2
    noise = randn(batch, 1, 2, 2)
    noise = noise - noise.mean(0)
    predicted = torch.zeros_like(noise, requires_grad=True)
    optimizer = torch.optim.SGD([predicted], lr=4.0)
    for _ in range(60):
        optimizer.zero_grad()
        comple_loss(predicted, noise, weight).backward()
        optimizer.step()
    # d/dp_j: (p_j − ε_j) − λ (p_j − mean_{i≠j} ε_i) = 0, mean_{i≠j} ε_i = −ε_j / (B − 1)
    torch.testing.assert_close(predicted.detach(), noise * (1 + weight / (batch - 1)) / (1 - weight))


@pytest.mark.parametrize("weight", [-0.1, -1.0])
def test_comple_refuses_negative_weights(weight: float) -> None:
    with pytest.raises(ValueError, match=f"contrast_weight is {weight}"):
        comple_loss(randn(2, 1, 1, 1), randn(2, 1, 1, 1), weight)


def test_comple_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="at least two samples in a batch, got 1"):
        comple_loss(randn(1, 1, 1, 1), randn(1, 1, 1, 1), 0.1)


@pytest.mark.parametrize("loss", [denoising_loss, pairwise_noise_distances, lambda a, b: comple_loss(a, b, 0.1)])
def test_denoising_losses_name_shapes_that_differ(loss: object) -> None:
    with pytest.raises(ValueError, match=r"predicted has shape \(2, 1, 2, 2\) and noise has \(2, 1, 2, 3\)"):
        loss(randn(2, 1, 2, 2), randn(2, 1, 2, 3))  # type: ignore[operator]


def test_discriminative_by_hand() -> None:
    # One image, two samples, two classes. Sample 1: errors 1 and 3, mean 2, relative 0.5 and 1.5.
    # Sample 2: errors 4 and 4, relative 1 and 1. Mean relative 0.75 and 1.25; with τ = 2 logits −1.5 and −2.5.
    errors = torch.tensor([[[1.0, 3.0], [4.0, 4.0]]])
    expected = math.log(1 + math.exp(-1.0))
    assert float(discriminative_loss(errors, torch.tensor([0]), 2.0)) == pytest.approx(expected)
    assert float(discriminative_loss(errors, torch.tensor([1]), 2.0)) == pytest.approx(expected + 1.0)


def test_discriminative_ignores_how_hard_a_sample_is() -> None:
    errors = randn(3, 4, 5).square() + 0.1
    targets = torch.tensor([0, 4, 2])
    scaled = errors.clone()
    scaled[1, 2] *= 1000
    torch.testing.assert_close(discriminative_loss(scaled, targets, 30.0), discriminative_loss(errors, targets, 30.0))


def test_discriminative_ignores_the_order_of_samples_and_follows_that_of_classes() -> None:
    errors, targets = randn(3, 4, 5).square() + 0.1, torch.tensor([0, 4, 2])
    loss = discriminative_loss(errors, targets, 7.0)
    torch.testing.assert_close(discriminative_loss(errors.flip(1), targets, 7.0), loss)
    torch.testing.assert_close(discriminative_loss(errors.flip(2), 4 - targets, 7.0), loss)


def test_discriminative_averages_before_the_softmax() -> None:
    """Two samples that contradict each other say nothing together: the loss is that of a coin."""
    errors = torch.tensor([[[1.0, 3.0], [3.0, 1.0]]])
    assert float(discriminative_loss(errors, torch.tensor([0]), 50.0)) == pytest.approx(math.log(2))


def test_relative_errors_hold_the_mean_constant_in_the_gradient() -> None:
    errors = torch.tensor([[[1.0, 3.0]]], requires_grad=True)
    relative = relative_errors(errors)
    assert relative.tolist() == [[[0.5, 1.5]]]
    relative.sum().backward()  # were the mean not held, the sum would be constant and the gradient zero
    assert errors.grad is not None
    assert errors.grad.tolist() == [[[0.5, 0.5]]]


def test_relative_errors_of_nothing_are_finite() -> None:
    assert relative_errors(torch.zeros(1, 1, 3)).tolist() == [[[0.0, 0.0, 0.0]]]


@pytest.mark.parametrize(
    ("shape", "targets", "temperature", "message"),
    [
        ((2, 3), [0, 1], 1.0, r"errors has shape \(2, 3\); expected \(batch, sample, class\)"),
        ((2, 1, 3), [0], 1.0, r"targets has shape \(1,\); expected \(2,\)"),
        ((2, 1, 3), [0, 3], 1.0, "targets reach from 0 to 3; expected class indices from 0 to 2"),
        ((2, 1, 3), [0, -1], 1.0, "targets reach from -1 to 0"),
        ((2, 1, 3), [0, 1], 0.0, "temperature is 0.0"),
    ],
)
def test_discriminative_names_what_is_wrong(
    shape: tuple[int, ...], targets: list[int], temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        discriminative_loss(torch.ones(shape), torch.tensor(targets), temperature)
