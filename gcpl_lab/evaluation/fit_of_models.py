"""Do the frozen models see these images? Cheap numbers before an hour of learning is spent.

Learned prompts can only use what the frozen models keep. Where plain image statistics tell the classes apart better
than the frozen features do, larger models are needed, or none.

Source: histograms of oriented gradients, Dalal and Triggs 2005, https://doi.org/10.1109/CVPR.2005.177
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from gcpl_lab.data.episodes import cross_validation_folds
from gcpl_lab.data.framing import choose_fit
from gcpl_lab.data.readers import ImageSource, iter_images
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.separation import Estimate
from gcpl_lab.evaluation.trust import share_of
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.models.presets import Part, find_preset, has_part, locate
from gcpl_lab.training.device import default_device

MOST_IMAGES, LARGEST_SIDE = 240, 512  # larger ones are reduced: all are in memory at once
"""That are looked at; drawn class by class."""
DECODED = 16  # images at a time
SIDE, CELL, ANGLES, BINS = 64, 8, 9, 8
STATISTICS = {"colour_histogram": "a colour histogram", "hog": "gradients (HOG)"}
LARGER = "Use larger models (--preset sd-1.5 or vit-b-16, with weights from the hub or a local folder)"
BLURRED = 0.3
"""Part of the variance that a VAE may lose before it is said: with the tiny pair bundled garments lose 0.01, everyday
things (CIFAR-100) 0.4."""
LOGISTIC = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
FROZEN = {"zero_shot": "names", "nearest_class_mean": "class means", "probe": "a linear probe"}


@dataclass(frozen=True)
class FitOfModels:
    """What was measured on labelled images, cross-validated; nothing was tuned."""

    preset: str
    num_images: int
    reconstruction_share: float  # error of the VAE's reconstruction by the images' own variance; 1 keeps nothing
    chance: float
    largest_class: float
    accuracies: dict[str, Estimate]  # keys of STATISTICS and FROZEN

    @property
    def fit(self) -> bool:
        """Whether some frozen feature tells more than the largest class, and no image statistic is surely better."""
        frozen, plain = (
            max((self.accuracies[name] for name in names), key=lambda share: share.value)
            for names in (FROZEN, STATISTICS)
        )
        return frozen.low > self.largest_class and frozen.high >= plain.low

    @property
    def sentence(self) -> str:
        """The finding in words, with what to do."""
        found = self.accuracies
        best, plain = (max(names, key=lambda name: found[name].value) for names in (FROZEN, STATISTICS))
        shares = (found[best].value, found[plain].value, self.largest_class, self.reconstruction_share)
        frozen, statistic, largest, lost = (f"{100 * min(share, 1):.0f} %" for share in shares)
        told = (
            f"on {self.num_images} images the frozen CLIP of {self.preset!r} reaches {frozen} by {FROZEN[best]}, "
            f"{STATISTICS[plain]} {statistic}, the largest class {largest}; the VAE loses {lost} of the variance"
        )
        if self.fit:
            blurs = "; its VAE blurs them, so prompts may stay below a probe (--preset sd-1.5 blurs less)"
            blurred = blurs if self.reconstruction_share > BLURRED else ""
            return f"{told[0].upper()}{told[1:]}: the pair sees what tells these classes apart{blurred}."
        return (
            f"The pair {self.preset!r} does not see these images better than plain statistics do: {told}. {LARGER}, or "
            "take a classifier on pixels."
        )

    def lines(self) -> list[str]:
        """The finding, and every number with its 95 % interval, for people."""
        told = [f"chance {self.chance:.1%}"]
        for name, title in (STATISTICS | FROZEN).items():
            share = self.accuracies[name]
            told.append(f"{title} {share.value:.1%} ({share.low:.1%} to {share.high:.1%})")
        return [self.sentence, f"Cross-validated on these images: {', '.join(told)}."]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        accuracies = {name: share._asdict() for name, share in self.accuracies.items()}
        return {**vars(self), "accuracies": accuracies, "fit": self.fit, "sentence": self.sentence}


def fit_of_models(
    images: Sequence[ImageSource],
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    *,
    preset: str = "tiny",
    fit: str = "auto",
    seed: int = 0,
) -> FitOfModels:
    """Measure what frozen models and plain statistics tell of the classes.

    Args:
        images: That may be learned from, two of a class or more.
        labels: int (image,).
        class_names: (class,), for zero-shot.
        preset: Of the frozen models.
        fit: The square that is seen of each image, see :mod:`gcpl_lab.data.framing`.
        seed: Of the images looked at, and of the folds.
    """
    labels = np.asarray(labels)
    chosen = _draw(labels, MOST_IMAGES, seed)
    labels, shown = labels[chosen], list[Image.Image]()
    for image in iter_images([images[place] for place in chosen], choose_fit(images, fit)):
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        shown.append(image)
    device = default_device()
    clip, diffusion = FrozenCLIP.load(preset, device=device), FrozenDiffusion.load(preset, device=device)
    features = clip.encode_images(shown)
    texts = clip.encode_texts([f"a photo of a {name}" for name in class_names])
    named = (features @ texts.T).argmax(dim=1).cpu().numpy()
    probe = make_pipeline(Normalizer(), LogisticRegression(C=10.0, max_iter=2000))
    inputs: dict[str, tuple[Any, np.ndarray]] = {
        "colour_histogram": (LOGISTIC, np.stack([colour_histogram(image) for image in shown])),
        "hog": (LOGISTIC, np.stack([oriented_gradients(image) for image in shown])),
        "nearest_class_mean": (NearestCentroid(), features.cpu().numpy()),
        "probe": (probe, features.cpu().numpy()),
    }
    shares = cross_validate(inputs, np.asarray(labels), seed) | {"zero_shot": share_of(named == labels)}
    largest, lost = float(np.bincount(labels).max() / len(labels)), reconstruction_share(diffusion, shown)
    accuracies = {name: Estimate(**share) for name, share in shares.items()}
    return FitOfModels(preset, len(labels), lost, 1 / len(class_names), largest, accuracies)


def cross_validate(
    inputs: Mapping[str, tuple[Any, np.ndarray]], labels: np.ndarray, seed: int
) -> dict[str, dict[str, float]]:
    """Share of images that each named model of scikit-learn, with its inputs, answers rightly without knowing them."""
    kinds, ids, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(kinds) < 2 or counts.min() < 2:
        found = f"{len(kinds)} classes with {counts.min()} images or more"
        raise DataError(f"{found}; expected 2 classes of 2 images or more")
    folds = cross_validation_folds(ids, min(4, int(counts.min())), seed)
    with np.errstate(invalid="ignore"):  # the class means' spread, of one image a class
        told = {name: cross_val_predict(model, values, labels, cv=folds) for name, (model, values) in inputs.items()}
    return {name: share_of(answers == labels) for name, answers in told.items()}


def fit_if_here(exemplars: ImageSet, preset: str, fit: str = "auto", seed: int = 0) -> FitOfModels | None:
    """The same of exemplars; None where a part of the models is not on this machine, or a class has one image."""
    found = find_preset(preset)
    parts: tuple[Part, ...] = ("diffusion", "clip")
    if not all(has_part(found, part) and locate(found, part).path for part in parts):
        return None
    if np.bincount(exemplars.labels, minlength=len(exemplars.class_names)).min() < 2:
        return None
    return fit_of_models(exemplars.images, exemplars.labels, exemplars.class_names, preset=preset, fit=fit, seed=seed)


def _draw(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many images, evenly over the classes as far as they go: int64 (image,), ascending."""
    order = np.random.default_rng([seed, 89]).permutation(len(labels))
    turn = np.zeros(len(labels), np.int64)  # how many of its class come before an image
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turn[members] = np.arange(len(members))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:most])


