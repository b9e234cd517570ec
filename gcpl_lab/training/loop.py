"""One training loop for every objective: a generator that yields a small record each step.

    for record in train(objective, batch_at, config):
        print(record.step, record.loss)        # plot it, log it, or break

- ``objective(batch)`` returns a dict of scalars with the key ``"loss"``.
- ``objective.trainable_parameters()`` lists what may change; everything else is frozen.
- ``batch_at(step)`` makes the batch of a step from the step's number alone, so a resumed run is bit-identical.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gcpl_lab.errors import ArtifactError, TrainingError
from gcpl_lab.storage import read_tensors, write_tensors
from gcpl_lab.training.runtime import make_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator


class Objective(Protocol):
    """What is trained: some parameters, and a loss that depends on them."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimiser may change."""

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Scalars of one batch; ``"loss"`` is minimised, the others are recorded."""


@dataclass(frozen=True)
class TrainingConfig:
    """How a set of parameters is trained.

    Attributes:
        num_steps: Optimiser updates.
        learning_rate: The optimiser's peak rate.
        optimizer: ``"adamw"``, or ``"sgd"`` with momentum 0.9.
        schedule: ``"cosine"`` or ``"linear"`` to zero after the warm-up, or ``"constant"``.
        warmup_steps: Updates of linear growth to the peak.
        weight_decay: The optimiser's; 0 by default, because decay pulls prompts towards no word at all.
        gradient_clip: Largest norm of the whole gradient; 0 switches clipping off.
        validate_every: Steps between validations (where a validation is given).
        patience: Validations without improvement after which training stops; 0 never stops early.
        checkpoint_every: Steps between checkpoints (where a checkpoint path is given).
    """

    num_steps: int
    learning_rate: float
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    validate_every: int = 50
    patience: int = 0
    checkpoint_every: int = 50
    optimizer: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer is {self.optimizer!r}; expected 'adamw' or 'sgd'")
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule is {self.schedule!r}; expected 'cosine', 'linear' or 'constant'")

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The chosen optimiser over ``parameters``."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay)
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)

    def rate_at(self, step: int) -> float:
        """Learning rate of update number ``step`` (from 0)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        if self.schedule == "linear":
            return self.learning_rate * (1 - done)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class StepRecord:
    """What one update did.

    Attributes:
        step: Number of updates done, from 1.
        loss: The minimised scalar.
        values: The objective's other scalars.
        learning_rate: Of this update.
        validation: The validation loss where one was measured after this update, else None.
        seconds: Since the loop began.
    """

    step: int
    loss: float
    values: dict[str, float]
    learning_rate: float
    validation: float | None
    seconds: float


def train(
    objective: Objective,
    batch_at: Callable[[int], Any],
    config: TrainingConfig,
    *,
    validate: Callable[[], float] | None = None,
    checkpoint: str | Path | None = None,
    fingerprint: str = "",
    stop_after: int | None = None,
    accelerator: Accelerator | None = None,
) -> Iterator[StepRecord]:
    """Train ``objective``, yielding a record after every update.

    With ``validate``, the best validated parameters are put back in the end. With ``checkpoint``, an
    interrupted run goes on where its last checkpoint stands and ends bit-identical to an uninterrupted one.

    Args:
        objective: What to minimise.
        batch_at: Makes the batch of a step from the step's number (from 0).
        config: Length, rates and intervals.
        validate: Deterministic validation loss of the present parameters; lower is better.
        checkpoint: A safetensors file for parameters, optimiser and progress; never the frozen model.
        fingerprint: Tells runs apart: a checkpoint with another fingerprint is refused.
        stop_after: End after this many updates while the learning rate follows the whole schedule.
        accelerator: Of accelerate; one is made where none is given.

    Yields:
        One ``StepRecord`` an update that this call made.

    Raises:
        TrainingError: The loss or gradient is not finite; the parameters are those before that update.
        ArtifactError: The checkpoint is damaged or belongs to another run.
    """
    accelerator = accelerator or make_accelerator(cpu=next(iter(objective.trainable_parameters())).device.type == "cpu")
    parameters = objective.trainable_parameters()
    optimizer = config.make_optimizer(parameters)
    progress = _Progress(parameters)
    path = Path(checkpoint) if checkpoint else None
    fingerprint = json.dumps([asdict(config), fingerprint], sort_keys=True)
    if path and path.is_file():
        progress.restore(path, parameters, optimizer, fingerprint)
    began = time.perf_counter()
    last = config.num_steps if stop_after is None else min(stop_after, config.num_steps)
    while progress.step < last and not progress.exhausted(config.patience):
        step = progress.step
        rate = config.rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        with accelerator.autocast():
            values = objective(batch_at(step))
        accelerator.backward(values["loss"])
        _average_gradients(parameters, accelerator)
        _check_finite(step, values["loss"], parameters)
        if config.gradient_clip:
            nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        optimizer.step()
        progress.step = done = step + 1
        measured = None
        if validate and (done % config.validate_every == 0 or done == last):
            measured = validate()
            progress.note(measured, parameters)
        if path and accelerator.is_main_process and (done % config.checkpoint_every == 0 or done == last):
            progress.save(path, parameters, optimizer, fingerprint)
        numbers = {name: float(value.detach()) for name, value in values.items()}
        yield StepRecord(done, numbers.pop("loss"), numbers, rate, measured, time.perf_counter() - began)
    progress.put_best_back(parameters)


