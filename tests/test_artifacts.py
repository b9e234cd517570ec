"""Learned prompts on disk."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gcpl_lab.errors import ArtifactError
from gcpl_lab.storage import read_checked, write_checked, write_tensors
from gcpl_lab.training.artifacts import load_class_prompts, save_class_prompts

NAMES = ["coat", "ankle boot", "長靴"]
VECTORS = torch.randn(3, 2, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_class_prompts(tmp_path / "run" / "prompts", VECTORS, {"class_names": NAMES, "temperature": 2.5})


def test_round_trip(saved: Path) -> None:
    vectors, metadata = load_class_prompts(saved)
    assert torch.equal(vectors, VECTORS)
    assert metadata["class_names"] == NAMES
    assert metadata["temperature"] == 2.5
    assert sorted(path.name for path in saved.iterdir()) == ["prompts.json", "prompts.safetensors"]
    save_class_prompts(saved, VECTORS.bfloat16(), {"class_names": NAMES})
    torch.testing.assert_close(load_class_prompts(saved)[0], VECTORS.bfloat16().float(), atol=0, rtol=0)


def change(metadata: dict[str, Any]) -> Callable[[Path], object]:
    return lambda folder: write_checked(folder / "prompts.json", read_checked(folder / "prompts.json") | metadata)


def replace_by(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def store(**tensors: torch.Tensor) -> Callable[[Path], object]:
    return lambda folder: write_tensors(folder / "prompts.safetensors", tensors)


FOREIGN = r"prompts\.json: was not written by gcpl_lab"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "prompts: no such folder"),
        (lambda folder: (folder / "prompts.json").unlink(), r"prompts\.json: no such file"),
        (lambda folder: (folder / "prompts.safetensors").unlink(), r"prompts\.safetensors: no such file"),
        *[(replace_by("prompts.json", text), FOREIGN) for text in ("[]", '"text"', "{}", '{"format": "another"}')],
        (
            change({"format_version": 2, "versions": {"gcpl-lab": "9.1"}}),
            r"has format version 2, this gcpl_lab reads 1; install .*9\.1",
        ),
        (replace_by("prompts.safetensors", "half of it"), r"prompts\.safetensors: cannot be read"),
        (store(other=VECTORS), "has no tensor 'vectors' for 3 class names"),
        (store(vectors=VECTORS[:2]), r"vectors of shape \(2, 2, 128\) for 3 class names; expected \(3, V, dim\)"),
        (store(vectors=VECTORS[0]), r"vectors of shape \(2, 128\)"),
        (store(vectors=VECTORS + 1), "do not belong together"),
        (lambda folder: save_class_prompts(folder, VECTORS / 0, {"class_names": NAMES}), "not finite"),
    ],
)
def test_damaged_and_foreign_folders_are_named(saved: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(saved)
    with pytest.raises(ArtifactError, match=message):
        load_class_prompts(saved)
