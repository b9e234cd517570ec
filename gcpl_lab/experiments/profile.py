"""How long the parts of a run take: timed on this machine, or recorded on another one.

``benchmarks/scaling.py`` tests what a profile predicts on work that it was not fitted to. Memory is counted tensor by
tensor.
"""

from __future__ import annotations

import statistics
import timeit
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gcpl_lab.errors import ArtifactError, ModelError
from gcpl_lab.gcpl.estimator import make_classifier
from gcpl_lab.gcpl.objectives import GCPL
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.models.presets import StepMemory
from gcpl_lab.storage import read_json
from gcpl_lab.training.device import make_accelerator, wait_for_device
from gcpl_lab.training.loop import TrainingConfig, train
from gcpl_lab.training.machine import describe_machine

Timed = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Profile:
    """How long the parts of one preset take on one machine; by dtype where that matters."""

    preset: str
    machine: str
    device: str
    source: str  # who timed them, and what
    encoding_seconds: float  # the VAE, for one image
    training_seconds: dict[Timed, float]  # a denoiser evaluation, forward and backward, everything around it included
    classifying_seconds: dict[Timed, float]  # one of the classifier
    memory: StepMemory  # bytes in float32
    derived: tuple[str, ...] = ()  # which of these numbers were not measured, and what they follow from
    update_seconds: dict[Timed, float] = field(default_factory=dict)  # however few images an update has; 0 if absent

    def training_time(self, num_updates: int, batch_size: int, precision: Timed) -> float:
        """Seconds of some updates of ``batch_size`` evaluations each."""
        return num_updates * (self.update_seconds.get(precision, 0.0) + batch_size * self.training_seconds[precision])

    def classifying_time(self, num_evaluations: int, precision: Timed) -> float:
        """Seconds of some evaluations without a backward pass."""
        return num_evaluations * self.classifying_seconds[precision]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Profile:
        """Back from JSON."""
        return cls(**{**values, "memory": StepMemory(**values["memory"]), "derived": tuple(values["derived"])})


def load_profile(preset: str) -> Profile:
    """The profile in a JSON file, or the recorded one of a preset, of one with the same shape, or of that name.

    Raises:
        ModelError: There is none; the message lists what there is.
        ArtifactError: The file holds no profile.
    """
    if preset.endswith(".json"):
        try:
            return Profile.from_dict(read_json(preset))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{preset}: holds no profile ({error}); gcpl-lab plan --save writes one") from error
    recorded = {path.stem: path for path in sorted(Path(__file__).with_name("profiles").glob("*.json"))}
    name = {"sd-1.5": "sd-1.4"}.get(preset, preset)
    if name not in recorded:
        raise ModelError(
            f"no profile of {preset!r} is recorded; recorded ones are {', '.join(sorted(recorded))}. Time it on "
            "the machine that will run it: gcpl-lab plan --measure"
        )
    found = Profile.from_dict(read_json(recorded[name]))
    return replace(found, preset=preset) if found.preset == name else found


def measure_profile(
    diffusion: FrozenDiffusion, *, preset: str = "", batch_size: int = 8, num_steps: int = 3
) -> Profile:
    """Time a few training steps and evaluations of a loaded model, in float32 and bfloat16.

    A model that was loaded in bfloat16 is timed in that alone.

    Args:
        preset: What the profile is called; the model's name by default.
        batch_size: Images a step, and evaluations a pass: larger passes cost less an image.
        num_steps: Timed steps after one that warms up; their median counts.
    """
    size, machine, before = diffusion.image_size, describe_machine(), diffusion.num_denoiser_evaluations
    pixels = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    precisions: list[Timed] = ["float32", "bfloat16"] if diffusion.dtype == torch.float32 else ["bfloat16"]
    updates = {kind: _update_model(diffusion, batch_size, num_steps, kind) for kind in precisions}
    profile = Profile(
        preset=preset or diffusion.name,
        machine=f"{machine['processor']}, {machine['threads']} threads, {machine['device']}",
        device=diffusion.device.type,
        source=f"gcpl-lab plan, {num_steps} steps of {batch_size} images",
        encoding_seconds=_median_seconds(lambda: diffusion.encode_moments(pixels), num_steps, diffusion) / len(pixels),
        training_seconds={kind: each for kind, (_, each) in updates.items()},
        classifying_seconds={kind: _classifying_seconds(diffusion, batch_size, num_steps, kind) for kind in precisions},
        memory=count_memory(diffusion),
        update_seconds={kind: start for kind, (start, _) in updates.items()},
    )
    diffusion.num_denoiser_evaluations = before
    return profile


