"""What a run will cost before it is started: denoiser evaluations, time, memory and money.

The number of evaluations follows exactly from the settings. Seconds come from a :class:`Profile`, a model with few
numbers: fitted to a few steps on the present machine, or recorded on another one. ``benchmarks/scaling.py`` tests its
predictions on work that it was not fitted to. Memory is counted tensor by tensor.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gcpl_lab.errors import DataError, ModelError
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.presets import MEMORY_BASIS, PRESETS, StepMemory, find_preset
from gcpl_lab.storage import read_json
from gcpl_lab.training.device import choose_fastest, wait_for_device

if TYPE_CHECKING:
    from gcpl_lab.models.diffusion import FrozenDiffusion

PROFILES_FOLDER = Path(__file__).parent / "profiles"
PUBLISHED_STAGES = ((5, 1), (50, 500))
"""Classes kept after each stage of the published classifier, and (t, ε) pairs a class up to it."""

Timed = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Profile:
    """How long the parts of one preset take on one machine.

    Attributes:
        preset: Whose weights.
        machine: Where it was measured.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        source: Who measured it, and what.
        encoding_seconds: The VAE, for one picture.
        training_seconds: A denoiser evaluation with its backward pass, everything around it included, by precision.
        classifying_seconds: A denoiser evaluation of the classifier, what is shared between prompts shared out.
        memory: Bytes in float32.
        derived: Which of these numbers were not measured, and what they follow from.
        update_seconds: What an update takes however few pictures it has: text encoder, optimiser; 0 where absent.
    """

    preset: str
    machine: str
    device: str
    source: str
    encoding_seconds: float
    training_seconds: dict[Timed, float]
    classifying_seconds: dict[Timed, float]
    memory: StepMemory
    derived: tuple[str, ...] = ()
    update_seconds: dict[Timed, float] = field(default_factory=dict)

    def training_time(self, num_updates: int, batch_size: int, precision: Timed) -> float:
        """Seconds of some updates of ``batch_size`` evaluations each."""
        each = self.update_seconds.get(precision, 0.0) + batch_size * self.training_seconds[precision]
        return num_updates * each

    def classifying_time(self, num_evaluations: int, precision: Timed) -> float:
        """Seconds of some evaluations without a backward pass."""
        return num_evaluations * self.classifying_seconds[precision]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "derived": list(self.derived)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Profile:
        """Back from JSON."""
        return cls(**{**values, "memory": StepMemory(**values["memory"]), "derived": tuple(values["derived"])})


def recorded_profiles() -> list[str]:
    """The presets with a profile that comes with the package."""
    return sorted(path.stem for path in PROFILES_FOLDER.glob("*.json"))


def load_profile(preset: str) -> Profile:
    """The recorded profile of a preset, or of one with the same shape.

    Raises:
        ModelError: There is none; the message lists what there is.
    """
    stand_in = "sd-1.4" if preset == "sd-1.5" else preset
    if stand_in not in recorded_profiles():
        raise ModelError(
            f"no profile of {preset!r} is recorded; recorded ones are {', '.join(recorded_profiles())}. Time it on "
            "the machine that will run it: gcpl-lab plan --measure"
        )
    return replace(Profile.from_dict(read_json(PROFILES_FOLDER / f"{stand_in}.json")), preset=preset)


# ----------------------------------------------------------------------------------------- measuring


def measure_profile(
    diffusion: FrozenDiffusion, *, preset: str = "", batch_size: int = 8, num_steps: int = 3
) -> Profile:
    """Time a few training steps and evaluations of a loaded model, in float32 and bfloat16.

    Args:
        diffusion: Where it will run; its weights' type is kept, so a model loaded in bfloat16 is timed in that alone.
        preset: What the profile is called; the model's name by default.
        batch_size: Pictures a step, and evaluations a pass: larger passes cost less a picture. Steps of a quarter of
            it tell what an update takes however many pictures it has.
        num_steps: Timed steps after one that warms up; their median counts.
    """
    import torch

    from gcpl_lab.training.machine import describe_machine

    generator = torch.Generator().manual_seed(0)
    size = diffusion.image_size
    pixels = torch.rand((2, 3, size, size), generator=generator) * 2 - 1
    encoding = _median_seconds(lambda: diffusion.encode_moments(pixels), num_steps, diffusion) / len(pixels)
    precisions: list[Timed] = ["float32", "bfloat16"] if diffusion.dtype == torch.float32 else ["bfloat16"]
    before = diffusion.num_denoiser_evaluations
    updates = {kind: _update_model(diffusion, batch_size, num_steps, kind) for kind in precisions}
    classifying = {kind: _classifying_seconds(diffusion, batch_size, num_steps, kind) for kind in precisions}
    memory = count_memory(diffusion)
    diffusion.num_denoiser_evaluations = before
    machine = describe_machine()
    return Profile(
        preset or diffusion.name,
        f"{machine['processor']}, {machine['threads']} threads, {machine['device']}",
        diffusion.device.type,
        f"gcpl-lab plan, {num_steps} steps of {batch_size} pictures",
        encoding,
        {kind: picture for kind, (_, picture) in updates.items()},
        classifying,
        memory,
        update_seconds={kind: start for kind, (start, _) in updates.items()},
    )


def _median_seconds(run: Callable[[], Any], num_steps: int, diffusion: FrozenDiffusion) -> float:
    seconds = []
    for step in range(num_steps + 1):
        began = time.perf_counter()
        run()
        wait_for_device(diffusion.device)
        if step:  # the first one warms up
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _objective_and_batches(diffusion: FrozenDiffusion, batch_size: int) -> tuple[Any, Any]:
    import torch

    from gcpl_lab.gcpl.objectives import GCPL
    from gcpl_lab.gcpl.prompts import ClassPrompts
    from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler

    prompts = ClassPrompts(diffusion, ["coat", "shirt"], num_vectors=1).to(diffusion.device)
    zeros = torch.zeros(2, 2, *diffusion.latent_shape)
    exemplars = Exemplars(zeros, zeros, torch.tensor([0, 1]))
    return GCPL(diffusion, prompts), ExemplarSampler(diffusion, exemplars, batch_size=batch_size)


def _update_model(diffusion: FrozenDiffusion, batch_size: int, num_steps: int, precision: Timed) -> tuple[float, float]:
    """Seconds of an update without pictures, and of each picture: the line through two sizes of batches."""
    whole, few = _update_seconds(diffusion, batch_size, num_steps, precision), max(1, batch_size // 4)
    if few == batch_size:
        return 0.0, whole / batch_size
    picture = (whole - _update_seconds(diffusion, few, num_steps, precision)) / (batch_size - few)
    picture = min(max(picture, 0.0), whole / batch_size)  # neither part can take less than nothing
    return whole - batch_size * picture, picture


def _update_seconds(diffusion: FrozenDiffusion, batch_size: int, num_steps: int, precision: Timed) -> float:
    """A whole update of the training loop."""
    from gcpl_lab.training.device import make_accelerator
    from gcpl_lab.training.loop import TrainingConfig, train

    objective, batches = _objective_and_batches(diffusion, batch_size)
    accelerator = make_accelerator(
        cpu=diffusion.device.type == "cpu", mixed_precision={"float32": "no", "bfloat16": "bf16"}[precision]
    )
    config = TrainingConfig(num_steps=num_steps + 1, learning_rate=1e-3)
    times = [0.0] + [record.seconds for record in train(objective, batches, config, accelerator=accelerator)]
    return float(statistics.median(np.diff(times)[1:]))


def _classifying_seconds(diffusion: FrozenDiffusion, batch_size: int, num_steps: int, precision: Timed) -> float:
    import torch

    from gcpl_lab.gcpl.estimator import make_classifier

    hidden = diffusion.encode_texts([f"a photo of a {name}" for name in ("coat", "shirt", "bag", "dress") * 2])
    latents = torch.zeros(1, *diffusion.latent_shape)

    def of_each(size: int) -> float:
        """An evaluation in passes of some size."""
        num_classes = min(8, max(2, size))
        samples = max(1, size // num_classes)
        config = GCPLConfig(evidence_batch_size=max(2, size), evidence_bfloat16=precision == "bfloat16")
        classifier = make_classifier(diffusion, hidden[:num_classes], config, seed=0)
        return _median_seconds(lambda: classifier.exact(latents, samples), num_steps, diffusion) / (
            num_classes * samples
        )

    seconds, usual = of_each(batch_size), GCPLConfig().evidence_batch_size
    # Small models spend much of a pass on what does not grow with it; theirs are cheap enough to time as they will be.
    return of_each(usual) if batch_size < usual and usual * seconds < 1 else seconds


def count_memory(diffusion: FrozenDiffusion) -> StepMemory:
    """Count every tensor that one real step and one evaluation make, and the weights they stand on.

    Args:
        diffusion: A loaded model; bytes are given as in float32, whatever its type.
    """
    import torch

    from gcpl_lab.experiments.live_bytes import LiveBytes

    parts = (diffusion.denoiser, diffusion.text_encoder)
    weights = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    objective, batches = _objective_and_batches(diffusion, 1)
    batch = batches(0)
    known = [*weights, batch.latents, batch.noise, batch.timesteps, batch.labels, *objective.trainable_parameters()]
    peaks = []
    for checkpointed in (False, True):
        if checkpointed:
            diffusion.denoiser.enable_gradient_checkpointing()
        try:
            with LiveBytes(known) as live:
                objective(batch)["loss"].backward()
        finally:
            diffusion.denoiser.disable_gradient_checkpointing()
        peaks.append(live.peak)
    hidden = diffusion.encode_texts([""])
    with LiveBytes([*known, hidden]) as live, torch.no_grad():
        diffusion.predict_noise(batch.latents, batch.timesteps, hidden)
    factor = 32 // torch.finfo(diffusion.dtype).bits
    vae = sum(tensor.numel() * tensor.element_size() for tensor in diffusion.vae.parameters())
    held = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    return StepMemory(*(factor * value for value in (held, vae, peaks[0], peaks[1], live.peak)))


# ------------------------------------------------------------------------------------------ planning


@dataclass(frozen=True)
class Stage:
    """One part of a run.

    Attributes:
        name: ``"training"``, ``"calibration"`` (temperature and offsets) or ``"classification"``.
        denoiser_evaluations: (picture, timestep, prompt) triples.
        encoded_pictures: Pictures through the VAE, mirror images counted.
        seconds: Of both.
        memory_bytes: At peak: weights and one pass.
        cost: Where a price an hour was given.
    """

    name: str
    denoiser_evaluations: int
    encoded_pictures: int
    seconds: float
    memory_bytes: int
    cost: float | None = None


@dataclass(frozen=True)
class Saving:
    """What another choice would change.

    Attributes:
        name: Of the choice.
        title: In words.
        how: The setting that makes it.
        seconds: The whole run's with it; ``saved_seconds`` is the difference (negative: it costs more).
        denoiser_evaluations: The whole run's with it.
        memory_bytes: The largest stage's with it.
    """

    name: str
    title: str
    how: str
    seconds: float
    saved_seconds: float
    denoiser_evaluations: int
    memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a run costs.

    Attributes:
        preset: Frozen models.
        num_classes, num_shots, num_test: The task.
        config: The settings that were counted.
        precision: Of training.
        stages: Training, calibration, classification.
        savings: What other choices would change, one at a time.
        profile: Where the seconds come from.
        price_per_hour: What an hour of the machine costs, or None.
    """

    preset: str
    num_classes: int
    num_shots: int
    num_test: int
    config: GCPLConfig
    precision: Timed
    stages: tuple[Stage, ...]
    profile: Profile
    price_per_hour: float | None = None
    savings: tuple[Saving, ...] = field(default=())

    @property
    def training(self) -> Stage:
        """The updates, with encoding of the exemplars."""
        return self.stages[0]

    @property
    def calibration(self) -> Stage:
        """Evaluations on exemplars that fit temperature and offsets."""
        return self.stages[1]

    @property
    def classification(self) -> Stage:
        """The test pictures."""
        return self.stages[2]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def denoiser_evaluations(self) -> int:
        """Of all stages."""
        return sum(stage.denoiser_evaluations for stage in self.stages)

    @property
    def memory_bytes(self) -> int:
        """Of the largest stage."""
        return max(stage.memory_bytes for stage in self.stages)

    @property
    def cost(self) -> float | None:
        """Of all stages, where a price was given."""
        return None if self.price_per_hour is None else self.price_per_hour * self.seconds / 3600

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "preset": self.preset,
            "classes": self.num_classes,
            "shots": self.num_shots,
            "test": self.num_test,
            "precision": self.precision,
            "seconds": self.seconds,
            "denoiser_evaluations": self.denoiser_evaluations,
            "memory_bytes": self.memory_bytes,
            "memory_basis": MEMORY_BASIS,
            "cost": self.cost,
            "price_per_hour": self.price_per_hour,
            "stages": [asdict(stage) for stage in self.stages],
            "savings": [asdict(saving) for saving in self.savings],
            "settings": self.config.as_dict(),
            "profile": self.profile.as_dict(),
        }


