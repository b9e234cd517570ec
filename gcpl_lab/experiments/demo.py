"""The demonstration: look-alike photographs told apart, every claim beside its measurement, in one command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpl_lab.data.episodes import draw_test
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.experiments.caching import OutcomeCache
from gcpl_lab.experiments.few_shot import METHOD_TITLES, QUICK_METHODS, FewShotExperiment, Outcome
from gcpl_lab.experiments.multilabel import MultiLabelExperiment
from gcpl_lab.experiments.multilabel_reports import DEMO_METHODS, LMPTDemo, demo_experiment, run_lmpt_demo
from gcpl_lab.experiments.reports import ReportFigure, answer_of, caveats_of, collect_results, draw_figures
from gcpl_lab.experiments.run_views import keep_states
from gcpl_lab.storage import write_json
from gcpl_lab.training.workers import Report, Task, describe_workers, run_side_by_side, threads_each

SIDE_BY_SIDE = (
    ("gcpl", "discriminative"),  # the second starts from the first
    ("comple",),
    ("zero_shot_diffusion", "diffusion_offsets"),  # the same evidence
)
"""What is learned in one process, the longest first; the methods that need no denoiser are a part of their own."""

QUESTION = "Does a learned prompt tell look-alike photographs apart?"
LIMITS = (
    "The bundled models are tiny and were trained on Fashion-MNIST for this package: 28-pixel photographs of ten "
    "classes. They show how the methods behave, not how well Stable Diffusion does on your pictures.",
    "The captions that these models learned from were made more wrong after an earlier pair's names had been found "
    "too good: part of the distance between class names and learned prompts is made.",
    "This page is one draw of exemplars. gcpl-lab compare repeats it over seeds and numbers of shots.",
    "Intervals count the test photographs only, not the draw of exemplars or the training of the frozen models.",
)


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made.

    Attributes:
        results: The content of ``results.json``.
        outcomes: One a method.
        answer: One line.
        caveats: What does not hold.
        report: The page.
    """

    results: dict[str, Any]
    outcomes: list[Outcome]
    answer: str
    caveats: list[str]
    report: Path


