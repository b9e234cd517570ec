"""Commands of the workshop: its notebooks, views of a finished run, and how the bundled data and models are made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from gcpl_lab.cli import options
from gcpl_lab.cli.answers import answer, console, make_table

CONTROLS = "Learn from shuffled labels or captions beside it, which takes as long again or longer."
Run = Annotated[Path, Argument(help="Folder written by train, compare, ablate lmpt or demo.")]
Theme = Annotated[str, Option(help="light or dark.")]
Method = Annotated[str, Option(help="Of the map: umap, aligned, densmap, pca or tsne.")]
Raw = Annotated[Path, Option(help="Folder with the four published Fashion-MNIST files.")]
DEMO, RAW_FILES = Path("runs/demo"), Path("/usr/share/datasets/fashion-mnist")


def course(
    notebooks: Annotated[list[str] | None, Argument(help="Names or numbers such as 03; all by default.")] = None,
    edition: Annotated[str, Option(help="student (no solutions) or instructor (solutions folded).")] = "student",
    source: Annotated[Path, Option(help="Folder of the text sources.")] = Path("notebooks"),
    target: Annotated[Path, Option(help="Folder for the .ipynb files.")] = Path("notebooks"),
    execute: Annotated[bool, Option(help="Run every cell; without, notebooks have no outputs.")] = True,
    ship: Annotated[bool, Option(help="Copy the states that are left to data_samples/course.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write the workshop's notebooks from their text sources, in order, as students or instructors get them."""
    options.find_tools()
    from gcpl_lab.data.samples import find_samples
    from tools.editions import EDITIONS, write_course
    from tools.ship_course import ship_states

    if edition not in EDITIONS:
        raise BadParameter(f"edition is {edition!r}; expected one of {', '.join(EDITIONS)}")
    if edition == "instructor" and source.resolve() == target.resolve():
        raise BadParameter("the instructor edition needs a --target of its own, such as runs/instructor")
    with console.status("") as status:
        rows = write_course(source, target, edition, notebooks or (), execute, status.update)
    shipped = ship_states(find_samples("fashion").parent / "course") if ship else []
    took = ("not run" if row["seconds"] is None else f"{row['seconds']:.0f} s" for row in rows)
    shown = [{**row, "took": seconds} for row, seconds in zip(rows, took, strict=True)]
    table = make_table({"notebook": "{file}", "took": "{took}", "stated": "{stated_minutes} min"}, shown)
    lines = [f"Shipped in data_samples/course: what notebooks {', '.join(shipped)} left."] if shipped else []
    answer({"notebooks": rows, "shipped": shipped}, as_json, table, *lines)


def catch_up(
    notebook: Annotated[str, Argument(help="Number of the notebook to catch up with, such as 05.")],
    replace: Annotated[bool, Option(help="Overwrite what your own run has left.")] = False,
    as_json: options.Json = False,
) -> None:
    """Restore what the notebooks up to this one leave, so that it and the next one can be opened at once."""
    from gcpl_lab.workshop import course as states

    done = states.catch_up(notebook.zfill(2), replace)
    restored = ", ".join(f"{number} {what}" for number, what in done.items())
    kept = ["What was there already was kept; --replace overwrites it."] if "kept" in done.values() else []
    restored = restored or "nothing to restore: no earlier notebook leaves any"
    answer(done, as_json, f"{states.course_folder()}: {restored}", *kept)


def lab(notebooks: Annotated[Path, Option(help="Folder of notebooks.")] = Path("notebooks")) -> None:
    """Open JupyterLab on the notebooks."""
    if not notebooks.is_dir():
        raise BadParameter(f"{notebooks}: no such folder; run this where the project was cloned")
    sys.exit(subprocess.call([sys.executable, "-m", "jupyter", "lab", f"--notebook-dir={notebooks}"]))


def report(
    folder: Run = DEMO,
    theme: Theme = "light",
    method: Method = "umap",
    preset: options.LearnedOn = None,
    controls: Annotated[bool, Option(help=CONTROLS)] = True,
    as_json: options.Json = False,
) -> None:
    """Make everything that can be shown of a run: page, figures, samples, hover map, animation and deck."""
    run: dict[str, Any] = {"theme": theme, "preset": preset, "controls": controls}
    _make(folder, method, as_json, "Page, and {others} files beside it", **run)


def slides(folder: Run = DEMO, theme: Theme = "light", method: Method = "umap", as_json: options.Json = False) -> None:
    """Make a deck of slides of a run, with every figure as PNG, SVG and PDF beside it."""
    _make(folder, method, as_json, "Slides, and {others} figures beside them", theme=theme, views=("deck",))


def hover_map(folder: Run = DEMO, method: Method = "umap", as_json: options.Json = False) -> None:
    """Make one page with the test images of a run on a map, each shown under the mouse."""
    _make(folder, method, as_json, "Map", views=("map",))


def animate(folder: Run = DEMO, method: Method = "umap", as_json: options.Json = False) -> None:
    """Make the pictures of a run move, as GIF, as a page to turn by hand and, where ffmpeg is, as MP4."""
    _make(folder, method, as_json, "{all} files", views=("animation",))


def _make(folder: Path, method: str, as_json: bool, what: str, **run: Any) -> None:
    """Views of a run, whose states and page are made first where they are not there yet."""
    from gcpl_lab.report import make_report

    with console.status("looking at the run"):
        paths = make_report(folder, method, **run)
    told, endings = what.format(all=len(paths), others=len(paths) - 1), {path.suffix for path in paths}
    still = ".gif" in endings and ".mp4" not in endings
    lines = ["No MP4: ffmpeg is not installed; the GIF and the page hold the same."] if still else []
    answer({"files": [str(path) for path in paths]}, as_json, f"{told}: {paths[0]}", *lines)


def build_samples(
    raw: Raw = RAW_FILES,
    target: Annotated[Path, Option(help="The folder data_samples.")] = Path("data_samples"),
    seed: options.Seed = 0,
) -> None:
    """Rebuild the bundled images from the raw ones: the same seed gives the same bytes."""
    options.find_tools()
    from tools.samples import build_fashion
    from tools.wardrobe import build_wardrobe

    answer(None, False, f"wrote {build_fashion(raw, target / 'fashion', seed)}")
    answer(None, False, f"wrote {build_wardrobe(raw, target / 'wardrobe_lt', seed)}")


def pretrain(
    raw: Raw = RAW_FILES,
    work: Annotated[Path, Option(help="Checkpoints and logs; a rerun goes on.")] = Path("runs/pretrain"),
    target: Annotated[Path, Option(help="Where the finished pair goes.")] = Path("runs/pretrain/tiny"),
    seed: options.Seed = 0,
) -> None:
    """Rebuild the tiny frozen models from the raw images (hours; resumable)."""
    options.find_tools()
    from gcpl_lab.models.presets import PRESETS
    from tools.model_card import write_card
    from tools.pretrain import PretrainConfig, run_pretraining

    with console.status("") as status:
        for record in run_pretraining(raw, work, target, PretrainConfig(seed=seed)):
            done = f"step {record['step']} of {record['num_steps']}"
            status.update(f"{record['stage']}: {done}, loss {record['loss']:.4f}")
        status.update("measuring for the card")
        card = write_card(target, raw, PRESETS["tiny"].evidence_range)
    answer(None, False, f"The pair is in {target}; its card is {card}.")
