import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gcpl_lab.lmpt.losses import (
    asymmetric_loss,
    binary_cross_entropy,
    class_aware_margins,
    class_balanced_loss,
    class_bias,
    class_specific_embedding_loss,
    class_weights,
    distribution_balanced_loss,
    focal_loss,
    rebalanced_weights,
)

LOGITS = torch.tensor([[2.0, -1.0, 0.0], [-3.0, 1.0, 0.5]])
TARGETS = torch.tensor([[1, 0, 0], [1, 1, 0]])
COUNTS = (8, 4, 2)
NUM_IMAGES = 10


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def hand_worked(term: Callable[[float, int, int, int], float]) -> float:
    """The mean of a scalar term(logit, target, image, class) over the 2 x 3 case."""
    return sum(term(float(LOGITS[k, i]), int(TARGETS[k, i]), k, i) for k in range(2) for i in range(3)) / 6


def cross_entropy(logit: float, target: int) -> float:
    return -math.log(sigmoid(logit) if target else 1 - sigmoid(logit))


def test_binary_cross_entropy_by_hand() -> None:
    expected = hand_worked(lambda z, y, k, i: cross_entropy(z, y))
    assert float(binary_cross_entropy(LOGITS, TARGETS)) == pytest.approx(expected, abs=1e-6)
    reference = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, TARGETS.float())
    torch.testing.assert_close(binary_cross_entropy(LOGITS, TARGETS), reference)


def test_focal_loss_by_hand_and_without_focus() -> None:
    def term(z: float, y: int, k: int, i: int) -> float:
        right = sigmoid(z) if y else 1 - sigmoid(z)
        return 0.5 * (1 - right) ** 1.5 * -math.log(right)

    assert float(focal_loss(LOGITS, TARGETS, gamma=1.5, balance=0.5)) == pytest.approx(hand_worked(term), abs=1e-6)
    torch.testing.assert_close(focal_loss(LOGITS, TARGETS, gamma=0.0), binary_cross_entropy(LOGITS, TARGETS))


def test_distribution_balanced_loss_by_hand() -> None:
    alpha, beta, mu, scale, kappa = 0.1, 10.0, 0.3, 5.0, 0.05

    def term(z: float, y: int, k: int, i: int) -> float:
        drawn = sum(1 / COUNTS[j] for j in range(3) if TARGETS[k, j])
        weight = alpha + sigmoid(beta * (1 / COUNTS[i] / drawn - mu))
        z = z - kappa * math.log(NUM_IMAGES / COUNTS[i] - 1) / scale
        if not y:
            z, weight = scale * z, weight / scale
        right = sigmoid(z) if y else sigmoid(-z)
        return weight * 2.0 * (1 - right) ** 2 * -math.log(right)

    value = distribution_balanced_loss(LOGITS, TARGETS, class_counts=COUNTS, num_images=NUM_IMAGES)
    assert float(value) == pytest.approx(hand_worked(term), abs=1e-6)


def test_distribution_balanced_with_everything_off_is_binary_cross_entropy() -> None:
    value = distribution_balanced_loss(
        LOGITS,
        TARGETS,
        class_counts=COUNTS,
        num_images=NUM_IMAGES,
        rebalance=False,
        negative_tolerant=False,
        focal=False,
    )
    torch.testing.assert_close(value, binary_cross_entropy(LOGITS, TARGETS))


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 0.5},
        {"beta": 2.0},
        {"mu": 0.6},
        {"negative_scale": 2.0},
        {"bias_scale": 0.5},
        {"focal_gamma": 1.0},
        {"focal_balance": 1.0},
        {"rebalance": False},
        {"negative_tolerant": False},
        {"focal": False},
        {"num_images": 40},
    ],
)
def test_every_setting_of_distribution_balanced_changes_it(change: dict[str, float]) -> None:
    settings = {"class_counts": COUNTS, "num_images": NUM_IMAGES}
    base = distribution_balanced_loss(LOGITS, TARGETS, **settings)
    assert not torch.isclose(base, distribution_balanced_loss(LOGITS, TARGETS, **(settings | change)))


