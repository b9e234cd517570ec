"""The square that models see of a long image, and mirror images that are told apart or not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gcpl_lab.data.framing import FITS, check_saved_fit, choose_fit, frame, lost_share
from gcpl_lab.data.readers import read_images
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.mirroring import choose_mirroring


def long_image(turned: bool = False) -> Image.Image:
    """300 × 100: grey 100, a white square at the left end, 10 to 50 px."""
    values = np.full((100, 300, 3), 100, np.uint8)
    values[30:70, 10:50] = 255
    image = Image.fromarray(values)
    return image.transpose(Image.Transpose.TRANSPOSE) if turned else image


@pytest.mark.parametrize("turned", [False, True])
def test_only_a_crop_loses_the_end_of_a_long_image(turned: bool) -> None:
    seen = {fit: np.asarray(frame(long_image(turned), fit))[..., 0] for fit in FITS}
    if turned:
        seen = {fit: values.T for fit, values in seen.items()}
    assert [values.shape for values in seen.values()] == [(300, 300), (100, 100), (300, 300)]
    assert (seen["crop"] == 100).all()
    # Bars of the border's mean colour, the image in its place between them.
    assert (seen["pad"][:100] == 100).all()
    assert (seen["pad"][200:] == 100).all()
    np.testing.assert_array_equal(seen["pad"][100:200], np.asarray(long_image())[..., 0])
    # Three times as high, at the same place across.
    assert (seen["squash"][105:195, 20:40] == 255).all()
    assert (seen["squash"][:, 70:] == 100).all()


def test_a_square_image_is_left_as_it_is_and_an_unknown_fit_refused() -> None:
    square = Image.new("RGB", (40, 40), "red")
    assert all(frame(square, fit) is square for fit in FITS)
    with pytest.raises(DataError, match="fit is 'stretch'; expected one of pad, crop, squash"):
        frame(long_image(), "stretch")


@pytest.mark.parametrize(
    ("sizes", "fit"),
    [([(40, 32), (32, 40)], "crop"), ([(40, 32), (32, 41)], "pad"), ([], "crop"), ([(400, 300)], "pad")],
)
def test_images_longer_than_five_to_four_are_padded(tmp_path: Path, sizes: list[tuple[int, int]], fit: str) -> None:
    images = [Image.new("RGB", size) for size in sizes]
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    paths = sorted(tmp_path.iterdir())
    for sources in (images, paths, [np.asarray(image) for image in images], [*paths, tmp_path / "absent.png"]):
        assert choose_fit(sources) == fit
        assert choose_fit(sources, "squash") == "squash"
    assert lost_share((40, 32)) == pytest.approx(0.2) == lost_share((32, 40))


def test_what_saved_prompts_say_and_what_earlier_ones_were_learned_with() -> None:
    assert (check_saved_fit({}), check_saved_fit({"fit": "pad"})) == ("crop", "pad")
    with pytest.raises(ValueError, match="fit is 'auto'"):
        check_saved_fit({"fit": "auto"})


def test_images_are_framed_as_they_are_read() -> None:
    (padded,) = read_images([long_image()], "pad")
    assert padded.size == (300, 300)
    assert read_images([long_image()])[0].size == (300, 100)
    for one in (long_image(), np.zeros((8, 8, 3), np.uint8), "a.png"):
        with pytest.raises(DataError, match="expected a list of images"):
            read_images(one)  # type: ignore[arg-type]


def sided(shots: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of eight pixels with a bright one at the left or at the right, and their mirror images."""
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * shots) % 2
    rows = rng.normal(0, 0.05, (2 * shots, 8))
    rows[np.arange(2 * shots), np.where(labels, 6, 1)] += 1
    images = torch.from_numpy(rows)
    return torch.stack([images, images.flip(-1)]), torch.from_numpy(labels)


@pytest.mark.parametrize("shots", [3, 4, 16])
@pytest.mark.parametrize("seed", range(3))
def test_no_mirror_images_where_they_look_like_the_other_class(shots: int, seed: int) -> None:
    views, labels = sided(shots, seed)
    assert choose_mirroring("auto", views, labels, ["a", "b"])[:] in [(False, ("a", "b")), (False, ("b", "a"))]
    assert choose_mirroring(True, views, labels).flip
    assert not choose_mirroring(False, views, labels).flip
    targets = torch.nn.functional.one_hot(labels, 2)
    assert choose_mirroring("auto", views, targets, ["a", "b"]).confused in [("a", "b"), ("b", "a")]
    above = torch.stack([views[0], views[0]])  # mirroring changes nothing: what differs lies above and below
    assert choose_mirroring("auto", above, labels).flip


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["left shoe", "Right Shoe", "bag"], ("left shoe", "Right Shoe")),
        (["turn_left", "turn_right"], ("turn_left", "turn_right")),
        (["左折", "右折"], ("左折", "右折")),
        (["leftover", "rightover"], None),
        (["left shoe", "right boot"], None),
    ],
)
def test_names_that_differ_by_left_and_right(names: list[str], pair: Any) -> None:
    one_each = torch.zeros(2, len(names), 4)
    found = choose_mirroring("auto", one_each, torch.arange(len(names)), names)
    assert (found.flip, found.confused) == (pair is None, pair)
    assert ("look like" in str(found)) == (pair is not None)


def test_mirror_images_of_the_bundled_garments_are_kept() -> None:
    from gcpl_lab import draw_episode, load_fashion
    from gcpl_lab.baselines.pixels import read_pixels

    support = load_fashion("support")
    for shots, seed in ((4, 0), (16, 1)):
        part = support.subset(draw_episode(support, shots, seed))
        pixels = read_pixels(read_images(part.images))
        assert choose_mirroring("auto", torch.stack([pixels, pixels.flip(-1)]), part.labels, part.class_names).flip


@pytest.mark.parametrize("method", ["gcpl", "lmpt"])
def test_both_towers_see_what_the_setting_says_and_keep_it(random_pair: Any, tmp_path: Path, method: str) -> None:
    from gcpl_lab import GCPLClassifier, LMPTClassifier

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (24, 72, 3), dtype=np.uint8) for _ in range(6)]
    answers = {}
    for fit in ("auto", *FITS):
        model: Any
        if method == "gcpl":
            one = {"num_steps": 1, "batch_size": 2, "num_evidence": 2, "diffusion": random_pair.diffusion}
            model = GCPLClassifier(str(random_pair.folder), fit=fit, **one).fit(images, [0, 1] * 3)
        else:
            model = LMPTClassifier(str(random_pair.folder), fit=fit, num_epochs=1, clip=random_pair.clip)
            model.fit(images, np.eye(2, dtype=np.uint8)[[0, 1] * 3], ["a", "b"])
        assert model.fit_ == ("pad" if fit == "auto" else fit)
        answers[fit] = model.decision_function(images)
        again = type(model).load(model.save(tmp_path / fit), **{model.MODEL: getattr(random_pair, model.MODEL)})
        assert again.fit_ == model.fit_
        np.testing.assert_array_equal(again.decision_function(images), answers[fit])
    np.testing.assert_array_equal(answers["auto"], answers["pad"])
    for one_fit, other in (("pad", "crop"), ("crop", "squash"), ("pad", "squash")):
        assert not np.allclose(answers[one_fit], answers[other], rtol=1e-3)
