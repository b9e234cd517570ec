"""Runs the parts, each as far as the time allows, and writes what they found.

Parts run in a process beside this one, and behind one that failed in a fresh process: a GPU may be of no use behind an
error, and a part may end its process or never come back. None of that may hide what the others find.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gcpl_lab.experiments.selftest.parts import PARTS, Findings, NotHere, first_line
from gcpl_lab.storage import write_json
from gcpl_lab.training.device import default_device
from gcpl_lab.training.machine import describe_device, describe_machine, describe_versions

BUDGETS = {"cuda": 480.0, "cpu": 120.0}
"""Seconds of all parts together, on a GPU and in the form for a CPU."""

MODULES = ("machine", "equality", "learning", "resuming", "filling", "several", "true_shape")
"""Where parts are registered, the most telling first."""

A_DAY = 86_400.0
"""Seconds; the system counts how long it waits in milliseconds, and not without end."""
GRACE = 60.0
"""Seconds that a part may take beyond its time before it is ended."""


def known_parts() -> list[str]:
    """Names of all parts, in the order in which they run, whichever of them was imported first."""
    modules = [import_module(f"gcpl_lab.experiments.selftest.{module}").__name__ for module in MODULES]
    order = {name: place for place, name in enumerate(modules)}
    return sorted(PARTS, key=lambda name: order.get(PARTS[name].target.__module__, len(order)))


def run_selftest(
    folder: str | Path,
    only: Sequence[str] = (),
    budget: float | None = None,
    on_part: Callable[[str], None] = lambda _title: None,
) -> dict[str, Any]:
    """Run the parts and write ``selftest.json``; returns its content.

    Args:
        folder: Receives it, and what the parts write.
        only: Names of parts; all where there are none.
        budget: Seconds; a part that does not fit into what is left is skipped. By default :data:`BUDGETS`.
        on_part: Told of each part's title before it begins.

    Returns:
        ``verdict`` (pass or fail), ``device``, ``machine``, ``versions``, ``seconds``, ``budget``, and ``parts``:
        ``name``, ``title``, ``outcome`` (pass, fail or skip), ``seconds``, ``figures``, ``headline``, ``reason``.

    Raises:
        LabError: ``only`` names what is no part.
    """
    known = known_parts()
    for name in only:
        PARTS[name]  # says which there are
    device, began, rows = default_device(), time.time(), list[dict[str, Any]]()
    kind = "cuda" if device.startswith("cuda") else "cpu"
    budget, worker = BUDGETS[kind] if budget is None else budget, Worker()
    try:
        for name in [name for name in known if not only or name in only]:
            entry, left = PARTS[name], budget - (time.time() - began)
            cost = float(entry.facts["seconds"][kind])
            row: dict[str, Any] = {"name": name, "title": entry.title}
            if cost > left:
                reason = f"takes about {cost:.0f} s, and {max(0, left):.0f} s of {budget:.0f} s are left"
                rows.append(row | _outcome("skip", reason=reason))
                continue
            on_part(entry.title)
            if entry.facts.get("alone"):
                worker.end()
            rows.append(row | worker.run(name, device, str(Path(folder) / name), left))
            if entry.facts.get("alone"):
                worker.end()
    finally:
        worker.end()
    failed = any(row["outcome"] == "fail" for row in rows)
    report: dict[str, Any] = {"verdict": "fail" if failed else "pass", "device": device, "machine": describe_machine()}
    report |= {"gpu": describe_device(), "versions": describe_versions()}
    report |= {"seconds": time.time() - began, "budget": budget, "parts": rows}
    write_json(Path(folder) / "selftest.json", report)
    return report


def _outcome(outcome: str, seconds: float = 0.0, reason: str = "", **found: Any) -> dict[str, Any]:
    return {"outcome": outcome, "seconds": seconds, "figures": {}, "headline": "", **found, "reason": reason}


def run_part(name: str, device: str, folder: str, seconds: float) -> dict[str, Any]:
    """One part in this process.

    Args:
        name: Of the part.
        device: See :class:`~gcpl_lab.experiments.selftest.parts.Findings`.
        folder: Of the part's files.
        seconds: That are left to it.
    """
    import torch

    known_parts()
    began, found = time.time(), Findings(torch.device(device), Path(folder), time.time() + seconds)
    outcome, reason = "pass", ""
    try:
        PARTS[name].target(found)
    except NotHere as why:
        outcome, reason = "skip", str(why)
    except Exception as error:
        found.failures.append(first_line(error))
    if found.failures:
        outcome, reason = "fail", "; ".join(found.failures)
    figures = {"figures": _plain(found.figures), "headline": found.headline}
    return _outcome(outcome, time.time() - began, reason, **figures)


def _plain(value: Any) -> Any:
    """Values as JSON has them: a number that is none becomes a word."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _serve(connection: Any) -> None:
    """In the other process: answer what it is asked."""
    while (asked := connection.recv()) is not None:
        connection.send(run_part(*asked))


class Worker:
    """A process that runs parts one after another; after one that failed, another one does."""

    def __init__(self, serve: Callable[[Any], None] = _serve) -> None:
        """Start nothing yet; ``serve`` is what the process does with its end of a connection."""
        self._serve = serve
        self._process: Any = None
        self._connection: Any = None

    def run(self, name: str, device: str, folder: str, seconds: float) -> dict[str, Any]:
        """What a part found, or how its process ended."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=self._serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        began = time.time()
        try:
            self._connection.send((name, device, folder, seconds))
            answered = self._connection.poll(min(seconds + GRACE, A_DAY))
            row: dict[str, Any] = self._connection.recv() if answered else {}
        except (EOFError, OSError):
            self._process.join()
            reason = f"its process was ended (exit code {self._process.exitcode})"
            row = _outcome("fail", time.time() - began, reason)
        if not row:
            row = _outcome("fail", time.time() - began, f"did not end within {seconds + GRACE:.0f} s")
        if row["outcome"] == "fail":
            self.end()
        return row

    def end(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None
