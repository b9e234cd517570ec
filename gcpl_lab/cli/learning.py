"""Commands that learn prompts and use them: ``train``, ``classify``, ``evaluate``; and ``caption`` for their data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from typer import Argument, BadParameter, Option

from gcpl_lab.cli import options
from gcpl_lab.cli.answers import LiveProgress, answer, console, counting, make_table, percent
from gcpl_lab.errors import DataError
from gcpl_lab.storage import check_writable

if TYPE_CHECKING:
    from gcpl_lab.data.sets import ImageSet

HELD_OUT = "Images outside the exemplars that it is measured on at the end, at most; 0: none."
SHARE = "Share of the images that it is measured on at the end, where there is no --test; 0: none."
TEST = "Images that it is measured on: rows of --metadata, such as split=test; with --list, another list."
LOOK = "Page, figures, map, animation and deck of it: gcpl-lab report {} ({:.1f} MB of states are kept for them)."
CLASSIFIED = 32  # images between two messages

List = Annotated[Path | None, Option("--list", help="Long-tail list: a path and label ids a line.")]
Labels = Annotated[Path | None, Option("--labels", help="With --list: names of the classes.")]
Images = Annotated[Path | None, Option("--images", help="What the listed paths are relative to.")]
Captions = Annotated[Path | None, Option("--captions", help="With --list: a caption a line.")]
Metadata = Annotated[Path | None, Option("--metadata", help="metadata.csv or .jsonl instead of a list.")]
Rows = Annotated[list[str], Option("--rows", help="With --metadata: rows with column=value, such as split=train.")]


def train_gcpl(
    images: Annotated[Path, Argument(help="Folder with one sub-folder a class, or with a metadata.csv.")],
    output: options.Output = Path("runs/prompts"),
    objective: options.Objective = "gcpl",
    shots: Annotated[int, Option(min=0, max=options.LARGEST, help="Images a class; 0 takes all.")] = 16,
    preset: options.Preset = "tiny",
    seed: options.Seed = 0,
    held_out: Annotated[int, Option(min=0, max=options.LARGEST, help=HELD_OUT)] = 100,
    settings: options.Set = [],  # noqa: B006  (typer reads the default, nothing changes it)
    as_json: options.Json = False,
) -> None:
    """Learn class prompts from a folder of images; the same command resumes an interrupted run."""
    from gcpl_lab.models.presets import find_preset, resolve

    resolve(find_preset(preset), "diffusion")  # absent weights are told before anything heavy is loaded
    from gcpl_lab.data.folders import draw_sets, refuse_parts
    from gcpl_lab.experiments.plan import count_updates
    from gcpl_lab.gcpl.estimator import GCPLClassifier
    from gcpl_lab.gcpl.settings import GCPLConfig
    from gcpl_lab.report import measure_left_out, note_training

    chosen = options.parse_settings(settings, GCPLConfig, objective=objective, preset=preset, seed=seed)
    refuse_parts(images)
    pool, others = draw_sets(images, shots, seed, held_out)
    model, names = GCPLClassifier(**chosen), list(pool.class_names)
    seen = tell_fit(pool, preset, model.config.fit, seed)
    checkpoints, total = output / "checkpoint", count_updates(model.config)
    with LiveProgress({}) as progress:
        progress("begin", objective)
        for record in model.steps(pool.images, pool.labels, names, checkpoint_folder=checkpoints):
            progress("step", objective, record, total)
        progress("end", objective)
    model.save(output)
    noted = {"images": str(images.resolve()), "shots": shots, "seed": seed, "held_out": held_out}
    kept = note_training(output, model, pool, others, {**options.run_options(1), **noted}) / 1e6
    shutil.rmtree(checkpoints, ignore_errors=True)  # of no use any more; other images may come next
    made: dict[str, Any] = {"output": str(output), "classes": names, "pictures": len(pool), "fit_of_models": seen}
    how = f"{len(pool)} images (images seen by {model.fit_}, {model.mirroring_})"
    learned = f"Learned {len(names)} class prompts from {how}: {output}"
    with console.status(f"measuring on {len(others)} images that were left out"):
        found, told = measure_left_out(model, others)
    made |= {"fit": model.fit_, "flip": model.mirroring_.flip, "held_out": found}
    answer(made, as_json, learned, told, LOOK.format(output, kept))


def tell_fit(exemplars: ImageSet, preset: str, fit: str, seed: int) -> dict[str, Any] | None:
    """Say whether the frozen models see the exemplars; None where this machine, or a class, has too little for it."""
    from gcpl_lab.evaluation.fit_of_models import fit_if_here

    with console.status("looking at what the frozen models see"):
        seen = fit_if_here(exemplars, preset, fit, seed)
    if seen is None:
        return None
    for line in seen.lines():
        console.print(escape(line), highlight=False, soft_wrap=True)
    return seen.as_dict()


def classify(
    prompts: Annotated[Path, Argument(help="Folder written by train.")],
    images: Annotated[list[Path], Argument(help="Images, or folders of images.")],
    preset: options.LearnedOn = None,
    table: Annotated[Path | None, Option("--csv", help="Write the answers to this file, too.")] = None,
    as_json: options.Json = False,
) -> None:
    """Say which class prompt denoises each image best, with probabilities."""
    from gcpl_lab.data.tables import write_csv
    from gcpl_lab.gcpl.estimator import GCPLClassifier

    files = [file for path in images for file in (_images_below(path) if path.is_dir() else [path])]
    if table:
        check_writable(table.parent)
    model, answers = GCPLClassifier.load(prompts, preset=preset), list[dict[str, Any]]()
    with counting("reading the images") as tell:
        for start in range(0, len(files), CLASSIFIED):
            part = files[start : start + CLASSIFIED]
            for file, row in zip(part, model.predict_proba(part), strict=True):
                chances = dict(zip(model.class_names_, map(float, row), strict=True))
                best = model.class_names_[int(row.argmax())]
                found = {"class": best, "probability": chances[best], "probabilities": chances}
                answers.append({"file": str(file), **found})
            tell(len(answers), len(files))
    columns = {"file": "{shown}", "class": "{class}", "probability": "{probability:.1%}"}
    rows = [{**one, "shown": shorten_path(one["file"])} for one in answers]
    if table:
        write_csv(table, [{"file": one["file"], "class": one["class"], **one["probabilities"]} for one in answers])
    answer(answers, as_json, make_table(columns, rows, num_text_columns=2))


def shorten_path(path: str, most: int = 44) -> str:
    """The end of a long path, which tells files apart: ``…/scratches_12.png``."""
    return path if len(path) <= most else f"…{path[1 - most :]}"


def _images_below(folder: Path) -> list[Path]:
    """The images of a folder and its sub-folders; hidden ones do not count."""
    from gcpl_lab.data.readers import IMAGE_SUFFIXES, list_images

    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    shown = [path for path in folders if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    found = [image for path in shown for image in list_images(path)]
    if not found:
        raise DataError(f"{folder}: holds no image; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def source_of(
    metadata: Path | None = None,
    images: Path | None = None,
    rows: list[str] | None = None,
    listed: tuple[Path | None, Path | None, Path | None] = (None, None, None),
) -> dict[str, Any]:
    """Where images with several labels are: a list with its labels and captions, a metadata file, or neither.

    What ``gcpl_lab.data.folders.read_labelled`` takes, with whole paths.
    """
    list_file, labels, captions = listed
    if not list_file and not metadata:
        given = {"--images": images, "--labels": labels, "--captions": captions, "--rows": rows}
        if alone := [name for name, value in given.items() if value]:
            raise BadParameter(f"{alone[0]} belongs to a list of images; give --list or --metadata, which names them")
        return {}
    if list_file and rows:
        raise BadParameter("--rows are rows of --metadata; a --list is read whole")
    if list_file and metadata:
        raise BadParameter("--list and --metadata are two ways to name images; give one of them")
    if list_file and labels is None:
        raise BadParameter("--list needs --labels, the file with the names of the classes")
    paths = {"file": metadata, "image_folder": images}
    if list_file:
        folder = images or list_file.parent
        paths = {"list_file": list_file, "labels_file": labels, "image_folder": folder, "captions_file": captions}
    source: dict[str, Any] = {name: str(path.absolute()) for name, path in paths.items() if path}
    return source | ({"rows": options.parse_pairs(rows, "condition", "split=train")} if rows else {})


def _tests_of(source: dict[str, Any], test: str | None) -> dict[str, Any] | None:
    """What differs in the source of the test images."""
    if test is None or not source:
        return None
    if "list_file" in source:
        return {"list_file": str(Path(test).absolute()), "captions_file": None}
    return {"rows": options.parse_pairs([test], "condition", "split=test")}


def train_lmpt(
    output: options.Output = Path("runs/lmpt"),
    list_file: List = None,
    labels: Labels = None,
    images: Images = None,
    captions: Captions = None,
    metadata: Metadata = None,
    rows: Rows = [],  # noqa: B006
    test: Annotated[str | None, Option(help=TEST)] = None,
    held_out: Annotated[float, Option(min=0, max=0.9, help=SHARE)] = 0.2,
    preset: options.Preset = "tiny",
    seed: options.Seed = 0,
    settings: options.Set = [],  # noqa: B006
    as_json: options.Json = False,
) -> None:
    """Learn prompts for images with several labels; the same command resumes an interrupted run.

    Without data options: the bundled scenes.
    """
    from gcpl_lab.models.presets import find_preset, resolve

    resolve(find_preset(preset), "clip")  # absent weights are told before anything heavy is loaded
    from gcpl_lab.data.folders import draw_labelled
    from gcpl_lab.lmpt.estimator import LMPTClassifier
    from gcpl_lab.lmpt.settings import LMPTConfig
    from gcpl_lab.report import measure_left_out, note_training

    chosen = options.parse_settings(settings, LMPTConfig, preset=preset, seed=seed)
    source = source_of(metadata, images, rows, (list_file, labels, captions))
    drawn: dict[str, Any] = {"source": source, "test": _tests_of(source, test), "held_out": held_out, "seed": seed}
    data, others = draw_labelled(**drawn)
    for warning in data.warnings:
        console.print(escape(warning))
    model, checkpoints, names = LMPTClassifier(**chosen), output / "checkpoint", list(data.class_names)
    with console.status("encoding images") as status:
        for record in model.steps(data.images, data.targets, names, data.captions, checkpoint_folder=checkpoints):
            status.update(f"step {record.step} of {model.num_steps_}, loss {record.loss:.4f}")
    model.save(output)
    kept = note_training(output, model, data, others, {**options.run_options(1), **drawn}) / 1e6
    shutil.rmtree(checkpoints, ignore_errors=True)  # of no use any more; other settings may come next
    made = {"output": str(output), "pictures": len(data), "classes": names, "validation_map": model.validation_map_}
    learned = f"Learned prompts for {len(names)} classes from {len(data)} images: {output}"
    with console.status(f"measuring on {len(others)} images that were left out"):
        made["held_out"], told = measure_left_out(model, others)
    answer(made, as_json, learned, told, LOOK.format(output, kept))


def evaluate(
    prompts: Annotated[Path, Argument(help="Folder written by train lmpt.")],
    list_file: List = None,
    labels: Labels = None,
    images: Images = None,
    metadata: Metadata = None,
    rows: Rows = [],  # noqa: B006
    preset: options.LearnedOn = None,
    as_json: options.Json = False,
) -> None:
    """Measure learned multi-label prompts on labelled images: mAP over head, medium and tail, and each class.

    Without data options: the bundled test scenes.
    """
    from gcpl_lab.data.folders import read_labelled
    from gcpl_lab.lmpt.estimator import LMPTClassifier

    model = LMPTClassifier.load(prompts, preset=preset)
    names = [str(name) for name in model.classes_]
    source = source_of(metadata, images, rows, (list_file, labels, None))
    data = read_labelled("test", source | ({"class_names": names} if metadata else {}))
    if list(data.class_names) != names:
        learned = f"the prompts were learned for {', '.join(names)}, in that order"
        raise DataError(f"{data.name}: has the classes {', '.join(data.class_names)}; {learned}")
    report: dict[str, Any] = model.evaluate(data.images, data.targets)
    columns = {"class": "{name}", "part": "{part}", "training images": "{num_train}", "test images": "{num_test}"}
    ordered = sorted(report["classes"], key=lambda entry: -entry["num_train"])
    shown = [{**entry, "precision": percent(entry["average_precision"])} for entry in ordered]
    columns["average precision"] = "{precision}"
    table = make_table(columns, shown, "Average precision of each class in percent", num_text_columns=2)
    parts = {"mAP": "map", "head": "map_head", "medium": "map_medium", "tail": "map_tail"}
    others = {"F1 (macro)": "f1_macro", "F1 (micro)": "f1_micro", "calibration error": "calibration_error"}
    lines = ["   ".join(f"{name} {percent(report[score])} %" for name, score in (parts | others).items())]
    if report["classes_without_positives"]:
        lines.append(f"No image shows {', '.join(report['classes_without_positives'])}; not averaged.")
    answer({"data": data.name, **report}, as_json, table, *lines)


def caption(
    folder: Annotated[Path, Argument(help="Folder of images.")],
    model: Annotated[str, Argument(help="Image-to-text model: a folder, or a name on the Hugging Face hub.")],
    output: Annotated[str, Option("--output", "-o", help="Name of the file in the folder.")] = "metadata.csv",
    batch_size: Annotated[int, Option(min=1, help="Images a pass.")] = 8,
    device: Annotated[str, Option(help="Where the model runs, such as cuda.")] = "cpu",
) -> None:
    """Write captions for the images of a folder that have none; the same command resumes an interrupted run."""
    from gcpl_lab.data.captioning import caption_folder

    with counting("loading the model") as tell:
        path = caption_folder(folder, model, output, batch_size=batch_size, device=device, on_progress=tell)
    answer(None, False, f"Captions are in {path}; read some before you train on them.")
