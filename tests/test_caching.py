"""Kept outcomes: equal to what was learned, read only where nothing they depend on has changed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.data.episodes import draw_test
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.data.wardrobe import load_wardrobe
from gcpl_lab.errors import ArtifactError
from gcpl_lab.experiments.caching import OutcomeCache, source_checksum  # bound before the fixture below replaces it
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.multilabel import MultiLabelExperiment

Kept = tuple[OutcomeCache, FewShotExperiment, Outcome]
SETTINGS = {"num_steps": 2, "batch_size": 10, "num_evidence": 1, "class_offsets": False}


def make_experiment(like: FewShotExperiment | None = None, test_total: int = 10, **settings: Any) -> FewShotExperiment:
    """On a few test images; with the loaded models of another one."""
    support, test = load_fashion("support"), load_fashion("test")
    test = test.subset(draw_test(test, total=test_total, seed=0))
    experiment = FewShotExperiment(support, test, settings=SETTINGS | settings)
    if like is not None:
        vars(experiment).update(diffusion=like.diffusion, clip=like.clip)
    return experiment


@pytest.fixture(scope="module", autouse=True)
def unchanged_source() -> Iterator[None]:
    """A file that somebody saves meanwhile would rightly make another entry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gcpl_lab.experiments.caching.source_checksum", lambda: "this source")
        yield


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A cache that holds one learned outcome."""
    cache, experiment = OutcomeCache(tmp_path_factory.mktemp("cache")), make_experiment()
    return cache, experiment, cache.run(experiment, "gcpl", 1, 0)


class MustNotRun(AssertionError):
    pass


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MustNotRun

    for experiment in (FewShotExperiment, MultiLabelExperiment):
        monkeypatch.setattr(experiment, "run", refuse)


def test_a_kept_outcome_is_the_learned_one(kept: Kept, nothing_runs: None) -> None:
    cache, experiment, first = kept
    fresh = make_experiment(experiment)
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
    kept: Kept, nothing_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, experiment, _ = kept
    other_images, test = make_experiment(experiment), load_fashion("test")
    other_images.test = test.subset(draw_test(test, total=10, seed=1))
    changed = {"learning_rate": 0.01}, {"test_total": 20}
    for other in (*(make_experiment(experiment, **change) for change in changed), other_images):
        with pytest.raises(MustNotRun):
            cache.run(other, "gcpl", 1, 0)
    for trial in (("comple", 1, 0), ("gcpl", 2, 0), ("gcpl", 1, 1)):
        with pytest.raises(MustNotRun):
            cache.run(experiment, *trial)
    bias = experiment.diffusion.denoiser.conv_out.bias
    with torch.no_grad():
        bias += 1
    with pytest.raises(MustNotRun):
        cache.run(experiment, "gcpl", 1, 0)
    with torch.no_grad():
        bias -= 1
    assert cache.run(experiment, "gcpl", 1, 0).row["name"] == "gcpl"
    monkeypatch.setattr("gcpl_lab.experiments.caching.source_checksum", lambda: "another source")
    with pytest.raises(MustNotRun):
        OutcomeCache(cache.folder).run(experiment, "gcpl", 1, 0)


@pytest.mark.parametrize("name", ["one.py", "table.json", "words.toml"])
def test_every_line_of_source_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / name).write_text("a = 1\n")
    before = source_checksum(tmp_path)
    assert source_checksum(tmp_path) == before
    (tmp_path / "room" / name).write_text("a = 2\n")
    assert source_checksum(tmp_path) != before


def test_an_unfinished_entry_is_made_anew_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    cache, experiment = OutcomeCache(tmp_path), make_experiment()
    first = cache.run(experiment, "nearest_class_mean", 1, 0)
    (entry,) = tmp_path.iterdir()
    file = entry / "outcome.safetensors"
    file.unlink()
    again = cache.run(experiment, "nearest_class_mean", 1, 0)
    np.testing.assert_array_equal(again.scores, first.scores)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"outcome\.safetensors"):
        cache.run(experiment, "nearest_class_mean", 1, 0)


def test_multilabel_outcomes_are_kept_too(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    settings = {"num_context": 2, "num_epochs": 1, "initial_words": ""}
    experiment = MultiLabelExperiment(load_wardrobe("train"), load_wardrobe("test"), settings=settings)
    cache = OutcomeCache(tmp_path)
    first = cache.run(experiment, "lmpt", 0)
    request.getfixturevalue("nothing_runs")
    again = cache.run(experiment, "lmpt", 0)
    assert again.row == first.row
    for name in ("logits", "probabilities", "thresholds"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert torch.equal(again.model.start_features_, first.model.start_features_)
    np.testing.assert_array_equal(again.model.scores_of(experiment.test_features), first.logits)
    with pytest.raises(MustNotRun):
        cache.run(experiment, "lmpt", 1)
