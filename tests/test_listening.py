"""A real kernel without a page: what a page would send to a widget, sent while a cell waits."""

import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gcpl_lab.views.widgets.listening import listening

SECONDS = 120

PREPARED = """
import time, ipywidgets
from gcpl_lab.views.widgets.listening import listening
moves = []
box = ipywidgets.IntSlider(value=1)
box.observe(lambda change: moves.append(change["new"]), "value")
print(box.comm.comm_id)
"""
WAITING = f"""
with listening() as listen:
    print("waits", flush=True)
    end = time.monotonic() + {SECONDS}
    while len(moves) < 2 and time.monotonic() < end:
        listen(0.05)
print("heard", moves)
"""


MONITOR = """
import time
from gcpl_lab.training.loop import StepRecord
from gcpl_lab.views.widgets import TrainingMonitor
def endless():
    step, stop = 0, None
    while not stop:
        time.sleep(0.01)
        step += 1
        stop = yield StepRecord(step, 1 / step, {}, 0.1, None, 0.01 * step)
monitor = TrainingMonitor(endless())
print(monitor.stop_button.comm.comm_id)
"""


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Any, Any]]:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=SECONDS)
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(started: tuple[Any, Any]) -> Any:
    return started[1]


def send(client: Any, comm: str, data: dict[str, Any]) -> str:
    """A message to a widget; returns its id."""
    message = client.session.msg("comm_msg", {"comm_id": comm, "data": data})
    client.shell_channel.send(message)
    return str(message["header"]["msg_id"])


def move(client: Any, comm: str, value: int) -> str:
    """What a page sends when a slider is moved."""
    return send(client, comm, {"method": "update", "state": {"value": value}, "buffer_paths": []})


def follow(client: Any, until: str, again: Callable[[], Any] = lambda: None) -> list[tuple[str, str]]:
    """What is printed and whose handling ends, in order, up to a printed word; ``again`` is called while it waits."""
    seen = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            message = client.get_iopub_msg(timeout=1)
        except queue.Empty:
            again()
            continue
        content = message["content"]
        assert message["msg_type"] != "error", content
        if message["msg_type"] == "stream":
            seen.append(("printed", content["text"].strip()))
            if content["text"].startswith(until):
                return seen
        elif content.get("execution_state") == "idle":
            seen.append(("done", message["parent_header"]["msg_id"]))
    raise AssertionError(f"{until!r} was not printed: {seen}")


@pytest.mark.timeout(600)
def test_a_waiting_cell_hears_its_widgets_and_other_cells_keep_their_turn(kernel: Any) -> None:
    kernel.execute(PREPARED)
    comm = follow(kernel, "")[-1][1]
    waiting = kernel.execute(WAITING)
    follow(kernel, "waits")
    kernel.execute("print('first', moves)")
    moves = [move(kernel, comm, 5), move(kernel, comm, 6)]
    kernel.execute("print('second', moves)")
    seen = follow(kernel, "second")
    printed = [text for kind, text in seen if kind == "printed"]
    assert printed == ["heard [5, 6]", "first [5, 6]", "second [5, 6]"]
    # A page sends a slider's next value only after the one before was handled.
    done = [what for kind, what in seen if kind == "done"]
    assert [what for what in done if what in (*moves, waiting)] == [*moves, waiting]
    # Afterwards widgets are heard as ever, and the kernel still works.
    move(kernel, comm, 7)
    kernel.execute("print('third', moves)")
    assert follow(kernel, "third")[-1] == ("printed", "third [5, 6, 7]")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["button", "interrupt"])
def test_a_run_that_a_cell_waits_for_stops_by_its_button_and_by_an_interrupt(
    started: tuple[Any, Any], how: str
) -> None:
    manager, client = started
    client.execute(MONITOR)
    comm = follow(client, "")[-1][1]
    client.execute("print('waits', flush=True)\nmonitor.wait()\nprint('ended:', monitor.sentence)")
    follow(client, "waits")

    asked = []

    def stop() -> None:
        # In the moment between the printed word and the listening no button is heard: as a person would, again.
        if how == "button":
            send(client, comm, {"method": "custom", "content": {"event": "click"}})
        elif not asked:
            manager.interrupt_kernel()
        asked.append(how)

    client.execute("print('third')")
    seen = follow(client, "third", again=stop)
    printed = [text for kind, text in seen if kind == "printed"]
    assert printed[0].startswith("ended: Training stopped: update")
    assert printed[1] == "third"


def test_outside_a_kernel_nothing_is_listened_to() -> None:
    with listening() as listen:
        assert listen is None
