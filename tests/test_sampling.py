"""Exemplars and their noisy batches: what the denoiser is shown, drawn from seed and step alone."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler, NoisyBatch


def make_exemplars(spread: float = -40.0) -> Exemplars:
    """Twelve latents that tell their image (its number) and side (plus 100 when mirrored); no posterior spread."""
    means = torch.arange(12.0)[None, :, None, None, None].expand(2, 12, 4, 8, 8).clone()
    means[1] += 100
    return Exemplars(means, torch.full_like(means, spread), torch.arange(3).repeat_interleave(4))


def sampler(diffusion: Any, **settings: Any) -> ExemplarSampler:
    return ExemplarSampler(diffusion, **({"exemplars": make_exemplars(), "batch_size": 6} | settings))


def shown(diffusion: Any, batch: NoisyBatch) -> tuple[np.ndarray, np.ndarray]:
    """Which image, and whether mirrored, each sample of a batch shows."""
    values = (batch.latents[:, 0, 0, 0] / diffusion.vae.config.scaling_factor).round().int().numpy()
    return values % 100, values // 100


def equal(first: NoisyBatch, second: NoisyBatch) -> bool:
    names = ("latents", "noise", "timesteps", "labels")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def test_exemplars_are_the_images_and_their_mirror_images(diffusion: Any) -> None:
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exemplars = Exemplars.encode(diffusion, pixels, [0, 1, 1])
    for view, expected in enumerate((pixels, pixels.flip(-1))):
        found = exemplars.means[view], exemplars.log_variances[view]
        assert all(map(torch.equal, found, diffusion.encode_moments(expected)))
    some = exemplars.subset(np.array([2, 0]))
    assert some.labels.tolist() == [1, 0]
    assert torch.equal(some.means, exemplars.means[:, [2, 0]])
    with pytest.raises(DataError, match="3 images and 2 labels"):
        Exemplars.encode(diffusion, pixels, [0, 1])


def test_a_batch_depends_on_seed_and_step_alone(diffusion: Any) -> None:
    one, other = sampler(diffusion), sampler(diffusion)
    before = torch.get_rng_state()
    other(0), other(1)  # what was drawn before does not matter
    assert torch.equal(torch.get_rng_state(), before)  # and global randomness is left alone
    assert equal(one(5), other(5))
    assert not equal(one(5), one(6))
    assert not equal(one(5), sampler(diffusion, seed=1)(5))


def test_classes_and_images_are_balanced(diffusion: Any) -> None:
    """Groups hold different classes; labels belong to the images, and every image comes."""
    seen, batches = set[int](), [sampler(diffusion, batch_size=9)(step) for step in range(40)]
    for batch in batches:
        images, _ = shown(diffusion, batch)
        assert (images // 4).tolist() == batch.labels.tolist()
        assert [sorted(group.tolist()) for group in batch.labels.split(batch.group_size)] == [[0, 1, 2]] * 3
        seen |= set(images.tolist())
    assert seen == set(range(12))
    small = [sampler(diffusion, batch_size=2)(step) for step in range(200)]
    assert all(batch.group_size == 2 and len(set(batch.labels.tolist())) == 2 for batch in small)
    assert torch.cat([batch.labels for batch in small]).bincount().min() > 100  # 133 expected, deviation below 10


@pytest.mark.parametrize(("flip", "low", "high"), [(False, 0, 0), (True, 0.35, 0.65)])
def test_half_of_the_images_are_mirrored_unless_told(diffusion: Any, flip: bool, low: float, high: float) -> None:
    share = np.mean([shown(diffusion, sampler(diffusion, flip=flip)(step))[1] for step in range(60)])
    assert low <= share <= high  # 360 draws, standard deviation 0.026


def test_noise_is_normal_of_its_place_alone_and_the_posterior_is_sampled(diffusion: Any) -> None:
    draws = sampler(diffusion, exemplars=make_exemplars(spread=2 * np.log(0.5)), batch_size=12)
    batches = [draws(step) for step in range(10)]
    assert torch.equal(sampler(diffusion, batch_size=3)(7).noise, batches[7].noise[:3])
    flat = batches[7].noise.flatten(1)
    assert float((flat @ flat.T / flat.shape[1]).fill_diagonal_(0).abs().max()) < 0.3  # independent of each other
    noise = torch.stack([batch.noise for batch in batches])
    assert abs(float(noise.mean())) < 0.03  # 30720 values: standard error 0.006
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)
    latents = torch.cat([batch.latents / diffusion.vae.config.scaling_factor for batch in batches])
    assert float((latents - latents.mean((1, 2, 3), keepdim=True)).std()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.5, 1.0), (0.25, 0.75), (0.999, 1.0)])
def test_timesteps_stay_in_their_range(diffusion: Any, low: float, high: float) -> None:
    draws = sampler(diffusion, batch_size=60, timestep_range=(low, high))
    steps = torch.cat([draws(step).timesteps for step in range(8)])
    assert int(low * 1000) <= int(steps.min()) <= int(steps.max()) < int(high * 1000)
    assert float(steps.float().mean()) == pytest.approx(500 * (low + high), abs=max(1.0, 100 * (high - low)))


def test_several_samples_show_one_image_and_steps_go_through_the_templates(diffusion: Any) -> None:
    draws = sampler(diffusion, batch_size=4, num_samples=3, num_templates=3)
    batch = draws(0)
    for values in shown(diffusion, batch):
        assert (values.reshape(4, 3) == values.reshape(4, 3)[:, :1]).all()
    assert (batch.num_samples, len(batch)) == (3, 12)
    assert len(batch.timesteps.unique()) > 4
    assert not torch.equal(batch.noise[0], batch.noise[1])
    assert [draws(step).template for step in range(5)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    "settings", [{"timestep_range": (0.5, 0.5)}, {"timestep_range": (0.0, 1.5)}, {"batch_size": 0}, {"num_samples": 0}]
)
def test_wrong_sampler_settings_are_named(diffusion: Any, settings: dict[str, Any]) -> None:
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}.* {re.escape(str(value))}"):
        sampler(diffusion, **settings)
