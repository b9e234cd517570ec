"""What a result says about where it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcpl_lab.training.device import default_device

if TYPE_CHECKING:
    import torch

REPORTED_PACKAGES = ("gcpl-lab", "torch", "diffusers", "transformers", "open_clip_torch", "accelerate", "numpy")


def processor_name() -> str:
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory in GiB, device and threads."""
    import psutil
    import torch

    return {
        "system": platform.system(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else default_device(),
        "threads": torch.get_num_threads(),
    }


def describe_free_memory() -> dict[str, float]:
    """Memory in GiB that is free now: of the machine, and of its GPU where there is one."""
    import psutil
    import torch

    free = {"memory_free_gib": round(psutil.virtual_memory().available / 2**30, 1)}
    if torch.cuda.is_available():
        free["device_memory_free_gib"] = round(torch.cuda.mem_get_info()[0] / 2**30, 1)
    return free


@dataclass
class Peak:
    """Bytes at peak; filled in when measuring ends."""

    bytes: int = 0


@contextmanager
def measured_peak(device: torch.device) -> Iterator[Peak]:
    """The most memory that is held inside the block: of the GPU by this process, or resident of this process."""
    import psutil
    import torch

    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield peak
        finally:
            peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    process, ended = psutil.Process(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    peak.bytes = process.memory_info().rss
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def describe_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
