"""Settings as frozen dataclasses that go to JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, Self

_KINDS: dict[str, tuple[Any, str]] = {
    "int": (Integral, "a whole number"),
    "int | None": ((Integral, type(None)), "a whole number, or None"),
    "float": (Real, "a number"),
    "bool": (bool, "True or False"),
    "bool | None": ((bool, type(None)), "True, False or None"),
    "str": (str, "text"),
}


@dataclass(frozen=True)
class Settings:
    """What all settings have in common: plain values of the right kind, out and back."""

    def __post_init__(self) -> None:
        for field in fields(self):
            kind, expected = _KINDS.get(str(field.type), (object, ""))
            value = getattr(self, field.name)
            # To Python, True is a number.
            truth = not isinstance(value, bool) or kind is object or "bool" in str(field.type)
            require(isinstance(value, kind) and truth, field.name, value, expected)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Back from JSON, which knows lists where settings have tuples.

        Raises:
            ValueError: A key that is no setting, naming it.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(values.keys() - known)
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; expected {expected}")
