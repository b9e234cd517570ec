"""What is shown of one draw of a few-shot run: results, figures, states and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.experiments.caching import OutcomeCache
from gcpl_lab.experiments.few_shot import METHOD_TITLES, FewShotExperiment, Outcome
from gcpl_lab.experiments.figures import draw_figures, draw_pictures
from gcpl_lab.experiments.look_alikes import LookAlikeSets, gather, judge_states, tracked_method
from gcpl_lab.experiments.registry import title_of
from gcpl_lab.experiments.runs import PROMPTS, RESULTS, Run, keep_states
from gcpl_lab.experiments.sentences import QUESTION, answer_of, caveats_of, limits_of, scenes_answer, scenes_caveats
from gcpl_lab.storage import write_json
from gcpl_lab.training.workers import Report, Task, describe_workers, run_side_by_side
from gcpl_lab.views.report import write_report


@dataclass(frozen=True)
class ShownRun:
    """What was made to look at a run."""

    results: dict[str, Any]  # the content of results.json
    outcomes: list[Outcome]  # one a method
    answer: str
    caveats: list[str]  # what does not hold
    report: Path


def show_outcomes(
    folder: Path,
    experiment: FewShotExperiment,
    methods: Sequence[str],
    cache: OutcomeCache,
    trial: tuple[int, int],
    command: str,
    *,
    parts: Sequence[Task] = (),
    rows: Sequence[Mapping[str, Any]] | None = None,
    controls: bool = True,
    num_workers: int = 1,
    tell: Report | None = None,
    **more: Any,
) -> ShownRun:
    """Write prompts, results, states, figures and page of one draw; what is judged on the way goes to the cache.

    Args:
        trial: Shots, 0 where all of the pool was learned from, and seed.
        parts: Work beside it that gives results of scenes, and figures of them.
        rows: What the page's table has where more than these outcomes were measured.
        controls: Learn from shuffled labels too, which takes about as long as the learning itself.
        more: Goes into ``results.json`` as it is.
    """
    outcomes: list[Outcome] = [cache.run(experiment, method, *trial) for method in methods]
    for outcome in outcomes:
        if outcome.model is not None:
            outcome.model.save(folder / PROMPTS / outcome.method)
    shots = trial[0] or int(np.bincount(experiment.support.labels).min())
    data = experiment.describe_data() | {"shots": shots}
    results = experiment.results(command, data=data, methods=[outcome.row for outcome in outcomes], **more)
    results["machine"] |= describe_workers(num_workers)
    chosen, tracked = LookAlikeSets.of(experiment), tracked_method(outcomes)
    tasks: list[Task] = []
    if chosen.sets and tracked is not None:
        tasks = [(judge_states, cache, experiment, chosen, (tracked.method, *trial), controls)]
    judged = len(tasks)
    tasks += [(_draw, cache, experiment, [(method, *trial) for method in methods], folder / "figures"), *parts]
    made = run_side_by_side(tasks, num_workers=min(num_workers, len(tasks)), on_event=tell)
    look_alikes = gather(experiment, chosen, outcomes, made[0] if judged else {}) if chosen.sets else None
    keep_states(experiment, outcomes, folder, look_alikes)
    results["look_alikes"] = look_alikes.table() if look_alikes else []
    figures, run = [*draw_pictures(folder), *made[judged]], Run(folder, results)
    answer, caveats = answer_of(run), caveats_of(run)
    for found, drawn in made[judged + 1 :]:
        results["multilabel"] = found
        figures += drawn
        answer = f"{answer} {scenes_answer(found['methods'])}"
        caveats += scenes_caveats(found["methods"])
    write_json(folder / RESULTS, results)
    page = {"question": QUESTION, "answer": answer, "caveats": caveats, "limits": limits_of(results)}
    table, titles = {**results, "methods": rows or results["methods"]}, {name: title_of(name) for name in METHOD_TITLES}
    report = write_report(folder / "report.html", table, figures, titles=titles, command=command, **page)
    return ShownRun(results, outcomes, answer, caveats, report)


def _draw(_report: Report, cache: OutcomeCache, experiment: Any, trials: Sequence[Any], folder: Path) -> Any:
    return draw_figures(experiment, [cache.run(experiment, *trial) for trial in trials], folder)
