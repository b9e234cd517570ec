"""Classifying with a diffusion model: the published procedure beside ours, shortcut by shortcut.

    python benchmarks/classifier_cost.py           # prints tables, writes benchmarks/results/classifier_cost.json

Published: Li et al.'s staged schedule for ten classes, one image at a time: every class on 50 (t, ε), the best five
on 500, 2,750 denoiser evaluations. The second baseline is the cheapest staged schedule that loses at most one point
against the plain mean of a pool of (t, ε) on support photographs outside the exemplars; it may also use the preset's
own range of noise levels. Ours is chosen on the same photographs. All use the same prompts and the same precision.

The published schedule takes minutes on all test photographs. It runs for --published-seconds, keeps its decisions in
--cache, and goes on there when it is called again; accuracies are compared on the photographs it has decided.
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
from measuring import outside
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gcpl_lab.backbones.clip import FrozenCLIP
from gcpl_lab.backbones.diffusion import FrozenDiffusion
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import ImageSet, read_class_folders, read_images
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.estimators import GCPLClassifier
from gcpl_lab.methods.baselines import ZeroShotCLIP
from gcpl_lab.methods.diffusion_classifier import DiffusionClassifier, Evidence, class_scores
from gcpl_lab.methods.fast_classifier import FastClassifier, Shortcuts
from gcpl_lab.methods.racing import race
from gcpl_lab.storage import read_tensors, tensor_checksum, write_json, write_tensors
from gcpl_lab.training.runtime import describe_machine

Stages = tuple[tuple[int, ...], tuple[int, ...]]
LARGEST_DIFFERENCE = 1e-5
STAGES = [
    (keep, samples)
    for keep in ((1,), (2, 1), (3, 1), (5, 1))
    for samples in product((1, 2, 3, 4, 6, 8, 12, 16, 24), repeat=len(keep))
    if len(samples) == 1 or samples[0] < samples[1]
]
CURVE_SIZES = (10, 25, 50, 100)


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
    clip_seconds: float
    bfloat16: bool

    def fast(self, shortcuts: Shortcuts, **settings: Any) -> FastClassifier:
        """A classifier with some shortcuts."""
        return FastClassifier(self.diffusion, self.hidden, shortcuts=shortcuts, bfloat16=self.bfloat16, **settings)


def look(
    diffusion: FrozenDiffusion, clip: FrozenCLIP, data: ImageSet, chosen: np.ndarray, zero_shot: Any
) -> tuple[Photographs, float]:
    """Encode photographs; the seconds are what CLIP takes an image."""
    pictures = read_images([data.images[int(index)] for index in chosen])
    latents = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess(pictures))[0])
    began = time.perf_counter()
    scores = zero_shot.scores(clip.encode_images(pictures)).numpy()
    seconds = (time.perf_counter() - began) / len(pictures)
    return Photographs(latents, data.labels[chosen], scores), seconds


def prepare(options: argparse.Namespace) -> Setting:
    """Prompts learned from the exemplars of an episode, or loaded."""
    support, test = load_fashion("support"), load_fashion("test")
    exemplars = draw_episode(support, 16, options.seed)
    diffusion, clip = FrozenDiffusion.load(options.preset), FrozenCLIP.load(options.preset)
    if options.prompts:
        model = GCPLClassifier.load(options.prompts, diffusion)
    else:
        model = GCPLClassifier(options.preset, "gcpl", seed=options.seed, diffusion=diffusion,
                               **({"num_steps": options.train_steps} if options.train_steps else {}))  # fmt: skip
        model.fit([support.images[i] for i in exemplars], support.labels[exemplars], list(support.class_names))
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*model.prompts_())
    zero_shot = ZeroShotCLIP(clip, support.class_names)
    held, _ = look(diffusion, clip, support, outside(support, exemplars, options.support_images, options.seed),
                   zero_shot)  # fmt: skip
    every = np.linspace(0, len(test) - 1, min(options.images, len(test))).astype(int)
    judged, seconds = look(diffusion, clip, test, every, zero_shot)
    return Setting(diffusion, hidden, held, judged, seconds, not options.float32)


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
    key = tensor_checksum([("hidden", setting.hidden), ("latents", setting.test.latents)])
    key += f"{setting.diffusion.checksum()} {setting.bfloat16} {stages}"
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
                found = {"to_keep": keep, "n_samples": samples, "range": low_high, "evaluations": spent,
                         "support_accuracy": right, "wanted": wanted}  # fmt: skip
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


# ----------------------------------------------------------------------------------------------- timing


def timed(run: Callable[[], Any], repeats: int, images: int) -> tuple[float, float]:
    """Median and spread of seconds an image."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - began) / images)
    return float(np.median(seconds)), float(max(seconds) - min(seconds))


