"""Figures of few-shot and multi-label runs: what each shows; the words beside them stand in ``figures.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcpl_lab.baselines.zero_shot import PLAIN_TEMPLATE
from gcpl_lab.data.readers import iter_images, read_image, read_images
from gcpl_lab.evaluation.explaining import explain_mistake, find_mistakes
from gcpl_lab.evaluation.metrics import NUM_BINS, confusion_matrix
from gcpl_lab.evaluation.reading import nearest_words, prompt_similarity
from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.experiments import captions, pictures
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.multilabel import MULTILABEL_TITLES, MultiLabelExperiment, MultiLabelOutcome
from gcpl_lab.experiments.registry import BEFORE, title_of
from gcpl_lab.experiments.runs import STATE_NAMES, STATES, before_and_after, load_states, token_journey
from gcpl_lab.gcpl.classifier import DiffusionClassifier
from gcpl_lab.gcpl.evidence import evidence_map
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.views import evidence, multilabel, plots, style
from gcpl_lab.views.hills import caption_hills
from gcpl_lab.views.moving import moving_tokens
from gcpl_lab.views.report import ReportFigure

WORDS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("figures.toml").read_text(encoding="utf-8"))
"""Kind of run to figure to its title, message and alt text, and the methods that it needs.

The figure ``accuracy`` is drawn by ``_draw_accuracy`` below, and so on.
"""


@dataclass(frozen=True)
class ShownRun:
    """A few-shot or multi-label run as its figures see it: data, frozen models, and one outcome a method."""

    experiment: Any
    by_name: Mapping[str, Any]

    @property
    def states(self) -> list[Outcome]:
        """Class names as prompts where they were run, and learned prompts."""
        return [outcome for outcome in before_and_after(list(self.by_name.values())) if outcome is not None]

    @property
    def after(self) -> Any:
        """Learned prompts."""
        return self.states[-1]

    def curve(self, method: str, value: str) -> tuple[np.ndarray, np.ndarray]:
        """Updates, and what a method's history holds of each; the loss where it has no such value."""
        history = self.by_name[method].model.history_
        return np.array([record.step for record in history]), np.array([record.values[value] for record in history])


def draw_figures(
    experiment: FewShotExperiment | MultiLabelExperiment,
    outcomes: Sequence[Outcome | MultiLabelOutcome],
    folder: str | Path,
) -> list[ReportFigure]:
    """Draw the figures of a one-seed run, and write each as PNG and SVG.

    ``outcomes`` are one a method; a figure of a method that is not among them is left out.
    """
    run = ShownRun(experiment, {outcome.method: outcome for outcome in outcomes})
    saved = []
    for name, words in WORDS["few_shot" if isinstance(experiment, FewShotExperiment) else "scenes"].items():
        if not run.by_name.keys() >= set(words.get("needs", ())):
            continue
        with style.figure_style():
            drawn = globals()[f"_draw_{name}"](run)
            narrow = globals().get(f"_draw_{name}_narrow", lambda _: None)(run)
        if drawn is not None:
            saved.append(save_drawn(drawn, narrow, folder, name, words))
    return saved


def draw_pictures(folder: str | Path) -> list[ReportFigure]:
    """Draw the pictures of the look-alikes from the states that a run has kept, and write each as PNG and SVG."""
    if not (Path(folder) / STATES).is_file():
        return []
    states, saved, place = load_states(folder), list[ReportFigure](), Path(folder) / "figures"
    narrow: dict[str, Any] = {
        "before_after": partial(pictures.draw_decision_maps, columns=2, most=1),
        "decision_maps": partial(pictures.draw_decision_maps, columns=2),
    }
    for name, words in WORDS["pictures"].items():
        figure = getattr(pictures, f"draw_{name}")(states)
        if figure is not None:
            small = narrow[name](states) if name in narrow else None
            saved.append(save_drawn(figure, small, place, name, words))
    return saved


def save_drawn(
    drawn: Axes | Figure, narrow: Figure | None, folder: str | Path, name: str, words: Mapping[str, str]
) -> ReportFigure:
    """A figure in files, with its words, and the one for a phone where there is one."""
    phone = None if narrow is None else save_drawn(narrow, None, folder, f"{name}_narrow", words)
    return ReportFigure(name, words["title"], words["message"], _write(drawn, folder, name), words["alt"], phone)


def _write(drawn: Axes | Figure, folder: str | Path, name: str) -> Path:
    figure = drawn.get_figure(root=True) if isinstance(drawn, Axes) else drawn
    assert isinstance(figure, Figure)
    return plots.save_figure(figure, folder, name)[0]


def _axes(width: float, height: float) -> Axes:
    return style.new_figure(width, height).subplots()


