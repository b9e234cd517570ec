"""What both comparisons share: two sets with the same classes, CLIP's features of them, trials, progress, seconds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from gcpl_lab.data.framing import choose_fit
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation.compare import Trial
from gcpl_lab.experiments.registry import start_of, usable_workers
from gcpl_lab.lmpt.estimator import encode_views
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.storage import read_checked, write_checked, write_json
from gcpl_lab.training.device import default_device
from gcpl_lab.training.loop import StepRecord
from gcpl_lab.training.machine import describe_machine, describe_versions
from gcpl_lab.training.workers import Report, run_side_by_side

Data = TypeVar("Data", ImageSet, MultiLabelSet)
OnStep = Callable[[str, StepRecord, int], None]
"""Told of every update: method, record, number of steps."""
OnTrial = Callable[[str], None]
OnRow = Callable[[dict[str, Any]], None]


class Stopwatch:
    """Seconds of learning and then of answering. What methods share is computed before it starts."""

    def __init__(self) -> None:
        self._began = self._learned = time.perf_counter()

    def learned(self) -> None:
        """Learning is over."""
        self._learned = time.perf_counter()

    def row(self) -> dict[str, float]:
        """``train_seconds`` and ``predict_seconds`` until now."""
        return {"train_seconds": self._learned - self._began, "predict_seconds": time.perf_counter() - self._learned}


class Experiment(Generic[Data]):
    """All methods on one set to learn from and one test set, with what is frozen computed once."""

    pool: Data
    test: Data
    config: Any
    role: str  # what its results call the pool

    def __init__(
        self, pool: Data, test: Data, preset: str, settings: Mapping[str, Any] | None, on_step: OnStep | None
    ) -> None:
        if pool.class_names != test.class_names:
            raise DataError(
                f"{self.role} has the classes {pool.class_names} and test {test.class_names}; they must be the same"
            )
        self.pool, self.test = pool, test
        self.preset, self.settings = preset, dict(settings or {})
        self.on_step = on_step or (lambda *_event: None)

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: the data and the settings, without models, listeners or what was computed."""
        return partial(type(self), preset=self.preset, settings=self.settings), (self.pool, self.test)

    @cached_property
    def clip(self) -> FrozenCLIP:
        """The frozen CLIP of the preset."""
        return FrozenCLIP.load(self.preset, device=default_device())

    @cached_property
    def fit(self) -> str:
        """The square that models see of an image, chosen on the images to learn from unless the settings say."""
        return choose_fit(self.pool.images, self.config.fit)

    @cached_property
    def views(self) -> Tensor:
        """Features of the images to learn from and of their mirror images, (2, image, feature)."""
        return encode_views(self.clip, self.pool.images, fit=self.fit)

    @cached_property
    def test_features(self) -> Tensor:
        """Features of the test images, (image, feature)."""
        return encode_views(self.clip, self.test.images, flip=False, fit=self.fit)[0]

    def follow(self, method: str, records: Iterable[StepRecord], total: Callable[[], int]) -> None:
        """Run a training and tell of its updates."""
        for record in records:
            self.on_step(method, record, total())

    def describe_data(self) -> dict[str, Any]:
        """Names, counts and checksums, for ``results.json``."""
        test, checksum = self.test, {f"{self.role}_checksum": self.pool.checksum}
        about = {"name": test.name, "checksum": test.checksum, **checksum, "classes": list(test.class_names)}
        return about | {"test_size": len(test)}

    def results(self, command: str, **found: Any) -> dict[str, Any]:
        """The content of ``results.json``: what was found, and where it was made of what."""
        made = {"command": command, "preset": self.preset, "config": self.config.as_dict()}
        return {**made, "machine": describe_machine(), "versions": describe_versions(), **found}

    def write_results(self, folder: str | Path, command: str, **found: Any) -> dict[str, Any]:
        """Write ``results.json``; returns its content."""
        result = self.results(command, **found)
        write_json(Path(folder) / "results.json", result)
        return result


def run_all(
    folder: str | Path,
    trials: Sequence[Trial],
    run: Callable[[Trial], dict[str, Any]],
    fingerprint: str,
    line: str = "{method}, seed {seed}",
    num_workers: int = 1,
    on_trial: OnTrial | None = None,
    on_row: OnRow | None = None,
) -> list[dict[str, Any]]:
    """Run every trial whose result is not in ``folder`` yet, and return the rows of all in order.

    A result is one JSON file named by the trial and by ``fingerprint``: an interrupted comparison goes on where it
    stopped and never mixes results of different settings.

    Args:
        folder: Results of single trials go to ``trials/`` in it.
        trials: Methods on draws.
        run: Returns a JSON-able result for a trial. With several workers it is sent to them.
        fingerprint: Whatever results depend on besides the trial (settings, data, model).
        line: How a trial is told of.
        num_workers: Draws that are worked on side by side, in processes of their own; all in this one where a notebook
            registered anything, as others do not know it. In a draw, what goes on from one objective's prompts stays
            together and in order, and so does everything else.
        on_trial, on_row: Called with a line about the trial that comes next, and with every result, which is on disk.
    """
    kept, began, num_done = Path(folder) / "trials", time.perf_counter(), 0
    places, draws = {trial: place for place, trial in enumerate(trials, 1)}, dict[Any, list[Trial]]()
    for trial in trials:
        if not _path(kept, trial, fingerprint).is_file():
            draws.setdefault((trial.shots, trial.seed, num_workers > 1 and start_of(trial.method)), []).append(trial)

    def tell(event: Trial | dict[str, Any]) -> None:
        nonlocal num_done
        if isinstance(event, dict):
            num_done += 1
            if on_row:
                on_row(event)
        elif on_trial:
            minutes = (time.perf_counter() - began) / max(1, num_done) * (len(trials) - places[event] + 1) / 60
            left = f", about {minutes:.0f} min left" if num_done and minutes >= 1 else ""
            on_trial(f"{line.format(**vars(event))} ({places[event]} of {len(trials)}{left})")

    tasks = [(_run_draw, run, draw, kept, fingerprint) for draw in draws.values()]
    run_side_by_side(tasks, num_workers=max(1, min(usable_workers(num_workers), len(tasks))), on_event=tell)
    return [_read(_path(kept, trial, fingerprint), trial) for trial in trials]


def _read(path: Path, trial: Trial) -> dict[str, Any]:
    row = read_checked(path)
    if not asdict(trial).items() <= row.items():
        raise ArtifactError(f"{path}: is not the result of {trial}; delete it, and it is measured again")
    return row


def _run_draw(
    report: Report, run: Callable[[Trial], dict[str, Any]], draw: Sequence[Trial], kept: Path, fingerprint: str
) -> None:
    for trial in draw:
        report(trial)
        row = {**asdict(trial), **run(trial)}
        write_checked(_path(kept, trial, fingerprint), row)
        report(row)


def _path(kept: Path, trial: Trial, fingerprint: str) -> Path:
    key = hashlib.sha256(json.dumps([asdict(trial), fingerprint], sort_keys=True).encode()).hexdigest()[:12]
    return kept / f"{trial.method}-{trial.shots}-{trial.seed}-{key}.json"
