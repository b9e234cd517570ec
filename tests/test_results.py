"""What a run's results and figures hold, measured on models with random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.experiments import figures
from gcpl_lab.experiments.caching import OutcomeCache
from gcpl_lab.experiments.demo import DEMO_METHODS, show_scenes
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.figures import conditioning, draw_figures, most_confused_pair
from gcpl_lab.experiments.multilabel import MultiLabelExperiment

SLOW = {"before_after", "samples"}  # UMAP, which its own tests cover, and drawing images


def test_the_most_confused_pair_counts_both_directions() -> None:
    matrix = np.array([[9, 4, 0], [0, 9, 3], [0, 2, 9]])
    kept = matrix.copy()
    assert most_confused_pair(matrix) == (1, 2)  # 3 + 2 against 4 + 0, and 1 is taken for 2 more often
    assert (matrix == kept).all()
    assert most_confused_pair(matrix.T) == (2, 1)


@pytest.fixture(scope="module")
def measured(few_shot: FewShotExperiment) -> tuple[FewShotExperiment, list[Outcome]]:
    return few_shot, [few_shot.run(method, 2, 0) for method in ("zero_shot_clip", "zero_shot_diffusion", "gcpl")]


def test_conditioning_of_learned_prompts_is_what_the_classifier_uses(measured: Any) -> None:
    experiment, outcomes = measured
    model = outcomes[2].model
    vectors = model.prompts_.vectors.detach().clone()
    hidden = conditioning(experiment, outcomes[2])
    with torch.no_grad():
        used = experiment.diffusion.encode_prompts(*model.prompts_())
    torch.testing.assert_close(hidden, used)
    assert not torch.allclose(conditioning(experiment, outcomes[1]), hidden)
    assert torch.equal(model.prompts_.vectors, vectors), "measuring changed a prompt"


@pytest.mark.parametrize("learned", [("gcpl", "comple", "discriminative"), ("gcpl",)])
def test_what_was_run_is_drawn(
    few_shot: FewShotExperiment, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, learned: tuple[str, ...]
) -> None:
    quick = {name: words for name, words in figures.WORDS["few_shot"].items() if name not in SLOW}
    monkeypatch.setitem(figures.WORDS, "few_shot", quick)
    outcomes = [few_shot.run(name, 2, 0) for name in ("zero_shot_clip", "zero_shot_diffusion", *learned)]
    drawn = draw_figures(few_shot, outcomes, tmp_path)
    without = set() if "comple" in learned else {"comple_norm"}
    assert [figure.name for figure in drawn] == [name for name in quick if name not in without]
    assert all(figure.title and figure.message and figure.alt for figure in drawn)
    assert all((tmp_path / f"{figure.name}.{ending}").is_file() for figure in drawn for ending in ("png", "svg"))


def test_the_scenes_are_learned_and_drawn(tmp_path: Path) -> None:
    experiment = MultiLabelExperiment(load_wardrobe("train"), load_wardrobe("test"), settings={"num_epochs": 5})
    cache = OutcomeCache(tmp_path / "cache")
    found, shown = show_scenes(print, cache, experiment, 0, tmp_path)
    by_name = {row["name"]: row["map"] for row in found["methods"]}
    assert tuple(by_name) == DEMO_METHODS
    assert by_name["lmpt"] > by_name["zero_shot_clip"]
    assert len(found["data"]["classes"]) == len(found["data"]["train_counts"]) == 10
    assert [figure.name for figure in shown] == [*figures.WORDS["scenes"], "caption_hills"]
    assert all(Path(figure.png_path).is_file() for figure in shown)
    assert (tmp_path / "prompts/lmpt/prompts.json").is_file()
    learned = cache.run(experiment, "lmpt", 0)
    flawless = replace(learned, probabilities=experiment.test.targets * 1.0, thresholds=np.full(10, 0.5))
    assert figures._draw_multilabel_mistake(figures.ShownRun(experiment, {"lmpt": flawless})) is None
