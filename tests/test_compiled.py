"""A denoiser that torch really compiles learns what it learns as it is."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from gcpl_lab import GCPLClassifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"),
]


def test_a_compiled_denoiser_learns_the_same(random_pair: Any, pictures: Any) -> None:
    """Forth and back through compiled code, and no compiled code left afterwards."""
    settings: dict[str, Any] = {
        "num_vectors": 2,
        "num_steps": 3,
        "batch_size": 4,
        "num_evidence": 2,
        "evidence_bfloat16": False,
    }
    plain, compiled = (
        GCPLClassifier(diffusion=random_pair.diffusion, compile_denoiser=chosen, **settings).fit(*pictures)
        for chosen in (False, True)
    )
    assert [record.loss for record in compiled.history_] == pytest.approx([r.loss for r in plain.history_], abs=1e-4)
    assert compiled.prompts_.vectors.detach().numpy() == pytest.approx(
        plain.prompts_.vectors.detach().numpy(), abs=1e-4
    )
    assert not torch.equal(compiled.prompts_.vectors, plain.prompts_.vectors)  # other code did run
    assert random_pair.diffusion.denoiser._compiled_call_impl is None
