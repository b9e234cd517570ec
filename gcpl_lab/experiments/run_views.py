"""What is made of a finished run beside its report and deck: a hover map, and pictures that move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gcpl_lab.experiments.pictures import moving_pictures
from gcpl_lab.experiments.runs import load_states
from gcpl_lab.views.interactive import (
    Frame,
    frames_of,
    journey_frames,
    write_flip_book,
    write_gif,
    write_hover_map,
    write_movie,
)
from gcpl_lab.views.projection import project

MAP_TITLE = "Test images before and after learning"


def make_map(folder: str | Path, method: str = "umap") -> Path:
    """Write ``map.html``: the test images before and after under the mouse."""
    states = load_states(folder)
    return write_hover_map(
        Path(folder) / "map.html",
        states.project(method),
        states.labels,
        states.class_names,
        images=list(states.images),
        predictions=states.predictions,
        probabilities={name: chances.max(axis=1) for name, chances in states.probabilities.items()},
        files=states.files,
        families=states.families,
        title=MAP_TITLE,
    )


def make_animation(folder: str | Path, method: str = "umap") -> list[Path]:
    """Write the pictures that move, each as GIF, flip book and, where ffmpeg is, MP4.

    ``journey`` (class tokens); and of a run with look-alikes ``decision_map``, ``pair_hills``, ``prompts_and_images``
    and ``score_map``, which go down the training steps.
    """
    states, place = load_states(folder), Path(folder) / "animation"
    names, families = states.class_names, states.families
    count, classes, _ = states.journey.shape
    placed = project(states.journey.reshape(count * classes, -1), method="pca", seed=states.seed).points["all"]
    journey = journey_frames(placed.reshape(count, classes, 2), states.steps, names, families)
    paths = "Paths of the learned class tokens on their first two principal components."
    made = _write_moving(place / "journey", journey, "The way of the class tokens", paths)
    for name, (title, alt, pages) in moving_pictures(states, method).items():
        made += _write_moving(place / name, frames_of(pages), title, alt)
    return made


def _write_moving(path: Path, frames: Sequence[Frame], title: str, alt: str) -> list[Path]:
    made = [write_gif(path.with_suffix(".gif"), frames)]
    made.append(write_flip_book(path.with_suffix(".html"), frames, title=title, alt=alt))
    return [*made, *write_movie(path.with_suffix(".mp4"), frames)]
