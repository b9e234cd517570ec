"""Baselines by hand on made-up features and pixels, and on data that anybody can part."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from gcpl_lab.baselines.base import FeatureSupport, PixelSupport, feature_batches
from gcpl_lab.baselines.coop import CoOp
from gcpl_lab.baselines.features import LinearProbe, NearestClassMean
from gcpl_lab.baselines.multilabel import OneVsRestProbe
from gcpl_lab.baselines.pixels import PixelForest, SmallNetwork, read_pixels, shifted_batches
from gcpl_lab.baselines.tip_adapter import START, TIP_ADAPTER_TRAINING, TipAdapter
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.training.loop import TrainingConfig, train
from tests.made_up import randn

TEXT_FEATURES = {
    "a photo of a coat": [1.0, 0.0],
    "a photo of a bag": [0.0, 1.0],
    "a coat": [0.6, 0.8],
    "a bag": [0.0, 1.0],
}


class MadeUpCLIP:
    logit_scale = 10.0

    def encode_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([TEXT_FEATURES[text] for text in texts])


def zero_shot(*templates: str) -> ZeroShotCLIP:
    return ZeroShotCLIP(MadeUpCLIP(), ["coat", "bag"], templates or ("a photo of a {}",))  # type: ignore[arg-type]


def support_of(features: Tensor, labels: Tensor, **more: Any) -> FeatureSupport:
    return FeatureSupport(
        class_names=["coat", "bag"], labels=labels, clip=MadeUpCLIP(), features=features[None], **more
    )  # type: ignore[arg-type]


def clusters(num_classes: int, shots: int, seed: int = 0, spread: float = 0.05) -> tuple[Tensor, Tensor]:
    """Unit features around one axis for each class: parted by any sensible method."""
    labels = torch.arange(num_classes).repeat_interleave(shots)
    return F.normalize(torch.eye(8)[labels] + spread * randn(len(labels), 8, seed=seed), dim=1), labels


def random_features(num_images: int, width: int = 128, seed: int = 0) -> Tensor:
    return F.normalize(randn(num_images, width, seed=seed), dim=1)


IMAGES = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
SUPPORT, LABELS = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 0, 1, 1])


def test_zero_shot_by_hand() -> None:
    torch.testing.assert_close(zero_shot().scores(IMAGES), torch.tensor([[6.0, 8.0], [10.0, 0.0]]))
    # Several templates are averaged as unit features. Coat: (0.8, 0.4) / |(0.8, 0.4)| = (2, 1) / √5; bag: (0, 1).
    found = zero_shot("a photo of a {}", "a {}").scores(IMAGES[1:])
    torch.testing.assert_close(found, torch.tensor([[20 / np.sqrt(5), 0.0]], dtype=torch.float32))


def test_nearest_mean_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    model = NearestClassMean(support_of(features, torch.tensor([0, 0, 1])))
    torch.testing.assert_close(model.means, torch.tensor([[2 / np.sqrt(5), 1 / np.sqrt(5)], [0, 1]]).float())
    torch.testing.assert_close(model.scores(IMAGES[1:]), torch.tensor([[20 / np.sqrt(5), 0.0]]).float())


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("shots", [1, 2, 16])
def test_parted_classes_are_parted(num_classes: int, shots: int) -> None:
    features, labels = clusters(num_classes, shots)
    tests, truth = clusters(num_classes, 10, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (LinearProbe(features[None], labels), NearestClassMean(support_of(features, labels))):
            scores = model.scores(tests)
            assert scores.shape == (len(tests), num_classes)
            assert scores.dtype == torch.float32
            assert torch.equal(scores.argmax(1), truth)
            torch.testing.assert_close(model.scores(tests[:1]), scores[:1])


def test_two_class_logits_are_those_of_logistic_regression() -> None:
    features, labels = clusters(2, 8, spread=0.4)
    model = LinearProbe(features[None], labels)
    expected = model._model.predict_proba(features.numpy())
    np.testing.assert_allclose(model.scores(features).softmax(1).numpy(), expected, atol=1e-6)


def test_the_probe_learns_from_every_view_and_holds_them_out_together() -> None:
    features, labels = clusters(3, 6, spread=0.6)
    doubled = LinearProbe(torch.stack([features, features]), labels)
    # Twice the same view halves the penalty's share and nothing else: C counts against the sum of losses.
    single = LogisticRegression(max_iter=2000, C=2 * doubled._model.C).fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(doubled._model.coef_, single.coef_, atol=1e-2)
    # A copy of an image among those that judge it would make the weakest penalty look best here.
    noise = random_features(30, 64)
    assert LinearProbe(torch.stack([noise, noise]), torch.arange(30) % 3)._model.C <= LinearProbe.STRENGTHS[0]


def test_tip_adapter_by_hand() -> None:
    model = TipAdapter(zero_shot(), SUPPORT, LABELS, (2.0, 5.0))
    # cosines of (1, 0) to the four keys: 1, 0.8, 0, 0.6
    coat, bag = 1 + np.exp(-1.0), np.exp(-5.0) + np.exp(-2.0)
    torch.testing.assert_close(model.scores(IMAGES[1:]), torch.tensor([[10 + 2 * coat, 2 * bag]]).float())
    model.setting = 0.0, 5.0
    assert torch.equal(model.scores(IMAGES), zero_shot().scores(IMAGES))


def test_the_vote_is_chosen_without_an_images_own_vote() -> None:
    """The support's own labels contradict its neighbours': only a method that counts the own vote would be right."""
    angles = torch.tensor([0.0, 0.02, 0.04, 1.0, 1.02, 1.04])
    model = TipAdapter(zero_shot(), torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 1, 1, 1, 0]))
    assert model.setting == TipAdapter.SETTINGS[0]  # no setting is better than another, so the first is kept


def test_tip_adapter_f_trains_its_keys_alone_with_the_authors_weight_and_sharpness() -> None:
    assert START == (1.17, 1.0)
    config = TIP_ADAPTER_TRAINING
    assert (config.num_steps, config.learning_rate, config.epsilon) == (20, 1e-3, 1e-4)
    assert (config.optimizer, config.schedule, config.weight_decay) == ("adamw", "cosine", 0.01)
    model = TipAdapter(zero_shot(), SUPPORT, LABELS, START)
    loss = model((SUPPORT, LABELS))["loss"].item()
    assert loss == pytest.approx(F.cross_entropy(model.scores(SUPPORT), LABELS).item())
    zero, values = model.zero_shot.text_features.clone(), model.values.clone()
    assert [parameter is model.keys for parameter in model.trainable_parameters()] == [True]
    batches = feature_batches(torch.stack([SUPPORT] * 2), LABELS, 4, 0)
    records = list(train(model, batches, TrainingConfig(10, 0.01, schedule="constant")))
    assert records[-1].loss < records[0].loss
    assert not torch.equal(model.keys.detach(), SUPPORT)
    assert torch.equal(model.zero_shot.text_features, zero)
    assert torch.equal(model.values, values)


def test_held_out_images_judge_every_weight_and_sharpness() -> None:
    # One key of the class that the name gets wrong: only a vote of some weight tells the image right.
    model = TipAdapter(zero_shot(), torch.tensor([[0.8, 0.6], [0.0, 1.0]]), torch.tensor([1, 1]))
    found = model.right(torch.tensor([[0.8, 0.6]]), torch.tensor([1]))
    right = dict(zip(TipAdapter.SETTINGS, found, strict=True))
    # Logits are 8 for the coat and 6 + weight · (1 + exp(−0.4 · sharpness)) for the bag: it takes more than 2.
    expected = {(w, b): int(6 + w * (1 + np.exp(-0.4 * b)) > 8) for w, b in TipAdapter.SETTINGS if w != 2.0}
    assert {setting: count for setting, count in right.items() if setting[0] != 2.0} == expected
    assert set(expected.values()) == {0, 1}


@pytest.mark.parametrize("class_specific", [False, True])
def test_coop_moves_its_context_alone(clip: Any, class_specific: bool) -> None:
    prompts = ContextPrompts(clip, ["coat", "bag", "ankle boot"], num_context=4, class_specific=class_specific)
    model, before, start = CoOp(clip, prompts), clip.checksum(), prompts.context.detach().clone()
    features, labels = random_features(6), torch.tensor([0, 1, 2, 0, 1, 2])
    assert [parameter is prompts.context for parameter in model.trainable_parameters()] == [True]
    losses = [record.loss for record in train(model, lambda step: (features, labels), TrainingConfig(15, 0.02))]
    assert losses[-1] < losses[0]
    assert clip.checksum() == before
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    assert bool(((prompts.context.detach() - start).flatten(1).norm(dim=1) > 0).all())


def test_coop_starts_as_zero_shot_with_the_same_words(clip: Any) -> None:
    names, features, labels = ["coat", "bag"], random_features(2), torch.tensor([0, 1])
    model = CoOp(clip, ContextPrompts(clip, names, num_context=4, class_specific=False, initial_words="a photo of a"))
    scores = model.scores(features)
    torch.testing.assert_close(scores, ZeroShotCLIP(clip, names).scores(features), atol=1e-4, rtol=0)
    torch.testing.assert_close(model((features, labels))["loss"].detach(), F.cross_entropy(scores, labels))


def test_feature_batches_come_from_their_step_and_repeat_no_image() -> None:
    views = torch.arange(2 * 10).reshape(2, 10, 1).float()  # value = 10 · view + image
    labels = torch.arange(10) % 3
    batches, again = feature_batches(views, labels, 6, 0), feature_batches(views, labels, 6, 0)
    seen = set()
    for step in range(20):
        features, chosen = batches(step)
        images = features[:, 0].long() % 10
        assert len(set(images.tolist())) == 6
        assert torch.equal(labels[images], chosen)
        seen |= set(features[:, 0].long().tolist())
        assert torch.equal(again(step)[0], features)
    assert seen == set(range(20))
    assert not torch.equal(batches(0)[0], feature_batches(views, labels, 6, 1)(0)[0])
    assert len(feature_batches(views, labels, 100, 0)(0)[1]) == 10


def bars(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar, upright (class 0) or lying (class 1), anywhere in the middle."""
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = 0.3 * torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 2
    for index, label in enumerate(labels):
        place = int(torch.randint(10, 22, (1,), generator=generator))
        along, across = slice(4, 28), slice(place, place + 3)
        pixels[index][(slice(None), along, across) if label == 0 else (slice(None), across, along)] += 2
    return pixels, labels


