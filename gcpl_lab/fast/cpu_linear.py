"""Products with frozen float32 weights by oneDNN, on processors whose AVX-512 torch's own products leave alone.

torch multiplies float32 matrices with MKL, which takes its AVX-512 kernels on Intel's processors and kernels of half
the width on others; its convolutions go to oneDNN, which asks the processor what it can. So a linear layer asks
oneDNN too, forth and back: the same sums, added up in another order, in half of the time
(``benchmarks/gcpl_step.py --operations`` measures it). Only where ``processor.float32_products`` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from gcpl_lab.training.processor import float32_products

LEAST_WORK = 1 << 21
"""Multiplications from which on a product gains; twice as many where its gradient is asked for later, which costs."""

_AS_TORCH: ContextVar[bool] = ContextVar("as_torch", default=False)


@contextmanager
def torch_products() -> Iterator[None]:
    """Leave every product to torch itself, in this thread; for comparisons, and for who counts operations."""
    token = _AS_TORCH.set(True)
    try:
        yield
    finally:
        _AS_TORCH.reset(token)


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """A context in which operations keep the types they are given; free where nothing would be cast."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


class _Product(torch.autograd.Function):
    """rows · weightᵀ + bias, with the gradient of the rows alone."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # frozen: nothing to check for changes
        return _multiply(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _multiply(gradient, ctx.weight.t(), None), None, None


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    answer: Tensor = torch.ops.mkldnn._linear_pointwise.default(rows.contiguous(), weight, bias, "none", [], "")
    return answer


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, by oneDNN where that is faster; the numbers are equal up to rounding.

    Args:
        rows: (..., in).
        weight: (out, in); a weight that is learned is left to torch.
        bias: (out,).
    """
    recorded = rows.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling() or not _gains(rows, weight, LEAST_WORK * (2 if recorded else 1)):
        return F.linear(rows, weight, bias)
    if recorded:
        answer: Tensor = _Product.apply(rows, weight, bias)
        return answer
    return _multiply(rows, weight, bias)


def _gains(rows: Tensor, weight: Tensor, least_work: int) -> bool:
    return (
        rows.numel() * len(weight) >= least_work
        and rows.dtype == weight.dtype == torch.float32
        and not weight.requires_grad
        and rows.device.type == "cpu"
        and not _AS_TORCH.get()
        and not torch.is_autocast_enabled("cpu")
        and float32_products() == "oneDNN"
    )


class PackedProduct:
    """rows · weightᵀ + bias and its way back, for the same weight again and again and rows so few that oneDNN would
    spend a quarter of its time on sorting the weight. Where oneDNN is not the faster one, torch multiplies.
    """

    LEAST_WORK = 1 << 19
    """Multiplications from which on oneDNN gains."""

    def __init__(self, weight: Tensor, bias: Tensor | None, num_rows: int) -> None:
        """Keep a frozen weight; it is sorted for a way when that is first gone.

        Args:
            weight: (out, in).
            bias: (out,).
            num_rows: How many there will be; any number is right, this one is fast.
        """
        self.weight, self.bias, self._num_rows = weight.detach(), bias, num_rows
        gains = weight.numel() * num_rows >= self.LEAST_WORK and float32_products() == "oneDNN"
        self._packs = gains and weight.dtype == torch.float32 and weight.device.type == "cpu"

    @cached_property
    def _forth(self) -> Tensor:
        return self._pack(self.weight)

    @cached_property
    def _back(self) -> Tensor:
        return self._pack(self.weight.t())

    def _pack(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight.contiguous(), self._num_rows)
        return packed

    def forth(self, rows: Tensor) -> Tensor:
        """(row, out) from (row, in)."""
        if not self._packs or _AS_TORCH.get():
            return F.linear(rows, self.weight, self.bias)
        return _multiply(rows, self._forth, self.bias)

    def back(self, gradient: Tensor) -> Tensor:
        """Gradient (row, in) of the rows from that of the answer, (row, out)."""
        if not self._packs or _AS_TORCH.get():
            return gradient @ self.weight
        return _multiply(gradient, self._back, None)


class FrozenLinear(nn.Linear):
    """A linear layer whose product is :func:`linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return linear(input, self.weight, self.bias)


PLAIN_LINEAR = (nn.Linear, NonDynamicallyQuantizableLinear, FrozenLinear)
"""Classes that compute a linear layer and nothing else."""


def use_fast_products(model: nn.Module) -> None:
    """Let a frozen model's linear layers ask oneDNN, where that gains here; layers of other classes stay as they are.

    Args:
        model: Its layers change their class and keep everything else: weights, names, place in the state dict.
    """
    if float32_products() == "oneDNN":
        for layer in model.modules():
            if type(layer) in PLAIN_LINEAR:
                layer.__class__ = FrozenLinear
