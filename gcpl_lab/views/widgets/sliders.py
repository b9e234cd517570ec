"""One slider, one picture: a token's journey, noise and its removal, a race of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ipywidgets
import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.readers import read_image
from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.classifier import Evidence
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.views import style
from gcpl_lab.views.plots import Families
from gcpl_lab.views.projection import project
from gcpl_lab.views.stepwise import draw_denoising, plot_journey_step, plot_race, race_leads
from gcpl_lab.views.widgets.base import LABEL_WIDTH, WIDE, View, selector, slider


class JourneySlider(View):
    """Where the class tokens stood at each recorded step of training, on one map that all steps share.

    Attributes:
        step: Chooses a recorded training step.
    """

    def __init__(
        self,
        states: Mapping[int, Tensor | np.ndarray],
        class_names: Sequence[str],
        families: Families | None = None,
        method: str = "pca",
        seed: int = 0,
    ) -> None:
        """Fit the map on all states together.

        Args:
            states: Training step to vectors (class, V, dim), such as ``GCPLClassifier.states_``; two or more.
            class_names: (class,).
            families: Family name to its class names.
            method: See :func:`gcpl_lab.views.projection.project`.
            seed: Of the map.
        """
        self._steps = sorted(states)
        if len(self._steps) < 2:
            raise DataError(f"states has {len(self._steps)} steps; a journey needs 2 or more: train first")
        vectors = np.stack([np.asarray(states[step], dtype=np.float64) for step in self._steps])
        if vectors.ndim < 3 or vectors.shape[1] != len(class_names):
            raise DataError(
                f"the states have shape {vectors.shape[1:]}; expected ({len(class_names)}, V, dim), one row a class"
            )
        self._names, self._families = list(class_names), families
        points = vectors.reshape(len(self._steps) * len(class_names), -1)
        projection = project(points, method=method, seed=seed)
        self._paths = projection.points["all"].reshape(len(self._steps), len(class_names), 2)
        self._moved = np.linalg.norm((vectors - vectors[0]).reshape(*vectors.shape[:2], -1), axis=2)
        self._note = f"{projection.note}; seed {seed}; trustworthiness {projection.trustworthiness['all']:.2f}"
        self.step = ipywidgets.SelectionSlider(
            options=self._steps,
            value=self._steps[-1],
            description="training step",
            continuous_update=False,
            tooltip="arrow keys go from one recorded step to the next",
            style=LABEL_WIDTH,
            layout=WIDE,
        )
        super().__init__([self.step], "The tokens' journey")
        self.step.observe(self.guarded(self._update), "value")
        self._update()

    def _update(self) -> None:
        place = self._steps.index(self.step.value)

        def draw() -> Any:
            with style.figure_style():
                figure = style.new_figure(7.6, 7.8)
                plot_journey_step(figure.subplots(), self._paths, place, self._names, self._families, self._note)
            return figure

        def say() -> str:
            far = int(self._moved[place].argmax())
            return (
                f"Step {self._steps[place]} of {self._steps[-1]}: the tokens have moved "
                f"{self._moved[place].mean():.2f} on average, {self._names[far]} farthest "
                f"({self._moved[place, far]:.2f}), measured in the original "
                "space."
            )

        self.show(place, draw, say)


class NoiseSlider(View):
    """A photograph, its noisy state at a timestep, and what the denoiser makes of it under one or two prompts.

    The estimate takes one step: ẑ0 = (z_t − sqrt(1 − ᾱ_t)·ε_θ) / sqrt(ᾱ_t). The noise is the same for every prompt
    and timestep, so that only what is changed by hand changes.

    Attributes:
        timestep: 0 (clean) to T − 1 (almost only noise).
        prompts: Text boxes; an empty one is left out.
    """

    def __init__(
        self,
        diffusion: FrozenDiffusion,
        picture: Any,
        prompts: Sequence[str] = ("a photo of a shirt",),
        seed: int = 0,
        timestep: int | None = None,
    ) -> None:
        """Encode the photograph.

        Args:
            diffusion: The frozen model.
            picture: Path, PIL picture or uint8 array.
            prompts: One or two texts.
            seed: Of the noise.
            timestep: To begin with; the middle of the schedule where None.
        """
        if isinstance(prompts, str) or not 1 <= len(prompts) <= 2:
            raise DataError(f"prompts is {prompts!r}; expected a list of one or two texts")
        self._diffusion = diffusion
        pixels = diffusion.preprocess([read_image(picture)])
        self._latent = diffusion.scale_latents(diffusion.encode_moments(pixels)[0])
        self._noise = torch.randn(self._latent.shape, generator=torch.Generator().manual_seed(seed))
        self._picture = ((pixels[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy()
        last = diffusion.num_timesteps - 1
        first = diffusion.num_timesteps // 2 if timestep is None else timestep
        if not 0 <= first <= last:
            raise DataError(f"timestep is {timestep}; expected 0 to {last}")
        tip = "arrow keys change it by 10, Page Up and Page Down by more"
        self.timestep = slider("timestep t", first, 0, last, tip, step=10)
        texts = [*prompts, ""][:2]
        self.prompts = tuple(
            ipywidgets.Text(
                value=text,
                description=f"prompt {name}",
                continuous_update=False,
                placeholder="none",
                tooltip=f"text that the denoiser is told as prompt {name}; Enter applies it",
                style=LABEL_WIDTH,
                layout=WIDE,
            )
            for name, text in zip("AB", texts, strict=True)
        )
        super().__init__([self.timestep, *self.prompts], "Noise, and its removal in one step")
        for control in (self.timestep, *self.prompts):
            control.observe(self.guarded(self._update), "value")
        self._update()

    def _update(self) -> None:
        t = int(self.timestep.value)
        prompts = tuple(box.value.strip() for box in self.prompts if box.value.strip())
        errors: list[float] = []

        def draw() -> Any:
            noisy, estimates, found = self._denoise(t, prompts)
            errors.extend(found)
            seen, *cleaned = (np.asarray(image) for image in self._diffusion.decode(torch.cat([noisy, estimates])))
            titles = [f"told “{prompt}”\nerror {error:.4f}" for prompt, error in zip(prompts, errors, strict=True)]
            with style.figure_style():
                return draw_denoising(
                    [
                        ("the photograph", self._picture),
                        (f"with noise, t = {t}", seen),
                        *zip(titles, cleaned, strict=True),
                    ]
                )

        def say() -> str:
            return f"Timestep {t} of {self._diffusion.num_timesteps}: {_compare(prompts, errors)}"

        self.show((t, prompts), draw, say)

    @torch.no_grad()
    def _denoise(self, t: int, prompts: Sequence[str]) -> tuple[Tensor, Tensor, list[float]]:
        """z_t, one estimate of z0 for each prompt, and the error of each predicted noise."""
        if not prompts:
            raise DataError("both prompts are empty; write what the picture shows, such as 'a photo of a shirt'")
        steps = torch.tensor([t])
        noisy = self._diffusion.add_noise(self._latent, self._noise, steps)
        hidden = self._diffusion.encode_texts(prompts)
        many = noisy.expand(len(prompts), -1, -1, -1)
        predicted = self._diffusion.predict_noise(many, steps.expand(len(prompts)), hidden).cpu()
        errors = (predicted - self._noise).square().flatten(1).mean(1).tolist()
        # The part of z_t that is signal, and the noise in it, from what add_noise makes of each alone.
        signal = self._diffusion.add_noise(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), steps)
        spread = self._diffusion.add_noise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), steps)
        return noisy, (many - spread * predicted) / signal, errors


def _compare(prompts: Sequence[str], errors: Sequence[float]) -> str:
    words = ", ".join(f"error {error:.4f} under “{prompt}”" for prompt, error in zip(prompts, errors, strict=True))
    if len(errors) < 2:
        return f"{words}."
    better, share = int(np.argmin(errors)), abs(errors[0] - errors[1]) / max(float(np.mean(errors)), 1e-12)
    return f"{words}. “{prompts[better]}” is better by {share:.1%} of the error on this noise."


class ClassifierRace(View):
    """How the evidence of the diffusion classifier adds up for one picture, sample by sample.

    Attributes:
        image: Chooses the picture.
        samples: How many (t, ε) samples have been seen.
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
        """Take what was measured; nothing is computed by the models here.

        Args:
            evidence: Of ``exact`` or ``staged``; classes that a stage dropped turn grey.
            class_names: (class,).
            images: The pictures, in the order of the evidence: paths, PIL pictures or uint8 arrays.
            labels: True classes as indices, in the same order.
            families: Family name to its class names.
            weighting: See :func:`gcpl_lab.views.stepwise.race_leads`.
        """
        errors = evidence.errors
        for what, expected, found in (
            ("class_names", errors.shape[1], len(class_names)),
            ("images", len(errors), len(errors) if images is None else len(images)),
            ("labels", len(errors), len(errors) if labels is None else len(labels)),
        ):
            if found != expected:
                raise DataError(f"{what} has {found} entries; expected {expected}, as many as the evidence")
        if not len(errors):
            raise DataError("the evidence holds no picture; expected one or more")
        self._errors, self._names, self._families, self._weighting = errors, list(class_names), families, weighting
        self._images, self._labels = images, None if labels is None else np.asarray(labels)
        numbers = list(range(len(errors)))
        titles = [str(i) if self._labels is None else f"{i}: {self._names[int(self._labels[i])]}" for i in numbers]
        self.image = selector("picture", titles, 0, "which picture is classified", numbers)
        self.samples = slider(
            "samples seen", errors.shape[2], 1, errors.shape[2], "arrow keys add or take away one sample"
        )
        super().__init__([self.image, self.samples], "Race of the classes")
        for control in (self.image, self.samples):
            control.observe(self.guarded(self._update), "value")
        self._update()

    def _update(self) -> None:
        index, count = int(self.image.value), int(self.samples.value)
        leads = race_leads(self._errors[index], self._weighting)
        label = None if self._labels is None else int(self._labels[index])

        def draw() -> Any:
            with style.figure_style():
                figure = style.new_figure(11.5 if self._images is not None else 9.5, 5.6)
                ax = figure.subplots(1, 2, width_ratios=(1, 5.2)) if self._images is not None else [figure.subplots()]
                if self._images is not None:
                    ax[0].imshow(np.asarray(read_image(self._images[index])))
                    ax[0].set_axis_off()
                plot_race(ax[-1], leads, count, self._names, self._families, label, self._weighting == "relative")
            return figure

        def say() -> str:
            now = leads[count - 1]
            order = [int(place) for place in np.argsort(-np.where(np.isnan(now), -np.inf, now))]
            left = int((~np.isnan(now)).sum())
            second = f", then {self._names[order[1]]}" if left > 1 else ""
            truth = "" if label is None else f" It is a {self._names[label]}."
            return (
                f"After {count} of {len(leads)} samples {self._names[order[0]]} leads{second}; "
                f"{left} of {len(now)} classes are in.{truth}"
            )

        self.show((index, count), draw, say)
