"""Device, precision and what a result says about its machine."""

import gc
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from typing import Any

import accelerate
import pytest
import torch

from gcpl_lab.errors import TrainingError
from gcpl_lab.training import device as runtime


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


def test_float16_is_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="mixed precision is 'fp16'.*'bfloat16'"):
        runtime.make_accelerator(cpu=True, mixed_precision="fp16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(TrainingError, match="ACCELERATE_MIXED_PRECISION"):
        runtime.make_accelerator(cpu=True)


def test_one_program_may_ask_for_several_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate itself refuses a second setting until the program is started anew: a notebook goes on."""
    products = []
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    for wanted in ("no", "bf16", "no", None):
        accelerator = runtime.make_accelerator(cpu=True, mixed_precision=wanted)
        assert accelerator.mixed_precision == (wanted or "no")
        assert accelerator.gradient_accumulation_steps == 1  # it would divide every loss by four
        with accelerator.autocast():
            products.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    assert products == [torch.float32, torch.bfloat16, torch.float32, torch.float32]


def test_precision_follows_setting_device_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    float32, bfloat16, float16 = torch.float32, torch.bfloat16, torch.float16
    for able, expected in ((True, bfloat16), (False, float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert runtime.weights_dtype("auto", "cuda:1") is expected
        assert runtime.weights_dtype("auto", "cpu") is float32
        for precision, wanted in (("float32", float32), ("tf32", float32), ("bfloat16", bfloat16)):
            assert runtime.weights_dtype(precision, "cuda") is wanted  # type: ignore[arg-type]
    assert [runtime.mixed_precision("auto", dtype) for dtype in (float32, bfloat16, float16)] == [None, "bf16", "fp16"]
    assert [runtime.mixed_precision("measured", dtype) for dtype in (float32, bfloat16)] == [None, "bf16"]
    assert [runtime.mixed_precision(p, float32) for p in runtime.PRECISIONS[2:]] == ["no", "no", "bf16", "fp16"]


# ------------------------------------------------------------------------------------ several processes


def test_shares_are_even_and_complete() -> None:
    for total in range(14):
        for count in range(1, 6):
            shares = [range(total)[runtime.Processes(index, count).share(total)] for index in range(count)]
            assert [item for share in shares for item in share] == list(range(total))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_connects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(runtime, "_process_state", lambda: pytest.fail("asked for a connection"))
    assert runtime.processes() == runtime.Processes(0, 1)
    assert runtime.is_main_process()
    rows = torch.ones(2)
    assert runtime.all_gather_rows(rows, 2) is rows
    assert runtime.all_reduce(rows) is rows
    assert runtime.broadcast_number(0.5) == 0.5
    runtime.wait_for_everyone()


class FakeState:
    """What PartialState says in the second of three processes, each with a GPU of its own."""

    process_index, num_processes, device = 1, 3, torch.device("cuda", 1)

    def __init__(self, cpu: bool) -> None:
        self.cpu = cpu


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(accelerate, "PartialState", FakeState)
    assert runtime.processes() == runtime.Processes(1, 3)
    assert not runtime.is_main_process()
    assert runtime.default_device() == "cuda:1"
    for cuda, flag, expected in ((True, "false", False), (True, "true", True), (False, "false", True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
        assert runtime._process_state().cpu is expected


def test_what_processes_exchange_goes_through_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes tensors of the process's GPU alone; what is asked for on the CPU comes back to it."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    def exchange(answer: torch.Tensor) -> Any:
        def fake(values: torch.Tensor, *_: Any) -> torch.Tensor:
            seen.append((values.device.type, tuple(values.shape)))
            return answer

        return fake

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(accelerate, "PartialState", FakeState)
    monkeypatch.setattr(FakeState, "device", torch.device("meta"))  # stands for a GPU: nothing can be read there
    monkeypatch.setattr(accelerate.utils, "gather", exchange(torch.tensor([[0.0], [9], [1], [2], [3], [4]])))
    monkeypatch.setattr(accelerate.utils, "reduce", exchange(torch.tensor([6.0])))
    monkeypatch.setattr(accelerate.utils, "broadcast", exchange(torch.tensor([0.5])))
    assert runtime.all_gather_rows(torch.tensor([[1.0], [2.0]]), 5).tolist() == [[0], [1], [2], [3], [4]]
    assert runtime.all_reduce(torch.tensor([2.0])).tolist() == [6.0]
    assert runtime.broadcast_number(0.25) == 0.5
    assert seen == [("meta", (2, 1)), ("meta", (1,)), ("meta", (1,))]


# --------------------------------------------------------------------------------------- what a GPU gets


class FakeModel:
    """Writes down what is done to it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._compiled_call_impl: Any = None

    def parameters(self) -> Iterator[torch.Tensor]:
        yield torch.zeros(1)

    def to(self, *arguments: Any, **options: Any) -> None:
        self.calls.append((*arguments, *options.values()))

    def enable_gradient_checkpointing(self) -> None:
        self.calls.append("checkpointing")

    def disable_gradient_checkpointing(self) -> None:
        self.calls.append("no checkpointing")

    def compile(self) -> None:
        self._compiled_call_impl = "compiled"


def test_a_gpu_gets_channels_last_and_tf32_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = FakeModel()
    runtime.prepare_for_device(model, "cpu", "tf32")  # type: ignore[arg-type]
    assert (model.calls, asked) == ([], [])
    runtime.prepare_for_device(model, "cuda:0", "float32")  # type: ignore[arg-type]
    assert (model.calls, asked) == ([(torch.channels_last,)], [])
    runtime.prepare_for_device(model, "cuda:0", "tf32")  # type: ignore[arg-type]
    assert asked == ["high"]
    assert torch.backends.cudnn.allow_tf32


def test_attention_is_scaled_dot_product_attention(diffusion: Any) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    assert {type(processor) for processor in diffusion.denoiser.attn_processors.values()} == {AttnProcessor2_0}


def test_a_part_that_has_done_its_work_leaves_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []
    monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda **options: cleared.append(options))
    model = FakeModel()
    runtime.leave_device(model, "cpu")  # type: ignore[arg-type]
    assert (model.calls, cleared) == ([], [])
    runtime.leave_device(model, torch.device("cuda", 1))  # type: ignore[arg-type]
    assert (model.calls, cleared) == ([("cpu",)], [{"garbage_collection": True}])


