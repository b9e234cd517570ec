"""The text encoder behind a known beginning: equal to the long way, in values and gradients."""

import copy
from typing import Any

import pytest
import torch

from gcpl_lab.fast.template_tower import TemplateTower, is_plain
from gcpl_lab.gcpl.objectives import GCPL
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import NoisyBatch
from gcpl_lab.models.diffusion import FrozenDiffusion

TEMPLATES = ("a photo of a {}", "{}", "a {} on a black background")


def text_model(activation: str = "quick_gelu") -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPTextConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=9,
            hidden_act=activation,
            bos_token_id=48,
            eos_token_id=49,
            pad_token_id=49,
        )
        return CLIPTextModel(config).requires_grad_(False).eval()


def insert(model: Any, ids: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
    """transformers' own pass with other token embeddings."""
    table = model.get_input_embeddings()
    handle = table.register_forward_hook(lambda *_: embeddings)
    try:
        return model(input_ids=ids).last_hidden_state
    finally:
        handle.remove()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("num_known", [1, 4, 8])
def test_the_short_way_equals_the_long_one(num_known: int, activation: str) -> None:
    """In float64, which leaves no room for rounding; weights that are not those of one layer for all."""
    model = text_model(activation).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    ids = torch.randint(0, 48, (9,), generator=torch.Generator().manual_seed(1))
    embeddings = model.get_input_embeddings()(ids).repeat(3, 1, 1)
    learned = torch.randn(3, 9 - num_known, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tower, found = TemplateTower(model, ids[:num_known]), []
    assert tower.num_known == num_known
    for encode in (lambda leaf: insert(model, ids.repeat(3, 1), leaf), tower):
        leaf = learned.clone().requires_grad_()
        hidden = encode(torch.cat([embeddings[:, :num_known], leaf], dim=1))
        (gradient,) = torch.autograd.grad((hidden * torch.linspace(-1, 2, 9 * 16).view(9, 16)).sum(), leaf)
        found.append((hidden.detach(), gradient))
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, atol=1e-12, rtol=0)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_class_prompts_are_encoded_as_before(diffusion: FrozenDiffusion, template: int) -> None:
    """The shipped encoder in float32: hidden states to 1e-5, gradients of the vectors to 1e-5 of the largest."""
    prompts = ClassPrompts(diffusion, ["coat", "bag", "shirt"], num_vectors=2, templates=TEMPLATES)
    tower, found = diffusion.template_tower(prompts.beginning(template)), []
    assert tower is not None
    before = diffusion.checksum()
    weights = torch.randn(diffusion.context_length, 128, generator=torch.Generator().manual_seed(0))
    for one in (None, tower):
        ids, embeddings = prompts(torch.tensor([2, 0]), template)
        hidden = diffusion.encode_prompts(ids, embeddings, one)
        (gradient,) = torch.autograd.grad((hidden * weights).sum(), prompts.vectors)
        found.append((hidden.detach(), gradient / gradient.abs().max()))
        assert float(gradient[1].abs().max()) == 0  # a class that was not asked for
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, atol=1e-5, rtol=0)
    assert diffusion.checksum() == before


def test_what_is_kept_serves_with_and_without_autocast(diffusion: FrozenDiffusion) -> None:
    prompts = ClassPrompts(diffusion, ["coat", "bag"], num_vectors=2)
    ids, embeddings = prompts()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tower = diffusion.template_tower(prompts.beginning())
        half = diffusion.encode_prompts(ids, embeddings, tower)
    with torch.no_grad():
        expected = diffusion.encode_prompts(ids, embeddings)
        torch.testing.assert_close(diffusion.encode_prompts(ids, embeddings, tower), expected, atol=1e-5, rtol=0)
    assert not torch.equal(half.float(), expected)
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0)


def test_weights_of_half_precision(random_pair: Any) -> None:
    model = FrozenDiffusion.load(str(random_pair.folder), dtype=torch.bfloat16)
    prompts = ClassPrompts(model, ["coat", "bag"], num_vectors=2)
    found = [model.encode_prompts(*prompts(), tower) for tower in (None, model.template_tower(prompts.beginning()))]
    assert {hidden.dtype for hidden in found} == {torch.bfloat16}
    torch.testing.assert_close(found[1].float(), found[0].float(), atol=0.1, rtol=0)
    found[1].float().square().sum().backward()
    assert prompts.vectors.grad is not None
    assert bool((prompts.vectors.grad != 0).any())


def test_another_encoder_goes_its_own_way(diffusion: FrozenDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass, or a layer with something put in place of a projection; training goes on without a tower."""

    class Adapted(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    class Other(type(diffusion.text_encoder)):  # type: ignore[misc]
        pass

    assert is_plain(diffusion.text_encoder)
    other = copy.deepcopy(diffusion.text_encoder)
    other.__class__ = Other
    assert not is_plain(other)
    adapted = copy.deepcopy(diffusion.text_encoder)
    adapted.encoder.layers[1].self_attn.q_proj.__class__ = Adapted
    assert not is_plain(adapted)
    assert not is_plain(torch.nn.Linear(2, 2))
    prompts = ClassPrompts(diffusion, ["coat", "bag"], num_vectors=2)
    shape = (2, *diffusion.latent_shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    batch = NoisyBatch(torch.zeros(shape), noise, torch.tensor([300, 600]), torch.tensor([0, 1]))
    plain = float(GCPL(diffusion, prompts)(batch)["loss"].detach())
    monkeypatch.setattr(diffusion, "text_encoder", other)
    assert diffusion.template_tower(prompts.beginning()) is None
    assert float(GCPL(diffusion, prompts)(batch)["loss"].detach()) == pytest.approx(plain, rel=1e-5)
    monkeypatch.setattr(diffusion, "text_encoder", adapted)
    assert float(GCPL(diffusion, prompts)(batch)["loss"].detach()) != pytest.approx(plain, rel=1e-5)
