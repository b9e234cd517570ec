"""The card of a pair: every number and picture that it shows is measured on the pair that lies beside it."""

import gzip
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tools.model_card as model_card
from gcpl_lab.data.fashion import FASHION_CLASSES
from gcpl_lab.storage import write_json

SEEN, HELD_OUT, NUM_TEST = 100, 200, 40
BUNDLED = {3, 10, 11}


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def card(random_pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random pair with its card, measured on made-up garments."""
    folder = tmp_path_factory.mktemp("card")
    rng = np.random.default_rng(0)
    for part, count in (("train", SEEN + HELD_OUT), ("t10k", NUM_TEST)):
        images = np.zeros((count, 28, 28), np.uint8)
        for image in images:
            top, left = rng.integers(1, 8, 2)
            image[top : rng.integers(16, 27), left : rng.integers(16, 27)] = rng.integers(60, 256)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    target = folder / "pair"
    shutil.copytree(random_pair.folder, target)
    stages = {name: {"num_steps": 7, "batch_size": 3} for name in ("vae", "clip", "denoiser")}
    curves = {name: [{"step": 20, "loss": 2.5}, {"step": 40, "loss": 1.25}] for name in stages}
    write_json(target / "pretraining.json", {"config": stages, "curves": curves})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_card, "NUM_TEST", NUM_TEST)
        patch.setattr(model_card, "NUM_SCENES", 30)
        patch.setattr(model_card, "NUM_DENOISED", 20)
        patch.setattr(model_card, "PRETRAIN_PART", range(SEEN))
        patch.setattr(model_card, "SUPPORT_PART", range(SEEN, SEEN + HELD_OUT))
        patch.setattr(model_card, "bundled_photographs", {"test": BUNDLED, "train": {SEEN, SEEN + 1}}.__getitem__)
        assert model_card.write_card(target, folder, (0.4, 1.0)) == target / "README.md"
    return target


def test_numbers_are_strict_json_in_their_ranges(card: Path) -> None:
    found = json.loads((card / "card.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert found.keys() == {"vae", "clip", "denoiser"}
    clip, denoiser = found["clip"], found["denoiser"]
    judged = NUM_TEST - len(BUNDLED)  # photographs that are bundled have no say
    classes = np.bincount([label % 10 for label in range(NUM_TEST) if label not in BUNDLED])
    assert np.sum(clip["zero_shot_confusion"], axis=1).tolist() == classes.tolist()
    assert clip["zero_shot_accuracy"] == pytest.approx(np.trace(clip["zero_shot_confusion"]) / judged)
    assert 0 <= clip["share_of_mistakes_inside_families"] <= 1
    assert 0 <= clip["linear_probe_16_shots"]["mean"] <= 1
    assert 0 < clip["zero_shot_map_on_scenes"] < 1
    assert 0 <= denoiser["zero_shot_accuracy"] <= 1
    assert len(denoiser["timesteps"]) == len(denoiser["error"]) == len(denoiser["caption_gap"]) == 10
    assert all(error > 0 for error in denoiser["error"])


def test_vae_errors_agree_with_each_other(card: Path) -> None:
    vae = json.loads((card / "card.json").read_text(encoding="utf-8"))["vae"]
    # No mean absolute error is larger than the root of the mean squared error.
    assert 0 < vae["mean_absolute_error"] <= 10 ** (-vae["psnr_db"] / 20) + 1e-9


def test_the_page_shows_the_numbers_and_its_pictures_exist(card: Path) -> None:
    page = (card / "README.md").read_text(encoding="utf-8")
    found = json.loads((card / "card.json").read_text(encoding="utf-8"))
    assert f"{found['clip']['zero_shot_accuracy']:.1%}" in page
    assert f"{found['denoiser']['zero_shot_accuracy']:.1%}" in page
    assert "7 × 3" in page
    assert "2.500 at step 20 to 1.250 at step 40" in page
    assert all(name in page for name in FASHION_CLASSES)
    assert f"Training images 0 to {SEEN - 1}" in page
    for name, rows in (("vae", 2), ("generated", 6)):
        assert f"(card/{name}.png)" in page
        with Image.open(card / "card" / f"{name}.png") as picture:
            assert picture.height == 2 * rows * (32 + 2)


def test_the_page_is_well_formed(card: Path) -> None:
    """Every table has rows of equal width, and no braces or nan are left over."""
    page = (card / "README.md").read_text(encoding="utf-8")
    assert "{" not in page
    assert "nan" not in page.split()
    for block in page.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, block


def test_measuring_leaves_the_models_alone(card: Path, random_pair: Any) -> None:
    for file in random_pair.folder.rglob("*.safetensors"):
        assert (card / file.relative_to(random_pair.folder)).read_bytes() == file.read_bytes()


def test_the_bundled_photographs_are_those_of_folders_and_scenes() -> None:
    from gcpl_lab.data.samples import bundled_photographs, load_fashion

    test, train = bundled_photographs("test"), bundled_photographs("train")
    assert {int(path.stem.removeprefix("test_")) for path in load_fashion("test").images} <= test
    assert {6278, 1212, 8190} <= test  # of the first test scenes
    assert 50751 in train
    assert min(train) >= 50_000
    assert max(test) < 10_000
