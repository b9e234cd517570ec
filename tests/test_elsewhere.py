"""Everything that a GPU computes, on a device that is none: no line mixes devices, and the numbers are the CPU's."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torch.utils.backend_registration")

WORK = """
import sys, tempfile
from pathlib import Path
from typing import Any
import numpy as np, torch
from torch.utils._python_dispatch import _disable_current_modes
from tests.elsewhere import DEVICE, Away, Elsewhere
from gcpl_lab import GCPLClassifier, LMPTClassifier, fast
from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.experiments import published
from gcpl_lab.experiments.profile import measure_profile
from gcpl_lab.lmpt.encoding import encode_views
from gcpl_lab.lmpt.objective import LMPT
from gcpl_lab.lmpt.settings import LMPTConfig
from gcpl_lab.models.clip import FrozenCLIP
from gcpl_lab.models.diffusion import FrozenDiffusion

pair, labels = sys.argv[1], np.arange(12) % 3
images = [np.random.default_rng(i).integers(60 * i, 60 * i + 100, (40, 32), dtype=np.uint8) for i in labels]
targets, names = np.stack([labels == 0, labels == 1, labels < 2], 1).astype(int), ["coat", "bag", "shirt"]
small = {"num_steps": 3, "batch_size": 4, "num_evidence": 2, "discriminative_steps": 2, "num_samples": 2,
         "discriminative_batch_size": 2, "checkpoint_every": 1, "evidence_bfloat16": False}

def loaded(kind, device):
    with _disable_current_modes():
        return kind.load(pair, "cpu")

def gcpl(device, **settings):
    model = GCPLClassifier(pair, diffusion=loaded(FrozenDiffusion, device).to(device), **small, **settings)
    with tempfile.TemporaryDirectory() as folder:
        records = model.steps(images, labels, checkpoint_folder=folder)
        next(records), records.close()  # interrupted
        model.fit(images, labels, checkpoint_folder=folder)
        model.save(f"{folder}/saved")
        again = GCPLClassifier.load(f"{folder}/saved", loaded(FrozenDiffusion, device).to(device))
    assert (model.prompts_.vectors.device.type == "cpu") == (device == "cpu")
    return [r.loss for r in model.history_], model.predict_proba(images), again.predict_proba(images)

def lmpt(device, **settings):
    clip = loaded(FrozenCLIP, device)
    clip.model.to(device)
    model = LMPTClassifier(pair, num_epochs=2, batch_size=5, clip=clip, **settings)
    model.fit(images, targets, names, ["a coat", "a bag", None] * 4)
    return [r.loss for r in model.history_], model.predict_proba(images)

def published_gcpl(device):
    diffusion = loaded(FrozenDiffusion, device).to(device)
    for variant in published.make_variants(published.Material.noise(diffusion, 2), 2).values():
        variant()
    measure_profile(diffusion, batch_size=2, num_steps=1)
    return [len(diffusion.generate(diffusion.encode_texts(["coat"]), num_steps=2))]

def published_lmpt(device):
    clip, config = loaded(FrozenCLIP, device), LMPTConfig(batch_size=8)
    clip.model.to(device)
    scenes = load_wardrobe("train").subset(np.arange(400, 520))
    batches = published.lmpt_batches(clip, scenes, encode_views(clip, scenes.images, flip=False), config)
    made = [published.lmpt_objective(kind, clip, scenes, config) for kind in (LMPT, published.PublishedLMPT)]
    return [next(published.lmpt_updates(one, at, 1, config)).loss for one, at in zip(made, batches)]

runs = {"gcpl": gcpl, "comple": lambda d: gcpl(d, objective="comple"), "published": published_gcpl,
        "discriminative": lambda d: gcpl(d, objective="discriminative", num_rivals=1),
        "parted": lambda d: gcpl(d, gradient_checkpointing=True, micro_batch_size=2),
        "lmpt": lmpt, "token": lambda d: lmpt(d, reading="token", classification="distribution_balanced"),
        "published lmpt": published_lmpt}
for name, run in runs.items():
    print(name, flush=True)
    expected = run("cpu")
    with Elsewhere():
        found = run(DEVICE)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4, err_msg=name)
with Elsewhere():
    far = torch.ones(2, 2).to(DEVICE)
    assert isinstance(far @ far, Away)
    for mixing in (lambda: far @ torch.ones(2, 2), lambda: torch.ones(2)[far.long()[0]], far.numpy):
        try:
            mixing()
        except (RuntimeError, TypeError):
            continue
        raise AssertionError("devices were mixed")
print("all equal")
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_mixes_devices(random_pair: Any, tmp_path: Path) -> None:
    if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no devices that are written in Python")
    root = Path(__file__).parents[1]
    (tmp_path / "work.py").write_text(WORK)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "work.py"), str(random_pair.folder)]
    environment = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all equal\n")
