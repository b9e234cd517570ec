"""Evidence weighted and joined: what a few fitted parameters add to the diffusion classifier and to CLIP.

    python benchmarks/joined_evidence.py          # prints a table, writes benchmarks/results/joined_evidence.json

Before: the plain mean of the errors with one temperature, and CLIP's scores as they are. After: a weight for each of
some bands of noise levels and one offset a class, their numbers chosen by cross-validation; and both kinds of
evidence joined. Everything is fitted on support photographs outside the exemplars, and judged on test photographs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import outside
from rich.console import Console
from rich.table import Table
from scipy.special import log_softmax

from gcpl_lab.backbones.clip import FrozenCLIP
from gcpl_lab.backbones.diffusion import FrozenDiffusion
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.readers import read_images
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.estimators import GCPLClassifier
from gcpl_lab.evaluation.metrics import accuracy, expected_calibration_error, log_loss
from gcpl_lab.methods.baselines import LinearProbe, ZeroShotCLIP
from gcpl_lab.methods.diffusion_classifier import class_scores, fit_temperature, probabilities
from gcpl_lab.methods.fast_classifier import FastClassifier, Shortcuts
from gcpl_lab.methods.joined import band_sources, fit_bands, fit_joined
from gcpl_lab.storage import write_json
from gcpl_lab.training.runtime import describe_machine


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row a kind of evidence."""
    support, test = load_fashion("support"), load_fashion("test")
    exemplars = draw_episode(support, 16, options.seed)
    held = outside(support, exemplars, options.support_images, options.seed)
    judged = np.linspace(0, len(test) - 1, min(options.images, len(test))).astype(int)
    diffusion, clip = FrozenDiffusion.load(options.preset), FrozenCLIP.load(options.preset)
    pictures = {
        "exemplars": [support.images[int(i)] for i in exemplars], "support": [support.images[int(i)] for i in held],
        "test": [test.images[int(i)] for i in judged],
    }  # fmt: skip
    labels = {"support": support.labels[held], "test": test.labels[judged]}
    if options.prompts:
        model = GCPLClassifier.load(options.prompts, diffusion)
    else:
        model = GCPLClassifier(options.preset, "gcpl", seed=options.seed, diffusion=diffusion)
        model.fit(pictures["exemplars"], support.labels[exemplars], list(support.class_names))
    with torch.no_grad():
        hidden = diffusion.encode_prompts(*model.prompts_())
    fast = FastClassifier(diffusion, hidden, shortcuts=Shortcuts(), seed=options.seed, bfloat16=True,
                          timestep_range=diffusion.evidence_range)  # fmt: skip
    began = time.perf_counter()
    evidence = {split: fast.exact(model.encode(pictures[split]), options.samples) for split in labels}
    seconds = time.perf_counter() - began
    images = read_images(pictures["exemplars"])
    views = torch.stack([clip.encode_images(images), clip.encode_images(images, flip=True)])
    features = {split: clip.encode_images(read_images(pictures[split])) for split in labels}
    readers = {
        "zero-shot CLIP": ZeroShotCLIP(clip, support.class_names),
        "linear probe on CLIP": LinearProbe(views, torch.from_numpy(support.labels[exemplars]), options.seed),
    }
    clips = {name: {split: reader.scores(features[split]).double().numpy() for split in labels}
             for name, reader in readers.items()}  # fmt: skip
    rows = []

    def add(what: str, chances: np.ndarray, **more: Any) -> None:
        truth = labels["test"]
        rows.append({"what": what, "accuracy": accuracy(chances, truth), "log_loss": log_loss(chances, truth),
                     "calibration_error": expected_calibration_error(chances, truth), **more})  # fmt: skip

    plain = {split: class_scores(found.errors, "absolute") for split, found in evidence.items()}
    add("diffusion, plain mean, temperature 1 (published)", probabilities(plain["test"], 1.0))
    temperature = fit_temperature(plain["support"], labels["support"])
    add("diffusion, plain mean, fitted temperature", probabilities(plain["test"], temperature))
    one = fit_joined([plain["support"]], labels["support"], seed=options.seed)
    add("diffusion, plain mean and class offsets", one.probabilities([plain["test"]]), penalty=one.penalty)

    def joined(others: dict[str, np.ndarray] | None) -> tuple[np.ndarray, dict[str, Any]]:
        known, unseen = ([], []) if others is None else ([others["support"]], [others["test"]])
        timesteps = evidence["support"].timesteps
        bands, fit = fit_bands(evidence["support"].errors, timesteps, labels["support"], others=known,
                               seed=options.seed)  # fmt: skip
        sources = [*band_sources(evidence["test"].errors, timesteps, bands), *unseen]
        return fit.probabilities(sources), {"bands": bands, "weights": fit.weights.tolist(), "penalty": fit.penalty,
                                            "held_out_log_loss": fit.held_out_loss}  # fmt: skip

    chances, how = joined(None)
    add("diffusion, weighted noise levels and class offsets", chances, **how)
    for name, scores in clips.items():
        known = {split: log_softmax(values, axis=1) for split, values in scores.items()}
        add(name, np.exp(known["test"]))
        fitted = fit_joined([known["support"]], labels["support"], seed=options.seed)
        add(f"{name}, calibrated", fitted.probabilities([known["test"]]), penalty=fitted.penalty)
        chances, how = joined(known)
        add(f"{name} joined with diffusion", chances, **how)
    return {
        "name": "joined_evidence", "machine": describe_machine(), "preset": options.preset, "images": len(judged),
        "support_images": len(held), "samples": options.samples, "evidence_seconds": seconds, "rows": rows,
        "evaluations": {split: found.num_evaluations for split, found in evidence.items()},
    }  # fmt: skip


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", help="name of the frozen models, or a folder")
    parser.add_argument("--prompts", type=Path, help="folder of a saved classifier; by default prompts are learned")
    parser.add_argument("--images", type=int, default=500, help="test photographs")
    parser.add_argument("--support-images", type=int, default=300, help="photographs to fit on")
    parser.add_argument("--samples", type=int, default=8, help="(t, ε) a photograph")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "joined_evidence.json")
    options = parser.parse_args()
    result = measure(options)
    write_json(options.output, result)
    table = Table(
        title=f"{result['images']} test photographs, fitted on {result['support_images']} of the support pool"
    )
    for heading in ("what", "accuracy", "log-loss", "calibration error"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for row in result["rows"]:
        table.add_row(row["what"], f"{100 * row['accuracy']:.1f} %", f"{row['log_loss']:.3f}",
                      f"{row['calibration_error']:.3f}")  # fmt: skip
    console = Console(width=100)
    console.print(table)
    console.print(f"{result['samples']} (t, ε) a photograph and class. {result['machine']}")


if __name__ == "__main__":
    main()
