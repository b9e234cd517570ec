"""The frozen CLIP: its own features, whichever way tokens come in, and the fast way to those of learned prompts."""

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from gcpl_lab.errors import ModelError
from gcpl_lab.fast.text import FastPrompts
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.models.clip import FrozenCLIP, encode_token_embeddings
from gcpl_lab.models.presets import Preset

TEXTS = ["coat", "a photo of a dark slim ankle boot, laced", "長靴", "coat " * 60]


def build_clip(dtype: torch.dtype = torch.float32, custom: bool = False, **text: Any) -> FrozenCLIP:
    """A small open_clip CLIP with the default tokenizer and random weights."""
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3, **text}
    torch.manual_seed(0)
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    model = kind(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=text.pop("quick_gelu", False)).to(dtype)
    return FrozenCLIP(model=model, tokenizer=open_clip.SimpleTokenizer(context_length=16), transform=None, name="small")


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 40 + 7 * i, 3), dtype=np.uint8)) for i in range(5)]


def test_text_features_are_open_clips_own(clip: Any) -> None:
    """Through our embedding path, on cut positions, and through open_clip's own ``encode_text``: equal to 1e-6."""
    with torch.no_grad():
        expected = F.normalize(clip.model.encode_text(clip.tokenizer(TEXTS)), dim=-1)
    torch.testing.assert_close(clip.encode_texts(TEXTS), expected, atol=1e-6, rtol=0)


def test_cutting_positions_behind_the_end_changes_nothing(clip: Any) -> None:
    ids = clip.tokenizer(TEXTS[:3])
    ends = (ids == clip.end_id).int().argmax(1)
    longest = int(ends.max()) + 1
    assert longest < clip.context_length
    tower = copy.deepcopy(clip.text_tower).double()  # leaves no room for rounding
    embeddings = tower.token_embedding(ids)
    with torch.no_grad():
        hidden, features = encode_token_embeddings(tower, embeddings, ends)
        cut = encode_token_embeddings(tower, embeddings[:, :longest], ends)
    torch.testing.assert_close(cut, (hidden[:, :longest], features), atol=1e-12, rtol=0)


def test_both_copies_of_the_text_tower_and_tokenizer_agree(clip: Any, diffusion: Any) -> None:
    """open_clip's tower and transformers' copy of it: equal tokens, and hidden states equal to 1e-5."""
    texts = TEXTS[:3]
    ids = clip.tokenizer(texts)
    length = {"padding": "max_length", "max_length": diffusion.context_length}
    assert torch.equal(ids, diffusion.tokenizer(texts, **length, return_tensors="pt").input_ids)
    with torch.no_grad():
        embeddings = clip.text_tower.token_embedding(ids)
        hidden, _ = encode_token_embeddings(clip.text_tower, embeddings, torch.zeros(3).long())
    torch.testing.assert_close(hidden, diffusion.encode_texts(texts), atol=1e-5, rtol=0)
    for text in TEXTS:
        assert clip.word_ids(text) == diffusion.word_ids(text)
    for name in ("start_id", "end_id", "pad_id", "context_length"):
        assert getattr(clip, name) == getattr(diffusion, name)
    (token,) = clip.word_ids("coat")
    assert clip.word_of(token) == diffusion.word_of(token) == "coat</w>"


def test_special_tokens_of_the_default_tokenizer() -> None:
    clip = build_clip()
    assert (clip.start_id, clip.end_id, clip.pad_id, clip.context_length) == (49406, 49407, 0, 16)
    assert [clip.word_of(token) for token in clip.word_ids("a photo")] == ["a</w>", "photo</w>"]


def features_and_gradient(encode: Any, prompts: ContextPrompts) -> tuple[torch.Tensor, torch.Tensor]:
    features = encode(*prompts())
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    return features.detach(), torch.autograd.grad((features * weights).sum(), prompts.context)[0]


PLAIN = [{}, {"proj_bias": True, "custom": True}, {"proj_type": "none", "custom": True}, {"quick_gelu": True}]
OTHERS = [{"ls_init_value": 0.5}, {"block_type": "custom", "custom": True}, {"no_causal_mask": True, "custom": True}]


