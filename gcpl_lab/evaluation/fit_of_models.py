"""Do the frozen models see these images? Cheap numbers before an hour of learning is spent.

Learned prompts can only use what the frozen models keep. Where plain image statistics tell the classes apart better
than the frozen features do, larger models are needed, or none.

Source: histograms of oriented gradients, Dalal and Triggs 2005, https://doi.org/10.1109/CVPR.2005.177
"""

from __future__ import annotations

from collections.abc import Sequence
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
from gcpl_lab.data.readers import ImageSource, read_image
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.separation import Estimate
from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import default_device

MOST_IMAGES = 240
"""That are looked at; drawn class by class."""
SIDE, CELL, ANGLES, BINS = 64, 8, 9, 8
STATISTICS = {"colour_histogram": "a colour histogram", "hog": "gradients (HOG)"}
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
        """Whether some frozen feature tells the classes better than every image statistic and the largest class."""
        frozen = max(self.accuracies[name].value for name in FROZEN)
        return frozen > max(self.largest_class, *(self.accuracies[name].value for name in STATISTICS))

    @property
    def sentence(self) -> str:
        """The finding in words, with what to do."""
        found = self.accuracies
        best, plain = (max(names, key=lambda name: found[name].value) for names in (FROZEN, STATISTICS))
        shares = (found[best].value, found[plain].value, self.largest_class, self.reconstruction_share)
        frozen, statistic, largest, lost = (f"{100 * share:.0f} %" for share in shares)
        told = (
            f"on {self.num_images} images the frozen CLIP of {self.preset!r} reaches {frozen} by {FROZEN[best]}, "
            f"{STATISTICS[plain]} {statistic}, the largest class {largest}; the VAE loses {lost} of the variance"
        )
        if self.fit:
            return f"{told[0].upper()}{told[1:]}: the pair sees what tells these classes apart."
        return (
            f"The pair {self.preset!r} does not see these images better than plain statistics do: {told}. Use larger "
            "models (--preset sd-1.5, with weights from the hub or a local folder), or a classifier on pixels."
        )

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
    clip: FrozenCLIP | None = None,
    diffusion: FrozenDiffusion | None = None,
    seed: int = 0,
) -> FitOfModels:
    """Measure what frozen models and plain statistics tell of the classes.

    Args:
        images: That may be learned from, two of a class or more.
        labels: int (image,).
        class_names: (class,), for zero-shot.
        preset: Of the frozen models.
        clip, diffusion: Loaded models to use instead.
        seed: Of the images looked at, and of the folds.
    """
    labels = np.asarray(labels)
    chosen = _draw(labels, MOST_IMAGES, seed)
    labels, shown = labels[chosen], [read_image(images[place]) for place in chosen]
    kinds, ids, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(kinds) < 2 or counts.min() < 2:
        raise DataError(
            f"{len(kinds)} classes with {counts.min()} images or more; expected 2 classes of 2 images or more"
        )
    device = default_device()
    clip = clip or FrozenCLIP.load(preset, device=device)
    diffusion = diffusion or FrozenDiffusion.load(preset, device=device)
    features = clip.encode_images(shown)
    texts = clip.encode_texts([f"a photo of a {name}" for name in class_names])
    named = (features @ texts.T).argmax(dim=1).cpu().numpy()
    folds = cross_validation_folds(ids, min(4, int(counts.min())), seed)
    logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    probe = make_pipeline(Normalizer(), LogisticRegression(C=10.0, max_iter=2000))
    inputs: dict[str, tuple[Any, np.ndarray]] = {
        "colour_histogram": (logistic, np.stack([colour_histogram(image) for image in shown])),
        "hog": (logistic, np.stack([oriented_gradients(image) for image in shown])),
        "nearest_class_mean": (NearestCentroid(), features.cpu().numpy()),
        "probe": (probe, features.cpu().numpy()),
    }
    told = {name: cross_val_predict(model, values, labels, cv=folds) for name, (model, values) in inputs.items()}
    told["zero_shot"] = named
    shares = {name: share_with_interval(int((answers == labels).sum()), len(labels)) for name, answers in told.items()}
    largest, lost = float(counts.max() / len(labels)), reconstruction_share(diffusion, shown)
    return FitOfModels(preset, len(labels), lost, 1 / len(class_names), largest, shares)


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
    pixels = diffusion.preprocess(images)
    decoded = diffusion.decode(diffusion.encode_moments(pixels)[0])
    again = torch.stack(
        [torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1) / 127.5 - 1 for image in decoded]
    )
    spread = pixels.float().var(dim=(0, 2, 3)).mean()
    return float((again - pixels.float()).square().mean() / spread.clamp_min(1e-12))


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
