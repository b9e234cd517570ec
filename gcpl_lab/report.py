"""Everything that can be shown of a run: page, figures, kept states, hover map, animation and deck, of any run.

A run of ``train``, ``compare`` or ``ablate`` is shown in ``report/`` inside its folder, a demonstration in its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.data.folders import draw_labelled, draw_sets
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.errors import ArtifactError
from gcpl_lab.evaluation.multilabel import map_with_interval
from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.experiments.base import Stopwatch
from gcpl_lab.experiments.caching import OUTCOME, OutcomeCache, read_outcome, write_outcome
from gcpl_lab.experiments.compare import KEPT, left_over, read_compared
from gcpl_lab.experiments.deck import make_deck, provenance_of
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.figures import WORDS
from gcpl_lab.experiments.labels import LABELS, guessed, show_labels
from gcpl_lab.experiments.multilabel import ABLATION_TITLES, MULTILABEL_TITLES, MultiLabelExperiment, MultiLabelOutcome
from gcpl_lab.experiments.registry import BEFORE, title_of
from gcpl_lab.experiments.report import show_outcomes
from gcpl_lab.experiments.run_views import make_animation, make_map
from gcpl_lab.experiments.runs import RESULTS, STATES
from gcpl_lab.experiments.sentences import limits_of
from gcpl_lab.gcpl.calibration import Reading
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.storage import file_checksum, read_json, write_json
from gcpl_lab.training.estimator import PromptClassifier, choose_preset
from gcpl_lab.views import multilabel, plots, style
from gcpl_lab.views.report import MULTILABEL_COLUMNS, ReportFigure, write_report
from gcpl_lab.views.slides import Deck, to_slide

ABLATION = "What does each part of LMPT add?"
TRAINED, SHOWN = "run.json", "report"
"""What ``train`` notes of itself, and where a run is shown."""
VIEWS = ("page", "map", "animation", "deck")
AnySet = ImageSet | MultiLabelSet
BESIDE = ("zero_shot_clip", "linear_probe", BEFORE)
"""What prompts that were learned by ``train`` are shown beside."""


def note_training(folder: Path, model: Any, learned: AnySet, others: AnySet, noted: Mapping[str, Any]) -> int:
    """Keep the states of a training, and what it learned from; returns the bytes of the states.

    Args:
        learned: What it learned from.
        others: What was left out.
        noted: ``command``, and how both are drawn again: see ``draw_sets`` and ``draw_labelled`` in
            ``gcpl_lab.data.folders``.
    """
    seed, values = model.config.seed, np.zeros((0, len(learned.class_names)))
    outcome: Any = MultiLabelOutcome(LMPTClassifier.METHOD, seed, values, values, np.zeros(0), {}, model)
    if isinstance(model, GCPLClassifier):
        outcome = Outcome(model.config.objective, 0, seed, values, values, {}, model)
    write_outcome(folder / KEPT, outcome)
    write_json(folder / TRAINED, {**noted, "checksums": [learned.checksum, others.checksum]})
    return (folder / KEPT / OUTCOME).stat().st_size


def measure_left_out(model: Any, others: AnySet) -> tuple[dict[str, Any] | None, str]:
    """Accuracy, or mean average precision, on images that were left out of learning, and a sentence on it."""
    if isinstance(others, MultiLabelSet):
        return _measure_labels(model, others)
    if not len(others):
        return None, "No image is left to measure on: keep some out of learning, or give fewer --shots."
    answers, largest = model.predict(others.images), np.bincount(others.labels).max() / len(others)
    share = share_with_interval(int((answers == others.labels).sum()), len(others))
    interval = f"95 %: {share.low:.1%} to {share.high:.1%}"
    told = f"Accuracy on {len(others)} images that were left out: {share.value:.1%} ({interval}); "
    return share._asdict(), told + f"chance {1 / len(others.class_names):.1%}, largest class {largest:.1%}."


def _measure_labels(model: LMPTClassifier, others: MultiLabelSet) -> tuple[dict[str, Any] | None, str]:
    if not others.targets.any():
        return None, "No image with a label is left to measure on: give --test, or a larger --held-out."
    share = map_with_interval(model.decision_function(others.images), others.targets)
    interval = f"95 %: {share.low:.1%} to {share.high:.1%}"
    told = f"Mean average precision on {len(others)} images that were left out: {share.value:.1%} ({interval}); "
    return share._asdict(), told + f"guessing {guessed(others.targets):.1%}."


def show_classifier(
    folder: str | Path,
    model: PromptClassifier,
    learned: AnySet,
    test: AnySet,
    command: str = "a notebook",
    *,
    method: str = "umap",
    theme: str = "light",
    controls: bool = True,
) -> list[Path]:
    """Everything that ``gcpl-lab report`` makes of what ``train`` has left, of a classifier in a notebook.

    Args:
        folder: Receives it: the page first.
        model: After ``fit``.
        learned: What it learned from, all of it.
        test: Images of the same classes that it did not learn from.
        command: What is written down as having made it.
        method: Of the maps: umap, aligned, densmap, pca or tsne.
        theme: Of the deck.
        controls: Learn from shuffled labels or captions too, which takes as long again or longer.
    """
    folder = Path(folder)
    _show_model(folder, model, learned, test, command, controls=controls)
    return _views(folder, method, theme, VIEWS)


def _show_model(place: Path, model: Any, learned: Any, test: Any, command: str, **run: Any) -> None:
    """Page, figures and states."""
    if isinstance(model, LMPTClassifier):
        return show_labels(place, model, learned, test, command, **run)
    own, seed = ("preset", "objective", "seed"), model.config.seed
    settings = {name: value for name, value in model.config.as_dict().items() if name not in own}
    settings["classification"] = "exact"
    experiment = FewShotExperiment(learned, test, preset=model.config.preset, settings=settings)
    experiment.diffusion = model.diffusion
    kept, name = place / KEPT, model.config.objective
    latents, watch = experiment.test_latents, Stopwatch()
    evidence, reading = model.evidence(latents), Reading(model.weighting_, model.temperature_, model.offsets_)
    spent = watch.row() | {"train_seconds": model.history_[-1].seconds if model.history_ else 0.0}
    spent |= {"train_evaluations": model.train_evaluations_}
    outcome = experiment.read(name, 0, seed, evidence, reading, None, model=model, **spent)
    write_outcome(kept / f"{name}-0-{seed}", outcome)
    cache = OutcomeCache(place / "cache", kept=kept)
    show_outcomes(place, experiment, (*BESIDE, name), cache, (0, seed), command, **run)


def find_shown(folder: str | Path, preset: str | None = None, controls: bool = True) -> Path:
    """Where a run is shown; results, states and page are made where they are absent or of an earlier run.

    Args:
        preset: Folder of models that its prompts were learned on, where it was one; none is opened unasked.
        controls: See :func:`show_classifier`.
    """
    folder = Path(folder)
    source = next((folder / name for name in (TRAINED, RESULTS) if (folder / name).is_file()), folder / RESULTS)
    found = read_json(source)
    compared = isinstance(found, dict) and {"data", "summary", "methods"} <= found.keys()
    if source.name != TRAINED and not compared:
        return folder
    show = _show_ablation if "caption_noise" in found else _show_comparison if compared else _show_trained
    place, made_of = folder / SHOWN, file_checksum(source)
    if not (place / RESULTS).is_file() or read_json(place / RESULTS).get("made_of") != made_of:
        for states in (STATES, LABELS):
            (place / states).unlink(missing_ok=True)
        show(folder, found, preset, place, controls=controls, made_of=made_of)
    return place


def _show_trained(folder: Path, noted: dict[str, Any], preset: str | None, place: Path, **run: Any) -> None:
    names: tuple[str, ...] = ("images", "shots", "seed", "held_out")
    kinds: tuple[Any, ...] = (draw_sets, FewShotExperiment, GCPLClassifier)
    if "source" in noted:
        names = ("source", "test", "held_out", "seed")
        kinds = (draw_labelled, MultiLabelExperiment, LMPTClassifier)
    draw, kind, learner = kinds
    learned, test = draw(*(noted[name] for name in names))
    if [learned.checksum, test.checksum] != noted["checksums"]:
        raise ArtifactError(f"{folder}: its images, labels or captions changed since; restore them, or train again")
    if not len(test):
        raise ArtifactError(f"{folder}: no image was left out of learning to measure on; leave some out, train again")
    loaded = learner.load(folder, preset=preset)
    experiment = kind(learned, test, preset=loaded.config.preset)
    vars(experiment)[loaded.MODEL] = getattr(loaded, loaded.MODEL)
    model = read_outcome(folder / KEPT, experiment).model  # with its states and its history
    _show_model(place, model, learned, test, noted["command"], **run)


def _show_comparison(folder: Path, found: dict[str, Any], preset: str | None, place: Path, **run: Any) -> None:
    """The first draw with the most shots in pictures, and all draws with so many in the table."""
    data, rows = found["data"], found["methods"]
    shots, seed, names = max(data["shots"]), rows[0]["seed"], list(dict.fromkeys(row["name"] for row in rows))
    if not any(name in OBJECTIVES for name in names):
        raise ArtifactError(f"{folder}: compares {', '.join(names)}, none of which learned prompts to show")
    preset = choose_preset(folder / RESULTS, found["preset"], preset, None)
    support, test = read_compared(data["images"], data["published"], data["held_out"])
    test = support.subset(left_over(support, shots, seed)) if data["held_out"] else test
    experiment = FewShotExperiment(support, test, preset=preset, settings=found["settings"])
    names, cache = list(dict.fromkeys([BEFORE, *names])), OutcomeCache(place / "cache", kept=folder / KEPT)
    table = [row for row in rows if row["shots"] == shots]
    show_outcomes(place, experiment, names, cache, (shots, seed), found["command"], rows=table, **run)


def _show_ablation(folder: Path, found: dict[str, Any], _preset: str | None, place: Path, **run: Any) -> None:
    compared = folder / "methods" / RESULTS
    rows = read_json(compared)["methods"] if compared.is_file() else found["methods"]
    results, titles = ({**found, **run}, {row["name"]: title_of(row["name"]) for row in rows})
    page: dict[str, Any] = {"question": ABLATION, "answer": _ablation_answer(found), "limits": limits_of(found)}
    page |= {"titles": titles, "columns": MULTILABEL_COLUMNS, "command": found["command"]}
    write_report(place / "report.html", {**results, "methods": rows}, _figures_of(folder), **page)
    write_json(place / RESULTS, results)


def _ablation_deck(folder: Path, theme: str) -> list[Path]:
    """The figures of an ablation, a slide each, between what it found and what it does not show."""
    results = read_json(folder / RESULTS)
    deck = Deck(provenance_of(results), theme)
    deck.add(to_slide(None, ABLATION, (_ablation_answer(results),), ""))
    for figure in _figures_of(folder.parent):
        deck.add(to_slide(figure.png_path, figure.title, figure.message, "", alt=figure.alt))
    deck.add(to_slide(None, "What this does not show", limits_of(results)[-1:], ""))
    return deck.save(folder / ("slides.pptx" if theme == "light" else f"slides_{theme}.pptx"))


def _figures_of(folder: Path) -> list[ReportFigure]:
    """The figures of an ablation that are there, with their words."""
    found = [(name, words, folder / "figures" / f"{name}.png") for name, words in WORDS["ablation"].items()]
    return [ReportFigure(name, of["title"], of["message"], png, of["alt"]) for name, of, png in found if png.is_file()]


def draw_ablation(results: Mapping[str, Mapping[str, Any]], folder: str | Path) -> list[Path]:
    """Write figures of an ablation over seeds: methods, what each part adds, and the curve of wrong captions.

    ``results`` hold ``ablation``, and ``comparison`` where the methods were compared too. Gives the PNG files.
    """
    ablation, summary = results["ablation"], results["ablation"]["summary"]
    names = ["ablation", *(["comparison"] if "comparison" in results else [])]
    names += ["caption_noise"] if ablation["caption_noise"] else []
    heights, paths = {"ablation": 2 + 0.45 * len(summary["map"])}, []
    with style.figure_style():
        for name in names:
            figure = style.new_figure(11, heights.get(name, 5))
            ax = figure.subplots()
            if name == "comparison":
                multilabel.plot_tail_bars(ax, results["comparison"]["methods"], MULTILABEL_TITLES)
            elif name == "ablation":
                shown = {score: summary[score] for score in ("map", "map_tail") if score in summary}
                multilabel.plot_differences(ax, shown, ABLATION_TITLES, ablation["reference"])
            else:
                found = [(score, entry) for score, entries in summary.items() for entry in entries]
                without = {score: entry["mean"] for score, entry in found if entry["method"] == "no_captions"}
                multilabel.plot_noise_curve(ax, ablation["caption_noise"], without)
            paths.append(plots.save_figure(figure, folder, name)[0])
    return paths


def _ablation_answer(results: Mapping[str, Any]) -> str:
    """One line: the reference, and how many variants differ from it beyond their interval."""
    entries = [entry for entry in results["summary"]["map"] if entry["difference"] is not None]
    sure = [entry for entry in entries if entry["low"] is not None and entry["low"] * entry["high"] > 0]
    mean = next(row["mean"] for row in results["summary"]["map"] if row["method"] == results["reference"])
    seeds = len({row["seed"] for row in results["methods"]})
    return (
        f"mAP over all classes of {title_of(results['reference'])}: {100 * mean:.1f} over {seeds} seeds; "
        f"{len(sure)} of {len(entries)} variants differ from it by more than their 95 % interval."
    )


def make_report(
    folder: str | Path, method: str = "umap", theme: str = "light", views: Sequence[str] = VIEWS, **run: Any
) -> list[Path]:
    """Make everything of a finished run: the page first, then hover map, animation, deck and its figures.

    Args:
        folder: Of ``gcpl-lab train``, ``compare``, ``ablate lmpt`` or ``demo``.
        method: Of the maps: umap, aligned, densmap, pca or tsne.
        theme: Of the deck.
        views: Some of ``VIEWS``.
        run: See :func:`find_shown`.
    """
    return _views(find_shown(folder, **run), method, theme, views)


def _views(place: Path, method: str, theme: str, views: Sequence[str]) -> list[Path]:
    if "caption_noise" in read_json(place / RESULTS):  # an ablation keeps no states of images
        makers: dict[str, Any] = {"deck": lambda: _ablation_deck(place, theme)}
    else:
        makers = {"map": lambda: [make_map(place, method)], "animation": lambda: make_animation(place, method)}
        makers["deck"] = lambda: make_deck(place, theme, method)
        if views == VIEWS and not any((place / name).is_file() for name in (STATES, LABELS)):
            makers = {"deck": makers["deck"]}
    makers["page"] = lambda: [place / "report.html"]
    if views != VIEWS and (absent := [name for name in views if name not in makers]):
        raise ArtifactError(f"{place}: has no {absent[0]}, which this kind of run has no states for; see its report")
    return [path for name in views if name in makers for path in makers[name]()]