def _average_gradients(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    """The few trainable tensors are averaged by hand, so nothing has to be wrapped for several processes."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")


def _check_finite(step: int, loss: Tensor, parameters: list[nn.Parameter]) -> None:
    """Stop before the update, so the parameters are the last good ones."""
    bad_gradient = any(p.grad is not None and not bool(torch.isfinite(p.grad).all()) for p in parameters)
    if bool(torch.isfinite(loss)) and not bad_gradient:
        return
    what = "gradient" if bool(torch.isfinite(loss)) else f"loss ({float(loss.detach())})"
    raise TrainingError(
        f"step {step + 1}: the {what} is not finite. The prompts are those before this step and the last checkpoint "
        "is untouched. Lower the learning rate, set gradient_clip, or train in float32."
    )


class _Progress:
    """Where a run stands: its step, and the best validated parameters so far."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.step = 0
        self.best_loss = math.inf
        self.num_without_improvement = 0
        self.best = [parameter.detach().clone() for parameter in parameters]

    def exhausted(self, patience: int) -> bool:
        return bool(patience) and self.num_without_improvement >= patience

    def note(self, loss: float, parameters: list[nn.Parameter]) -> None:
        if loss < self.best_loss:
            self.best_loss, self.num_without_improvement = loss, 0
            self.best = [parameter.detach().clone() for parameter in parameters]
        else:
            self.num_without_improvement += 1

    def put_best_back(self, parameters: list[nn.Parameter]) -> None:
        if math.isfinite(self.best_loss):
            with torch.no_grad():
                for parameter, best in zip(parameters, self.best, strict=True):
                    parameter.copy_(best)

    def save(
        self, path: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, fingerprint: str
    ) -> None:
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(parameters):
            tensors[f"parameter.{index}"] = parameter
            tensors[f"best.{index}"] = self.best[index]
            for name, value in optimizer.state[parameter].items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        numbers = {"step": self.step, "best_loss": self.best_loss, "without": self.num_without_improvement}
        write_tensors(path, tensors, {"progress": json.dumps(numbers), "fingerprint": fingerprint})

    def restore(
        self, path: Path, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, fingerprint: str
    ) -> None:
        tensors, metadata = read_tensors(path)
        if metadata.get("fingerprint") != fingerprint:
            raise ArtifactError(
                f"{path}: belongs to a run with other settings, data or model than this one; "
                "give this run another folder, or delete the file to start anew"
            )
        missing = [f"{kind}.{i}" for i in range(len(parameters)) for kind in ("parameter", "best")]
        missing = [name for name in missing if name not in tensors]
        if "progress" not in metadata or missing:
            raise ArtifactError(f"{path}: lacks {', '.join(missing) or 'its progress'}; delete it to start anew")
        for index, parameter in enumerate(parameters):
            if (found := tuple(tensors[f"parameter.{index}"].shape)) != tuple(parameter.shape):
                raise ArtifactError(
                    f"{path}: holds parameter.{index} of shape {found}; expected {tuple(parameter.shape)}; "
                    "delete it to start anew"
                )
        numbers = json.loads(metadata["progress"])
        self.step, self.best_loss = int(numbers["step"]), float(numbers["best_loss"])
        self.num_without_improvement = int(numbers["without"])
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                parameter.copy_(tensors[f"parameter.{index}"])
                self.best[index] = tensors[f"best.{index}"].to(parameter.device)
                prefix = f"optimizer.{index}."
                state[index] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
