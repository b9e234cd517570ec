"""Verbs around a run: ``doctor``, ``plan``, ``init`` and ``recipe``; ``register`` adds them to the program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gcpl_lab.cli.options import JsonOption, console, print_json
from gcpl_lab.errors import LabError

if TYPE_CHECKING:
    from gcpl_lab.experiments.plan import Plan, Profile


SetOption = Annotated[
    list[str], typer.Option("--set", help="A setting of the training, as name=value; may be given several times.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to the program."""
    app.command("doctor")(doctor)
    app.command("plan")(plan)
    app.command("init")(init)
    app.command("recipe")(recipe)


# ------------------------------------------------------------------------------------------------ doctor


def doctor(as_json: JsonOption = False) -> None:
    """Show the machine, the versions, the bundled data and which models can be used now."""
    from gcpl_lab.data.samples import load_fashion
    from gcpl_lab.models.presets import PRESETS, describe_preset, preset_facts
    from gcpl_lab.training.machine import describe_free_memory, describe_machine, describe_versions

    report: dict[str, Any] = {
        "machine": {**describe_machine(), **describe_free_memory()},
        "versions": describe_versions(),
        "samples": {},
    }
    for split in ("support", "test"):
        try:
            found = load_fashion(split)
            report["samples"][f"fashion/{split}"] = f"{len(found)} pictures, checksums right"
        except LabError as error:
            report["samples"][f"fashion/{split}"] = f"not usable: {error}"
    report["presets"] = {
        name: {"state": describe_preset(preset), **preset_facts(preset)} for name, preset in PRESETS.items()
    }
    print_json(report, as_json)
    if not as_json:
        for title in ("machine", "versions", "samples"):
            table = Table(title=title, show_header=False, title_justify="left", title_style="bold")
            for key, value in report[title].items():
                table.add_row(str(key), escape(str(value)))
            Console().print(table)
        _show_presets(report["presets"])


