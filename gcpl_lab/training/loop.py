"""One training loop for every objective: a generator that yields a small record each step.

    for record in train(objective, batch_at, config):
        print(record.step, record.loss)        # plot it, log it, or break

- ``objective(batch)`` returns a dict of scalars with the key ``"loss"``.
- ``objective.trainable_parameters()`` lists what may change; everything else is frozen.
- ``batch_at(step)`` makes the batch of a step from the step's number alone, so a resumed run is bit-identical:
  nothing in the loop draws from a random state, so a checkpoint has none to keep.
- ``objective.unit(batch)``, where there is one, says how many consecutive samples of the batch belong together.
  Such a batch knows ``len()`` and slices, its loss is the mean over samples, and the loop parts it: among the
  processes of ``accelerate launch``, and into passes that fit into memory. The update is the same.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gcpl_lab.errors import ArtifactError, TrainingError
from gcpl_lab.fast.adamw import FusedAdamW
from gcpl_lab.storage import read_tensors, remove_leftovers, write_tensors
from gcpl_lab.training.device import apply_update, backward, make_accelerator, may_overflow, widest_float
from gcpl_lab.training.memory import MemoryFit
from gcpl_lab.training.processes import Processes, all_reduce, broadcast_number, processes
from gcpl_lab.training.processor import own_kernels

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
        micro_batch_size: Most samples in one pass, where the objective's batches can be parted; the gradients of a
            batch's passes are added up. None takes the whole batch, or as much of it as memory allows.
        epsilon: What AdamW adds to the root of its second moment. Where a gradient is much smaller than that, AdamW
            does not magnify how it was rounded; it must be small against what matters.
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
    micro_batch_size: int | None = None
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer is {self.optimizer!r}; expected 'adamw' or 'sgd'")
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule is {self.schedule!r}; expected 'cosine', 'linear' or 'constant'")

    def identity(self) -> dict[str, Any]:
        """What two parts of one run must have in common; how often and in how many passes is free."""
        return {k: v for k, v in asdict(self).items() if k not in ("checkpoint_every", "micro_batch_size")}

    def make_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The chosen optimiser over ``parameters``."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay)
        on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
        kind = FusedAdamW if on_cpu and own_kernels() else torch.optim.AdamW
        return kind(parameters, lr=self.learning_rate, eps=self.epsilon, weight_decay=self.weight_decay)

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


@dataclass
class Journal:
    """What a whole run leaves behind, updates before a resumption included; :func:`train` fills it.

    Attributes:
        every: Updates between kept states; 0 keeps none.
        records: One an update, the first ones out of the checkpoint where the run was resumed.
        states: The parameters' values after every ``every`` updates and after the last, by the number of updates.
    """

    every: int = 0
    records: list[StepRecord] = field(default_factory=list)
    states: dict[int, list[Tensor]] = field(default_factory=dict)

    def note(self, record: StepRecord, parameters: list[nn.Parameter], is_last: bool) -> None:
        """Keep one update."""
        self.records.append(record)
        if self.every and (record.step % self.every == 0 or is_last):
            self.states[record.step] = [parameter.detach().cpu().clone() for parameter in parameters]


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
    journal: Journal | None = None,
) -> Generator[StepRecord, bool | None, None]:
    """Train ``objective``, yielding a record after every update.

    With ``validate``, the best validated parameters are put back in the end. With ``checkpoint``, an
    interrupted run goes on where its last checkpoint stands and ends bit-identical to an uninterrupted one.
    :func:`end_early` ends it at an update as if that were the last; leaving the loop drops what would follow.

    Args:
        objective: What to minimise.
        batch_at: Makes the batch of a step from the step's number (from 0).
        config: Length, rates and intervals.
        validate: Deterministic validation loss of the present parameters; lower is better.
        checkpoint: A safetensors file for parameters, optimiser and journal; never the frozen model. With several
            processes the main one writes it and all read it.
        fingerprint: Tells runs apart: a checkpoint with another fingerprint is refused.
        stop_after: End after this many updates while the learning rate follows the whole schedule.
        accelerator: Of accelerate; one is made where none is given.
        journal: Filled with every update of the run, also with those made before it was resumed.

    Yields:
        One ``StepRecord`` an update that this call made.

    Raises:
        TrainingError: The loss or gradient is not finite; the parameters are those before that update. Or memory
            ran out with the smallest part of a batch.
        ArtifactError: The checkpoint is damaged, belongs to another run, or cannot be written.
    """
    parameters = objective.trainable_parameters()
    _check_float32(parameters)
    accelerator = accelerator or make_accelerator(cpu=parameters[0].device.type == "cpu")
    optimizer = config.make_optimizer(parameters)
    journal = Journal() if journal is None else journal
    progress = _Progress(parameters, journal)
    path = Path(checkpoint) if checkpoint else None
    fingerprint = json.dumps([config.identity(), fingerprint], sort_keys=True)
    if path:
        progress.begin(path, parameters, optimizer, fingerprint, accelerator)
    began = time.perf_counter() - (journal.records[-1].seconds if journal.records else 0.0)
    last = config.num_steps if stop_after is None else min(stop_after, config.num_steps)
    gradients = _Gradients(objective, parameters, accelerator, config.micro_batch_size)
    while progress.step < last and not progress.exhausted(config.patience):
        step = progress.step
        rate = config.rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        numbers = gradients(batch_at(step))
        _update(step, numbers, parameters, optimizer, accelerator, config.gradient_clip)
        progress.step = done = step + 1
        measured = None
        if validate and (done % config.validate_every == 0 or done == last):
            measured = broadcast_number(validate())
            progress.note(measured, parameters)
        seconds = time.perf_counter() - began
        record = StepRecord(done, numbers.pop("loss"), numbers, rate, measured, seconds)
        journal.note(record, parameters, done == last)
        if path and accelerator.is_main_process and (done % config.checkpoint_every == 0 or done == last):
            progress.save(path, parameters, optimizer, fingerprint, accelerator)
        if (yield record):
            break
    progress.put_best_back(parameters)


def end_early(records: Generator[StepRecord, bool | None, None]) -> None:
    """End a run at the update it stands at: the best parameters are put back, and a classifier is made ready.

    Args:
        records: What :func:`train`, or an estimator's ``steps`` or ``learn``, returned; it has yielded already.
    """
    with suppress(StopIteration):
        records.send(True)


class _Gradients:
    """Gradients of whole batches, computed pass by pass, in as few passes as memory allows.

    Passes are parts of the batch, not of a process's share of it, and are added up in float64. So where a batch has
    at least one pass of ``micro_batch_size`` for each process, any number of processes finds the same gradient, digit
    by digit. Where it has fewer, passes get smaller, and products of other shapes round otherwise.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: list[nn.Parameter],
        accelerator: Accelerator,
        micro_batch_size: int | None,
    ) -> None:
        self.objective, self.parameters, self.accelerator = objective, parameters, accelerator
        self.here, self.micro_batch_size = processes(), micro_batch_size
        self._fit: MemoryFit | None = None

    def __call__(self, batch: Any) -> dict[str, float]:
        """Leave the whole batch's gradient in the parameters; returns its scalars."""
        unit = self.objective.unit(batch) if hasattr(self.objective, "unit") else None
        gradients: list[Tensor | None]
        if unit is None and self.here.count == 1:  # there is nothing to weigh or to add up
            totals = self._pass(batch, 1)
            gradients = [parameter.grad for parameter in self.parameters]
        elif unit is None:  # every process computes the same, and an equal part of it counts
            gradients, totals = self._passes([(batch, 1 / self.here.count)])
        else:
            most = _units_a_pass(batch, unit, self.micro_batch_size, self.here)
            fit = self._fit = self._fit or MemoryFit(most)
            gradients, totals = fit(lambda size: self._passes(_parts(batch, unit, most, size, self.here)))
        if self.here.count > 1:
            gradients = [
                all_reduce(torch.zeros_like(parameter).to(widest_float(parameter.device)) if found is None else found)
                for parameter, found in zip(self.parameters, gradients, strict=True)
            ]
            summed = all_reduce(torch.stack([total.cpu().double() for total in totals.values()]))
            totals = dict(zip(totals, summed, strict=True))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
        # Both are rounded to float32 in the end, so that the order of the sums is gone from them.
        return {name: float(total.float()) for name, total in totals.items()}

    def _passes(
        self, parts: Iterator[tuple[Any, float]] | list[tuple[Any, float]]
    ) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """Forward and backward of every part; gradients and scalars are weighted with the parts' shares.

        Returns:
            A gradient for each parameter, None for one that no part reached, and the scalars.
        """
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        totals: dict[str, Tensor] = {}
        for part, share in parts:
            values = self._pass(part, share)
            for index, parameter in enumerate(self.parameters):
                if parameter.grad is not None:
                    found, before = parameter.grad.to(widest_float(parameter.device)), gradients[index]
                    gradients[index] = found if before is None else before + found
            for name, value in values.items():
                weighted = value.to(widest_float(value.device)) * share
                totals[name] = totals[name] + weighted if name in totals else weighted
        return gradients, totals

    def _pass(self, part: Any, share: float) -> dict[str, Tensor]:
        """Leave the gradient of ``share`` times a part's loss in the parameters; returns the part's scalars."""
        for parameter in self.parameters:
            parameter.grad = None
        with self.accelerator.autocast():
            values = self.objective(part)
        backward(self.accelerator, values["loss"] if share == 1 else values["loss"] * share)
        return {name: value.detach() for name, value in values.items()}


