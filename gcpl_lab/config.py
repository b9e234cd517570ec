"""Settings as frozen dataclasses that go to JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

ObjectiveName = Literal["gcpl", "comple", "discriminative"]


@dataclass(frozen=True)
class GCPLConfig:
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
        num_evidence: (t, ε) pairs a test photograph is judged by.
        evidence_batch_size: Most denoiser evaluations in one pass.
        flip: Learn from mirror images too.
        seed: Of everything random.
    """

    preset: str = "tiny"
    objective: ObjectiveName = "gcpl"
    num_vectors: int = 4
    initial: Literal["name", "coarse", "random"] = "name"
    templates: tuple[str, ...] = ("a photo of a {}",)
    num_steps: int = 300
    batch_size: int = 40
    learning_rate: float = 0.01
    timestep_range: tuple[float, float] | None = None
    contrast_weight: float = 0.1
    discriminative_steps: int = 150
    discriminative_batch_size: int = 4
    num_samples: int = 4
    num_rivals: int | None = 4
    discriminative_rate: float = 0.005
    temperature: float = 30.0
    gcpl_share: float = 1.0
    num_evidence: int = 12
    evidence_batch_size: int = 256
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.objective in ("gcpl", "comple", "discriminative"), "objective", self.objective,
                 "'gcpl', 'comple' or 'discriminative'")  # fmt: skip
        _require(self.initial in ("name", "coarse", "random"), "initial", self.initial, "'name', 'coarse' or 'random'")
        for name in ("num_vectors", "batch_size", "discriminative_batch_size", "num_samples", "num_evidence",
                     "evidence_batch_size"):  # fmt: skip
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("num_steps", "discriminative_steps", "contrast_weight", "gcpl_share", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "discriminative_rate", "temperature"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        _require(self.num_rivals is None or self.num_rivals >= 1, "num_rivals", self.num_rivals, "1 or more, or None")
        _require(len(self.templates) > 0 and not isinstance(self.templates, str), "templates", self.templates,
                 "at least one text with {}, in a tuple")  # fmt: skip
        if self.timestep_range is not None:
            low, high = self.timestep_range
            _require(0 <= low < high <= 1, "timestep_range", self.timestep_range, "two fractions 0 ≤ low < high ≤ 1")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GCPLConfig:
        """Back from JSON.

        Raises:
            ValueError: A key that is no setting, naming it.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
        values = dict(values)
        for name in ("templates", "timestep_range"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cls(**values)


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; expected {expected}")
