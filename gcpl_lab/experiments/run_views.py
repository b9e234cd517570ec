"""What is made of a finished run beside its report and deck: a hover map, and pictures that move."""

from __future__ import annotations

from pathlib import Path

from gcpl_lab.experiments import captions, labels
from gcpl_lab.experiments.pictures import moving_pictures
from gcpl_lab.experiments.runs import load_states
from gcpl_lab.views.interactive import frames_of, write_flip_book, write_gif, write_hover_map, write_movie
from gcpl_lab.views.moving import moving_captions, moving_tokens


def make_map(folder: str | Path, method: str = "umap") -> Path:
    """Write ``map.html``: the test images before and after under the mouse."""
    path = Path(folder) / "map.html"
    if (Path(folder) / labels.LABELS).is_file():
        return write_hover_map(path, **labels.map_of_labels(labels.load_labels(folder), method))
    states = load_states(folder)
    return write_hover_map(
        path,
        states.project(method),
        states.labels,
        states.class_names,
        images=list(states.images),
        predictions=states.predictions,
        probabilities={name: chances.max(axis=1) for name, chances in states.probabilities.items()},
        files=states.files,
        families=states.families,
        title="Test images before and after learning",
    )


def make_animation(folder: str | Path, method: str = "umap") -> list[Path]:
    """Write the pictures that move, each as GIF, flip book and, where ffmpeg is, MP4.

    ``journey`` (what is learned, on its way); of a run with look-alikes ``decision_map``, ``pair_hills``,
    ``prompts_and_images`` and ``score_map``, which go down the training steps; of one with several labels an image
    ``precision``; ``captions`` where captions were followed goes down their epochs.
    """
    if (Path(folder) / labels.LABELS).is_file():
        pictures = labels.moving_labels(labels.load_labels(folder))
    else:
        states = load_states(folder)
        tokens = dict(zip(states.steps, states.journey, strict=True))
        pictures = {"journey": moving_tokens(tokens, states.class_names, states.families)}
        pictures |= moving_pictures(states, method)
    found, names = captions.load_captions(Path(folder) / "multilabel" / captions.CAPTIONS)
    if pairs := captions.choose_pairs(found) if found else []:
        epochs = captions.epochs_of(found)
        columns = {f"epoch {e}": captions.caption_columns(found, names, pairs, [e])[0] for e in epochs}
        pictures["captions"] = moving_captions(columns, captions.CONTROLS)
    made = list[Path]()
    for name, moving in pictures.items():
        path, frames = Path(folder) / "animation" / name, frames_of(moving.pages())
        made.append(write_gif(path.with_suffix(".gif"), frames))
        made.append(write_flip_book(path.with_suffix(".html"), frames, title=moving.title, alt=moving.alt))
        made += write_movie(path.with_suffix(".mp4"), frames)
    return made
