"""Files are whole or absent, and damaged ones are named."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gcpl_lab import storage
from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import (
    read_checked,
    read_json,
    read_tensors,
    tensor_checksum,
    write_checked,
    write_json,
    write_tensors,
    write_text,
)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_writer_that_fails_or_is_killed_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = write_text(tmp_path / "value.txt", "old")

    def stop_halfway(target: Path) -> None:
        target.write_text("ne")
        raise error

    with pytest.raises((ArtifactError, KeyboardInterrupt), match=r"^$|value.txt: cannot be written \(no space left on"):
        storage.write_atomically(path, stop_halfway)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_to_is_known_beforehand(tmp_path: Path) -> None:
    """Nothing is made by looking; a file where a folder should be is called by its name."""
    storage.check_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArtifactError, match=r"/file: not a directory\); choose another folder"):
            storage.check_writable(folder)
        with pytest.raises(ArtifactError, match="cannot be written"):
            write_text(folder / "value.txt", "new")
    with pytest.raises(ArtifactError, match="file name too long"):
        storage.check_writable(tmp_path / ("a" * 300))
    if Path("/proc/self").is_dir():
        with pytest.raises(ArtifactError, match="/proc/self"):
            storage.check_writable("/proc/self/fd/new")


def test_parent_folders_are_made_and_files_are_readable(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a" / "b" / "text.txt", "größe\n")
    assert path.read_text(encoding="utf-8") == "größe\n"
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_json_round_trip_keeps_order_and_letters(tmp_path: Path) -> None:
    value = {"z": [1, 2.5, None], "a": "長靴"}
    path = write_json(tmp_path / "value.json", value)
    assert read_json(path) == value
    assert list(read_json(path)) == ["z", "a"]
    assert "長靴" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, {"tensor": object()})
    assert read_json(path) == value


def test_absent_and_damaged_files_are_named(tmp_path: Path) -> None:
    whole = write_tensors(tmp_path / "whole.safetensors", {"a": torch.randn(100)}).read_bytes()
    damaged = [b"", b"{", b"\xff\xfe\x00", b"{'a': 1}", b"PK\x03\x04 a zip", whole[: len(whole) // 2], b"\xff" * 64]
    for name, read in (("value.json", read_json), ("value.safetensors", read_tensors)):
        with pytest.raises(ArtifactError, match=rf"{name}: no such file"):
            read(tmp_path / name)
        for content in damaged:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ArtifactError, match=rf"{name}: "):
                read(tmp_path / name)


def test_tensors_round_trip(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 4, dtype=torch.float16),
        "view": torch.arange(12).reshape(3, 4).T,
        "scalar": torch.tensor(2.5),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    path = write_tensors(tmp_path / "value.safetensors", tensors, {"kind": "test"})
    found, metadata = read_tensors(path)
    assert metadata == {"kind": "test"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_checksums_of_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert storage.file_checksum(tmp_path / "abc") == sha256
    entries, of = [("a", "1"), ("b", "2")], storage.folder_checksum
    assert of(entries) == of(reversed(entries)) != of([("a", "2"), ("b", "1")])
    assert of(entries) != of(entries[:1])


def test_tensor_checksum_sees_every_bit() -> None:
    first = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    again = {name: tensor.clone() for name, tensor in reversed(first.items())}
    assert tensor_checksum(first.items()) == tensor_checksum(again.items())
    for name, changed in (
        ("a", torch.tensor([0.0, 0.0, -0.0])),
        ("a", torch.zeros(0)),
        ("a", torch.zeros(1, 3)),
        ("a", torch.zeros(3, dtype=torch.int32)),
        ("b", torch.ones(2, 2).nextafter(torch.tensor(2.0))),
    ):
        assert tensor_checksum((first | {name: changed}).items()) != tensor_checksum(first.items())


def test_a_checksum_is_computed_once_until_a_weight_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cached, computed = torch.nn.Linear(3, 2), storage.CachedChecksum(), []
    monkeypatch.setattr("gcpl_lab.storage.tensor_checksum", lambda found: computed.append(1) or tensor_checksum(found))

    def check(num_computed: int) -> str:
        found = cached(model.state_dict(keep_vars=True))
        assert found == tensor_checksum(model.state_dict().items())
        assert len(computed) == num_computed
        return found

    first = check(1)
    assert check(1) == first
    with torch.no_grad():
        model.weight.view(-1)[0] += 1
    assert check(2) != first
    model.load_state_dict(model.state_dict())
    check(3)
    model.bias = torch.nn.Parameter(torch.zeros(2))
    check(4)
    model.to(torch.float64)
    check(5)
    model.register_buffer("extra", torch.ones(1))
    assert check(6) == check(6)


def test_no_flipped_byte_passes_unseen(tmp_path: Path) -> None:
    """Whatever byte is damaged, of data or of what describes them: it is told, or nothing that is read has changed."""
    rng, tensors = np.random.default_rng(0), {"vectors": torch.randn(3, 4), "step": torch.tensor(7)}
    values = {"class_names": ["coat", "長靴"], "temperature": 0.07, "offsets": [0.25, -1.5], "more": {"steps": 240}}
    facts = {"progress": '{"step": 7, "records": []}'}
    paths = write_tensors(tmp_path / "a.safetensors", tensors, facts), write_checked(tmp_path / "a.json", values)
    seen = 0
    for path in paths:
        whole = path.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                found = read_tensors(path) if path.suffix == ".safetensors" else read_checked(path)
            except ArtifactError as error:
                assert path.name in str(error)
                seen += 1
                continue
            if path.suffix == ".json":  # blanks, or the checksum's own name
                assert values.items() <= found.items()
            else:
                assert facts.items() <= found[1].items()
                assert found[0].keys() == tensors.keys()
                assert all(torch.equal(found[0][name], tensor) for name, tensor in tensors.items())
    assert seen > 500
