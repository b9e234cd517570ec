"""One page that decides: for each situation which method won, by how much, how sure, and at what cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.baselines.base import BASELINES
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.compare import paired_difference
from gcpl_lab.experiments.few_shot import METHOD_TITLES
from gcpl_lab.experiments.multilabel import ABLATION_TITLES, MULTILABEL_TITLES
from gcpl_lab.experiments.registry import BEFORE
from gcpl_lab.experiments.situation_runs import COSTS, accuracies, costs
from gcpl_lab.experiments.situations import SITUATIONS
from gcpl_lab.views import plots, style
from gcpl_lab.views.pilot import draw_intervals
from gcpl_lab.views.slides import Deck, Provenance, to_slide

Values = dict[str, dict[str, float]]  # accuracy by method and seed
Chooses = Callable[[str], bool]
Found = dict[str, Any]

ALIKE = ("held_out", "num_test", "preset", "shots")  # of runs that are merged; a comparison has any number of shots
LMPT_TITLES = {
    "tails": ("Several labels: newly drawn tails", "The sample are drawn tails: this holds for other scenes too."),
    "comparison": ("Several labels: the bundled scenes", "The sample are seeds on one drawn set of scenes."),
    "parts": ("Several labels: LMPT's parts and captions, newly drawn tails", "This holds for other scenes, too."),
    "ablation": ("Several labels: LMPT's parts one by one, and captions", "Seeds on one drawn set of scenes, too."),
}
NUM_PAIRS = 6
MOST_ROWS = 8
"""Of a slide, in letters for a room."""


def is_generative(method: str) -> bool:
    """Whether it decides by a diffusion model's errors under prompts; a probe on the denoiser does not."""
    return method not in BASELINES


def reads_clip(method: str) -> bool:
    """Whether it is fitted on CLIP's features alone."""
    return method in BASELINES and BASELINES[method].facts.get("sees", "features") == "features"


def learns_nothing(method: str) -> bool:
    """Whether no exemplar can mislead it."""
    return method == BEFORE or (method in BASELINES and not BASELINES[method].facts.get("shots", True))


def merge(
    results: Sequence[Mapping[str, Any]],
    lmpt: Iterable[tuple[str, Mapping[str, Any]]] = (),
    busy: Sequence[Mapping[str, Any]] = (),
) -> Found:
    """What is kept of several runs: accuracies of all, costs, pairs, and of multi-label runs their summaries.

    Args:
        results: Contents of ``results.json`` of ``gcpl-lab situations`` or of ``gcpl-lab compare``, which adds draws
            to the situation of few images, or what an earlier merge gave; all judged on the same kind of images.
        lmpt: By part (``LMPT_TITLES``), contents of ``results.json`` of ``gcpl-lab ablate lmpt``.
        busy: Like ``results``, of runs beside others on the same machine: their seconds do not count.
    """
    runs = [*map(_as_situation, results), *({**one, "cost": {}} for one in map(_as_situation, busy))]
    about = {name: one[name] for one in reversed(runs) for name in (*ALIKE, "machine") if name in one}
    for one in runs:
        if other := [name for name in ALIKE if name in one and one[name] != about[name]]:
            told = ", ".join(f"{name} ({one[name]} and {about[name]})" for name in other)
            raise DataError(f"results differ in {told}; give equal ones")
    accuracy: dict[str, Any] = {}
    for one in runs:
        _add(accuracy, one["accuracy"])
    for groups in accuracy.values():
        groups |= {group: in_order(levels) for group, levels in groups.items()}
    commands = dict.fromkeys(command for one in runs for command in one.get("commands") or [one["command"]])
    found: Found = {"commands": list(commands), "accuracy": accuracy}
    found["cost"] = {method: cost for one in runs for method, cost in one["cost"].items()}
    pairs = [pair for one in runs for pair in one["joined"][: None if "commands" in one else NUM_PAIRS]]
    pairs.sort(key=lambda pair: pair["num_seeds"])  # of each pair the run with the most draws stays
    found["joined"] = list({frozenset(pair["methods"]): pair for pair in pairs}.values())
    earlier = {part: of for one in runs for part, of in one.get("lmpt", {}).items()}
    new = {part: {"commands": [one["command"]], **{n: one[n] for n in ("reference", "summary")}} for part, one in lmpt}
    return {**found, "about": about, "lmpt": {**earlier, **new}}


