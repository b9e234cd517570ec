"""How the diffusion classifier's cost grows with the number of classes, on prompts that work.

    python benchmarks/growth.py     # a table; benchmarks/results/growth.json, docs/growth.md and docs/growth.png

A hundred classes are made of the bundled photographs: a coarse name and what can be measured of a picture, such as
"dark sleeved wide hanging top". The frozen pair knows these words from its pretraining, so the prompts are the names
and nothing is learned from exemplars. Thirds of every measure are found on support photographs, and the classes are
those with the most of them. Every number of classes is a random part of the hundred, another one for each seed, with
the photographs of these classes: support photographs to calibrate on, test photographs to judge.

Errors of every photograph under every prompt on a pool of (t, ε) are found once and kept in --cache; a call that was
stopped goes on there. How many evaluations a shortcut would have asked for follows from them, and the time is measured
on the classifiers themselves.

A straight line through log evaluations over log classes gives the exponent p in evaluations ~ classes^p; its interval
is that of the mean over seeds (95 %, t distribution).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from measuring import (
    KEPT,
    alternate,
    benchmark_options,
    check_aim,
    make_result,
    make_row,
    paired_ratio,
    publish,
    replace_measured,
)
from PIL import Image
from scipy.special import log_softmax
from scipy.stats import linregress, t
from torch import Tensor

from gcpl_lab.baselines.clip_features import ZeroShotCLIP
from gcpl_lab.data.captions import ATTRIBUTE_WORDS, COARSE_NAMES, AttributeScale
from gcpl_lab.data.fashion import FASHION_CLASSES, family_of
from gcpl_lab.data.readers import ImageSet, read_images
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.fast.fast_classifier import FastClassifier, Shortcuts
from gcpl_lab.fast.racing import race
from gcpl_lab.gcpl.classifier import Evidence, class_scores
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.storage import read_tensors, tensor_checksum, write_tensors

MEASURES = {
    "tops": ("tone", "sleeves", "width", "cuffs"),
    "footwear": ("tone", "length", "texture", "width"),
    "trousers": ("tone", "width"),
    "bags": ("tone", "width", "length", "fill"),
}
"""What a class is made of, in the order of its name: of support photographs CLIP tells three in four or more right."""

SIZES = (10, 25, 50, 100)
BATCH_SIZE, BLOCK = 128, 20
"""Denoiser evaluations in a pass; photographs whose errors are kept together."""

MOST_EXPONENT, MOST_LOST = 0.8, 0.02
EVERY, ALONE, WITH_CLIP = "every class", "denoiser alone, all shortcuts", "CLIP too, all shortcuts"
VARIANTS: dict[str, Shortcuts] = {
    "stopping": Shortcuts.none(stopping="posterior"),
    "class tree": Shortcuts.none(class_tree=True),
    "probes": Shortcuts.none(probes=True),
    "chosen (t, ε), stopping": Shortcuts(shortlist=False),
    "chosen (t, ε), stopping, class tree": Shortcuts(shortlist=False, class_tree=True),
    ALONE: Shortcuts(shortlist=False, probes=True),
    "shortlist by CLIP": Shortcuts.none(shortlist=True),
    WITH_CLIP: Shortcuts(probes=True),
}
"""Shortcuts by their name in tables; those with a shortlist read CLIP's scores."""

DOCUMENT = Path(__file__).parents[1] / "docs" / "growth.md"


class Photographs(NamedTuple):
    """Some photographs of the classes.

    Attributes:
        latents: z0, scaled.
        labels: int64 (image,).
        clip_scores: Logits (image, class).
        errors: (image, class, pool).
    """

    latents: Tensor
    labels: np.ndarray
    clip_scores: np.ndarray
    errors: np.ndarray

    def of_classes(self, classes: np.ndarray) -> Photographs:
        """Those of some classes, whose order becomes the labels; all else about other classes is left out."""
        place = np.full(self.errors.shape[1], -1)
        place[classes] = np.arange(len(classes))
        return self.some(np.flatnonzero(place[self.labels] >= 0))._replace(
            labels=place[self.labels][place[self.labels] >= 0],
            clip_scores=self.clip_scores[place[self.labels] >= 0][:, classes],
            errors=self.errors[place[self.labels] >= 0][:, classes],
        )

    def some(self, rows: np.ndarray) -> Photographs:
        """Those of some rows."""
        return Photographs(self.latents[torch.from_numpy(rows)], *(part[rows] for part in self[1:]))

    def prior(self, shortcuts: Shortcuts) -> np.ndarray | None:
        """CLIP's log-probabilities, where the shortcuts read them."""
        return log_softmax(self.clip_scores.astype(np.float64), axis=1) if shortcuts.shortlist else None


