"""Go, no-go, not yet: one sentence from rules that the configuration states, and how to test it in use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scipy.stats import norm

from gcpl_lab.evaluation.fit_of_models import FROZEN, STATISTICS
from gcpl_lab.pilot.config import PilotConfig
from gcpl_lab.pilot.page import amount, share

RULES = {
    "fit": (
        "simple image statistics are not surely better than what the frozen models see",
        "frozen models that see these images: a larger preset (sd-1.5 and vit-b-16), or a classifier on pixels",
    ),
    "accuracy": (
        "quality is at least what would be adopted",
        "more images a class (see the learning curve), or fewer and clearer classes",
    ),
    "coverage": (
        "sets of answers hold the truth as often as promised",
        "calibration images from the same source as those that come in",
    ),
    "reviews": ("no more images go to a person than allowed", "a larger most_reviewed, or a method that is surer"),
    "cost": (
        "it costs less than everything reviewed and than nothing reviewed",
        "other costs (see the break-even points), or more test images where the interval is wide",
    ),
}
"""What must hold for a go, and what would change it where it does not."""
LEVEL, POWER = 0.05, 0.8
LEAST_DIFFERENCE = 0.05
"""What is planned for where ours and today's are within a point."""


def decide(config: PilotConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict on a pilot from the parts of ``pilot.json``.

    Each rule holds, fails, or is open: an interval that holds the limit leaves it open. All hold: go; one fails: no-go;
    otherwise not yet.

    Returns:
        ``decision``, ``sentence``, ``reasons`` (rule, state, what it says) and ``would_change_it``.
    """
    reasons = []
    for name, (holds, fails, figures) in _check_rules(config, found).items():
        state = "holds" if holds else "fails" if fails else "open"
        reasons.append({"rule": name, "state": state, "says": RULES[name][0], "figures": figures})
    failed, left_open = ([reason for reason in reasons if reason["state"] == state] for state in ("fails", "open"))
    decision = "no-go" if failed else "not yet" if left_open else "go"
    which = "; ".join(f"{reason['says']} ({reason['figures']})" for reason in failed or left_open)
    why = "All conditions hold" if decision == "go" else f"{'Not fulfilled' if failed else 'Still open'}: {which}"
    sentence = f"{decision.capitalize()} with {found['chosen']['title']}. {why}."
    if found["chosen"]["simple"] and not all(entry["simple"] for entry in found["methods"]):
        sentence += " The method taken is a simple one: learned prompts are not worth their price here."
    changes = [RULES[reason["rule"]][1] for reason in failed + left_open]
    return {"decision": decision, "sentence": sentence, "reasons": reasons, "would_change_it": changes}


def _check_rules(config: PilotConfig, found: Mapping[str, Any]) -> dict[str, tuple[bool, bool, str]]:
    """Whether a rule surely holds, whether it surely does not, and the figures behind it."""
    processes = {process["name"]: process for process in found["processes"]}
    ours, *others = (processes[name] for name in ("taken, with reviews", "everything reviewed", "nothing reviewed"))
    money = [amount(value) for value in (ours["cost"], ours["low"], ours["high"], *(other["cost"] for other in others))]
    quality, covered, sent = found["chosen"]["accuracy"], found["coverage"], found["reviews"]
    count, told = found["chosen"]["num_images"], found["fit_of_models"]["accuracies"]
    frozen, plain = (max((told[name] for name in by), key=lambda entry: entry["value"]) for by in (FROZEN, STATISTICS))
    spent = "{} {} per 1,000 images ({} to {}), everything reviewed {}, nothing {}"
    return {
        "fit": (
            found["fit_of_models"]["fit"],
            not found["fit_of_models"]["fit"],
            f"frozen {share(frozen, found['fit_of_models']['num_images'])}, statistics {share(plain)}",
        ),
        "accuracy": (
            quality["low"] >= config.least_accuracy,
            quality["high"] < config.least_accuracy,
            f"{share(quality, count)}, wanted {100 * config.least_accuracy:.0f} %",
        ),
        "coverage": (
            covered["high"] >= config.coverage,
            covered["high"] < config.coverage,
            f"{share(covered, count)}, promised {100 * config.coverage:.0f} %",
        ),
        "reviews": (
            sent["high"] <= config.most_reviewed,
            sent["low"] > config.most_reviewed,
            f"{share(sent, count)}, allowed {100 * config.most_reviewed:.0f} %",
        ),
        "cost": (
            all(ours["high"] < other["low"] for other in others),
            any(ours["low"] > other["high"] for other in others),
            spent.format(money[0], config.currency, *money[1:]),
        ),
    }


def plan_trial(ours: float, today: float, images_a_month: int) -> dict[str, Any]:
    """How to find out in use whether ours is better than today's: images in each arm, weeks, and when to stop.

    Args:
        ours, today: Shares of right answers.
        images_a_month: How many come in; half of them go to each arm.
    """
    ours, today = (min(max(value, 0.06), 0.995) for value in (ours, today))
    difference = abs(ours - today) if abs(ours - today) >= 0.01 else LEAST_DIFFERENCE
    size = sample_size(ours, ours - difference if ours - difference > 0 else ours + difference)
    return {
        "first": "shadow run: the method answers beside today's process, nobody acts on it, people label all images",
        "difference": difference,
        "images_an_arm": size,
        "weeks": round(size / (images_a_month / 2 / (52 / 12)), 1),
        "level": LEVEL,
        "power": POWER,
        "stop": "decide once, when both arms are full; stop before that only where the watch raises an alarm",
    }


def sample_size(first: float, second: float) -> int:
    """Images in each arm of a split run that show the difference of two shares with ``POWER``, two-sided.

    Source: Fleiss, Levin and Paik 2003, Statistical Methods for Rates and Proportions, equation 4.14 (no correction)
    """
    mean, wanted, found = (first + second) / 2, norm.ppf(1 - LEVEL / 2), norm.ppf(POWER)
    spread = wanted * (2 * mean * (1 - mean)) ** 0.5 + found * (first * (1 - first) + second * (1 - second)) ** 0.5
    return math.ceil((spread / (first - second)) ** 2)


def broken_promises(now: Mapping[str, Any], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An alarm for each figure of reviewed images whose interval lies beyond what the pilot measured or promised."""
    before = {"accuracy": results["wholly_right"], "coverage": results["coverage"], "cost": results["processes"][0]}
    broken = {
        "accuracy": now["accuracy"]["high"] < before["accuracy"]["low"],
        "coverage": now["coverage"]["high"] < before["coverage"]["promised"],
        "cost": now["cost"]["low"] > before["cost"]["high"],
    }
    return [
        {"name": f"reviewed {name}", "after": now["num_images"], "figures": {"now": now[name], "pilot": before[name]}}
        for name in broken
        if broken[name]
    ]
