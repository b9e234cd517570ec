"""Classifying with a diffusion model: the published procedure beside ours, shortcut by shortcut.

    python benchmarks/classifier_cost.py           # prints tables, writes benchmarks/results/classifier_cost.json

Published: Li et al.'s staged schedule for ten classes, one image at a time: every class on 50 (t, ε), the best five
on 500, 2,750 denoiser evaluations. The second baseline is the cheapest staged schedule that loses at most one point
against the plain mean of a pool of (t, ε) on support photographs outside the exemplars; it may also use the preset's
own range of noise levels. Ours is chosen on the same photographs. All use the same prompts and the same precision.

How all this grows with the number of classes is measured by growth.py.

The published schedule takes minutes on all test photographs. It runs for --published-seconds, keeps its decisions in
--cache, and goes on there when it is called again; accuracies are compared on the photographs it has decided.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import (
    alternate,
    benchmark_options,
    check_aim,
    learned_prompts,
    make_result,
    make_row,
    outside,
    paired_ratio,
    prompt_options,
    publish,
)
from rich.console import Console
from scipy.special import log_softmax
from torch import Tensor

from gcpl_lab.baselines.clip_features import ZeroShotCLIP
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import ImageSet, read_images
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.fast.fast_classifier import FastClassifier, Shortcuts
from gcpl_lab.fast.racing import race
from gcpl_lab.gcpl.classifier import DiffusionClassifier, Evidence, class_scores
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import read_tensors, tensor_checksum, write_tensors

Stages = tuple[tuple[int, ...], tuple[int, ...]]
LARGEST_DIFFERENCE = 1e-5
STAGES = [
    (keep, samples)
    for keep in ((1,), (2, 1), (3, 1), (5, 1))
    for samples in product((1, 2, 3, 4, 6, 8, 12, 16, 24), repeat=len(keep))
    if len(samples) == 1 or samples[0] < samples[1]
]
BATCH_SIZE = 128
"""Denoiser evaluations in one pass, of all procedures alike: the package's default, which was fastest."""

PUBLISHED, STAGED, OURS = "published schedule, one by one", "cheapest staged schedule, one by one", "all together"
FLOOR, CLIP = "bare denoiser, an evaluation", "CLIP's image tower"


class Photographs(NamedTuple):
    """What classifiers see of some photographs."""

    latents: Tensor
    labels: np.ndarray
    clip_scores: np.ndarray

    def first(self, count: int) -> Photographs:
        """Some of them, spread over the classes."""
        chosen = np.linspace(0, len(self.labels) - 1, min(count, len(self.labels))).astype(int)
        return Photographs(self.latents[torch.from_numpy(chosen)], self.labels[chosen], self.clip_scores[chosen])


class Setting(NamedTuple):
    """Models, prompts and photographs of one comparison."""

    diffusion: FrozenDiffusion
    hidden: Tensor
    support: Photographs
    test: Photographs
    clip: FrozenCLIP
    pictures: list[Any]
    bfloat16: bool
    identity: str
    """Of prompts, test photographs and frozen model, whatever the last digits of latents and hidden states are."""

    def fast(self, shortcuts: Shortcuts, **settings: Any) -> FastClassifier:
        """A classifier with some shortcuts."""
        settings = {"bfloat16": self.bfloat16, "batch_size": BATCH_SIZE} | settings
        return FastClassifier(self.diffusion, self.hidden, shortcuts=shortcuts, **settings)


def look(
    diffusion: FrozenDiffusion, clip: FrozenCLIP, data: ImageSet, chosen: np.ndarray, zero_shot: ZeroShotCLIP
) -> Photographs:
    """Encode photographs."""
    pictures = read_images([data.images[int(index)] for index in chosen])
    latents = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess(pictures))[0])
    return Photographs(latents, data.labels[chosen], zero_shot.scores(clip.encode_images(pictures)).numpy())


