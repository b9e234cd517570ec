"""What is made of a finished run: a deck of slides, a hover map, an animation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.experiments.runs import BEFORE, STATES, Run, RunStates, load_states, read_run, title_of
from gcpl_lab.experiments.sentences import LIMITS, QUESTION, SLIDES, answer_of, caveats_of
from gcpl_lab.views import panels, style
from gcpl_lab.views.interactive import journey_frames, map_frames, write_flip_book, write_gif, write_hover_map
from gcpl_lab.views.projection import project, warn_if_flattering
from gcpl_lab.views.slides import MOST_BARS, Bars, Deck, Provenance, Slide, slide_figure, to_slide

MAP_TITLE = "Test images before and after learning"


def make_map(folder: str | Path, method: str = "umap") -> Path:
    """Write ``map.html``: the test images before and after under the mouse."""
    states = load_states(folder)
    return write_hover_map(
        Path(folder) / "map.html",
        states.project(method),
        states.labels,
        states.class_names,
        images=list(states.images),
        predictions=states.predictions,
        probabilities=states.probabilities,
        families=states.families,
        title=MAP_TITLE,
    )


def make_animation(folder: str | Path, method: str = "umap") -> list[Path]:
    """Write ``journey`` (class tokens) and ``before_after`` (test images), each as GIF and flip book."""
    states, place = load_states(folder), Path(folder) / "animation"
    names, families = states.class_names, states.families
    count, classes, _ = states.journey.shape
    placed = project(states.journey.reshape(count * classes, -1), method="pca", seed=states.seed).points["all"]
    journey = journey_frames(placed.reshape(count, classes, 2), states.steps, names, families)
    moved = map_frames(states.project(method), states.labels, names, families)
    paths = "Paths of the learned class tokens on their first two principal components."
    map_alt = "Map of the test images' error profiles, which moves from class names to learned prompts."
    return [
        write_gif(place / "journey.gif", journey),
        write_flip_book(place / "journey.html", journey, title="The way of the class tokens", alt=paths),
        write_gif(place / "before_after.gif", moved),
        write_flip_book(place / "before_after.html", moved, title=MAP_TITLE, alt=map_alt),
    ]


def make_deck(folder: str | Path, theme: str = "light", method: str = "umap") -> list[Path]:
    """Write the deck of a demonstration: question, data, method, before and after, numbers, cost, limits.

    Args:
        folder: Of the run, with ``results.json``; read_run says what is amiss in it.
        theme: ``"light"`` or ``"dark"``.
        method: Of the map.

    Returns:
        ``slides.pptx`` (``slides_dark.pptx``) and the figures beside it.
    """
    run = read_run(folder)
    deck = Deck(_provenance(run), theme)
    for slide in _slides(run, method):
        deck.add(slide)
    return deck.save(run.folder / ("slides.pptx" if theme == "light" else f"slides_{theme}.pptx"))


def _provenance(run: Run) -> Provenance:
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in run.rows.values()}))
    recorded = str(run.results.get("versions", {}).get("gcpl-lab", ""))
    command = str(run.results.get("command", "gcpl-lab demo"))
    if len(command) > 48:  # more would leave no room on a slide; the whole stands in results.json
        command = f"{command[:47]}…"
    version = recorded if recorded[:1].isdigit() else ""
    return Provenance(seeds, run.results["data"]["checksum"], command, version)


def _slide(key: str, shown: Figure | Bars | None = None, **values: Any) -> Slide:
    """The slide with the words under this key; a chart's numbers are its notes, and lines without words are left."""
    words = SLIDES[key]
    if shown is None:
        lines = [line.format(**values) for line in words["message"]]
        return to_slide(None, words["title"], [line for line in lines if line], words["notes"].format(**values))
    notes = "\n".join(shown.words()) if isinstance(shown, Bars) else values["note"]
    return to_slide(shown, words["title"], words["message"].format(**values), notes, alt=words.get("alt"))