def test_pixels_are_the_centre_square_from_minus_one_to_one() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    square = read_pixels([Image.fromarray(wide), Image.new("L", (5, 7), 0)], size=10)
    assert square.shape == (2, 3, 10, 10)
    assert float(square[0, :, 2:8, 2:8].min()) == 1.0
    assert float(square[1].max()) == -1.0
    assert read_pixels([], size=4).shape == (0, 3, 4, 4)


def test_a_forest_parts_bars_follows_its_seed_and_learns_from_mirror_images() -> None:
    (pixels, labels), (others, truth) = bars(40, 0), bars(40, 1)

    def scores(**settings: Any) -> Tensor:
        support = PixelSupport(class_names=["upright", "lying"], pixels=pixels, labels=labels, **settings)
        return PixelForest(support).scores(others)

    first = scores()
    assert float((first.argmax(1) == truth).float().mean()) >= 0.9
    assert torch.equal(first, scores())
    assert not torch.equal(first, scores(seed=1))
    assert not torch.equal(first, scores(flip=False))
    assert torch.isfinite(first).all()


def test_a_small_network_learns_bars_from_nothing() -> None:
    (pixels, labels), (others, truth) = bars(40, 0), bars(40, 1)
    model = SmallNetwork(2, seed=0)
    losses = [r.loss for r in train(model, shifted_batches(pixels, labels, 20, 0), TrainingConfig(40, 3e-3))]
    assert losses[-1] < losses[0]
    assert float((model.scores(others).argmax(1) == truth).float().mean()) >= 0.9
    torch.testing.assert_close(model.scores(others), model.scores(others.flip(-1)))  # both views count alike
    assert SmallNetwork(7).scores(others[:3]).shape == (3, 7)