def prepare(options: argparse.Namespace) -> Setting:
    """Prompts learned from the exemplars of an episode, or loaded."""
    support, test = load_fashion("support"), load_fashion("test")
    exemplars = draw_episode(support, 16, options.seed)
    diffusion, clip = FrozenDiffusion.load(options.preset), FrozenCLIP.load(options.preset)
    model = learned_prompts(options, diffusion, support.subset(exemplars))
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*model.prompts_())
    zero_shot = ZeroShotCLIP(clip, support.class_names)
    held = look(diffusion, clip, support, outside(support, exemplars, options.support_images, options.seed), zero_shot)
    every = np.linspace(0, len(test) - 1, min(options.images, len(test))).astype(int)
    judged = look(diffusion, clip, test, every, zero_shot)
    pictures = read_images([test.images[int(index)] for index in every[: options.batch_images]])
    names = [test.images[int(index)].name for index in every]
    identity = repr((tensor_checksum([("vectors", model.prompts_.vectors.detach())]), names, diffusion.checksum()))
    return Setting(diffusion, hidden, held, judged, clip, pictures, not options.float32, identity)


# -------------------------------------------------------------------------------------------- baselines


def decide(evidence: Evidence) -> np.ndarray:
    """The published rule: the least mean error."""
    found: np.ndarray = class_scores(evidence.errors, "absolute").argmax(axis=1)
    return found


def check_equal(setting: Setting) -> float:
    """Largest difference of errors in float32: the exact shortcuts and batches against one by one; must be tiny."""
    few = setting.test.first(3)
    stages, largest = ((5, 1), (4, 8)), 0.0
    for shortcuts in (Shortcuts.none(share_prefix=True), Shortcuts.none(cache_keys=True), Shortcuts()):
        ours = FastClassifier(setting.diffusion, setting.hidden, shortcuts=shortcuts).staged(few.latents, *stages)
        plain = DiffusionClassifier(setting.diffusion, setting.hidden, batch_size=32)
        alone = [plain.staged(few.latents[i : i + 1], *stages).errors for i in range(len(few.labels))]
        largest = max(largest, float(np.nanmax(np.abs(np.concatenate(alone) - ours.errors))))
        if largest > LARGEST_DIFFERENCE or (np.isnan(np.concatenate(alone)) != np.isnan(ours.errors)).any():
            raise SystemExit(f"errors differ by {largest:.1e} with {shortcuts}; expected {LARGEST_DIFFERENCE} at most")
    return largest


def published_decisions(setting: Setting, stages: Stages, cache: Path, seconds: float) -> np.ndarray:
    """Decisions of the published schedule on the test photographs, −1 where time did not reach."""
    key = f"{setting.identity} {setting.bfloat16} {stages}"
    path, decided = cache / f"published-{tensor_checksum([(key, torch.zeros(1))])[:16]}.safetensors", None
    if path.exists():
        decided = read_tensors(path)[0]["decisions"].numpy()
    decided = np.full(len(setting.test.labels), -1, np.int64) if decided is None else decided.copy()
    # In batches and with the exact shortcuts: check_equal has shown that the results are the same.
    classifier = setting.fast(Shortcuts(), batch_size=1000)
    order = np.random.default_rng(43).permutation(len(decided))  # what is done first is spread over the classes
    until = time.perf_counter() + seconds
    for image in order[decided[order] < 0]:
        if time.perf_counter() > until:
            break
        decided[image] = decide(classifier.staged(setting.test.latents[image : image + 1], *stages))[0]
    cache.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"decisions": torch.from_numpy(decided)})
    return decided


def pool_evidence(setting: Setting, part: str, options: argparse.Namespace) -> Evidence:
    """Errors of the ``"support"`` or ``"test"`` photographs on the pool; kept, for calls that go on."""
    latents: Tensor = getattr(setting, part).latents
    key = f"{setting.identity} {setting.bfloat16} {options.pool} {options.seed} {part} {len(latents)}"
    path = options.cache / f"pool-{tensor_checksum([(key, torch.zeros(1))])[:16]}.safetensors"
    if not path.exists():
        found = setting.fast(Shortcuts(), pool_size=options.pool, seed=options.seed).exact(latents, options.pool)
        write_tensors(path, {"errors": torch.from_numpy(found.errors), "timesteps": torch.from_numpy(found.timesteps)})
    kept = read_tensors(path)[0]
    return Evidence(kept["errors"].numpy(), kept["timesteps"].numpy(), kept["errors"].numel())


