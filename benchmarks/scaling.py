"""How time grows: measured points, a model fitted to them, and a prediction for a point that was not used.

    python benchmarks/scaling.py     # a table; benchmarks/results/scaling.json, docs/scaling.md and docs/scaling.png

Three kinds of work: training class prompts over classes and updates, classifying over images, classes and samples,
and an epoch of LMPT over images, classes and context vectors. Each gets

    seconds = repetitions · (a + b · variable_1^p_1 · variable_2^p_2 · ...)

with a, b and the exponents fitted to relative errors; updates and images repeat the same work, so time is proportional
to their number. One point of each kind lies inside the range and is left out of the fit; its prediction must be right
within 25 %. So must be what `gcpl-lab plan` says of it, whose model is fitted to two sizes of batches alone. What is
learned from is random numbers of the right shape: time does not depend on what an image shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import (
    alternate,
    benchmark_options,
    check_aim,
    make_result,
    make_row,
    publish,
    replace_measured,
    time_updates,
)
from scipy.optimize import least_squares

from gcpl_lab import fast
from gcpl_lab.experiments.profile import Profile, measure_profile
from gcpl_lab.gcpl.evidence import make_classifier
from gcpl_lab.gcpl.objectives import GCPL
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.lmpt.batches import CachedBatches
from gcpl_lab.lmpt.objective import LMPT
from gcpl_lab.lmpt.prompts import ContextPrompts
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion
from gcpl_lab.training.device import make_accelerator
from gcpl_lab.training.loop import TrainingConfig, train

MOST_WRONG = 0.25
PROFILE_BATCH = 40
"""Images an update that the planner's model is fitted to, beside a quarter of them: the package's batch."""
PROFILE = "profile"
IMAGES_A_CLASS, BATCH_SIZE, NAMES = 4, 64, ("shirt", "coat", "dress", "bag", "sneaker")
DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"

Point = dict[str, int]


@dataclass(frozen=True)
class Study:
    """One kind of work.

    Attributes:
        what: Its name in tables.
        points: Where it is measured for the fit.
        held_out: Where the fitted model is tested.
        repeated: The variable that counts repetitions of the same work.
        run: Does the work of a point, and returns seconds where it measured itself.
        plan: What ``gcpl-lab plan`` says that a point takes; None where it plans no such work.
    """

    what: str
    points: tuple[Point, ...]
    held_out: Point
    repeated: str
    run: Callable[[Point], Any]
    plan: Callable[[Profile, Point], float] | None = None


@dataclass(frozen=True)
class Growth:
    """seconds = repeated · (start + factor · Π variable^exponent).

    Attributes:
        start: a, seconds.
        factor: b, seconds.
        exponents: One a variable.
        repeated: A further variable, which counts repetitions of the same work.
    """

    start: float
    factor: float
    exponents: dict[str, float]
    repeated: str

    def predict(self, point: Mapping[str, float]) -> float:
        """Seconds at a point that has every variable."""
        work = self.factor * math.prod(point[name] ** power for name, power in self.exponents.items())
        return point[self.repeated] * (self.start + work)

    def formula(self) -> str:
        """For people."""
        powers = " · ".join(f"{name}^{power:.2f}" for name, power in self.exponents.items())
        return f"seconds = {self.repeated} · ({self.start:.3g} + {self.factor:.3g} · {powers})"


def fit_growth(points: Sequence[Mapping[str, float]], seconds: Sequence[float], repeated: str) -> Growth:
    """The model with the least squared logarithms of predicted / measured.

    Args:
        points: With the same variables each, at least two more than there are exponents.
        seconds: Measured, above 0.
        repeated: The variable that seconds are proportional to.

    Raises:
        ValueError: Too few points.
    """
    names = [name for name in points[0] if name != repeated]
    if len(points) < len(names) + 2:
        raise ValueError(f"{len(points)} points for {len(names)} exponents and two numbers; expected more points")
    logs = np.log([[point[name] for name in names] for point in points])
    measured = np.log(np.asarray(seconds, float) / [point[repeated] for point in points])

    def residuals(parameters: np.ndarray) -> np.ndarray:
        work = np.exp(parameters[1] + logs @ parameters[2:])
        found: np.ndarray = np.log(np.exp(parameters[0]) + work) - measured
        return found

    ones = np.ones(len(names))
    middle = measured.mean() - (logs @ ones).mean()
    # A start far below everything measured is as good as none; exponents beyond 2 are noise.
    low, high = measured.min() - 6, measured.min()
    first = np.concatenate([[measured.min() - 2, middle], 0.9 * ones])
    bounds = (np.concatenate([[low, -np.inf], 0 * ones]), np.concatenate([[high, np.inf], 2 * ones]))
    found = least_squares(residuals, first, bounds=bounds).x
    exponents = dict(zip(names, map(float, found[2:]), strict=True))
    return Growth(float(np.exp(found[0])), float(np.exp(found[1])), exponents, repeated)


# ------------------------------------------------------------------------------------------------ the work


def _names(count: int) -> list[str]:
    return [f"{NAMES[index % len(NAMES)]}" + " fine" * (index // len(NAMES) % 2) for index in range(count)]


def training_updates(diffusion: FrozenDiffusion, point: Point) -> Iterator[Any]:
    """GCPL on random latents: four images a class in every batch; one update more than the point says."""
    num_classes = point["classes"]
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_classes).repeat_interleave(IMAGES_A_CLASS)
    means = torch.randn((2, len(labels), *diffusion.latent_shape), generator=generator)
    exemplars = Exemplars(means, torch.full_like(means, -4.0), labels)
    prompts = ClassPrompts(diffusion, _names(num_classes), initial="random")
    sampler = ExemplarSampler(diffusion, exemplars, batch_size=len(labels))
    training = TrainingConfig(point["updates"] + 1, learning_rate=1e-3)
    return train(GCPL(diffusion, prompts), sampler, training, accelerator=make_accelerator(cpu=True))


def classify(diffusion: FrozenDiffusion, point: Point) -> None:
    """Every class on every sample, for random latents, as the package does it."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((point["images"], *diffusion.latent_shape), generator=generator)
    hidden = diffusion.encode_texts(_names(point["classes"]))
    make_classifier(diffusion, hidden, GCPLConfig(), seed=0).exact(latents, point["samples"])


