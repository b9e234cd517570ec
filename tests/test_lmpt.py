"""The LMPT objective on a random CLIP: what it computes, and what its gradient reaches."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gcpl_lab.evaluation.calibration import fit_sigmoid
from gcpl_lab.fast.prompt_tower import encode_token_embeddings
from gcpl_lab.lmpt.losses import binary_cross_entropy, class_specific_embedding_loss
from gcpl_lab.lmpt.objective import LMPT, Batch, CachedBatches, encode_captions
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.training.loop import TrainingConfig, train

NAMES = ("shirt", "ankle boot", "bag")
COUNTS, NUM_IMAGES = (40, 9, 2), 48
CAPTIONS = ("a shirt and a bag", "an ankle boot", None, "a dark bag | a bag and a shirt", "a shirt")


def objective(clip: Any, *, num_context: int = 4, class_specific: bool = True, **settings: Any) -> LMPT:
    prompts = ContextPrompts(
        clip, NAMES, num_context=num_context, class_specific=class_specific, initial_words="a photo of a"
    )
    return LMPT(clip, prompts, class_counts=COUNTS, num_images=NUM_IMAGES, **settings)


def batch(clip: Any, reading: str = "pooled", captions: Any = CAPTIONS) -> Batch:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(5, 128, generator=generator), dim=-1)
    targets = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]]).float()
    return Batch(features, targets, *encode_captions(clip, captions, reading))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- captions


def test_captions_are_unit_and_absent_ones_are_marked(clip: Any) -> None:
    features, present = encode_captions(clip, CAPTIONS)
    assert present.tolist() == [True, True, False, True, True]
    torch.testing.assert_close(features.norm(dim=-1), torch.tensor([1.0, 1, 0, 1, 1]))
    torch.testing.assert_close(features[1], clip.encode_texts(["an ankle boot"])[0])
    none, absent = encode_captions(clip, [None, ""])
    assert none.shape == (2, features.shape[1])
    assert not absent.any()


def test_several_captions_are_the_mean_of_their_unit_features(clip: Any) -> None:
    features, _ = encode_captions(clip, CAPTIONS)
    both = clip.encode_texts(["a dark bag", "a bag and a shirt"])
    torch.testing.assert_close(features[3], F.normalize(both.mean(0), dim=-1))


def test_a_caption_longer_than_the_context_is_cut(clip: Any) -> None:
    features, present = encode_captions(clip, ["a shirt " * 100])
    assert present.all()
    assert torch.isfinite(features).all()


# ------------------------------------------------------------------------------------------ the value


def test_labels_alone_are_the_plain_loss_of_scaled_cosines(clip: Any) -> None:
    model, data = objective(clip, mix=1.0, classification="binary_cross_entropy"), batch(clip)
    values = model(data)
    logits = clip.logit_scale * data.features @ model.text_features().T
    torch.testing.assert_close(values["loss"], binary_cross_entropy(logits, data.targets))
    assert "contrast" not in values
    torch.testing.assert_close(model.scores(data.features), logits.detach())


def test_the_two_parts_are_mixed_and_only_captioned_images_count(clip: Any) -> None:
    model, data = objective(clip, mix=0.3), batch(clip)
    values = model(data)
    torch.testing.assert_close(values["loss"], 0.3 * values["classification"] + 0.7 * values["contrast"])
    kept = torch.tensor([0, 1, 3, 4])
    distances = 1 - data.captions[kept] @ model.text_features().T
    expected = class_specific_embedding_loss(distances, data.targets[kept], class_counts=COUNTS)
    torch.testing.assert_close(values["contrast"], expected)
    changed = data.captions.clone()
    changed[2] = changed[0]
    torch.testing.assert_close(model(data._replace(captions=changed))["loss"], values["loss"])


def test_a_batch_without_captions_learns_from_labels_alone(clip: Any) -> None:
    model = objective(clip)
    values = model(batch(clip, captions=[None] * 5))
    assert float(values["contrast"].detach()) == 0
    values["loss"].backward()
    assert torch.isfinite(model.prompts.context.grad).all()
    assert model.prompts.context.grad.abs().sum() > 0


def test_the_weighted_average_is_the_published_mean_times_the_classes(clip: Any) -> None:
    data = batch(clip)
    published = objective(clip)(data)["contrast"]
    torch.testing.assert_close(objective(clip, contrast_reduction="weighted")(data)["contrast"], 3 * published)


@pytest.mark.parametrize(
    "setting",
    [
        {"mix": 0.4},
        {"classification": "binary_cross_entropy"},
        {"classification": "focal"},
        {"classification": "class_balanced"},
        {"classification": "asymmetric"},
        {"reading": "token"},
        {"margin": 1.5},
        {"reweight_gamma": 0.5},
        {"class_aware_margin": False},
        {"reweight": False},
        {"contrast_reduction": "weighted"},
        {"negative_scale": 2.0},
        {"mu": 0.1},
        {"rebalance": False},
        {"negative_tolerant": False},
        {"focal": False},
    ],
    ids=lambda setting: "-".join(f"{key}={value}" for key, value in setting.items()),
)
def test_every_setting_changes_the_loss(clip: Any, setting: dict[str, Any]) -> None:
    base = {"margin": 1.2}  # wide enough for absent classes to count
    usual = float(objective(clip, **base)(batch(clip))["loss"].detach())
    data = batch(clip, setting.get("reading", "pooled"))
    changed = float(objective(clip, **{**base, **setting})(data)["loss"].detach())
    assert changed != pytest.approx(usual, rel=1e-5)


@pytest.mark.parametrize("setting", [{"token_offset": 0}, {"token_offset": None}, {"position_hinge": "sum"}], ids=str)
def test_settings_of_the_token_reading_change_its_loss_alone(clip: Any, setting: dict[str, Any]) -> None:
    losses = {
        reading: [
            float(objective(clip, reading=reading, **chosen)(batch(clip, reading))["loss"].detach())
            for chosen in ({}, setting)
        ]
        for reading in ("pooled", "token")
    }
    assert losses["token"][0] != pytest.approx(losses["token"][1], rel=1e-5)
    assert losses["pooled"][0] == losses["pooled"][1]


@pytest.mark.parametrize("offset", [0, 2, 3])
@pytest.mark.parametrize("hinge", ["each", "sum"])
def test_the_token_reading_by_hand(clip: Any, offset: int, hinge: str) -> None:
    model = objective(clip, reading="token", token_offset=offset, position_hinge=hinge, margin=1.2)
    data, kept = batch(clip, "token"), torch.tensor([0, 1, 3, 4])
    _, embeddings = model.prompts()
    num_positions = embeddings.shape[1] - offset
    rows = []
    for image in kept:
        apart = [
            1 - torch.cosine_similarity(data.captions[image, p], embeddings[:, offset + p], dim=-1)
            for p in range(num_positions)
        ]
        rows.append(torch.stack(apart).sum(0, keepdim=True) if hinge == "sum" else torch.stack(apart))
    targets = data.targets[kept].repeat_interleave(len(rows[0]), dim=0)
    expected = class_specific_embedding_loss(torch.cat(rows), targets, class_counts=COUNTS, margin=1.2)
    torch.testing.assert_close(model(data)["contrast"], expected)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"classification": "softmax"}, "classification is 'softmax'; expected one of distribution_balanced"),
        ({"reading": "words"}, "reading is 'words'"),
        ({"contrast_reduction": "sum"}, "contrast_reduction is 'sum'"),
        ({"position_hinge": "none"}, "position_hinge is 'none'; expected one of each, sum"),
        ({"token_offset": -1}, "token_offset is -1; expected 0 or more"),
        ({"token_offset": 99}, "token_offset is 99; expected 0 or more and below the prompts' 8 positions"),
        ({"scale": "none"}, "scale is 'none'"),
        ({"mix": 1.5}, "mix is 1.5; expected 0"),
    ],
)
def test_a_wrong_setting_is_named(clip: Any, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective(clip, **setting)


# --------------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("class_specific", [True, False])
def test_training_moves_the_contexts_alone(clip: Any, class_specific: bool) -> None:
    frozen = clip.checksum()
    model, data = objective(clip, class_specific=class_specific), batch(clip)
    assert [tuple(p.shape) for p in model.trainable_parameters()] == [(3 if class_specific else 1, 4, 128), (), ()]
    assert len(objective(clip, scale="clip").trainable_parameters()) == 1
    before = model.prompts.context.detach().clone()
    records = list(train(model, lambda _step: data, TrainingConfig(num_steps=5, learning_rate=0.01)))
    assert records[-1].loss < records[0].loss
    assert (model.prompts.context != before).any(dim=-1).all()
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    assert clip.checksum() == frozen


def test_only_the_first_positions_are_needed(clip: Any) -> None:
    ids, embeddings = objective(clip).prompts()
    longer = F.pad(ids, (0, clip.context_length - ids.shape[1]), value=clip.pad_id)
    table = clip.embedding_table
    whole = torch.cat([embeddings, table[longer[:, ids.shape[1] :]]], dim=1)
    ends = (longer == clip.end_id).int().argmax(dim=1)
    _, features = encode_token_embeddings(clip.text_tower, whole, ends)
    torch.testing.assert_close(F.normalize(features, dim=-1), clip.encode_prompts(ids, embeddings), atol=1e-6, rtol=0)


def caption_gradients(clip: Any, num_context: int, **settings: Any) -> list[torch.Tensor]:
    """Gradients of the context (class, vector, dim) from two sets of captions, other words at every position."""
    found = []
    for word in ("shirt ", "bag "):
        assert len(clip.word_ids(word * 20)) == 20
        model = objective(clip, num_context=num_context, mix=0.0, reading="token", **settings)
        model(batch(clip, "token", [word * 20] * 5))["loss"].backward()
        found.append(model.prompts.context.grad)
    return found


@pytest.mark.parametrize("hinge", ["each", "sum"])
def test_fifteen_of_sixteen_vectors_hear_captions_with_the_published_offset(clip: Any, hinge: str) -> None:
    first, second = caption_gradients(clip, 16, position_hinge=hinge)
    assert first[:, 0].abs().sum() == second[:, 0].abs().sum() == 0
    assert first[:, 1:].abs().sum(dim=-1).min() > 0
    assert second[:, 1:].abs().sum(dim=-1).min() > 0
    torch.testing.assert_close(first[:, 1], second[:, 1])  # it meets the start token
    apart = (first - second).abs().sum(dim=-1)[:, 2:] / first.abs().sum(dim=-1)[:, 2:]
    assert apart.min() > 0.1


@pytest.mark.parametrize("num_context", [4, 16])
@pytest.mark.parametrize("as_many", [True, False])
def test_no_words_are_heard_with_an_offset_of_as_many_as_contexts(clip: Any, num_context: int, as_many: bool) -> None:
    """The last context vector meets the start token, and the words meet frozen tokens."""
    first, second = caption_gradients(clip, num_context, token_offset=None if as_many else num_context)
    assert first.abs().sum(dim=-1)[:, -1].min() > 0
    assert first[:, :-1].abs().sum() == 0
    torch.testing.assert_close(first, second)


def test_the_contrast_pulls_present_classes_near(clip: Any) -> None:
    model = objective(clip, mix=0.0, scale="clip")
    captions, present = encode_captions(clip, ["a shirt"] * 2)
    data = Batch(torch.zeros(2, 128), torch.tensor([[1.0, 0, 0]] * 2), captions, present)

    def distance() -> float:
        return float((1 - captions[0] @ model.text_features()[0]).detach())

    before = distance()
    list(train(model, lambda _step: data, TrainingConfig(num_steps=20, learning_rate=0.01)))
    assert distance() < before


def test_the_starting_scale_gives_the_labels_their_share(clip: Any) -> None:
    model, data = objective(clip), batch(clip)
    model.start_scale(data.features, data.targets)
    assert float(model.scores(data.features).sigmoid().mean()) == pytest.approx(float(data.targets.mean()), abs=0.02)
    kept = objective(clip, scale="clip")
    kept.start_scale(data.features, data.targets)
    assert float(kept.bias.detach()) == 0


def test_a_fitted_sigmoid_keeps_the_order() -> None:
    scores = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    scale, bias = fit_sigmoid(scores, np.array([[0, 0], [0, 1], [1, 1]]))
    assert scale > 0
    assert 0.5 < 1 / (1 + np.exp(-(scale * 0.6 + bias)))
    worse, _ = fit_sigmoid(scores, np.array([[1, 1], [1, 0], [0, 0]]))
    assert worse > 0  # never turned around
    assert fit_sigmoid(scores, np.ones((3, 2))) == (1.0, 0.0)
    assert fit_sigmoid(np.ones((3, 2)), np.eye(3)[:, :2]) == (1.0, 0.0)


# ---------------------------------------------------------------------------------------- the batches


def test_an_epoch_shows_every_image_once_and_a_step_depends_on_its_number_alone() -> None:
    views = torch.stack([torch.arange(10.0), torch.arange(10.0) + 100])[..., None]
    targets, captions = torch.zeros(10, 2), torch.zeros(10, 1)
    made = [CachedBatches(views, targets, captions, torch.ones(10, dtype=torch.bool), 4, seed=3) for _ in range(2)]
    assert made[0].steps_an_epoch == 3
    seen = torch.cat([made[0](step).features.flatten() for step in range(3)])
    assert sorted((seen % 100).tolist()) == list(range(10))
    assert 0 < (seen >= 100).sum() < 10
    late = made[0](7).features
    torch.testing.assert_close(made[1](7).features, late, rtol=0, atol=0)
    other = torch.cat([made[0](step).features.flatten() for step in range(3, 6)])
    assert seen.tolist() != other.tolist()
    back = torch.cat([made[0](step).features.flatten() for step in range(3)])  # an epoch that is not kept any more
    assert back.tolist() == seen.tolist()
