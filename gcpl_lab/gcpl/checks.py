"""What is given to ``fit``, checked before anything is computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gcpl_lab.data.sets import check_class_names, check_labels
from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.objectives import OBJECTIVES


def check_fit(
    images: Sequence[Any], labels: Sequence[Any] | np.ndarray, class_names: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Distinct labels in order, each image's index among them, and one name a class: those given, or the labels.

    Raises:
        DataError: They do not fit together, or there are fewer than two classes.
    """
    if len(images) == 0:
        raise DataError("no images were given; expected at least one for each of two classes")
    classes, ids = np.unique(check_labels(labels, len(images)), return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"all {len(images)} images have the label {classes.tolist()[0]!r}; expected at least two classes"
        )
    names = [str(label) for label in classes] if class_names is None else list(class_names)
    if len(names) != len(classes):
        raise DataError(f"class_names has {len(names)} names for {len(classes)} classes ({classes.tolist()[:10]})")
    check_class_names(names)
    return classes, ids, names


def check_calibration(
    classification: str, images: Sequence[Any], labels: Sequence[Any] | np.ndarray, classes: np.ndarray
) -> None:
    """Refuse images to calibrate on that are of no use, or labels that do not fit the learned ``classes``."""
    if classification != "fast":
        raise DataError(
            f"{len(images)} images to calibrate on are given, and classification is {classification!r}, which needs "
            "none; set classification='fast', or leave them out"
        )
    if len(images) != len(labels) or len(images) < 2:
        raise DataError(
            f"{len(images)} images and {len(labels)} labels to calibrate on; expected one label an image, and at "
            "least two images"
        )
    if strange := sorted({str(label) for label in np.asarray(labels).tolist()} - set(map(str, classes.tolist()))):
        raise DataError(
            f"images to calibrate on have the labels {', '.join(strange[:5])}, which are not learned; expected some "
            f"of {', '.join(map(str, classes.tolist()[:10]))}"
        )


def name_of(objective: Callable[..., Any]) -> str:
    """The name that a class is registered under; one that is not becomes known by its own, with its base's facts."""
    registered = {OBJECTIVES[name].target: OBJECTIVES[name] for name in OBJECTIVES}
    if objective in registered:
        return registered[objective].name
    parameters = list(inspect.signature(objective).parameters.values())[2:]  # behind the model and the prompts
    defaults = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    bases = [registered[base] for base in getattr(objective, "__mro__", ()) if base in registered]
    facts = dict(bases[0].facts) if bases else {}
    name = objective.__name__
    OBJECTIVES.register(name, title=name, defaults=defaults, **facts)(objective)
    return name
