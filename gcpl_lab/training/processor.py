"""What this machine's processor is and can do."""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import Literal

from gcpl_lab.errors import LabError

KERNELS_VARIABLE = "GCPL_LAB_KERNELS"
"""``own``, the default: what this package has in place of its libraries, equal up to rounding: products, attention, and
text encoders and denoisers that compute what prompts have in common once. ``library``: as the libraries have it."""


def processor_name() -> str:
    """As the system calls it."""
    return _from_cpuinfo("model name") or platform.processor() or platform.machine()


def own_kernels() -> bool:
    """Whether what this package computes in place of its libraries may be used.

    Raises:
        LabError: The environment variable says something unknown.
    """
    kernels = os.environ.get(KERNELS_VARIABLE, "own")
    if kernels not in ("own", "library"):
        raise LabError(f"{KERNELS_VARIABLE} is {kernels!r}; expected 'own' or 'library'")
    return kernels == "own"


def bfloat16_instructions() -> dict[str, bool]:
    """Which instructions for bfloat16 the processor has: products, and tiles of them."""
    import torch

    return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "amx": torch.cpu._is_amx_tile_supported()}


@cache
def float32_products() -> Literal["oneDNN", "torch"]:
    """Whose products of float32 matrices are the faster ones here.

    MKL, which torch takes, has kernels for AVX-512 on Intel's processors alone; oneDNN has them for all, and is
    about twice as fast on AMD's (``benchmarks/gcpl_step.py --operations``). A rule, not a measurement at each start: a
    run that goes on must round as it began.
    """
    if not own_kernels():
        return "torch"
    import torch

    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "oneDNN" if has_both and wide and "AMD" in _vendor() else "torch"


def _vendor() -> str:
    return _from_cpuinfo("vendor_id") or platform.processor()  # which ends with the vendor on Windows


def _from_cpuinfo(key: str) -> str:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith(key):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""
