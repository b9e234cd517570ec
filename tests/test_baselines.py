"""Baselines by hand on made-up features, and on data that anybody can part."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from gcpl_lab.baselines.clip_features import (
    ENSEMBLE_TEMPLATES,
    CoOp,
    LinearProbe,
    NearestClassMean,
    TipAdapter,
    TipAdapterF,
    ZeroShotCLIP,
    feature_batches,
)
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.training.loop import TrainingConfig, train

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


def clusters(num_classes: int, shots: int, seed: int = 0, spread: float = 0.05) -> tuple[Tensor, Tensor]:
    """Unit features around one axis for each class: parted by any sensible method."""
    labels = torch.arange(num_classes).repeat_interleave(shots)
    noise = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(seed))
    return F.normalize(torch.eye(8)[labels] + spread * noise, dim=1), labels


IMAGES = torch.tensor([[0.6, 0.8], [1.0, 0.0]])


def test_zero_shot_by_hand() -> None:
    torch.testing.assert_close(zero_shot().scores(IMAGES), torch.tensor([[6.0, 8.0], [10.0, 0.0]]))


def test_several_templates_are_averaged_as_unit_features() -> None:
    # coat: (0.8, 0.4) / |(0.8, 0.4)| = (2, 1) / √5; bag: (0, 1)
    found = zero_shot("a photo of a {}", "a {}").scores(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[20 / np.sqrt(5), 0.0]], dtype=torch.float32))


def test_the_ensemble_holds_every_class(clip: object) -> None:
    model = ZeroShotCLIP(clip, ["coat", "bag", "長靴"], ENSEMBLE_TEMPLATES)
    torch.testing.assert_close(model.text_features.norm(dim=1), torch.ones(3))
    assert model.scores(torch.zeros(4, model.text_features.shape[1])).shape == (4, 3)
    assert all(template.count("{}") == 1 for template in ENSEMBLE_TEMPLATES)


def test_nearest_mean_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    model = NearestClassMean(features, torch.tensor([0, 0, 1]), scale=10.0)
    torch.testing.assert_close(model.means, torch.tensor([[2 / np.sqrt(5), 1 / np.sqrt(5)], [0, 1]]).float())
    torch.testing.assert_close(model.scores(IMAGES[1:]), torch.tensor([[20 / np.sqrt(5), 0.0]]).float())


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("shots", [1, 2, 16])
def test_parted_classes_are_parted(num_classes: int, shots: int) -> None:
    features, labels = clusters(num_classes, shots)
    tests, truth = clusters(num_classes, 10, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (LinearProbe(features[None], labels), NearestClassMean(features, labels, 10.0)):
            scores = model.scores(tests)
            assert scores.shape == (len(tests), num_classes)
            assert scores.dtype == torch.float32
            assert torch.equal(scores.argmax(1), truth)
            one = model.scores(tests[:1])
            torch.testing.assert_close(one, scores[:1])


def test_two_class_logits_are_those_of_logistic_regression() -> None:
    features, labels = clusters(2, 8, spread=0.4)
    model = LinearProbe(features[None], labels)
    expected = model._model.predict_proba(features.numpy())
    np.testing.assert_allclose(model.scores(features).softmax(1).numpy(), expected, atol=1e-6)


def test_the_probe_follows_its_seed() -> None:
    features, labels = clusters(3, 6, spread=0.6)
    first, again = LinearProbe(features[None], labels, seed=0), LinearProbe(features[None], labels, seed=0)
    assert torch.equal(first.scores(features), again.scores(features))


def test_the_probe_learns_from_every_view_and_holds_them_out_together() -> None:
    features, labels = clusters(3, 6, spread=0.6)
    doubled = LinearProbe(torch.stack([features, features]), labels)
    # Twice the same view halves the penalty's share and nothing else: C counts against the sum of losses.
    single = LogisticRegression(max_iter=2000, C=2 * doubled._model.C).fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(doubled._model.coef_, single.coef_, atol=1e-2)
    # A copy of a photograph among those that judge it would make the weakest penalty look best here.
    noise = F.normalize(torch.randn(30, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert LinearProbe(torch.stack([noise, noise]), torch.arange(30) % 3)._model.C == LinearProbe.STRENGTHS[0]


# ------------------------------------------------------------------------------------------------ Tip-Adapter


def adapter() -> TipAdapter:
    support = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    return TipAdapter(zero_shot(), support, torch.tensor([0, 0, 1, 1]))


def test_tip_adapter_by_hand() -> None:
    model = adapter()
    model.weight, model.sharpness = 2.0, 5.0
    # cosines of (1, 0) to the four keys: 1, 0.8, 0, 0.6
    coat, bag = 1 + np.exp(-1.0), np.exp(-5.0) + np.exp(-2.0)
    expected = torch.tensor([[10 + 2 * coat, 2 * bag]]).float()
    torch.testing.assert_close(model.scores(IMAGES[1:]), expected)


def test_tip_adapter_without_a_vote_is_zero_shot() -> None:
    model = adapter()
    model.weight = 0.0
    assert torch.equal(model.scores(IMAGES), zero_shot().scores(IMAGES))


def test_the_vote_is_chosen_without_a_photographs_own_vote() -> None:
    """The support's own labels contradict its neighbours': only a method that counts the own vote would be right."""
    angles = torch.tensor([0.0, 0.02, 0.04, 1.0, 1.02, 1.04])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([0, 0, 1, 1, 1, 0])
    model = TipAdapter(zero_shot(), features, labels)
    assert model.weight == TipAdapter.WEIGHTS[0]  # no setting is better than another, so the first is kept
    assert model.sharpness == TipAdapter.SHARPNESSES[0]


def test_tip_adapter_f_trains_its_keys_alone() -> None:
    support = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]])
    model = TipAdapterF(zero_shot(), support, torch.tensor([0, 0, 1, 1]))
    views = torch.stack([model.keys.detach().clone()] * 2)
    before, labels = model.keys.detach().clone(), torch.tensor([0, 0, 1, 1])
    zero, values = model.zero_shot.text_features.clone(), model.values.clone()
    assert [parameter is model.keys for parameter in model.trainable_parameters()] == [True]
    records = list(train(model, feature_batches(views, labels, 4, 0), TrainingConfig(10, 0.01, schedule="constant")))
    assert records[-1].loss < records[0].loss
    assert not torch.equal(model.keys.detach(), before)
    assert torch.equal(model.zero_shot.text_features, zero)
    assert torch.equal(model.values, values)


def test_tip_adapter_f_trains_with_the_authors_weight_and_answers_with_the_chosen_one() -> None:
    support, labels = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0, 0, 1, 1])
    model = TipAdapterF(zero_shot(), support, labels)
    assert (model.weight, model.sharpness) == TipAdapterF.START == (1.17, 1.0)
    loss = model((support, labels))["loss"].item()
    assert loss == pytest.approx(F.cross_entropy(model.scores(support), labels).item())
    model.weight, model.sharpness = 20.0, 5.5
    assert model((support, labels))["loss"].item() == loss
    assert not torch.equal(model.scores(support), TipAdapterF(zero_shot(), support, labels).scores(support))


def test_held_out_photographs_judge_every_weight_and_sharpness() -> None:
    # One key of the class that the name gets wrong: only a vote of some weight tells the photograph right.
    model = TipAdapterF(zero_shot(), torch.tensor([[0.8, 0.6], [0.0, 1.0]]), torch.tensor([1, 1]))
    photograph, label = torch.tensor([[0.8, 0.6]]), torch.tensor([1])
    right = dict(zip(TipAdapterF.settings(), model.held_out_right(photograph, label), strict=True))
    # Logits are 8 for the coat and 6 + weight · (1 + exp(−0.4 · sharpness)) for the bag: it takes more than 2.
    expected = {(w, b): int(6 + w * (1 + np.exp(-0.4 * b)) > 8) for w, b in TipAdapterF.settings() if w != 2.0}
    assert {setting: count for setting, count in right.items() if setting[0] != 2.0} == expected
    assert set(expected.values()) == {0, 1}


# ------------------------------------------------------------------------------------------------------ CoOp


@pytest.mark.parametrize("class_specific", [False, True])
def test_coop_moves_its_context_alone(clip: object, class_specific: bool) -> None:
    prompts = ContextPrompts(clip, ["coat", "bag", "ankle boot"], num_context=4, class_specific=class_specific)
    model, before, start = CoOp(clip, prompts), clip.checksum(), prompts.context.detach().clone()
    width = clip.encode_texts(["a"]).shape[1]
    features = F.normalize(torch.randn(6, width, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert [parameter is prompts.context for parameter in model.trainable_parameters()] == [True]
    losses = [record.loss for record in train(model, lambda step: (features, labels), TrainingConfig(15, 0.02))]
    assert losses[-1] < losses[0]
    assert clip.checksum() == before
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    moved = (prompts.context.detach() - start).flatten(1).norm(dim=1)
    assert bool((moved > 0).all())


def test_coop_starts_as_zero_shot_with_the_same_words(clip: object) -> None:
    names = ["coat", "bag"]
    prompts = ContextPrompts(clip, names, num_context=4, class_specific=False, initial_words="a photo of a")
    features = F.normalize(torch.randn(3, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    expected = ZeroShotCLIP(clip, names).scores(features)
    torch.testing.assert_close(CoOp(clip, prompts).scores(features), expected, atol=1e-4, rtol=0)


def test_coop_is_the_cross_entropy_of_its_scores(clip: object) -> None:
    model = CoOp(clip, ContextPrompts(clip, ["coat", "bag"], num_context=2))
    features, labels = F.normalize(torch.ones(2, 128), dim=1), torch.tensor([0, 1])
    expected = F.cross_entropy(model.scores(features), labels)
    torch.testing.assert_close(model((features, labels))["loss"].detach(), expected)


# --------------------------------------------------------------------------------------------------- batches


def test_batches_come_from_their_step_and_repeat_no_photograph() -> None:
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