def _draw_accuracy(run: ShownRun) -> Axes:
    test, rows = run.experiment.test, []
    for name, outcome in run.by_name.items():
        value, low, high = share_with_interval(round(outcome.row["accuracy"] * len(test)), len(test))
        kind = "generative" if outcome.model is not None or name == BEFORE else "baseline"
        rows.append({"name": title_of(name), "accuracy": value, "low": low, "high": high, "kind": kind})
    return plots.plot_accuracy(_axes(11, 1.6 + 0.48 * len(rows)), rows, chance=1 / len(test.class_names))


def _draw_confusion(run: ShownRun) -> Figure:
    test, figure = run.experiment.test, style.new_figure(16.5, 9)
    matrices = [confusion_matrix(outcome.scores, test.labels) for outcome in run.states]
    for ax, matrix, title in zip(figure.subplots(1, 2), matrices, STATE_NAMES.values(), strict=True):
        evidence.plot_confusion(ax, matrix, test.class_names, test.families, evidence.most_alike(matrices[0]))
        ax.set_title(title, pad=30)
    return figure


def _draw_prompt_similarity(run: ShownRun) -> Figure:
    hidden = [conditioning(run.experiment, outcome) for outcome in run.states]
    before, after = (prompt_similarity(states).numpy() for states in hidden)
    test, titles = run.experiment.test, (STATE_NAMES["before"], STATE_NAMES["after"])
    return evidence.plot_similarity_pair(before, after, test.class_names, test.families, titles)


def _draw_token_journey(run: ShownRun) -> Figure:
    test, (steps, points) = run.experiment.test, token_journey(list(run.by_name.values()))
    return moving_tokens(dict(zip(steps, points, strict=True)), test.class_names, test.families).strip()


