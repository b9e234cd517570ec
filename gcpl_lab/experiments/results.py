"""What ``results.json`` and ``reading.json`` hold: data, machine, methods, and what was measured of the prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.baselines.zero_shot import ENSEMBLE_TEMPLATES
from gcpl_lab.evaluation.explaining import compare_prompts, read_contexts
from gcpl_lab.evaluation.reading import mean_similarity, prompt_similarity
from gcpl_lab.evaluation.separation import Separation, measure_within_families, profile_points
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.multilabel import MultiLabelOutcome
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.training.machine import describe_machine, describe_versions


def collect_results(
    experiment: FewShotExperiment, outcomes: Sequence[Outcome], shots: int, command: str
) -> dict[str, Any]:
    """What ``results.json`` holds: data, machine, versions, command, methods and measured separations."""
    trials = {f"{outcome.method}/{outcome.shots}/{outcome.seed}": outcome for outcome in outcomes if outcome.evidence}
    return {
        "command": command,
        "data": experiment.describe_data() | {"shots": shots},
        "preset": experiment.preset,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "methods": [outcome.row for outcome in outcomes],
        "separation": {name: separation_of(experiment, outcome).as_dict() for name, outcome in trials.items()},
        "prompts": {name: measure_prompts(experiment, outcome) for name, outcome in trials.items()},
    }


def separation_of(experiment: FewShotExperiment, outcome: Outcome) -> Separation:
    """How far the classes lie apart in the error profiles of the test images under a diffusion classifier."""
    assert outcome.evidence is not None
    test, points = experiment.test, profile_points(outcome.evidence.errors)
    return measure_within_families(points, test.labels, test.class_names, test.families)


def conditioning(experiment: FewShotExperiment, outcome: Outcome, templates: Sequence[str]) -> Tensor:
    """Hidden states of the class prompts in several templates, (template, class, token, dim)."""
    diffusion, names = experiment.diffusion, experiment.test.class_names
    if outcome.model is None:
        return torch.stack([diffusion.encode_texts([t.format(name) for name in names]) for t in templates])
    vectors = outcome.model.prompts_.vectors.detach()
    prompts = ClassPrompts.of(diffusion, names, vectors, templates)
    with torch.no_grad():
        return torch.stack([diffusion.encode_prompts(*prompts(None, index)) for index in range(len(templates))])


def measure_prompts(experiment: FewShotExperiment, outcome: Outcome) -> dict[str, Any]:
    """How far the class prompts lie apart, each in five templates: similarity in the families, and separation."""
    names, families = experiment.test.class_names, experiment.test.families
    hidden = conditioning(experiment, outcome, ENSEMBLE_TEMPLATES)
    labels, points = np.tile(np.arange(len(names)), len(hidden)), hidden.float().flatten(2).flatten(0, 1).cpu().numpy()
    matrix = prompt_similarity(hidden[0])
    similar = {family: mean_similarity(matrix, names, members) for family, members in families.items()}
    return {
        "mean_similarity_in_family": {name: value for name, value in similar.items() if not math.isnan(value)},
        "separation": measure_within_families(points, labels, names, families).as_dict(),
    }


def most_confused_pair(matrix: np.ndarray) -> tuple[int, int]:
    """The two different classes that are taken for each other most, the more often mistaken first."""
    both = matrix + matrix.T
    np.fill_diagonal(both, -1)
    a, b = (int(place) for place in np.unravel_index(both.argmax(), both.shape))
    return (a, b) if matrix[a, b] >= matrix[b, a] else (b, a)


def read_prompts(outcome: MultiLabelOutcome) -> dict[str, Any]:
    """The three nearest words of every context vector of a prompt method, and how the class prompts moved."""
    model = outcome.model
    if model is None:
        raise ValueError(f"{outcome.method!r} learned no prompts; expected the outcome of a prompt method")
    names = [str(name) for name in model.classes_]
    change = compare_prompts(model.start_features_, model.objective_.text_features(), names)
    return {
        "class_names": names,
        "contexts": read_contexts(model.clip, model.objective_.prompts.context, names, num_words=3),
        "similarity_before": change.before.tolist(),
        "similarity_after": change.after.tolist(),
        "moved_toward": change.moves[:10],
        "travelled": dict(zip(names, map(float, change.travelled), strict=True)),
    }
