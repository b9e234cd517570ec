"""Points of many dimensions on a plane: one fitted map for all states, with what it may be trusted for.

Maps of states that were fitted apart cannot be compared: each has its own axes. Here all states share one
fit, so a point that did not move stays where it was in PCA, and near it in the others.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness

from gcpl_lab.errors import DataError
from gcpl_lab.global_state import global_state_kept
from gcpl_lab.views.panels import check_shape

METHODS = {"umap": "UMAP", "densmap": "densMAP", "pca": "PCA", "tsne": "t-SNE"}


@dataclass(frozen=True)
class Projection:
    """States on one map."""

    points: dict[str, np.ndarray]  # state name to (point, 2)
    method: str  # one of METHODS
    seed: int
    trustworthiness: dict[str, float]  # state name to the share, 0 to 1, of map neighbours that are neighbours in truth
    note: str  # one sentence for the caption: what was fitted on what

    def describe(self) -> str:
        """What one should know of the map, for under it."""
        trust = ", ".join(f"{name} {value:.2f}" for name, value in self.trustworthiness.items())
        return f"{self.note}; seed {self.seed}; trustworthiness of the map: {trust}."


def _as_states(states: Mapping[str, np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
    named = dict(states) if isinstance(states, Mapping) else {"all": states}
    if not named:
        raise DataError("states is empty; expected at least one array (point, dim)")
    arrays = {name: check_shape(f"state {name!r}", values, "point", "dim") for name, values in named.items()}
    for name, values in arrays.items():
        if not np.isfinite(values).all():
            raise DataError(f"state {name!r} holds values that are not finite; leave those points out")
    widths = {name: values.shape[1] for name, values in arrays.items()}
    if len(set(widths.values())) > 1:
        raise DataError(f"the states have different dims {widths}; one map needs points of one space")
    return arrays


def project(
    states: Mapping[str, np.ndarray] | np.ndarray, method: str = "umap", seed: int = 0, fit_on: str = "all"
) -> Projection:
    """Put all states on one plane with one fitted map, with its trustworthiness for each state.

    Args:
        states: State name to (point, dim), dim equal in all; or one array, which becomes the state "all".
        method: ``pca`` (linear, exact, fast), ``umap`` (neighbourhoods), ``densmap`` (UMAP that keeps
            densities) or ``tsne``.
        seed: Of the random choices of UMAP and t-SNE; PCA makes none.
        fit_on: ``"all"`` fits on all states together. A state's name fits on it alone and places the
            others afterwards, which only PCA and UMAP can do.
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
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}; expected 0 to {2**32 - 1}")
    if len(base) < 3:
        raise DataError(f"{len(base)} points to fit a map on; expected at least 3")
    with global_state_kept():
        placed, remark = _place(method, base, together, seed)
    ends = np.cumsum([len(values) for values in arrays.values()])
    points = dict(zip(arrays, np.split(np.asarray(placed, dtype=float), ends[:-1]), strict=True))
    trust = {name: _trustworthiness(arrays[name], points[name]) for name in arrays}
    everything = {1: "these points", 2: "both states together"}.get(len(arrays), f"all {len(arrays)} states together")
    fitted = everything if fit_on == "all" else f"the state {fit_on!r}"
    return Projection(points, method, seed, trust, f"{METHODS[method]} fitted on {fitted} ({len(base)} points){remark}")


def _place(method: str, base: np.ndarray, together: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """The points ``together`` on the map that is fitted on ``base``, and what its caption adds."""
    if method == "pca":
        # Points that are all in one place have no variance, and scikit-learn divides by it.
        with np.errstate(invalid="ignore"):
            model = PCA(n_components=min(2, *base.shape), svd_solver="full").fit(base)
        placed, share = model.transform(together), np.nan_to_num(model.explained_variance_ratio_.sum(), nan=1.0)
        return np.pad(placed, ((0, 0), (0, 2 - placed.shape[1]))), f"; two axes hold {share:.0%} of the variance"
    if method == "tsne":
        perplexity, start = min(30.0, (len(base) - 1) / 3), "pca" if _has_two_axes(base) else "random"
        placed = TSNE(perplexity=perplexity, init=start, random_state=seed, n_jobs=1).fit_transform(base)
        return placed, f", perplexity {perplexity:.0f}"
    neighbours = min(15, len(base) - 1)
    # The spectral start needs clearly more points than axes; below that it warns and gives up. A fixed seed forces
    # one thread, and umap warns unless one is what was asked for.
    start = "spectral" if len(base) > 20 else "random"
    options = {"n_neighbors": neighbours, "random_state": seed, "n_jobs": 1, "init": start}
    umap = _load_umap()(densmap=method == "densmap", **options)
    placed = umap.fit_transform(base)
    return placed if together is base else umap.transform(together), f", {neighbours} neighbours"


def _has_two_axes(points: np.ndarray) -> bool:
    """Whether t-SNE can start from two principal components; without any spread its start ends the process."""
    spread = np.linalg.svd((points - points.mean(axis=0)).astype(np.float32), compute_uv=False)
    return len(spread) > 1 and bool(spread[1] > 1e-6 * max(1.0, float(np.abs(points).max())))


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


def _trustworthiness(original: np.ndarray, placed: np.ndarray) -> float:
    # scikit-learn needs fewer neighbours than half the points.
    neighbours = min(10, (len(original) - 1) // 2)
    return float(trustworthiness(original, placed, n_neighbors=neighbours)) if len(original) >= 4 else math.nan
