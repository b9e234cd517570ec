"""From outcomes to what people look at: ``results.json``, figures, one page, and sentences that hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.baselines.clip_features import ENSEMBLE_TEMPLATES
from gcpl_lab.data.readers import read_image
from gcpl_lab.evaluation.metrics import NUM_BINS, confusion_matrix
from gcpl_lab.evaluation.reading import mean_similarity, nearest_words, prompt_similarity
from gcpl_lab.evaluation.separation import Separation, measure_within_families, profile_points
from gcpl_lab.experiments.few_shot import GENERATIVE_METHODS, METHOD_TITLES, FewShotExperiment, Outcome
from gcpl_lab.gcpl.classifier import DiffusionClassifier
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.training.machine import describe_machine, describe_versions
from gcpl_lab.views.report import ReportFigure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, AFTER = "zero_shot_diffusion", "discriminative"
MAP = "before_after"


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share that was measured on ``count`` images (Wilson's score interval)."""
    z = 1.959964
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return centre - half, centre + half


def collect_results(
    experiment: FewShotExperiment, outcomes: Sequence[Outcome], shots: int, command: str
) -> dict[str, Any]:
    """What ``results.json`` holds: data, machine, versions, command, methods and measured separations."""
    return {
        "command": command,
        "data": {
            "name": experiment.test.name,
            "checksum": experiment.test.checksum,
            "support_checksum": experiment.support.checksum,
            "classes": list(experiment.test.class_names),
            "shots": shots,
            "test_size": len(experiment.test),
        },
        "preset": experiment.preset,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "methods": [outcome.row for outcome in outcomes],
        "separation": measure_profiles(experiment, outcomes),
        "prompts": measure_prompts(experiment, outcomes),
    }


def _separation(experiment: FewShotExperiment, outcome: Outcome) -> Separation:
    assert outcome.evidence is not None
    points = profile_points(outcome.evidence.errors)
    return measure_within_families(
        points, experiment.test.labels, experiment.test.class_names, experiment.test.families
    )