def run_demo(
    folder: str | Path = "runs/demo",
    *,
    preset: str = "tiny",
    shots: int = 16,
    seed: int = 0,
    test_total: int = 300,
    settings: Mapping[str, Any] | None = None,
    multilabel: bool = True,
    fresh: bool = False,
    num_workers: int = 1,
    on_event: Report | None = None,
    command: str = "gcpl-lab demo",
) -> DemoResult:
    """Learn from a few bundled photographs, classify others, compare, and write the report.

    Args:
        folder: Receives ``report.html``, ``results.json``, ``states.safetensors``, ``figures/``, ``prompts/`` and
            ``cache/``, from which a second run takes what depends on nothing that has changed.
        preset: The frozen pair.
        shots: Photographs a class to learn from.
        seed: Of the draw and of every method.
        test_total: Test photographs.
        settings: Fields of :class:`~gcpl_lab.gcpl.settings.GCPLConfig`.
        multilabel: Show LMPT on the bundled scenes too.
        fresh: Learn everything anew, whatever the cache holds.
        num_workers: Processes that learn methods side by side; outcomes are the same but for rounding.
        on_event: Called with ``("begin", method)`` and ``("end", method)``, after every update with ``("step",
            method, record, number of steps)``; ``"scenes/"`` stands before the methods of the multi-label part, and
            ``"report"`` is the last of all. With several workers from another thread.
        command: What is written down as having made the results.
    """
    from gcpl_lab.views.report import write_report

    folder, tell = Path(folder), on_event or (lambda *_event: None)
    support, test = load_fashion("support"), load_fashion("test")
    test = test.subset(draw_test(test, total=test_total, seed=0))
    experiment = FewShotExperiment(support, test, preset=preset, settings=settings)
    scenes = demo_experiment(preset) if multilabel else None
    if fresh:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    cache = OutcomeCache(folder / "cache", threads_each(num_workers))
    open_methods = [method for method in QUICK_METHODS if not cache.holds(experiment, method, shots, seed)]
    open_scenes = [method for method in DEMO_METHODS if scenes and not cache.holds_multilabel(scenes, method, seed)]
    parts = SIDE_BY_SIDE if num_workers > 1 else ()
    parts = (*parts, tuple(method for method in QUICK_METHODS if not any(method in part for part in parts)))
    tasks: list[Task] = [
        (_learn, cache.run, experiment, chosen, (shots, seed), "")
        for part in parts
        if (chosen := [method for method in part if method in open_methods])
    ]
    if open_scenes:
        tasks.append((_learn, cache.run_multilabel, scenes, open_scenes, (seed,), "scenes/"))
    run_side_by_side(tasks, num_workers=min(num_workers, max(1, len(tasks))), on_event=tell)

    tell("begin", "report")
    outcomes = [cache.run(experiment, method, shots, seed) for method in QUICK_METHODS]
    for outcome in outcomes:
        if outcome.model is not None:
            outcome.model.save(folder / "prompts" / outcome.method)
    results = collect_results(experiment, outcomes, shots, command)
    results["machine"] |= describe_workers(num_workers)
    keep_states(experiment, outcomes, folder)
    drawings: list[Task] = [
        (_draw, cache, experiment, (shots, seed), folder / "figures", False),
        (_draw, cache, experiment, (shots, seed), folder / "figures", True),
    ]
    if scenes:
        drawings.append((_show_scenes, cache, scenes, seed, folder / "multilabel"))
    others, mapped, *shown = run_side_by_side(drawings, num_workers=min(num_workers, len(drawings)), on_event=tell)
    figures = [*mapped, *others]
    models = [outcome.model for outcome in outcomes if outcome.model is not None]
    answer, caveats = answer_of(outcomes), caveats_of(outcomes, models[0].config.contrast_weight)
    for scenes_shown in shown:
        results["multilabel"] = {"data": scenes_shown.data, "methods": scenes_shown.rows}
        figures, caveats = [*figures, *scenes_shown.figures], [*caveats, *scenes_shown.caveats]
        answer = f"{answer} {scenes_shown.answer}"
    write_json(folder / "results.json", results)
    report = write_report(
        folder / "report.html",
        results,
        figures,
        question=QUESTION,
        answer=answer,
        caveats=caveats,
        limits=LIMITS,
        command=command,
        titles=METHOD_TITLES,
    )
    tell("end", "report")
    return DemoResult(results, outcomes, answer, caveats, report)


def _learn(
    report: Report,
    run: Callable[..., Any],
    experiment: FewShotExperiment | MultiLabelExperiment,
    methods: Sequence[str],
    trial: tuple[int, ...],
    prefix: str,
) -> None:
    """Learn some methods into the cache whose ``run`` this is, in whatever process this is."""
    experiment.on_step = lambda method, *event: report("step", prefix + method, *event)
    for method in methods:
        report("begin", prefix + method)
        run(experiment, method, *trial)
        report("end", prefix + method)


def _draw(
    _report: Report,
    cache: OutcomeCache,
    experiment: FewShotExperiment,
    trial: tuple[int, int],
    folder: Path,
    mapped: bool,
) -> list[ReportFigure]:
    """Figures of what is learned already."""
    outcomes = [cache.run(experiment, method, *trial) for method in QUICK_METHODS]
    return draw_figures(experiment, outcomes, folder, mapped=mapped)


def _show_scenes(
    _report: Report, cache: OutcomeCache, scenes: MultiLabelExperiment, seed: int, folder: Path
) -> LMPTDemo:
    """The part of several labels, learned already."""
    return run_lmpt_demo(folder, scenes, seed=seed, cache=cache)
