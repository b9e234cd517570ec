"""What needs no frozen model at all: a forest and a small network on the pixels of the same images.

A sceptic's first question is whether a few images and no pretraining would do as well. Both learn from images and
mirror images, like the methods that they are compared with.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

from gcpl_lab.baselines.base import Batches, PixelSupport, register_baseline
from gcpl_lab.models.diffusion import square_pixels
from gcpl_lab.training.loop import TrainingConfig

NETWORK_TRAINING = TrainingConfig(num_steps=200, learning_rate=3e-3, weight_decay=0.05)
"""Chosen, like the network, on images of the bundled pool outside the exemplars (``gcpl-lab compare --held-out
--methods scratch_network``)."""
NETWORK_BATCH = 64


def read_pixels(images: Iterable[Image.Image], size: int = 32) -> Tensor:
    """What the denoiser would be shown of each image at this size: float32 (image, 3, size, size) in [-1, 1]."""
    squares = [square_pixels(image, size) for image in images]
    return torch.stack(squares) if squares else torch.empty(0, 3, size, size)


@register_baseline("pixel_forest", title="Random forest on pixels", sees="pixels")
class PixelForest:
    """A random forest on raw pixels.

    Source: Breiman 2001, https://doi.org/10.1023/A:1010933404324; scikit-learn's ``RandomForestClassifier``
    """

    NUM_TREES = 500

    def __init__(self, support: PixelSupport) -> None:
        pixels = support.pixels
        seen = torch.cat([pixels, pixels.flip(-1)]) if support.flip else pixels
        self._model = RandomForestClassifier(self.NUM_TREES, random_state=support.seed)
        self._model.fit(seen.flatten(1).numpy(), support.labels.repeat(len(seen) // len(pixels)).numpy())

    def scores(self, pixels: Tensor) -> Tensor:
        """Logarithms of the trees' mean shares (image, class); a class that no tree names has half a tree's."""
        shares = self._model.predict_proba(pixels.flatten(1).numpy())
        return torch.from_numpy(np.log(np.maximum(shares, 0.5 / self.NUM_TREES))).float()


class SmallNetwork:
    """A convolutional network of 0.1 million weights that starts from nothing; an objective for the training loop."""

    WIDTHS = (32, 64, 128)

    def __init__(self, num_classes: int, seed: int = 0, channels: int = 3) -> None:
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):  # the global random state stays as it is
            torch.manual_seed(seed)
            for width in self.WIDTHS:
                layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
                layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
                channels = width
            layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, num_classes)]
        self.network = nn.Sequential(*layers)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def __call__(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross entropy, labels smoothed by a tenth, of (pixels (image, 3, height, width), labels (image,))."""
        pixels, labels = batch
        self.network.train()
        return {"loss": F.cross_entropy(self.network(pixels), labels, label_smoothing=0.1)}

    @torch.no_grad()
    def scores(self, pixels: Tensor, batch_size: int = 256) -> Tensor:
        """Logits (image, class), the mean over each image and its mirror image."""
        self.network.eval()
        parts = [(self.network(part) + self.network(part.flip(-1))) / 2 for part in pixels.split(batch_size)]
        return torch.cat(parts)


def shifted_batches(
    pixels: Tensor, labels: Tensor, batch_size: int, seed: int, *, most_shift: int = 3, flip: bool = True
) -> Batches:
    """Batches for the training loop, each from its step's number; no image twice in one.

    Images (image, 3, height, width) are shifted by up to ``most_shift`` pixels, the edge repeated; half are mirrored.
    """
    padded = F.pad(pixels, (most_shift,) * 4, mode="replicate")
    height, width = pixels.shape[-2:]

    def batch_at(step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([seed, 29, step])
        chosen = rng.permutation(len(labels))[:batch_size]
        shifts = rng.integers(0, 2 * most_shift + 1, (len(chosen), 2))
        mirrored = rng.random(len(chosen)) < (0.5 if flip else 0.0)
        views = [padded[i, :, y : y + height, x : x + width] for i, (y, x) in zip(chosen, shifts, strict=True)]
        shown = [view.flip(-1) if turn else view for view, turn in zip(views, mirrored, strict=True)]
        return torch.stack(shown), labels[torch.from_numpy(chosen)]

    return batch_at


@register_baseline("scratch_network", title="Small network from scratch", sees="pixels")
def fit_network(support: PixelSupport) -> SmallNetwork:
    """In one thread: training from nothing magnifies rounding, which depends on the number of threads."""
    network = SmallNetwork(len(support.class_names), support.seed)
    batches = shifted_batches(support.pixels, support.labels, NETWORK_BATCH, support.seed, flip=support.flip)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        support.train(network, batches, NETWORK_TRAINING)
    finally:
        torch.set_num_threads(threads)
    return network
