"""Runs that are interrupted: by a kill at any moment, a full disk; they go on as if nothing had been.

The process that is killed trains a tiny objective and writes a checkpoint after every update. It is forked from one
that has imported the libraries, so that twenty kills take seconds.
"""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import read_tensors
from gcpl_lab.training.device import make_accelerator
from gcpl_lab.training.loop import History, TrainingConfig, train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks processes")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["accelerate", __name__])


class Drift:
    def __init__(self, size: int) -> None:
        self.vectors = nn.Parameter(torch.zeros(size))

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [self.vectors]

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.vectors - batch).square().mean(), "mean": self.vectors.detach().mean()}


def run(path: Path, size: int, num_steps: int, tell: Any = None, most_bytes: int = 0) -> list[int]:
    """The updates that were made; ``tell`` hears of each, and of the error that ends it where files may not grow."""
    import resource

    torch.set_num_threads(1)
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    config, steps = TrainingConfig(num_steps, 0.05, checkpoint_every=1), []
    records = train(
        Drift(size),
        lambda step: torch.randn(size, generator=torch.Generator().manual_seed(step)),
        config,
        checkpoint=path,
        accelerator=make_accelerator(cpu=True),
        history=History(every=100),
    )
    try:
        for record in records:
            steps.append(record.step)
            if tell:
                tell.put(record.step)
    except ArtifactError as error:
        tell.put(str(error))
    return steps


def progress_of(path: Path) -> dict[str, Any]:
    return json.loads(read_tensors(path)[1]["progress"])


def assert_equal_but_for_times(path: Path, other: Path) -> None:
    (tensors, _), (expected, _) = read_tensors(path), read_tensors(other)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    found = [progress_of(each) for each in (path, other)]
    for progress in found:
        for record in progress["records"]:
            del record["seconds"]
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments_lose_nothing_but_time(tmp_path: Path) -> None:
    """Every second kill waits until a checkpoint is being written."""
    size, num_steps, moments = 400_000, 400, random.Random(0)
    path, whole = tmp_path / "broken" / "run.safetensors", tmp_path / "whole" / "run.safetensors"
    reached, in_the_middle = 0, 0
    for kill in range(20):
        process = FORKS.Process(target=run, args=(path, size, num_steps))
        process.start()
        while not path.is_file():  # before the first checkpoint there is nothing to lose
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.3))
        while kill % 2 and not any(path.parent.glob(".*.part")):
            pass
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended by itself: make it longer"
        in_the_middle += any(path.parent.glob(".*.part"))
        progress = progress_of(path)  # whole and readable, whenever the kill came
        assert progress["step"] >= reached
        assert [record["step"] for record in progress["records"]] == list(range(1, progress["step"] + 1))
        reached = progress["step"]
    assert in_the_middle > 0
    for file in (path, whole):
        run(file, size, num_steps)
    assert_equal_but_for_times(path, whole)
    assert [file.name for file in path.parent.iterdir()] == ["run.safetensors"]


def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_to_do(tmp_path: Path) -> None:
    path, whole, tell = tmp_path / "run.safetensors", tmp_path / "whole" / "run.safetensors", FORKS.SimpleQueue()
    run(path, 1000, 3)
    most_bytes = path.stat().st_size
    path.unlink()
    # A file may not grow beyond this: the records of about thirty updates take the place of the kept last state.
    process = FORKS.Process(target=run, args=(path, 1000, 60, tell, most_bytes))
    process.start()
    told: list[Any] = [tell.get()]
    while not isinstance(told[-1], str):
        told.append(tell.get())
    process.join()
    reached = progress_of(path)["step"]
    assert 3 < reached < 60
    assert told[:-1] == list(range(1, reached + 1))
    assert "cannot be written" in told[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]
    assert run(path, 1000, 60)[0] == reached + 1
    run(whole, 1000, 60)
    assert_equal_but_for_times(path, whole)
