"""Names for frozen models, and where their weights are: nothing but the preset changes between a laptop and a GPU.

Weights are looked for in this order: an explicit local folder (given as the preset, or below the folder that the
environment variable ``GCPL_LAB_MODELS`` names), the Hugging Face cache, the hub. Loaders are handed local paths
only, so a model that is here is never asked for on the network, and one that is absent is refused before any
library that could load it is imported.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gcpl_lab.errors import DataError, ModelError
from gcpl_lab.models.checks import find_weights

TINY_FOLDER = Path(__file__).parent / "tiny"
MODELS_VARIABLE = "GCPL_LAB_MODELS"
Part = Literal["diffusion", "clip"]

DIFFUSION_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)
"""All that is fetched of a pipeline's repository: no pickled weights, no second precision, no safety checker."""

CLIP_FILE = "open_clip_model.safetensors"
WEIGHTS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
"""Parts of a pipeline, and how the file of their weights begins; it may be a half-precision one (``.fp16``)."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes in float32, counted from the shapes by ``tools.shapes``; bfloat16 takes half of each.

    Attributes:
        weights: Frozen weights that stay on the device while training and classifying.
        vae: Of the VAE, which is needed while images are encoded.
        training: Peak of what a training step adds for one image (of CLIP: for one class prompt).
        checkpointed: The same with gradient checkpointing.
        classifying: Peak of what one denoiser evaluation adds (of CLIP: encoding one image).
    """

    weights: int
    vae: int
    training: int
    checkpointed: int
    classifying: int


MEMORY_BASIS = (
    "computed: the parameters, and every tensor of one step counted on the shapes alone "
    "(tools.shapes); allocators and libraries add to it"
)


@dataclass(frozen=True)
class Preset:
    """Where frozen models come from and what they need.

    Attributes:
        name: What users type.
        diffusion_source: Folder or hub name of a Stable Diffusion pipeline in the diffusers format; empty
            where there is none.
        clip_source: open_clip's exact model name (those ending in ``-quickgelu`` have the activation that the
            weights were trained with), or ``local-dir:<folder>``; empty where there is none.
        clip_weights: open_clip's tag of pretrained weights; empty for a local folder.
        licence: Of the weights.
        download_bytes: What the hub sends for everything; 0 for weights that ship with the package.
        evidence_range: The part of the noise schedule, as fractions of its length, where class evidence
            was found; prompts are trained and images are classified there unless told otherwise.
        clip_hub: Hub name of the repository that holds ``clip_weights`` as safetensors.
        image_size: Side of the images in pixels, of the diffusion model where there is one, else of CLIP.
        memory: What training and classifying take, of the diffusion model where there is one, else of CLIP.
        note: What a user should know before fetching it.
    """

    name: str
    diffusion_source: str = ""
    clip_source: str = ""
    clip_weights: str = ""
    licence: str = "of the folder's owner"
    download_bytes: int = 0
    evidence_range: tuple[float, float] = (0.0, 1.0)
    clip_hub: str = ""
    image_size: int = 0
    memory: StepMemory | None = None
    note: str = ""


def _read_presets() -> dict[str, Preset]:
    table = tomllib.loads((Path(__file__).parent / "presets.toml").read_text(encoding="utf-8"))
    presets = {}
    for name, values in table.items():
        values = {
            key: value.format(tiny=TINY_FOLDER) if isinstance(value, str) else value for key, value in values.items()
        }
        memory = StepMemory(*values.pop("memory")) if "memory" in values else None
        low, high = values.pop("evidence_range", (0.0, 1.0))
        presets[name] = Preset(name, **values, evidence_range=(low, high), memory=memory)
    return presets


PRESETS = _read_presets()


def find_preset(name: str) -> Preset:
    """The preset called ``name``, or one made from a local folder.

    A local folder holds ``diffusion/`` (diffusers format), ``clip/`` (open_clip format) or both, as the shipped
    ``tiny`` folder does; or it is itself a diffusers pipeline or an open_clip model.

    Raises:
        ModelError: No preset and no such folder; the message lists what there is.
    """
    if name in PRESETS:
        return PRESETS[name]
    folder = Path(name)
    if not folder.is_dir():
        raise ModelError(
            f"{name!r} is neither a preset nor a folder of models; presets are {', '.join(PRESETS)}, and a folder "
            "holds diffusion/ and clip/"
        )
    diffusion, clip = _part_folder(folder, "diffusion"), _part_folder(folder, "clip")
    if diffusion is None and clip is None:
        raise ModelError(
            f"{folder}: is a folder but has no diffusion and no clip in it; a model folder holds diffusion/ (diffusers "
            "format), clip/ (open_clip format) or both, or is itself one of the two"
        )
    source = f"local-dir:{clip}" if clip else ""
    return Preset(name, str(diffusion or ""), source)


