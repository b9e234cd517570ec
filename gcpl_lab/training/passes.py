"""Forward and backward of a whole batch, in passes that fit into memory and are shared among processes.

Passes are parts of the batch, not of a process's share of it, and gradients are added up in float64. So where a batch
has at least one pass of ``micro_batch_size`` for each process, any number of processes finds the same gradient, digit
by digit. Where it has fewer, passes get smaller, and products of other shapes round otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gcpl_lab.errors import TrainingError
from gcpl_lab.training.memory import MemoryFit
from gcpl_lab.training.processes import all_reduce, processes

if TYPE_CHECKING:
    from accelerate import Accelerator


class Passes:
    """Leaves the gradient of a whole batch in the parameters, in as few passes as memory allows."""

    def __init__(
        self, objective: Any, parameters: list[nn.Parameter], accelerator: Accelerator, micro_batch_size: int | None
    ) -> None:
        """See :func:`gcpl_lab.training.loop.train`."""
        for index, parameter in enumerate(parameters):  # in half precision most updates are lost in rounding
            if parameter.dtype is not torch.float32:
                raise TrainingError(
                    f"trainable parameter {index} is {parameter.dtype}; expected float32, whatever the frozen weights "
                    "are"
                )
        self.objective, self.parameters, self.accelerator = objective, parameters, accelerator
        self.here, self.micro_batch_size = processes(), micro_batch_size
        on_mps = parameters[0].device.type == "mps"  # which has no float64
        self._wide = torch.float32 if on_mps else torch.float64
        self._fit: MemoryFit | None = None

    def forward_and_backward(self, batch: Any) -> dict[str, float]:
        """The whole batch's scalars; its gradient is left in the parameters."""
        unit = self.objective.unit(batch) if hasattr(self.objective, "unit") else None
        if unit is None:  # every process computes the same, and an equal part of it counts
            gradients, totals = self._run([(batch, 1 / self.here.count)])
        else:  # units of a pass: what was asked for, or so many that every process has one pass
            units = -(-len(batch) // unit)
            most = max(1, -(-units // self.here.count))
            if self.micro_batch_size is not None:
                most = min(most, max(1, self.micro_batch_size // unit))
            self._fit = self._fit or MemoryFit(most)
            gradients, totals = self._fit(lambda size: self._run(self._parts(batch, unit, units, most, size)))
        if self.here.count > 1:
            empty = [torch.zeros_like(parameter, dtype=self._wide) for parameter in self.parameters]
            pairs = zip(gradients, empty, strict=True)
            gradients = [all_reduce(zero if found is None else found) for found, zero in pairs]
            summed = all_reduce(torch.stack([total.cpu().double() for total in totals.values()]))
            totals = dict(zip(totals, summed, strict=True))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
        # Both are rounded to float32 in the end, so that the order of the sums is gone from them.
        return {name: float(total.float()) for name, total in totals.items()}

    def _run(self, parts: Iterable[tuple[Any, float]]) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """Forward and backward of every part; gradients (None: no part reached it) and scalars, weighted by share."""
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        totals: dict[str, Tensor] = {}
        for part, share in parts:
            for parameter in self.parameters:
                parameter.grad = None
            with self.accelerator.autocast():
                values = self.objective(part)
            loss, scaler = values["loss"] * share, self.accelerator.scaler
            (loss if scaler is None else scaler.scale(loss)).backward()  # accelerate would divide by its own passes
            for index, parameter in enumerate(self.parameters):
                if parameter.grad is not None:
                    found, before = parameter.grad.to(self._wide), gradients[index]
                    gradients[index] = found if before is None else before + found
            for name, value in values.items():
                weighted = value.detach().to(self._wide) * share
                totals[name] = totals[name] + weighted if name in totals else weighted
        return gradients, totals

    def _parts(self, batch: Any, unit: int, units: int, most: int, size: int) -> Iterator[tuple[Any, float]]:
        """This process's parts of a batch and their shares of the whole.

        Args:
            batch: Of all processes.
            unit: Samples that belong together.
            units: How many of these the batch has.
            most: Units of a pass; each process has whole passes.
            size: Units that fit into memory, here and now: a larger pass is cut.
        """
        passes = self.here.share(-(-units // most))
        if passes.start == passes.stop:  # more processes than passes: it computes along, and nothing of it counts
            yield batch[:unit], 0.0
        for number in range(passes.start, passes.stop):
            end = min((number + 1) * most, units)
            for first in range(number * most, end, size):
                part = batch[first * unit : min(first + size, end) * unit]
                yield part, len(part) / len(batch)