def _units_a_pass(batch: Any, unit: int, micro_batch_size: int | None, here: Processes) -> int:
    """Units of a pass: what was asked for, or so many that every process has one pass."""
    most = max(1, -(-_count_units(batch, unit) // here.count))
    return most if micro_batch_size is None else min(most, max(1, micro_batch_size // unit))


def _count_units(batch: Any, unit: int) -> int:
    return -(-len(batch) // unit)


def _parts(batch: Any, unit: int, most: int, size: int, here: Processes) -> Iterator[tuple[Any, float]]:
    """This process's parts of a batch and their shares of the whole.

    Args:
        batch: Of all processes.
        unit: Samples that belong together.
        most: Units of a pass; each process has whole passes.
        size: Units that fit into memory, here and now: a pass of more is cut.
        here: Which process this is.
    """
    units = _count_units(batch, unit)
    passes = here.share(-(-units // most))
    if passes.start == passes.stop:  # more processes than passes: it computes along, and nothing of it counts
        yield batch[:unit], 0.0
    for number in range(passes.start, passes.stop):
        end = min((number + 1) * most, units)
        for first in range(number * most, end, size):
            part = batch[first * unit : min(first + size, end) * unit]
            yield part, len(part) / len(batch)


def _update(
    step: int,
    numbers: dict[str, float],
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    gradient_clip: float,
) -> None:
    """Clip and step, or stop before the update where something is not finite."""
    accelerator.unscale_gradients(optimizer)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # One number out of all: it is finite only where every element is.
    norm = math.hypot(*(float(torch.linalg.vector_norm(gradient)) for gradient in gradients))
    bad_gradient = not math.isfinite(norm)
    if not math.isfinite(numbers["loss"]) or (bad_gradient and not may_overflow(accelerator)):
        what = "gradient" if math.isfinite(numbers["loss"]) else f"loss ({numbers['loss']})"
        raise TrainingError(
            f"step {step + 1}: the {what} is not finite. The prompts are those before this step and the last "
            "checkpoint is untouched. Lower the learning rate, set gradient_clip, or train in float32."
        )
    if gradient_clip and not bad_gradient and norm > gradient_clip:
        for gradient in gradients:
            gradient *= gradient_clip / (norm + 1e-6)  # as torch.nn.utils.clip_grad_norm_, in a third of its time
    apply_update(accelerator, optimizer)


def _check_float32(parameters: list[nn.Parameter]) -> None:
    """In half precision most updates are smaller than a token's last digit."""
    for index, parameter in enumerate(parameters):
        if parameter.dtype is not torch.float32:
            raise TrainingError(
                f"trainable parameter {index} is {parameter.dtype}; expected float32, whatever the frozen weights are"
            )


class _Progress:
    """Where a run stands: its step, the best validated parameters so far, and its journal."""

    def __init__(self, parameters: list[nn.Parameter], journal: Journal) -> None:
        self.step, self.journal = 0, journal
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

    def begin(
        self,
        path: Path,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        fingerprint: str,
        accelerator: Accelerator,
    ) -> None:
        """Go on from the checkpoint where there is one, all processes from the same."""
        if accelerator.is_main_process:
            remove_leftovers(path)
        if path.is_file():
            self.restore(path, parameters, optimizer, fingerprint, accelerator)
        if (main := int(broadcast_number(self.step))) != self.step:
            raise ArtifactError(
                f"{path}: this process finds the run at step {self.step}, the main one at {main}; expected a folder "
                "that all machines share"
            )

    def save(
        self,
        path: Path,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        fingerprint: str,
        accelerator: Accelerator,
    ) -> None:
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(parameters):
            tensors[f"parameter.{index}"] = parameter
            tensors[f"best.{index}"] = self.best[index]
            for name, value in optimizer.state[parameter].items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        for step, values in self.journal.states.items():
            tensors |= {f"state.{step}.{index}": value for index, value in enumerate(values)}
        numbers = {
            "step": self.step,
            "best_loss": self.best_loss,
            "without": self.num_without_improvement,
            "records": [asdict(record) for record in self.journal.records],
            "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        }
        try:
            write_tensors(path, tensors, {"progress": json.dumps(numbers), "fingerprint": fingerprint})
        except OSError as error:
            raise ArtifactError(
                f"{path}: the checkpoint of step {self.step} cannot be written ({error}). The one before it is "
                "untouched: make room, then start the same run again, and it goes on from there."
            ) from error

    def restore(
        self,
        path: Path,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        fingerprint: str,
        accelerator: Accelerator,
    ) -> None:
        tensors, metadata = read_tensors(path)
        if metadata.get("fingerprint") != fingerprint:
            raise ArtifactError(
                f"{path}: belongs to a run with other settings, data or model than this one; "
                "give this run another folder, or delete the file to start anew"
            )
        numbers = self._check_complete(path, parameters, tensors, metadata)
        self.step, self.best_loss = int(numbers["step"]), float(numbers["best_loss"])
        self.num_without_improvement = int(numbers["without"])
        self.journal.records[:] = [StepRecord(**record) for record in numbers["records"]]
        self.journal.states.clear()
        for name in sorted((name for name in tensors if name.startswith("state.")), key=_state_place):
            self.journal.states.setdefault(_state_place(name)[0], []).append(tensors[name])
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                parameter.copy_(tensors[f"parameter.{index}"])
                self.best[index] = tensors[f"best.{index}"].to(parameter.device)
                prefix = f"optimizer.{index}."
                state[index] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        if accelerator.scaler is not None and numbers["scaler"]:
            accelerator.scaler.load_state_dict(numbers["scaler"])

    @staticmethod
    def _check_complete(
        path: Path, parameters: list[nn.Parameter], tensors: dict[str, Tensor], metadata: dict[str, str]
    ) -> dict[str, Any]:
        """The progress of a checkpoint that holds what these parameters need."""
        missing = [f"{kind}.{i}" for i in range(len(parameters)) for kind in ("parameter", "best")]
        missing = [name for name in missing if name not in tensors]
        numbers: dict[str, Any] = json.loads(metadata.get("progress", "{}"))
        if missing or not numbers.keys() >= {"step", "best_loss", "without", "records", "scaler"}:
            raise ArtifactError(f"{path}: lacks {', '.join(missing) or 'its progress'}; delete it to start anew")
        for index, parameter in enumerate(parameters):
            if (found := tuple(tensors[f"parameter.{index}"].shape)) != tuple(parameter.shape):
                raise ArtifactError(
                    f"{path}: holds parameter.{index} of shape {found}; expected {tuple(parameter.shape)}; "
                    "delete it to start anew"
                )
        return numbers


def _state_place(name: str) -> tuple[int, int]:
    """Step and parameter of a tensor called ``state.<step>.<parameter>``."""
    _, step, index = name.split(".")
    return int(step), int(index)
