"""The training loop: resumed equals uninterrupted, and nothing is lost when it goes wrong."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gcpl_lab.errors import ArtifactError, TrainingError
from gcpl_lab.storage import read_tensors, write_tensors
from gcpl_lab.training.loop import StepRecord, TrainingConfig, train
from gcpl_lab.training.runtime import make_accelerator

START = torch.tensor([[0.5, -1.0], [2.0, 0.3]])


class Quadratic:
    """Squared distance to a target that the batch brings; ``scale`` for two parameter tensors."""

    def __init__(self) -> None:
        self.vectors, self.scale = nn.Parameter(START.clone()), nn.Parameter(torch.tensor(1.0))
        self.frozen = torch.ones(2)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [self.vectors, self.scale]

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        loss = (self.scale * self.vectors - batch).square().mean()
        return {"loss": loss, "size": self.vectors.detach().abs().mean()}

    def state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.trainable_parameters()]


def batch_at(step: int) -> Tensor:
    return torch.randn(2, 2, generator=torch.Generator().manual_seed(step))


CONFIG = TrainingConfig(num_steps=12, learning_rate=0.05, warmup_steps=2, checkpoint_every=4, validate_every=3)


def validation_of(objective: Quadratic) -> Any:
    return lambda: float(objective.vectors.detach().square().mean())


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8, 11, 12])
@pytest.mark.parametrize("validated", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop: int, validated: bool) -> None:
    whole, broken, resumed = Quadratic(), Quadratic(), Quadratic()
    expected = list(train(whole, batch_at, CONFIG, validate=validation_of(whole) if validated else None))
    path = tmp_path / "run.safetensors"
    settings = {"checkpoint": path, "fingerprint": "a"}
    first = train(broken, batch_at, CONFIG, validate=validation_of(broken) if validated else None, **settings)
    for record in first:
        if record.step == stop:
            break
    first.close()
    assert path.is_file() == (stop >= 4)
    rest = list(train(resumed, batch_at, CONFIG, validate=validation_of(resumed) if validated else None, **settings))
    assert same(resumed.state(), whole.state())
    assert [record.step for record in rest] == list(range(4 * (stop // 4) + 1, 13))
    for record in rest:
        reference = expected[record.step - 1]
        assert (record.loss, record.values, record.validation) == (
            reference.loss, reference.values, reference.validation,
        )  # fmt: skip


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    first, again = Quadratic(), Quadratic()
    list(train(first, batch_at, CONFIG, checkpoint=tmp_path / "run.safetensors"))
    assert list(train(again, batch_at, CONFIG, checkpoint=tmp_path / "run.safetensors")) == []
    assert same(again.state(), first.state())


def test_adamw_by_hand() -> None:
    """One step of AdamW moves every parameter by its rate against the sign of its gradient."""
    objective = Quadratic()
    gradients = torch.autograd.grad(objective(batch_at(0))["loss"], objective.trainable_parameters())
    (record,) = train(objective, batch_at, TrainingConfig(num_steps=1, learning_rate=0.05))
    moved = [after - before for after, before in zip(objective.state(), [START, torch.tensor(1.0)], strict=True)]
    for move, gradient in zip(moved, gradients, strict=True):
        torch.testing.assert_close(move, -0.05 * gradient.sign(), atol=1e-5, rtol=0)
    assert record.learning_rate == 0.05
    assert record.values == {"size": pytest.approx(float(START.abs().mean()))}


def test_weight_decay_pulls_to_zero() -> None:
    config = TrainingConfig(num_steps=1, learning_rate=0.1, weight_decay=0.5)
    plain, decayed = Quadratic(), Quadratic()
    list(train(plain, batch_at, TrainingConfig(num_steps=1, learning_rate=0.1)))
    list(train(decayed, batch_at, config))
    torch.testing.assert_close(decayed.vectors, plain.vectors - 0.1 * 0.5 * START)


def test_schedules_by_hand() -> None:
    def rates(schedule: Any, warmup: int) -> list[float]:
        config = TrainingConfig(num_steps=6, learning_rate=1.0, schedule=schedule, warmup_steps=warmup)
        return [config.rate_at(step) for step in range(6)]

    assert rates("constant", 0) == [1.0] * 6
    assert rates("constant", 2) == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear", 2) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    half = math.sqrt(0.5) / 2
    assert rates("cosine", 2) == pytest.approx([0.5, 1.0, 1.0, 0.5 + half, 0.5, 0.5 - half])


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule is 'step'"):
        TrainingConfig(num_steps=1, learning_rate=1.0, schedule="step")  # type: ignore[arg-type]


def test_clipping_bounds_the_gradient_of_all_parameters_together() -> None:
    objective = Quadratic()
    list(train(objective, lambda step: batch_at(step) + 100, TrainingConfig(1, 1e-9, gradient_clip=0.5)))
    norm = torch.stack([p.grad.norm() for p in objective.trainable_parameters()]).norm()  # type: ignore[union-attr]
    assert float(norm) == pytest.approx(0.5, rel=1e-4)
    list(train(objective, lambda step: batch_at(step) + 100, TrainingConfig(1, 1e-9, gradient_clip=0)))
    norm = torch.stack([p.grad.norm() for p in objective.trainable_parameters()]).norm()  # type: ignore[union-attr]
    assert float(norm) > 10


def scripted(losses: list[float]) -> Any:
    """A validation that tells these losses one after the other."""
    told = iter(losses)
    return lambda: next(told)


def test_the_best_validated_parameters_are_put_back() -> None:
    objective, states = Quadratic(), {}
    config = TrainingConfig(num_steps=4, learning_rate=0.1, validate_every=1)
    for record in train(objective, batch_at, config, validate=scripted([3.0, 1.0, 2.0, 1.0])):
        states[record.step] = objective.state()
    assert same(objective.state(), states[2])  # the first of equals
    assert not same(states[2], states[4])


def test_patience_counts_validations() -> None:
    config = TrainingConfig(num_steps=100, learning_rate=0.1, validate_every=2, patience=2)
    records = list(train(Quadratic(), batch_at, config, validate=scripted([3.0, 1.0, 1.5, 1.2, 0.1])))
    assert records[-1].step == 8
    assert [record.validation for record in records] == [None, 3.0, None, 1.0, None, 1.5, None, 1.2]


def test_the_last_step_is_validated() -> None:
    config = TrainingConfig(num_steps=3, learning_rate=0.1, validate_every=50)
    assert [record.validation for record in train(Quadratic(), batch_at, config, validate=lambda: 7.0)] == [
        None, None, 7.0,
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path, bad: float) -> None:
    objective, states, path = Quadratic(), [], tmp_path / "run.safetensors"

    def poisoned(step: int) -> Tensor:
        return batch_at(step) * (bad if step == 5 else 1.0)

    records = train(objective, poisoned, CONFIG, checkpoint=path)
    for _ in range(5):
        next(records)
        states.append(objective.state())
    with pytest.raises(TrainingError, match="step 6: the loss"):
        next(records)
    assert same(objective.state(), states[-1])
    assert all(bool(torch.isfinite(value).all()) for value in objective.state())
    tensors, _ = read_tensors(path)
    assert torch.equal(tensors["parameter.0"], states[3][0])  # the checkpoint of step 4


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    class Root(Quadratic):
        def __call__(self, batch: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.vectors - self.vectors.detach()).abs().sqrt().sum() + self.scale}

    objective = Root()
    with pytest.raises(TrainingError, match="step 1: the gradient is not finite"):
        next(train(objective, batch_at, CONFIG))
    assert same(objective.state(), [START, torch.tensor(1.0)])


@pytest.mark.parametrize(
    ("config", "fingerprint"),
    [(CONFIG, "b"), (TrainingConfig(num_steps=12, learning_rate=0.06, warmup_steps=2, checkpoint_every=4), "a")],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, config: TrainingConfig, fingerprint: str) -> None:
    path = tmp_path / "run.safetensors"
    list(train(Quadratic(), batch_at, CONFIG, checkpoint=path, fingerprint="a"))
    before = path.read_bytes()
    objective = Quadratic()
    with pytest.raises(ArtifactError, match=r"run\.safetensors: belongs to a run with other settings"):
        list(train(objective, batch_at, config, checkpoint=path, fingerprint=fingerprint))
    assert path.read_bytes() == before
    assert same(objective.state(), [START, torch.tensor(1.0)])


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    list(train(Quadratic(), batch_at, CONFIG, checkpoint=path))
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"something else"):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"run\.safetensors"):
            list(train(Quadratic(), batch_at, CONFIG, checkpoint=path))
    path.write_bytes(whole)
    tensors, metadata = read_tensors(path)
    del tensors["best.1"]
    write_tensors(path, tensors, metadata)
    with pytest.raises(ArtifactError, match=r"run\.safetensors: lacks best\.1"):
        list(train(Quadratic(), batch_at, CONFIG, checkpoint=path))


def test_a_checkpoint_of_other_shapes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    list(train(Quadratic(), batch_at, CONFIG, checkpoint=path))
    other = Quadratic()
    other.vectors = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(ArtifactError, match=r"parameter\.0 of shape \(2, 2\); expected \(3, 2\)"):
        list(train(other, lambda step: torch.zeros(3, 2), CONFIG, checkpoint=path))
    assert torch.equal(other.vectors, torch.zeros(3, 2))


def test_a_checkpoint_holds_the_trained_tensors_and_their_optimiser_only(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    list(train(Quadratic(), batch_at, CONFIG, checkpoint=path))
    tensors, _ = read_tensors(path)
    optimizer = ("optimizer.{}.step", "optimizer.{}.exp_avg", "optimizer.{}.exp_avg_sq")
    expected = {name.format(i) for name in ("parameter.{}", "best.{}", *optimizer) for i in (0, 1)}
    assert tensors.keys() == expected


def test_the_loop_can_be_left_and_looked_at() -> None:
    objective = Quadratic()
    records = list(itertools.islice(train(objective, batch_at, CONFIG), 3))
    assert [record.step for record in records] == [1, 2, 3]
    assert all(isinstance(record, StepRecord) and record.validation is None for record in records)
    assert [record.learning_rate for record in records] == [CONFIG.rate_at(step) for step in range(3)]
    assert records[0].seconds <= records[1].seconds <= records[2].seconds


def test_stopping_after_some_updates_keeps_the_whole_schedule(tmp_path: Path) -> None:
    whole, cut, path = Quadratic(), Quadratic(), tmp_path / "run.safetensors"
    states = [whole.state() for _ in train(whole, batch_at, CONFIG)]
    records = list(train(cut, batch_at, CONFIG, stop_after=5, checkpoint=path))
    assert [record.learning_rate for record in records] == [CONFIG.rate_at(step) for step in range(5)]
    assert same(cut.state(), states[4])
    assert list(train(Quadratic(), batch_at, CONFIG, stop_after=5, checkpoint=path)) == []
    assert list(train(Quadratic(), batch_at, CONFIG, stop_after=-3)) == []


def test_sgd_by_hand() -> None:
    """Two steps with momentum 0.9: velocity g0, then 0.9 · g0 + g1."""
    objective, moves, config = Quadratic(), [], TrainingConfig(2, 0.1, schedule="constant", optimizer="sgd")
    gradients = []
    for _ in train(objective, batch_at, config):
        gradients.append(objective.vectors.grad.clone())  # type: ignore[union-attr]
        moves.append(objective.state()[0])
    torch.testing.assert_close(moves[0], START - 0.1 * gradients[0])
    torch.testing.assert_close(moves[1], moves[0] - 0.1 * (0.9 * gradients[0] + gradients[1]))
    with pytest.raises(ValueError, match="optimizer is 'adam'"):
        TrainingConfig(1, 0.1, optimizer="adam")  # type: ignore[arg-type]


def test_sgd_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = TrainingConfig(8, 0.1, optimizer="sgd", checkpoint_every=3)
    whole, broken, resumed = Quadratic(), Quadratic(), Quadratic()
    list(train(whole, batch_at, config))
    steps = train(broken, batch_at, config, checkpoint=tmp_path / "run.safetensors")
    list(itertools.islice(steps, 5))
    steps.close()
    assert [r.step for r in train(resumed, batch_at, config, checkpoint=tmp_path / "run.safetensors")] == [
        4,
        5,
        6,
        7,
        8,
    ]
    assert same(resumed.state(), whole.state())


def test_an_accelerator_can_be_given() -> None:
    accelerator = make_accelerator(cpu=True)
    first, second = Quadratic(), Quadratic()
    list(train(first, batch_at, CONFIG, accelerator=accelerator))
    list(train(second, batch_at, CONFIG))
    assert same(first.state(), second.state())
