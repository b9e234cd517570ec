"""What a user can name: objectives, losses, baselines, methods; each registered once, beside its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gcpl_lab.errors import DataError

Target = TypeVar("Target", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered thing.

    Attributes:
        name: What settings, commands and files call it.
        title: What tables and figures call it.
        target: The class or function.
        defaults: Its own settings, and what they are unless a user says otherwise.
        facts: What its registry wants to know beside that.
    """

    name: str
    title: str
    target: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Registry:
    """Entries by name, in the order they were registered in."""

    def __init__(self, kind: str) -> None:
        """Begin empty.

        Args:
            kind: What an entry is, in the singular, for messages: "objective".
        """
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def register(
        self, name: str, *, title: str | None = None, defaults: Mapping[str, Any] | None = None, **facts: Any
    ) -> Callable[[Target], Target]:
        """A decorator that enters a class or function; a second one of the same name replaces the first.

        Args:
            name: See :class:`Entry`.
            title: By default the name with spaces.
            defaults: See :class:`Entry`.
            **facts: See :class:`Entry`.
        """

        def enter(target: Target) -> Target:
            readable = name.replace("_", " ").capitalize()
            self._entries[name] = Entry(name, title or readable, target, dict(defaults or {}), facts)
            return target

        return enter

    def entries(self) -> dict[str, Entry]:
        """Every entry by name, in order."""
        return dict(self._entries)

    def __getitem__(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            DataError: There is none; the message lists what there is.
        """
        found = self._entries.get(name) or self.entries().get(name)
        if found is None:
            raise DataError(
                f"{name!r} is no registered {self.kind}; expected one of {', '.join(self.entries())}. "
                f"One of your own must be defined, or its module imported, before it is named"
            )
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.entries()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries())

    def __len__(self) -> int:
        return len(self.entries())

    def titles(self) -> dict[str, str]:
        """Title by name."""
        return {name: entry.title for name, entry in self.entries().items()}
