"""gcpl_lab: teach a frozen vision-language model look-alike and rare classes from a few images.

Importing the package is cheap: torch and the model libraries load when something that needs them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gcpl_lab.data.episodes import draw_episode
    from gcpl_lab.data.readers import read_class_folders
    from gcpl_lab.data.samples import load_fashion, load_wardrobe
    from gcpl_lab.gcpl.estimator import GCPLClassifier
    from gcpl_lab.gcpl.settings import GCPLConfig
    from gcpl_lab.lmpt.estimator import LMPTClassifier
    from gcpl_lab.lmpt.settings import LMPTConfig
    from gcpl_lab.models.clip import FrozenCLIP
    from gcpl_lab.models.diffusion import FrozenDiffusion

_HOMES = {
    "FrozenCLIP": "gcpl_lab.models.clip",
    "FrozenDiffusion": "gcpl_lab.models.diffusion",
    "GCPLClassifier": "gcpl_lab.gcpl.estimator",
    "GCPLConfig": "gcpl_lab.gcpl.settings",
    "LMPTClassifier": "gcpl_lab.lmpt.estimator",
    "LMPTConfig": "gcpl_lab.lmpt.settings",
    "draw_episode": "gcpl_lab.data.episodes",
    "load_fashion": "gcpl_lab.data.samples",
    "load_wardrobe": "gcpl_lab.data.samples",
    "read_class_folders": "gcpl_lab.data.readers",
}

__all__ = [
    "FrozenCLIP",
    "FrozenDiffusion",
    "GCPLClassifier",
    "GCPLConfig",
    "LMPTClassifier",
    "LMPTConfig",
    "__version__",
    "draw_episode",
    "load_fashion",
    "load_wardrobe",
    "read_class_folders",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gcpl_lab' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