def cheapest_stages(
    pool: Evidence, labels: np.ndarray, ranges: list[tuple[float, float]], num_timesteps: int
) -> dict[str, Any]:
    """The cheapest schedule that loses at most a point against the plain mean of the pool, on support photographs."""
    wanted = float((pool.errors.mean(axis=2).argmin(axis=1) == labels).mean()) - 0.01
    found: dict[str, Any] = {}
    for low_high in ranges:
        low, high = (fraction * num_timesteps for fraction in low_high)
        inside = np.flatnonzero((pool.timesteps >= low) & (pool.timesteps < high))
        for keep, samples in STAGES:
            if samples[-1] > len(inside):
                continue
            right, spent = _run_stages(pool.errors[:, :, inside], labels, keep, samples)
            if right >= wanted and (not found or spent < found["evaluations"]):
                found = {
                    "to_keep": keep,
                    "n_samples": samples,
                    "range": low_high,
                    "evaluations": spent,
                    "support_accuracy": right,
                    "wanted": wanted,
                }
    if not found:
        raise SystemExit(f"no schedule reaches {wanted:.3f} on the support photographs; enlarge --pool")
    return found


def _run_stages(
    errors: np.ndarray, labels: np.ndarray, keep: tuple[int, ...], samples: tuple[int, ...]
) -> tuple[float, int]:
    """Accuracy and evaluations an image of a staged schedule on known errors."""
    total = errors.shape[2]
    chosen = ((np.arange(samples[-1]) + 0.5) * total / samples[-1]).astype(int)
    errors = errors[:, :, chosen]
    first = ((np.arange(samples[0]) + 0.5) * samples[-1] / samples[0]).astype(int)
    means = errors[:, :, first].mean(axis=2)
    spent = errors.shape[1] * samples[0]
    if len(keep) > 1:
        left = np.argsort(means, axis=1)[:, : keep[0]]
        final = np.full(means.shape, np.inf)
        np.put_along_axis(final, left, np.take_along_axis(errors.mean(axis=2), left, axis=1), axis=1)
        means, spent = final, spent + keep[0] * (samples[1] - samples[0])
    return float((means.argmin(axis=1) == labels).mean()), spent


# ------------------------------------------------------------------------------------------- candidates


class Candidate(NamedTuple):
    """A way to classify, and what it found.

    Attributes:
        what: Its name in the table.
        run: Classifies some photographs; what is timed.
        images: How many these are.
        evaluations: Of the denoiser, an image of the whole test set.
        right: bool (image,): of the whole test set; of the published schedule, of the photographs it has decided.
        with_clip: Whether CLIP looks at every photograph too; its time is added.
        facts: Further entries of the row.
    """

    what: str
    run: Callable[[], Any]
    images: int
    evaluations: float
    right: np.ndarray
    with_clip: bool = False
    facts: Mapping[str, Any] = MappingProxyType({})


def one_by_one(classify: Callable[[Tensor, np.ndarray], Any], some: Photographs) -> Callable[[], None]:
    """A call that classifies photographs one at a time."""

    def run() -> None:
        for index in range(len(some.labels)):
            classify(some.latents[index : index + 1], some.clip_scores[index : index + 1])

    return run


def published_candidates(setting: Setting, stages: Stages, right: np.ndarray) -> Iterator[Candidate]:
    """The published schedule as it is, and with each exact shortcut."""
    one, (first, last) = setting.test.first(1), stages[1]
    for what, shortcuts in (
        (PUBLISHED, Shortcuts.none()),
        ("the same, shared prefix", Shortcuts.none(share_prefix=True)),
        ("the same, cached keys", Shortcuts.none(cache_keys=True)),
        ("the same, both", Shortcuts.none(share_prefix=True, cache_keys=True)),
    ):
        classifier = setting.fast(shortcuts)
        cost = classifier.num_classes * first + min(stages[0][0], classifier.num_classes) * (last - first)
        whole = classifier.shared.equivalent_evaluations(cost, last)

        def classify(latents: Tensor, _: np.ndarray, c: FastClassifier = classifier) -> Evidence:
            return c.staged(latents, *stages)

        yield Candidate(what, one_by_one(classify, one), 1, cost, right, facts={"equivalent_evaluations": whole})


