"""Deciding between classes sample by sample: which (t, ε) to look at, whom to drop, when to stop.

All of it is arithmetic on errors; where they come from is the caller's business. A :class:`Plan` is learned from
labelled support images by cross-validation, and :func:`race` follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from gcpl_lab.data.episodes import cross_validation_folds
from gcpl_lab.fast.joined import JoinedEvidence, fit_joined, log_sum_exp
from gcpl_lab.fast.probes import Probes, learn_probes, order_probes
from gcpl_lab.gcpl.classifier import fit_temperature

Stopping = Literal["none", "posterior", "e_process", "empirical_bernstein"]

Ask = Callable[[np.ndarray], np.ndarray]
"""Errors of (image, class, step) triples, int64 (count, 3)."""

MARGINS = np.geomspace(0.05, 20.0, 60)
"""Leads in logits that are tried as the lead at which a rival is dropped."""

BETS = (0.1, 0.2, 0.4, 0.8)
"""Shares of the capital that the e-process stakes; their mean is bet."""

NUM_PROBES = (4, 8, 16, 32)
"""Numbers of probes that are tried, where there are more classes."""


class PromptTree(NamedTuple):
    """Branches of look-alike prompts.

    Attributes:
        branches: int64 (class,), 0 to branches − 1.
        distances: float64 (class,), from the mean of the branch; the nearest speaks for it.
    """

    branches: np.ndarray
    distances: np.ndarray

    def best_of(self, logits: np.ndarray) -> np.ndarray:
        """The largest logit on each branch, (image, branch)."""
        return np.stack(
            [logits[:, self.branches == branch].max(axis=1) for branch in range(self.branches.max() + 1)], 1
        )


@dataclass(frozen=True)
class Plan:
    """What a race does, learned from support images.

    Attributes:
        samples: int64 (step,): which of the pool's (t, ε) each step looks at.
        scales: (step,): spread of the errors there; an error is divided by it, so that all steps count alike.
        fits: How the mean scaled error after 1, 2, … steps (and what is known beside it) becomes logits.
        prior_fit: How the prior alone does; None without a prior.
        stopping: ``"none"``, ``"posterior"``, ``"e_process"`` or ``"empirical_bernstein"``.
        error_rate: Of the stopping rule.
        margin: Lead in logits at which the posterior rule drops a rival.
        bound: Largest scaled paired difference on the support images; the e-process bets on shares of it, and the
            empirical Bernstein bound takes twice it as the range.
        shortlist_margin: Classes this far behind in the prior's logits are never evaluated; inf keeps all.
        tree: Branches of classes; None without a tree.
        tree_steps: Steps that the branches' representatives are judged by.
        tree_margin: Branches this far behind the best are not opened.
        probes: Prompts whose errors at the first step foretell all others; None without them.
        probe_margin: Classes that are foretold this far behind the best are not looked at.
        temperature: Factor on the logits in the end: they are worth more or less than their fits say, as an image
            stops where its lead happens to be large.
        measured: Shares and means that cross-validation measured on the support images.
    """

    samples: np.ndarray
    scales: np.ndarray
    fits: tuple[JoinedEvidence, ...]
    prior_fit: JoinedEvidence | None
    stopping: Stopping
    error_rate: float
    margin: float
    bound: float
    shortlist_margin: float
    tree: PromptTree | None
    tree_steps: int
    tree_margin: float
    probes: Probes | None
    probe_margin: float
    temperature: float
    measured: dict[str, float]

    def prior_logits(self, prior: np.ndarray | None, shape: Sequence[int]) -> np.ndarray:
        """Before anything was looked at, (image, class) of that shape: of the prior, or zeros."""
        if self.prior_fit is None or prior is None:
            return np.zeros(tuple(shape))
        return self.prior_fit.logits([prior])

    def known(self, errors: np.ndarray, prior: np.ndarray | None) -> list[np.ndarray]:
        """What counts beside a class's own errors: what probes foretell, where there are any, and the prior.

        Args:
            errors: (image, class, step); those of the probes at the first step are read. Of an image that was not
                probed nothing is foretold: zeros.
            prior: (image, class).
        """
        sources = [] if prior is None else [prior]
        if self.probes is None:
            return sources
        foretold = self.probes.foretell(errors[:, self.probes.classes, 0] / self.scales[0])
        return [np.nan_to_num(foretold), *sources]

    def logits(self, errors: np.ndarray, known: Sequence[np.ndarray], num_steps: int) -> np.ndarray:
        """After the first steps.

        Args:
            errors: (image, class, step); NaN where a class was not evaluated.
            known: See :meth:`known`.
            num_steps: How many count; 0: what is known is all.

        Returns:
            (image, class), NaN where a class was not evaluated that often.
        """
        if num_steps == 0:
            if self.probes is not None:
                return self.probes.fit.logits(known)
            return self.prior_logits(known[0] if known else None, errors.shape[:2])
        source = -(errors[:, :, :num_steps] / self.scales[:num_steps]).mean(axis=2, dtype=np.float64)
        seen = ~np.isnan(source)
        return np.where(seen, self.fits[num_steps - 1].logits([np.where(seen, source, 0.0), *known]), np.nan)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, which has no infinity: a margin that drops nobody is None."""
        return {
            **{name: getattr(self, name) for name in ("stopping", "error_rate", "bound", "tree_steps", "temperature")},
            **{name: _finite(getattr(self, name)) for name in _MARGINS},
            "samples": self.samples.tolist(),
            "scales": self.scales.tolist(),
            "fits": [fit.as_dict() for fit in self.fits],
            "prior_fit": None if self.prior_fit is None else self.prior_fit.as_dict(),
            "tree": self.tree and {name: part.tolist() for name, part in self.tree._asdict().items()},
            "probes": self.probes and self.probes.as_dict(),
            "measured": {name: _finite(value) for name, value in self.measured.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], num_classes: int, pool_size: int) -> Plan:
        """Back from JSON.

        Args:
            values: Of :meth:`as_dict`.
            num_classes: That the prompts are for.
            pool_size: (t, ε) that the samples are chosen from.

        Raises:
            KeyError, TypeError, ValueError: Something is missing or does not fit, naming it.
        """
        samples, scales = np.asarray(values["samples"], np.int64), np.asarray(values["scales"], float)
        if (
            not len(samples)
            or samples.min() < 0
            or samples.max() >= pool_size
            or len(np.unique(samples)) < len(samples)
        ):
            raise ValueError(
                f"the plan's samples are {samples.tolist()}; expected different ones of 0 to {pool_size - 1}"
            )
        if len(scales) != len(samples) or not (scales > 0).all():
            raise ValueError(f"the plan's scales are {scales.tolist()}; expected {len(samples)} numbers above 0")
        if values["stopping"] not in get_args(Stopping):
            raise ValueError(f"the plan's stopping is {values['stopping']!r}; expected one of {get_args(Stopping)}")
        prior_fit = None if values["prior_fit"] is None else JoinedEvidence.from_dict(values["prior_fit"])
        probes, num_known = None, 0 if prior_fit is None else 1
        if values["probes"] is not None:
            num_known += 1
            probes = Probes.from_dict(values["probes"], num_classes, num_known)
        fits = tuple(map(JoinedEvidence.from_dict, values["fits"]))
        if len(fits) != len(samples):
            raise ValueError(f"the plan has {len(fits)} fits; expected one for each of its {len(samples)} samples")
        for fit, wanted in [*((fit, 1 + num_known) for fit in fits), *([(prior_fit, 1)] if prior_fit else [])]:
            if fit.weights.shape != (wanted,) or fit.offsets.shape != (num_classes,):
                raise ValueError(
                    f"a fit of the plan has {fit.weights.size} weights and {fit.offsets.size} offsets; "
                    f"expected {wanted} and {num_classes}"
                )
        tree = None
        if values["tree"] is not None:
            tree = PromptTree(np.asarray(values["tree"]["branches"], np.int64), np.asarray(values["tree"]["distances"]))
            if any(part.shape != (num_classes,) for part in tree):
                raise ValueError(f"the plan's tree has {len(tree.branches)} classes; expected {num_classes}")
        margins = {name: np.inf if values[name] is None else float(values[name]) for name in _MARGINS}
        return cls(
            samples=samples,
            scales=scales,
            fits=fits,
            prior_fit=prior_fit,
            stopping=values["stopping"],
            error_rate=float(values["error_rate"]),
            bound=float(values["bound"]),
            tree=tree,
            probes=probes,
            tree_steps=int(values["tree_steps"]),
            temperature=float(values["temperature"]),
            measured=dict(values["measured"]),
            **margins,
        )


