"""Sentences that hold in the run they are written about: what it answers, and which claims it does not bear out."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gcpl_lab.experiments.registry import BEFORE, title_of
from gcpl_lab.experiments.runs import Run

WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
QUESTION, LIMITS, SLIDES = WORDS["question"], WORDS["limits"], WORDS["slides"]

MISCALIBRATED = 0.05
"""Expected calibration error above which probabilities are called badly calibrated."""


def _say(part: str, name: str, **values: Any) -> str:
    return str(WORDS[part][name].format(**values))


def limits_of(results: Mapping[str, Any], kind: str | None = None) -> list[str]:
    """What numbers of this run cannot say; the first two sentences are about the bundled models."""
    own = WORDS[kind]["limits"] if kind else LIMITS[2:]
    return [*(LIMITS[:2] if results.get("preset", "tiny") == "tiny" else []), *own]


def answer_of(run: Run) -> str:
    """One line: did learning help, and did anything beat it?"""
    share, best = run.accuracy, run.best
    answer = _say("answer", "learned", title=title_of(best), share=share[best])
    if BEFORE in share:
        gain = share[best] - share[BEFORE]
        way = "up from" if gain > 0 else "down from" if gain < 0 else "no more than"
        answer += _say("answer", "names", way=way, share=share[BEFORE])
    if run.baselines:
        simple = max(run.baselines, key=share.__getitem__)
        answer += _say("answer", "baseline", title=title_of(simple), share=share[simple])
    return f"{answer}."


def caveats_of(run: Run) -> list[str]:
    """Claims that this run does not bear out, in words with its own numbers."""
    share, best, found = run.accuracy, run.best, []
    if BEFORE in share and share[best] <= share[BEFORE]:
        found.append(_say("caveats", "no_gain", best=share[best], before=share[BEFORE]))
    for name in run.learned:
        if name != "gcpl" and "gcpl" in share and share[name] <= share["gcpl"]:
            words = {"title": title_of(name), "share": share[name], "gcpl": share["gcpl"]}
            found.append(_say("caveats", "not_above_gcpl", **words))
    if better := [name for name in run.baselines if share[name] > share[best]]:
        listed = ", ".join(f"{title_of(name)} ({share[name]:.1%}, {run.seconds(name):.1f} s)" for name in better)
        found.append(_say("caveats", "beaten", best=share[best], seconds=run.seconds(best), better=listed))
    for name in run.learned:
        if (error := run.rows[name]["calibration_error"]) > MISCALIBRATED:
            found.append(_say("caveats", "miscalibrated", title=title_of(name), error=error))
    return found


def scenes_answer(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line on several labels an image: LMPT beside zero-shot CLIP, a probe and CoOp with plain cross entropy."""
    by_name = {row["name"]: row for row in rows}
    numbers = "; ".join(
        f"{title_of(name)} {100 * by_name[name]['map']:.1f} (tail {100 * by_name[name]['map_tail']:.1f})"
        for name in ("lmpt", "coop_bce", "linear_probe", "zero_shot_clip")
        if name in by_name
    )
    return f"Several labels an image, mAP in percent on the test scenes: {numbers}."


def labels_answer(results: Mapping[str, Any]) -> str:
    """One line on prompts for several labels: what was measured, beside class names, a probe and guessing."""
    share, by_name = results["measured"]["map"], {row["name"]: row for row in results["methods"]}
    names, probe = (by_name[name]["map"] for name in ("zero_shot_clip", "linear_probe"))
    values = {"classes": len(results["data"]["classes"]), "count": results["data"]["test_size"], **share}
    return _say("labels", "answer", names=names, probe=probe, chance=results["measured"]["chance"], **values)


def scenes_caveats(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What does not hold on the scenes."""
    caveats = [WORDS["caveats"]["one_seed"]]
    parts = {"map": "over all classes", "map_head": "on the head", "map_medium": "on the medium part"}
    for learned in (row for row in rows if row["name"] == "lmpt"):
        for score, part in {**parts, "map_tail": "on the tail"}.items():
            if better := [title_of(row["name"]) for row in rows if (row[score] or 0) > (learned[score] or 0)]:
                caveats.append(f"LMPT is not the best {part}; above it: {', '.join(better)}.")
    return caveats
