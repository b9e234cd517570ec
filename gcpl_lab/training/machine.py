"""What a result says about where it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from gcpl_lab.training.device import default_device
from gcpl_lab.training.processor import float32_products, processor_name

REPORTED_PACKAGES = ("gcpl-lab", "torch", "diffusers", "transformers", "open_clip_torch", "accelerate", "numpy")


def describe_machine() -> dict[str, Any]:
    """What a result should say about where it was made: processor, cores, memory in GiB, device, kernels."""
    import psutil
    import torch

    return {
        "system": platform.system(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else default_device(),
        "threads": torch.get_num_threads(),
        "float32_products": float32_products(),
    }


def describe_free_memory() -> dict[str, float]:
    """Memory in GiB that is free now: of the machine, and of its GPU where there is one."""
    import psutil
    import torch

    free = {"memory_free_gib": round(psutil.virtual_memory().available / 2**30, 1)}
    if torch.cuda.is_available():
        free["device_memory_free_gib"] = round(torch.cuda.mem_get_info()[0] / 2**30, 1)
    return free


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
