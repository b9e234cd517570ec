"""Classifying with a diffusion model: the published procedure beside ours.

    python benchmarks/classifier_cost.py           # prints tables, writes benchmarks/results/classifier_cost.json

Published: Li et al.'s staged schedule for ten classes, one image at a time: every class on 50 (t, ε), the best five
on 500, 2,750 denoiser evaluations. The second baseline is the cheapest staged schedule that loses at most one point
against the plain mean of a pool of (t, ε) on support images outside the exemplars; it may also use the preset's own
range of noise levels, and is measured in batches, too. Ours is the race of ``classification="fast"``, calibrated on the
same support images, with and without CLIP's scores. All use the same prompts and the same precision.

The published schedule takes minutes on all test images. It runs for --published-seconds, keeps its decisions in
--cache, and goes on there when it is called again; accuracies are compared on the images it has decided.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import (
    alternate,
    benchmark_options,
    check_aim,
    follow,
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

from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.fast.race import Race
from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.gcpl.classifier import DiffusionClassifier, Evidence
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

PUBLISHED = "published schedule, one by one"
STAGED, STAGED_BATCHES = "cheapest staged schedule, one by one", "the same in batches"
OURS, ALONE = "ours", "ours without CLIP"
FLOOR, CLIP = "bare denoiser, an evaluation", "CLIP's image tower"
LEAST_FEWER, LEAST_FASTER, LEAST_TO_STAGED = 50, 30, 4


class Images(NamedTuple):
    """What classifiers see of some images."""

    latents: Tensor
    labels: np.ndarray
    clip_scores: np.ndarray

    def first(self, count: int) -> Images:
        """Some of them, spread over the classes."""
        chosen = np.linspace(0, len(self.labels) - 1, min(count, len(self.labels))).astype(int)
        return Images(self.latents[torch.from_numpy(chosen)], self.labels[chosen], self.clip_scores[chosen])

    def prior(self) -> np.ndarray:
        """CLIP's log-probabilities (image, class)."""
        found: np.ndarray = log_softmax(self.clip_scores.astype(np.float64), axis=1)
        return found


class Setting(NamedTuple):
    """Models, prompts and images of one comparison.

    Attributes:
        diffusion: The frozen model.
        hidden: Hidden states of the class prompts.
        support: Images to choose settings on.
        test: Images to judge on.
        clip: Sees test images before ours does.
        clip_images: Those that this is timed on.
        bfloat16: Whether the denoiser runs in bfloat16.
        identity: Of prompts, test images and frozen model, whatever the last digits of latents and hidden states are.
    """

    diffusion: FrozenDiffusion
    hidden: Tensor
    support: Images
    test: Images
    clip: FrozenCLIP
    clip_images: list[Any]
    bfloat16: bool
    identity: str

    def classifier(self, **settings: Any) -> DiffusionClassifier:
        """A classifier of the prompts."""
        settings = {"bfloat16": self.bfloat16, "batch_size": BATCH_SIZE} | settings
        return DiffusionClassifier(self.diffusion, self.hidden, **settings)


def look(
    diffusion: FrozenDiffusion, clip: FrozenCLIP, data: ImageSet, chosen: np.ndarray, zero_shot: ZeroShotCLIP
) -> Images:
    """Encode some images of a set."""
    images = read_images([data.images[int(index)] for index in chosen])
    latents = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess(images))[0])
    return Images(latents, data.labels[chosen], zero_shot.scores(clip.encode_images(images)).numpy())


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
    images = read_images([test.images[int(index)] for index in every[: options.batch_images]])
    names = [test.images[int(index)].name for index in every]
    identity = repr((tensor_checksum([("vectors", model.prompts_.vectors.detach())]), names, diffusion.checksum()))
    return Setting(diffusion, hidden, held, judged, clip, images, not options.float32, identity)


# -------------------------------------------------------------------------------------------- baselines


