"""Comparison: nothing is run twice, and pairs are compared as scipy compares them."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gcpl_lab.errors import ArtifactError
from gcpl_lab.evaluation.compare import Trial, summarise
from gcpl_lab.experiments import base
from gcpl_lab.experiments.base import run_all
from gcpl_lab.experiments.registry import start_of

TRIALS = [Trial(method, shots, seed) for shots in (1, 16) for seed in (0, 1) for method in ("gcpl", "probe")]


class Counter:
    """A method whose answers tell how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[Trial] = []

    def __call__(self, trial: Trial) -> dict[str, Any]:
        self.asked.append(trial)
        return {"accuracy": trial.shots / 16}


def tell_process(trial: Trial) -> dict[str, Any]:
    return {"process": os.getpid()}


def test_a_trial_is_not_run_twice_and_other_settings_are_other_trials(tmp_path: Path) -> None:
    first, again, other = Counter(), Counter(), Counter()
    rows = run_all(tmp_path, TRIALS, first, "settings")
    assert first.asked == TRIALS
    assert run_all(tmp_path, TRIALS, again, "settings") == rows
    assert again.asked == []
    run_all(tmp_path, TRIALS, other, "other settings")
    assert other.asked == TRIALS
    assert len(list((tmp_path / "trials").iterdir())) == 2 * len(TRIALS)
    for path in (tmp_path / "trials").iterdir():
        path.write_text("{")
    with pytest.raises(ArtifactError, match=r"gcpl-1-0-.*\.json: is no valid JSON"):
        run_all(tmp_path, TRIALS[:1], other, "settings")


def test_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    first, again = Counter(), Counter()

    def stop_after_three(trial: Trial) -> dict[str, Any]:
        if len(first.asked) == 3:
            raise KeyboardInterrupt
        return first(trial)

    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, TRIALS, stop_after_three, "settings")
    rows = run_all(tmp_path, TRIALS, again, "settings")
    assert first.asked == TRIALS[:3]
    assert again.asked == TRIALS[3:]
    assert [(row["method"], row["shots"], row["seed"]) for row in rows] == [(t.method, t.shots, t.seed) for t in TRIALS]


def test_draws_side_by_side_stay_in_order(tmp_path: Path) -> None:
    told: list[str] = []
    trials = [Trial(method, 4, seed) for method in ("gcpl", "discriminative") for seed in range(3)]
    rows = run_all(tmp_path, trials, tell_process, "settings", num_workers=2, on_trial=told.append)
    assert [(row["method"], row["seed"]) for row in rows] == [(trial.method, trial.seed) for trial in trials]
    assert os.getpid() not in {row["process"] for row in rows}
    for seed in range(3):
        assert [line.split(",")[0] for line in told if f"seed {seed}" in line] == ["gcpl", "discriminative"]
        assert len({row["process"] for row in rows if row["seed"] == seed}) == 1


def rows_of(**accuracies: list[float]) -> list[dict[str, Any]]:
    told = [(method, *row) for method, values in accuracies.items() for row in enumerate(values)]
    return [{"method": method, "shots": 16, "seed": seed, "accuracy": value} for method, seed, value in told]


def test_pairs_are_compared_as_scipy_does() -> None:
    ours, theirs = [0.71, 0.75, 0.73, 0.78, 0.70], [0.70, 0.71, 0.74, 0.73, 0.66]
    summary, reference = summarise(rows_of(ours=ours, theirs=theirs), "theirs")
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    assert summary["p_value"] == pytest.approx(test.pvalue)
    assert (summary["low"], summary["high"]) == pytest.approx((interval.low, interval.high))
    assert summary["difference"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (summary["mean"], summary["num_seeds"]) == (pytest.approx(0.734), 5)
    assert summary["standard_deviation"] == pytest.approx(np.std(ours, ddof=1))
    assert (reference["difference"], reference["p_value"]) == (0.0, 1.0)


def test_pairs_are_matched_by_seed_and_not_by_place() -> None:
    rows = rows_of(ours=[0.1, 0.5, 0.9], theirs=[0.0, 0.3, 0.6])
    shuffled = [rows[2], rows[0], rows[1], *rows[3:]]
    assert summarise(shuffled, "theirs")[0]["p_value"] == pytest.approx(summarise(rows, "theirs")[0]["p_value"])
    missing = [row for row in rows if not (row["method"] == "theirs" and row["seed"] == 0)]
    assert summarise(missing, "theirs")[0]["difference"] == pytest.approx(0.25)  # seeds 1 and 2: 0.2 and 0.3


def test_shots_and_metrics_are_kept_apart() -> None:
    few = [row | {"shots": 1, "log_loss": 2.0} for row in rows_of(ours=[0.5, 0.5], theirs=[0.4, 0.4])]
    many = rows_of(ours=[0.9, 0.9], theirs=[0.6, 0.6])
    found = {(row["method"], row["shots"]): row["difference"] for row in summarise([*few, *many], "theirs")}
    assert found["ours", 1] == pytest.approx(0.1)
    assert found["ours", 16] == pytest.approx(0.3)
    assert summarise(few, "ours", "log_loss")[0]["mean"] == 2.0


def test_one_seed_has_a_difference_and_no_test_and_no_reference_no_difference() -> None:
    summary = summarise(rows_of(ours=[0.7], theirs=[0.6]), "theirs")[0]
    assert summary["difference"] == pytest.approx(0.1)
    assert [summary[name] for name in ("low", "high", "p_value", "standard_deviation")] == [None] * 4
    assert summarise(rows_of(ours=[0.7, 0.8]), "theirs")[0]["difference"] is None


def test_a_draw_is_parted_where_nothing_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes on from one objective's prompts stays in one process, in order; the rest may run beside it."""
    handed: list[list[tuple[str, int]]] = []

    def keep(tasks: Any, **_: Any) -> list[Any]:
        handed.extend([[(trial.method, trial.seed) for trial in draw] for _, _, draw, *_ in tasks])
        for _, run, draw, kept, fingerprint in tasks:
            base._run_draw(lambda _event: None, run, draw, kept, fingerprint)
        return []

    monkeypatch.setattr(base, "run_side_by_side", keep)
    methods = ("gcpl", "mc_ti", "discriminative", "gda", "noop")
    trials = [Trial(method, 4, seed) for seed in (0, 1) for method in methods]
    base.run_all(tmp_path / "two", trials, lambda trial: {"accuracy": 0.5}, "", num_workers=2)
    together = ("gcpl", "discriminative", "noop"), ("mc_ti", "gda")
    assert handed == [[(method, seed) for method in part] for seed in (0, 1) for part in together]
    handed.clear()  # one process gains nothing by it, and would build what a draw shares twice
    base.run_all(tmp_path / "one", trials, lambda trial: {"accuracy": 0.5}, "")
    assert handed == [[(method, seed) for method in methods] for seed in (0, 1)]
    assert (start_of("gcpl"), start_of("noop"), start_of("gda"), start_of("unknown")) == ("gcpl", "gcpl", "", "")
