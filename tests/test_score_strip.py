"""Maps of probabilities: one fit, figures from the mapped space that move with learning, and honest names."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import silhouette_score

from gcpl_lab.errors import DataError
from gcpl_lab.views.score_strip import SHARPNESS, fit_score_map, score_strip

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(4), 10)
NAMES = ["shirt", "coat", "$bag$", "сапог"]


def scores(lead):
    return np.eye(4)[LABELS] * lead + RNG.normal(0, 0.02, (40, 4))


STATES = {"class names": scores(0.01), "step 8": scores(0.1), "Control": scores(0.0)}


def test_all_states_and_the_classes_share_one_map_and_figures_are_of_the_probabilities():
    found = fit_score_map(STATES, LABELS, NAMES, "pca")
    assert set(found.projection.points) == set(STATES)
    assert found.projection.anchors["Control"].shape == (4, 2)
    chances = softmax(SHARPNESS * STATES["step 8"], axis=1)
    np.testing.assert_allclose(found.probabilities["step 8"], chances)
    assert f"silhouette {silhouette_score(chances, LABELS):.2f}" in found.describe("step 8")
    right = int((STATES["step 8"].argmax(axis=1) == LABELS).sum())
    assert found.describe("step 8")[0].startswith(f"{right / 40:.0%} in own sector")
    # An image that is surely of a class lies on its place.
    sure = fit_score_map({"sure": np.eye(4) * 99, "spread": scores(0.1)[:4]}, np.arange(4), NAMES, "pca")
    np.testing.assert_allclose(sure.projection.points["sure"], sure.projection.anchors["spread"], atol=1e-6)


def test_learning_moves_the_figures_and_a_control_does_not():
    found = fit_score_map(STATES, LABELS, NAMES, "pca")
    silhouettes = [float(found.describe(state)[1].split()[1].replace("\N{MINUS SIGN}", "-")) for state in STATES]
    assert silhouettes[1] > silhouettes[0] + 0.3 > silhouettes[2]


def test_a_strip_has_a_map_a_state_with_its_figures():
    figure = score_strip(fit_score_map(STATES, LABELS, NAMES, "pca"), controls=["Control"])
    assert [ax.get_title(loc="center") for ax in figure.axes] == list(STATES)
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}) == 1
    figure.draw_without_rendering()


def test_states_must_fit():
    with pytest.raises(DataError, match=r"scores of 'a' has shape \(2, 4\); expected \(40, 4\)"):
        fit_score_map({"a": np.zeros((2, 4))}, LABELS, NAMES)


def test_where_one_fit_is_too_stiff_the_map_is_aligned_and_says_so():
    rough = {name: RNG.normal(0, 0.05, (60, 6)) for name in ("class names", "step 8", "step 240")}
    labels, names = np.repeat(np.arange(6), 10), list("abcdef")
    found = fit_score_map(rough, labels, names)
    assert found.projection.method == "aligned"
    assert "one fit for all was too stiff: trustworthiness 0." in score_strip(found).get_supxlabel().replace("\n", " ")
    assert fit_score_map({name: np.eye(6)[labels] * 0.05 + part / 9 for name, part in rough.items()}, labels, names)
