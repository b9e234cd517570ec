"""What a result says about where it was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import threading
import warnings
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


def describe_device() -> dict[str, Any]:
    """The GPU: card, memory, driver and libraries, and which number types its units compute in; empty without one."""
    import torch

    if not torch.cuda.is_available():
        return {}
    card, smi = torch.cuda.get_device_properties(0), shutil.which("nvidia-smi")
    asked = [str(smi), "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() if smi else ""
    return {
        "card": card.name,
        "num_cards": torch.cuda.device_count(),
        "compute_capability": f"{card.major}.{card.minor}",
        "device_memory_gib": round(card.total_memory / 2**30, 1),
        "driver": driver or "not known",
        "cuda": str(torch.version.cuda),
        "cudnn": torch.backends.cudnn.version(),
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "tf32": card.major >= 8,
    }


def allocated_bytes(device: torch.device) -> int:
    """What tensors of this process hold on a GPU, after what nobody refers to was given back; 0 on a CPU."""
    import torch
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0


@contextmanager
def filled_memory(device: torch.device, free: int) -> Iterator[None]:
    """Leave so many bytes to the block: the rest of a GPU is held; on a CPU this process may not grow (Linux)."""
    import torch

    allocated_bytes(device)
    if device.type == "cuda":
        held = torch.empty(max(0, torch.cuda.mem_get_info(device)[0] - free), dtype=torch.uint8, device=device)
        yield
        del held
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + free, before[1]))
    try:
        with warnings.catch_warnings():  # torch has one about Intel's GPUs
            warnings.simplefilter("ignore", UserWarning)
            with torch.backends.mkldnn.flags(enabled=False):  # oneDNN does not say that it is memory it lacks
                yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


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
