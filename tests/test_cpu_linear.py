"""Products by oneDNN: torch's numbers up to rounding, forth and back, and only where they are of use."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from gcpl_lab.errors import LabError
from gcpl_lab.fast import cpu_linear
from gcpl_lab.fast.cpu_linear import FrozenLinear, PackedProduct, linear, torch_products, use_fast_products
from gcpl_lab.fast.shared_prefix import SharedDenoiser
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training import processor, runtime

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A machine whose rule says oneDNN and whose smallest product gains; shapes that oneDNN was asked for."""
    shapes: list[tuple[int, ...]] = []
    multiply = cpu_linear._multiply

    def note(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append((*rows.shape, len(weight)))
        return multiply(rows, weight, bias)

    monkeypatch.setattr(cpu_linear, "_multiply", note)
    monkeypatch.setattr(cpu_linear, "float32_products", lambda: "oneDNN")
    monkeypatch.setattr(cpu_linear, "LEAST_WORK", 1)
    return shapes


def answer_and_gradient(product: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    rows = rows.detach().requires_grad_()
    answer = product(rows, weight, bias)
    upstream = torch.linspace(-1, 1, answer.numel(), dtype=answer.dtype).reshape(answer.shape)
    return [answer.detach(), torch.autograd.grad((answer * upstream).sum(), rows)[0]]


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (2, 2, 3, 7), (1, 7)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_numbers_and_gradients_are_torchs(asked: list[Any], shape: tuple[int, ...], with_bias: bool) -> None:
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(shape), torch.randn(4, 7), torch.randn(4) if with_bias else None
    truth = answer_and_gradient(F.linear, *(None if one is None else one.double() for one in (rows, weight, bias)))
    found = answer_and_gradient(linear, rows, weight, bias)
    for true, ours in zip(truth, found, strict=True):
        torch.testing.assert_close(ours.double(), true, atol=1e-5, rtol=1e-5)
    assert asked == [(*shape, 4), (*shape[:-1], 4, 7)], "forth and back"


def test_by_hand(asked: list[Any]) -> None:
    """[1 2] · [[3 4], [5 6]]ᵀ + [1 -1] = [12 16]; the gradient of their sum is [3 + 5, 4 + 6]."""
    weight = torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    rows = torch.tensor([[1.0, 2.0]], requires_grad=True)
    answer = linear(rows, weight, torch.tensor([1.0, -1.0]))
    answer.sum().backward()
    assert answer.tolist() == [[12.0, 16.0]]
    assert rows.grad is not None
    assert rows.grad.tolist() == [[8.0, 10.0]]
    assert len(asked) == 2


@pytest.mark.parametrize("num_rows", [1, 6, 40])
def test_a_packed_weight_and_its_way_back(asked: list[Any], num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right for any number of rows; torch multiplies where it should, where few suffice, and where the type differs."""
    monkeypatch.setattr(PackedProduct, "LEAST_WORK", 6 * 48 * 32)
    torch.manual_seed(0)
    weight, bias = torch.randn(48, 32), torch.randn(48)
    rows, gradient = torch.randn(num_rows, 32), torch.randn(num_rows, 48)
    few, packed = PackedProduct(weight, bias, 5), PackedProduct(weight, bias, 6)
    truth = F.linear(rows.double(), weight.double(), bias.double()), gradient.double() @ weight.double()
    found = few.forth(rows), few.back(gradient), packed.forth(rows), packed.back(gradient)
    for true, ours in zip(truth * 2, found, strict=True):
        torch.testing.assert_close(ours.double(), true, atol=1e-5, rtol=1e-5)
    assert len(asked) == 2
    exact = PackedProduct(weight.double(), bias.double(), 6)
    with torch_products():
        found = packed.forth(rows), packed.back(gradient), exact.forth(rows.double()), exact.back(gradient.double())
    for true, ours in zip(truth * 2, found, strict=True):
        torch.testing.assert_close(ours.double(), true, atol=1e-5, rtol=1e-5)
    assert len(asked) == 2


def test_rows_in_any_memory_layout(asked: list[Any]) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(3, 7, 5).transpose(1, 2), torch.randn(4, 7)
    expanded = torch.randn(1, 7).expand(6, 7)
    for some in (rows, expanded, rows[:, ::2]):
        found, expected = (answer_and_gradient(product, some, weight, None) for product in (linear, F.linear))
        for ours, torchs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, torchs, atol=1e-5, rtol=1e-5)
    assert len(asked) == 6


def test_a_graph_may_be_gone_through_again(asked: list[Any]) -> None:
    rows = torch.randn(3, 7, requires_grad=True)
    total = linear(rows, torch.randn(4, 7)).sum()
    first = torch.autograd.grad(total, rows, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(total, rows)[0], first, atol=0, rtol=0)
    assert len(asked) == 3


def test_what_is_left_to_torch(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weight = torch.randn(3, 7), torch.randn(4, 7)
    assert linear(rows.double(), weight.double()).dtype == torch.float64
    assert linear(rows.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(rows, weight).dtype == torch.bfloat16
    learned = weight.clone().requires_grad_()
    linear(rows, learned).sum().backward()
    assert learned.grad is not None
    with torch_products():
        linear(rows, weight)
        with ThreadPoolExecutor(1) as other:  # which asked for nothing of the kind
            other.submit(linear, rows, weight).result()
        assert asked == [(3, 7, 4)]
    asked.clear()
    monkeypatch.setattr(cpu_linear, "LEAST_WORK", 3 * 7 * 4)
    linear(rows, weight)
    assert len(asked) == 1
    linear(rows.clone().requires_grad_(), weight)  # a gradient costs, so half as much work is too little
    linear(rows[:2], weight)
    monkeypatch.setattr(cpu_linear, "float32_products", lambda: "torch")
    linear(rows, weight)
    assert len(asked) == 1


def test_layers_change_nothing_but_their_class(asked: list[Any]) -> None:
    class Adapted(nn.Linear):
        """Somebody's own."""

    model = nn.Sequential(nn.Linear(7, 4), Adapted(4, 4), NonDynamicallyQuantizableLinear(4, 3), nn.GELU())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = torch.randn(2, 7)
    expected = model(rows)
    use_fast_products(model.requires_grad_(False))
    assert [type(layer) for layer in model] == [FrozenLinear, Adapted, FrozenLinear, nn.GELU]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    for one in (model, copy.deepcopy(model)):
        asked.clear()
        torch.testing.assert_close(one(rows), expected.detach(), atol=1e-6, rtol=1e-5)
        assert asked == [(2, 7, 4), (2, 4, 3)]


def test_elsewhere_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "float32_products", lambda: "torch")
    model = nn.Sequential(nn.Linear(7, 4))
    use_fast_products(model)
    assert type(model[0]) is nn.Linear


def test_a_frozen_model_answers_and_learns_the_same(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and gradients of the bundled denoiser, class features of the bundled CLIP."""
    diffusion, clip = FrozenDiffusion.load("tiny"), FrozenCLIP.load("tiny")
    assert {type(m) for m in diffusion.denoiser.modules() if isinstance(m, nn.Linear)} == {FrozenLinear}
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn((3, *diffusion.latent_shape), generator=generator)
    hidden = diffusion.encode_texts(["a coat", "a bag", "a shirt"])
    garments = ["a coat", "a bag", "a shirt", "a dress", "a sandal"]

    def learn() -> list[Tensor]:
        conditioning = hidden.clone().requires_grad_()
        predicted = diffusion.predict_noise(noisy, torch.tensor([100, 400, 900]), conditioning)
        predicted.square().mean().backward()
        assert conditioning.grad is not None
        return [predicted.detach(), conditioning.grad * 1e3, clip.encode_texts(garments)]

    ours = learn()
    assert len(asked) > 50
    asked.clear()
    with torch_products():
        torchs = learn()
        assert asked == []
    for one, other in zip(ours, torchs, strict=True):
        assert not torch.equal(one, other), "rounded in another order"
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert diffusion.checksum() == FrozenDiffusion.load("tiny").checksum()


def test_operations_are_counted_all_the_same(asked: list[Any]) -> None:
    """The counter of FLOPs does not know oneDNN's product."""
    diffusion = FrozenDiffusion.load("tiny")
    shared = SharedDenoiser(diffusion, diffusion.encode_texts(["a coat", "a bag"]))
    asked.clear()
    found = shared.prefix_share, shared.keys_share
    assert asked == []
    with torch_products():
        again = SharedDenoiser(diffusion, shared.hidden)
        assert (again.prefix_share, again.keys_share) == found
    assert 0 < found[1] < found[0] < 0.5


@pytest.mark.parametrize(
    ("vendor", "capability", "mkl", "onednn", "expected"),
    [
        ("AuthenticAMD", "AVX512", True, True, "oneDNN"),
        ("AMD64 Family 26 Model 2 Stepping 1, AuthenticAMD", "AVX512", True, True, "oneDNN"),
        ("GenuineIntel", "AVX512", True, True, "torch"),
        ("AuthenticAMD", "AVX2", True, True, "torch"),
        ("AuthenticAMD", "AVX512", False, True, "torch"),
        ("AuthenticAMD", "AVX512", True, False, "torch"),
        ("", "DEFAULT", False, True, "torch"),
    ],
)
def test_the_rule(
    monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, mkl: bool, onednn: bool, expected: str
) -> None:
    monkeypatch.setattr(processor, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    processor.float32_products.cache_clear()
    try:
        assert processor.float32_products() == expected
        assert runtime.describe_machine()["float32_products"] == expected
        processor.float32_products.cache_clear()
        monkeypatch.setenv("GCPL_LAB_KERNELS", "library")
        assert processor.float32_products() == "torch"
    finally:
        processor.float32_products.cache_clear()


def test_a_kind_of_kernels_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCPL_LAB_KERNELS", "fast")
    with pytest.raises(LabError, match="GCPL_LAB_KERNELS is 'fast'; expected 'own' or 'library'"):
        processor.own_kernels()
