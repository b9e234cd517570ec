"""Device and dtype: what depends on the kind of machine, so that it is known which lines a CPU never runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from gcpl_lab.errors import TrainingError
from gcpl_lab.training.processes import process_device, processes

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
"""``"tf32"``: float32 weights, matrix products of a GPU with ten bits of mantissa. ``"auto"``: float32 on a CPU; on a
GPU bfloat16 where it can, else float16."""

MIXED_PRECISION = {
    "float32": "no",
    "tf32": "no",
    "bfloat16": "bf16",
    "float16": "fp16",
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
}
"""What accelerate calls a precision, or the dtype of loaded weights; of others it is the launcher who says."""


def default_device() -> str:
    """``"cuda"`` where there is one, then ``"mps"``, else ``"cpu"``; with several processes, this one's own."""
    import torch

    if processes().count > 1:
        return process_device().replace("cpu:0", "cpu")
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def weights_dtype(precision: Precision, device: torch.device | str) -> torch.dtype:
    """The dtype that frozen weights are loaded in on a device; what is learned is float32 in any case."""
    import torch

    if precision == "auto":
        if torch.device(device).type != "cuda":
            return torch.float32
        # Cards before Ampere compute in bfloat16 too, but by emulating it, many times slower than in float16.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


def make_accelerator(
    cpu: bool = False, mixed_precision: str | None = None, weights: torch.dtype | None = None
) -> Accelerator:
    """An ``accelerate.Accelerator`` for this machine.

    Args:
        cpu: Stay on the CPU although there is a GPU.
        mixed_precision: ``"no"``, ``"bf16"``, ``"fp16"``; None takes what the launcher or its environment
            variable says. With ``"fp16"`` the accelerator has a scaler, which the training loop uses.
        weights: Dtype of the frozen weights. Where they are in half precision already, autocast would only compute
            norms in float32, and cast back and forth around them: there is none.

    Raises:
        TrainingError: float16 is asked for on a CPU.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import AutocastKwargs

    wanted = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if wanted == "fp16" and cpu:
        raise TrainingError(
            "mixed precision is 'fp16', which a CPU cannot train in. Take precision 'bfloat16' or 'float32' "
            "(accelerate launch --mixed_precision, or the variable ACCELERATE_MIXED_PRECISION, where it was set there)"
        )
    if AcceleratorState._shared_state != {}:
        before = AcceleratorState()
        if before.mixed_precision != wanted or cpu != (before.device.type == "cpu"):
            # accelerate knows one setting a program; in a notebook the next model may ask for another.
            AcceleratorState._reset_state(reset_partial_state=before.num_processes == 1)
    accelerator = Accelerator(cpu=cpu, mixed_precision=wanted)
    accelerator.gradient_accumulation_steps = 1  # the loop parts batches itself and weighs the parts
    if str(weights) in MIXED_PRECISION:
        accelerator.autocast_handler = AutocastKwargs(enabled=False)
    return accelerator


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
    """Channels last in memory on a GPU; ``"tf32"`` lets float32 products and convolutions use the tensor cores.

    ``"float32"`` forbids it: convolutions would have ten bits of mantissa unless they are told otherwise. Both hold for
    the whole program, so an estimator says it again whenever it asks for its model.
    """
    import torch

    if torch.device(device).type != "cuda":
        return
    denoiser.to(memory_format=torch.channels_last)
    if precision in ("float32", "tf32"):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Let a GPU add in one order: slower, and the same digits in every run, as a CPU has them anyway.

    cuBLAS asks for the environment variable ``CUBLAS_WORKSPACE_CONFIG=:4096:8``, set before its first product.
    """
    import torch

    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


@contextmanager
def checkpointed_activations(denoiser: Any) -> Iterator[None]:
    """Train with activations computed anew in the backward pass: a third more time, and most of the memory spared."""
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()


def without_autocast(device_type: str) -> Any:
    """A context in which operations keep the dtypes they are given."""
    import torch

    return torch.autocast(device_type, enabled=False)


def leave_device(part: nn.Module) -> None:
    """Move a frozen part that has done its work to the CPU and give its memory back.

    The encoders that cache (``encode_moments``, ``encode_images``) fetch it again where they need it.
    """
    from accelerate.utils.memory import clear_device_cache

    part.to("cpu")
    clear_device_cache(garbage_collection=True)


def wait_for_device(device: torch.device | str) -> None:
    """Go on when a GPU has done what it was given: it works on when calls are back. Nothing on a CPU."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
