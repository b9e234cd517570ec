"""The card of a pair: every number and figure that it shows is measured on the pair that lies beside it."""

import json
import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.fashion import FASHION_CLASSES
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import write_json
from tools import model_card
from tools.raw_fashion import RawFashion

SEEN, HELD_OUT, NUM_TEST = 100, 200, 40
BUNDLED = {3, 10, 11}


@pytest.fixture(scope="module")
def card(random_pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random pair with its card, measured on made-up garments."""
    target = tmp_path_factory.mktemp("card") / "pair"
    rng = np.random.default_rng(0)
    images = np.zeros((SEEN + HELD_OUT + NUM_TEST, 28, 28), np.uint8)
    for image in images:
        top, left = rng.integers(1, 8, 2)
        image[top : rng.integers(16, 27), left : rng.integers(16, 27)] = rng.integers(60, 256)
    labels = np.arange(len(images)) % 10
    raw = RawFashion(images[:-NUM_TEST], labels[:-NUM_TEST], images[-NUM_TEST:], labels[-NUM_TEST:])
    shutil.copytree(random_pair.folder, target)
    stages = {name: {"num_steps": 7, "batch_size": 3} for name in ("vae", "clip", "denoiser")}
    curves = {name: [{"step": 20, "loss": 2.5}, {"step": 40, "loss": 1.25}] for name in stages}
    write_json(target / "pretraining.json", {"config": stages, "curves": curves})
    generate = FrozenDiffusion.generate
    with pytest.MonkeyPatch.context() as patch:
        few = partialmethod(lambda *given, **more: generate(*given, **more | {"num_steps": 2}))  # noise, either way
        patch.setattr(FrozenDiffusion, "generate", few)
        for name, value in {
            "read_raw_fashion": lambda _folder: raw,
            "NUM_TEST": NUM_TEST,
            "NUM_SCENES": 30,
            "NUM_DENOISED": 20,
            "PRETRAIN_PART": range(SEEN),
            "SUPPORT_PART": range(SEEN, SEEN + HELD_OUT),
            "bundled_images": {"test": BUNDLED, "train": {SEEN, SEEN + 1}}.__getitem__,
        }.items():
            patch.setattr(model_card, name, value)
        assert model_card.write_card(target, "raw", (0.4, 1.0)) == target / "README.md"
    return target


def test_numbers_are_in_their_ranges_and_leave_bundled_images_out(card: Path) -> None:
    found = json.loads((card / "card.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    vae, clip, denoiser = (found[name] for name in ("vae", "clip", "denoiser"))
    judged = [index % 10 for index in range(NUM_TEST) if index not in BUNDLED]  # bundled images have no say
    assert np.sum(clip["zero_shot_confusion"], axis=1).tolist() == np.bincount(judged).tolist()
    assert clip["zero_shot_accuracy"] == pytest.approx(np.trace(clip["zero_shot_confusion"]) / len(judged))
    assert len(denoiser["timesteps"]) == len(denoiser["error"]) == len(denoiser["caption_gap"]) == 10
    # No mean absolute error is larger than the root of the mean squared error.
    assert 0 < vae["mean_absolute_error"] <= 10 ** (-vae["psnr_db"] / 20) + 1e-9


def test_the_page_shows_the_numbers_and_its_figures_exist(card: Path, random_pair: Any) -> None:
    page = (card / "README.md").read_text(encoding="utf-8")
    found = json.loads((card / "card.json").read_text(encoding="utf-8"))
    shares = [f"{found[name]['zero_shot_accuracy']:.1%}" for name in ("clip", "denoiser")]
    stated = ("7 × 3", "2.500 at step 20 to 1.250 at step 40", f"Training images 0 to {SEEN - 1}")
    for words in (*shares, *stated, *FASHION_CLASSES):
        assert words in page
    for name, rows in (("vae", 2), ("generated", 6)):
        assert f"(card/{name}.png)" in page
        with Image.open(card / "card" / f"{name}.png") as figure:
            assert figure.height == 2 * rows * (32 + 2)
    assert "{" not in page
    assert "nan" not in page.split()
    for file in random_pair.folder.rglob("*.safetensors"):  # measuring leaves the models alone
        assert (card / file.relative_to(random_pair.folder)).read_bytes() == file.read_bytes()
