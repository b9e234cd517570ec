"""Settings as frozen dataclasses that go to JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, Self

from gcpl_lab.methods.lmpt import CLASSIFICATIONS, Classification, ContrastReduction, PositionHinge, Reading, Scale
from gcpl_lab.training.runtime import PRECISIONS, Precision

ObjectiveName = Literal["gcpl", "comple", "discriminative"]


_KINDS: dict[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"),
    "int | None": ((Integral, type(None)), "a whole number, or None"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "bool | None": ((bool, type(None)), "True, False or None"),
    "str": (str, "text"),
}


@dataclass(frozen=True)
class _Settings:
    """What all settings have in common: plain values of the right kind, out and back."""

    def __post_init__(self) -> None:
        for field in fields(self):
            kind, expected = _KINDS.get(str(field.type), (object, ""))
            value = getattr(self, field.name)
            # To Python, True is a number.
            truth = not isinstance(value, bool) or kind is object or "bool" in str(field.type)
            _require(isinstance(value, kind) and truth, field.name, value, expected)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Back from JSON, which knows lists where settings have tuples.

        Raises:
            ValueError: A key that is no setting, naming it.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class GCPLConfig(_Settings):
    """Everything a :class:`~gcpl_lab.estimators.GCPLClassifier` can be told.

    Attributes:
        preset: Name of the frozen pair, or a folder with ``diffusion/`` in it.
        objective: ``"gcpl"``, ``"comple"`` or ``"discriminative"`` (which starts from GCPL's prompts).
        num_vectors: Learned vectors a class.
        initial: Where they start: the class ``"name"``, a ``"coarse"`` word, or ``"random"``.
        templates: Texts with one ``{}``; training goes through them in turn, the first is used afterwards.
        num_steps: GCPL or CoMPLe updates (for the discriminative objective: of its warm start).
        batch_size: (Photograph, t, ε) a GCPL or CoMPLe update.
        learning_rate: AdamW's peak rate in these updates.
        schedule: Of both rates: ``"cosine"`` or ``"linear"`` to zero, or ``"constant"``, as the authors have it.
        weight_decay: AdamW's, in all updates; the authors' script has 0.01. Decay pulls prompts towards no word at all.
        gradient_clip: Largest norm of the gradient; 0, as in the authors' script, clips nothing.
        timestep_range: Part of the noise schedule for training and classification, as fractions; None takes
            the preset's.
        contrast_weight: CoMPLe's λ.
        discriminative_steps: Discriminative updates.
        discriminative_batch_size: Photographs a discriminative update.
        num_samples: (t, ε) pairs each of them is shown with.
        num_rivals: Rival classes each class competes with; None for all others. Cost grows with it.
        discriminative_rate: AdamW's peak rate in these updates.
        temperature: τ on relative errors in the discriminative loss.
        gcpl_share: β, weight of the own relative error beside the cross entropy.
        early_stopping: ``"none"``; ``"validation"`` keeps the prompts with the least denoising loss on held-out
            exemplars; ``"cross_validation"`` finds the step with the best held-out support accuracy over
            folds, then learns from all exemplars up to that step.
        validation_share: Share of each class's exemplars held out for ``"validation"``.
        num_folds: Folds of ``"cross_validation"``, and of the fast classifier's calibration.
        validate_every: Updates between validations.
        patience: Validations without improvement after which ``"validation"`` stops; 0 goes on to the end.
        checkpoint_every: Updates between checkpoints, where a folder for them is given.
        precision: ``"float32"``; ``"tf32"``, faster products of float32 on a GPU; ``"bfloat16"`` or ``"float16"``,
            in which the frozen weights are loaded. ``"auto"``: float32 on a CPU, on a GPU bfloat16 where it can,
            else float16. ``"measured"``: the same on a GPU; on a CPU float32 weights, and products in bfloat16 where a
            short measurement finds training faster by a tenth at least; the choice is saved with checkpoints and
            prompts. What is learned is float32 in any case.
        micro_batch_size: Most (photograph, t, ε) in one training pass; gradients of a batch's passes are added up,
            so the update is the same; where each process has at least one such pass, the same digit by digit with any
            number of processes. None: the whole batch, or as much of it as memory allows; several processes then part
            it otherwise than one does, and prompts agree to 1e-5.
        gradient_checkpointing: Keep few activations and compute the others anew: slower, with far less memory.
        compile_denoiser: ``torch.compile`` for training; worth its minutes in long runs on a GPU.
        num_evidence: (t, ε) pairs a test photograph is judged by; with ``classification="fast"`` at most.
        classification: How ``predict`` looks at a photograph. ``"exact"``: every class on the same ``num_evidence``
            (t, ε). ``"fast"``: the most telling of a pool first, and each class only until it is far behind. What
            that needs to know is learned at the end of ``fit``, from photographs that the prompts have not seen:
            those given to calibrate on, or the held-out ones of ``num_folds`` further trainings.
        evidence_pool: (t, ε) that the fast classifier chooses from.
        error_rate: Share of photographs that the fast classifier may get wrong by dropping a class early.
        weighting: How a photograph's errors are averaged: ``"absolute"`` is the published mean, in which the noise
            levels with large errors count most; ``"relative"`` divides each by its mean over the classes; ``"chosen"``
            takes the one with less cross-validated log-loss on the support photographs. On photographs of the bundled
            pool outside the exemplars the first was better by 0.5 points for GCPL with offsets and worse by 0.8
            without (four draws, no interval clear of zero); class names are read better by the second
            (docs/gcpl_settings.md).
        class_offsets: Fit one offset a class on the support photographs, together with the temperature, against
            prompts that win too often.
        evidence_batch_size: Most denoiser evaluations in one pass. With the bundled pair on a CPU 128 were fastest of
            64 to 512: what a pass works on stays in the processor's cache. A pass holds whole photographs, or a part of
            one; where two do not fit (classes × ``num_evidence`` is more than half of it), a score is the same digit by
            digit whatever is judged beside it and by however many processes; else its rounding is not (bfloat16: up to
            4e-3 of a score were seen).
        evidence_bfloat16: Classify with the denoiser in bfloat16, or not. None: where a short measurement on this
            machine finds it faster by a tenth at least; the choice is saved with the prompts and kept when they are
            loaded elsewhere.
        evidence_sharing: Do once what all class prompts have in common when photographs are classified: the denoiser
            before its first cross-attention for each (photograph, t, ε), keys and values for each prompt. Changes
            nothing but the rounding; off where a denoiser cannot be taken apart like that.
        cache_encodings: Run the VAE once on every exemplar and its mirror image. False: in every update on the
            photographs of its batch, as published, which changes nothing but the rounding and shows what caching saves.
        flip: Learn from mirror images too.
        seed: Of everything random.
    """

    preset: str = "tiny"
    objective: ObjectiveName = "gcpl"
    num_vectors: int = 4
    initial: Literal["name", "coarse", "random"] = "name"
    templates: tuple[str, ...] = ("a photo of a {}",)
    num_steps: int = 240
    batch_size: int = 40
    learning_rate: float = 0.02
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    timestep_range: tuple[float, float] | None = None
    contrast_weight: float = 0.1
    discriminative_steps: int = 50
    discriminative_batch_size: int = 16
    num_samples: int = 4
    num_rivals: int | None = 3
    discriminative_rate: float = 0.003
    temperature: float = 30.0
    gcpl_share: float = 1.0
    early_stopping: Literal["none", "validation", "cross_validation"] = "none"
    validation_share: float = 0.25
    num_folds: int = 4
    validate_every: int = 50
    patience: int = 0
    num_evidence: int = 8
    classification: Literal["exact", "fast"] = "exact"
    evidence_pool: int = 32
    error_rate: float = 0.02
    weighting: Literal["relative", "absolute", "chosen"] = "absolute"
    class_offsets: bool = True
    evidence_batch_size: int = 128
    evidence_bfloat16: bool | None = True
    evidence_sharing: bool = True
    cache_encodings: bool = True
    flip: bool = True
    checkpoint_every: int = 50
    precision: Precision = "auto"
    micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    compile_denoiser: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.objective in ("gcpl", "comple", "discriminative"), "objective", self.objective,
                 "'gcpl', 'comple' or 'discriminative'")  # fmt: skip
        _require(self.initial in ("name", "coarse", "random"), "initial", self.initial, "'name', 'coarse' or 'random'")
        _require(self.weighting in ("relative", "absolute", "chosen"), "weighting", self.weighting,
                 "'relative', 'absolute' or 'chosen'")  # fmt: skip
        _require(self.schedule in ("cosine", "linear", "constant"), "schedule", self.schedule,
                 "'cosine', 'linear' or 'constant'")  # fmt: skip
        _require(self.early_stopping in ("none", "validation", "cross_validation"), "early_stopping",
                 self.early_stopping, "'none', 'validation' or 'cross_validation'")  # fmt: skip
        _require(self.classification in ("exact", "fast"), "classification", self.classification, "'exact' or 'fast'")
        for name in ("validation_share", "error_rate"):
            _require(0 < getattr(self, name) < 1, name, getattr(self, name), "a share between 0 and 1")
        _require(self.num_folds >= 2, "num_folds", self.num_folds, "2 or more")
        for name in ("num_vectors", "batch_size", "discriminative_batch_size", "num_samples", "num_evidence",
                     "evidence_batch_size", "evidence_pool", "validate_every", "checkpoint_every"):  # fmt: skip
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("num_steps", "discriminative_steps", "contrast_weight", "gcpl_share", "patience", "seed",
                     "weight_decay", "gradient_clip"):  # fmt: skip
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "discriminative_rate", "temperature"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name in ("num_rivals", "micro_batch_size"):
            _require(getattr(self, name) is None or getattr(self, name) >= 1, name, getattr(self, name),
                     "1 or more, or None")  # fmt: skip
        _require(self.precision in PRECISIONS, "precision", self.precision, "one of " + ", ".join(PRECISIONS))
        _require(len(self.templates) > 0 and not isinstance(self.templates, str), "templates", self.templates,
                 "at least one text with {}, in a tuple")  # fmt: skip
        if self.timestep_range is not None:
            low, high = self.timestep_range
            _require(0 <= low < high <= 1, "timestep_range", self.timestep_range, "two fractions 0 ≤ low < high ≤ 1")

    def identity(self) -> dict[str, Any]:
        """The settings that two parts of one run must have in common, so that it can be resumed.

        Not among them is what only decides how the work is cut up: a run that memory ran out in goes on with others.
        """
        free = ("checkpoint_every", "micro_batch_size", "gradient_checkpointing", "compile_denoiser",
                "evidence_sharing")  # fmt: skip
        return {name: value for name, value in self.as_dict().items() if name not in free}


@dataclass(frozen=True)
class LMPTConfig(_Settings):
    """Everything an :class:`~gcpl_lab.multilabel.LMPTClassifier` can be told.

    The defaults were chosen on parts of the bundled training scenes, never on test scenes (``gcpl-lab ablate lmpt
    --validation 4``; docs/lmpt_settings.md has the table). The authors' choice, the distribution-balanced loss and
    ``"mean"``, came out seven points lower there; ``gcpl_lab.multilabel_experiment.PUBLISHED_LOSS`` holds it, and
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
            ("class_position", ("end", "middle", "front")), ("classification", CLASSIFICATIONS),
            ("reading", ("pooled", "token")), ("contrast_reduction", ("mean", "weighted")),
            ("position_hinge", ("each", "sum")), ("scale", ("learned", "clip")), ("optimizer", ("adamw", "sgd")),
            ("schedule", ("cosine", "linear", "constant")), ("keep", ("last", "best")), ("precision", PRECISIONS),
        ):  # fmt: skip
            _require(getattr(self, name) in known, name, getattr(self, name), "one of " + ", ".join(known))
        for name in ("num_context", "num_epochs", "batch_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("reweight_gamma", "patience", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("margin", "negative_scale", "learning_rate"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        _require(self.token_offset is None or self.token_offset >= 0, "token_offset", self.token_offset,
                 "0 or more, or None")  # fmt: skip
        _require(self.patience == 0 or self.keep == "best", "patience", self.patience,
                 "0, or keep='best' beside it: else nothing is validated after each epoch")  # fmt: skip
        _require(self.checkpoint_every is None or self.checkpoint_every >= 1, "checkpoint_every",
                 self.checkpoint_every, "1 or more, or None")  # fmt: skip
        _require(0 <= self.mix <= 1, "mix", self.mix, "0 (captions alone) to 1 (labels alone)")
        _require(0 < self.validation_share < 1, "validation_share", self.validation_share,
                 "a share above 0 and below 1")  # fmt: skip


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; expected {expected}")
