"""Settings: JSON round trip, and every wrong value named."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from gcpl_lab.gcpl.settings import GCPLConfig

OTHER: dict[str, Any] = {
    "preset": "sd-1.4",
    "objective": "comple",
    "num_vectors": 1,
    "initial": "random",
    "templates": ("a {}", "one {}"),
    "num_steps": 5,
    "batch_size": 2,
    "learning_rate": 0.5,
    "timestep_range": (0.25, 0.5),
    "contrast_weight": 0.2,
    "discriminative_steps": 4,
    "discriminative_batch_size": 2,
    "num_samples": 1,
    "num_rivals": None,
    "discriminative_rate": 0.1,
    "temperature": 3.0,
    "gcpl_share": 0.0,
    "early_stopping": "validation",
    "validation_share": 0.5,
    "num_folds": 2,
    "validate_every": 5,
    "patience": 2,
    "num_evidence": 1,
    "evidence_batch_size": 2,
    "evidence_bfloat16": False,
    "evidence_sharing": False,
    "classification": "fast",
    "evidence_pool": 5,
    "error_rate": 0.5,
    "weighting": "relative",
    "class_offsets": False,
    "flip": False,
    "seed": 7,
    "checkpoint_every": 7,
    "precision": "bfloat16",
    "micro_batch_size": 4,
    "gradient_checkpointing": True,
    "compile_denoiser": True,
    "cache_encodings": False,
    "schedule": "linear",
    "weight_decay": 0.1,
    "gradient_clip": 0.0,
}


def test_json_round_trip() -> None:
    assert OTHER.keys() == {field.name for field in fields(GCPLConfig)}
    for config in (GCPLConfig(), GCPLConfig(**OTHER)):
        assert GCPLConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config


def test_absent_settings_take_their_defaults() -> None:
    assert GCPLConfig.from_dict({"seed": 3}) == GCPLConfig(seed=3)


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ValueError, match="unknown settings colour, size; expected some of batch_size"):
        GCPLConfig.from_dict({"size": 1, "colour": 2})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective", "lmpt"),
        ("initial", "zero"),
        ("num_vectors", 0),
        ("batch_size", 0),
        ("num_samples", 0),
        ("discriminative_batch_size", 0),
        ("num_evidence", 0),
        ("evidence_batch_size", 0),
        ("num_steps", -1),
        ("discriminative_steps", -1),
        ("contrast_weight", -0.1),
        ("gcpl_share", -1),
        ("seed", -1),
        ("learning_rate", 0),
        ("discriminative_rate", -1),
        ("temperature", 0),
        ("num_rivals", 0),
        ("templates", ()),
        ("early_stopping", "test"),
        ("validation_share", 1.0),
        ("num_folds", 1),
        ("validate_every", 0),
        ("patience", -1),
        ("templates", "a {}"),
        ("timestep_range", (0.5, 0.5)),
        ("timestep_range", (-0.1, 1.0)),
        ("timestep_range", (0.0, 1.1)),
        ("num_steps", "many"),
        ("num_steps", 2.5),
        ("num_steps", True),
        ("flip", 1),
        ("learning_rate", "fast"),
        ("learning_rate", True),
        ("num_rivals", 2.5),
        ("preset", 3),
        ("classification", "slow"),
        ("evidence_bfloat16", 1),
        ("evidence_pool", 0),
        ("error_rate", 1.0),
        ("weighting", "mean"),
        ("schedule", "step"),
        ("weight_decay", -0.1),
        ("gradient_clip", -1),
    ],
)
def test_wrong_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        replace(GCPLConfig(), **{name: value})