def _part_folder(folder: Path, part: Part) -> Path | None:
    """Where a model folder keeps one of the two models: below, or the folder itself."""
    if (folder / part).is_dir():
        return folder / part
    mark = "model_index.json" if part == "diffusion" else "open_clip_config.json"
    return folder if (folder / mark).is_file() else None


@dataclass(frozen=True)
class Location:
    """What of a preset's model is on this machine.

    Attributes:
        path: A pipeline folder, an open_clip folder, or one file of CLIP weights; None where nothing whole is here.
        place: ``"folder"``, ``"cache"`` or ``"absent"``.
        missing: Files that are not here.
    """

    path: Path | None
    place: Literal["folder", "cache", "absent"]
    missing: tuple[str, ...] = ()


def has_part(preset: Preset, part: Part) -> bool:
    """Whether a preset has a diffusion model, or a CLIP, at all."""
    return bool(preset.diffusion_source if part == "diffusion" else preset.clip_source)


def locate(preset: Preset, part: Part) -> Location:
    """Find a preset's weights on this machine; never touches the network.

    Raises:
        ModelError: The preset has no such model.
    """
    if not has_part(preset, part):
        others = ", ".join(name for name, other in PRESETS.items() if has_part(other, part))
        kind = "a diffusion model" if part == "diffusion" else "a CLIP"
        raise ModelError(f"preset {preset.name!r} has no {kind[2:]}; presets with {kind} are {others}")
    source = preset.diffusion_source if part == "diffusion" else preset.clip_source
    local = Path(source.removeprefix("local-dir:"))
    if source.startswith("local-dir:") or local.is_dir():
        missing = _missing_files(local, part)
        return Location(None if missing else local, "absent" if missing else "folder", missing)
    if root := os.environ.get(MODELS_VARIABLE):
        found = _part_folder(Path(root) / preset.name, part)
        if found is not None:
            missing = _missing_files(found, part)
            return Location(None if missing else found, "absent" if missing else "folder", missing)
    return _locate_in_cache(preset, part)


def _missing_files(folder: Path, part: Part) -> tuple[str, ...]:
    """What a local folder lacks; CLIP's weights may have any name as long as they are the only safetensors file."""
    if part == "clip":
        missing = [] if (folder / "open_clip_config.json").is_file() else ["open_clip_config.json"]
        return (*missing, *([] if find_clip_weights(folder) else [CLIP_FILE]))
    wanted = [name for name in DIFFUSION_FILES if name.endswith("config.json") and "tokenizer" not in name]
    missing = [name for name in wanted if not (folder / name).is_file()]
    missing += [f"{name}/{stem}.safetensors" for name, stem in WEIGHTS.items() if not find_weights(folder / name, stem)]
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        missing.append("tokenizer/vocab.json")
    return tuple(missing)


def find_clip_weights(folder: Path) -> Path | None:
    """The file of weights of an open_clip folder: the one with open_clip's name, or the only one."""
    files = sorted(folder.glob("*.safetensors"))
    named = folder / CLIP_FILE
    return named if named in files else files[0] if len(files) == 1 else None


def check_bundled(folder: Path) -> str:
    """Refuse a part of the bundled pair of which a file is not as it was shipped; other folders are left alone.

    Returns:
        How many files were compared, as the begin of a sentence.

    Raises:
        ModelError: All files that are damaged or missing, by name.
    """
    if folder.parent != TINY_FOLDER:
        return ""
    from gcpl_lab.data.samples import verify_files

    try:
        return f"{len(verify_files(TINY_FOLDER, folder.name))} files, "
    except DataError as error:
        raise ModelError(str(error)) from error


def hub_files(preset: Preset, part: Part) -> tuple[str, tuple[str, ...]]:
    """The hub's name of a preset's repository, and the files that are needed of it."""
    return (preset.diffusion_source, DIFFUSION_FILES) if part == "diffusion" else (preset.clip_hub, (CLIP_FILE,))


