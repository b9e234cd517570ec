"""Learned prompts on disk: safetensors for the vectors, JSON for everything that explains them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import read_checked, read_tensors, tensor_checksum, write_checked, write_tensors

FORMAT = "gcpl_lab.class_prompts"
FORMAT_VERSION = 1


def save_class_prompts(folder: str | Path, vectors: Tensor, metadata: Mapping[str, Any]) -> Path:
    """Write vectors (class, V, dim) to ``prompts.safetensors``, and what explains them to ``prompts.json``."""
    folder = Path(folder)
    vectors = vectors.float()
    write_tensors(folder / "prompts.safetensors", {"vectors": vectors}, {"format": FORMAT})
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "vectors": tensor_checksum([("vectors", vectors)])}
    write_checked(folder / "prompts.json", header | dict(metadata))
    return folder


def load_class_prompts(folder: str | Path) -> tuple[Tensor, dict[str, Any]]:
    """Vectors float32 (class, V, dim) and metadata, as :func:`save_class_prompts` wrote them.

    Raises:
        ArtifactError: A file is missing, damaged, foreign, of a later version, or the two do not belong together.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such folder; expected one written by save()")
    metadata = read_checked(folder / "prompts.json")
    if metadata.get("format") != FORMAT:
        raise ArtifactError(f"{folder / 'prompts.json'}: was not written by gcpl_lab (its format is no {FORMAT})")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / 'prompts.json'}: has format version {metadata.get('format_version')}, this gcpl_lab reads "
            f"{FORMAT_VERSION}; install the version that wrote it ({metadata.get('versions', {}).get('gcpl-lab')})"
        )
    tensors, _ = read_tensors(folder / "prompts.safetensors")
    vectors = tensors.get("vectors")
    names = metadata.get("class_names", [])
    if vectors is None or vectors.ndim != 3 or len(vectors) != len(names):
        found = "no tensor 'vectors'" if vectors is None else f"vectors of shape {tuple(vectors.shape)}"
        raise ArtifactError(f"{folder}: has {found} for {len(names)} class names; expected ({len(names)}, V, dim)")
    if metadata.get("vectors") != tensor_checksum([("vectors", vectors)]):
        raise ArtifactError(
            f"{folder}: prompts.json and prompts.safetensors do not belong together (the checksum differs); "
            "saving was interrupted or a file was replaced: restore both, or train again"
        )
    if not bool(torch.isfinite(vectors).all()):
        raise ArtifactError(f"{folder / 'prompts.safetensors'}: holds values that are not finite; train again")
    return vectors, metadata


def token_name(class_name: str) -> str:
    """The placeholder of a class's vectors, ``<ankle-boot>`` for "ankle boot"; at most 48 letters, as file names."""
    plain = unicodedata.normalize("NFKC", class_name).strip().lower()
    joined = re.sub(r"[^\w]+", "-", plain).strip("-")[:48]
    return f"<{joined or 'class'}>"


def export_textual_inversion(folder: str | Path, vectors: Tensor, class_names: list[str]) -> list[Path]:
    """One file ``<name>.safetensors`` a class of vectors (class, V, dim), in the Hugging Face textual-inversion format.

    ``pipeline.load_textual_inversion(file)`` of diffusers reads them; a class of V vectors becomes V tokens.

    Raises:
        ArtifactError: Two class names give the same token.
    """
    names = [token_name(name) for name in class_names]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise ArtifactError(f"several classes would be exported as {', '.join(doubles)}; rename them")
    return [
        write_tensors(Path(folder) / f"{name[1:-1]}.safetensors", {name: vectors[index].float()})
        for index, name in enumerate(names)
    ]


def import_textual_inversion(path: str | Path) -> tuple[str, Tensor]:
    """Placeholder and vectors float32 (V, dim) of one class in the Hugging Face textual-inversion format.

    Raises:
        ArtifactError: The file holds anything but one tensor of one or two axes.
    """
    tensors, _ = read_tensors(path)
    if len(tensors) != 1:
        raise ArtifactError(f"{path}: holds {len(tensors)} tensors; a textual-inversion file holds one")
    name, vectors = next(iter(tensors.items()))
    if vectors.ndim not in (1, 2):
        raise ArtifactError(f"{path}: {name!r} has shape {tuple(vectors.shape)}; expected (V, dim) or (dim,)")
    return name, vectors.reshape(-1, vectors.shape[-1]).float()
