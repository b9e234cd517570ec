"""Device, precision, processes and seeds: the only room that knows what machine it runs on."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from gcpl_lab.errors import ArtifactError, TrainingError
from gcpl_lab.storage import read_json, write_json
from gcpl_lab.training.processes import _process_state, broadcast_number, is_main_process, processes, wait_for_everyone
from gcpl_lab.training.processor import bfloat16_instructions, own_kernels

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

Result = TypeVar("Result")
Precision = Literal["auto", "measured", "float32", "tf32", "bfloat16", "float16"]
"""``"tf32"``: float32 weights, matrix products of a GPU with ten bits of mantissa. ``"auto"``: float32 on a CPU;
on a GPU bfloat16 where it can, else float16. ``"measured"``: on a CPU whichever of float32 and bfloat16 trains faster
there, see :func:`settle_training_format`; else like ``"auto"``."""

PRECISIONS: tuple[Precision, ...] = ("auto", "measured", "float32", "tf32", "bfloat16", "float16")
LEAST_GAIN = 1.10
"""A number format must be this many times faster than float32 to be chosen: less is what a busy machine does."""


# ---------------------------------------------------------------------------------------------- processes


# ----------------------------------------------------------------------------------- device and precision


def default_device() -> str:
    """``"cuda"`` where there is one, then ``"mps"``, else ``"cpu"``; with several processes, this one's own."""
    import torch

    if processes().count > 1:
        return str(_process_state().device).replace("cpu:0", "cpu")
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def weights_dtype(precision: Precision, device: torch.device | str) -> torch.dtype:
    """The type that frozen weights are loaded in; what is learned is float32 in any case.

    Args:
        precision: A setting, see :data:`Precision`.
        device: Where the weights will be.
    """
    import torch

    if precision in ("auto", "measured"):
        if torch.device(device).type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


def widest_float(device: torch.device | str) -> torch.dtype:
    """The type in which many float32 values are summed: float64, or float32 on a device that has no other (mps)."""
    import torch

    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def mixed_precision(precision: Precision, weights: torch.dtype) -> str | None:
    """What accelerate calls a precision: ``"no"``, ``"bf16"`` or ``"fp16"``; None leaves it to the launcher.

    Args:
        precision: A setting; ``"auto"`` follows the loaded weights, and ``"measured"`` where nothing was measured.
        weights: Their type.
    """
    import torch

    if precision in ("auto", "measured"):
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(weights)
    return {"bfloat16": "bf16", "float16": "fp16"}.get(precision, "no")


def choose_fastest(seconds: Mapping[str, Sequence[float]], least_gain: float = LEAST_GAIN) -> str:
    """The fastest way by the median of its rounds' ratios to float32, or float32 where none gains enough.

    Args:
        seconds: By way, one number a round; ``"float32"`` among them. Rounds of all ways were measured in turn.
        least_gain: See :data:`LEAST_GAIN`.
    """
    gains = {
        name: statistics.median(plain / one for plain, one in zip(seconds["float32"], values, strict=True))
        for name, values in seconds.items()
    }
    best = max(gains, key=lambda name: gains[name])
    return best if gains[best] >= least_gain else "float32"


@dataclass(frozen=True)
class MeasuredFormat:
    """A number format that was chosen by measuring, and what was measured.

    Attributes:
        chosen: ``"float32"`` or ``"bfloat16"``.
        seconds: Median of each.
    """

    chosen: Literal["float32", "bfloat16"]
    seconds: dict[str, float]

    def __post_init__(self) -> None:
        if self.chosen not in self.seconds:
            raise ValueError(f"the chosen format is {self.chosen!r}; expected one of {', '.join(self.seconds)}")


def measure_formats(run: Callable[[str], Any], repeats: int = 5) -> MeasuredFormat:
    """Time work in float32 and in bfloat16 on this machine, and choose; all processes take the main one's choice.

    Args:
        run: Does the same work in the format that it is told, and has done it when it returns.
        repeats: Rounds after one that warms up.
    """
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for turn in range(repeats + 1):
        for name, values in seconds.items():
            began = time.perf_counter()
            run(name)
            if turn:
                values.append(time.perf_counter() - began)
    faster = broadcast_number(float(choose_fastest(seconds) == "bfloat16"))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return MeasuredFormat("bfloat16" if faster else "float32", medians)


