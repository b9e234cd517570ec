"""Every loss as a pure function of tensors: nothing here knows a model.

Denoising losses first (GCPL, CoMPLe, the discriminative objective), multi-label losses after them (LMPT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Counts = Tensor | np.ndarray | Sequence[int] | Sequence[float]
"""Number of training images with each class, (class,), from 1 upwards."""


def _check_same_shape(first_name: str, first: Tensor, second_name: str, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} has shape {tuple(first.shape)} and {second_name} has {tuple(second.shape)}; "
            "they must be equal"
        )


# Multi-label losses: logits and targets are (image, class), scores are sigmoids, nothing is a softmax.
# All are computed in float32 and from log-sigmoids, so logits of +-100 and bfloat16 inputs are no trouble.


def _check_multilabel(name: str, values: Tensor, targets: Tensor) -> None:
    if values.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected (image, class)")
    _check_same_shape(name, values, "targets", targets)
    if not torch.equal(targets * targets, targets):  # only 0 and 1 are their own squares
        raise ValueError("targets hold a value other than 0 and 1; expected 1 where the image has the class, else 0")


def _counts_tensor(class_counts: Counts, device: torch.device | None = None, num_classes: int | None = None) -> Tensor:
    counts = torch.as_tensor(class_counts, dtype=torch.float32, device=device)
    if counts.ndim != 1 or (num_classes is not None and len(counts) != num_classes):
        raise ValueError(
            f"class_counts has shape {tuple(counts.shape)}; expected one number a class"
            + (f", ({num_classes},)" if num_classes is not None else "")
        )
    if bool((counts < 1).any()):
        index = int((counts < 1).nonzero()[0])
        raise ValueError(
            f"class_counts is {float(counts[index]):g} for class {index}; expected 1 or more: "
            "leave a class without training images out, or count it as 1"
        )
    return counts


def _wrong(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit of the wrong answer: -z where the class is present, z where it is absent."""
    return (1 - 2 * targets.float()) * logits


def _focal_factor(wrong: Tensor, gamma: float) -> Tensor:
    """p^γ for the probability p of the wrong answer; by logarithms, so its gradient is finite for any γ ≥ 0."""
    if gamma < 0:
        raise ValueError(f"the focal gamma is {gamma}; expected 0 or more")
    return torch.exp(gamma * F.logsigmoid(wrong))


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy over images and classes: every class of every image counts the same.

    Args:
        logits: (image, class), any real numbers.
        targets: (image, class), 0 or 1.

    Returns:
        A scalar ≥ 0.

    Raises:
        ValueError: Shapes differ or are not two-dimensional, or a target is neither 0 nor 1.
    """
    _check_multilabel("logits", logits, targets)
    return F.softplus(_wrong(logits.float(), targets)).mean()


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, balance: float = 1.0) -> Tensor:
    """Binary cross entropy in which easy answers count little: balance · (1 − p)^γ · −log p.

    Args:
        logits: (image, class).
        targets: (image, class), 0 or 1.
        gamma: γ ≥ 0; 0 gives plain cross entropy.
        balance: A constant factor that makes up for the smaller values.

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, eq. 4
    """
    _check_multilabel("logits", logits, targets)
    wrong = _wrong(logits.float(), targets)
    return balance * (_focal_factor(wrong, gamma) * F.softplus(wrong)).mean()


def class_weights(class_counts: Counts, gamma: float) -> Tensor:
    """Re-weighting of LMPT: r_i = (1/n_i)^γ / Σ_j (1/n_j)^γ.

    A softmax of −γ·log n, so that no power of a large count overflows or vanishes.

    Args:
        class_counts: n_i ≥ 1, (class,).
        gamma: γ ≥ 0; 0 weighs all classes alike, 1 inversely to their counts.

    Returns:
        float32 (class,), positive, with sum 1.

    Source: Xia et al. 2024, https://arxiv.org/abs/2305.04536
    """
    if gamma < 0:
        raise ValueError(f"the re-weighting gamma is {gamma}; expected 0 or more")
    return torch.softmax(-gamma * _counts_tensor(class_counts).log(), dim=0)


def class_aware_margins(class_counts: Counts, margin: float, *, power: float = 0.25) -> Tensor:
    """Soft margins of LMPT: μ_i = margin · n_i^(−1/4), wide for rare classes, narrow for frequent ones.

    Args:
        class_counts: n_i ≥ 1, (class,).
        margin: What a class with a single image gets, > 0, in units of the distance 1 − cos.
        power: The exponent; 0 gives every class the same margin.

    Returns:
        float32 (class,).

    Source: Xia et al. 2024, https://arxiv.org/abs/2305.04536, after Cao et al. 2019 (LDAM),
        https://arxiv.org/abs/1906.07413
    """
    if margin <= 0:
        raise ValueError(f"margin is {margin}; expected a number above 0")
    return margin * _counts_tensor(class_counts).pow(-power)


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

    With D = 1 − cos(caption, prompt of class i): r_i·D where the image has class i, r_i·max(0, μ_i − D) where
    it has not; the mean over images and classes, as in the public code. The weights sum to one over classes,
    so the value is that of a weighted average divided by the number of classes.

    The public code has the sign of the other direction: max(0, μ − y·D) with y = +1 is smallest when a present
    class is far away. Here the text of the paper holds.

    Args:
        distances: D, (image, class), from 0 to 2.
        targets: (image, class), 0 or 1.
        class_counts: n_i ≥ 1, the number of training images with each class.
        margin: > 0, see :func:`class_aware_margins`.
        reweight_gamma: γ ≥ 0 of :func:`class_weights`.
        class_aware_margin: False gives every class the same margin.
        reweight: False weighs every class 1 / number of classes, which keeps the scale comparable.

    Returns:
        A scalar ≥ 0.

    Source: Xia et al. 2024, https://arxiv.org/abs/2305.04536
    """
    _check_multilabel("distances", distances, targets)
    counts = _counts_tensor(class_counts, distances.device, distances.shape[-1])
    gamma = reweight_gamma if reweight else 0.0
    return weighted_embedding_loss(
        distances, targets, *embedding_margins_and_weights(counts, margin, gamma, class_aware_margin)
    )


