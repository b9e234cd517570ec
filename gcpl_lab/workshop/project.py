"""A project around pictures of one's own: settings, a report on the data, and a notebook that is ready to run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.data.duplicates import MAX_DISTANCE, Duplicate, find_duplicates, hash_images
from gcpl_lab.data.episodes import draw_episode, draw_test
from gcpl_lab.data.folders import read_image_folder
from gcpl_lab.data.published import load_published
from gcpl_lab.data.readers import ImageSet
from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.presets import find_preset
from gcpl_lab.storage import read_json, write_json, write_text

FORMAT = "gcpl_lab project 1"
FEW_TEST_PICTURES = 20
"""Below this number of test pictures a class, an accuracy says little: its interval is wider than 40 points."""

_MOST_LISTED = 50


@dataclass(frozen=True)
class Project:
    """What :func:`create_project` made.

    Attributes:
        folder: Of the project.
        files: Those that were written.
        report: As in ``data_report.json``.
        summary: Its findings, a sentence each.
    """

    folder: Path
    files: tuple[Path, ...]
    report: dict[str, Any]
    summary: tuple[str, ...]


def read_pictures(images: str | Path) -> tuple[ImageSet, ImageSet | None]:
    """Support pool and test set of a folder of pictures.

    Args:
        images: Class folders, or pictures with a ``metadata.csv`` or ``metadata.jsonl``; or a folder with ``support/``
            (or ``train/``) and ``test/``, one of the two in each.

    Returns:
        The pool, and the test set where there is one.

    Raises:
        DataError: No such folder, or the two parts have different classes.
    """
    images = Path(images)
    pools = [images / name for name in ("support", "train") if (images / name).is_dir()]
    if not (pools and (images / "test").is_dir()):
        return read_image_folder(images), None
    support, test = read_image_folder(pools[0]), read_image_folder(images / "test")
    if support.class_names != test.class_names:
        only = sorted(set(support.class_names) ^ set(test.class_names))
        raise DataError(
            f"{images}: {pools[0].name}/ and test/ have different classes ({', '.join(only)} in one of them alone); "
            "expected the same classes in both"
        )
    return support, test


def read_support_and_test(images: str | Path, published: str | None = None) -> tuple[ImageSet, ImageSet]:
    """Support pool and test set, both of which must be there.

    Args:
        images: As for :func:`read_pictures`; for a published set the folder that torchvision keeps it in.
        published: A name in ``gcpl_lab.data.published.PUBLISHED``.

    Raises:
        DataError: The pictures are not there, or there is no test set.
    """
    if published is not None:
        return load_published(published, images, "train"), load_published(published, images, "test")
    support, test = read_pictures(images)
    if test is None:
        raise DataError(f"{images}: has no test set; expected support/ and test/ with one sub-folder a class in each")
    return support, test


def draw_sets(images: str | Path, shots: int, seed: int, most_test: int | None = None) -> tuple[ImageSet, ImageSet]:
    """Exemplars and test pictures of a folder, none in both.

    Args:
        images: As for :func:`read_pictures`; without a ``test/`` the pictures that are not drawn are the test set.
        shots: Exemplars a class.
        seed: Of the draw.
        most_test: Test pictures at most, spread over the classes.
    """
    pool, test = read_pictures(images)
    chosen = draw_episode(pool, shots, seed)
    if test is None:
        test = pool.subset(np.setdiff1d(np.arange(len(pool)), chosen))
    if most_test is not None and most_test < len(test):
        test = test.subset(draw_test(test, total=most_test, seed=seed))
    return pool.subset(chosen), test


# -------------------------------------------------------------------------------------------- the report


def report_data(
    support: ImageSet, test: ImageSet | None = None, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Counts, sizes, pictures that cannot be used, duplicates, and leakage from support to test.

    Args:
        support: The pool.
        test: The test set, where there is one of its own.
        on_progress: Called with the pictures done and their number.

    Returns:
        Plain values, for JSON; paths as given.
    """
    sets = {"support": support} | ({"test": test} if test is not None else {})
    total, done, hashes = sum(map(len, sets.values())), 0, {}
    report: dict[str, Any] = {"format": FORMAT, "classes": list(support.class_names), "sets": {}, "duplicates": []}
    for name, images in sets.items():
        offset = done

        def follow(count: int, _total: int, offset: int = offset) -> None:
            if on_progress:
                on_progress(offset + count, total)

        hashes[name], failures = hash_images(images.images, follow)
        done += len(images)
        report["sets"][name] = _describe_set(images, failures)
        unusable = {index for index, _ in failures}
        pairs = [pair for pair in find_duplicates(hashes[name]) if not unusable & {pair.first, pair.second}]
        report["duplicates"] += [_describe_pair(pair, (name, images), (name, images)) for pair in pairs]
    report["leakage"] = []
    if test is not None:
        broken = {name: set(report["sets"][name]["unusable_indices"]) for name in sets}
        pairs = find_duplicates(hashes["support"], hashes["test"])
        pairs = [pair for pair in pairs if pair.first not in broken["support"] and pair.second not in broken["test"]]
        report["leakage"] = [_describe_pair(pair, ("support", support), ("test", test)) for pair in pairs]
    report["summary"] = _summarise(report)
    return report


