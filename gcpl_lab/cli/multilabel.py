"""Verbs for pictures with several labels: ``train lmpt``, ``evaluate``, ``ablate lmpt``, ``caption``.

``register`` adds them to the program; heavy libraries load inside the verbs that need them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gcpl_lab.cli.options import JsonOption, SeedOption, SeedsOption, WorkersOption, console, parse_seeds, print_json
from gcpl_lab.errors import DataError

if TYPE_CHECKING:
    from gcpl_lab.data.multilabel import MultiLabelSet


PresetOption = Annotated[str, typer.Option(help="Name of the frozen models, or a folder with clip/ in it.")]
SetOption = Annotated[
    list[str], typer.Option("--set", help="A setting of the training, as name=value; may be given several times.")
]
ListOption = Annotated[Path | None, typer.Option("--list", help="Long-tail list: a path and label ids a line.")]
LabelsOption = Annotated[Path | None, typer.Option("--labels", help="With --list: names of the classes.")]
ImagesOption = Annotated[Path | None, typer.Option("--images", help="What the listed paths are relative to.")]
CaptionsOption = Annotated[Path | None, typer.Option("--captions", help="With --list: a caption a line.")]
MetadataOption = Annotated[Path | None, typer.Option("--metadata", help="metadata.csv or .jsonl instead of a list.")]
RowsOption = Annotated[
    list[str], typer.Option("--rows", help="With --metadata: take rows with column=value, such as split=train.")
]

ablate_app = typer.Typer(no_args_is_help=True, help="Measure what each part of a method adds.")


def register(app: typer.Typer, train_app: typer.Typer) -> None:
    """Add the verbs of this module.

    Args:
        app: The program.
        train_app: Its group ``train``.
    """
    train_app.command("lmpt")(train_lmpt)
    app.command("evaluate")(evaluate)
    app.add_typer(ablate_app, name="ablate")
    app.command("caption")(caption)


# -------------------------------------------------------------------------------------------- the data


def _read_data(
    split: str,
    list_file: Path | None,
    labels: Path | None,
    images: Path | None,
    captions: Path | None,
    metadata: Path | None,
    rows: list[str],
    class_names: list[str] | None = None,
    scenes: Path | None = None,
) -> MultiLabelSet:
    """The set that the options name; the bundled scenes where they name none."""
    from gcpl_lab.data.multilabel import read_longtail_list, read_metadata
    from gcpl_lab.data.wardrobe import load_wardrobe

    if metadata and list_file:
        raise typer.BadParameter("--list and --metadata are two ways to name pictures; give one of them")
    if list_file:
        if labels is None:
            raise typer.BadParameter("--list needs --labels, the file with the names of the classes")
        return read_longtail_list(list_file, labels, images or list_file.parent, captions)
    if metadata:
        return read_metadata(
            metadata,
            image_folder=images,
            file_column=_file_column(metadata),
            rows=_pairs(rows),
            class_names=class_names,
        )
    return load_wardrobe(split, scenes)  # type: ignore[arg-type]


def _file_column(metadata: Path) -> str:
    """``filename`` where the header says so, else the ``file_name`` of the Hugging Face convention."""
    with open(metadata, encoding="utf-8-sig") as stream:
        return "filename" if "filename" in stream.readline().replace('"', "").strip().split(",") else "file_name"


def _pairs(texts: list[str]) -> dict[str, str]:
    parts = [text.partition("=") for text in texts]
    for text, (name, sign, _) in zip(texts, parts, strict=True):
        if not sign or not name:
            raise typer.BadParameter(f"{text!r} is no condition; expected column=value, such as split=train")
    return {name: value for name, _, value in parts}


def _settings(texts: list[str], **fixed: Any) -> dict[str, Any]:
    """Settings of LMPT from ``name=value`` texts, values read as JSON where they are JSON."""
    from gcpl_lab.lmpt.settings import LMPTConfig

    found: dict[str, Any] = {}
    for name, value in _pairs(texts).items():
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    try:
        return LMPTConfig.from_dict({**fixed, **found}).as_dict()
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def _command() -> str:
    return " ".join(["gcpl-lab", *sys.argv[1:]])


# --------------------------------------------------------------------------------------- train, evaluate


def train_lmpt(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where prompts go.")] = Path("runs/lmpt"),
    list_file: ListOption = None,
    labels: LabelsOption = None,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    metadata: MetadataOption = None,
    rows: RowsOption = [],  # noqa: B006  (typer reads the default, nothing changes it)
    preset: PresetOption = "tiny",
    seed: SeedOption = 0,
    settings: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Learn prompts for pictures with several labels; the same command resumes an interrupted run.

    Without data options: the bundled scenes.
    """
    from gcpl_lab.models.presets import find_preset, resolve

    resolve(find_preset(preset), "clip")  # absent weights are told before anything heavy is loaded
    chosen = _settings(settings, preset=preset, seed=seed)
    from gcpl_lab.lmpt.estimator import LMPTClassifier

    data = _read_data("train", list_file, labels, images, captions, metadata, rows)
    for warning in data.warnings:
        console.print(escape(warning))
    model = LMPTClassifier(**chosen)
    with console.status("encoding pictures") as status:
        for record in model.steps(
            data.images, data.targets, data.class_names, data.captions, checkpoint_folder=output / "checkpoint"
        ):
            status.update(f"step {record.step} of {model.num_steps_}, loss {record.loss:.4f}")
    model.save(output)
    found = model.validation_map_
    print_json(
        {"output": str(output), "pictures": len(data), "classes": list(data.class_names), "validation_map": found},
        as_json,
    )
    if not as_json:
        Console().print(
            f"Learned prompts for {len(data.class_names)} classes from {len(data)} pictures "
            f"(mAP {found:.3f} on those kept for validation): {escape(str(output))}"
        )