@torch.no_grad()
def reconstruction_share(diffusion: FrozenDiffusion, images: Sequence[Image.Image]) -> float:
    """Mean squared error of what the VAE decodes from its own encoding, as a share of the variance of the pixels."""
    pixels, lost = diffusion.preprocess(images), 0.0
    for part in pixels.split(DECODED):
        decoded = diffusion.decode(diffusion.scale_latents(diffusion.encode_moments(part)[0]))
        values = np.stack([np.asarray(image, np.float32) for image in decoded]) / 127.5 - 1
        lost += float((torch.from_numpy(values).permute(0, 3, 1, 2) - part).square().sum())
    spread = float(pixels.var(dim=(0, 2, 3)).mean())
    return lost / pixels.numel() / max(spread, 1e-12)


def colour_histogram(image: Image.Image) -> np.ndarray:
    """Shares of pixels in eight bins of each channel, float64 (24,)."""
    values = np.asarray(image.convert("RGB"))
    counts = [np.histogram(values[..., channel], BINS, (0, 256))[0] for channel in range(3)]
    shares: np.ndarray = np.concatenate(counts) / values[..., 0].size
    return shares


def oriented_gradients(image: Image.Image) -> np.ndarray:
    """Gradients by direction in cells of 8 × 8 pixels, blocks of 2 × 2 cells at unit length: float64 (1764,)."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64)
    rows, columns = np.gradient(grey)
    strength, angle = np.hypot(rows, columns), np.arctan2(rows, columns) % np.pi
    bins = np.minimum((angle / np.pi * ANGLES).astype(int), ANGLES - 1)
    votes = strength[..., None] * (bins[..., None] == np.arange(ANGLES))
    cells = votes.reshape(SIDE // CELL, CELL, SIDE // CELL, CELL, ANGLES).sum(axis=(1, 3))
    blocks = np.lib.stride_tricks.sliding_window_view(cells, (2, 2), axis=(0, 1)).reshape(-1, 4 * ANGLES)
    lengths = np.sqrt(np.square(blocks).sum(axis=1, keepdims=True) + 1.0)  # 1: noise in empty blocks is not magnified
    found: np.ndarray = (blocks / lengths).ravel()
    return found
