"""Prompts: inserted vectors go the text encoder's own way, and every length and place is right."""

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
def openai_clip() -> object:
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
def tower(request: pytest.FixtureRequest) -> object:
    return request.getfixturevalue(request.param)


# ------------------------------------------------------------------------------------------ class prompts


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", NAMES)
def test_the_names_own_tokens_are_encoded_as_the_text_is(tower: object, name: str, template: str) -> None:
    """The prompt with the name's own tokens as vectors equals the plain text to 1e-6, in all three encoders."""
    prompts = ClassPrompts(tower, [name], num_vectors=len(tower.word_ids(name)), templates=[template])
    expected = tower.encode_texts([template.format(name)])
    with torch.no_grad():
        torch.testing.assert_close(tower.encode_prompts(*prompts()), expected, atol=1e-6, rtol=0)


def test_every_position_of_a_prompt(diffusion: object) -> None:
    prompts = ClassPrompts(diffusion, ["coat", "bag"], num_vectors=3, templates=["a photo of a {}", "{} photo"])
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


def test_all_classes_are_the_default(diffusion: object) -> None:
    prompts = ClassPrompts(diffusion, ["coat", "bag"], num_vectors=2)
    for one, other in zip(prompts(), prompts(torch.tensor([0, 1])), strict=True):
        assert torch.equal(one, other)


def test_vectors_are_the_only_parameter_and_float32(diffusion: object) -> None:
    prompts = ClassPrompts(diffusion, ["coat", "bag"], num_vectors=2)
    assert [name for name, _ in prompts.named_parameters()] == ["vectors"]
    assert prompts.vectors.dtype == torch.float32
    assert prompts.vectors.shape == (2, 2, diffusion.embedding_table.shape[1])


def test_a_name_is_repeated_or_averaged_into_the_vectors(diffusion: object) -> None:
    ids = diffusion.word_ids("ankle boot")
    assert len(ids) == 2
    tokens = diffusion.embedding_table[torch.tensor(ids)]
    more = ClassPrompts(diffusion, ["ankle boot"], num_vectors=5).vectors[0]
    torch.testing.assert_close(more.detach(), tokens[[0, 1, 0, 1, 0]])
    fewer = ClassPrompts(diffusion, ["ankle boot"], num_vectors=1).vectors[0]
    torch.testing.assert_close(fewer.detach(), tokens.mean(0, keepdim=True))


def test_a_very_long_name_loses_no_token(diffusion: object) -> None:
    name = "coat " * 200 + "bag"
    tokens = diffusion.embedding_table[torch.tensor(diffusion.word_ids(name))]
    assert len(tokens) == 201
    vectors = ClassPrompts(diffusion, [name], num_vectors=3).vectors[0].detach()
    torch.testing.assert_close(vectors.mean(0), tokens.mean(0))  # three equal parts of 67


def test_coarse_words_start_the_classes(diffusion: object) -> None:
    coarse = ClassPrompts(diffusion, ["coat", "shirt"], initial="coarse", coarse_words=["top", "top"], num_vectors=1)
    assert torch.equal(coarse.vectors[0], diffusion.embedding_table[diffusion.word_ids("top")[0]][None])
    assert torch.equal(coarse.vectors[0], coarse.vectors[1])


@pytest.mark.parametrize("words", [None, ["top"]])
def test_coarse_words_are_needed_one_a_class(diffusion: object, words: list[str] | None) -> None:
    with pytest.raises(DataError, match=r"one coarse word a class \(2\), got (none|1)"):
        ClassPrompts(diffusion, ["coat", "shirt"], initial="coarse", coarse_words=words)


def test_a_random_start_follows_the_seed_and_the_table(diffusion: object) -> None:
    def vectors(seed: int) -> Tensor:
        names = [f"class {index}" for index in range(200)]
        return ClassPrompts(diffusion, names, initial="random", num_vectors=4, seed=seed).vectors.detach()

    assert torch.equal(vectors(0), vectors(0))
    assert not torch.equal(vectors(0), vectors(1))
    table = diffusion.embedding_table
    # 800 draws: the standard error of a mean is σ/28, of a spread σ/40; 128 dimensions stay within 5 of them
    torch.testing.assert_close(vectors(0).mean((0, 1)), table.mean(0), atol=5 / 28 * float(table.std(0).max()), rtol=0)
    torch.testing.assert_close(vectors(0).std((0, 1)), table.std(0), rtol=5 / 40, atol=0)


@pytest.mark.parametrize(("template", "places"), [("a photo of a coat", 0), ("{} and {}", 2)])
def test_a_template_has_one_place(diffusion: object, template: str, places: int) -> None:
    with pytest.raises(DataError, match=f"has {places} places"):
        ClassPrompts(diffusion, ["coat"], templates=[template])


def test_a_template_that_is_too_long_says_by_how_much(diffusion: object) -> None:
    num_words = diffusion.context_length - 2 - 3  # with start, end and four vectors: one too many
    template = "coat " * num_words + "{}"
    with pytest.raises(DataError, match=f"takes {diffusion.context_length + 1} tokens with start and end, 1 more than"):
        ClassPrompts(diffusion, ["coat"], templates=[template], num_vectors=4)
    assert ClassPrompts(diffusion, ["coat"], templates=[template], num_vectors=3).num_vectors == 3


