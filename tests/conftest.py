"""What holds for every test: no network, no screen; and the models and pictures that tests share."""

import os
import socket
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

# Before anything imports the libraries that read these.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ.pop("GCPL_LAB_SAMPLES", None)


class NetworkUsed(Exception):
    """No OSError on purpose: libraries that fall back when they are offline must not hide the attempt."""


def _refuse_outside(method: Any) -> Any:
    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if host != "localhost" and host != "::1" and not host.startswith("127."):
                raise NetworkUsed(f"a test tried to reach {host}; the suite and the package work without network")
        return method(self, address)

    return connect


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuse every connection that leaves this computer; notebook kernels on it may talk to each other."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _refuse_outside(getattr(socket.socket, name)))
        yield


# --------------------------------------------------------------------------------- models with random weights


class Pair(NamedTuple):
    """The tiny architecture with random weights, exported and loaded as the shipped pair is."""

    folder: Path
    diffusion: Any
    clip: Any


@pytest.fixture(scope="session")
def random_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A pair that costs seconds instead of hours: everything but recognition can be tested on it."""
    import torch

    from gcpl_lab.models.clip import FrozenCLIP
    from gcpl_lab.models.diffusion import FrozenDiffusion
    from tools import pretrain

    folder = tmp_path_factory.mktemp("random_pair")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = pretrain.build_tokenizer(folder / "tokenizer")
        clip = pretrain.build_clip(len(tokenizer))
        parts = {"vae": pretrain.build_vae(), "clip": clip, "denoiser": pretrain.build_denoiser()}
        with torch.no_grad():
            # As they are initialised, prompts hardly differ; larger embeddings make every class count.
            clip.token_embedding.weight.mul_(20)
            parts["vae"].register_to_config(scaling_factor=0.7)
    pretrain.export_pair(folder / "pair", tokenizer=tokenizer, **parts)
    return Pair(folder / "pair", FrozenDiffusion.load(str(folder / "pair")), FrozenCLIP.load(str(folder / "pair")))


@pytest.fixture
def diffusion(random_pair: Pair) -> Any:
    """The random diffusion model."""
    return random_pair.diffusion


@pytest.fixture
def clip(random_pair: Pair) -> Any:
    """The random CLIP."""
    return random_pair.clip


@pytest.fixture(scope="session")
def known_diffusion() -> Callable[..., Any]:
    """Makes a FrozenDiffusion whose answer is known: its prompts *are* clean latents.

    Under the prompt h it answers with the noise that z_t would hold if the clean latent were h. So the error
    of a picture z0 under the prompt h is (ᾱ_t / (1 − ᾱ_t)) · mean((z0 − h)²), whatever the noise is.
    """
    import torch

    from gcpl_lab.models.diffusion import FrozenDiffusion
    from tools.pretrain import build_scheduler

    class KnownDenoiser(torch.nn.Module):
        def __init__(self, scheduler: Any) -> None:
            super().__init__()
            self.config = SimpleNamespace(sample_size=4, in_channels=2)
            self.products = scheduler.alphas_cumprod
            self.predicts = scheduler.config.prediction_type
            self.unused = torch.nn.Parameter(torch.zeros(1))
            self.num_passes = 0

        def forward(self, noisy: Any, steps: Any, hidden: Any, return_dict: bool = True) -> tuple[Any]:
            self.num_passes += 1
            clean = hidden.reshape(noisy.shape)
            product = self.products[steps].reshape(-1, 1, 1, 1)
            noise = (noisy - product.sqrt() * clean) / (1 - product).sqrt()
            if self.predicts == "epsilon":
                return (noise,)
            return (product.sqrt() * noise - (1 - product).sqrt() * clean,)

    def make(prediction_type: str = "epsilon") -> FrozenDiffusion:
        scheduler = build_scheduler()
        scheduler.register_to_config(prediction_type=prediction_type)
        vae = torch.nn.Module()
        vae.config = SimpleNamespace(scaling_factor=2.0, block_out_channels=(1, 2, 3))
        text_encoder = torch.nn.Module()
        text_encoder.config = SimpleNamespace(max_position_embeddings=3)
        text_encoder.get_input_embeddings = lambda: torch.nn.Embedding(2, 1)
        return FrozenDiffusion(
            vae=vae,
            denoiser=KnownDenoiser(scheduler),
            text_encoder=text_encoder,
            tokenizer=SimpleNamespace(bos_token_id=0, eos_token_id=1, pad_token_id=1),
            scheduler=scheduler,
            name="known",
        )

    return make


@pytest.fixture(scope="session")
def pictures() -> tuple[list[Any], Any]:
    """Twelve 40 x 32 grey pictures of three classes (bright above, below, left) and their class ids."""
    import numpy as np

    rng = np.random.default_rng(0)
    images, labels = [], np.repeat(np.arange(3), 4)
    for label in labels:
        image = rng.integers(0, 60, (40, 32), dtype=np.uint8)
        part = (slice(0, 20), slice(20, 40), slice(None))[label]
        image[part, : 16 if label == 2 else 32] += 150
        images.append(image)
    return images, labels


@pytest.fixture
def most_alive(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many images that were read, in their full size, have been in memory at once."""
    from gcpl_lab.data import readers

    known: list[weakref.ref[Any]] = []
    most, read = 0, readers.read_image

    def watched(*arguments: Any) -> Any:
        nonlocal most
        image = read(*arguments)
        known.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in known))
        return image

    monkeypatch.setattr(readers, "read_image", watched)
    return lambda: most


@pytest.fixture(scope="session")
def few_shot_folder(tmp_path_factory: pytest.TempPathFactory, pictures: tuple[list[Any], Any]) -> Path:
    """``support/`` and ``test/`` with class folders of a few pictures each: bag, boot, shirt."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("few_shot")
    for split, shift in (("support", 0), ("test", 10)):
        for index, (image, label) in enumerate(zip(*pictures, strict=True)):
            path = folder / split / ("bag", "boot", "shirt")[label] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image + shift).save(path)
    return folder


@pytest.fixture(scope="session")
def make_few_shot(random_pair: Pair, few_shot_folder: Path) -> Callable[..., Any]:
    """Makes a FewShotExperiment on the random pair; bag and shirt are a family of look-alikes, boot is alone."""
    from dataclasses import replace

    from gcpl_lab.data.readers import read_class_folders
    from gcpl_lab.experiments.few_shot import FewShotExperiment
    from tests.made_up import SMALL_SETTINGS

    families = {"pair": ("bag", "shirt"), "alone": ("boot",)}
    support, test = (
        replace(read_class_folders(few_shot_folder / split), families=families) for split in ("support", "test")
    )

    def make(support: Any = support, test: Any = test, **settings: Any) -> FewShotExperiment:
        experiment = FewShotExperiment(
            support, test, preset=str(random_pair.folder), settings=SMALL_SETTINGS | settings
        )
        experiment.__dict__["diffusion"], experiment.__dict__["clip"] = random_pair.diffusion, random_pair.clip
        return experiment

    return make


@pytest.fixture(scope="session")
def few_shot(make_few_shot: Callable[..., Any]) -> Any:
    """One such experiment that tests share."""
    return make_few_shot()


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, as a cell of a notebook does, is forgotten behind it."""
    from gcpl_lab.experiments import few_shot, multilabel
    from gcpl_lab.gcpl.objectives import OBJECTIVES
    from gcpl_lab.lmpt.losses import LOSSES

    for registry in (OBJECTIVES, LOSSES, few_shot.BASELINES, few_shot.METHODS, multilabel.MULTILABEL_METHODS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
