"""One noisy latent under many prompts without computing the common part again for each.

A text-conditioned denoiser reads the prompt through its cross-attention layers alone. So everything before the first of
them is the same for all prompts and runs once for each (image, t, ε); and the keys and values that those layers make of
a prompt are the same for all latents. Both change nothing but the rounding; gradients reach the prompts through keys
and values.

Gain: 1.11 for classifying, 1.10 for an update of the discriminative objective, 1.08 for one of GCPL. That is below
the bar of this room, 1.15; without it classifying would take a tenth longer (``benchmarks/README.md``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gcpl_lab.models.diffusion import FrozenDiffusion


class _PromptReached(Exception):
    """The denoiser is about to read the prompt."""


class _Step(NamedTuple):
    """A module that ran before the prompt was read, and what it answered."""

    name: str
    module: nn.Module
    output: Any


class SharedPrediction:
    """Takes the place of a model's ``predict_noise``."""

    def __init__(self, diffusion: FrozenDiffusion) -> None:
        """Wrap ``diffusion``, whose own ``predict_noise`` answers wherever nothing can be shared."""
        self.diffusion = diffusion
        self._keys: tuple[Tensor, bool, dict[nn.Module, Tensor]] | None = None

    def __call__(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        hidden: Tensor,
        rows: Tensor | None = None,
        prompts: Tensor | None = None,
    ) -> Tensor:
        """See :meth:`~gcpl_lab.models.diffusion.FrozenDiffusion.predict_noise`."""
        diffusion = self.diffusion
        plain = type(diffusion).predict_noise
        if rows is None or prompts is None or why_not_shared(diffusion.denoiser):
            return plain(diffusion, noisy, timesteps, hidden, rows, prompts)
        device = diffusion.device
        noisy, timesteps, rows, prompts = (values.to(device) for values in (noisy, timesteps, rows, prompts))
        if len(hidden) > len(prompts):  # keys and values of every prompt would take more memory than the pass
            used, prompts = prompts.unique(return_inverse=True)
            hidden = hidden.to(device).index_select(0, used)
        with diffusion.lock:  # no other thread may meet the denoiser with its layers replaced
            replaced = self._known_keys(hidden, prompts)
            if len(noisy) < len(rows):
                replaced |= _replayed(self._run_prefix(noisy, timesteps, hidden), rows)
            with _forwards(replaced):
                unread = hidden[:1].detach().expand(len(rows), -1, -1)  # its shape is asked for, its content is not
                return plain(diffusion, noisy[rows], timesteps[rows], unread)

    @torch.no_grad()
    def _run_prefix(self, noisy: Tensor, timesteps: Tensor, hidden: Tensor) -> list[_Step]:
        """What ran before the prompt was read; of nested modules the outermost that were finished."""
        denoiser, steps, names = self.diffusion.denoiser, list[_Step](), dict[nn.Module, str]()

        def stop(*_: Any) -> None:
            raise _PromptReached

        def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
            inside = names[module] + "."
            steps[:] = [step for step in steps if not step.name.startswith(inside)]
            steps.append(_Step(names[module], module, output))

        handles = [layer.register_forward_pre_hook(stop) for layer in _cross_attentions(denoiser)]
        for name, module in denoiser.named_modules():
            if name:
                names[module] = name
                handles.append(module.register_forward_hook(keep))
        try:
            dtype = self.diffusion.dtype
            unread = hidden[:1].expand(len(noisy), -1, -1).to(noisy.device, dtype)
            denoiser(noisy.to(dtype), timesteps, unread, return_dict=False)
        except _PromptReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return steps

    def _known_keys(self, hidden: Tensor, prompts: Tensor) -> dict[nn.Module, Callable[..., Any]]:
        """Forwards of the layers that project prompts, each prompt projected once."""
        if torch.is_grad_enabled() and hidden.requires_grad:
            known = self._project(hidden)  # part of one graph, which one backward pass uses up
        else:
            # A classifier asks with the same hidden states again and again; autocast projects into another dtype.
            autocast = torch.is_autocast_enabled(self.diffusion.device.type)
            if self._keys is None or self._keys[0] is not hidden or self._keys[1] != autocast:
                with torch.no_grad():
                    self._keys = hidden, autocast, self._project(hidden)
            known = self._keys[2]

        def answer(values: Tensor) -> Callable[..., Tensor]:
            # Plain indexing adds up the gradients of a repeated prompt in the order the threads happen to run.
            return lambda *_args, **_kwargs: values.index_select(0, prompts)

        return {layer: answer(values) for layer, values in known.items()}

    def _project(self, hidden: Tensor) -> dict[nn.Module, Tensor]:
        """Each projection of a cross-attention layer, and what it makes of all prompts."""
        hidden, made = hidden.to(self.diffusion.device, self.diffusion.dtype), dict[nn.Module, Tensor]()
        for layer in _cross_attentions(self.diffusion.denoiser):
            normed = layer.norm_encoder_hidden_states(hidden) if layer.norm_cross else hidden
            made |= {layer.to_k: layer.to_k(normed), layer.to_v: layer.to_v(normed)}
        return made


def why_not_shared(denoiser: Any) -> str:
    """Why the prompt may reach a denoiser on other ways than its cross-attention; empty if it does not."""
    from diffusers import UNet2DConditionModel

    if not isinstance(denoiser, UNet2DConditionModel):
        return f"the denoiser is a {type(denoiser).__name__}, not a UNet2DConditionModel"
    if torch.is_grad_enabled() and denoiser.is_gradient_checkpointing:
        return "the denoiser runs again in the backward pass, when its layers are as they were"
    for setting in ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type"):
        if getattr(denoiser.config, setting, None) is not None:
            return f"the denoiser's {setting} is {getattr(denoiser.config, setting)!r}, another way in for the prompt"
    layers = _cross_attentions(denoiser)
    if not layers:
        return "the denoiser has no cross-attention"
    if any(getattr(layer, "add_k_proj", None) is not None or layer.fused_projections for layer in layers):
        return "the denoiser's attention layers project prompts in a way of their own"
    return ""


_KNOWN_LAYERS: WeakKeyDictionary[nn.Module, list[Any]] = WeakKeyDictionary()
"""Looking through hundreds of modules costs a hundredth of an update."""


def _cross_attentions(denoiser: nn.Module) -> list[Any]:
    from diffusers.models.attention_processor import Attention

    if denoiser not in _KNOWN_LAYERS:
        _KNOWN_LAYERS[denoiser] = [
            module
            for module in denoiser.modules()
            if isinstance(module, Attention)
            and (module.is_cross_attention or getattr(module, "add_k_proj", None) is not None)
        ]
    return _KNOWN_LAYERS[denoiser]


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