class Setting(NamedTuple):
    """Models, prompts and photographs; ``pictures`` are those of the test photographs, in their order."""

    diffusion: FrozenDiffusion
    clip: FrozenCLIP
    pictures: list[Image.Image]
    names: tuple[str, ...]
    hidden: Tensor
    support: Photographs
    test: Photographs


# ------------------------------------------------------------------------------------------- the classes


def describe(data: ImageSet, scale: AttributeScale) -> list[str]:
    """What each photograph shows, in words: its name among the fine classes."""
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for path in data.images])
    names = []
    for label, levels in zip(data.labels, scale.levels(pixels, data.labels), strict=True):
        family = family_of(FASHION_CLASSES[label])
        words = [ATTRIBUTE_WORDS[family][measure][levels[measure]] for measure in MEASURES[family]]
        names.append(" ".join([*words, COARSE_NAMES[family]]))
    return names


def fine_classes(count: int) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The classes with the most support photographs, and each photograph's class: −1 where it is of another.

    Returns:
        Names (class,), and int64 (image,) for ``"support"`` and ``"test"``.

    Raises:
        SystemExit: There are not so many.
    """
    support, test = load_fashion("support"), load_fashion("test")
    pixels = np.stack([np.asarray(Image.open(path).convert("L")) for path in support.images])
    scale = AttributeScale.fit(pixels, support.labels)
    described = {"support": describe(support, scale), "test": describe(test, scale)}
    names = tuple(name for name, _ in Counter(described["support"]).most_common(count))
    if len(names) < count:
        raise SystemExit(f"{count} classes were asked for and the photographs show {len(names)}; ask for fewer")
    place = {name: index for index, name in enumerate(names)}
    return names, {split: np.array([place.get(name, -1) for name in found]) for split, found in described.items()}


def prepare(options: argparse.Namespace) -> Setting:
    """Everything that all numbers of classes share."""
    diffusion, clip = FrozenDiffusion.load(options.preset), FrozenCLIP.load(options.preset)
    names, labels = fine_classes(max(options.sizes))
    hidden, reader = diffusion.encode_texts([f"a photo of a {name}" for name in names]), ZeroShotCLIP(clip, names)
    parts = []
    for split, count in (("support", options.support_images), ("test", options.images)):
        data: ImageSet = load_fashion(split)  # type: ignore[arg-type]
        known = np.flatnonzero(labels[split] >= 0)
        chosen = np.sort(np.random.default_rng([options.seed, 53]).permutation(known)[:count])
        pictures = read_images([data.images[int(index)] for index in chosen])
        latents = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess(pictures))[0])
        scores = reader.scores(clip.encode_images(pictures)).numpy()
        files = [data.images[int(index)].name for index in chosen]
        errors = pool_errors(diffusion, hidden, latents, repr((names, files, diffusion.checksum())), options)
        parts.append(Photographs(latents, labels[split][chosen], scores, errors))
    return Setting(diffusion, clip, pictures, names, hidden, *parts)


def classifier(
    setting: Setting, classes: np.ndarray, shortcuts: Shortcuts, options: argparse.Namespace
) -> FastClassifier:
    """A classifier for some of the classes."""
    return FastClassifier(
        setting.diffusion,
        setting.hidden[torch.from_numpy(classes)],
        shortcuts=shortcuts,
        pool_size=options.pool,
        timestep_range=setting.diffusion.evidence_range,
        seed=options.seed,
        batch_size=BATCH_SIZE,
        bfloat16=True,
    )


def pool_errors(
    diffusion: FrozenDiffusion, hidden: Tensor, latents: Tensor, identity: str, options: argparse.Namespace
) -> np.ndarray:
    """Errors (image, class, pool) under every prompt, block by block: what is kept is not found again."""
    whole = FastClassifier(
        diffusion,
        hidden,
        shortcuts=Shortcuts(),
        timestep_range=diffusion.evidence_range,
        seed=options.seed,
        batch_size=BATCH_SIZE,
        bfloat16=True,
    )
    parts = []
    for start in range(0, len(latents), BLOCK):
        key = f"{identity} {options.pool} {options.seed} {start}"
        path = options.cache / f"growth-{tensor_checksum([(key, torch.zeros(1))])[:16]}.safetensors"
        if not path.exists():
            options.cache.mkdir(parents=True, exist_ok=True)
            found = whole.exact(latents[start : start + BLOCK], options.pool).errors
            write_tensors(path, {"errors": torch.from_numpy(found)})
        parts.append(read_tensors(path)[0]["errors"].numpy())
    return np.concatenate(parts)


# ------------------------------------------------------------------------------------------ what it costs


def judge(setting: Setting, size: int, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Accuracy and evaluations a photograph of every variant on one random part of the classes."""
    rng = np.random.default_rng([seed, 59])
    classes = rng.permutation(len(setting.names))[:size]
    known, judged = setting.support.of_classes(classes), setting.test.of_classes(classes)
    # All seeds have the same hundred classes, but never the same photographs to calibrate on.
    known = known.some(np.sort(rng.permutation(len(known.labels))[: max(2, round(0.8 * len(known.labels)))]))
    every = class_scores(judged.errors, "absolute").argmax(axis=1)
    found: dict[str, dict[str, float]] = {
        EVERY: {"accuracy": float((every == judged.labels).mean()), "evaluations": float(size * options.pool)},
        "CLIP alone": {
            "accuracy": float((judged.clip_scores.argmax(axis=1) == judged.labels).mean()),
            "evaluations": 0.0,
        },
    }
    for what, shortcuts in VARIANTS.items():
        plan = calibrated(setting, classes, known, shortcuts, options).plan_

        def ask(triples: np.ndarray, order: np.ndarray = plan.samples) -> np.ndarray:
            return judged.errors[triples[:, 0], triples[:, 1], order[triples[:, 2]]]

        went = race(ask, plan, len(judged.labels), size, judged.prior(shortcuts))
        found[what] = {
            "accuracy": float((went.logits.argmax(axis=1) == judged.labels).mean()),
            "evaluations": went.num_pairs / len(judged.labels),
            "steps": len(plan.samples),
            "probes": 0 if plan.probes is None else len(plan.probes.classes),
            **{name: value for name, value in plan.measured.items() if name.endswith(("_recall", "_size"))},
        }
    return found


