"""Points of many dimensions on a plane: one map for all states, with what it may be trusted for.

Maps of states that were fitted apart cannot be compared: each has its own axes. Here all states share one
fit, so a point that did not move stays where it was in PCA, and near it in the others. Where one fit is too stiff for
states that differ much, AlignedUMAP gives each a map of its own and holds every point near itself in the next.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness

from gcpl_lab.errors import DataError
from gcpl_lab.global_state import global_state_kept
from gcpl_lab.views.panels import check_shape

METHODS = {"umap": "UMAP", "aligned": "AlignedUMAP", "densmap": "densMAP", "pca": "PCA", "tsne": "t-SNE"}

LEAST_ALIGNED = 21
"""Points of a state: AlignedUMAP knows the spectral start alone, which needs clearly more points than axes."""


@dataclass(frozen=True)
class Projection:
    """States on one map."""

    points: dict[str, np.ndarray]  # state name to (point, 2)
    method: str  # one of METHODS
    seed: int
    trustworthiness: dict[str, float]  # state name to the share, 0 to 1, of map neighbours that are neighbours in truth
    note: str  # one sentence for the caption: what was fitted on what
    anchors: dict[str, np.ndarray] = field(default_factory=dict)  # state name to (anchor, 2) on its map

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
    states: Mapping[str, np.ndarray] | np.ndarray,
    method: str = "umap",
    seed: int = 0,
    fit_on: str = "all",
    anchors: np.ndarray | None = None,
) -> Projection:
    """Put all states on one plane, with the trustworthiness of the map for each state.

    Args:
        states: State name to (point, dim), dim equal in all; or one array, which becomes the state "all".
        method: ``pca`` (linear, exact, fast), ``umap`` (neighbourhoods), ``densmap`` (UMAP that keeps
            densities), ``tsne``, or ``aligned`` (a UMAP a state, each point held near itself in the next state,
            for two or more states of the same points).
        seed: Of the random choices of UMAP and t-SNE; PCA makes none.
        fit_on: ``"all"`` fits on all states together. A state's name fits on it alone and places the
            others afterwards, which only PCA and UMAP can do.
        anchors: (anchor, dim), points that belong to every state and are placed with it.

    Raises:
        DataError: States, seed or method do not fit.

    Source: McInnes et al. 2018, arXiv 1802.03426 (UMAP); AlignedUMAP is of the same authors' package
    """
    arrays = _as_states(states)
    _check_choice(arrays, method, seed, fit_on)
    beside = np.zeros((0, next(iter(arrays.values())).shape[1])) if anchors is None else np.asarray(anchors, float)
    with global_state_kept():
        if method == "aligned":
            parts = {name: np.concatenate([values, beside]) for name, values in arrays.items()}
            placed, remark = _align(list(parts.values()), seed)
        else:
            parts = arrays | {"": beside}  # anchors that all states share
            base = np.concatenate(list(parts.values())) if fit_on == "all" else arrays[fit_on]
            placed, remark = _place(method, base, np.concatenate(list(parts.values())), fit_on == "all", seed)
    ends = np.cumsum([len(values) for values in parts.values()])
    split = dict(zip(parts, np.split(np.asarray(placed, dtype=float), ends[:-1]), strict=True))
    points = {name: split[name][: len(values)] for name, values in arrays.items()}
    shared = {name: split[name][len(points[name]) :] if method == "aligned" else split[""] for name in arrays}
    trust = {name: _trustworthiness(arrays[name], points[name]) for name in arrays}
    everything = {1: "these points", 2: "both states together"}.get(len(arrays), f"all {len(arrays)} states together")
    fitted = everything if fit_on == "all" else f"the state {fit_on!r}"
    count = sum(map(len, parts.values())) if fit_on == "all" else len(arrays[fit_on])
    note = f"{METHODS[method]} fitted on {fitted} ({count} points){remark}"
    return Projection(points, method, seed, trust, note, shared)


def _check_choice(arrays: Mapping[str, np.ndarray], method: str, seed: int, fit_on: str) -> None:
    """Refuse what the method cannot do with these states."""
    if method not in METHODS:
        raise DataError(f"projection method {method!r} is unknown; expected one of {', '.join(METHODS)}")
    if fit_on != "all" and fit_on not in arrays:
        raise DataError(f"fit_on is {fit_on!r}; expected 'all' or one of the states {', '.join(arrays)}")
    if fit_on != "all" and method not in ("pca", "umap"):
        raise DataError(f"{method} cannot place points after its fit; use fit_on='all', or method 'pca' or 'umap'")
    if not 0 <= seed < 2**32:
        raise DataError(f"seed is {seed}; expected 0 to {2**32 - 1}")
    sizes = {name: len(values) for name, values in arrays.items()}
    if sum(sizes.values() if fit_on == "all" else [sizes[fit_on]]) < 3:
        raise DataError(f"{sum(sizes.values())} points to fit a map on; expected at least 3")
    same = len(set(sizes.values())) == 1
    if method == "aligned" and (len(sizes) < 2 or not same or min(sizes.values()) < LEAST_ALIGNED):
        expected = f"two or more states of the same points, at least {LEAST_ALIGNED}; use method 'umap'"
        raise DataError(f"states have {sizes} points; aligned needs {expected}")


def _place(method: str, base: np.ndarray, together: np.ndarray, whole: bool, seed: int) -> tuple[np.ndarray, str]:
    """The points ``together`` on the map fitted on ``base``, the ``whole`` or a part, and what its caption adds."""
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
    umap = _load_umap().UMAP(densmap=method == "densmap", **options)
    placed = umap.fit_transform(base)
    return placed if whole else umap.transform(together), f", {neighbours} neighbours"


def _align(parts: list[np.ndarray], seed: int) -> tuple[np.ndarray, str]:
    """A map a state, one under the other, and what its caption adds: point by point near the states beside."""
    same = [{place: place for place in range(len(parts[0]))}] * (len(parts) - 1)
    with warnings.catch_warnings():
        # It has no setting for threads, and warns that with a seed it uses the one that it would have used.
        warnings.filterwarnings("ignore", "n_jobs value")
        fitted = _load_umap().AlignedUMAP(n_neighbors=15, random_state=seed).fit(parts, relations=same)
    placed = np.concatenate([np.asarray(values) for values in fitted.embeddings_])
    if not np.isfinite(placed).all():
        raise DataError("aligned leaves points without neighbours out; use method 'umap' or 'pca'")
    return placed, ", a map a state, each point held near itself in the next, 15 neighbours"


def _has_two_axes(points: np.ndarray) -> bool:
    """Whether t-SNE can start from two principal components; without any spread its start ends the process."""
    spread = np.linalg.svd((points - points.mean(axis=0)).astype(np.float32), compute_uv=False)
    return len(spread) > 1 and bool(spread[1] > 1e-6 * max(1.0, float(np.abs(points).max())))


@cache
def _load_umap() -> Any:
    """The umap package, which keeps the machine code that it compiles for its first map beside its source."""
    with warnings.catch_warnings():
        # umap announces at import that its TensorFlow variant, which is not used here, is missing.
        warnings.simplefilter("ignore", ImportWarning)
        import umap
    from numba.core.dispatcher import Dispatcher

    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "umap"]
    for function in {value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)}:
        with suppress(RuntimeError):  # no folder to write to: it is compiled anew, as without this
            function.enable_caching()
    return umap


def _trustworthiness(original: np.ndarray, placed: np.ndarray) -> float:
    # scikit-learn needs fewer neighbours than half the points.
    neighbours = min(10, (len(original) - 1) // 2)
    return float(trustworthiness(original, placed, n_neighbors=neighbours)) if len(original) >= 4 else math.nan