def one_by_one(classify: Callable[[Tensor, np.ndarray], Any], some: Photographs) -> Callable[[], None]:
    """A call that classifies photographs one at a time."""

    def run() -> None:
        for index in range(len(some.labels)):
            classify(some.latents[index : index + 1], some.clip_scores[index : index + 1])

    return run


def bare_evaluation(setting: Setting, repeats: int) -> float:
    """Seconds of one denoiser evaluation in a full pass with nothing around it: the floor."""
    diffusion, count = setting.diffusion, 256
    noisy, steps = torch.zeros(count, *diffusion.latent_shape), torch.full((count,), 500)
    hidden = setting.hidden[:1].expand(count, -1, -1)

    def run() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=setting.bfloat16):
            diffusion.denoiser(noisy, steps, hidden, return_dict=False)

    return timed(run, repeats, count)[0]


# ------------------------------------------------------------------------------------------------ rows


def variants() -> Iterator[tuple[str, Shortcuts, bool]]:
    """Statistical shortcuts, each alone and together, and whether they see CLIP's scores."""
    yield "no statistical shortcut, same pool", Shortcuts.none(), False
    yield "chosen (t, ε) alone", Shortcuts.none(choose_samples=True), False
    yield "stopping by posterior alone", Shortcuts.none(stopping="posterior"), False
    yield "stopping by e-process alone", Shortcuts.none(stopping="e_process", error_rate=0.1), False
    yield "shortlist by CLIP alone", Shortcuts.none(shortlist=True), True
    yield "class tree alone", Shortcuts.none(class_tree=True), False
    yield "all without CLIP", Shortcuts(shortlist=False), False
    yield "all together", Shortcuts(), True


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything, in one run."""
    setting = prepare(options)
    largest = check_equal(setting)
    published: Stages = ((5, 1), tuple(options.published_samples))
    decided = published_decisions(setting, published, options.cache, options.published_seconds)
    known = decided >= 0
    settings = {"pool_size": options.pool, "seed": options.seed}
    exact = setting.fast(Shortcuts(), **settings)
    held, judged = exact.exact(setting.support.latents, options.pool), exact.exact(setting.test.latents, options.pool)
    bare, few = bare_evaluation(setting, options.repeats), setting.test.first(options.timed_images)
    rows: list[dict[str, Any]] = []

    def add(what: str, seconds: tuple[float, float], evaluations: float, right: np.ndarray, **more: Any) -> None:
        rows.append({"what": what, "seconds": seconds[0], "spread": seconds[1], "evaluations": evaluations,
                     "accuracy": float(right.mean()) if right.size else None,
                     "ratio_to_floor": seconds[0] / max(evaluations * bare, bare),
                     **more})  # fmt: skip

    labels = setting.test.labels
    for what, shortcuts in (
        ("published schedule, one by one", Shortcuts.none()),
        ("the same, shared prefix", Shortcuts.none(share_prefix=True)),
        ("the same, cached keys", Shortcuts.none(cache_keys=True)),
        ("the same, both", Shortcuts.none(share_prefix=True, cache_keys=True)),
    ):
        classifier = setting.fast(shortcuts, batch_size=32)
        one = setting.test.first(1)
        took = timed(one_by_one(lambda z, _, c=classifier: c.staged(z, *published), one), options.repeats, 1)  # type: ignore[misc]
        first, last = published[1]
        cost = classifier.num_classes * first + min(5, classifier.num_classes) * (last - first)
        add(what, took, cost, decided[known] == labels[known],
            equivalent_evaluations=classifier.shared.equivalent_evaluations(cost, last))  # fmt: skip
    best = cheapest_stages(held, setting.support.labels, [(0.0, 1.0), setting.diffusion.evidence_range],
                           setting.diffusion.num_timesteps)  # fmt: skip
    staged = setting.fast(Shortcuts.none(), timestep_range=best["range"], batch_size=32)
    stages = (best["to_keep"], best["n_samples"])
    took = timed(one_by_one(lambda z, _: staged.staged(z, *stages), few), options.repeats, len(few.labels))
    quick = setting.fast(Shortcuts(), timestep_range=best["range"], batch_size=256)
    found = quick.staged(setting.test.latents, *stages)
    add(f"cheapest staged, keep {best['to_keep']}, {best['n_samples']} samples", took,
        found.num_evaluations / len(labels), decide(found) == labels)  # fmt: skip
    plans = {}
    for what, shortcuts, with_clip in variants():
        classifier = setting.fast(shortcuts, **settings)
        priors = [classifier._prior(p.clip_scores if with_clip else None, len(p.labels))
                  for p in (setting.support, setting.test)]  # fmt: skip
        plan = classifier.plan_from(held, setting.support.labels, priors[0]).plan_

        def ask(triples: np.ndarray, order: np.ndarray = plan.samples) -> np.ndarray:
            return judged.errors[triples[:, 0], triples[:, 1], order[triples[:, 2]]]

        went = race(ask, plan, len(labels), classifier.num_classes, priors[1])

        def run(z: Tensor, scores: np.ndarray, c: Any = classifier, clip: bool = with_clip) -> Any:
            return c.classify(z, scores if clip else None)

        cost, right = went.num_pairs / len(labels), went.logits.argmax(axis=1) == labels
        equivalent = classifier.shared.equivalent_evaluations(went.num_pairs, went.num_rows) / len(labels)
        extra = setting.clip_seconds if with_clip else 0.0
        took = timed(lambda r=run: r(few.latents, few.clip_scores), options.repeats, len(few.labels))  # type: ignore[misc]
        add(what, (took[0] + extra, took[1]), cost, right, equivalent_evaluations=equivalent,
            accuracy_where_published_is_known=float(right[known].mean()) if known.any() else None)  # fmt: skip
        plans[what] = {"steps": len(plan.samples), "timesteps": held.timesteps[plan.samples].tolist(),
                       "margin": plan.margin, "shortlist_margin": plan.shortlist_margin, **plan.measured}  # fmt: skip
        if what == "all together":
            took = timed(one_by_one(run, few), options.repeats, len(few.labels))
            add("all together, one by one", (took[0] + extra, took[1]), cost, right, equivalent_evaluations=equivalent)
    rows += noise_rows(setting, options, bare)
    for row in rows:
        row["ratio_to_published"] = rows[0]["seconds"] / row["seconds"]
        row["evaluations_to_published"] = rows[0]["evaluations"] / row["evaluations"] if row["evaluations"] else None
    return {
        "name": "classifier_cost", "machine": describe_machine(), "preset": options.preset, "images": len(labels),
        "published_images": int(known.sum()), "support_images": len(setting.support.labels), "pool": options.pool,
        "repeats": options.repeats, "bfloat16": setting.bfloat16, "largest_difference": largest,
        "bare_evaluation_seconds": bare, "clip_seconds": setting.clip_seconds, "sharing": exact.shared.statement,
        "prefix_share": exact.shared.prefix_share, "keys_share": exact.shared.keys_share,
        "cheapest_staged": {**best, "evaluations": int(best["evaluations"])}, "plans": finite(plans), "rows": rows,
        "curve": curve(options, setting) if options.curve_images else [],
    }  # fmt: skip


def finite(value: Any) -> Any:
    """Margins that are infinite as None: JSON has no infinity."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def noise_rows(setting: Setting, options: argparse.Namespace, bare: float) -> list[dict[str, Any]]:
    """The plain mean of few samples in the preset's range, with each kind of noise, over several seeds."""
    rows, few, count = [], setting.test.first(options.noise_images), 4
    for kind in ("independent", "antithetic", "stratified"):
        accuracies, seconds = [], []
        for seed in range(options.noise_seeds):
            classifier = setting.fast(Shortcuts(noise=kind), seed=seed, timestep_range=setting.diffusion.evidence_range)  # type: ignore[arg-type]
            began = time.perf_counter()
            evidence = classifier.exact(few.latents, count)
            seconds.append((time.perf_counter() - began) / len(few.labels))
            accuracies.append(float((decide(evidence) == few.labels).mean()))
        cost = count * classifier.num_classes
        rows.append({"what": f"plain mean of {count}, {kind} noise", "seconds": float(np.median(seconds)),
                     "spread": float(max(seconds) - min(seconds)), "evaluations": cost,
                     "accuracy": float(np.mean(accuracies)), "accuracy_spread": float(np.std(accuracies)),
                     "ratio_to_floor": float(np.median(seconds)) / (cost * bare)})  # fmt: skip
    return rows


