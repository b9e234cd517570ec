"""The folder of a demonstration: what lies where, what it measured, and the states that its maps stand on.

Everything here goes by the methods that a run's results hold, so that a run opens although methods have come or gone
since it was made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.readers import iter_images
from gcpl_lab.errors import ArtifactError, explain
from gcpl_lab.evaluation.look_alikes import relative_scores
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.look_alikes import LookAlikes
from gcpl_lab.experiments.registry import BEFORE
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.storage import read_json, read_tensors, write_tensors
from gcpl_lab.views.projection import Projection
from gcpl_lab.views.score_strip import fit_score_map

RESULTS, STATES, PROMPTS = "results.json", "states.safetensors", "prompts"

AFTER = "discriminative"
"""What maps show beside class names: prompts learned with this objective, or else with the last one."""

STATE_NAMES = {"before": "Before: class names", "after": "After: learned prompts"}


@dataclass(frozen=True)
class Run:
    """What a run measured; ``results`` is the content of its ``results.json``."""

    folder: Path
    results: Mapping[str, Any]

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Method to its row, in the order of the results."""
        return {row["name"]: row for row in self.results["methods"]}

    @cached_property
    def accuracy(self) -> dict[str, float]:
        """Of each method."""
        return {name: float(row["accuracy"]) for name, row in self.rows.items()}

    @cached_property
    def learned(self) -> list[str]:
        """Methods that learned prompts for the diffusion model: known objectives, and any whose prompts are kept."""
        kept = self.folder / PROMPTS
        return [name for name in self.rows if name in OBJECTIVES or (kept / name).is_dir()]

    @property
    def baselines(self) -> list[str]:
        """All others but the class names as prompts."""
        return [name for name in self.rows if name != BEFORE and name not in self.learned]

    @property
    def best(self) -> str:
        """The learned prompts with the highest accuracy."""
        return max(self.learned, key=self.accuracy.__getitem__)

    def seconds(self, name: str) -> float:
        """What a method took to learn and to classify."""
        return float(self.rows[name]["train_seconds"] + self.rows[name]["predict_seconds"])


def read_run(folder: str | Path) -> Run:
    """Open a finished demonstration; a folder without results of one is an ArtifactError."""
    path = Path(folder) / RESULTS
    run = Run(Path(folder), read_json(path))
    for error in jsonschema.Draft202012Validator(SHAPE).iter_errors(run.results):
        key = error.json_path.removeprefix("$").strip(".") or "its content"
        raise ArtifactError(f"{path}: {key}: {error.message[:200]}; restore the file, or give a run of gcpl-lab demo")
    if not run.learned:
        raise ArtifactError(
            f"{path}: holds {', '.join(run.rows) or 'no method'}, but no learned prompts; give a run of gcpl-lab demo"
        )
    return run


_COUNT, _TEXT = {"type": "number", "minimum": 0}, {"type": "string"}
_SHARE = {**_COUNT, "maximum": 1}


def _holds(**parts: Any) -> dict[str, Any]:
    """An object in which all of these must be."""
    return {"type": "object", "properties": parts, "required": list(parts)}


_SIZE, _TIMES = {**_COUNT, "minimum": 1}, {"train_seconds": _COUNT, "predict_seconds": _COUNT}
_METHOD = _holds(name=_TEXT, seed=_COUNT, accuracy=_SHARE, calibration_error=_SHARE, **_TIMES)
_SCENES = _holds(data=_holds(test_size=_SIZE), methods={"type": "array", "items": _holds(name=_TEXT, map=_SHARE)})
SHAPE = _holds(
    data=_holds(name=_TEXT, checksum=_TEXT, classes={"type": "array"}, shots=_COUNT, test_size=_SIZE),
    methods={"type": "array", "items": _METHOD},
)
SHAPE["properties"] |= {"machine": {"type": "object"}, "versions": {"type": "object"}, "multilabel": _SCENES}
"""What a demonstration's results must hold, in JSON Schema."""


@dataclass(frozen=True)
class RunStates:
    """What a run's pictures are made of; what has two states is a dictionary from their names."""

    probabilities: dict[str, np.ndarray]  # (image, class): what the classifier says
    scores: dict[str, np.ndarray]  # (image, class): relative scores, without offsets or temperature
    labels: np.ndarray  # (image,)
    images: np.ndarray  # uint8 (image, height, width, channel)
    exemplars: np.ndarray  # uint8 (class, height, width, channel): one image a class that was learned from
    journey: np.ndarray  # class vectors on their way, (step, class, dim)
    steps: list[int]  # numbers of updates, (step,)
    files: list[str]  # class folder and file name of each image, (image,)
    class_names: list[str]
    families: dict[str, list[str]]
    seed: int
    look_alikes: LookAlikes | None  # None where no two classes have two test images each

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """Predicted class, (image,)."""
        return {name: chances.argmax(axis=1) for name, chances in self.probabilities.items()}

    def project(self, method: str) -> Projection:
        """Both states on one map of what the classifier reads, all with one sharpness; see ``fit_score_map``."""
        return fit_score_map(self.scores, self.labels, self.class_names, method, self.seed).projection


