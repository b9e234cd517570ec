"""Runs that are interrupted: by a kill at any moment, a full disk, a signal; they go on as if nothing had been.

The process that is killed trains a tiny objective and writes a checkpoint after every update. It is forked from one
that has imported the libraries, so that twenty kills take seconds.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gcpl_lab.storage import read_tensors

ROOT = Path(__file__).parents[1]
NURSERY = """
import os, resource, sys
import torch
from torch import nn
torch.set_num_threads(1)
from gcpl_lab.training.loop import Journal, TrainingConfig, train
from gcpl_lab.training.device import make_accelerator
make_accelerator(cpu=True)  # imported before anything is forked

class Drift:
    def __init__(self, size):
        self.vectors = nn.Parameter(torch.zeros(size))
    def trainable_parameters(self):
        return [self.vectors]
    def __call__(self, batch):
        return {"loss": (self.vectors - batch).square().mean(), "mean": self.vectors.detach().mean()}

def run(path, size, num_steps, most_bytes):
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    objective = Drift(size)
    config = TrainingConfig(num_steps, 0.05, checkpoint_every=1)
    def batch_at(step):
        return torch.randn(size, generator=torch.Generator().manual_seed(step))
    for record in train(objective, batch_at, config, checkpoint=path, journal=Journal(every=100)):
        print("step", record.step, flush=True)

for line in sys.stdin:
    path, size, num_steps, most_bytes = line.split()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run(path, int(size), int(num_steps), int(most_bytes))
            code = 0
        except BaseException as error:
            print("failed", type(error).__name__, " ".join(str(error).split()), flush=True)
        os._exit(code)
    print("child", child, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Starts training processes and listens to them."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        self._early: list[list[str]] = []

    def start(self, path: Path, size: int, num_steps: int, most_bytes: int = 0) -> int:
        """The process id of a run that is on its way."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path} {size} {num_steps} {most_bytes}\n")
        self.process.stdin.flush()
        self._early = [self.hear()]
        while self._early[-1][0] != "child":  # the first steps may be told before
            self._early.append(self.hear())
        return int(self._early.pop()[1])

    def hear(self) -> list[str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process that forks the others is gone"
        return line.split()

    def until_the_end(self) -> tuple[int, list[list[str]]]:
        """Exit code, minus the signal's number where one ended it, and what was told before."""
        told = [*self._early, self.hear()]
        while told[-1][0] != "ended":
            told.append(self.hear())
        return int(told[-1][1]), told[:-1]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    if os.name != "posix":
        pytest.skip("forks processes")
    found = Nursery()
    yield found
    found.close()


def progress_of(path: Path) -> dict[str, Any]:
    return json.loads(read_tensors(path)[1]["progress"])


def without_times(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    tensors, metadata = read_tensors(path)
    progress = json.loads(metadata["progress"])
    for record in progress["records"]:
        del record["seconds"]
    return progress, tensors


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments_lose_nothing_but_time(nursery: Nursery, tmp_path: Path) -> None:
    """Every second kill waits until a checkpoint is being written."""
    size, num_steps, moments = 400_000, 400, random.Random(0)
    path, reached, in_the_middle, kills = tmp_path / "broken" / "run.safetensors", 0, 0, 0
    while kills < 20:
        process = nursery.start(path, size, num_steps)
        while not path.is_file():  # before the first checkpoint there is nothing to lose
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.3))
        if kills % 2:
            while not any(path.parent.glob(".*.part")):
                pass
        os.kill(process, signal.SIGKILL)
        code, _ = nursery.until_the_end()
        assert code == -signal.SIGKILL, "the run ended by itself: make it longer"
        kills += 1
        in_the_middle += any(path.parent.glob(".*.part"))
        progress = progress_of(path)  # whole and readable, whenever the kill came
        assert progress["step"] >= reached
        assert [record["step"] for record in progress["records"]] == list(range(1, progress["step"] + 1))
        reached = progress["step"]
    assert in_the_middle > 0
    whole = tmp_path / "whole" / "run.safetensors"
    for file in (path, whole):
        nursery.start(file, size, num_steps)
        assert nursery.until_the_end()[0] == 0
    (progress, tensors), (expected, undisturbed) = without_times(path), without_times(whole)
    assert progress == expected
    assert tensors.keys() == undisturbed.keys()
    assert all(torch.equal(tensors[name], undisturbed[name]) for name in undisturbed)
    assert [file.name for file in path.parent.iterdir()] == ["run.safetensors"]


def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_to_do(nursery: Nursery, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    nursery.start(path, 1000, 3)
    assert nursery.until_the_end()[0] == 0
    before = path.read_bytes()
    path.unlink()
    # A file may not grow beyond this: the records of about thirty updates take the place of the kept last state.
    nursery.start(path, 1000, 60, most_bytes=len(before))
    code, told = nursery.until_the_end()
    assert code == 1
    assert told[-1][:2] == ["failed", "ArtifactError"]
    assert "cannot be written" in " ".join(told[-1])
    reached = progress_of(path)["step"]
    assert 3 < reached < 60
    assert ["step", str(reached)] in told
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]
    nursery.start(path, 1000, 60)
    code, told = nursery.until_the_end()
    assert (code, told[0]) == (0, ["step", str(reached + 1)])
    nursery.start(tmp_path / "whole.safetensors", 1000, 60)
    assert nursery.until_the_end()[0] == 0
    (progress, tensors), (expected, whole) = without_times(path), without_times(tmp_path / "whole.safetensors")
    assert progress == expected
    assert tensors.keys() == whole.keys()
    assert all(torch.equal(tensors[name], whole[name]) for name in whole)
