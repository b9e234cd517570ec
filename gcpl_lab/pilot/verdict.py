"""Go, no-go, not yet: one sentence from rules that the configuration states, and how to test it in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gcpl_lab.evaluation.costs import sample_size
from gcpl_lab.pilot.config import PilotConfig

RULES = {
    "fit": (
        "simple image statistics are not surely better than what the frozen models see",
        "frozen models that see these images: a larger preset (sd-1.5 and vit-b-16), or a classifier on pixels",
    ),
    "accuracy": (
        "its quality is at least what would be adopted",
        "more images a class (see the learning curve), or fewer and clearer classes",
    ),
    "coverage": (
        "its sets of answers hold the truth as often as promised",
        "calibration images from the same source as those that come in",
    ),
    "reviews": ("no more images go to a person than allowed", "a larger most_reviewed, or a method that is surer"),
    "cost": (
        "it costs less than everything reviewed and than nothing reviewed",
        "other costs (see the break-even points), or more test images where the interval is wide",
    ),
}
"""What must hold for a go, and what would change it where it does not."""


def decide(config: PilotConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on a pilot from the parts of ``pilot.json``.

    Each rule holds, fails, or is open: an interval that holds the limit leaves it open. All hold: go; one fails: no-go;
    otherwise not yet.

    Returns:
        ``decision``, ``sentence``, ``reasons`` (rule, state, what it says) and ``would_change_it``.
    """
    states = {
        "fit": "holds" if found["fit_of_models"]["fit"] else "fails",
        "accuracy": _against(found["chosen"]["accuracy"], config.least_accuracy),
        "coverage": "holds" if found["coverage"]["high"] >= config.coverage else "fails",
        "reviews": _against(found["reviews"], config.most_reviewed, more=False),
        "cost": _cost_state(found["processes"]),
    }
    failed, left_open = ([name for name in states if states[name] == state] for state in ("fails", "open"))
    decision = "no-go" if failed else "not yet" if left_open else "go"
    which = "; ".join(RULES[name][0] for name in failed or left_open)
    why = "all conditions hold" if decision == "go" else f"it {'does not hold' if failed else 'is open'} that {which}"
    sentence = f"{decision.capitalize()} with {found['chosen']['title']}: {why}."
    if found["chosen"]["simple"]:
        sentence += " The method taken is a simple one: learned prompts are not worth their price here."
    reasons = [{"rule": name, "state": state, "says": RULES[name][0]} for name, state in states.items()]
    changes = [RULES[name][1] for name in failed + left_open]
    return {"decision": decision, "sentence": sentence, "reasons": reasons, "would_change_it": changes}


def _against(share: Mapping[str, float], limit: float, more: bool = True) -> str:
    """Whether an interval lies beyond a limit, on its other side, or holds it."""
    if more:
        return "holds" if share["low"] >= limit else "fails" if share["high"] < limit else "open"
    return "holds" if share["high"] <= limit else "fails" if share["low"] > limit else "open"


def _cost_state(processes: list[Mapping[str, Any]]) -> str:
    by_name = {process["name"]: process for process in processes}
    ours, others = by_name["taken, with reviews"], [by_name[f"{what} reviewed"] for what in ("everything", "nothing")]
    if all(ours["high"] < other["low"] for other in others):
        return "holds"
    return "fails" if any(ours["low"] > other["high"] for other in others) else "open"


def plan_trial(ours: float, today: float, images_a_month: int) -> dict[str, Any]:
    """How to find out in use whether ours is better than today's: images in each arm, weeks, and when to stop.

    Args:
        ours, today: Shares of right answers; where they are within a point, a difference of five points is planned for.
        images_a_month: How many come in; half of them go to each arm.
    """
    ours, today = (float(np.clip(value, 0.06, 0.995)) for value in (ours, today))
    difference = abs(ours - today) if abs(ours - today) >= 0.01 else 0.05
    size = sample_size(ours, ours - difference if ours - difference > 0 else ours + difference)
    return {
        "first": "shadow run: the method answers beside today's process, nobody acts on it, people label all images",
        "difference": difference,
        "images_an_arm": size,
        "weeks": round(size / (images_a_month / 2 / (52 / 12)), 1),
        "level": 0.05,
        "power": 0.8,
        "stop": "decide once, when both arms are full; stop before that only where the watch raises an alarm",
    }