def embedding_margins_and_weights(
    class_counts: Counts, margin: float, reweight_gamma: float, class_aware_margin: bool
) -> tuple[Tensor, Tensor]:
    """μ and r of :func:`class_specific_embedding_loss`, float32 (class,) each: they are the same in every step."""
    margins = class_aware_margins(class_counts, margin, power=0.25 if class_aware_margin else 0.0)
    return margins, class_weights(class_counts, reweight_gamma)


def weighted_embedding_loss(distances: Tensor, targets: Tensor, margins: Tensor, weights: Tensor) -> Tensor:
    """:func:`class_specific_embedding_loss` of margins and weights (class,) that are known, unchecked."""
    distances = distances.float()
    terms = torch.where(targets.bool(), distances, F.relu(margins - distances))
    return (weights * terms).mean()


def rebalanced_weights(targets: Tensor, class_counts: Counts, *, alpha: float, beta: float, mu: float) -> Tensor:
    """Re-balanced weights: what class-balanced sampling would undo, smoothed: r̂ = α + σ(β·(r − μ)).

    r_{k,i} = (1/n_i) / Σ_{j in image k} (1/n_j) compares how often class i should be drawn with how often
    image k is drawn through all its classes. An image without any class is never drawn; its r is infinite
    and its weight the limit α + 1.

    Args:
        targets: (image, class), 0 or 1.
        class_counts: n_i ≥ 1, (class,).
        alpha: α ≥ 0, the weight that always remains.
        beta: β > 0, how sharply the smoothing switches.
        mu: μ, the ratio at which it switches.

    Returns:
        float32 (image, class), between α and α + 1.

    Source: Wu et al. 2020, https://arxiv.org/abs/2007.09654, eq. 4 and 5
    """
    inverse = 1.0 / _counts_tensor(class_counts, targets.device, targets.shape[1])
    drawn = (targets.float() * inverse).sum(dim=1, keepdim=True)
    return alpha + torch.sigmoid(beta * (inverse / drawn.clamp_min(1e-12) - mu))


