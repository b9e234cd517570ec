"""Everything a GCPLClassifier can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gcpl_lab.settings import Settings, require
from gcpl_lab.training.device import PRECISIONS, Precision

ObjectiveName = Literal["gcpl", "comple", "discriminative"]


@dataclass(frozen=True)
class GCPLConfig(Settings):
    """Everything a :class:`~gcpl_lab.gcpl.estimator.GCPLClassifier` can be told.

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
        require(
            self.objective in ("gcpl", "comple", "discriminative"),
            "objective",
            self.objective,
            "'gcpl', 'comple' or 'discriminative'",
        )
        require(self.initial in ("name", "coarse", "random"), "initial", self.initial, "'name', 'coarse' or 'random'")
        require(
            self.weighting in ("relative", "absolute", "chosen"),
            "weighting",
            self.weighting,
            "'relative', 'absolute' or 'chosen'",
        )
        require(
            self.schedule in ("cosine", "linear", "constant"),
            "schedule",
            self.schedule,
            "'cosine', 'linear' or 'constant'",
        )
        require(
            self.early_stopping in ("none", "validation", "cross_validation"),
            "early_stopping",
            self.early_stopping,
            "'none', 'validation' or 'cross_validation'",
        )
        require(self.classification in ("exact", "fast"), "classification", self.classification, "'exact' or 'fast'")
        for name in ("validation_share", "error_rate"):
            require(0 < getattr(self, name) < 1, name, getattr(self, name), "a share between 0 and 1")
        require(self.num_folds >= 2, "num_folds", self.num_folds, "2 or more")
        for name in (
            "num_vectors",
            "batch_size",
            "discriminative_batch_size",
            "num_samples",
            "num_evidence",
            "evidence_batch_size",
            "evidence_pool",
            "validate_every",
            "checkpoint_every",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in (
            "num_steps",
            "discriminative_steps",
            "contrast_weight",
            "gcpl_share",
            "patience",
            "seed",
            "weight_decay",
            "gradient_clip",
        ):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "discriminative_rate", "temperature"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name in ("num_rivals", "micro_batch_size"):
            require(
                getattr(self, name) is None or getattr(self, name) >= 1, name, getattr(self, name), "1 or more, or None"
            )
        require(self.precision in PRECISIONS, "precision", self.precision, "one of " + ", ".join(PRECISIONS))
        require(
            len(self.templates) > 0 and not isinstance(self.templates, str),
            "templates",
            self.templates,
            "at least one text with {}, in a tuple",
        )
        if self.timestep_range is not None:
            low, high = self.timestep_range
            require(0 <= low < high <= 1, "timestep_range", self.timestep_range, "two fractions 0 ≤ low < high ≤ 1")

    def identity(self) -> dict[str, Any]:
        """The settings that two parts of one run must have in common, so that it can be resumed.

        Not among them is what only decides how the work is cut up: a run that memory ran out in goes on with others.
        """
        free = (
            "checkpoint_every",
            "micro_batch_size",
            "gradient_checkpointing",
            "compile_denoiser",
            "evidence_sharing",
        )
        return {name: value for name, value in self.as_dict().items() if name not in free}