def test_rebalanced_weights_favour_the_rare_class_and_keep_their_bounds() -> None:
    weights = rebalanced_weights(TARGETS, COUNTS, alpha=0.1, beta=10.0, mu=0.3)
    assert weights[1, 1] > weights[1, 0], "of the classes of one image, the rarer one counts more"
    assert ((weights >= 0.1) & (weights <= 1.1)).all()
    nothing = rebalanced_weights(torch.zeros(1, 3), COUNTS, alpha=0.1, beta=10.0, mu=0.3)
    torch.testing.assert_close(nothing, torch.full((1, 3), 1.1))


def test_class_bias_lowers_rare_classes_and_survives_a_class_of_every_image() -> None:
    bias = class_bias((10, 5, 1), 10, bias_scale=0.05, negative_scale=5.0)
    assert bias[0] > 0
    assert bias[1] == 0
    assert float(bias[2]) == pytest.approx(-0.05 / 5 * math.log(9), abs=1e-7)
    assert bias.isfinite().all()


def test_class_weights_by_hand_and_sum_to_one() -> None:
    inverse = [1 / 8, 1 / 4, 1 / 2]
    torch.testing.assert_close(class_weights(COUNTS, 1.0), torch.tensor(inverse) / sum(inverse))
    for gamma in (0.0, 0.5, 1.0, 2.0, 10.0):
        weights = class_weights((1, 17, 1000, 10**6), gamma)
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)
        assert weights.isfinite().all()
    torch.testing.assert_close(class_weights(COUNTS, 0.0), torch.full((3,), 1 / 3))


def test_margins_are_wider_for_rare_classes() -> None:
    margins = class_aware_margins((1, 16, 10**4), 0.4)
    torch.testing.assert_close(margins, torch.tensor([0.4, 0.2, 0.04]))


def test_embedding_loss_by_hand() -> None:
    distances = torch.tensor([[0.3, 0.05, 0.4], [0.2, 0.6, 0.01]])
    inverse = [(1 / n) ** 0.5 for n in COUNTS]

    def term(_: float, y: int, k: int, i: int) -> float:
        distance, margin = float(distances[k, i]), 0.8 * COUNTS[i] ** -0.25
        return inverse[i] / sum(inverse) * (distance if y else max(0.0, margin - distance))

    value = class_specific_embedding_loss(distances, TARGETS, class_counts=COUNTS, margin=0.8, reweight_gamma=0.5)
    assert float(value) == pytest.approx(hand_worked(term), abs=1e-6)


@pytest.mark.parametrize(
    "change", [{"margin": 0.1}, {"reweight_gamma": 2.0}, {"class_aware_margin": False}, {"reweight": False}]
)
def test_every_setting_of_the_embedding_loss_changes_it(change: dict[str, float]) -> None:
    distances = torch.tensor([[0.3, 0.05, 0.4], [0.2, 0.6, 0.01]])
    settings = {"class_counts": COUNTS, "margin": 0.8, "reweight_gamma": 1.0}
    base = class_specific_embedding_loss(distances, TARGETS, **settings)
    assert not torch.isclose(base, class_specific_embedding_loss(distances, TARGETS, **(settings | change)))


def test_embedding_loss_pulls_present_classes_near_and_absent_ones_only_to_their_margin() -> None:
    """The sign: the published code pushes present classes away."""
    torch.manual_seed(0)
    caption = torch.nn.functional.normalize(torch.randn(1, 16), dim=1)
    # Both prompts start near the caption, so that the absent class lies inside its margin.
    prompts = (caption + 0.1 * torch.randn(2, 16)).requires_grad_()

    def distances() -> Tensor:
        return 1 - caption @ torch.nn.functional.normalize(prompts, dim=1).T

    present, absent = distances()[0].tolist()
    margin = float(class_aware_margins((8, 2), 0.5)[1])
    assert absent < margin
    for _ in range(1000):
        loss = class_specific_embedding_loss(
            distances(), torch.tensor([[1, 0]]), class_counts=(8, 2), margin=0.5, reweight_gamma=1.0
        )
        (gradient,) = torch.autograd.grad(loss, prompts)
        prompts.data -= 0.02 * gradient
    end_present, end_absent = distances()[0].tolist()
    assert end_present < 0.5 * present, "a present class comes nearer"
    assert margin - 0.01 < end_absent < margin + 0.01, "an absent one goes to its margin, no further"


