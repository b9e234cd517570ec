"""LMPTClassifier: prompts for images with several labels, with the scikit-learn API."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab import fast
from gcpl_lab.data.framing import choose_fit
from gcpl_lab.data.multilabel import split_validation
from gcpl_lab.data.readers import images_checksum, iter_images
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.calibration import fit_sigmoid
from gcpl_lab.evaluation.mirroring import choose_mirroring
from gcpl_lab.evaluation.multilabel import choose_thresholds, mean_average_precision, measure_scores, sigmoid
from gcpl_lab.lmpt.batches import CachedBatches, encode_captions
from gcpl_lab.lmpt.checks import check_training
from gcpl_lab.lmpt.encoding import encode_views, load_clip
from gcpl_lab.lmpt.judge import LabelJudge
from gcpl_lab.lmpt.losses import LOSSES
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.storage import check_writable, folder_checksum, tensor_checksum
from gcpl_lab.training.device import leave_device
from gcpl_lab.training.loop import StepRecord, TrainingConfig

__all__ = ["LMPTClassifier", "check_training", "encode_views", "load_clip", "measure_scores", "sigmoid"]

NUM_STATES = 10
"""Of a training that are kept, beside those after 1, 2, 4, 8 ... updates."""


class LMPTClassifier(LabelJudge):
    """Learn one prompt for each class from images with several labels and, where there are any, captions.

    Example:
        >>> model = LMPTClassifier(preset="tiny", num_context=16, seed=0)
        >>> model.fit(images, targets, class_names, captions)     # targets: 0/1, images × classes
        >>> model.predict(others), model.predict_proba(others)

    Part of the given images is kept from training (``validation_share``): it scales the probabilities and sets each
    class's threshold. No other images are looked at.

    Under ``accelerate launch`` the processes share the encoding of images; training on cached features is the same
    small computation in each of them.

    Attributes:
        classes_: The class names; columns of targets and answers are in this order.
        class_counts_: Training images with each class, the validation part left out; ``given_counts_`` with it.
        num_train_: Training images, the validation part left out.
        objective_: The trained :class:`~gcpl_lab.lmpt.objective.LMPT`; its ``prompts`` hold the contexts.
        start_features_: Unit features (class, feature) of the prompts before training.
        sigmoid_: Scale and bias that turn logits into probabilities.
        thresholds_: Probability from which a class is predicted, (class,).
        validation_map_: mAP on the images kept from training, before anything was learned from them.
        fit_, mirroring_: See :class:`~gcpl_lab.gcpl.estimator.GCPLClassifier`.
        num_steps_: Updates of the whole run, as far as it is known.
        history_, states_: See :class:`~gcpl_lab.training.estimator.PromptClassifier`; states are contexts (class or 1,
            vector, dim) of the last training.
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
            **settings: Further fields of :class:`~gcpl_lab.lmpt.settings.LMPTConfig`, and settings of losses.
        """
        settings = LMPTConfig.with_options(settings, LOSSES)
        self.config = LMPTConfig(preset, num_context, seed=seed, **settings)
        self._clip = None if clip is None else fast.enable(clip)

    def steps(
        self,
        images: Sequence[Any],
        targets: Any,
        class_names: Sequence[str] | None = None,
        captions: Sequence[str | None] | None = None,
        *,
        checkpoint_folder: str | Path | None = None,
    ) -> Generator[StepRecord, bool | None, None]:
        """Learn the class prompts, one record an update, for plotting or stopping on the way; ``fit`` runs them all.

        Args:
            images: Paths, PIL images or uint8 arrays of any size.
            targets: 0/1, images × classes.
            class_names: What stands in the prompts; "class 0", "class 1" ... where they are not given.
            captions: One text an image, or None (several are joined by " | "); without any, labels alone teach.
            checkpoint_folder: Where an interrupted fit leaves its state and goes on from.

        Raises:
            DataError: Images, targets, names or captions that do not fit together, naming the item.
            TrainingError: The loss stopped being finite.
        """
        targets, source = check_training(len(images), targets, class_names, captions), ""
        if checkpoint_folder:
            check_writable(checkpoint_folder)
            said = ((f"caption {place}", caption or "") for place, caption in enumerate(captions or ()))
            source = folder_checksum([("images", images_checksum(iter_images(images))), *said])
        names = [f"class {i}" for i in range(targets.shape[1])] if class_names is None else list(class_names)
        self.fit_ = choose_fit(images, self.config.fit)
        views = encode_views(self.clip, images, bool(self.config.flip), self.fit_)
        if self.clip.device.type != "cpu":
            leave_device(self.clip.model.visual)
        yield from self.learn(views, targets, names, captions, checkpoint_folder=checkpoint_folder, source=source)

    def learn(
        self,
        views: Tensor,
        targets: np.ndarray,
        class_names: Sequence[str],
        captions: Sequence[str | None] | None = None,
        *,
        checkpoint_folder: str | Path | None = None,
        source: str = "",
    ) -> Generator[StepRecord, bool | None, None]:
        """Learn from images whose features are cached already: train, calibrate, and train again with all of them.

        Args:
            views: (view, image, feature), see :func:`encode_views`; only the first is used without ``flip``.
            targets: 0/1 (image, class).
            class_names: One a class.
            captions: See :meth:`steps`.
            checkpoint_folder: See :meth:`steps`.
            source: Checksum of images and captions, where a run is to be known again.

        Raises:
            DataError: See :meth:`steps`.
        """
        config, targets = self.config, check_training(views.shape[1], targets, class_names, captions)
        if config.mix == 0 and not any(captions or ()):
            raise DataError("mix is 0, which learns from captions alone, and no image has one; add some, or raise mix")
        vars(self).setdefault("fit_", choose_fit((), self.config.fit))
        self.mirroring_ = choose_mirroring(self.config.flip, views, targets, class_names)
        everything, self._source = self._batches(views, targets, captions), source
        training, validation = split_validation(targets, config.validation_share, config.seed)
        batches, folder = everything.subset(training), Path(checkpoint_folder) if checkpoint_folder else None
        self.classes_, self.given_counts_ = np.asarray(list(class_names)), targets.sum(axis=0, dtype=np.int64)
        for name in ("sigmoid_", "thresholds_"):  # nothing of an earlier fit may answer for this one
            vars(self).pop(name, None)
        self.history_ = []
        self._begin(batches)
        with torch.no_grad():
            self.start_features_ = self.objective_.text_features().cpu()
        held_out, wanted = views[0][torch.from_numpy(validation)], targets[validation]
        ended = yield from self._train(batches, folder, "lmpt")
        logits = self._logits(held_out)
        self.validation_map_ = mean_average_precision(logits, wanted)
        if config.refit and not ended:
            self._begin(everything)
            yield from self._train(everything, folder, "lmpt_refit")
        self.sigmoid_ = fit_sigmoid(logits, wanted)
        self.thresholds_ = choose_thresholds(sigmoid(logits, self.sigmoid_), wanted)

    def _batches(self, views: Tensor, targets: np.ndarray, captions: Sequence[str | None] | None) -> CachedBatches:
        config = self.config
        encoded, has_caption = encode_captions(
            self.clip, captions if captions is not None else [None] * len(targets), config.reading
        )
        views = views if self.mirroring_.flip else views[:1]
        answers = torch.from_numpy(targets).float()
        return CachedBatches(views, answers, encoded, has_caption, config.batch_size, config.seed)

    def _begin(self, batches: CachedBatches) -> None:
        """A fresh objective for the images of ``batches``."""
        self.class_counts_ = batches.targets.sum(dim=0).numpy().astype(np.int64)
        self.num_train_ = len(batches.targets)
        self.objective_ = self.new_objective()
        self.objective_.start_scale(batches.views[0], batches.targets)

    def _train(
        self, batches: CachedBatches, folder: Path | None, name: str
    ) -> Generator[StepRecord, bool | None, bool]:
        """The updates of one objective, with ``name`` for its checkpoint; returns whether the caller ended them."""
        config, epoch = self.config, batches.steps_an_epoch
        self.states_ = {len(self.history_): self.objective_.prompts.context.detach().cpu().clone()}
        self.num_steps_ = len(self.history_) + config.num_epochs * epoch
        training = TrainingConfig(
            num_steps=config.num_epochs * epoch,
            learning_rate=config.learning_rate,
            optimizer=config.optimizer,
            schedule=config.schedule,
            checkpoint_every=config.checkpoint_every or epoch,
        )
        file = folder and folder / f"{name}.checkpoint.safetensors"
        given: dict[str, Any] = {"checkpoint": file, "fingerprint": partial(self._fingerprint, batches)}
        every = -(-training.num_steps // NUM_STATES)
        return (yield from self._updates(self.objective_, batches, training, keep_every=every, **given))

    def _fingerprint(self, batches: CachedBatches) -> str:
        """Settings, data and model of a run; features differ a little between machines, so images stand for theirs."""
        names = ("targets",) if self._source else ("views", "targets", "captions", "has_caption")
        data = self._source + tensor_checksum((name, getattr(batches, name)) for name in names)
        settings = {name: value for name, value in self.config.as_dict().items() if name != "checkpoint_every"}
        return repr((settings, self.classes_.tolist(), data, self.clip.checksum()))
