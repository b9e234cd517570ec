"""What ``results.json`` and ``reading.json`` hold: data, machine, methods, and what was measured of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcpl_lab.evaluation.explaining import compare_prompts, read_contexts
from gcpl_lab.experiments.few_shot import FewShotExperiment, Outcome
from gcpl_lab.experiments.multilabel import MultiLabelOutcome
from gcpl_lab.gcpl.prompts import ClassPrompts
from gcpl_lab.training.machine import describe_machine, describe_versions


def collect_results(
    experiment: FewShotExperiment, outcomes: Sequence[Outcome], shots: int, command: str
) -> dict[str, Any]:
    """What ``results.json`` holds: data, machine, versions, command and methods."""
    return {
        "command": command,
        "data": experiment.describe_data() | {"shots": shots},
        "preset": experiment.preset,
        "machine": describe_machine(),
        "versions": describe_versions(),
        "methods": [outcome.row for outcome in outcomes],
    }


def conditioning(experiment: FewShotExperiment, outcome: Outcome, templates: Sequence[str]) -> Tensor:
    """Hidden states of the class prompts in several templates, (template, class, token, dim)."""
    diffusion, names = experiment.diffusion, experiment.test.class_names
    if outcome.model is None:
        return torch.stack([diffusion.encode_texts([t.format(name) for name in names]) for t in templates])
    vectors = outcome.model.prompts_.vectors.detach()
    prompts = ClassPrompts.of(diffusion, names, vectors, templates)
    with torch.no_grad():
        return torch.stack([diffusion.encode_prompts(*prompts(None, index)) for index in range(len(templates))])


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
