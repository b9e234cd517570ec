"""Losses on several labels an image: logits and targets are (image, class), scores are sigmoids, nothing is a softmax.

A classification loss is registered once, here or in a cell of a notebook, with ``@register_loss``: a function of logits
and targets that takes by name what it wants of ``class_counts`` and ``num_images``, and its own settings. All are
computed in float32 and from log-sigmoids, so logits of ±100 and bfloat16 inputs are no trouble.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.lmpt.checks import Counts, check_loss, counts_of
from gcpl_lab.registry import Registry

LOSSES = Registry("classification loss")
register_loss = LOSSES.register


@register_loss(
    "distribution_balanced",
    title="DB",
    defaults=dict.fromkeys(("rebalance", "negative_tolerant", "focal"), True) | {"negative_scale": 5.0, "mu": 0.3},
)
def distribution_balanced_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Counts,
    num_images: int,
    alpha: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.3,
    negative_scale: float = 5.0,
    bias_scale: float = 0.05,
    focal_gamma: float = 2.0,
    focal_balance: float = 2.0,
    rebalance: bool = True,
    negative_tolerant: bool = True,
    focal: bool = True,
) -> Tensor:
    """Distribution-balanced loss: re-balanced weights, tolerance for negatives, focal factor; each can be switched off.

    With z' = z + ν_i, absent classes see λ·z' and count 1/λ, so that the many easy negatives of a rare class stop
    pulling early. Without its three parts this is :func:`binary_cross_entropy`. Defaults are those of VOC-LT; COCO-LT
    has ``negative_scale=2, mu=0.2``. The focal factor is per image and class, as in Wu et al.; the LMPT repository
    takes it from the mean cross entropy of the whole batch.

    Args:
        logits: (image, class).
        targets: (image, class), 0 or 1.
        class_counts: n_i ≥ 1, (class,).
        num_images: N, the number of training images.
        alpha, beta, mu: See :func:`rebalanced_weights`.
        negative_scale: λ ≥ 1.
        bias_scale: κ ≥ 0, see :func:`class_bias`.
        focal_gamma, focal_balance: Exponent and constant factor of the focal part.
        rebalance, negative_tolerant, focal: Switch the three parts.

    Source: Wu et al. 2020, https://arxiv.org/abs/2007.09654, eq. 10
    """
    check_loss("logits", logits, targets)
    if negative_scale <= 0:
        raise ValueError(f"negative_scale is {negative_scale}; expected a number above 0")
    counts = counts_of(class_counts, logits)
    present, logits = targets.bool(), logits.float()
    weights, absent_scale = torch.ones_like(logits), 1.0
    if rebalance:
        weights = rebalanced_weights(targets, counts, alpha=alpha, beta=beta, mu=mu)
    if negative_tolerant:
        logits = logits + class_bias(counts, num_images, bias_scale=bias_scale, negative_scale=negative_scale)
        weights, absent_scale = torch.where(present, weights, weights / negative_scale), negative_scale
    wrong = torch.where(present, -1.0, absent_scale) * logits
    if focal:
        weights = weights * focal_balance * focal_factor(wrong, focal_gamma)
    return (weights * F.softplus(wrong)).mean()


def rebalanced_weights(targets: Tensor, class_counts: Counts, *, alpha: float, beta: float, mu: float) -> Tensor:
    """r̂ = α + σ(β·(r − μ)), r_{k,i} = (1/n_i) / Σ_{j in image k} (1/n_j), float32 (image, class).

    r compares how often class i should be drawn with how often image k is drawn through all its classes. An image
    without any class is never drawn: its weight is the limit α + 1.

    Source: Wu et al. 2020, https://arxiv.org/abs/2007.09654, eq. 4 and 5
    """
    inverse = 1.0 / counts_of(class_counts, targets)
    drawn = (targets.float() * inverse).sum(dim=1, keepdim=True)
    return alpha + torch.sigmoid(beta * (inverse / drawn.clamp_min(1e-12) - mu))


def class_bias(class_counts: Counts, num_images: int, *, bias_scale: float, negative_scale: float) -> Tensor:
    """ν_i = −κ·log(N/n_i − 1)/λ, float32 (class,): the logit of the class's prior, added to the logits in training.

    A class that every image has would give +∞; its prior is taken as half an image less than certain.

    Source: Wu et al. 2020, https://arxiv.org/abs/2007.09654, eq. 8, with the sign of the authors' code
    """
    counts = counts_of(class_counts)
    if len(counts) and float(counts.max()) > num_images:
        raise ValueError(
            f"class_counts reaches {float(counts.max()):g}, more than num_images, which is {num_images}; count images "
            "that have the class, over the same training set"
        )
    return -bias_scale / negative_scale * (num_images / counts - 1).clamp_min(0.5 / num_images).log()


@register_loss("binary_cross_entropy", title="BCE")
def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy over images and classes of logits (image, class) and targets 0 or 1."""
    check_loss("logits", logits, targets)
    return F.softplus(wrong_logits(logits.float(), targets)).mean()


