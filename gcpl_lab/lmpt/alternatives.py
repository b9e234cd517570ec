"""Classification losses that LMPT's ablation compares with the distribution-balanced one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.lmpt.checks import Counts, check_loss, counts_of
from gcpl_lab.lmpt.losses import focal_factor, register_loss, wrong_logits


@register_loss("focal", title="Focal")
def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, balance: float = 1.0) -> Tensor:
    """Binary cross entropy in which easy answers count little: balance · (1 − p)^γ · −log p, γ ≥ 0.

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, eq. 4
    """
    check_loss("logits", logits, targets)
    wrong = wrong_logits(logits.float(), targets)
    return balance * (focal_factor(wrong, gamma) * F.softplus(wrong)).mean()


@register_loss("class_balanced", title="Class-balanced")
def class_balanced_loss(
    logits: Tensor, targets: Tensor, *, class_counts: Counts, beta: float = 0.999, focal_gamma: float = 0.0
) -> Tensor:
    """Classes weigh 1 / effective number of samples, (1 − β)/(1 − β^n), with mean weight one.

    Args:
        logits: (image, class).
        targets: (image, class), 0 or 1.
        class_counts: n_i ≥ 1, (class,).
        beta: β from 0 (all classes alike) to below 1 (towards 1/n_i).
        focal_gamma: Exponent of a focal factor on top; 0 for none.

    Source: Cui et al. 2019, https://arxiv.org/abs/1901.05555, eq. 6
    """
    check_loss("logits", logits, targets)
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}; expected 0 or more and below 1")
    counts = counts_of(class_counts, logits)
    # 1 - beta^n by expm1: the plain difference loses all digits for beta close to 1 and small n.
    weights = 1.0 / (-torch.expm1(counts * math.log(beta)) if beta > 0 else torch.ones_like(counts))
    wrong = wrong_logits(logits.float(), targets)
    return (weights / weights.mean() * focal_factor(wrong, focal_gamma) * F.softplus(wrong)).mean()


@register_loss("asymmetric", title="ASL")
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

    Args:
        logits: (image, class).
        targets: (image, class), 0 or 1.
        gamma_positive, gamma_negative: γ₊ and γ₋, 0 or more.
        clip: The probability below which an absent class costs nothing, from 0 to below 1.
        detach_weight: Take the focusing weights as constants, as in LMPT's comparison. False: differentiate them too,
            as Ridnik et al. write the loss; the values are the same.

    Source: Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, eq. 7; defaults as in LMPT's comparison
    """
    check_loss("logits", logits, targets)
    if not 0 <= clip < 1:
        raise ValueError(f"clip is {clip}; expected a probability of 0 or more and below 1")
    logits = logits.float()
    log_absent = F.logsigmoid(-logits)
    if clip > 0:  # log(1 - p + clip), at most log 1, without leaving logarithms
        log_absent = torch.logaddexp(log_absent, torch.full_like(log_absent, math.log(clip))).clamp_max(0)
    # The floor keeps the power's gradient finite for gamma below 1; the logarithm beside it is 0 there.
    shifted, present = (torch.sigmoid(logits) - clip).clamp_min(1e-8), targets.bool()
    weights = torch.where(present, focal_factor(-logits, gamma_positive), shifted.pow(gamma_negative))
    weights = weights.detach() if detach_weight else weights
    return (weights * torch.where(present, F.softplus(-logits), -log_absent)).mean()
