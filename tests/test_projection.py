import warnings
from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from gcpl_lab.errors import DataError
from gcpl_lab.views.projection import project


@pytest.fixture(scope="module")
def states() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(24, 6))
    moved = np.arange(24)[:, None] > 0  # all but the first
    return {"before": before, "after": before + moved}


def test_pca_is_one_map_for_all_states(states):
    found = project(states, "pca")
    assert found.points["before"].shape == (24, 2)
    # One linear map: equal moves in the original space are equal moves on the plane.
    moves = found.points["after"] - found.points["before"]
    assert moves == pytest.approx(np.array([[0.0, 0.0], *[moves[1]] * 23]))
    assert "both states together (48 points)" in found.note
    assert (found.method, found.seed) == ("pca", 0)


def test_pca_keeps_a_plane_as_it_is():
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(20, 2))
    basis, _ = np.linalg.qr(rng.normal(size=(5, 2)))
    found = project(flat @ basis.T, "pca")
    assert pdist(found.points["all"]) == pytest.approx(pdist(flat))
    assert found.trustworthiness["all"] == pytest.approx(1)
    assert "100% of the variance" in found.note


def test_fit_on_one_state_places_the_others(states):
    whole, alone = project(states, "pca"), project(states, "pca", fit_on="before")
    assert alone.points["before"] == pytest.approx(project(states["before"], "pca").points["all"])
    assert alone.points["before"] != pytest.approx(whole.points["before"])
    assert "'before'" in alone.note


@pytest.mark.parametrize("method", ["umap", "tsne"])
def test_seed_decides_the_map_and_nothing_warns(states, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again, other = (project(states, method, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(first.points["after"], again.points["after"])
    assert first.trustworthiness == again.trustworthiness
    assert 0.5 < first.trustworthiness["before"] <= 1
    if method == "umap":
        assert not np.allclose(first.points["after"], other.points["after"])


def test_aligned_has_a_map_a_state_in_which_a_point_stays_near_itself(states):
    more = {**states, "end": 3 * states["after"]}
    corners = np.eye(6)
    found, again = (project(more, "aligned", seed=4, anchors=corners) for _ in range(2))
    assert list(found.points) == list(more)
    assert {points.shape for points in found.points.values()} == {(24, 2)}
    assert {places.shape for places in found.anchors.values()} == {(6, 2)}
    assert all(np.array_equal(found.points[name], again.points[name]) for name in more)
    # Relations hold each point near itself: without them this would be 1.
    for one, other in pairwise(found.points.values()):
        gaps = np.linalg.norm(one[:, None] - other[None], axis=2)
        assert np.diag(gaps).mean() < 0.8 * gaps.mean()
    assert "a map a state, each point held near itself" in found.note


def test_anchors_are_placed_with_every_state_and_change_no_trustworthiness(states):
    found = project(states, "pca", anchors=states["before"][:2])
    assert set(found.points) == set(found.trustworthiness) == set(states)
    for places in found.anchors.values():
        assert places == pytest.approx(found.points["before"][:2])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"method": "densmap"}, {"fit_on": "before"}])
def test_densmap_and_umap_on_one_state(states, options):
    assert project(states, **options).points["after"].shape == (24, 2)


@pytest.mark.parametrize("method", ["pca", "umap", "tsne"])
def test_very_few_points(method):
    placed = project(np.arange(12.0).reshape(4, 3) ** 2, method).points["all"]
    assert placed.shape == (4, 2)
    assert np.isfinite(placed).all()


def test_one_dimension_and_equal_points():
    assert project(np.arange(5.0)[:, None], "pca").points["all"][:, 1].tolist() == [0] * 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert project(np.ones((5, 3)), "pca").points["all"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("states", "options", "message"),
    [
        ({}, {}, "states is empty"),
        (np.zeros(3), {}, "has shape \\(3,\\)"),
        (np.full((4, 2), np.nan), {}, "not finite"),
        ({"a": np.zeros((4, 2)), "b": np.zeros((4, 3))}, {}, "different dims"),
        (np.zeros((4, 2)), {"method": "mds"}, "'mds' is unknown; expected one of umap"),
        (np.zeros((4, 2)), {"fit_on": "before"}, "fit_on is 'before'"),
        ({"before": np.zeros((4, 2))}, {"method": "tsne", "fit_on": "before"}, "cannot place points after"),
        (np.zeros((30, 2)), {"method": "aligned"}, "aligned needs two or more states"),
        ({"a": np.zeros((30, 2)), "b": np.zeros((31, 2))}, {"method": "aligned"}, "of the same points"),
        ({"a": np.zeros((9, 2)), "b": np.zeros((9, 2))}, {"method": "aligned"}, "at least 21"),
        (np.zeros((2, 2)), {}, "2 points to fit a map on"),
    ],
)
def test_bad_input_is_named(states, options, message):
    with pytest.raises(DataError, match=message):
        project(states, **options)