# ----------------------------------------------------------------------------------------- more classes


def curve(options: argparse.Namespace, setting: Setting) -> list[dict[str, Any]]:
    """Evaluations an image against the number of classes, on CIFAR-100; empty where the photographs are absent."""
    import tempfile
    import zipfile

    if not options.cifar.exists():
        return []
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(options.cifar) as archive:
        archive.extractall(folder)
        data = {split: read_class_folders(Path(folder) / "cifar100" / split) for split in ("train", "test")}
        order = np.random.default_rng(options.seed).permutation(len(data["train"].class_names))
        names = [data["train"].class_names[label] for label in order]
        place = np.argsort(order)  # class id → its position in the order
        members = {split: [np.flatnonzero(part.labels == label) for label in order] for split, part in data.items()}
        clip, diffusion = FrozenCLIP.load(options.preset), setting.diffusion
        model = GCPLClassifier(options.preset, "gcpl", seed=options.seed, diffusion=diffusion,
                               num_steps=options.curve_steps, class_offsets=False, num_evidence=1)  # fmt: skip
        chosen = np.concatenate([some[:2] for some in members["train"]])
        images = [data["train"].images[int(index)] for index in chosen]
        for record in model.steps(images, place[data["train"].labels[chosen]], names):
            if record.step == options.curve_steps:
                break  # temperatures of a hundred classes are not needed
        with torch.no_grad():
            hidden = diffusion.encode_prompts(*model.prompts_())
        zero_shot, points = ZeroShotCLIP(clip, names), []
        for size in CURVE_SIZES:
            parts = []
            for split, start in (("train", 2), ("test", 0)):
                wanted = np.concatenate([
                    some[start : start + -(-options.curve_images // size)] for some in members[split][:size]
                ])  # fmt: skip
                wanted = np.random.default_rng(0).permutation(wanted)[: options.curve_images]
                seen, _ = look(diffusion, clip, data[split], wanted, zero_shot)
                parts.append(Photographs(seen.latents, place[seen.labels], seen.clip_scores[:, :size]))
            points.append(curve_point(setting._replace(hidden=hidden[:size], support=parts[0], test=parts[1])))
    return points


def curve_point(setting: Setting, samples: int = 6) -> dict[str, Any]:
    """All classes on a few samples, against the shortcuts with a class tree, with and without CLIP."""
    plain = setting.fast(Shortcuts(), pool_size=samples, timestep_range=setting.diffusion.evidence_range)
    held = plain.exact(setting.support.latents, samples)
    everything = decide(plain.exact(setting.test.latents, samples))
    num, classes = len(setting.test.labels), plain.num_classes
    point: dict[str, Any] = {
        "classes": classes, "images": num, "all_evaluations": classes * samples,
        "all_accuracy": float((everything == setting.test.labels).mean()),
    }  # fmt: skip
    for name, with_clip in (("tree", False), ("tree_and_clip", True)):
        shortcuts = Shortcuts(class_tree=True, shortlist=with_clip, max_steps=samples, coverage=0.8, error_rate=0.1)
        fast = setting.fast(shortcuts, pool_size=samples, timestep_range=setting.diffusion.evidence_range)
        priors = [fast._prior(p.clip_scores if with_clip else None, len(p.labels))
                  for p in (setting.support, setting.test)]  # fmt: skip
        fast.plan_from(held, setting.support.labels, priors[0])
        found = fast.classify(setting.test.latents, setting.test.clip_scores if with_clip else None)
        point[f"{name}_evaluations"] = found.num_evaluations / num
        point[f"{name}_accuracy"] = float((found.logits.argmax(axis=1) == setting.test.labels).mean())
    return point


# ------------------------------------------------------------------------------------------------- main


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=132)
    table = Table(title=f"Classifying {result['images']} photographs, {result['support_images']} to choose settings on")
    for heading in ("what", "evaluations", "in whole ones", "accuracy", "seconds an image", "spread",
                    "published / this", "evaluations", "this / bare"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in result["rows"]:
        whole = row.get("equivalent_evaluations")
        fewer = row["evaluations_to_published"]
        table.add_row(
            row["what"], f"{row['evaluations']:.1f}", "" if whole is None else f"{whole:.1f}",
            "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %",
            f"{row['seconds']:.4f}", f"{row['spread']:.4f}",
            f"{row['ratio_to_published']:.0f}", "" if fewer is None else f"{fewer:.0f}", f"{row['ratio_to_floor']:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(f"Published accuracy on {result['published_images']} photographs. Exact shortcuts differ by at most "
                  f"{result['largest_difference']:.1e}. {result['machine']}")  # fmt: skip
    if result["curve"]:
        table = Table(title="More classes (CIFAR-100): evaluations an image, accuracy")
        for heading in ("classes", "all classes", "tree and stopping", "and CLIP's shortlist"):
            table.add_column(heading, justify="right")
        for point in result["curve"]:
            table.add_row(str(point["classes"]), *(
                f"{point[f'{name}_evaluations']:.0f}, {100 * point[f'{name}_accuracy']:.0f} %"
                for name in ("all", "tree", "tree_and_clip")
            ))  # fmt: skip
        console.print(table)


def main() -> None:
    """Measure, print and write."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", help="name of the frozen models, or a folder")
    parser.add_argument("--prompts", type=Path, help="folder of a saved classifier; by default prompts are learned")
    parser.add_argument("--train-steps", type=int, help="updates, where prompts are learned (default: the package's)")
    parser.add_argument("--images", type=int, default=500, help="test photographs")
    parser.add_argument("--support-images", type=int, default=200, help="photographs to choose settings on")
    parser.add_argument("--pool", type=int, default=32, help="(t, ε) to choose from")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each")
    parser.add_argument("--timed-images", type=int, default=8, help="photographs that are timed one by one")
    parser.add_argument("--noise-images", type=int, default=200, help="photographs for the kinds of noise")
    parser.add_argument("--noise-seeds", type=int, default=1, help="seeds for the kinds of noise")
    parser.add_argument("--published-samples", type=int, nargs=2, default=(50, 500), help="of the published stages")
    parser.add_argument("--published-seconds", type=float, default=60, help="time for the published accuracy")
    parser.add_argument("--cache", type=Path, default=here.parent / "runs" / "benchmarks")
    parser.add_argument("--cifar", type=Path, default=here.parents[1] / "shared" / "data" / "cifar100.zip")
    parser.add_argument("--curve-images", type=int, default=60, help="photographs a number of classes; 0: no curve")
    parser.add_argument("--curve-steps", type=int, default=60, help="updates of the curve's prompts")
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=here / "results" / "classifier_cost.json")
    options = parser.parse_args()
    result = measure(options)
    write_json(options.output, result)
    show(result)


if __name__ == "__main__":
    main()
