"""Everything an LMPTClassifier can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gcpl_lab.lmpt.objective import CLASSIFICATIONS, Classification, ContrastReduction, PositionHinge, Reading, Scale
from gcpl_lab.settings import Settings, require
from gcpl_lab.training.device import PRECISIONS, Precision


@dataclass(frozen=True)
class LMPTConfig(Settings):
    """Everything an :class:`~gcpl_lab.lmpt.estimator.LMPTClassifier` can be told.

    The defaults were chosen on parts of the bundled training scenes, never on test scenes (``gcpl-lab ablate lmpt
    --validation 4``; docs/lmpt_settings.md has the table). The authors' choice, the distribution-balanced loss and
    ``"mean"``, came out seven points lower there; ``gcpl_lab.experiments.multilabel.PUBLISHED_LOSS`` holds it, and
    ``PUBLISHED`` beside it the whole of their command.

    Attributes:
        preset: Name of the frozen pair, or a folder with ``clip/`` in it.
        num_context: M, learned context vectors around a class name. The authors take 16; with so few pictures 4 are
            two points better on validation parts, in less time.
        class_specific: A context for each class instead of one for all.
        class_position: Where the name stands: ``"end"``, ``"middle"`` or ``"front"``.
        initial_words: Words that the last context vectors start from; empty for random ones alone. In the authors' code
            words make one context for all classes, whatever ``class_specific`` asks for; here both go together.
        ending: Frozen text behind the last of context and name; the authors' prompts end with ".".
        mix: λ from 0 (captions alone) to 1 (labels alone: CoOp with a multi-label loss).
        classification: The loss on the logits.
        reading: Captions and prompts are compared ``"pooled"`` (encoded) or by ``"token"`` embeddings.
        token_offset: Positions of the prompt that the token-wise reading skips before the captions' first; the authors'
            command has 2 with 16 contexts. None: as many as there are context vectors.
        position_hinge: In the token-wise reading every position has a margin of its own (``"each"``), or the distances
            of all positions are summed up before the margin (``"sum"``, as published).
        margin: Of the embedding loss, times n_i^(−1/4).
        class_aware_margin: False: the same margin for every class.
        reweight_gamma: γ of the embedding loss's class weights (1/n_i)^γ; 2 in the authors' code.
        reweight: False: every class weighs the same.
        contrast_reduction: ``"mean"`` as published, or ``"weighted"``, which is number-of-classes times that.
        negative_scale: λ_neg of the distribution-balanced loss.
        mu: μ of its weights.
        rebalance, negative_tolerant, focal: Its three parts.
        scale: ``"learned"`` scale and bias of the logits, or ``"clip"``: CLIP's own scale, no bias.
        num_epochs: Passes through the training images.
        batch_size: Images an update.
        optimizer: ``"adamw"``, or ``"sgd"`` with momentum 0.9.
        learning_rate: Its peak rate.
        schedule: ``"cosine"``, ``"linear"`` or ``"constant"``.
        keep: ``"last"``: the prompts at the end of the schedule; ``"best"``: those of the epoch with the best
            validation mAP, which on a part with a handful of rare pictures is left to chance.
        patience: With ``keep="best"``, epochs without a better validation mAP after which training stops; 0 never
            stops early.
        validation_share: Part of the given images that is kept from training, for the scale of probabilities, the
            thresholds and, where asked for, the choice of the epoch.
        refit: Learn again from the validation pictures as well, for as many epochs as the kept prompts took: rare
            classes have none to spare. Thresholds and the scale of probabilities stay those of the first time.
        cache_encodings: Run the image tower once on every picture and its mirror image. False: in every update on the
            pictures of its batch, as published, which changes nothing but the rounding and shows what caching saves.
        flip: Learn from mirror images too.
        precision: Of the frozen towers, as for :class:`GCPLConfig`; contexts, cosines and losses are float32 in any
            case.
        checkpoint_every: Updates between checkpoints, where a folder for them is given; None: once an epoch.
        seed: Of everything random.
    """

    preset: str = "tiny"
    num_context: int = 4
    class_specific: bool = True
    class_position: Literal["end", "middle", "front"] = "end"
    initial_words: str = "a photo of a"
    ending: str = ""
    mix: float = 0.5
    classification: Classification = "binary_cross_entropy"
    reading: Reading = "pooled"
    token_offset: int | None = 2
    position_hinge: PositionHinge = "each"
    margin: float = 0.2
    class_aware_margin: bool = True
    reweight_gamma: float = 1.0
    reweight: bool = True
    contrast_reduction: ContrastReduction = "weighted"
    negative_scale: float = 5.0
    mu: float = 0.3
    rebalance: bool = True
    negative_tolerant: bool = True
    focal: bool = True
    scale: Scale = "learned"
    num_epochs: int = 50
    batch_size: int = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 0.01
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    keep: Literal["last", "best"] = "last"
    patience: int = 0
    validation_share: float = 0.2
    refit: bool = True
    cache_encodings: bool = True
    flip: bool = True
    precision: Precision = "auto"
    checkpoint_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("class_position", ("end", "middle", "front")),
            ("classification", CLASSIFICATIONS),
            ("reading", ("pooled", "token")),
            ("contrast_reduction", ("mean", "weighted")),
            ("position_hinge", ("each", "sum")),
            ("scale", ("learned", "clip")),
            ("optimizer", ("adamw", "sgd")),
            ("schedule", ("cosine", "linear", "constant")),
            ("keep", ("last", "best")),
            ("precision", PRECISIONS),
        ):
            require(getattr(self, name) in known, name, getattr(self, name), "one of " + ", ".join(known))
        for name in ("num_context", "num_epochs", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("reweight_gamma", "patience", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("margin", "negative_scale", "learning_rate"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        require(
            self.token_offset is None or self.token_offset >= 0, "token_offset", self.token_offset, "0 or more, or None"
        )
        require(
            self.patience == 0 or self.keep == "best",
            "patience",
            self.patience,
            "0, or keep='best' beside it: else nothing is validated after each epoch",
        )
        require(
            self.checkpoint_every is None or self.checkpoint_every >= 1,
            "checkpoint_every",
            self.checkpoint_every,
            "1 or more, or None",
        )
        require(0 <= self.mix <= 1, "mix", self.mix, "0 (captions alone) to 1 (labels alone)")
        require(0 < self.validation_share < 1, "validation_share", self.validation_share, "a share above 0 and below 1")
