"""What a run will cost before it is started: denoiser evaluations, time, memory and money.

The evaluations follow from the settings; seconds and bytes come from a :class:`~gcpl_lab.experiments.profile.Profile`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from gcpl_lab.errors import DataError, ModelError
from gcpl_lab.experiments.profile import Profile, Timed, load_profile
from gcpl_lab.gcpl.estimator import MAX_TEMPERATURE_IMAGES
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.gcpl.objectives import Stage as Updates
from gcpl_lab.gcpl.settings import GCPLConfig, published_config
from gcpl_lab.models.presets import MEMORY_BASIS, PRESETS, find_preset


@dataclass(frozen=True)
class Stage:
    """One part of a run."""

    name: str  # "training", "calibration" (temperature and offsets) or "classification"
    denoiser_evaluations: int  # (image, timestep, prompt) triples
    encoded_pictures: int  # images through the VAE, mirror images counted
    seconds: float
    memory_bytes: int  # at peak: weights and one pass
    cost: float | None = None  # where a price an hour was given


@dataclass(frozen=True)
class Saving:
    """What another choice, had by ``how``, would change: the totals of the whole run with it, and the difference."""

    name: str
    title: str
    how: str
    seconds: float
    saved_seconds: float
    denoiser_evaluations: int
    memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """What learning class prompts and classifying test images costs; made by :func:`make_plan`."""

    preset: str
    num_classes: int
    num_shots: int
    num_test: int
    config: GCPLConfig
    profile: Profile
    price_per_hour: float | None = None
    # Of a staged classifier: classes kept after each stage, and (t, ε) pairs a class up to it.
    schedule: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def precision(self) -> Timed:
        """Of training, as the settings and the profile's device have it."""
        chosen, timed = self.config.precision, list(self.profile.training_seconds)
        halved = self.profile.device == "cuda" if chosen == "auto" else chosen in ("bfloat16", "float16")
        wanted: Timed = "bfloat16" if halved else "float32"
        return wanted if wanted in timed else timed[0]

    @property
    def evidence_precision(self) -> Timed:
        """Of classification."""
        halved = self.config.evidence_bfloat16 and "bfloat16" in self.profile.classifying_seconds
        return "bfloat16" if halved else self.precision

    @cached_property
    def training(self) -> Stage:
        """The updates, with the encoding of the exemplars and the choice of their rivals."""
        config, profile, exemplars = self.config, self.profile, self.num_classes * self.num_shots
        most, wanted = self.num_classes - 1, config.chosen(OBJECTIVES[config.objective].defaults).get("num_rivals", 0)
        rivals = most if wanted is None else min(wanted, most)
        choosing = exemplars * self.num_classes * config.num_samples if 0 < rivals < most else 0
        seconds, backward, largest, encoded = 0.0, 0, 0, 2 * exemplars
        for part in training_stages(config):
            count, samples, evaluations = getattr(config, part.num_steps), getattr(config, part.batch_size), 1
            if part.num_samples:
                samples, evaluations = samples * getattr(config, part.num_samples), 1 + rivals
            evaluations *= samples
            seconds += profile.training_time(count, evaluations, self.precision)
            backward, largest = backward + count * evaluations, max(largest, evaluations)
        if config.gradient_checkpointing:  # everything is computed once more
            seconds += profile.classifying_time(backward, self.precision)
        seconds += profile.classifying_time(choosing, self.evidence_precision) + encoded * profile.encoding_seconds
        each = profile.memory.checkpointed if config.gradient_checkpointing else profile.memory.training
        memory = self._memory(min(largest, config.micro_batch_size or largest) * each, self.precision)
        return Stage("training", backward + choosing, encoded, seconds, memory, self._cost(seconds))

    @cached_property
    def calibration(self) -> Stage:
        """Evaluations on exemplars that fit temperature and offsets; the fast classifier also trains folds of them."""
        config, training, exemplars = self.config, self.training, self.num_classes * self.num_shots
        fast = config.classification == "fast"
        pool, folds = (exemplars * config.evidence_pool, config.num_folds) if fast else (0, 0)
        fitting = self.num_classes * (min(MAX_TEMPERATURE_IMAGES, exemplars) * config.num_evidence + pool)
        # A fold is trained like the whole, from encodings that are there already.
        again = training.seconds - 2 * exemplars * self.profile.encoding_seconds
        seconds = self.profile.classifying_time(fitting, self.evidence_precision) + folds * again
        evaluations = fitting + folds * training.denoiser_evaluations
        memory = max(self.classification.memory_bytes, training.memory_bytes if folds else 0)
        return Stage("calibration", evaluations, 0, seconds, memory, self._cost(seconds))

    @cached_property
    def classification(self) -> Stage:
        """The test images; of the fast classifier 1/50 of the published passes (benchmarks/classifier_cost.py)."""
        to_keep, until = self.schedule or ((1,), (self.config.num_evidence,))
        each, seen, left = 0, 0, self.num_classes
        for keep, samples in zip(to_keep, until, strict=True):
            each += left * (samples - seen)
            left, seen = min(left, keep), samples
        if self.config.classification == "fast" and not self.schedule:
            each = min(each, (50 * self.num_classes + 450 * min(5, self.num_classes)) // 50)
        profile, evaluations = self.profile, self.num_test * each
        seconds = profile.classifying_time(evaluations, self.evidence_precision)
        seconds += self.num_test * profile.encoding_seconds
        one_pass = self.config.evidence_batch_size * profile.memory.classifying
        memory = self._memory(one_pass, self.evidence_precision)
        return Stage("classification", evaluations, self.num_test, seconds, memory, self._cost(seconds))

    def _memory(self, one_pass: int, precision: Timed) -> int:
        """Bytes at peak, from those of a pass in float32."""
        weights, halved = self.profile.memory.weights, {"float32": 1, "bfloat16": 2}
        return weights // halved[self.precision] + one_pass // halved[precision]

    def _cost(self, seconds: float) -> float | None:
        return None if self.price_per_hour is None else self.price_per_hour * seconds / 3600

    @property
    def stages(self) -> tuple[Stage, Stage, Stage]:
        """In the order of a run; the numbers below are sums over them, and the memory of the largest one."""
        return self.training, self.calibration, self.classification

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def denoiser_evaluations(self) -> int:
        return sum(stage.denoiser_evaluations for stage in self.stages)

    @property
    def memory_bytes(self) -> int:
        return max(stage.memory_bytes for stage in self.stages)

    @property
    def cost(self) -> float | None:
        return self._cost(self.seconds)

    @property
    def savings(self) -> list[Saving]:
        """What other choices would change, one at a time; those made already, or that change nothing, are left out."""
        config, pairs = self.config, self.config.num_evidence
        quarter, half, updates = (max(1, count) for count in (pairs // 4, pairs // 2, config.num_steps // 2))
        staged = f"staged classifier: all classes on {quarter} pairs, the best five on {pairs}"
        float32 = self.precision == "float32" and "bfloat16" in self.profile.training_seconds
        halved = {"precision": "bfloat16", "evidence_bfloat16": True}
        checkpointing = "gradient checkpointing: less memory for more time"
        published = "the published classifier: 50 pairs, then 500 for the best five"
        shortlist = "fast: CLIP's shortlist and a race, calibrated on folds of the exemplars"
        fast = config.classification != "fast" and self.num_shots >= config.num_folds
        choices: tuple[tuple[str, bool, str, Any], ...] = (
            ("staged", self.num_classes > 5 and pairs >= 4, staged, ((5, 1), (quarter, pairs))),
            ("fast", fast, shortlist, {"classification": "fast"}),
            ("fewer_samples", pairs > 1, f"half the (t, ε) pairs an image: {half}", {"num_evidence": half}),
            ("fewer_updates", config.num_steps > 1, f"half the updates: {updates}", {"num_steps": updates}),
            ("bfloat16", float32, "bfloat16 throughout", halved),
            ("checkpointing", not config.gradient_checkpointing, checkpointing, {"gradient_checkpointing": True}),
            ("published_classifier", True, published, ((5, 1), (50, 500))),
        )
        found = []
        for name, possible, title, changed in choices:
            if not possible:
                continue
            if isinstance(changed, dict):
                other = replace(self, config=replace(config, **changed))
                setting, value = next(iter(changed.items()))
                how = f"--set {setting}={str(value).lower()}"
            else:
                other = replace(self, schedule=changed)
                how = f"DiffusionClassifier.staged(latents, {changed[0]}, {changed[1]})"
            whole = (other.seconds, self.seconds - other.seconds, other.denoiser_evaluations, other.memory_bytes)
            found.append(Saving(name, title, how, *whole))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        kept = ("preset", "precision", "seconds", "denoiser_evaluations", "memory_bytes", "cost", "price_per_hour")
        return {
            **{name: getattr(self, name) for name in kept},
            **{name: getattr(self, f"num_{name}") for name in ("classes", "shots", "test")},
            "memory_basis": MEMORY_BASIS,
            "stages": [asdict(stage) for stage in self.stages],
            "savings": [asdict(saving) for saving in self.savings],
            "settings": self.config.as_dict(),
            "profile": asdict(self.profile),
        }


def training_stages(config: GCPLConfig) -> list[Updates]:
    """The updates that an objective makes, behind those of the objective whose prompts it goes on from."""
    first = OBJECTIVES[config.objective].facts.get("starts_from")
    return [OBJECTIVES[name].facts.get("stage", Updates()) for name in (first, config.objective) if name]


def count_updates(config: GCPLConfig) -> int:
    """How many updates a training has."""
    return sum(getattr(config, stage.num_steps) for stage in training_stages(config))


def make_plan(
    preset: str,
    *,
    num_classes: int,
    num_shots: int,
    num_test: int,
    config: GCPLConfig | None = None,
    profile: Profile | None = None,
    price_per_hour: float | None = None,
) -> Plan:
    """Count and time a run: learning class prompts from ``num_shots`` images a class, then classifying test images.

    Args:
        num_classes, num_shots, num_test: At least 2, 1 and 0.
        config: By default :func:`published_config`.
        profile: By default the recorded one of the preset.
        price_per_hour: Of the machine, in any currency.

    Raises:
        DataError: A count is out of range.
        ModelError: No profile is recorded, or the preset has no diffusion model.
    """
    for name, value, least in (("classes", num_classes, 2), ("shots", num_shots, 1), ("test", num_test, 0)):
        if value < least:
            raise DataError(f"{name} is {value}; expected a whole number, {least} or more")
    if not find_preset(preset).diffusion_source:
        with_one = ", ".join(name for name, other in PRESETS.items() if other.diffusion_source)
        raise ModelError(f"preset {preset!r} is a CLIP alone; plans are made for a diffusion model: {with_one}")
    config, profile = config or published_config(preset, num_classes), profile or load_profile(preset)
    return Plan(preset, num_classes, num_shots, num_test, config, profile, price_per_hour)
