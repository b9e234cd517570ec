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

from gcpl_lab.storage import read_json, write_json
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
) -> list[dict[str, Any]]:
    """Run every trial whose result is not in ``folder`` yet, and return all results in order.

    A result is one JSON file named by the trial and by ``fingerprint`` (settings, data, model), so an
    interrupted comparison goes on where it stopped and never mixes results of different settings.

    Args:
        trials: What to run.
        run: Returns a JSON-able result for a trial. With several workers it is sent to them.
        folder: Where results are kept.
        fingerprint: Whatever the results depend on besides the trial.
        num_workers: Processes side by side; the trials of one draw stay together and in order, as later ones may
            begin where an earlier one ended.
        on_trial: Called before a trial that runs.
    """
    draws: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        if not _path(folder, trial, fingerprint).is_file():
            draws.setdefault((trial.shots, trial.seed), []).append(trial)
    tasks = [(_run_draw, run, draw, folder, fingerprint) for draw in draws.values()]
    run_side_by_side(tasks, num_workers=max(1, min(num_workers, len(tasks))), on_event=on_trial)
    return [read_json(_path(folder, trial, fingerprint)) for trial in trials]


def _run_draw(
    report: Report, run: Callable[[Trial], dict[str, Any]], draw: Sequence[Trial], folder: str | Path, fingerprint: str
) -> None:
    for trial in draw:
        report(trial)
        write_json(_path(folder, trial, fingerprint), {**asdict(trial), **run(trial)})


def _path(folder: str | Path, trial: Trial, fingerprint: str) -> Path:
    key = hashlib.sha256(json.dumps([asdict(trial), fingerprint], sort_keys=True).encode()).hexdigest()[:12]
    return Path(folder) / f"{trial.method}-{trial.shots}-{trial.seed}-{key}.json"


def summarise(rows: Sequence[dict[str, Any]], reference: str, metric: str = "accuracy") -> list[dict[str, Any]]:
    """Mean and spread for each (method, shots), and the paired difference from a reference method.

    Pairs are trials with the same seed and shots: the same photographs. The interval and the p-value are
    those of Student's paired t-test over seeds; with fewer than two seeds they are None.

    Args:
        rows: Results with ``method``, ``shots``, ``seed`` and ``metric``.
        reference: The method the others are compared with.
        metric: Which number.

    Returns:
        One dict for each (method, shots): num_seeds, mean, standard_deviation, difference, low, high (95 %
        interval of the difference), p_value.
    """
    table: dict[tuple[str, int], dict[int, float]] = {}
    for row in rows:
        table.setdefault((row["method"], row["shots"]), {})[row["seed"]] = float(row[metric])
    summaries = []
    for (method, shots), values in table.items():
        numbers = np.array(list(values.values()))
        summary: dict[str, Any] = {
            "method": method,
            "shots": shots,
            "num_seeds": len(numbers),
            "mean": float(numbers.mean()),
            "standard_deviation": float(numbers.std(ddof=1)) if len(numbers) > 1 else None,
        }
        summaries.append(summary | paired_difference(values, table.get((reference, shots), {})))
    return summaries


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> dict[str, float | None]:
    """Mean difference over the seeds that both have, with the interval and p-value of Student's paired t-test.

    Args:
        values: A number a seed.
        reference: What is subtracted.

    Returns:
        ``difference``, ``low`` and ``high`` (95 %), ``p_value``; None where there are too few seeds.
    """
    shared = sorted(values.keys() & reference.keys())
    differences = np.array([values[seed] - reference[seed] for seed in shared])
    empty: dict[str, float | None] = {"difference": None, "low": None, "high": None, "p_value": None}
    if not len(differences):
        return empty
    mean = float(differences.mean())
    if len(differences) < 2:
        return empty | {"difference": mean}
    if np.allclose(differences, differences[0]):  # no spread: the t-test is undefined
        return {"difference": mean, "low": mean, "high": mean, "p_value": None if mean else 1.0}
    test = stats.ttest_1samp(differences, 0.0)
    interval = test.confidence_interval(0.95)
    return {"difference": mean, "low": float(interval.low), "high": float(interval.high), "p_value": float(test.pvalue)}
