"""MC-TI, directional tokens, CoMPLe on the same image, NoOp and TiF's weights, against closed forms and by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import erf

from gcpl_lab.errors import DataError
from gcpl_lab.experiments.tif import NUM_COARSER, smallest_class_distance, timestep_weights
from gcpl_lab.gcpl.classifier import DiffusionClassifier
from gcpl_lab.gcpl.comple_same_image import CoMPLeSameImage, same_image_loss
from gcpl_lab.gcpl.directional import Directional
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.gcpl.mc_ti import MCTI, token_contrast
from gcpl_lab.gcpl.noop import NoiseSampler, NoOp, TunedClassifier, noise_loss
from gcpl_lab.gcpl.objectives import GCPL
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler, NoisyBatch
from gcpl_lab.training.loop import TrainingConfig, train
from tests.made_up import randn

NAMES = ["coat", "ankle boot", "bag"]


@pytest.fixture
def prompts(diffusion: Any) -> ClassPrompts:
    return ClassPrompts(diffusion, NAMES, num_vectors=2)


def exemplars_of(diffusion: Any) -> Exemplars:
    means = randn(2, 6, *diffusion.latent_shape)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    features = F.normalize(randn(2, 6, 128, seed=5), dim=-1)
    return Exemplars(means, torch.full_like(means, -4.0), labels, features=features)


def draw(diffusion: Any, step: int = 0, **settings: Any) -> NoisyBatch:
    return ExemplarSampler(diffusion, exemplars_of(diffusion), **{"batch_size": 6, **settings})(step)


def test_token_contrast_by_hand() -> None:
    # Prompt 1 lies on its own image, prompt 2 half way: cosines (1, 0) and (√½, √½).
    texts, images = torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5]]), torch.eye(2)
    expected = (np.log(1 + np.exp(-3.0)) + np.log(2)) / 2
    assert float(token_contrast(texts, images, 3.0)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="one of each a class"):
        token_contrast(texts, images[:1], 1.0)


def test_mc_ti_is_gcpl_plus_the_contrast_within_groups(diffusion: Any, clip: Any, prompts: ClassPrompts) -> None:
    batch = draw(diffusion)
    kept = exemplars_of(diffusion).features
    assert kept is not None
    assert batch.features is not None
    assert all(any(torch.equal(row, one) for one in kept.flatten(0, 1)) for row in batch.features)
    found = MCTI(diffusion, prompts, token_weight=0.5, token_scale=7.0, clip=clip)(batch)
    with torch.no_grad():
        texts = clip.encode_prompts(*prompts())[batch.labels]
        parts = [token_contrast(texts[part], batch.features[part], 7.0) for part in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(found["contrast"], (parts[0] + parts[1]) / 2)
    torch.testing.assert_close(found["own"], GCPL(diffusion, prompts)(batch)["loss"].detach())
    torch.testing.assert_close(found["loss"].detach(), found["own"] + 0.5 * found["contrast"])
    with pytest.raises(DataError, match="batches with CLIP's features"):
        MCTI(diffusion, prompts, clip=clip)(replace(batch, features=None))
    with pytest.raises(DataError, match="has no CLIP beside it"):
        MCTI(diffusion, prompts)


def test_a_learned_token_has_the_text_feature_of_its_word(clip: Any, prompts: ClassPrompts) -> None:
    """CLIP's own tower reads the prompts that were made for the denoiser's."""
    found = clip.encode_prompts(*prompts(torch.tensor([1])))
    torch.testing.assert_close(found, clip.encode_texts(["a photo of a ankle boot"]), atol=1e-5, rtol=1e-4)


def test_directional_tokens_keep_the_norm_of_a_word(diffusion: Any, prompts: ClassPrompts) -> None:
    norm = float(diffusion.embedding_table.float().norm(dim=1).mean())
    objective, start = Directional(diffusion, prompts, pull=0.0), F.normalize(prompts.vectors.detach(), dim=-1)
    torch.testing.assert_close(prompts.vectors.norm(dim=-1), torch.full((3, 2), norm))
    objective(draw(diffusion))["loss"].backward()
    gradient, radius = prompts.vectors.grad, prompts.vectors.detach()
    assert gradient is not None
    assert float((gradient * radius).sum(-1).abs().max()) < 1e-6 * norm
    assert float(gradient.norm()) > 0
    records = list(train(objective, lambda step: draw(diffusion, step), TrainingConfig(4, 0.5)))
    objective.end()
    torch.testing.assert_close(prompts.vectors.norm(dim=-1), torch.full((3, 2), norm))
    assert records[-1].values["likeness"] < records[0].values["likeness"] == pytest.approx(1)
    assert not torch.allclose(F.normalize(prompts.vectors, dim=-1), start)
    prompts.vectors.grad = None
    (prompts.vectors * radius).sum().backward()  # the next objective's gradients are its own
    torch.testing.assert_close(prompts.vectors.grad, radius)


def test_the_pull_holds_directions_back(diffusion: Any) -> None:
    def likeness(pull: float) -> float:
        objective = Directional(diffusion, ClassPrompts(diffusion, NAMES, num_vectors=2), pull)
        steps = train(objective, lambda step: draw(diffusion, step), TrainingConfig(4, 0.5))
        return list(steps)[-1].values["likeness"]

    assert likeness(100.0) > likeness(0.0)


def test_same_image_loss_by_hand() -> None:
    errors = torch.tensor([[[1.0, 3.0, 5.0]], [[2.0, 2.0, 6.0]]])
    assert float(same_image_loss(errors, 0.5)) == 1.5 - 0.5 * 4.0
    assert float(same_image_loss(errors, 0.0)) == 1.5
    for wrong, message in ((errors[..., :1], "two candidates"), (errors, "contrast_weight is -1")):
        with pytest.raises(ValueError, match=message):
            same_image_loss(wrong, -1.0 if wrong is errors else 0.5)


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (1 / 3, 1 / 3, 1 / 3)])
def test_the_expectation_of_the_same_image_contrast(shares: tuple[float, float, float]) -> None:
    """Free predictions at one latent of three classes in given shares end where the closed form says."""
    weight, noises = 0.3, randn(3, 4)
    for case in (noises, noises[:1].expand(3, 4)):  # told apart, and not
        predicted = torch.zeros(3, 4, requires_grad=True)
        optimizer = torch.optim.SGD([predicted], lr=4.0)
        for _ in range(400):
            optimizer.zero_grad()
            errors = (case[:, None] - predicted[None]).square().mean(-1)  # (class shown, prompt)
            order = [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
            parts = [
                s * same_image_loss(e[o][None, None], weight) for s, e, o in zip(shares, errors, order, strict=True)
            ]
            torch.stack(parts).sum().backward()
            optimizer.step()
        for own in range(3):
            rest = [r for r in range(3) if r != own]
            expected = shares[own] * case[own] - weight / 2 * sum(shares[r] * case[r] for r in rest)
            expected = expected / (shares[own] - weight / 2 * (1 - shares[own]))
            torch.testing.assert_close(predicted[own].detach(), expected, atol=1e-3, rtol=1e-3)


def test_a_clear_image_pays_wrong_prompts_without_bound() -> None:
    """The weight of a prediction for a rival's image is negative: the further off, the lower the loss."""
    losses = [float(same_image_loss(torch.tensor([[[0.0, error]]]), 0.3)) for error in (0.0, 1.0, 100.0)]
    assert losses == [0.0, pytest.approx(-0.3), pytest.approx(-30.0)]


