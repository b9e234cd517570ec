"""Device, precision, memory, and what a result says about its machine."""

import gc
import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from gcpl_lab import GCPLClassifier, LMPTClassifier
from gcpl_lab.errors import TrainingError
from gcpl_lab.gcpl import judge as gcpl_judge
from gcpl_lab.lmpt import judge as lmpt_judge
from gcpl_lab.training import device, machine
from gcpl_lab.training.memory import MemoryFit, ran_out


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_fastest_device_is_taken(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device.default_device() == expected


def test_float16_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="mixed precision is 'fp16'.*'bfloat16'"):
        device.make_accelerator(cpu=True, mixed_precision="fp16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(TrainingError, match="ACCELERATE_MIXED_PRECISION"):
        device.make_accelerator(cpu=True)


def test_one_program_may_ask_for_several_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate itself refuses a second setting until the program is started anew: a notebook goes on."""
    products = []
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    for wanted in ("no", "bf16", "no", None):
        accelerator = device.make_accelerator(cpu=True, mixed_precision=wanted)
        assert accelerator.device.type == "cpu"
        assert accelerator.mixed_precision == (wanted or "no")
        assert accelerator.gradient_accumulation_steps == 1  # it would divide every loss by four
        with accelerator.autocast():
            products.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    assert products == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    for weights, expected in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        # Weights in half precision are computed with as they are.
        with device.make_accelerator(cpu=True, mixed_precision="bf16", weights=weights).autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is expected


def test_precision_follows_setting_device_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    float32, bfloat16, float16 = torch.float32, torch.bfloat16, torch.float16
    for able, expected in ((True, bfloat16), (False, float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert device.weights_dtype("auto", "cuda:1") is expected
        assert device.weights_dtype("auto", "cpu") is float32
    told = get_args(device.Precision)[1:]
    assert [device.weights_dtype(each, "cuda") for each in told] == [float32, float32, bfloat16, float16]
    mixed = [device.MIXED_PRECISION.get(str(each)) for each in (*told, float32, bfloat16, float16)]
    assert mixed == ["no", "no", "bf16", "fp16", None, "bf16", "fp16"]


class FakeModel:
    """Writes down what is done to it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.enable_gradient_checkpointing = lambda: self.calls.append("checkpointing")
        self.disable_gradient_checkpointing = lambda: self.calls.append("no checkpointing")
        self.to = lambda *given, **options: self.calls.append((*given, *options.values()))


def test_a_gpu_gets_channels_last_and_tf32_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model: Any = FakeModel()
    device.prepare_for_device(model, "cpu", "tf32")
    assert (model.calls, asked) == ([], [])
    device.prepare_for_device(model, "cuda:0", "float32")
    assert (model.calls, asked, torch.backends.cudnn.allow_tf32) == ([(torch.channels_last,)], ["highest"], False)
    device.prepare_for_device(model, "cuda:0", "tf32")
    device.prepare_for_device(model, "cuda:0", "bfloat16")
    assert asked == ["highest", "high"]
    assert torch.backends.cudnn.allow_tf32


def test_a_gpu_is_left_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda **options: told.append(options))
    monkeypatch.setattr(torch.cuda, "synchronize", told.append)
    model: Any = FakeModel()
    device.leave_device(model)
    device.wait_for_device("cpu")
    device.wait_for_device(torch.device("cuda", 1))
    assert model.calls == [("cpu",)]
    assert told == [{"garbage_collection": True}, torch.device("cuda", 1)]


def test_checkpointing_is_undone_after_an_interruption() -> None:
    model = FakeModel()
    with suppress(KeyboardInterrupt), device.checkpointed_activations(model):
        assert model.calls == ["checkpointing"]
        raise KeyboardInterrupt
    assert model.calls == ["checkpointing", "no checkpointing"]


def test_checkpointing_spares_activations_and_changes_no_gradient(diffusion: Any) -> None:
    hidden = torch.randn(2, diffusion.context_length, diffusion.embedding_table.shape[1], requires_grad=True)
    noisy, steps, passes = torch.randn(2, *diffusion.latent_shape), torch.tensor([100, 900]), []
    hook = diffusion.denoiser.mid_block.resnets[1].register_forward_pre_hook(lambda *_: passes.append(1))

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(diffusion.predict_noise(noisy, steps, hidden).square().mean(), hidden)[0]

    expected = gradient()
    with device.checkpointed_activations(diffusion.denoiser):
        torch.testing.assert_close(gradient(), expected)
    hook.remove()
    assert len(passes) == 1 + 2  # once more in the backward pass
    assert {type(each) for each in diffusion.denoiser.attn_processors.values()} == {AttnProcessor2_0}


def out_of_memory(limit: int, tried: list[int]) -> Callable[[int], int]:
    def work(size: int) -> int:
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return size

    return work


