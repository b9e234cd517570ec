"""Prompts: inserted vectors go the text encoder's own way, and every length and place is right."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.models.text import PLACEHOLDER_ID

TEMPLATES = ("a photo of a {}", "{}", "a {} on a black background", "{}, dark and slim")
NAMES = ["coat", "t-shirt", "ankle boot", "長靴", "Größe", "zweireihiger Wollmantel"]


@pytest.fixture(scope="module")
def openai_clip() -> Any:
    """A small open_clip CLIP with open_clip's default tokenizer, which pads with 0, and random weights."""
    import open_clip

    from gcpl_lab.models.clip import FrozenCLIP

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = open_clip.model.CLIP(
            embed_dim=16,
            vision_cfg={"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
        )
    return FrozenCLIP(model=model, tokenizer=open_clip.tokenizer.SimpleTokenizer(), transform=None, name="small")


@pytest.fixture(params=["diffusion", "clip", "openai_clip"])
def tower(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", NAMES)
def test_the_names_own_tokens_are_encoded_as_the_text_is(tower: Any, name: str, template: str) -> None:
    """The prompt with the name's own tokens as vectors equals the plain text to 1e-6, in all three encoders."""
    prompts = ClassPrompts(tower, [name], num_vectors=len(tower.word_ids(name)), templates=[template])
    expected = tower.encode_texts([template.format(name)])
    with torch.no_grad():
        torch.testing.assert_close(tower.encode_prompts(*prompts()), expected, atol=1e-6, rtol=0)


def test_every_position_of_a_prompt(diffusion: Any) -> None:
    prompts = ClassPrompts(diffusion, ["coat", "bag"], num_vectors=3, templates=["a photo of a {}", "{} photo"])
    assert all(map(torch.equal, prompts(), prompts(torch.tensor([0, 1]))))  # all classes are the default
    table = diffusion.embedding_table
    for template, (front, behind) in enumerate((("a photo of a", ""), ("", "photo"))):
        front_ids, behind_ids = diffusion.word_ids(front), diffusion.word_ids(behind)
        ids, embeddings = prompts(torch.tensor([1, 0, 1]), template)
        start = 1 + len(front_ids)
        end = start + 3 + len(behind_ids)
        expected = [diffusion.start_id, *front_ids, *[PLACEHOLDER_ID] * 3, *behind_ids]
        expected += [diffusion.end_id] * (diffusion.context_length - end)
        assert ids.tolist() == [expected] * 3
        assert torch.equal(embeddings[:, start : start + 3], prompts.vectors[torch.tensor([1, 0, 1])])
        assert torch.equal(embeddings[0, :start], table[ids[0, :start]])
        assert torch.equal(embeddings[2, start + 3 :], table[ids[2, start + 3 :]])


def test_a_name_is_repeated_or_averaged_into_the_vectors(diffusion: Any) -> None:
    def start(name: str, num_vectors: int) -> tuple[Tensor, Tensor]:
        tokens = diffusion.embedding_table[torch.tensor(diffusion.word_ids(name))]
        return ClassPrompts(diffusion, [name], num_vectors=num_vectors).vectors[0].detach(), tokens

    more, tokens = start("ankle boot", 5)
    torch.testing.assert_close(more, tokens[[0, 1, 0, 1, 0]])
    torch.testing.assert_close(start("ankle boot", 1)[0], tokens.mean(0, keepdim=True))
    vectors, tokens = start("coat " * 200 + "bag", 3)  # a very long name loses no token
    torch.testing.assert_close(vectors, torch.stack([part.mean(0) for part in tokens.split(67)]))


def test_coarse_words_start_the_classes(diffusion: Any) -> None:
    coarse = ClassPrompts(diffusion, ["coat", "shirt"], initial="coarse", coarse_words=["top", "top"], num_vectors=1)
    assert torch.equal(coarse.vectors[0], diffusion.embedding_table[diffusion.word_ids("top")[0]][None])
    assert torch.equal(coarse.vectors[0], coarse.vectors[1])
    for words, given in ((None, "none"), (["top"], "1")):
        with pytest.raises(DataError, match=rf"one coarse word a class \(2\), got {given}"):
            ClassPrompts(diffusion, ["coat", "shirt"], initial="coarse", coarse_words=words)


def test_a_random_start_follows_the_seed_and_the_table(diffusion: Any) -> None:
    names, table = [f"class {index}" for index in range(200)], diffusion.embedding_table
    first, again, other = (
        ClassPrompts(diffusion, names, initial="random", num_vectors=4, seed=seed).vectors.detach()
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # 800 draws: the standard error of a mean is σ/28, of a spread σ/40; 128 dimensions stay within 5 of them
    torch.testing.assert_close(first.mean((0, 1)), table.mean(0), atol=5 / 28 * float(table.std(0).max()), rtol=0)
    torch.testing.assert_close(first.std((0, 1)), table.std(0), rtol=5 / 40, atol=0)


def test_class_prompts_that_cannot_be_are_named(diffusion: Any) -> None:
    num_words = diffusion.context_length - 2 - 3  # with start, end and four vectors: one too many
    template = "coat " * num_words + "{}"
    assert ClassPrompts(diffusion, ["coat"], templates=[template], num_vectors=3).num_vectors == 3
    for name, settings, message in (
        ("coat", {"templates": [template]}, f"{diffusion.context_length + 1} tokens with start and end, 1 more than"),
        ("coat", {"templates": ["a photo of a coat"]}, "has 0 places"),
        ("coat", {"templates": ["{} and {}"]}, "has 2 places"),
        ("coat", {"num_vectors": 0}, "num_vectors is 0"),
        ("coat", {"initial": "zero"}, "initial is 'zero'"),
        (" ", {}, "' ' has no tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassPrompts(diffusion, [name], **settings)


def text_of(name: str, context: list[str], position: str, ending: str) -> str:
    half = {"end": len(context), "middle": len(context) // 2, "front": 0}[position]
    return " ".join([*context[:half], name, *context[half:]]) + ending


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [True, False])
@pytest.mark.parametrize("ending", ["", ".", ", dark and slim."])
def test_context_of_words_is_encoded_as_the_text_is(
    tower: Any, position: str, class_specific: bool, ending: str
) -> None:
    """Names of different lengths, three layouts: with words as context every prompt equals its plain text."""
    names, words = ["coat", "ankle boot", "長靴"], ["dark", "photo", "of", "a", "black"]
    prompts = ContextPrompts(
        tower,
        names,
        num_context=5,
        class_specific=class_specific,
        class_position=position,
        initial_words=" ".join(words),
        ending=ending,
    )
    assert [name for name, _ in prompts.named_parameters()] == ["context"]
    assert len(prompts.context) == (3 if class_specific else 1)
    assert prompts.context.dtype == torch.float32
    with torch.no_grad():
        found = tower.encode_prompts(*padded(tower, prompts))
    expected = tower.encode_texts([text_of(name, words, position, ending) for name in names])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def padded(tower: Any, prompts: ContextPrompts) -> tuple[Tensor, Tensor]:
    """Up to the full context, which the diffusion model's text encoder wants; CLIP's needs no padding."""
    ids, embeddings = prompts()
    if not hasattr(tower, "denoiser"):
        return ids, embeddings
    missing = tower.context_length - ids.shape[1]
    more = torch.full((len(ids), missing), tower.pad_id)
    return torch.cat([ids, more], 1), torch.cat([embeddings, tower.embedding_table[more]], 1)


def test_the_ending_stands_frozen_before_the_end_token(clip: Any) -> None:
    prompts = ContextPrompts(clip, ["coat", "ankle boot"], num_context=4, initial_words="a photo of a", ending=".")
    (ids, embeddings), stop = prompts(), clip.word_ids(".")
    assert ids[0].tolist()[5:] == [*clip.word_ids("coat"), *stop, clip.end_id, clip.pad_id]
    assert ids[1].tolist()[5:] == [*clip.word_ids("ankle boot"), *stop, clip.end_id]
    assert torch.equal(embeddings[0, 6].detach(), clip.embedding_table[stop[0]])


def test_initial_words_take_the_last_places_and_the_rest_is_random(clip: Any) -> None:
    context = ContextPrompts(clip, ["coat", "bag"], num_context=20, initial_words="a photo of a").context.detach()
    expected = clip.embedding_table[torch.tensor(clip.word_ids("a photo of a"))]
    assert torch.equal(context[0, 16:], expected)
    assert torch.equal(context[1, 16:], expected)
    assert not torch.equal(context[0, :16], context[1, :16])
    again, other = (ContextPrompts(clip, ["coat", "bag"], num_context=20, seed=seed).context for seed in (0, 1))
    assert torch.equal(again[:, :16], context[:, :16])
    assert not torch.equal(other[:, :16], context[:, :16])
    # 16 · 128 · 2 draws of N(0, 0.02): standard errors 0.0003 and 0.0002
    assert abs(float(context[:, :16].mean())) < 0.0015
    assert float(context[:, :16].std()) == pytest.approx(0.02, abs=0.001)


def test_context_prompts_that_cannot_be_are_named(clip: Any) -> None:
    fits = clip.context_length - 2 - 2
    assert ContextPrompts(clip, ["ankle boot"], num_context=fits)()[0].shape[1] == clip.context_length
    for name, settings, message in (
        ("ankle boot", {"num_context": fits + 1}, f"'ankle boot' with {fits + 1} context vectors .* 1 more than"),
        ("ankle boot", {"num_context": fits, "ending": "."}, f"{fits} context vectors and the ending '.' .* 1 more"),
        ("coat", {"num_context": 3, "initial_words": "a photo of a"}, "4 tokens, 1 more than the 3 context vectors"),
        ("coat", {"class_position": "behind"}, "class_position is 'behind'"),
        ("coat", {"num_context": 0}, "num_context is 0"),
        ("coat", {"ending": " "}, "the ending ' ' has no tokens; leave it empty"),
        (" ", {}, "class name ' ' has no tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            ContextPrompts(clip, ["bag", name], **settings)
