"""Device, precision and what a result says about its machine."""

import importlib.metadata
import json
import os
import platform

import pytest
import torch

from gcpl_lab.errors import TrainingError
from gcpl_lab.training import runtime


def test_the_device_is_one_that_works() -> None:
    device = runtime.default_device()
    assert device in ("cpu", "cuda", "mps")
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_fastest_device_is_taken(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert runtime.default_device() == expected


def test_the_accelerator_stays_on_the_cpu_in_full_precision() -> None:
    accelerator = runtime.make_accelerator(cpu=True)
    assert accelerator.device.type == "cpu"
    assert accelerator.mixed_precision == "no"


def test_half_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate

    monkeypatch.setattr(accelerate, "Accelerator", lambda cpu: type("Fake", (), {"mixed_precision": "fp16"})())
    with pytest.raises(TrainingError, match="mixed precision is 'fp16'.*'bf16'"):
        runtime.make_accelerator()


def test_the_machine_is_described_in_plain_values() -> None:
    machine = runtime.describe_machine()
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cores"] == os.cpu_count()
    assert machine["system"] == platform.system()
    assert machine["threads"] == torch.get_num_threads()
    assert machine["memory_gib"] > 0.5
    assert machine["processor"]


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "REPORTED_PACKAGES", ("torch", "no-such-package"))
    expected = {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}
    assert runtime.describe_versions() == expected | {"no-such-package": "not installed"}
