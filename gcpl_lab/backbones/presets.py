"""Names for pairs of frozen models: nothing but the preset changes between a laptop and a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gcpl_lab.errors import ModelError

TINY_FOLDER = Path(__file__).parent / "tiny"


@dataclass(frozen=True)
class Preset:
    """Where a pair of frozen models comes from.

    Attributes:
        name: What users type.
        diffusion_source: Folder or hub name of a Stable Diffusion pipeline in the diffusers format.
        clip_source: open_clip model name, or ``local-dir:<folder>``.
        clip_weights: open_clip's tag of pretrained weights; empty for a local folder.
        licence: Of the weights.
        download_bytes: Roughly what the hub sends for both; 0 for weights that ship with the package.
        evidence_range: The part of the noise schedule, as fractions of its length, where class evidence
            was found; prompts are trained and images are classified there unless told otherwise.
    """

    name: str
    diffusion_source: str
    clip_source: str
    clip_weights: str
    licence: str
    download_bytes: int
    evidence_range: tuple[float, float] = (0.0, 1.0)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", str(TINY_FOLDER / "diffusion"), f"local-dir:{TINY_FOLDER / 'clip'}", "", "Apache-2.0", 0,
               (0.5, 0.9)),
        Preset("sd-1.4", "CompVis/stable-diffusion-v1-4", "ViT-L-14-quickgelu", "openai", "CreativeML OpenRAIL-M",
               5_100_000_000),
        Preset("sd-1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "ViT-L-14-quickgelu", "openai",
               "CreativeML OpenRAIL-M", 5_100_000_000),
        Preset("sd-2.1-base", "stabilityai/stable-diffusion-2-1-base", "ViT-H-14", "laion2b_s32b_b79k",
               "CreativeML OpenRAIL++-M", 9_100_000_000),
    )
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """The preset called ``name``, or one made from a local folder.

    A local folder holds ``diffusion/`` (diffusers format) and ``clip/`` (open_clip format), as the shipped
    ``tiny`` folder does.

    Raises:
        ModelError: No preset and no such folder; the message lists what there is.
    """
    if name in PRESETS:
        return PRESETS[name]
    folder = Path(name)
    if folder.is_dir():
        missing = [part for part in ("diffusion", "clip") if not (folder / part).is_dir()]
        if missing:
            raise ModelError(
                f"{folder}: is a folder but has no {' and no '.join(missing)} in it; a model folder holds "
                "diffusion/ (diffusers format) and clip/ (open_clip format)"
            )
        return Preset(name, str(folder / "diffusion"), f"local-dir:{folder / 'clip'}", "", "of the folder's owner", 0)
    raise ModelError(
        f"{name!r} is neither a preset nor a folder of models; presets are {', '.join(PRESETS)}, and a folder "
        "holds diffusion/ and clip/"
    )