def staged_candidates(setting: Setting, best: dict[str, Any], options: argparse.Namespace) -> Iterator[Candidate]:
    """The cheapest staged schedule, one image at a time as published, and in batches with the exact shortcuts."""
    stages, labels = (best["to_keep"], best["n_samples"]), setting.test.labels
    few, many = setting.test.first(options.timed_images), setting.test.first(options.batch_images)
    plain = setting.fast(Shortcuts.none(), timestep_range=best["range"])
    quick = setting.fast(Shortcuts(), timestep_range=best["range"])
    found = quick.staged(setting.test.latents, *stages)
    cost, right = found.num_evaluations / len(labels), decide(found) == labels
    yield Candidate(
        STAGED,
        one_by_one(lambda z, _: plain.staged(z, *stages), few),
        len(few.labels),
        cost,
        right,
        facts={"schedule": best},
    )
    yield Candidate(
        "the same, in batches with the exact shortcuts",
        lambda: quick.staged(many.latents, *stages),
        len(many.labels),
        cost,
        right,
    )


def variants() -> Iterator[tuple[str, Shortcuts, bool]]:
    """Statistical shortcuts, each alone and together, and whether they see CLIP's scores."""
    yield "no statistical shortcut, same pool", Shortcuts.none(), False
    yield "chosen (t, ε) alone", Shortcuts.none(choose_samples=True), False
    yield "stopping by posterior alone", Shortcuts.none(stopping="posterior"), False
    yield "stopping by e-process alone", Shortcuts.none(stopping="e_process", error_rate=0.1), False
    yield "stopping by empirical Bernstein alone", Shortcuts.none(stopping="empirical_bernstein", error_rate=0.1), False
    yield "shortlist by CLIP alone", Shortcuts.none(shortlist=True), True
    yield "class tree alone", Shortcuts.none(class_tree=True), False
    yield "probes alone", Shortcuts.none(probes=True), False
    yield "all without CLIP", Shortcuts(shortlist=False), False
    yield OURS, Shortcuts(), True


def fast_candidates(
    setting: Setting, held: Evidence, judged: Evidence, options: argparse.Namespace, plans: dict[str, Any]
) -> Iterator[Candidate]:
    """Ours, shortcut by shortcut; what each plan looks like is put into ``plans``."""
    labels = setting.test.labels
    few, many = setting.test.first(options.timed_images), setting.test.first(options.batch_images)
    for what, shortcuts, with_clip in variants():
        fast = setting.fast(shortcuts, pool_size=options.pool, seed=options.seed)
        priors = [
            log_softmax(part.clip_scores.astype(np.float64), axis=1) if with_clip else None
            for part in (setting.support, setting.test)
        ]
        plan = fast.plan_from(held, setting.support.labels, priors[0]).plan_

        def ask(triples: np.ndarray, order: np.ndarray = plan.samples) -> np.ndarray:
            return judged.errors[triples[:, 0], triples[:, 1], order[triples[:, 2]]]

        def classify(latents: Tensor, scores: np.ndarray, c: FastClassifier = fast, clip: bool = with_clip) -> Evidence:
            return c.classify(latents, scores if clip else None)

        def together(c: Callable[..., Evidence] = classify) -> Evidence:
            return c(many.latents, many.clip_scores)

        went = race(ask, plan, len(labels), fast.num_classes, priors[1])
        cost, right = went.num_pairs / len(labels), went.logits.argmax(axis=1) == labels
        facts = {
            "equivalent_evaluations": fast.shared.equivalent_evaluations(went.num_pairs, went.num_rows) / len(labels)
        }
        yield Candidate(what, together, len(many.labels), cost, right, with_clip, facts)
        if what == OURS:
            yield Candidate(
                f"{what}, one by one", one_by_one(classify, few), len(few.labels), cost, right, with_clip, facts
            )
        plans[what] = {
            "steps": len(plan.samples),
            "timesteps": held.timesteps[plan.samples].tolist(),
            "margin": plan.margin,
            "shortlist_margin": plan.shortlist_margin,
            **plan.measured,
        }


