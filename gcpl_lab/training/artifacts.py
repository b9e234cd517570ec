"""Learned prompts on disk: safetensors for the vectors, JSON for everything that explains them."""

from __future__ import annotations

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
