"""The training loop: resumed equals uninterrupted, and nothing is lost when it goes wrong."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gcpl_lab.errors import ArtifactError, TrainingError
from gcpl_lab.fast.adamw import FusedAdamW
from gcpl_lab.storage import read_tensors, write_tensors
from gcpl_lab.training import loop
from gcpl_lab.training.device import make_accelerator
from gcpl_lab.training.loop import Journal, StepRecord, TrainingConfig, train
from gcpl_lab.training.processes import Processes

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
            reference.loss,
            reference.values,
            reference.validation,
        )


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
    whole = [p.grad.clone() for p in objective.trainable_parameters()]  # type: ignore[union-attr]
    objective = Quadratic()
    list(train(objective, lambda step: batch_at(step) + 100, TrainingConfig(1, 1e-9, gradient_clip=1e6)))
    for found, expected in zip(objective.trainable_parameters(), whole, strict=True):
        assert torch.equal(found.grad, expected)  # type: ignore[arg-type]


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
        None,
        None,
        7.0,
    ]


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


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_our_adamw_is_torchs(monkeypatch: pytest.MonkeyPatch, weight_decay: float) -> None:
    """Digit for digit, with its state, over a restored state dict, and where a parameter has no gradient."""
    config = TrainingConfig(9, 0.05, weight_decay=weight_decay, epsilon=1e-6)
    sets = [[nn.Parameter(START.clone()), nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.ones(3))] for _ in "ab"]
    ours = config.make_optimizer(sets[0])
    assert type(ours) is FusedAdamW
    theirs = torch.optim.AdamW(sets[1], lr=0.05, eps=1e-6, weight_decay=weight_decay, fused=True)
    for step in range(9):
        for parameters in sets:
            generator = torch.Generator().manual_seed(step)
            for parameter in parameters[: 2 if step < 4 else 3]:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = 0.05 / (step + 1)
            optimizer.step()
        if step == 5:
            other = config.make_optimizer(sets[0])
            other.load_state_dict(ours.state_dict())
            ours = other
    assert same(*sets)
    for one, other in zip(*sets, strict=True):
        assert ours.state[one].keys() == theirs.state[other].keys()
        assert same(list(ours.state[one].values()), list(theirs.state[other].values()))
    with pytest.raises(ValueError, match="a closure was given"):
        ours.step(lambda: 0.0)
    monkeypatch.setenv("GCPL_LAB_KERNELS", "library")
    assert type(config.make_optimizer(sets[0])) is torch.optim.AdamW


def test_a_long_gradient_is_clipped_as_torch_does_it() -> None:
    found, expected = Quadratic(), Quadratic()
    config = TrainingConfig(1, 0.1, schedule="constant", optimizer="sgd", gradient_clip=0.01)
    list(train(found, batch_at, config))
    expected(batch_at(0))["loss"].backward()
    norm = nn.utils.clip_grad_norm_(expected.trainable_parameters(), 0.01)
    assert norm > 0.1
    for one, other in zip(found.trainable_parameters(), expected.trainable_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=0)


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


# ---------------------------------------------------------------------------------------- journal of a run


def what(records: list[StepRecord]) -> list[Any]:
    return [(record.step, record.loss, record.values, record.learning_rate, record.validation) for record in records]


@pytest.mark.parametrize("stop", [5, 12])
def test_a_resumed_journal_is_that_of_the_whole_run(tmp_path: Path, stop: int) -> None:
    path = tmp_path / "run.safetensors"
    whole, broken, resumed = Quadratic(), Quadratic(), Quadratic()
    expected, seen, journal = Journal(every=5), Journal(every=5), Journal(every=5)
    list(train(whole, batch_at, CONFIG, validate=validation_of(whole), journal=expected))
    steps = train(broken, batch_at, CONFIG, validate=validation_of(broken), checkpoint=path, journal=seen)
    assert [record.step for record in itertools.islice(steps, stop)] == list(range(1, stop + 1))
    steps.close()
    list(train(resumed, batch_at, CONFIG, validate=validation_of(resumed), checkpoint=path, journal=journal))
    assert what(journal.records) == what(expected.records)
    assert [record.step for record in journal.records] == list(range(1, 13))
    seconds = [record.seconds for record in journal.records]
    assert seconds == sorted(seconds)
    assert list(journal.states) == list(expected.states) == [5, 10, 12]
    assert all(same(journal.states[step], expected.states[step]) for step in expected.states)
    assert same(expected.states[12], list(journal.states[12]))


def test_a_journal_keeps_no_states_unless_asked() -> None:
    journal = Journal()
    list(train(Quadratic(), batch_at, CONFIG, journal=journal))
    assert (len(journal.records), journal.states) == (12, {})


def test_how_often_is_saved_and_in_how_many_passes_may_change(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    list(train(Quadratic(), batch_at, TrainingConfig(6, 0.1, checkpoint_every=2), checkpoint=path, stop_after=3))
    other = TrainingConfig(6, 0.1, checkpoint_every=1, micro_batch_size=1)
    assert [record.step for record in train(Quadratic(), batch_at, other, checkpoint=path)] == [4, 5, 6]


def test_what_killed_writers_left_is_swept_away(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    for name in (".run.safetensors.abc.part", ".other.safetensors.abc.part"):
        (tmp_path / name).touch()
    next(train(Quadratic(), batch_at, CONFIG, checkpoint=path))
    assert [file.name for file in tmp_path.iterdir()] == [".other.safetensors.abc.part"]


def test_only_float32_is_trained() -> None:
    objective = Quadratic()
    objective.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.bfloat16))
    with pytest.raises(TrainingError, match="trainable parameter 1 is torch.bfloat16; expected float32"):
        next(train(objective, batch_at, CONFIG))


# ----------------------------------------------------------------------------- parts of a batch, and precision


class Rows(Quadratic):
    """The mean over rows of a batch, which may be parted between groups of ``together`` rows."""

    def __init__(self, together: int = 1, memory: int = 1000) -> None:
        super().__init__()
        self.together, self.memory, self.sizes = together, memory, list[int]()

    def unit(self, batch: Tensor) -> int:
        return self.together

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        self.sizes.append(len(batch))
        if len(batch) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        losses = (self.scale * self.vectors - batch[:, None]).square().mean((1, 2))
        return {"loss": losses.mean(), "first": batch.detach()[:, 0].mean()}


def rows_at(step: int) -> Tensor:
    return torch.randn(7, 2, generator=torch.Generator().manual_seed(step))


def run_rows(objective: Rows, **settings: Any) -> list[StepRecord]:
    return list(train(objective, rows_at, TrainingConfig(5, 0.05, **settings)))


@pytest.mark.parametrize(
    ("together", "micro", "sizes"),
    [(1, 3, [3, 3, 1]), (1, 1, [1] * 7), (3, 3, [3, 3, 1]), (3, 6, [6, 1]), (3, 2, [3, 3, 1]), (1, 50, [7])],
)
def test_passes_add_up_to_the_whole_batch(together: int, micro: int, sizes: list[int]) -> None:
    whole, parted = Rows(), Rows(together)
    expected, found = run_rows(whole), run_rows(parted, micro_batch_size=micro)
    assert whole.sizes == [7] * 5
    assert parted.sizes == sizes * 5
    for one, other in zip(parted.state(), whole.state(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    assert [record.loss for record in found] == pytest.approx([record.loss for record in expected], rel=1e-6)
    assert found[2].values == pytest.approx(expected[2].values, rel=1e-5)
    assert [record.learning_rate for record in found] == [record.learning_rate for record in expected]


def test_memory_that_runs_out_means_more_passes_and_the_same_update() -> None:
    whole, small = Rows(), Rows(memory=2)
    run_rows(whole), run_rows(small)
    assert small.sizes == [7, 3] + [1] * 7 * 5  # 7 rows, 3 rows, then one at a time
    for one, other in zip(small.state(), whole.state(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_memory_that_never_suffices_ends_the_run_before_the_update() -> None:
    objective = Rows(memory=0)
    with pytest.raises(TrainingError, match="memory ran out with a single piece"):
        run_rows(objective)
    assert same(objective.state(), [START, torch.tensor(1.0)])


@pytest.mark.parametrize("together", [1, 3, 7])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_the_gradients_of_all_processes_add_up(monkeypatch: pytest.MonkeyPatch, together: int, count: int) -> None:
    """Without connections: what each of ``count`` processes would bring, added by hand."""
    whole, total, losses = Rows(together), [torch.zeros(2, 2), torch.tensor(0.0)], 0.0
    run = loop._Gradients(whole, whole.trainable_parameters(), make_accelerator(cpu=True), None)
    expected = run(rows_at(0))
    monkeypatch.setattr(loop, "all_reduce", lambda values: values)
    for index in range(count):
        objective = Rows(together)
        monkeypatch.setattr(loop, "processes", lambda index=index: Processes(index, count))
        run = loop._Gradients(objective, objective.trainable_parameters(), make_accelerator(cpu=True), None)
        losses += run(rows_at(0))["loss"]
        total = [one + p.grad for one, p in zip(total, objective.trainable_parameters(), strict=True)]
    assert losses == pytest.approx(expected["loss"], rel=1e-6)
    for one, parameter in zip(total, whole.trainable_parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


@pytest.mark.parametrize(("together", "micro", "count"), [(1, 2, 2), (1, 2, 3), (1, 1, 7), (3, 3, 3), (3, 3, 2)])
def test_passes_are_the_same_whoever_computes_them(together: int, micro: int, count: int) -> None:
    def parts(index: int, of: int) -> list[tuple[list[float], float]]:
        here = Processes(index, of)
        most = loop._units_a_pass(rows_at(0), together, micro, here)
        return [(part[:, 0].tolist(), share) for part, share in loop._parts(rows_at(0), together, most, most, here)]

    assert [part for index in range(count) for part in parts(index, count)] == parts(0, 1)


class Weighing(Quadratic):
    """A loss whose gradient in one place is the batch itself."""

    def __call__(self, batch: float) -> dict[str, Tensor]:
        return {"loss": self.vectors[0, 0] * batch}


def test_the_order_of_passes_leaves_no_trace() -> None:
    """In float32, 1 + 2^-24 + 2^-24 is 1 from the left and more from the right."""
    objective, little = Weighing(), 2.0**-24
    run = loop._Gradients(objective, objective.trainable_parameters(), make_accelerator(cpu=True), None)
    for values in ([1.0, little, little], [little, little, 1.0]):
        (gradient, unused), totals = run._passes([(value, 1.0) for value in values])
        assert gradient.float()[0, 0] == 1 + 2 * little
        assert totals["loss"].float() == 0.5 + little
        assert unused is None  # a parameter that no pass reaches is none of the optimiser's business


def test_what_cannot_be_parted_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of three processes computes the whole batch, and a third of it counts."""
    alone, shared = Quadratic(), Quadratic()
    monkeypatch.setattr(loop, "all_reduce", lambda values: 3 * values)
    expected = loop._Gradients(alone, alone.trainable_parameters(), make_accelerator(cpu=True), None)(batch_at(0))
    monkeypatch.setattr(loop, "processes", lambda: Processes(1, 3))
    found = loop._Gradients(shared, shared.trainable_parameters(), make_accelerator(cpu=True), None)(batch_at(0))
    assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(shared.vectors.grad, alone.vectors.grad)