def class_bias(class_counts: Counts, num_images: int, *, bias_scale: float, negative_scale: float) -> Tensor:
    """ν_i = −κ·log(N/n_i − 1)/λ: the logit of the class's prior, scaled; added to the logits in training.

    A class that every image has would give +∞; its prior is taken as half an image less than certain.

    Args:
        class_counts: n_i from 1 to N, (class,).
        num_images: N ≥ 1, the number of training images.
        bias_scale: κ ≥ 0.
        negative_scale: λ > 0.

    Returns:
        float32 (class,), below 0 for classes in fewer than half of the images.

    Source: Wu et al. 2020, https://arxiv.org/abs/2007.09654, eq. 8, with the sign of the authors' code
    """
    counts = _counts_tensor(class_counts)
    if len(counts) and float(counts.max()) > num_images:
        raise ValueError(
            f"class_counts reaches {float(counts.max()):g}, more than num_images, which is {num_images}; "
            "count images that have the class, over the same training set"
        )
    odds = (num_images / counts - 1).clamp_min(0.5 / num_images)
    return -bias_scale / negative_scale * odds.log()


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
    """Distribution-balanced loss: re-balanced weights, tolerance for negatives, focal modulation; each switchable.

    With z' = z + ν_i, absent classes see λ·z' and count 1/λ, so that the many easy negatives of a rare class
    stop pulling early; see :func:`rebalanced_weights` and :func:`class_bias`. With all three parts off this is
    :func:`binary_cross_entropy`. Defaults are those of VOC-LT; for COCO-LT ``negative_scale=2, mu=0.2``.
    The focal factor is taken per image and class, as in Wu et al.; the copy in the LMPT repository takes it
    from the mean cross entropy of the whole batch.

    Args:
        logits: (image, class).
        targets: (image, class), 0 or 1.
        class_counts: n_i ≥ 1, the number of training images with each class.
        num_images: N, the number of training images.
        alpha, beta, mu: Of the re-balanced weights.
        negative_scale: λ ≥ 1.
        bias_scale: κ ≥ 0.
        focal_gamma, focal_balance: Exponent and constant factor of the focal part.
        rebalance, negative_tolerant, focal: Switch the three parts.

    Returns:
        The mean over images and classes, ≥ 0.

    Source: Wu et al. 2020, https://arxiv.org/abs/2007.09654, eq. 10
    """
    _check_multilabel("logits", logits, targets)
    if negative_scale <= 0:
        raise ValueError(f"negative_scale is {negative_scale}; expected a number above 0")
    counts = _counts_tensor(class_counts, logits.device, logits.shape[1])
    present, logits = targets.bool(), logits.float()
    weights = torch.ones_like(logits)
    if rebalance:
        weights = rebalanced_weights(targets, counts, alpha=alpha, beta=beta, mu=mu)
    absent_scale = 1.0
    if negative_tolerant:
        logits = logits + class_bias(counts, num_images, bias_scale=bias_scale, negative_scale=negative_scale)
        weights, absent_scale = torch.where(present, weights, weights / negative_scale), negative_scale
    wrong = torch.where(present, -1.0, absent_scale) * logits
    if focal:
        weights = weights * focal_balance * _focal_factor(wrong, focal_gamma)
    return (weights * F.softplus(wrong)).mean()


def class_balanced_loss(
    logits: Tensor, targets: Tensor, *, class_counts: Counts, beta: float = 0.999, focal_gamma: float = 0.0
) -> Tensor:
    """Class-balanced loss: classes weigh 1 / effective number of samples, (1 − β)/(1 − β^n), mean weight one.

    Args:
        logits: (image, class).
        targets: (image, class), 0 or 1.
        class_counts: n_i ≥ 1, (class,).
        beta: β from 0 (all classes alike) to below 1 (towards 1/n_i).
        focal_gamma: Exponent of a focal factor on top; 0 for none.

    Source: Cui et al. 2019, https://arxiv.org/abs/1901.05555, eq. 6
    """
    _check_multilabel("logits", logits, targets)
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; expected 0 or more and below 1")
    counts = _counts_tensor(class_counts, logits.device, logits.shape[1])
    # 1 - beta^n by expm1: the plain difference loses all digits for beta close to 1 and small n.
    effective = -torch.expm1(counts * math.log(beta)) if beta > 0 else torch.ones_like(counts)
    weights = 1.0 / effective
    weights = weights / weights.mean()
    wrong = _wrong(logits.float(), targets)
    return (weights * _focal_factor(wrong, focal_gamma) * F.softplus(wrong)).mean()


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    clip: float = 0.05,
    detach_weight: bool = True,
) -> Tensor:
    """Asymmetric loss (ASL): absent classes are focused harder than present ones, and easy ones dropped.

    Present: (1 − p)^γ₊ · −log p. Absent: p_m^γ₋ · −log(1 − p_m) with p_m = max(p − clip, 0).

    The values are the same with and without ``detach_weight``, the gradients are not: a detached weight scales the
    gradient of the logarithm and has none of its own.

    Args:
        logits: (image, class).
        targets: (image, class), 0 or 1.
        gamma_positive: γ₊ ≥ 0.
        gamma_negative: γ₋ ≥ 0.
        clip: The probability below which an absent class costs nothing, from 0 to below 1.
        detach_weight: Take the focusing weights (1 − p)^γ₊ and p_m^γ₋ as constants, as in LMPT's comparison. False:
            differentiate them too, as Ridnik et al. write the loss.

    Source: Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, eq. 7; defaults as in LMPT's comparison
    """
    _check_multilabel("logits", logits, targets)
    if not 0 <= clip < 1:
        raise ValueError(f"clip is {clip}; expected a probability of 0 or more and below 1")
    logits = logits.float()
    log_absent = F.logsigmoid(-logits)
    if clip > 0:  # log(1 - p + clip), at most log 1, without leaving logarithms
        log_absent = torch.logaddexp(log_absent, torch.full_like(log_absent, math.log(clip))).clamp_max(0)
    # The floor keeps the power's gradient finite for gamma below 1; the logarithm beside it is 0 there.
    shifted = (torch.sigmoid(logits) - clip).clamp_min(1e-8)
    present = targets.bool()
    weights = torch.where(present, _focal_factor(-logits, gamma_positive), shifted.pow(gamma_negative))
    if detach_weight:
        weights = weights.detach()
    return (weights * torch.where(present, F.softplus(-logits), -log_absent)).mean()
