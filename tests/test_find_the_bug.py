"""Notebook 10: with the mistakes every check fails, with the solutions every check passes."""

from pathlib import Path
from typing import Any

import jupytext
import pytest

SOURCE = Path(__file__).parents[1] / "notebooks" / "10_find_the_bug.py"
ALL = jupytext.read(SOURCE).cells
EXERCISES = next(place for place, cell in enumerate(ALL) if cell.source.startswith("## Exercises"))
CELLS = [cell for cell in ALL[:EXERCISES] if cell.cell_type == "code"]
MISTAKES = ("sign", "scores", "vocabulary", "statistics", "choice")


def is_solution(cell: Any) -> bool:
    return "solution" in cell.metadata.get("tags", [])


def belongs_to_checks(cell: Any) -> bool:
    """The first cell, the mistakes, their checks and solutions; what draws or summarises is left aside."""
    names = ("embedding_loss", "probabilities(", "learn_word", "prepare(", "choose_epoch", "check_")
    return "results = {}" in cell.source or any(f"def {name}" in cell.source for name in names)


def run(with_solutions: bool) -> dict[str, Any]:
    """Variables after the cells of one edition; the magic of IPython is left out."""
    namespace: dict[str, Any] = {}
    for cell in CELLS:
        if belongs_to_checks(cell) and (with_solutions or not is_solution(cell)):
            source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            exec(compile(source, SOURCE.name, "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def student() -> dict[str, Any]:
    return run(with_solutions=False)


def test_every_mistake_is_found_and_every_solution_passes(student: dict[str, Any]) -> None:
    assert tuple(student["results"]) == MISTAKES
    for name, answer in student["results"].items():
        assert answer.startswith("still wrong: "), name
    assert run(with_solutions=True)["results"] == dict.fromkeys(MISTAKES, "right")
    kinds = [("solution" if is_solution(cell) else "given") for cell in CELLS if belongs_to_checks(cell)]
    assert kinds == ["given", *["given", "given", "solution"] * len(MISTAKES)]


# A check must also catch the next mistake: what somebody might write who saw the message and no more.

HALF_MENDED: list[tuple[str, str, Any]] = [
    ("sign", "is not pushed away", lambda distances, present: (distances * present).mean()),
    ("sign", "beyond the margin", lambda distances, present: (distances * (2 * present - 1)).mean()),
    ("sign", "moves away", lambda distances, present: -(distances * (2 * present - 1)).mean()),
    ("scores", "less probable", lambda logits: (logits.softmax(-1) * logits.shape[-1]).clamp(max=1)),
    ("scores", "0.50", lambda logits: logits.softmax(-1)),
    ("vocabulary", "hardly learned", lambda table, token, target: table.clone()),
    ("choice", "test set has chosen it", lambda validation, test: int((validation + test).argmax())),
    ("choice", "not the best one", lambda validation, test: len(validation) - 1),
]


@pytest.mark.parametrize(("name", "message", "attempt"), HALF_MENDED)
def test_half_mended_functions_are_found(student: dict[str, Any], name: str, message: str, attempt: Any) -> None:
    assert message in student[f"check_{name}"](attempt)


def test_half_mended_learning_and_statistics_are_found(student: dict[str, Any]) -> None:
    learn, transform = student["learn_word"], student["clip"].transform

    def restored_but_for_one(table: Any, token: int, target: Any) -> Any:
        learned = learn(table, token, target)
        rows = [row for row in range(len(table)) if row not in (token, len(table) - 1)]
        learned[rows] = table[rows]
        return learned

    assert "have moved" in student["check_vocabulary"](restored_but_for_one)
    assert "the shape is" in student["check_statistics"](lambda image: transform(image)[:, :32])
    assert "away from" in student["check_statistics"](lambda image: transform(image) * 1.1)
