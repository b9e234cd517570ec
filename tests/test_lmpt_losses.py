"""Losses on several labels an image: values by hand, limits, gradients, and what they refuse."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gcpl_lab.lmpt.alternatives import asymmetric_loss, class_balanced_loss, focal_loss
from gcpl_lab.lmpt.losses import (
    LOSSES,
    binary_cross_entropy,
    class_aware_margins,
    class_bias,
    class_specific_embedding_loss,
    class_weights,
    distribution_balanced_loss,
    rebalanced_weights,
)
from gcpl_lab.lmpt.settings import LMPTConfig

LOGITS = torch.tensor([[2.0, -1.0, 0.0], [-3.0, 1.0, 0.5]])
DISTANCES = torch.tensor([[0.3, 0.05, 0.4], [0.2, 0.6, 0.01]])
TARGETS = torch.tensor([[1, 0, 0], [1, 1, 0]])
COUNTS, NUM_IMAGES = (8, 4, 2), 10
Term = Callable[[float, int, int, int], float]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def hand_worked(term: Term) -> float:
    """The mean of a scalar term(logit, target, image, class) over the 2 x 3 case."""
    return sum(term(float(LOGITS[k, i]), int(TARGETS[k, i]), k, i) for k in range(2) for i in range(3)) / 6


def cross_entropy(logit: float, target: int) -> float:
    return -math.log(sigmoid(logit) if target else 1 - sigmoid(logit))


def focal_term(z: float, y: int, k: int, i: int) -> float:
    right = sigmoid(z) if y else 1 - sigmoid(z)
    return 0.5 * (1 - right) ** 1.5 * -math.log(right)


def balanced_term(
    alpha: float, beta: float, mu: float, scale: float, kappa: float, gamma: float, balance: float
) -> Term:
    def term(z: float, y: int, k: int, i: int) -> float:
        drawn = sum(1 / COUNTS[j] for j in range(3) if TARGETS[k, j])
        weight = alpha + sigmoid(beta * (1 / COUNTS[i] / drawn - mu))
        z = z - kappa * math.log(NUM_IMAGES / COUNTS[i] - 1) / scale
        if not y:
            z, weight = scale * z, weight / scale
        right = sigmoid(z) if y else sigmoid(-z)
        return weight * balance * (1 - right) ** gamma * -math.log(right)

    return term


def class_balanced_term(z: float, y: int, k: int, i: int) -> float:
    raw = [(1 - 0.9) / (1 - 0.9**n) for n in COUNTS]
    return raw[i] * 3 / sum(raw) * cross_entropy(z, y)


def asymmetric_term(z: float, y: int, k: int, i: int) -> float:
    p, shifted = sigmoid(z), max(sigmoid(z) - 0.05, 0.0)
    return (1 - p) * -math.log(p) if y else shifted**4 * -math.log(1 - shifted)


def embedding_term(_: float, y: int, k: int, i: int) -> float:
    inverse = [(1 / n) ** 0.5 for n in COUNTS]
    distance, margin = float(DISTANCES[k, i]), 0.8 * COUNTS[i] ** -0.25
    return inverse[i] / sum(inverse) * (distance if y else max(0.0, margin - distance))


WHOLE = {"class_counts": COUNTS, "num_images": NUM_IMAGES}
COCO = {"alpha": 0.5, "beta": 2.0, "mu": 0.2, "negative_scale": 2.0, "bias_scale": 0.5}


@pytest.mark.parametrize(
    ("loss", "values", "settings", "term"),
    [
        (binary_cross_entropy, LOGITS, {}, lambda z, y, k, i: cross_entropy(z, y)),
        (focal_loss, LOGITS, {"gamma": 1.5, "balance": 0.5}, focal_term),
        (distribution_balanced_loss, LOGITS, WHOLE, balanced_term(0.1, 10.0, 0.3, 5.0, 0.05, 2.0, 2.0)),
        (
            distribution_balanced_loss,
            LOGITS,
            WHOLE | COCO | {"focal_gamma": 1.5, "focal_balance": 3.0},
            balanced_term(0.5, 2.0, 0.2, 2.0, 0.5, 1.5, 3.0),
        ),
        (class_balanced_loss, LOGITS, {"class_counts": COUNTS, "beta": 0.9}, class_balanced_term),
        (asymmetric_loss, LOGITS, {"gamma_positive": 1.0, "gamma_negative": 4.0, "clip": 0.05}, asymmetric_term),
        (
            class_specific_embedding_loss,
            DISTANCES,
            {"class_counts": COUNTS, "margin": 0.8, "reweight_gamma": 0.5},
            embedding_term,
        ),
    ],
)
def test_values_by_hand(loss: Any, values: Tensor, settings: dict[str, Any], term: Term) -> None:
    assert float(loss(values, TARGETS, **settings)) == pytest.approx(hand_worked(term), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (distribution_balanced_loss, WHOLE | dict.fromkeys(("rebalance", "negative_tolerant", "focal"), False)),
        (focal_loss, {"gamma": 0.0}),
        (class_balanced_loss, {"class_counts": COUNTS, "beta": 0.0}),
        (asymmetric_loss, {"gamma_positive": 0.0, "gamma_negative": 0.0, "clip": 0.0}),
        (torch.nn.functional.binary_cross_entropy_with_logits, {}),
    ],
)
def test_without_their_parts_all_are_binary_cross_entropy(loss: Any, settings: dict[str, Any]) -> None:
    targets = TARGETS.float()
    torch.testing.assert_close(loss(LOGITS, targets, **settings), binary_cross_entropy(LOGITS, targets))


def test_weights_margins_and_bias_by_hand() -> None:
    inverse = torch.tensor([1 / 8, 1 / 4, 1 / 2])
    torch.testing.assert_close(class_weights(COUNTS, 1.0), inverse / inverse.sum())
    torch.testing.assert_close(class_weights(COUNTS, 0.0), torch.full((3,), 1 / 3))
    for gamma in (0.5, 1.0, 2.0, 10.0):
        assert float(class_weights((1, 17, 1000, 10**6), gamma).sum()) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(class_aware_margins((1, 16, 10**4), 0.4), torch.tensor([0.4, 0.2, 0.04]))
    bias = class_bias((10, 5, 1), 10, bias_scale=0.05, negative_scale=5.0)
    # of a class of every image the prior is half an image less than certain: N/n − 1 is taken as 0.5/10
    torch.testing.assert_close(bias, -0.05 / 5 * torch.tensor([0.05, 1.0, 9.0]).log())
    weights = rebalanced_weights(TARGETS, COUNTS, alpha=0.1, beta=10.0, mu=0.3)
    assert weights[1, 1] > weights[1, 0], "of the classes of one image, the rarer one counts more"
    assert ((weights >= 0.1) & (weights <= 1.1)).all()
    nothing = rebalanced_weights(torch.zeros(1, 3), COUNTS, alpha=0.1, beta=10.0, mu=0.3)
    torch.testing.assert_close(nothing, torch.full((1, 3), 1.1))


def test_present_classes_come_near_and_absent_ones_go_to_their_margin() -> None:
    """The sign: the published code pushes present classes away."""
    distances = torch.tensor([[0.9, 0.05, 0.9, 0.05]], requires_grad=True)
    loss = class_specific_embedding_loss(distances, torch.tensor([[1, 1, 0, 0]]), class_counts=[1] * 4, margin=0.5)
    (gradient,) = torch.autograd.grad(loss, distances)
    assert gradient.sign().tolist() == [[1, 1, 0, -1]]  # an absent class beyond its margin is left alone


@pytest.mark.parametrize("detached", [True, False])
def test_the_asymmetric_weight_is_differentiated_or_not(detached: bool) -> None:
    """As in LMPT's comparison it is a constant unless told otherwise; the value is the same."""
    logits = torch.tensor([[2.0, -1.0, 0.0], [-3.0, 1.0, -4.0]], requires_grad=True)  # the last one below the clip
    p, present = torch.sigmoid(logits), TARGETS.bool()
    shifted = (p - 0.05).clamp_min(0)
    weight = torch.where(present, 1 - p, shifted**4)
    weight = weight.detach() if detached else weight
    expected = (weight * -torch.where(present, p, 1 - shifted).log()).mean()
    found = asymmetric_loss(logits, TARGETS, gamma_positive=1.0, detach_weight=detached)
    usual = asymmetric_loss(logits, TARGETS, gamma_positive=1.0)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (found, expected, usual)]
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, usual)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)
    assert torch.equal(gradients[0], gradients[2]) == detached


