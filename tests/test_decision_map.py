"""The decision map: marks lie in the sector that the scores say, on one stated scale, with counts under each map."""

import numpy as np
import pytest
from matplotlib.patches import Wedge

from gcpl_lab.errors import DataError
from gcpl_lab.views import style
from gcpl_lab.views.decision_map import decision_map, decision_maps, map_reach

NAMES = ["sandal", "sneaker", "сапог"]
RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2], 20)


def scores_of(lead: float) -> np.ndarray:
    return np.eye(3)[LABELS] * lead + RNG.normal(0, 0.02, (60, 3))


def test_every_mark_lies_in_the_sector_of_its_decision():
    scores = scores_of(0.02)
    with style.figure_style():
        ax = decision_map(style.new_figure(4, 5).subplots(), scores, LABELS, NAMES)
    drawn, inside = 0, 0
    wedges = [patch for patch in ax.patches if isinstance(patch, Wedge)]
    decided = scores.argmax(axis=1)
    counts = np.zeros(3, int)
    for marks in ax.collections:
        for point in np.asarray(marks.get_offsets()):
            sector = [wedge.contains_point(ax.transData.transform(point)) for wedge in wedges]
            drawn, inside = drawn + 1, inside + sum(sector)
            counts += sector
    assert drawn == inside == 60
    np.testing.assert_array_equal(counts, np.bincount(decided, minlength=3))


def test_names_and_learned_prompts_share_a_scale_and_the_share_stands_under_each():
    weak, strong = scores_of(0.02), scores_of(0.3)
    figure = decision_maps({"names": weak, "GCPL": strong, "shuffled": weak}, LABELS, NAMES, controls=["shuffled"])
    reach = [
        max(np.linalg.norm(np.concatenate([m.get_offsets() for m in ax.collections]), axis=1)) for ax in figure.axes
    ]
    assert reach[1] == pytest.approx(1 / np.sqrt(1.04), abs=1e-6)
    wanted = np.sqrt(map_reach([weak]) / map_reach([strong])) / np.sqrt(1.04)
    assert reach[0] == reach[2] == pytest.approx(wanted, abs=1e-6)
    for ax, scores in zip(figure.axes, (weak, strong, weak), strict=True):
        right = int((scores.argmax(axis=1) == LABELS).sum())
        texts = [text.get_text() for text in ax.texts]
        assert f"{right / 60:.0%}" in texts
        assert any(text.endswith(f"{right} of 60") for text in texts)
    own = decision_maps({"names": weak, "GCPL": strong}, LABELS, NAMES, own_scale=True)
    assert all(np.abs(ax.collections[0].get_offsets()).max() > 0.3 for ax in own.axes)


def test_a_map_needs_three_classes_and_fitting_labels():
    with style.figure_style():
        ax = style.new_figure(4, 5).subplots()
        with pytest.raises(DataError, match="expected"):
            decision_map(ax, np.zeros((2, 2)), np.array([0, 1]), ["a", "b"])
        with pytest.raises(DataError, match="labels must be integers from 0 to 2"):
            decision_map(ax, np.zeros((1, 3)), np.array([3]), NAMES)