def test_no_gradient_beyond_the_margin() -> None:
    distances = torch.tensor([[0.9, 0.05]], requires_grad=True)
    loss = class_specific_embedding_loss(distances, torch.zeros(1, 2), class_counts=(1, 1), margin=0.5)
    (gradient,) = torch.autograd.grad(loss, distances)
    assert gradient[0, 0] == 0
    assert gradient[0, 1] < 0


def test_class_balanced_loss_by_hand_and_its_limits() -> None:
    beta = 0.9
    raw = [(1 - beta) / (1 - beta**n) for n in COUNTS]
    weights = [value * 3 / sum(raw) for value in raw]
    expected = hand_worked(lambda z, y, k, i: weights[i] * cross_entropy(z, y))
    value = class_balanced_loss(LOGITS, TARGETS, class_counts=COUNTS, beta=beta)
    assert float(value) == pytest.approx(expected, abs=1e-6)
    same = class_balanced_loss(LOGITS, TARGETS, class_counts=COUNTS, beta=0.0)
    torch.testing.assert_close(same, binary_cross_entropy(LOGITS, TARGETS))
    assert not torch.isclose(
        value, class_balanced_loss(LOGITS, TARGETS, class_counts=COUNTS, beta=0.9, focal_gamma=1.0)
    )


def test_asymmetric_loss_by_hand_and_its_limit() -> None:
    def term(z: float, y: int, k: int, i: int) -> float:
        p = sigmoid(z)
        shifted = max(p - 0.05, 0.0)
        return (1 - p) * -math.log(p) if y else shifted**4 * -math.log(1 - shifted)

    value = asymmetric_loss(LOGITS, TARGETS, gamma_positive=1.0, gamma_negative=4.0, clip=0.05)
    assert float(value) == pytest.approx(hand_worked(term), abs=1e-6)
    plain = asymmetric_loss(LOGITS, TARGETS, gamma_positive=0.0, gamma_negative=0.0, clip=0.0)
    torch.testing.assert_close(plain, binary_cross_entropy(LOGITS, TARGETS))