_MARGINS = ("margin", "shortlist_margin", "tree_margin", "probe_margin")


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


@dataclass(frozen=True)
class Outcome:
    """How a race went.

    Attributes:
        errors: float32 (image, class, step), NaN where nothing was evaluated.
        logits: float64 (image, class); a class that was dropped stands as far behind the winner as it was then.
        num_pairs: (Row, prompt) pairs that were asked for.
        num_rows: Different (image, step) among them, counted anew in each round.
    """

    errors: np.ndarray
    logits: np.ndarray
    num_pairs: int
    num_rows: int


# ------------------------------------------------------------------------------------------------- racing


def race(ask: Ask, plan: Plan, num_images: int, num_classes: int, prior: np.ndarray | None = None) -> Outcome:
    """Follow a plan: all images step by step together, each with the classes that are still in.

    Args:
        ask: Answers with the errors of triples.
        plan: See :func:`learn_plan`.
        num_images: How many.
        num_classes: How many prompts.
        prior: (image, class), such as CLIP's log-probabilities; needed if the plan was learned with one.
    """
    if (prior is None) != (plan.prior_fit is None):
        raise ValueError(f"prior is {'missing' if prior is None else 'given'}; the plan was learned the other way")
    run = _Run(ask, np.full((num_images, num_classes, len(plan.samples)), np.nan, np.float32))
    logits = plan.prior_logits(prior, (num_images, num_classes))
    active = shortlisted(logits, plan.shortlist_margin)
    behind = np.where(active, 0.0, logits - logits.max(axis=1, keepdims=True))  # of those dropped, when they were
    if plan.probes is not None:
        active = _foretold(run, plan, prior, active, behind)
    known = plan.known(run.errors, prior)
    if plan.tree is not None:
        active = _opened(run, plan, known, active, behind)
    logits = np.where(active, logits, -np.inf)
    for step in range(len(plan.samples)):
        running = active & (active.sum(axis=1, keepdims=True) > 1)
        if not running.any():
            break
        run.evaluate(running, step + 1)
        found = plan.logits(run.errors, known, step + 1)
        logits = np.where(running, found, logits)
        dropped = _dropped(plan, run.errors, np.where(running, found, -np.inf), step + 1) & running
        lead = np.where(active, logits, -np.inf).max(axis=1, keepdims=True)
        behind = np.where(dropped, logits - lead, behind)
        active &= ~dropped
    best = np.where(active, logits, -np.inf).max(axis=1, keepdims=True)
    final = np.where(active, logits, best + np.minimum(behind, 0.0))
    return Outcome(run.errors, plan.temperature * final, run.num_pairs, run.num_rows)