def measure_profiles(experiment: FewShotExperiment, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Separation of the test photographs' error profiles under every diffusion classifier's prompts."""
    return {
        f"{outcome.method}/{outcome.shots}/{outcome.seed}": _separation(experiment, outcome).as_dict()
        for outcome in outcomes
        if outcome.evidence is not None
    }


def conditioning(experiment: FewShotExperiment, outcome: Outcome, templates: Sequence[str]) -> Tensor:
    """Hidden states of the class prompts in several templates, (template, class, token, dim)."""
    diffusion, names = experiment.diffusion, experiment.test.class_names
    if outcome.model is None:
        return torch.stack([diffusion.encode_texts([t.format(name) for name in names]) for t in templates])
    vectors = outcome.model.prompts_.vectors.detach()
    prompts = ClassPrompts(diffusion, names, num_vectors=vectors.shape[1], templates=templates, initial="random").to(
        diffusion.device
    )
    with torch.no_grad():
        prompts.vectors.copy_(vectors)
        return torch.stack([diffusion.encode_prompts(*prompts(None, index)) for index in range(len(templates))])


def measure_prompts(experiment: FewShotExperiment, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How far the class prompts lie apart, each in five templates: similarity in the families, and separation."""
    names, families = experiment.test.class_names, experiment.test.families
    labels = np.tile(np.arange(len(names)), len(ENSEMBLE_TEMPLATES))
    measured = {}
    for outcome in outcomes:
        if outcome.evidence is None:
            continue
        hidden = conditioning(experiment, outcome, ENSEMBLE_TEMPLATES)
        matrix = prompt_similarity(hidden[0])
        points = hidden.float().flatten(2).flatten(0, 1).cpu().numpy()
        measured[f"{outcome.method}/{outcome.shots}/{outcome.seed}"] = {
            "mean_similarity_in_family": {
                family: value
                for family, members in families.items()
                if not math.isnan(value := mean_similarity(matrix, names, members))
            },
            "separation": measure_within_families(points, labels, names, families).as_dict(),
        }
    return measured


# ----------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class _Drawing:
    name: str
    title: str
    message: str
    alt: str
    draw: Callable[[], Figure]


def draw_figures(
    experiment: FewShotExperiment, outcomes: Sequence[Outcome], folder: str | Path, *, mapped: bool | None = None
) -> list[ReportFigure]:
    """Draw every figure of a one-seed run and write it as PNG and SVG.

    Args:
        experiment: The data and the frozen models.
        outcomes: One a method; zero-shot diffusion, GCPL, CoMPLe and the discriminative objective among them.
        folder: Where the files go.
        mapped: True for the map alone, which takes as long as the others together; False for the others.
    """
    from gcpl_lab.views.plots import save_figure

    by_name = {outcome.method: outcome for outcome in outcomes}
    figures = []
    for drawing in _drawings(experiment, by_name):
        if mapped not in (None, drawing.name == MAP):
            continue
        png = save_figure(drawing.draw(), folder, drawing.name)[0]
        figures.append(ReportFigure(drawing.name, drawing.title, drawing.message, png, drawing.alt))
    return figures


def _drawings(experiment: FewShotExperiment, by_name: Mapping[str, Outcome]) -> list[_Drawing]:
    before, after = by_name[BEFORE], by_name[AFTER]
    names, families = experiment.test.class_names, experiment.test.families
    labels = experiment.test.labels
    return [
        _Drawing(
            MAP,
            "Look-alikes before and after",
            "Each mark is a test photograph, placed by how well every class prompt denoises it. Left with the classes' "
            "names as prompts, right with learned prompts; both states share one map. The figures under the panels are "
            "measured in the original space, not on the map.",
            "Two maps of the test photographs' error profiles, before and after learning.",
            lambda: _draw_before_after(experiment, before, after),
        ),
        _Drawing(
            "accuracy",
            "Every method on the same photographs",
            "Top-1 accuracy on the test photographs, with the 95 % interval for this many photographs (one draw of "
            "exemplars: another draw differs by about as much).",
            "Bars of accuracy for every method.",
            lambda: _draw_accuracy(experiment, list(by_name.values())),
        ),
        _Drawing(
            "confusion",
            "What is taken for what",
            "True classes in rows, predicted ones in columns. Mistakes inside a family of look-alikes lie in the block "
            "under the family's name.",
            "Confusion matrices before and after learning.",
            lambda: _draw_confusion(before, after, labels, names, families),
        ),
        _Drawing(
            "prompt_similarity",
            "How alike the class prompts are",
            "Cosine between the prompts' conditionings after the mean prompt is taken away.",
            "Two similarity matrices of the class prompts.",
            lambda: _draw_similarity(experiment, before, after),
        ),
        _Drawing(
            "token_journey",
            "The way of the class tokens",
            "Learned vectors of every class during GCPL and then discriminative training, on their first two principal "
            "components: a shadow of a space of many dimensions.",
            "Paths of the class tokens on a plane.",
            lambda: _draw_journey(by_name["gcpl"], after, names, families),
        ),
        _Drawing(
            "losses",
            "Training",
            "Denoising loss of GCPL and of CoMPLe's own term. It is noisy because every step draws new noise.",
            "Loss curves.",
            lambda: _draw_losses(by_name),
        ),
        _Drawing(
            "comple_norm",
            "What CoMPLe's contrast rewards",
            "Norm of the predicted noise during training. In expectation the published contrast rewards a larger norm "
            "and nothing else; the dotted line is where a free prediction would end up, GCPL's norm times 1/(1 − λ).",
            "Curves of the prediction norm for GCPL and CoMPLe.",
            lambda: _draw_norms(by_name),
        ),
        _Drawing(
            "timestep_evidence",
            "Where the evidence is",
            "How much better the own prompt denoises than the other prompts on average, by noise level.",
            "Curve of the evidence over timesteps.",
            lambda: _draw_timesteps(after, labels),
        ),
        _Drawing(
            "error_map",
            "What in the photograph speaks for which class",
            "Difference of the two prompts' errors over one test photograph. It has the latent's resolution, so it is "
            "coarse.",
            "Error maps of one photograph for two classes.",
            lambda: _draw_error_map(experiment, after),
        ),
        _Drawing(
            "samples",
            "What the prompts draw",
            "Real exemplars, pictures drawn from the class names, and pictures drawn from the learned prompts.",
            "Grids of real and generated pictures.",
            lambda: _draw_samples(experiment, before, after),
        ),
        _Drawing(
            "reliability",
            "Are the probabilities honest?",
            "The temperature was fitted on the support photographs alone.",
            "Reliability diagram of the learned prompts.",
            lambda: _draw_reliability(after, labels),
        ),
        _Drawing(
            "nearest_words",
            "Words near the learned tokens",
            "Nearest vocabulary words of each class's learned vectors; grey where a random vector comes as near.",
            "Table of nearest words for each class.",
            lambda: _draw_words(experiment, after),
        ),
    ]


def _draw_before_after(experiment: FewShotExperiment, before: Outcome, after: Outcome) -> Figure:
    from gcpl_lab.views.plots import plot_before_after
    from gcpl_lab.views.projection import project, warn_if_flattering

    assert before.evidence is not None
    assert after.evidence is not None
    states = {
        "Before: class names": profile_points(before.evidence.errors),
        "After: learned prompts": profile_points(after.evidence.errors),
    }
    separations = dict(zip(states, (_separation(experiment, o) for o in (before, after)), strict=True))
    projection = project(states, seed=after.seed)
    return plot_before_after(
        projection,
        experiment.test.labels,
        experiment.test.class_names,
        experiment.test.families,
        separations,
        warning=warn_if_flattering(projection, states, experiment.test.labels),
    )


def _draw_accuracy(experiment: FewShotExperiment, outcomes: Sequence[Outcome]) -> Figure:
    from gcpl_lab.views import style
    from gcpl_lab.views.plots import plot_accuracy

    rows = []
    for outcome in outcomes:
        low, high = wilson_interval(outcome.row["accuracy"], len(experiment.test))
        kind = "generative" if outcome.method in (*GENERATIVE_METHODS, BEFORE) else "baseline"
        rows.append(
            {
                "name": METHOD_TITLES[outcome.method],
                "accuracy": outcome.row["accuracy"],
                "low": low,
                "high": high,
                "kind": kind,
            }
        )
    with style.figure_style():
        figure = style.new_figure(11, 1.6 + 0.48 * len(rows))
        plot_accuracy(figure.subplots(), rows, chance=1 / len(experiment.test.class_names))
    return figure


def _draw_confusion(
    before: Outcome, after: Outcome, labels: np.ndarray, names: Sequence[str], families: Mapping[str, Sequence[str]]
) -> Figure:
    from gcpl_lab.views import style
    from gcpl_lab.views.evidence import plot_confusion

    with style.figure_style():
        figure = style.new_figure(16.5, 9)
        for ax, outcome, title in zip(
            figure.subplots(1, 2), (before, after), ("Before: class names", "After: learned prompts"), strict=True
        ):
            plot_confusion(ax, confusion_matrix(outcome.scores, labels), names, families)
            ax.set_title(title, pad=30)
    return figure


def _draw_similarity(experiment: FewShotExperiment, before: Outcome, after: Outcome) -> Figure:
    from gcpl_lab.views.evidence import plot_similarity_pair

    hidden = [conditioning(experiment, outcome, ("a photo of a {}",))[0] for outcome in (before, after)]
    matrices = [prompt_similarity(states).numpy() for states in hidden]
    return plot_similarity_pair(
        matrices[0],
        matrices[1],
        experiment.test.class_names,
        experiment.test.families,
        titles=("Before: class names", "After: learned prompts"),
    )


def _draw_journey(gcpl: Outcome, after: Outcome, names: Sequence[str], families: Mapping[str, Sequence[str]]) -> Figure:
    from gcpl_lab.views import style
    from gcpl_lab.views.plots import plot_token_journey
    from gcpl_lab.views.projection import project

    assert gcpl.model is not None
    assert after.model is not None
    states = dict(gcpl.model.states_)
    last = max(states)
    states |= {last + step: vectors for step, vectors in after.model.states_.items() if step}
    steps = sorted(states)
    steps = [steps[index] for index in np.unique(np.linspace(0, len(steps) - 1, 12).astype(int))]
    points = torch.stack([states[step] for step in steps]).flatten(2)
    placed = project(points.flatten(0, 1).numpy(), method="pca").points["all"]
    with style.figure_style():
        figure = style.new_figure(9.5, 9.5)
        plot_token_journey(figure.subplots(), placed.reshape(len(steps), len(names), 2), steps, names, families)
    return figure


def _curve(outcome: Outcome, value: Callable[[Any], float]) -> tuple[np.ndarray, np.ndarray]:
    assert outcome.model is not None
    history = outcome.model.history_
    return np.array([record.step for record in history]), np.array([value(record) for record in history])


def _draw_losses(by_name: Mapping[str, Outcome]) -> Figure:
    from gcpl_lab.views import style
    from gcpl_lab.views.plots import plot_losses

    with style.figure_style():
        figure = style.new_figure(11, 6)
        plot_losses(
            figure.subplots(),
            {
                "GCPL": _curve(by_name["gcpl"], lambda record: record.loss),
                "CoMPLe, own term": _curve(by_name["comple"], lambda record: record.values["own"]),
            },
            "denoising loss",
        )
    return figure


def _draw_norms(by_name: Mapping[str, Outcome]) -> Figure:
    from gcpl_lab.views import style
    from gcpl_lab.views.evidence import plot_norms

    comple = by_name["comple"].model
    assert comple is not None
    curves = {
        METHOD_TITLES[name]: _curve(by_name[name], lambda record: math.sqrt(record.values["prediction_norm"]))
        for name in ("gcpl", "comple")
    }
    tail = max(1, len(curves["GCPL"][1]) // 5)
    foreseen = float(curves["GCPL"][1][-tail:].mean()) / (1 - comple.config.contrast_weight)
    with style.figure_style():
        figure = style.new_figure(11, 6)
        plot_norms(figure.subplots(), curves, {METHOD_TITLES["comple"]: foreseen})
    return figure


def _draw_timesteps(outcome: Outcome, labels: np.ndarray) -> Figure:
    from gcpl_lab.views import style
    from gcpl_lab.views.evidence import plot_timestep_evidence

    assert outcome.evidence is not None
    errors = outcome.evidence.errors
    own = np.take_along_axis(errors, labels[:, None, None], axis=1)[:, 0]
    others = (errors.sum(1) - own) / (errors.shape[1] - 1)
    gaps = (others - own) / errors.mean(1)
    half = 1.96 * gaps.std(0, ddof=1) / math.sqrt(len(gaps))
    with style.figure_style():
        figure = style.new_figure(11, 6)
        plot_timestep_evidence(
            figure.subplots(),
            outcome.evidence.timesteps.tolist(),
            gaps.mean(0),
            gaps.mean(0) - half,
            gaps.mean(0) + half,
        )
    return figure


def most_confused_pair(matrix: np.ndarray) -> tuple[int, int]:
    """The two different classes that are taken for each other most, the more often mistaken first."""
    both = matrix + matrix.T
    np.fill_diagonal(both, -1)
    a, b = np.unravel_index(int(both.argmax()), both.shape)
    return (int(a), int(b)) if matrix[a, b] >= matrix[b, a] else (int(b), int(a))


def _draw_error_map(experiment: FewShotExperiment, outcome: Outcome) -> Figure:
    from gcpl_lab.views import style
    from gcpl_lab.views.evidence import plot_error_map

    test, model = experiment.test, outcome.model
    assert model is not None
    a, b = most_confused_pair(confusion_matrix(outcome.scores, test.labels))
    with torch.no_grad():
        hidden = experiment.diffusion.encode_prompts(*model.prompts_())
    classifier = DiffusionClassifier(experiment.diffusion, hidden, timestep_range=model.timestep_range)
    with style.figure_style():
        figure = style.new_figure(11, 10.5)
        for axes, label in zip(figure.subplots(2, 2), (a, b), strict=True):
            index = int(np.flatnonzero(test.labels == label)[0])
            found = classifier.evidence_map(experiment.test_latents[index], a, b, num_samples=64)
            picture = np.asarray(read_image(test.images[index]))
            plot_error_map(axes, picture, found.numpy(), test.class_names[a], test.class_names[b])
            axes[0].set_title(f"a {test.class_names[label]}")
    return figure


def _draw_samples(experiment: FewShotExperiment, before: Outcome, after: Outcome, each: int = 3) -> Figure:
    from gcpl_lab.views.evidence import plot_sample_grid

    names, support = experiment.test.class_names, experiment.support
    drawn = []
    for outcome in (before, after):
        hidden = conditioning(experiment, outcome, ("a photo of a {}",))[0]
        pictures = experiment.diffusion.generate(hidden.repeat_interleave(each, 0), num_steps=20, guidance=3.0, seed=0)
        drawn.append([np.asarray(picture) for picture in pictures])
    size = (experiment.diffusion.image_size,) * 2
    blank = np.full((*size, 3), 255, np.uint8)
    rows = []
    for label, name in enumerate(names):
        chosen = np.flatnonzero(support.labels == label)[:each]
        real = [np.asarray(read_image(support.images[index]).resize(size)) for index in chosen]
        part = slice(label * each, (label + 1) * each)
        rows.append((name, [*real, blank, *drawn[0][part], blank, *drawn[1][part]]))
    figure = plot_sample_grid(rows)
    for column, title in ((1, "real"), (each + 2, "from the name"), (2 * each + 3, "from the learned prompt")):
        figure.axes[column].set_title(title)
    return figure


def _draw_reliability(outcome: Outcome, labels: np.ndarray) -> Figure:
    from gcpl_lab.views import style
    from gcpl_lab.views.evidence import plot_reliability

    with style.figure_style():
        figure = style.new_figure(7.5, 7.5)
        plot_reliability(
            figure.subplots(),
            outcome.probabilities.max(axis=1),
            outcome.probabilities.argmax(axis=1) == labels,
            num_bins=NUM_BINS,
        )
    return figure


def _draw_words(experiment: FewShotExperiment, outcome: Outcome) -> Figure:
    from gcpl_lab.views import style
    from gcpl_lab.views.evidence import plot_nearest_words

    assert outcome.model is not None
    vectors = outcome.model.prompts_.vectors.detach()
    found, baseline = {}, 0.0
    for name, rows in zip(experiment.test.class_names, vectors, strict=True):
        best: dict[str, float] = {}
        for near in nearest_words(experiment.diffusion, rows, num_words=3):
            baseline = near.random_similarity
            for word, value in zip(near.words, near.similarities, strict=True):
                best[word] = max(value, best.get(word, -1.0))
        found[name] = sorted(best.items(), key=lambda item: -item[1])[:5]
    with style.figure_style():
        figure = style.new_figure(11, 1.2 + 0.72 * len(found))
        plot_nearest_words(figure.subplots(), found, baseline)
    return figure


# --------------------------------------------------------------------------------------------- sentences


def answer_of(outcomes: Sequence[Outcome]) -> str:
    """One line: did learning help, and did anything beat it?"""
    share = {outcome.method: float(outcome.row["accuracy"]) for outcome in outcomes}
    best = max(GENERATIVE_METHODS, key=lambda name: share[name])
    simple = max((name for name in share if name not in (*GENERATIVE_METHODS, BEFORE)), key=lambda name: share[name])
    way = "up from" if share[best] > share[BEFORE] else "down from" if share[best] < share[BEFORE] else "no more than"
    return (
        f"{METHOD_TITLES[best]}: {share[best]:.0%} of the test photographs recognised, {way} {share[BEFORE]:.0%} with "
        f"the class names as prompts; the best simple baseline on the same photographs, {METHOD_TITLES[simple]}, "
        f"reaches {share[simple]:.0%}."
    )


def caveats_of(outcomes: Sequence[Outcome], contrast_weight: float) -> list[str]:
    """Claims that this run does not bear out, in words with its own numbers."""
    rows = {outcome.method: outcome.row for outcome in outcomes}
    share = {name: float(row["accuracy"]) for name, row in rows.items()}
    best = max(GENERATIVE_METHODS, key=lambda name: share[name])
    found = []
    if share[best] <= share[BEFORE]:
        found.append(
            f"Learning did not help here: {share[best]:.1%} at best against {share[BEFORE]:.1%} with the class names "
            "as prompts."
        )
    if share["comple"] <= share["gcpl"]:
        found.append(
            f"CoMPLe's contrast (λ = {contrast_weight:g}) did not separate the classes better than GCPL here: "
            f"{share['comple']:.1%} against {share['gcpl']:.1%}."
        )
    if share["discriminative"] <= share["gcpl"]:
        found.append(
            f"The discriminative objective did not improve on GCPL here: {share['discriminative']:.1%} against "
            f"{share['gcpl']:.1%}."
        )
    better = [name for name in share if name not in (*GENERATIVE_METHODS, BEFORE) and share[name] > share[best]]
    if better:
        listed = ", ".join(f"{METHOD_TITLES[name]} ({share[name]:.1%}, {_cost(rows[name])})" for name in better)
        found.append(
            f"Learned prompts ({share[best]:.1%} at best, {_cost(rows[best])} to train and classify) do not beat "
            f"{listed}."
        )
    for name in GENERATIVE_METHODS:
        if rows[name]["calibration_error"] > 0.05:
            found.append(
                f"The probabilities of {METHOD_TITLES[name]} are not well calibrated: expected calibration error "
                f"{rows[name]['calibration_error']:.2f} with a temperature fitted on the exemplars."
            )
    return found


def _cost(row: Mapping[str, Any]) -> str:
    return f"{row['train_seconds'] + row['predict_seconds']:.1f} s"