def test_comple_same_image_contrasts_candidates(diffusion: Any, prompts: ClassPrompts) -> None:
    batch = draw(diffusion, batch_size=3, num_samples=2)
    objective = CoMPLeSameImage(diffusion, prompts, contrast_weight=0.2, num_rivals=None)
    found, errors = objective(batch), objective.candidate_errors(batch).detach()
    assert errors.shape == (3, 2, 3)
    torch.testing.assert_close(found["loss"].detach(), errors[..., 0].mean() - 0.2 * errors[..., 1:].mean())
    close = found["own"] - 0.2 * found["contrast"]
    torch.testing.assert_close(close, found["loss"].detach())


def test_noise_loss_by_hand() -> None:
    z = np.sqrt(1.5)  # errors 1, 2, 3 have mean 2 and deviation √(2/3)
    expected = -z + np.log(np.exp(z) + 1 + np.exp(-z))
    for errors in ([1.0, 2.0, 3.0], [101.0, 102.0, 103.0], [0.1, 0.2, 0.3]):
        assert float(noise_loss(torch.tensor([errors]))) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="3 candidates or more"):
        noise_loss(torch.ones(2, 2))


def test_noop_trains_noises_alone_and_the_classifier_uses_them(diffusion: Any, prompts: ClassPrompts) -> None:
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*prompts())
    classifier, before = DiffusionClassifier(diffusion, hidden, seed=3), diffusion.checksum()
    objective = NoOp(classifier, 4)
    assert torch.equal(objective.noises.detach(), classifier.samples(4)[1])
    exemplars, vectors = exemplars_of(diffusion), prompts.vectors.detach().clone()
    latents = diffusion.scale_latents(exemplars.means[0])
    untrained = TunedClassifier(objective).exact(latents, 4).errors
    np.testing.assert_allclose(untrained, classifier.exact(latents, 4).errors, rtol=1e-5)
    sampler = NoiseSampler(diffusion, exemplars, 4, batch_size=6, seed=1)
    shown, samples, candidates = sampler(0)
    assert shown.shape == latents.shape
    assert candidates.shape == (6, 3)  # of three classes all others are rivals
    assert all(len(set(row.tolist())) == 3 for row in candidates)
    assert 0 <= int(samples.min()) <= int(samples.max()) < 4
    losses = [record.loss for record in train(objective, lambda _step: sampler(0), TrainingConfig(20, 0.1))]
    assert losses[-1] < losses[0]
    assert diffusion.checksum() == before
    assert torch.equal(prompts.vectors.detach(), vectors)
    assert not np.allclose(TunedClassifier(objective).exact(latents, 4).errors, untrained)
    with pytest.raises(DataError, match="4 noises were learned, and 2 are asked for"):
        TunedClassifier(objective).exact(latents, 2)
    with pytest.raises(DataError, match="three classes or more, got 2"):
        NoOp(DiffusionClassifier(diffusion, hidden[:2]), 4)


