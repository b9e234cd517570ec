"""The demonstration: look-alike photographs told apart, every claim beside its measurement, in one command."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcpl_lab.caching import OutcomeCache
from gcpl_lab.data.episodes import draw_test
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.experiment import METHOD_TITLES, METHODS, FewShotExperiment, Outcome
from gcpl_lab.multilabel_reporting import run_lmpt_demo
from gcpl_lab.reporting import answer_of, caveats_of, collect_results, draw_figures
from gcpl_lab.run_views import keep_states
from gcpl_lab.storage import write_json
from gcpl_lab.training.loop import StepRecord

QUESTION = "Does a learned prompt tell look-alike photographs apart?"
LIMITS = (
    "The bundled models are tiny and were trained on Fashion-MNIST for this package: 28-pixel photographs of ten "
    "classes. They show how the methods behave, not how well Stable Diffusion does on your pictures.",
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
    on_method: Callable[[str], None] | None = None,
    on_step: Callable[[str, StepRecord, int], None] | None = None,
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
        settings: Fields of :class:`~gcpl_lab.config.GCPLConfig`.
        multilabel: Show LMPT on the bundled scenes too.
        fresh: Learn everything anew, whatever the cache holds.
        on_method: Called with a method's name before it runs.
        on_step: Called after every update with (method, record, number of steps).
        command: What is written down as having made the results.
    """
    from gcpl_lab.views.report import write_report

    folder = Path(folder)
    support, test = load_fashion("support"), load_fashion("test")
    test = test.subset(draw_test(test, total=test_total, seed=0))
    experiment = FewShotExperiment(support, test, preset=preset, settings=settings, on_step=on_step)
    if fresh:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    outcomes, cache = [], OutcomeCache(folder / "cache")
    for method in METHODS:
        if on_method:
            on_method(method)
        outcomes.append(cache.run(experiment, method, shots, seed))
    for outcome in outcomes:
        if outcome.model is not None:
            outcome.model.save(folder / "prompts" / outcome.method)
    scenes = None
    if multilabel:
        scenes = run_lmpt_demo(
            folder / "multilabel", seed=seed, preset=preset, cache=cache, on_method=on_method, on_step=on_step
        )
    if on_method:
        on_method("report")
    results = collect_results(experiment, outcomes, shots, command)
    keep_states(experiment, outcomes, folder)
    figures = draw_figures(experiment, outcomes, folder / "figures")
    models = [outcome.model for outcome in outcomes if outcome.model is not None]
    answer, caveats = answer_of(outcomes), caveats_of(outcomes, models[0].config.contrast_weight)
    if scenes is not None:
        results["multilabel"] = {"data": scenes.data, "methods": scenes.rows}
        figures, answer, caveats = [*figures, *scenes.figures], f"{answer} {scenes.answer}", [*caveats, *scenes.caveats]
    write_json(folder / "results.json", results)
    report = write_report(
        folder / "report.html", results, figures, question=QUESTION, answer=answer, caveats=caveats, limits=LIMITS,
        command=command, titles=METHOD_TITLES,
    )  # fmt: skip
    return DemoResult(results, outcomes, answer, caveats, report)
