"""Does it make sense? Generated samples against real images, a filter, and whether they help as exemplars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcpl_lab.baselines.features import LinearProbe
from gcpl_lab.data.readers import read_images
from gcpl_lab.evaluation.prediction_sets import mean_with_interval
from gcpl_lab.evaluation.trust import measure_consistency, share_of
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.lmpt.estimator import encode_views
from gcpl_lab.pilot.data import PilotData, targets_of
from gcpl_lab.pilot.trials import MODELS, Judge
from gcpl_lab.storage import write_atomically

SAMPLES_A_CLASS = 4
REFUSED_REAL = 0.05
"""Share of real held-out images that the filter would refuse, which sets its threshold."""


def check_samples(method: str, judge: Judge, data: PilotData, folder: Path, seed: int) -> dict[str, Any]:
    """Generate images with learned prompts, compare them with real ones, filter them, and try them as exemplars.

    The judge of samples is a linear probe on CLIP's features of the real exemplars: the generator's own prompts never
    judge themselves. Samples are written to ``samples/`` for review by people.

    Args:
        method: Of the prompts that generate.
        judge: Any of draw 0, for its exemplars and their features.
        data, folder, seed: Of the pilot.
    """
    labels = torch.from_numpy(judge.exemplars.labels)
    known, test = (targets_of(part).argmax(axis=1) for part in (data.calibration, data.test))
    probe, model = LinearProbe(judge.features, labels, seed), GCPLClassifier.load(folder / MODELS / method)
    made = np.repeat(np.arange(len(data.class_names)), SAMPLES_A_CLASS)
    with torch.no_grad():
        hidden = model.diffusion.encode_prompts(*model.prompts_())[torch.from_numpy(made)]
    images = model.diffusion.generate(hidden, seed=seed)
    # Names of classes may hold what a file system does not take.
    files = [f"{label:02d}_{place % SAMPLES_A_CLASS}.png" for place, label in enumerate(made)]
    for name, image in zip(files, images, strict=True):
        write_atomically(folder / "samples" / name, lambda path, image=image: image.save(path, format="PNG"))  # type: ignore[misc]
    views = encode_views(judge.clip, images, fit=judge.fit)
    held_out, judged = judge.experiment.test_features.split([len(known), len(test)])
    real, generated = (torch.softmax(probe.scores(part).double(), 1).numpy() for part in (held_out, views[0]))
    threshold = float(np.quantile(real[np.arange(len(known)), known], REFUSED_REAL))
    kept = generated[np.arange(len(made)), made] >= threshold
    consistency = measure_consistency(held_out.numpy(), known, views[0].numpy(), made)
    found = {
        "method": method,
        "files": files,
        "recognised": share_of(generated.argmax(axis=1) == made),
        "recognised_real": share_of(real.argmax(axis=1) == known),
        "to_real": float(np.mean([entry.to_real / max(entry.real_to_real, 1e-12) for entry in consistency])),
        "accepted": share_of(kept),
        "filter": {"threshold": threshold, "refused_real": REFUSED_REAL},
    }
    if kept.any():
        accepted = np.flatnonzero(kept)
        answers = np.concatenate([labels.numpy(), made[accepted]])
        more = torch.cat([judge.features, views[:, torch.from_numpy(accepted)]], 1)
        wider = LinearProbe(more, torch.from_numpy(answers), seed)
        found["helps_probe"] = _gain(probe.scores(judged).numpy(), wider.scores(judged).numpy(), test)
        exemplars = [*read_images(judge.exemplars.images), *(images[place] for place in accepted.tolist())]
        again = GCPLClassifier(diffusion=model.diffusion, **model.config.as_dict())
        again.fit(exemplars, answers, data.class_names)
        latents = model.encode(data.test.images)
        before, after = (each.scores(each.evidence(latents)) for each in (model, again))
        found["helps_prompts"] = _gain(before, after, test)
    return found


def _gain(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Difference of two accuracies on the same images, with its interval over images."""
    right = [(scores.argmax(axis=1) == labels).astype(float) for scores in (before, after)]
    return {"num_images": len(labels), **mean_with_interval(right[1] - right[0])._asdict()}