@pytest.mark.parametrize("kind", [*PLAIN, *OTHERS], ids=str)
@pytest.mark.parametrize("names", [("coat", "bag"), ("coat", "ankle boot with laces", "bag")], ids=["one", "several"])
def test_the_fast_way_to_features_of_prompts_equals_the_towers_own(kind: Any, names: tuple[str, ...]) -> None:
    """One prompt length and several; projection by a matrix, a linear layer or none; towers of another build as is."""
    clip = build_clip(torch.float64, **kind)  # leaves no room for rounding
    prompts, fast = ContextPrompts(clip, names, num_context=3), FastPrompts(clip)
    found, expected = (features_and_gradient(encode, prompts) for encode in (fast, clip.encode_prompts))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert fast.is_plain == (kind in PLAIN)
    assert torch.equal(fast(prompts()[0]), clip.encode_prompts(prompts()[0]))  # plain texts go the tower's way


def test_the_fast_way_in_half_precision_and_under_autocast() -> None:
    whole, half = build_clip(), build_clip(torch.bfloat16)
    prompts = ContextPrompts(whole, ("coat", "ankle boot"), num_context=3)
    expected = features_and_gradient(FastPrompts(whole), prompts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = features_and_gradient(FastPrompts(whole), prompts)
    for found in (cast, features_and_gradient(FastPrompts(half), prompts)):
        for one, other in zip(found, expected, strict=True):
            assert one.dtype is torch.float32
            assert 0 < (one - other).norm() < 0.1 * other.norm()


def test_image_features_are_unit_and_do_not_depend_on_the_pass(clip: Any) -> None:
    features = clip.encode_images(images())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(clip.encode_images(images(), batch_size=2), features, atol=1e-6, rtol=0)
    assert clip.encode_images([]).shape == (0, features.shape[1])


def test_flipped_features_are_those_of_mirrored_images(clip: Any) -> None:
    squares = [image.resize((64, 64)) for image in images()]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in squares]
    found = clip.encode_images(squares, flip=True)
    torch.testing.assert_close(found, clip.encode_images(mirrored), atol=1e-5, rtol=0)
    assert not torch.allclose(found, clip.encode_images(squares), atol=1e-4)


def test_images_are_normalised_as_in_training(clip: Any) -> None:
    """A plain grey image of value 0.3 is the mean, so the transform makes it (nearly) zero."""
    grey = Image.new("RGB", (80, 64), (77, 77, 77))  # 77/255 = 0.302
    torch.testing.assert_close(clip.transform(grey), torch.full((3, 64, 64), (77 / 255 - 0.3) / 0.35))


def test_towers_in_half_precision(random_pair: Any) -> None:
    """Features stay float32 and near those of float32 weights; the factor on cosines is untouched."""
    half, whole = FrozenCLIP.load(str(random_pair.folder), dtype=torch.bfloat16), random_pair.clip
    assert (half.dtype, whole.dtype) == (torch.bfloat16, torch.float32)
    assert half.logit_scale == whole.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    for name, given in (("encode_texts", TEXTS[:3]), ("encode_images", images())):
        found, expected = (getattr(clip, name)(given) for clip in (half, whole))
        assert found.dtype is torch.float32
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_it_is_frozen_and_loaded_silently(random_pair: Any, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = FrozenCLIP.load(str(random_pair.folder))
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == 0
    assert loaded.checksum() == random_pair.clip.checksum()
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="preset 'mine': CLIP .* cannot be loaded"):
        FrozenCLIP.load(Preset("mine", "nowhere", f"local-dir:{tmp_path}/none", "", "", 0))
    other: Any = torch.nn.Module()
    other.text = torch.nn.Linear(1, 1)
    with pytest.raises(ModelError, match="its text tower is a Linear; learned prompts need the plain CLIP"):
        FrozenCLIP(model=other, tokenizer=None, transform=None, name="other")
