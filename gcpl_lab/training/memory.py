"""Passes that fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gcpl_lab.errors import TrainingError

Result = TypeVar("Result")
FORWARD_ADVICE = "Take precision 'bfloat16', or free the device of other programs and models"
TRAINING_ADVICE = f"Set gradient_checkpointing. {FORWARD_ADVICE}"


def ran_out(error: Exception) -> bool:
    """Whether an error says that there was no memory left, on a GPU or a CPU."""
    from accelerate.utils.memory import should_reduce_batch_size

    # Libraries, and kernels of torch that go past its allocator, say it in words of their own.
    words = ("STATUS_ALLOC_FAILED", "CUDA error: out of memory", "Cannot allocate memory")
    others = any(word in str(error) for word in words)
    return isinstance(error, MemoryError) or others or bool(should_reduce_batch_size(error))


class MemoryFit:
    """Call a function with as large a size as memory allows, found anew whenever memory runs out.

    Attributes:
        size: The largest size that is still believed to fit.
        advice: What to do where not even one fits, as a sentence.
    """

    def __init__(self, size: int, advice: str = TRAINING_ADVICE) -> None:
        self.size, self.advice = size, advice

    def __call__(self, function: Callable[[int], Result]) -> Result:
        """``function(size)``, which does the same work with any size, with half of it after memory ran out.

        Raises:
            TrainingError: Memory runs out with a size of one, too.
        """
        from accelerate.utils.memory import clear_device_cache

        while True:
            try:
                return function(self.size)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if self.size == 1:
                    raise TrainingError(
                        f"memory ran out with a single piece of a batch in a pass. {self.advice}"
                    ) from error
            self.size //= 2
            clear_device_cache(garbage_collection=True)
