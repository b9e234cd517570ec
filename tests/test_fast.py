"""What ``fast/`` wraps can be switched off and on; its answers are those of the plain model in tests of their own."""

from typing import Any

import pytest

from gcpl_lab import fast
from gcpl_lab.errors import LabError
from gcpl_lab.models.clip import FrozenCLIP


def test_the_variable_switches_it_off_and_on(random_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FrozenCLIP.load(str(random_pair.folder))
    assert "encode_prompts" not in vars(model)  # nothing is wrapped that did not ask for it
    monkeypatch.delenv(fast.VARIABLE, raising=False)
    assert fast.enable(model) is model
    wrapped = vars(model)["encode_prompts"]
    assert vars(fast.enable(model))["encode_prompts"] is wrapped  # once, however often
    monkeypatch.setenv("GCPL_LAB_FAST", "0")
    assert "encode_prompts" not in vars(fast.enable(model))
    monkeypatch.setenv("GCPL_LAB_FAST", "1")
    assert "encode_prompts" in vars(fast.enable(model))
    monkeypatch.setenv("GCPL_LAB_FAST", "off")
    with pytest.raises(LabError, match="GCPL_LAB_FAST is 'off'; expected 0 .* or 1"):
        fast.enable(model)
