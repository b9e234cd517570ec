"""The published training procedures in our own words: what ours are measured beside, with equal images and noises.

GCPL, as in the paper's recipe: one class after another, one image a pass, the VAE's encoder and the text encoder in
every pass, and an optimiser over the whole vocabulary, all of whose rows but the learned ones are put back after each
update. LMPT, as in the authors' program: the image tower in every step, and prompts of the full context length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.data.readers import read_images
from gcpl_lab.data.sets import MultiLabelSet
from gcpl_lab.gcpl.objectives import GCPL
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.lmpt.batches import Batch, CachedBatches, encode_captions
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.lmpt.objective import LMPT
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP, encode_token_embeddings
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import MIXED_PRECISION, checkpointed_activations, make_accelerator, wait_for_device
from gcpl_lab.training.loop import StepRecord, TrainingConfig, train

PUBLISHED, OURS, CHECKPOINTED = "published procedure", "ours", "ours, gradient checkpointing"
FLOOR = "bare denoiser (floor)"


@dataclass(frozen=True, kw_only=True)
class Material:
    """What both procedures learn from; ``config`` says vectors, template, rate and range of timesteps."""

    diffusion: FrozenDiffusion
    class_names: tuple[str, ...]
    pixels: Tensor  # (flip, image, 3, size, size): the images and their mirror images
    exemplars: Exemplars  # the same as cached moments
    config: GCPLConfig
    passes: int  # images a class and update
    seed: int = 0  # of every draw

    @classmethod
    def noise(cls, diffusion: FrozenDiffusion, batch_size: int) -> Material:
        """One class with two images of noise, in the published recipe: one vector, any timestep."""
        size, latents = diffusion.image_size, (2, 2, *diffusion.latent_shape)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand((2, 2, 3, size, size), generator=generator) * 2 - 1
        means = torch.randn(latents, generator=generator)
        exemplars = Exemplars(means, torch.full(latents, -4.0), torch.zeros(2).long())
        config = GCPLConfig(num_vectors=1, learning_rate=5e-4, timestep_range=(0.0, 1.0))
        given: dict[str, Any] = {"pixels": pixels, "exemplars": exemplars, "config": config, "passes": batch_size}
        return cls(diffusion=diffusion, class_names=("coat",), **given)

    @property
    def timestep_range(self) -> tuple[float, float]:
        """Where prompts are trained."""
        return self.config.timestep_range or self.diffusion.evidence_range

    def prompts(self) -> ClassPrompts:
        """Fresh class prompts."""
        config = self.config
        prompts = ClassPrompts(
            self.diffusion, self.class_names, num_vectors=config.num_vectors, templates=config.templates
        )
        return prompts.to(self.diffusion.device)

    def sampler(self, exemplars: Exemplars | None = None, seed: int | None = None) -> ExemplarSampler:
        """Our batches, ``passes`` images a class in each."""
        return ExemplarSampler(
            self.diffusion,
            exemplars or self.exemplars,
            batch_size=self.passes * len(self.class_names),
            timestep_range=self.timestep_range,
            seed=self.seed if seed is None else seed,
        )

    def training(self, num_steps: int) -> TrainingConfig:
        """AdamW at a constant rate, as published; no clipping, which a norm over all classes would make unequal."""
        return TrainingConfig(num_steps, self.config.learning_rate, schedule="constant", gradient_clip=0.0)


@dataclass(frozen=True)
class Draw:
    """The random numbers of one update, (sample, ...), in the order of our batch, on the CPU."""

    pixels: Tensor  # (sample, 3, size, size)
    posterior: Tensor  # noise of the VAE's posterior
    noise: Tensor  # ε
    timesteps: Tensor  # int64
    labels: Tensor  # int64


def draws_of(material: Material, num_steps: int) -> list[Draw]:
    """What our sampler draws, taken apart with moments that give it away.

    Moments without spread whose mean is the image's number show which image was drawn; moments of mean 0 and spread 1
    show the posterior noise.
    """
    flips, images = material.pixels.shape[:2]
    shape = material.exemplars.means.shape
    numbers = torch.arange(float(flips * images)).reshape(flips, images, 1, 1, 1).expand(shape)
    labels = material.exemplars.labels
    which = material.sampler(Exemplars(numbers, torch.full(shape, -torch.inf), labels))
    noises = material.sampler(Exemplars(torch.zeros(shape), torch.zeros(shape), labels))
    scale, found = material.diffusion.scale_latents(torch.ones(1)), []
    for step in range(num_steps):
        batch = which(step)
        index = (batch.latents[:, 0, 0, 0].cpu() / scale).round().long()
        found.append(
            Draw(
                material.pixels.flatten(0, 1)[index],
                noises(step).latents.cpu() / scale,
                batch.noise.cpu(),
                batch.timesteps.cpu(),
                batch.labels.cpu(),
            )
        )
    return found


def updates_as_published(material: Material, draws: Sequence[Draw], label: int) -> Iterator[Tensor]:
    """One class through the whole procedure; its vectors (V, dim) after every update."""
    diffusion, num_new = material.diffusion, material.config.num_vectors
    frozen: nn.Embedding = diffusion.text_encoder.get_input_embeddings()
    start = material.prompts().vectors[label].detach()
    table = nn.Embedding.from_pretrained(torch.cat([frozen.weight.detach().float(), start]), freeze=False)
    table.register_forward_hook(lambda _module, _inputs, output: output.to(diffusion.dtype))  # what is behind it has
    ids = _prompt_ids(material, len(frozen.weight)).to(diffusion.device)
    optimizer = material.training(len(draws)).make_optimizer([table.weight])
    for draw in draws:
        diffusion.text_encoder.set_input_embeddings(table)
        try:
            optimizer.zero_grad()
            for sample in torch.nonzero(draw.labels == label).flatten().tolist():
                _backward_as_published(material, ids, draw, slice(sample, sample + 1))
            before = table.weight[:-num_new].detach().clone()
            optimizer.step()
            with torch.no_grad():
                table.weight[:-num_new] = before
        finally:
            diffusion.text_encoder.set_input_embeddings(frozen)
        yield table.weight[-num_new:].detach()


def _prompt_ids(material: Material, first_new_id: int) -> Tensor:
    """The template with new words of the vocabulary in its gap, (1, token)."""
    diffusion, (front, behind) = material.diffusion, material.config.templates[0].split("{}")
    new = range(first_new_id, first_new_id + material.config.num_vectors)
    ids = [diffusion.start_id, *diffusion.word_ids(front), *new, *diffusion.word_ids(behind), diffusion.end_id]
    return torch.tensor([ids + [diffusion.pad_id] * (diffusion.context_length - len(ids))])


def _backward_as_published(material: Material, ids: Tensor, draw: Draw, one: slice) -> None:
    """One image through everything, from its pixels on."""
    diffusion, device = material.diffusion, material.diffusion.device
    noise, timesteps = draw.noise[one].to(device), draw.timesteps[one].to(device)
    with torch.no_grad():
        posterior = diffusion.vae.encode(draw.pixels[one].to(device, diffusion.dtype)).latent_dist
        latents = diffusion.scale_latents(posterior.mean + posterior.std * draw.posterior[one].to(device))
        noisy = diffusion.add_noise(latents, noise, timesteps)
    hidden = diffusion.text_encoder(input_ids=ids).last_hidden_state
    predicted = diffusion.predict_noise(noisy, timesteps, hidden)
    (F.mse_loss(predicted, noise) / material.passes).backward()


def updates_of(
    material: Material, prompts: ClassPrompts, num_steps: int, seed: int | None = None, accelerator: Any = None
) -> Iterator[Any]:
    """Our training, as the estimator runs it; a record an update."""
    return train(
        GCPL(material.diffusion, prompts),
        material.sampler(seed=seed),
        material.training(num_steps),
        accelerator=accelerator,
    )


def make_variants(material: Material, num_updates: int) -> dict[str, Callable[[], Any]]:
    """One update of one class each, a call at a time: published, ours, ours with checkpointing, and the bare denoiser.

    The floor is the denoiser alone on tensors that are there already, forward, and backward to the hidden states.
    """
    diffusion, device = material.diffusion, material.diffusion.device
    mixed = MIXED_PRECISION.get(str(diffusion.dtype), "no")
    accelerator = make_accelerator(device.type == "cpu", mixed, diffusion.dtype)
    published = updates_as_published(material, draws_of(material, num_updates), 0)
    plain, checkpointed = (
        updates_of(material, material.prompts(), num_updates, accelerator=accelerator) for _ in range(2)
    )
    batch = material.sampler()(0)
    noisy = diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*material.prompts()())[batch.labels]

    def run_floor() -> None:
        conditioning = hidden.clone().requires_grad_()
        with accelerator.autocast():
            answer = diffusion.predict_noise(noisy, batch.timesteps, conditioning)
        (answer - batch.noise).square().mean().backward()

    def waiting(run: Callable[[], Any], around: Callable[[], Any] = nullcontext) -> Callable[[], None]:
        def timed() -> None:
            with around():
                run()
            wait_for_device(device)

        return timed

    return {
        PUBLISHED: waiting(lambda: next(published), accelerator.autocast),
        OURS: waiting(lambda: next(plain)),
        CHECKPOINTED: waiting(lambda: next(checkpointed), lambda: checkpointed_activations(diffusion.denoiser)),
        FLOOR: waiting(run_floor),
    }


class PublishedLMPT(LMPT):
    """LMPT's loss with the image tower in every step and prompts of the full context length."""

    def __init__(self, clip: FrozenCLIP, prompts: ContextPrompts, **settings: Any) -> None:
        """As :class:`LMPT`."""
        super().__init__(with_whole_context(clip), prompts, **settings)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Of (pixels (image, 3, size, size), targets, captions, has_caption)."""
        pixels, *rest = batch
        encoded = self.clip.model.encode_image(pixels.to(self.clip.device, self.clip.dtype))
        return super().__call__(Batch(F.normalize(encoded.float(), dim=-1), *rest))


def with_whole_context(clip: FrozenCLIP) -> FrozenCLIP:
    """The same CLIP, whose text tower runs on all positions of the context, with autograd through each of them."""

    def encode_prompts(ids: Tensor, embeddings: Tensor) -> Tensor:
        missing = clip.context_length - ids.shape[1]
        padded = F.pad(ids, (0, missing), value=clip.pad_id)
        whole = torch.cat([embeddings, clip.embedding_table[padded[:, ids.shape[1] :]]], dim=1)
        ends = (padded == clip.end_id).int().argmax(dim=1)
        return F.normalize(encode_token_embeddings(clip.text_tower, whole, ends)[1].float(), dim=-1)

    whole = copy.copy(clip)
    whole.encode_prompts = encode_prompts  # type: ignore[method-assign, assignment]
    return whole


def lmpt_batches(
    clip: FrozenCLIP, data: MultiLabelSet, views: Tensor, config: LMPTConfig
) -> tuple[CachedBatches, Callable[[int], tuple[Tensor, ...]]]:
    """Batches of cached features (view, image, feature), and of the same images in the same order as pixels."""
    targets = torch.from_numpy(data.targets).float()
    encoded = encode_captions(clip, data.captions, config.reading)
    numbers = torch.arange(float(len(data)))[None, :, None]
    cached, order = (CachedBatches(each, targets, *encoded, config.batch_size, seed=0) for each in (views, numbers))

    def published(step: int) -> tuple[Tensor, ...]:
        chosen = order(step)
        images = read_images([data.images[int(i)] for i in chosen.features[:, 0]])
        return torch.stack([clip.transform(image) for image in images]), *chosen[1:]

    return cached, published


def lmpt_objective(kind: type[LMPT], clip: FrozenCLIP, data: MultiLabelSet, config: LMPTConfig) -> LMPT:
    """A fresh objective with the settings of ``config``, on CLIP's own scale."""
    model = LMPTClassifier(clip=clip, **config.as_dict() | {"scale": "clip"})
    model.classes_, model.class_counts_ = np.array(data.class_names), data.class_counts()
    model.num_train_ = len(data)
    return model.new_objective(kind)


def lmpt_updates(
    objective: LMPT, batch_at: Callable[[int], Any], num_steps: int, config: LMPTConfig
) -> Iterator[StepRecord]:
    """A record an update, at a constant rate."""
    training = TrainingConfig(num_steps=num_steps, learning_rate=config.learning_rate, schedule="constant")
    mixed = MIXED_PRECISION.get(str(objective.clip.dtype), "no")
    accelerator = make_accelerator(objective.clip.device.type == "cpu", mixed, objective.clip.dtype)
    return train(objective, batch_at, training, accelerator=accelerator)
