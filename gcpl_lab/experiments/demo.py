"""The demonstration: look-alike images told apart, every claim beside its measurement, in one command."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gcpl_lab.data.episodes import draw_test
from gcpl_lab.data.folders import read_support_and_test
from gcpl_lab.data.samples import load_fashion, load_wardrobe
from gcpl_lab.experiments.caching import OutcomeCache
from gcpl_lab.experiments.captions import CAPTIONS, follow_captions, keep_captions
from gcpl_lab.experiments.few_shot import QUICK_METHODS, FewShotExperiment
from gcpl_lab.experiments.figures import draw_figures, save_caption_hills
from gcpl_lab.experiments.multilabel import MultiLabelExperiment
from gcpl_lab.experiments.registry import usable_workers
from gcpl_lab.experiments.report import ShownRun, show_outcomes
from gcpl_lab.experiments.runs import PROMPTS
from gcpl_lab.training.workers import Report, Task, run_side_by_side, threads_each
from gcpl_lab.views.report import ReportFigure

SIDE_BY_SIDE = (
    ("gcpl", "discriminative"),  # the second starts from the first
    ("comple",),
    ("zero_shot_diffusion", "diffusion_offsets"),  # the same evidence
)
"""What is learned in one process, the longest first; the methods that need no denoiser are a part of their own."""

DEMO_METHODS = ("zero_shot_clip", "linear_probe", "coop_bce", "coop_asl", "coop_db", "lmpt")
DEMO_SETTINGS = {"num_epochs": 25, "learning_rate": 0.02}
"""Half the default epochs at twice the rate: the demonstration has minutes for everything."""


def run_demo(
    folder: str | Path = "runs/demo",
    *,
    images: str | Path | None = None,
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
) -> ShownRun:
    """Learn from a few images, bundled ones or your own, classify others, compare, and write the report.

    Args:
        folder: Receives ``report.html``, ``results.json``, ``states.safetensors``, ``figures/``, ``prompts/`` and
            ``cache/``, from which a second run takes what depends on nothing that has changed.
        images: Folder with ``support/`` and ``test/`` class folders instead of the bundled garments.
        settings: Fields of :class:`~gcpl_lab.gcpl.settings.GCPLConfig`.
        multilabel: Show LMPT on the bundled scenes too.
        fresh: Learn everything anew, whatever the cache holds.
        num_workers: Processes that learn methods side by side; outcomes are the same but for rounding.
        on_event: Called with ``("begin", method)`` and ``("end", method)``, after every update with ``("step",
            method, record, number of steps)``; ``"scenes/"`` stands before the methods of the multi-label part, and
            ``"report"`` is the last of all. With several workers from another thread.
        command: What is written down as having made the results.
    """
    folder, tell, trial = Path(folder), on_event or (lambda *_event: None), (shots, seed)
    num_workers = usable_workers(num_workers)
    support, test = read_support_and_test(images) if images else (load_fashion("support"), load_fashion("test"))
    test = test.subset(draw_test(test, total=min(test_total, len(test)) if images else test_total, seed=0))
    experiment = FewShotExperiment(support, test, preset=preset, settings=settings)
    scenes = None
    if multilabel:
        sets = load_wardrobe("train"), load_wardrobe("test")
        scenes = MultiLabelExperiment(*sets, preset=preset, settings=DEMO_SETTINGS)
    if fresh:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    cache = OutcomeCache(folder / "cache", threads_each(num_workers))
    together = SIDE_BY_SIDE if num_workers > 1 else ()
    alone = [method for method in QUICK_METHODS if not any(method in part for part in together)]
    tasks: list[Task] = [(_learn, cache, experiment, methods, trial, "") for methods in (*together, alone)]
    if scenes:
        tasks.append((_learn, cache, scenes, DEMO_METHODS, (seed,), "scenes/"))
    tasks = [task for task in tasks if _missing(*task[1:5])]
    run_side_by_side(tasks, num_workers=min(num_workers, max(1, len(tasks))), on_event=tell)

    tell("begin", "report")
    parts: list[Task] = [(show_scenes, cache, scenes, seed, folder / "multilabel")] if scenes else []
    drawn: tuple[Any, ...] = folder, experiment, list(QUICK_METHODS), cache, trial, command
    shown = show_outcomes(*drawn, parts=parts, num_workers=num_workers, tell=tell)
    tell("end", "report")
    return shown


def _missing(cache: OutcomeCache, experiment: Any, methods: Sequence[str], trial: Sequence[int]) -> list[str]:
    """Those that are not in the cache yet."""
    return [method for method in methods if not cache.holds(experiment, method, *trial)]


def _learn(
    report: Report, cache: OutcomeCache, experiment: Any, methods: Sequence[str], trial: Sequence[int], prefix: str
) -> None:
    """Learn into the cache what it lacks, in whatever process has time."""
    experiment.on_step = lambda method, *event: report("step", prefix + method, *event)
    for method in _missing(cache, experiment, methods, trial):
        report("begin", prefix + method)
        cache.run(experiment, method, *trial)
        report("end", prefix + method)


def show_scenes(
    _report: Report, cache: OutcomeCache, experiment: MultiLabelExperiment, seed: int, folder: Path
) -> tuple[dict[str, Any], list[ReportFigure]]:
    """Learn the scenes with every multi-label method, and draw what came of it.

    ``folder`` receives ``figures/``, ``prompts/lmpt/`` and ``captions.safetensors``. Gives data and methods for
    ``results.json``, and the figures for the report.
    """
    outcomes = [cache.run(experiment, method, seed) for method in DEMO_METHODS]
    learned = outcomes[-1]
    assert learned.model is not None
    learned.model.save(folder / PROMPTS / "lmpt")
    drawn = draw_figures(experiment, outcomes, folder / "figures")
    found = cache.arrays(experiment, ("captions", seed), partial(follow_captions, experiment, seed))
    names = experiment.train.class_names
    keep_captions(folder / CAPTIONS, found, names)
    measured = {"data": experiment.describe_data(), "methods": [outcome.row for outcome in outcomes]}
    return measured, [*drawn, *save_caption_hills(found, names, folder / "figures")]