@pytest.mark.parametrize("detached", [True, False])
def test_the_asymmetric_weight_is_differentiated_or_not(detached: bool) -> None:
    gamma_positive, gamma_negative, clip = 1.0, 4.0, 0.05

    def term(z: float, y: int) -> float:
        p = sigmoid(z)
        if y:
            weight, slope_of_weight = (1 - p) ** gamma_positive, -gamma_positive * (1 - p) ** gamma_positive * p
            logarithm, slope = -math.log(p), -(1 - p)
        else:
            shifted = max(p - clip, 0.0)
            inner = p * (1 - p) if p > clip else 0.0
            weight, slope_of_weight = shifted**gamma_negative, gamma_negative * shifted ** (gamma_negative - 1) * inner
            logarithm, slope = -math.log(1 - shifted), inner / (1 - shifted)
        return weight * slope + (0.0 if detached else slope_of_weight * logarithm)

    logits = torch.tensor([[2.0, -1.0, 0.0], [-3.0, 1.0, -4.0]], requires_grad=True)  # the last one below the clip
    loss = asymmetric_loss(
        logits, TARGETS, gamma_positive=gamma_positive, gamma_negative=gamma_negative, clip=clip, detach_weight=detached
    )
    usual = asymmetric_loss(logits, TARGETS, gamma_positive=gamma_positive, gamma_negative=gamma_negative, clip=clip)
    assert float(loss.detach()) == float(usual.detach())
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = [[term(float(logits[k, i].detach()), int(TARGETS[k, i])) / 6 for i in range(3)] for k in range(2)]
    torch.testing.assert_close(gradient, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_the_asymmetric_weight_is_a_constant_as_in_the_comparison() -> None:
    logits = LOGITS.clone().requires_grad_()
    slopes = [
        torch.autograd.grad(asymmetric_loss(logits, TARGETS, **settings), logits)[0]
        for settings in ({}, {"detach_weight": True}, {"detach_weight": False})
    ]
    assert torch.equal(slopes[0], slopes[1])
    assert not torch.allclose(slopes[0], slopes[2])


MANY_COUNTS = (1, 19, 1000, 10**6)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": binary_cross_entropy,
    "focal": focal_loss,
    "focal below one": lambda z, y: focal_loss(z, y, gamma=0.5),
    "asymmetric": asymmetric_loss,
    "asymmetric, differentiated": lambda z, y: asymmetric_loss(z, y, detach_weight=False),
    "asymmetric without clip": lambda z, y: asymmetric_loss(z, y, gamma_negative=0.5, clip=0.0, detach_weight=False),
    "class-balanced": lambda z, y: class_balanced_loss(z, y, class_counts=MANY_COUNTS, beta=0.9999, focal_gamma=2.0),
    "distribution-balanced": lambda z, y: distribution_balanced_loss(z, y, class_counts=MANY_COUNTS, num_images=10**6),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_finite_for_extreme_logits(name: str, dtype: torch.dtype) -> None:
    values = torch.tensor([-100.0, -1.0, 0.0, 100.0])
    logits = torch.cartesian_prod(values, values, values, values).to(dtype).requires_grad_()
    for targets in (torch.zeros(256, 4), torch.ones(256, 4), torch.arange(1024).reshape(256, 4) % 2):
        loss = LOSSES[name](logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert loss >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_loss_is_finite_for_extreme_counts(dtype: torch.dtype) -> None:
    distances = torch.rand(5, 4).to(dtype).mul(2).requires_grad_()
    targets = torch.randint(2, (5, 4))
    loss = class_specific_embedding_loss(distances, targets, class_counts=MANY_COUNTS, margin=0.5, reweight_gamma=3.0)
    (gradient,) = torch.autograd.grad(loss, distances)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_bad_shapes_and_targets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"logits has shape \(2, 4\) and targets has \(2, 3\)"):
        LOSSES[name](torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="expected \\(image, class\\)"):
        LOSSES[name](torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match="other than 0 and 1"):
        LOSSES[name](torch.zeros(2, 4), torch.full((2, 4), -1))


def test_bad_counts_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class_counts has shape \(2,\); expected one number a class, \(3,\)"):
        class_balanced_loss(LOGITS, TARGETS, class_counts=(1, 2))
    with pytest.raises(ValueError, match="0 for class 1; expected 1 or more"):
        class_specific_embedding_loss(LOGITS.abs(), TARGETS, class_counts=(1, 0, 2), margin=0.2)
    with pytest.raises(ValueError, match="reaches 8, more than num_images, which is 5"):
        distribution_balanced_loss(LOGITS, TARGETS, class_counts=COUNTS, num_images=5)
    with pytest.raises(ValueError, match="negative_scale is 0"):
        distribution_balanced_loss(LOGITS, TARGETS, class_counts=COUNTS, num_images=10, negative_scale=0.0)
    with pytest.raises(ValueError, match="margin is 0"):
        class_aware_margins(COUNTS, 0.0)
    with pytest.raises(ValueError, match="gamma is -1"):
        class_weights(COUNTS, -1.0)
    with pytest.raises(ValueError, match="beta is 1"):
        class_balanced_loss(LOGITS, TARGETS, class_counts=COUNTS, beta=1.0)
    with pytest.raises(ValueError, match="clip is 1"):
        asymmetric_loss(LOGITS, TARGETS, clip=1.0)
    with pytest.raises(ValueError, match="focal gamma is -2"):
        focal_loss(LOGITS, TARGETS, gamma=-2.0)