def _locate_in_cache(preset: Preset, part: Part) -> Location:
    from huggingface_hub import try_to_load_from_cache

    repository, files = hub_files(preset, part)
    if not repository:
        return Location(None, "absent", files)
    found = {name: try_to_load_from_cache(repository, name) for name in files}
    missing = tuple(name for name, path in found.items() if not isinstance(path, str))
    if missing:
        return Location(None, "absent", missing)
    path = Path(str(found[files[0]]))
    return Location(path.parent if part == "diffusion" else path, "cache")


def fetch_command(preset: Preset, part: Part) -> str:
    """The exact command that fetches one of a preset's models into the Hugging Face cache."""
    repository, files = hub_files(preset, part)
    return f"hf download {repository} {' '.join(files)}"


def resolve(preset: Preset, part: Part) -> Path:
    """A pipeline folder, an open_clip folder, or one file of CLIP weights: local, cached, or fetched from the hub now.

    Raises:
        ModelError: The weights are nowhere and cannot be fetched; the message has the command that fetches them.
    """
    found = locate(preset, part)
    if found.path is not None:
        return found.path
    source = preset.diffusion_source if part == "diffusion" else preset.clip_source
    if source.startswith("local-dir:") or Path(source).is_dir():
        raise ModelError(_incomplete_folder(preset, part, found.missing))
    repository, files = hub_files(preset, part)
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not constants.HF_HUB_OFFLINE and repository:
        try:
            paths = [Path(hf_hub_download(repository, name)) for name in files]
            return paths[0].parent if part == "diffusion" else paths[0]
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ModelError(_absent(preset, part, f" ({type(error).__name__}: {error})")) from error
    raise ModelError(_absent(preset, part, " (offline mode is on)" if constants.HF_HUB_OFFLINE else ""))


def _incomplete_folder(preset: Preset, part: Part, missing: tuple[str, ...]) -> str:
    lacks = f"lacks {', '.join(missing)}"
    if part == "diffusion":
        return f"{preset.diffusion_source}: is no complete diffusers pipeline folder ({lacks})"
    return (
        f"preset {preset.name!r}: CLIP {preset.clip_source!r} cannot be loaded: it is no complete open_clip folder "
        f"({lacks})"
    )


def _absent(preset: Preset, part: Part, why: str) -> str:
    model = "diffusion" if part == "diffusion" else f"CLIP {preset.clip_source}"
    note = f" ({preset.note})" if preset.note and part == "diffusion" else ""
    root = os.environ.get(MODELS_VARIABLE)
    named = f"{MODELS_VARIABLE} names{f' (now {root}, which has none)' if root else ''}"
    return (
        f"preset {preset.name!r}: its {model} weights are not in the Hugging Face cache and cannot be fetched{why}. "
        f"Fetch them where there is a network with: {fetch_command(preset, part)}{note}; or put them into "
        f"{preset.name}/{part} of a folder that {named}, or use preset 'tiny'."
    )


def describe_preset(preset: Preset) -> str:
    """One line on whether a preset can be used now, and how to get what is missing."""
    lines, missing = [], []
    for part in ("diffusion", "clip"):
        if not has_part(preset, part):
            continue
        found = locate(preset, part)
        if found.path is None:
            missing.append(fetch_command(preset, part))
        else:
            lines.append(found.place)
    if not missing:
        where = "in a local folder" if set(lines) == {"folder"} else "in the Hugging Face cache"
        return f"ready ({where})"
    return f"not here ({preset.download_bytes / 1e9:.1f} GB, {preset.licence}); fetch with: {' && '.join(missing)}"


def preset_facts(preset: Preset) -> dict[str, str | int | float | None]:
    """What a person chooses a preset by: source, licence, image size, download, and memory in float32.

    Returns:
        ``source``, ``licence``, ``image_size`` (px), ``download_gb``, ``training_gb`` (weights, VAE and a step of one
        image), ``classifying_gb`` (weights, VAE and one evaluation); None where it is not known.
    """
    repositories = [name for name in (preset.diffusion_source, preset.clip_hub) if name and not Path(name).is_dir()]
    memory = preset.memory
    fixed = memory.weights + memory.vae if memory else 0
    return {
        "source": " + ".join(repositories) or "with the package",
        "licence": preset.licence,
        "image_size": preset.image_size or None,
        "download_gb": round(preset.download_bytes / 1e9, 1),
        "training_gb": round((fixed + memory.training) / 1e9, 1) if memory else None,
        "classifying_gb": round((fixed + memory.classifying) / 1e9, 1) if memory else None,
    }
