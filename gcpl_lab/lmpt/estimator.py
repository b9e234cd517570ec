"""Several labels a picture, with scikit-learn's manners: ``LMPTClassifier``."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.multilabel import check_targets, split_validation
from gcpl_lab.data.readers import check_class_names, list_lines, read_images
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation.calibration import fit_sigmoid
from gcpl_lab.evaluation.multilabel import (
    calibration_error,
    choose_thresholds,
    decision_quality,
    mean_average_precision,
    multilabel_report,
)
from gcpl_lab.lmpt.objective import LMPT, CachedBatches, encode_captions
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.storage import tensor_checksum
from gcpl_lab.training.artifacts import load_class_prompts, save_class_prompts
from gcpl_lab.training.device import (
    MeasuredFormat,
    default_device,
    leave_device,
    make_training_accelerator,
    prepare_for_device,
    weights_dtype,
)
from gcpl_lab.training.loop import Journal, StepRecord, TrainingConfig, end_early, train
from gcpl_lab.training.machine import describe_versions
from gcpl_lab.training.processes import all_gather_rows, is_main_process, processes, wait_for_everyone

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image

METHOD = "lmpt"
"""Tells saved contexts from the class tokens of GCPLClassifier, which share the file format."""


def encode_views(clip: FrozenCLIP, images: Sequence[Any], flip: bool = True) -> Tensor:
    """Unit features of pictures and, with ``flip``, of their mirror images: float32 (view, image, feature).

    Args:
        clip: The frozen CLIP.
        images: Paths, PIL pictures or uint8 arrays of any size.
        flip: Two views instead of one.

    Raises:
        DataError: Pictures that cannot be used, all of them named.
    """
    pictures = read_images(images)
    own = pictures[processes().share(len(pictures))]
    views = [clip.encode_images(own), *([clip.encode_images(own, flip=True)] if flip else [])]
    return torch.stack([all_gather_rows(view, len(pictures)) for view in views])


def encode_anew(clip: FrozenCLIP, pictures: Sequence[Image.Image], images: Tensor, views: Tensor) -> Tensor:
    """Unit features (image, feature) of some pictures, each as it is (view 0) or mirrored (view 1), computed now."""
    features = torch.empty(len(images), int(clip.model.visual.output_dim))
    for view in (0, 1):
        places = (views == view).nonzero().flatten()
        features[places] = clip.encode_images([pictures[int(i)] for i in images[places]], flip=bool(view))
    return features


def load_clip(config: LMPTConfig, dtype: torch.dtype | None = None) -> FrozenCLIP:
    """The preset's frozen CLIP on this machine's device.

    Args:
        config: With preset and precision.
        dtype: Of its weights; by default what the precision says.
    """
    device = default_device()
    clip = FrozenCLIP.load(config.preset, device, dtype or weights_dtype(config.precision, device))
    prepare_for_device(clip.model.visual, device, config.precision)
    return clip


class LMPTClassifier:
    """Learn one prompt for each class from pictures with several labels and, where there are any, captions.

    Example:
        >>> model = LMPTClassifier(preset="tiny", num_context=16, seed=0)
        >>> model.fit(images, targets, class_names, captions)     # targets: 0/1, images × classes
        >>> model.predict(others), model.predict_proba(others)

    Part of the given pictures is kept from training (``validation_share``): it scales the probabilities, sets each
    class's threshold and, with ``keep="best"``, chooses the epoch. No other pictures are looked at.

    Under ``accelerate launch`` the processes share the encoding of pictures; training on cached features is the same
    small computation in each of them.

    Attributes:
        classes_: The class names; columns of targets and answers are in this order.
        class_counts_: Training pictures with each class, the validation part left out; ``given_counts_`` with it.
        num_train_: Training pictures, the validation part left out.
        objective_: The trained :class:`~gcpl_lab.lmpt.objective.LMPT`; its ``prompts`` hold the contexts.
        start_features_: Unit features (class, feature) of the prompts before training.
        sigmoid_: Scale and bias that turn logits into probabilities.
        thresholds_: Probability from which a class is predicted, (class,).
        training_format_: With ``precision="measured"`` what was measured before the first update.
        validation_map_: mAP on the pictures kept from training, before anything was learned from them.
        history_: One :class:`~gcpl_lab.training.loop.StepRecord` an update; with ``keep="best"``, ``validation`` is
            1 − mAP after every epoch.
    """

    def __init__(
        self,
        preset: str = "tiny",
        num_context: int = 4,
        seed: int = 0,
        *,
        clip: FrozenCLIP | None = None,
        **settings: Any,
    ) -> None:
        """Take the settings; nothing is loaded yet.

        Args:
            preset: Name of the frozen pair, or a folder of models.
            num_context: Learned context vectors a class.
            seed: Of everything random.
            clip: A loaded model to share between estimators.
            **settings: Further fields of :class:`~gcpl_lab.lmpt.settings.LMPTConfig`.
        """
        self.config = LMPTConfig(preset=preset, num_context=num_context, seed=seed, **settings)
        self._clip = clip
        self.training_format_: MeasuredFormat | None = None

    @property
    def clip(self) -> FrozenCLIP:
        """The frozen model, loaded when first asked for."""
        if self._clip is None:
            self._clip = load_clip(self.config)
        return self._clip

    # -------------------------------------------------------------------------------------- training

    def fit(
        self,
        images: Sequence[Any],
        targets: Any,
        class_names: Sequence[str] | None = None,
        captions: Sequence[str | None] | None = None,
        *,
        checkpoint_folder: str | Path | None = None,
    ) -> LMPTClassifier:
        """Learn the class prompts.

        Args:
            images: Paths, PIL pictures or uint8 arrays of any size.
            targets: 0/1, images × classes.
            class_names: What stands in the prompts; "class 0", "class 1" ... where they are not given.
            captions: One text a picture, None where there is none (several are joined by " | "). Without any,
                labels alone teach.
            checkpoint_folder: Where an interrupted fit leaves its state and goes on from.

        Raises:
            DataError: Pictures, targets, names or captions that do not fit together, naming the item.
            TrainingError: The loss stopped being finite.
        """
        for _ in self.steps(images, targets, class_names, captions, checkpoint_folder=checkpoint_folder):
            pass
        return self

    def steps(
        self,
        images: Sequence[Any],
        targets: Any,
        class_names: Sequence[str] | None = None,
        captions: Sequence[str | None] | None = None,
        *,
        checkpoint_folder: str | Path | None = None,
    ) -> Generator[StepRecord, bool | None, None]:
        """:meth:`fit`, one record an update, for plotting or stopping on the way."""
        targets = check_training(len(images), targets, class_names, captions)
        names = [f"class {i}" for i in range(targets.shape[1])] if class_names is None else list(class_names)
        views = encode_views(self.clip, images, self.config.flip)
        leave_device(self.clip.model.visual, self.clip.device)
        yield from self.learn(views, targets, names, captions, checkpoint_folder=checkpoint_folder, images=images)

    def learn(
        self,
        views: Tensor,
        targets: np.ndarray,
        class_names: Sequence[str],
        captions: Sequence[str | None] | None = None,
        *,
        checkpoint_folder: str | Path | None = None,
        images: Sequence[Any] | None = None,
    ) -> Generator[StepRecord, bool | None, None]:
        """Learn from pictures whose features are cached already.

        Args:
            views: (view, image, feature), see :func:`encode_views`; only the first is used without ``flip``.
            targets: 0/1 (image, class).
            class_names: One a class.
            captions: See :meth:`fit`.
            checkpoint_folder: See :meth:`fit`.
            images: The pictures themselves, which ``cache_encodings=False`` needs in every update.

        Raises:
            DataError: See :meth:`fit`; and ``cache_encodings`` is False and there are no pictures.
        """
        targets = check_training(views.shape[1], targets, class_names, captions)
        encode = None
        if not self.config.cache_encodings:
            if images is None:
                raise DataError("cache_encodings is False, and learn was given features alone; give images=, too")
            encode = partial(encode_anew, self.clip, read_images(images))
        views = views if self.config.flip else views[:1]
        training, validation = split_validation(targets, self.config.validation_share, self.config.seed)
        self._forget()
        self.classes_ = np.asarray(list(class_names))
        self.given_counts_ = targets.sum(axis=0, dtype=np.int64)
        encoded, has_caption = encode_captions(
            self.clip, captions if captions is not None else [None] * len(targets), self.config.reading
        )
        everything = CachedBatches(
            views,
            torch.from_numpy(targets).float(),
            encoded,
            has_caption,
            self.config.batch_size,
            self.config.seed,
            encode,
        )
        batches = everything.subset(training)
        self._begin(batches)
        with torch.no_grad():
            self.start_features_ = self.objective_.text_features().cpu()
        held_out, wanted = views[0][torch.from_numpy(validation)], targets[validation]

        def validate() -> float:
            return 1 - mean_average_precision(self._logits(held_out), wanted)

        best = self.config.keep == "best"
        folder = Path(checkpoint_folder) if checkpoint_folder else None
        self.history_: list[StepRecord] = []
        self.num_steps_ = self.config.num_epochs * batches.steps_an_epoch
        ended = yield from self._run(
            batches, folder and folder / "lmpt.checkpoint.safetensors", validate=validate if best else None
        )
        logits = self._logits(held_out)
        self.validation_map_ = mean_average_precision(logits, wanted)
        if self.config.refit and not ended:
            num_epochs = self._best_epoch(batches.steps_an_epoch) if best else self.config.num_epochs
            self._begin(everything)
            yield from self._run(
                everything,
                folder and folder / "lmpt_refit.checkpoint.safetensors",
                stop_after=num_epochs * everything.steps_an_epoch,
            )
        self.sigmoid_ = fit_sigmoid(logits, wanted)
        self.thresholds_ = choose_thresholds(sigmoid(logits, self.sigmoid_), wanted)

    def _best_epoch(self, steps_an_epoch: int) -> int:
        """After how many epochs the validation mAP was best."""
        measured = {record.step: record.validation for record in self.history_ if record.validation is not None}
        return math.ceil(min(measured, key=lambda step: measured[step]) / steps_an_epoch)

    def _begin(self, batches: CachedBatches) -> None:
        """A fresh objective for the pictures of ``batches``."""
        self.class_counts_ = batches.targets.sum(dim=0).numpy().astype(np.int64)
        self.num_train_ = len(batches.targets)
        self.objective_ = self._new_objective()
        self.objective_.start_scale(batches.views[0], batches.targets)

    def _run(
        self,
        batches: CachedBatches,
        checkpoint: Path | None,
        validate: Callable[[], float] | None = None,
        stop_after: int | None = None,
    ) -> Generator[StepRecord, bool | None, bool]:
        """The updates of one objective, counted on from those before; returns whether the caller ended them early."""
        journal, before = Journal(), len(self.history_)
        done = self.history_[-1].step if before else 0
        if stop_after is not None:
            self.num_steps_ = done + stop_after
        records = train(
            self.objective_,
            batches,
            self._training_config(batches.steps_an_epoch),
            validate=validate,
            checkpoint=checkpoint,
            fingerprint=self._fingerprint(batches) if checkpoint else "",
            stop_after=stop_after,
            journal=journal,
            accelerator=self._accelerator(batches, checkpoint and checkpoint.parent),
        )

        def keep() -> None:  # what a resumed run had done before comes out of its checkpoint
            for record in journal.records[len(self.history_) - before :]:
                self.history_.append(replace(record, step=done + record.step))

        for _ in records:
            keep()
            if (yield self.history_[-1]):
                end_early(records)
                return True
        keep()
        return False

    def _forget(self) -> None:
        """Nothing of an earlier fit may answer for this one."""
        for name in ("sigmoid_", "thresholds_"):
            vars(self).pop(name, None)
        self.training_format_ = None

    def _new_objective(self) -> LMPT:
        config = self.config
        prompts = ContextPrompts(
            self.clip,
            [str(name) for name in self.classes_],
            num_context=config.num_context,
            class_specific=config.class_specific,
            class_position=config.class_position,
            initial_words=config.initial_words,
            ending=config.ending,
            seed=config.seed,
        ).to(self.clip.device)
        return LMPT(
            self.clip,
            prompts,
            class_counts=self.class_counts_,
            num_images=self.num_train_,
            mix=config.mix,
            classification=config.classification,
            reading=config.reading,
            token_offset=config.token_offset,
            position_hinge=config.position_hinge,
            margin=config.margin,
            reweight_gamma=config.reweight_gamma,
            class_aware_margin=config.class_aware_margin,
            reweight=config.reweight,
            contrast_reduction=config.contrast_reduction,
            negative_scale=config.negative_scale,
            mu=config.mu,
            rebalance=config.rebalance,
            negative_tolerant=config.negative_tolerant,
            focal=config.focal,
            scale=config.scale,
        )

    def _training_config(self, steps_an_epoch: int) -> TrainingConfig:
        config = self.config
        return TrainingConfig(
            num_steps=config.num_epochs * steps_an_epoch,
            learning_rate=config.learning_rate,
            optimizer=config.optimizer,
            schedule=config.schedule,
            validate_every=steps_an_epoch,
            patience=config.patience,
            checkpoint_every=config.checkpoint_every or steps_an_epoch,
        )

    def _accelerator(self, batches: CachedBatches, folder: Path | None) -> Accelerator:
        accelerator, self.training_format_ = make_training_accelerator(
            self.objective_, batches, self.clip, self.config.precision, self.training_format_, folder
        )
        return accelerator

    def _fingerprint(self, batches: CachedBatches) -> str:
        data = {
            "views": batches.views,
            "targets": batches.targets,
            "captions": batches.captions,
            "has_caption": batches.has_caption,
        }
        settings = {name: value for name, value in self.config.as_dict().items() if name != "checkpoint_every"}
        return repr((settings, self.classes_.tolist(), tensor_checksum(data.items()), self.clip.checksum()))

    def _logits(self, features: Tensor) -> np.ndarray:
        values: np.ndarray = self.objective_.scores(features).numpy().astype(np.float64)
        return values

    # ------------------------------------------------------------------------------------- answering

    def decision_function(self, images: Sequence[Any]) -> np.ndarray:
        """Logits (image, class); larger is better, and comparable within a class."""
        self._check_fitted()
        return self.scores_of(encode_views(self.clip, images, flip=False)[0])

    def scores_of(self, features: Tensor) -> np.ndarray:
        """Logits (image, class) of cached unit features (image, feature)."""
        self._check_fitted()
        return self._logits(features)

    def predict_proba(self, images: Sequence[Any]) -> np.ndarray:
        """Probability of each class by itself, (image, class): sigmoids, so rows do not sum to one."""
        self._check_finished()
        return sigmoid(self.decision_function(images), self.sigmoid_)

    def predict(self, images: Sequence[Any]) -> np.ndarray:
        """uint8 (image, class): 1 where the probability reaches the class's threshold."""
        self._check_finished()
        return (self.predict_proba(images) >= self.thresholds_).astype(np.uint8)

    def score(self, images: Sequence[Any], targets: Any) -> float:
        """Mean average precision over the classes that have a positive picture."""
        targets = self._check_targets(len(images), targets)
        return mean_average_precision(self.decision_function(images), targets)

    def evaluate(
        self, images: Sequence[Any], targets: Any, train_counts: Sequence[int] | np.ndarray | None = None
    ) -> dict[str, Any]:
        """Everything that is measured on labelled pictures.

        Args:
            images: Paths, PIL pictures or uint8 arrays.
            targets: 0/1, images × classes.
            train_counts: Pictures with each class, which part head, medium and tail; by default those that were
                given to :meth:`fit`.

        Returns:
            See :func:`measure_scores`.
        """
        targets = self._check_targets(len(images), targets)
        counts = self.given_counts_ if train_counts is None else train_counts
        self._check_finished()
        logits = self.decision_function(images)
        return measure_scores(logits, self.sigmoid_, self.thresholds_, targets, counts, self.classes_)

    def _check_targets(self, num_images: int, targets: Any) -> np.ndarray:
        self._check_fitted()
        targets = check_targets(targets)
        if targets.shape != (num_images, len(self.classes_)):
            raise DataError(
                f"targets have shape {targets.shape}; expected ({num_images}, {len(self.classes_)}): one row a picture "
                "and one column for each class that was learned"
            )
        return targets

    def _check_fitted(self) -> None:
        if not hasattr(self, "objective_"):
            raise DataError("this classifier has learned nothing yet; call fit(images, targets) or load(folder) first")

    def _check_finished(self) -> None:
        self._check_fitted()
        if not hasattr(self, "thresholds_"):
            raise DataError(
                "training was stopped before its end, where probabilities and thresholds are set; decision_function "
                "and score work already, for the rest let fit or steps run through"
            )

    # ----------------------------------------------------------------------------------------- files

    def save(self, folder: str | Path) -> Path:
        """Write the learned contexts and all that explains them; never the frozen model.

        Args:
            folder: Made where it does not exist.

        Raises:
            DataError: Nothing was learned, or training was stopped before its end.
        """
        self._check_finished()
        context = self.objective_.prompts.context.detach().cpu()
        metadata = {
            "method": METHOD,
            "class_names": self.classes_.tolist(),
            "config": self.config.as_dict(),
            "class_counts": self.class_counts_.tolist(),
            "given_counts": self.given_counts_.tolist(),
            "num_train": self.num_train_,
            "log_scale": float(self.objective_.log_scale.detach()),
            "bias": float(self.objective_.bias.detach()),
            **({"training_format": asdict(self.training_format_)} if self.training_format_ else {}),
            "sigmoid": list(self.sigmoid_),
            "thresholds": self.thresholds_.tolist(),
            "clip": {
                "name": self.clip.name,
                "checksum": self.clip.checksum(),
                "weights": str(self.clip.dtype).removeprefix("torch."),
            },
            "versions": describe_versions(),
        }
        if is_main_process():
            save_class_prompts(folder, context.expand(len(self.classes_), -1, -1), metadata)
        wait_for_everyone()
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, *, clip: FrozenCLIP | None = None) -> LMPTClassifier:
        """Read a saved classifier.

        Args:
            folder: Written by :meth:`save`.
            clip: A loaded model to use; by default the preset's.

        Raises:
            ArtifactError: The folder is damaged or foreign, or its prompts were learned on other frozen weights.
        """
        vectors, metadata = load_class_prompts(folder)
        path = Path(folder) / "prompts.json"
        if metadata.get("method") != METHOD:
            raise ArtifactError(f"{path}: holds no contexts of LMPT; class tokens are loaded by GCPLClassifier.load")
        try:
            model = cls(clip=clip, **LMPTConfig.from_dict(metadata["config"]).as_dict())
            weights = metadata["clip"].get("weights", "float32")
            dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[weights]
            model.classes_ = np.asarray(metadata["class_names"])
            model.class_counts_ = np.asarray(metadata["class_counts"], np.int64)
            model.num_train_ = int(metadata["num_train"])
            model.given_counts_ = np.asarray(metadata["given_counts"], np.int64)
            numbers = float(metadata["log_scale"]), float(metadata["bias"])
            scale, bias = (float(value) for value in metadata["sigmoid"])
            thresholds = np.asarray(metadata["thresholds"], np.float64)
            learned_on = metadata["clip"]["checksum"]
            if "training_format" in metadata:
                model.training_format_ = MeasuredFormat(**metadata["training_format"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: is incomplete or was changed ({error}); restore it or train again") from error
        if clip is None:  # in the precision they were learned with, whatever this machine prefers
            model._clip = load_clip(model.config, dtype)
        if model.clip.checksum() != learned_on:
            raise ArtifactError(
                f"{folder}: its prompts were learned on other frozen weights than those of {model.clip.name!r}; "
                "load the model they were learned on, or train again"
            )
        model.objective_ = model._new_objective()
        context = model.objective_.prompts.context
        if vectors.shape[1:] != context.shape[1:] or thresholds.shape != model.classes_.shape:
            raise ArtifactError(
                f"{folder}: contexts of shape {tuple(vectors.shape)} and {thresholds.shape[0]} "
                "thresholds do not fit its settings; restore it or train again"
            )
        with torch.no_grad():
            context.copy_(vectors[: len(context)])
            model.objective_.log_scale.fill_(numbers[0])
            model.objective_.bias.fill_(numbers[1])
        model.sigmoid_, model.thresholds_ = (scale, bias), thresholds
        return model


def sigmoid(logits: np.ndarray, scale_and_bias: tuple[float, float]) -> np.ndarray:
    """Probabilities 1 / (1 + exp(−(scale · logit + bias))), without overflow."""
    scale, bias = scale_and_bias
    return np.exp(-np.logaddexp(0.0, -(scale * np.asarray(logits, np.float64) + bias)))


def measure_scores(
    logits: np.ndarray,
    scale_and_bias: tuple[float, float],
    thresholds: np.ndarray,
    targets: np.ndarray,
    train_counts: Sequence[int] | np.ndarray,
    class_names: Sequence[str] | np.ndarray,
) -> dict[str, Any]:
    """Ranking, decisions and calibration of one method's logits on labelled pictures.

    Args:
        logits: (image, class).
        scale_and_bias: Of their sigmoid, and ``thresholds`` (class,) on its probabilities; both from validation.
        thresholds: See above.
        targets: 0/1 (image, class).
        train_counts: (class,), they part head, medium and tail.
        class_names: One a class.

    Returns:
        What :func:`~gcpl_lab.evaluation.multilabel.multilabel_report` and
        :func:`~gcpl_lab.evaluation.multilabel.decision_quality` give, and ``calibration_error``.
    """
    chances = sigmoid(logits, scale_and_bias)
    report = multilabel_report(logits, targets, train_counts, [str(name) for name in class_names])
    return (
        report
        | decision_quality(chances, targets, thresholds)
        | {"calibration_error": calibration_error(chances, targets)}
    )


def check_training(
    num_images: int, targets: Any, class_names: Sequence[str] | None, captions: Sequence[str | None] | None
) -> np.ndarray:
    """What is given to ``fit``, as uint8 targets (image, class), or an error that names the item.

    Raises:
        DataError: Numbers differ, a target is neither 0 nor 1, there is one class only, or a class has no picture.
    """
    targets = check_targets(targets)
    if len(targets) != num_images:
        raise DataError(f"{num_images} pictures and {len(targets)} rows of targets; expected one row a picture")
    if targets.shape[1] < 2:
        raise DataError(f"targets have {targets.shape[1]} classes; expected two or more, one column each")
    if class_names is not None:
        if len(class_names) != targets.shape[1]:
            raise DataError(f"class_names has {len(class_names)} names; expected {targets.shape[1]}, one a column")
        check_class_names(class_names)
    names = [f"class {i}" for i in range(targets.shape[1])] if class_names is None else [str(n) for n in class_names]
    empty = [name for name, count in zip(names, targets.sum(axis=0), strict=True) if count == 0]
    if empty:
        raise DataError(
            f"{len(empty)} classes have no picture; add some, or leave their columns out:" + list_lines(empty)
        )
    if captions is not None:
        if isinstance(captions, str) or len(captions) != num_images:
            raise DataError(
                f"{len(captions)} captions for {num_images} pictures; expected one a picture (None where there is none)"
            )
        for index, caption in enumerate(captions):
            if caption is not None and not isinstance(caption, str):
                raise DataError(f"caption {index} is {caption!r}; expected a text or None")
    return targets
