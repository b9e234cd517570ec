"""What a training run is told, and what it tells: settings, one record an update, and the history of all."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn


class Objective(Protocol):
    """What is trained: some parameters, and a loss that depends on them."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimizer may change."""

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Scalars of one batch; ``"loss"`` is minimised, the others are recorded."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a set of parameters is trained.

    Attributes:
        num_steps: Updates.
        learning_rate: The optimizer's peak rate.
        schedule: ``"cosine"`` or ``"linear"`` to zero after the warm-up, or ``"constant"``.
        warmup_steps: Updates of linear growth to the peak.
        weight_decay: The optimizer's; 0 by default, because decay pulls prompts towards no word at all.
        gradient_clip: Largest norm of the whole gradient; 0 switches clipping off.
        checkpoint_every: Updates between checkpoints, where a path for them is given.
        optimizer: ``"adamw"``, or ``"sgd"`` with momentum 0.9.
        micro_batch_size: Most samples in one pass; None: the whole batch, or as much of it as memory allows.
        epsilon: AdamW's. Where a gradient is much smaller, AdamW does not magnify how it was rounded.
    """

    num_steps: int
    learning_rate: float
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    checkpoint_every: int = 50
    optimizer: Literal["adamw", "sgd"] = "adamw"
    micro_batch_size: int | None = None
    epsilon: float = 1e-8

    def identity(self) -> dict[str, Any]:
        """What two parts of one run must have in common; how often and in how many passes is free."""
        return {k: v for k, v in asdict(self).items() if k not in ("checkpoint_every", "micro_batch_size")}

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The chosen optimizer over ``parameters``.

        Raises:
            ValueError: Optimizer or schedule are none of those listed.
        """
        for name, known in (("optimizer", ("adamw", "sgd")), ("schedule", ("cosine", "linear", "constant"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        rate, decay = self.learning_rate, self.weight_decay
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
        on_cpu = parameters[0].device.type == "cpu"
        return torch.optim.AdamW(parameters, lr=rate, eps=self.epsilon, weight_decay=decay, fused=on_cpu)

    def rate_at(self, step: int) -> float:
        """Learning rate of update number ``step`` (from 0)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        left = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
        return self.learning_rate * left[self.schedule]


@dataclass(frozen=True)
class StepRecord:
    """What one update did.

    Attributes:
        step: Number of updates done, from 1.
        loss: The minimised scalar.
        values: The objective's other scalars.
        learning_rate: Of this update.
        seconds: Since the run began.
    """

    step: int
    loss: float
    values: dict[str, float]
    learning_rate: float
    seconds: float = 0.0


@dataclass
class History:
    """What a whole run leaves behind, updates before a resumption included; :func:`train` fills it.

    Attributes:
        every: Updates between kept states; 0 keeps none.
        early: Keep the states after 1, 2, 4, 8 ... updates too: much happens before the first usual one.
        records: One an update.
        states: The parameters' values after every ``every`` updates and after the last, by the number of updates.
    """

    every: int = 0
    early: bool = False
    records: list[StepRecord] = field(default_factory=list)
    states: dict[int, list[Tensor]] = field(default_factory=dict)

    def keeps(self, step: int, last: int) -> bool:
        """Whether the state after ``step`` of ``last`` updates is kept."""
        power_of_two = step & (step - 1) == 0
        return bool(self.every) and (step % self.every == 0 or step == last or (self.early and power_of_two))
