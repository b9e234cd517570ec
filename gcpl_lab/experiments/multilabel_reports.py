"""From multi-label outcomes to what people look at: figures, and sentences that hold; the short demonstration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gcpl_lab.data.readers import read_image, read_images
from gcpl_lab.data.wardrobe import load_wardrobe
from gcpl_lab.evaluation.explaining import compare_prompts, explain_mistake, find_mistakes, read_contexts
from gcpl_lab.experiments.caching import OutcomeCache
from gcpl_lab.experiments.multilabel import (
    ABLATION_TITLES,
    MULTILABEL_TITLES,
    SCORES,
    MultiLabelExperiment,
    MultiLabelOutcome,
)
from gcpl_lab.storage import write_json
from gcpl_lab.training.loop import StepRecord
from gcpl_lab.views.report import ReportFigure

DEMO_METHODS = ("zero_shot_clip", "linear_probe", "coop_bce", "coop_asl", "coop_db", "lmpt")

DEMO_SETTINGS = {"num_epochs": 25, "learning_rate": 0.02}
"""Half the default epochs at twice the rate: the demonstration has minutes for everything."""


@dataclass(frozen=True)
class LMPTDemo:
    """What the short multi-label demonstration made.

    Attributes:
        rows: One a method, for ``results.json``: ``name, seed, map, map_head, map_medium, map_tail`` and more.
        figures: For the report.
        answer: One line.
        caveats: What does not hold.
        data: Names and counts, for ``results.json``.
    """

    rows: list[dict[str, Any]]
    figures: list[ReportFigure]
    answer: str
    caveats: list[str]
    data: dict[str, Any]


def demo_experiment(
    preset: str = "tiny",
    settings: Mapping[str, Any] | None = None,
    on_step: Callable[[str, StepRecord, int], None] | None = None,
) -> MultiLabelExperiment:
    """The bundled scenes, with settings for a few minutes in all.

    Args:
        preset: The frozen pair.
        settings: Fields of :class:`~gcpl_lab.lmpt.settings.LMPTConfig` that shall be otherwise.
        on_step: Called after every update with (method, record, number of steps).
    """
    chosen = {**DEMO_SETTINGS, **(settings or {})}
    train, test = load_wardrobe("train"), load_wardrobe("test")
    return MultiLabelExperiment(train, test, preset=preset, settings=chosen, on_step=on_step)


def run_lmpt_demo(
    folder: str | Path, experiment: MultiLabelExperiment, *, seed: int = 0, cache: OutcomeCache | None = None
) -> LMPTDemo:
    """Learn the scenes with every multi-label method, and draw what came of it.

    Args:
        folder: Receives ``figures/``, ``prompts/lmpt/`` and ``reading.json``.
        experiment: See :func:`demo_experiment`.
        seed: Of the validation split and of every method.
        cache: Where outcomes are kept and found again; by default nowhere.
    """
    folder, train, test = Path(folder), experiment.train, experiment.test
    run = partial(cache.run_multilabel, experiment) if cache else experiment.run
    outcomes = {method: run(method, seed) for method in DEMO_METHODS}
    learned = outcomes["lmpt"]
    assert learned.model is not None
    learned.model.save(folder / "prompts" / "lmpt")
    write_json(folder / "reading.json", read_prompts(learned))
    figures = draw_outcomes(experiment, list(outcomes.values()), folder / "figures")
    rows = [outcome.row for outcome in outcomes.values()]
    data = {
        "name": test.name,
        "checksum": test.checksum,
        "train_checksum": train.checksum,
        "classes": list(test.class_names),
        "train_counts": train.class_counts().tolist(),
        "train_size": len(train),
        "test_size": len(test),
    }
    return LMPTDemo(rows, figures, answer_of(rows), caveats_of(rows), data)


def read_prompts(outcome: MultiLabelOutcome, num_words: int = 3, num_moves: int = 10) -> dict[str, Any]:
    """Nearest words of every context vector, and how the class prompts moved.

    Args:
        outcome: Of a prompt method.
        num_words: Words a vector.
        num_moves: Pairs of classes to list.
    """
    model = outcome.model
    if model is None:
        raise ValueError(f"{outcome.method!r} learned no prompts; expected the outcome of a prompt method")
    names = [str(name) for name in model.classes_]
    change = compare_prompts(model.start_features_, model.objective_.text_features(), names)
    return {
        "class_names": names,
        "contexts": read_contexts(model.clip, model.objective_.prompts.context, names, num_words),
        "similarity_before": change.before.tolist(),
        "similarity_after": change.after.tolist(),
        "moved_toward": change.moves[:num_moves],
        "travelled": dict(zip(names, map(float, change.travelled), strict=True)),
    }


# ----------------------------------------------------------------------------------------------- figures


def draw_outcomes(
    experiment: MultiLabelExperiment, outcomes: Sequence[MultiLabelOutcome], folder: str | Path
) -> list[ReportFigure]:
    """Draw the figures of a one-seed run and write them as PNG and SVG.

    Args:
        experiment: Data and frozen features.
        outcomes: One a method, the last one LMPT's.
        folder: Where the files go.
    """
    from gcpl_lab.views.evidence import plot_similarity_pair
    from gcpl_lab.views.multilabel import plot_class_precision, plot_tail_bars
    from gcpl_lab.views.plots import save_figure
    from gcpl_lab.views.style import figure_style, new_figure

    learned, names = outcomes[-1], list(experiment.test.class_names)
    figures = []

    def keep(name: str, figure: Any, title: str, message: str, alt: str) -> None:
        figures.append(ReportFigure(name, title, message, save_figure(figure, folder, name)[0], alt))

    with figure_style():
        bars = new_figure(10, 4.5)
        plot_tail_bars(bars.subplots(), [outcome.row for outcome in outcomes], MULTILABEL_TITLES)
        keep(
            "multilabel_tail",
            bars,
            "Several garments in one picture, most kinds rare",
            "Mean average precision on the test scenes. Head classes have at least 100 training scenes, tail classes "
            "fewer than 20. One seed: differences of a point or two are within its noise.",
            "Grouped bars of mean average precision for every method.",
        )
        chosen = {
            outcome.method: outcome.row["classes"]
            for outcome in outcomes
            if outcome.method in ("zero_shot_clip", "coop_bce", "lmpt")
        }
        classes = new_figure(10, 1.4 + 0.42 * len(names))
        plot_class_precision(classes.subplots(), chosen, MULTILABEL_TITLES)
        keep(
            "multilabel_classes",
            classes,
            "Every class by itself",
            "Average precision of each class, the most frequent on top.",
            "Marks for each class and method.",
        )
        reading = read_prompts(learned)
        pair = plot_similarity_pair(
            reading["similarity_before"], reading["similarity_after"], names, titles=("before", "after")
        )
        keep(
            "multilabel_prompts",
            pair,
            "How alike the class prompts are",
            "Cosines of the encoded prompts after the mean prompt is taken away, before and after learning.",
            "Two similarity matrices of the class prompts.",
        )
        card = draw_worst_mistake(experiment, learned)
        if card is not None:
            keep(
                "multilabel_mistake",
                card,
                "One mistake, looked into",
                "The surest wrong answer: what was said, the nearest training scenes in CLIP's image space, and which "
                "classes the training scenes show together.",
                "A test scene with scores and neighbours.",
            )
    return figures


def draw_worst_mistake(experiment: MultiLabelExperiment, outcome: MultiLabelOutcome, place: int = 0) -> Any:
    """The card of the mistake that was made most surely (``place`` 0) or of a later one; None where there is none."""
    from gcpl_lab.views.multilabel import draw_mistake

    train, test = experiment.train, experiment.test
    wrong = find_mistakes(outcome.probabilities, test.targets, outcome.thresholds)
    if len(wrong) <= place:
        return None
    image, label = wrong[place]
    mistake = explain_mistake(
        image,
        label,
        probabilities=outcome.probabilities,
        targets=test.targets,
        thresholds=outcome.thresholds,
        feature=experiment.test_features[image],
        train_features=experiment.views[0],
        train_targets=train.targets,
        class_names=test.class_names,
    )
    neighbours = read_images([train.images[entry["image"]] for entry in mistake.neighbours])
    return draw_mistake(mistake, read_image(test.images[image]), neighbours)


def draw_ablation(results: Mapping[str, Mapping[str, Any]], folder: str | Path) -> list[Path]:
    """Figures of an ablation over seeds: methods, what each part adds, and the curve of wrong captions.

    Args:
        results: ``ablation``, and ``comparison`` where the methods were compared too; see
            ``gcpl_lab.experiments.multilabel``.
        folder: Where PNG and SVG files go.

    Returns:
        The PNG files.
    """
    from gcpl_lab.views.multilabel import plot_differences, plot_noise_curve, plot_tail_bars
    from gcpl_lab.views.plots import save_figure
    from gcpl_lab.views.style import figure_style, new_figure

    paths = []
    with figure_style():
        if "comparison" in results:
            figure = new_figure(11, 5)
            plot_tail_bars(figure.subplots(), results["comparison"]["methods"], MULTILABEL_TITLES)
            paths.append(save_figure(figure, folder, "comparison")[0])
        ablation = results["ablation"]
        figure = new_figure(11, 2 + 0.45 * len(ablation["summary"]["map"]))
        shown = {score: ablation["summary"][score] for score in ("map", "map_tail") if score in ablation["summary"]}
        plot_differences(figure.subplots(), shown, ABLATION_TITLES, ablation["reference"])
        paths.append(save_figure(figure, folder, "ablation")[0])
        if ablation["caption_noise"]:
            figure = new_figure(8, 5)
            without = {
                score: entry["mean"]
                for score, entries in ablation["summary"].items()
                for entry in entries
                if entry["method"] == "no_captions"
            }
            plot_noise_curve(figure.subplots(), ablation["caption_noise"], without)
            paths.append(save_figure(figure, folder, "caption_noise")[0])
    return paths


# --------------------------------------------------------------------------------------------- sentences


def answer_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line: what LMPT reached beside zero-shot CLIP and CoOp with plain cross entropy."""
    by_name = {row["name"]: row for row in rows}
    numbers = "; ".join(
        f"{MULTILABEL_TITLES[name]} {100 * by_name[name]['map']:.1f} (tail {100 * by_name[name]['map_tail']:.1f})"
        for name in ("lmpt", "coop_bce", "linear_probe", "zero_shot_clip")
        if name in by_name
    )
    return f"Several labels a picture, mAP in percent on the test scenes: {numbers}."


def caveats_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What does not hold in this run, in sentences."""
    by_name = {row["name"]: row for row in rows}
    learned = by_name["lmpt"]
    caveats = [
        "One seed on one drawn tail: gcpl-lab ablate lmpt repeats this with intervals, and differences of one or two "
        "points between trained prompts need it."
    ]
    for score in SCORES:
        better = [MULTILABEL_TITLES[name] for name, row in by_name.items() if row[score] > learned[score]]
        if better:
            part = {
                "map": "over all classes",
                "map_head": "on the head",
                "map_medium": "on the medium part",
                "map_tail": "on the tail",
            }[score]
            caveats.append(f"LMPT is not the best {part}; above it: {', '.join(better)}.")
    return caveats
