"""Checkpoints: resumed equals uninterrupted, and a file that does not fit is named and left alone."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import read_tensors, write_tensors
from gcpl_lab.training import checkpoint
from gcpl_lab.training.loop import History, StepRecord, TrainingConfig, train
from tests.quadratic import CONFIG, Quadratic, ScalingAccelerator, batch_at, same


def without_times(records: list[StepRecord]) -> list[StepRecord]:
    return [replace(record, seconds=0.0) for record in records]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8, 11, 12])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, stop: int, optimizer: Any) -> None:
    config, path = replace(CONFIG, optimizer=optimizer), tmp_path / "run.safetensors"
    whole, resumed, expected, history = Quadratic(), Quadratic(), History(every=5), History(every=5)
    list(train(whole, batch_at, config, history=expected))
    steps = train(Quadratic(), batch_at, config, checkpoint=path, history=History(every=5))
    assert [record.step for record in itertools.islice(steps, stop)] == list(range(1, stop + 1))
    steps.close()
    assert path.is_file() == (stop >= 4)
    rest = list(train(resumed, batch_at, config, checkpoint=path, history=history))
    assert [record.step for record in rest] == list(range(4 * (stop // 4) + 1, 13))
    assert same(resumed.state(), whole.state())
    assert without_times(history.records) == without_times(expected.records)
    assert rest == history.records[len(history.records) - len(rest) :]
    seconds = [record.seconds for record in history.records]
    assert seconds == sorted(seconds)
    assert list(history.states) == list(expected.states) == [5, 10, 12]
    assert all(same(history.states[step], expected.states[step]) for step in expected.states)
    assert same(history.states[12], whole.state())


def test_a_history_keeps_no_states_unless_asked() -> None:
    history = History()
    list(train(Quadratic(), batch_at, CONFIG, history=history))
    assert (len(history.records), history.states) == (12, {})


def test_the_scale_of_fp16_is_part_of_it(tmp_path: Path) -> None:
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


def test_it_holds_the_trained_tensors_and_their_optimizer_only(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    list(train(Quadratic(), batch_at, CONFIG, checkpoint=path))
    optimizer = ("optimizer.{}.step", "optimizer.{}.exp_avg", "optimizer.{}.exp_avg_sq")
    assert read_tensors(path)[0].keys() == {name.format(i) for name in ("parameter.{}", *optimizer) for i in (0, 1)}


def test_how_often_is_saved_and_in_how_many_passes_may_change(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    list(train(Quadratic(), batch_at, TrainingConfig(6, 0.1, checkpoint_every=2), checkpoint=path, stop_after=3))
    other = TrainingConfig(6, 0.1, checkpoint_every=1, micro_batch_size=1)
    assert [record.step for record in train(Quadratic(), batch_at, other, checkpoint=path)] == [4, 5, 6]


@pytest.mark.parametrize(("learning_rate", "fingerprint"), [(0.05, "b"), (0.06, "a")])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, learning_rate: float, fingerprint: str) -> None:
    path = tmp_path / "run.safetensors"
    list(train(Quadratic(), batch_at, CONFIG, checkpoint=path, fingerprint="a"))
    before, objective, config = path.read_bytes(), Quadratic(), replace(CONFIG, learning_rate=learning_rate)
    with pytest.raises(ArtifactError, match=r"run\.safetensors: belongs to a run with other settings"):
        list(train(objective, batch_at, config, checkpoint=path, fingerprint=fingerprint))
    assert path.read_bytes() == before
    assert objective.is_as_at_the_start()


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"

    def refused(message: str) -> None:
        objective = Quadratic()
        with pytest.raises(ArtifactError, match=r"run\.safetensors: " + message):
            list(train(objective, batch_at, CONFIG, checkpoint=path))
        assert objective.is_as_at_the_start()

    list(train(Quadratic(), batch_at, CONFIG, checkpoint=path))
    whole, (tensors, metadata) = path.read_bytes(), read_tensors(path)
    for content in (b"", whole[: len(whole) // 2], b"something else"):
        path.write_bytes(content)
        refused("cannot be read as safetensors")
    write_tensors(path, {name: value for name, value in tensors.items() if name != "parameter.1"}, metadata)
    refused(r"lacks parameter\.1; delete it to start anew")
    write_tensors(path, tensors, {"fingerprint": metadata["fingerprint"]})
    refused("lacks its progress; delete it to start anew")
    write_tensors(path, tensors | {"parameter.0": torch.zeros(3, 2)}, metadata)
    refused(r"holds parameter\.0 of shape \(3, 2\); expected \(2, 2\); delete it")


def test_what_killed_writers_left_is_swept_away(tmp_path: Path) -> None:
    for name in (".run.safetensors.abc.part", ".other.safetensors.abc.part"):
        (tmp_path / name).touch()
    next(train(Quadratic(), batch_at, CONFIG, checkpoint=tmp_path / "run.safetensors"))
    assert [file.name for file in tmp_path.iterdir()] == [".other.safetensors.abc.part"]


def test_machines_without_a_common_folder_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "broadcast_number", lambda value: value + 4)
    with pytest.raises(ArtifactError, match="at step 0, the main one at 4; expected a folder that all machines share"):
        next(train(Quadratic(), batch_at, CONFIG, checkpoint=tmp_path / "run.safetensors"))


def test_early_states_are_kept_at_powers_of_two() -> None:
    history = History(every=10, early=True)
    assert [step for step in range(1, 36) if history.keeps(step, 35)] == [1, 2, 4, 8, 10, 16, 20, 30, 32, 35]
    assert [step for step in range(1, 26) if History(every=10).keeps(step, 25)] == [10, 20, 25]
    assert not any(History(early=True).keeps(step, 9) for step in range(1, 10))