def test_weights_come_from_the_seed_and_leave_the_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again, another = (SmallNetwork(3, seed).trainable_parameters()[0] for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, another)


def test_shifted_batches_come_from_their_step_alone_and_shift_within_bounds() -> None:
    pixels, labels = torch.zeros(6, 3, 8, 8), torch.arange(6)
    pixels[:, :, 4, 4] = 1.0
    batch_at, again = (shifted_batches(pixels, labels, 4, seed=0, most_shift=2, flip=False) for _ in range(2))
    places = set()
    for step in range(40):
        shown, chosen = batch_at(step)
        assert torch.equal(shown, again(step)[0])
        assert len(set(chosen.tolist())) == 4
        for image in shown:
            assert image[0].sum() == 1
            places.add(tuple(np.argwhere(image[0].numpy() == 1)[0].tolist()))
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}
    mirrored = shifted_batches(pixels, labels, 4, seed=0, most_shift=2)
    assert any(not torch.equal(batch_at(step)[0], mirrored(step)[0]) for step in range(3))


def points(num_images: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Unit features of 8 axes; class i is present where axis i is positive."""
    features = random_features(num_images, 8, seed)
    return features, (features[:, :3] > 0.1).numpy().astype(np.uint8)


def test_the_multilabel_probe_learns_each_class() -> None:
    features, targets = points(120, 0)
    held_out, wanted = points(60, 1)
    scores = OneVsRestProbe(features[None], targets, 100.0).scores(held_out).numpy()
    assert ((scores > 0) == wanted).mean() > 0.9
    targets[:, 1], targets[:, 2] = 0, 1  # a class that is never or always there gets a constant
    scores = OneVsRestProbe(features[None], targets, 1.0).scores(features).numpy()
    assert scores[:, 1:].std() == 0
    assert np.isfinite(scores).all()


def test_the_multilabel_probe_is_logistic_regression_on_every_view() -> None:
    features, targets = points(80, 0)
    views, held_out = torch.stack([features, points(80, 2)[0]]), points(60, 1)[0]
    probe = OneVsRestProbe(views, targets, 10.0)
    model = LogisticRegression(C=10.0, tol=1e-10, max_iter=10_000)
    model.fit(views.flatten(0, 1).double().numpy(), np.concatenate([targets[:, 1]] * 2))
    expected = model.decision_function(held_out.double().numpy())
    np.testing.assert_allclose(probe.scores(held_out)[:, 1].numpy(), expected, atol=0.01, rtol=0.01)
