"""Denoising one noisy latent under many prompts without doing the common part again for each.

A text-conditioned denoiser hears the prompt through its cross-attention layers alone. So everything before the first
of them is the same for all prompts and runs once for each (image, t, ε); and the keys and values that those layers
make of a prompt are the same for all latents and are made once for each prompt. Both change nothing but the order
of the arithmetic, in classification and in training: gradients reach the prompts through keys and values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gcpl_lab.fast.cpu_linear import torch_products
from gcpl_lab.models.diffusion import FrozenDiffusion


class _PromptReached(Exception):
    """The denoiser is about to hear the prompt."""


class _Step(NamedTuple):
    """A module that ran before the prompt was heard, and what it answered."""

    name: str
    module: nn.Module
    output: Any


class SharedDenoiser:
    """ε_θ of rows (noisy latents with their timesteps) under the prompts of a fixed set.

    Attributes:
        shares_prefix: Whether the part before the first cross-attention runs once a row.
        caches_keys: Whether keys and values of the prompts are kept.
        statement: What is shared, or why nothing can be.
    """

    def __init__(
        self, diffusion: FrozenDiffusion, hidden: Tensor, *, share_prefix: bool = True, cache_keys: bool = True
    ) -> None:
        """Look at the denoiser's kind.

        Args:
            diffusion: The frozen model.
            hidden: Hidden states of the prompts, (prompt, context length, dim). While gradients are recorded, keys and
                values are made anew for each call, and gradients reach these.
            share_prefix: Run the common part once for a row, where the denoiser allows it.
            cache_keys: Project each prompt's keys and values once, where the denoiser allows it.
        """
        self.diffusion, self.hidden = diffusion, hidden
        reason = why_not_shared(diffusion.denoiser)
        self.shares_prefix, self.caches_keys = share_prefix and not reason, cache_keys and not reason
        parts = [
            *(["the part before the first cross-attention"] if self.shares_prefix else []),
            *(["keys and values of the prompts"] if self.caches_keys else []),
        ]
        if reason and (share_prefix or cache_keys):
            self.statement = f"nothing is shared between prompts: {reason}"
        else:
            self.statement = f"shared: {' and '.join(parts)}" if parts else "nothing is shared between prompts: as set"
        self._keys: dict[bool, dict[nn.Module, Tensor]] = {}

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, rows: Tensor, prompts: Tensor) -> Tensor:
        """The predicted noise of some (row, prompt) pairs.

        Args:
            noisy: z_t, (row, channel, height, width).
            timesteps: int64 (row,).
            rows: int64 (pair,): which latent.
            prompts: int64 (pair,): which prompt.

        Returns:
            float32 (pair, channel, height, width).
        """
        device = self.diffusion.device
        noisy, rows, prompts = noisy.to(device), rows.to(device), prompts.to(device)
        timesteps = timesteps.to(device)
        replaced: dict[nn.Module, Callable[..., Any]] = {}
        with self.diffusion.alone():  # no other thread may meet the denoiser with its layers replaced
            if self.shares_prefix and len(noisy) < len(rows):
                replaced |= _replayed(self._run_prefix(noisy, timesteps), rows)
            if self.caches_keys:
                replaced |= self._known_keys(prompts)
                # Its shape is asked for, its content is not.
                hidden = self.hidden[:1].detach().expand(len(prompts), -1, -1)
            else:
                hidden = self.hidden.index_select(0, prompts.to(self.hidden.device))
            with _forwards(replaced):
                return self.diffusion.predict_noise(noisy[rows], timesteps[rows], hidden)

    @torch.no_grad()
    def _run_prefix(self, noisy: Tensor, timesteps: Tensor) -> list[_Step]:
        """What ran before the prompt was heard; of nested modules the outermost that were finished."""
        denoiser, steps, names = self.diffusion.denoiser, list[_Step](), dict[nn.Module, str]()

        def stop(*_: Any) -> None:
            raise _PromptReached

        def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
            inside = names[module] + "."
            steps[:] = [step for step in steps if not step.name.startswith(inside)]
            steps.append(_Step(names[module], module, output))

        handles = [module.register_forward_pre_hook(stop) for _, module in _cross_attentions(denoiser)]
        for name, module in denoiser.named_modules():
            if name:
                names[module] = name
                handles.append(module.register_forward_hook(keep))
        try:
            hidden = self.hidden[:1].expand(len(noisy), -1, -1).to(noisy.device, self.diffusion.dtype)
            denoiser(noisy.to(self.diffusion.dtype), timesteps, hidden, return_dict=False)
        except _PromptReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return steps

    def _known_keys(self, prompts: Tensor) -> dict[nn.Module, Callable[..., Any]]:
        if torch.is_grad_enabled() and self.hidden.requires_grad:
            known = self._project()  # part of one graph, which one backward pass uses up
        else:
            # Under autocast the projections come in another type; each kind is made when it is first needed.
            autocast = torch.is_autocast_enabled(self.diffusion.device.type)
            if autocast not in self._keys:
                with torch.no_grad():
                    self._keys[autocast] = self._project()
            known = self._keys[autocast]

        def answer(values: Tensor) -> Callable[..., Tensor]:
            # Plain indexing adds up the gradients of a repeated prompt in the order the threads happen to run.
            return lambda *_args, **_kwargs: values.index_select(0, prompts)

        return {layer: answer(values) for layer, values in known.items()}

    def _project(self) -> dict[nn.Module, Tensor]:
        """Each projection of a cross-attention layer, and what it makes of all prompts."""
        hidden, made = self.hidden.to(self.diffusion.device, self.diffusion.dtype), dict[nn.Module, Tensor]()
        for _, layer in _cross_attentions(self.diffusion.denoiser):
            heard = layer.norm_encoder_hidden_states(hidden) if layer.norm_cross else hidden
            made |= {layer.to_k: layer.to_k(heard), layer.to_v: layer.to_v(heard)}
        return made

    # ---------------------------------------------------------------------------------------------- cost

    @cached_property
    def prefix_share(self) -> float:
        """FLOPs of the part before the first cross-attention, as a share of a whole evaluation; 0 if not shared."""
        if not self.shares_prefix:
            return 0.0
        return self._flops(lambda noisy, steps: self._run_prefix(noisy, steps)) / self._whole_flops

    @cached_property
    def keys_share(self) -> float:
        """FLOPs of a prompt's keys and values, as a share of a whole evaluation; 0 if they are not cached."""
        if not self.caches_keys:
            return 0.0
        layers, heard = _cross_attentions(self.diffusion.denoiser), self.hidden[:1].detach()
        heard = heard.to(self.diffusion.device, self.diffusion.dtype)
        return self._flops(lambda *_: [(x.to_k(heard), x.to_v(heard)) for _, x in layers]) / self._whole_flops

    @cached_property
    def _whole_flops(self) -> int:
        hidden = self.hidden[:1].detach().to(self.diffusion.device, self.diffusion.dtype)
        return self._flops(lambda noisy, steps: self.diffusion.denoiser(noisy, steps, hidden, return_dict=False))

    def _flops(self, run: Callable[[Tensor, Tensor], Any]) -> int:
        from torch.utils.flop_counter import FlopCounterMode

        device = self.diffusion.device
        noisy = torch.zeros((1, *self.diffusion.latent_shape), device=device, dtype=self.diffusion.dtype)
        # The counter knows torch's own operations.
        with FlopCounterMode(display=False) as counter, torch_products(), torch.no_grad():
            run(noisy, torch.zeros(1, dtype=torch.int64, device=device))
        return int(counter.get_total_flops())

    def equivalent_evaluations(self, num_pairs: int, num_rows: int) -> float:
        """The cost of some pairs in whole denoiser evaluations, by their FLOPs.

        Args:
            num_pairs: (Row, prompt) pairs.
            num_rows: Different rows among them: each runs the common part once.
        """
        return num_pairs * (1 - self.prefix_share - self.keys_share) + num_rows * self.prefix_share


