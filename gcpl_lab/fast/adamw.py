"""AdamW as torch computes it, called without what surrounds it there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class FusedAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW(fused=True)`` on a CPU, digit for digit, with its state and its state dict.

    A step of torch's own opens a profiler's record, asks for hooks and a GPU's graph, and sorts parameters by device.
    Around an update of a few milliseconds, which leaves none of that in a cache, it takes a tenth of a millisecond
    and more; the operation itself takes a tenth of that. So hooks on a step are not called.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], lr: float, eps: float = 1e-8, weight_decay: float = 1e-2
    ) -> None:
        """As torch's, for parameters on a CPU."""
        super().__init__(parameters, lr=lr, eps=eps, weight_decay=weight_decay, fused=True)
        self._step_supports_amp_scaling = False  # a scaler looks for overflows itself

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Raises:
            ValueError: A closure is given.
        """
        if closure is not None:
            raise ValueError("a closure was given to FusedAdamW.step; expected none: compute the gradients before")
        for group in self.param_groups:
            # parameters, gradients, first moments, second moments, largest ones (none here), steps
            lists: list[list[Tensor]] = [[] for _ in range(6)]
            self._init_group(group, *lists)
            if lists[0]:
                torch._foreach_add_(lists[5], 1)
                beta1, beta2 = group["betas"]
                torch._fused_adamw_(
                    *lists,
                    lr=group["lr"],
                    beta1=beta1,
                    beta2=beta2,
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                    grad_scale=None,
                    found_inf=None,
                )

    step.hooked = True  # type: ignore[attr-defined]  # torch leaves it as it is
