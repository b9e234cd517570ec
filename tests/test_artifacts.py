"""Learned prompts on disk, and in the textual-inversion format that diffusers reads."""

import json
from pathlib import Path

import pytest
import torch

from gcpl_lab.errors import ArtifactError
from gcpl_lab.fast.cpu_linear import torch_products
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.storage import read_json, write_json, write_tensors
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


def test_half_precision_vectors_are_kept_as_float32(tmp_path: Path) -> None:
    save_class_prompts(tmp_path, VECTORS.bfloat16(), {"class_names": NAMES})
    vectors, _ = load_class_prompts(tmp_path)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, VECTORS.bfloat16().float())


def test_absent_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="none: no such folder"):
        load_class_prompts(tmp_path / "none")
    with pytest.raises(ArtifactError, match=r"prompts\.json: no such file"):
        load_class_prompts(tmp_path)


def test_absent_vectors_are_named(saved: Path) -> None:
    (saved / "prompts.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"prompts\.safetensors: no such file"):
        load_class_prompts(saved)


@pytest.mark.parametrize("content", ["[]", '"text"', "{}", '{"format": "another"}'])
def test_foreign_json_is_named(saved: Path, content: str) -> None:
    (saved / "prompts.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"prompts\.json: was not written by gcpl_lab"):
        load_class_prompts(saved)


def test_a_later_version_is_named(saved: Path) -> None:
    metadata = read_json(saved / "prompts.json") | {"format_version": 2, "versions": {"gcpl-lab": "9.1"}}
    write_json(saved / "prompts.json", metadata)
    with pytest.raises(ArtifactError, match=r"has format version 2, this gcpl_lab reads 1; install .*9\.1"):
        load_class_prompts(saved)


def test_damaged_vectors_are_named(saved: Path) -> None:
    path = saved / "prompts.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"prompts\.safetensors: cannot be read"):
        load_class_prompts(saved)


def test_files_that_do_not_belong_together_are_refused(saved: Path) -> None:
    path = saved / "prompts.safetensors"
    for tensors, message in (
        ({"other": VECTORS}, "has no tensor 'vectors' for 3 class names"),
        ({"vectors": VECTORS[:2]}, r"vectors of shape \(2, 2, 128\) for 3 class names; expected \(3, V, dim\)"),
        ({"vectors": VECTORS[0]}, r"vectors of shape \(2, 128\)"),
        ({"vectors": VECTORS + 1}, "do not belong together"),
    ):
        write_tensors(path, tensors)
        with pytest.raises(ArtifactError, match=message):
            load_class_prompts(saved)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_class_prompts(tmp_path, VECTORS / 0, {"class_names": NAMES})
    with pytest.raises(ArtifactError, match="not finite"):
        load_class_prompts(tmp_path)


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


def test_names_that_give_one_token_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="several classes would be exported as <t-shirt>"):
        export_textual_inversion(tmp_path, VECTORS, ["T-shirt", "t shirt", "coat"])
    assert list(tmp_path.iterdir()) == []


def test_a_single_vector_may_have_one_axis(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "one.safetensors", {"<one>": VECTORS[0, 0].half()})
    name, vectors = import_textual_inversion(path)
    assert name == "<one>"
    assert torch.equal(vectors, VECTORS[0, 0].half().float()[None])


def test_foreign_inversion_files_are_named(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "two.safetensors", {"<a>": VECTORS[0], "<b>": VECTORS[1]})
    with pytest.raises(ArtifactError, match="holds 2 tensors"):
        import_textual_inversion(path)
    path = write_tensors(tmp_path / "deep.safetensors", {"<a>": VECTORS})
    with pytest.raises(ArtifactError, match=r"'<a>' has shape \(3, 2, 128\); expected \(V, dim\)"):
        import_textual_inversion(path)
    (tmp_path / "text.safetensors").write_text(json.dumps({"<a>": 1}))
    with pytest.raises(ArtifactError, match=r"text\.safetensors: cannot be read"):
        import_textual_inversion(tmp_path / "text.safetensors")


def test_diffusers_reads_what_we_export(tmp_path: Path, random_pair: object) -> None:
    """Through ``load_textual_inversion``, the pipeline's prompt has the same hidden states as our own prompt."""
    from diffusers import StableDiffusionPipeline

    path = export_textual_inversion(tmp_path, VECTORS, NAMES)[1]
    pipeline = StableDiffusionPipeline.from_pretrained(random_pair.folder / "diffusion", safety_checker=None)
    pipeline.load_textual_inversion(path)
    (found, _) = pipeline.encode_prompt("a photo of a <ankle-boot>", "cpu", 1, False)
    prompts = ClassPrompts(random_pair.diffusion, NAMES, num_vectors=2)
    with torch.no_grad(), torch_products():  # as diffusers has them: other products round otherwise
        prompts.vectors.copy_(VECTORS)
        expected = random_pair.diffusion.encode_prompts(*prompts(torch.tensor([1])))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