MANY = {"class_counts": (1, 19, 1000, 10**6)}
EXTREME: dict[str, tuple[Any, dict[str, Any]]] = {
    "bce": (binary_cross_entropy, {}),
    "focal": (focal_loss, {}),
    "focal below one": (focal_loss, {"gamma": 0.5}),
    "asymmetric": (asymmetric_loss, {}),
    "asymmetric, differentiated": (asymmetric_loss, {"detach_weight": False}),
    "without clip": (asymmetric_loss, {"gamma_negative": 0.5, "clip": 0.0, "detach_weight": False}),
    "class-balanced": (class_balanced_loss, MANY | {"beta": 0.9999, "focal_gamma": 2.0}),
    "distribution-balanced": (distribution_balanced_loss, MANY | {"num_images": 10**6}),
    "embedding": (class_specific_embedding_loss, MANY | {"margin": 0.5, "reweight_gamma": 3.0}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EXTREME)
def test_losses_and_gradients_are_finite_for_extreme_values(name: str, dtype: torch.dtype) -> None:
    loss_of, settings = EXTREME[name]
    values = torch.tensor([0.0, 0.3, 1.0, 2.0] if name == "embedding" else [-100.0, -1.0, 0.0, 100.0])
    given = torch.cartesian_prod(values, values, values, values).to(dtype).requires_grad_()
    for targets in (torch.zeros(256, 4), torch.ones(256, 4), torch.arange(1024).reshape(256, 4) % 2):
        loss = loss_of(given, targets, **settings)
        (gradient,) = torch.autograd.grad(loss, given)
        assert loss.isfinite()
        assert loss >= 0
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", EXTREME)
def test_bad_shapes_and_targets_are_refused(name: str) -> None:
    loss, settings = EXTREME[name]
    for shapes in (((2, 4), (2, 3)), ((4,), (4,))):
        values, targets = (torch.zeros(shape) for shape in shapes)
        with pytest.raises(ValueError, match=r"(logits|distances) has shape .*; expected the same, \(image, class\)"):
            loss(values, targets, **settings)
    with pytest.raises(ValueError, match="other than 0 and 1"):
        loss(torch.zeros(2, 4), torch.full((2, 4), -1), **settings)


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (class_balanced_loss, {"class_counts": (1, 2)}, r"has shape \(2,\); expected one number a class, \(3,\)"),
        (class_specific_embedding_loss, {"class_counts": (1, 0, 2)}, "0 for class 1; expected 1 or more"),
        (class_specific_embedding_loss, {"class_counts": COUNTS, "margin": 0.0}, "margin is 0"),
        (class_specific_embedding_loss, {"class_counts": COUNTS, "reweight_gamma": -1.0}, "gamma is -1"),
        (distribution_balanced_loss, WHOLE | {"num_images": 5}, "reaches 8, more than num_images, which is 5"),
        (distribution_balanced_loss, WHOLE | {"negative_scale": 0.0}, "negative_scale is 0"),
        (class_balanced_loss, {"class_counts": COUNTS, "beta": 1.0}, "beta is 1"),
        (asymmetric_loss, {"clip": 1.0}, "clip is 1"),
        (focal_loss, {"gamma": -2.0}, "focal gamma is -2"),
    ],
)
def test_bad_counts_and_settings_are_refused(loss: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(LOGITS, TARGETS, **settings)


def test_absent_classes_below_the_clip_cost_nothing() -> None:
    """Not less than nothing, as log(1 − p + clip) would have it; and no gradient that is no number."""
    logits = torch.tensor([[-100.0, -8.0]], requires_grad=True)
    for gamma in (0.0, 0.5, 4.0):
        loss = asymmetric_loss(logits, torch.zeros(1, 2), gamma_negative=gamma, clip=0.05, detach_weight=False)
        assert float(loss.detach()) == 0.0
        (slope,) = torch.autograd.grad(loss, logits)
        assert torch.equal(slope, torch.zeros(1, 2))


def test_defaults_are_those_of_voc_lt() -> None:
    assert LMPTConfig().mu == LOSSES["distribution_balanced"].defaults["mu"] == 0.3
    assert LMPTConfig().negative_scale == LOSSES["distribution_balanced"].defaults["negative_scale"] == 5.0
    config = LMPTConfig(classification="distribution_balanced", mu=0.2, negative_scale=2.0)  # as for COCO-LT
    chosen = config.chosen(LOSSES["distribution_balanced"].defaults)
    assert (chosen["mu"], chosen["negative_scale"]) == (0.2, 2.0)
