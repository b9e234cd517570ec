"""Training class prompts: the published procedure beside ours, with equal images, noises and updates.

    python benchmarks/gcpl_train.py                # prints a table, writes benchmarks/results/gcpl_train.json

Published, as in the paper's recipe: one class after another, one image a pass and four passes an update, the VAE's
encoder and the text encoder in every pass, and an optimiser over the whole vocabulary, all of whose rows but the
learned ones are put back after each update. Ours: every class in every batch, the encoder's moments cached, one
encoding of each class in the batch, the class vectors alone in the optimiser, and gcpl_lab/fast as the estimator has
it. Every image, mirror image, posterior sample, noise and timestep is the same in both; so are optimiser and rate.
AdamW does not mind that our gradients are smaller by the number of classes, so both must end in the same place: their
losses on held-out images and fixed noises are compared before anything is timed. The published procedure gets its
random numbers ready made.

The floor is the bare denoiser on the same batches: forward, and backward to its conditioning. Our updates are timed
from the second on; what is done once (moments, accelerator, optimiser) is reported beside them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import (
    alternate,
    benchmark_options,
    check_aim,
    make_result,
    make_rows,
    paired_ratio,
    publish,
    time_call,
    time_updates,
)

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.experiments.published import Draw, Material, draws_of, updates_as_published, updates_of
from gcpl_lab.gcpl.classifier import spaced_timesteps
from gcpl_lab.gcpl.objectives import denoising_loss
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.models.diffusion import FrozenDiffusion

PASSES_AN_UPDATE = 4
"""Images a class and update; the published procedure accumulates their gradients one by one."""

PUBLISHED, OURS, FLOOR = "published procedure", "all classes together", "bare denoiser (floor)"
DRAWING, TEXT = "of which drawing batches", "of which text encoder"
LEAST_SPEED_UP, MOST_ABOVE_FLOOR = 4.0, 1.10


@dataclass(frozen=True, kw_only=True)
class Bundled(Material):
    """Bundled images, some of which neither procedure learns from.

    Attributes:
        held_out: Those.
        caching_seconds: What the moments took, once.
    """

    held_out: Exemplars
    caching_seconds: float

    @classmethod
    def load(cls, preset: str, shots: int, num_held_out: int) -> Bundled:
        """Read ``shots`` bundled images a class, and as many others as asked for."""
        diffusion, data = FrozenDiffusion.load(preset), load_fashion("support")
        chosen = draw_episode(data, shots + num_held_out, seed=0)
        place = np.tile(np.arange(shots + num_held_out), len(data.class_names))  # an episode goes class by class
        parts = [chosen[place < shots], chosen[place >= shots]]
        pixels = [diffusion.preprocess(read_images([data.images[i] for i in part])) for part in parts]
        began: list[Exemplars] = []
        caching = time_call(lambda: began.append(Exemplars.encode(diffusion, pixels[0], data.labels[parts[0]])))
        return cls(
            diffusion=diffusion,
            class_names=tuple(data.class_names),
            pixels=torch.stack([pixels[0], pixels[0].flip(-1)]),
            exemplars=began[0],
            held_out=Exemplars.encode(diffusion, pixels[1], data.labels[parts[1]]),
            caching_seconds=caching,
            config=GCPLConfig(preset=preset),
            passes=PASSES_AN_UPDATE,
        )

    @torch.no_grad()
    def held_out_loss(self, prompts: ClassPrompts, num_samples: int = 8) -> float:
        """On images, evenly spaced timesteps and noises that are the same for every procedure."""
        diffusion, labels = self.diffusion, self.held_out.labels
        latents = diffusion.scale_latents(self.held_out.means[0]).repeat_interleave(num_samples, dim=0)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(7))
        timesteps = spaced_timesteps(diffusion.num_timesteps, num_samples, self.timestep_range).repeat(len(labels))
        hidden = diffusion.encode_prompts(*prompts())[labels.repeat_interleave(num_samples)]
        predicted = diffusion.predict_noise(diffusion.add_noise(latents, noise, timesteps), timesteps, hidden)
        return float(denoising_loss(predicted.cpu(), noise))


def train_as_published(material: Bundled, draws: Sequence[Draw]) -> ClassPrompts:
    """One class after another through the whole procedure; returns what was learned."""
    prompts = material.prompts()
    for label in range(len(material.class_names)):
        for learned in updates_as_published(material, draws, label):
            with torch.no_grad():
                prompts.vectors[label] = learned
    return prompts


def train_together(material: Bundled, num_steps: int, seed: int | None = None) -> ClassPrompts:
    """What our training learns."""
    prompts = material.prompts()
    deque(updates_of(material, prompts, num_steps, seed), maxlen=0)
    return prompts


def make_floor(material: Bundled, num_steps: int) -> Callable[[], None]:
    """The bare denoiser on the batches of some updates: forward, and backward to the conditioning."""
    diffusion, sampler = material.diffusion, material.sampler()
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*material.prompts()())
    batches = [sampler(step) for step in range(num_steps)]
    noisy = [diffusion.add_noise(batch.latents, batch.noise, batch.timesteps) for batch in batches]

    def run() -> None:
        for batch, inputs in zip(batches, noisy, strict=True):
            conditioning = hidden[batch.labels].requires_grad_()
            answer = diffusion.denoiser(inputs, batch.timesteps, conditioning, return_dict=False)[0]
            F.mse_loss(answer, batch.noise).backward()

    return run


def make_parts(material: Bundled, num_steps: int) -> dict[str, Callable[[], None]]:
    """What our updates spend beside the denoiser."""
    sampler, prompts = material.sampler(), material.prompts()

    def draw() -> None:
        for step in range(num_steps):
            sampler(step)

    def encode() -> None:
        for _ in range(num_steps):
            material.diffusion.encode_prompts(*prompts()).sum().backward()
            prompts.vectors.grad = None

    return {DRAWING: draw, TEXT: encode}


def check_equal(material: Bundled, num_steps: int, num_seeds: int) -> dict[str, Any]:
    """Train both ways and compare losses on held-out images.

    Raises:
        SystemExit: They differ by more than our own losses do between seeds.
    """
    losses = {
        "start": material.held_out_loss(material.prompts()),
        "published": material.held_out_loss(train_as_published(material, draws_of(material, num_steps))),
        "ours": material.held_out_loss(train_together(material, num_steps)),
    }
    others = [material.held_out_loss(train_together(material, num_steps, seed)) for seed in range(1, num_seeds)]
    noise = float(np.std([losses["ours"], *others], ddof=1))
    apart = abs(losses["ours"] - losses["published"])
    if not apart <= noise:
        raise SystemExit(
            f"after {num_steps} updates the published procedure ends at a loss of {losses['published']:.6f} and ours "
            f"at {losses['ours']:.6f}; expected a difference of at most {noise:.6f}, ours between seeds"
        )
    return {"updates": num_steps, "losses": losses, "other_seeds": others, "apart": apart, "noise_of_seeds": noise}


def measure(
    preset: str, *, shots: int, check_steps: int, num_steps: int, num_seeds: int, repeats: int, clock: str = "wall"
) -> dict[str, Any]:
    """Check that both procedures end alike, then time them in turn."""
    material = Bundled.load(preset, shots, num_held_out=4)
    check = check_equal(material, check_steps, num_seeds)
    draws = draws_of(material, num_steps)
    beginnings: list[float] = []

    def run_published() -> None:
        train_as_published(material, draws)

    variants: dict[str, Callable[[], Any]] = {
        PUBLISHED: run_published,
        OURS: lambda: time_updates(updates_of(material, material.prompts(), num_steps + 1), clock, beginnings),
        FLOOR: make_floor(material, num_steps),
        **make_parts(material, num_steps),
    }
    seconds = alternate(variants, repeats, clock=clock)
    evaluations = num_steps * PASSES_AN_UPDATE * len(material.class_names)
    counted = dict.fromkeys(variants.keys() - {DRAWING, TEXT}, evaluations)
    rows = make_rows(seconds, published=PUBLISHED, floor=FLOOR, evaluations=counted, parts=(DRAWING, TEXT))
    speed_up, above = paired_ratio(seconds[PUBLISHED], seconds[OURS]), paired_ratio(seconds[OURS], seconds[FLOOR])
    # What caching and setting up cost is spread over as many updates as a training with default settings has.
    once = {
        "caching": material.caching_seconds,
        "setting_up": max(0.0, float(np.median(beginnings) - np.median(seconds[OURS]) / num_steps)),
    }
    share = sum(once.values()) * num_steps / material.config.num_steps
    with_caching = paired_ratio(seconds[PUBLISHED], np.array(seconds[OURS]) + share)
    aims = [
        check_aim("times faster than the published procedure", speed_up, least=LEAST_SPEED_UP),
        check_aim("the same with caching and setting up counted", with_caching, least=LEAST_SPEED_UP),
        check_aim("time of the bare denoiser", above, most=MOST_ABOVE_FLOOR),
    ]
    return make_result(
        "gcpl_train",
        rows,
        repeats,
        clock=clock,
        preset=preset,
        classes=len(material.class_names),
        shots=shots,
        updates=num_steps,
        num_vectors=material.config.num_vectors,
        vocabulary=len(material.diffusion.embedding_table),
        context_length=material.diffusion.context_length,
        once=once,
        check=check,
        aims=aims,
    )


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "gcpl_train")
    parser.add_argument("--shots", type=int, default=16, help="images a class")
    parser.add_argument("--check-steps", type=int, default=12, help="updates before the losses are compared")
    parser.add_argument("--steps", type=int, default=3, help="updates that are timed in one go")
    parser.add_argument("--seeds", type=int, default=4, help="seeds that say what noise in the final loss is")
    options = parser.parse_args()
    result = measure(
        options.preset,
        shots=options.shots,
        check_steps=options.check_steps,
        num_steps=options.steps,
        num_seeds=options.seeds,
        repeats=options.repeats,
        clock=options.clock,
    )
    title = f"{result['updates']} updates of {result['classes']} class prompts, {PASSES_AN_UPDATE} images a class"
    publish(result, title, options.output)


if __name__ == "__main__":
    main()
