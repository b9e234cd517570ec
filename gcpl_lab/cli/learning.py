"""Commands that learn prompts and use them: ``train``, ``classify``, ``evaluate``; and ``caption`` for their data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.markup import escape
from typer import Argument, BadParameter, Option

from gcpl_lab.cli import options
from gcpl_lab.cli.answers import LiveProgress, answer, console, counting, make_table, percent
from gcpl_lab.errors import DataError

if TYPE_CHECKING:
    from gcpl_lab.data.sets import MultiLabelSet

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
    shots: Annotated[int, Option(min=0, help="Images a class; 0 takes all.")] = 16,
    preset: options.Preset = "tiny",
    seed: options.Seed = 0,
    settings: options.Set = [],  # noqa: B006  (typer reads the default, nothing changes it)
    as_json: options.Json = False,
) -> None:
    """Learn class prompts from a folder of images; the same command resumes an interrupted run."""
    from gcpl_lab.models.presets import find_preset, resolve

    resolve(find_preset(preset), "diffusion")  # absent weights are told before anything heavy is loaded
    from gcpl_lab.data.episodes import draw_episode
    from gcpl_lab.data.folders import read_image_folder
    from gcpl_lab.experiments.plan import count_updates
    from gcpl_lab.gcpl.estimator import GCPLClassifier
    from gcpl_lab.gcpl.settings import GCPLConfig

    chosen = options.parse_settings(settings, GCPLConfig, objective=objective, preset=preset, seed=seed)
    pool = read_image_folder(images)
    if shots:
        pool = pool.subset(draw_episode(pool, shots, seed))
    model, names = GCPLClassifier(**chosen), list(pool.class_names)
    checkpoints, total = output / "checkpoint", count_updates(model.config)
    with LiveProgress({}) as progress:
        progress("begin", objective)
        for record in model.steps(pool.images, pool.labels, names, checkpoint_folder=checkpoints):
            progress("step", objective, record, total)
        progress("end", objective)
    model.save(output)
    shutil.rmtree(checkpoints, ignore_errors=True)  # of no use any more; other images may come next
    made = {"output": str(output), "classes": names, "pictures": len(pool)}
    answer(made, as_json, f"Learned {len(names)} class prompts from {len(pool)} images: {output}")


def classify(
    prompts: Annotated[Path, Argument(help="Folder written by train.")],
    images: Annotated[list[Path], Argument(help="Images, or folders of images.")],
    preset: options.LearnedOn = None,
    as_json: options.Json = False,
) -> None:
    """Say which class prompt denoises each image best, with probabilities."""
    from gcpl_lab.gcpl.estimator import GCPLClassifier

    files = [file for path in images for file in (_images_below(path) if path.is_dir() else [path])]
    model = GCPLClassifier.load(prompts, preset=preset)
    answers: list[dict[str, Any]] = []
    for file, row in zip(files, model.predict_proba(files), strict=True):
        chances = dict(zip(model.class_names_, map(float, row), strict=True))
        best = model.class_names_[int(row.argmax())]
        answers.append({"file": str(file), "class": best, "probability": chances[best], "probabilities": chances})
    columns = {"file": "{file}", "class": "{class}", "probability": "{probability:.1%}"}
    answer(answers, as_json, make_table(columns, answers, num_text_columns=2))


def _images_below(folder: Path) -> list[Path]:
    """The images of a folder and its sub-folders; hidden ones do not count."""
    from gcpl_lab.data.readers import IMAGE_SUFFIXES, list_images

    folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    shown = [path for path in folders if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    found = [image for path in shown for image in list_images(path)]
    if not found:
        raise DataError(f"{folder}: holds no image; expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return found


def read_labelled(
    split: Literal["train", "test"],
    metadata: Path | None = None,
    images: Path | None = None,
    rows: list[str] | None = None,
    class_names: list[str] | None = None,
    scenes: Path | None = None,
    listed: tuple[Path | None, Path | None, Path | None] = (None, None, None),
) -> MultiLabelSet:
    """The set of a long-tail list (with its labels and captions) or a metadata file; without them, bundled scenes."""
    from gcpl_lab.data.lists import read_longtail_list, read_metadata
    from gcpl_lab.data.wardrobe import load_wardrobe

    list_file, labels, captions = listed
    if list_file and metadata:
        raise BadParameter("--list and --metadata are two ways to name images; give one of them")
    if list_file and labels is None:
        raise BadParameter("--list needs --labels, the file with the names of the classes")
    if list_file and labels:
        return read_longtail_list(list_file, labels, images or list_file.parent, captions)
    if metadata:
        wanted = options.parse_pairs(rows or [], "condition", "split=train")
        return read_metadata(metadata, image_folder=images, rows=wanted, class_names=class_names)
    return load_wardrobe(split, scenes)


def train_lmpt(
    output: options.Output = Path("runs/lmpt"),
    list_file: List = None,
    labels: Labels = None,
    images: Images = None,
    captions: Captions = None,
    metadata: Metadata = None,
    rows: Rows = [],  # noqa: B006
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
    from gcpl_lab.lmpt.estimator import LMPTClassifier
    from gcpl_lab.lmpt.settings import LMPTConfig

    chosen = options.parse_settings(settings, LMPTConfig, preset=preset, seed=seed)
    data = read_labelled("train", metadata, images, rows, listed=(list_file, labels, captions))
    for warning in data.warnings:
        console.print(escape(warning))
    model, checkpoints, names = LMPTClassifier(**chosen), output / "checkpoint", list(data.class_names)
    with console.status("encoding images") as status:
        for record in model.steps(data.images, data.targets, names, data.captions, checkpoint_folder=checkpoints):
            status.update(f"step {record.step} of {model.num_steps_}, loss {record.loss:.4f}")
    model.save(output)
    shutil.rmtree(checkpoints, ignore_errors=True)  # of no use any more; other settings may come next
    made = {"output": str(output), "pictures": len(data), "classes": names, "validation_map": model.validation_map_}
    found = f"mAP {model.validation_map_:.3f} on those kept for validation"
    answer(made, as_json, f"Learned prompts for {len(names)} classes from {len(data)} images ({found}): {output}")


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
    from gcpl_lab.lmpt.estimator import LMPTClassifier

    model = LMPTClassifier.load(prompts, preset=preset)
    names = [str(name) for name in model.classes_]
    data = read_labelled("test", metadata, images, rows, names, listed=(list_file, labels, None))
    if list(data.class_names) != names:
        learned = f"the prompts were learned for {', '.join(names)}, in that order"
        raise DataError(f"{data.name}: has the classes {', '.join(data.class_names)}; {learned}")
    report: dict[str, Any] = model.evaluate(data.images, data.targets)
    columns = {"class": "{name}", "part": "{part}", "training images": "{num_train}", "test images": "{num_test}"}
    ordered = sorted(report["classes"], key=lambda entry: -entry["num_train"])
    shown = [{**entry, "precision": percent(entry["average_precision"])} for entry in ordered]
    columns["average precision"] = "{precision}"
    table = make_table(columns, shown, "Average precision of each class", num_text_columns=2)
    parts = {"mAP": "map", "head": "map_head", "medium": "map_medium", "tail": "map_tail"}
    others = {"F1 (macro)": "f1_macro", "F1 (micro)": "f1_micro", "calibration error": "calibration_error"}
    lines = ["   ".join(f"{name} {percent(report[score])}" for name, score in (parts | others).items())]
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
