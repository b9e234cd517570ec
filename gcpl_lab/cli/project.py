"""Commands around a training run: ``doctor``, ``selftest``, ``plan``, ``init`` and ``recipe``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from typer import Argument, Exit, Option

from gcpl_lab.cli import options
from gcpl_lab.cli.answers import answer, console, counting, duration, make_table
from gcpl_lab.errors import LabError

if TYPE_CHECKING:
    from gcpl_lab.experiments.profile import Profile

CLASS_FOLDERS = "Class folders, or images with a metadata.csv; or support/ and test/ with one of the two."
RECORDED = "Take recorded seconds, or time a few steps here [default: time them where the weights are here]."
PROFILE = "Take the seconds of this file, as selftest and --save write it, or of a recorded name."
TIMED_BATCH = "Images a timed step [default: as many as one training pass has]."


def doctor(as_json: options.Json = False) -> None:
    """Show the machine, the versions, the bundled data and which models can be used now."""
    from gcpl_lab.data.samples import load_fashion
    from gcpl_lab.models.presets import PRESETS, TINY_FOLDER, check_bundled, describe_preset, preset_facts
    from gcpl_lab.training.machine import describe_free_memory, describe_machine, describe_versions

    checks: dict[str, Callable[[], str]] = {
        "fashion/support": lambda: f"{len(load_fashion('support'))} images, ",
        "fashion/test": lambda: f"{len(load_fashion('test'))} images, ",
        "tiny/diffusion": lambda: check_bundled(TINY_FOLDER / "diffusion"),
        "tiny/clip": lambda: check_bundled(TINY_FOLDER / "clip"),
    }
    samples: dict[str, str] = {}
    for name, check in checks.items():
        try:
            samples[name] = f"{check()}checksums right"
        except LabError as error:
            samples[name] = f"not usable: {error}"
    presets = {name: {"state": describe_preset(preset), **preset_facts(preset)} for name, preset in PRESETS.items()}
    machine = {**describe_machine(), **describe_free_memory()}
    report = {"machine": machine, "versions": describe_versions(), "samples": samples, "presets": presets}
    tables = []
    for title in ("machine", "versions", "samples"):
        listed = [{"name": name, "value": value} for name, value in report[title].items()]
        tables.append(make_table({title: "{name}", "": "{value}"}, listed, num_text_columns=2))
    columns = {"presets": "{name}", "px": "{px}", "download": "{download_gb}", "training": "{training_gb}"}
    rows = []
    for name, facts in presets.items():
        # Nothing to fetch, or not counted, is left empty.
        sizes = {key: f"{facts[key]:.1f} GB" if facts[key] else "" for key in facts if key.endswith("_gb")}
        rows.append({**facts, **sizes, "name": name, "px": facts["image_size"] or ""})
    tables.append(make_table({**columns, "classifying": "{classifying_gb}", "licence": "{licence}"}, rows))
    memory = "Memory in float32 for one image a pass; bfloat16 takes half. gcpl-lab plan counts it for your case."
    states = [f"{name} ({facts['source']}): {facts['state']}" for name, facts in presets.items()]
    answer(report, as_json, *tables, memory, *states)


def selftest(
    folder: Annotated[Path, Option(help="Receives selftest.json and what the parts write.")] = Path("runs/selftest"),
    only: Annotated[list[str], Option(help="Name of a part; may be given several times.")] = [],  # noqa: B006
    budget: Annotated[float | None, Option(min=1, help="Seconds [default: 480 on a GPU, else 120].")] = None,
    as_json: options.Json = False,
) -> None:
    """Prove in minutes that this machine, with its GPU, computes what it should, and how fast."""
    from gcpl_lab.experiments.selftest import run_selftest

    with console.status("") as status:
        report = run_selftest(folder, only, budget, on_part=status.update)
    columns = {"part": "{title}", "rests on": "{said}", "outcome": "{outcome}", "seconds": "{seconds:.0f}"}
    rows = [{**row, "said": row["reason"] or row["headline"]} for row in report["parts"]]
    outcomes = [row["outcome"] for row in rows]
    counts = ", ".join(f"{outcomes.count(each)} {each}" for each in ("pass", "fail", "skip"))
    verdict = f"{report['verdict'].upper()} on {report['machine']['device']}: {counts}. Figures: {folder}/selftest.json"
    answer(report, as_json, make_table(columns, rows, num_text_columns=3), verdict)
    if report["verdict"] == "fail":
        raise Exit(1)


def plan(
    preset: options.Preset = "tiny",
    classes: Annotated[int, Option(min=2, max=options.LARGEST, help="Classes to tell apart.")] = 10,
    shots: options.Shots = 16,
    test: Annotated[int, Option(min=0, max=options.LARGEST, help="Images to classify.")] = 300,
    objective: options.Objective = "gcpl",
    settings: options.Set = [],  # noqa: B006  (typer reads the default, nothing changes it)
    recorded: Annotated[bool | None, Option("--recorded/--measure", help=RECORDED)] = None,
    profile: Annotated[str | None, Option(help=PROFILE)] = None,
    batch_size: Annotated[int | None, Option(min=1, max=options.LARGEST, help=TIMED_BATCH)] = None,
    price: Annotated[float | None, Option(min=0, help="What an hour of the machine costs.")] = None,
    save: Annotated[Path | None, Option(help="Write the timed profile to this file.")] = None,
    as_json: options.Json = False,
) -> None:
    """Say what a run will cost before it is started: evaluations, time, memory, money, and what would save some."""
    from gcpl_lab.experiments.plan import make_plan
    from gcpl_lab.experiments.profile import load_profile
    from gcpl_lab.gcpl.settings import GCPLConfig, published_config
    from gcpl_lab.storage import write_json

    chosen = options.parse_settings(settings, GCPLConfig, objective=objective)
    config = published_config(preset, classes, **chosen)
    timed_batch = batch_size or min(config.batch_size, config.micro_batch_size or 40)
    seconds = load_profile(profile) if profile else _profile(preset, recorded, timed_batch)
    if save:
        write_json(save, asdict(seconds))
    task: dict[str, Any] = {"num_classes": classes, "num_shots": shots, "num_test": test, "price_per_hour": price}
    made = make_plan(preset, config=config, profile=seconds, **task).as_dict()
    answer(made, as_json, *_for_people(made))


def _profile(preset: str, recorded: bool | None, batch_size: int) -> Profile:
    """Recorded seconds where they are asked for or the weights are absent; else those of this machine."""
    from gcpl_lab.experiments.profile import load_profile, measure_profile
    from gcpl_lab.models.diffusion import FrozenDiffusion
    from gcpl_lab.models.presets import find_preset, locate
    from gcpl_lab.training.device import default_device

    if recorded is None and locate(find_preset(preset), "diffusion").path is None:
        recorded = True
        told = f"The weights of {escape(preset)} are not here: these are recorded seconds of another machine."
        console.print(told, soft_wrap=True)
    if recorded:
        return load_profile(preset)
    with console.status("timing a few steps"):
        diffusion = FrozenDiffusion.load(preset, device=default_device())
        return measure_profile(diffusion, preset=preset, batch_size=batch_size)


def _for_people(made: dict[str, Any]) -> list[Any]:
    """A plan as texts and tables: the task, its stages, what would change, and where the numbers are from."""
    settings, profile = made["settings"], made["profile"]
    columns = {"UNet evaluations": "{denoiser_evaluations:,}", "time": "{time}", "memory": "{memory}"}
    money = {} if made["cost"] is None else {"cost": "{cost:,.2f}"}
    rows = [dict(row) for row in (*made["stages"], {**made, "name": "together"}, *made["savings"])]
    for number, row in enumerate(rows, -len(made["stages"])):
        row |= {"number": number, "time": duration(row["seconds"]), "memory": f"{row['memory_bytes'] / 1e9:.2f} GB"}
        if "saved_seconds" in row:
            row["time"] += f" ({-row['saved_seconds'] / (made['seconds'] or 1):+.0%})"
    num_stages = 1 + len(made["stages"])
    return [
        f"{made['preset']}: {made['classes']} classes × {made['shots']} images, {made['test']} to classify, training "
        f"in {made['precision']}, {settings['objective']}, {settings['num_steps']} updates of "
        f"{settings['batch_size']} images, {settings['num_evidence']} (t, ε) pairs a test image",
        make_table({"": "{name}", **columns, **money}, rows[:num_stages]),
        make_table({"what would change": "{number} {title}", **columns}, rows[num_stages:]),
        *(f"{row['number']}: {row['how']}" for row in rows[num_stages:]),
        f"Seconds: {profile['source']}; {profile['machine']}.",
        *(f"Derived: {note}." for note in profile["derived"]),
        f"Memory: {made['memory_basis']}.",
    ]


def init(
    folder: Annotated[Path, Argument(help="The new project; must not exist or be empty.", callback=options.writable)],
    images: Annotated[Path, Option(help=CLASS_FOLDERS)],
    preset: options.Preset = "tiny",
    shots: options.Shots = 16,
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Write a configuration, a report on the images and a ready notebook for images of your own."""
    from gcpl_lab.workshop.project import create_project

    with counting("reading the images") as tell:
        files, report = create_project(folder, images, preset=preset, shots=shots, seed=seed, on_progress=tell)
    made = {"folder": str(folder), "files": [str(path) for path in files], "report": report}
    findings = (f"- {line}" for line in report["summary"])
    answer(made, as_json, *findings, f"Read {folder / 'data_report.md'}, then open {folder / 'notebook.ipynb'}.")


