"""What a pilot is to decide: ``pilot.toml``, which says in comments what each setting means."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.evaluation.costs import Costs
from gcpl_lab.settings import Settings
from gcpl_lab.storage import write_text

FILE, TEMPLATE = "pilot.toml", Path(__file__).with_name("pilot.toml.txt")
METHODS = {
    "classes": "gcpl, linear_probe, nearest_class_mean, zero_shot_clip",
    "labels": "lmpt, linear_probe, zero_shot_clip",
}
"""By default: one that learns prompts, and the simple ones that it must beat."""


@dataclass(frozen=True)
class PilotConfig(Settings):
    """The content of ``pilot.toml``, without its sections; see the comments there."""

    images: str
    kind: str
    normal_class: str
    words: str
    decided_by: str
    currency: str
    miss: float
    false_alarm: float
    review: float
    machine_hour: float
    set_up: float
    images_a_month: int
    most_reviewed: float
    least_accuracy: float
    coverage: float
    most_refused: float
    preset: str
    methods: str
    shots: int
    draws: int
    num_steps: int
    num_epochs: int
    test_images: int
    seed: int
    generated: bool

    CHOICES: ClassVar = {"kind": tuple(METHODS)}
    LEAST: ClassVar = {
        **dict.fromkeys(("miss", "false_alarm", "review", "machine_hour", "set_up", "seed"), 0),
        **dict.fromkeys(("images_a_month", "shots", "num_steps", "num_epochs"), 1),
        "draws": 2,
        "test_images": 20,
    }
    SHARES: ClassVar = ("coverage", "least_accuracy", "most_refused")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("most_reviewed", 0 <= self.most_reviewed <= 1, "a share from 0 to 1")
        self.require("methods", bool(self.method_names), "names of methods joined by commas")

    @property
    def method_names(self) -> list[str]:
        """Without blanks, each once."""
        return list(dict.fromkeys(name.strip() for name in self.methods.split(",") if name.strip()))

    def costs(self, seconds_an_image: float = 0.0, normal: int | None = None) -> Costs:
        """Money for one of each, and for this machine's seconds on an image."""
        return Costs(self.miss, self.false_alarm, self.review, self.machine_hour * seconds_an_image / 3600, normal)


def write_config(folder: Path, images: str, kind: str, preset: str) -> Path:
    """Write a new ``pilot.toml``; an existing one is refused by a DataError."""
    path = folder / FILE
    if path.exists():
        raise DataError(f"{path}: exists; change it, or choose another folder for a new pilot")
    values = {"images": images, "kind": kind, "preset": preset, "methods": METHODS[kind]}
    # A JSON string is a TOML one too.
    quoted = {name: json.dumps(value) for name, value in values.items()}
    return write_text(path, TEMPLATE.read_text(encoding="utf-8").format(folder=folder, **quoted))


def read_config(folder: Path, changes: Mapping[str, Any]) -> PilotConfig:
    """The settings of a pilot with ``changes``; ArtifactError for a file that is absent, no TOML or has a wrong one."""
    path = folder / FILE
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; make it with: gcpl-lab pilot init {folder} --images FOLDER")
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: is no TOML ({error}); correct that line") from error
    if loose := [name for name, section in sections.items() if not isinstance(section, dict)]:
        raise ArtifactError(f"{path}: {loose[0]} stands outside the sections; expected it under [images] or another")
    values = {name: value for section in sections.values() for name, value in section.items()} | dict(changes)
    known = [field.name for field in fields(PilotConfig)]
    if missing := [name for name in known if name not in values]:
        raise ArtifactError(f"{path}: has no {missing[0]}; expected {', '.join(known)}: add the line")
    try:
        return PilotConfig.from_dict(values)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from error
