"""Evidence weighted and joined: what a few fitted parameters add to the diffusion classifier and to CLIP.

    python benchmarks/joined_evidence.py          # prints a table, writes benchmarks/results/joined_evidence.json

Before: the plain mean of the errors (over the whole range of noise levels, or the preset's) with one temperature, and
CLIP's scores as they are. After: a weight for each of some bands of noise levels and one offset a class, their numbers
chosen by cross-validation; maps, which also say what one class's number tells about the others (``fit_joined``); and
both kinds of evidence joined, with maps. CLIP is read by its class names, by a linear probe on the exemplars, and by
both. Everything is fitted on support photographs outside the exemplars, and judged on test photographs.

With few photographs even true probabilities show a calibration error. ``calibration_error_if_true`` is its mean when
labels are drawn from the probabilities themselves: nothing can be told from an error of that size.
"""

from __future__ import annotations

import argparse
from typing import Any

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
    prompt_options,
    publish,
)
from scipy.special import log_softmax

from gcpl_lab.baselines.clip_features import LinearProbe, ZeroShotCLIP
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.evaluation.metrics import accuracy, expected_calibration_error, log_loss
from gcpl_lab.fast.fast_classifier import FastClassifier, Shortcuts
from gcpl_lab.fast.joined import band_sources, fit_bands, fit_joined
from gcpl_lab.gcpl.classifier import class_scores, fit_temperature, probabilities
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion

ZERO_SHOT, PROBE, BOTH, DIFFUSION = "zero-shot CLIP", "linear probe on CLIP", "CLIP read both ways", "diffusion"