def class_specific_embedding_loss(
    distances: Tensor,
    targets: Tensor,
    *,
    class_counts: Counts,
    margin: float = 0.2,
    reweight_gamma: float = 1.0,
    class_aware_margin: bool = True,
    reweight: bool = True,
) -> Tensor:
    """LMPT's embedding loss: captions pull the prompts of present classes near and push absent ones to a margin.

    With D = 1 − cos(caption, prompt of class i): r_i·D where the image has class i, r_i·max(0, μ_i − D) where it has
    not; the mean over images and classes, as in the public code, whose sign is that of the other direction
    (max(0, μ − y·D) with y = +1 is smallest when a present class is far away). Here the text of the paper holds.

    Args:
        distances: D, (image, class), from 0 to 2.
        targets: (image, class), 0 or 1.
        class_counts: n_i ≥ 1, (class,).
        margin, class_aware_margin: See :func:`class_aware_margins`; False gives every class the same margin.
        reweight_gamma, reweight: γ of :func:`class_weights`; False weighs every class 1 / number of classes.

    Source: Xia et al. 2024, https://arxiv.org/abs/2305.04536
    """
    check_loss("distances", distances, targets)
    counts = counts_of(class_counts, distances)
    margins = class_aware_margins(counts, margin, power=0.25 if class_aware_margin else 0.0)
    weights = class_weights(counts, reweight_gamma if reweight else 0.0)
    distances = distances.float()
    return (weights * torch.where(targets.bool(), distances, F.relu(margins - distances))).mean()


def class_weights(class_counts: Counts, gamma: float) -> Tensor:
    """r_i = (1/n_i)^γ / Σ_j (1/n_j)^γ with γ ≥ 0, float32 (class,): positive, with sum 1 (Xia et al. 2024)."""
    if gamma < 0:
        raise ValueError(f"the re-weighting gamma is {gamma}; expected 0 or more")
    return torch.softmax(-gamma * counts_of(class_counts).log(), dim=0)  # no power overflows or vanishes


def class_aware_margins(class_counts: Counts, margin: float, *, power: float = 0.25) -> Tensor:
    """Soft margins μ_i = margin · n_i^(−1/4), float32 (class,): wide for rare classes, narrow for frequent ones.

    Args:
        class_counts: n_i ≥ 1, (class,).
        margin: What a class with a single image gets, > 0, in units of the distance 1 − cos.
        power: The exponent; 0 gives every class the same margin.

    Source: Xia et al. 2024, after Cao et al. 2019 (LDAM), https://arxiv.org/abs/1906.07413
    """
    if margin <= 0:
        raise ValueError(f"margin is {margin}; expected a number above 0")
    return margin * counts_of(class_counts).pow(-power)


def wrong_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit of the wrong answer: -z where the class is present, z where it is absent."""
    return (1 - 2 * targets.float()) * logits


def focal_factor(wrong: Tensor, gamma: float) -> Tensor:
    """p^γ for the probability p of the wrong answer; by logarithms, so its gradient is finite for any γ ≥ 0."""
    if gamma < 0:
        raise ValueError(f"the focal gamma is {gamma}; expected 0 or more")
    return torch.exp(gamma * F.logsigmoid(wrong))
