"""One training loop for every objective: a generator that yields a small record after each update.

    for record in train(objective, batch_at, config):
        print(record.step, record.loss)        # plot it, log it, or break

``objective.trainable_parameters()`` lists what may change, and ``objective(batch)`` returns scalars with the key
``"loss"``. ``batch_at(step)`` makes a batch from the step's number alone, so that a resumed run is bit-identical. With
``objective.unit(batch)``, how many consecutive samples belong together, a batch that has a length and slices is parted
among processes and into passes that fit into memory.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gcpl_lab.errors import TrainingError
from gcpl_lab.training.checkpoint import Checkpoint
from gcpl_lab.training.device import apply_update, make_accelerator, may_overflow
from gcpl_lab.training.passes import Passes
from gcpl_lab.training.records import History, Objective, StepRecord, TrainingConfig

if TYPE_CHECKING:
    from accelerate import Accelerator


__all__ = ["History", "Objective", "StepRecord", "TrainingConfig", "end_early", "train"]


def train(
    objective: Objective,
    batch_at: Callable[[int], Any],
    config: TrainingConfig,
    *,
    checkpoint: str | Path | None = None,
    fingerprint: str = "",
    stop_after: int | None = None,
    accelerator: Accelerator | None = None,
    history: History | None = None,
) -> Generator[StepRecord, bool | None, None]:
    """Train ``objective``, yielding a record after every update.

    Args:
        objective: What to minimise.
        batch_at: Makes the batch of a step from the step's number (from 0).
        config: Length, rates and intervals.
        checkpoint: A safetensors file: an interrupted run goes on from it and ends bit-identical to an uninterrupted
            one. It holds parameters, optimizer and history, never the frozen model.
        fingerprint: Tells runs apart: a checkpoint with another fingerprint is refused.
        stop_after: End after this many updates while the learning rate follows the whole schedule.
        accelerator: Of accelerate; one is made where none is given.
        history: Filled with every update of the run, also with those made before it was resumed.

    Yields:
        One ``StepRecord`` an update that this call made; :func:`end_early` makes that update the last.

    Raises:
        TrainingError: The loss or gradient is not finite (the parameters are those before that update), a trainable
            parameter is not float32, or memory ran out with the smallest part of a batch.
        ArtifactError: The checkpoint is damaged, belongs to another run, or cannot be written.
    """
    parameters = objective.trainable_parameters()
    accelerator = accelerator or make_accelerator(cpu=parameters[0].device.type == "cpu")
    optimizer = config.make_optimizer(parameters)
    history = History() if history is None else history
    step, saved = 0, None
    if checkpoint:
        whole = json.dumps([config.identity(), fingerprint], sort_keys=True)
        saved = Checkpoint(Path(checkpoint), parameters, optimizer, accelerator, whole)
        step = saved.restore(history, StepRecord)
    passes = Passes(objective, parameters, accelerator, config.micro_batch_size)
    began = time.perf_counter() - (history.records[-1].seconds if history.records else 0.0)
    last = config.num_steps if stop_after is None else min(stop_after, config.num_steps)
    while step < last:
        rate = config.rate_at(step)
        values = passes.forward_and_backward(batch_at(step))
        _update(step, rate, values["loss"], parameters, optimizer, accelerator, config.gradient_clip)
        step += 1
        record = StepRecord(step, values.pop("loss"), values, rate, seconds=time.perf_counter() - began)
        history.records.append(record)
        if history.keeps(step, last):
            history.states[step] = [parameter.detach().cpu().clone() for parameter in parameters]
        if saved and (step % config.checkpoint_every == 0 or step == last):
            saved.write(step, history)
        if (yield record):
            break


def end_early(records: Generator[StepRecord, bool | None, None]) -> None:
    """End a run at the update it stands at, as if that were its last.

    Args:
        records: What :func:`train`, or an estimator's ``steps`` or ``learn``, returned; it has yielded already.
    """
    with suppress(StopIteration):
        records.send(True)


def _update(
    step: int,
    rate: float,
    loss: float,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    gradient_clip: float,
) -> None:
    """Clip the gradient and step, or stop before the update where something is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    accelerator.unscale_gradients(optimizer)
    norm = float(nn.utils.clip_grad_norm_(parameters, gradient_clip or math.inf))
    if not math.isfinite(loss) or not (math.isfinite(norm) or may_overflow(accelerator)):
        what = "gradient" if math.isfinite(loss) else f"loss ({loss})"
        raise TrainingError(
            f"step {step + 1}: the {what} is not finite. The prompts are those before this step and the last "
            "checkpoint is untouched. Lower the learning rate, set gradient_clip, or train in float32."
        )
    apply_update(accelerator, optimizer)