def before_and_after(outcomes: Sequence[Outcome]) -> tuple[Outcome | None, Outcome]:
    """The outcomes that maps show: class names as prompts where they were run, and learned prompts."""
    by_name = {outcome.method: outcome for outcome in outcomes}
    learned = [outcome for outcome in outcomes if outcome.model is not None]
    return by_name.get(BEFORE), by_name.get(AFTER, learned[-1])


def token_journey(outcomes: Sequence[Outcome]) -> tuple[list[int], Tensor]:
    """Numbers of updates, and the class vectors after each, (step, class, vector × dim).

    An objective that starts from another one's vectors goes on from where that one ended.
    """
    after = before_and_after(outcomes)[1].method
    start = OBJECTIVES[after].facts.get("starts_from") if after in OBJECTIVES else None
    states: dict[int, Tensor] = {}
    for model in [outcome.model for name in (start, after) for outcome in outcomes if outcome.method == name]:
        assert model is not None
        last = max(states, default=0)
        states |= {last + step: vectors for step, vectors in model.states_.items() if step or not states}
    return sorted(states), torch.stack([states[step] for step in sorted(states)]).flatten(2)


def keep_states(
    experiment: FewShotExperiment, outcomes: Sequence[Outcome], folder: str | Path, look_alikes: LookAlikes | None
) -> None:
    """Write what maps, slides and animations of this run need, unless class names as prompts were not run."""
    test, support, (before, after) = experiment.test, experiment.support, before_and_after(outcomes)
    if before is None:
        return
    steps, journey = token_journey(outcomes)
    first = [int(np.flatnonzero(support.labels == label)[0]) for label in range(len(support.class_names))]
    arrays: dict[str, np.ndarray] = {"labels": np.asarray(test.labels), "journey": journey.float().numpy()}
    shown = {"images": test.images, "exemplars": [support.images[place] for place in first]}
    for name, images in shown.items():
        arrays[name] = np.stack([np.asarray(seen.resize((48, 48))) for seen in iter_images(images, experiment.fit)])
    for state, outcome in zip(STATE_NAMES, (before, after), strict=True):
        assert outcome.evidence is not None
        arrays[f"probabilities.{state}"] = np.asarray(outcome.probabilities, dtype=np.float32)
        arrays[f"scores.{state}"] = relative_scores(outcome.evidence.errors).astype(np.float32)
    more = {} if look_alikes is None else look_alikes.arrays()
    facts = {"steps": steps, "class_names": list(test.class_names), "seed": after.seed}
    facts |= {"families": {name: list(members) for name, members in test.families.items()}}
    facts |= {"files": ["/".join(Path(image).parts[-2:]) for image in test.images]}
    facts |= {"sets": look_alikes.sets if look_alikes else [], "order": list(more)}
    tensors = {name: torch.from_numpy(values) for name, values in (arrays | more).items()}
    write_tensors(Path(folder) / STATES, tensors, {"facts": json.dumps(facts)})


def load_states(folder: str | Path) -> RunStates:
    """Read what ``keep_states`` wrote; ArtifactError where it is absent or damaged."""
    path = Path(folder) / STATES
    if not path.is_file():
        raise ArtifactError(f"{folder}: holds no {STATES}; run gcpl-lab demo again with this version, which keeps it")
    tensors, header = read_tensors(path)
    try:
        facts = json.loads(header["facts"])
        sets, order = facts.pop("sets"), facts.pop("order")
        values: dict[str, Any] = {n: tensors[n].numpy() for n in ("labels", "images", "exemplars", "journey")}
        for part in ("probabilities", "scores"):
            values[part] = {title: tensors[f"{part}.{state}"].numpy() for state, title in STATE_NAMES.items()}
        found = LookAlikes.from_arrays(sets, {name: tensors[name].numpy() for name in order}) if sets else None
        return RunStates(look_alikes=found, **values, **facts)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path}: is incomplete or of another version ({explain(error)}); run the demo again"
        ) from error
