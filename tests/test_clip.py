"""The frozen CLIP: its own features, whichever way tokens come in."""

import copy
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from gcpl_lab.errors import ModelError
from gcpl_lab.fast.prompt_tower import PromptTower, encode_token_embeddings
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.presets import Preset

TEXTS = ["coat", "a photo of a dark slim ankle boot, laced", "長靴", "coat " * 60]


def test_text_features_are_open_clips_own(clip: object) -> None:
    """Through our embedding path, on cut positions, and through open_clip's own ``encode_text``: equal to 1e-6."""
    with torch.no_grad():
        expected = F.normalize(clip.model.encode_text(clip.tokenizer(TEXTS)), dim=-1)
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected, atol=1e-6, rtol=0)


def test_cutting_positions_behind_the_end_changes_nothing(clip: object) -> None:
    ids = clip.tokenizer(TEXTS[:3])
    ends = (ids == clip.end_id).int().argmax(1)
    longest = int(ends.max()) + 1
    assert longest < clip.context_length
    tower = copy.deepcopy(clip.text_tower).double()  # leaves no room for rounding
    embeddings = tower.token_embedding(ids)
    with torch.no_grad():
        whole, features = encode_token_embeddings(tower, embeddings, ends)
        cut, cut_features = encode_token_embeddings(tower, embeddings[:, :longest], ends)
    torch.testing.assert_close(cut, whole[:, :longest], atol=1e-12, rtol=0)
    torch.testing.assert_close(cut_features, features, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "kind", ["plain", "many rows", "layer scale", "quick gelu", "learned", "custom block", "not causal", "library"]
)
def test_the_short_way_to_features_equals_the_long_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, in float64; towers of another build go the long way."""
    import open_clip
    from open_clip.transformer import QuickGELU

    monkeypatch.setenv("GCPL_LAB_KERNELS", "library" if kind == "library" else "own")
    monkeypatch.setattr(PromptTower, "MOST_IN_ONE", 17 if kind == "many rows" else 18)  # 6 + 2 + 4 + 6
    torch.manual_seed(0)
    tower = (
        open_clip.transformer.TextTransformer(
            context_length=9,
            vocab_size=50,
            width=16,
            heads=2,
            layers=3,
            output_dim=6,
            no_causal_mask=kind == "not causal",
            ls_init_value=0.5 if kind == "layer scale" else None,
            block_type="custom" if kind == "custom block" else "default",
            act_layer=QuickGELU if kind == "quick gelu" else torch.nn.GELU,
        )
        .double()
        .requires_grad_(kind == "learned")
    )
    embeddings = torch.randn(4, 7, 16, dtype=torch.float64)
    embeddings[:, 0] = embeddings[0, 0]  # the start token
    ends, weights = torch.tensor([6, 2, 4, 6]), torch.randn(4, 6, dtype=torch.float64)
    found = []
    short = PromptTower(tower, embeddings[0, 0], ends)
    assert short.is_plain == (kind not in ("custom block", "not causal", "library"))
    assert (short.few_rows is not None) == (kind == "plain")
    for encode in (lambda leaf: F.normalize(encode_token_embeddings(tower, leaf, ends)[1], dim=-1), short):
        leaf = embeddings.clone().requires_grad_()
        features = encode(leaf)
        (gradient,) = torch.autograd.grad((features * weights).sum(), leaf)
        found.append((features.detach(), gradient[:, 1:]))
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, atol=1e-12, rtol=0)


def test_few_rows_under_autocast_and_in_half_precision() -> None:
    """Autocast is heard forth and changes no digit back; no gradient for the start and what stands behind an end."""
    import open_clip

    torch.manual_seed(0)
    tower = open_clip.transformer.TextTransformer(
        context_length=9, vocab_size=50, width=16, heads=2, layers=3, output_dim=6
    ).requires_grad_(False)
    embeddings, ends = torch.randn(3, 6, 16), torch.tensor([5, 2, 4])
    weights = torch.randn(3, 6)

    def run(tower: torch.nn.Module, *, forth: bool = False, back: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        few = PromptTower(tower, embeddings[0, 0], ends)
        assert few.few_rows is not None
        leaf = embeddings.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=forth):
            features = few(leaf)
        assert features.dtype == torch.float32
        loss = (features * weights).sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=back):
            loss.backward()
        assert leaf.grad is not None
        return features.detach(), leaf.grad

    features, gradient = run(tower)
    for expected, found in zip((features, gradient), run(tower, back=True), strict=True):
        assert torch.equal(found, expected)
    cast, of_cast = run(tower, forth=True)
    assert not torch.equal(cast, features)
    torch.testing.assert_close(cast, features, atol=0.02, rtol=0.05)
    torch.testing.assert_close(of_cast, gradient, atol=0.02, rtol=0.05)
    positions = torch.arange(6)
    assert torch.equal(gradient.abs().sum(dim=2) > 0, (positions > 0) & (positions <= ends[:, None]))
    half, of_half = run(tower.to(torch.bfloat16))
    assert of_half.dtype == torch.float32
    torch.testing.assert_close(half, features, atol=0.02, rtol=0.05)


def test_both_copies_of_the_text_tower_agree(clip: object, diffusion: object) -> None:
    """open_clip's tower and transformers' copy of it: equal tokens, and hidden states equal to 1e-5."""
    texts = TEXTS[:3]
    ids = clip.tokenizer(texts)
    expected = diffusion.tokenizer(
        texts, padding="max_length", max_length=diffusion.context_length, return_tensors="pt"
    ).input_ids
    assert torch.equal(ids, expected)
    with torch.no_grad():
        embeddings = clip.text_tower.token_embedding(ids)
        hidden, _ = encode_token_embeddings(clip.text_tower, embeddings, torch.zeros(3).long())
    torch.testing.assert_close(hidden, diffusion.encode_texts(texts), atol=1e-5, rtol=0)


def test_both_tokenizers_name_tokens_alike(clip: object, diffusion: object) -> None:
    for text in TEXTS:
        assert clip.word_ids(text) == diffusion.word_ids(text)
    assert (clip.start_id, clip.end_id, clip.pad_id) == (diffusion.start_id, diffusion.end_id, diffusion.pad_id)
    assert clip.context_length == diffusion.context_length
    (token,) = clip.word_ids("coat")
    assert clip.word_of(token) == diffusion.word_of(token) == "coat</w>"


def test_special_tokens_of_the_default_tokenizer() -> None:
    import open_clip

    model = open_clip.model.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 16, "layers": 1, "width": 8, "head_width": 8, "patch_size": 8},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    )
    clip = FrozenCLIP(model=model, tokenizer=open_clip.tokenizer.SimpleTokenizer(), transform=None, name="small")
    assert (clip.start_id, clip.end_id, clip.pad_id, clip.context_length) == (49406, 49407, 0, 77)
    assert [clip.word_of(token) for token in clip.word_ids("a photo")] == ["a</w>", "photo</w>"]


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 40 + 7 * i, 3), dtype=np.uint8)) for i in range(5)]


def test_image_features_are_unit_and_do_not_depend_on_the_pass(clip: object) -> None:
    features = clip.encode_images(images())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(clip.encode_images(images(), batch_size=2), features, atol=1e-6, rtol=0)
    assert clip.encode_images([]).shape == (0, features.shape[1])


def test_flipped_features_are_those_of_mirrored_pictures(clip: object) -> None:
    squares = [image.resize((64, 64)) for image in images()]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in squares]
    found, plain = clip.encode_images(squares, flip=True), clip.encode_images(squares)
    torch.testing.assert_close(found, clip.encode_images(mirrored), atol=1e-5, rtol=0)
    assert not torch.allclose(found, plain, atol=1e-4)


def test_pictures_are_normalised_as_in_training(clip: object) -> None:
    """A plain grey picture of value 0.3 is the mean, so the transform makes it (nearly) zero."""
    grey = Image.new("RGB", (80, 64), (77, 77, 77))  # 77/255 = 0.302
    pixels = clip.transform(grey)
    assert pixels.shape == (3, 64, 64)
    torch.testing.assert_close(pixels, torch.full((3, 64, 64), (77 / 255 - 0.3) / 0.35))


def test_towers_in_half_precision(random_pair: object) -> None:
    """Features stay float32 and near those of float32 weights; the factor on cosines is untouched."""
    half, whole = FrozenCLIP.load(str(random_pair.folder), dtype=torch.bfloat16), random_pair.clip
    assert (half.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
    assert half.logit_scale == whole.logit_scale
    for found, expected in (
        (half.encode_texts(TEXTS[:3]), whole.encode_texts(TEXTS[:3])),
        (half.encode_images(images()), whole.encode_images(images())),
    ):
        assert found.dtype is torch.float32
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_nothing_of_it_can_be_trained(clip: object) -> None:
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert not clip.model.training
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_loading_is_silent(random_pair: object, capfd: pytest.CaptureFixture[str]) -> None:
    assert FrozenCLIP.load(str(random_pair.folder)).checksum() == random_pair.clip.checksum()
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0


def test_weights_that_are_absent_are_named(tmp_path: object) -> None:
    preset = Preset("mine", "nowhere", f"local-dir:{tmp_path}/none", "", "", 0)
    with pytest.raises(ModelError, match="preset 'mine': CLIP .* cannot be loaded"):
        FrozenCLIP.load(preset)


def test_another_kind_of_text_tower_is_refused() -> None:
    class Other(torch.nn.Module):
        text = torch.nn.Linear(1, 1)

    with pytest.raises(ModelError, match="its text tower is a Linear; learned prompts need the plain CLIP"):
        FrozenCLIP(model=Other(), tokenizer=None, transform=None, name="other")
