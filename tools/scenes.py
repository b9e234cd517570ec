"""Scenes: several garments on one black canvas, overlapping a little."""

from __future__ import annotations

import numpy as np
from PIL import Image

CANVAS_SIZE = 64
_SIDE_RANGE = {1: (40, 64), 2: (28, 40), 3: (26, 36), 4: (24, 32), 5: (22, 30)}
"""Smallest and largest side, in pixels of the canvas, of an item by the number of items."""


def compose_scene(items: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Place images on one canvas, each where it overlaps the earlier ones least out of some tries.

    Args:
        items: One to five uint8 (28, 28) images on black.
        rng: Draws sides and places.

    Returns:
        uint8 (64, 64).
    """
    low, high = _SIDE_RANGE[len(items)]
    canvas = np.zeros((CANVAS_SIZE, CANVAS_SIZE), np.uint8)
    for item in items:
        side = int(rng.integers(low, high + 1))
        resized = np.asarray(Image.fromarray(item).resize((side, side), Image.Resampling.BILINEAR))
        places = rng.integers(0, CANVAS_SIZE - side + 1, size=(12, 2))
        covered = [int((canvas[y : y + side, x : x + side] > 20).sum()) for y, x in places]
        y, x = places[int(np.argmin(covered))]
        window = canvas[y : y + side, x : x + side]
        np.maximum(window, resized, out=window)
    return canvas
