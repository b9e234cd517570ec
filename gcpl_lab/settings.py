"""Settings as frozen dataclasses that go to JSON and back."""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from gcpl_lab.registry import Registry

_KINDS: dict[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"),
    "int | None": ((Integral, type(None)), "a whole number, or None"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "str": (str, "text"),
}


LARGEST = 2**32 - 1
"""Of every number: what all libraries take as a random seed."""


def choices_of(kind: type) -> dict[str, tuple[str, ...]]:
    """Names of ``Literal`` settings with the values that they may have."""
    hints = {name: hint for name, hint in get_type_hints(kind).items() if get_origin(hint) is Literal}
    return {name: get_args(hint) for name, hint in hints.items()}


@dataclass(frozen=True)
class Settings:
    """Plain values of the right kind, out and back; checked when they are made, a ``Literal`` and what is listed below.

    Attributes:
        LEAST: Names with the smallest value that they may have; None is allowed where the field allows it.
        ABOVE_ZERO, SHARES: Names that must be above 0, or above 0 and below 1.
        REMOVED: Settings of earlier versions that have no effect any more, or none on what was saved.
    """

    LEAST: ClassVar[Mapping[str, int]] = {}
    ABOVE_ZERO: ClassVar[Collection[str]] = ()
    SHARES: ClassVar[Collection[str]] = ()
    REMOVED: ClassVar[Collection[str]] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            kind, expected = _KINDS.get(str(field.type), (object, ""))
            value = getattr(self, field.name)
            truth = not isinstance(value, bool) or kind is object or "bool" in str(field.type)  # True is an int
            self.require(field.name, isinstance(value, kind) and truth, expected)
            if isinstance(value, Real):
                size: Any = abs(value)
                self.require(field.name, size <= LARGEST, f"a number that is finite, at most {LARGEST}")
        for name, known in choices_of(type(self)).items():
            self.require(name, getattr(self, name) in known, "one of " + ", ".join(known))
        for name, least in self.LEAST.items():
            value = getattr(self, name)
            self.require(name, value is None or value >= least, f"{least} or more")
        for name in self.ABOVE_ZERO:
            self.require(name, getattr(self, name) > 0, "a number above 0")
        for name in self.SHARES:
            self.require(name, 0 < getattr(self, name) < 1, "a share between 0 and 1")

    def require(self, name: str, holds: bool, expected: str) -> None:
        """Refuse a setting that does not hold.

        Raises:
            ValueError: Naming the setting, its value and what was expected.
        """
        if not holds:
            raise ValueError(f"{name} is {reprlib.repr(getattr(self, name))}; expected {expected}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Back from JSON, which knows lists where settings have tuples; settings of earlier versions are passed over.

        Raises:
            ValueError: A key that is no setting, naming it.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(values.keys() - known - set(cls.REMOVED))
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
        kept = {name: value for name, value in values.items() if name in known}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()})

    def chosen(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with these defaults: from ``options``, from a field of the same name that was set, or these."""
        usual = {field.name: field.default for field in fields(self)}
        found = dict(defaults)
        found |= {name: getattr(self, name) for name in found if name in usual and getattr(self, name) != usual[name]}
        return found | {name: value for name, value in getattr(self, "options", {}).items() if name in found}

    @classmethod
    def with_options(cls, settings: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
        """Keyword settings, those that only entries of a registry have sorted into ``options``."""
        theirs = {key for name in registry for key in registry[name].defaults} - {field.name for field in fields(cls)}
        options = {**settings.get("options", {}), **{key: settings[key] for key in settings if key in theirs}}
        return {key: settings[key] for key in settings if key not in theirs} | {"options": options}
