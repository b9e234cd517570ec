"""Methods × seeds × shots as one resumable run with one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.data.duplicates import without_copies
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.folders import read_pictures, read_support_and_test
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.compare import Trial, paired_difference, summarise
from gcpl_lab.experiments.base import run_all
from gcpl_lab.experiments.caching import write_outcome
from gcpl_lab.experiments.few_shot import FewShotExperiment
from gcpl_lab.experiments.registry import usable_workers
from gcpl_lab.training.machine import describe_machine
from gcpl_lab.training.workers import describe_workers

KEPT = "kept"  # in a comparison's folder: outcomes of the first draw with most shots, which gcpl-lab report shows
AVERAGED = ("accuracy_within_family", "calibration_error", "log_loss", "denoiser_evaluations", "train_evaluations")
SECONDS = ("train_seconds", "predict_seconds")


def run_comparison(
    folder: str | Path,
    *,
    methods: Sequence[str],
    shots: Sequence[int],
    seeds: Sequence[int],
    reference: str = "gcpl",
    images: Path | None = None,
    published: str | None = None,
    held_out: bool = False,
    preset: str = "tiny",
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    num_workers: int = 1,
    **running: Any,
) -> dict[str, Any]:
    """Run every trial that has no result yet and write ``results.json``.

    Args:
        folder, num_workers, **running: See :func:`~gcpl_lab.experiments.base.run_all`.
        methods: Names of ``gcpl_lab.experiments.few_shot.METHODS``.
        shots: Images a class.
        seeds: Draws of exemplars; every method sees the same ones.
        reference: The method the others are paired with.
        images: Folder with ``support/`` (or ``train/``) and ``test/`` class folders; None for the bundled fashion set.
        published: A name in ``gcpl_lab.data.published.PUBLISHED`` in its place; ``images`` is then where torchvision
            keeps its sets.
        held_out: Judge on the support images outside the exemplars, a different set for each draw, and leave the test
            images alone: for choosing between settings.
        settings: Fields of ``GCPLConfig``.
        command: What is written down as having made the results.

    Returns:
        The content of ``results.json``: data, machine, versions, methods (one row a trial) and summary. There a method
        with fitted offsets has ``offsets``, the paired difference from itself without them, and ``readings``, its mean
        accuracy with either weighting of the errors, without and with offsets.

    Raises:
        DataError: The images are not there, or there are none to test on.
    """
    support, test = read_compared(images, published, held_out)
    whole = FewShotExperiment(support, test, preset=preset, settings=settings)
    trials = [Trial(method, count, seed) for count in shots for seed in seeds for method in methods]
    running |= {"line": "{method}, {shots} shots, seed {seed}", "num_workers": num_workers}
    judge = _Judge(whole, held_out, Path(folder) / KEPT, (max(shots), seeds[0]))
    rows = run_all(folder, trials, judge, whole.fingerprint(), **running)
    summary = summarise(rows, reference)
    for entry in summary:
        same = [row for row in rows if (row["method"], row["shots"]) == (entry["method"], entry["shots"])]
        entry |= {name: _mean([row[name] for row in same]) for name in (*AVERAGED, *SECONDS)}
        if all("readings" in row for row in same):
            entry |= _reading_of(same)
    data = whole.describe_data() | {"shots": list(shots), "held_out": held_out, "fit": whole.fit}
    data |= {"images": images and str(Path(images).resolve()), "published": published}
    data |= {"chance": 1 / len(test.class_names), "largest_class": float(np.bincount(test.labels).max() / len(test))}
    machine = {**describe_machine(), **describe_workers(usable_workers(num_workers))}
    found = {"settings": whole.settings, "data": data, "machine": machine, "methods": rows, "summary": summary}
    return whole.write_results(folder, command, **found)


def read_compared(images: str | Path | None, published: str | None, held_out: bool) -> tuple[ImageSet, ImageSet]:
    """What methods learn from and are judged on, before a draw: see :func:`run_comparison`."""
    if images is None and published is None:
        support, test = load_fashion("support"), load_fashion("test")
    elif held_out and images is not None and published is None:
        support = test = read_pictures(images)[0]
    else:
        support, test = read_support_and_test(images or "", published)
    return support, support if held_out else test


@dataclass
class _Judge:
    """A trial's result, in any process; ``held_out``: on what a draw leaves over. Outcomes of one ``draw`` are kept."""

    whole: FewShotExperiment
    held_out: bool
    folder: Path
    draw: tuple[int, int]
    _left: dict[tuple[int, int], FewShotExperiment] = field(default_factory=dict)

    def __call__(self, trial: Trial) -> dict[str, Any]:
        experiment = self._leaving_out(trial.shots, trial.seed) if self.held_out else self.whole
        outcome = experiment.run(trial.method, trial.shots, trial.seed)
        if (trial.shots, trial.seed) == self.draw:
            write_outcome(self.folder / f"{trial.method}-{trial.shots}-{trial.seed}", outcome)
        return {**outcome.row, "shots": trial.shots}

    def _leaving_out(self, shots: int, seed: int) -> FewShotExperiment:
        if (shots, seed) not in self._left:  # trials come draw by draw: one is kept
            support, whole = self.whole.support, self.whole
            left = support.subset(left_over(support, shots, seed))
            self._left = {(shots, seed): FewShotExperiment(support, left, preset=whole.preset, settings=whole.settings)}
        return self._left[shots, seed]


def left_over(support: ImageSet, shots: int, seed: int) -> np.ndarray:
    """The images of the pool that an episode leaves over, but for those that look like one of the episode."""
    drawn = draw_episode(support, shots, seed)
    left = np.setdiff1d(np.arange(len(support)), drawn)
    left = left[without_copies(*([support.images[place] for place in places] for places in (left, drawn)))]
    counts = np.bincount(support.labels[left], minlength=len(support.class_names))
    if not counts.all():
        empty = support.class_names[int(counts.argmin())]
        raise DataError(
            f"{support.name}: {shots} exemplars of {empty!r} leave no image to judge on; take fewer shots, or judge on "
            "test images"
        )
    return left


def _reading_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What offsets and weighting were worth to a method, over its draws."""
    with_offsets = {row["seed"]: row["accuracy"] for row in rows}
    without = {row["seed"]: row["accuracy_without_offsets"] for row in rows}
    return {
        "offsets": paired_difference(with_offsets, without),
        "readings": {name: _mean([row["readings"][name] for row in rows]) for name in rows[0]["readings"]},
    }


def _mean(values: list[float | None]) -> float | None:
    """None where nothing was measured."""
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None
