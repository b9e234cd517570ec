"""Part: what the machine is, and whether a product of matrices is right in every number type."""

from __future__ import annotations

import torch

from gcpl_lab.experiments.selftest.parts import Findings, register_part
from gcpl_lab.training.device import prepare_for_device
from gcpl_lab.training.machine import describe_device, describe_free_memory, describe_machine, describe_versions

MOST_WRONG = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1e-2, "float16": 2e-3}
"""Of a product of 512 × 512 matrices against float64: size of the difference over size of the product."""


@register_part("machine", title="Machine", seconds={"cuda": 5, "cpu": 5})
def machine(found: Findings) -> None:
    """Device, driver, libraries, free memory; products in every number type that the device has."""
    gpu, free = describe_device(), describe_free_memory()
    found.figures |= {**describe_machine(), **gpu, **free, "versions": describe_versions()}
    types = ["float32", "bfloat16", "float16"] if gpu or found.small else []
    types += ["tf32"] if gpu.get("tf32") else []
    errors = {precision: product_error(found.device, precision) for precision in types}
    for precision, error in errors.items():
        found.check(f"product in {precision}: relative error", error, most=MOST_WRONG[precision])
    found.headline = gpu.get("card", str(found.figures["processor"])) + ", " + ", ".join(types)


def product_error(device: torch.device, precision: str) -> float:
    """Relative size of what a product on the device differs by from the CPU's in float64."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 512, 512, generator=generator, dtype=torch.float64)
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
    prepare_for_device(torch.nn.Identity(), device, "tf32" if precision == "tf32" else "float32")
    try:
        found = (left.to(device, dtype) @ right.to(device, dtype)).cpu().double()
    finally:
        prepare_for_device(torch.nn.Identity(), device, "float32")
    return float((found - left @ right).norm() / (left @ right).norm())
