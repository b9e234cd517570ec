"""The training loop: optimizers and schedules by hand, and nothing is lost when it goes wrong."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gcpl_lab.errors import TrainingError
from gcpl_lab.storage import read_tensors
from gcpl_lab.training.loop import TrainingConfig, end_early, train
from tests.quadratic import CONFIG, START, Quadratic, ScalingAccelerator, batch_at, same


def test_adamw_by_hand() -> None:
    """One step of AdamW moves every parameter by its rate against the sign of its gradient."""
    objective = Quadratic()
    gradients = torch.autograd.grad(objective(batch_at(0))["loss"], objective.trainable_parameters())
    (record,) = train(objective, batch_at, TrainingConfig(num_steps=1, learning_rate=0.05))
    moved = [after - before for after, before in zip(objective.state(), Quadratic().state(), strict=True)]
    for move, gradient in zip(moved, gradients, strict=True):
        torch.testing.assert_close(move, -0.05 * gradient.sign(), atol=1e-5, rtol=0)
    assert record.learning_rate == 0.05
    assert record.values == {"size": pytest.approx(float(START.abs().mean()))}
    decayed = Quadratic()
    list(train(decayed, batch_at, TrainingConfig(num_steps=1, learning_rate=0.05, weight_decay=0.5)))
    torch.testing.assert_close(decayed.vectors, objective.vectors - 0.05 * 0.5 * START)


def test_sgd_by_hand() -> None:
    """Two steps with momentum 0.9: velocity g0, then 0.9 · g0 + g1."""
    objective, gradients, states = Quadratic(), [], [START]
    for _ in train(objective, batch_at, TrainingConfig(2, 0.1, schedule="constant", optimizer="sgd")):
        gradients.append(objective.vectors.grad.clone())  # type: ignore[union-attr]
        states.append(objective.state()[0])
    torch.testing.assert_close(states[1], START - 0.1 * gradients[0])
    torch.testing.assert_close(states[2], states[1] - 0.1 * (0.9 * gradients[0] + gradients[1]))


HALF = math.sqrt(0.5) / 2


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 0, [1.0] * 6),
        ("constant", 2, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", 2, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", 2, [0.5, 1.0, 1.0, 0.5 + HALF, 0.5, 0.5 - HALF]),
    ],
)
def test_schedules_by_hand(schedule: Any, warmup: int, rates: list[float]) -> None:
    config = TrainingConfig(num_steps=6, learning_rate=1.0, schedule=schedule, warmup_steps=warmup)
    assert [config.rate_at(step) for step in range(6)] == pytest.approx(rates)


@pytest.mark.parametrize("most", [0.01, 0.0, 1e6])
def test_the_gradient_of_all_parameters_together_is_clipped_as_torch_does_it(most: float) -> None:
    found, expected = Quadratic(), Quadratic()
    list(train(found, batch_at, TrainingConfig(1, 0.1, gradient_clip=most)))
    expected(batch_at(0))["loss"].backward()
    norm = float(nn.utils.clip_grad_norm_(expected.trainable_parameters(), most or math.inf))
    assert norm > 0.1
    gradients = [[p.grad for p in each.trainable_parameters()] for each in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    length = torch.stack([gradient.norm() for gradient in gradients[0]]).norm()  # type: ignore[union-attr]
    assert float(length) == pytest.approx(min(norm, most or math.inf), rel=1e-4)


def test_the_loop_can_be_left_and_looked_at() -> None:
    objective = Quadratic()
    steps = train(objective, batch_at, CONFIG)
    records = list(itertools.islice(steps, 3))
    assert [record.step for record in records] == [1, 2, 3]
    assert [record.learning_rate for record in records] == [CONFIG.rate_at(step) for step in range(3)]
    assert records[0].seconds <= records[1].seconds <= records[2].seconds
    before = objective.state()
    end_early(steps)
    assert list(steps) == []
    assert same(objective.state(), before)


def test_stopping_after_some_updates_keeps_the_whole_schedule(tmp_path: Path) -> None:
    whole, cut, path = Quadratic(), Quadratic(), tmp_path / "run.safetensors"
    states = [whole.state() for _ in train(whole, batch_at, CONFIG)]
    records = list(train(cut, batch_at, CONFIG, stop_after=5, checkpoint=path))
    assert [record.learning_rate for record in records] == [CONFIG.rate_at(step) for step in range(5)]
    assert same(cut.state(), states[4])
    assert list(train(Quadratic(), batch_at, CONFIG, stop_after=5, checkpoint=path)) == []
    assert list(train(Quadratic(), batch_at, CONFIG, stop_after=-3)) == []


class Root(Quadratic):
    """A finite loss with an infinite gradient."""

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.vectors - self.vectors.detach()).abs().sqrt().sum() + self.scale}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path, bad: float) -> None:
    objective, states, path = Quadratic(), [], tmp_path / "run.safetensors"
    records = train(objective, lambda step: batch_at(step) * (bad if step == 5 else 1.0), CONFIG, checkpoint=path)
    for _ in range(5):
        next(records)
        states.append(objective.state())
    with pytest.raises(TrainingError, match="step 6: the loss"):
        next(records)
    assert same(objective.state(), states[-1])
    tensors, _ = read_tensors(path)
    assert torch.equal(tensors["parameter.0"], states[3][0])  # the checkpoint of step 4


@pytest.mark.parametrize(("scale", "step"), [(None, 1), (8.0, 4)])
def test_a_gradient_that_is_not_finite_stops_before_the_update(scale: float | None, step: int) -> None:
    """With fp16 only when no scale is small enough: 8, 4, 2, 1."""
    objective, accelerator = Root(), None if scale is None else ScalingAccelerator(scale)
    with pytest.raises(TrainingError, match=f"step {step}: the gradient is not finite"):
        list(train(objective, batch_at, CONFIG, accelerator=accelerator))  # type: ignore[arg-type]
    assert objective.is_as_at_the_start()


def test_scaled_gradients_give_the_same_updates() -> None:
    plain, scaled = Quadratic(), Quadratic()
    list(train(plain, batch_at, CONFIG))
    list(train(scaled, batch_at, CONFIG, accelerator=ScalingAccelerator(1024.0)))  # type: ignore[arg-type]
    for one, other in zip(scaled.state(), plain.state(), strict=True):
        torch.testing.assert_close(one, other)


def test_an_overflow_of_scaled_gradients_is_left_out_and_lowers_the_scale() -> None:
    objective, accelerator = Quadratic(), ScalingAccelerator(1e38)
    steps = train(objective, batch_at, TrainingConfig(6, 0.1), accelerator=accelerator)  # type: ignore[arg-type]
    next(steps)
    assert objective.is_as_at_the_start()
    list(steps)
    assert not objective.is_as_at_the_start()
    assert accelerator.scaler.get_scale() < 1e38
