"""Everything a GCPLClassifier can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar, Literal, Self

from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.settings import Settings
from gcpl_lab.training.device import Precision


@dataclass(frozen=True)
class GCPLConfig(Settings):
    """Settings of a :class:`~gcpl_lab.gcpl.estimator.GCPLClassifier`; counts are whole numbers, shares fractions.

    Attributes:
        preset: Name of the frozen pair, or a folder with ``diffusion/`` in it.
        objective: A name in ``OBJECTIVES``: ``"gcpl"``, ``"comple"``, ``"discriminative"`` (which starts from GCPL's
            prompts), or one of your own.
        num_vectors: Learned vectors a class.
        initial: Where they start: the class ``"name"``, a ``"coarse"`` word, or ``"random"``.
        templates: Texts with one ``{}``; training goes through them in turn, the first is used afterwards.
        num_steps, batch_size, learning_rate: Updates, (image, t, ε) an update, and AdamW's peak rate of GCPL and CoMPLe
            (for the discriminative objective: of its warm start).
        schedule: Of all rates: ``"cosine"`` or ``"linear"`` to zero, or ``"constant"``, as the authors have it.
        weight_decay: AdamW's; the authors' script has 0.01. Decay pulls prompts towards no word at all.
        gradient_clip: Largest norm of the gradient; 0, as in the authors' script, clips nothing.
        timestep_range: Part of the noise schedule that is used, as fractions; None takes the preset's.
        contrast_weight: CoMPLe's λ.
        discriminative_steps, discriminative_batch_size, discriminative_rate: As above, of discriminative updates.
        num_samples: (t, ε) pairs that each image of these is shown with.
        num_rivals: Rival classes each class competes with; None for all others. Cost grows with it.
        temperature: τ on relative errors in the discriminative loss.
        num_evidence: (t, ε) pairs a test image is judged by; with ``classification="fast"`` at most.
        classification: ``"exact"``: every class on the same (t, ε). ``"fast"``: a shortlist by the preset's own CLIP,
            the most telling (t, ε) of a pool first, and each class only until it is far behind.
        evidence_pool, error_rate, num_folds: Of ``"fast"``: (t, ε) to choose from, share of images that it may get
            wrong by dropping a class early, and further trainings that it is calibrated with where no images are given.
        weighting: How an image's errors are averaged: ``"absolute"`` is the published mean, in which the noise levels
            with large errors count most; ``"relative"`` divides each by its mean over the classes; ``"chosen"`` takes
            the one with less cross-validated log-loss on the support images (docs/gcpl_settings.md compares them).
        class_offsets: Fit one offset a class on the support images, against prompts that win too often.
        evidence_batch_size: Most denoiser evaluations in one pass; 128 were fastest of 64 to 512 on a CPU. Where two
            images do not fit into one, a score is the same digit by digit whatever is judged beside it.
        evidence_bfloat16: Classify with the denoiser in bfloat16.
        fit: The square that the model sees of an image: ``"pad"``, ``"crop"`` or ``"squash"``; ``"auto"`` pads where
            one of the images that are learned from is longer than 1.25 to 1, and crops otherwise.
        flip: Learn from mirror images too; ``"auto"``: unless the mirror image of one class looks like another class.
        checkpoint_every: Updates between checkpoints, where a folder for them is given.
        precision: Of the frozen weights: ``"float32"``, ``"tf32"`` (faster products on a GPU), ``"bfloat16"``,
            ``"float16"``; ``"auto"``: float32 on a CPU, on a GPU bfloat16 where it can. What is learned is float32.
        micro_batch_size: Most (image, t, ε) in one training pass; the update is the same, digit by digit with any
            number of processes that have such a pass each. None: as many as memory allows (processes agree to 1e-5).
        gradient_checkpointing: Keep few activations and compute the others anew: slower, with far less memory.
        seed: Of everything random.
        options: Settings of an objective of your own, by name; :class:`GCPLClassifier` sorts them in here.
    """

    preset: str = "tiny"
    objective: str = "gcpl"
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
    num_evidence: int = 8
    classification: Literal["exact", "fast"] = "exact"
    evidence_pool: int = 32
    error_rate: float = 0.02
    num_folds: int = 4
    weighting: Literal["relative", "absolute", "chosen"] = "absolute"
    class_offsets: bool = True
    evidence_batch_size: int = 128
    evidence_bfloat16: bool = True
    fit: Literal["auto", "pad", "crop", "squash"] = "auto"
    flip: bool | Literal["auto"] = "auto"
    checkpoint_every: int = 50
    precision: Precision = "auto"
    micro_batch_size: int | None = None
    gradient_checkpointing: bool = False
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    LEAST: ClassVar = {
        **dict.fromkeys(("num_vectors", "batch_size", "discriminative_batch_size", "num_samples", "num_evidence"), 1),
        **dict.fromkeys(("evidence_batch_size", "evidence_pool", "checkpoint_every", "num_rivals"), 1),
        **dict.fromkeys(("num_steps", "discriminative_steps", "contrast_weight", "seed", "weight_decay"), 0),
        "micro_batch_size": 1,
        "gradient_clip": 0,
        "num_folds": 2,
    }
    ABOVE_ZERO = ("learning_rate", "discriminative_rate", "temperature")
    SHARES = ("error_rate",)
    REMOVED = (
        *("early_stopping", "validation_share", "validate_every", "patience", "gcpl_share"),
        *("compile_denoiser", "evidence_sharing", "cache_encodings"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("objective", self.objective in OBJECTIVES, "a registered objective: " + ", ".join(OBJECTIVES))
        texts = isinstance(self.templates, tuple | list) and all(isinstance(text, str) for text in self.templates)
        self.require("templates", texts and bool(self.templates), "a tuple of texts")
        self.require("flip", isinstance(self.flip, bool) or self.flip == "auto", "True, False or 'auto'")
        part = (0.0, 1.0) if self.timestep_range is None else self.timestep_range
        pair = isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(end, Real) for end in part)
        self.require("timestep_range", pair, "two fractions 0 ≤ low < high ≤ 1")
        low, high = part
        self.require("timestep_range", 0 <= low < high <= 1, "two fractions 0 ≤ low < high ≤ 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """See :meth:`Settings.from_dict`; what earlier versions measured on the machine becomes its default."""
        changed = dict(values)
        if changed.get("precision") == "measured":
            changed["precision"] = "auto"
        if changed.get("evidence_bfloat16", True) is None:
            changed["evidence_bfloat16"] = True
        return super().from_dict(changed)

    def identity(self) -> dict[str, Any]:
        """The settings that two parts of one run must have in common, so that it can be resumed.

        Not among them is what only decides how the work is cut up: a run that memory ran out in goes on with others.
        """
        free = ("checkpoint_every", "micro_batch_size", "gradient_checkpointing")
        return {name: value for name, value in self.as_dict().items() if name not in free}


def published_config(preset: str, num_classes: int, **settings: Any) -> GCPLConfig:
    """The recipe of the GCPL paper, with some settings otherwise; of ``tiny``, the defaults.

    The authors make 500 updates for each class, each from four of its images (one at a time, gradients added up).
    Here all classes learn at once: AdamW does not mind that a class's gradient is divided by their number.

    Source: Chattopadhyay et al. 2024, https://arxiv.org/abs/2409.01835, and the authors' script
    """
    recipe: dict[str, Any] = {"preset": preset}
    if preset != "tiny":
        recipe |= {"num_vectors": 1, "num_steps": 500, "batch_size": 4 * num_classes, "micro_batch_size": 4}
        recipe |= {"schedule": "constant", "evidence_batch_size": 64}
        recipe |= {"learning_rate": 5e-4, "weight_decay": 0.01, "gradient_clip": 0.0}
    return GCPLConfig.from_dict(recipe | settings)
