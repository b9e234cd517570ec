"""A guess before the answer: a button for each possibility, kept in a file, and a room's guesses counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.storage import read_json, write_json
from gcpl_lab.views.widgets.base import Panel, selector

MARK = "guess"


class Guess(Panel):
    """A question whose answer a later cell measures; whoever has guessed looks at that cell with other eyes.

    The last choice is on disk at once, survives a restart, and can be sent as one ``line`` to whoever counts.

    Args:
        name: Of the question, such as "04.1".
        question, options: What is asked; two to four short answers, all different.
        path: The file with the guesses to all questions; made with the first one.

    Raises:
        DataError: Options that are too few, too many, equal, or that hold the separator "|".
        ArtifactError: ``path`` holds something else.
    """

    def __init__(self, name: str, question: str, options: Sequence[str], path: str | Path) -> None:
        texts = [name, *options]
        if not 2 <= len(options) <= 4 or len(set(options)) < len(options) or any("|" in text for text in texts):
            raise DataError(
                f"question {name!r} has the options {list(options)}; expected 2 to 4 different ones, no '|'"
            )
        self.name, self.question, self.options, self._path = name, question, list(options), Path(path)
        chosen = read_guesses(self._path).get(name)
        self.buttons = selector("my guess", self.options, chosen if chosen in self.options else None, "kept at once")
        self.buttons.observe(self.guarded(self._keep), "value")
        super().__init__(f"Guess first: {question}", [self.buttons])
        self._tell()

    @property
    def chosen(self) -> str | None:
        """The present guess, None before one."""
        value: str | None = self.buttons.value
        return value

    @property
    def line(self) -> str:
        """The guess as a line that :func:`tally_guesses` reads, empty before there is one."""
        return "" if self.chosen is None else f"{MARK} | {self.name} | {self.chosen}"

    def reveal(self, answer: str) -> str:
        """The measured answer, one of the options, beside the guess.

        Raises:
            DataError: ``answer`` is none of the options.
        """
        if answer not in self.options:
            raise DataError(f"question {self.name}: the answer {answer!r} is none of {self.options}")
        if self.chosen is None:
            return f"Measured: {answer}. (No guess was kept: press a button above, and run this cell again.)"
        return f"Measured: {answer}. You guessed: {self.chosen}{'. Right.' if self.chosen == answer else '.'}"

    def _keep(self) -> None:
        write_json(self._path, {**read_guesses(self._path), self.name: self.chosen})
        self._tell()

    def _tell(self) -> None:
        self.say(f"Kept. For the room's tally: {self.line}" if self.line else "Press a button; it can be changed.")

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The widget, and the question with its options for readers that have no kernel."""
        bundle: dict[str, Any] = super()._repr_mimebundle_(**options) or {}
        text = f"Guess first: {self.question}"
        listed = "\n".join(f"- {option}" for option in self.options)
        return {**bundle, "text/plain": text, "text/markdown": f"**{text}**\n\n{listed}\n"}


def read_guesses(path: str | Path) -> dict[str, str]:
    """The kept guesses by question, none where there is no file; ArtifactError for another file."""
    path = Path(path)
    kept = read_json(path) if path.is_file() else {}
    if not isinstance(kept, dict) or not all(isinstance(value, str) for value in kept.values()):
        raise ArtifactError(f"{path}: expected guesses, a text for each question; move the file away")
    return kept


def tally_guesses(pasted: str) -> dict[str, dict[str, int]]:
    """Count a room's guesses: question to answer to number, the most frequent answer first.

    Args:
        pasted: The lines that participants sent, one guess a line; empty lines are passed over.

    Raises:
        DataError: A line is no guess.
    """
    counts: dict[str, Counter[str]] = {}
    for number, line in enumerate(pasted.splitlines(), 1):
        mark, *parts = (part.strip() for part in line.split("|"))
        if not parts and not mark:
            continue
        if mark != MARK or len(parts) != 2:
            raise DataError(f"line {number} is {line!r}; expected '{MARK} | 04.1 | the answer', as the widget shows it")
        counts.setdefault(parts[0], Counter())[parts[1]] += 1
    return {name: dict(found.most_common()) for name, found in sorted(counts.items())}