def published_config(preset: str, num_classes: int, **settings: Any) -> GCPLConfig:
    """The recipe of the GCPL paper in this package's terms; of ``tiny``, the defaults.

    The authors make 500 updates for each class, each from four of its pictures (one at a time, gradients added
    up). Here all classes learn at once: 500 updates of four pictures a class. AdamW does not mind that a class's
    gradient is divided by the number of classes.

    Args:
        preset: Frozen models.
        num_classes: That are learned.
        **settings: Fields of :class:`~gcpl_lab.gcpl.settings.GCPLConfig` to have otherwise.

    Source: Chattopadhyay et al. 2024, https://arxiv.org/abs/2409.01835, and the authors' script
    """
    recipe: dict[str, Any] = {"preset": preset}
    if preset != "tiny":
        recipe |= {
            "num_vectors": 1,
            "num_steps": 500,
            "batch_size": 4 * num_classes,
            "micro_batch_size": 4,
            "learning_rate": 5e-4,
            "schedule": "constant",
            "weight_decay": 0.01,
            "gradient_clip": 0.0,
            "evidence_batch_size": 64,
        }
    return GCPLConfig.from_dict(recipe | settings)


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
    """Count and time a run: learning class prompts, then classifying test pictures.

    Args:
        preset: Frozen models with a diffusion model.
        num_classes: 2 or more.
        num_shots: Pictures a class to learn from, 1 or more.
        num_test: Pictures to classify, 0 or more.
        config: Settings; by default those of :func:`published_config`.
        profile: Seconds; by default the recorded ones of the preset.
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
    profile = profile or load_profile(preset)
    task = _Task(num_classes, num_shots, num_test, config or published_config(preset, num_classes), profile)
    plan = Plan(
        preset,
        num_classes,
        num_shots,
        num_test,
        task.config,
        task.precision,
        task.stages(price_per_hour),
        profile,
        price_per_hour,
    )
    return replace(plan, savings=tuple(_savings(task, plan)))


def _faster(seconds: Mapping[Timed, float]) -> Timed:
    """The format that the measured rule would choose where these times were taken."""
    if "float32" not in seconds:
        return next(iter(seconds))
    chosen = choose_fastest({name: [value] for name, value in seconds.items()})
    return "bfloat16" if chosen == "bfloat16" else "float32"


@dataclass(frozen=True)
class _Task:
    """A run whose cost can be counted; ``schedule`` is a staged classifier's (to_keep, n_samples), or None."""

    num_classes: int
    num_shots: int
    num_test: int
    config: GCPLConfig
    profile: Profile
    schedule: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def precision(self) -> Timed:
        """Of training, as the settings and the profile's device have it."""
        wanted = self.config.precision
        if wanted == "measured" and self.profile.device == "cpu":  # what the profile's machine would choose
            wanted = _faster(self.profile.training_seconds)
        if wanted in ("auto", "measured"):
            wanted = "bfloat16" if self.profile.device == "cuda" else "float32"
        found: Timed = "bfloat16" if wanted in ("bfloat16", "float16") else "float32"
        return found if found in self.profile.training_seconds else next(iter(self.profile.training_seconds))

    @property
    def evidence_precision(self) -> Timed:
        """Of classification."""
        known, halved = self.profile.classifying_seconds, self.config.evidence_bfloat16
        if halved is None:  # measured when it runs
            halved = _faster(known) == "bfloat16"
        return "bfloat16" if halved and "bfloat16" in known else self.precision

    def updates(self) -> list[tuple[int, int]]:
        """Numbers of updates, and the evaluations with a backward pass in each."""
        config = self.config
        stages = [(config.num_steps, config.batch_size)]
        if config.objective == "discriminative":
            stages.append((config.discriminative_steps, self._discriminative_batch()))
        return stages

    def training_evaluations(self) -> int:
        """Evaluations with a backward pass."""
        return sum(count * size for count, size in self.updates())

    def _training_time(self) -> float:
        seconds = sum(self.profile.training_time(count, size, self.precision) for count, size in self.updates())
        if self.config.gradient_checkpointing:  # everything is computed once more
            seconds += self.profile.classifying_time(self.training_evaluations(), self.precision)
        return seconds

    def encoded_in_updates(self) -> int:
        """Pictures that all updates show to the VAE where nothing is cached; each as often as it is a sample."""
        config = self.config
        if config.cache_encodings:
            return 0
        further = config.discriminative_steps * config.discriminative_batch_size * config.num_samples
        return config.num_steps * config.batch_size + (further if config.objective == "discriminative" else 0)

    def _discriminative_batch(self) -> int:
        config, others = self.config, self.num_classes - 1
        rivals = others if config.num_rivals is None else min(config.num_rivals, others)
        return config.discriminative_batch_size * config.num_samples * (1 + rivals)

    def rival_evaluations(self) -> int:
        """Evaluations that find each class's hardest rivals, before discriminative updates."""
        config = self.config
        if config.objective != "discriminative" or config.num_rivals is None:
            return 0
        if config.num_rivals >= self.num_classes - 1:
            return 0
        return self.num_classes * self.num_shots * self.num_classes * config.num_samples

    def calibration_evaluations(self) -> int:
        """Evaluations of exemplars that fit temperature and offsets, and the fast classifier's plan."""
        from gcpl_lab.gcpl.estimator import MAX_TEMPERATURE_IMAGES

        exemplars = self.num_classes * self.num_shots
        pool = exemplars * self.config.evidence_pool if self.config.classification == "fast" else 0
        return self.num_classes * (min(MAX_TEMPERATURE_IMAGES, exemplars) * self.config.num_evidence + pool)

    def classification_evaluations(self) -> int:
        """Evaluations of all test pictures; of the fast classifier, which stops early, the most there can be."""
        if self.schedule is None:
            return self.num_test * self.num_classes * self.config.num_evidence
        each, seen, left = 0, 0, self.num_classes
        for keep, until in zip(*self.schedule, strict=True):
            each += left * (until - seen)
            left, seen = min(left, keep), until
        return self.num_test * each

    def stages(self, price: float | None = None) -> tuple[Stage, ...]:
        """All three, with seconds, memory and money."""
        profile, config = self.profile, self.config
        exemplars = 2 * self.num_classes * self.num_shots  # as they are and mirrored
        rivals, fitting, testing = (
            self.rival_evaluations(),
            self.calibration_evaluations(),
            self.classification_evaluations(),
        )
        # The fast classifier's folds are trained like the whole; their rivals are found like the whole's.
        folds = config.num_folds if config.classification == "fast" else 0
        learning, training = self.training_evaluations() + rivals, self._training_time()
        anew = self.encoded_in_updates()

        def forward(evaluations: int) -> float:
            return profile.classifying_time(evaluations, self.evidence_precision)

        rows = (
            ("training", learning, exemplars + anew, training + forward(rivals), self._training_memory()),
            (
                "calibration",
                fitting + folds * learning,
                folds * anew,
                forward(fitting + folds * rivals) + folds * training,
                max(self._classifying_memory(), self._training_memory() if folds else 0),
            ),
            ("classification", testing, self.num_test, forward(testing), self._classifying_memory()),
        )
        stages = []
        for name, evaluations, pictures, seconds, memory in rows:
            seconds += pictures * profile.encoding_seconds
            cost = None if price is None else price * seconds / 3600
            stages.append(Stage(name, evaluations, pictures, seconds, memory, cost))
        return tuple(stages)

    def _weights(self) -> int:
        return self.profile.memory.weights // (2 if self.precision == "bfloat16" else 1)

    def _training_memory(self) -> int:
        config, memory = self.config, self.profile.memory
        batch = config.batch_size
        if config.objective == "discriminative":
            batch = max(batch, self._discriminative_batch())
        batch = min(batch, config.micro_batch_size or batch)
        one = memory.checkpointed if config.gradient_checkpointing else memory.training
        return self._weights() + batch * one // (2 if self.precision == "bfloat16" else 1)

    def _classifying_memory(self) -> int:
        halved = 2 if self.evidence_precision == "bfloat16" else 1
        return self._weights() + self.config.evidence_batch_size * self.profile.memory.classifying // halved


