"""One run through the public names, from files to files, that must beat chance by a stated margin."""

import os
from pathlib import Path

import numpy as np
import pytest

from gcpl_lab import GCPLClassifier, draw_episode, load_fashion
from gcpl_lab.data.episodes import draw_test

CHANCE = 0.10
MARGIN = 0.35
"""Ten classes guessed blindly give 0.10 ± 0.03 on 100 images; a run that works is far above 0.45."""


def test_a_minute_of_learning_beats_chance_and_survives_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    support, test = load_fashion("support"), load_fashion("test")
    support = support.subset(draw_episode(support, shots=8, seed=0))
    test = test.subset(draw_test(test, total=100))
    names = np.array(test.class_names)
    model = GCPLClassifier(preset="tiny", objective="gcpl", num_vectors=4, num_steps=60, seed=0, num_evidence=4)
    model.fit(support.images, names[support.labels])
    assert model.score(test.images, names[test.labels]) >= CHANCE + MARGIN
    assert os.listdir(tmp_path) == []  # nothing is written that was not asked for
    loaded = GCPLClassifier.load(model.save(tmp_path / "prompts"))
    np.testing.assert_array_equal(*(each.predict_proba(test.images[:10]) for each in (model, loaded)))
