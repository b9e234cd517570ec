"""What all benchmarks share: options, rows, a table, one JSON file; ``gcpl_lab.evaluation.timing`` measures."""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from gcpl_lab.data.sets import ImageSet
from gcpl_lab.evaluation.timing import CLOCKS, Seconds, alternate, check_aim, make_row, make_rows, paired_ratio
from gcpl_lab.experiments.caching import source_checksum
from gcpl_lab.fast.race import Plan, run_race
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import tensor_checksum, write_json, write_text
from gcpl_lab.training.machine import describe_machine, describe_versions

__all__ = ["CLOCKS", "Seconds", "alternate", "check_aim", "make_row", "make_rows", "paired_ratio"]

RESULTS = Path(__file__).parent / "results"
KEPT = Path(__file__).parents[1] / "runs" / "benchmarks"
"""What takes long and does not change from call to call: learned prompts, decisions of slow procedures."""

LEAST_REPEATS = 5
"""Fewer measurements are for trying a program out; a result that is kept has at least as many."""


def time_call(function: Callable[[], Any], clock: str = "wall") -> float:
    """Seconds of one call."""
    began = CLOCKS[clock]()
    function()
    return CLOCKS[clock]() - began


def benchmark_options(description: str | None, name: str, preset: str | None = "tiny") -> argparse.ArgumentParser:
    """The options that every benchmark has: ``--repeats``, ``--clock``, ``--output``; with a preset, ``--preset``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if preset is not None:
        parser.add_argument("--preset", default=preset, help="name of the frozen models, or a folder")
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS, help="measurements of each variant")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for a look on a busy machine")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="where the result is written")
    return parser


def time_updates(records: Iterator[Any], clock: str = "wall", beginnings: list[float] | None = None) -> float:
    """Seconds of a training's updates after its first, which sets up what is set up once.

    Args:
        records: Of ``gcpl_lab.training.loop.train``; it is run to its end.
        clock: See :data:`CLOCKS`.
        beginnings: Gets the seconds up to the end of the first update.
    """
    first = time_call(lambda: next(records), clock)
    if beginnings is not None:
        beginnings.append(first)
    return time_call(lambda: deque(records, maxlen=0), clock)


def make_result(name: str, rows: list[dict[str, Any]], repeats: int, **facts: Any) -> dict[str, Any]:
    """The content of ``results/<name>.json``.

    Args:
        name: Of the program.
        rows: See :func:`make_rows`.
        repeats: Measurements of each row.
        **facts: Settings, checks, aims: whatever the numbers need to be understood.
    """
    machine = describe_machine() | {"load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None}
    return {
        "name": name,
        "machine": machine,
        "versions": describe_versions(),
        "repeats": repeats,
        **facts,
        "rows": rows,
    }


def publish(result: Mapping[str, Any], title: str, path: Path) -> None:
    """Print a result's table, aims and machine, and write the whole as JSON.

    Args:
        result: Of :func:`make_result`; ``aims`` of :func:`check_aim` are printed where there are any.
        title: Above the table.
        path: Of the JSON file.
    """
    write_json(path, result)
    console = Console(width=120, highlight=False)
    table = Table(title=title)
    for index, heading in enumerate(table_headings(result["rows"])):
        table.add_column(heading, justify="right" if index else "left")
    for row in result["rows"]:
        table.add_row(*table_cells(row, result["rows"]))
    console.print(table)
    for line in aim_lines(result):
        console.print(line)
    console.print(machine_line(result))


COLUMNS = {
    "what": ("what", ""),
    "accuracy": ("accuracy", ".1%"),
    "low": ("from (95 %)", ".1%"),
    "high": ("to", ".1%"),
    "draws": ("draws", "d"),
    "difference": ("paired difference", "+.1%"),
    "log_loss": ("log-loss", ".3f"),
    "calibration_error": ("calibration error", ".3f"),
    "seconds": ("seconds (median)", "#.3g"),
    "spread": ("spread", "#.3g"),
    "evaluations": ("evaluations", ",.0f"),
    "evaluations_to_published": ("published / this (evaluations)", ",.0f"),
    "ratio_to_published": ("published / this", ".2f"),
    "ratio_to_floor": ("this / floor", ".2f"),
    "ratio_to_plain": ("plain / this", ".2f"),
    "peak_gb": ("peak memory (GB)", "#.3g"),
}
"""Columns of the printed tables: key of a row, heading and format; a column that no row fills is left out."""


def table_headings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Headings of the columns that some row fills."""
    return [heading for key, (heading, _) in COLUMNS.items() if any(row.get(key) is not None for row in rows)]


