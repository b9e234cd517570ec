"""Explore what was measured: noise levels, evidence, pairs of classes, thresholds, costs, states of training.

Everywhere ``families`` gives a family's name its class names, ``labels`` and ``predicted`` are indices of classes, and
images are paths, PIL images or uint8 arrays.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import ipywidgets
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix
from torch import Tensor

from gcpl_lab.data.multilabel import head_medium_tail
from gcpl_lab.data.readers import read_image
from gcpl_lab.data.sets import check_targets
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.costs import PER, Costs, decide_each, measure_process
from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.gcpl.classifier import Evidence
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.views import multilabel, style
from gcpl_lab.views.evidence import draw_denoising, draw_pair, plot_race, race_leads
from gcpl_lab.views.moving import Moving
from gcpl_lab.views.panels import percent_axis, show_image
from gcpl_lab.views.plots import figure_files
from gcpl_lab.views.style import Families
from gcpl_lab.views.widgets.base import View, check_lengths, selector, slider, text_box

MOST_IMAGES = 8  # of each kind of mistake
NUM_POINTS = 40  # of the curve of costs
INTERVAL = 900  # milliseconds that a state stays while it plays
COMMON, FITTED = "one for all classes", "fitted for each class"  # thresholds


class NoiseSlider(View):
    """An image, its noisy state at a timestep, and what the denoiser makes of it under one or two prompts.

    The estimate takes one step: ẑ0 = (z_t − sqrt(1 − ᾱ_t)·ε_θ) / sqrt(ᾱ_t). The noise is the same for every prompt
    and timestep. The sliders begin at ``timestep``, from 0 (clean) to T − 1 (almost only noise), by default the middle
    of the schedule, and at the one or two ``prompts``; an empty one is left out.
    """

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        image: Any,
        prompts: Sequence[str] = ("a photo of a shirt",),
        seed: int = 0,
        timestep: int | None = None,
    ) -> None:
        if isinstance(prompts, str) or not 1 <= len(prompts) <= 2:
            raise DataError(f"prompts is {prompts!r}; expected a list of one or two texts")
        last = diffusion.num_timesteps - 1
        first = diffusion.num_timesteps // 2 if timestep is None else timestep
        if not 0 <= first <= last:
            raise DataError(f"timestep is {timestep}; expected 0 to {last}")
        pixels = diffusion.preprocess([read_image(image)])
        self._image = ((pixels[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy()
        self._diffusion, self._latent = diffusion, diffusion.scale_latents(diffusion.encode_moments(pixels)[0])
        self._noise = torch.randn(self._latent.shape, generator=torch.Generator().manual_seed(seed))
        tip = "arrow keys change it by 10, Page Up and Page Down by more"
        self.timestep = slider("timestep t", first, 0, last, tip, step=10)
        tip, texts = "text that conditions the denoiser; Enter applies it", [*prompts, ""]
        self.prompts = [text_box(f"prompt {name}", tip, "none", texts[place]) for place, name in enumerate("AB")]
        super().__init__("Noise, and its removal in one step", [self.timestep, *self.prompts])

    def _draw(self) -> tuple[Figure, str]:
        t, prompts = int(self.timestep.value), [box.value.strip() for box in self.prompts if box.value.strip()]
        noisy, estimates, errors = self._denoise(t, prompts)
        seen, *cleaned = (np.asarray(image) for image in self._diffusion.decode(torch.cat([noisy, estimates])))
        panels, words = [("the image", self._image), (f"with noise, t = {t}", seen)], []
        for prompt, error, image in zip(prompts, errors, cleaned, strict=True):
            panels.append((f"told “{prompt}”\nerror {error:.4f}", image))
            words.append(f"error {error:.4f} under “{prompt}”")
        sentence = f"Timestep {t} of {self._diffusion.num_timesteps}: {', '.join(words)}."
        if len(errors) == 2:
            share = abs(errors[0] - errors[1]) / max(float(np.mean(errors)), 1e-12)
            better = prompts[int(np.argmin(errors))]
            sentence += f" “{better}” is better by {share:.1%} of the error on this noise."
        return draw_denoising(panels), sentence

    @torch.no_grad()
    def _denoise(self, t: int, prompts: Sequence[str]) -> tuple[Tensor, Tensor, list[float]]:
        """z_t, one estimate of z0 for each prompt, and the error of each predicted noise."""
        if not prompts:
            raise DataError("both prompts are empty; write what the image shows, such as 'a photo of a shirt'")
        step = torch.tensor([t])
        noisy = self._diffusion.add_noise(self._latent, self._noise, step).expand(len(prompts), -1, -1, -1)
        steps, hidden = step.expand(len(prompts)), self._diffusion.encode_texts(prompts)
        predicted = self._diffusion.predict_noise(noisy, steps, hidden).cpu()
        errors = (predicted - self._noise).square().flatten(1).mean(1).tolist()
        # The part of z_t that is signal, and the noise in it, from what add_noise makes of each alone.
        one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        signal, spread = self._diffusion.add_noise(one, none, step), self._diffusion.add_noise(none, one, step)
        return noisy[:1], (noisy - spread * predicted) / signal, errors


class ClassifierRace(View):
    """How the evidence of the diffusion classifier adds up for one image, sample by sample.

    ``evidence`` is of ``exact`` or ``staged``; classes that a stage dropped turn grey. ``images`` and ``labels`` stand
    in its order. ``weighting``: see :func:`gcpl_lab.views.evidence.race_leads`.
    """

    def __init__(
        self,
        evidence: Evidence,
        class_names: Sequence[str],
        images: Sequence[Any] | None = None,
        labels: Sequence[int] | np.ndarray | None = None,
        families: Families | None = None,
        weighting: Literal["relative", "absolute"] = "relative",
    ) -> None:
        num_images, num_classes, num_samples = evidence.errors.shape
        check_lengths(num_classes, "class of the evidence", class_names=class_names)
        check_lengths(num_images, "image of the evidence", images=images, labels=labels)
        self._errors, self._weighting, self._images = evidence.errors, weighting, images
        self._names, self._families = list(class_names), families
        self._labels = [None] * num_images if labels is None else [int(label) for label in labels]
        titles = [str(i) if label is None else f"{i}: {self._names[label]}" for i, label in enumerate(self._labels)]
        options = list(zip(titles, range(num_images), strict=True))
        self.image = selector("image", options, 0, "which image is classified")
        self.samples = slider("samples", num_samples, 1, num_samples, "arrow keys add or take away one sample")
        super().__init__("Evidence of the classes", [self.image, self.samples])

    def _draw(self) -> tuple[Figure, str]:
        index, count = int(self.image.value), int(self.samples.value)
        leads, label = race_leads(self._errors[index], self._weighting), self._labels[index]
        figure = style.new_figure(9.5 if self._images is None else 11.5, 5.6)
        if self._images is None:
            ax = figure.subplots()
        else:
            shown, ax = figure.subplots(1, 2, width_ratios=(1, 5.2))
            show_image(shown, read_image(self._images[index]))
        plot_race(ax, leads, count, self._names, self._families, label, self._weighting == "relative")
        present = np.flatnonzero(~np.isnan(leads[count - 1]))
        ranked = [self._names[place] for place in present[np.argsort(-leads[count - 1, present])]]
        second = f", then {ranked[1]}" if len(ranked) > 1 else ""
        truth = "" if label is None else f" It is a {self._names[label]}."
        left = f"{len(ranked)} of {len(self._names)} classes are in."
        return figure, f"After {count} of {len(leads)} samples {ranked[0]} leads{second}; {left}{truth}"


class PairExplorer(View):
    """Two classes: the images taken for one another, and which timesteps tell the two apart.

    ``evidence`` is of every class on every sample (``exact``, or an estimator's ``evidence``); ``labels``, ``images``
    and ``predicted`` (by default what the evidence alone says, without offsets) stand in its order. The ``pair`` that
    is shown first is by default the one that is confused most often.
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
        self._errors, self._timesteps, self._images = evidence.errors, evidence.timesteps, images
        self._names, self._labels = list(class_names), np.asarray(labels)
        self._predicted = np.asarray(class_scores(self._errors).argmax(axis=1) if predicted is None else predicted)
        check_lengths(len(self._errors), "image", labels=self._labels, images=images, predicted=self._predicted)
        check_lengths(self._errors.shape[1], "class", class_names=self._names)
        if len(self._names) < 2:
            raise DataError(f"class_names has {len(self._names)} entries; expected 2 or more")
        if np.isnan(self._errors).any():
            raise DataError("the evidence lacks samples of dropped classes; measure it with exact(), not staged()")
        for what, ids in (("label", self._labels), ("prediction", self._predicted)):
            if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= len(self._names):
                raise DataError(f"a {what} is no index from 0 to {len(self._names) - 1}, the places of the class names")
        self._looks = style.class_style(self._names, families)
        one, other = pair or self._most_confused()
        self.first = selector("class", self._names, one, "one of the two classes")
        self.second = selector("against", self._names, other, "the other of the two classes")
        super().__init__("A pair of classes", [self.first, self.second])

    def _most_confused(self) -> tuple[str, str]:
        counts = confusion_matrix(self._labels, self._predicted, labels=range(len(self._names)))
        both = np.triu(counts + counts.T, 1)
        row, column = np.unravel_index(int(both.argmax()), both.shape) if both.any() else (0, 1)
        return self._names[row], self._names[column]

    def _draw(self) -> tuple[Figure, str]:
        pair = self._names.index(self.first.value), self._names.index(self.second.value)
        if pair[0] == pair[1]:
            raise DataError(f"both classes are {self.first.value!r}; choose two different ones")
        mistakes, gaps, colors, sentences = {}, {}, [], []
        for own, other in (pair, pair[::-1]):
            mine, rival = self._names[own], self._names[other]
            wrong = np.flatnonzero((self._labels == own) & (self._predicted == other))
            errors = self._errors[self._labels == own]
            # By how much the own prompt is better, (image, timestep), as a share of the error.
            gaps[f"true {mine}"] = gap = (errors[:, other] - errors[:, own]) / errors.mean(axis=1)
            shown = [np.asarray(read_image(self._images[place])) for place in wrong[:MOST_IMAGES]]
            mistakes[f"{mine} taken for {rival}:\n{len(wrong)} of {len(gap)}"] = shown
            colors.append(self._looks[mine][0])
            sentences.append(f"{len(wrong)} of {len(gap)} {mine} are taken for {rival}")
            if len(gap):
                mean = gap.mean(axis=0)
                best = int(np.abs(mean).argmax())
                sentences[-1] += f" (evidence strongest at t = {self._timesteps[best]}: {mean[best]:+.1%})"
        return draw_pair(mistakes, self._timesteps, gaps, colors), "; ".join(sentences) + "."


class ThresholdExplorer(View):
    """What a threshold does to precision and recall of every class, head, medium and tail apart.

    Args:
        probabilities: (image, class), from 0 to 1.
        targets: (image, class), 0 or 1.
        train_counts: (class,), training images; they part head, medium and tail.
        thresholds: (class,), fitted on validation, to compare with.
    """

    def __init__(
        self,
        probabilities: np.ndarray,
        targets: Any,
        train_counts: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        thresholds: np.ndarray | None = None,
    ) -> None:
        self._probabilities, self._targets = np.asarray(probabilities, dtype=float), check_targets(targets)
        self._counts, self._names = np.asarray(train_counts), [str(name) for name in class_names]
        self._fitted = None if thresholds is None else np.asarray(thresholds, dtype=float)
        num_classes = self._targets.shape[1]
        check_lengths(num_classes, "class", train_counts=self._counts, class_names=self._names, thresholds=self._fitted)
        sources = [COMMON] if self._fitted is None else [COMMON, FITTED]
        self.source = selector("thresholds", sources, sources[-1], "one threshold for all classes, or the fitted ones")
        tip = "a class is predicted from this probability on; arrow keys change it by 0.01"
        self.threshold = slider("threshold", 0.5, 0.0, 1.0, tip, step=0.01)
        parts = ["all", "head", "medium", "tail"]
        self.part = selector("classes", parts, "all", "all classes, or one part of the tail")
        self.threshold.observe(self._use_common, "value")
        super().__init__("Thresholds and the tail", [self.source, self.threshold, self.part])

    def _use_common(self, _: Any) -> None:
        self.source.value = COMMON  # who moves the slider wants to see what it does

    def _draw(self) -> tuple[Figure, str]:
        part, fitted = self.part.value, self._fitted if self.source.value == FITTED else None
        cut = float(self.threshold.value) if fitted is None else fitted
        table = multilabel.threshold_table(self._probabilities, self._targets, cut)
        shown = self._names if part == "all" else head_medium_tail(self._counts)[part]
        figure = style.new_figure(9.5, 2.1 + 0.42 * len(shown))
        multilabel.plot_thresholds(figure.subplots(), table, self._counts, self._names, part)
        name = f"A threshold of {cut:.2f} gives" if fitted is None else "The fitted thresholds give"
        means = [f"{what} {np.nanmean(values):.0%}" for what, values in table.items() if not np.isnan(values).all()]
        numbers = f"{(self._probabilities >= cut).sum()} labels are predicted, {self._targets.sum()} are true"
        return figure, f"{name} a mean {', '.join(means)} over the classes; {numbers}."


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
        ax.annotate("cheapest", (shares[best], value[best]), (0, -20), textcoords="offset points", ha="center")
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


class Player(View):
    """States on a slider: arrow keys go from one to the next, the play button through all of them.

    ``moving`` is of a function of :mod:`gcpl_lab.views.moving`, such as ``moving_maps``.
    """

    def __init__(self, moving: Moving) -> None:
        self._moving = moving
        tip = "arrow keys go from one recorded state to the next"
        self.step = selector("state", moving.states, moving.states[0], tip, most_buttons=0)
        tip = "play, stop, and from the start"
        self.play = ipywidgets.Play(min=0, max=len(moving.states) - 1, interval=INTERVAL, tooltip=tip)
        self.play.observe(self.guarded(self._turn), "value")
        super().__init__(moving.title, [self.step], [self.play])

    def _turn(self) -> None:
        self.step.index = self.play.value

    def _draw(self) -> tuple[Figure, str]:
        return self._moving.draw(self.step.value), self._moving.say(self.step.value)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and beside it the strip of all states."""
        with style.figure_style():
            strip = base64.b64encode(figure_files(self._moving.strip(), ["png"], 96)["png"]).decode()
        return {**super()._repr_mimebundle_(**options), "image/png": strip}