def _draw_comple_norm(run: ShownRun) -> Axes:
    """Where CoMPLe's norm would end up is its closed form: GCPL's over the last fifth of training, by 1 − λ."""
    curves = {}
    for name in ("gcpl", "comple"):
        steps, squares = run.curve(name, "prediction_norm")
        curves[title_of(name)] = (steps, np.sqrt(squares))
    norms, weight = curves[title_of("gcpl")][1], run.by_name["comple"].model.config.contrast_weight
    foreseen = float(norms[-max(1, len(norms) // 5) :].mean()) / (1 - weight)
    label = "norm of the predicted noise\n(true noise = 1)"
    return plots.plot_losses(_axes(11, 6), curves, label, {title_of("comple"): foreseen})


def _draw_timestep_evidence(run: ShownRun) -> Axes:
    errors, labels = run.after.evidence.errors, run.experiment.test.labels
    own = np.take_along_axis(errors, labels[:, None, None], axis=1)[:, 0]
    others = (errors.sum(1) - own) / (errors.shape[1] - 1)
    gaps = (others - own) / errors.mean(1)
    return evidence.plot_timestep_evidence(_axes(11, 6), run.after.evidence.timesteps, {"": gaps})


def _draw_error_map(run: ShownRun) -> Figure:
    experiment, test, model = run.experiment, run.experiment.test, run.after.model
    a, b = most_confused_pair(confusion_matrix(run.after.scores, test.labels))
    with torch.no_grad():
        hidden = experiment.diffusion.encode_prompts(*model.prompts_())
    classifier = DiffusionClassifier(experiment.diffusion, hidden, timestep_range=model.timestep_range)
    figure = style.new_figure(11, 10.5)
    for axes, label in zip(figure.subplots(2, 2), (a, b), strict=True):
        index = int(np.flatnonzero(test.labels == label)[0])
        found = evidence_map(classifier, experiment.test_latents[index], a, b, num_samples=64)
        image = np.asarray(read_images([test.images[index]], experiment.fit)[0])
        evidence.plot_error_map(axes, image, found.numpy(), test.class_names[a], test.class_names[b])
        axes[0].set_title(f"a {test.class_names[label]}")
    return figure


def _draw_samples(run: ShownRun, each: int = 3, labels: Sequence[int] = (), context: str = "figure") -> Figure:
    experiment, support = run.experiment, run.experiment.support
    labels = list(labels or range(len(support.class_names)))
    size, drawn = (experiment.diffusion.image_size,) * 2, []
    for outcome in run.states:
        hidden = conditioning(experiment, outcome)[labels].repeat_interleave(each, 0)
        images = experiment.diffusion.generate(hidden, num_steps=20, guidance=3.0, seed=0)
        drawn.append([np.asarray(image) for image in images])
    blank, rows = np.full((*size, 3), 255, np.uint8), []
    for place, label in enumerate(labels):
        chosen = np.flatnonzero(support.labels == label)[:each]
        real = [np.asarray(image.resize(size)) for image in iter_images(support.subset(chosen).images, experiment.fit)]
        part = slice(place * each, (place + 1) * each)
        rows.append((support.class_names[label], [*real, blank, *drawn[0][part], blank, *drawn[1][part]]))
    figure = evidence.plot_sample_grid(rows, context)
    for place, title in enumerate(("real", "from the name", "learned prompt")):
        figure.axes[place * (each + 1)].set_title(title, fontsize=style.FONT_SIZES[context], pad=6, loc="left")
    return figure


def _draw_samples_narrow(run: ShownRun) -> Figure:
    """The classes that are confused most, for a phone and a slide."""
    counts = confusion_matrix(run.states[0].scores, run.experiment.test.labels)
    wrong = counts.sum(0) + counts.sum(1) - 2 * np.diag(counts)
    return _draw_samples(run, 2, np.sort(np.argsort(-wrong, kind="stable")[:3]).tolist(), "slide")


def _draw_reliability(run: ShownRun) -> Axes:
    chances = run.after.probabilities
    correct = chances.argmax(axis=1) == run.experiment.test.labels
    return evidence.plot_reliability(_axes(7.5, 7.5), chances.max(axis=1), correct, num_bins=NUM_BINS)


def _draw_nearest_words(run: ShownRun) -> Axes:
    found, baseline = {}, 0.0
    for name, vectors in zip(run.experiment.test.class_names, run.after.model.prompts_.vectors.detach(), strict=True):
        best: dict[str, float] = {}
        for near in nearest_words(run.experiment.diffusion, vectors, num_words=3):
            baseline = near.random_similarity
            for word, value in zip(near.words, near.similarities, strict=True):
                best[word] = max(value, best.get(word, -1.0))
        found[name] = sorted(best.items(), key=lambda item: -item[1])[:5]
    return evidence.plot_nearest_words(_axes(11, 1.2 + 0.72 * len(found)), found, baseline)


def _draw_multilabel_tail(run: ShownRun) -> Axes:
    rows = [outcome.row for outcome in run.by_name.values()]
    return multilabel.plot_tail_bars(_axes(10, 4.5), rows, MULTILABEL_TITLES)


def save_caption_hills(found: captions.Arrays, class_names: Sequence[str], folder: str | Path) -> list[ReportFigure]:
    """Write the figure of what ``follow_captions`` found; none where captions are too few."""
    pairs, words = captions.choose_pairs(found) if found else [], WORDS["captions"]["caption_hills"]
    if not pairs:
        return []
    columns, scores = captions.caption_columns(found, class_names, pairs)
    png = plots.save_figure(caption_hills(columns, scores, captions.CONTROLS), folder, "caption_hills")[0]
    return [ReportFigure("caption_hills", words["title"], words["message"], png, words["alt"])]


def _draw_multilabel_classes(run: ShownRun) -> Axes:
    rival = "coop_bce" if "coop_bce" in run.by_name else "linear_probe"
    classes = {name: run.by_name[name].row["classes"] for name in ("zero_shot_clip", rival, "lmpt")}
    ax = _axes(10, 1.4 + 0.42 * len(run.experiment.test.class_names))
    return multilabel.plot_class_precision(ax, classes, MULTILABEL_TITLES)


def _draw_multilabel_prompts(run: ShownRun) -> Figure:
    model = run.by_name["lmpt"].model
    features = model.start_features_, model.objective_.text_features()
    before, after = (prompt_similarity(each[:, None]).numpy() for each in features)
    names = run.experiment.test.class_names
    return evidence.plot_similarity_pair(before, after, names, titles=("before", "after"))


def _draw_multilabel_mistake(run: ShownRun) -> Figure | None:
    """The card of the mistake that was made most surely, if there is any."""
    outcome, train, test = run.by_name["lmpt"], run.experiment.train, run.experiment.test
    wrong = find_mistakes(outcome.probabilities, test.targets, outcome.thresholds)
    if not wrong:
        return None
    image, label = wrong[0]
    mistake = explain_mistake(
        image,
        label,
        probabilities=outcome.probabilities,
        targets=test.targets,
        thresholds=outcome.thresholds,
        feature=run.experiment.test_features[image],
        train_features=run.experiment.views[0],
        train_targets=train.targets,
        class_names=test.class_names,
    )
    neighbours = read_images([train.images[entry["image"]] for entry in mistake.neighbours])
    return multilabel.draw_mistake(mistake, read_image(test.images[image]), neighbours)


def conditioning(experiment: FewShotExperiment, outcome: Outcome) -> torch.Tensor:
    """Hidden states of the class prompts, or of the class names where none were learned, (class, token, dim)."""
    diffusion, names = experiment.diffusion, experiment.test.class_names
    if outcome.model is None:
        return diffusion.encode_texts([PLAIN_TEMPLATE[0].format(name) for name in names])
    prompts = ClassPrompts.of(diffusion, names, outcome.model.prompts_.vectors.detach(), PLAIN_TEMPLATE)
    with torch.no_grad():
        return diffusion.encode_prompts(*prompts())


def most_confused_pair(matrix: np.ndarray) -> tuple[int, int]:
    """The two different classes that are taken for each other most, the more often mistaken first."""
    both = matrix + matrix.T
    np.fill_diagonal(both, -1)
    a, b = (int(place) for place in np.unravel_index(both.argmax(), both.shape))
    return (a, b) if matrix[a, b] >= matrix[b, a] else (b, a)