def lmpt_updates(clip: FrozenCLIP, point: Point) -> Iterator[Any]:
    """An epoch of LMPT on random features, after one update that sets up."""
    num_images, num_classes = point["images"], point["classes"]
    generator = torch.Generator().manual_seed(0)
    width = clip.encode_texts(["a"]).shape[1]
    features, captions = (F.normalize(torch.randn((num_images, width), generator=generator), dim=1) for _ in range(2))
    targets = torch.eye(num_classes)[torch.arange(num_images) % num_classes]
    prompts = ContextPrompts(clip, _names(num_classes), num_context=point["context"])
    objective = LMPT(clip, prompts, class_counts=np.maximum(targets.sum(0).numpy(), 1), num_images=num_images)
    batches = CachedBatches(features[None], targets, captions, torch.ones(num_images, dtype=torch.bool), BATCH_SIZE, 0)
    training = TrainingConfig(batches.steps_an_epoch + 1, learning_rate=1e-3)
    return train(objective, batches, training, accelerator=make_accelerator(cpu=True))


def grid(names: str, *values: Sequence[int]) -> tuple[Point, ...]:
    """Points from rows of numbers, named in order."""
    return tuple(dict(zip(names.split(), row, strict=True)) for row in values)


def studies(preset: str, clock: str) -> dict[str, Study]:
    """The three kinds of work on one preset."""
    diffusion, clip = FrozenDiffusion.load(preset), fast.enable(FrozenCLIP.load(preset))
    return {
        "training": Study(
            "training class prompts",
            grid("classes updates", (2, 2), (5, 2), (10, 2), (20, 2), (40, 2), (5, 6), (10, 6)),
            {"classes": 15, "updates": 4},
            "updates",
            lambda point: time_updates(training_updates(diffusion, point), clock),
            lambda profile, point: profile.training_time(
                point["updates"], IMAGES_A_CLASS * point["classes"], "float32"
            ),
        ),
        "classifying": Study(
            "classifying",
            grid(
                "images classes samples",
                (4, 5, 4),
                (4, 10, 4),
                (4, 20, 4),
                (4, 40, 4),
                (16, 5, 4),
                (16, 10, 4),
                (4, 10, 16),
                (4, 20, 8),
            ),
            {"images": 8, "classes": 15, "samples": 8},
            "images",
            lambda point: classify(diffusion, point),
            lambda profile, point: profile.classifying_time(math.prod(point.values()), "bfloat16"),
        ),
        "lmpt_epoch": Study(
            "an epoch of LMPT",
            grid(
                "images classes context",
                (256, 5, 4),
                (256, 10, 4),
                (256, 20, 4),
                (256, 40, 4),
                (256, 20, 16),
                (256, 20, 8),
                (1024, 10, 4),
                (1024, 20, 4),
            ),
            {"images": 512, "classes": 30, "context": 8},
            "images",
            lambda point: time_updates(lmpt_updates(clip, point), clock),
        ),
    }