def calibrated(
    setting: Setting, classes: np.ndarray, known: Photographs, shortcuts: Shortcuts, options: argparse.Namespace
) -> FastClassifier:
    """A classifier that has learned its shortcuts from known errors."""
    fast = classifier(setting, classes, shortcuts, options)
    timesteps = fast._timesteps(options.pool).numpy()
    return fast.plan_from(Evidence(known.errors, timesteps, known.errors.size), known.labels, known.prior(shortcuts))


def exponent_of(sizes: Sequence[int], evaluations: np.ndarray) -> dict[str, Any] | None:
    """p in evaluations ~ classes^p, of evaluations (seed, size); None where next to none were needed somewhere.

    Returns:
        ``exponent``, its 95 % interval ``low`` to ``high`` (None with one seed), and ``of_seeds``.
    """
    if evaluations.min() < 0.5:
        return None
    found = [float(linregress(np.log(sizes), np.log(values)).slope) for values in evaluations]
    mean = float(np.mean(found))
    if len(found) == 1:
        return {"exponent": mean, "low": None, "high": None, "of_seeds": found}
    half = float(t.ppf(0.975, len(found) - 1) * np.std(found, ddof=1) / np.sqrt(len(found)))
    return {"exponent": mean, "low": mean - half, "high": mean + half, "of_seeds": found}


