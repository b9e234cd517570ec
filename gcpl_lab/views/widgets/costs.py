"""What thresholds and costs do to the bill: how many images go to a person, and what a thousand images cost."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.costs import PER, Costs, decide_each, measure_process
from gcpl_lab.views import style
from gcpl_lab.views.panels import percent_axis
from gcpl_lab.views.widgets.base import View, slider

NUM_POINTS = 40


class CostExplorer(View):
    """Cost per thousand images by the share that a person looks at, for costs and a share that sliders set.

    Args:
        probabilities: (image, class), of test images.
        targets: 0/1 (image, class), one-hot where an image has one class.
        costs: To begin with.
        thresholds: (class,), of images with several labels.
        currency: Of the axis.
    """

    def __init__(
        self,
        probabilities: np.ndarray,
        targets: np.ndarray,
        costs: Costs,
        *,
        thresholds: np.ndarray | None = None,
        currency: str = "EUR",
    ) -> None:
        if probabilities.shape != targets.shape or not len(targets):
            raise DataError(f"probabilities are {probabilities.shape}, targets {targets.shape}; expected one shape")
        certainty, self._answers = decide_each(probabilities, thresholds)
        self._rank, self._targets = certainty.argsort(kind="stable").argsort(), targets
        self._normal, self._currency = costs.normal, currency
        most = max(costs.miss, costs.false_alarm, costs.review, 1.0) * 4
        self.miss = slider("a miss", costs.miss, 0.0, most, "what a class costs that was not said", most / 80)
        self.false_alarm = slider("a false alarm", costs.false_alarm, 0.0, most, "what a wrong class costs", most / 80)
        self.review = slider("a review", costs.review, 0.0, most / 4, "what a person's look costs", most / 320)
        self.sent = slider("reviewed", 0.2, 0.0, 1.0, "share of the images that goes to a person", 0.025)
        super().__init__("What it costs", [self.miss, self.false_alarm, self.review, self.sent])

    def _cost(self, share: float) -> tuple[float, float, float]:
        """Money for a thousand images, with its interval, where the least certain share goes to a person."""
        costs = Costs(self.miss.value, self.false_alarm.value, self.review.value, normal=self._normal)
        reviewed = self._rank < round(share * len(self._rank))
        found = measure_process(self._answers, self._targets, costs, reviewed)
        return found["cost"], found["low"], found["high"]

    def _draw(self) -> tuple[Figure, str]:
        shares = np.linspace(0, 1, NUM_POINTS + 1)
        value, low, high = np.array([self._cost(share) for share in shares]).T
        here, best = self._cost(self.sent.value), int(value.argmin())
        figure = style.new_figure(8.0, 4.5)
        ax = figure.subplots()
        ax.fill_between(shares, low, high, color=style.BLUE, alpha=0.2, lw=0)
        ax.plot(shares, value, color=style.BLUE)
        ax.plot(self.sent.value, here[0], "o", ms=11, color=style.INK)
        ax.plot(shares[best], value[best], "v", ms=11, color=style.look(7)[0])
        ax.annotate("cheapest", (shares[best], value[best]), (0, 10), textcoords="offset points", ha="center")
        ax.set_xlabel("share that a person looks at, the least certain first")
        ax.set_ylabel(f"{self._currency} per {PER:,} images")
        ax.set_ylim(bottom=0)
        percent_axis(ax.xaxis)
        sentence = (
            f"With {self.sent.value:.0%} reviewed {PER:,} images cost {here[0]:,.0f} {self._currency} "
            f"({here[1]:,.0f} to {here[2]:,.0f}); the cheapest share is {shares[best]:.0%} ({value[best]:,.0f}). "
            f"Measured on {len(self._targets)} images."
        )
        return figure, sentence
