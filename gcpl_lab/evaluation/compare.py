"""Methods on equal draws, compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Trial:
    """One method on one draw of exemplars."""

    method: str
    shots: int
    seed: int


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
