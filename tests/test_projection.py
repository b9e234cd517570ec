import warnings

import numpy as np
import pytest

from gcpl_lab.errors import DataError
from gcpl_lab.views import projection
from gcpl_lab.views.projection import Projection, project, warn_if_flattering


@pytest.fixture(scope="module")
def states() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(24, 6))
    after = before + 1.0
    # The first point did not move.
    after[0] = before[0]
    return {"before": before, "after": after}


def test_pca_is_one_map_for_all_states(states):
    projection = project(states, "pca")
    assert projection.points["before"].shape == (24, 2)
    assert projection.points["before"][0] == pytest.approx(projection.points["after"][0])
    # One linear map: equal moves in the original space are equal moves on the plane.
    moves = (projection.points["after"] - projection.points["before"])[1:]
    assert moves == pytest.approx(np.tile(moves[0], (23, 1)))
    assert "both states together (48 points)" in projection.note
    assert (projection.method, projection.seed) == ("pca", 0)


def test_pca_keeps_a_plane_as_it_is():
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(20, 2))
    basis, _ = np.linalg.qr(rng.normal(size=(5, 2)))
    projection = project(flat @ basis.T, "pca")
    placed = projection.points["all"]
    assert np.linalg.norm(placed[0] - placed[1:], axis=1) == pytest.approx(np.linalg.norm(flat[0] - flat[1:], axis=1))
    assert projection.trustworthiness["all"] == pytest.approx(1)
    assert "100% of the variance" in projection.note


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


@pytest.mark.slow
def test_densmap_and_umap_on_one_state(states):
    assert project(states, "densmap").points["after"].shape == (24, 2)
    assert project(states, "umap", fit_on="before").points["after"].shape == (24, 2)


@pytest.mark.parametrize("method", ["pca", "umap", "tsne"])
def test_very_few_points(method):
    projection = project(np.arange(12.0).reshape(4, 3) ** 2, method)
    assert projection.points["all"].shape == (4, 2)
    assert np.isfinite(projection.points["all"]).all()


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
        (np.zeros((2, 2)), {}, "2 points to fit a map on"),
    ],
)
def test_bad_input_is_named(states, options, message):
    with pytest.raises(DataError, match=message):
        project(states, **options)


def test_flattering_map_is_told_apart_from_an_honest_one():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    mixed = rng.normal(size=(60, 8))
    apart = np.stack([labels * 10.0, np.zeros(60)], axis=1) + rng.normal(size=(60, 2))
    flattering = Projection({"all": apart}, "umap", 0, {"all": 0.5}, "")
    assert "flatters the state 'all'" in str(warn_if_flattering(flattering, mixed, labels))
    assert warn_if_flattering(Projection({"all": apart}, "pca", 0, {"all": 1.0}, ""), apart, labels) is None
    with pytest.raises(DataError, match="there are 3 labels"):
        warn_if_flattering(flattering, mixed, labels[:3])


def test_umap_keeps_what_it_compiles() -> None:
    """Or every notebook and every demonstration would wait for the compiler before its first map."""
    projection._load_umap()
    from umap.umap_ import compute_membership_strengths, smooth_knn_dist

    for function in (smooth_knn_dist, compute_membership_strengths):
        assert function.stats.cache_path is not None
