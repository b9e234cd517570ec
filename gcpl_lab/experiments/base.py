"""What both comparisons share: two sets with the same classes, CLIP's features of them, trials, progress, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from gcpl_lab.data.framing import choose_fit
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.compare import Trial, run_trials
from gcpl_lab.experiments.registry import usable_workers
from gcpl_lab.lmpt.estimator import encode_views
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.storage import write_json
from gcpl_lab.training.device import default_device
from gcpl_lab.training.loop import StepRecord
from gcpl_lab.training.machine import describe_machine, describe_versions

Data = TypeVar("Data", ImageSet, MultiLabelSet)
OnStep = Callable[[str, StepRecord, int], None]
"""Told of every update: method, record, number of steps."""
OnTrial = Callable[[str], None]
OnRow = Callable[[dict[str, Any]], None]
"""Told by a line of the trial that comes next."""


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

    def write_results(self, folder: str | Path, command: str, **found: Any) -> dict[str, Any]:
        """Write ``results.json``: what was found, and where it was made of what; returns its content."""
        made = {"command": command, "preset": self.preset, "config": self.config.as_dict()}
        result = {**made, "machine": describe_machine(), "versions": describe_versions(), **found}
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
    """Rows of all trials; those without a result in ``folder`` are run.

    Args:
        folder: Results of single trials go to ``trials/`` in it.
        trials, run, fingerprint: See :func:`~gcpl_lab.evaluation.compare.run_trials`.
        line: How a trial is told of.
        num_workers: Draws that are worked on side by side, in processes of their own; all in this one where a notebook
            registered anything, as others do not know it.
        on_trial, on_row: Called with a line about the trial that comes next, and with every result as it is found.
    """
    places, began, done = {trial: place for place, trial in enumerate(trials, 1)}, time.perf_counter(), list[Any]()

    def tell(trial: Trial) -> None:
        if on_trial:
            mean = (time.perf_counter() - began) / max(1, len(done))
            minutes = mean * (len(trials) - places[trial] + 1) / 60
            left = f", about {minutes:.0f} min left" if done and minutes >= 1 else ""
            on_trial(f"{line.format(**vars(trial))} ({places[trial]} of {len(trials)}{left})")

    def keep(row: dict[str, Any]) -> None:
        done.append(row)
        if on_row:
            on_row(row)

    run_it: dict[str, Any] = {"num_workers": usable_workers(num_workers), "on_trial": tell, "on_result": keep}
    return run_trials(trials, run, Path(folder) / "trials", fingerprint, **run_it)
