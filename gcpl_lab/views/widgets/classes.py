"""Classes against each other: two that look alike, and the thresholds of many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import numpy as np

from gcpl_lab.data.multilabel import check_targets, head_medium_tail
from gcpl_lab.data.readers import read_image
from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.classifier import Evidence, class_scores
from gcpl_lab.views import style
from gcpl_lab.views.plots import Families
from gcpl_lab.views.stepwise import draw_pair, plot_thresholds, threshold_table
from gcpl_lab.views.widgets.base import LABEL_WIDTH, WIDE, View, selector

MOST_PICTURES = 8
"""Photographs shown of each kind of mistake."""


class PairExplorer(View):
    """Two classes: the photographs taken for one another, and which timesteps tell the two apart.

    Attributes:
        first: Chooses a class.
        second: Chooses another.
    """

    def __init__(
        self,
        evidence: Evidence,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        images: Sequence[Any],
        predicted: Sequence[int] | np.ndarray | None = None,
        families: Families | None = None,
        pair: tuple[str, str] | None = None,
    ) -> None:
        """Take what was measured.

        Args:
            evidence: Of every class on every sample (``exact``, or an estimator's ``evidence``).
            labels: True classes as indices, (image,).
            class_names: (class,).
            images: The pictures, in the same order: paths, PIL pictures or uint8 arrays.
            predicted: Predicted classes as indices; by default those of the evidence alone, without offsets.
            families: Family name to its class names.
            pair: Shown first; by default the two that are confused most often.
        """
        self._errors, self._timesteps = evidence.errors, evidence.timesteps
        self._labels = np.asarray(labels)
        guess = class_scores(self._errors).argmax(axis=1) if predicted is None else np.asarray(predicted)
        self._predicted, self._images, self._names = guess, images, list(class_names)
        for what, found in (("labels", self._labels), ("images", images), ("predicted", guess)):
            if len(found) != len(self._errors):
                raise DataError(f"{what} has {len(found)} entries; expected {len(self._errors)}, one a picture")
        if self._errors.shape[1] != len(self._names) or len(self._names) < 2:
            raise DataError(f"class_names has {len(self._names)} entries; expected {self._errors.shape[1]}, 2 or more")
        if np.isnan(self._errors).any():
            raise DataError("the evidence lacks samples of dropped classes; measure it with exact(), not staged()")
        for what, ids in (("label", self._labels), ("prediction", guess)):
            if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= len(self._names):
                raise DataError(f"a {what} is no index from 0 to {len(self._names) - 1}, the places of the class names")
        self._looks = style.class_style(self._names, families)
        one, other = pair or self._most_confused()
        tip = "one of the two classes"
        self.first = selector("class", self._names, one, tip)
        self.second = selector("against", self._names, other, tip)
        super().__init__([self.first, self.second], "A pair of classes")
        for control in (self.first, self.second):
            control.observe(self.guarded(self._update), "value")
        self._update()

    def _most_confused(self) -> tuple[str, str]:
        counts = np.zeros((len(self._names), len(self._names)), int)
        np.add.at(counts, (self._labels, self._predicted), 1)
        both = np.triu(counts + counts.T, 1)
        row, column = np.unravel_index(int(both.argmax()), both.shape)
        return (self._names[row], self._names[column]) if both.max() else (self._names[0], self._names[1])

    def _update(self) -> None:
        pair = (self._names.index(self.first.value), self._names.index(self.second.value))
        if pair[0] == pair[1]:
            raise DataError(f"both classes are {self.first.value!r}; choose two different ones")
        ways = [pair, pair[::-1]]
        wrong = [np.flatnonzero((self._labels == own) & (self._predicted == other)) for own, other in ways]
        gaps = [self._gaps(own, other) for own, other in ways]

        def draw() -> Any:
            words = [
                f"{self._names[own]} taken for {self._names[other]}:\n{len(ids)} of {(self._labels == own).sum()}"
                for (own, other), ids in zip(ways, wrong, strict=True)
            ]
            shown = [[np.asarray(read_image(self._images[i])) for i in ids[:MOST_PICTURES]] for ids in wrong]
            with style.figure_style():
                return draw_pair(
                    dict(zip(words, shown, strict=True)),
                    self._timesteps,
                    {f"true {self._names[own]}": gap for (own, _), gap in zip(ways, gaps, strict=True)},
                    [self._looks[self._names[own]][0] for own, _ in ways],
                )

        def say() -> str:
            parts = []
            for (own, other), ids, gap in zip(ways, wrong, gaps, strict=True):
                text = f"{len(ids)} of {len(gap)} {self._names[own]} are taken for {self._names[other]}"
                if len(gap):
                    best = int(np.abs(gap.mean(axis=0)).argmax())
                    text += f" (evidence strongest at t = {self._timesteps[best]}: {gap.mean(axis=0)[best]:+.1%})"
                parts.append(text)
            return "; ".join(parts) + "."

        self.show(pair, draw, say)

    def _gaps(self, own: int, other: int) -> np.ndarray:
        """(image, timestep) of the images of ``own``: by how much its prompt is better, as a share of the error."""
        errors = self._errors[self._labels == own]
        return np.asarray((errors[:, other] - errors[:, own]) / errors.mean(axis=1))


class ThresholdExplorer(View):
    """What a threshold does to precision and recall of every class, head, medium and tail apart.

    Attributes:
        source: One threshold for all, or the fitted ones.
        threshold: The one for all.
        part: All classes, or one part of the tail.
    """

    def __init__(
        self,
        probabilities: np.ndarray,
        targets: Any,
        train_counts: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        thresholds: np.ndarray | None = None,
    ) -> None:
        """Take what was predicted.

        Args:
            probabilities: (image, class), from 0 to 1.
            targets: (image, class), 0 or 1.
            train_counts: (class,), training pictures; they part head, medium and tail.
            class_names: (class,).
            thresholds: (class,), fitted on validation, to compare with.
        """
        self._probabilities, self._targets = np.asarray(probabilities, dtype=float), check_targets(targets)
        self._counts, self._names = np.asarray(train_counts), [str(name) for name in class_names]
        self._fitted = None if thresholds is None else np.asarray(thresholds, dtype=float)
        count = self._targets.shape[1]
        for what, values in (
            ("train_counts", self._counts),
            ("class_names", self._names),
            ("thresholds", self._fitted),
        ):
            if values is not None and len(values) != count:
                raise DataError(f"{what} has {len(values)} entries; expected {count}, one a class")
        ways = ["one for all classes"] + (["fitted for each class"] if self._fitted is not None else [])
        self.source = selector("thresholds", ways, ways[-1], "one threshold for all classes, or the fitted ones")
        self.threshold = ipywidgets.FloatSlider(
            value=0.5,
            min=0.0,
            max=1.0,
            step=0.01,
            description="threshold",
            continuous_update=False,
            tooltip="a class is predicted from this probability on; arrow keys change it by 0.01",
            readout_format=".2f",
            style=LABEL_WIDTH,
            layout=WIDE,
        )
        parts = ["all", "head", "medium", "tail"]
        self.part = selector("classes", parts, "all", "all classes, or one part of the tail")
        super().__init__([self.source, self.threshold, self.part], "Thresholds and the tail")
        self.threshold.observe(self.guarded(self._move), "value")
        for control in (self.source, self.part):
            control.observe(self.guarded(self._update), "value")
        self._update()

    def _move(self) -> None:
        """Who moves the slider wants to see what it does."""
        if self.source.index:
            self.source.index = 0  # its own callback draws
        else:
            self._update()

    def _update(self) -> None:
        own, part = bool(self.source.index), str(self.part.value)
        cut = self._fitted if own and self._fitted is not None else float(self.threshold.value)
        table = threshold_table(self._probabilities, self._targets, cut)
        num_shown = len(self._names) if part == "all" else len(head_medium_tail(self._counts)[part])

        def draw() -> Any:
            with style.figure_style():
                figure = style.new_figure(9.5, 2.1 + 0.42 * num_shown)
                plot_thresholds(figure.subplots(), table, self._counts, self._names, part)
            return figure

        def say() -> str:
            name = "The fitted thresholds give" if own else f"A threshold of {cut:.2f} gives"
            means = [f"{what} {np.nanmean(values):.0%}" for what, values in table.items() if not np.isnan(values).all()]
            called = int((self._probabilities >= cut).sum())
            return (
                f"{name} a mean {', '.join(means)} over the classes; {called} labels are predicted, "
                f"{int(self._targets.sum())} are true."
            )

        self.show((own, None if own else cut, part), draw, say)
