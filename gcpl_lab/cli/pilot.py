"""Commands of a pilot: ``pilot init``, ``pilot run``, ``pilot watch`` and ``pilot explain``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option

from gcpl_lab.cli import options
from gcpl_lab.cli.answers import answer, console, counting

Where = Annotated[Path, Argument(help="Folder of the pilot.")]
IMAGES = "Class folders, or images with a metadata.csv; or bundled:fashion, bundled:wardrobe, published:textile."
REVIEWS = "A CSV with the columns file and label, where people have looked."
ALARM = 3
"""Exit code of a watch that raised an alarm, for a scheduler."""


def init(
    folder: Where,
    images: Annotated[str, Option(help=IMAGES)],
    preset: options.Preset = "tiny",
    as_json: options.Json = False,
) -> None:
    """Write a commented configuration: classes, costs, limits and methods."""
    from gcpl_lab.pilot import Pilot

    made, path = Pilot.create(folder, images, preset), folder / "pilot.toml"
    told = f"{path}: set costs and limits, then: gcpl-lab pilot run {folder}"
    answer({"file": str(path), "config": made.config.as_dict()}, as_json, told)


def run(folder: Where, workers: options.Workers = 0, as_json: options.Json = False) -> None:
    """Measure whatever is missing and write pilot.html, pilot.json, card.md and a deck; goes on where it was ended."""
    from gcpl_lab.pilot import Pilot

    with console.status("") as status:
        found = Pilot(folder).run(on_event=status.update, **options.run_options(workers))
    line = "{name}: {cost:,.0f} ({low:,.0f} to {high:,.0f}) " + f"{found['config']['currency']} per 1,000 images"
    costs = [line.format(**process) for process in found["processes"]]
    answer(found, as_json, found["verdict"]["sentence"], *costs, f"The page: {folder / 'pilot.html'}")


def watch(
    folder: Where,
    images: Annotated[Path, Argument(help="A folder with the images that came in.")],
    reviews: Annotated[Path | None, Option(help=REVIEWS)] = None,
    since: Annotated[datetime | None, Option(help="Pass over images with an earlier file time.")] = None,
    as_json: options.Json = False,
) -> None:
    """Judge what came in against the calibration images; the exit code is 3 where there is an alarm."""
    from gcpl_lab.pilot import Pilot

    with counting("answering") as tell:
        found = Pilot(folder).watch(images, reviews=reviews, since=since, on_progress=tell)
    lines = [f"Alarm: {alarm['name']}, after {alarm['after']} images" for alarm in found["alarms"]] or ["No alarm."]
    passed = f"{found['new']} new images, {found['known']} known, {found['passed_over']} passed over"
    answer(found, as_json, *lines, f"{passed}. The page: {folder / 'watch.html'}")
    if found["alarms"]:
        raise Exit(ALARM)


def explain(
    folder: Where,
    image: Annotated[Path, Argument(help="The image that was answered wrongly.")],
    truth: Annotated[str, Option(help="What it is.")],
    as_json: options.Json = False,
) -> None:
    """Say what may have gone wrong with an image, and what to do."""
    from gcpl_lab.pilot import Pilot

    found: dict[str, Any] = Pilot(folder).explain(image, truth)
    near = ", ".join(f"{entry['file']} ({'/'.join(entry['classes'])})" for entry in found["nearest"])
    said = f"{found['file']}: answered {', '.join(found['answer']) or 'nothing'}, is {truth}."
    strange = f"Certainty {found['certainty']:.2f}; stranger than {found['stranger_than']:.0%} of calibration images."
    causes = [f"Likely: {cause['cause']}. {cause['do'].capitalize()}." for cause in found["causes"]]
    answer(found, as_json, said, strange, f"Nearest exemplars: {near}.", *causes)


def correct(
    folder: Where,
    reviews: Annotated[Path, Argument(help=REVIEWS)],
    images: Annotated[Path, Argument(help="The folder of the files that were reviewed.")],
    most: Annotated[int, Option(min=1, help="Images to take, the least sure first.")] = 10,
    as_json: options.Json = False,
) -> None:
    """Take reviewed images among the exemplars of the next run."""
    from gcpl_lab.pilot import Pilot

    taken = Pilot(folder).correct(reviews, images, most)
    answer({"taken": taken}, as_json, f"Taken: {', '.join(taken)}. Now: gcpl-lab pilot run {folder}")
