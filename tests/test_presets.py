"""Presets: names, folders, and what there is instead."""

from pathlib import Path

import pytest

from gcpl_lab.backbones.presets import PRESETS, find_preset
from gcpl_lab.errors import ModelError


@pytest.mark.parametrize("name", ["tiny", "sd-1.4", "sd-1.5", "sd-2.1-base"])
def test_presets_are_found_by_name(name: str) -> None:
    preset = find_preset(name)
    assert preset.name == name
    assert preset is PRESETS[name]
    low, high = preset.evidence_range
    assert 0 <= low < high <= 1


def test_tiny_ships_with_the_package_and_the_others_do_not() -> None:
    assert [name for name, preset in PRESETS.items() if preset.download_bytes == 0] == ["tiny"]
    assert Path(find_preset("tiny").diffusion_source).is_absolute()


def test_a_folder_is_a_preset(random_pair: object) -> None:
    preset = find_preset(str(random_pair.folder))
    assert preset.diffusion_source == str(random_pair.folder / "diffusion")
    assert preset.clip_source == f"local-dir:{random_pair.folder / 'clip'}"


def test_a_folder_without_models_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no diffusion and no clip in it"):
        find_preset(str(tmp_path))
    (tmp_path / "diffusion").mkdir()
    with pytest.raises(ModelError, match="no clip in it"):
        find_preset(str(tmp_path))


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(ModelError, match=r"'sd-3' is neither .* tiny, sd-1\.4, sd-1\.5, sd-2\.1-base"):
        find_preset("sd-3")
