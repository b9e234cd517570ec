"""Work side by side: in other processes, with a share of the threads, and nothing of what they say is lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from gcpl_lab.errors import TrainingError
from gcpl_lab.training import workers
from gcpl_lab.training.processes import Processes
from gcpl_lab.training.workers import Report, run_side_by_side, threads_each, useful_workers


def tell_place(report: Report, name: str) -> None:
    report(name, os.getpid(), torch.get_num_threads())


def wait_for_the_other(report: Report, own: Path, other: Path) -> None:
    own.touch()
    for _ in range(600):
        if other.exists():
            return report("met", own.name)
        time.sleep(0.1)
    raise TimeoutError(f"{other} was not begun")


def fail(report: Report) -> None:
    raise FileNotFoundError("no such image")


def die(report: Report) -> None:
    os._exit(1)


def test_one_worker_is_this_process_and_keeps_the_order() -> None:
    events: list[Any] = []
    run_side_by_side([(tell_place, "first"), (tell_place, "second")], on_event=lambda *event: events.append(event))
    assert events == [(name, os.getpid(), torch.get_num_threads()) for name in ("first", "second")]


def test_two_workers_share_the_threads_and_work_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert (threads_each(1), threads_each(2), threads_each(9)) == (7, 3, 1)
    events: list[Any] = []
    first, second = tmp_path / "first", tmp_path / "second"
    tasks = [(wait_for_the_other, first, second), (wait_for_the_other, second, first), (tell_place, "here")]
    run_side_by_side(tasks, num_workers=2, on_event=lambda *event: events.append(event))
    assert sorted(event[1] for event in events if event[0] == "met") == ["first", "second"]
    ((_, pid, threads),) = (event for event in events if event[0] == "here")
    assert pid != os.getpid()
    assert threads == 3


def test_what_goes_wrong_in_a_worker_arrives() -> None:
    with pytest.raises(FileNotFoundError, match="no such image"):
        run_side_by_side([(fail,), (tell_place, "a")], num_workers=2)
    with pytest.raises(TrainingError, match="want of memory; what was finished is kept"):
        run_side_by_side([(die,), (die,)], num_workers=2)
    with pytest.raises(ValueError, match="0 workers"):
        run_side_by_side([], num_workers=0)


SPINNING = """
import sys
from pathlib import Path
from gcpl_lab.cli.app import app, main
from tests.test_workers import spin
from gcpl_lab.training.workers import run_side_by_side

@app.command("spin")
def command() -> None:
    run_side_by_side([(spin, name) for name in sys.argv[2:]], num_workers=2)

sys.argv[1:1] = ["spin"]
app.registered_commands[-1].context_settings = {"allow_extra_args": True}
main()
"""


def spin(report: Report, mark: str) -> None:
    Path(mark).touch()
    while True:
        sum(range(10**6))


@pytest.fixture
def spinning(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A program whose two workers compute for ever, in a group of its own, and the processes that it has begun."""
    marks = [tmp_path / "first", tmp_path / "second"]
    command = [sys.executable, "-c", SPINNING, *map(str, marks)]
    where = {"cwd": Path(__file__).parents[1], "start_new_session": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **where)
    while process.poll() is None and not all(mark.exists() for mark in marks):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    children = psutil.Process(process.pid).children(recursive=True)
    yield process, children
    for each in (*children, process):
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            each.kill()
    process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="sends signals to a group")
def test_an_end_of_the_whole_group_is_one_line(spinning: Any) -> None:
    """As a scheduler ends a job: all processes get the signal at once."""
    process, children = spinning
    os.killpg(process.pid, signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert told.strip().splitlines() == [told.strip()]
    assert told.startswith("Interrupted. ")
    assert process.returncode == 130
    assert not psutil.wait_procs(children, timeout=30)[1]


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_workers_end_when_their_parent_is_gone(spinning: Any) -> None:
    """The one that holds the events among them."""
    process, children = spinning
    assert len(children) >= 3
    process.kill()
    assert not psutil.wait_procs(children, timeout=30)[1]


@pytest.mark.parametrize(
    ("device", "num_processes", "threads", "useful"),
    [("cpu", 1, 8, 2), ("cuda", 1, 8, 1), ("cpu", 2, 8, 1), ("cpu", 1, 1, 1)],
)
def test_more_than_one_is_of_use_on_a_cpu_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, num_processes: int, threads: int, useful: int
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(workers, "default_device", lambda: device)
    monkeypatch.setattr(workers, "processes", lambda: Processes(0, num_processes))
    assert useful_workers() == useful


@pytest.mark.slow
@pytest.mark.timeout(900)  # two demonstrations
def test_the_demonstration_is_the_same_side_by_side(tmp_path: Path) -> None:
    from gcpl_lab.experiments.demo import run_demo

    steps = {"num_steps": 4, "discriminative_steps": 2, "num_evidence": 2}
    settings = {"num_vectors": 2, "batch_size": 8, "evidence_bfloat16": False, **steps}
    arguments: dict[str, Any] = {"shots": 4, "test_total": 40, "settings": settings, "multilabel": False}
    events: list[Any] = []
    alone = run_demo(tmp_path / "alone", **arguments)
    together = run_demo(tmp_path / "together", num_workers=2, on_event=lambda *event: events.append(event), **arguments)
    for one, two in zip(alone.outcomes, together.outcomes, strict=True):
        # Another number of threads rounds otherwise, and an image that was nearly a tie may be decided otherwise.
        assert one.method == two.method
        assert one.row["accuracy"] == pytest.approx(two.row["accuracy"], abs=0.03)
        # One context for all classes swings about in 200 updates, and what is rounded otherwise swings with it; an
        # epsilon of AdamW that is large enough to calm that changes what is learned.
        swings = one.method == "coop_unified"
        most = 5e-5 * float(np.abs(one.scores).max()) if swings else 1e-5
        np.testing.assert_allclose(one.scores, two.scores, rtol=2e-3, atol=most, err_msg=one.method)
    begun = [event[1] for event in events if event[0] == "begin"]
    assert sorted(begun) == sorted([*(outcome.method for outcome in alone.outcomes), "report"])
    assert sorted(begun) == sorted(event[1] for event in events if event[0] == "end")
    assert {event[1] for event in events if event[0] == "step"} >= {"gcpl", "comple", "discriminative"}
    # All is kept: nothing is learned a second time.
    events.clear()
    run_demo(tmp_path / "together", num_workers=2, on_event=lambda *event: events.append(event), **arguments)
    assert [event[:2] for event in events] == [("begin", "report"), ("end", "report")]
