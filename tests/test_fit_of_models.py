"""Whether frozen models see what tells classes apart, against plain statistics with known answers."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab import load_fashion
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.fit_of_models import colour_histogram, fit_of_models, oriented_gradients


def test_histogram_and_gradients_of_known_images():
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    histogram = colour_histogram(Image.fromarray(half)).reshape(3, 8)
    np.testing.assert_allclose(histogram[:, [0, 7]], 0.5)
    upright = oriented_gradients(Image.fromarray(half)).reshape(49, 9, 4)
    lying = oriented_gradients(Image.fromarray(half.transpose(1, 0, 2))).reshape(49, 9, 4)
    # An upright edge has gradients across (direction 0); a lying one along (π/2, the middle of nine bins).
    assert upright.sum(axis=(0, 2)).argmax() == 0
    assert lying.sum(axis=(0, 2)).argmax() == 4
    assert np.square(upright.reshape(49, 36)).sum(axis=1).max() <= 1  # blocks at unit length, or empty


def test_random_models_are_unfit_for_what_brightness_tells(random_pair: Any):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    images = [rng.normal(90 + 80 * label, 60, (24, 24)).clip(0, 255).astype(np.uint8) for label in labels]
    found = fit_of_models(images, labels, ("a", "b"), preset=str(random_pair.folder))
    assert found.accuracies["colour_histogram"].value > 0.9
    assert found.as_dict()["fit"] == found.fit
    assert ("larger models" in found.sentence) is (not found.fit)
    assert found.reconstruction_share > 0.5
    with pytest.raises(DataError, match="2 classes"):
        fit_of_models(images[:20], labels[:20], ("a", "b"))


def test_the_shipped_pair_keeps_garments():
    support = load_fashion("support")
    found = fit_of_models(support.images, support.labels, support.class_names)
    assert found.num_images == 240
    assert found.reconstruction_share < 0.05
    assert found.accuracies["probe"].low > found.largest_class
    assert found.chance == 0.1
