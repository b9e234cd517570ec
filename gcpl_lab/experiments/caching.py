"""Outcomes of experiments kept on disk and found again by the content of everything that they depend on.

A second demonstration with the same pictures, frozen weights, settings, versions, source and machine need not learn
anew. The name of an entry is a checksum over all of these, so a change of any of them is another entry, and nothing
has to be declared out of date. An entry is written whole or not at all; one that is damaged is an error, not a miss.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gcpl_lab.data.readers import ImageSet
from gcpl_lab.errors import ArtifactError
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.multilabel import MultiLabelExperiment, MultiLabelOutcome
from gcpl_lab.gcpl.classifier import Evidence
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.storage import file_checksum, folder_checksum, read_tensors, write_tensors
from gcpl_lab.training.loop import StepRecord
from gcpl_lab.training.machine import describe_machine, describe_versions

FORMAT, OUTCOME = "gcpl_lab.outcome", "outcome.safetensors"


@dataclass(frozen=True)
class OutcomeCache:
    """A folder of outcomes; ask it instead of the experiment.

    Example:
        >>> cache = OutcomeCache(Path("runs/demo/cache"))
        >>> cache.run(experiment, "gcpl", shots=16, seed=0)     # learns, and keeps the outcome
        >>> cache.run(experiment, "gcpl", shots=16, seed=0)     # reads it

    Attributes:
        folder: Made where it does not exist; delete it to start anew.
        threads: Of the process that learns; None where that is this one.
    """

    folder: Path
    threads: int | None = None

    @cached_property
    def _surroundings(self) -> dict[str, Any]:
        """What every outcome of this program depends on; looked at once, as the source was loaded once."""
        machine = describe_machine()
        machine["threads"] = self.threads or machine["threads"]
        return {"source": source_checksum(), "versions": describe_versions(), "machine": machine}

    def holds(self, experiment: FewShotExperiment, method: str, shots: int, seed: int) -> bool:
        """Whether :meth:`run` would read."""
        return (self._few_shot(experiment, method, shots, seed) / OUTCOME).is_file()

    def holds_multilabel(self, experiment: MultiLabelExperiment, method: str, seed: int) -> bool:
        """Whether :meth:`run_multilabel` would read."""
        return (self._scenes(experiment, method, seed) / OUTCOME).is_file()

    def run(self, experiment: FewShotExperiment, method: str, shots: int, seed: int) -> Outcome:
        """What ``experiment.run(method, shots, seed)`` gives, read where it is kept.

        Seconds in a row that was read are those of the run that made it, on this machine.

        Raises:
            ArtifactError: The entry is damaged; delete the folder.
        """
        place = self._few_shot(experiment, method, shots, seed)
        if (place / OUTCOME).is_file():
            return _read_outcome(place, experiment)
        outcome = experiment.run(method, shots, seed)
        tensors = {"scores": torch.from_numpy(outcome.scores), "probabilities": torch.from_numpy(outcome.probabilities)}
        header: dict[str, Any] = {"trial": [method, outcome.shots, seed], "row": outcome.row}
        if (evidence := outcome.evidence) is not None:
            tensors |= {"errors": torch.from_numpy(evidence.errors), "timesteps": torch.from_numpy(evidence.timesteps)}
            header["num_evaluations"] = evidence.num_evaluations
        if (model := outcome.model) is not None:
            tensors |= {f"state.{step}": vectors for step, vectors in model.states_.items()}
            header["history"] = [asdict(record) for record in model.history_]
            header["fitted"] = {"best_step_": model.best_step_, "train_evaluations_": model.train_evaluations_}
            model.save(place / "prompts")
        _write(place, tensors, header)
        return outcome

    def run_multilabel(self, experiment: MultiLabelExperiment, method: str, seed: int) -> MultiLabelOutcome:
        """What ``experiment.run(method, seed)`` gives, read where it is kept.

        Raises:
            ArtifactError: The entry is damaged; delete the folder.
        """
        place = self._scenes(experiment, method, seed)
        if (place / OUTCOME).is_file():
            return _read_multilabel(place, experiment)
        outcome = experiment.run(method, seed)
        tensors = {name: torch.from_numpy(getattr(outcome, name)) for name in ("logits", "probabilities", "thresholds")}
        header: dict[str, Any] = {"trial": [method, seed], "row": outcome.row}
        if (model := outcome.model) is not None:
            tensors["start_features"] = model.start_features_
            header["history"] = [asdict(record) for record in model.history_]
            header["num_steps"] = model.num_steps_
            model.save(place / "prompts")
        _write(place, tensors, header)
        return outcome

    def _few_shot(self, experiment: FewShotExperiment, method: str, shots: int, seed: int) -> Path:
        return self._place(f"{method}-{shots}-{seed}", _few_shot_content(experiment))

    def _scenes(self, experiment: MultiLabelExperiment, method: str, seed: int) -> Path:
        return self._place(f"multilabel-{method}-{seed}", {"experiment": experiment.fingerprint()})

    def _place(self, name: str, content: Mapping[str, Any]) -> Path:
        """The entry of a trial, by everything it depends on."""
        whole = {"trial": name, **content, **self._surroundings}
        digest = hashlib.sha256(json.dumps(whole, sort_keys=True, default=repr).encode()).hexdigest()
        return self.folder / f"{name}-{digest[:16]}"


def source_checksum(package: Path = Path(__file__).parents[1]) -> str:
    """One SHA-256 over all Python files of a folder, by default the package's own."""
    return folder_checksum(
        (path.relative_to(package).as_posix(), file_checksum(path)) for path in sorted(package.rglob("*.py"))
    )


