"""Methods × seeds × shots: run what is missing, keep every result, compare in pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import read_checked, write_checked
from gcpl_lab.training.workers import Report, run_side_by_side


@dataclass(frozen=True)
class Trial:
    """One method on one draw of exemplars."""

    method: str
    shots: int
    seed: int


def run_trials(
    trials: Sequence[Trial],
    run: Callable[[Trial], dict[str, Any]],
    folder: str | Path,
    fingerprint: str,
    *,
    num_workers: int = 1,
    on_trial: Callable[[Trial], None] | None = None,
    on_result: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Run every trial whose result is not in ``folder`` yet, and return all results in order.

    A result is one JSON file named by the trial and by ``fingerprint``, whatever it depends on besides (settings, data,
    model): an interrupted comparison goes on where it stopped and never mixes results of different settings.

    Args:
        run: Returns a JSON-able result for a trial. With several workers it is sent to them.
        num_workers: Processes side by side; the trials of one draw stay together and in order, as later ones may
            begin where an earlier one ended.
        on_trial: Called before a trial that runs.
        on_result: Called with the result of one that ran, which is on disk by then.
    """
    draws: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        if not _path(folder, trial, fingerprint).is_file():
            draws.setdefault((trial.shots, trial.seed), []).append(trial)
    tasks = [(_run_draw, run, draw, folder, fingerprint) for draw in draws.values()]

    def tell(event: Trial | dict[str, Any]) -> None:
        if isinstance(event, Trial):
            if on_trial:
                on_trial(event)
        elif on_result:
            on_result(event)

    run_side_by_side(tasks, num_workers=max(1, min(num_workers, len(tasks))), on_event=tell)
    return [_read(_path(folder, trial, fingerprint), trial) for trial in trials]


def _read(path: Path, trial: Trial) -> dict[str, Any]:
    row = read_checked(path)
    if not asdict(trial).items() <= row.items():
        raise ArtifactError(f"{path}: is not the result of {trial}; delete it, and it is measured again")
    return row


def _run_draw(
    report: Report, run: Callable[[Trial], dict[str, Any]], draw: Sequence[Trial], folder: str | Path, fingerprint: str
) -> None:
    for trial in draw:
        report(trial)
        row = {**asdict(trial), **run(trial)}
        write_checked(_path(folder, trial, fingerprint), row)
        report(row)


def _path(folder: str | Path, trial: Trial, fingerprint: str) -> Path:
    key = hashlib.sha256(json.dumps([asdict(trial), fingerprint], sort_keys=True).encode()).hexdigest()[:12]
    return Path(folder) / f"{trial.method}-{trial.shots}-{trial.seed}-{key}.json"


def summarise(rows: Sequence[dict[str, Any]], reference: str, metric: str = "accuracy") -> list[dict[str, Any]]:
    """Mean and spread for each (method, shots), and the difference from a reference method on the same exemplars.

    Rows are results with ``method``, ``shots``, ``seed`` and the metric. Of each (method, shots) are returned the two,
    num_seeds, mean, standard_deviation (None for one seed) and what :func:`paired_difference` gives.
    """
    table: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        table.setdefault((row["method"], row["shots"]), {})[row["seed"]] = float(row[metric])
    return [
        {
            "method": method,
            "shots": shots,
            "num_seeds": len(values),
            "mean": float(np.mean(list(values.values()))),
            "standard_deviation": float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None,
            **paired_difference(values, table.get((reference, shots), {})),
        }
        for (method, shots), values in table.items()
    ]


def paired_difference(values: Mapping[Any, float], reference: Mapping[Any, float]) -> dict[str, float | None]:
    """Mean ``difference`` over the seeds of both, ``low`` and ``high`` (95 %), and ``p_value`` of a paired t-test.

    None stands where there are too few seeds.
    """
    differences = np.array([values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())])
    mean = float(differences.mean()) if len(differences) else None
    if len(differences) < 2:
        return {"difference": mean, "low": None, "high": None, "p_value": None}
    if np.allclose(differences, differences[0]):  # no spread: the t-test is undefined
        return {"difference": mean, "low": mean, "high": mean, "p_value": None if mean else 1.0}
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    return {"difference": mean, "low": float(interval.low), "high": float(interval.high), "p_value": float(test.pvalue)}