# --------------------------------------------------------------------------------------------- the result


def describe(point: Mapping[str, int]) -> str:
    """``10 classes, 2 updates``."""
    return ", ".join(f"{value} {name}" for name, value in point.items())


def evaluations_of(kind: str, point: Point) -> int | None:
    """Denoiser evaluations of a point; LMPT has no denoiser."""
    if kind == "training":
        return point["classes"] * IMAGES_A_CLASS * point["updates"]
    return math.prod(point.values()) if kind == "classifying" else None


def study_model(study: Study, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Fit one kind of work and test the fit on the point that was left out."""
    median = {key: float(np.median(values)) for key, values in seconds.items()}
    growth = fit_growth(study.points, [median[describe(point)] for point in study.points], study.repeated)
    measured, predicted = median[describe(study.held_out)], growth.predict(study.held_out)
    return {
        "formula": growth.formula(),
        "start": growth.start,
        "factor": growth.factor,
        "exponents": growth.exponents,
        "repeated": growth.repeated,
        "ranges": {
            name: [min(p[name] for p in study.points), max(p[name] for p in study.points)] for name in study.held_out
        },
        "points": [
            {**point, "seconds": median[describe(point)], "predicted": growth.predict(point)} for point in study.points
        ],
        "held_out": {
            **study.held_out,
            "seconds": measured,
            "predicted": predicted,
            "relative_error": predicted / measured - 1,
        },
    }


def measure(preset: str, repeats: int, clock: str = "wall", kinds: Sequence[str] = ()) -> dict[str, Any]:
    """Measure every point in turn, kind by kind, and fit.

    Args:
        preset: The frozen pair.
        repeats: Rounds over the points.
        clock: See ``measuring.CLOCKS``.
        kinds: Only these; all where none is named.
    """
    rows, models, aims, works = [], {}, [], studies(preset, clock)
    works = {kind: study for kind, study in works.items() if not kinds or kind in kinds}
    diffusion, profiles = FrozenDiffusion.load(preset), []

    def take_profile() -> None:
        profiles.append(measure_profile(diffusion, preset=preset, batch_size=PROFILE_BATCH, num_steps=3))

    for kind, study in works.items():
        points = {describe(point): point for point in (*study.points, study.held_out)}
        variants = {name: (lambda point=point, run=study.run: run(point)) for name, point in points.items()}
        profiles.clear()
        # A profile in every round: what the machine is busy with beside us then slows both alike.
        seconds = alternate({**variants, **({PROFILE: take_profile} if study.plan else {})}, repeats, clock=clock)
        seconds.pop(PROFILE, None)
        models[kind] = study_model(study, seconds)
        rows += [
            make_row(f"{study.what}: {name}", values, evaluations_of(kind, points[name]))
            for name, values in seconds.items()
        ]
        held = models[kind]["held_out"]
        aims.append(
            check_aim(
                f"{study.what}: error of the prediction for {describe(study.held_out)}",
                abs(held["relative_error"]),
                most=MOST_WRONG,
            )
        )
        if study.plan:
            planned = [study.plan(profile, study.held_out) for profile in profiles[-repeats:]]  # the first warmed up
            ratio = float(np.median(np.divide(planned, seconds[describe(study.held_out)])))
            held["planned"] = ratio * held["seconds"]
            aims.append(
                check_aim(
                    f"{study.what}: error of gcpl-lab plan for {describe(study.held_out)}",
                    abs(ratio - 1),
                    most=MOST_WRONG,
                )
            )
    return make_result("scaling", rows, repeats, clock=clock, preset=preset, models=models, aims=aims)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Measured against predicted seconds of every point, and time over classes."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    from gcpl_lab.views import style

    with style.figure_style():
        figure = style.new_figure(6.2 * len(result["models"]), 5.4)
        for ax, (kind, model) in zip(
            np.atleast_1d(figure.subplots(1, len(result["models"]))), result["models"].items(), strict=True
        ):
            growth = Growth(model["start"], model["factor"], model["exponents"], model["repeated"])
            variables = {*growth.exponents, growth.repeated} - {"classes"}
            others = sorted({tuple((k, v) for k, v in point.items() if k in variables) for point in model["points"]})
            for index, fixed in enumerate(others):
                same = [point for point in model["points"] if all(point[name] == value for name, value in fixed)]
                colour, marker = style.PALETTE[index % len(style.PALETTE)], style.MARKERS[index % len(style.MARKERS)]
                label = describe(dict(fixed))
                ax.plot([p["classes"] for p in same], [p["seconds"] for p in same], marker, color=colour, label=label)
                if len(same) > 1:
                    line = np.geomspace(min(p["classes"] for p in same), max(p["classes"] for p in same))
                    ax.plot(line, [growth.predict({**dict(fixed), "classes": x}) for x in line], color=colour)
            held = model["held_out"]
            ax.plot(held["classes"], held["seconds"], "*", color="black", markersize=15, label="not used in the fit")
            ax.plot(held["classes"], held["predicted"], "_", color="black", markersize=18, label="its prediction")
            ax.set(xscale="log", yscale="log", xlabel="classes", ylabel="seconds", title=TITLES[kind])
            ax.xaxis.set(
                major_locator=FixedLocator(sorted({p["classes"] for p in (*model["points"], held)})),
                minor_locator=NullLocator(),
                major_formatter="{x:g}",
            )
            ax.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
            ax.legend(fontsize=11)
        figure.savefig(path, dpi=110)


TITLES = {"training": "Training class prompts", "classifying": "Classifying", "lmpt_epoch": "An epoch of LMPT"}


def write_document(result: Mapping[str, Any], path: Path) -> None:
    """Put the measured part between the marks of the page, and the figure beside it.

    Raises:
        SystemExit: The page has lost its marks.
    """
    lines = [
        "| work | model (seconds) | point not used | measured | predicted | off by | `gcpl-lab plan` |",
        "| --- " * 7 + "|",
    ]
    for kind, model in result["models"].items():
        held = model["held_out"]
        where = describe({name: held[name] for name in held if name in {*model["exponents"], model["repeated"]}})
        formula = model["formula"].removeprefix("seconds = ")
        times = f"{held['seconds']:.3g} s | {held['predicted']:.3g} s | {held['relative_error']:+.0%}"
        planned = f"{held['planned']:.3g} s" if "planned" in held else ""
        lines.append(f"| {TITLES[kind]} | {formula} | {where} | {times} | {planned} |")
    lines += ["", f"![Measured times and fitted curves]({path.stem}.png)", ""]
    machine = result["machine"]
    lines += [
        f"{machine['processor']}, {machine['threads']} threads, preset {result['preset']}; medians of "
        f"{result['repeats']}."
    ]
    replace_measured(path, lines)
    draw(result, path.with_suffix(".png"))


def main() -> None:
    """Measure, fit, print and write."""
    parser = benchmark_options(__doc__, "scaling")
    parser.add_argument("--only", action="append", choices=list(TITLES), default=[], help="one kind of work")
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="the page whose measured part is replaced")
    options = parser.parse_args()
    result = measure(options.preset, options.repeats, options.clock, options.only)
    publish(result, "How time grows", options.output)
    if not options.only:
        write_document(result, options.document)
    if missed := [aim["what"] for aim in result["aims"] if not aim["met"]]:
        raise SystemExit(f"predictions off by more than {MOST_WRONG:.0%}: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
