"""What is compared: baselines, registered objectives and losses, and rows that are neither.

All of it is looked up when it is asked for, so an objective or a loss that a notebook cell registers is a method of
the comparisons from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module

from gcpl_lab.baselines.base import BASELINES, MULTILABEL_BASELINES
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.lmpt.estimator import LMPTClassifier
from gcpl_lab.lmpt.losses import LOSSES
from gcpl_lab.registry import Entry, Registry

Entries = dict[str, Entry]


class Methods(Registry):
    """All methods of a comparison: baselines, rows of its own, and what can be learned; slow rows last.

    An entry of any registry has the fact ``quick=False`` where it takes minutes, or is for those who ask for it.

    Args:
        module: Where rows of its own are registered; it is imported before any is asked for.
        baselines: The first rows.
        learned: Finds the entries behind the quick rows.
    """

    def __init__(self, module: str, baselines: Registry, learned: Callable[[], Entries]) -> None:
        super().__init__("method")
        self._module, self._baselines, self._learned = module, baselines, learned

    def entries(self, slow: bool = True) -> Entries:
        """Every entry by name, in the order of the tables; without the slow ones where they are not wanted."""
        import_module(self._module)
        rows = {**self._baselines.entries(), **self._quick(True), **self._learned(), **self._quick(False)}
        found = {name: entry for name, entry in rows.items() if is_quick(entry)}
        return {**found, **rows} if slow else found

    def _quick(self, wanted: bool) -> Entries:
        return {name: entry for name, entry in self._entries.items() if is_quick(entry) is wanted}


class Titles(Mapping[str, str]):
    """Title by name, looked up anew each time."""

    def __init__(self, find: Callable[[], Entries]) -> None:
        self._find = find

    def __getitem__(self, name: str) -> str:
        return self._find()[name].title

    def __iter__(self) -> Iterator[str]:
        return iter(self._find())

    def __len__(self) -> int:
        return len(self._find())


def is_quick(entry: Entry) -> bool:
    """Whether it is run where nobody names the methods, as in the demonstration."""
    return bool(entry.facts.get("quick", True))


def start_of(method: str) -> str:
    """The objective whose prompts a method goes on from, or that it is; empty for a method that shares no training."""
    starts = {name: entry.facts.get("starts_from", "") for name, entry in METHODS.entries().items()}
    return starts.get(method) or (method if method in starts.values() else "")


def find_own_entries() -> list[Entry]:
    """What was registered outside the package, as in a notebook."""
    registries = METHODS, MULTILABEL_METHODS, LOSSES
    return [entry for registry in registries for entry in registry.entries().values() if is_own(entry)]


def is_own(entry: Entry) -> bool:
    """Whether it was registered outside the package."""
    return not str(entry.target.__module__).startswith("gcpl_lab.")


def usable_workers(num_workers: int) -> int:
    """One, this process, where anything was registered in a notebook: other processes do not know it."""
    return 1 if find_own_entries() else num_workers


def _coop_with_own_losses() -> Entries:
    """CoOp with every loss that was registered outside the package; those of the package are rows of their own."""
    own = {f"coop_{loss.name}": loss for loss in LOSSES.entries().values() if is_own(loss)}
    settings = {name: {"classification": loss.name, "mix": 1.0} for name, loss in own.items()}
    return {name: Entry(name, f"CoOp + {own[name].title}", LMPTClassifier, settings[name]) for name in own}


METHODS = Methods("gcpl_lab.experiments.few_shot", BASELINES, OBJECTIVES.entries)
MULTILABEL_METHODS = Methods("gcpl_lab.experiments.multilabel", MULTILABEL_BASELINES, _coop_with_own_losses)

BEFORE = "zero_shot_diffusion"
"""The row that shows class names as prompts: what learned prompts start from."""


def title_of(method: str) -> str:
    """What tables and figures call a method: its title where the name is registered today, else the name itself."""
    return (MULTILABEL_METHODS.titles() | METHODS.titles()).get(method, method)
