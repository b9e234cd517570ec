"""Rivals that a sceptic asks for, each against a value worked by hand or a reference."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from gcpl_lab.baselines import features
from gcpl_lab.baselines.base import BASELINES, MULTILABEL_BASELINES, FeatureSupport, LatentSupport
from gcpl_lab.baselines.clap import CLAP
from gcpl_lab.baselines.denoiser import DenoiserProbe, denoiser_blocks, denoiser_features
from gcpl_lab.baselines.features import LinearProbe
from gcpl_lab.baselines.gda import GDA, WEIGHTS
from gcpl_lab.baselines.lp_plus_plus import FIRST_BLEND, LPPlusPlus
from gcpl_lab.baselines.multilabel import OneVsRestProbe
from gcpl_lab.baselines.multilabel_text import standardise_images
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP

NAMES = ["coat", "bag", "boot"]


class MadeUpCLIP:
    """Class names lie on the first axes."""

    logit_scale = 10.0

    def encode_texts(self, texts: list[str]) -> Tensor:
        return torch.eye(8)[[NAMES.index(text.removeprefix("a photo of a ")) for text in texts]]


def support(shots: int, spread: float = 0.3, seed: int = 0, noise_seed: int = 0, turned: bool = True) -> FeatureSupport:
    """Unit features around axes 1, 2, 0 (the names of other classes) or, not turned, around those of their own."""
    labels = torch.arange(3).repeat_interleave(shots)
    noise = torch.randn(2, len(labels), 8, generator=torch.Generator().manual_seed(noise_seed))
    views = F.normalize(torch.eye(8)[(labels + turned) % 3] + spread * noise, dim=-1)
    clip: Any = MadeUpCLIP()
    return FeatureSupport(class_names=NAMES, labels=labels, seed=seed, clip=clip, features=views)


def fit(name: str, given: Any) -> Any:
    return BASELINES[name].target(given, **BASELINES[name].defaults)


def names_of(given: FeatureSupport) -> ZeroShotCLIP:
    return ZeroShotCLIP(given.clip, given.class_names)


@pytest.mark.parametrize("name", ["gda", "lp_plus_plus", "clap", "linear_probe"])
@pytest.mark.parametrize("shots", [1, 2, 16])
def test_rivals_learn_what_names_get_wrong_within_a_second(name: str, shots: int) -> None:
    given, tests = support(shots, 0.15), support(20, 0.15, noise_seed=1)
    model = fit(name, given)  # libraries are loaded when they are first used
    began = time.process_time()
    again = fit(name, given)
    assert time.process_time() - began < 1
    scores = model.scores(tests.features[0])
    assert scores.dtype == torch.float32
    right = (scores.argmax(1) == tests.labels).float().mean()
    assert float((names_of(given).scores(tests.features[0]).argmax(1) == tests.labels).float().mean()) == 0
    if shots > 1 or name == "linear_probe":
        assert float(right) > 0.9
    assert torch.equal(again.scores(tests.features[0]), scores)


def test_gda_by_hand() -> None:
    """Four samples in the plane, two classes, no names: mean (±1, 0), scatter diag(0, 4), trace / (N − 1) = 4/3."""
    names = ZeroShotCLIP.__new__(ZeroShotCLIP)
    names.text_features, names.scale = torch.zeros(2, 2), 1.0
    seen = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]])
    model = GDA(names, seen, torch.tensor([0, 0, 1, 1]), 3.0)
    # Σ⁻¹ = 2 · diag(3/4, 3/16); Σ⁻¹μ = (±1.5, 0); −½·1.5 − log 2
    torch.testing.assert_close(model.directions, torch.tensor([[1.5, 0.0], [-1.5, 0.0]]).double())
    found = model.scores(torch.tensor([[2.0, 5.0]]))
    expected = 3 * np.array([[3.0, -3.0]]) - 3 * (0.75 + np.log(2))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_gda_without_shrinkage_parts_as_linear_discriminant_analysis() -> None:
    """With many samples the trace hardly counts: the same decisions as scikit-learn's shared covariance."""
    given, tests = support(400, 0.5), support(100, 0.5, noise_seed=1)
    model = GDA(names_of(given), given.features, given.labels, 1.0)
    flat, labels = given.features.flatten(0, 1).numpy(), given.labels.repeat(2).numpy()
    reference = LinearDiscriminantAnalysis(priors=[1 / 3] * 3).fit(flat, labels)
    same = model.discriminant(tests.features[0]).argmax(1).numpy() == reference.predict(tests.features[0].numpy())
    assert same.mean() > 0.98