def recipe(
    file: Annotated[Path, Argument(help="One of recipes/*.json.")],
    data: Annotated[Path, Option(help="Where the images are, in the layout that the recipe names.")],
    output: options.Output = Path("runs/recipe"),
    most_test: Annotated[int | None, Option(min=1, help="Test images at most: a trial run.")] = None,
    shots: Annotated[int | None, Option(min=1, help="Images a class, other than the recipe's.")] = None,
    settings: options.Set = [],  # noqa: B006
    as_json: options.Json = False,
) -> None:
    """Run a published experiment and put our figure beside the published one; a rerun goes on."""
    from gcpl_lab.experiments.recipes import load_recipe, run_recipe

    loaded, chosen = load_recipe(file), options.parse_values(settings)
    with console.status("") as status:
        told = status.update
        made = run_recipe(loaded, data, output, most_test=most_test, shots=shots, settings=chosen, on_stage=told)
    columns = {"method": "{method}", "metric": "{metric}", "published": "{published:.2f}", "ours": "{shown}"}
    rows = [{**row, "shown": "–" if row["ours"] is None else f"{row['ours']:.2f}"} for row in made["results"]]
    lines = [f"Not the published settings: {json.dumps(made['changed'])}"] if made["changed"] else []
    answer(made, as_json, make_table(columns, rows, made["title"], num_text_columns=2), *lines)
