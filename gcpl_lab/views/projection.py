"""Points of many dimensions on a plane: one fitted map for all states, with what it may be trusted for.

Maps of states that were fitted apart cannot be compared: each has its own axes. Here all states share one
fit, so a point that did not move stays where it was in PCA, and near it in the others.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.separation import neighbour_correctness

METHODS = ("umap", "densmap", "pca", "tsne")
FLATTERY = 0.1
"""By how much nearest-neighbour accuracy on the map may exceed that in the original space."""


@dataclass(frozen=True)
class Projection:
    """States on one map.

    Attributes:
        points: State name to (point, 2).
        method: ``umap``, ``densmap``, ``pca`` or ``tsne``.
        seed: Of the method's random choices.
        trustworthiness: State name to the share, 0 to 1, of map neighbours that are neighbours in truth
            (NaN below four points).
        note: One sentence for the caption: what was fitted on what.
    """

    points: dict[str, np.ndarray]
    method: str
    seed: int
    trustworthiness: dict[str, float]
    note: str


def _as_states(states: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
    named = dict(states) if isinstance(states, Mapping) else {"all": states}
    if not named:
        raise DataError("states is empty; expected at least one array (point, dim)")
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    for name, values in arrays.items():
        if values.ndim != 2 or 0 in values.shape:
            raise DataError(f"state {name!r} has shape {values.shape}; expected (point, dim), neither of them 0")
        if not np.isfinite(values).all():
            raise DataError(f"state {name!r} holds values that are not finite; leave those points out")
    widths = {name: values.shape[1] for name, values in arrays.items()}
    if len(set(widths.values())) > 1:
        raise DataError(f"the states have different dims {widths}; one map needs points of one space")
    return arrays


def project(
    states: Mapping[str, np.ndarray] | np.ndarray, method: str = "umap", seed: int = 0, fit_on: str = "all"
) -> Projection:
    """Put all states on one plane with one fitted map.

    Args:
        states: State name to (point, dim), dim equal in all; or one array, which becomes the state "all".
        method: ``pca`` (linear, exact, fast), ``umap`` (neighbourhoods), ``densmap`` (UMAP that keeps
            densities) or ``tsne``.
        seed: Of the random choices of UMAP and t-SNE; PCA makes none.
        fit_on: ``"all"`` fits on all states together. A state's name fits on it alone and places the
            others afterwards, which only PCA and UMAP can do.

    Returns:
        The map, with its trustworthiness for each state measured against the original space.

    Raises:
        DataError: Unknown method or state, states of different dims, values that are not finite, fewer than
            three points, or a method that cannot place points after its fit.
    """
    arrays = _as_states(states)
    if method not in METHODS:
        raise DataError(f"projection method {method!r} is unknown; expected one of {', '.join(METHODS)}")
    if fit_on != "all" and fit_on not in arrays:
        raise DataError(f"fit_on is {fit_on!r}; expected 'all' or one of the states {', '.join(arrays)}")
    if fit_on != "all" and method in ("densmap", "tsne"):
        raise DataError(f"{method} cannot place points after its fit; use fit_on='all', or method 'pca' or 'umap'")
    together = np.concatenate(list(arrays.values()))
    base = together if fit_on == "all" else arrays[fit_on]
    if len(base) < 3:
        raise DataError(f"{len(base)} points to fit a map on; expected at least 3")
    placed, remark = _FITS[method](base, together, seed)
    ends = np.cumsum([len(values) for values in arrays.values()])
    points = dict(zip(arrays, np.split(placed, ends[:-1]), strict=True))
    trust = {name: _trustworthiness(arrays[name], points[name]) for name in arrays}
    together_name = {1: "these points", 2: "both states together"}.get(
        len(arrays), f"all {len(arrays)} states together"
    )
    fitted = together_name if fit_on == "all" else f"the state {fit_on!r}"
    note = f"{_TITLES[method]} fitted on {fitted} ({len(base)} points){remark}"
    return Projection(points, method, seed, trust, note)


def _fit_pca(base: np.ndarray, together: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    from sklearn.decomposition import PCA

    # Points that are all in one place have no variance, and scikit-learn divides by it.
    with np.errstate(invalid="ignore"):
        model = PCA(n_components=min(2, *base.shape), svd_solver="full").fit(base)
    placed = model.transform(together)
    if placed.shape[1] < 2:
        placed = np.hstack([placed, np.zeros((len(placed), 1))])
    shares = model.explained_variance_ratio_
    share = float(shares.sum()) if np.isfinite(shares).all() else 1.0
    return placed, f"; two axes hold {share:.0%} of the variance"


@cache
def _load_umap() -> Any:
    """UMAP, which keeps the machine code that it compiles for its first map beside its source, as numba does."""
    with warnings.catch_warnings():
        # umap announces at import that its TensorFlow variant, which is not used here, is missing.
        warnings.simplefilter("ignore", ImportWarning)
        from umap import UMAP
    from numba.core.dispatcher import Dispatcher

    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "umap"]
    for function in {value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)}:
        with suppress(RuntimeError):  # no folder to write to: it is compiled anew, as without this
            function.enable_caching()
    return UMAP


def _fit_umap(base: np.ndarray, together: np.ndarray, seed: int, densmap: bool = False) -> tuple[np.ndarray, str]:
    neighbours = min(15, len(base) - 1)
    options: dict[str, Any] = {
        "n_neighbors": neighbours,
        "random_state": seed,
        # umap warns that a fixed seed forces one thread unless one is what was asked for.
        "n_jobs": 1,
        "densmap": densmap,
        # The spectral start needs clearly more points than axes; below that it warns and gives up.
        "init": "spectral" if len(base) > 20 else "random",
    }
    model = _load_umap()(**options)
    placed = model.fit_transform(base)
    if together is not base:
        placed = model.transform(together)
    return np.asarray(placed, dtype=np.float64), f", {neighbours} neighbours"


def _fit_densmap(base: np.ndarray, together: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    return _fit_umap(base, together, seed, densmap=True)


def _fit_tsne(base: np.ndarray, together: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(base) - 1) / 3)
    start = "pca" if min(base.shape) >= 2 else "random"
    placed = TSNE(perplexity=perplexity, init=start, random_state=seed, n_jobs=1).fit_transform(base)
    return np.asarray(placed, dtype=np.float64), f", perplexity {perplexity:.0f}"


_FITS: dict[str, Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, str]]] = {
    "umap": _fit_umap,
    "densmap": _fit_densmap,
    "pca": _fit_pca,
    "tsne": _fit_tsne,
}
_TITLES = {"umap": "UMAP", "densmap": "densMAP", "pca": "PCA", "tsne": "t-SNE"}


def _trustworthiness(original: np.ndarray, placed: np.ndarray) -> float:
    from sklearn.manifold import trustworthiness

    # scikit-learn needs fewer neighbours than half the points.
    neighbours = min(10, (len(original) - 1) // 2)
    if len(original) < 4 or neighbours < 1:
        return math.nan
    return float(trustworthiness(original, placed, n_neighbors=neighbours))


def warn_if_flattering(
    projection: Projection, states: Mapping[str, np.ndarray] | np.ndarray, labels: np.ndarray
) -> str | None:
    """Say so where the picture shows classes further apart than they are.

    Args:
        projection: Made from ``states``.
        states: As given to ``project``.
        labels: (point,), the classes, the same for every state.

    Returns:
        A sentence for each state whose nearest-neighbour accuracy on the map exceeds the one in the original
        space by more than 0.1, or None where the map is honest in this sense.
    """
    labels = np.asarray(labels)
    sentences = []
    for name, original in _as_states(states).items():
        if labels.shape != (len(original),) or len(projection.points[name]) != len(original):
            raise DataError(
                f"state {name!r} has {len(original)} points, the map {len(projection.points[name])} and there are "
                f"{labels.size} labels; expected as many of each"
            )
        truth = float(np.nanmean(neighbour_correctness(original, labels)))
        shown = float(np.nanmean(neighbour_correctness(projection.points[name], labels)))
        if shown - truth > FLATTERY:
            sentences.append(
                f"The map flatters the state {name!r}: a point's nearest neighbour has its class in {shown:.0%} of "
                f"cases on the map, and in {truth:.0%} in the original space."
            )
    return " ".join(sentences) or None