def _describe_set(images: ImageSet, failures: list[tuple[int, str]]) -> dict[str, Any]:
    from PIL import Image

    counts = np.bincount(images.labels, minlength=len(images.class_names))
    sizes, kinds = [], Counter[str]()
    bad = {index for index, _ in failures}
    for index, path in enumerate(images.images):
        if index not in bad:
            with Image.open(path) as opened:  # the header alone
                sizes.append(opened.size)
                kinds[f"{opened.format} {opened.mode}"] += 1
    sides = np.sort([min(size) for size in sizes]) if sizes else np.zeros(0, int)
    return {
        "name": images.name,
        "pictures": len(images),
        "checksum": images.checksum,
        "counts": {name: int(count) for name, count in zip(images.class_names, counts, strict=True)},
        "shorter_side": {"least": int(sides[0]), "median": int(np.median(sides)), "most": int(sides[-1])}
        if len(sides)
        else None,
        "formats": dict(kinds.most_common()),
        "unusable": [message for _, message in failures],
        "unusable_indices": [index for index, _ in failures],
    }


def _describe_pair(pair: Duplicate, first: tuple[str, ImageSet], second: tuple[str, ImageSet]) -> dict[str, Any]:
    sides = []
    for index, (name, images) in ((pair.first, first), (pair.second, second)):
        sides.append(
            {"set": name, "file": str(images.images[index]), "class": images.class_names[int(images.labels[index])]}
        )
    return {
        "first": sides[0],
        "second": sides[1],
        "distance": pair.distance,
        "mirrored": pair.mirrored,
        "same_class": sides[0]["class"] == sides[1]["class"],
    }


def _summarise(report: dict[str, Any]) -> list[str]:
    """What a person should know, a sentence each; what is wrong comes first."""
    lines = []
    for name, part in report["sets"].items():
        if part["unusable"]:
            lines.append(f"{len(part['unusable'])} pictures of {name} cannot be used; training refuses them by name.")
    if report["leakage"]:
        lines.append(
            f"{len(report['leakage'])} test pictures look like support pictures: remove them from one of the "
            "two, or the accuracy is too good."
        )
    conflicts = [pair for pair in report["duplicates"] + report["leakage"] if not pair["same_class"]]
    if conflicts:
        lines.append(f"{len(conflicts)} pairs of look-alike pictures carry two different classes: check their labels.")
    if report["duplicates"]:
        lines.append(f"{len(report['duplicates'])} pairs of pictures within a set look the same.")
    for name, part in report["sets"].items():
        smallest = min(part["counts"], key=lambda label: part["counts"][label])
        largest = max(part["counts"], key=lambda label: part["counts"][label])
        low, high = part["counts"][smallest], part["counts"][largest]
        spread = f"{low} of each" if low == high else f"from {low} ({smallest}) to {high} ({largest})"
        lines.append(f"{name}: {part['pictures']} pictures of {len(part['counts'])} classes, {spread}.")
        if name == "test" and part["counts"][smallest] < FEW_TEST_PICTURES:
            lines.append(f"test: fewer than {FEW_TEST_PICTURES} pictures of some classes; their accuracies say little.")
    if not report["leakage"] and "test" in report["sets"]:
        lines.append("No test picture looks like a support picture.")
    if "test" not in report["sets"]:
        lines.append("There is no test/ folder: pictures that are not drawn as exemplars serve as test pictures.")
    return lines


