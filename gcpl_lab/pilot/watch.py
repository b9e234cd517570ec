"""The watch: what comes in against what the pilot was calibrated on, in numbers that one may look at every day."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency

from gcpl_lab.data.readers import list_images, read_images
from gcpl_lab.data.shifts import shift_pictures
from gcpl_lab.data.tables import read_table
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation.costs import answers_of, certainty_of
from gcpl_lab.evaluation.monitoring import bet_against, level_of_look
from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.pilot.data import PilotData, targets_of
from gcpl_lab.pilot.trials import Answers, Judge
from gcpl_lab.storage import file_checksum, write_text

LOG = "watch.jsonl"
LEVEL = 0.05
"""Chance that an unchanged stream ever raises an alarm, all tests together."""
LOOKS = tuple(25 * 2**number for number in range(16))
"""Numbers of images after which the class mix is tested."""
UNCHANGED, NUM_UNCHANGED, NUM_CHANGED, MOST_SHIFTED = "none", 200, 50, 120
SHIFTED = {"blurred camera": ("blur", 3), "other light": ("contrast", 3)}


def streams_of(answers: Answers, thresholds: np.ndarray | None) -> dict[str, np.ndarray]:
    """What is watched, (image,) each: certainty, strangeness in CLIP's features, and the least denoising error."""
    certainty = certainty_of(answers["probabilities"], thresholds)
    found = {"certainty": certainty, "feature distance": answers["distances"].min(axis=1)}
    return found | ({"denoising error": answers["errors"].min(axis=1)} if "errors" in answers else {})


def find_drift(
    calibration: Answers, stream: Answers, thresholds: np.ndarray | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """A martingale on each score, and repeated chi-square tests of the class mix; they share ``LEVEL``.

    Returns:
        For each test whether there was an ``alarm``, ``after`` how many images, and the figures behind it.
    """
    known, new, found = streams_of(calibration, thresholds), streams_of(stream, thresholds), dict[str, dict[str, Any]]()
    level = LEVEL / (len(known) + 1)
    for name, scores in new.items():
        values = bet_against(known[name], scores, seed)
        over = np.flatnonzero(values >= 1 / level)
        after, most = int(over[0]) + 1 if len(over) else None, float(values.max())
        found[name] = {"alarm": after is not None, "after": after, "limit": 1 / level, "values": values.tolist()}
        means = {"calibration_mean": float(known[name].mean()), "mean": float(scores.mean())}
        found[name] |= {"martingale": most, **means}
    mix: dict[str, Any] = {"alarm": False, "after": None, "p_value": None, "level": level}
    before, now = (answers_of(part["probabilities"], thresholds) for part in (calibration, stream))
    for number, look in enumerate((look for look in LOOKS if look <= len(now)), 1):
        counts = np.stack([before.sum(axis=0), now[:look].sum(axis=0)])
        counts = counts[:, counts.any(axis=0)]
        mix["p_value"] = 1.0
        if counts.shape[1] > 1 and counts.any(axis=1).all():
            mix["p_value"] = float(chi2_contingency(counts).pvalue)
        if mix["p_value"] < level_of_look(number, level):
            mix |= {"alarm": True, "after": look}
            break
    return found | {"class mix": mix}


def simulate_months(judge: Judge, answers: Sequence[Answers], data: PilotData, seed: int = 0) -> list[dict[str, Any]]:
    """How often an unchanged month alarms, and after how many images a changed one is noticed.

    Calibration and test images are dealt out anew in every run, half to calibrate and half to come in, so that an
    unchanged month is one. Changes: a blurred camera, other light, a class that nobody knew (a fifth of the month), and
    half of the month of one class.

    Args:
        judge: The method taken, with its ``answers`` on calibration and on test images.
        data, seed: Of the pilot.

    Returns:
        For each ``change``: ``noticed`` (share of the runs, with its interval), ``median_images`` until the alarm,
        ``images`` a month, and the number of ``runs``.
    """
    whole = {name: np.concatenate([part[name] for part in answers]) for name in answers[0]}
    targets = np.concatenate([targets_of(data.calibration), targets_of(data.test)])
    rng, rows = np.random.default_rng([seed, 79]), []
    shown = rng.permutation(len(targets))[:MOST_SHIFTED]
    images = read_images([(*data.calibration.images, *data.test.images)[place] for place in shown])
    shifted = {name: judge.answer(shift_pictures(images, *shift)) for name, shift in SHIFTED.items()}
    calibration, stream = answers
    single = judge.thresholds is None  # with several labels no class can be left out afterwards
    for change in (UNCHANGED, *shifted, *(["new class"] if single else []), "other mix"):
        alarms, length = list[int | None](), 0
        for number in range(NUM_UNCHANGED if change == UNCHANGED else NUM_CHANGED):
            known, month = np.array_split(rng.permutation(len(targets)), 2)
            calibration, stream = (_part(whole, places) for places in (known, month))
            if change in shifted:
                stream = _part(shifted[change], rng.permutation(len(images)))
            elif change == "new class":
                calibration, stream = _without_class(whole, targets, known, month, rng)
            elif change == "other mix":
                one = month[targets[month, rng.integers(targets.shape[1])] == 1]
                half = rng.choice(one if len(one) else month, len(month) // 2)
                stream = _part(whole, rng.permutation([*half, *rng.choice(month, len(month) - len(half))]))
            drift, length = find_drift(calibration, stream, judge.thresholds, number), len(stream["distances"])
            alarms.append(min((found["after"] for found in drift.values() if found["alarm"]), default=None))
        seen = [after for after in alarms if after is not None]
        median = float(np.median(seen)) if seen else None
        noticed = share_with_interval(len(seen), len(alarms))._asdict()
        row = {"change": change, "noticed": noticed, "median_images": median, "images": length}
        rows.append(row | {"runs": len(alarms)})
    return rows


def _part(answers: Answers, places: Any) -> dict[str, np.ndarray]:
    return {name: values[places] for name, values in answers.items()}


def _without_class(
    whole: Answers, targets: np.ndarray, known: np.ndarray, month: np.ndarray, rng: np.random.Generator
) -> Iterator[Answers]:
    """A class leaves the model and the calibration images; a fifth of the month is of it."""
    left = int(rng.integers(targets.shape[1]))
    strange, usual = (month[targets[month, left] == there] for there in (1, 0))
    mixed = rng.permutation([*usual[: 4 * max(1, len(strange))], *strange])
    for places in (known[targets[known, left] == 0], mixed):
        part = {name: np.delete(values, left, axis=1) for name, values in _part(whole, places).items()}
        part["probabilities"] /= np.maximum(part["probabilities"].sum(axis=1, keepdims=True), 1e-12)
        yield part


def read_log(path: Path, num_classes: int) -> list[dict[str, Any]]:
    """All images that were watched so far, in the order in which they came; an error names a damaged line."""
    rows = list(read_table(path)) if path.is_file() else []
    for number, row in rows:
        chances = row.get("probabilities")
        if not (isinstance(chances, list) and len(chances) == num_classes and "checksum" in row):
            raise ArtifactError(f"{path}, line {number}: is no entry of this pilot; restore the log, or move it away")
    return [row for _, row in rows]


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
    entries = read_log(log, len(judge.exemplars.class_names))
    seen = {entry["checksum"] for entry in entries}
    young = [path for path in files if since is None or path.stat().st_mtime >= since.timestamp()]
    sums = {path: file_checksum(path) for path in young}
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