def why_not_shared(denoiser: Any) -> str:
    """Why the prompt may reach a denoiser on other ways than its cross-attention; empty if it does not."""
    from diffusers import UNet2DConditionModel

    if not isinstance(denoiser, UNet2DConditionModel):
        return f"the denoiser is a {type(denoiser).__name__}, not a UNet2DConditionModel"
    if denoiser._compiled_call_impl is not None:
        return "the denoiser is compiled, with its layers as they are"
    if torch.is_grad_enabled() and denoiser.is_gradient_checkpointing:
        return "the denoiser runs again in the backward pass, when its layers are as they were"
    for setting in ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type"):
        if getattr(denoiser.config, setting, None) is not None:
            return f"the denoiser's {setting} is {getattr(denoiser.config, setting)!r}, another way in for the prompt"
    layers = _cross_attentions(denoiser)
    if not layers:
        return "the denoiser has no cross-attention"
    if any(getattr(layer, "add_k_proj", None) is not None or layer.fused_projections for _, layer in layers):
        return "the denoiser's attention layers project prompts in a way of their own"
    return ""


_KNOWN_LAYERS: WeakKeyDictionary[nn.Module, list[tuple[str, Any]]] = WeakKeyDictionary()
"""Looking through hundreds of modules costs a hundredth of an update."""


def _cross_attentions(denoiser: nn.Module) -> list[tuple[str, Any]]:
    if denoiser not in _KNOWN_LAYERS:
        _KNOWN_LAYERS[denoiser] = _find_cross_attentions(denoiser)
    return _KNOWN_LAYERS[denoiser]


def _find_cross_attentions(denoiser: nn.Module) -> list[tuple[str, Any]]:
    from diffusers.models.attention_processor import Attention

    return [
        (name, module)
        for name, module in denoiser.named_modules()
        if isinstance(module, Attention)
        and (module.is_cross_attention or getattr(module, "add_k_proj", None) is not None)
    ]


def _replayed(steps: list[_Step], rows: Tensor) -> dict[nn.Module, Callable[..., Any]]:
    """Forwards that answer what was recorded, each row as often as it is asked for."""
    queues: dict[nn.Module, deque[Any]] = {}
    for step in steps:
        queues.setdefault(step.module, deque()).append(step.output)

    def answer(module: nn.Module) -> Callable[..., Any]:
        queue, itself = queues[module], module.forward
        # A module that also runs behind the first cross-attention is itself again once its records are used up.
        return lambda *args, **kwargs: _select(queue.popleft(), rows) if queue else itself(*args, **kwargs)

    return {module: answer(module) for module in queues}


def _select(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, list | tuple):
        return type(value)(_select(part, rows) for part in value)
    return value


@contextmanager
def _forwards(replaced: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another forward for a while."""
    before = {module: vars(module).get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = own