def noise_candidates(setting: Setting, options: argparse.Namespace) -> Iterator[Candidate]:
    """The plain mean of four samples in the preset's range, with each kind of noise, over several seeds."""
    some, many, count = setting.test.first(options.noise_images), setting.test.first(options.batch_images), 4
    for kind in ("independent", "antithetic", "stratified"):
        right = []
        for seed in range(options.noise_seeds):
            shortcuts = Shortcuts(noise=kind)  # type: ignore[arg-type]
            fast = setting.fast(shortcuts, seed=seed, timestep_range=setting.diffusion.evidence_range)
            right.append(decide(fast.exact(some.latents, count)) == some.labels)

        def mean(c: FastClassifier = fast) -> Evidence:
            return c.exact(many.latents, count)

        yield Candidate(
            f"plain mean of {count}, {kind} noise",
            mean,
            len(many.labels),
            count * fast.num_classes,
            np.concatenate(right),
            facts={"accuracy_of_seeds": [float(part.mean()) for part in right]},
        )


# ------------------------------------------------------------------------------------------- the whole


def time_rows(candidates: list[Candidate], setting: Setting, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds an image of all candidates, measured in turn, and their ratios."""
    diffusion, count = setting.diffusion, BATCH_SIZE
    noisy, steps = torch.zeros(count, *diffusion.latent_shape), torch.full((count,), 500)
    hidden = setting.hidden[:1].expand(count, -1, -1)

    def bare() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=setting.bfloat16):
            diffusion.denoiser(noisy, steps, hidden, return_dict=False)

    runs: dict[str, Callable[[], Any]] = {FLOOR: bare, CLIP: lambda: setting.clip.encode_images(setting.pictures)}
    images = {FLOOR: count, CLIP: len(setting.pictures)} | {one.what: one.images for one in candidates}
    measured = alternate(runs | {one.what: one.run for one in candidates}, options.repeats, clock=options.clock)
    seconds = {what: np.asarray(values) / images[what] for what, values in measured.items()}
    for one in candidates:
        if one.with_clip:
            seconds[one.what] = seconds[one.what] + seconds[CLIP]
    rows = [make_row(FLOOR, seconds[FLOOR].tolist(), 1), make_row(CLIP, seconds[CLIP].tolist(), 0)]
    published = candidates[0]
    for one in candidates:
        values = seconds[one.what].tolist()
        row = make_row(one.what, values, one.evaluations, images_judged=len(one.right), **one.facts)
        rows.append(
            row
            | {
                "accuracy": float(one.right.mean()) if one.right.size else None,
                "evaluations_to_published": published.evaluations / max(one.evaluations, 1e-9),
                "ratio_to_published": paired_ratio(seconds[published.what].tolist(), values),
                "ratio_to_staged": paired_ratio(seconds[STAGED].tolist(), values),
                "ratio_to_floor": paired_ratio(values, (seconds[FLOOR] * max(one.evaluations, 1.0)).tolist()),
            }
        )
    return rows


def accuracies_of_seeds(options: argparse.Namespace, best: dict[str, Any]) -> list[float]:
    """The cheapest staged schedule with other exemplars, prompts and noises: what accuracies differ by anyway."""
    found = []
    for seed in range(options.spread_seeds):
        other = prepare(argparse.Namespace(**{**vars(options), "seed": seed, "prompts": None}))
        classifier = other.fast(Shortcuts(), timestep_range=best["range"], seed=seed)
        evidence = classifier.staged(other.test.latents, best["to_keep"], best["n_samples"])
        found.append(float((decide(evidence) == other.test.labels).mean()))
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, in one run."""
    setting = prepare(options)
    largest = check_equal(setting)
    published: Stages = ((5, 1), tuple(options.published_samples))
    decided = published_decisions(setting, published, options.cache, options.published_seconds)
    known, labels = decided >= 0, setting.test.labels
    exact = setting.fast(Shortcuts(), pool_size=options.pool, seed=options.seed)
    held, judged = (pool_evidence(setting, part, options) for part in ("support", "test"))
    best = cheapest_stages(
        held, setting.support.labels, [(0.0, 1.0), setting.diffusion.evidence_range], setting.diffusion.num_timesteps
    )
    plans: dict[str, Any] = {}
    candidates = [
        *published_candidates(setting, published, decided[known] == labels[known]),
        *staged_candidates(setting, best, options),
        *fast_candidates(setting, held, judged, options, plans),
        *noise_candidates(setting, options),
    ]
    rows = time_rows(candidates, setting, options)
    right, seeds = {one.what: one.right for one in candidates}, accuracies_of_seeds(options, best)
    where_known = {what: float(part[known].mean()) for what, part in right.items() if len(part) == len(known)}
    return make_result(
        "classifier_cost",
        rows,
        options.repeats,
        clock=options.clock,
        preset=options.preset,
        images=len(labels),
        published_images=int(known.sum()),
        published_samples=list(published[1]),
        support_images=len(setting.support.labels),
        pool=options.pool,
        bfloat16=setting.bfloat16,
        largest_difference=largest,
        sharing=exact.shared.statement,
        prefix_share=exact.shared.prefix_share,
        keys_share=exact.shared.keys_share,
        plans=finite(plans),
        accuracy_of_seeds=seeds,
        accuracy_of_clip=float((setting.test.clip_scores.argmax(axis=1) == labels).mean()),
        accuracy_where_published_is_known=where_known if known.any() else {},
        aims=aims_of({row["what"]: row for row in rows}, right, known, seeds),
    )


def aims_of(
    rows: dict[str, dict[str, Any]], right: dict[str, np.ndarray], known: np.ndarray, seeds: list[float]
) -> list[dict[str, Any]]:
    """What all shortcuts together must reach."""
    ours, staged = rows[OURS], rows[STAGED]
    times = "times the published schedule's {} of ours", "times the cheapest staged schedule's {} of ours"
    aims = [
        check_aim(times[0].format("evaluations"), ours["evaluations_to_published"], least=30),
        check_aim(times[0].format("time"), ours["ratio_to_published"], least=30),
        check_aim(times[1].format("evaluations"), staged["evaluations"] / max(ours["evaluations"], 1e-9), least=4),
        check_aim(times[1].format("time"), ours["ratio_to_staged"], least=4),
    ]
    if len(seeds) > 1:
        lost = {"cheapest staged schedule": right[STAGED].mean() - right[OURS].mean()}
        if known.any():
            lost[f"published schedule, on {known.sum()} photographs"] = (
                right[PUBLISHED].mean() - right[OURS][known].mean()
            )
        aims += [
            check_aim(
                f"accuracy of the {what}, minus ours (the spread of seeds)",
                float(value),
                most=float(np.std(seeds, ddof=1)),
            )
            for what, value in lost.items()
        ]
    return aims


def finite(value: Any) -> Any:
    """Margins that are infinite as None: JSON has no infinity."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "classifier_cost")
    prompt_options(parser, support_images=320, support_help="photographs to choose settings on")
    parser.add_argument("--pool", type=int, default=32, help="(t, ε) to choose from")
    parser.add_argument("--timed-images", type=int, default=8, help="photographs that are timed one by one")
    parser.add_argument("--batch-images", type=int, default=64, help="photographs that are timed together")
    parser.add_argument("--noise-images", type=int, default=200, help="photographs for the kinds of noise")
    parser.add_argument("--noise-seeds", type=int, default=2, help="seeds for the kinds of noise")
    parser.add_argument("--spread-seeds", type=int, default=3, help="seeds whose spread says what is equal; 0: none")
    parser.add_argument("--published-samples", type=int, nargs=2, default=(50, 500), help="of the published stages")
    parser.add_argument("--published-seconds", type=float, default=60, help="time for the published accuracy")
    parser.add_argument("--published-only", action="store_true", help="go on with that alone, and write nothing else")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    options = parser.parse_args()
    if options.published_only:
        stages: Stages = ((5, 1), tuple(options.published_samples))
        decided = published_decisions(prepare(options), stages, options.cache, options.published_seconds)
        Console().print(f"The published schedule has decided {(decided >= 0).sum()} of {len(decided)} photographs.")
        return
    result = measure(options)
    publish(
        result,
        f"Classifying {result['images']} photographs, {result['support_images']} to choose settings on; "
        f"published accuracy on {result['published_images']}",
        options.output,
    )


if __name__ == "__main__":
    main()
