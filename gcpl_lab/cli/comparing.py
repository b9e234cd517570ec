"""Commands that compare methods: ``demo`` on one draw; ``compare``, and for several labels ``ablate lmpt``, on many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text
from typer import BadParameter, Option

from gcpl_lab.cli import options
from gcpl_lab.cli.answers import LiveProgress, answer, console, difference, make_table, mean_and_spread, percent
from gcpl_lab.cli.learning import Images, Metadata, source_of, tell_fit
from gcpl_lab.errors import DataError

COSTS = {
    "UNet runs": "{denoiser_evaluations:,.0f}",
    "train s": "{train_seconds:.1f}",
    "test s": "{predict_seconds:.1f}",
}


OWN_IMAGES = "Folder with support/ and test/ class folders; default: the bundled garments, and scenes beside."


def demo(
    folder: Annotated[Path, Option(help="Where report, figures and prompts go.", callback=options.writable)] = Path(
        "runs/demo"
    ),
    images: Annotated[Path | None, Option(help=OWN_IMAGES)] = None,
    preset: options.Preset = "tiny",
    shots: options.Shots = 16,
    seed: options.Seed = 0,
    test_total: Annotated[int, Option("--test", min=10, help="Test images.")] = 300,
    settings: options.Set = [],  # noqa: B006  (typer reads the default, nothing changes it)
    multilabel: Annotated[bool, Option(help="Show LMPT on the bundled scenes too.")] = True,
    fresh: Annotated[bool, Option("--fresh", help="Learn everything anew, whatever is kept.")] = False,
    workers: options.Workers = 0,
    as_json: options.Json = False,
) -> None:
    """Tell look-alike images apart, compare with simple baselines, and write a report."""
    from gcpl_lab.experiments.demo import run_demo
    from gcpl_lab.experiments.few_shot import METHOD_TITLES
    from gcpl_lab.experiments.multilabel import MULTILABEL_TITLES
    from gcpl_lab.gcpl.settings import GCPLConfig

    chosen = options.parse_settings(settings, GCPLConfig)
    scenes = {f"scenes/{name}": f"Scenes: {title}" for name, title in MULTILABEL_TITLES.items()}
    run: dict[str, Any] = {"preset": preset, "shots": shots, "seed": seed, "test_total": test_total, "fresh": fresh}
    run |= {
        "images": images,
        "settings": chosen,
        "multilabel": multilabel and images is None,
        **options.run_options(workers),
    }
    with LiveProgress({**METHOD_TITLES, **scenes, "report": "Figures and report"}) as progress:
        result = run_demo(folder, on_event=progress, **run)
    caveats = (Text(f"- {caveat}") for caveat in result.caveats)
    where = f"\nLook at {result.report} (figures, prompts and results.json beside it)."
    answer(result.results, as_json, method_table(result.results["methods"]), Text(result.answer), *caveats, where)


def method_table(rows: list[dict[str, Any]]) -> Table:
    """The methods of one draw, the best first."""
    from gcpl_lab.experiments.registry import title_of

    columns = {"method": "{title}", "accuracy": "{accuracy:.1%}", "look-alikes": "{among}"}
    titled = []
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        among = row["accuracy_within_family"]
        shown = "–" if among is None else f"{among:.1%}"  # no families are known
        titled.append({**row, "title": title_of(row["name"]), "among": shown})
    return make_table({**columns, **COSTS}, titled, "Test images told apart")


FROM_FOLDER = "Folder with support/ and test/ class folders; default: the bundled set."
PUBLISHED = "A set of gcpl_lab.data.published, such as textile; --images is then where torchvision keeps it."
ROW = ("method", "seed", "shots", "accuracy")
"""What ``--json`` prints of every trial under ``rows``; ``methods`` has everything."""
HELD_OUT = "Judge on support images outside the exemplars, not on test images: for choosing settings."


def compare(
    folder: options.Folder = Path("runs/compare"),
    methods: Annotated[str, Option(help="Names joined by commas, 'quick' (all but slow ones), or 'all'.")] = "quick",
    everything: Annotated[bool, Option("--all", help="Every method, as --methods all.")] = False,
    seeds: options.Seeds = "5",
    shots: Annotated[str, Option(help="Numbers of images a class, joined by commas.")] = "16",
    reference: Annotated[str, Option(help="The method the others are paired with.")] = "gcpl",
    images: Annotated[Path | None, Option(help=FROM_FOLDER)] = None,
    published: Annotated[str | None, Option(help=PUBLISHED)] = None,
    held_out: Annotated[bool, Option("--held-out", help=HELD_OUT)] = False,
    preset: options.Preset = "tiny",
    settings: options.Set = [],  # noqa: B006  (typer reads the default, nothing changes it)
    workers: options.Workers = 0,
    as_json: options.Json = False,
) -> None:
    """Methods × seeds × shots with mean, spread, paired differences, time and denoiser evaluations."""
    from gcpl_lab.experiments.compare import run_comparison
    from gcpl_lab.gcpl.settings import GCPLConfig

    run: dict[str, Any] = {"settings": options.parse_settings(settings, GCPLConfig), "preset": preset}
    run |= {
        "methods": method_names("all" if everything else methods, reference),
        "shots": options.parse_numbers(shots),
        "reference": reference,
    }
    run |= {"images": images, "published": published, "held_out": held_out}
    run |= {"seeds": options.parse_seeds(seeds), **options.run_options(workers)}
    if images is not None and published is None:
        _tell_fit(images, held_out, run)
    with console.status("") as status:
        result = run_comparison(folder, on_trial=status.update, on_row=_tell_row, **run)
    tables, where = comparison(result["summary"], reference, result["data"]), f"Every result: {folder / 'results.json'}"
    rows = [{name: row[name] for name in ROW} for row in result["methods"]]
    answer({"rows": rows, **result}, as_json, *tables, where)


def _tell_fit(images: Path, held_out: bool, run: dict[str, Any]) -> None:
    """What the frozen models see of the first draw; nothing where the comparison itself will refuse the images."""
    from gcpl_lab.data.episodes import draw_episode
    from gcpl_lab.data.folders import read_pictures

    with suppress(DataError):
        (pool, test), seed = read_pictures(images), run["seeds"][0]
        exemplars = pool.subset(draw_episode(pool, max(run["shots"]), seed))
        if held_out or test is not None:
            tell_fit(exemplars, run["preset"], run["settings"].get("fit", "auto"), seed)


def _tell_row(row: dict[str, Any]) -> None:
    from gcpl_lab.experiments.few_shot import METHOD_TITLES

    title = METHOD_TITLES[row["method"]]
    told = f"{title}, {row['shots']} shots, seed {row['seed']}: {row['accuracy']:.1%}"
    console.print(escape(told), highlight=False, soft_wrap=True)


def method_names(text: str, reference: str) -> list[str]:
    """The methods that ``--methods`` names; neither they nor the reference may be unknown."""
    from gcpl_lab.experiments.few_shot import METHODS, QUICK_METHODS

    groups = {"quick": list(QUICK_METHODS), "all": list(METHODS)}
    names = groups[text] if text in groups else [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise BadParameter(f"{text!r} names no method; expected some of {', '.join(METHODS)}")
    if unknown := [name for name in [*names, reference] if name not in METHODS]:
        raise BadParameter(f"no method {', '.join(unknown)}; expected some of {', '.join(METHODS)}")
    return names


def comparison(rows: list[dict[str, Any]], reference: str, data: Mapping[str, Any] | None = None) -> list[Any]:
    """A table for each number of shots, and lines: chance, and what fitted offsets were worth to each method.

    ``data`` is what the results say of the images, with the share of guessing and of the largest class.
    """
    from gcpl_lab.experiments.few_shot import METHOD_TITLES

    columns = {"method": "{title}", "accuracy": "{accuracy}", "difference": "{paired}", **COSTS}
    spread = any(row["low"] is not None for row in rows)
    others = f"differences from {METHOD_TITLES[reference]}" + (" with 95 % intervals" if spread else "")
    lines: list[str] = []
    cells: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -row["mean"]):
        title, paired = METHOD_TITLES[row["method"]], "" if row["method"] == reference else difference(row)
        named = {"title": title, "accuracy": mean_and_spread(row), "paired": paired}
        cells.setdefault(row["shots"], []).append({**row, **named})
        if "offsets" in row:
            readings = ", ".join(f"{name} {percent(value)}" for name, value in row["readings"].items())
            gain = f"offsets {difference(row['offsets'])}; errors read {readings}"
            lines.append(f"{title}, {row['shots']} shots: {gain}")
    empty = dict.fromkeys(("denoiser_evaluations", "train_seconds", "predict_seconds"), 0.0) | {"paired": ""}
    floors = {"Largest class": "largest_class", "Chance": "chance"}
    guessed = (
        [empty | {"title": title, "accuracy": percent(data[key])} for title, key in floors.items()] if data else []
    )
    tables = []
    for shots, same in sorted(cells.items()):
        seeds = " or ".join(map(str, sorted({row["num_seeds"] for row in same})))
        tables.append(
            make_table(columns, [*same, *guessed], f"{shots} shots, seeds: {seeds}; accuracy in percent, {others}")
        )
    return [*tables, *lines]


PARTS = "Compare candidate settings on so many parts of the training images instead."
TAILS = "Compare LMPT, CoOp and zero-shot on so many newly drawn tails instead."
RAW = "With --tails: the published Fashion-MNIST files they are drawn from."
ONLY = "Compare these methods or parts of the ablation alone, names joined by commas."
PAIRED = "The method that others are paired with: coop_bce, linear_probe, ..."


def ablate_lmpt(
    folder: options.Folder = Path("runs/ablation"),
    seeds: options.Seeds = "5",
    metadata: Metadata = None,
    images: Images = None,
    train_rows: Annotated[list[str], Option(help="With --metadata: rows to learn from.")] = ["split=train"],  # noqa: B006
    scenes: Annotated[Path | None, Option(help="Scenes with another tail, made by tools/wardrobe.py.")] = None,
    test_rows: Annotated[list[str], Option(help="With --metadata: rows to measure on.")] = ["split=test"],  # noqa: B006
    methods: Annotated[bool, Option(help="Compare with the baselines too.")] = True,
    validation: Annotated[int, Option(min=0, help=PARTS)] = 0,
    tails: Annotated[int, Option(min=0, help=TAILS)] = 0,
    raw: Annotated[Path | None, Option(help=RAW)] = None,
    reference: Annotated[str, Option(help=PAIRED)] = "coop_bce",
    only: Annotated[str, Option(help=ONLY)] = "",
    preset: options.Preset = "tiny",
    settings: options.Set = [],  # noqa: B006
    workers: options.Workers = 0,
    as_json: options.Json = False,
) -> None:
    """What captions, margin, re-weighting and the balanced loss add, over seeds; and what wrong captions cost.

    With --validation: which settings are best where the test images are not looked at. With --tails: whether the
    comparison holds on scenes with other images, in which other classes are rare.
    """
    from gcpl_lab.lmpt.settings import LMPTConfig

    chosen, numbers = options.parse_settings(settings, LMPTConfig, preset=preset), options.parse_seeds(seeds)
    from gcpl_lab.data.folders import read_labelled
    from gcpl_lab.experiments import multilabel
    from gcpl_lab.report import draw_ablation

    known = {**multilabel.ABLATION_TITLES, **multilabel.MULTILABEL_TITLES}
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in [*names, reference] if name not in known]:
        raise BadParameter(f"no method {', '.join(unknown)}; expected some of {', '.join(known)}")
    if validation and tails:
        raise BadParameter("--validation and --tails are two measurements; ask for one of them")

    make_experiment = partial(multilabel.MultiLabelExperiment, settings=chosen, preset=preset)
    results: dict[str, Any] = {}
    with console.status("") as status:
        run: dict[str, Any] = {"seeds": numbers, "on_trial": status.update, **options.run_options(workers)}
        if tails:
            drawn = [make_experiment(*_draw_tail(folder / "scenes", k, raw, status.update)) for k in range(tails)]
            compared = {"reference": reference, **run, **({"methods": names} if names else {})}
            results["tails"] = multilabel.run_tails(folder, drawn, **compared)
        else:
            more = {"scenes": scenes} if scenes else {}
            sources = [source_of(metadata, images, rows if metadata else None) for rows in (train_rows, test_rows)]
            train = read_labelled("train", sources[0] | more)
            names_too = {"class_names": train.class_names} if metadata else more
            experiment = make_experiment(train, read_labelled("test", sources[1] | names_too))
        if validation:
            told = {"command": run["command"], "on_trial": status.update}
            results["validation"] = multilabel.run_validation(folder, experiment, num_parts=validation, **told)
        elif not tails:
            if methods or names:
                compared = {"reference": reference, "methods": names or list(multilabel.MULTILABEL_METHODS), **run}
                results["comparison"] = multilabel.run_multilabel_comparison(folder / "methods", experiment, **compared)
            if not names:
                results["ablation"] = multilabel.run_ablation(folder, experiment, **run)
                draw_ablation(results, folder / "figures")
    answer(results, as_json, *chain(*map(ablation_tables, results.values())), f"Every result is in {folder}.")


def _draw_tail(folder: Path, number: int, raw: Path | None, on_tail: Callable[[str], None]) -> list[Any]:
    """Training and test scenes with a tail of their own, built where they are not there yet."""
    options.find_tools()
    from gcpl_lab.data.samples import load_wardrobe
    from tools.raw_fashion import DEBIAN_FOLDER
    from tools.wardrobe import build_wardrobe, draw_tail_order

    target = folder / str(number)
    if not target.is_dir():
        on_tail(f"tail {number}: composing scenes")
        # Seed 0 made the bundled scenes.
        build_wardrobe(raw or DEBIAN_FOLDER, target, seed=number + 1, tail_order=draw_tail_order(number))
    return [load_wardrobe(split, target) for split in ("train", "test")]


def ablation_tables(result: dict[str, Any]) -> list[Table]:
    """Mean ± standard deviation over seeds, tails or parts, and the paired difference of total and tail mAP."""
    from gcpl_lab.experiments.multilabel import ABLATION_TITLES, MULTILABEL_TITLES

    titles = {**ABLATION_TITLES, **MULTILABEL_TITLES} if "caption_noise" not in result else ABLATION_TITLES
    rows: dict[str, dict[str, str]] = {}
    for score, entries in result["summary"].items():
        for entry in entries:
            row = rows.setdefault(entry["method"], {"title": titles.get(entry["method"], entry["method"])})
            row |= {score: mean_and_spread(entry), f"Δ {score}": difference(entry)}
    names = {score: "all" if score == "map" else score.removeprefix("map_") for score in result["summary"]}
    columns = {"": "{title}", **{name: f"{{{score}}}" for score, name in names.items()}}
    paired = {"": "{title}", **{names[s]: f"{{Δ {s}}}" for s in ("map", "map_tail") if s in names}}
    reference = titles.get(result["reference"], result["reference"])
    return [
        make_table(columns, rows.values(), "mAP, mean ± standard deviation"),
        make_table(paired, rows.values(), f"Paired difference from {reference}, points (95 %)"),
    ]
