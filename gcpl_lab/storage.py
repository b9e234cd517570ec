"""Atomic writing, safetensors and JSON, checksums; nothing in the package is pickled.

Every file is written beside its target and renamed over it, so a killed process or a full disk leaves the earlier one.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gcpl_lab.errors import ArtifactError

if TYPE_CHECKING:
    import torch

CHECKSUM = "gcpl_lab.checksum"
"""In what we write: the SHA-256 of all the rest. A file without one is of another program, or of an earlier version."""
DAMAGED = "is damaged, or was changed by hand (its checksum differs): restore it, or delete it and make it again"


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk and rename it to ``path``.

    Raises:
        ArtifactError: The disk does not allow it; what was at ``path`` before is untouched.
    """
    try:
        return _write_atomically(Path(path), write)
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be written ({reason_of(error)}). Make room or choose another folder; what was there "
            "before is untouched"
        ) from error


def reason_of(error: OSError) -> str:
    """What the system says is wrong, in its own words, without number and path."""
    return (error.strerror or str(error)).lower()


def check_writable(folder: str | Path) -> None:
    """Find out before anything is computed whether a folder can be written to, or made; nothing is left there.

    Raises:
        ArtifactError: It cannot: it lies below a file, or on a disk that is not to be written to.
    """
    place = Path(folder).absolute()
    try:
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ArtifactError(
            f"{folder}: cannot be written to ({place}: {reason_of(error)}); choose another folder"
        ) from error


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> Path:
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
    """Delete what killed processes left of attempts to write ``path``, which nobody may be writing meanwhile."""
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        leftover.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_atomically(path, partial(Path.write_bytes, data=text.encode()))


def write_json(path: str | Path, value: Any) -> Path:
    """Write JSON atomically, two spaces of indentation, keys in the given order."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; one that is absent or no JSON is an ArtifactError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; expected a JSON file written by gcpl_lab") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error}); expected a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: is no valid JSON ({error}); it may be damaged or of another program: restore or delete it"
        ) from error


def write_checked(path: str | Path, values: Mapping[str, Any]) -> Path:
    """Write a JSON object atomically, with a checksum of its content."""
    return write_json(path, {**values, CHECKSUM: json_checksum(values)})


def read_checked(path: str | Path) -> dict[str, Any]:
    """A JSON object; one that is damaged, where it says what its checksum was, is an ArtifactError that names it."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise ArtifactError(f"{path}: was not written by gcpl_lab (it holds no JSON object)")
    if (expected := values.pop(CHECKSUM, None)) is not None and expected != json_checksum(values):
        raise ArtifactError(f"{path}: {DAMAGED}")
    return values


def json_checksum(values: Any) -> str:
    """SHA-256 over JSON values, whatever the order of their keys."""
    plain = json.loads(json.dumps(values))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write named tensors of any shape and dtype as one safetensors file, atomically, with strings in its header.

    A checksum of both stands in the header.
    """
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # Not save_file: from safetensors 0.8 on it writes a temporary file of its own, which a killed process leaves.
    facts = dict(metadata or {})
    facts[CHECKSUM] = _checksum_of(whole, facts)
    return write_atomically(path, partial(Path.write_bytes, data=save(whole, metadata=facts)))


def _checksum_of(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str]) -> str:
    return json_checksum([tensor_checksum(tensors.items()), dict(facts)])


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and the strings of its header; an ArtifactError names a bad file."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ArtifactError(f"{path}: no such file; expected a safetensors file")
    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  (it is no dictionary)
            facts = dict(stream.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"{path}: cannot be read as safetensors ({error}); it is damaged or of another format: "
            "delete it and make it again, or restore a copy"
        ) from error
    if (expected := facts.pop(CHECKSUM, None)) is not None and expected != _checksum_of(tensors, facts):
        raise ArtifactError(f"{path}: {DAMAGED}")
    return tensors, facts


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_checksums(folder: Path) -> dict[str, str]:
    """Checksum of every file below a folder, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_checksum(path) for path in paths}


def folder_checksum(entries: Iterable[tuple[str, str]]) -> str:
    """One SHA-256 for many files, from (relative name, checksum) pairs in any order."""
    lines = (f"{name}\0{checksum}\n" for name, checksum in sorted(entries))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tensor_checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over named tensors' bytes: equal if and only if every weight is bit-identical."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        if value.numel():  # an empty one cannot be viewed as bytes
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class CachedChecksum:
    """A :func:`tensor_checksum` of frozen weights, kept until one is exchanged or, as autograd counts, written to.

    It is called with named tensors as they are in the model (``state_dict(keep_vars=True)``).
    """

    def __init__(self) -> None:
        self._marks: dict[str, tuple[weakref.ref[torch.Tensor], tuple[int, int]]] = {}
        self._checksum = ""

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> str:
        states = {name: (value.data_ptr(), value._version) for name, value in tensors.items()}
        same = self._marks.keys() == tensors.keys() and all(
            reference() is tensors[name] and state == states[name] for name, (reference, state) in self._marks.items()
        )
        if not same or not self._checksum:
            self._checksum = tensor_checksum(tensors.items())
            self._marks = {name: (weakref.ref(value), states[name]) for name, value in tensors.items()}
        return self._checksum
