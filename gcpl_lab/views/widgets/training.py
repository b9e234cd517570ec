"""Watch a training run while it goes on, and stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import ipywidgets
import numpy as np
from IPython import get_ipython
from IPython.display import display, update_display
from matplotlib.figure import Figure

from gcpl_lab.errors import LabError
from gcpl_lab.training.loop import StepRecord, end_early
from gcpl_lab.views import style
from gcpl_lab.views.plots import plot_losses
from gcpl_lab.views.widgets.base import View

SECONDS_BETWEEN_FIGURES = 1.0  # at least; more where drawing is slow
BAR_STYLES = {"finished": "success", "stopped": "warning", "failed": "danger"}  # by how the run ended


class TrainingMonitor(View):
    """Loss curve and numbers of a run that goes on in a thread of its own, with a stop button.

    Any objective will do: the loss is drawn, and the other scalars that it records are named under the curve. The
    thread leaves the kernel free for the button. The next cell begins with :meth:`wait`, so that running all cells
    works. In JupyterLab (with ipykernel 7) the button works there too, and interrupting that cell stops the run in the
    same way. A stopped run is ended as at its last update: the model predicts on what it has learned so far.

    Args:
        records: What an estimator's ``steps`` or ``learn`` returned, or ``train``; nobody else may advance it.
        num_steps: Updates in all, for the bar; None where that is not known.
    """

    def __init__(self, records: Iterator[StepRecord], num_steps: int | None = None, title: str = "Training") -> None:
        self.history: list[StepRecord] = []
        self._records, self._num_steps = records, num_steps
        self._phase, self._stop, self._done = "waiting for the first update", threading.Event(), threading.Event()
        self._display_id: str | None = None
        tip = "End the run after the present update, as interrupting the waiting cell does; the model keeps what it has"
        self.stop_button = self.button("Stop", "stop", tip, self.stop, "danger")
        self.bar = ipywidgets.IntProgress(max=num_steps or 1, description="updates", layout={"width": "24em"})
        super().__init__(title, others=[ipywidgets.HBox([self.stop_button, self.bar])])
        self._thread = threading.Thread(target=self._run, name="gcpl_lab training", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether updates are still to come."""
        return not self._done.is_set()

    def stop(self) -> None:
        """Ask the run to end after its present update; returns at once."""
        self._stop.set()
        self.stop_button.disabled = True
        self.stop_button.description = "Stopping"

    def wait(self) -> None:
        """Show the widget if no cell has, and return when the run has ended or was stopped; what broke it is raised."""
        if self._display_id is None:
            self._ipython_display_()
        # JupyterLab sends a click to a subshell, which runs beside this cell; ipykernel 7.4 would bring it back here.
        vars(self.stop_button.comm).pop("_reply_subshell_id", None)
        try:
            while self.running:
                self._done.wait(0.1)  # a wait without an end cannot be interrupted on every system
        except KeyboardInterrupt:
            self.stop()
        self._thread.join()
        if self._display_id is not None:  # readers without a kernel see the finished figure
            update_display(self._repr_mimebundle_(), raw=True, display_id=self._display_id)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            self._follow()
            self._show("stopped" if self._stop.is_set() else "finished")
        except Exception as error:  # a thread has no cell to raise it in: wait() does
            self._show("failed")
            self.report(error)
            if not isinstance(error, LabError):
                self.problem.value += "<p>The prompts are those of the last update in the curve.</p>"
        finally:
            self._done.set()

    def _follow(self) -> None:
        """Keep the records, and draw at times: a tenth of the time at most."""
        last, took = time.monotonic(), 0.0
        for record in self._records:
            self.history.append(record)
            if self._stop.is_set():
                if isinstance(self._records, Generator):
                    end_early(self._records)
                return
            now = time.monotonic()
            if now - last >= max(SECONDS_BETWEEN_FIGURES, 9 * took):
                self._show("running")
                last = time.monotonic()
                took = last - now

    def _show(self, phase: str) -> None:
        self._phase = phase
        if phase in BAR_STYLES:  # the run has ended
            self.stop_button.disabled, self.stop_button.description = True, phase.capitalize()
            self.bar.bar_style = BAR_STYLES[phase]
        if phase == "finished":
            self.bar.max = max(1, len(self.history))
        self.bar.value = len(self.history) if self._num_steps or phase == "finished" else 0
        self.redraw()

    def _state(self) -> tuple[Any, ...]:
        return self._phase, len(self.history)

    def _draw(self) -> tuple[Figure, str]:
        figure = style.new_figure(9, 4.2)
        ax = figure.subplots()
        if not self.history:
            ax.set(xticks=[], yticks=[], ylabel="loss", xlabel="training step")
            ax.text(0.5, 0.5, "no update yet", ha="center", transform=ax.transAxes, color=style.GREY)
            return figure, f"Training: {self._phase}."
        steps, losses = np.array([(record.step, record.loss) for record in self.history]).T
        plot_losses(ax, {"training": (steps, losses)})
        last = self.history[-1]
        of_all = f" of {self._num_steps}" if self._num_steps else ""
        parts = [f"Training {self._phase}: update {last.step}{of_all}, loss {last.loss:.4f}"]
        parts += [f"{name} {value:.4f}" for name, value in last.values.items()]
        parts.append(f"{last.seconds:.0f} s, {last.seconds / len(self.history):.2f} s an update")
        return figure, "; ".join(parts) + "."

    def _ipython_display_(self) -> None:
        """Show with an id while the run goes on, so that the static figure can become the finished one."""
        if get_ipython() is None:
            return
        ended = self._display_id is not None and not self.running
        self._display_id = self._display_id or f"gcpl_lab-{self.model_id}"
        display(self._repr_mimebundle_(), raw=True, display_id=None if ended else self._display_id)
