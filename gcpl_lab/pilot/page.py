"""What a pilot says in pages: one HTML page, a model card, a deck, and the page of the watch; texts are templates."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from gcpl_lab.data.readers import iter_images
from gcpl_lab.pilot.data import PilotData, targets_of
from gcpl_lab.storage import write_text
from gcpl_lab.views import pilot as figures
from gcpl_lab.views import style
from gcpl_lab.views.plots import figure_files
from gcpl_lab.views.slides import Deck, Provenance, to_slide

MOST_SHOWN_CLASSES, SHOWN_IMAGES, SIDE = 40, 4, 72
Makers = Mapping[str, Callable[[], Figure]]


def share(value: Mapping[str, float] | None, num_images: int | None = None) -> str:
    """``"81.0 % (75.1 to 85.8), 200 images"`` of a share, or of what was ``measured``; a dash for None."""
    if value is None:
        return "–"
    first = "measured" if "measured" in value else "value"
    text = "{:.1f} % ({:.1f} to {:.1f})".format(*(100 * value[name] for name in (first, "low", "high")))
    return text + (f", {num_images} images" if num_images is not None else "")


def points(value: Mapping[str, float]) -> str:
    """``"+1.2 points (-0.4 to +2.8)"``."""
    return "{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * value[name] for name in ("value", "low", "high")))


def amount(value: float | None, currency: str = "") -> str:
    """Money or a count with separators; a dash for None."""
    return "–" if value is None else f"{value:,.{0 if abs(value) >= 100 else 2}f} {currency}".strip()


def render(template: str, **values: Any) -> str:
    """A template of this room; only pages are escaped."""
    loader, page = PackageLoader("gcpl_lab.pilot", "."), template.endswith(".html.j2")
    pages = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=page)
    pages.filters |= {"share": share, "points": points, "amount": amount}
    return pages.get_template(template).render(**values)


def draw_png(draw: Callable[[], Figure]) -> str:
    """A figure as PNG in base64."""
    with style.figure_style():
        content = figure_files(draw(), ["png"], dpi=110)["png"]
    return base64.b64encode(content).decode("ascii")


def show_classes(data: PilotData) -> list[tuple[str, str]]:
    """Name and some images of each class, as one PNG in base64, at most of ``MOST_SHOWN_CLASSES``.

    They are decoded and put together anew, so that nothing of a file but its pixels is copied.
    """
    found, targets = [], targets_of(data.pool)
    for label, name in list(enumerate(data.class_names))[:MOST_SHOWN_CLASSES]:
        chosen = [data.pool.images[place] for place in np.flatnonzero(targets[:, label])[:SHOWN_IMAGES]]
        tiles, stream = [np.asarray(image.resize((SIDE, SIDE))) for image in iter_images(chosen, "pad")], io.BytesIO()
        row = np.hstack([np.pad(tile, ((0, 0), (0, 4), (0, 0)), constant_values=255) for tile in tiles])
        Image.fromarray(row).save(stream, format="PNG")
        found.append((name, base64.b64encode(stream.getvalue()).decode("ascii")))
    return found


def figure_makers(found: Mapping[str, Any]) -> dict[str, Callable[[], Figure]]:
    """Every figure that this pilot has, by name."""
    config, names, rows = found["config"], found["class_names"], figures.draw_intervals
    quality = "accuracy" if config["kind"] == "classes" else "mean average precision"
    methods = [(entry["title"], entry["quality"]) for entry in found["methods"]]
    processes = [(p["name"], {"value": p["cost"], "low": p["low"], "high": p["high"]}) for p in found["processes"]]
    covered = [(name, value) for name, value in zip(names, found["coverage"]["by_class"], strict=True) if value]
    months = [("unchanged" if row["change"] == "none" else row["change"], row["noticed"]) for row in found["watch"]]
    money = f"{config['currency']} per 1,000 images"
    made: dict[str, Callable[[], Figure]] = {
        "methods": partial(rows, methods, f"{quality}, mean over draws", limit=config["least_accuracy"]),
        "costs": partial(rows, processes, money, percent=False),
        "coverage": partial(rows, covered, "share of images whose set holds the truth", limit=config["coverage"]),
        "watch": partial(rows, months, "share of months with an alarm"),
    }
    if all(entry["doubling"] for entry in found["methods"]):
        lines = [(entry["title"], [tuple(point.values()) for point in entry["points"]]) for entry in found["methods"]]
        made["curve"] = partial(figures.draw_lines, lines, f"images a class (mean of {config['draws']} draws)", quality)
    if "confusion" in found and np.any(found["confusion"]["cost"]):
        unit = f"{money}, nothing reviewed ({found['chosen']['num_images']} test images)"
        made["confusion"] = partial(figures.draw_dearest, np.array(found["confusion"]["cost"]), names, unit)
    if teaching := found["teaching"]:
        ways = {"least sure first": "chosen", "at random": "random"}
        lines = [(name, list(zip(teaching["rounds"], *teaching[way], strict=True))) for name, way in ways.items()]
        added = f"corrections added (mean of {teaching['num_draws']} draws)"
        made["teaching"] = partial(figures.draw_lines, lines, added, "accuracy of a linear probe")
    return made


def write_pages(folder: Path, found: Mapping[str, Any], data: PilotData) -> None:
    """``pilot.html``, ``card.md`` and ``pilot.pptx`` from the content of ``pilot.json``."""
    made, same = figure_makers(found), {"found": found, "config": found["config"]}
    drawn = {name: draw_png(draw) for name, draw in made.items()}
    write_text(folder / "pilot.html", render("pilot.html.j2", **same, figures=drawn, images=show_classes(data)))
    write_text(folder / "card.md", make_card(found))
    make_deck(found, made).save(folder / "pilot.pptx")


def make_card(found: Mapping[str, Any]) -> str:
    """A card in the format of Hugging Face's model cards, every number taken from the results."""
    from huggingface_hub import ModelCard, ModelCardData

    name = f"{found['chosen']['title']}, {len(found['class_names'])} classes"
    about = ModelCardData(license="other", tags=["few-shot", "pilot"], library_name="gcpl_lab", model_name=name)
    body = render("card.md.j2", found=found, config=found["config"])
    return str(ModelCard(f"---\n{about.to_yaml()}\n---\n\n{body}"))


def make_deck(found: Mapping[str, Any], made: Makers) -> Deck:
    """At most eight slides, each with its message as title: the verdict, then the lines of ``deck.txt.j2``."""
    verdict = found["verdict"]
    deck = Deck(Provenance(found["config"]["seed"], found["checksums"]["images"], "gcpl-lab pilot run"))
    conditions = [f"{reason['state'].capitalize()}: {reason['says']}" for reason in verdict["reasons"]]
    title = f"{verdict['decision'].capitalize()}: {found['chosen']['title']}"
    deck.add(to_slide(None, title, conditions, verdict["sentence"]))
    for line in filter(str.strip, render("deck.txt.j2", found=found).splitlines()):
        name, title, message, notes = (part.strip() for part in line.split(" | "))
        if name in made:
            with style.figure_style("slide"):
                deck.add(to_slide(made[name](), title, message, notes, alt=f"{title}. {message}"))
    return deck