def table_cells(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of one row under :func:`table_headings`."""
    keys = [key for key in COLUMNS if any(other.get(key) is not None for other in rows)]
    return [_cell(key, row.get(key)) for key in keys]


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "accuracy":
        return f"{value:.1%}".replace("%", " %")
    if key == "evaluations" and value != round(value):
        return f"{value:,.1f}"
    return format(value, COLUMNS[key][1])


def aim_lines(result: Mapping[str, Any]) -> list[str]:
    """One sentence for each aim of a result."""
    lines = []
    for aim in result.get("aims", []):
        bounds = [f"at least {aim['least']:g}"] if aim["least"] is not None else []
        bounds += [f"at most {aim['most']:g}"] if aim["most"] is not None else []
        state = "met" if aim["met"] else "missed"
        lines.append(f"{aim['what']}: {aim['value']:.3g} ({' and '.join(bounds)} wanted: {state})")
    return lines


def machine_line(result: Mapping[str, Any]) -> str:
    """Where and how often a result was measured."""
    machine = result["machine"]
    load = machine.get("load_average")
    busy = f", load {load[0]:.1f}" if load else ""
    return (
        f"{machine['processor']}, {machine['threads']} threads of {machine['cores']} cores, device "
        f"{machine['device']}{busy}; medians of {result['repeats']}, spread is largest minus smallest"
    )


def outside(data: ImageSet, used: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Images that are not among those used, equally many a class."""
    rest = np.setdiff1d(np.arange(len(data)), used)
    rng, each = np.random.default_rng([seed, 41]), max(1, count // len(data.class_names))
    members = [rest[data.labels[rest] == label] for label in range(len(data.class_names))]
    return np.concatenate([rng.permutation(some)[:each] for some in members])


def prompt_options(parser: argparse.ArgumentParser, *, support_images: int, support_help: str) -> None:
    """The options of programs that judge with learned class prompts.

    Args:
        parser: Receives them.
        support_images: How many images outside the exemplars are used.
        support_help: What they are used for.
    """
    parser.add_argument("--prompts", type=Path, help="folder of a saved classifier; by default prompts are learned")
    parser.add_argument("--train-steps", type=int, help="updates, where prompts are learned (default: the package's)")
    parser.add_argument("--images", type=int, default=500, help="test images")
    parser.add_argument("--support-images", type=int, default=support_images, help=support_help)
    parser.add_argument("--cache", type=Path, default=KEPT, help="where learned prompts and decisions are kept")
    parser.add_argument("--seed", type=int, default=0)


def learned_prompts(
    options: argparse.Namespace, diffusion: FrozenDiffusion, exemplars: ImageSet, **settings: Any
) -> GCPLClassifier:
    """Class prompts of these exemplars: those of ``--prompts``, or kept ones of an earlier call, or newly learned.

    Args:
        options: With ``prompts``, ``preset``, ``seed``, ``train_steps`` (None: the package's) and ``cache``, a folder.
        diffusion: The frozen model.
        exemplars: What is learned from.
        **settings: Further ones of :class:`GCPLClassifier`.
    """
    if options.prompts:
        return GCPLClassifier.load(options.prompts, diffusion)
    settings |= {"num_steps": options.train_steps} if options.train_steps else {}
    model = GCPLClassifier(options.preset, "gcpl", seed=options.seed, diffusion=diffusion, **settings)
    names = [path.name for path in exemplars.images]
    what = repr((options.seed, settings, names, diffusion.checksum(), source_checksum()))
    folder = options.cache / f"prompts-{tensor_checksum([(what, torch.zeros(1))])[:16]}"
    if folder.is_dir():
        return GCPLClassifier.load(folder, diffusion)
    model.fit(exemplars.images, exemplars.labels, list(exemplars.class_names)).save(folder)
    return model


def follow(plan: Plan, errors: np.ndarray, prior: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What a race finds out about images whose errors on the whole pool are known.

    Args:
        plan: Of the race.
        errors: (image, class, pool).
        prior: CLIP's log-probabilities (image, class), where the plan was learned with them.

    Returns:
        Calibrated logits (image, class), and evaluations (image,).
    """
    seen = errors[:, :, plan.samples]

    def logits_after(num_steps: int, _: np.ndarray) -> np.ndarray:
        return plan.logits(seen, prior, num_steps)

    first = plan.logits(seen, prior, 0)
    logits, spent = run_race(first, logits_after, len(plan.samples), plan.margin, plan.shortlist_margin)
    return plan.temperature * logits, spent


def replace_measured(path: Path, lines: Sequence[str], what: str = "measured") -> None:
    """Put lines between the marks of a page, in the place of those from the run before.

    Args:
        path: A page with one line ``<!-- measured: begin -->`` and one ``<!-- measured: end -->``.
        lines: Without line ends.
        what: The word in the marks.

    Raises:
        SystemExit: The page has lost its marks.
    """
    text, begin, end = path.read_text(encoding="utf-8"), f"<!-- {what}: begin -->", f"<!-- {what}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{path}: expected one line {begin} and one line {end}; put them back")
    before, rest = text.split(begin)
    write_text(path, "\n".join([before + begin, *lines, end]) + rest.split(end)[1])
