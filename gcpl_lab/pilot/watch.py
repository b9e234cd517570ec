"""The watch: months that are simulated before one relies on it, and the log of what really came in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.data.readers import list_images, read_images
from gcpl_lab.data.shifts import shift_pictures
from gcpl_lab.data.tables import read_table
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation.monitoring import find_drift
from gcpl_lab.evaluation.trust import share_of
from gcpl_lab.pilot.data import PilotData, targets_of
from gcpl_lab.pilot.trials import Judge
from gcpl_lab.storage import file_checksum, write_text

LOG = "watch.jsonl"
UNCHANGED, NUM_UNCHANGED, NUM_CHANGED, MOST_SHIFTED = "none", 200, 50, 120
SHIFTED = {"blurred camera": ("blur", 3), "other light": ("contrast", 3)}
Answers = Mapping[str, np.ndarray]


def simulate_months(judge: Judge, data: PilotData, seed: int = 0) -> list[dict[str, Any]]:
    """How often an unchanged month alarms, and after how many images a changed one is noticed.

    Calibration and test images are dealt out anew in every run, half to calibrate and half to come in, so that an
    unchanged month is one. Changes: a blurred camera, other light, a class that nobody knew (a fifth of the month), and
    half of the month of one class.

    Args:
        judge: The method taken, with its answers on calibration and on test images.
        data, seed: Of the pilot.

    Returns:
        For each ``change``: ``noticed`` (share of the runs, with its interval), ``median_images`` until the alarm,
        ``images`` a month, and the number of ``runs``.
    """
    whole = {name: np.concatenate([part[name] for part in judge.answers]) for name in judge.answers[0]}
    targets = np.concatenate([targets_of(data.calibration), targets_of(data.test)])
    rng, rows = np.random.default_rng([seed, 79]), []
    shown = rng.permutation(len(targets))[:MOST_SHIFTED]
    images = read_images([(*data.calibration.images, *data.test.images)[place] for place in shown])
    shifted = {name: judge.answer(shift_pictures(images, *shift)) for name, shift in SHIFTED.items()}
    single = judge.thresholds is None  # with several labels no class can be left out afterwards
    for change in (UNCHANGED, *shifted, *(["new class"] if single else []), "other mix"):
        alarms, length = list[int | None](), 0
        for number in range(NUM_UNCHANGED if change == UNCHANGED else NUM_CHANGED):
            known, month = np.array_split(rng.permutation(len(targets)), 2)
            label, seen = int(rng.integers(targets.shape[1])), whole
            of, others = (month[targets[month, label] == there] for there in (1, 0))
            if change == "new class":
                known, seen = known[targets[known, label] == 0], _without(whole, label)
                month = rng.permutation([*others[: 4 * max(1, len(of))], *of])
            elif change == "other mix":
                half = rng.choice(of if len(of) else month, len(month) // 2)
                month = rng.permutation([*half, *rng.choice(month, len(month) - len(half))])
            source, places = (shifted[change], rng.permutation(len(images))) if change in shifted else (seen, month)
            calibration, stream = _part(seen, known), _part(source, places)
            drift, length = find_drift(calibration, stream, judge.thresholds, number), len(stream["distances"])
            alarms.append(min((found["after"] for found in drift.values() if found["alarm"]), default=None))
        after = [alarm for alarm in alarms if alarm is not None]
        row = {"change": change, "noticed": share_of(np.array([alarm is not None for alarm in alarms]))}
        median = float(np.median(after)) if after else None
        rows.append({**row, "median_images": median, "images": length, "runs": len(alarms)})
    return rows


def _part(answers: Answers, places: np.ndarray) -> dict[str, np.ndarray]:
    return {name: rows[places] for name, rows in answers.items()}


def _without(answers: Answers, label: int) -> dict[str, np.ndarray]:
    """What a method that does not know a class would have answered."""
    found = {name: rows if name == "features" else np.delete(rows, label, axis=1) for name, rows in answers.items()}
    found["probabilities"] /= np.maximum(found["probabilities"].sum(axis=1, keepdims=True), 1e-12)
    return found


def take_in(
    judge: Judge,
    images: Path,
    log: Path,
    since: datetime | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Answer the images of a folder that the log does not hold yet and append them, in the order of their file times.

    Args:
        judge: The method taken.
        images: A folder of images, without sub-folders.
        log: JSON lines, one an image.
        since: Images with an earlier file time are passed over.
        on_progress: Called with the images answered and their number.

    Returns:
        The whole log, and how many images were ``new``, ``known`` and ``passed_over``.
    """
    files = list_images(images) if images.is_dir() else []
    if not files:
        raise DataError(f"{images}: holds no image; expected a folder with those that came in: check the path")
    entries = []
    for number, row in read_table(log) if log.is_file() else ():
        if not {"checksum", *judge.answers[0]} <= row.keys():
            raise ArtifactError(f"{log}, line {number}: is no entry of this pilot; restore the log, or move it away")
        entries.append(row)
    seen, sums = {entry["checksum"] for entry in entries}, {path: file_checksum(path) for path in files}
    young = [path for path in files if since is None or path.stat().st_mtime >= since.timestamp()]
    new = sorted((path for path in young if sums[path] not in seen), key=lambda path: (path.stat().st_mtime, path.name))
    for start in range(0, len(new), 64):
        part = new[start : start + 64]
        answers = judge.answer(part)
        for place, path in enumerate(part):
            at = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
            values = {name: np.round(rows[place].astype(float), 6).tolist() for name, rows in answers.items()}
            entries.append({"file": path.name, "checksum": sums[path], "time": at, **values})
        # Whole or not at all: a killed watch answers the rest the next time.
        write_text(log, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
        if on_progress:
            on_progress(start + len(part), len(new))
    return entries, {"new": len(new), "known": len(young) - len(new), "passed_over": len(files) - len(young)}
