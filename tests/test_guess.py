"""The guess before the answer: what a press keeps, what is revealed, and how a room is counted."""

import json
from pathlib import Path

import pytest

from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.views.widgets import Guess, tally_guesses
from gcpl_lab.workshop import course

OPTIONS = ["below 50 %", "50 to 70 %", "above 70 %"]


def ask(path: Path, name: str = "04.1") -> Guess:
    return Guess(name, "How many are right?", OPTIONS, path)


def test_a_press_is_kept_for_the_next_kernel_and_beside_other_questions(tmp_path: Path) -> None:
    path = tmp_path / "course" / "guesses.json"
    first, other = ask(path), ask(path, "05.1")
    assert (first.chosen, first.line) == (None, "")
    assert not path.exists(), "to look at a question is no guess"
    first.buttons.value = OPTIONS[2]
    other.buttons.value = OPTIONS[0]
    first.buttons.value = OPTIONS[1]
    assert json.loads(path.read_text()) == {"04.1": OPTIONS[1], "05.1": OPTIONS[0]}
    assert "guess | 04.1 | 50 to 70 %" in first.status.value
    assert ask(path).chosen == OPTIONS[1]
    changed = Guess("04.1", "How many?", ["few", "many"], path)
    assert changed.chosen is None, "an answer that is no option any more is no guess"


def test_the_answer_stands_beside_the_guess(tmp_path: Path) -> None:
    question = ask(tmp_path / "guesses.json")
    assert question.reveal(OPTIONS[0]).startswith("Measured: below 50 %. (No guess")
    question.buttons.value = OPTIONS[0]
    assert question.reveal(OPTIONS[0]) == "Measured: below 50 %. You guessed: below 50 %. Right."
    assert question.reveal(OPTIONS[1]) == "Measured: 50 to 70 %. You guessed: below 50 %."
    with pytest.raises(DataError, match="04.1: the answer 'all' is none of"):
        question.reveal("all")


def test_readers_without_a_kernel_see_the_question_and_errors_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "guesses.json"
    question = ask(path)
    bundle = question._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == question.model_id
    assert all(f"\n- {option}\n" in bundle["text/markdown"] for option in OPTIONS)
    path.write_text("[1]")
    question.buttons.value = OPTIONS[0]
    assert isinstance(question.error, ArtifactError)
    assert "guesses.json" in question.problem.value
    with pytest.raises(ArtifactError, match="move the file away"):
        ask(path)


@pytest.mark.parametrize("options", [["one"], ["a", "a"], list("abcde"), ["a | b", "c"]])
def test_options_that_cannot_be_told_apart_are_refused(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(DataError, match="expected 2 to 4 different ones"):
        Guess("04.1", "Which?", options, tmp_path / "guesses.json")


def test_a_room_is_counted_from_pasted_lines(tmp_path: Path) -> None:
    lines = []
    for person, place in enumerate((1, 2, 1)):
        question = ask(tmp_path / f"{person}.json")
        question.buttons.value = OPTIONS[place]
        lines.append(question.line)
    counted = tally_guesses("\n\n".join([*lines, "  guess | 03.1 | yes "]))
    assert counted == {"03.1": {"yes": 1}, "04.1": {OPTIONS[1]: 2, OPTIONS[2]: 1}}
    assert list(counted) == ["03.1", "04.1"]
    with pytest.raises(DataError, match=r"line 2 is 'hello'"):
        tally_guesses(f"{lines[0]}\nhello")


def test_the_course_keeps_all_guesses_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(course.COURSE_VARIABLE, str(tmp_path))
    course.guess("04.1", "How many are right?", OPTIONS).buttons.value = OPTIONS[0]
    assert json.loads((tmp_path / "guesses.json").read_text()) == {"04.1": OPTIONS[0]}
    assert course.saved_in(tmp_path) == []
