"""The command line: one program with verbs. Heavy libraries load inside the verbs that need them."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gcpl_lab.cli.course import register as register_course
from gcpl_lab.cli.multilabel import register
from gcpl_lab.cli.options import (
    JsonOption,
    SeedOption,
    SeedsOption,
    WorkersOption,
    console,
    find_tools,
    parse_seeds,
    print_json,
)
from gcpl_lab.cli.project import register as register_project
from gcpl_lab.cli.views import register as register_views
from gcpl_lab.errors import DataError, LabError
from gcpl_lab.training.processes import processes

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Teach a frozen vision-language model look-alike classes from a few photographs, and measure if it works.",
)
train_app = typer.Typer(no_args_is_help=True, help="Learn prompts with one of the methods.")
app.add_typer(train_app, name="train")
INTERRUPTED = 130

PresetOption = Annotated[str, typer.Option(help="Name of the frozen models, or a folder with diffusion/ and clip/.")]
ShotsOption = Annotated[int, typer.Option(min=1, help="Photographs a class to learn from.")]


def main() -> None:
    """Run the program; errors that a user can act on are one message without a traceback."""
    here = processes()
    if here.count == 1:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the end of a spot machine is an interruption
    elif here.index > 0:  # of accelerate launch: one process speaks, and the others when something goes wrong
        console.quiet, sys.stdout = True, io.StringIO()
    try:
        app()
    except LabError as error:
        console.quiet = False
        console.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer turns Ctrl-C into this
            console.print(
                "Interrupted. train, compare, ablate and pretrain go on where the same command is given again."
            )
        raise


def _settings(pairs: list[str], **options: Any) -> dict[str, Any]:
    """``name=value`` texts, values read as JSON where they are JSON and as text otherwise, with other options.

    Args:
        pairs: What ``--set`` was given.
        **options: Settings that have an option of their own.
    """
    from gcpl_lab.gcpl.settings import GCPLConfig

    found = dict(options)
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise typer.BadParameter(f"{pair!r} is no setting; expected name=value, such as num_steps=300")
        if name in ("preset", "objective", "seed"):
            raise typer.BadParameter(f"{pair!r}: preset, objective and seed are options of their own, see --help")
        try:
            found[name] = json.loads(text)
        except json.JSONDecodeError:
            found[name] = text
    try:
        config = GCPLConfig.from_dict(found)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    return {name: getattr(config, name) for name in found}


SetOption = Annotated[
    list[str], typer.Option("--set", help="A setting of the training, as name=value; may be given several times.")
]


# -------------------------------------------------------------------------------------------------- demo


class _Progress:
    """A live line for each method, from the events of :func:`gcpl_lab.experiments.demo.run_demo`."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.bars = Progress(
            TextColumn("{task.description:<30}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._lines: dict[str, Any] = {}

    def __call__(self, event: str, name: str, *values: Any) -> None:
        if event == "begin":
            self._lines[name] = self.bars.add_task(self._title(name), total=None, note="")
        elif event == "step":
            record, total = values
            self.bars.update(self._lines[name], total=total, completed=record.step, note=f"loss {record.loss:.3f}")
        else:
            total = self.bars.tasks[self._lines[name]].total or 1
            self.bars.update(self._lines[name], total=total, completed=total)

    @staticmethod
    def _title(name: str) -> str:
        from gcpl_lab.experiments.few_shot import METHOD_TITLES
        from gcpl_lab.experiments.multilabel import MULTILABEL_TITLES

        if name.startswith("scenes/"):
            return f"Scenes: {MULTILABEL_TITLES[name.removeprefix('scenes/')]}"
        return METHOD_TITLES.get(name, "Figures and report")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where report, figures and prompts go.")] = Path("runs/demo"),
    preset: PresetOption = "tiny",
    shots: ShotsOption = 16,
    seed: SeedOption = 0,
    test_total: Annotated[int, typer.Option("--test", min=10, help="Test photographs.")] = 300,
    settings: SetOption = [],  # noqa: B006  (typer reads the default, nothing changes it)
    multilabel: Annotated[bool, typer.Option(help="Show LMPT on the bundled scenes too.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Learn everything anew, whatever is kept.")] = False,
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Tell look-alike photographs apart, compare with simple baselines, and write a report."""
    chosen = _settings(settings)
    from gcpl_lab.experiments.demo import run_demo
    from gcpl_lab.training.workers import useful_workers

    progress = _Progress()
    with progress.bars:
        result = run_demo(
            folder,
            preset=preset,
            shots=shots,
            seed=seed,
            test_total=test_total,
            settings=chosen,
            multilabel=multilabel,
            fresh=fresh,
            num_workers=workers or useful_workers(),
            on_event=progress,
            command=_command(),
        )
    print_json(result.results, as_json)
    if not as_json:
        out = Console()
        out.print(_method_table(result.results["methods"]))
        out.print(escape(result.answer))
        for caveat in result.caveats:
            out.print(f"- {escape(caveat)}")
        page = escape(str(result.report))
        out.print(f"\nLook at [bold]{page}[/] (figures, prompts and results.json beside it).", soft_wrap=True)


def _command() -> str:
    return " ".join(["gcpl-lab", *sys.argv[1:]])


def _method_table(rows: list[dict[str, Any]]) -> Table:
    from gcpl_lab.experiments.few_shot import METHOD_TITLES

    table = Table(title="Test photographs told apart", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("method", "accuracy", "look-alikes", "UNet runs", "train s", "test s"):
        name = heading == "method"
        table.add_column(heading, justify="left" if name else "right", no_wrap=not name)
    for row in sorted(rows, key=lambda row: -row["accuracy"]):
        table.add_row(
            METHOD_TITLES[row["name"]],
            f"{row['accuracy']:.1%}",
            f"{row['accuracy_within_family']:.1%}",
            f"{row['denoiser_evaluations']:,}",
            f"{row['train_seconds']:.1f}",
            f"{row['predict_seconds']:.1f}",
        )
    return table


# --------------------------------------------------------------------------------------- train, classify


@train_app.command("gcpl")
def train(
    images: Annotated[Path, typer.Argument(help="Folder with one sub-folder a class, or with a metadata.csv.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where prompts go.")] = Path("runs/prompts"),
    objective: Annotated[str, typer.Option(help="gcpl, comple or discriminative.")] = "gcpl",
    shots: Annotated[int, typer.Option(min=0, help="Photographs a class; 0 takes all.")] = 16,
    preset: PresetOption = "tiny",
    seed: SeedOption = 0,
    settings: SetOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Learn class prompts from a folder of photographs; the same command resumes an interrupted run."""
    from gcpl_lab.models.presets import find_preset, resolve

    resolve(find_preset(preset), "diffusion")  # absent weights are told before anything heavy is loaded
    chosen = _settings(settings, objective=objective, preset=preset, seed=seed)
    from gcpl_lab.data.episodes import draw_episode
    from gcpl_lab.data.folders import read_image_folder
    from gcpl_lab.gcpl.estimator import GCPLClassifier

    pool = read_image_folder(images)
    if shots:
        pool = pool.subset(draw_episode(pool, shots, seed))
    model = GCPLClassifier(**chosen)
    checkpoints = output / "checkpoint"
    progress = _Progress()
    total = model.config.num_steps + (model.config.discriminative_steps if objective == "discriminative" else 0)
    with progress.bars:
        progress("begin", objective)
        for record in model.steps(pool.images, pool.labels, pool.class_names, checkpoint_folder=checkpoints):
            progress("step", objective, record, total)
        progress("end", objective)
    model.save(output)
    shutil.rmtree(checkpoints, ignore_errors=True)  # of no use any more; other pictures may come next
    print_json({"output": str(output), "classes": list(pool.class_names), "pictures": len(pool)}, as_json)
    if not as_json:
        learned = f"Learned {len(pool.class_names)} class prompts from {len(pool)} photographs"
        Console().print(f"{learned}: {escape(str(output))}", soft_wrap=True)


@app.command()
def classify(
    prompts: Annotated[Path, typer.Argument(help="Folder written by train.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    as_json: JsonOption = False,
) -> None:
    """Say which class prompt denoises each picture best, with probabilities."""
    from gcpl_lab.gcpl.estimator import GCPLClassifier

    files = [file for path in images for file in (_pictures_below(path) if path.is_dir() else [path])]
    model = GCPLClassifier.load(prompts)
    chances = model.predict_proba(files)
    answers: list[dict[str, Any]] = [
        {
            "file": str(file),
            "class": model.class_names_[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": dict(zip(model.class_names_, map(float, row), strict=True)),
        }
        for file, row in zip(files, chances, strict=True)
    ]
    print_json(answers, as_json)
    if not as_json:
        table = Table("file", "class", "probability")
        for answer in answers:
            table.add_row(escape(answer["file"]), escape(answer["class"]), f"{answer['probability']:.1%}")
        Console().print(table)


def _pictures_below(folder: Path) -> list[Path]:
    """The pictures of a folder and its sub-folders; hidden ones do not count."""
    from gcpl_lab.data.readers import IMAGE_SUFFIXES, list_images

    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    shown = [path for path in folders if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    found = [picture for path in shown for picture in list_images(path)]
    if not found:
        raise DataError(f"{folder}: holds no picture; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


# ----------------------------------------------------------------------------------------------- compare


@app.command()
def compare(
    folder: Annotated[Path, typer.Option(help="Where every result is kept; a rerun goes on from there.")] = Path(
        "runs/compare"
    ),
    methods: Annotated[
        str, typer.Option(help="Names joined by commas, 'quick' (all but gcpl_published, minutes a draw), or 'all'.")
    ] = "quick",
    seeds: SeedsOption = "5",
    shots: Annotated[str, typer.Option(help="Numbers of photographs a class, joined by commas.")] = "16",
    reference: Annotated[str, typer.Option(help="The method the others are paired with.")] = "gcpl",
    images: Annotated[
        Path | None, typer.Option(help="Folder with support/ and test/ class folders; default: the bundled set.")
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(
            help="A set of gcpl_lab.data.published, such as textile; --images is then the folder "
            "that torchvision keeps it in."
        ),
    ] = None,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Judge on support photographs outside the exemplars and leave the test "
            "photographs alone: for choosing settings.",
        ),
    ] = False,
    preset: PresetOption = "tiny",
    settings: SetOption = [],  # noqa: B006
    workers: WorkersOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Methods × seeds × shots with mean, spread, paired differences, time and denoiser evaluations."""
    chosen = _settings(settings)
    from gcpl_lab.experiments.compare import run_comparison
    from gcpl_lab.training.workers import useful_workers

    names = _method_names(methods, reference)
    counts, draws = _shot_counts(shots), parse_seeds(seeds)
    with console.status("") as status:
        result = run_comparison(
            folder,
            methods=names,
            shots=counts,
            seeds=draws,
            reference=reference,
            images=images,
            published=published,
            held_out=held_out,
            preset=preset,
            settings=chosen,
            num_workers=workers or useful_workers(),
            command=_command(),
            on_trial=status.update,
        )
    print_json(result, as_json)
    if not as_json:
        Console().print(*_comparison_tables(result["summary"], reference), sep="\n")
        for line in _offset_lines(result["summary"]):
            Console().print(line)
        Console().print(f"Every result: {escape(str(folder / 'results.json'))}", soft_wrap=True)


def _method_names(text: str, reference: str) -> list[str]:
    from gcpl_lab.experiments.few_shot import METHODS, QUICK_METHODS

    groups = {"quick": QUICK_METHODS, "all": METHODS}
    names = list(groups[text]) if text in groups else [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in [*names, reference] if name not in METHODS]
    if unknown:
        raise typer.BadParameter(f"no method {', '.join(unknown)}; expected some of {', '.join(METHODS)}")
    return names


def _shot_counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r}: expected whole numbers joined by commas, such as 1,2,4,8,16") from None
    if min(counts) < 1:
        raise typer.BadParameter(f"{text!r}: expected numbers of 1 or more")
    return counts


def _comparison_tables(rows: list[dict[str, Any]], reference: str) -> list[Table]:
    """One table for each number of shots, narrow enough for a terminal of 80 columns."""
    return [
        _comparison_table([row for row in rows if row["shots"] == shots], shots, reference)
        for shots in sorted({row["shots"] for row in rows})
    ]


def _comparison_table(rows: list[dict[str, Any]], shots: int, reference: str) -> Table:
    from gcpl_lab.experiments.few_shot import METHOD_TITLES

    seeds = sorted({row["num_seeds"] for row in rows})
    table = Table(
        title=f"{shots} shots, {' or '.join(map(str, seeds))} seeds; accuracy in percent, differences from "
        f"{METHOD_TITLES[reference]} with 95 % intervals",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading in ("method", "accuracy", "difference", "UNet runs", "train s", "test s"):
        name = heading == "method"
        table.add_column(heading, justify="left" if name else "right", no_wrap=not name)
    for row in sorted(rows, key=lambda row: -row["mean"]):
        spread = "" if row["standard_deviation"] is None else f" ± {100 * row['standard_deviation']:.1f}"
        own = row["method"] == reference or row["difference"] is None
        difference = "" if own else f"{100 * row['difference']:+.1f}"
        if not own and row["low"] is not None:
            difference += f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        table.add_row(
            METHOD_TITLES[row["method"]],
            f"{100 * row['mean']:.1f}{spread}",
            difference,
            f"{row['denoiser_evaluations']:,.0f}",
            f"{row['train_seconds']:.1f}",
            f"{row['predict_seconds']:.1f}",
        )
    return table


def _offset_lines(rows: list[dict[str, Any]]) -> list[str]:
    """What fitted offsets were worth to each method that has them, and how it reads with the other weighting."""
    from gcpl_lab.experiments.few_shot import METHOD_TITLES

    lines = []
    for row in rows:
        if "offsets" not in row:
            continue
        gain, readings = row["offsets"], row["readings"]
        interval = "" if gain["low"] is None else f" ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"
        others = ", ".join(f"{name} {100 * value:.1f}" for name, value in readings.items())
        lines.append(
            f"{METHOD_TITLES[row['method']]}, {row['shots']} shots: offsets {100 * gain['difference']:+.1f}{interval}; "
            f"errors read {others}"
        )
    return lines


# ------------------------------------------------------------------------------------- pretrain, lab


@app.command()
def pretrain(
    raw: Annotated[Path, typer.Option(help="Folder with the four published Fashion-MNIST files.")] = Path(
        "/usr/share/datasets/fashion-mnist"
    ),
    work: Annotated[Path, typer.Option(help="Checkpoints and logs; a rerun goes on.")] = Path("runs/pretrain"),
    target: Annotated[Path, typer.Option(help="Where the finished pair goes.")] = Path("runs/pretrain/tiny"),
    seed: SeedOption = 0,
) -> None:
    """Rebuild the tiny frozen models from the raw photographs (hours; resumable)."""
    from gcpl_lab.models.presets import PRESETS

    find_tools()
    from tools.model_card import write_card
    from tools.pretrain import PretrainConfig, run_pretraining

    with console.status("") as status:
        for record in run_pretraining(raw, work, target, PretrainConfig(seed=seed)):
            status.update(
                f"{record['stage']}: step {record['step']} of {record['num_steps']}, loss {record['loss']:.4f}"
            )
        status.update("measuring for the card")
        card = write_card(target, raw, PRESETS["tiny"].evidence_range)
    console.print(escape(f"The pair is in {target}; its card is {card}."), soft_wrap=True)


@app.command("build-samples")
def build_samples(
    raw: Annotated[Path, typer.Option(help="Folder with the four published Fashion-MNIST files.")] = Path(
        "/usr/share/datasets/fashion-mnist"
    ),
    target: Annotated[Path, typer.Option(help="The folder data_samples.")] = Path("data_samples"),
    seed: SeedOption = 0,
) -> None:
    """Rebuild the bundled photographs from the raw ones: the same seed gives the same bytes."""
    from gcpl_lab.data.samples import build_fashion
    from gcpl_lab.data.wardrobe import build_wardrobe

    console.print(escape(f"wrote {build_fashion(raw, target / 'fashion', seed)}"), soft_wrap=True)
    console.print(escape(f"wrote {build_wardrobe(raw, target / 'wardrobe_lt', seed)}"), soft_wrap=True)


@app.command()
def lab(notebooks: Annotated[Path, typer.Option(help="Folder of notebooks.")] = Path("notebooks")) -> None:
    """Open JupyterLab on the notebooks."""
    import subprocess

    if not notebooks.is_dir():
        raise typer.BadParameter(f"{notebooks}: no such folder; run this where the project was cloned")
    sys.exit(subprocess.call([sys.executable, "-m", "jupyter", "lab", f"--notebook-dir={notebooks}"]))


register(app, train_app)
register_project(app)
register_course(app)
register_views(app)
