"""Outcomes of experiments kept on disk and found again by the content of everything that they depend on.

The name of an entry is a checksum over images, frozen weights, settings, versions, source and machine, so a change of
any of them is another entry, and nothing has to be declared out of date. An entry is written whole or not at all; one
that is damaged is an error, not a miss.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcpl_lab.data.sets import ImageSet, MultiLabelSet
from gcpl_lab.errors import ArtifactError
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.multilabel import MultiLabelExperiment, MultiLabelOutcome
from gcpl_lab.experiments.registry import find_own_entries
from gcpl_lab.gcpl.classifier import Evidence
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.storage import file_checksum, folder_checksum, read_tensors, write_tensors
from gcpl_lab.training.loop import StepRecord
from gcpl_lab.training.machine import describe_machine, describe_versions

FORMAT, OUTCOME = "gcpl_lab.outcome", "outcome.safetensors"
ARRAYS = ("scores", "logits", "probabilities", "thresholds")
FITTED = ("train_evaluations_", "num_steps_", "validation_map_")
"""Numbers of a model that its own files do not hold, for those that have them."""


@dataclass(frozen=True)
class OutcomeCache:
    """A folder of outcomes; ask it instead of the experiment.

    A trial is what ``experiment.run`` is given: method, shots and seed, or for several labels method and seed.

    Example:
        >>> cache = OutcomeCache(Path("runs/demo/cache"))
        >>> cache.run(experiment, "gcpl", 16, 0)     # learns, and keeps the outcome
        >>> cache.run(experiment, "gcpl", 16, 0)     # reads it

    Attributes:
        folder: Made where it does not exist; delete it to start anew.
        threads: Of the process that learns; None where that is this one.
        kept: Folder of outcomes by their trial alone, which stand for all that is asked for, whatever changed since.
    """

    folder: Path
    threads: int | None = None
    kept: Path | None = None

    @cached_property
    def _surroundings(self) -> dict[str, Any]:
        """What every outcome of this program depends on; looked at once, as the source was loaded once."""
        machine = describe_machine()
        machine["threads"] = self.threads or machine["threads"]
        return {"source": source_checksum(), "versions": describe_versions(), "machine": machine}

    def holds(self, experiment: FewShotExperiment | MultiLabelExperiment, *trial: Any) -> bool:
        """Whether :meth:`run` would read."""
        return (self._place(experiment, trial) / OUTCOME).is_file()

    def run(self, experiment: FewShotExperiment | MultiLabelExperiment, *trial: Any) -> Any:
        """The Outcome or MultiLabelOutcome that ``experiment.run(*trial)`` gives, read where it is kept.

        Seconds in a row that was read are those of the run that made it, on this machine.

        Raises:
            ArtifactError: The entry is damaged; delete the folder.
        """
        place = (self.kept or self.folder) / "-".join(map(str, trial))
        if not (place / OUTCOME).is_file():
            place = self._place(experiment, trial)
        if (place / OUTCOME).is_file():
            return read_outcome(place, experiment)
        outcome = experiment.run(*trial)
        write_outcome(place, outcome)
        return outcome

    def arrays(
        self,
        experiment: FewShotExperiment | MultiLabelExperiment,
        name: tuple[Any, ...],
        compute: Callable[[], dict[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """What ``compute`` gives, read where an entry of this name is kept; it depends on what outcomes depend on."""
        path = self._place(experiment, name) / OUTCOME
        if not path.is_file():
            write_tensors(path, {key: torch.from_numpy(values) for key, values in compute().items()})
        return {key: values.numpy() for key, values in read_tensors(path)[0].items()}

    def _place(self, experiment: FewShotExperiment | MultiLabelExperiment, trial: tuple[Any, ...]) -> Path:
        """The entry of a trial, by everything it depends on."""
        kind = ("multilabel",) if isinstance(experiment, MultiLabelExperiment) else ()
        name = "-".join(map(str, (*kind, *trial)))
        whole = {
            "trial": name,
            "experiment": experiment.fingerprint(),
            "clip": experiment.clip.checksum(),
            "data": [_content(experiment.pool), _content(experiment.test)],
            "own": [_source_of(entry.target) for entry in find_own_entries()],
            **self._surroundings,
        }
        digest = hashlib.sha256(json.dumps(whole, sort_keys=True, default=np.ndarray.tolist).encode()).hexdigest()
        return self.folder / f"{name}-{digest[:16]}"


def source_checksum(package: Path = Path(__file__).parents[1]) -> str:
    """One SHA-256 over all modules of a folder and the tables beside them, by default the package's own."""
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".toml", ".json"))
    return folder_checksum((path.relative_to(package).as_posix(), file_checksum(path)) for path in files)


