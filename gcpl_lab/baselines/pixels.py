"""What needs no frozen model at all: a forest and a small network on the pixels of the same photographs.

A sceptic's first question is whether a few photographs and no pretraining would do as well. Both learn from
photographs and mirror images, like the methods that they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor, nn

from gcpl_lab.models.diffusion import square_pixels

PIXEL_SIZE = 32
"""Side of the squares that pixels are read at."""


def read_pixels(pictures: Sequence[Image.Image], size: int = PIXEL_SIZE) -> Tensor:
    """What the denoiser would be shown of each picture at this size: float32 (image, 3, size, size) in [-1, 1]."""
    squares = [square_pixels(picture, size) for picture in pictures]
    return torch.stack(squares) if squares else torch.empty(0, 3, size, size)


class PixelForest:
    """A random forest on raw pixels.

    Source: Breiman 2001, https://doi.org/10.1023/A:1010933404324; scikit-learn's ``RandomForestClassifier``
    """

    NUM_TREES = 500

    def __init__(self, pixels: Tensor, labels: Tensor, seed: int = 0, *, flip: bool = True) -> None:
        """Fit on pixels (image, 3, height, width) and, with ``flip``, on their mirror images; class ids (image,)."""
        seen = torch.cat([pixels, pixels.flip(-1)]) if flip else pixels
        self._model = RandomForestClassifier(self.NUM_TREES, random_state=seed)
        self._model.fit(seen.flatten(1).numpy(), labels.repeat(len(seen) // len(pixels)).numpy())

    def scores(self, pixels: Tensor) -> Tensor:
        """Logarithms of the trees' mean shares (image, class); a class that no tree names has half a tree's."""
        shares = self._model.predict_proba(pixels.flatten(1).numpy())
        return torch.from_numpy(np.log(np.maximum(shares, 0.5 / self.NUM_TREES))).float()


class SmallNetwork:
    """A convolutional network of 0.1 million weights that starts from nothing; an objective for the training loop.

    Batches come shifted and mirrored from :func:`shifted_batches`. Its settings were chosen on photographs of the
    bundled pool outside the exemplars (``gcpl-lab compare --held-out --methods small_network``).
    """

    WIDTHS = (32, 64, 128)

    def __init__(self, num_classes: int, seed: int = 0, channels: int = 3) -> None:
        """Draw the weights from the seed, leaving the global random state as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for width in self.WIDTHS:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                ]
                channels = width
            self.network = nn.Sequential(
                *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, num_classes)
            )

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All weights."""
        return list(self.network.parameters())

    def __call__(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Cross entropy, labels smoothed by a tenth, of (pixels (image, 3, height, width), labels (image,))."""
        pixels, labels = batch
        self.network.train()
        return {"loss": F.cross_entropy(self.network(pixels), labels, label_smoothing=0.1)}

    @torch.no_grad()
    def scores(self, pixels: Tensor, batch_size: int = 256) -> Tensor:
        """Logits (image, class), the mean over each picture and its mirror image."""
        self.network.eval()
        parts = [(self.network(part) + self.network(part.flip(-1))) / 2 for part in pixels.split(batch_size)]
        return torch.cat(parts)


def shifted_batches(
    pixels: Tensor, labels: Tensor, batch_size: int, seed: int, *, most_shift: int = 3, flip: bool = True
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of shifted and mirrored pictures for the training loop, each from its step's number.

    Args:
        pixels: (image, 3, height, width).
        labels: (image,).
        batch_size: Pictures a batch, without repetition.
        seed: Of the draws.
        most_shift: Pixels up, down, left or right, at most; the edge is repeated.
        flip: Mirror half of them.
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
