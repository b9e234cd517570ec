"""What both estimators share: the updates of one objective, checks of what is there, and saving and loading."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gcpl_lab.errors import ArtifactError, DataError, explain
from gcpl_lab.models.presets import PRESETS
from gcpl_lab.training.artifacts import load_class_prompts, save_class_prompts
from gcpl_lab.training.device import MIXED_PRECISION, make_accelerator
from gcpl_lab.training.loop import History, Objective, StepRecord, TrainingConfig, end_early, train
from gcpl_lab.training.machine import describe_versions
from gcpl_lab.training.processes import is_main_process, wait_for_everyone

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PromptClassifier:
    """Base of the estimators that learn prompts for a frozen model.

    Attributes:
        MODEL: The frozen model's name: of the property, the keyword and the entry of a saved file.
        CONFIG: Class of the settings.
        FITTED, FINISHED: Attributes that are there from the first update on, and after the last.
        history_: One :class:`~gcpl_lab.training.loop.StepRecord` an update, those before a resumption included.
        states_: What is trained first at the start and after some updates, by their step.
    """

    MODEL: ClassVar[str]
    CONFIG: ClassVar[Any]
    METHOD: ClassVar[str]
    FITTED: ClassVar[str]
    FINISHED: ClassVar[str]

    config: Any
    history_: list[StepRecord]
    states_: dict[int, Tensor]

    def _updates(
        self,
        objective: Objective,
        batch_at: Callable[[int], Any],
        training: TrainingConfig,
        *,
        checkpoint: Path | None = None,
        fingerprint: Callable[[], str] = str,
        keep_every: int = 0,
    ) -> Generator[StepRecord, bool | None, bool]:
        """The updates of one objective, counted on from those before; returns whether the caller ended them early."""
        model, precision = getattr(self, self.MODEL), self.config.precision
        mixed = str(model.dtype) if precision == "auto" else precision
        done, taken = self.history_[-1].step if self.history_ else 0, 0
        history = History(keep_every, early=True)
        records = train(
            objective,
            batch_at,
            training,
            checkpoint=checkpoint,
            fingerprint=fingerprint() if checkpoint else "",
            accelerator=make_accelerator(model.device.type == "cpu", MIXED_PRECISION.get(mixed), model.dtype),
            history=history,
        )
        while True:
            record = next(records, None)
            # What a resumed run had done before comes out of its checkpoint.
            self.history_ += [replace(one, step=done + one.step) for one in history.records[taken:]]
            self.states_ |= {done + step: values[0] for step, values in history.states.items()}
            taken = len(history.records)
            if record is None:
                return False
            if (yield self.history_[-1]):
                end_early(records)
                self.states_[self.history_[-1].step] = objective.trainable_parameters()[0].detach().cpu().clone()
                return True

    def steps(self, *arguments: Any, **keywords: Any) -> Generator[StepRecord, bool | None, None]:
        """Learn, one record an update."""
        raise NotImplementedError

    def fit(self, *arguments: Any, **keywords: Any) -> Self:
        """Learn the class prompts: :meth:`steps` run to their end, with the same arguments and errors."""
        deque(self.steps(*arguments, **keywords), maxlen=0)
        return self

    def _check_fitted(self) -> None:
        if not hasattr(self, self.FITTED):
            raise DataError("this classifier has learned nothing yet; call fit or load first")

    def _check_finished(self) -> None:
        self._check_fitted()
        if not hasattr(self, self.FINISHED):
            raise DataError(
                "training was stopped before its end, where probabilities are calibrated; decision_function works "
                "already, for the rest let fit or steps run through"
            )

    def _saved(self) -> tuple[Tensor, dict[str, Any]]:
        """Learned vectors (class, V, dim), and what explains them."""
        raise NotImplementedError

    def _read(self, vectors: Tensor, metadata: dict[str, Any]) -> None:
        """Take over what :meth:`_saved` gave; KeyError, TypeError or ValueError where it does not fit."""
        raise NotImplementedError

    def _load_model(self, dtype: torch.dtype | None = None) -> None:
        """Load the frozen model of the settings."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> Path:
        """Write the learned prompts and all that explains them; never the frozen model.

        Args:
            folder: Made where it does not exist.

        Raises:
            DataError: Nothing was learned, or training was stopped before its end.
        """
        self._check_finished()
        vectors, facts = self._saved()
        model = getattr(self, self.MODEL)
        frozen = {"name": model.name, "checksum": model.checksum(), "weights": str(model.dtype).removeprefix("torch.")}
        # A folder of models is told by its whole path: the prompts may be used from elsewhere.
        preset = {} if self.config.preset in PRESETS else {"preset": str(Path(self.config.preset).resolve())}
        config = self.config.as_dict() | preset
        metadata = {"method": self.METHOD, "config": config, self.MODEL: frozen, **facts}
        if is_main_process():
            save_class_prompts(folder, vectors.detach(), metadata | {"versions": describe_versions()})
        wait_for_everyone()
        return Path(folder)

    @classmethod
    def _open(cls, folder: str | Path, model: Any, preset: str | None) -> Self:
        """Read what :meth:`save` wrote, for ``model`` or else for the model of ``preset`` or of the settings."""
        vectors, metadata = load_class_prompts(folder)
        path = Path(folder) / "prompts.json"
        if metadata.get("method", "gcpl") != cls.METHOD:
            raise ArtifactError(f"{path}: was learned by another method than {cls.METHOD}; load it with its own class")
        if cls.MODEL not in metadata or "config" not in metadata:
            raise ArtifactError(f"{path}: is incomplete (no {cls.MODEL} or config); restore it or train again")
        try:
            cls._check_config(path, metadata)
            config = cls.CONFIG.from_dict(metadata["config"])
            config = replace(config, preset=choose_preset(path, config.preset, preset, model))
            dtype, learned_on = DTYPES[metadata[cls.MODEL].get("weights", "float32")], metadata[cls.MODEL]["checksum"]
            estimator = cls(**{cls.MODEL: model}, **config.as_dict())
        except ArtifactError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path}: is incomplete or was changed ({explain(error)}); restore it or train again"
            ) from error
        if model is None:  # in the dtype they were learned with, whatever this machine prefers
            estimator._load_model(dtype)
        frozen = getattr(estimator, cls.MODEL)
        if frozen.checksum() != learned_on:
            raise ArtifactError(
                f"{folder}: its prompts were learned on other frozen weights than those of {frozen.name!r}; "
                "load the model they were learned on, or train again"
            )
        try:
            estimator._read(vectors, metadata)
        except ArtifactError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"{path}: is incomplete or was changed ({explain(error)}); restore it or train again"
            ) from error
        return estimator

    @classmethod
    def _check_config(cls, path: Path, metadata: dict[str, Any]) -> None:
        """Refuse settings that cannot be understood here; the others are checked when they are made."""


def choose_preset(path: Path, saved: str, given: str | None, model: Any) -> str:
    """The preset of saved prompts: what the caller says, or a name; a folder is not followed out of a file unasked.

    Raises:
        ArtifactError: They were learned on a folder of models, and neither that nor a loaded model was given.
    """
    if given is not None or saved in PRESETS:
        return given or saved
    if model is not None:
        return str(model.name)
    raise ArtifactError(
        f"{path}: was learned on the models in the folder {saved!r}, which is not opened unasked, because the file may "
        f"come from somebody else. If you trust the folder, name it: preset={saved!r} in load, or --preset {saved!r}"
    )