def test_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    runtime.wait_for_device("cpu")
    assert waited == []
    runtime.wait_for_device(torch.device("cuda", 1))
    assert waited == [torch.device("cuda", 1)]


def test_the_form_of_training_is_undone() -> None:
    model = FakeModel()
    with runtime.training_form(model, gradient_checkpointing=False, compiled=False):
        assert (model.calls, model._compiled_call_impl) == ([], None)

    def be_interrupted() -> None:
        with runtime.training_form(model, gradient_checkpointing=True, compiled=True):
            assert (model.calls, model._compiled_call_impl) == (["checkpointing"], "compiled")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        be_interrupted()
    assert (model.calls, model._compiled_call_impl) == (["checkpointing", "no checkpointing"], None)


def test_checkpointing_spares_activations_and_changes_no_gradient(diffusion: Any) -> None:
    hidden = torch.randn(2, diffusion.context_length, diffusion.embedding_table.shape[1])
    noisy, steps = torch.randn(2, *diffusion.latent_shape), torch.tensor([100, 900])
    gradients, passes = [], []
    block = diffusion.denoiser.mid_block.resnets[1]
    hook = block.register_forward_pre_hook(lambda *_: passes.append(1))
    for checkpointing in (False, True):
        given = hidden.clone().requires_grad_()
        with runtime.training_form(diffusion.denoiser, checkpointing, compiled=False):
            diffusion.predict_noise(noisy, steps, given).square().mean().backward()
        gradients.append(given.grad)
    hook.remove()
    assert len(passes) == 1 + 2  # once more in the backward pass
    torch.testing.assert_close(gradients[1], gradients[0])


# ------------------------------------------------------------------------------------------------ memory


def out_of_memory(limit: int, tried: list[int]) -> Any:
    def work(size: int) -> int:
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return size

    return work