def test_gda_weighs_the_names_by_what_is_held_out() -> None:
    assert fit("gda", support(8)).weight in WEIGHTS[3:]  # names are wrong: Gaussians count
    trusted = support(3, 2.0, turned=False)
    trusted.features[...] = F.normalize(torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(3)), dim=-1)
    trusted.features[:, :, :3] += 3 * torch.eye(3)[trusted.labels]
    assert fit("gda", replace(trusted, features=F.normalize(trusted.features, dim=-1))).weight <= 1


def test_lp_plus_plus_starts_from_sums_and_mean_cosines() -> None:
    text, seen = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    model = LPPlusPlus(text, seen, torch.tensor([0, 0, 1]), num_epochs=0)
    assert model.weights.tolist() == [pytest.approx([1.6, 0.8]), [0.0, 1.0]]
    assert model.blend.tolist() == pytest.approx([FIRST_BLEND * (0.8 + 1.0) / 2] * 2)
    trained = LPPlusPlus(text, seen, torch.tensor([0, 0, 1]))
    loss = [F.cross_entropy(each.scores(seen), torch.tensor([0, 0, 1])) for each in (model, trained)]
    assert float(loss[1]) < float(loss[0])


def test_lp_plus_plus_blends_every_tenth_epoch() -> None:
    given = support(4)
    text, seen, labels = names_of(given).text_features, given.features[0], given.labels
    blends = [LPPlusPlus(text, seen, labels, num_epochs=epochs).blend.tolist() for epochs in (0, 9, 10, 19, 20)]
    assert blends[0] == blends[1] != blends[2] == blends[3] != blends[4]


def test_clap_by_hand() -> None:
    given = replace(support(1), features=F.normalize(torch.tensor([[[1.0, 1, 0], [0, 1, 0], [0, 1, 1]]]), dim=-1))
    names = names_of(given)
    names.text_features = torch.eye(3)
    model = CLAP(names, given.features[0], given.labels)
    scores = 10 * given.features[0]  # of the first class: two equal names, and none
    own = torch.tensor([float(np.exp(s[c] - logsumexp(s))) for c, s in enumerate(scores.numpy())])
    torch.testing.assert_close(model.firmness, own)
    with torch.no_grad():
        model.prototypes[0] += torch.tensor([0.0, 0.0, 2.0])
    found = model((given.features[0], given.labels))
    assert float(found["penalty"]) == pytest.approx(float(own[0]) * 4 / 3)
    logits = 10 * given.features[0] @ F.normalize(model.prototypes.detach(), dim=1).T
    expected = F.cross_entropy(logits, given.labels) + found["penalty"]
    torch.testing.assert_close(found["loss"].detach(), expected)


@pytest.mark.parametrize(("best", "chosen"), [(3.0, 1.0), (2e-3, 1e-3), (5e4, 1e5), (1e-9, 1e-4), (1e9, 1e6)])
def test_the_search_for_a_strength_goes_on_beyond_its_ends(
    monkeypatch: pytest.MonkeyPatch, best: float, chosen: float
) -> None:
    def loss(x: Any, y: Any, folds: Any, strength: float) -> float:
        return float(abs(np.log(strength / best)))

    monkeypatch.setattr(features, "held_out_loss", loss)
    given = support(4)
    assert LinearProbe(given.features, given.labels)._model.C == pytest.approx(chosen)


