"""A device of its own without one: tensors that lie on the CPU, say that they are elsewhere, and refuse to be mixed.

What only a GPU would show, that a line mixes tensors of two devices or hands one to numpy, shows here. Imported, it
registers the device ``"elsewhere"`` for the whole program; it is active inside ``with Elsewhere():``.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend


class _Backend:
    """What torch asks of the module of a device."""

    def __getattr__(self, name: str) -> Any:
        answers = {"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0}
        answers |= {"get_amp_supported_dtype": [torch.float16, torch.bfloat16], "get_rng_state": torch.empty(0)}
        return lambda *_: answers.get(name, False)

    def device(self, _index: int) -> Any:
        return nullcontext()


_setup_privateuseone_for_python_backend("elsewhere", backend_module=_Backend())
DEVICE = torch.device("elsewhere", 0)
# Autocast has no rules for this device: operations keep their dtypes.
_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

MAY_MIX = ("copy_", "_to_copy", "index_put", "index_put_", "_index_put_impl_")
"""Operations that take tensors of two devices on a GPU, too; ``index`` takes indices of the CPU."""


class Away(torch.Tensor):
    """A tensor of the device; ``inner`` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Away":
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **options)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute on the CPU what is asked for on either device."""
    name, device = func._schema.name.removeprefix("aten::"), kwargs.get("device")
    if name == "_fused_sdp_choice":
        return 0  # attention in plain operations
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    away = [isinstance(tensor, Away) for tensor in tensors]
    here = any(not far and tensor.dim() > 0 for far, tensor in zip(away, tensors, strict=True))
    if any(away) and here and name not in MAY_MIX and not (name == "index" and away[0]):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    inner_args, inner_kwargs = tree_map_only(Away, lambda tensor: tensor.inner, (args, kwargs))
    result = func(*inner_args, **(inner_kwargs if device is None else {**inner_kwargs, "device": torch.device("cpu")}))
    if not (any(away) if device is None else torch.device(device) == DEVICE):
        return result
    if name == "copy_" and not away[0]:
        return result
    result = tree_map_only(torch.Tensor, lambda value: value if isinstance(value, Away) else Away(value), result)
    return result if device is not None else return_and_correct_aliasing(func, args, kwargs, result)


class Elsewhere(TorchDispatchMode):
    """Inside, tensors can be made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})