def test_tif_weights_by_hand() -> None:
    products, distance = np.array([0.9, 0.5, 0.1]), 2.0
    expected = []
    for product in products:
        scale = np.sqrt(product) / (2 * np.sqrt(2 * (1 - product)))
        fine = 1 - erf(scale * distance)
        coarse = sum(1 - erf(scale * (distance + 1 + j)) for j in range(NUM_COARSER))
        expected.append(fine / (fine + coarse))
    found = timestep_weights(products, distance)
    np.testing.assert_allclose(found, expected / np.mean(expected), rtol=1e-6)
    assert found[0] > found[1] > found[2]  # the noisier, the more coarse differences are lost with the fine ones
    # Three places of one number; classes differ by 3 and 4 at two of them: √(9 + 16).
    latents = torch.tensor([[0.0, 0.0, 1.0], [3.0, 4.0, 1.0]])[:, None, None]
    assert smallest_class_distance(latents, torch.tensor([0, 1])) == pytest.approx(5.0)
    doubled = torch.cat([latents, latents])  # images of one class do not count
    assert smallest_class_distance(doubled, torch.tensor([0, 1, 0, 1])) == pytest.approx(5.0)


@pytest.mark.parametrize("setting", [{"objective": "directional"}, {"objective": "mc_ti"}])
def test_they_are_learned_saved_and_loaded(
    random_pair: Any, pictures: tuple[list[Any], Any], tmp_path: Any, setting: dict[str, Any]
) -> None:
    settings = {"num_steps": 2, "batch_size": 3, "num_evidence": 3, "evidence_bfloat16": False, **setting}
    model = GCPLClassifier(str(random_pair.folder), diffusion=random_pair.diffusion, **settings)
    images, labels = pictures
    model.fit(images, labels, NAMES)
    again = GCPLClassifier.load(model.save(tmp_path / "kept"), random_pair.diffusion)
    np.testing.assert_allclose(again.decision_function(images[:3]), model.decision_function(images[:3]), rtol=1e-5)
    extra = {"directional": "likeness", "mc_ti": "contrast"}[setting["objective"]]
    assert extra in model.history_[-1].values
