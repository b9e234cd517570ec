"""Device, precision and seeds: the only room that knows what machine it runs on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING, Any

from gcpl_lab.errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

REPORTED_PACKAGES = ("gcpl-lab", "torch", "diffusers", "transformers", "open_clip_torch", "accelerate", "numpy")


def make_accelerator(cpu: bool = False) -> Accelerator:
    """An ``accelerate.Accelerator`` for this machine.

    Args:
        cpu: Stay on the CPU although there is a GPU.

    Raises:
        TrainingError: float16 is asked for (by the launcher or its environment variable).
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=cpu)
    if accelerator.mixed_precision == "fp16":
        raise TrainingError(
            "mixed precision is 'fp16'; learned prompts overflow in it. Take 'bf16' or 'no' "
            "(accelerate launch --mixed_precision, or the variable ACCELERATE_MIXED_PRECISION)"
        )
    return accelerator


def default_device() -> str:
    """``"cuda"`` where there is one, then ``"mps"``, else ``"cpu"``."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def describe_machine() -> dict[str, Any]:
    """What a result should say about where it was made: processor, cores, memory in GiB, device."""
    import psutil
    import torch

    return {
        "system": platform.system(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else default_device(),
        "threads": torch.get_num_threads(),
    }


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