def _few_shot_content(experiment: FewShotExperiment) -> dict[str, Any]:
    return {
        "settings": experiment.settings,
        "preset": experiment.preset,
        "support": _content(experiment.support),
        "test": _content(experiment.test),
        "diffusion": experiment.diffusion.checksum(),
        "clip": experiment.clip.checksum(),
    }


def _content(data: ImageSet) -> list[Any]:
    images = ["/".join(path.parts[-2:]) for path in data.images]
    return [data.checksum, images, data.labels.tolist(), data.class_names, data.families]


def _write(place: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """The last file of an entry: where it is, the entry is whole."""
    write_tensors(place / OUTCOME, tensors, {"format": FORMAT, "header": json.dumps(header)})


def _read(place: Path, wanted: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = place / OUTCOME
    tensors, metadata = read_tensors(path)
    missing = [name for name in wanted if name not in tensors]
    if metadata.get("format") != FORMAT or missing:
        raise ArtifactError(f"{path}: is no kept outcome ({', '.join(missing) or 'another format'}); delete {place}")
    return tensors, json.loads(metadata["header"])


def _read_outcome(place: Path, experiment: FewShotExperiment) -> Outcome:
    tensors, header = _read(place, ("scores", "probabilities"))
    method, shots, seed = header["trial"]
    model = evidence = None
    if "errors" in tensors:
        evidence = Evidence(tensors["errors"].numpy(), tensors["timesteps"].numpy(), header["num_evaluations"])
    if "history" in header:
        model = GCPLClassifier.load(place / "prompts", experiment.diffusion)
        steps = sorted(int(name.removeprefix("state.")) for name in tensors if name.startswith("state."))
        model.states_ = {step: tensors[f"state.{step}"] for step in steps}
        model.history_ = [StepRecord(**record) for record in header["history"]]
        vars(model).update(header["fitted"])
    scores, chances = tensors["scores"].numpy(), tensors["probabilities"].numpy()
    return Outcome(method, shots, seed, scores, chances, header["row"], model, evidence)


def _read_multilabel(place: Path, experiment: MultiLabelExperiment) -> MultiLabelOutcome:
    names = ("logits", "probabilities", "thresholds")
    tensors, header = _read(place, names)
    model = None
    if "history" in header:
        model = LMPTClassifier.load(place / "prompts", clip=experiment.clip)
        model.start_features_ = tensors["start_features"]
        model.history_ = [StepRecord(**record) for record in header["history"]]
        model.num_steps_ = header["num_steps"]
    logits, chances, thresholds = (tensors[name].numpy() for name in names)
    method, seed = header["trial"]
    return MultiLabelOutcome(method, seed, logits, chances, thresholds, header["row"], model)