def decide(evidence: Evidence) -> np.ndarray:
    """The published rule: the least mean error."""
    found: np.ndarray = class_scores(evidence.errors, "absolute").argmax(axis=1)
    return found


def check_equal(setting: Setting) -> float:
    """Largest difference of errors in float32: in batches against one by one; must be tiny."""
    few, stages = setting.test.first(3), ((5, 1), (4, 8))
    ours = setting.classifier(bfloat16=False).staged(few.latents, *stages).errors
    single = setting.classifier(bfloat16=False, batch_size=32)
    alone = np.concatenate([single.staged(latent[None], *stages).errors for latent in few.latents])
    largest = float(np.nanmax(np.abs(alone - ours)))
    if largest > LARGEST_DIFFERENCE or (np.isnan(alone) != np.isnan(ours)).any():
        raise SystemExit(f"errors differ by {largest:.1e} in batches; expected {LARGEST_DIFFERENCE} at most")
    return largest


def published_decisions(setting: Setting, stages: Stages, cache: Path, seconds: float) -> np.ndarray:
    """Decisions of the published schedule on the test images, −1 where time did not reach."""
    key = f"{setting.identity} {setting.bfloat16} {stages}"
    path = cache / f"published-{tensor_checksum([(key, torch.zeros(1))])[:16]}.safetensors"
    decided = np.full(len(setting.test.labels), -1, np.int64)
    if path.exists():
        decided = read_tensors(path)[0]["decisions"].numpy().copy()
    # In large passes: check_equal has shown that the results are the same.
    classifier = setting.classifier(batch_size=1000)
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
    """Errors of the ``"support"`` or ``"test"`` images on the pool; kept, for calls that go on."""
    latents: Tensor = getattr(setting, part).latents
    key = f"{setting.identity} {setting.bfloat16} {options.pool} {options.seed} {part} {len(latents)}"
    path = options.cache / f"pool-{tensor_checksum([(key, torch.zeros(1))])[:16]}.safetensors"
    if not path.exists():
        found = setting.classifier(seed=options.seed).exact(latents, options.pool)
        write_tensors(path, {"errors": torch.from_numpy(found.errors), "timesteps": torch.from_numpy(found.timesteps)})
    kept = read_tensors(path)[0]
    return Evidence(kept["errors"].numpy(), kept["timesteps"].numpy(), kept["errors"].numel())


