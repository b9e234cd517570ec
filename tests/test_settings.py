"""Settings of both methods: JSON and back, every wrong value named, those of earlier versions passed over."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

import gcpl_lab
from gcpl_lab.gcpl.checks import name_of
from gcpl_lab.gcpl.discriminative import Discriminative
from gcpl_lab.gcpl.objectives import OBJECTIVES
from gcpl_lab.gcpl.settings import GCPLConfig
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.settings import choices_of

CHANGED: dict[str, Any] = {
    "preset": "sd-1.4",
    "objective": "comple",
    "templates": ("a {}", "one {}"),
    "timestep_range": (0.25, 0.5),
    "num_rivals": None,
    "micro_batch_size": 4,
    "initial_words": "one",
    "ending": ".",
    "token_offset": None,
    "checkpoint_every": 7,
    "flip": False,
    "options": {"delta": 0.5},
}


def other(kind: Any) -> dict[str, Any]:
    """A value of every setting that is not its default."""
    found = {}
    for name, default in kind().as_dict().items():
        if name in CHANGED:
            found[name] = CHANGED[name]
        elif name in choices_of(kind):
            found[name] = next(value for value in choices_of(kind)[name] if value != default)
        elif isinstance(default, str):
            found[name] = "focal"
        else:
            found[name] = not default if isinstance(default, bool) else default / 2 or default + 1
            found[name] = type(default)(found[name])
    return found


@pytest.mark.parametrize("kind", [GCPLConfig, LMPTConfig])
def test_settings_go_to_json_and_back(kind: Any) -> None:
    """Absent ones take their defaults, and those of earlier versions are passed over."""
    changed = kind(**other(kind))
    assert all(value != getattr(kind(), name) for name, value in changed.as_dict().items())
    for config in (kind(), changed):
        assert kind.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert not set(kind.REMOVED) & {field.name for field in fields(kind)}
    assert kind.from_dict(dict.fromkeys(kind.REMOVED, "whatever") | {"seed": 3}) == kind(seed=3)
    with pytest.raises(ValueError, match=r"unknown settings colour, size; expected some of .*batch_size"):
        kind.from_dict({"size": 1, "colour": 2})
    assert getattr(gcpl_lab, kind.__name__) is kind


def test_what_was_measured_on_a_machine_takes_its_default() -> None:
    assert GCPLConfig.from_dict({"precision": "measured", "evidence_bfloat16": None}) == GCPLConfig()


@pytest.mark.parametrize("name", ["checkpoint_every", "micro_batch_size", "gradient_checkpointing", "seed"])
def test_what_may_change_in_a_resumed_run_is_not_its_identity(name: str) -> None:
    changed = replace(GCPLConfig(), **{name: other(GCPLConfig)[name]})
    assert (changed.identity() == GCPLConfig().identity()) == (name != "seed")


def test_an_objective_takes_its_settings_from_fields_and_options() -> None:
    config = GCPLConfig(temperature=7.0, num_rivals=None, options={"own_weight": 0.25, "delta": 3})
    assert config.chosen(OBJECTIVES["discriminative"].defaults) == {
        "temperature": 7.0,
        "num_rivals": None,
        "own_weight": 0.25,
    }
    assert GCPLConfig().chosen(OBJECTIVES["comple"].defaults) == {"contrast_weight": 0.1}
    assert config.chosen(OBJECTIVES["gcpl"].defaults) == {}


WRONG: dict[Any, list[tuple[str, Any]]] = {
    GCPLConfig: [
        *[("objective", "of no kind"), ("num_steps", "many"), ("num_steps", True), ("num_steps", 2.5)],
        *[("num_rivals", 2.5), ("learning_rate", "fast"), ("learning_rate", True), ("flip", 1), ("preset", 3)],
        *[("evidence_bfloat16", 1), ("templates", ()), ("templates", "a {}"), ("timestep_range", (0.5, 0.5))],
        *[("timestep_range", (-0.1, 1.0)), ("timestep_range", (0.0, 1.1))],
    ],
    LMPTConfig: [("classification", "of no kind"), ("mix", -0.1), ("mix", 1.1), ("refit", "yes")],
}
for settings, wrong in WRONG.items():
    wrong += [(name, "of no kind") for name in choices_of(settings)]
    wrong += [(name, least - 1) for name, least in settings.LEAST.items()]
    wrong += [(name, 0) for name in settings.ABOVE_ZERO] + [(name, end) for name in settings.SHARES for end in (0, 1)]


@pytest.mark.parametrize(("kind", "name", "value"), [(kind, *wrong) for kind in WRONG for wrong in WRONG[kind]])
def test_wrong_values_are_named(kind: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        kind(**{name: value})


@pytest.mark.usefixtures("own_registries")
def test_a_class_of_ones_own_keeps_its_base_and_its_defaults() -> None:
    class Sharper(Discriminative):
        def __init__(self, diffusion: Any, prompts: Any, temperature: float = 60.0, num_rivals: int = 1) -> None:
            super().__init__(diffusion, prompts, temperature, num_rivals)

    name = name_of(Sharper)
    assert OBJECTIVES[name].facts == OBJECTIVES["discriminative"].facts
    usual, own = OBJECTIVES[name].defaults, {"temperature": 60.0}
    assert GCPLConfig(objective=name).chosen(usual) == own | {"num_rivals": 1}
    assert GCPLConfig(objective=name, num_rivals=2).chosen(usual) == own | {"num_rivals": 2}
    assert GCPLConfig(objective=name, options={"temperature": 5.0}).chosen(usual)["temperature"] == 5.0