def evaluate(
    prompts: Annotated[Path, typer.Argument(help="Folder written by train lmpt.")],
    list_file: ListOption = None,
    labels: LabelsOption = None,
    images: ImagesOption = None,
    metadata: MetadataOption = None,
    rows: RowsOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Measure learned multi-label prompts on labelled pictures: mAP over head, medium and tail, and each class.

    Without data options: the bundled test scenes.
    """
    from gcpl_lab.lmpt.estimator import LMPTClassifier

    model = LMPTClassifier.load(prompts)
    names = [str(name) for name in model.classes_]
    data = _read_data("test", list_file, labels, images, None, metadata, rows, names)
    if list(data.class_names) != names:
        raise DataError(
            f"{data.name}: has the classes {', '.join(data.class_names)}; the prompts were learned for "
            f"{', '.join(names)}, in that order"
        )
    report = model.evaluate(data.images, data.targets)
    print_json({"data": data.name, **report}, as_json)
    if not as_json:
        out = Console()
        out.print(_class_table(report))
        out.print(
            "   ".join(
                f"{title} {_percent(report[key])}"
                for key, title in (
                    ("map", "mAP"),
                    ("map_head", "head"),
                    ("map_medium", "medium"),
                    ("map_tail", "tail"),
                    ("f1_macro", "F1 (macro)"),
                    ("f1_micro", "F1 (micro)"),
                    ("calibration_error", "calibration error"),
                )
            )
        )
        if report["classes_without_positives"]:
            out.print("No picture shows " + escape(", ".join(report["classes_without_positives"])) + "; not averaged.")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _class_table(report: dict[str, Any]) -> Table:
    table = Table(title="Average precision of each class")
    for heading in ("class", "part", "training pictures", "test pictures", "average precision"):
        table.add_column(heading, justify="left" if heading in ("class", "part") else "right")
    for entry in sorted(report["classes"], key=lambda entry: -entry["num_train"]):
        table.add_row(
            escape(entry["name"]),
            entry["part"],
            str(entry["num_train"]),
            str(entry["num_test"]),
            _percent(entry["average_precision"]),
        )
    return table


# ------------------------------------------------------------------------------------------------ ablate


@ablate_app.command("lmpt")
def ablate_lmpt(
    folder: Annotated[Path, typer.Option(help="Where every result is kept; a rerun goes on from there.")] = Path(
        "runs/ablation"
    ),
    seeds: SeedsOption = "5",
    metadata: MetadataOption = None,
    images: ImagesOption = None,
    train_rows: Annotated[list[str], typer.Option(help="With --metadata: rows to learn from.")] = ["split=train"],  # noqa: B006
    scenes: Annotated[
        Path | None, typer.Option(help="Scenes with another tail, made by gcpl_lab.data.wardrobe.build_wardrobe.")
    ] = None,
    test_rows: Annotated[list[str], typer.Option(help="With --metadata: rows to measure on.")] = ["split=test"],  # noqa: B006
    methods: Annotated[bool, typer.Option(help="Compare with the baselines too.")] = True,
    validation: Annotated[
        int, typer.Option(min=0, help="Compare candidate settings on so many parts of the training pictures instead.")
    ] = 0,
    tails: Annotated[
        int, typer.Option(min=0, help="Compare LMPT, CoOp and zero-shot on so many newly drawn tails instead.")
    ] = 0,
    raw: Annotated[
        Path | None, typer.Option(help="With --tails: the published Fashion-MNIST files they are drawn from.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="The method that others are paired with: coop_bce, linear_probe, ...")
    ] = "coop_bce",
    preset: PresetOption = "tiny",
    settings: SetOption = [],  # noqa: B006
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """What captions, margin, re-weighting and the balanced loss add, over seeds; and what wrong captions cost.

    With --validation: which settings are best where the test pictures are not looked at. With --tails: whether the
    comparison holds on scenes with other photographs, in which other classes are rare.
    """
    chosen, numbers = _settings(settings, preset=preset), parse_seeds(seeds)
    from gcpl_lab.experiments.multilabel import (
        MULTILABEL_METHODS,
        MultiLabelExperiment,
        run_ablation,
        run_multilabel_comparison,
        run_tails,
        run_validation,
    )
    from gcpl_lab.experiments.multilabel_reports import draw_ablation
    from gcpl_lab.training.workers import useful_workers

    num_workers = workers or useful_workers()
    if reference not in MULTILABEL_METHODS:
        raise typer.BadParameter(f"no method {reference}; expected one of {', '.join(MULTILABEL_METHODS)}")
    if validation and tails:
        raise typer.BadParameter("--validation and --tails are two measurements; ask for one of them")
    if tails:
        with console.status("") as status:
            drawn = [_draw_tail(folder / "scenes", number, raw, status.update) for number in range(tails)]
            experiments = [MultiLabelExperiment(*sets, settings=chosen, preset=preset) for sets in drawn]
            result = run_tails(
                folder,
                experiments,
                seeds=numbers,
                reference=reference,
                num_workers=num_workers,
                command=_command(),
                on_trial=status.update,
            )
        _show({"tails": result}, as_json, folder)
        return

    train = _read_data("train", None, None, images, None, metadata, train_rows, scenes=scenes)
    test = _read_data("test", None, None, images, None, metadata, test_rows, list(train.class_names), scenes)
    experiment = MultiLabelExperiment(train, test, settings=chosen, preset=preset)
    results: dict[str, Any] = {}
    if validation:
        with console.status("") as status:
            result = run_validation(
                folder, experiment, num_parts=validation, command=_command(), on_trial=status.update
            )
        _show({"validation": result}, as_json, folder)
        return
    with console.status("") as status:
        on_trial: Callable[[str], None] = status.update
        if methods:
            results["comparison"] = run_multilabel_comparison(
                folder / "methods",
                experiment,
                seeds=numbers,
                reference=reference,
                num_workers=num_workers,
                command=_command(),
                on_trial=on_trial,
            )
        results["ablation"] = run_ablation(
            folder, experiment, seeds=numbers, num_workers=num_workers, command=_command(), on_trial=on_trial
        )
    draw_ablation(results, folder / "figures")
    _show(results, as_json, folder)


def _draw_tail(folder: Path, number: int, raw: Path | None, on_tail: Callable[[str], None]) -> list[MultiLabelSet]:
    """Training and test scenes with a tail of their own, built where they are not there yet."""
    from gcpl_lab.data.fashion import DEBIAN_FOLDER
    from gcpl_lab.data.wardrobe import build_wardrobe, draw_tail_order, load_wardrobe

    target = folder / str(number)
    if not target.is_dir():
        on_tail(f"tail {number}: composing scenes")
        # Seed 0 made the bundled scenes.
        build_wardrobe(raw or DEBIAN_FOLDER, target, seed=number + 1, tail_order=draw_tail_order(number))
    return [load_wardrobe("train", target), load_wardrobe("test", target)]


def _show(results: dict[str, Any], as_json: bool, folder: Path) -> None:
    print_json(results, as_json)
    if not as_json:
        out = Console()
        for result in results.values():
            out.print(_summary_table(result))
        out.print(f"Every result is in {escape(str(folder))}.")


def _summary_table(result: dict[str, Any]) -> Table:
    """Mean ± standard deviation over seeds, tails or parts, and the paired difference of total and tail mAP."""
    from gcpl_lab.experiments.multilabel import ABLATION_TITLES, MULTILABEL_TITLES

    titles = {**ABLATION_TITLES, **MULTILABEL_TITLES} if "caption_noise" not in result else ABLATION_TITLES
    reference = titles.get(result["reference"], result["reference"])
    table = Table(
        title=f"mAP, mean ± standard deviation; differences (95 %) are paired with {reference}",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    scores = list(result["summary"])
    columns = ["", *(score.replace("map_", "").replace("map", "all") for score in scores), "Δ all"]
    columns += ["Δ tail"] if "map_tail" in scores else []
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    tables = {score: {entry["method"]: entry for entry in entries} for score, entries in result["summary"].items()}
    for method in tables["map"]:
        cells = [_mean(tables[score][method]) for score in scores]
        differences = [_difference(tables[score][method]) for score in ("map", "map_tail") if score in scores]
        table.add_row(titles.get(method, method), *cells, *differences)
    return table


def _mean(entry: dict[str, Any]) -> str:
    spread = "" if entry["standard_deviation"] is None else f" ± {100 * entry['standard_deviation']:.1f}"
    return f"{100 * entry['mean']:.1f}{spread}"


def _difference(entry: dict[str, Any]) -> str:
    if entry["low"] is None:
        return "" if entry["difference"] is None else f"{100 * entry['difference']:+.1f}"
    return f"{100 * entry['difference']:+.1f} ({100 * entry['low']:+.1f} to {100 * entry['high']:+.1f})"


# ----------------------------------------------------------------------------------------------- caption


def caption(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    model: Annotated[str, typer.Argument(help="Image-to-text model: a folder, or a name on the Hugging Face hub.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Name of the file in the folder.")] = "metadata.csv",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a pass.")] = 8,
    device: Annotated[str, typer.Option(help="Where the model runs, such as cuda.")] = "cpu",
) -> None:
    """Write captions for the pictures of a folder that have none; the same command resumes an interrupted run."""
    from gcpl_lab.data.captioning import caption_folder

    with console.status("loading the model") as status:
        path = caption_folder(
            folder,
            model,
            output,
            batch_size=batch_size,
            device=device,
            on_progress=lambda done, total: status.update(f"{done} of {total} pictures"),
        )
    Console().print(f"Captions are in {escape(str(path))}; read some before you train on them.")
