"""The processes of ``accelerate launch``: which one this is, and what they find out together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """Which of the processes of ``accelerate launch`` this one is.

    Attributes:
        index: From 0; process 0 is the one that prints and writes.
        count: 1 where the program was started without a launcher.
    """

    index: int = 0
    count: int = 1

    def share(self, total: int) -> slice:
        """The part of ``total`` things in a row that is this process's: shares differ by one at most."""
        return slice(total * self.index // self.count, total * (self.index + 1) // self.count)


def processes() -> Processes:
    """Place and number of this program's processes; they are connected when this is first asked."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    state = _process_state()
    return Processes(int(state.process_index), int(state.num_processes))


def _process_state() -> Any:
    import torch
    from accelerate import PartialState

    # Without GPU and without being told so, accelerate would leave the processes unconnected.
    told = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    on_cpu = told or not torch.cuda.is_available()
    # NCCL wants a GPU for each process; where there are fewer, gloo lets processes share one.
    shared = not on_cpu and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > max(1, torch.cuda.device_count())
    return PartialState(cpu=on_cpu, **({"backend": "gloo"} if shared else {}))


def process_device() -> str:
    """The device that the launcher gave this process."""
    return str(_process_state().device)


def backend_name() -> str:
    """What the processes exchange tensors over, such as ``"nccl"``; empty for one process."""
    return str(_process_state().backend) if processes().count > 1 else ""


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes; connects nothing."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_everyone() -> None:
    """Go on when every process has come here."""
    if processes().count > 1:
        _process_state().wait_for_everyone()


def all_gather_rows(rows: Tensor, total: int) -> Tensor:
    """Rows (total, ...) of all processes out of what each found for its share (own share, ...), on the CPU."""
    here = processes()
    if here.count == 1 or total == 0:
        return rows.contiguous()
    import torch
    from accelerate.utils import gather

    longest = -(-total // here.count)
    padded = torch.zeros(longest, *rows.shape[1:], dtype=rows.dtype)
    padded[: len(rows)] = rows
    parts = gather(padded.to(_process_state().device)).cpu().reshape(here.count, longest, *rows.shape[1:])
    shares = [Processes(index, here.count).share(total) for index in range(here.count)]
    return torch.cat([part[: share.stop - share.start] for part, share in zip(parts, shares, strict=True)])


def all_reduce(values: Tensor) -> Tensor:
    """The sum over all processes, elementwise, the same in every process."""
    if processes().count == 1:
        return values
    from accelerate.utils import reduce

    total: Tensor = reduce(values.to(_process_state().device), "sum")
    return total.to(values.device)


def broadcast_number(value: float) -> float:
    """The main process's number, so that all take the same decision whatever their last digit is."""
    if processes().count == 1:
        return value
    import torch
    from accelerate.utils import broadcast

    return float(broadcast(torch.tensor([value], dtype=torch.float64, device=_process_state().device))[0])


def split_work(items: Tensor, work: Callable[[Tensor], Sequence[Tensor]]) -> Sequence[Tensor]:
    """What ``work`` finds for items (item, ...), each process on its share; every process gets the whole.

    Args:
        items: The same in every process.
        work: Rows (item, ...) for some items; called with none where there are more processes than items.
    """
    here = processes()
    if here.count == 1:
        return work(items)
    return tuple(all_gather_rows(rows, len(items)) for rows in work(items[here.share(len(items))]))