def _show_presets(presets: dict[str, dict[str, Any]]) -> None:
    """One table to choose by, and below it what can be used now and how to get the rest."""
    table = Table(
        title="presets", title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for heading in ("", "px", "download", "training", "classifying", "licence"):
        table.add_column(heading, justify="left" if heading in ("", "licence") else "right", no_wrap=True)
    for name, facts in presets.items():
        sizes = [facts[key] for key in ("download_gb", "training_gb", "classifying_gb")]
        shown = [f"{size:.1f} GB" if size else "" for size in sizes]  # nothing to fetch, or not counted
        table.add_row(name, str(facts["image_size"] or ""), *shown, escape(facts["licence"]))
    out = Console()
    out.print(table)
    out.print(
        "Memory in float32 for one picture a pass; bfloat16 takes half. gcpl-lab plan counts it for your case.",
        soft_wrap=True,
    )
    for name, facts in presets.items():
        out.print(
            f"[bold]{name}[/] ({escape(facts['source'])}): {escape(facts['state'])}", soft_wrap=True, highlight=False
        )


# -------------------------------------------------------------------------------------------------- plan


def plan(
    preset: Annotated[str, typer.Option(help="Name of the frozen models, or a folder of models.")] = "tiny",
    classes: Annotated[int, typer.Option(min=2, help="Classes to tell apart.")] = 10,
    shots: Annotated[int, typer.Option(min=1, help="Photographs a class to learn from.")] = 16,
    test: Annotated[int, typer.Option(min=0, help="Photographs to classify.")] = 300,
    objective: Annotated[str, typer.Option(help="gcpl, comple or discriminative.")] = "gcpl",
    settings: SetOption = [],  # noqa: B006  (typer reads the default, nothing changes it)
    recorded: Annotated[
        bool | None,
        typer.Option(
            "--recorded/--measure",
            help="Take recorded seconds, or time a few steps here [default: time them where the weights are here].",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures a timed step [default: as many as one training pass has].")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="What an hour of the machine costs.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the timed profile to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a run will cost before it is started: evaluations, time, memory, money, and what would save some."""
    from gcpl_lab.experiments.plan import make_plan, published_config
    from gcpl_lab.storage import write_json

    try:
        config = published_config(preset, classes, objective=objective, **_pairs(settings))
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    profile = _profile(preset, recorded, batch_size or min(config.batch_size, config.micro_batch_size or 40))
    if save:
        write_json(save, profile.as_dict())
    made = make_plan(
        preset,
        num_classes=classes,
        num_shots=shots,
        num_test=test,
        config=config,
        profile=profile,
        price_per_hour=price,
    )
    print_json(made.as_dict(), as_json)
    if not as_json:
        _show_plan(made)


def _pairs(texts: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise typer.BadParameter(f"{text!r} is no setting; expected name=value, such as num_steps=300")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _profile(preset: str, recorded: bool | None, batch_size: int) -> Profile:
    """Recorded seconds where they are asked for or the weights are absent; else those of this machine."""
    from gcpl_lab.experiments.plan import load_profile, measure_profile
    from gcpl_lab.models.presets import find_preset, locate

    if recorded is None:
        recorded = locate(find_preset(preset), "diffusion").path is None
        if recorded:
            console.print(
                f"The weights of {escape(preset)} are not here: these are recorded seconds of another machine.",
                soft_wrap=True,
            )
    if recorded:
        return load_profile(preset)
    from gcpl_lab.models.diffusion import FrozenDiffusion
    from gcpl_lab.training.device import default_device

    with console.status("timing a few steps"):
        diffusion = FrozenDiffusion.load(preset, device=default_device())
        return measure_profile(diffusion, preset=preset, batch_size=batch_size)


def _show_plan(made: Plan) -> None:
    out = Console()
    out.print(
        f"{escape(made.preset)}: {made.num_classes} classes × {made.num_shots} photographs, {made.num_test} to "
        f"classify, training in {made.precision}, {made.config.objective}, {made.config.num_steps} updates of "
        f"{made.config.batch_size} pictures, {made.config.num_evidence} (t, ε) pairs a test photograph",
        soft_wrap=True,
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    headings = ["", "UNet evaluations", "time", "memory", *(["cost"] if made.price_per_hour is not None else [])]
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for stage in made.stages:
        cells = [stage.name, f"{stage.denoiser_evaluations:,}", duration(stage.seconds), _gigabytes(stage.memory_bytes)]
        table.add_row(*cells, *([f"{stage.cost:,.2f}"] if stage.cost is not None else []))
    total = ["together", f"{made.denoiser_evaluations:,}", duration(made.seconds), _gigabytes(made.memory_bytes)]
    table.add_row(*total, *([f"{made.cost:,.2f}"] if made.cost is not None else []), style="bold")
    out.print(table)
    table = Table("what would change", "UNet evaluations", "time", "memory", box=SIMPLE_HEAD, pad_edge=False)
    for saving in made.savings:
        change = -saving.saved_seconds / made.seconds if made.seconds else 0.0
        table.add_row(
            f"{saving.title}\n[dim]{escape(saving.how)}[/]",
            f"{saving.denoiser_evaluations:,}",
            f"{duration(saving.seconds)} ({change:+.0%})",
            _gigabytes(saving.memory_bytes),
        )
    out.print(table)
    profile = made.profile
    out.print(f"Seconds: {escape(profile.source)}; {escape(profile.machine)}.", soft_wrap=True, highlight=False)
    for note in profile.derived:
        out.print(f"Derived: {escape(note)}.", soft_wrap=True, highlight=False)
    from gcpl_lab.models.presets import MEMORY_BASIS

    out.print(f"Memory: {MEMORY_BASIS}.", soft_wrap=True, highlight=False)


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``"12 s"``, ``"3.5 min"``, ``"7.2 h"``, ``"51 days"``."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:,.0f} days"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


# -------------------------------------------------------------------------------------------------- init


def init(
    folder: Annotated[Path, typer.Argument(help="The new project; must not exist or be empty.")],
    images: Annotated[
        Path,
        typer.Option(help="Class folders, or pictures with a metadata.csv; or support/ and test/ with one of the two."),
    ],
    preset: Annotated[str, typer.Option(help="Name of the frozen models, or a folder of models.")] = "tiny",
    shots: Annotated[int, typer.Option(min=1, help="Photographs a class to learn from.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a configuration, a report on the pictures and a ready notebook for pictures of your own."""
    from gcpl_lab.workshop.project import create_project

    with console.status("reading the pictures") as status:
        project = create_project(
            folder,
            images,
            preset=preset,
            shots=shots,
            seed=seed,
            on_progress=lambda done, total: status.update(f"{done} of {total} pictures"),
        )
    print_json(
        {"folder": str(project.folder), "files": [str(path) for path in project.files], "report": project.report},
        as_json,
    )
    if not as_json:
        out = Console()
        for line in project.summary:
            out.print(f"- {escape(line)}", soft_wrap=True, highlight=False)
        out.print(
            f"Read {escape(str(project.folder / 'data_report.md'))}, then open "
            f"[bold]{escape(str(project.folder / 'notebook.ipynb'))}[/].",
            soft_wrap=True,
        )


# ------------------------------------------------------------------------------------------------ recipe


def recipe(
    file: Annotated[Path, typer.Argument(help="One of recipes/*.json.")],
    data: Annotated[Path, typer.Option(help="Where the pictures are, in the layout that the recipe names.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where prompts and results go.")] = Path("runs/recipe"),
    most_test: Annotated[int | None, typer.Option(min=1, help="Test pictures at most: a trial run.")] = None,
    shots: Annotated[int | None, typer.Option(min=1, help="Photographs a class, other than the recipe's.")] = None,
    settings: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Run a published experiment and put our figure beside the published one; a rerun goes on."""
    from gcpl_lab.experiments.recipes import load_recipe, run_recipe

    loaded = load_recipe(file)
    with console.status("") as status:
        answer = run_recipe(
            loaded, data, output, most_test=most_test, shots=shots, settings=_pairs(settings), on_stage=status.update
        )
    print_json(answer, as_json)
    if not as_json:
        table = Table("method", "metric", "published", "ours", title=escape(answer["title"]))
        for row in answer["results"]:
            ours = "–" if row["ours"] is None else f"{row['ours']:.2f}"
            table.add_row(row["method"], row["metric"], f"{row['published']:.2f}", ours)
        Console().print(table)
        if answer["changed"]:
            Console().print(f"Not the published settings: {escape(json.dumps(answer['changed']))}", soft_wrap=True)