def test_other_wrong_settings_are_named(diffusion: object) -> None:
    with pytest.raises(ValueError, match="num_vectors is 0"):
        ClassPrompts(diffusion, ["coat"], num_vectors=0)
    with pytest.raises(ValueError, match="initial is 'zero'"):
        ClassPrompts(diffusion, ["coat"], initial="zero")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="' ' has no tokens"):
        ClassPrompts(diffusion, [" "])


# ---------------------------------------------------------------------------------------- context prompts


def text_of(name: str, context: list[str], position: str, ending: str) -> str:
    half = {"end": len(context), "middle": len(context) // 2, "front": 0}[position]
    return " ".join([*context[:half], name, *context[half:]]) + ending


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [True, False])
@pytest.mark.parametrize("ending", ["", ".", ", dark and slim."])
def test_context_of_words_is_encoded_as_the_text_is(
    tower: object, position: str, class_specific: bool, ending: str
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


def padded(tower: object, prompts: ContextPrompts) -> tuple[Tensor, Tensor]:
    """Up to the full context, which the diffusion model's text encoder wants; CLIP's needs no padding."""
    ids, embeddings = prompts()
    if not hasattr(tower, "denoiser"):
        return ids, embeddings
    missing = tower.context_length - ids.shape[1]
    more = torch.full((len(ids), missing), tower.pad_id)
    return torch.cat([ids, more], 1), torch.cat([embeddings, tower.embedding_table[more]], 1)


def test_a_prompt_is_as_long_as_its_name_needs(clip: object) -> None:
    ids, embeddings = ContextPrompts(clip, ["coat", "ankle boot"], num_context=4)()
    assert ids.shape == (2, 1 + 4 + 2 + 1)
    assert embeddings.shape[:2] == ids.shape
    assert ids.eq(clip.end_id).int().argmax(1).tolist() == [6, 7]


def test_the_ending_stands_frozen_before_the_end_token(clip: object) -> None:
    prompts = ContextPrompts(clip, ["coat", "ankle boot"], num_context=4, initial_words="a photo of a", ending=".")
    ids, embeddings = prompts()
    stop = clip.word_ids(".")
    assert len(stop) == 1
    assert ids.shape == (2, 1 + 4 + 2 + 1 + 1)
    assert ids[0].tolist()[5:] == [*clip.word_ids("coat"), *stop, clip.end_id, clip.pad_id]
    assert ids[1].tolist()[5:] == [*clip.word_ids("ankle boot"), *stop, clip.end_id]
    assert clip.prompt_tower(ids).end_positions.tolist() == [7, 8]
    assert torch.equal(embeddings[0, 6].detach(), clip.embedding_table[stop[0]])
    with torch.no_grad():
        found = clip.encode_prompts(ids, embeddings)
    texts = ["a photo of a coat.", "a photo of a ankle boot."]
    torch.testing.assert_close(found, clip.encode_texts(texts), atol=1e-6, rtol=0)
    plain = clip.encode_texts([text[:-1] for text in texts])
    assert not torch.allclose(found, plain, atol=1e-4)


def test_initial_words_take_the_last_places_and_the_rest_is_random(clip: object) -> None:
    context = ContextPrompts(clip, ["coat", "bag"], num_context=20, initial_words="a photo of a").context.detach()
    expected = clip.embedding_table[torch.tensor(clip.word_ids("a photo of a"))]
    assert torch.equal(context[0, 16:], expected)
    assert torch.equal(context[1, 16:], expected)
    assert not torch.equal(context[0, :16], context[1, :16])
    # 16 · 128 · 2 draws of N(0, 0.02): standard errors 0.0003 and 0.0002
    assert abs(float(context[:, :16].mean())) < 0.0015
    assert float(context[:, :16].std()) == pytest.approx(0.02, abs=0.001)


def test_the_context_follows_the_seed(clip: object) -> None:
    first, again, other = (ContextPrompts(clip, ["coat"], seed=seed).context for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_prompt_that_is_too_long_says_by_how_much(clip: object) -> None:
    fits = clip.context_length - 2 - 2
    assert ContextPrompts(clip, ["ankle boot"], num_context=fits)()[0].shape[1] == clip.context_length
    with pytest.raises(DataError, match=f"class 'ankle boot' with {fits + 1} context vectors .* 1 more than"):
        ContextPrompts(clip, ["coat", "ankle boot"], num_context=fits + 1)
    with pytest.raises(DataError, match=f"class 'ankle boot' with {fits} context vectors and the ending '.' .* 1 more"):
        ContextPrompts(clip, ["coat", "ankle boot"], num_context=fits, ending=".")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_position": "behind"}, "class_position is 'behind'"),
        ({"num_context": 0}, "num_context is 0"),
        ({"ending": " "}, "the ending ' ' has no tokens; leave it empty"),
        ({"num_context": 3, "initial_words": "a photo of a"}, "4 tokens, 1 more than the 3 context vectors"),
    ],
)
def test_wrong_context_settings_are_named(clip: object, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContextPrompts(clip, ["coat"], **settings)  # type: ignore[arg-type]


def test_a_name_without_tokens_is_named(clip: object) -> None:
    with pytest.raises(DataError, match="class name ' ' has no tokens"):
        ContextPrompts(clip, [" "])
