"""Watch a training run while it runs, and stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import ipywidgets
import numpy as np

from gcpl_lab.errors import LabError
from gcpl_lab.training.loop import StepRecord, end_early
from gcpl_lab.views import style
from gcpl_lab.views.plots import plot_losses
from gcpl_lab.views.widgets.base import View
from gcpl_lab.views.widgets.listening import listening

DRAWING_SHARE = 0.1
"""Most of the time that drawing may take from training."""

SECONDS_OF_A_LOOK = 0.1
"""How long a waiting cell listens before it looks whether the run has ended."""


class TrainingMonitor(View):
    """Loss curve and numbers of a run that goes on in a thread of its own, with a stop button.

    A thread leaves the kernel free for the button. The next cell begins with :meth:`wait`, so that running all
    cells works; the button is heard there too, and interrupting that cell stops the run in the same way. A stopped
    run is ended as at its last update: the model predicts, with probabilities, on what it has learned so far.

    Example:
        >>> monitor = TrainingMonitor(model.steps(images, labels), num_steps=240)
        >>> monitor                      # in one cell
        >>> monitor.wait()               # in the next

    Attributes:
        history: One record an update, so far.
        stop_button: Ends the run after the present update.
        bar: Updates done of all.
    """

    def __init__(
        self,
        records: Iterator[StepRecord],
        num_steps: int | None = None,
        title: str = "Training",
        seconds_between_pictures: float = 1.0,
    ) -> None:
        """Start the run.

        Args:
            records: What an estimator's ``steps`` or ``learn`` returned, or ``train``; nobody else may advance it.
            num_steps: Updates in all, for the bar; None where that is not known.
            title: Over the view.
            seconds_between_pictures: At least; more where drawing is slow, so that training keeps nine tenths of
                the time.
        """
        self.history: list[StepRecord] = []
        self._records, self._num_steps = records, num_steps
        self._pause = seconds_between_pictures
        self._stop, self._done = threading.Event(), threading.Event()
        self._display_id: str | None = None
        self.stop_button = ipywidgets.Button(
            description="Stop",
            icon="stop",
            button_style="danger",
            tooltip="End the run after the present update; the model keeps what it has learned",
        )
        self.stop_button.on_click(lambda _: self.stop())
        self.bar = ipywidgets.IntProgress(
            max=num_steps or 1, description="updates", tooltip="updates done", layout={"width": "24em"}
        )
        self._hint = ipywidgets.HTML()
        super().__init__([ipywidgets.HBox([self.stop_button, self.bar, self._hint])], title)
        self._draw("waiting for the first update")
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
        """Show the view if no cell has, and return when the run has ended or was stopped.

        Widgets are heard meanwhile. Where they cannot be (an ipykernel before 7), the view says how to stop.

        Raises:
            Exception: What ended the run before its time; it is shown in the view as well.
        """
        if self._display_id is None:
            self._ipython_display_()
        with listening() as listen:
            if listen is None and self.running:
                self._hint.value = "<small>a cell waits: interrupt the kernel (■) to stop</small>"
            try:
                while self._thread.is_alive():
                    if listen is None:
                        self._thread.join(SECONDS_OF_A_LOOK)
                    else:
                        listen(SECONDS_OF_A_LOOK)
            except KeyboardInterrupt:
                self.stop()
                self._thread.join()
        self._hint.value = ""
        self._refresh_static()
        if self.error is not None:
            raise self.error

    # ------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._follow()
            self._close("stopped" if self._stop.is_set() else "finished")
        except Exception as error:  # a thread has no cell to raise it in: wait() does
            self._fail(error)
        finally:
            self._done.set()

    def _follow(self) -> None:
        last, took = time.monotonic(), 0.0
        for record in self._records:
            self.history.append(record)
            if self._stop.is_set():
                self._end()
                return
            now = time.monotonic()
            if now - last >= max(self._pause, took * (1 - DRAWING_SHARE) / DRAWING_SHARE):
                self._draw("running")
                last = time.monotonic()
                took = last - now

    def _end(self) -> None:
        if isinstance(self._records, Generator):
            end_early(self._records)

    def _close(self, how: str) -> None:
        self.stop_button.disabled = True
        self.stop_button.description = how.capitalize()
        self.bar.bar_style = "success" if how == "finished" else "warning"
        if how == "finished":
            self.bar.max = self.bar.value = max(1, len(self.history))
        self._draw(how)

    def _fail(self, error: Exception) -> None:
        self.stop_button.disabled = True
        self.stop_button.description = "Failed"
        self.bar.bar_style = "danger"
        self._draw("ended by an error, which stands above")
        self.report(error)
        if isinstance(error, LabError):
            return
        self.problem.value += "<p>The prompts are those of the last update in the curve.</p>"

    # -------------------------------------------------------------------------------------- pictures

    def _draw(self, state: str) -> None:
        self._drawn.clear()
        if self._num_steps:
            self.bar.value = min(len(self.history), self._num_steps)
        self.show((state, len(self.history)), self._figure, lambda: self._sentence(state))

    def _figure(self) -> Any:
        with style.figure_style():
            figure = style.new_figure(9, 4.2)
            ax = figure.subplots()
            if not self.history:
                ax.set(xticks=[], yticks=[], ylabel="loss", xlabel="training step")
                ax.text(0.5, 0.5, "no update yet", ha="center", transform=ax.transAxes, color=style.GREY)
                return figure
            steps = np.array([record.step for record in self.history])
            curves = {"training": (steps, np.array([record.loss for record in self.history]))}
            checked = [record for record in self.history if record.validation is not None]
            if checked:
                values = np.array([record.validation for record in checked], dtype=float)
                curves["validation"] = (np.array([record.step for record in checked]), values)
            plot_losses(ax, curves)
        return figure

    def _sentence(self, state: str) -> str:
        if not self.history:
            return f"Training: {state}."
        record = self.history[-1]
        of = f" of {self._num_steps}" if self._num_steps else ""
        parts = [f"Training {state}: update {record.step}{of}, loss {record.loss:.4f}"]
        parts += [f"{name} {value:.4f}" for name, value in record.values.items()]
        checked = [entry.validation for entry in self.history if entry.validation is not None]
        if checked:
            parts.append(f"validation {checked[-1]:.4f}, best {min(checked):.4f}")
        parts.append(f"{record.seconds:.0f} s, {record.seconds / len(self.history):.2f} s an update")
        return "; ".join(parts) + "."

    def _ipython_display_(self) -> None:
        """Show with an id, so that the picture for readers without a kernel can become the finished one."""
        from IPython import get_ipython
        from IPython.display import display

        if get_ipython() is None:
            return
        first = self._display_id is None
        self._display_id = self._display_id or f"gcpl_lab-{self.model_id}"
        if first or self.running:
            display(self._repr_mimebundle_(), raw=True, display_id=self._display_id)
        else:
            display(self._repr_mimebundle_(), raw=True)

    def _refresh_static(self) -> None:
        from IPython.display import update_display

        if self._display_id is not None:
            update_display(self._repr_mimebundle_(), raw=True, display_id=self._display_id)
