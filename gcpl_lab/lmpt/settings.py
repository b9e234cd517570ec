"""Everything an LMPTClassifier can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from gcpl_lab.lmpt.batches import Reading
from gcpl_lab.lmpt.losses import LOSSES
from gcpl_lab.settings import Settings
from gcpl_lab.training.device import Precision


@dataclass(frozen=True)
class LMPTConfig(Settings):
    """Settings of an :class:`~gcpl_lab.lmpt.estimator.LMPTClassifier`.

    The defaults were chosen on parts of the bundled training scenes, never on test scenes (docs/lmpt_settings.md has
    the table). The authors' choice came out seven points lower there; ``gcpl_lab.experiments.multilabel`` holds it as
    ``PUBLISHED_LOSS`` and, the whole of their command, ``PUBLISHED``.

    Attributes:
        preset: Name of the frozen pair, or a folder with ``clip/`` in it.
        num_context: M, learned context vectors around a class name. The authors take 16; with few images 4 are better.
        class_specific: A context for each class instead of one for all.
        class_position: Where the name stands: ``"end"``, ``"middle"`` or ``"front"``.
        initial_words: Words that the last context vectors start from; empty for random ones alone. In the authors' code
            words make one context for all classes; here both go together.
        ending: Frozen text behind the last of context and name; the authors' prompts end with ".".
        mix: λ from 0 (captions alone) to 1 (labels alone: CoOp with a multi-label loss).
        classification: The loss on the logits, a name in ``gcpl_lab.lmpt.losses.LOSSES``.
        reading: Captions and prompts are compared ``"pooled"`` (encoded) or by ``"token"`` embeddings.
        token_offset: m, positions of the prompt that the token-wise reading skips before the captions' first; the
            authors' command has 2 with 16 contexts. None: as many as there are context vectors.
        position_hinge: In the token-wise reading every position has a margin of its own (``"each"``), or the distances
            of all positions are summed up before the margin (``"sum"``, as published).
        margin, class_aware_margin: Of the embedding loss, times n_i^(−1/4); False: the same for every class.
        reweight_gamma, reweight: γ of its class weights (1/n_i)^γ, 2 in the authors' code; False: all weigh the same.
        contrast_reduction: ``"mean"`` as published, or ``"weighted"``, which is number-of-classes times that.
        negative_scale, mu, rebalance, negative_tolerant, focal: λ_neg, μ and the three parts of the
            distribution-balanced loss.
        scale: ``"learned"`` scale and bias of the logits, or ``"clip"``: CLIP's own scale, no bias.
        num_epochs, batch_size: Passes through the training images, and images an update.
        optimizer, learning_rate, schedule: ``"adamw"``, or ``"sgd"`` with momentum 0.9; its peak rate; ``"cosine"``,
            ``"linear"`` or ``"constant"``.
        validation_share: Part of the given images that is kept from training, for the scale of probabilities and the
            thresholds.
        refit: Learn again from the validation images as well: rare classes have none to spare. Thresholds and the scale
            of probabilities stay those of the first time.
        fit: The square that the model sees of an image, as for ``GCPLConfig``.
        flip: Learn from mirror images too; ``"auto"``: unless those of some labels look like other labels.
        precision: Of the frozen towers, as for ``GCPLConfig``; contexts, cosines and losses are float32.
        checkpoint_every: Updates between checkpoints, where a folder for them is given; None: once an epoch.
        seed: Of everything random.
        options: Settings of a loss of your own, by name; :class:`LMPTClassifier` sorts them in here.
    """

    preset: str = "tiny"
    num_context: int = 4
    class_specific: bool = True
    class_position: Literal["end", "middle", "front"] = "end"
    initial_words: str = "a photo of a"
    ending: str = ""
    mix: float = 0.5
    classification: str = "binary_cross_entropy"
    reading: Reading = "pooled"
    token_offset: int | None = 2
    position_hinge: Literal["each", "sum"] = "each"
    margin: float = 0.2
    class_aware_margin: bool = True
    reweight_gamma: float = 1.0
    reweight: bool = True
    contrast_reduction: Literal["mean", "weighted"] = "weighted"
    negative_scale: float = 5.0
    mu: float = 0.3
    rebalance: bool = True
    negative_tolerant: bool = True
    focal: bool = True
    scale: Literal["learned", "clip"] = "learned"
    num_epochs: int = 50
    batch_size: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 0.01
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    validation_share: float = 0.2
    refit: bool = True
    fit: Literal["auto", "pad", "crop", "squash"] = "auto"
    flip: bool | Literal["auto"] = "auto"
    precision: Precision = "auto"
    checkpoint_every: int | None = None
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    LEAST: ClassVar = {
        **dict.fromkeys(("num_context", "num_epochs", "batch_size", "checkpoint_every"), 1),
        **dict.fromkeys(("reweight_gamma", "seed", "token_offset"), 0),
    }
    ABOVE_ZERO = ("margin", "negative_scale", "learning_rate")
    SHARES = ("validation_share",)
    REMOVED = ("patience", "keep", "cache_encodings")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("classification", self.classification in LOSSES, "a registered loss: " + ", ".join(LOSSES))
        self.require("flip", isinstance(self.flip, bool) or self.flip == "auto", "True, False or 'auto'")
        self.require("mix", 0 <= self.mix <= 1, "0 (captions alone) to 1 (labels alone)")
