"""Before and after in motion: the tokens' journey and moving maps as GIF, and as a book of pages to turn by hand.

Example:
    >>> from gcpl_lab.views.animation import journey_frames, write_flip_book, write_gif
    >>> frames = journey_frames(paths, steps, class_names)
    >>> write_gif("runs/demo/journey.gif", frames)
    >>> write_flip_book("runs/demo/journey.html", frames, title="The way of the class tokens", alt="Tokens part.")
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gcpl_lab.errors import DataError
from gcpl_lab.storage import write_atomically, write_text
from gcpl_lab.views import style
from gcpl_lab.views.projection import Projection

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

Families = Mapping[str, Sequence[str]]

DOTS_PER_INCH = 80


@dataclass(frozen=True)
class Frame:
    """One page.

    Attributes:
        picture: RGB; all pages of a book have one size.
        caption: What this page shows; read out by screen readers.
    """

    picture: Image.Image
    caption: str


def journey_frames(
    paths: np.ndarray, steps: Sequence[int], class_names: Sequence[str], families: Families | None = None
) -> list[Frame]:
    """Class tokens on their way through training, one page a state, with the way so far behind them.

    Args:
        paths: (step, class, 2), on one map.
        steps: (step,), numbers of updates.
        class_names: (class,).
        families: Family name to its class names.
    """
    paths = np.asarray(paths, dtype=float)
    expected = (len(steps), len(class_names), 2)
    if paths.shape != expected or len(steps) < 2 or not np.isfinite(paths).all():
        raise DataError(
            f"paths has shape {paths.shape}; expected finite (step, class, 2) = {expected}, 2 steps or more"
        )
    looks = style.class_style(class_names, families)
    window = _window(paths.reshape(-1, 2))

    def draw(ax: Axes, now: int) -> None:
        for place, name in enumerate(class_names):
            color, marker = looks[name]
            x, y = paths[: now + 1, place].T
            ax.plot(x, y, color=style.GREY, linewidth=2.6, zorder=2)
            ax.plot(x, y, color=color, linewidth=1.6, zorder=3)
            ax.scatter(x[-1:], y[-1:], s=130, c=color, marker=marker, edgecolors=style.INK, linewidths=0.8, zorder=4)

    captions = [f"step {step} of {steps[-1]}" for step in steps]
    return _frames(draw, captions, window, looks)


def map_frames(
    projection: Projection,
    labels: np.ndarray,
    class_names: Sequence[str],
    families: Families | None = None,
    num_between: int = 8,
) -> list[Frame]:
    """Points that travel from each state of a projection to the next, on one fitted map.

    Args:
        projection: Two states or more, with the same points in the same order.
        labels: (point,), integers that index ``class_names``.
        class_names: (class,).
        families: Family name to its class names.
        num_between: Pages between two states. They are drawn in, not measured, and their captions say so.
    """
    names, labels = list(projection.points), np.asarray(labels)
    clouds = [np.asarray(projection.points[name], dtype=float) for name in names]
    if len(clouds) < 2 or any(cloud.shape != (len(labels), 2) for cloud in clouds):
        shapes = {name: cloud.shape for name, cloud in zip(names, clouds, strict=True)}
        raise DataError(f"the states have points of shape {shapes}; expected two or more of ({len(labels)}, 2)")
    looks = style.class_style(class_names, families)
    pages, captions = [clouds[0]], [names[0]]
    for turn in range(len(clouds) - 1):
        for share in np.linspace(0, 1, num_between + 2)[1:-1]:
            eased = share * share * (3 - 2 * share)  # starts and ends at rest
            pages.append((1 - eased) * clouds[turn] + eased * clouds[turn + 1])
            captions.append(f"between {names[turn]} and {names[turn + 1]}, {share:.0%} of the way (drawn in)")
        pages.append(clouds[turn + 1])
        captions.append(names[turn + 1])

    def draw(ax: Axes, now: int) -> None:
        for label in np.unique(labels):
            color, marker = looks[class_names[label]]
            x, y = pages[now][labels == label].T
            ax.scatter(x, y, s=34, c=color, marker=marker, alpha=0.85, edgecolors=style.INK, linewidths=0.3)

    return _frames(draw, captions, _window(np.concatenate(clouds)), looks)


def _window(points: np.ndarray) -> tuple[np.ndarray, float]:
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, 0.56 * max(float((high - low).max()), 1e-9)


def _frames(
    draw: object, captions: Sequence[str], window: tuple[np.ndarray, float], looks: Mapping[str, tuple[str, str]]
) -> list[Frame]:
    """One picture a caption: map to the left, key to the right; nothing but the points moves."""
    from matplotlib.lines import Line2D
    from PIL import Image

    assert callable(draw)
    (x, y), half = window
    frames = []
    with style.figure_style():
        handles = [
            Line2D(
                [],
                [],
                linestyle="",
                marker=marker,
                color=color,
                markeredgecolor=style.INK,
                markersize=11,
                label=style.label_text(name),
            )
            for name, (color, marker) in looks.items()
        ]
        for now, caption in enumerate(captions):
            figure = style.new_figure(10.5, 7.6)
            figure.set_layout_engine("none")
            ax = figure.add_axes((0.02, 0.02, 0.66, 0.9))
            draw(ax, now)
            ax.set(xlim=(x - half, x + half), ylim=(y - half, y + half), xticks=[], yticks=[], aspect="equal")
            ax.spines[:].set_visible(True)
            ax.spines[:].set_color(style.FAINT)
            figure.text(0.02, 0.945, caption.replace("$", r"\$"), fontsize=15, weight="bold")
            figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.69, 0.5), frameon=False, fontsize=14)
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=DOTS_PER_INCH)
            frames.append(Frame(Image.open(stream).convert("RGB"), caption))
    return frames


def _check_frames(frames: Sequence[Frame]) -> None:
    sizes = {frame.picture.size for frame in frames}
    if len(frames) < 2 or len(sizes) != 1:
        raise DataError(f"{len(frames)} frames of the sizes {sorted(sizes)}; expected 2 or more of one size")


def write_gif(path: str | Path, frames: Sequence[Frame], seconds: float = 0.35, rest: float = 2.0) -> Path:
    """Write an endless GIF that rests on its first and last page.

    Args:
        path: Of the file.
        frames: Two or more of one size.
        seconds: Each page stays this long; 0.02 or more, which is what browsers can show.
        rest: The first and the last page stay this long.

    Returns:
        ``path``.
    """
    from PIL import Image

    _check_frames(frames)
    if seconds < 0.02 or rest < 0.02:
        raise DataError(f"a page of {min(seconds, rest)} s; browsers show none shorter than 0.02 s")
    # One palette for all pages: colours of classes must not flicker. The last page has every colour.
    palette = frames[-1].picture.quantize(colors=255)
    pages = [frame.picture.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 * (rest if place in (0, len(pages) - 1) else seconds)) for place in range(len(pages))]

    def write(target: Path) -> None:
        pages[0].save(
            target,
            format="GIF",
            save_all=True,
            append_images=pages[1:],
            duration=durations,
            loop=0,
            optimize=False,
            disposal=1,
            comment="; ".join((frames[0].caption, frames[-1].caption)).encode("ascii", "replace"),
        )

    return write_atomically(path, write)


def write_flip_book(path: str | Path, frames: Sequence[Frame], *, title: str, alt: str, seconds: float = 0.5) -> Path:
    """Write a page that needs no server: a slider, buttons and keys turn the pictures.

    Nothing moves before somebody asks for it, and who prefers reduced motion sees pages changed without play.

    Args:
        path: Of the page.
        frames: Two or more of one size.
        title: Heading.
        alt: What the whole shows; each picture's description begins with it.
        seconds: Each page stays this long while it plays.

    Returns:
        ``path``.
    """
    from jinja2 import Environment, StrictUndefined

    _check_frames(frames)
    if not alt.strip():
        raise DataError("the flip book has no alt text; say in a sentence what it shows")
    pages = []
    for frame in frames:
        stream = io.BytesIO()
        frame.picture.quantize(colors=255).save(stream, format="PNG", optimize=True)
        data = base64.b64encode(stream.getvalue()).decode("ascii")
        pages.append({"src": f"data:image/png;base64,{data}", "caption": frame.caption})
    width, height = frames[0].picture.size
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    return write_text(
        path,
        template.render(
            title=title, alt=alt, pages=pages, milliseconds=round(1000 * seconds), width=width, height=height
        ),
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: #1a1a1a; background: #ffffff;
         font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
  h1 { font-size: 1.4rem; margin: 0 0 0.5rem; }
  img { max-width: 100%; height: auto; border: 1px solid #d0d0d0; }
  .controls { display: flex; gap: 0.6rem; align-items: center; margin: 0.6rem 0; }
  input { flex: 1; min-height: 2.75rem; min-width: 4rem; }
  button { font: inherit; min-width: 2.75rem; min-height: 2.75rem; }
  :focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
  @media (prefers-reduced-motion: reduce) { #play { display: none; } }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<img id="picture" width="{{ width }}" height="{{ height }}" src="{{ pages[0].src }}"
     alt="{{ alt }} Now: {{ pages[0].caption }}.">
<p id="caption" aria-live="polite">{{ pages[0].caption }}</p>
<div class="controls">
<button id="back" type="button" aria-label="previous page">&#9664;</button>
<button id="play" type="button">play</button>
<button id="next" type="button" aria-label="next page">&#9654;</button>
<input id="slider" type="range" min="0" max="{{ pages|length - 1 }}" value="0" step="1" aria-label="page"
       aria-valuetext="{{ pages[0].caption }}">
</div>
<p>Keys: left and right turn the page, Home and End go to the first and the last, space plays and stops.</p>
</main>
<script>
"use strict";
const pages = {{ pages|tojson }}, alt = {{ alt|tojson }};
const find = (name) => document.getElementById(name);
const slider = find("slider"), calm = matchMedia("(prefers-reduced-motion: reduce)");
let timer = null;
function show(place) {
  const now = Math.max(0, Math.min(pages.length - 1, place)), page = pages[now];
  slider.value = now;
  slider.setAttribute("aria-valuetext", page.caption);
  find("picture").src = page.src;
  find("picture").alt = alt + " Now: " + page.caption + ".";
  find("caption").textContent = page.caption;
}
function stop() {
  clearInterval(timer);
  timer = null;
  find("play").textContent = "play";
  find("caption").setAttribute("aria-live", "polite");
}
function turn(step) { stop(); show(Number(slider.value) + step); }
function play() {
  if (timer !== null) { stop(); return; }
  if (calm.matches) { turn(1); return; }
  if (Number(slider.value) === pages.length - 1) show(0);
  find("play").textContent = "pause";
  find("caption").setAttribute("aria-live", "off");
  timer = setInterval(() => {
    show(Number(slider.value) + 1);
    if (Number(slider.value) === pages.length - 1) stop();
  }, {{ milliseconds }});
}
find("back").onclick = () => turn(-1);
find("next").onclick = () => turn(1);
find("play").onclick = play;
slider.oninput = () => { stop(); show(Number(slider.value)); };
document.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -pages.length, End: pages.length };
  if (event.key in steps) { event.preventDefault(); turn(steps[event.key]); }
  else if (event.key === " " && event.target.tagName !== "BUTTON") { event.preventDefault(); play(); }
});
</script>
</body>
</html>
"""