def test_sizes_are_halved_until_they_fit_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, fit = list[int](), MemoryFit(40)
    assert [fit(out_of_memory(12, tried)), fit(out_of_memory(12, tried))] == [10, 10]
    assert tried == [40, 20, 10, 10]
    monkeypatch.setattr(gc, "collect", lambda: pytest.fail("collects garbage where all goes well, which takes long"))
    assert fit(out_of_memory(12, [])) == 10
    monkeypatch.undo()
    assert fit(out_of_memory(3, [])) == fit.size == 2


def test_memory_that_never_suffices_is_an_error_that_says_what_to_do() -> None:
    tried, fit = list[int](), MemoryFit(4)
    for _ in range(2):
        with pytest.raises(TrainingError, match="a single piece of a batch.*gradient_checkpointing"):
            fit(out_of_memory(0, tried))
    assert tried == [4, 2, 1, 1]
    with pytest.raises(TrainingError, match=r"in a pass\. Buy memory$"):
        MemoryFit(1, "Buy memory")(out_of_memory(0, tried))
    fit = MemoryFit(4)
    with pytest.raises(RuntimeError, match="stack expects a non-empty TensorList"):  # is not about memory
        fit(lambda _size: torch.stack([]))
    assert fit.size == 4


def test_memory_of_other_libraries_counts_too() -> None:
    told = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    kernel = "posix_memalign failed:Cannot allocate memory (12)"  # of torch's attention on a CPU
    errors, fit = iter([RuntimeError(told), MemoryError(), RuntimeError(kernel)]), MemoryFit(8)

    def work(size: int) -> int:
        if (error := next(errors, None)) is not None:
            raise error
        return size

    assert fit(work) == 1


def test_a_card_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.describe_device() == {}
    card = SimpleNamespace(name="A card", major=9, minor=0, total_memory=80 * 2**30)
    answers = {"is_available": True, "get_device_properties": card, "device_count": 2, "is_bf16_supported": True}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **_options: answer)
    monkeypatch.setattr(machine.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **_options: SimpleNamespace(stdout="580.1\n"))
    found = machine.describe_device()
    assert json.loads(json.dumps(found)) == found
    expected = {"card": "A card", "num_cards": 2, "compute_capability": "9.0", "device_memory_gib": 80.0}
    assert found.items() >= (expected | {"driver": "580.1", "bfloat16": True, "tf32": True}).items()


def test_a_gpus_memory_is_filled_but_for_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, Any]] = []
    monkeypatch.setattr(machine, "allocated_bytes", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 2000))
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: made.append((size, device)))
    gpu = torch.device("cuda", 0)
    with machine.filled_memory(gpu, 400), machine.filled_memory(gpu, 5000):
        assert made == [(600, gpu), (0, gpu)]


@pytest.mark.skipif(platform.system() != "Linux", reason="the limit of a process's memory is Linux's")
def test_a_cpu_without_memory_says_so_and_gets_it_back() -> None:
    with machine.filled_memory(torch.device("cpu"), 50 * 2**20):
        with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
            torch.empty(400 * 2**20, dtype=torch.uint8)
        assert ran_out(caught.value)
    assert len(torch.empty(400 * 2**20, dtype=torch.uint8)) == 400 * 2**20


def test_the_machine_is_described_in_plain_values(monkeypatch: pytest.MonkeyPatch) -> None:
    found, free = machine.describe_machine(), machine.describe_free_memory()
    assert json.loads(json.dumps(found)) == found
    assert (found["cores"], found["threads"]) == (os.cpu_count(), torch.get_num_threads())
    assert (found["system"], bool(found["processor"])) == (platform.system(), True)
    assert 0 < free["memory_free_gib"] <= found["memory_gib"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**29, 2**33))
    assert machine.describe_free_memory()["device_memory_free_gib"] == 1.5


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "REPORTED_PACKAGES", ("torch", "no-such-package"))
    expected = {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}
    assert machine.describe_versions() == expected | {"no-such-package": "not installed"}


@pytest.mark.parametrize(("room", "name", "model"), [(gcpl_judge, "_diffusion", "denoiser"), (lmpt_judge, "_clip", "")])
def test_a_given_model_computes_in_the_precision_of_whoever_asks(
    monkeypatch: pytest.MonkeyPatch, room: Any, name: str, model: str
) -> None:
    """Found on a GPU: TF32 stayed on for a model that was given to an estimator with ``precision="float32"``."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(room, "prepare_for_device", lambda *given: asked.append(given))
    tower = SimpleNamespace(visual="")
    given = SimpleNamespace(device=torch.device("cuda"), denoiser="denoiser", model=tower)
    for precision in ("float32", "tf32"):
        kind: Any = GCPLClassifier if model else LMPTClassifier
        estimator = kind(precision=precision)
        setattr(estimator, name, given)
        assert (estimator.diffusion if model else estimator.clip) is given
    assert asked == [(model, given.device, "float32"), (model, given.device, "tf32")]
