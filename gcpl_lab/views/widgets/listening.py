"""What the page sends to widgets, heard while a cell keeps the kernel busy.

A kernel reads the page's messages one after the other: a button pressed while a cell waits is heard when the cell has
ended. From ipykernel 7 on a thread of its own receives the messages and passes them on. While :func:`listening` is
active, that thread puts those for widgets into a queue, which the waiting cell works off; all others (cells that
were run meanwhile) take their usual way, in their order.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

COMM_MESSAGES = ("comm_open", "comm_msg", "comm_close")


@contextmanager
def listening() -> Iterator[Callable[[float], None] | None]:
    """Let a cell that waits hear its widgets.

    What the page sent before is heard after the cell, as ever.

    Yields:
        A function that handles what the page sends within so many seconds; None where nothing can be heard: outside
        Jupyter, with an ipykernel before 7, or in a thread.
    """
    kernel = _kernel()
    if kernel is None:
        yield None
        return
    messages: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()

    async def receive(message: list[Any]) -> None:
        if _type_of(kernel, message) in COMM_MESSAGES:
            messages.put(message)
        else:
            await kernel.shell_channel_thread_main(message)

    def listen(seconds: float) -> None:
        try:
            message = messages.get(timeout=seconds)
            while True:
                _handle(kernel, message)
                message = messages.get_nowait()
        except queue.Empty:
            return

    _receive_with(kernel, receive)
    try:
        yield listen
    finally:
        _receive_with(kernel, kernel.shell_channel_thread_main)
        listen(0)  # what came last


def _kernel() -> Any:
    """The kernel that this cell runs in, where it receives in a thread of its own."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    receiver = getattr(kernel, "shell_channel_thread", None)
    return kernel if receiver is not None and threading.current_thread() is receiver.parent_thread else None


def _receive_with(kernel: Any, callback: Callable[..., Any]) -> None:
    """Change who receives, in the receiving thread, and return when it is done."""
    done = threading.Event()

    def change() -> None:
        kernel.shell_stream.on_recv(callback, copy=False)
        done.set()

    kernel.shell_channel_thread.io_loop.add_callback(change)
    done.wait()


def _type_of(kernel: Any, message: list[Any]) -> str:
    """The message's type; its signature is checked when it is handled."""
    try:
        _, parts = kernel.session.feed_identities(message, copy=False)
        return str(kernel.session.unpack(parts[1].bytes)["msg_type"])
    except (ValueError, LookupError, TypeError):
        return ""  # the kernel says what is wrong with it


def _handle(kernel: Any, message: list[Any]) -> None:
    """What the kernel does with a message for a widget; then the cell is the one that is answered again."""
    identities, parts = kernel.session.feed_identities(message, copy=False)
    try:
        request = kernel.session.deserialize(parts, content=True, copy=False)
    except ValueError:
        kernel.log.error("Invalid Message", exc_info=True)
        return
    cell, cell_identities = kernel.get_parent("shell"), kernel._parent_ident["shell"]
    kernel.set_parent(identities, request)
    try:
        # The page sends a control's next value only when it was told that the one before was handled.
        _say(kernel, "busy", request)
        getattr(kernel.comm_manager, request["header"]["msg_type"])(None, identities, request)
    finally:
        _say(kernel, "idle", request)
        kernel.set_parent(cell_identities, cell)


def _say(kernel: Any, state: str, request: dict[str, Any]) -> None:
    kernel.session.send(
        kernel.iopub_socket,
        "status",
        {"execution_state": state},
        parent=request,
        ident=f"kernel.{kernel.ident}.status".encode(),
    )