def test_machines_without_a_common_folder_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loop, "broadcast_number", lambda value: value + 4)
    with pytest.raises(ArtifactError, match="at step 0, the main one at 4; expected a folder that all machines share"):
        next(train(Quadratic(), batch_at, CONFIG, checkpoint=tmp_path / "run.safetensors"))


class ScalingAccelerator:
    """fp16 on a GPU, as far as the loop sees it: gradients scaled by a real scaler, here on the CPU."""

    is_main_process = True

    def __init__(self, scale: float) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
        self.autocast = torch.enable_grad  # nothing: that half precision works is torch's to prove

    def unscale_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimizer)


def test_scaled_gradients_give_the_same_updates() -> None:
    plain, scaled = Quadratic(), Quadratic()
    list(train(plain, batch_at, CONFIG))
    list(train(scaled, batch_at, CONFIG, accelerator=ScalingAccelerator(1024.0)))  # type: ignore[arg-type]
    for one, other in zip(scaled.state(), plain.state(), strict=True):
        torch.testing.assert_close(one, other)


def test_an_overflow_of_scaled_gradients_is_left_out_and_lowers_the_scale() -> None:
    objective, accelerator, states = Quadratic(), ScalingAccelerator(1e38), []
    for _ in train(objective, batch_at, TrainingConfig(6, 0.1), accelerator=accelerator):  # type: ignore[arg-type]
        states.append(objective.state())
    assert same(states[0], [START, torch.tensor(1.0)])  # the first update was left out
    assert not same(states[5], states[0])
    assert accelerator.scaler.get_scale() < 1e38


