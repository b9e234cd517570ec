"""What a part of the self-test is: a registered function that puts figures into its findings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gcpl_lab.registry import Registry
from gcpl_lab.training.memory import ran_out

PARTS = Registry("part of the self-test")
"""Facts: ``seconds``, about what it takes on a GPU and in its form for a CPU; ``alone``, in a process of its own.
Parts run in the order of registration, the most telling first."""

register_part = PARTS.register


class NotHere(Exception):
    """A part, or a piece of one, does not apply to this machine; the message says why."""


@dataclass
class Findings:
    """What one part has found.

    Attributes:
        device: What is tested.
        folder: For files of the part's own.
        ends: When its time is over, as ``time.time`` counts.
        figures: Numbers and words by name, for JSON.
        failures: One line each.
        headline: The number that the part rests on.
    """

    device: torch.device
    folder: Path
    ends: float = math.inf
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    headline: str = ""

    @property
    def small(self) -> bool:
        """Whether the form for a CPU is wanted: little of everything."""
        return self.device.type != "cuda"

    def check(self, name: str, value: float, *, least: float = -math.inf, most: float = math.inf) -> None:
        """Keep a figure with its bounds, and fail where it is outside them or no number."""
        bounds = {"least": least, "most": most}
        self.figures[name] = {"value": value, **{key: bound for key, bound in bounds.items() if math.isfinite(bound)}}
        if not least <= value <= most:
            wanted = f"at least {least:g}" if value < least else f"at most {most:g}"
            self.failures.append(f"{name} is {value:.3g}; expected {wanted}")

    def piece(self, name: str, run: Callable[[], None], seconds: float = 0.0, *, may_not_fit: bool = False) -> None:
        """Run a piece whose failure is written down while the others go on.

        Args:
            name: In figures and failures.
            run: The piece.
            seconds: About what it takes: it is left out where less time is left.
            may_not_fit: Memory may run out in it: that is a figure then, no failure.
        """
        if time.time() + seconds > self.ends:
            self.figures[name] = "left out: no time was left for it"
            return
        try:
            run()
        except NotHere as reason:
            self.figures[name] = f"not here: {reason}"
        except Exception as error:
            if may_not_fit and ran_out(error):
                self.figures[name] = "does not fit into memory"
            else:
                self.failures.append(f"{name}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:300]