def time_rows(
    setting: Setting, points: Sequence[Mapping[str, Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Seconds a photograph of three ways to classify, measured in turn on the same photographs.

    Where CLIP's scores are read, the time of its image tower counts.
    """
    few = setting.test.some(np.arange(min(options.timed_images, len(setting.test.labels))))
    looked = setting.pictures[: len(few.labels)]
    runs: dict[str, Callable[[], Any]] = {}
    for size in options.sizes:
        classes = np.random.default_rng([options.seed, 59]).permutation(len(setting.names))[:size]
        known = setting.support.of_classes(classes)
        plain = classifier(setting, classes, Shortcuts(), options)
        runs[f"{size} classes: {EVERY}"] = lambda c=plain: c.exact(few.latents, options.pool)
        for what in (ALONE, WITH_CLIP):
            fast = calibrated(setting, classes, known, VARIANTS[what], options)
            runs[f"{size} classes: {what}"] = lambda c=fast: c.classify(few.latents)
            if VARIANTS[what].shortlist:
                scores = few.clip_scores[:, classes]
                runs[f"{size} classes: {what}"] = lambda c=fast, s=scores: (
                    setting.clip.encode_images(looked),
                    c.classify(few.latents, s),
                )
    measured = alternate(runs, options.repeats, clock=options.clock)
    rows = []
    for point in points:
        every = measured[f"{point['classes']} classes: {EVERY}"]
        for what in (EVERY, ALONE, WITH_CLIP):
            values, found = measured[f"{point['classes']} classes: {what}"], point["variants"][what]
            row = make_row(
                f"{point['classes']} classes: {what}",
                [value / len(few.labels) for value in values],
                found["evaluations"],
                accuracy=found["accuracy"],
            )
            rows.append(row | {"ratio_to_published": paired_ratio(every, values)})
    return rows


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole."""
    setting, points = prepare(options), []
    for size in options.sizes:
        found = [judge(setting, size, seed, options) for seed in range(options.seeds)]
        variants = {
            what: {
                **{
                    name: float(np.mean([one[what][name] for one in found]))
                    for name in found[0][what]
                    if all(name in one[what] for one in found)
                },
                "accuracy_of_seeds": [one[what]["accuracy"] for one in found],
                "evaluations_of_seeds": [one[what]["evaluations"] for one in found],
            }
            for what in found[0]
        }
        points.append({"classes": size, "chance": 1 / size, "variants": variants})
    exponents = {}
    for what in (EVERY, *VARIANTS):
        spent = np.array([point["variants"][what]["evaluations_of_seeds"] for point in points])
        exponents[what] = exponent_of(options.sizes, spent.T)
    lost = [point["variants"][EVERY]["accuracy"] - point["variants"][ALONE]["accuracy"] for point in points]
    aims = [
        check_aim(
            f"accuracy of {EVERY}, minus {ALONE}: the most over the numbers of classes", max(lost), most=MOST_LOST
        )
    ]
    of_ours = exponents[ALONE]
    if of_ours is not None and of_ours["high"] is not None:
        aims.append(check_aim(f"upper end of the exponent's interval, {ALONE}", of_ours["high"], most=MOST_EXPONENT))
    return make_result(
        "growth",
        time_rows(setting, points, options),
        options.repeats,
        clock=options.clock,
        preset=options.preset,
        images=len(setting.test.labels),
        support_images=len(setting.support.labels),
        pool=options.pool,
        seeds=options.seeds,
        names=list(setting.names),
        points=points,
        exponents=exponents,
        aims=aims,
    )


# ------------------------------------------------------------------------------------------------ the page

DRAWN = (EVERY, "chosen (t, ε), stopping", "chosen (t, ε), stopping, class tree", ALONE, "shortlist by CLIP", WITH_CLIP)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Evaluations and accuracy over the number of classes; bars span the seeds."""
    from matplotlib.ticker import FixedLocator, NullLocator

    from gcpl_lab.views import style

    sizes = [point["classes"] for point in result["points"]]
    with style.figure_style():
        figure = style.new_figure(13.5, 5.8)
        axes = figure.subplots(1, 2)
        for ax, measure in zip(axes, ("evaluations", "accuracy"), strict=True):
            for index, what in enumerate((*DRAWN, "CLIP alone") if measure == "accuracy" else DRAWN):
                of_seeds = np.array([point["variants"][what][f"{measure}_of_seeds"] for point in result["points"]])
                colour, marker = style.PALETTE[index % len(style.PALETTE)], style.MARKERS[index % len(style.MARKERS)]
                mean = of_seeds.mean(axis=1)
                around = np.stack([mean - of_seeds.min(axis=1), of_seeds.max(axis=1) - mean]).clip(0)  # rounding
                ax.errorbar(sizes, mean, around, marker=marker, color=colour, label=what, capsize=3, linewidth=1.6)
            ax.set(xscale="log", xlabel="classes")
            ax.xaxis.set(major_locator=FixedLocator(sizes), minor_locator=NullLocator(), major_formatter="{x:g}")
        axes[0].set(yscale="symlog", ylabel="evaluations a photograph")
        axes[0].set_ylim(-0.1, 1.5 * max(point["variants"][EVERY]["evaluations"] for point in result["points"]))
        axes[0].yaxis.set(
            major_locator=FixedLocator([0, 1, 2, 5, 10, 20, 50, 100, 200, 500]),
            minor_locator=NullLocator(),
            major_formatter="{x:g}",
        )
        axes[1].plot(sizes, [1 / size for size in sizes], ":", color="black", label="chance")
        axes[1].set(ylim=(0, 1), ylabel="accuracy")
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=11)
        figure.savefig(path, dpi=110)


def measured_lines(result: Mapping[str, Any], figure: str) -> list[str]:
    """The page's measured part."""
    points = result["points"]
    lines = [
        "| evaluations a photograph, accuracy | "
        + " | ".join(f"{p['classes']} classes" for p in points)
        + " | exponent p (95 %) |",
        "| --- |" + " ---: |" * (len(points) + 1),
    ]
    for what in points[0]["variants"]:
        shown = [point["variants"][what] for point in points]
        cells = [f"{one['evaluations']:.1f}, {100 * one['accuracy']:.1f} %" for one in shown]
        found = result["exponents"].get(what)
        last = "" if found is None else f"{found['exponent']:.2f}"
        if found is not None and found["high"] is not None and found["low"] < found["high"]:
            last += f" ({found['low']:.2f} to {found['high']:.2f})"
        lines.append("| " + " | ".join([what, *cells, last]) + " |")
    lines.append("| chance | " + " | ".join(f"{100 * p['chance']:.1f} %" for p in points) + " | |")
    ours = [
        f"{p['classes']} classes: {p['variants'][ALONE]['probes']:.0f} probes, {p['variants'][ALONE]['steps']:.1f} "
        "(t, ε)"
        for p in points
    ]
    lines += [
        "",
        f"Means of {result['seeds']} seeds. On average {ALONE}: {'; '.join(ours)}.",
        "",
        f"![Evaluations and accuracy over the number of classes]({figure})",
        "",
        "| seconds a photograph | median | every class / this |",
        "| --- | ---: | ---: |",
    ]
    for row in result["rows"]:
        lines.append(f"| {row['what']} | {row['seconds']:.3g} | {row['ratio_to_published']:.2f} |")
    machine = result["machine"]
    return [
        *lines,
        "",
        f"{machine['processor']}, {machine['threads']} threads, preset {result['preset']}; "
        f"{result['images']} test photographs, {result['support_images']} of the support pool; medians of "
        f"{result['repeats']}.",
    ]


def write_document(result: Mapping[str, Any], path: Path) -> None:
    """Put the measured part between the marks of the page, and the figure beside it.

    Raises:
        SystemExit: The page has lost its marks.
    """
    replace_measured(path, measured_lines(result, f"{path.stem}.png"))
    draw(result, path.with_suffix(".png"))


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "growth")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of classes")
    parser.add_argument("--images", type=int, default=400, help="test photographs, at most")
    parser.add_argument("--support-images", type=int, default=600, help="support photographs, at most")
    parser.add_argument("--pool", type=int, default=4, help="(t, ε) of the plain mean, and to choose from")
    parser.add_argument("--seeds", type=int, default=10, help="random parts of the classes")
    parser.add_argument("--timed-images", type=int, default=8, help="photographs that are timed")
    parser.add_argument("--cache", type=Path, default=KEPT, help="where errors are kept")
    parser.add_argument("--document", type=Path, help="a page whose measured part is replaced, such as docs/growth.md")
    parser.add_argument("--seed", type=int, default=0, help="of noises and of the photographs that are taken")
    options = parser.parse_args()
    result = measure(options)
    publish(result, f"Growth with the number of classes: {result['images']} test photographs", options.output)
    if options.document:
        write_document(result, options.document)


if __name__ == "__main__":
    main()
