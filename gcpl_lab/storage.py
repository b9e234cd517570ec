"""Files that are whole or absent: atomic writing, safetensors and JSON, checksums.

Nothing in the package is pickled. Every file is written beside its target and renamed over it, so a
killed process or a full disk leaves the earlier file as it was.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcpl_lab.errors import ArtifactError

if TYPE_CHECKING:
    import torch


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk and rename it to ``path``.

    Args:
        path: Where the finished file goes; missing parent folders are made.
        write: Receives the temporary path and writes the whole content there.

    Returns:
        ``path`` as a ``Path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files private; a result is as readable as any other file of the user.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def remove_leftovers(path: str | Path) -> None:
    """Delete what killed processes left of unfinished attempts to write ``path``.

    Only for a file that no other process is writing meanwhile.
    """
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        leftover.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    return write_atomically(path, write)


def write_json(path: str | Path, value: Any) -> Path:
    """Write JSON atomically, two spaces of indentation, keys in the given order."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: The file is absent or no JSON, naming it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; expected a JSON file written by gcpl_lab") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path}: is no valid JSON ({error}); it may be damaged or of another program: restore or delete it"
        ) from error


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write named tensors as one safetensors file, atomically.

    Args:
        path: Target file.
        tensors: Any shapes and dtypes; views are made contiguous.
        metadata: Strings kept in the file's header.

    Raises:
        OSError: The file cannot be written, for instance because the disk is full; an earlier one is untouched.
    """
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # Not save_file: from safetensors 0.8 on it writes a temporary file of its own, which a killed process leaves.
    content = save(whole, metadata=dict(metadata or {}))

    def write(target: Path) -> None:
        target.write_bytes(content)

    return write_atomically(path, write)


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors by name, and the strings of the header.

    Raises:
        ArtifactError: The file is absent, damaged or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; expected a safetensors file")
    try:
        with safe_open(path, framework="pt") as stream:
            names = list(stream.keys())
            return {name: stream.get_tensor(name) for name in names}, dict(stream.metadata() or {})
    except SafetensorError as error:
        raise ArtifactError(
            f"{path}: cannot be read as safetensors ({error}); it is damaged or of another format: "
            "delete it and make it again, or restore a copy"
        ) from error


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_checksum(entries: Iterable[tuple[str, str]]) -> str:
    """One SHA-256 for many files, from (relative name, checksum) pairs in any order."""
    digest = hashlib.sha256()
    for name, checksum in sorted(entries):
        digest.update(f"{name}\0{checksum}\n".encode())
    return digest.hexdigest()


class CachedChecksum:
    """:func:`tensor_checksum` of frozen weights, computed anew only after one was written to or exchanged.

    A write is seen by the counter that autograd keeps for every tensor (``Tensor.data`` goes past it, and past
    autograd).
    """

    def __init__(self) -> None:
        self._marks: list[tuple[str, weakref.ref[torch.Tensor], int, int]] = []
        self._checksum = ""

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> str:
        """The checksum of named tensors, as they are in the model (``state_dict(keep_vars=True)``)."""
        known = len(self._marks) == len(tensors) and all(
            name in tensors
            and reference() is tensors[name]
            and (place, version) == (tensors[name].data_ptr(), tensors[name]._version)
            for name, reference, place, version in self._marks
        )
        if not known or not self._checksum:
            self._checksum = tensor_checksum(tensors.items())
            self._marks = [
                (name, weakref.ref(value), value.data_ptr(), value._version) for name, value in tensors.items()
            ]
        return self._checksum


def tensor_checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over named tensors' bytes: equal if and only if every weight is bit-identical."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
