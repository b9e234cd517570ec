"""The LMPT objective on a random CLIP: captions and batches, what it computes, and what its gradient reaches."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gcpl_lab.errors import LabError
from gcpl_lab.evaluation.calibration import fit_sigmoid
from gcpl_lab.lmpt import batches
from gcpl_lab.lmpt.batches import Batch, CachedBatches, encode_captions
from gcpl_lab.lmpt.losses import binary_cross_entropy, class_specific_embedding_loss
from gcpl_lab.lmpt.objective import LMPT
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.training.loop import TrainingConfig, train

NAMES, COUNTS = ("shirt", "ankle boot", "bag"), (40, 9, 2)
CAPTIONS = ("a shirt and a bag", "an ankle boot", None, "a dark bag | a bag and a shirt", "a shirt")
CAPTIONED = torch.tensor([0, 1, 3, 4])


def objective(clip: Any, *, num_context: int = 4, class_specific: bool = True, **settings: Any) -> LMPT:
    prompts = ContextPrompts(
        clip, NAMES, num_context=num_context, class_specific=class_specific, initial_words="a photo of a"
    )
    return LMPT(clip, prompts, class_counts=COUNTS, num_images=48, **settings)


def batch(clip: Any, reading: Any = "pooled", captions: Any = CAPTIONS) -> Batch:
    features = F.normalize(torch.randn(5, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    targets = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]]).float()
    return Batch(features, targets, *encode_captions(clip, captions, reading))


def test_captions_are_unit_means_and_absent_ones_are_marked(clip: Any) -> None:
    features, present = encode_captions(clip, CAPTIONS)
    assert present.tolist() == [True, True, False, True, True]
    torch.testing.assert_close(features.norm(dim=-1), torch.tensor([1.0, 1, 0, 1, 1]))
    torch.testing.assert_close(features[1], clip.encode_texts(["an ankle boot"])[0])
    both = clip.encode_texts(["a dark bag", "a bag and a shirt"])
    torch.testing.assert_close(features[3], F.normalize(both.mean(0), dim=-1))
    none, absent = encode_captions(clip, [None, ""])
    assert none.shape == (2, features.shape[1])
    assert not absent.any()
    cut, present = encode_captions(clip, ["a shirt " * 100])  # longer than the context
    assert present.all()
    assert torch.isfinite(cut).all()


@pytest.mark.parametrize("reading", ["pooled", "token"])
def test_captions_are_encoded_in_parts_and_long_ones_read_as_far_as_they_count(
    clip: Any, monkeypatch: pytest.MonkeyPatch, reading: Any
) -> None:
    """No more of them at a time than asked for, and of ten million letters no more than can reach the context."""
    captions = [" | ".join(f"a {word} {number}" for number in range(7)) for word in ("coat", "bag", "shirt")]
    captions += [None, "a boot " * 1_400_000, "b" * 10_000_000]
    whole, present = encode_captions(clip, captions[:4], reading)
    uncut = batches._encode(clip, ["a boot " * 1000, "b" * 50_000], reading)
    longest, most, tokenizer = 0, 0, clip.tokenizer

    def watched(texts: list[str]) -> Tensor:
        nonlocal longest, most
        longest, most = max(longest, *map(len, texts)), max(most, len(texts))
        return tokenizer(texts)

    monkeypatch.setattr(clip, "tokenizer", watched)
    monkeypatch.setattr(batches, "MOST_BYTES", 0)
    found, has_caption = encode_captions(clip, captions, reading, batch_size=4)
    torch.testing.assert_close(found, torch.cat([whole, uncut]), atol=1e-6, rtol=0)
    assert has_caption.tolist() == [*present.tolist(), True, True] == [True, True, True, False, True, True]
    assert most == 4
    assert longest < 10_000


def test_an_epoch_shows_every_image_once_and_a_step_depends_on_its_number_alone() -> None:
    views = torch.stack([torch.arange(10.0), torch.arange(10.0) + 100])[..., None]
    rest = torch.zeros(10, 2), torch.zeros(10, 1), torch.ones(10, dtype=torch.bool)
    first, second = (CachedBatches(views, *rest, batch_size=4, seed=3) for _ in range(2))

    def seen(steps: range) -> list[float]:
        return torch.cat([first(step).features.flatten() for step in steps]).tolist()

    assert first.steps_an_epoch == 3
    epoch = seen(range(3))
    assert sorted(value % 100 for value in epoch) == list(range(10))
    assert 0 < sum(value >= 100 for value in epoch) < 10  # both views
    assert torch.equal(second(7).features, first(7).features)
    assert seen(range(3, 6)) != epoch
    assert seen(range(3)) == epoch  # an epoch that is not kept any more


def test_labels_alone_are_the_plain_loss_of_scaled_cosines(clip: Any) -> None:
    model, data = objective(clip, mix=1.0, classification="binary_cross_entropy"), batch(clip)
    values, logits = model(data), clip.logit_scale * data.features @ model.text_features().T
    assert values.keys() == {"loss", "classification"}
    torch.testing.assert_close(values["loss"], binary_cross_entropy(logits, data.targets))
    torch.testing.assert_close(model.scores(data.features), logits.detach())


def test_the_two_parts_are_mixed_and_only_captioned_images_count(clip: Any) -> None:
    model, data = objective(clip, mix=0.3), batch(clip)
    values = model(data)
    torch.testing.assert_close(values["loss"], 0.3 * values["classification"] + 0.7 * values["contrast"])
    distances = 1 - data.captions[CAPTIONED] @ model.text_features().T
    expected = class_specific_embedding_loss(distances, data.targets[CAPTIONED], class_counts=COUNTS)
    torch.testing.assert_close(values["contrast"], expected)
    weighted = objective(clip, mix=0.3, contrast_reduction="weighted")(data)["contrast"]
    torch.testing.assert_close(weighted, 3 * expected)  # the published mean times the classes
    changed = data.captions.clone()
    changed[2] = changed[0]
    torch.testing.assert_close(model(data._replace(captions=changed))["loss"], values["loss"])


@pytest.mark.parametrize("offset", [0, 2, 3])
@pytest.mark.parametrize("hinge", ["each", "sum"])
def test_the_token_reading_by_hand(clip: Any, offset: int, hinge: Any) -> None:
    model = objective(clip, reading="token", token_offset=offset, position_hinge=hinge, margin=1.2)
    data, (_, embeddings) = batch(clip, "token"), model.prompts()
    rows = []
    for image in CAPTIONED:
        pairs = [(data.captions[image, p], embeddings[:, offset + p]) for p in range(embeddings.shape[1] - offset)]
        apart = torch.stack([1 - torch.cosine_similarity(caption, prompt, dim=-1) for caption, prompt in pairs])
        rows.append(apart.sum(0, keepdim=True) if hinge == "sum" else apart)
    targets = data.targets[CAPTIONED].repeat_interleave(len(rows[0]), dim=0)
    expected = class_specific_embedding_loss(torch.cat(rows), targets, class_counts=COUNTS, margin=1.2)
    torch.testing.assert_close(model(data)["contrast"], expected)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"classification": "softmax"}, "'softmax' is no registered classification loss; expected one of distribution"),
        ({"position_hinge": "none"}, "position_hinge is 'none'; expected one of each, sum"),
        ({"token_offset": 99}, "token_offset is 99; expected 0 or more and below the prompts' 8 positions"),
        ({"mix": 1.5}, "mix is 1.5; expected 0"),
    ],
)
def test_a_wrong_setting_is_named(clip: Any, setting: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, LabError), match=message):
        objective(clip, **setting)


@pytest.mark.parametrize("class_specific", [True, False])
def test_training_moves_the_contexts_alone(clip: Any, class_specific: bool) -> None:
    frozen, data = clip.checksum(), batch(clip)
    model = objective(clip, class_specific=class_specific)
    assert [tuple(p.shape) for p in model.trainable_parameters()] == [(3 if class_specific else 1, 4, 128), (), ()]
    assert len(objective(clip, scale="clip").trainable_parameters()) == 1
    before = model.prompts.context.detach().clone()
    records = list(train(model, lambda _step: data, TrainingConfig(num_steps=5, learning_rate=0.01)))
    assert records[-1].loss < records[0].loss
    assert (model.prompts.context != before).any(dim=-1).all()
    assert all(parameter.grad is None for parameter in clip.model.parameters())
    assert clip.checksum() == frozen


def test_a_batch_without_captions_learns_from_labels_alone(clip: Any) -> None:
    model = objective(clip)
    values = model(batch(clip, captions=[None] * 5))
    assert float(values["contrast"].detach()) == 0
    values["loss"].backward()
    assert torch.isfinite(model.prompts.context.grad).all()
    assert model.prompts.context.grad.abs().sum() > 0


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
    torch.testing.assert_close(first[:, 1], second[:, 1])  # it meets the start token
    assert first[:, 1].abs().sum(dim=-1).min() > 0
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


def test_the_starting_scale_gives_the_labels_their_share(clip: Any) -> None:
    model, kept, data = objective(clip), objective(clip, scale="clip"), batch(clip)
    for each in (model, kept):
        each.start_scale(data.features, data.targets)
    assert float(model.scores(data.features).sigmoid().mean()) == pytest.approx(float(data.targets.mean()), abs=0.02)
    assert float(kept.bias.detach()) == 0


def test_a_fitted_sigmoid_keeps_the_order() -> None:
    scores, targets = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]), np.array([[0, 0], [0, 1], [1, 1]])
    scale, bias = fit_sigmoid(scores, targets)
    assert scale > 0
    assert 1 / (1 + np.exp(-(scale * 0.6 + bias))) > 0.5
    assert fit_sigmoid(scores, 1 - targets)[0] > 0  # never turned around
    assert fit_sigmoid(scores, np.ones((3, 2))) == fit_sigmoid(np.ones((3, 2)), targets) == (1.0, 0.0)