def test_features_of_the_denoiser_are_its_blocks_answers(diffusion: Any) -> None:
    latents = torch.randn(3, *diffusion.latent_shape, generator=torch.Generator().manual_seed(0))
    blocks, before = denoiser_blocks(diffusion.denoiser), diffusion.checksum()
    assert list(blocks) == ["down.0", "down.1", "middle.0", "up.0", "up.1"]
    found = denoiser_features(diffusion, latents, 0.2, seed=4)
    assert found.keys() == blocks.keys()
    kept: list[Tensor] = []
    handle = blocks["middle.0"].register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    noise = torch.randn(diffusion.latent_shape, generator=torch.Generator().manual_seed(4)).expand_as(latents)
    timesteps = torch.full((3,), diffusion.num_timesteps // 5)
    noisy = diffusion.add_noise(latents, noise, timesteps)
    with torch.no_grad():
        diffusion.predict_noise(noisy, timesteps, diffusion.encode_texts([""] * 3))
    handle.remove()
    torch.testing.assert_close(found["middle.0"], F.adaptive_avg_pool2d(kept[0], 2).flatten(1))
    assert not torch.equal(found["middle.0"], denoiser_features(diffusion, latents, 0.4, seed=4)["middle.0"])
    assert diffusion.checksum() == before


@pytest.mark.parametrize("shots", [1, 4])
def test_a_probe_on_the_denoiser_chooses_on_exemplars_and_parts_what_differs(diffusion: Any, shots: int) -> None:
    def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(3).repeat_interleave(count)
        noise = torch.randn(2, len(labels), *diffusion.latent_shape, generator=torch.Generator().manual_seed(seed))
        pattern = torch.randn(3, *diffusion.latent_shape, generator=torch.Generator().manual_seed(9))
        return pattern[labels] + 0.1 * noise, labels

    (latents, labels), (others, truth) = draw(shots, 0), draw(5, 1)
    model = fit("denoiser_probe", LatentSupport(class_names=NAMES, labels=labels, diffusion=diffusion, latents=latents))
    assert torch.equal(model.scores(others[0]).argmax(1), truth)
    assert (model.share, model.block) == (0.2, "middle.0") if shots == 1 else isinstance(model, DenoiserProbe)


def test_standardised_scores_by_hand() -> None:
    # mean 2 and deviation √(2/3); an image that is like every name scores as one that is like none
    expected = np.array([-1.0, 0.0, 1.0]) / np.sqrt(2 / 3)
    for scores in ([1.0, 2.0, 3.0], [101.0, 102.0, 103.0], [10.0, 20.0, 30.0]):
        np.testing.assert_allclose(standardise_images(torch.tensor([scores])).numpy()[0], expected, rtol=1e-6)
    assert standardise_images(torch.ones(1, 3)).tolist() == [[0.0, 0.0, 0.0]]


def test_a_probe_with_names_is_logistic_regression_beside_the_cosine() -> None:
    given = support(12, 0.5, turned=False)
    targets, names = F.one_hot(given.labels, 3).numpy(), names_of(given).text_features
    plain = OneVsRestProbe(given.features, targets, 1.0)
    tests = support(30, 0.5, noise_seed=1, turned=False)
    none = OneVsRestProbe(given.features, targets, 1.0, names, blend=0.0)
    torch.testing.assert_close(none.scores(tests.features[0]), plain.scores(tests.features[0]), atol=1e-3, rtol=1e-3)
    blended = OneVsRestProbe(given.features, targets, 1e-3, names, blend=100.0)
    # The penalty leaves the features nothing: what counts is the cosine to the class's own name.
    directions = F.normalize(torch.from_numpy(blended.weights.T).float(), dim=1)
    assert float((directions * names).sum(1).min()) > 0.99


def test_multilabel_rivals_are_registered_with_what_they_choose() -> None:
    assert list(MULTILABEL_BASELINES) == ["zero_shot_clip", "linear_probe", "sparc", "text_probe"]
    given = replace(support(20, 0.5), labels=F.one_hot(support(20, 0.5).labels, 3))
    entry = MULTILABEL_BASELINES["text_probe"]
    settings = entry.facts["choose"](given)
    assert settings.keys() == {"strength", "blend"}
    assert entry.target(given, **settings).scores(given.features[0]).shape == (60, 3)
    assert MULTILABEL_BASELINES["sparc"].target(given).scores(given.features[0]).mean(1).abs().max() < 1e-5
