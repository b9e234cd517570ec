"""Passes: parts of a batch add up to the whole, whatever memory holds and however many processes share it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gcpl_lab.errors import TrainingError
from gcpl_lab.training import passes
from gcpl_lab.training.device import make_accelerator
from gcpl_lab.training.loop import StepRecord, TrainingConfig, train
from gcpl_lab.training.processes import Processes
from tests.quadratic import CONFIG, Quadratic, batch_at


class Rows(Quadratic):
    """The mean over rows of a batch, which may be parted between groups of ``together`` rows."""

    def __init__(self, together: int = 1, memory: int = 1000) -> None:
        super().__init__()
        self.together, self.memory, self.sizes, self.seen = together, memory, list[int](), list[float]()

    def unit(self, batch: Tensor) -> int:
        return self.together

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        self.sizes.append(len(batch))
        self.seen += batch[:, 0].tolist()
        if len(batch) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        losses = (self.scale * self.vectors - batch[:, None]).square().mean((1, 2))
        return {"loss": losses.mean(), "first": batch.detach()[:, 0].mean()}


def rows_at(step: int) -> Tensor:
    return torch.randn(7, 2, generator=torch.Generator().manual_seed(step))


def run_rows(objective: Rows, **settings: Any) -> list[StepRecord]:
    return list(train(objective, rows_at, TrainingConfig(5, 0.05, **settings)))


def one_pass(objective: Quadratic, batch: Tensor, micro_batch_size: int | None = None) -> dict[str, float]:
    """Scalars; the gradient is left in the parameters."""
    parts = passes.Passes(
        objective, objective.trainable_parameters(), make_accelerator(cpu=True), micro_batch_size=micro_batch_size
    )
    return parts.forward_and_backward(batch)


def assert_close(first: Quadratic, second: Quadratic) -> None:
    for one, other in zip(first.state(), second.state(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("together", "micro", "sizes"),
    [(1, 3, [3, 3, 1]), (1, 1, [1] * 7), (3, 3, [3, 3, 1]), (3, 6, [6, 1]), (3, 2, [3, 3, 1]), (1, 50, [7])],
)
def test_passes_add_up_to_the_whole_batch(together: int, micro: int, sizes: list[int]) -> None:
    whole, parted = Rows(), Rows(together)
    expected, found = run_rows(whole), run_rows(parted, micro_batch_size=micro)
    assert (whole.sizes, parted.sizes) == ([7] * 5, sizes * 5)
    assert_close(parted, whole)
    for one, other in zip(found, expected, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        assert one.values == pytest.approx(other.values, rel=1e-5)
        assert one.learning_rate == other.learning_rate


def test_memory_that_runs_out_means_more_passes_and_the_same_update() -> None:
    whole, small, none = Rows(), Rows(memory=2), Rows(memory=0)
    run_rows(whole), run_rows(small)
    assert small.sizes == [7, 3] + [1] * 7 * 5  # 7 rows, 3 rows, then one at a time
    assert_close(small, whole)
    with pytest.raises(TrainingError, match="memory ran out with a single piece"):
        run_rows(none)
    assert none.is_as_at_the_start()


@pytest.mark.parametrize("together", [1, 3, 7])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_the_gradients_of_all_processes_add_up(monkeypatch: pytest.MonkeyPatch, together: int, count: int) -> None:
    """Without connections: what each of ``count`` processes would bring, added by hand."""
    whole, total, losses = Rows(together), [torch.zeros(2, 2), torch.tensor(0.0)], 0.0
    expected = one_pass(whole, rows_at(0))
    monkeypatch.setattr(passes, "all_reduce", lambda values: values)
    for index in range(count):
        objective = Rows(together)
        monkeypatch.setattr(passes, "processes", lambda index=index: Processes(index, count))
        losses += one_pass(objective, rows_at(0))["loss"]
        total = [one + p.grad for one, p in zip(total, objective.trainable_parameters(), strict=True)]
    assert losses == pytest.approx(expected["loss"], rel=1e-6)
    for one, parameter in zip(total, whole.trainable_parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


@pytest.mark.parametrize(("together", "micro", "count"), [(1, 2, 2), (1, 2, 3), (1, 1, 7), (3, 3, 3), (3, 3, 2)])
def test_passes_are_the_same_whoever_computes_them(
    monkeypatch: pytest.MonkeyPatch, together: int, micro: int, count: int
) -> None:
    def computed(of: int) -> tuple[list[int], list[float]]:
        found = Rows(together)
        for index in range(of):
            monkeypatch.setattr(passes, "processes", lambda index=index: Processes(index, of))
            one_pass(found, rows_at(0), micro)
        return found.sizes, found.seen

    monkeypatch.setattr(passes, "all_reduce", lambda values: values)
    assert computed(count) == computed(1)


class Weighing(Rows):
    """A loss whose gradient in one place is the batch's mean."""

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.vectors[0, 0] * batch.mean()}


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 2, 0, 3], [3, 1, 2, 0]])
def test_the_order_of_passes_leaves_no_trace(order: list[int]) -> None:
    """In float32, 1 + 2^-24 + 2^-24 is 1 from the left and more from the right."""
    objective, little = Weighing(), 2.0**-24
    values = one_pass(objective, torch.tensor([1.0, little, little, 0.0])[order, None], 1)
    assert float(objective.vectors.grad[0, 0]) == (1 + 2 * little) / 4
    assert values["loss"] == 0.5 * (1 + 2 * little) / 4
    assert objective.scale.grad is None  # a parameter that no pass reaches is none of the optimizer's business


def test_what_cannot_be_parted_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of three processes computes the whole batch, and a third of it counts."""
    alone, shared = Quadratic(), Quadratic()
    expected = one_pass(alone, batch_at(0))
    monkeypatch.setattr(passes, "all_reduce", lambda values: 3 * values)
    monkeypatch.setattr(passes, "processes", lambda: Processes(1, 3))
    assert one_pass(shared, batch_at(0)) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(shared.vectors.grad, alone.vectors.grad)


def test_only_float32_is_trained() -> None:
    objective = Quadratic()
    objective.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.bfloat16))
    with pytest.raises(TrainingError, match="trainable parameter 1 is torch.bfloat16; expected float32"):
        next(train(objective, batch_at, CONFIG))