def _slides(run: Run, method: str) -> Iterator[Slide]:
    data, said, machine = run.results["data"], SLIDES["method_words"], run.results.get("machine", {})
    count = data["test_size"]
    answer = answer_of(run).replace("; the best simple", ".\nThe best simple")
    yield to_slide(None, QUESTION, answer, "The question and what this run answers.")
    yield _slide("data", **{**data, "num_classes": len(data["classes"]), "classes": ", ".join(data["classes"])})
    objectives = "; ".join(said.get(name, title_of(name)) for name in run.learned)
    baselines = ", ".join(said[name] for name in run.baselines if name in said)
    words = {"objectives": objectives[:1].upper() + objectives[1:], "preset": run.results.get("preset", "unknown")}
    yield _slide("method", baselines=baselines and f"Baselines on the same images: {baselines}", **words)
    if BEFORE in run.rows:
        gain = 100 * (run.accuracy[run.best] - run.accuracy[BEFORE])
        shares = {name: run.accuracy[name] for name in (BEFORE, *run.learned)}
        yield _slide("gain", _bars(shares, "accuracy", count=count), gain=gain)
    if (run.folder / STATES).is_file():
        figure, note = _draw_map(load_states(run.folder), method)
        yield _slide("map", figure, note=note)
    # What the deck is about stays; of the rest, the best ones have room.
    order = sorted(run.rows, key=lambda name: (name in run.baselines, -run.accuracy[name]))
    absent = ", ".join(title_of(name) for name in order[MOST_BARS:])
    bars = _bars({name: run.accuracy[name] for name in order[:MOST_BARS]}, "accuracy", count=count)
    yield _slide("accuracy", bars, count=count, absent=absent and f" Not shown: {absent}.")
    where = [machine.get("processor", "this machine"), f"{machine.get('cores', '?')} cores", machine.get("device", "")]
    bars = _bars({name: run.seconds(name) for name in run.rows}, "training and classifying", "s")
    yield _slide("cost", bars, count=count, machine=", ".join(where))
    if scenes := run.results.get("multilabel"):
        bars = _bars({row["name"]: float(row["map"]) for row in scenes["methods"]}, "mean average precision")
        yield _slide("scenes", bars, count=scenes["data"]["test_size"])
    if caveats := caveats_of(run):
        yield to_slide(None, "What does not hold", caveats, "Claims that this run does not bear out.")
    yield to_slide(None, "Limits", LIMITS, "What these numbers do not say.")


def _bars(values: Mapping[str, float], axis: str, unit: str = "%", count: int | None = None) -> Bars:
    """The largest first; with intervals where the values are shares of ``count`` images."""
    names = sorted(values, key=lambda name: -values[name])[:MOST_BARS]
    titles, shown = [title_of(name) for name in names], [values[name] for name in names]
    if count is None:
        return Bars(titles, shown, unit=unit, axis=axis)
    ends = [share_with_interval(round(share * count), count) for share in shown]
    return Bars(titles, shown, [end.low for end in ends], [end.high for end in ends], unit, axis)


def _draw_map(states: RunStates, method: str) -> tuple[Figure, str]:
    """Both states in one window with a key beside them, in letters for a slide; and what to say about the map."""
    projection, names, families = states.project(method), states.class_names, states.families
    with style.figure_style("slide"):
        figure = slide_figure()
        for ax, (name, points) in zip(figure.subplots(1, 2), projection.points.items(), strict=True):
            panels.scatter_classes(ax, points, states.labels, names, families)
            panels.set_window(ax, panels.square_window(projection.points.values()))
            ax.set_title(name)
        mark: dict[str, Any] = {"linestyle": "", "markeredgecolor": style.INK, "markersize": 11}
        handles = [
            Line2D([], [], color=color, marker=marker, label=style.label_text(name, 14), **mark)
            for name, (color, marker) in style.class_style(names, families).items()
        ]
        figure.legend(handles=handles, loc="outside right center", frameon=False, labelspacing=0.25, handletextpad=0.2)
        figure.draw_without_rendering()
    warning = warn_if_flattering(projection, states.profiles, states.labels) or "The map does not flatter its classes."
    return figure, f"{projection.describe()} {warning}"
