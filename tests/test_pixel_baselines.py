"""What learns from pixels alone: the same squares, seeds that repeat, and data that anybody can part."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gcpl_lab.baselines.pixels import PixelForest, SmallNetwork, read_pixels, shifted_batches
from gcpl_lab.training.loop import TrainingConfig, train


def bars(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar, upright (class 0) or lying (class 1), anywhere in the middle."""
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = 0.3 * torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 2
    for index, label in enumerate(labels):
        place = int(torch.randint(10, 22, (1,), generator=generator))
        part = (
            (slice(None), slice(4, 28), slice(place, place + 3))
            if label == 0
            else (slice(None), slice(place, place + 3), slice(4, 28))
        )
        pixels[index][part] += 2
    return pixels, labels


def test_pixels_are_the_centre_square_from_minus_one_to_one() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    square = read_pixels([Image.fromarray(wide), Image.new("L", (5, 7), 0)], size=10)
    assert square.shape == (2, 3, 10, 10)
    assert float(square[0, :, 2:8, 2:8].min()) == 1.0
    assert float(square[1].max()) == -1.0
    assert read_pixels([], size=4).shape == (0, 3, 4, 4)


def test_a_forest_parts_bars_and_follows_its_seed() -> None:
    (pixels, labels), (others, truth) = bars(40, 0), bars(40, 1)
    first, again, another = (PixelForest(pixels, labels, seed).scores(others) for seed in (0, 0, 1))
    assert float((first.argmax(1) == truth).float().mean()) >= 0.9
    assert torch.equal(first, again)
    assert not torch.equal(first, another)
    assert torch.isfinite(first).all()


def test_mirror_images_are_learned_from() -> None:
    pixels, labels = bars(12, 0)
    test = bars(12, 1)[0]
    assert not torch.equal(
        PixelForest(pixels, labels).scores(test), PixelForest(pixels, labels, flip=False).scores(test)
    )
    batches, plain = shifted_batches(pixels, labels, 12, 0), shifted_batches(pixels, labels, 12, 0, flip=False)
    assert any(not torch.equal(batches(step)[0], plain(step)[0]) for step in range(3))


def test_a_small_network_learns_bars_from_nothing() -> None:
    (pixels, labels), (others, truth) = bars(40, 0), bars(40, 1)
    model = SmallNetwork(2, seed=0)
    before = float((model.scores(others).argmax(1) == truth).float().mean())
    losses = [r.loss for r in train(model, shifted_batches(pixels, labels, 20, 0), TrainingConfig(40, 3e-3))]
    assert losses[-1] < losses[0]
    assert float((model.scores(others).argmax(1) == truth).float().mean()) >= max(0.9, before)
    mirrored = model.scores(others.flip(-1))
    torch.testing.assert_close(model.scores(others), mirrored)  # both views of a picture count alike


def test_weights_come_from_the_seed_and_leave_the_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again, another = (SmallNetwork(3, seed).trainable_parameters()[0] for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, another)


def test_batches_come_from_their_step_alone_and_shift_within_bounds() -> None:
    pixels = torch.zeros(6, 3, 8, 8)
    pixels[:, :, 4, 4] = 1.0
    labels = torch.arange(6)
    batch_at = shifted_batches(pixels, labels, 4, seed=0, most_shift=2, flip=False)
    places = set()
    for step in range(40):
        shown, chosen = batch_at(step)
        assert torch.equal(shown, shifted_batches(pixels, labels, 4, seed=0, most_shift=2, flip=False)(step)[0])
        assert len(set(chosen.tolist())) == 4
        for picture in shown:
            assert picture[0].sum() == 1
            places.add(tuple(np.argwhere(picture[0].numpy() == 1)[0].tolist()))
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}


@pytest.mark.parametrize("num_classes", [2, 7])
def test_scores_have_a_column_a_class(num_classes: int) -> None:
    pixels = torch.zeros(3, 3, 32, 32)
    assert SmallNetwork(num_classes).scores(pixels).shape == (3, num_classes)
