"""The deck of a run: one message a slide, said by its title with the run's own numbers; the notes are a talk track."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.evaluation.look_alikes import pair_statistics, share_in_own_sector
from gcpl_lab.evaluation.metrics import confusion_matrix
from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.experiments import captions, labels, pictures
from gcpl_lab.experiments.look_alikes import LookAlikes
from gcpl_lab.experiments.multilabel import MULTILABEL_TITLES as TITLES
from gcpl_lab.experiments.registry import BEFORE, title_of
from gcpl_lab.experiments.runs import RESULTS, STATES, Run, RunStates, load_states, read_run
from gcpl_lab.experiments.sentences import (
    QUESTION,
    SLIDES,
    answer_of,
    caveats_of,
    labels_answer,
    limits_of,
    scenes_caveats,
)
from gcpl_lab.storage import read_json
from gcpl_lab.views import panels, style
from gcpl_lab.views.decision_map import decision_row
from gcpl_lab.views.diagrams import draw_cards, draw_gcpl, draw_lmpt
from gcpl_lab.views.evidence import plot_confusion
from gcpl_lab.views.hills import beside_controls, caption_key, draw_caption_hills, draw_hills
from gcpl_lab.views.multilabel import draw_answers, plot_class_precision
from gcpl_lab.views.panels import Looks
from gcpl_lab.views.plots import plot_held_out, plot_prompt_cosines
from gcpl_lab.views.score_strip import ScoreMap, class_key, draw_score_map
from gcpl_lab.views.slides import MOST_BARS, Bars, Deck, Provenance, Slide, slide_figure, to_slide

OFFSETS = "diffusion_offsets"
MOST_PHOTOGRAPHS = 12
MOST_CONFUSED = 6
MOST_CAVEATS = 2
MOST_LABELS = 8


def make_deck(folder: str | Path, theme: str = "light", method: str = "umap") -> list[Path]:
    """Write the deck of what is shown of a run.

    Args:
        folder: With ``results.json``; read_run says what is amiss in it.
        theme: ``"light"`` or ``"dark"``.
        method: Of the map of probabilities.

    Returns:
        ``slides.pptx`` (``slides_dark.pptx``) and the figures beside it.
    """
    folder = Path(folder)
    if (folder / labels.LABELS).is_file():
        results = read_json(folder / RESULTS)
        slides = _label_slides(results, labels.load_labels(folder), folder / labels.SHOWN, theme)
    else:
        run = read_run(folder)
        results = run.results
        slides = _slides(run, load_states(folder) if (folder / STATES).is_file() else None, theme, method)
    deck = Deck(provenance_of(results), theme)
    for slide in slides:
        deck.add(slide)
    return deck.save(folder / ("slides.pptx" if theme == "light" else f"slides_{theme}.pptx"))


def provenance_of(results: Mapping[str, Any]) -> Provenance:
    seeds = sorted({row["seed"] for row in results["methods"]})
    several = f"{seeds[0]}–{seeds[-1]}" if len(seeds) > 2 else ", ".join(map(str, seeds))
    recorded = str(results.get("versions", {}).get("gcpl-lab", ""))
    command = str(results.get("command", "gcpl-lab demo"))
    return Provenance(several, results["data"]["checksum"], command, recorded if recorded[:1].isdigit() else "")


def _slide(key: str, shown: Figure | Bars | Path | None, **values: Any) -> Slide:
    """The slide with the words under this key; its alt text begins with the message."""
    words = SLIDES[key]
    title, message = (
        re.sub(r"\B-(?=\d)", "\N{MINUS SIGN}", words[part].format(**values)) for part in ("title", "message")
    )
    notes = "\n\n".join(words[part].format(**values) for part in ("say", "asked", "numbers") if part in words)
    drawn = words.get("alt", "").format(**values)
    if isinstance(shown, Bars):
        drawn, notes = f"Bar chart: {'; '.join(shown.words())}.", f"{notes}\n\n" + "\n".join(shown.words())
    return to_slide(shown, title, message, notes, alt=f"{title}. {drawn}" if drawn else None)


def _slides(run: Run, states: RunStates | None, theme: str, method: str) -> Iterator[Slide]:
    data, count = run.results["data"], run.results["data"]["test_size"]
    facts = {**data, "num_classes": len(data["classes"]), "answer": answer_of(run), "question": QUESTION}
    facts |= {"best": title_of(run.best), "share": run.accuracy[run.best], "count": count}
    if states is not None:
        yield _slide("opening", _photographs(states), **facts)
        if hook := _hook(states):
            yield _slide("hook", hook[0], **facts, **hook[1])
    yield _slide("method", draw_gcpl(theme, slide=True), **facts, preset=run.results.get("preset", "unknown"))
    figures = run.folder / "figures"  # that of an earlier run has but the large one
    if samples := [*figures.glob("samples_narrow.png"), *figures.glob("samples.png")]:
        yield _slide("samples", samples[0], **facts)
    if states is not None:
        confusions, values = _confusions(states)
        yield _slide("confusion", confusions, **values)
        yield from _look_alike_slides(states, method)
    yield from _numbers(run, facts)
    if scenes := run.results.get("multilabel"):
        yield from _scenes(scenes, run.folder / "multilabel", theme)
    yield from _end(caveats_of(run), limits_of(run.results), theme)


def _end(caveats: Sequence[str], limits: Sequence[str], theme: str, kind: str = "") -> Iterator[Slide]:
    """What does not hold, and what comes next."""
    cards = [*(("Not borne out", caveat) for caveat in caveats[:MOST_CAVEATS]), *SLIDES[f"{kind}limits"]["cards"]]
    beside = {"num_claims": len(caveats), "listed": "\n".join([*caveats, *limits])}
    yield _slide(f"{kind}limits", draw_cards(cards, theme), **beside, drawn=" ".join(words for _, words in cards))
    steps = SLIDES[f"{kind}next"]["cards"]
    yield _slide(f"{kind}next", draw_cards(steps, theme, flow=True), drawn=" ".join(words for _, words in steps))


def _label_slides(results: Mapping[str, Any], states: labels.LabelStates, folder: Path, theme: str) -> Iterator[Slide]:
    """The deck of one run of images with several labels."""
    rows = {row["name"]: row for row in results["methods"]}
    facts = {**results["data"], **results["measured"]["map"], "answer": labels_answer(results)}
    with _drawn() as figure:
        draw_answers(figure, states.drawn(2))
    yield _slide("labels_opening", figure, names=rows["zero_shot_clip"]["map"], **facts)
    yield from _scenes(results, folder, theme)
    yield _classes(rows)
    if shown := states.mistakes(2):
        with _drawn() as figure:
            draw_answers(figure, shown)
        wrong = int(((states.probabilities["after"] >= states.thresholds["after"]) != states.targets).sum())
        values = {"wrong": wrong, "decisions": states.targets.size, "count": len(states.targets)}
        yield _slide("labels_mistakes", figure, **values)
    yield from _end(scenes_caveats(results["methods"]), limits_of(results, "labels"), theme, "labels_")


def _classes(rows: Mapping[str, Mapping[str, Any]]) -> Slide:
    """Average precision of every label, or of the most frequent and the rarest where there are more than fit."""
    classes = {name: rows[name]["classes"] for name in ("zero_shot_clip", "lmpt")}
    known = [place for place, row in enumerate(classes["lmpt"]) if row["average_precision"] is not None]
    order = sorted(known, key=lambda place: -classes["lmpt"][place]["num_train"])
    ends = order if len(order) <= MOST_LABELS else [*order[: MOST_LABELS // 2], *order[-MOST_LABELS // 2 :]]
    which = "every label" if ends == order else f"the {MOST_LABELS // 2} most frequent and the rarest labels"
    with _drawn() as figure:
        ax = figure.subplots()
        plot_class_precision(ax, {name: [rows[place] for place in ends] for name, rows in classes.items()}, TITLES)
        ax.set_xlabel("average precision")
    ranked = sorted((classes["lmpt"][place] for place in order), key=lambda row: row["average_precision"])
    values: dict[str, Any] = {"which": which}
    for end, row in (("worst", ranked[0]), ("best", ranked[-1])):
        values |= {end: style.shortened(row["name"], 16), f"{end}_share": row["average_precision"]}
    return _slide("labels_classes", figure, **values)


@contextmanager
def _drawn() -> Iterator[Figure]:
    """A figure of a slide's size in a slide's letters."""
    with style.figure_style("slide"):
        yield slide_figure()


def _images(states: RunStates, rows: Mapping[str, np.ndarray]) -> Figure:
    """Rows of images, by what they are called and their places."""
    shown = [(words, [states.images[place] for place in places[:MOST_PHOTOGRAPHS]]) for words, places in rows.items()]
    with _drawn() as figure:
        panels.image_rows(figure, shown, max(len(images) for _, images in shown))
    return figure


def _photographs(states: RunStates) -> Figure:
    """Test images of the hardest look-alikes, a row a class: what the talk is about."""
    found = states.look_alikes
    classes = pictures.hardest_pair(found)[0] if found else states.class_names[:3]
    return _images(states, {n: np.flatnonzero(states.labels == states.class_names.index(n)) for n in classes})


def _hook(states: RunStates) -> tuple[Figure, dict[str, Any]] | None:
    """The mistake that learning mended most, in photographs; None where it mended none."""
    before, after = list(states.predictions.values())
    matrices = [_counts(states, predicted) for predicted in (before, after)]
    mended = np.where(np.eye(len(matrices[0]), dtype=bool), 0, matrices[0] - matrices[1])
    if mended.max() < 1:
        return None
    true, called = np.unravel_index(int(mended.argmax()), mended.shape)
    wrong = np.flatnonzero((states.labels == true) & (before == called))
    names = states.class_names
    rows = {f"now: {names[true]}": wrong[after[wrong] == true], "still wrong": wrong[after[wrong] != true]}
    values: dict[str, Any] = {"of": int((states.labels == true).sum())}
    values |= {"true": style.shortened(names[true], 16), "called": style.shortened(names[called], 16)}
    values |= {"before": int(matrices[0][true, called]), "after": int(matrices[1][true, called])}
    values |= {"right_before": int(matrices[0][true, true]), "right_after": int(matrices[1][true, true])}
    return _images(states, {words: places for words, places in rows.items() if len(places)}), values


def _counts(states: RunStates, predicted: np.ndarray) -> np.ndarray:
    return confusion_matrix(np.eye(len(states.class_names))[predicted], states.labels)


def _confusions(states: RunStates) -> tuple[Figure, dict[str, Any]]:
    """Counts before and after, of the classes that are confused most where there are more than a slide holds."""
    matrices = {name: _counts(states, predicted) for name, predicted in states.predictions.items()}
    first = next(iter(matrices.values()))
    off = first - np.diag(np.diag(first))
    chosen = np.sort(np.argsort(-(off.sum(0) + off.sum(1)), kind="stable")[:MOST_CONFUSED])
    names = [states.class_names[place] for place in chosen]
    with _drawn() as figure:
        for ax, (title, matrix) in zip(figure.subplots(1, 2), matrices.items(), strict=True):
            plot_confusion(ax, matrix[np.ix_(chosen, chosen)], names)
            ax.set_title(title)
    wrong = [int(matrix.sum() - np.trace(matrix)) for matrix in matrices.values()]
    return figure, {"before": wrong[0], "after": wrong[1], "count": len(states.labels), "num_shown": len(names)}


def _look_alike_slides(states: RunStates, method: str) -> Iterator[Slide]:
    found = states.look_alikes
    if found is None:
        return
    keys, controls = pictures.shown_keys(found)
    keys, looks = [keys[0], found.last(found.tracked), *controls], pictures.looks_of(states)
    titles = [pictures.caption_of(found, key) for key in controls]
    for classes in pictures.triples(found)[:2]:
        judged = {pictures.caption_of(found, key): found.judged(key, classes) for key in keys}
        with _drawn() as figure:
            decision_row(figure, judged, classes, looks, titles, rings=(), aside=True)
        shares = [share_in_own_sector(*one).value for one in judged.values()]
        values: dict[str, Any] = {"before": shares[0], "after": shares[1]}
        values["classes"] = ", ".join(style.shortened(name, 16) for name in classes)
        values["control"] = f" With shuffled labels it is {shares[2]:.0%}." if len(shares) > 2 else ""
        yield _slide("decision_map", figure, **values)
    if scored := pictures.run_score_map(states, method):
        yield _strip(*scored, looks)
    classes, pair = pictures.hardest_pair(found)
    columns = pictures.hills_of(found, classes, pair)
    names = classes[pair[0]], classes[pair[1]]
    chosen = {title_of(found.tracked), *(name for name in columns if name.startswith(pictures.CONTROL_WORDS))}
    with _drawn() as figure:
        shown = {name: ridges for name, ridges in columns.items() if name in chosen}
        for ax, (name, ridges) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
            ends = {row: ridges[row] for row in (pictures.NAMES, pictures.END) if row in ridges}
            draw_hills(ax, ends, names, looks)
            ax.set_title(name, loc="center")
    apart = [pair_statistics(*hills) for hills in columns[title_of(found.tracked)].values()]
    told = beside_controls(shown, chosen - {title_of(found.tracked)})  # shuffled labels may part the pair, too
    values = {"before": apart[0], "after": apart[-1], "control": told}
    a, b = (style.shortened(name, 16) for name in names)
    yield _slide("pair_hills", figure, a=a, b=b, **values)
    yield _prompts_and_images(found)


def _strip(scored: ScoreMap, controls: Sequence[str], looks: Looks) -> Slide:
    """One map of probabilities: the first state, one on the way, the last, and the control."""
    way = [name for name in scored.probabilities if name not in controls]
    shown = [*dict.fromkeys((way[0], way[len(way) // 2], way[-1])), *controls]
    with _drawn() as figure:
        right = [share_in_own_sector(scored.probabilities[name], scored.labels) for name in shown]
        for ax, name, share in zip(figure.subplots(1, len(shown)), shown, right, strict=True):
            draw_score_map(ax, scored, name, looks).set_title(style.wrap_lines(name, 2.9, 18), size=18, loc="center")
            ax.set_xlabel(f"{share.value:.0%} ({100 * share.low:.0f}\N{EN DASH}{share.high:.0%})", weight="bold")
        class_key(figure, scored.class_names, looks)
    values = {"before": right[0].value, "after": right[shown.index(way[-1])].value}
    return _slide("strip", figure, num_images=len(scored.labels), **values)


def _prompts_and_images(found: LookAlikes) -> Slide:
    """Of two learned methods and the control, so that names have room."""
    curves, shares, shuffles, chance, classes = pictures.prompts_beside_images(found)
    chosen = [*list(curves)[:2], found.title(pictures.FIRST)]
    curves = {name: curve for name, curve in curves.items() if name in chosen}
    shares = {name: points for name, points in shares.items() if name in chosen}
    with _drawn() as figure:
        left, right = figure.subplots(1, 2)
        plot_prompt_cosines(left, curves, shuffles).set_ylabel("mean cosine")
        plot_held_out(right, shares, chance).set_ylabel("in own sector")
    tracked = title_of(found.tracked)
    cosines, right_shares = curves[tracked][1], [point[1] for point in shares[tracked]]
    values = {"start": cosines[0], "end": cosines[-1], "before": right_shares[0], "after": right_shares[-1]}
    return _slide("prompts_and_images", figure, classes=classes, **values)


def _numbers(run: Run, facts: Mapping[str, Any]) -> Iterator[Slide]:
    """Two steps from names to learned words, every method, and the cost."""
    count, share = facts["count"], run.accuracy
    if BEFORE in share:
        steps = [name for name in (BEFORE, OFFSETS, run.best) if name in share]
        base = share.get(OFFSETS, share[BEFORE])
        values: dict[str, Any] = {"names": share[BEFORE], "base": base, "gain": 100 * (share[run.best] - base)}
        with_offsets = f"Offsets alone bring names to {base:.1%}; " if OFFSETS in share else "Beside names, "
        yield _slide("gain", _bars({name: share[name] for name in steps}, count), **facts, **values, start=with_offsets)
    # What the deck is about stays; of the rest, the best ones have room.
    order = sorted(run.rows, key=lambda name: (name in run.baselines, -share[name]))
    absent = ", ".join(title_of(name) for name in order[MOST_BARS:])
    bars = _bars({name: share[name] for name in order[:MOST_BARS]}, count)
    simple = max(run.baselines, key=share.__getitem__, default=run.best)
    values = {"simple": title_of(simple), "simple_share": share[simple], "absent": absent and f" Not shown: {absent}."}
    yield _slide("accuracy", bars, **facts, **values)
    machine = run.results.get("machine", {})
    where = [machine.get("processor", "this machine"), f"{machine.get('cores', '?')} cores", machine.get("device", "")]
    seconds = {name: run.seconds(name) for name in order[:MOST_BARS]}
    values = {"machine": ", ".join(part for part in where if part), "seconds": run.seconds(run.best)}
    values |= {"simple": title_of(simple), "simple_seconds": run.seconds(simple)}
    seconds = dict(sorted(seconds.items(), key=lambda pair: -pair[1]))
    bars = Bars([title_of(name) for name in seconds], list(seconds.values()), unit="s", axis="seconds")
    yield _slide("cost", bars, **facts, **values)


def _scenes(scenes: Mapping[str, Any], folder: Path, theme: str) -> Iterator[Slide]:
    rows = {row["name"]: float(row["map"]) for row in scenes["methods"]}
    yield _slide("lmpt", draw_lmpt(theme, slide=True))
    yield from _captions(*captions.load_captions(folder / captions.CAPTIONS))
    best = max(rows, key=rows.__getitem__)
    others = {name: value for name, value in rows.items() if name != "lmpt"}
    rival = max(others, key=others.__getitem__, default=best)
    learned = rows.get("lmpt", rows[best])
    values = {"learned": 100 * learned, "rival": title_of(rival), "rival_score": 100 * rows[rival]}
    names = sorted(rows, key=lambda name: -rows[name])[:MOST_BARS]
    bars = Bars([title_of(name) for name in names], [rows[name] for name in names], axis="mean average precision")
    yield _slide("scenes", bars, count=scenes["data"]["test_size"], **values)


def _captions(found: Mapping[str, np.ndarray], class_names: Sequence[str]) -> Iterator[Slide]:
    """The rarest pair at the end of three ways of learning; nothing where captions are too few."""
    pairs = captions.choose_pairs(found)[-1:] if found else []
    if not pairs:
        return
    columns, _ = captions.caption_columns(found, class_names, pairs, captions.epochs_of(found)[-1:])
    shown = {way: next(iter(columns[way].values())) for way in ("Labels only", "LMPT", *captions.CONTROLS)}
    with _drawn() as figure:
        for ax, (way, ridge) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
            draw_caption_hills(ax, {"": ridge}).set_title(way.replace(", ", ",\n"), loc="center")
            ax.locator_params(axis="x", nbins=3)
        caption_key(figure, figure.axes[0])
    aucs = [pair_statistics(ridge.absent, ridge.present).auc for ridge in shown.values()]
    names = {end: style.shortened(class_names[getattr(pairs[0], end)], 16) for end in ("label", "rival")}
    yield _slide("captions", figure, labels=aucs[0], lmpt=aucs[1], control=aucs[2], **names)


def _bars(shares: Mapping[str, float], count: int) -> Bars:
    """Shares of ``count`` images with their intervals, the largest first."""
    names = sorted(shares, key=lambda name: -shares[name])[:MOST_BARS]
    ends = [share_with_interval(round(shares[name] * count), count) for name in names]
    titles, values = [title_of(name) for name in names], [shares[name] for name in names]
    return Bars(titles, values, [end.low for end in ends], [end.high for end in ends], "%", "accuracy")