def _write_report(report: dict[str, Any], path: Path) -> Path:
    """The report for people, as Markdown."""
    lines = ["# Report on the pictures", "", *(f"- {line}" for line in report["summary"]), "", "## Classes", ""]
    names = list(report["sets"])
    lines += ["| class | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for label in report["classes"]:
        counts = [str(report["sets"][name]["counts"][label]) for name in names]
        lines.append(f"| {_cell(label)} | " + " | ".join(counts) + " |")
    lines += ["", "## Sizes and formats", ""]
    for name, part in report["sets"].items():
        side = part["shorter_side"]
        shown = f"{side['least']} to {side['most']} px, median {side['median']}" if side else "none can be read"
        formats = ", ".join(f"{count} {kind}" for kind, count in part["formats"].items())
        lines.append(f"- {name}: shorter side {shown}; {formats}")
    for title, pairs in (
        ("Leakage from support to test", report["leakage"]),
        ("Duplicates within a set", report["duplicates"]),
    ):
        lines += ["", f"## {title}", "", *_pair_lines(pairs)]
    unusable = [message for part in report["sets"].values() for message in part["unusable"]]
    lines += ["", "## Pictures that cannot be used", ""]
    lines += [f"- {message}" for message in unusable[:_MOST_LISTED]] or ["None."]
    lines += [
        "",
        f"Pictures count as the same when their perceptual hashes differ in at most {MAX_DISTANCE} of 255 "
        "bits: other sizes, formats, brightness and mirror images are found, cropped copies are not. Every pair "
        "is in data_report.json.",
    ]
    return write_text(path, "\n".join(lines) + "\n")


def _pair_lines(pairs: Sequence[dict[str, Any]]) -> list[str]:
    if not pairs:
        return ["None."]
    lines = ["| picture | class | looks like | class | bits apart |", "| --- | --- | --- | --- | ---: |"]
    for pair in pairs[:_MOST_LISTED]:
        cells = [_cell(pair[side][key]) for side in ("first", "second") for key in ("file", "class")]
        apart = f"{pair['distance']}{' (mirrored)' if pair['mirrored'] else ''}"
        lines.append(f"| {' | '.join(cells)} | {apart} |")
    if len(pairs) > _MOST_LISTED:
        lines.append(f"\n… and {len(pairs) - _MOST_LISTED} more.")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ------------------------------------------------------------------------------------------- the project


def create_project(
    folder: str | Path,
    images: str | Path,
    *,
    preset: str = "tiny",
    shots: int = 16,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Project:
    """Write ``project.json``, ``data_report.json``, ``data_report.md`` and ``notebook.ipynb``.

    The pictures stay where they are. Pictures that cannot be used, duplicates and leakage are reported and do not
    stop anything here; training refuses what it cannot read.

    Args:
        folder: The new project; absent or empty.
        images: As for :func:`read_pictures`.
        preset: Frozen models, for the notebook.
        shots: Exemplars a class, for the notebook.
        seed: Of everything random.
        on_progress: Called with the pictures done and their number.

    Raises:
        DataError: The folder holds something, the pictures cannot be found, or a class has too few pictures.
        ModelError: No such preset.
    """
    folder, images = Path(folder), Path(images)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not empty; choose another name for the project")
    find_preset(preset)
    support, test = read_pictures(images)
    _check_shots(support, test, shots)
    report = report_data(support, test, on_progress)
    config = GCPLConfig(preset=preset, seed=seed)
    where = os.path.relpath(images.resolve(), folder.resolve())
    files = [
        write_json(
            folder / "project.json", {"format": FORMAT, "images": where, "shots": shots, "settings": config.as_dict()}
        ),
        write_json(folder / "data_report.json", report),
        _write_report(report, folder / "data_report.md"),
        write_text(folder / "notebook.ipynb", _notebook(report)),
    ]
    return Project(folder, tuple(files), report, tuple(report["summary"]))


def _check_shots(support: ImageSet, test: ImageSet | None, shots: int) -> None:
    counts = np.bincount(support.labels, minlength=len(support.class_names))
    needed = shots + (1 if test is None else 0)  # without a test set, at least one picture is left to test on
    if counts.min() < needed:
        smallest = support.class_names[int(counts.argmin())]
        left = " and one test picture" if test is None else ""
        raise DataError(
            f"{support.name}: class {smallest!r} has {counts.min()} pictures, fewer than {shots} exemplars{left}; "
            f"add some, or give --shots {max(1, int(counts.min()) - needed + shots)}"
        )


@dataclass(frozen=True)
class OpenProject:
    """A project's pictures and settings, as its notebook uses them.

    Attributes:
        folder: Of the project.
        settings: Of training.
        support: The exemplars that were drawn.
        test: The test pictures.
    """

    folder: Path
    settings: GCPLConfig
    support: ImageSet
    test: ImageSet


def open_project(folder: str | Path = ".", *, most_test: int | None = None) -> OpenProject:
    """Read a project's settings and draw its exemplars and test pictures.

    Args:
        folder: Written by :func:`create_project`.
        most_test: Test pictures at most, spread over the classes.

    Raises:
        ArtifactError: There is no project, or its file is damaged.
        DataError: The pictures are not there any more.
    """
    folder = Path(folder)
    values = read_json(folder / "project.json")
    if values.get("format") != FORMAT:
        raise DataError(f"{folder / 'project.json'}: has the format {values.get('format')!r}; expected {FORMAT!r}")
    config = GCPLConfig.from_dict(values["settings"])
    support, test = draw_sets(folder / values["images"], values["shots"], config.seed, most_test)
    return OpenProject(folder, config, support, test)


def _notebook(report: dict[str, Any]) -> str:
    """The ready notebook: texts and code take turns."""
    from nbformat import v4

    findings = "\n".join(f"- {line}" for line in report["summary"])
    texts = [_NOTEBOOK[0].replace("FINDINGS", findings), *_NOTEBOOK[1:]]
    make = (v4.new_markdown_cell, v4.new_code_cell)
    cells = [make[index % 2](text.strip("\n"), id=f"cell-{index}") for index, text in enumerate(texts)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    text: str = v4.writes(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}))
    return text + "\n"


_NOTEBOOK = (
    """
# Learned class prompts on your pictures

What was found in the pictures (all of it: `data_report.md`):

FINDINGS

Run the cells from top to bottom. Settings are in `project.json`; `MOST_TEST` bounds the time of the first run.
""",
    """
%matplotlib inline
from gcpl_lab.workshop.project import open_project

MOST_TEST = 200
project = open_project(most_test=MOST_TEST)
settings, support, test = project.settings, project.support, project.test
names = list(support.class_names)
print(f"{len(support)} exemplars, {len(test)} test pictures, {len(names)} classes: {', '.join(names[:12])}")
""",
    """
## What it will cost

Counted from the settings; seconds come from a few steps on this machine.
""",
    """
from gcpl_lab import FrozenDiffusion
from gcpl_lab.experiments.plan import make_plan, measure_profile
from gcpl_lab.training.device import default_device

diffusion = FrozenDiffusion.load(settings.preset, device=default_device())
plan = make_plan(settings.preset, num_classes=len(names), num_shots=len(support) // len(names), num_test=len(test),
                 config=settings, profile=measure_profile(diffusion, num_steps=1))
for stage in plan.stages:
    print(f"{stage.name:15s} {stage.denoiser_evaluations:>9,} evaluations, {stage.seconds / 60:.1f} minutes")
""",
    """
## Simple methods first

If CLIP with the class names, or a linear probe, is good enough, stop here: both cost next to nothing.
""",
    """
from gcpl_lab.experiments.few_shot import FewShotExperiment

shots = len(support) // len(names)
experiment = FewShotExperiment(support, test, preset=settings.preset)
for method in ("zero_shot_clip", "linear_probe"):
    print(f"{method:15s} {experiment.run(method, shots, settings.seed).row['accuracy']:.1%}")
""",
    """
## Learn one prompt a class
""",
    """
import numpy as np
from gcpl_lab import GCPLClassifier
from gcpl_lab.views import plots, style

model = GCPLClassifier(diffusion=diffusion, **settings.as_dict())
model.fit(support.images, support.labels, names)
with style.figure_style():
    figure = style.new_figure(9, 3.5)
    steps, losses = np.array([(record.step, record.loss) for record in model.history_]).T
    plots.plot_losses(figure.subplots(), {"training": (steps, losses)})
figure
""",
    """
## Does it work?

The test pictures were not looked at before. The interval says how far chance alone may have moved the accuracy.
""",
    """
from scipy.stats import binomtest
from gcpl_lab.evaluation.metrics import confusion_matrix
from gcpl_lab.views.evidence import plot_confusion

scores = model.decision_function(test.images)
right = int((scores.argmax(1) == test.labels).sum())
low, high = binomtest(right, len(test)).proportion_ci(method="wilson")
print(f"accuracy {right / len(test):.1%} (95 %: {low:.1%} to {high:.1%}); guessing: {1 / len(names):.1%}")
with style.figure_style():
    figure = style.new_figure(min(14, 4 + 0.6 * len(names)), min(12, 3 + 0.5 * len(names)))
    plot_confusion(figure.subplots(), confusion_matrix(scores, test.labels), names)
figure
""",
    """
## Keep the prompts

`gcpl-lab classify prompts PICTURES` uses them from now on.
""",
    """
model.save("prompts")
""",
)