class _Run:
    """The errors seen so far, and what they cost."""

    def __init__(self, ask: Ask, errors: np.ndarray) -> None:
        self.ask, self.errors, self.num_pairs, self.num_rows = ask, errors, 0, 0

    def evaluate(self, wanted: np.ndarray, until: int) -> None:
        """Fill in what is missing of the first steps for the classes that are wanted, (image, class)."""
        missing = np.isnan(self.errors[:, :, :until]) & wanted[:, :, None]
        triples = np.argwhere(missing)
        if len(triples):
            self.errors[tuple(triples.T)] = self.ask(triples)
            self.num_pairs += len(triples)
            self.num_rows += int(missing.any(axis=1).sum())


def shortlisted(logits: np.ndarray, margin: float) -> np.ndarray:
    """Which classes (image, class) are at most ``margin`` behind the best."""
    result: np.ndarray = logits >= np.nanmax(logits, axis=1, keepdims=True) - margin
    return result


def _opened(run: _Run, plan: Plan, known: Sequence[np.ndarray], active: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Judge the branches of the tree by their representatives, and keep the classes on the best ones."""
    assert plan.tree is not None
    chosen = representatives(plan.tree, active)
    several = active.sum(axis=1, keepdims=True) > 1
    run.evaluate(chosen & several, plan.tree_steps)
    found = plan.logits(run.errors, known, plan.tree_steps)
    of_branch = plan.tree.best_of(np.where(chosen & several, found, -np.inf))
    kept = shortlisted(of_branch, plan.tree_margin)[:, plan.tree.branches] | ~several
    closed = active & ~kept
    with np.errstate(invalid="ignore"):  # of images with nothing to judge; none of their branches is closed
        lost = of_branch - of_branch.max(axis=1, keepdims=True)
    behind[closed] = lost[:, plan.tree.branches][closed]
    result: np.ndarray = active & kept
    return result


def representatives(tree: PromptTree, candidates: np.ndarray) -> np.ndarray:
    """The candidate nearest to the middle of each branch, as a mask (image, class); candidates: bool (image, class)."""
    chosen = np.zeros_like(candidates)
    for branch in np.unique(tree.branches):
        members = np.flatnonzero(tree.branches == branch)
        members = members[np.argsort(tree.distances[members], kind="stable")]
        inside = candidates[:, members]
        images = np.flatnonzero(inside.any(axis=1))
        chosen[images, members[inside[images].argmax(axis=1)]] = True
    return chosen


def _foretold(run: _Run, plan: Plan, prior: np.ndarray | None, active: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Look at the probes, wherever several classes are left, and keep those that they do not rule out."""
    assert plan.probes is not None
    several = active.sum(axis=1, keepdims=True) > 1
    looked = np.zeros_like(active)
    looked[:, plan.probes.classes] = True
    run.evaluate(looked & several, 1)
    found = np.where(active, plan.logits(run.errors, plan.known(run.errors, prior), 0), -np.inf)
    kept = shortlisted(found, plan.probe_margin) | ~several
    closed = active & ~kept
    behind[closed] = (found - found.max(axis=1, keepdims=True))[closed]
    result: np.ndarray = active & kept
    return result


def _dropped(plan: Plan, errors: np.ndarray, logits: np.ndarray, num_steps: int) -> np.ndarray:
    if plan.stopping == "none":
        return np.zeros(logits.shape, bool)
    if plan.stopping == "posterior":
        return ~(logits >= logits.max(axis=1, keepdims=True) - plan.margin)
    leaders = logits.argmax(axis=1)
    seen = errors[:, :, :num_steps] / plan.scales[:num_steps]
    differences = seen - seen[np.arange(len(seen)), leaders][:, None]
    # The leader was found by looking, so the error rate is shared by all its rivals.
    share = plan.error_rate / max(1, logits.shape[1] - 1)
    if plan.stopping == "e_process":
        return capital(differences, plan.bound) >= 1 / share
    return lower_bound(differences, plan.bound, share) > 0


def capital(differences: np.ndarray, bound: float) -> np.ndarray:
    """What a gambler has who bet that the leader's error is smaller; an e-process if it is not.

    If the mean difference is 0 or less whatever has been seen, the capital is a supermartingale that starts at 1,
    so it ever reaches 1/α with probability α at most. That needs (t, ε) drawn independently and differences within
    the bound; for samples chosen to be telling it is a rule of thumb whose errors are measured.

    Args:
        differences: (image, class, step): a rival's error minus the leader's; NaN counts as no difference.
        bound: Largest difference; larger ones are cut to it.

    Returns:
        (image, class).

    Source: Ville 1939; Waudby-Smith and Ramdas 2023, https://arxiv.org/abs/2010.09686
    """
    shares = np.clip(np.nan_to_num(differences) / bound, -1.0, 1.0)
    return np.mean([np.prod(1 + bet * shares, axis=-1) for bet in BETS], axis=0)


def lower_bound(differences: np.ndarray, bound: float, error_rate: float) -> np.ndarray:
    """What the mean difference exceeds, at every step at once with probability 1 − ``error_rate`` at least.

    The empirical Bernstein bound with the error rate shared out over the steps (1 / (n(n+1)) of it to step n). It
    needs what :func:`capital` needs. Its second term shrinks with the number of steps and not with the spread, so
    that it decides nothing within a few steps.

    Args:
        differences: (image, class, step): a rival's error minus the leader's; NaN counts as no difference.
        bound: Largest difference; larger ones are cut to it.
        error_rate: Between 0 and 1.

    Returns:
        (image, class); −inf after a single step.

    Source: Maurer and Pontil 2009, https://arxiv.org/abs/0907.3740, theorem 4
    """
    steps = differences.shape[-1]
    if steps < 2:
        return np.full(differences.shape[:-1], -np.inf)
    cut = np.clip(np.nan_to_num(differences), -bound, bound)
    surprise = np.log(2 * steps * (steps + 1) / error_rate)
    spread = np.sqrt(2 * cut.var(axis=-1, ddof=1) * surprise / steps)
    result: np.ndarray = cut.mean(axis=-1) - spread - 7 * 2 * bound * surprise / (3 * (steps - 1))
    return result


# ----------------------------------------------------------------------------------------------- learning


def learn_plan(
    errors: np.ndarray,
    labels: np.ndarray,
    *,
    prior: np.ndarray | None = None,
    max_steps: int = 12,
    standard_errors: float = 0.0,
    choose: bool = True,
    stopping: Stopping = "posterior",
    error_rate: float = 0.02,
    shortlist: bool = True,
    coverage: float = 0.98,
    tree: PromptTree | None = None,
    tree_steps: int = 1,
    probes: bool = False,
    seed: int = 0,
) -> Plan:
    """Learn a race from labelled images whose errors on a pool of (t, ε) are all known.

    Choices are made on folds that were held out while the rest was fitted: the number of steps (the fewest with
    about the least log-loss), the lead at which a rival is dropped (the least at which at most ``error_rate`` of the
    images end wrongly that all classes and steps decide rightly), the shortlist, what probes rule out and the opened
    branches (their margins keep the true class of ``coverage`` of the images that all classes and steps decide
    rightly), and the number of probes (the one with the fewest evaluations among those that cost at most
    ``error_rate`` of accuracy; none where they save nothing). An image that all evidence decides wrongly has nothing
    to lose: where many classes are alike, ties among wrong ones would otherwise cost most of the evaluations.

    Args:
        errors: (image, class, pool).
        labels: int64 (image,).
        prior: (image, class), such as CLIP's log-probabilities.
        max_steps: Most (t, ε) an image is judged by.
        standard_errors: Fewer steps are taken where their log-loss is within this many standard errors of the
            least; 0 takes the least.
        choose: Take the most telling (t, ε) first; False: a seeded random order of the pool.
        stopping: ``"none"`` (every class that is still in sees every step), ``"posterior"``, ``"e_process"`` or
            ``"empirical_bernstein"``.
        error_rate: See above; of the last two: probability of dropping a class that is better in truth.
        shortlist: Leave out classes that the prior finds unlikely.
        coverage: See above.
        tree: From :func:`group_prompts`; None looks at all classes.
        tree_steps: Steps that branches are judged by.
        probes: Let the errors under a few prompts foretell all others, see :mod:`gcpl_lab.fast.probes`.
        seed: Of folds and random orders.
    """
    if max_steps < 1 or tree_steps < 1:
        raise ValueError(f"max_steps is {max_steps} and tree_steps {tree_steps}; expected 1 or more")
    if not 0 < error_rate < 1 or not 0 < coverage <= 1:
        raise ValueError(f"error_rate is {error_rate} and coverage {coverage}; expected shares between 0 and 1")
    num_steps = min(max_steps, errors.shape[2])

    # One strength for all fits: it depends on the numbers of images and classes, hardly on what is fitted.
    plain = -(errors / np.maximum(errors.mean(axis=(0, 1)), 1e-12)).mean(axis=2, dtype=np.float64)
    penalty = fit_joined([plain, *([] if prior is None else [prior])], labels, seed=seed).penalty
    counts = [0, *(count for count in NUM_PROBES if probes and count < errors.shape[1])]

    def fit(rows: np.ndarray, counts: Sequence[int]) -> dict[int, Plan]:
        known = None if prior is None else prior[rows]
        return _fit_steps(errors[rows], labels[rows], known, num_steps, choose, penalty, seed, counts)

    held = {count: _HeldOut.empty(num_steps, errors.shape[:2]) for count in counts}
    for inside, outside in _folds(labels, seed):
        for count, fold in fit(inside, counts).items():
            held[count].fill(fold, outside, errors, prior)
    choices = [
        {"probes": count}
        | _choose_margins(
            held[count],
            labels,
            standard_errors,
            coverage,
            error_rate if stopping == "posterior" else None,
            shortlist and prior is not None,
            tree,
            tree_steps,
        )
        for count in counts
    ]
    margins = _cheapest(choices, error_rate)
    steps, count = int(margins.pop("steps")), int(margins["probes"])
    whole = fit(np.arange(len(labels)), [count])[count]
    samples, scales, fits = whole.samples[:steps], whole.scales[:steps], whole.fits[:steps]
    scaled = errors[:, :, samples] / scales
    bound = float(np.abs(scaled - scaled[np.arange(len(labels)), labels][:, None]).max())
    return Plan(
        samples,
        scales,
        fits,
        whole.prior_fit,
        stopping,
        error_rate,
        margins["margin"],
        bound,
        margins["shortlist_margin"],
        tree,
        min(tree_steps, steps),
        margins["tree_margin"],
        whole.probes,
        margins["probe_margin"],
        margins.pop("temperature"),
        {name: value for name, value in margins.items() if not name.endswith("margin")},
    )


class _HeldOut(NamedTuple):
    """What folds say of the images that they have not seen.

    Attributes:
        priors: Logits (image, class) of the prior alone.
        table: Logits (step, image, class) after 0, 1, … steps; the probes come before all of them.
        looked: bool (image, class): which classes the fold's probes were.
    """

    priors: np.ndarray
    table: np.ndarray
    looked: np.ndarray

    @classmethod
    def empty(cls, num_steps: int, shape: tuple[int, ...]) -> _HeldOut:
        return cls(np.empty(shape), np.empty((num_steps + 1, *shape)), np.zeros(shape, bool))

    def fill(self, fold: Plan, rows: np.ndarray, errors: np.ndarray, prior: np.ndarray | None) -> None:
        """Enter what a fold says of the images ``rows``."""
        seen, own = errors[rows][:, :, fold.samples], None if prior is None else prior[rows]
        known = fold.known(seen, own)
        self.priors[rows] = fold.prior_logits(own, seen.shape[:2])
        for step in range(len(self.table)):
            self.table[step, rows] = fold.logits(seen, known, step)
        if fold.probes is not None:
            self.looked[np.ix_(rows, fold.probes.classes)] = True

    def losses(self, labels: np.ndarray) -> np.ndarray:
        """Log-loss (step, image)."""
        return log_sum_exp(self.table) - self.table[:, np.arange(len(labels)), labels]


def _folds(labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    if smallest >= 2:
        return cross_validation_folds(labels, min(4, smallest), seed)
    # With one image of a class there is nothing to spread: images are dealt out at random.
    fold_of = np.random.default_rng([seed, 37]).permutation(len(labels)) % 4
    return [(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(4)]


def _fit_steps(
    errors: np.ndarray,
    labels: np.ndarray,
    prior: np.ndarray | None,
    num_steps: int,
    choose: bool,
    penalty: float,
    seed: int,
    counts: Sequence[int],
) -> dict[int, Plan]:
    """For each number of probes a plan with nothing but samples, fits and these."""
    priors = [] if prior is None else [prior]
    prior_fit = None if prior is None else fit_joined(priors, labels, penalty=penalty, seed=seed)
    if choose:
        base = prior_fit.logits(priors) if prior_fit else None
        order = choose_samples(errors, labels, num_steps, base)
    else:
        order = np.random.default_rng([seed, 31]).permutation(errors.shape[2])[:num_steps]
    chosen = errors[:, :, order]
    scales = np.maximum((chosen - chosen.mean(axis=1, keepdims=True)).std(axis=(0, 1), dtype=np.float64), 1e-12)
    chosen = chosen / scales
    means = [-chosen[:, :, :step].mean(axis=2, dtype=np.float64) for step in range(1, num_steps + 1)]
    places, plans = order_probes(chosen[:, :, 0]), {}
    for count in counts:
        known, probes = priors, None
        if count:
            probes, foretold = learn_probes(
                chosen[:, :, 0], means[-1], labels, places[:count], prior=prior, penalty=penalty, seed=seed
            )
            known = [foretold, *priors]
        fits = tuple(fit_joined([mean, *known], labels, penalty=penalty, seed=seed) for mean in means)
        plans[count] = Plan(
            order, scales, fits, prior_fit, "none", 0.0, np.inf, 1.0, np.inf, None, 1, np.inf, probes, np.inf, 1.0, {}
        )
    return plans


def choose_samples(errors: np.ndarray, labels: np.ndarray, count: int, base: np.ndarray | None = None) -> np.ndarray:
    """The most telling (t, ε) of a pool, greedily: each lowers the log-loss most, given those before it.

    Args:
        errors: (image, class, pool).
        labels: int64 (image,).
        count: How many.
        base: Logits (image, class), what is known without looking; the samples then tell what it does not.

    Returns:
        int64 (count,), in the order of the choice.
    """
    centred = errors - errors.mean(axis=1, keepdims=True, dtype=np.float64)
    centred /= np.maximum(centred.std(axis=(0, 1)), 1e-12)
    centred -= centred.mean(axis=0)  # some prompts denoise all images well; an offset will take that away
    total, chosen, temperatures = np.zeros(errors.shape[:2]), list[int](), np.geomspace(0.2, 30.0, 7)
    rows = np.arange(len(labels))
    for _ in range(count):
        best, lowest = -1, np.inf
        for sample in np.setdiff1d(np.arange(errors.shape[2]), chosen):
            mean = (total + centred[:, :, sample]) / (len(chosen) + 1)
            logits = (0.0 if base is None else base) - temperatures[:, None, None] * mean
            loss = (log_sum_exp(logits) - logits[:, rows, labels]).mean(axis=1).min()
            if loss < lowest:
                best, lowest = int(sample), float(loss)
        chosen.append(best)
        total += centred[:, :, best]
    return np.array(chosen, np.int64)


def _fewest_steps(losses: np.ndarray, standard_errors: float) -> int:
    """The fewest steps, at least 1, whose loss (step, image) is within some standard errors of the least."""
    best = 1 + int(losses[1:].mean(axis=1).argmin())
    for step in range(1, best):
        difference = losses[step] - losses[best]
        if difference.mean() <= standard_errors * difference.std(ddof=1) / np.sqrt(len(difference)):
            return step
    return best


def _cheapest(choices: Sequence[dict[str, float]], error_rate: float) -> dict[str, float]:
    """The fewest evaluations among those whose race is right about as often as the best one's."""
    least = max(one["race_accuracy"] for one in choices) - error_rate
    return min((one for one in choices if one["race_accuracy"] >= least), key=lambda one: one["race_evaluations"])


def _choose_margins(
    held: _HeldOut,
    labels: np.ndarray,
    standard_errors: float,
    coverage: float,
    error_rate: float | None,
    shortlist: bool,
    tree: PromptTree | None,
    tree_steps: int,
) -> dict[str, float]:
    """The number of steps, and the margins of shortlist, probes, tree and stopping rule, one after the other.

    Args:
        held: Of the folds.
        labels: int64 (image,).
        standard_errors: See :func:`_fewest_steps`.
        coverage: Share of the images which the whole evidence decides rightly that shortlist, probes and tree keep
            right, each; what is kept of the others changes no answer to the better.
        error_rate: Of the posterior rule; None without it.
        shortlist: Whether the prior makes one.
        tree: Branches; None without a tree.
        tree_steps: Steps that they are judged by.

    Returns:
        Margins and ``steps``, and what was measured, by name.
    """
    losses = held.losses(labels)
    steps, rows = _fewest_steps(losses, standard_errors), np.arange(len(labels))
    table = held.table[: steps + 1]
    right = table[-1].argmax(axis=1) == labels
    found: dict[str, float] = {
        "steps": steps,
        "held_out_log_loss": float(losses[steps].mean()),
        "held_out_accuracy": float(right.mean()),
    }

    def keep(name: str, logits: np.ndarray, active: np.ndarray, branches: np.ndarray) -> np.ndarray:
        """The classes whose branches (of a class each, without a tree) are near the best in logits (image, branch)."""
        counted = right & active[rows, labels]  # what was lost before stays lost
        behind = logits.max(axis=1) - logits[rows, branches[labels]]
        found[f"{name}_margin"] = _covering(behind[counted], coverage)
        left = active & shortlisted(logits, found[f"{name}_margin"])[:, branches]
        with np.errstate(invalid="ignore"):  # of images with nothing to judge, where nothing is closed
            lost = (logits - logits.max(axis=1, keepdims=True))[:, branches]
        lags[active & ~left] = lost[active & ~left]
        found[f"{name}_size"] = float(left.sum(axis=1).mean())
        found[f"{name}_recall"] = float(left[rows, labels].mean())
        return left

    classes, active = np.arange(table.shape[2]), np.ones(table.shape[1:], bool)
    lags = np.zeros(active.shape)  # of the classes that are left out, when they were
    found |= {"shortlist_margin": np.inf, "probe_margin": np.inf, "tree_margin": np.inf}
    if shortlist:
        active = keep("shortlist", held.priors, active, classes)
    looked = held.looked & (active.sum(axis=1, keepdims=True) > 1)
    if looked.any():
        active = keep("probe", np.where(active, table[0], -np.inf), active, classes)
    if tree is not None:
        speaking = np.where(representatives(tree, active), table[min(tree_steps, steps)], -np.inf)
        active = keep("tree", tree.best_of(speaking), active, tree.branches)
    return found | _finish(table, labels, active, looked, lags, error_rate)


def _finish(
    table: np.ndarray,
    labels: np.ndarray,
    active: np.ndarray,
    looked: np.ndarray,
    lags: np.ndarray,
    error_rate: float | None,
) -> dict[str, float]:
    """The margin of the posterior rule for the classes that are left, and what the race comes to with it."""
    complete, chosen = np.where(active, table[-1], -np.inf).argmax(axis=1), np.inf
    for margin in MARGINS if error_rate is not None else ():
        decided = _simulate(table, active, looked, lags, margin)[0].argmax(axis=1)
        if ((complete == labels) & (decided != labels)).mean() <= error_rate:
            chosen = float(margin)
            break
    final, spent = _simulate(table, active, looked, lags, chosen)
    return {
        "margin": chosen,
        "temperature": fit_temperature(final, labels),
        "race_accuracy": float((final.argmax(axis=1) == labels).mean()),
        "race_evaluations": float(spent.mean()),
    }


def _covering(behind: np.ndarray, coverage: float) -> float:
    """The least margin that keeps the true class of that share of images."""
    return float(np.quantile(behind, coverage, method="higher")) + 1e-9 if len(behind) else np.inf


def _simulate(
    table: np.ndarray, active: np.ndarray, looked: np.ndarray, lags: np.ndarray, margin: float
) -> tuple[np.ndarray, np.ndarray]:
    """Final logits (image, class) and evaluations (image,) of the posterior rule, as :func:`race` would find them.

    Args:
        table: Known logits (step, image, class).
        active: bool (image, class): which classes are in at the beginning.
        looked: bool (image, class): what had been evaluated at the first step before: it counts, and only once.
        lags: (image, class): how far behind those were that are not in.
        margin: Lead at which a rival is dropped.
    """
    active, lags, spent = active.copy(), lags.copy(), looked.sum(axis=1)
    logits = np.where(active, table[0], -np.inf)
    for step, found in enumerate(table[1:]):
        running = active & (active.sum(axis=1, keepdims=True) > 1)
        spent += (running & ~looked if step == 0 else running).sum(axis=1)
        logits = np.where(running, found, np.where(active, logits, -np.inf))
        dropped = running & ~shortlisted(logits, margin)
        lags = np.where(dropped, logits - logits.max(axis=1, keepdims=True), lags)
        active &= ~dropped
    best = np.where(active, logits, -np.inf).max(axis=1, keepdims=True)
    return np.where(active, logits, best + np.minimum(lags, 0.0)), spent


# ------------------------------------------------------------------------------------------------ the tree


def group_prompts(hidden: np.ndarray, num_branches: int | None = None) -> PromptTree:
    """Branches of look-alike prompts: Ward's clustering of their hidden states.

    Args:
        hidden: (class, …): what the denoiser hears of each prompt.
        num_branches: By default the square root of the number of classes, which makes looking at the branches and
            at the classes on one of them cost the same.
    """
    flat = hidden.reshape(len(hidden), -1).astype(np.float64)
    branches = np.zeros(len(flat), np.int64)
    if len(flat) > 1:
        wanted = num_branches or int(np.ceil(np.sqrt(len(flat))))
        branches = np.unique(fcluster(linkage(flat, "ward"), wanted, "maxclust"), return_inverse=True)[1]
    means = np.stack([flat[branches == branch].mean(axis=0) for branch in range(branches.max() + 1)])
    return PromptTree(branches.astype(np.int64), np.linalg.norm(flat - means[branches], axis=1))