TRAINING_FORMAT = "training_format.json"
"""Where the choice stands beside the checkpoints."""

_TRAINING: WeakKeyDictionary[Any, MeasuredFormat] = WeakKeyDictionary()
"""A frozen model is measured once a program, so that all that is trained on it chooses alike."""

MEASURED_SECONDS = 0.2
"""About what a pass takes that formats are compared by."""


def settle_training_format(objective: Any, batch: Any, model: Any, kept: Path | None = None) -> MeasuredFormat:
    """Which number format a training goes on in: the one it began in, else the faster one on this machine.

    Args:
        objective: With ``trainable_parameters()``; called with a part of the batch. Gradients are dropped again.
        batch: Of one update.
        model: The frozen model that the measurement is remembered for.
        kept: A JSON file beside the checkpoints: a run that goes on must not choose anew.

    Raises:
        ArtifactError: The file is damaged.
    """
    if kept is not None and kept.is_file():
        try:
            return MeasuredFormat(**read_json(kept))
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{kept}: is damaged ({error}); delete the folder and train anew") from error
    if model not in _TRAINING:
        _TRAINING[model] = _measure_training(objective, batch)
    if kept is not None and is_main_process():
        write_json(kept, asdict(_TRAINING[model]))
    wait_for_everyone()
    return _TRAINING[model]