def test_a_gradient_that_overflows_at_any_scale_is_an_error() -> None:
    class Root(Quadratic):
        def __call__(self, batch: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.vectors - self.vectors.detach()).abs().sqrt().sum() + self.scale}

    objective = Root()
    with pytest.raises(TrainingError, match="step 4: the gradient is not finite"):
        list(train(objective, batch_at, CONFIG, accelerator=ScalingAccelerator(8.0)))  # type: ignore[arg-type]
    assert same(objective.state(), [START, torch.tensor(1.0)])


def test_the_scale_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole, first, second = (ScalingAccelerator(16.0) for _ in range(3))
    objectives = [Quadratic() for _ in range(3)]
    list(train(objectives[0], batch_at, CONFIG, accelerator=whole))  # type: ignore[arg-type]
    steps = train(objectives[1], batch_at, CONFIG, checkpoint=path, accelerator=first)  # type: ignore[arg-type]
    list(itertools.islice(steps, 5))
    list(train(objectives[2], batch_at, CONFIG, checkpoint=path, accelerator=second))  # type: ignore[arg-type]
    assert second.scaler.state_dict() == whole.scaler.state_dict()
    assert whole.scaler.get_scale() == 16.0 * 2**4  # doubled every three updates
    assert same(objectives[2].state(), objectives[0].state())
