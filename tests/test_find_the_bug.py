"""Notebook 10: with the mistakes every check fails, with the solutions every check passes."""

from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[1] / "notebooks" / "10_find_the_bug.py"
MISTAKES = ("sign", "scores", "vocabulary", "statistics", "choice")


def cells() -> list[Any]:
    import jupytext

    return [cell for cell in jupytext.read(SOURCE).cells if cell.cell_type == "code"]


def is_solution(cell: Any) -> bool:
    return "solution" in cell.metadata.get("tags", [])


def belongs_to_checks(cell: Any) -> bool:
    """The first cell, the mistakes, their checks and solutions; what draws or summarises is left aside."""
    source = str(cell.source)
    names = ("embedding_loss", "probabilities(", "learn_word", "prepare(", "choose_epoch", "check_")
    return "results = {}" in source or any(f"def {name}" in source for name in names)


def run(with_solutions: bool) -> dict[str, Any]:
    """Variables after the cells of one edition; the magic of IPython is left out."""
    namespace: dict[str, Any] = {}
    for cell in cells():
        if belongs_to_checks(cell) and (with_solutions or not is_solution(cell)):
            source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
            exec(compile(source, SOURCE.name, "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def student() -> dict[str, Any]:
    return run(with_solutions=False)


@pytest.fixture(scope="module")
def solved() -> dict[str, Any]:
    return run(with_solutions=True)


def test_every_mistake_is_found(student: dict[str, Any]) -> None:
    assert tuple(student["results"]) == MISTAKES
    for name, answer in student["results"].items():
        assert answer.startswith("still wrong: "), name


def test_every_solution_passes(solved: dict[str, Any]) -> None:
    assert solved["results"] == dict.fromkeys(MISTAKES, "right")


def test_every_mistake_has_one_solution_behind_its_check() -> None:
    kinds = [("solution" if is_solution(cell) else "given") for cell in cells() if belongs_to_checks(cell)]
    assert kinds == ["given", *["given", "given", "solution"] * len(MISTAKES)]


# A check must also catch the next mistake: what somebody might write who saw the message and no more.


def test_half_mended_losses_are_found(student: dict[str, Any]) -> None:
    check = student["check_sign"]
    assert "is not pushed away" in check(lambda distances, present: (distances * present).mean())
    assert "beyond the margin" in check(lambda distances, present: (distances * (2 * present - 1)).mean())
    assert "moves away" in check(lambda distances, present: -(distances * (2 * present - 1)).mean())


def test_half_mended_scores_are_found(student: dict[str, Any]) -> None:
    check = student["check_scores"]
    assert "less probable" in check(lambda logits: (logits.softmax(-1) * logits.shape[-1]).clamp(max=1))
    assert "0.50" in check(lambda logits: logits.softmax(-1))


def test_half_mended_learning_is_found(student: dict[str, Any]) -> None:
    check, learn = student["check_vocabulary"], student["learn_word"]
    assert "hardly learned" in check(lambda table, token, target: table.clone())

    def restored_but_for_one(table: Any, token: int, target: Any) -> Any:
        learned = learn(table, token, target)
        rows = [row for row in range(len(table)) if row not in (token, len(table) - 1)]
        learned[rows] = table[rows]
        return learned

    assert "have moved" in check(restored_but_for_one)


def test_half_mended_statistics_are_found(student: dict[str, Any]) -> None:
    check, clip = student["check_statistics"], student["clip"]
    assert "the shape is" in check(lambda image: clip.transform(image)[:, :32])
    assert "away from" in check(lambda image: clip.transform(image) * 1.1)


def test_half_mended_choices_are_found(student: dict[str, Any]) -> None:
    check = student["check_choice"]
    assert "test set has chosen it" in check(lambda validation, test: int((validation + test).argmax()))
    assert "not the best one" in check(lambda validation, test: len(validation) - 1)
