"""What a folder of models may say, checked against lists of known words before a library reads it.

To the libraries a configuration is more than data: ``auto_map`` imports a module that lies beside it (or asks about it
on standard input), ``hf_model_name`` and ``timm_model_name`` ask the network, ``quantization_config`` brings in other
packages, an index names further files of weights, which may be pickled. So a word that is not known to be harmless is
refused, and what is loaded is one safetensors file, by its name.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from gcpl_lab.errors import ArtifactError, ModelError
from gcpl_lab.storage import read_json

LOADING = threading.RLock()
"""Held while a model is loaded: two threads that import the libraries at once see half of them."""

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
PIPELINE_PARTS: Mapping[str, tuple[str, Collection[str]]] = {
    "feature_extractor": ("transformers", ("CLIPFeatureExtractor", "CLIPImageProcessor")),
    "image_encoder": ("transformers", ("CLIPVisionModelWithProjection",)),
    "safety_checker": ("stable_diffusion", ("StableDiffusionSafetyChecker",)),
    "scheduler": ("diffusers", SCHEDULERS),
    "text_encoder": ("transformers", ("CLIPTextModel",)),
    "tokenizer": ("transformers", TOKENIZERS),
    "unet": ("diffusers", ("UNet2DConditionModel",)),
    "vae": ("diffusers", ("AutoencoderKL",)),
}
"""Library and classes of each part of a Stable Diffusion pipeline; None twice where it has no such part."""

SAVED = ("_class_name", "_diffusers_version", "_name_or_path")
TEXT_SAVED = ("_name_or_path", "dropout", "model_type", "torch_dtype")

SPECIAL_TOKENS = tuple(f"{name}_token" for name in ("bos", "cls", "eos", "mask", "pad", "sep", "unk"))
TOKENIZER_WORDS = (
    *SPECIAL_TOKENS,
    *("add_bos_token", "add_prefix_space", "added_tokens_decoder", "additional_special_tokens", "backend"),
    *("clean_up_tokenization_spaces", "do_lower_case", "errors", "extra_special_tokens", "is_local"),
    *("local_files_only", "max_length", "model_max_length", "name_or_path", "padding_side", "processor_class"),
    *("special_tokens_map_file", "stride", "tokenizer_class", "truncation_side", "truncation_strategy"),
)

TOWER_WORDS = (
    *("layers", "width", "mlp_ratio", "ls_init_value", "output_tokens", "pool_type", "final_ln_after_pool"),
    *("block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
)
VISION_WORDS = (
    *TOWER_WORDS,
    *("head_width", "patch_size", "image_size", "patch_dropout", "attentional_pool", "attn_pooler_queries"),
    *("attn_pooler_heads", "no_ln_pre", "pos_embed_type"),
)
TEXT_WORDS = (
    *TOWER_WORDS,
    *("context_length", "vocab_size", "heads", "embed_cls", "pad_id", "eos_id", "no_causal_mask", "proj_bias"),
    *("proj_type", "hf_tokenizer_name"),  # in a folder the last one only says that the tokenizer lies beside
)
MODEL_WORDS = (
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"),
    "nonscalar_logit_scale",
)
IMAGE_WORDS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")


def read_known(path: Path, known: Iterable[str], nested: Collection[str] = ()) -> dict[str, Any]:
    """A JSON object that holds nothing but known words; their values are plain but for those of ``nested``.

    Raises:
        ModelError: It cannot be read, or holds something else; the message names the file and the words.
    """
    try:
        values = read_json(path)
    except ArtifactError as error:
        raise ModelError(str(error)) from error
    return check_words(path, values, known, nested)


def check_words(path: Path, values: Any, known: Iterable[str], nested: Collection[str] = ()) -> dict[str, Any]:
    """The same of what was read; see :func:`read_known`."""
    if not isinstance(values, dict):
        raise ModelError(f"{path}: holds a {type(values).__name__}; expected an object with names and values")
    known = set(known)
    if strange := sorted(values.keys() - known):
        raise ModelError(
            f"{path}: says {', '.join(map(repr, strange))}, which gcpl_lab does not know and a library might act on "
            f"(run code, fetch files); expected some of {', '.join(sorted(known))}. Remove it if you know what it does"
        )
    for name, value in values.items():
        if name not in nested and not _is_plain(value):
            raise ModelError(f"{path}: {name!r} is {value!r:.80}; expected a number, a text, or a list of them")
    return values


def _is_plain(value: Any) -> bool:
    return all(isinstance(item, str | int | float | None) for item in (value if isinstance(value, list) else [value]))


def _require(path: Path, name: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise ModelError(f"{path}: {name} is {value!r}; expected {' or '.join(known)}")


def check_pipeline(folder: Path) -> None:
    """Refuse a diffusers pipeline whose index names another kind of model, or whose tokenizer is of another kind."""
    path = folder / "model_index.json"
    index = read_known(path, (*PIPELINE_PARTS, *SAVED, "requires_safety_checker"))
    _require(path, "_class_name", index.get("_class_name"), ("StableDiffusionPipeline",))
    for part, (library, classes) in PIPELINE_PARTS.items():
        if (pair := index.get(part) or [None, None]) not in ([None, None], *([library, each] for each in classes)):
            raise ModelError(f"{path}: its {part} is {pair!r}; expected {library} and {' or '.join(classes)}")
    for part in ("text_encoder", "unet", "vae"):
        for other in (*folder.glob(f"{part}/adapter_*"), *folder.glob(f"{part}/*.index*.json")):
            raise ModelError(f"{other}: names further weights, which are not loaded; expected one safetensors file")
    check_tokenizer(folder / "tokenizer")


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer other than CLIP's, and what could run code in its stead."""
    path = folder / "tokenizer_config.json"
    if path.is_file():
        values = read_known(path, TOKENIZER_WORDS, (*SPECIAL_TOKENS, "added_tokens_decoder", "extra_special_tokens"))
        _require(path, "tokenizer_class", values.get("tokenizer_class", TOKENIZERS[0]), TOKENIZERS)
    path = folder / "special_tokens_map.json"
    if path.is_file():
        read_known(path, SPECIAL_TOKENS, SPECIAL_TOKENS)


