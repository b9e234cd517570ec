"""Sentences of the report: what is written must hold in the run that it is written about."""

import re
from pathlib import Path

import pytest

from gcpl_lab.experiments.runs import Run
from gcpl_lab.experiments.sentences import answer_of, caveats_of, scenes_answer, scenes_caveats

LEARNED = {"zero_shot_diffusion": 0.60, "gcpl": 0.75, "comple": 0.76, "discriminative": 0.78}
GOOD = {**LEARNED, "zero_shot_clip": 0.50, "linear_probe": 0.70}


@pytest.fixture(autouse=True)
def in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts").mkdir()


def made_up(shares: dict[str, float], **calibration: float) -> Run:
    """A run with these accuracies; every method took 2 + 1 s, the baselines 0.25 + 0.25 s."""
    rows = []
    for name, share in shares.items():
        train, predict = (0.25, 0.25) if name in ("zero_shot_clip", "linear_probe") else (2.0, 1.0)
        row = {"name": name, "accuracy": share, "calibration_error": calibration.get(name, 0.01)}
        rows.append({**row, "train_seconds": train, "predict_seconds": predict})
    return Run(Path(), {"methods": rows})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"comple": 0.75}, "CoMPLe did not .*: 75.0% against 75.0%"),
        ({"comple": 0.70}, "CoMPLe did not .*: 70.0% against 75.0%"),
        ({"discriminative": 0.72, "gcpl": 0.755}, "Discriminative prompts did not separate.*: 72.0% against 75.5%"),
        ({"linear_probe": 0.81}, r"\(78.0% at best, 3.0 s .*do not beat Linear probe \(81.0%, 0.5 s\)"),
        ({"linear_probe": 0.90, "zero_shot_clip": 0.77}, r"do not beat Linear probe \(90.0%, 0.5 s\)\.$"),
        ({"zero_shot_diffusion": 0.78}, "Learning did not help here: 78.0% at best against 78.0%"),
    ],
)
def test_what_does_not_hold_is_said_with_its_numbers_and_nothing_else(change: dict[str, float], expected: str) -> None:
    assert caveats_of(made_up(GOOD)) == []
    (caveat,) = caveats_of(made_up(GOOD | change))
    assert re.search(expected, caveat), caveat
    (caveat,) = caveats_of(made_up(GOOD, comple=0.12))
    assert re.search("CoMPLe are not well calibrated.* 0.12 with", caveat), caveat


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ["Discriminative prompts: 78% of the test images", "up from 60%", "Linear probe, reaches 70%."]),
        ({"zero_shot_diffusion": 0.9}, ["down from 90%"]),
        ({"zero_shot_diffusion": 0.78}, ["no more than 78%"]),
        ({"gcpl": 0.9, "zero_shot_clip": 0.71}, ["GCPL: 90% of", "Zero-shot CLIP, reaches 71%."]),
    ],
)
def test_the_answer_is_what_was_measured(change: dict[str, float], words: list[str]) -> None:
    answer = answer_of(made_up(GOOD | change))
    assert all(part in answer for part in words), answer


def test_methods_of_another_time_are_spoken_of_by_name() -> None:
    """Neither what is compared with nor what is registered today is taken for granted."""
    Path("prompts/own_objective").mkdir()
    run = made_up({"gcpl": 0.6, "own_objective": 0.5, "own_baseline": 0.7})
    assert (run.learned, run.baselines) == (["gcpl", "own_objective"], ["own_baseline"])
    assert answer_of(run).endswith("on the same images, own_baseline, reaches 70%.")
    assert (
        caveats_of(run)[0] == "own_objective did not separate the classes better than GCPL here: 50.0% against 60.0%."
    )
    assert answer_of(made_up({"comple": 0.6})) == "CoMPLe: 60% of the test images recognised."


def test_scenes_name_what_ranks_higher() -> None:
    parts = ("map", "map_head", "map_medium")
    lmpt = {"name": "lmpt", **dict.fromkeys(parts, 0.5), "map_tail": 0.3}
    rows = [lmpt, {"name": "linear_probe", **dict.fromkeys((*parts, "map_tail"), 0.4)}]
    assert scenes_caveats(rows)[1:] == ["LMPT is not the best on the tail; above it: Linear probe."]
    assert "LMPT 50.0 (tail 30.0); Linear probe 40.0 (tail 40.0)." in scenes_answer(rows)