def _median_seconds(run: Callable[[], Any], num_steps: int, diffusion: FrozenDiffusion) -> float:
    def run_to_the_end() -> None:
        run()
        wait_for_device(diffusion.device)

    return statistics.median(timeit.repeat(run_to_the_end, number=1, repeat=num_steps + 1)[1:])  # the first warms up


def _objective_and_batches(diffusion: FrozenDiffusion, batch_size: int) -> tuple[GCPL, ExemplarSampler]:
    prompts = ClassPrompts(diffusion, ["coat", "shirt"], num_vectors=1).to(diffusion.device)
    zeros = torch.zeros(2, 2, *diffusion.latent_shape)
    exemplars = Exemplars(zeros, zeros, torch.tensor([0, 1]))
    return GCPL(diffusion, prompts), ExemplarSampler(diffusion, exemplars, batch_size=batch_size)


def _update_model(diffusion: FrozenDiffusion, batch_size: int, num_steps: int, precision: Timed) -> tuple[float, float]:
    """Seconds of an update without images, and of each image: the line through two sizes of batches.

    One size is a quarter of the other: ``batch_size``, or eight of it on a GPU, where small ones wait for launches.
    """
    large = batch_size * (8 if diffusion.device.type == "cuda" else 1)
    whole, few = _update_seconds(diffusion, large, num_steps, precision), max(1, large // 4)
    if few == large:
        return 0.0, whole / large
    each = (whole - _update_seconds(diffusion, few, num_steps, precision)) / (large - few)
    each = min(max(each, 0.0), whole / large)  # neither part can take less than nothing
    return whole - large * each, each


def _update_seconds(diffusion: FrozenDiffusion, batch_size: int, num_steps: int, precision: Timed) -> float:
    objective, batches = _objective_and_batches(diffusion, batch_size)
    mixed = "bf16" if precision == "bfloat16" else "no"
    accelerator = make_accelerator(diffusion.device.type == "cpu", mixed, diffusion.dtype)
    config = TrainingConfig(num_steps=num_steps + 1, learning_rate=1e-3)
    times = [record.seconds for record in train(objective, batches, config, accelerator=accelerator)]
    return float(np.median(np.diff(times)))  # the first one warms up


def _classifying_seconds(diffusion: FrozenDiffusion, batch_size: int, num_steps: int, precision: Timed) -> float:
    hidden = diffusion.encode_texts(["a photo of a coat", "a photo of a shirt"])
    latents = torch.zeros(1, *diffusion.latent_shape)

    def in_passes_of(size: int) -> float:
        samples = max(1, size // 2)
        config = GCPLConfig(evidence_batch_size=2 * samples, evidence_bfloat16=precision == "bfloat16")
        classifier = make_classifier(diffusion, hidden, config, seed=0)
        return _median_seconds(lambda: classifier.exact(latents, samples), num_steps, diffusion) / (2 * samples)

    seconds, usual = in_passes_of(batch_size), GCPLConfig().evidence_batch_size
    # Small models spend much of a pass on what does not grow with it; theirs are cheap enough to time as they will be.
    return in_passes_of(usual) if batch_size < usual and usual * seconds < 1 else seconds


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive (``now``), and their ``peak``, while it is active.

    Tensors that existed before are not counted; those listed in ``known`` are recognised in views of them.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # keeps them alive, so they stay known
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(self._known)

    def _forget(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for storage in (leaf.untyped_storage() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            if storage not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._forget, storage.nbytes())
        return result


def count_memory(diffusion: FrozenDiffusion) -> StepMemory:
    """Bytes, as in float32, of the weights and of every tensor that one real step and one evaluation make."""
    denoiser, text_encoder = diffusion.denoiser, diffusion.text_encoder
    weights = [tensor for part in (denoiser, text_encoder) for tensor in (*part.parameters(), *part.buffers())]
    objective, batches = _objective_and_batches(diffusion, 1)
    batch, hidden = batches(0), diffusion.encode_texts([""])
    drawn = (batch.latents, batch.noise, batch.timesteps, batch.labels, *objective.trainable_parameters())

    def peak(run: Callable[[], Any]) -> int:
        with LiveBytes([*weights, *drawn, hidden]) as live:
            run()
        return live.peak

    def step() -> None:
        objective(batch)["loss"].backward()

    training = peak(step)
    denoiser.enable_gradient_checkpointing()
    try:
        checkpointed = peak(step)
    finally:
        denoiser.disable_gradient_checkpointing()
    with torch.no_grad():
        classifying = peak(lambda: diffusion.predict_noise(batch.latents, batch.timesteps, hidden))
    held, in_vae = (sum(tensor.nbytes for tensor in part) for part in (weights, diffusion.vae.parameters()))
    factor = 32 // torch.finfo(diffusion.dtype).bits
    return StepMemory(*(factor * count for count in (held, in_vae, training, checkpointed, classifying)))