def _measure_training(objective: Any, batch: Any) -> MeasuredFormat:
    """Forward and backward of so many samples as take a moment, or of the whole batch where it has no parts."""
    import torch

    parameters = objective.trainable_parameters()

    def run(name: str, part: Any) -> None:
        with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=name == "bfloat16"):
            loss = objective(part)["loss"]
        loss.backward()
        loss.detach().cpu()  # a GPU goes on working when the call is back
        for parameter in parameters:
            parameter.grad = None

    unit = objective.unit(batch) if hasattr(objective, "unit") else None
    if unit is not None:
        smallest = batch[:unit]
        run("float32", smallest)
        began = time.perf_counter()
        run("float32", smallest)
        units = int(broadcast_number(max(1, MEASURED_SECONDS // (time.perf_counter() - began))))
        batch = batch[: units * unit]
    return measure_formats(lambda name: run(name, batch), repeats=3)


def make_training_accelerator(
    objective: Any,
    batch_at: Callable[[int], Any],
    model: Any,
    precision: Precision,
    settled: MeasuredFormat | None,
    folder: Path | None,
) -> tuple[Accelerator, MeasuredFormat | None]:
    """The accelerator for a training on a frozen model, and what was measured to choose it.

    Args:
        objective: What is trained.
        batch_at: Makes the batch of a step.
        model: The frozen model, with ``device`` and ``dtype``.
        precision: A setting; ``"measured"`` measures where the weights are float32.
        settled: What was measured for this training before; it counts.
        folder: Of its checkpoints, see :func:`settle_training_format`.
    """
    import torch

    if precision == "measured" and model.dtype == torch.float32:
        settled = settled or settle_training_format(objective, batch_at(0), model, folder and folder / TRAINING_FORMAT)
        precision = settled.chosen
    accelerator = make_accelerator(
        cpu=model.device.type == "cpu", mixed_precision=mixed_precision(precision, model.dtype)
    )
    return accelerator, settled


def make_accelerator(cpu: bool = False, mixed_precision: str | None = None) -> Accelerator:
    """An ``accelerate.Accelerator`` for this machine.

    Args:
        cpu: Stay on the CPU although there is a GPU.
        mixed_precision: ``"no"``, ``"bf16"``, ``"fp16"``; None takes what the launcher or its environment
            variable says. With ``"fp16"`` the accelerator has a scaler, which the training loop uses.

    Raises:
        TrainingError: float16 is asked for on a CPU.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    wanted = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted == "fp16" and cpu:
        raise TrainingError(
            "mixed precision is 'fp16', which a CPU cannot train in. Take precision 'bfloat16' or 'float32' "
            "(accelerate launch --mixed_precision, or the variable ACCELERATE_MIXED_PRECISION, where it was set there)"
        )
    if AcceleratorState._shared_state != {}:
        before = AcceleratorState()
        if before.mixed_precision != wanted or (cpu and before.device.type != "cpu"):
            # accelerate knows one setting a program; in a notebook the next model may ask for another.
            AcceleratorState._reset_state(reset_partial_state=before.num_processes == 1)
    accelerator = Accelerator(cpu=cpu, mixed_precision=wanted)
    accelerator.gradient_accumulation_steps = 1  # the loop parts batches itself and weighs the parts
    return accelerator


def backward(accelerator: Accelerator, loss: Tensor) -> None:
    """Gradients of a loss, scaled where the accelerator scales (fp16).

    ``Accelerator.backward`` but for its division by the passes of an accumulation: the loop weighs them itself.
    """
    (loss if accelerator.scaler is None else accelerator.scaler.scale(loss)).backward()


def apply_update(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser step; with scaled gradients (fp16) through the scaler, which leaves out an overflow."""
    if accelerator.scaler is None:
        optimizer.step()
    else:
        accelerator.scaler.step(optimizer)
        accelerator.scaler.update()


def may_overflow(accelerator: Accelerator) -> bool:
    """Whether a gradient that is not finite only says that the fp16 scale is still too large."""
    return accelerator.scaler is not None and float(accelerator.scaler.get_scale()) > 1.0


def prepare_for_device(denoiser: nn.Module, device: torch.device | str, precision: Precision) -> None:
    """What makes a frozen model faster on a device without changing what it computes but for rounding.

    On a GPU attention needs nothing: diffusers calls ``scaled_dot_product_attention`` by itself. On a CPU float32
    stays as it is. Weights in bfloat16 get their channels last there too, and where the processor has products of
    bfloat16 but no tiles (AMX), self-attention of many places goes chunk by chunk (``backbones/cpu_attention.py``;
    ``benchmarks/gcpl_step.py --operations`` measures it).

    Args:
        denoiser: Its convolutions get their channels last in memory.
        device: Where it is.
        precision: ``"tf32"`` lets matrix products and convolutions of float32 use the tensor cores.
    """
    import torch

    kind = torch.device(device).type
    bfloat16_on_cpu = kind == "cpu" and next(denoiser.parameters()).dtype == torch.bfloat16
    if kind == "cuda" or bfloat16_on_cpu:
        denoiser.to(memory_format=torch.channels_last)
    # CLIP's image tower has no such layers, and need not wait for diffusers.
    attends = hasattr(denoiser, "attn_processors")
    own_attention = bfloat16_on_cpu and attends and own_kernels()
    if own_attention and bfloat16_instructions() == {"avx512_bf16": True, "amx": False}:
        from gcpl_lab.fast.cpu_attention import attend_in_chunks

        attend_in_chunks(denoiser)
    if kind == "cuda" and precision == "tf32":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


@contextmanager
def training_form(denoiser: Any, gradient_checkpointing: bool, compiled: bool) -> Iterator[None]:
    """Train with activations computed anew in the backward pass, or with a compiled denoiser, and undo it after.

    Args:
        denoiser: A model of diffusers.
        gradient_checkpointing: Costs about a third more time and spares most of the memory.
        compiled: ``torch.compile`` in place: minutes at first, faster from then on.
    """
    if gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()
    if compiled:
        denoiser.compile()
    try:
        yield
    finally:
        if gradient_checkpointing:
            denoiser.disable_gradient_checkpointing()
        if compiled:
            denoiser._compiled_call_impl = None  # what Module.compile sets; torch offers no way back


def leave_device(part: nn.Module, device: torch.device | str) -> None:
    """Move a frozen part that has done its work to the CPU and give its memory back; nothing on a CPU.

    The encoders that cache (``encode_moments``, ``encode_images``) fetch it again where they need it.
    """
    import torch

    if torch.device(device).type == "cpu":
        return
    from accelerate.utils.memory import clear_device_cache

    part.to("cpu")
    clear_device_cache(garbage_collection=True)


def wait_for_device(device: torch.device | str) -> None:
    """Go on when a GPU has done what it was given: it works on when calls are back. Nothing on a CPU."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


# ------------------------------------------------------------------------------------------- descriptions