def cheapest_stages(
    pool: Evidence, labels: np.ndarray, ranges: list[tuple[float, float]], num_timesteps: int
) -> dict[str, Any]:
    """The cheapest schedule that loses at most a point against the plain mean of the pool, on support images."""
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
        raise SystemExit(f"no schedule reaches {wanted:.3f} on the support images; enlarge --pool")
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
        run: Classifies some images; what is timed.
        images: How many these are.
        evaluations: Of the denoiser, an image of the whole test set.
        right: bool (image,): of the whole test set; of the published schedule, of the images it has decided.
        with_clip: Whether CLIP looks at every image too; its time is added.
    """

    what: str
    run: Callable[[], Any]
    images: int
    evaluations: float
    right: np.ndarray
    with_clip: bool = False


def one_by_one(classify: Callable[[Tensor, np.ndarray], Any], some: Images) -> Callable[[], None]:
    """A call that classifies images one at a time."""

    def run() -> None:
        for latent, scores in zip(some.latents, some.clip_scores, strict=True):
            classify(latent[None], scores[None])

    return run


def published_candidate(setting: Setting, stages: Stages, right: np.ndarray) -> Candidate:
    """The published schedule as it is."""
    one, (first, last), classifier = setting.test.first(1), stages[1], setting.classifier()
    cost = len(setting.hidden) * first + min(stages[0][0], len(setting.hidden)) * (last - first)
    return Candidate(PUBLISHED, lambda: classifier.staged(one.latents, *stages), 1, cost, right)


def staged_candidates(setting: Setting, best: dict[str, Any], options: argparse.Namespace) -> Iterator[Candidate]:
    """The cheapest staged schedule, one image at a time as published, and in batches."""
    stages, labels = (best["to_keep"], best["n_samples"]), setting.test.labels
    few, many = setting.test.first(options.timed_images), setting.test.first(options.batch_images)
    classifier = setting.classifier(timestep_range=best["range"])
    found = classifier.staged(setting.test.latents, *stages)
    cost, right = found.num_evaluations / len(labels), decide(found) == labels
    alone = one_by_one(lambda latents, _: classifier.staged(latents, *stages), few)
    yield Candidate(STAGED, alone, len(few.labels), cost, right)
    yield Candidate(STAGED_BATCHES, lambda: classifier.staged(many.latents, *stages), len(many.labels), cost, right)


def race_candidates(
    setting: Setting, held: Evidence, judged: Evidence, options: argparse.Namespace, plans: dict[str, Any]
) -> Iterator[Candidate]:
    """Ours, with and without CLIP, together and one by one; what each plan looks like is put into ``plans``."""
    support, test = setting.support, setting.test
    few, many = test.first(options.timed_images), test.first(options.batch_images)
    for what, with_clip in ((ALONE, False), (OURS, True)):
        race = Race(setting.classifier(seed=options.seed), pool_size=options.pool)
        race.plan_from(held.errors, support.labels, support.clip_scores if with_clip else None)
        plan = race.plan_
        assert plan is not None
        logits, spent = follow(plan, judged.errors, test.prior() if with_clip else None)
        cost, right = float(spent.mean()), logits.argmax(axis=1) == test.labels

        def classify(latents: Tensor, scores: np.ndarray, race: Race = race, with_clip: bool = with_clip) -> None:
            race.classify(latents, scores if with_clip else None)

        def together(classify: Callable[..., None] = classify) -> None:
            classify(many.latents, many.clip_scores)

        yield Candidate(what, together, len(many.labels), cost, right, with_clip)
        yield Candidate(f"{what}, one by one", one_by_one(classify, few), len(few.labels), cost, right, with_clip)
        plans[what] = {
            "steps": len(plan.samples),
            "timesteps": held.timesteps[plan.samples].tolist(),
            **{name: plan.as_dict()[name] for name in ("margin", "shortlist_margin", "measured")},
        }


# ------------------------------------------------------------------------------------------- the whole


def time_rows(candidates: list[Candidate], setting: Setting, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds an image of all candidates, measured in turn, and their ratios."""
    diffusion, count = setting.diffusion, BATCH_SIZE
    noisy, steps = torch.zeros(count, *diffusion.latent_shape), torch.full((count,), 500)
    hidden = setting.hidden[:1].expand(count, -1, -1)

    def bare() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=setting.bfloat16):
            diffusion.denoiser(noisy, steps, hidden, return_dict=False)

    runs: dict[str, Callable[[], Any]] = {FLOOR: bare, CLIP: lambda: setting.clip.encode_images(setting.clip_images)}
    images = {FLOOR: count, CLIP: len(setting.clip_images)} | {one.what: one.images for one in candidates}
    measured = alternate(runs | {one.what: one.run for one in candidates}, options.repeats, clock=options.clock)
    seconds = {what: np.asarray(values) / images[what] for what, values in measured.items()}
    for one in candidates:
        if one.with_clip:
            seconds[one.what] = seconds[one.what] + seconds[CLIP]
    rows = [make_row(FLOOR, seconds[FLOOR].tolist(), 1), make_row(CLIP, seconds[CLIP].tolist(), 0)]
    for one in candidates:
        values = seconds[one.what].tolist()
        row = make_row(one.what, values, one.evaluations, images_judged=len(one.right))
        rows.append(
            row
            | {
                "accuracy": float(one.right.mean()) if one.right.size else None,
                "evaluations_to_published": candidates[0].evaluations / max(one.evaluations, 1e-9),
                "ratio_to_published": paired_ratio(seconds[PUBLISHED].tolist(), values),
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
        classifier = other.classifier(timestep_range=best["range"], seed=seed)
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
    held, judged = (pool_evidence(setting, part, options) for part in ("support", "test"))
    ranges = [(0.0, 1.0), setting.diffusion.evidence_range]
    best = cheapest_stages(held, setting.support.labels, ranges, setting.diffusion.num_timesteps)
    plans: dict[str, Any] = {}
    candidates = [
        published_candidate(setting, published, decided[known] == labels[known]),
        *staged_candidates(setting, best, options),
        *race_candidates(setting, held, judged, options, plans),
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
        schedule=best,
        plans=plans,
        accuracy_of_seeds=seeds,
        accuracy_of_clip=float((setting.test.clip_scores.argmax(axis=1) == labels).mean()),
        accuracy_where_published_is_known=where_known if known.any() else {},
        aims=aims_of({row["what"]: row for row in rows}, right, known, seeds),
    )


def aims_of(
    rows: dict[str, dict[str, Any]], right: dict[str, np.ndarray], known: np.ndarray, seeds: list[float]
) -> list[dict[str, Any]]:
    """What ours must reach."""
    ours, to_staged = rows[OURS], rows[STAGED]["evaluations"] / max(rows[OURS]["evaluations"], 1e-9)
    times = "times the published schedule's {} of ours", "times the cheapest staged schedule's {} of ours"
    aims = [
        check_aim(times[0].format("evaluations"), ours["evaluations_to_published"], least=LEAST_FEWER),
        check_aim(times[0].format("time"), ours["ratio_to_published"], least=LEAST_FASTER),
        check_aim(times[1].format("evaluations"), to_staged, least=LEAST_TO_STAGED),
        check_aim(times[1].format("time"), ours["ratio_to_staged"], least=LEAST_TO_STAGED),
    ]
    if len(seeds) > 1:
        spread = float(np.std(seeds, ddof=1))
        lost = {"cheapest staged schedule": right[STAGED].mean() - right[OURS].mean()}
        if known.any():
            published = right[PUBLISHED].mean() - right[OURS][known].mean()
            lost[f"published schedule, on {known.sum()} images"] = published
        for what, value in lost.items():
            aims.append(
                check_aim(f"accuracy of the {what}, minus ours (the spread of seeds)", float(value), most=spread)
            )
    return aims


# ------------------------------------------------------------------------------------------------- main


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "classifier_cost")
    prompt_options(parser, support_images=320, support_help="images to choose settings on")
    parser.add_argument("--pool", type=int, default=32, help="(t, ε) to choose from")
    parser.add_argument("--timed-images", type=int, default=8, help="images that are timed one by one")
    parser.add_argument("--batch-images", type=int, default=64, help="images that are timed together")
    parser.add_argument("--spread-seeds", type=int, default=3, help="seeds whose spread says what is equal; 0: none")
    parser.add_argument("--published-samples", type=int, nargs=2, default=(50, 500), help="of the published stages")
    parser.add_argument("--published-seconds", type=float, default=60, help="time for the published accuracy")
    parser.add_argument("--published-only", action="store_true", help="go on with that alone, and write nothing else")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    options = parser.parse_args()
    if options.published_only:
        stages: Stages = ((5, 1), tuple(options.published_samples))
        decided = published_decisions(prepare(options), stages, options.cache, options.published_seconds)
        Console().print(f"The published schedule has decided {(decided >= 0).sum()} of {len(decided)} images.")
        return
    result = measure(options)
    publish(
        result,
        f"Classifying {result['images']} images, {result['support_images']} to choose settings on; "
        f"published accuracy on {result['published_images']}",
        options.output,
    )


if __name__ == "__main__":
    main()
