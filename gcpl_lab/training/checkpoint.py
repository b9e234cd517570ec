"""Checkpoints of a training run: parameters, optimizer and history in one safetensors file, written atomically."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import read_tensors, remove_leftovers, write_tensors
from gcpl_lab.training.processes import broadcast_number

if TYPE_CHECKING:
    from accelerate import Accelerator


class Checkpoint:
    """Where a run stands, on disk; with several processes the main one writes it and all read it."""

    def __init__(
        self,
        path: Path,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        fingerprint: str,
    ) -> None:
        """Keep what is written.

        Args:
            path: A safetensors file, there or not.
            parameters: What is trained.
            optimizer: Over these parameters.
            accelerator: With a scaler where gradients are scaled.
            fingerprint: Of the run: a file with another is refused.
        """
        self.path, self.parameters, self.optimizer = path, parameters, optimizer
        self.accelerator, self.fingerprint = accelerator, fingerprint

    def write(self, step: int, history: Any) -> None:
        """Write the state after ``step`` updates, in the main process.

        Raises:
            ArtifactError: The file cannot be written; the one before it is untouched.
        """
        if not self.accelerator.is_main_process:
            return
        tensors: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            tensors[f"parameter.{index}"] = parameter
            for name, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        for kept, values in history.states.items():
            tensors |= {f"state.{kept}.{index}": value for index, value in enumerate(values)}
        scaler = self.accelerator.scaler
        progress = {
            "step": step,
            "records": [asdict(record) for record in history.records],
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        try:
            write_tensors(self.path, tensors, {"progress": json.dumps(progress), "fingerprint": self.fingerprint})
        except ArtifactError as error:
            raise ArtifactError(
                f"step {step}: {error}; start the same command again, and it goes on from there"
            ) from error

    def restore(self, history: Any, make_record: Any) -> int:
        """Put parameters, optimizer and history back where there is a file; all processes from the same.

        Args:
            history: With ``records`` and ``states``.
            make_record: Makes a record of its fields.

        Returns:
            Updates done: 0 without a file.

        Raises:
            ArtifactError: The file is damaged, incomplete, of another run, or not the same for all processes.
        """
        if self.accelerator.is_main_process:
            remove_leftovers(self.path)
        step = self._read(history, make_record) if self.path.is_file() else 0
        if (main := int(broadcast_number(step))) != step:
            raise ArtifactError(
                f"{self.path}: this process finds the run at step {step}, the main one at {main}; expected a folder "
                "that all machines share"
            )
        return step

    def _read(self, history: Any, make_record: Any) -> int:
        tensors, metadata = read_tensors(self.path)
        if metadata.get("fingerprint") != self.fingerprint:
            raise ArtifactError(
                f"{self.path}: belongs to a run with other settings, data or model than this one; "
                "give this run another folder, or delete the file to start anew"
            )
        progress = self._check_complete(tensors, metadata)
        history.records[:] = [make_record(**record) for record in progress["records"]]
        history.states.clear()
        kept = [name for name in tensors if name.startswith("state.")]
        for name in sorted(kept, key=lambda name: tuple(map(int, name.split(".")[1:]))):
            history.states.setdefault(int(name.split(".")[1]), []).append(tensors[name])
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"parameter.{number}"])
                prefix = f"optimizer.{number}."
                state[number] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if self.accelerator.scaler is not None and progress["scaler"]:
            self.accelerator.scaler.load_state_dict(progress["scaler"])
        return int(progress["step"])

    def _check_complete(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, Any]:
        """The progress of a file that holds what these parameters need."""
        try:
            progress: Any = json.loads(metadata["progress"])
            whole = progress.keys() >= {"step", "records", "scaler"}
        except (KeyError, ValueError, AttributeError):
            whole = False
        missing = [name for i in range(len(self.parameters)) if (name := f"parameter.{i}") not in tensors]
        if missing or not whole:
            raise ArtifactError(f"{self.path}: lacks {', '.join(missing) or 'its progress'}; delete it to start anew")
        for index, parameter in enumerate(self.parameters):
            if (found := tuple(tensors[f"parameter.{index}"].shape)) != tuple(parameter.shape):
                raise ArtifactError(
                    f"{self.path}: holds parameter.{index} of shape {found}; expected {tuple(parameter.shape)}; "
                    "delete it to start anew"
                )
        return dict(progress)