def calibration_error_if_true(chances: np.ndarray, draws: int = 50) -> float:
    """The mean calibration error of probabilities (image, class) that are right: labels are drawn from them."""
    rng, steps = np.random.default_rng(47), chances.cumsum(axis=1)
    drawn = [(rng.random((len(chances), 1)) > steps).sum(axis=1).clip(max=chances.shape[1] - 1) for _ in range(draws)]
    return float(np.mean([expected_calibration_error(chances, labels) for labels in drawn]))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row a kind of evidence."""
    support, test = load_fashion("support"), load_fashion("test")
    exemplars = draw_episode(support, 16, options.seed)
    held = outside(support, exemplars, options.support_images, options.seed)
    judged = np.linspace(0, len(test) - 1, min(options.images, len(test))).astype(int)
    diffusion, clip = FrozenDiffusion.load(options.preset), FrozenCLIP.load(options.preset)
    pictures = {
        "exemplars": [support.images[int(i)] for i in exemplars],
        "support": [support.images[int(i)] for i in held],
        "test": [test.images[int(i)] for i in judged],
    }
    labels = {"support": support.labels[held], "test": test.labels[judged]}
    model = learned_prompts(options, diffusion, support.subset(exemplars))
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*model.prompts_())
    fast = FastClassifier(
        diffusion,
        hidden,
        shortcuts=Shortcuts(),
        seed=options.seed,
        bfloat16=True,
        batch_size=model.config.evidence_batch_size,
        timestep_range=diffusion.evidence_range if options.preset_range else (0.0, 1.0),
    )
    latents = {split: model.encode(pictures[split]) for split in labels}
    evidence = {split: fast.exact(latents[split], options.samples) for split in labels}
    images = {split: read_images(files) for split, files in pictures.items()}
    views = torch.stack([clip.encode_images(images["exemplars"]), clip.encode_images(images["exemplars"], flip=True)])
    features = {split: clip.encode_images(images[split]) for split in labels}
    readers = {
        ZERO_SHOT: ZeroShotCLIP(clip, support.class_names),
        PROBE: LinearProbe(views, torch.from_numpy(support.labels[exemplars]), options.seed),
    }
    some = slice(min(options.timed_images, len(judged)))
    seconds = alternate(
        {
            DIFFUSION: lambda: fast.exact(latents["test"][some], options.samples),
            ZERO_SHOT: lambda: clip.encode_images(images["test"][some]),
        },
        options.repeats,
        clock=options.clock,
    )
    looks = {name: np.asarray(values) / some.stop for name, values in seconds.items()}
    looks |= dict.fromkeys((PROBE, BOTH), looks[ZERO_SHOT])
    evaluations = dict.fromkeys(looks, 0) | {DIFFUSION: options.samples * len(support.class_names)}
    truth, rows = labels["test"], list[dict[str, Any]]()

    def add(what: str, chances: np.ndarray, *looked: str, **more: Any) -> None:
        spent = np.sum([looks[name] for name in looked], axis=0).tolist()
        rows.append(
            make_row(
                what,
                spent,
                sum(evaluations[name] for name in looked),
                accuracy=accuracy(chances, truth),
                log_loss=log_loss(chances, truth),
                calibration_error=expected_calibration_error(chances, truth),
                calibration_error_if_true=calibration_error_if_true(chances),
                **more,
            )
        )

    plain = {split: class_scores(found.errors, "absolute") for split, found in evidence.items()}
    add(f"{DIFFUSION}, plain mean, temperature 1 (published)", probabilities(plain["test"], 1.0), DIFFUSION)
    temperature = fit_temperature(plain["support"], labels["support"])
    add(f"{DIFFUSION}, plain mean, fitted temperature", probabilities(plain["test"], temperature), DIFFUSION)
    one = fit_joined([plain["support"]], labels["support"], seed=options.seed)
    add(
        f"{DIFFUSION}, plain mean and class offsets", one.probabilities([plain["test"]]), DIFFUSION, penalty=one.penalty
    )

    def weighed(others: dict[str, list[np.ndarray]], maps: bool) -> tuple[np.ndarray, dict[str, Any]]:
        bands, fit = fit_bands(
            evidence["support"].errors,
            evidence["support"].timesteps,
            labels["support"],
            others=others["support"],
            maps=maps,
            seed=options.seed,
        )
        sources = [*band_sources(evidence["test"].errors, evidence["test"].timesteps, bands), *others["test"]]
        return fit.probabilities(sources), {
            "bands": bands,
            "weights": fit.weights.tolist(),
            "penalty": fit.penalty,
            "map_penalty": fit.map_penalty,
            "held_out_log_loss": fit.held_out_loss,
        }

    nothing: dict[str, list[np.ndarray]] = {"support": [], "test": []}
    for maps in (False, True):
        chances, how = weighed(nothing, maps)
        add(
            f"{DIFFUSION}, weighted noise levels and {'class maps' if maps else 'class offsets'}",
            chances,
            DIFFUSION,
            **how,
        )
    alone, aims = max(row["accuracy"] for row in rows), []
    read = {
        name: {split: [log_softmax(reader.scores(features[split]).double().numpy(), axis=1)] for split in labels}
        for name, reader in readers.items()
    }
    read[BOTH] = {split: [*read[ZERO_SHOT][split], *read[PROBE][split]] for split in labels}
    for name, known in read.items():
        first = len(rows)
        if name in readers:
            add(name, np.exp(known["test"][0]), name)
        for maps in (False, True):
            fitted = fit_joined(known["support"], labels["support"], maps=maps, seed=options.seed)
            add(
                f"{name}, {'class maps' if maps else 'calibrated'}",
                fitted.probabilities(known["test"]),
                name,
                penalty=fitted.penalty,
                map_penalty=fitted.map_penalty,
                held_out_log_loss=fitted.held_out_loss,
            )
        better = max(alone, *(row["accuracy"] for row in rows[first:]))
        chances, how = weighed(known, True)
        add(f"{name} joined with {DIFFUSION}", chances, name, DIFFUSION, **how)
        aims += [
            check_aim(
                f"accuracy of {rows[-1]['what']}, minus the better of the two",
                rows[-1]["accuracy"] - better,
                least=1 / len(truth),
            ),
            check_aim(f"calibration error of {rows[-1]['what']}", rows[-1]["calibration_error"], most=0.05),
        ]
    return make_result(
        "joined_evidence",
        rows,
        options.repeats,
        clock=options.clock,
        preset=options.preset,
        images=len(judged),
        support_images=len(held),
        samples=options.samples,
        aims=aims,
    )


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "joined_evidence")
    prompt_options(parser, support_images=480, support_help="photographs to fit on")
    parser.add_argument("--samples", type=int, default=16, help="(t, ε) a photograph")
    parser.add_argument("--preset-range", action="store_true", help="the preset's range of noise levels, not all of it")
    parser.add_argument("--timed-images", type=int, default=20, help="photographs that are timed")
    options = parser.parse_args()
    result = measure(options)
    publish(
        result,
        f"{result['images']} test photographs, fitted on {result['support_images']} of the support pool",
        options.output,
    )


if __name__ == "__main__":
    main()
