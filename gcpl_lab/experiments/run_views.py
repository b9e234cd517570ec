"""What is made of a finished run: a deck of slides, a hover map, an animation.

A demonstration keeps the states that its maps stand on in ``states.safetensors``, so that other views of the same
run need neither the models nor another pass over the photographs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import read_json, read_tensors, write_tensors

if TYPE_CHECKING:
    from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
    from gcpl_lab.views.projection import Projection
    from gcpl_lab.views.slides import Deck, Provenance

STATES = "states.safetensors"
THUMBNAIL = 48
STATE_NAMES = {"before": "Before: class names", "after": "After: learned prompts"}


@dataclass(frozen=True)
class RunStates:
    """The points of a run's maps.

    Attributes:
        profiles: State name to error profiles, float (image, dim).
        predictions: State name to predicted class, (image,).
        probabilities: State name to the probability of that class, (image,).
        labels: (image,).
        images: uint8 (image, height, width, channel).
        journey: Class vectors on their way, (step, class, dim).
        steps: (step,), numbers of updates.
        class_names: (class,).
        families: Family name to class names.
        seed: Of the run.
    """

    profiles: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    probabilities: dict[str, np.ndarray]
    labels: np.ndarray
    images: np.ndarray
    journey: np.ndarray
    steps: list[int]
    class_names: list[str]
    families: dict[str, list[str]]
    seed: int

    def project(self, method: str) -> Projection:
        """Both states on one map."""
        from gcpl_lab.views.projection import project

        return project({STATE_NAMES[name]: values for name, values in self.profiles.items()}, method, self.seed)


def keep_states(experiment: FewShotExperiment, outcomes: Sequence[Outcome], folder: str | Path) -> Path:
    """Write what maps, slides and animations of this run need.

    Args:
        experiment: The data.
        outcomes: Zero-shot diffusion, GCPL and the discriminative objective among them.
        folder: Of the run.
    """
    import torch

    from gcpl_lab.data.readers import read_image
    from gcpl_lab.evaluation.separation import profile_points
    from gcpl_lab.experiments.reports import AFTER, BEFORE

    by_name, test = {outcome.method: outcome for outcome in outcomes}, experiment.test
    tensors = {"labels": torch.from_numpy(np.asarray(test.labels))}
    for state, outcome in (("before", by_name[BEFORE]), ("after", by_name[AFTER])):
        assert outcome.evidence is not None
        chances = np.asarray(outcome.probabilities, dtype=np.float32)
        tensors[f"profiles.{state}"] = torch.from_numpy(
            np.asarray(profile_points(outcome.evidence.errors), dtype=np.float32)
        )
        tensors[f"predictions.{state}"] = torch.from_numpy(chances.argmax(axis=1))
        tensors[f"probabilities.{state}"] = torch.from_numpy(chances.max(axis=1))
    learned, tuned = by_name["gcpl"].model, by_name[AFTER].model
    assert learned is not None
    assert tuned is not None
    last = max(learned.states_)
    states = learned.states_ | {last + step: vectors for step, vectors in tuned.states_.items() if step}
    steps = sorted(states)
    tensors["journey"] = torch.stack([states[step] for step in steps]).flatten(2).float()
    small = [np.asarray(read_image(image).resize((THUMBNAIL, THUMBNAIL))) for image in test.images]
    tensors["images"] = torch.from_numpy(np.stack(small))
    facts = {
        "steps": steps,
        "class_names": list(test.class_names),
        "seed": by_name[AFTER].seed,
        "families": {name: list(members) for name, members in test.families.items()},
    }
    return write_tensors(Path(folder) / STATES, tensors, {"facts": json.dumps(facts)})


def load_states(folder: str | Path) -> RunStates:
    """Read what ``keep_states`` wrote.

    Raises:
        ArtifactError: The folder has no states, or they are damaged.
    """
    path = Path(folder) / STATES
    if not path.is_file():
        raise ArtifactError(f"{folder}: holds no {STATES}; run gcpl-lab demo again with this version, which keeps it")
    tensors, header = read_tensors(path)
    try:
        facts = json.loads(header["facts"])
        parts: dict[str, Any] = {
            part: {state: tensors[f"{part}.{state}"].numpy() for state in STATE_NAMES}
            for part in ("profiles", "predictions", "probabilities")
        }
        return RunStates(
            **parts,
            labels=tensors["labels"].numpy(),
            images=tensors["images"].numpy(),
            journey=tensors["journey"].numpy(),
            **facts,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: is incomplete or of another version ({error}); run the demo again") from error


# -------------------------------------------------------------------------------------- map and animation


def make_map(folder: str | Path, method: str = "umap") -> Path:
    """Write ``map.html``: the test photographs before and after under the mouse."""
    from gcpl_lab.views.hover import write_hover_map

    states, folder = load_states(folder), Path(folder)

    def named(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {STATE_NAMES[name]: column for name, column in values.items()}

    return write_hover_map(
        folder / "map.html",
        states.project(method),
        states.labels,
        states.class_names,
        images=list(states.images),
        predictions=named(states.predictions),
        probabilities=named(states.probabilities),
        families=states.families,
        title="Test photographs before and after learning",
    )


def make_animation(folder: str | Path, method: str = "umap") -> list[Path]:
    """Write ``journey`` (class tokens) and ``before_after`` (test photographs), each as GIF and flip book."""
    from gcpl_lab.views.animation import journey_frames, map_frames, write_flip_book, write_gif
    from gcpl_lab.views.projection import project

    states, folder = load_states(folder), Path(folder)
    count, classes, _ = states.journey.shape
    placed = project(states.journey.reshape(count * classes, -1), method="pca", seed=states.seed).points["all"]
    journey = journey_frames(placed.reshape(count, classes, 2), states.steps, states.class_names, states.families)
    moved = map_frames(states.project(method), states.labels, states.class_names, states.families)
    written = []
    for name, frames, title, alt in (
        (
            "journey",
            journey,
            "The way of the class tokens",
            "Paths of the learned class tokens on their first two principal components.",
        ),
        (
            "before_after",
            moved,
            "Test photographs before and after learning",
            "Map of the test photographs' error profiles, which moves from class names to learned prompts.",
        ),
    ):
        written.append(write_gif(folder / "animation" / f"{name}.gif", frames))
        written.append(write_flip_book(folder / "animation" / f"{name}.html", frames, title=title, alt=alt))
    return written


# ------------------------------------------------------------------------------------------------ slides


def make_deck(folder: str | Path, theme: str = "light", method: str = "umap") -> list[Path]:
    """Write the deck of a demonstration: question, data, method, before and after, numbers, cost, limits.

    Args:
        folder: Of the run, with ``results.json``.
        theme: ``"light"`` or ``"dark"``.
        method: Of the map.

    Returns:
        ``slides.pptx`` (``slides_dark.pptx``) and the pictures beside it.

    Raises:
        ArtifactError: The folder holds no results of a demonstration.
    """
    from gcpl_lab.views.slides import Deck

    folder = Path(folder)
    results = read_json(folder / "results.json")
    rows = _rows_of(results, folder)
    deck = Deck(_provenance(results, rows), theme)
    _add_question(deck, results, folder)
    _add_method(deck, results)
    _add_before_after(deck, results, folder, rows, method)
    _add_numbers(deck, results, rows)
    _add_limits(deck, results, folder)
    return deck.save(folder / ("slides.pptx" if theme == "light" else f"slides_{theme}.pptx"))


def _rows_of(results: Any, folder: Path) -> dict[str, dict[str, Any]]:
    from gcpl_lab.experiments.few_shot import GENERATIVE_METHODS
    from gcpl_lab.experiments.reports import BEFORE

    try:
        rows = {row["name"]: row for row in results["methods"]}
        missing = [name for name in (*GENERATIVE_METHODS, BEFORE) if name not in rows]
        results["data"]["checksum"]
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{folder / 'results.json'}: is not of a demonstration ({error} is missing)") from error
    if missing:
        raise ArtifactError(
            f"{folder / 'results.json'}: has no {', '.join(missing)}; expected the results of gcpl-lab demo"
        )
    return rows


def _provenance(results: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> Provenance:
    from gcpl_lab.views.slides import Provenance

    seeds = sorted({row["seed"] for row in rows.values()})
    recorded = str(results.get("versions", {}).get("gcpl-lab", ""))
    version = recorded if recorded[:1].isdigit() else ""
    command = str(results.get("command", "gcpl-lab demo"))
    # A long command would leave no room; it is whole in results.json.
    command = command if len(command) <= 48 else f"{command[:47]}…"
    return Provenance(", ".join(map(str, seeds)), results["data"]["checksum"], command, version)


def _outcomes(results: Mapping[str, Any]) -> list[Outcome]:
    from gcpl_lab.experiments.few_shot import Outcome

    empty = np.zeros((0, 0))
    return [Outcome(row["name"], row.get("shots", 0), row["seed"], empty, empty, row) for row in results["methods"]]


def _add_question(deck: Deck, results: Mapping[str, Any], folder: Path) -> None:
    from gcpl_lab.experiments.demo import QUESTION
    from gcpl_lab.experiments.reports import answer_of
    from gcpl_lab.views.slides import to_slide

    data = results["data"]
    deck.add(
        to_slide(
            None,
            QUESTION,
            answer_of(_outcomes(results)).replace("; ", ".\n").replace("the best simple", "The best simple"),
            "The question and what this run answers.",
        )
    )
    lines = [
        f"{data['shots']} photographs of each of {len(data['classes'])} classes to learn from",
        f"{data['test_size']} other photographs to test on; nothing was chosen on them",
        f"Classes: {', '.join(data['classes'])}",
        f"Data set: {data['name']}",
    ]
    deck.add(to_slide(None, "The data", lines, f"Checksum of the test photographs: {data['checksum']}."))


def _add_method(deck: Deck, results: Mapping[str, Any]) -> None:
    from gcpl_lab.views.slides import to_slide

    lines = [
        "The diffusion model and CLIP stay as they are; only a few vectors a class are learned",
        "A photograph is noised, and denoised once for each class prompt",
        "The class whose prompt denoises best is the answer",
        "GCPL lowers the own class's error; CoMPLe adds a contrast; the discriminative objective trains the ranking",
        "Baselines on the same photographs: class names, linear probe, CoOp, Tip-Adapter",
    ]
    notes = "GCPL and CoMPLe: Chattopadhyay et al., BMVC 2024. Diffusion classifier: Li et al., ICCV 2023."
    deck.add(to_slide(None, "The method", lines, f"{notes} Frozen models: {results.get('preset', 'unknown')}."))


def _bars(rows: Sequence[Mapping[str, Any]], count: int) -> Any:
    from gcpl_lab.experiments.few_shot import METHOD_TITLES
    from gcpl_lab.experiments.reports import wilson_interval
    from gcpl_lab.views.slides import Bars

    ordered = sorted(rows, key=lambda row: -row["accuracy"])
    ends = [wilson_interval(row["accuracy"], count) for row in ordered]
    return Bars(
        [METHOD_TITLES.get(row["name"], row["name"]) for row in ordered],
        [row["accuracy"] for row in ordered],
        [low for low, _ in ends],
        [high for _, high in ends],
    )


def _add_before_after(
    deck: Deck, results: Mapping[str, Any], folder: Path, rows: Mapping[str, dict[str, Any]], method: str
) -> None:
    from gcpl_lab.experiments.few_shot import GENERATIVE_METHODS
    from gcpl_lab.experiments.reports import BEFORE
    from gcpl_lab.views.slides import to_slide

    best = max(GENERATIVE_METHODS, key=lambda name: rows[name]["accuracy"])
    gain = 100 * (rows[best]["accuracy"] - rows[BEFORE]["accuracy"])
    bars = _bars([rows[BEFORE], *(rows[name] for name in GENERATIVE_METHODS)], results["data"]["test_size"])
    message = f"The best learned prompts change accuracy by {gain:+.1f} points; lines are 95 % intervals."
    deck.add(to_slide(bars, "Before and after: numbers", message, "\n".join(bars.words())))
    if (folder / STATES).is_file():
        states = load_states(folder)
        figure, note = _draw_map(states, method)
        message = (
            "Each mark is a test photograph, placed by how well every class prompt denoises it. One map for both "
            "states; trust the numbers before the map."
        )
        alt = "Two maps of the test photographs, before learning with class names and after with learned prompts."
        deck.add(to_slide(figure, "Before and after: map", message, note, alt=alt))


def _draw_map(states: RunStates, method: str) -> tuple[Any, str]:
    """Both states in one window with a key between them, in letters for a slide; and what to say about the map."""
    from matplotlib.lines import Line2D

    from gcpl_lab.views import style
    from gcpl_lab.views.projection import warn_if_flattering
    from gcpl_lab.views.slides import slide_figure

    projection = states.project(method)
    looks = style.class_style(states.class_names, states.families)
    everything = np.concatenate(list(projection.points.values()))
    low, high = everything.min(axis=0), everything.max(axis=0)
    margin = 0.05 * np.maximum(high - low, 1e-9)
    with style.figure_style("slide"):
        figure = slide_figure()
        for ax, (name, points) in zip(figure.subplots(1, 2), projection.points.items(), strict=True):
            for place, (color, marker) in enumerate(looks.values()):
                x, y = points[states.labels == place].T
                ax.scatter(x, y, s=40, c=color, marker=marker, alpha=0.85, edgecolors=style.INK, linewidths=0.3)
            ax.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
            ax.set(xticks=[], yticks=[], title=name)
            ax.spines[:].set_visible(True)
        handles = [
            Line2D(
                [],
                [],
                linestyle="",
                marker=marker,
                color=color,
                markeredgecolor=style.INK,
                markersize=11,
                label=style.label_text(name, 14),
            )
            for name, (color, marker) in looks.items()
        ]
        figure.legend(handles=handles, loc="outside right center", frameon=False, labelspacing=0.25, handletextpad=0.2)
        figure.draw_without_rendering()
    original = {STATE_NAMES[name]: values for name, values in states.profiles.items()}
    warning = warn_if_flattering(projection, original, states.labels) or "The map does not flatter its classes."
    trust = ", ".join(f"{name} {value:.2f}" for name, value in projection.trustworthiness.items())
    return figure, f"{projection.note}; seed {projection.seed}; trustworthiness: {trust}. {warning}"


def _add_numbers(deck: Deck, results: Mapping[str, Any], rows: Mapping[str, dict[str, Any]]) -> None:
    from gcpl_lab.experiments.few_shot import GENERATIVE_METHODS, METHOD_TITLES
    from gcpl_lab.experiments.multilabel import MULTILABEL_TITLES
    from gcpl_lab.experiments.reports import BEFORE
    from gcpl_lab.views.slides import MOST_BARS, Bars, to_slide

    count = results["data"]["test_size"]
    # What the deck is about stays; of the rest, the best ones have room.
    order = sorted(rows, key=lambda name: (name not in (*GENERATIVE_METHODS, BEFORE), -rows[name]["accuracy"]))
    bars = _bars([rows[name] for name in order[:MOST_BARS]], count)
    message = (
        f"Accuracy on {count} test photographs; lines are 95 % intervals. Where they overlap widely, no order holds."
    )
    if absent := [METHOD_TITLES.get(name, name) for name in order[MOST_BARS:]]:
        message += f" Not shown: {', '.join(absent)}."
    deck.add(to_slide(bars, "Every method on the same photographs", message, "\n".join(bars.words())))
    costs = {name: row["train_seconds"] + row["predict_seconds"] for name, row in rows.items()}
    dearest = sorted(costs, key=lambda name: -costs[name])[:MOST_BARS]
    seconds = Bars(
        [METHOD_TITLES.get(name, name) for name in dearest],
        [costs[name] for name in dearest],
        unit="s",
        axis="training and classifying",
    )
    machine = results.get("machine", {})
    where = (
        f"{machine.get('processor', 'this machine')}, {machine.get('cores', '?')} cores, {machine.get('device', '')}"
    )
    message = f"Seconds to learn and to classify {count} photographs on {where}. Encoding them is not counted."
    deck.add(to_slide(seconds, "What it costs", message, "\n".join(seconds.words())))
    scenes = results.get("multilabel")
    if scenes:
        ordered = sorted(scenes["methods"], key=lambda row: -row["map"])[:MOST_BARS]
        means = Bars(
            [MULTILABEL_TITLES.get(row["name"], row["name"]) for row in ordered],
            [row["map"] for row in ordered],
            axis="mean average precision",
        )
        message = (
            f"Mean average precision on {scenes['data']['test_size']} scenes. One seed: the spread is not known; "
            "gcpl-lab ablate lmpt measures it."
        )
        deck.add(to_slide(means, "Several things in one picture", message, "\n".join(means.words())))


def _add_limits(deck: Deck, results: Mapping[str, Any], folder: Path) -> None:
    from gcpl_lab.experiments.demo import LIMITS
    from gcpl_lab.experiments.reports import caveats_of
    from gcpl_lab.views.slides import to_slide

    weight = read_json(folder / "prompts" / "comple" / "prompts.json")["config"]["contrast_weight"]
    caveats = caveats_of(_outcomes(results), weight)
    if caveats:
        deck.add(to_slide(None, "What does not hold", caveats, "Claims that this run does not bear out."))
    deck.add(to_slide(None, "Limits", LIMITS, "What these numbers do not say."))