def _source_of(target: Any) -> str:
    """Of a class that was written in a cell, Python finds the source of its functions alone."""
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):
        return "".join(inspect.getsource(member) for member in vars(target).values() if inspect.isfunction(member))


def _content(data: ImageSet | MultiLabelSet) -> dict[str, Any]:
    """A set by value; its images by class and name, wherever they lie."""
    return {**vars(data), "images": ["/".join(path.parts[-2:]) for path in data.images]}


def write_outcome(place: Path, outcome: Outcome | MultiLabelOutcome) -> None:
    """An entry; its last file is written last: where that is, the entry is whole."""
    values = {name: value for name, value in vars(outcome).items() if name not in ("model", "scorer", "evidence")}
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    header: dict[str, Any] = {"values": {name: value for name, value in values.items() if name not in tensors}}
    evidence: Evidence | None = getattr(outcome, "evidence", None)
    if evidence is not None:
        tensors |= {"errors": torch.from_numpy(evidence.errors), "timesteps": torch.from_numpy(evidence.timesteps)}
        header["num_evaluations"] = evidence.num_evaluations
    if (model := outcome.model) is not None:
        tensors |= {f"state.{step}": vectors for step, vectors in getattr(model, "states_", {}).items()}
        if isinstance(model, LMPTClassifier):
            tensors["start_features_"] = model.start_features_
        header["history"] = [asdict(record) for record in model.history_]
        header["fitted"] = {name: getattr(model, name) for name in FITTED if hasattr(model, name)}
        model.save(place / "prompts")
    write_tensors(place / OUTCOME, tensors, {"format": FORMAT, "header": json.dumps(header)})


def read_outcome(place: Path, experiment: FewShotExperiment | MultiLabelExperiment) -> Any:
    """The Outcome or MultiLabelOutcome that :func:`write_outcome` kept."""
    tensors, metadata = read_tensors(place / OUTCOME)
    if metadata.get("format") != FORMAT:
        raise ArtifactError(f"{place / OUTCOME}: is no kept outcome; delete {place}")
    header = json.loads(metadata["header"])
    values = header["values"] | {name: tensors[name].numpy() for name in ARRAYS if name in tensors}
    if "errors" in tensors:
        found = tensors["errors"].numpy(), tensors["timesteps"].numpy(), header["num_evaluations"]
        values["evidence"] = Evidence(*found)
    if "history" in header:
        model: GCPLClassifier | LMPTClassifier
        if isinstance(experiment, FewShotExperiment):
            model = GCPLClassifier.load(place / "prompts", experiment.diffusion)
        else:
            model = LMPTClassifier.load(place / "prompts", clip=experiment.clip)
            model.start_features_ = tensors["start_features_"]
        steps = sorted(int(name.removeprefix("state.")) for name in tensors if name.startswith("state."))
        model.states_ = {step: tensors[f"state.{step}"] for step in steps}
        model.history_ = [StepRecord(**record) for record in header["history"]]
        vars(model).update(header["fitted"])
        values["model"] = model
    return Outcome(**values) if isinstance(experiment, FewShotExperiment) else MultiLabelOutcome(**values)
