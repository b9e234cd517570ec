"""A project around images of one's own: settings, a report on the data, and a notebook that is ready to run."""

from __future__ import annotations

import html
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gcpl_lab.data.duplicates import MAX_DISTANCE, find_duplicates, hash_images
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.folders import draw_sets, read_pictures, read_scenes
from gcpl_lab.data.framing import LONGEST, choose_fit, frame, lost_share
from gcpl_lab.data.readers import read_image
from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.fit_of_models import fit_if_here
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.presets import find_preset
from gcpl_lab.storage import check_writable, read_json, write_atomically, write_json, write_text

FORMAT = "gcpl_lab project 1"
SEEN = "what_models_see.png"
NOTEBOOK, REPORT = (Path(__file__).with_name(name) for name in ("project_notebook.md", "data_report.md.j2"))
FEW_TEST_PICTURES = 20
"""Below this number of test images a class, an accuracy says little: its interval is wider than 40 points."""

OnProgress = Callable[[int, int], None]  # the images done, and their number


class OpenProject(NamedTuple):
    """A project's settings, its exemplars and test images, as its notebook uses them."""

    settings: GCPLConfig
    support: ImageSet
    test: ImageSet


def create_project(
    folder: str | Path,
    images: str | Path,
    *,
    preset: str = "tiny",
    shots: int = 16,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """Write ``project.json``, ``data_report.json``, ``data_report.md`` and ``notebook.ipynb``.

    Of images with several labels a report alone is written. The images stay where they are. Images that cannot be
    used, duplicates and leakage are reported and do not stop anything here; training refuses what it cannot read.

    Args:
        folder: The new project; absent or empty.
        images: As for :func:`~gcpl_lab.data.folders.read_pictures`.
        preset, shots, seed: For the notebook.

    Returns:
        The files, and the content of ``data_report.json``.

    Raises:
        DataError: The folder holds something, the images cannot be found, or a class has too few images.
        ModelError: No such preset.
    """
    folder, images = Path(folder), Path(images)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not empty; choose another name for the project")
    find_preset(preset)
    if scenes := read_scenes(images):
        report = report_data(scenes, None, on_progress)
        report["summary"].append(f"Several labels an image: gcpl-lab train lmpt --metadata {images / 'metadata.csv'}")
        return _write_report(folder, report, scenes), report
    support, test = read_pictures(images)
    _check_shots(support, test, shots)
    check_writable(folder)
    report, settings = report_data(support, test, on_progress), GCPLConfig(preset=preset, seed=seed)
    exemplars, unusable = draw_episode(support, shots, seed), report["sets"]["support"]["unusable_indices"]
    readable = not set(exemplars.tolist()) & set(unusable)
    seen = fit_if_here(support.subset(exemplars), preset, settings.fit, seed) if readable else None
    report["models"] = seen and seen.as_dict()
    report["summary"] = [*(seen.lines() if seen else []), *report["summary"]]
    where = os.path.relpath(images.resolve(), folder.resolve())
    project = {"format": FORMAT, "images": where, "shots": shots, "settings": settings.as_dict()}
    files = [
        write_json(folder / "project.json", project),
        *_write_report(folder, report, support),
        write_text(folder / "notebook.ipynb", _notebook(report["summary"])),
    ]
    return files, report


def _write_report(folder: Path, report: dict[str, Any], images: ImageSet | MultiLabelSet) -> list[Path]:
    """The report for programs and for people, and the thumbnails in it."""
    files = [
        write_json(folder / "data_report.json", report),
        write_text(folder / "data_report.md", _report_page(report)),
    ]
    broken = set(report["sets"]["support"]["unusable_indices"])
    usable = [path for index, path in enumerate(images.images) if index not in broken]
    if usable:
        sheet = draw_seen(usable, report["fit"])
        files.append(write_atomically(folder / SEEN, partial(sheet.save, format="PNG")))
    return files


def draw_seen(images: Sequence[Path], fit: str, most: int = 8, side: int = 96) -> Image.Image:
    """The longest of the first images, above as they are, below as models see them, two rows of ``side`` pixels."""
    shown = [read_image(path) for path in images[: 4 * most]]
    shown = sorted(shown, key=lambda image: -lost_share(image.size))[:most]
    sheet = Image.new("RGB", ((side + 8) * len(shown) + 8, 2 * side + 24), "white")
    for place, image in enumerate(shown):
        left, seen = 8 + place * (side + 8), frame(image, fit).resize((side, side))
        image.thumbnail((side, side))
        sheet.paste(image, (left + (side - image.width) // 2, 8 + (side - image.height) // 2))
        sheet.paste(seen, (left, side + 16))
    return sheet


def open_project(folder: str | Path = ".", *, most_test: int | None = None) -> OpenProject:
    """Read a project's settings and draw its exemplars and test images, ``most_test`` of these at most.

    Raises:
        ArtifactError: There is no project, or its file is damaged.
        DataError: The images are not there any more.
    """
    folder = Path(folder)
    values = read_json(folder / "project.json")
    if values.get("format") != FORMAT:
        raise DataError(f"{folder / 'project.json'}: has the format {values.get('format')!r}; expected {FORMAT!r}")
    settings = GCPLConfig.from_dict(values["settings"])
    return OpenProject(settings, *draw_sets(folder / values["images"], values["shots"], settings.seed, most_test))


def _check_shots(support: ImageSet, test: ImageSet | None, shots: int) -> None:
    counts = np.bincount(support.labels, minlength=len(support.class_names))
    least, left = int(counts.min()), test is None  # without a test set, at least one image is left to test on
    if least < shots + left:
        wanted = f"{shots} exemplars{' and one test image' if left else ''}"
        smallest = f"class {support.class_names[int(counts.argmin())]!r} has {least} images"
        remedy = f"add some, or give --shots {max(1, least - left)}"
        raise DataError(f"{support.name}: {smallest}, fewer than {wanted}; {remedy}")


def _notebook(findings: Sequence[str]) -> str:
    """The ready notebook, the same bytes every time."""
    import jupytext
    import nbformat

    lines = "\n".join(f"- {plain_markdown(line)}" for line in findings)
    text = NOTEBOOK.read_text(encoding="utf-8").replace("FINDINGS", lines)
    notebook = jupytext.reads(text, fmt="md")
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
    return str(nbformat.writes(notebook)) + "\n"


def plain_markdown(text: Any) -> str:
    """Text as it is, in one line, whatever a name in it looks like to Markdown or HTML."""
    return re.sub(r"([|`*\[\]$\\])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def report_data(
    support: ImageSet | MultiLabelSet,
    test: ImageSet | None = None,
    on_progress: OnProgress | None = None,
    fit: str = "auto",
) -> dict[str, Any]:
    """Counts, sizes, images that cannot be used, duplicates, and leakage from support to a test set of its own.

    ``fit`` is what the settings say of the square that models see.

    Returns:
        Plain values, for JSON; paths as given.
    """
    sets: dict[str, ImageSet | MultiLabelSet] = {"support": support} | ({"test": test} if test is not None else {})
    report: dict[str, Any] = {"format": FORMAT, "classes": list(support.class_names), "sets": {}}
    report["fit"] = choose_fit(support.images, fit)
    sides = [
        {"set": name, "file": str(path), "class": label}
        for name, images in sets.items()
        for path, label in zip(images.images, _labels_of(images), strict=True)
    ]
    hashes, failures = hash_images([side["file"] for side in sides], on_progress)
    start, broken = 0, dict(failures)
    for name, images in sets.items():
        own = {place: broken[start + place] for place in range(len(images)) if start + place in broken}
        report["sets"][name], start = _describe_set(images, own), start + len(images)
    pairs: list[dict[str, Any]] = []
    for first, second, distance, mirrored in find_duplicates(hashes):
        if first not in broken and second not in broken:
            same = sides[first]["class"] == sides[second]["class"]
            found = {"distance": distance, "mirrored": mirrored, "same_class": same}
            pairs.append({"first": sides[first], "second": sides[second], **found})
    report["duplicates"] = [
        pair for name in sets for pair in pairs if pair["first"]["set"] == pair["second"]["set"] == name
    ]
    report["leakage"] = [pair for pair in pairs if pair["first"]["set"] != pair["second"]["set"]]
    report["summary"] = _summarise(report)
    return report


def _labels_of(images: ImageSet | MultiLabelSet) -> list[str]:
    """What each image shows, in words."""
    if isinstance(images, ImageSet):
        return [images.class_names[label] for label in images.labels]
    return [", ".join(images.class_names[label] for label in np.flatnonzero(row)) for row in images.targets]


def _describe_set(images: ImageSet | MultiLabelSet, broken: dict[int, str]) -> dict[str, Any]:
    if isinstance(images, ImageSet):
        counts = np.bincount(images.labels, minlength=len(images.class_names)).tolist()
    else:
        counts = images.class_counts().tolist()
    sides, kinds, cut = [], Counter[str](), 0
    for path in (path for index, path in enumerate(images.images) if index not in broken):
        with Image.open(path) as opened:  # the header alone
            sides.append(min(opened.size))
            kinds[f"{opened.format} {opened.mode}"] += 1
            cut += lost_share(opened.size) > 1 - 1 / LONGEST
    return {
        "name": images.name,
        "pictures": len(images),
        "checksum": images.checksum,
        "counts": dict(zip(images.class_names, counts, strict=True)),
        "shorter_side": {"least": min(sides), "median": int(np.median(sides)), "most": max(sides)} if sides else None,
        "formats": dict(kinds.most_common()),
        "longer": cut,
        "masks": _count_masks(images.images),
        "captions": sum(map(bool, getattr(images, "captions", ()))),
        "unusable": list(broken.values()),
        "unusable_indices": list(broken),
    }


def _count_masks(files: Sequence[Path]) -> int:
    """Files that share folder and name with another but for the ending, or for "mask" behind the name."""
    stems = Counter((path.parent, re.sub(r"[-_. ]?(mask|gt|seg)$", "", path.stem.casefold())) for path in files)
    return sum(count - 1 for count in stems.values())


def _summarise(report: dict[str, Any]) -> list[str]:
    """What a person should know, a sentence each; what is wrong comes first."""
    sets, leakage, duplicates = report["sets"], report["leakage"], report["duplicates"]
    unusable = {name: len(part["unusable"]) for name, part in sets.items() if part["unusable"]}
    lines = [f"Unusable files of {name}: {count}; training refuses them by name." for name, count in unusable.items()]
    if leakage:
        remedy = "remove them from one of the two, or the accuracy is too good"
        copies = {side["file"] for pair in leakage for side in (pair["first"], pair["second"]) if side["set"] == "test"}
        lines.append(f"Test images that look like a support image: {len(copies)}; {remedy}.")
    if conflicts := [pair for pair in duplicates + leakage if not pair["same_class"]]:
        lines.append(
            f"Pairs of images that look alike and carry two different classes: {len(conflicts)}; check their labels."
        )
    if duplicates:
        alike = {side["file"] for pair in duplicates for side in (pair["first"], pair["second"])}
        lines.append(
            f"Images that look the same as another one of their set: {len(alike)}, in {len(duplicates)} pairs."
        )
        if "test" not in sets:
            lines.append("Those that look like an exemplar are left out of the test images.")
    if masks := sum(part["masks"] for part in sets.values()):
        lines.append(f"Images with the name of another one but for ending or 'mask': {masks}; take masks out.")
    if longer := sum(part["longer"] for part in sets.values()):
        done = {"crop": "is cut off", "pad": "would be cut off by a crop; bars keep it", "squash": "is squashed in"}
        lines.append(f"Images longer than 5 to 4: {longer}; more than a fifth of each {done[report['fit']]} (fit).")
    for name, part in sets.items():
        counts = part["counts"]
        smallest, largest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        low, high = counts[smallest], counts[largest]
        spread = f"{low} of each" if low == high else f"from {low} ({smallest}) to {high} ({largest})"
        lines.append(f"{name}: {part['pictures']} images of {len(counts)} classes, {spread}.")
        if part["captions"]:
            lines.append(f"{name}: {part['captions']} of {part['pictures']} images have a caption.")
        if name == "test" and low < FEW_TEST_PICTURES:
            lines.append(f"test: fewer than {FEW_TEST_PICTURES} images of some classes; their accuracies say little.")
    if "test" not in sets:
        lines.append("There is no test/ folder: images that are not drawn as exemplars serve as test images.")
    elif not leakage:
        lines.append("No test image looks like a support image.")
    return lines


def _report_page(report: dict[str, Any]) -> str:
    """The report for people, as Markdown."""
    from jinja2 import Environment, StrictUndefined

    pages = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    pages.filters["cell"] = plain_markdown
    return pages.from_string(REPORT.read_text(encoding="utf-8")).render(
        report, most=50, distance=MAX_DISTANCE, seen=SEEN
    )
