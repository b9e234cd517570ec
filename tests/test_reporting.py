"""Sentences and numbers of the report: what is written must hold in the run that it is written about."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.baselines.clip_features import ENSEMBLE_TEMPLATES
from gcpl_lab.experiments.few_shot import METHODS, FewShotExperiment, Outcome
from gcpl_lab.experiments.reports import (
    answer_of,
    caveats_of,
    collect_results,
    conditioning,
    measure_profiles,
    measure_prompts,
    most_confused_pair,
    wilson_interval,
)

GOOD = {
    "zero_shot_diffusion": 0.60,
    "gcpl": 0.75,
    "comple": 0.76,
    "discriminative": 0.78,
    "zero_shot_clip": 0.50,
    "linear_probe": 0.70,
}


def made_up(shares: dict[str, float], **calibration: float) -> list[Outcome]:
    """Outcomes with these accuracies; every method took 2 + 1 s, the baselines 0.25 + 0.25 s."""
    empty = np.zeros((0, 0))
    outcomes = []
    for name, share in shares.items():
        slow = name in ("gcpl", "comple", "discriminative", "zero_shot_diffusion")
        row = {
            "name": name,
            "accuracy": share,
            "calibration_error": calibration.get(name, 0.01),
            "train_seconds": 2.0 if slow else 0.25,
            "predict_seconds": 1.0 if slow else 0.25,
        }
        outcomes.append(Outcome(name, 16, 0, empty, empty, row))
    return outcomes


# ----------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    # Worked by hand with z² = 3.8415: (8/10) → (0.8 + 0.19207) / 1.38415 ∓ 1.95996 √(0.016 + 0.009604) / 1.38415.
    [(0.8, 10, 0.49016, 0.94332), (0.0, 10, 0.0, 0.27753), (1.0, 10, 0.72247, 1.0), (0.5, 100, 0.40383, 0.59617)],
)
def test_wilson_interval_by_hand(share: float, count: int, low: float, high: float) -> None:
    assert wilson_interval(share, count) == pytest.approx((low, high), abs=2e-5)


def test_wilson_interval_solves_its_own_equation() -> None:
    """Its ends are the shares p with |p̂ − p| = z √(p (1 − p) / n)."""
    for end in wilson_interval(0.73, 300):
        assert abs(0.73 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 300))


def test_the_most_confused_pair_counts_both_directions() -> None:
    matrix = np.array([[9, 4, 0], [0, 9, 3], [0, 2, 9]])
    kept = matrix.copy()
    assert most_confused_pair(matrix) == (1, 2)  # 3 + 2 against 4 + 0, and 1 is taken for 2 more often
    assert (matrix == kept).all()
    assert most_confused_pair(matrix.T) == (2, 1)


# --------------------------------------------------------------------------------------------- sentences


def test_nothing_is_said_where_everything_holds() -> None:
    assert caveats_of(made_up(GOOD), 0.1) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"comple": 0.75}, r"CoMPLe's contrast \(λ = 0.1\) did not .*: 75.0% against 75.0%"),
        ({"comple": 0.70}, r"CoMPLe's contrast .*: 70.0% against 75.0%"),
        ({"discriminative": 0.72, "gcpl": 0.755}, "discriminative objective did not improve.*: 72.0% against 75.5%"),
        ({"linear_probe": 0.81}, r"\(78.0% at best, 3.0 s .*do not beat Linear probe \(81.0%, 0.5 s\)"),
        ({"zero_shot_diffusion": 0.78}, "Learning did not help here: 78.0% at best against 78.0%"),
    ],
)
def test_what_does_not_hold_is_said_with_its_numbers_and_nothing_else(change: dict[str, float], expected: str) -> None:
    (caveat,) = caveats_of(made_up(GOOD | change), 0.1)
    assert re.search(expected, caveat), caveat


def test_only_the_better_baselines_are_listed() -> None:
    (caveat,) = caveats_of(made_up(GOOD | {"linear_probe": 0.90, "zero_shot_clip": 0.77}), 0.1)
    assert "Linear probe" in caveat
    assert "Zero-shot CLIP" not in caveat


def test_miscalibration_is_said_of_the_method_that_has_it() -> None:
    (caveat,) = caveats_of(made_up(GOOD, comple=0.12), 0.1)
    assert "CoMPLe are not well calibrated" in caveat
    assert "0.12" in caveat


@pytest.mark.parametrize(
    ("before", "words"), [(0.60, "up from 60%"), (0.90, "down from 90%"), (0.78, "no more than 78%")]
)
def test_the_answer_goes_the_way_that_was_measured(before: float, words: str) -> None:
    answer = answer_of(made_up(GOOD | {"zero_shot_diffusion": before}))
    assert answer.startswith("Discriminative prompts: 78% of the test photographs recognised")
    assert words in answer
    assert answer.endswith("Linear probe, reaches 70%.")


def test_the_answer_names_the_best_objective_and_the_best_baseline() -> None:
    answer = answer_of(made_up(GOOD | {"gcpl": 0.9, "zero_shot_clip": 0.71}))
    assert answer.startswith("GCPL: 90% of the test photographs recognised")
    assert "Zero-shot CLIP, reaches 71%" in answer


# ------------------------------------------------------------------------------------------ measurements


@pytest.fixture(scope="module")
def measured(few_shot: FewShotExperiment) -> tuple[FewShotExperiment, list[Outcome]]:
    return few_shot, [few_shot.run(method, 2, 0) for method in ("zero_shot_clip", "zero_shot_diffusion", "gcpl")]


def test_profiles_and_prompts_are_measured_for_diffusion_classifiers_alone(measured: Any) -> None:
    experiment, outcomes = measured
    keys = ["zero_shot_diffusion/0/0", "gcpl/2/0"]
    profiles, prompts = measure_profiles(experiment, outcomes), measure_prompts(experiment, outcomes)
    assert list(profiles) == list(prompts) == keys
    for key in keys:
        assert {"silhouette", "neighbour_accuracy", "fisher_ratio", "within_family"} <= profiles[key].keys()
        assert profiles[key]["num_points"] == len(experiment.test)
        assert prompts[key]["mean_similarity_in_family"].keys() == {"pair"}  # the family of one has no look-alike
        assert -1 <= prompts[key]["mean_similarity_in_family"]["pair"] <= 1
        assert prompts[key]["separation"]["num_points"] == len(ENSEMBLE_TEMPLATES) * 3


def test_results_hold_what_readers_were_promised(measured: Any) -> None:
    experiment, outcomes = measured
    results = collect_results(experiment, outcomes, 2, "made by hand")
    assert {"name", "checksum", "classes", "shots", "test_size"} <= results["data"].keys()
    assert results["data"]["test_size"] == len(experiment.test)
    assert results["data"]["classes"] == list(experiment.test.class_names)
    assert results["machine"]
    assert results["versions"]
    assert results["command"] == "made by hand"
    assert [row["name"] for row in results["methods"]] == [outcome.method for outcome in outcomes]


def test_conditioning_of_learned_prompts_is_what_the_classifier_uses(measured: Any) -> None:
    experiment, outcomes = measured
    templates = (*outcomes[2].model.config.templates, "a drawing of a {}")
    hidden = conditioning(experiment, outcomes[2], templates)
    with torch.no_grad():
        used = experiment.diffusion.encode_prompts(*outcomes[2].model.prompts_())
    torch.testing.assert_close(hidden[0], used)
    assert not torch.equal(hidden[0], hidden[1])
    names = conditioning(experiment, outcomes[1], templates)
    assert not torch.allclose(names[0], hidden[0])


def test_measuring_changes_no_prompt(measured: Any) -> None:
    experiment, outcomes = measured
    before = outcomes[2].model.prompts_.vectors.detach().clone()
    measure_prompts(experiment, outcomes)
    assert torch.equal(outcomes[2].model.prompts_.vectors, before)


def test_every_figure_but_the_map_is_drawn_from_random_models(few_shot: FewShotExperiment, tmp_path: Path) -> None:
    """The map needs UMAP, which its own tests cover; the rest must not depend on well-trained models."""
    from gcpl_lab.experiments.reports import _drawings

    outcomes = {name: few_shot.run(name, 2, 0) for name in METHODS if name.split("_")[0] in ("zero", "gcpl", "comple")}
    outcomes["discriminative"] = few_shot.run("discriminative", 2, 0)
    for drawing in _drawings(few_shot, outcomes):
        if drawing.name not in ("before_after", "samples"):
            figure = drawing.draw()
            assert figure.axes, drawing.name
            assert any(ax.has_data() or ax.texts or ax.images for ax in figure.axes), drawing.name
