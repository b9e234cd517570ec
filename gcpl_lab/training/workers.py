"""Independent pieces of work side by side, each in a process of its own on a share of the processor.

A small model does not fill a processor: what one pass computes is soon done, and its threads wait for each other. Two
processes with half of the threads each get through more. Results differ at most by the rounding that comes with
another number of threads.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.managers import SyncManager
from threading import Thread
from typing import Any

from gcpl_lab.errors import TrainingError
from gcpl_lab.training.device import default_device
from gcpl_lab.training.processes import processes

SECONDS_BETWEEN_LOOKS = 0.5
"""How often a worker looks whether its parent is still there."""

Report = Callable[..., None]
Task = tuple[Any, ...]
"""A function and its arguments behind the first, which is a ``Report``."""


def useful_workers() -> int:
    """How many are faster than one here: two on a CPU with as many threads; one beside a GPU or a launcher."""
    import torch

    alone = default_device() == "cpu" and processes().count == 1
    return min(2, torch.get_num_threads()) if alone else 1


def threads_each(num_workers: int) -> int:
    """Threads of each worker: an equal share of this process's."""
    import torch

    if num_workers < 1:
        raise ValueError(f"{num_workers} workers; expected 1 or more")
    return max(1, torch.get_num_threads() // num_workers)


def describe_workers(num_workers: int) -> dict[str, int]:
    """What a result should say about them beside the machine: their number, and the threads of each."""
    return {"side_by_side": num_workers, "threads": threads_each(num_workers)}


def run_side_by_side(tasks: Sequence[Task], *, num_workers: int = 1, on_event: Report | None = None) -> list[Any]:
    """Call ``function(report, *arguments)`` for every task (function, *arguments), some of them at a time.

    With one worker the tasks run in this process, one after another. With more, functions and arguments are sent to
    other processes, and the answers back: the functions stand at the top of a module, and keep in files what is large.

    Args:
        tasks: The longest first leaves the fewest waiting at the end.
        num_workers: At most; each has an equal share of the threads.
        on_event: Called in this process, from another thread, with what a task gives to ``report(...)``; the events
            of one task come in order.

    Returns:
        What the functions returned, in the order of the tasks.

    Raises:
        TrainingError: A worker was ended from outside. What a task raises is raised here, and the others are stopped.
    """
    tell, threads = on_event or (lambda *_event: None), threads_each(num_workers)
    if num_workers == 1:
        return [function(tell, *arguments) for function, *arguments in tasks]
    from joblib import Parallel, delayed, parallel_config

    here, manager = (os.getpid(),), SyncManager()
    manager.start(_stand_by, here)
    with manager:
        events = manager.Queue()
        listener = Thread(target=_listen, args=(events, tell), daemon=True)
        listener.start()
        try:
            with parallel_config("loky", inner_max_num_threads=threads):
                pool = Parallel(n_jobs=num_workers, batch_size=1, initializer=_stand_by, initargs=here)
                return list(pool(delayed(_work)(events, threads, task) for task in tasks))
        except BrokenProcessPool as error:
            raise TrainingError(
                f"one of {num_workers} processes that worked side by side was ended from outside, most likely for "
                "want of memory; what was finished is kept: go on with fewer workers"
            ) from error
        finally:
            with suppress(OSError, EOFError):  # the manager was ended, too, and the listener with it
                events.put(None)
            listener.join()


def _stand_by(parent: int) -> None:
    """In another process: what interrupts the run is left to the parent, and when that is gone, this ends, too.

    A signal to a whole group reaches everybody; a worker that obeyed it would look as if it had failed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_without, args=(parent,), daemon=True).start()


def _end_without(parent: int) -> None:
    """End this process at once when another is gone, whatever it computes; works wherever psutil does."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _work(events: Any, threads: int, task: Task) -> Any:
    """In a worker."""
    import torch

    torch.set_num_threads(threads)
    function, *arguments = task
    return function(lambda *event: events.put(event), *arguments)


def _listen(events: Any, tell: Report) -> None:
    with suppress(OSError, EOFError):
        while (event := events.get()) is not None:
            tell(*event)
