"""The same answer sooner, wrapped around frozen models from outside.

The plain rooms (models, gcpl, lmpt) never need this one: the estimators call :func:`enable`, and
``GCPL_LAB_FAST=0`` leaves everything as the papers have it. What each piece gains stands beside its name and is
measured by ``benchmarks/``.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

from gcpl_lab.errors import LabError

Model = TypeVar("Model")

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


def enable(model: Model) -> Model:
    """Let a frozen model do once what the prompts of one call have in common; returns the model.

    Called again, it follows what the environment variable says by then.

    Args:
        model: A ``FrozenDiffusion`` or a ``FrozenCLIP``.
    """
    wrapped: Any = model
    if hasattr(wrapped, "predict_noise"):
        from gcpl_lab.fast.shared import SharedPrediction

        _wrap(wrapped, "predict_noise", SharedPrediction)
    else:
        from gcpl_lab.fast.text import FastPrompts

        _wrap(wrapped, "encode_prompts", FastPrompts)
    return model


def _wrap(model: Any, name: str, wrapper: Any) -> None:
    known = vars(model).pop(name, None)
    if is_on():
        setattr(model, name, known or wrapper(model))
