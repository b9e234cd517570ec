"""What belongs to the whole program, and that libraries change when they are imported or called."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Put back, afterwards, random states, the number of threads, warnings filters and the root logger's handlers.

    Loading a CLIP draws random weights from torch's generator and gives the root logger a handler; UMAP leaves torch
    with all threads of the machine, in which small models take many times as long.
    """
    numpy: Any = sys.modules.get("numpy")
    torch: Any = sys.modules.get("torch")
    drawn, handlers = random.getstate(), logging.root.handlers[:]
    of_numpy = numpy and numpy.random.get_state()
    of_torch = torch and (torch.get_rng_state(), torch.get_num_threads())
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(drawn)
        logging.root.handlers[:] = handlers
        if of_numpy:
            numpy.random.set_state(of_numpy)
        if of_torch:
            torch.set_rng_state(of_torch[0])
            if torch.get_num_threads() != of_torch[1]:
                torch.set_num_threads(of_torch[1])
