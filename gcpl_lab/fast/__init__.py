"""The same answer sooner, wrapped around frozen models from outside.

The plain rooms (models, gcpl, lmpt) never need this one: the estimators call :func:`enable`, and
``GCPL_LAB_FAST=0`` leaves everything as the papers have it. What each piece gains stands beside its name and is
measured by ``benchmarks/``.
"""

from __future__ import annotations

import os

from gcpl_lab.errors import LabError
from gcpl_lab.fast.text import FastPrompts
from gcpl_lab.models.clip import FrozenCLIP

VARIABLE = "GCPL_LAB_FAST"


def is_on() -> bool:
    """What the environment variable says: on, unless it is 0.

    Raises:
        LabError: It is neither 0 nor 1.
    """
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise LabError(f"{VARIABLE} is {value!r}; expected 0 (everything as the papers have it) or 1")
    return value == "1"


def enable(clip: FrozenCLIP) -> FrozenCLIP:
    """Let a frozen CLIP encode of its prompts no more than what is asked for; returns it.

    Called again, it follows what the environment variable says by then.
    """
    known = vars(clip).pop("encode_prompts", None)
    if is_on():
        vars(clip)["encode_prompts"] = known or FastPrompts(clip)
    return clip