def _add(kept: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Fill what is nested in ``more`` into ``kept``."""
    for name, value in more.items():
        if isinstance(value, Mapping):
            _add(kept.setdefault(name, {}), value)
        else:
            kept[name] = value


def in_order(levels: Mapping[str, Any]) -> dict[str, Any]:
    """Levels by the number that they begin with, where all do; else as they came."""
    numbers = [re.match(r"\d+(\.\d+)?", level) for level in levels]
    pairs = [(float(number.group()), level) for number, level in zip(numbers, levels, strict=True) if number]
    return {level: levels[level] for _, level in sorted(pairs)} if len(pairs) == len(levels) else dict(levels)


def _as_situation(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a comparison measured, as the situation of few images has it: the same exemplars, all test images."""
    if "accuracy" in result:
        return {**result.get("about", {}), **result}
    rows, data = result["methods"], result["data"]
    cells = [[("all classes", f"{row['shots']}", row["accuracy"])] for row in rows]
    found = [{**row, "situation": "few_shots", "accuracy": cell} for row, cell in zip(rows, cells, strict=True)]
    about = {"held_out": data["held_out"], "num_test": data["test_size"]}
    about |= {name: result[name] for name in ("command", "preset", "machine")}
    most = [row for row in rows if row["shots"] == max(data["shots"])]
    return {**about, "accuracy": accuracies(found), "cost": costs(most), "joined": []}


def mean_over(levels: Iterable[Mapping[str, Mapping[str, float]]]) -> Values:
    """Each method's mean over levels, for the seeds that it has in all of them."""
    given = list(levels)
    found: Values = {}
    for method in dict.fromkeys(name for level in given for name in level):
        if all(method in level for level in given):
            seeds = set.intersection(*(set(level[method]) for level in given))
            found[method] = {s: float(np.mean([level[method][s] for level in given])) for s in sorted(seeds)}
    return {method: values for method, values in found.items() if values}


def winner(values: Values) -> str:
    """The highest mean among the methods that were run on half of the draws or more."""
    most = max(map(len, values.values()))
    often = [method for method, of in values.items() if 2 * len(of) >= most]
    return max(often, key=lambda method: np.mean(list(values[method].values())))


def compare_families(values: Values, ours: Chooses = is_generative, theirs: Chooses | None = None) -> Found | None:
    """The best of some methods against the best of others: paired difference, and a word for it.

    Both are the best of several on the same draws, so that either is a little too good. ``ours`` says of a method
    whether it is one of the first, ``theirs`` of the second, by default all others; None where one side was not run.
    """
    other = theirs or (lambda method: not ours(method))
    sides = [{m: v for m, v in values.items() if chosen(m)} for chosen in (ours, other)]
    if not all(sides):
        return None
    first, second = map(winner, sides)
    shared = values[first].keys() & values[second].keys()
    difference = paired_difference(values[first], values[second])
    return {"ours": first, "theirs": second, "num_seeds": len(shared), "word": word_for(difference), **difference}


LEVEL = 0.05
"""An interval that holds zero says "level" where neither of its ends is further away: else nothing is known."""


def word_for(difference: Mapping[str, float | None]) -> str:
    """``"ahead"``, ``"behind"`` or ``"level"`` where the interval says so, else ``"open"``, as with one draw."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None or (low <= 0 <= high and max(-low, high) > LEVEL):
        return "open"
    return "ahead" if low > 0 else "behind" if high < 0 else "level"


def _points(difference: Mapping[str, Any]) -> str:
    if difference["difference"] is None:
        return "–"
    text = f"{100 * difference['difference']:+.1f}"
    if difference["low"] is not None:
        text += f" ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"
    return text.replace("-", "−")


def _mean(values: Mapping[str, float]) -> str:
    numbers = list(values.values())
    return _entry({"mean": np.mean(numbers), "standard_deviation": np.std(numbers, ddof=1) if numbers[1:] else None})


def questions(situation: str, group: str, levels: Mapping[str, Values]) -> list[tuple[str, Values]]:
    """What is decided, and by which numbers of a method and seed.

    Where a level changes nothing: the mean over those that do, and what that takes away. Else each level for itself.
    """
    plain, varied = (SITUATIONS[situation].facts[name] for name in ("plain", "varied"))
    if not plain:
        return [(f"{group}, {level} {varied}", of) for level, of in levels.items()]
    changed = mean_over(of for level, of in levels.items() if level != plain)
    first = {method: of for method, of in levels.get(plain, {}).items() if not learns_nothing(method)}
    loss = {m: {s: v - first[m][s] for s, v in of.items() if s in first[m]} for m, of in changed.items() if m in first}
    found = [(group, changed), (f"{group}, what it takes", {m: of for m, of in loss.items() if of})]
    return [(label, values) for label, values in found if values]


def write_page(kept: Mapping[str, Any]) -> str:
    """The page in Markdown, from what :func:`merge` gave."""
    lines = [*_head(kept), *_summary(kept), *_joined(kept), *_costs(kept), *_lmpt(kept["lmpt"])]
    return "\n".join([*lines, *write_situations(kept)])


def write_situations(kept: Mapping[str, Any]) -> list[str]:
    """What each situation changes, and a table of methods and levels for each of its groups, as lines in Markdown."""
    lines: list[str] = []
    for situation, groups in kept["accuracy"].items():
        entry = SITUATIONS[situation]
        lines += [f"## {entry.title}", "", " ".join((entry.target.__doc__ or "").split()), ""]
        for group, levels in groups.items():
            lines += _by_level(f"By {entry.facts['varied']}, {group}:", levels)
    return lines


def section(heading: str, told: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in Markdown: a heading, a sentence where there is one, and a table; none without rows."""
    cells = [columns, ["---"] * len(columns), *rows]
    lines = [heading, "", *([told, ""] if told else []), *(f"| {' | '.join(row)} |" for row in cells), ""]
    return lines if rows else []


def _title(method: str) -> str:
    return {**METHOD_TITLES, **MULTILABEL_TITLES, **ABLATION_TITLES}.get(method, method)


def _head(kept: Mapping[str, Any]) -> list[str]:
    about = kept["about"]
    where = "images of the pool outside the exemplars" if about["held_out"] else "test images"
    commands = [*kept["commands"], *(text for part in kept["lmpt"].values() for text in part["commands"])]
    return [
        *("# Which method wins where", "", _answer(kept), ""),
        *("Written by `gcpl-lab verdict` from `docs/verdict.json`; do not edit. The runs behind it:", ""),
        *(f"    {command}" for command in commands),
        "",
        f"Accuracy in percent on at most {about['num_test']} {where}, {about.get('shots', 16)} exemplars a class",
        "unless said otherwise; differences are paired over draws of exemplars, with 95 % intervals. **Level** means",
        f"that the interval holds zero and no end of it is beyond {100 * LEVEL:.0f} points, **open** that it is wider:",
        "too few draws to tell. The best of several methods on the same draws looks a little better than it is, on",
        "both sides; and of many lines one in twenty would lean by chance.",
        "",
    ]


def _answer(kept: Mapping[str, Any]) -> str:
    """The page in two sentences."""
    words = [found["word"] for *_, found in compared(kept, is_generative)]
    counts = ", ".join(f"{word} on {words.count(word)}" for word in sorted(set(words)))
    asked = len(compared(kept, None)) - len(words)
    counts += f"; {asked} questions without a run of theirs" if asked else ""
    text = f"**Generative prompts against all others, by question: {counts}.**" if words else ""
    told = [
        f"against “{_title(part['reference'])}”: {word_for(entry)}, {_points(entry)}"
        for part in filter(None, map(kept["lmpt"].get, ("tails", "parts")))
        for entry in part["summary"]["map"]
        if entry["method"] == "lmpt" != part["reference"]
    ]
    if told:
        text += f" **With several labels, over drawn tails, LMPT {'; '.join(told)}.**"
    return text


def compared(
    kept: Mapping[str, Any], ours: Chooses | None, theirs: Chooses | None = None
) -> list[tuple[str, str, Values, Found]]:
    """Situation, question, values and what :func:`compare_families` says of them, where both sides were run.

    Without ``ours`` the best of all stands against the best of the others.
    """
    found = []
    for situation, groups in kept["accuracy"].items():
        for group, levels in groups.items():
            for label, values in questions(situation, group, levels):
                first = ours or winner(values).__eq__
                if outcome := compare_families(values, first, theirs):
                    found.append((situation, label, values, outcome))
    return found


DENOISER = "Do the prompts matter, or the diffusion model alone?"
SIDES: tuple[tuple[str, str, str, Chooses | None, Chooses | None], ...] = (
    ("Who wins?", "the best", "the next", None, None),
    ("Do generative prompts pay?", "best generative prompts", "best of the others", is_generative, None),
    ("Beside a network from scratch", "best generative prompts", "network", is_generative, "scratch_network".__eq__),
    ("Beside a linear probe on CLIP", "best generative prompts", "linear probe", is_generative, "linear_probe".__eq__),
    (DENOISER, "probe on the denoiser", "best of CLIP", "denoiser_probe".__eq__, reads_clip),
)
"""Heading, what stands on both sides, and what :func:`compared` is told."""


def _summary(kept: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    costs_of = {method: f"{sum(of[name] for name in COSTS[:2]):.3g}" for method, of in kept["cost"].items()}
    for heading, ours, theirs, *sides in SIDES:
        rows = []
        for situation, group, values, found in compared(kept, *sides):
            both = found["ours"], found["theirs"]
            same = sorted(values[both[0]].keys() & values[both[1]].keys())
            names = [f"{_title(m)}, {_mean({seed: values[m][seed] for seed in same})}" for m in both]
            seconds = " / ".join(costs_of.get(found[side], "–") for side in ("ours", "theirs"))
            cells = [_points(found), str(found["num_seeds"]), seconds, f"**{found['word']}**"]
            rows.append([f"{SITUATIONS[situation].title}: {group}", *names, *cells])
        columns = ("situation", ours, theirs, "difference", "draws", "seconds", "it is")
        lines += section(f"## {heading}", "", columns, rows)
    return lines


def _by_level(heading: str, levels: Mapping[str, Values]) -> list[str]:
    methods = list(dict.fromkeys(name for of in levels.values() for name in of))
    methods.sort(key=lambda m: -np.mean([np.mean(list(of[m].values())) for of in levels.values() if m in of]))
    rows = [[_title(m), *(_mean(of[m]) if m in of else "" for of in levels.values())] for m in methods]
    return section(heading, "", ("method", *levels), rows)


def _joined(kept: Mapping[str, Any]) -> list[str]:
    rows = []
    for pair in sorted(kept["joined"], key=lambda pair: -pair["accuracy"])[: 2 * NUM_PAIRS]:
        alone = ", ".join(f"{100 * value:.1f}" for value in pair["alone"])
        correlation = "–" if pair["correlation"] is None else f"{pair['correlation']:.2f}"
        together, oracle = (f"{100 * pair[share]:.1f}" for share in ("accuracy", "oracle"))
        cells = [together, alone, _points(pair["gain"]), correlation, oracle, str(pair["num_seeds"])]
        rows.append([" + ".join(map(_title, pair["methods"])), *cells])
    told = "The product of both probabilities; what one of both tells right is the most that a choice could reach."
    columns = ("pair", "together", "alone", "gain over the better", "mistakes' correlation", "one of both", "draws")
    return section("## Two methods together", told, columns, rows)


def cost_rows(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy with the most exemplars and seconds of every method."""
    levels = list(kept["accuracy"].get("few_shots", {}).get("all classes", {}).values())
    return [
        {
            "name": _title(method),
            "accuracy": float(np.mean(list(values.values()))),
            "seconds": max(1e-3, sum(kept["cost"][method][name] for name in COSTS[:2])),
            "evaluations": sum(kept["cost"][method][name] for name in COSTS[2:]),
            "strong": is_generative(method),
        }
        for method, values in (levels[-1].items() if levels else ())
        if method in kept["cost"]
    ]


def _costs(kept: Mapping[str, Any]) -> list[str]:
    found = sorted(cost_rows(kept), key=lambda row: -row["accuracy"])
    rows = [[r["name"], f"{100 * r['accuracy']:.1f}", f"{r['seconds']:.3g}", f"{r['evaluations']:,.0f}"] for r in found]
    told = "Means over all trials, learning and classifying, of runs on a quiet machine; – where there is none."
    return section("## What it costs", told, ("method", "accuracy", "seconds", "denoiser evaluations"), rows)


def _lmpt(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for name, (title, sample) in LMPT_TITLES.items():
        if name not in parts:
            continue
        part, rows = parts[name], []
        tails = {entry["method"]: entry for entry in part["summary"].get("map_tail", [])}
        for entry in sorted(part["summary"]["map"], key=lambda entry: -entry["mean"]):
            tail, same = tails.get(entry["method"]), entry["method"] == part["reference"]
            of_tail = [_entry(tail), "" if same else _points(tail)] if tail else ["", ""]
            paired = ["", *of_tail, ""] if same else [_points(entry), *of_tail, word_for(entry)]
            rows.append([_title(entry["method"]), _entry(entry), *paired])
        told = f"Mean average precision in percent; differences are from {_title(part['reference'])}. {sample}"
        columns = ("method", "all", "difference", "tail", "difference", "on all it is")
        lines += section(f"## {title}", told, columns, rows)
    return lines


def _entry(entry: Mapping[str, Any]) -> str:
    spread = entry["standard_deviation"]
    return f"{100 * entry['mean']:.1f}".replace("-", "−") + ("" if spread is None else f" ± {100 * spread:.1f}")


def draw_figures(kept: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """One figure a situation; what is decided on generative prompts; and accuracy against seconds."""
    strong, figures = [method for method in METHOD_TITLES if is_generative(method)], {}
    with style.figure_style():
        for name, groups in kept["accuracy"].items():
            points = {group: intervals(levels) for group, levels in groups.items()}
            varied = SITUATIONS[name].facts["varied"]
            figures[name] = plots.plot_situation(points, METHOD_TITLES, varied, strong)
        if told := _decided(kept):
            figures["verdict"] = _draw_differences(told)
        if rows := cost_rows(kept):
            figures["cost"] = style.new_figure(16, 9)
            plots.plot_costs(figures["cost"].subplots(), rows)
        return [path for name, figure in figures.items() for path in plots.save_figure(figure, folder, name)]


def _decided(kept: Mapping[str, Any]) -> dict[str, Found]:
    """Questions on generative prompts that have an interval, with what was found."""
    found = [(f"{SITUATIONS[name].title}: {label}", one) for name, label, _, one in compared(kept, is_generative)]
    return {
        f"{name}: {one['word']}": {**one, "value": one["difference"]} for name, one in found if one["low"] is not None
    }


def write_slide(kept: Mapping[str, Any], path: str | Path) -> list[Path]:
    """One slide, where anything is decided: on how many questions generative prompts are ahead, and the surest."""
    if not (told := _decided(kept)):
        return []
    words = [one["word"] for one in told.values()]
    counts = ", ".join(f"{word} on {words.count(word)}" for word in ("ahead", "level", "behind", "open"))
    surest = sorted(told, key=lambda name: told[name]["high"] - told[name]["low"])[:MOST_ROWS]
    rows = {name: told[name] for name in told if name in surest}
    with style.figure_style("slide"):
        figure = _draw_differences(rows)
    about = "Best generative prompts less the best of all others, 95 % intervals over draws; the surest "
    about += f"{len(rows)} of {len(told)} questions. One pair of frozen models, bundled images: yours may differ."
    alt = "; ".join(f"{name} {_points(one)}" for name, one in rows.items())
    notes = "\n".join([about, *(f"{name} {_points(one)}" for name, one in told.items()), *kept["commands"]])
    draws = max(one["num_seeds"] for one in told.values())
    deck = Deck(Provenance(f"{draws} draws at most", "bundled", "gcpl-lab verdict"))
    title = f"Where do generative prompts pay? {counts[0].upper()}{counts[1:]} of {len(told)} questions"
    return deck.add(to_slide(figure, title, about, notes, alt=f"{title}. {alt}.")).save(path)


def _draw_differences(rows: Mapping[str, Mapping[str, float]]) -> Figure:
    """Differences with their intervals, a row each, beside what counts as level."""
    figure = draw_intervals(list(rows.items()), "best generative prompts\nless best of the others", limit=0.0)
    figure.set_figwidth(14)
    figure.axes[0].axvspan(-LEVEL, LEVEL, color=style.FAINT, alpha=0.5, zorder=0)
    most = max(3 * LEVEL, *(1.15 * abs(row["value"]) for row in rows.values()))
    figure.axes[0].set(xlim=(-most, most), yticklabels=rows)  # few draws have intervals beyond all differences
    return figure


def intervals(levels: Mapping[str, Values]) -> dict[str, dict[str, plots.Point]]:
    """By level and method the mean and its 95 % interval over draws, of three or more.

    What a draw adds to all methods and levels alike is taken out first, as methods are compared on the same draws
    (Cousineau 2005, https://doi.org/10.20982/tqmp.01.1.p042); below three draws the ends are the mean.
    """
    cells = [(dict(of), float(np.mean(list(of.values())))) for values in levels.values() for of in values.values()]
    seeds = dict.fromkeys(seed for of, _ in cells for seed in of)
    shift = {seed: float(np.mean([of[seed] - mean for of, mean in cells if seed in of])) for seed in seeds}
    found: dict[str, dict[str, plots.Point]] = {level: {} for level in levels}
    for level, values in levels.items():
        for method, of in values.items():
            left, mean = paired_difference(of, shift), float(np.mean(list(of.values())))
            low, high = (mean if left[end] is None or len(of) < 3 else left[end] for end in ("low", "high"))
            found[level][method] = mean, low, high  # type: ignore[assignment]
    return found