def load_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer of a folder that was checked, from its files alone."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of a damaged file the library raises nothing more special
        raise ModelError(f"{folder}: its tokenizer cannot be loaded ({error}); fetch or save it anew") from error


def check_part(path: Path, *kinds: type) -> None:
    """Refuse the configuration of one of diffusers' models that is of another class or has other arguments.

    Args:
        path: Its JSON file.
        kinds: Classes that it may be of; their arguments are the known words.
    """
    _require(path, "_class_name", _read(path).get("_class_name"), [kind.__name__ for kind in kinds])
    read_known(path, {*SAVED, *(word for kind in kinds for word in inspect.signature(kind).parameters)})


def check_scheduler(path: Path) -> None:
    """The same of a noise schedule, which may have been saved for another way of sampling, with words of a third."""
    import diffusers

    check_part(path, *(getattr(diffusers, name) for name in SCHEDULERS))


def check_text_encoder(path: Path, kind: type) -> None:
    """The same of transformers' CLIP text encoder; ``kind`` is the class of its configuration."""
    values = read_known(path, (*inspect.signature(kind).parameters, *TEXT_SAVED))
    _require(path, "model_type", values.get("model_type"), ("clip_text_model",))


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path)
    return values if isinstance(values, dict) else {}


def check_clip(folder: Path) -> dict[str, Any]:
    """The configuration of an open_clip folder, its ``text_cfg`` for those who want to know of the tokenizer.

    Raises:
        ModelError: It names a tower, a tokenizer or arguments that open_clip would fetch or import.
    """
    path = folder / "open_clip_config.json"
    whole = read_known(path, ("model_cfg", "preprocess_cfg"), ("model_cfg", "preprocess_cfg"))
    towers = ("vision_cfg", "text_cfg")
    model = check_words(path, whole.get("model_cfg"), MODEL_WORDS, towers)
    for name, known in zip(towers, (VISION_WORDS, TEXT_WORDS), strict=True):
        check_words(path, model.get(name), known)
    check_words(path, whole.get("preprocess_cfg", {}), IMAGE_WORDS)
    text: dict[str, Any] = model["text_cfg"]
    if text.get("hf_tokenizer_name"):
        check_tokenizer(folder)
    return text


def find_weights(folder: Path, stem: str) -> Path | None:
    """The one file of weights, ``stem.safetensors`` or, where there is one, ``stem.fp16.safetensors``."""
    whole = folder / f"{stem}.safetensors"
    halves = sorted(folder.glob(f"{stem}.*.safetensors"))
    return whole if whole.is_file() else halves[0] if len(halves) == 1 else None


def check_keys(
    path: Path, missing: Collection[str], unexpected: Collection[str], misshapen: Iterable[Any] = ()
) -> None:
    """Refuse a file of weights that is not the whole of a model, and no more.

    Args:
        path: The file.
        missing, unexpected: Names of weights.
        misshapen: The same, or tuples that begin with one.
    """
    wrong = sorted(str(each[0] if isinstance(each, tuple | list) else each) for each in misshapen)
    problems = {"lacks": sorted(missing), "holds unknown": sorted(unexpected), "has another shape of": wrong}
    told = [f"{what} {_first(names)}" for what, names in problems.items() if names]
    if told:
        raise ModelError(
            f"{path}: does not fit the configuration beside it: it {'; it '.join(told)}. It is incomplete, damaged or "
            "of another architecture: fetch or save it anew"
        )


def _first(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more weights" if len(names) > most else ""
    return ", ".join(names[:most]) + more
