"""Learned prompts on disk, and in the textual-inversion format that diffusers reads."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gcpl_lab.errors import ArtifactError
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.storage import read_checked, write_checked, write_tensors
from gcpl_lab.training.artifacts import (
    export_textual_inversion,
    import_textual_inversion,
    load_class_prompts,
    save_class_prompts,
    token_name,
)

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


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("coat", "<coat>"),
        ("Ankle boot", "<ankle-boot>"),
        ("T-shirt", "<t-shirt>"),
        ("長靴", "<長靴>"),
        ("a/b: c", "<a-b-c>"),
        ("..", "<class>"),
        ("x" * 300, f"<{'x' * 48}>"),
    ],
)
def test_token_names(name: str, token: str) -> None:
    assert token_name(name) == token


def test_export_and_import(tmp_path: Path) -> None:
    paths = export_textual_inversion(tmp_path, VECTORS, NAMES)
    assert [path.name for path in paths] == ["coat.safetensors", "ankle-boot.safetensors", "長靴.safetensors"]
    for index, path in enumerate(paths):
        name, vectors = import_textual_inversion(path)
        assert name == token_name(NAMES[index])
        assert torch.equal(vectors, VECTORS[index])
    name, vectors = import_textual_inversion(
        write_tensors(tmp_path / "one.safetensors", {"<one>": VECTORS[0, 0].half()})
    )
    assert torch.equal(vectors, VECTORS[0, 0].half().float()[None])  # a single vector may have one axis


def test_what_cannot_be_exported_or_imported_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="several classes would be exported as <t-shirt>"):
        export_textual_inversion(tmp_path, VECTORS, ["T-shirt", "t shirt", "coat"])
    assert list(tmp_path.iterdir()) == []  # nothing is written before
    for tensors, message in (
        ({"<a>": VECTORS[0], "<b>": VECTORS[1]}, "holds 2 tensors"),
        ({"<a>": VECTORS}, r"'<a>' has shape \(3, 2, 128\); expected \(V, dim\)"),
    ):
        with pytest.raises(ArtifactError, match=message):
            import_textual_inversion(write_tensors(tmp_path / "other.safetensors", tensors))


def test_diffusers_reads_what_we_export(tmp_path: Path, random_pair: object) -> None:
    """Through ``load_textual_inversion``, the pipeline's prompt has the same hidden states as our own prompt."""
    from diffusers import StableDiffusionPipeline

    path = export_textual_inversion(tmp_path, VECTORS, NAMES)[1]
    pipeline = StableDiffusionPipeline.from_pretrained(random_pair.folder / "diffusion", safety_checker=None)
    pipeline.load_textual_inversion(path)
    (found, _) = pipeline.encode_prompt("a photo of a <ankle-boot>", "cpu", 1, False)
    prompts = ClassPrompts(random_pair.diffusion, NAMES, num_vectors=2)
    with torch.no_grad():
        prompts.vectors.copy_(VECTORS)
        expected = random_pair.diffusion.encode_prompts(*prompts(torch.tensor([1])))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
