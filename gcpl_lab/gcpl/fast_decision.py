"""The estimator's side of the fast classifier: what it is calibrated on, and CLIP's scores for its shortlist."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.data.episodes import cross_validation_folds
from gcpl_lab.data.readers import iter_images
from gcpl_lab.errors import DataError
from gcpl_lab.fast.race import Plan, Race, RaceEvidence
from gcpl_lab.gcpl.sampling import Exemplars
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.presets import find_preset
from gcpl_lab.training.device import default_device
from gcpl_lab.training.memory import FORWARD_ADVICE, MemoryFit
from gcpl_lab.training.processes import all_gather_rows, all_reduce, processes

if TYPE_CHECKING:
    from gcpl_lab.gcpl.estimator import GCPLClassifier
    from gcpl_lab.gcpl.judge import PromptJudge


def make_race(model: PromptJudge, plan: dict[str, Any] | None = None) -> Race:
    """A race of the learned prompts; with the plan of a saved one.

    Raises:
        KeyError, TypeError, ValueError: The plan does not fit.
    """
    config = model.config
    race = Race(
        model.classifier(config.seed),
        pool_size=config.evidence_pool,
        error_rate=config.error_rate,
        max_steps=config.num_evidence,
    )
    if plan is not None:
        race.plan_ = Plan.from_dict(plan, len(model.class_names_), config.evidence_pool)
    return race


def calibrate(
    model: GCPLClassifier,
    calibration: tuple[Tensor, np.ndarray, np.ndarray | None] | None,
    exemplars: Exemplars,
    coarse_words: Sequence[str] | None,
    scores: np.ndarray | None,
) -> Race:
    """A race that is calibrated on images that the prompts have not seen.

    Args:
        model: Its prompts are learned.
        calibration: Latents, labels and CLIP's scores of such images; None: the held-out exemplars of ``num_folds``
            further trainings.
        exemplars: What was learned from.
        coarse_words: As for :meth:`~gcpl_lab.gcpl.estimator.GCPLClassifier.fit`.
        scores: CLIP's of the exemplars.
    """
    config = model.config
    if calibration is not None:
        latents, labels, scores = calibration
        return make_race(model).plan_from(model.errors(latents, config.evidence_pool), labels, scores)
    labels = exemplars.labels.numpy()
    parts, places = [], []
    for inside, outside in cross_validation_folds(labels, config.num_folds, config.seed):
        same = config.as_dict() | {"classification": "exact", "flip": model.mirroring_.flip}
        fold = type(model)(diffusion=model.diffusion, **same)
        fold.begin(model.class_names_, coarse_words)
        deque(fold.train(exemplars.subset(inside)), maxlen=0)
        latents = model.diffusion.scale_latents(exemplars.means[0][torch.from_numpy(outside)])
        parts.append(fold.errors(latents, config.evidence_pool))
        places.append(outside)
    errors = np.concatenate(parts)[np.argsort(np.concatenate(places))]
    return make_race(model).plan_from(errors, labels, scores)


def load_clip(preset: str) -> FrozenCLIP | None:
    """The preset's own CLIP; None where it has none."""
    return FrozenCLIP.load(preset, default_device()) if find_preset(preset).clip_source else None


def clip_scores(
    clip: FrozenCLIP, template: str, images: Sequence[Any], class_names: Sequence[str], fit: str = "crop"
) -> np.ndarray:
    """Zero-shot logits (image, class) of images, of each of which the square that ``fit`` names is seen."""
    own = iter_images(images[processes().share(len(images))], fit)
    features = all_gather_rows(clip.encode_images(own), len(images))
    texts = clip.encode_texts([template.format(name) for name in class_names]).cpu()
    scores: np.ndarray = (clip.logit_scale * features @ texts.T).numpy()
    return scores


def run(race: Race, latents: Tensor, scores: np.ndarray | None) -> RaceEvidence:
    """What a calibrated race finds out about scaled latents (image, ...), with CLIP's scores (image, class) or None."""
    if race.plan_ is None:
        raise DataError("this race is not calibrated; set classification='fast' before fit, which calibrates it")
    share = processes().share(len(latents))
    known, classifier = None if scores is None else scores[share], race.classifier
    fit = MemoryFit(classifier.batch_size, FORWARD_ADVICE)
    own = fit(lambda n: race.with_passes(n).classify(latents[share], known))
    errors, logits = (all_gather_rows(torch.from_numpy(part), len(latents)) for part in (own.errors, own.logits))
    spent = int(all_reduce(torch.tensor(own.num_evaluations)))
    return RaceEvidence(errors.numpy(), own.timesteps, spent, logits.numpy())
