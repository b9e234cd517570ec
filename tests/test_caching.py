"""Kept outcomes: equal to what was learned, read only where nothing they depend on has changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.errors import ArtifactError
from gcpl_lab.experiments.caching import OutcomeCache, source_checksum  # bound before the fixture below replaces it
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.multilabel import MultiLabelExperiment

Kept = tuple[OutcomeCache, FewShotExperiment, Outcome]
Make = Callable[..., FewShotExperiment]


@pytest.fixture(scope="module", autouse=True)
def unchanged_source() -> Iterator[None]:
    """A file that somebody saves meanwhile would rightly make another entry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gcpl_lab.experiments.caching.source_checksum", lambda: "this source")
        yield


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, few_shot: FewShotExperiment) -> Kept:
    """A cache that holds one learned outcome."""
    cache = OutcomeCache(tmp_path_factory.mktemp("cache"))
    return cache, few_shot, cache.run(few_shot, "gcpl", 1, 0)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for experiment in (FewShotExperiment, MultiLabelExperiment):
        monkeypatch.setattr(experiment, "run", Mock(side_effect=ZeroDivisionError))


def test_a_kept_outcome_is_the_learned_one(kept: Kept, make_few_shot: Make, nothing_runs: None) -> None:
    (cache, _, first), fresh = kept, make_few_shot()
    again = cache.run(fresh, "gcpl", 1, 0)
    assert (again.method, again.shots, again.seed, again.row) == (first.method, first.shots, first.seed, first.row)
    for name in ("scores", "probabilities"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert again.evidence.num_evaluations == first.evidence.num_evaluations
    np.testing.assert_array_equal(again.evidence.errors, first.evidence.errors)
    np.testing.assert_array_equal(again.evidence.timesteps, first.evidence.timesteps)
    assert again.model.history_ == first.model.history_
    assert again.model.temperature_ == first.model.temperature_
    assert list(again.model.states_) == list(first.model.states_)
    for step, vectors in first.model.states_.items():
        assert torch.equal(again.model.states_[step], vectors)
    np.testing.assert_array_equal(again.model.scores(again.model.evidence(fresh.test_latents)), first.scores)


def test_whatever_it_depends_on_makes_another_entry(
    kept: Kept, make_few_shot: Make, nothing_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, experiment, _ = kept
    test, learns = experiment.test, pytest.raises(ZeroDivisionError)
    other_images = (make_few_shot(test=test.subset(order)) for order in (range(11), [*range(1, 12), 0]))
    for other in (make_few_shot(learning_rate=0.01), *other_images):
        with learns:
            cache.run(other, "gcpl", 1, 0)
    for trial in (("comple", 1, 0), ("gcpl", 2, 0), ("gcpl", 1, 1)):
        with learns:
            cache.run(experiment, *trial)
    bias = experiment.diffusion.denoiser.conv_out.bias.detach()
    before = bias.clone()
    bias += 1
    try:
        with learns:
            cache.run(experiment, "gcpl", 1, 0)
    finally:
        bias.copy_(before)
    assert cache.run(experiment, "gcpl", 1, 0).row["name"] == "gcpl"
    monkeypatch.setattr("gcpl_lab.experiments.caching.source_checksum", lambda: "another source")
    with learns:
        OutcomeCache(cache.folder).run(experiment, "gcpl", 1, 0)


@pytest.mark.parametrize("name", ["one.py", "table.json", "words.toml"])
def test_every_line_of_source_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / name).write_text("a = 1\n")
    before = source_checksum(tmp_path)
    assert source_checksum(tmp_path) == before
    (tmp_path / "room" / name).write_text("a = 2\n")
    assert source_checksum(tmp_path) != before


def test_an_unfinished_entry_is_made_anew_and_a_damaged_one_is_an_error(
    few_shot: FewShotExperiment, tmp_path: Path
) -> None:
    cache, trial = OutcomeCache(tmp_path), ("nearest_class_mean", 1, 0)
    first = cache.run(few_shot, *trial)
    (file,) = tmp_path.glob("*/outcome.safetensors")
    file.unlink()
    np.testing.assert_array_equal(cache.run(few_shot, *trial).scores, first.scores)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"outcome\.safetensors"):
        cache.run(few_shot, *trial)


def test_multilabel_outcomes_are_kept_too(tmp_path: Path, random_pair: Any, request: pytest.FixtureRequest) -> None:
    some = (load_wardrobe(split).subset(np.arange(0, 520, 5)) for split in ("train", "test"))
    settings = {"num_context": 2, "num_epochs": 1, "initial_words": ""}
    experiment, cache = MultiLabelExperiment(*some, clip=random_pair.clip, settings=settings), OutcomeCache(tmp_path)
    first = cache.run(experiment, "lmpt", 0)
    request.getfixturevalue("nothing_runs")
    again = cache.run(experiment, "lmpt", 0)
    assert again.row == first.row
    for name in ("logits", "probabilities", "thresholds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert torch.equal(again.model.start_features_, first.model.start_features_)
    np.testing.assert_array_equal(again.model.scores_of(experiment.test_features), first.logits)
    with pytest.raises(ZeroDivisionError):
        cache.run(experiment, "lmpt", 1)