def test_sizes_are_halved_until_they_fit_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    fit = runtime.MemoryFit(40)
    assert [fit(out_of_memory(12, tried)), fit(out_of_memory(12, tried))] == [10, 10]
    assert tried == [40, 20, 10, 10]
    monkeypatch.setattr(gc, "collect", lambda: tried.append(0))
    assert fit(out_of_memory(12, [])) == 10
    assert 0 not in tried  # nothing is collected while all goes well: it would cost more than a step
    assert fit(out_of_memory(3, [])) == 2
    assert fit.size == 2


def test_memory_that_never_suffices_is_an_error_that_says_what_to_do() -> None:
    tried: list[int] = []
    fit = runtime.MemoryFit(4)
    for _ in range(2):
        with pytest.raises(TrainingError, match="a single piece of a batch.*gradient_checkpointing"):
            fit(out_of_memory(0, tried))
    assert tried == [4, 2, 1, 1]
    with pytest.raises(TrainingError, match=r"in a pass\. Buy memory$"):
        runtime.MemoryFit(1, "Buy memory")(out_of_memory(0, tried))


def test_sums_are_wide_where_the_device_can() -> None:
    assert [runtime.widest_float(name) for name in ("cpu", "cuda", "mps")] == [
        torch.float64,
        torch.float64,
        torch.float32,
    ]


def test_gathered_rows_are_laid_out_alike_with_any_number_of_processes() -> None:
    rows = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    found = runtime.all_gather_rows(rows.contiguous(memory_format=torch.channels_last), 2)
    assert found.is_contiguous()
    assert torch.equal(found, rows)


def test_other_errors_are_not_about_memory() -> None:
    def work(size: int) -> int:
        raise RuntimeError("shapes differ")

    fit = runtime.MemoryFit(4)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes differ"):
            fit(work)
    assert fit.size == 4


def test_the_machine_is_described_in_plain_values() -> None:
    machine = runtime.describe_machine()
    assert json.loads(json.dumps(machine)) == machine
    assert machine["cores"] == os.cpu_count()
    assert machine["system"] == platform.system()
    assert machine["threads"] == torch.get_num_threads()
    assert machine["memory_gib"] > 0.5
    assert machine["processor"]


def test_free_memory_is_that_of_the_machine_and_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    free = runtime.describe_free_memory()
    assert free.keys() == {"memory_free_gib"}
    assert 0 < free["memory_free_gib"] <= runtime.describe_machine()["memory_gib"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**29, 2**33))
    assert runtime.describe_free_memory()["device_memory_free_gib"] == 1.5


def test_versions_are_those_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "REPORTED_PACKAGES", ("torch", "no-such-package"))
    expected = {"python": platform.python_version(), "torch": importlib.metadata.version("torch")}
    assert runtime.describe_versions() == expected | {"no-such-package": "not installed"}


# -------------------------------------------------------------------------------------- formats, by measuring


def test_only_a_gain_worth_having_is_chosen() -> None:
    assert runtime.choose_fastest({"float32": [1.0, 1.0], "bfloat16": [0.95, 0.95]}) == "float32"
    assert runtime.choose_fastest({"float32": [1.0, 1.0], "bfloat16": [0.5, 0.5], "compiled": [0.6, 0.6]}) == "bfloat16"
    # A slow round slows both sides: what counts is the ratio within each.
    assert runtime.choose_fastest({"float32": [1.0, 9.0, 1.0], "bfloat16": [0.99, 8.9, 0.99]}) == "float32"


@pytest.mark.parametrize(("slow", "chosen"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("", "float32")])
def test_formats_are_measured_in_turn(slow: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, called = [0.0], []
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: clock[0])

    def run(name: str) -> None:
        called.append(name)
        clock[0] += 2.0 if name == slow else 1.0

    found = runtime.measure_formats(run, repeats=3)
    assert found.chosen == chosen
    assert found.seconds == {name: 2.0 if name == slow else 1.0 for name in ("float32", "bfloat16")}
    assert called == ["float32", "bfloat16"] * 4  # one round warms up


def test_a_chosen_format_must_have_been_measured() -> None:
    with pytest.raises(ValueError, match="'float8'; expected one of float32"):
        runtime.MeasuredFormat("float8", {"float32": 1.0})
