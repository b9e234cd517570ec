"""Folders of models are data: nothing in them runs code, reaches the network or is filled up with random weights."""

import json
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gcpl_lab.errors import ModelError
from gcpl_lab.models import presets
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion

TEXT, UNET, VAE = "text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"
CLIP, DIFFUSION = "clip/open_clip_config.json", "diffusion/model_index.json"


@pytest.fixture
def folder(random_pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a pair, which asks nobody anything and opens no socket."""

    def forbidden(*_arguments: Any, **_words: Any) -> None:
        raise AssertionError("a folder of models opened a socket or asked on standard input")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr("builtins.input", forbidden)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return Path(shutil.copytree(random_pair.folder, tmp_path / "pair"))


def change(path: Path, values: dict[str, Any]) -> None:
    """Merge values into a JSON file."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(merge(content, values)))


def merge(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {name: merge(old.get(name), value) for name, value in new.items()}


def load(folder: Path, name: str) -> Any:
    return (FrozenCLIP if name.startswith("clip") else FrozenDiffusion).load(str(folder))


def put_module(folder: Path) -> Path:
    """A module that leaves a mark when it is imported, wherever a library may look for it."""
    mark = folder.parent / "it_ran"
    source = f"open({str(mark)!r}, 'w').close()\nfrom transformers import CLIPTokenizer as Other\n"
    for place in (folder, *(each for each in folder.rglob("*") if each.is_dir())):
        (place / "other.py").write_text(source)
    return mark


def test_a_whole_folder_loads_without_network(folder: Path, random_pair: Any) -> None:
    assert load(folder, "clip").checksum() == random_pair.clip.checksum()
    assert load(folder, "diffusion").checksum() == random_pair.diffusion.checksum()


MAP, REMOTE = {"AutoTokenizer": ["other.Other", None]}, {"AutoTokenizer": ["somebody/model--other.Other", None]}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (CLIP, {"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"trust_remote_code": True}}}}),
        (CLIP, {"model_cfg": {"text_cfg": {"hf_model_name": "somebody/model"}}}),
        (CLIP, {"model_cfg": {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"}}}),
        (CLIP, {"model_cfg": {"multimodal_cfg": {}}}),
        ("clip/tokenizer_config.json", {"auto_map": MAP}),
        ("clip/tokenizer_config.json", {"auto_map": REMOTE}),
        ("clip/tokenizer_config.json", {"tokenizer_class": "Other"}),
        ("clip/tokenizer_config.json", {"gguf_file": "other.gguf"}),
        ("diffusion/tokenizer/tokenizer_config.json", {"auto_map": MAP, "tokenizer_class": "Other"}),
        ("diffusion/tokenizer/tokenizer_config.json", {"fast_tokenizer_files": ["../../other.json"]}),
        ("diffusion/text_encoder/config.json", {"auto_map": {"AutoModel": "other.Other"}}),
        ("diffusion/text_encoder/config.json", {"model_type": "other"}),
        ("diffusion/text_encoder/config.json", {"attn_implementation": "somebody/kernels"}),
        ("diffusion/text_encoder/config.json", {"quantization_config": {"quant_method": "awq"}}),
        ("diffusion/text_encoder/adapter_config.json", {"base_model_name_or_path": "somebody/model"}),
        ("diffusion/unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("diffusion/unet/config.json", {"auto_map": {"AutoModel": "other.Other"}}),
        ("diffusion/unet/config.json", {"_class_name": "Other"}),
        ("diffusion/vae/diffusion_pytorch_model.safetensors.index.json", {"weight_map": {"a": "../../other.bin"}}),
        ("diffusion/scheduler/scheduler_config.json", {"_class_name": "Other"}),
        (DIFFUSION, {"_class_name": ["other", "Other"]}),
        (DIFFUSION, {"unet": ["other", "Other"]}),
        (DIFFUSION, {"other": ["transformers", "CLIPTextModel"]}),
    ],
)
def test_words_that_a_library_would_act_on_are_refused(folder: Path, name: str, values: dict[str, Any]) -> None:
    mark = put_module(folder)
    change(folder / name, values)
    if "tokenizer_kwargs" in str(values):  # made open_clip trust the folder, whose auto_map then named a module
        change(folder / "clip/tokenizer_config.json", {"tokenizer_class": "Other", "auto_map": MAP})
    with pytest.raises(ModelError, match=Path(name).name):
        load(folder, name)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt"])
def test_pickled_weights_are_never_opened(folder: Path, suffix: str) -> None:
    mark = folder.parent / "it_ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (mark,)

    for place in ("clip", *(f"diffusion/{part}" for part in ("text_encoder", "unet", "vae"))):
        for stem in ("open_clip_pytorch_model", "pytorch_model", "model", "diffusion_pytorch_model"):
            (folder / place / f"{stem}{suffix}").write_bytes(pickle.dumps(Bomb()))
    weights = folder / "clip" / "open_clip_model.safetensors"
    load(folder, "diffusion")
    load(folder, "clip")
    weights.rename(weights.with_name("mine.safetensors"))  # its name decides nothing
    load(folder, "clip")
    weights.with_name("mine.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks open_clip_model.safetensors"):
        load(folder, "clip")
    (folder / "diffusion" / f"{UNET}.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks unet/diffusion_pytorch_model.safetensors"):
        load(folder, "diffusion")
    assert not mark.exists()


# ------------------------------------------------------------------------------------------------- whole weights


def without_one(tensors: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(tensors.items())[1:])


def with_foreign_names(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"cond_stage_model.{name}": value for name, value in tensors.items()}


def first_half(tensors: dict[str, Any]) -> dict[str, Any]:
    """No layer, block or part above its first."""
    return {name: value for name, value in tensors.items() if ".1." not in name and ".2." not in name}


def other_shape(tensors: dict[str, Any]) -> dict[str, Any]:
    name = min(tensors)
    return tensors | {name: tensors[name].repeat(2, *[1] * (tensors[name].ndim - 1))}


@pytest.mark.parametrize("harm", [without_one, with_foreign_names, first_half, other_shape])
@pytest.mark.parametrize("weights", ["clip/open_clip_model", *(f"diffusion/{part}" for part in (TEXT, UNET, VAE))])
def test_weights_that_are_not_whole_are_refused(
    folder: Path, weights: str, harm: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """The text encoder took random weights for those that were not there, without a word."""
    path = folder / f"{weights}.safetensors"
    before, harmed = load_file(path), harm(load_file(path))
    save_file({name: value.contiguous() for name, value in harmed.items()}, path, {"format": "pt"})
    gone, added = before.keys() - harmed.keys(), harmed.keys() - before.keys()
    named = min(gone or added) if harm is not other_shape else min(before)
    with pytest.raises(ModelError, match=f"{path.parent.name}/{path.name}") as raised:
        load(folder, weights)
    assert named.split(".")[-2] in str(raised.value)


@pytest.mark.parametrize("weights", ["clip/open_clip_model", *(f"diffusion/{part}" for part in (TEXT, UNET, VAE))])
@pytest.mark.parametrize("harm", [lambda whole: whole[:4000], lambda whole: b"\0" * len(whole), lambda _: b""])
def test_weights_that_are_cut_or_no_safetensors_are_refused(folder: Path, weights: str, harm: Any) -> None:
    path = folder / f"{weights}.safetensors"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ModelError, match=f"{path.parent.name}/{path.name}"):
        load(folder, weights)


def test_the_words_of_published_files_are_known(folder: Path, random_pair: Any) -> None:
    """As Stable Diffusion 1.4 has them, of earlier versions of the libraries, with older names of weights."""
    diffusion = folder / "diffusion"
    index = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    change(diffusion / "model_index.json", index | {"feature_extractor": ["transformers", "CLIPFeatureExtractor"]})
    sampling = {"_class_name": "PNDMScheduler", "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}
    schedule = {"beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000}
    path = diffusion / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(sampling | schedule | {"steps_offset": 1, "trained_betas": None}))
    token = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    token["__type"] = "AddedToken"
    words = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "unk_token": token}
    words |= {"name_or_path": "openai/clip-vit-large-patch14", "special_tokens_map_file": "./special_tokens_map.json"}
    change(diffusion / "tokenizer" / "tokenizer_config.json", words)
    change(
        diffusion / "text_encoder" / "config.json",
        {"_name_or_path": "openai/clip", "torch_dtype": "float32", "dropout": 0.0},
    )
    rename(
        diffusion / f"{TEXT}.safetensors",
        lambda name: f"text_model.{name}",
        {"text_model.embeddings.position_ids": torch.arange(32)[None]},
    )
    attention = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    rename(
        diffusion / f"{VAE}.safetensors",
        lambda name: next((name.replace(*pair) for pair in attention.items() if pair[0] in name), name),
    )
    assert load(folder, "diffusion").checksum() == random_pair.diffusion.checksum()


def rename(path: Path, new_name: Callable[[str], str], more: dict[str, Any] | None = None) -> None:
    save_file({new_name(name): value for name, value in load_file(path).items()} | (more or {}), path, {"format": "pt"})


NAMES = ("text_encoder/config", "tokenizer/tokenizer_config", "tokenizer/tokenizer", "unet/config", "vae/config")
JSONS = [f"diffusion/{name}.json" for name in ("model_index", "scheduler/scheduler_config", *NAMES)]
JSONS += [f"clip/{name}.json" for name in ("open_clip_config", "tokenizer_config", "tokenizer")]


@pytest.mark.parametrize("name", JSONS)
def test_files_that_are_damaged_or_of_another_kind_are_one_message(folder: Path, name: str) -> None:
    for content in (b"", b"{", b"[]", b'"text"', b"[" * 100_000, b"\xff\xfe{}", b'{"version": {}, "other": 1}'):
        (folder / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{Path(name).name}|its tokenizer cannot be loaded"):
            load(folder, name)


def test_half_precision_files_will_do(folder: Path, random_pair: Any) -> None:
    """A pipeline that was saved with variant="fp16" has files of that name alone."""
    for path in (folder / "diffusion").rglob("*.safetensors"):
        halved = {name: value.half() for name, value in load_file(path).items()}
        save_file(halved, path.with_name(f"{path.stem}.fp16.safetensors"), {"format": "pt"})
        path.unlink()
    found, whole = load(folder, "diffusion"), random_pair.diffusion
    assert found.dtype == whole.dtype
    weight, expected = (next(each.text_encoder.parameters()) for each in (found, whole))
    assert (weight == expected.half().float()).all()


def test_a_flipped_byte_in_any_file_of_the_bundled_pair_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(presets.TINY_FOLDER, tmp_path / "tiny"))
    monkeypatch.setattr(presets, "TINY_FOLDER", copy)
    files = [path for part in ("clip", "diffusion") for path in sorted((copy / part).rglob("*")) if path.is_file()]
    assert len(files) == 18
    for path in files:
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=f"damaged: .*{path.name}"):
            load(copy, path.relative_to(copy).parts[0])
        path.write_bytes(whole)
    assert load(copy, "clip").checksum() == FrozenCLIP.load("tiny").checksum()


TWO_AT_ONCE = """
import threading
from gcpl_lab import FrozenCLIP, FrozenDiffusion

failures = []
def load(kind):
    try:
        kind.load("tiny")
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=load, args=(kind,)) for kind in (FrozenDiffusion, FrozenDiffusion, FrozenCLIP)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
"""


def test_threads_may_load_at_once() -> None:
    """The first to import a library used to leave the second with half of it."""
    subprocess.run([sys.executable, "-c", TWO_AT_ONCE], check=True, cwd=Path(__file__).parents[1])