def _savings(task: _Task, plan: Plan) -> list[Saving]:
    """One change at a time; choices that are made already, or that change nothing here, are left out."""
    config, choices = task.config, []
    pairs = config.num_evidence
    if task.num_classes > 5 and pairs >= 4:
        first = max(1, pairs // 4)
        choices.append(
            (
                "staged",
                f"staged classifier: all classes on {first} pairs, the best five on {pairs}",
                f"DiffusionClassifier.staged(latents, (5, 1), ({first}, {pairs}))",
                replace(task, schedule=((5, 1), (first, pairs))),
            )
        )
    if pairs > 1:
        choices.append(
            (
                "fewer_samples",
                f"half the (t, ε) pairs a picture: {pairs // 2}",
                f"--set num_evidence={pairs // 2}",
                _with(task, num_evidence=pairs // 2),
            )
        )
    if config.num_steps > 1:
        choices.append(
            (
                "fewer_updates",
                f"half the updates: {config.num_steps // 2}",
                f"--set num_steps={config.num_steps // 2}",
                _with(task, num_steps=config.num_steps // 2),
            )
        )
    if task.precision == "float32" and "bfloat16" in task.profile.training_seconds:
        choices.append(
            (
                "bfloat16",
                "bfloat16 throughout",
                "--set precision=bfloat16",
                _with(task, precision="bfloat16", evidence_bfloat16=True),
            )
        )
    if not config.gradient_checkpointing:
        choices.append(
            (
                "checkpointing",
                "gradient checkpointing: less memory for more time",
                "--set gradient_checkpointing=true",
                _with(task, gradient_checkpointing=True),
            )
        )
    to_keep, samples = PUBLISHED_STAGES
    choices.append(
        (
            "published_classifier",
            "the published classifier: 50 pairs, then 500 for the best five",
            f"DiffusionClassifier.staged(latents, {to_keep}, {samples})",
            replace(task, schedule=PUBLISHED_STAGES),
        )
    )
    return [_saving(name, title, how, changed, plan) for name, title, how, changed in choices]


def _with(task: _Task, **settings: Any) -> _Task:
    return replace(task, config=replace(task.config, **settings))


def _saving(name: str, title: str, how: str, changed: _Task, plan: Plan) -> Saving:
    stages = changed.stages()
    seconds = sum(stage.seconds for stage in stages)
    return Saving(
        name,
        title,
        how,
        seconds,
        plan.seconds - seconds,
        sum(stage.denoiser_evaluations for stage in stages),
        max(stage.memory_bytes for stage in stages),
    )
