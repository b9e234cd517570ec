"""Two real processes, connected over gloo by ``accelerate launch``, do the work of one.

The launcher wants ``--multi_gpu`` for several processes on one machine; ACCELERATE_USE_CPU keeps them on the CPU.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[1]
WORK = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from gcpl_lab import GCPLClassifier, LMPTClassifier
from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.training.device import processes

pair, noise, out = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3])
answers, here = {}, processes()
small = dict(num_vectors=2, num_steps=4, discriminative_steps=2, discriminative_batch_size=3, num_samples=2,
             num_evidence=2, learning_rate=0.01, num_rivals=1, evidence_bfloat16=False)
models = {"random": GCPLClassifier(preset=pair).diffusion, "shipped": GCPLClassifier().diffusion}
pool = load_fashion("support")
photographs = pool.subset(draw_episode(pool, 4, 0))
parted = dict(micro_batch_size=3, evidence_batch_size=11)  # two photographs (6 evaluations each) do not fit

def answer(name, kind, settings, images, labels):
    diffusion = models[kind]
    model = GCPLClassifier(diffusion=diffusion, **settings)
    model.fit(images, labels, checkpoint_folder=out / f"{name}-run")
    before = diffusion.num_denoiser_evaluations
    scores = model.evidence(model.encode(images[:11])).errors.mean(2)
    judged = diffusion.num_denoiser_evaluations - before
    model.save(out / name)
    answers[name] = {
        "vectors": model.prompts_.vectors.detach().flatten().tolist(), "scores": scores.tolist(),
        "losses": [v for record in model.history_ for v in (record.loss, *record.values.values())],
        "temperature": model.temperature_, "judged": judged, "train": model.train_evaluations_,
    }
    answers[name]["alone"] = model.evidence(model.encode(images[:1])).errors.mean(2).tolist()  # one picture

for name, settings in {
    "gcpl": dict(batch_size=5), "comple": dict(objective="comple", batch_size=7), "one": dict(batch_size=1),
    "discriminative": dict(objective="discriminative", batch_size=5),
    "validated": dict(batch_size=5, early_stopping="validation", validate_every=1, patience=1),
    "parted gcpl": dict(batch_size=5, **parted),
    "parted comple": dict(objective="comple", batch_size=7, **parted),
    "parted discriminative": dict(objective="discriminative", batch_size=5, **parted),
    "parted bfloat16": dict(batch_size=5, **(parted | dict(evidence_bfloat16=True))),
}.items():
    answer(name, "random", {**small, **settings}, noise, np.repeat(np.arange(3), 4))
for name, settings in {
    "gcpl": dict(num_steps=12), "comple": dict(objective="comple", num_steps=12),
    "discriminative": dict(objective="discriminative", num_steps=3, discriminative_steps=3),
    "parted": dict(num_steps=12, micro_batch_size=20),
}.items():
    answer(f"shipped {name}", "shipped", settings, photographs.images, photographs.labels)

clip = LMPTClassifier(num_epochs=3, batch_size=5)
targets = np.stack([np.arange(12) % 2 == 0, np.arange(12) % 3 == 0, np.arange(12) < 7], 1).astype(int)
clip.fit(list(noise), targets, ["coat", "bag", "shirt"], ["a coat", "a bag", None] * 4)
answers["lmpt"] = {
    "vectors": clip.objective_.prompts.context.detach().flatten().tolist(),
    "losses": [record.loss for record in clip.history_],
    "scores": clip.predict_proba(list(noise[:11])).tolist(),
}
(out / f"answers-{here.index}-of-{here.count}.json").write_text(json.dumps(answers))
"""


def launch(*arguments: str, num_processes: int = 2, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--num_processes",
        str(num_processes),
        "--main_process_port",
        str(port),
    ]
    launcher += ["--multi_gpu"] if num_processes > 1 else ["--cpu"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )


@pytest.fixture(scope="module")
def answers(random_pair: Any, pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """What one process and two processes found, by their number."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "work.py").write_text(WORK)
    np.save(folder / "images.npy", np.stack(pictures[0]))
    found: dict[int, list[Any]] = {}
    for count in (1, 2):
        out = folder / str(count)
        out.mkdir()
        done = launch(
            str(folder / "work.py"), str(random_pair.folder), str(folder / "images.npy"), str(out), num_processes=count
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[count] = [json.loads((out / f"answers-{i}-of-{count}.json").read_text()) for i in range(count)]
        left = [path.name for path in out.rglob("*.part")]
        assert not left
    return found


@pytest.mark.parametrize(
    "name", ["parted gcpl", "parted comple", "parted discriminative", "parted bfloat16", "shipped parted"]
)
def test_passes_of_a_given_size_give_the_same_digits(answers: dict[int, list[Any]], name: str) -> None:
    (one,), (main, other) = answers[1], answers[2]
    for key in ("vectors", "scores", "losses", "temperature", "train", "alone"):
        assert main[name][key] == other[name][key] == one[name][key], key


@pytest.mark.parametrize("name", ["gcpl", "comple", "one", "discriminative", "validated"])
def test_two_processes_learn_what_one_learns(answers: dict[int, list[Any]], name: str) -> None:
    """Batches of 5 and 1 and groups of 3, 3, 1 among two processes: uneven shares, and none at all."""
    (one,), (main, other) = answers[1], answers[2]
    for key in ("vectors", "scores", "losses", "temperature", "train", "alone"):
        assert main[name][key] == other[name][key], key
    for key in ("vectors", "losses", "scores", "alone"):
        np.testing.assert_allclose(main[name][key], one[name][key], atol=1e-5, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("objective", ["gcpl", "comple", "discriminative"])
def test_the_shipped_pair_learns_the_same_as_it_comes(answers: dict[int, list[Any]], objective: str) -> None:
    """Every default but the number of updates: one pass of 40 samples here, one of 20 in each process there."""
    (one,), (main, other) = answers[1], answers[2]
    name = f"shipped {objective}"
    for key in ("vectors", "scores", "losses", "temperature", "train", "alone"):
        assert main[name][key] == other[name][key], key
    for key in ("vectors", "losses"):
        np.testing.assert_allclose(main[name][key], one[name][key], atol=1e-5, rtol=1e-5, err_msg=key)
    # Prompts that differ at all are rounded to other bfloat16 numbers where photographs are judged.
    np.testing.assert_allclose(main[name]["scores"], one[name]["scores"], rtol=0.01)
    assert (np.argmin(main[name]["scores"], 1) == np.argmin(one[name]["scores"], 1)).all()
    judged = [process[name]["judged"] for process in answers[2]]
    assert sum(judged) == one[name]["judged"] == 11 * 10 * 8
    assert abs(judged[0] - judged[1]) == 10 * 8  # one picture


def test_two_processes_share_lmpts_pictures(answers: dict[int, list[Any]]) -> None:
    """They encode a part of the pictures each, and train alike on the features of all."""
    (one,), (main, other) = answers[1], answers[2]
    for key, values in one["lmpt"].items():
        assert main["lmpt"][key] == other["lmpt"][key], key
        np.testing.assert_allclose(main["lmpt"][key], values, atol=1e-5, rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["gcpl", "comple", "one", "discriminative", "validated"])
def test_evaluations_are_shared_to_within_one_picture(answers: dict[int, list[Any]], name: str) -> None:
    judged = [process[name]["judged"] for process in answers[2]]
    assert sum(judged) == answers[1][0][name]["judged"] == 11 * 3 * 2
    assert abs(judged[0] - judged[1]) == 3 * 2  # one picture: classes × samples


def test_the_command_line_speaks_once(random_pair: Any, few_shot_folder: Path, tmp_path: Path) -> None:
    settings = [f"--set={text}" for text in ("num_steps=2", "batch_size=4", "num_vectors=2", "num_evidence=2")]
    trained = launch(
        "-m",
        "gcpl_lab",
        "train",
        "gcpl",
        str(few_shot_folder / "support"),
        "-o",
        str(tmp_path / "run"),
        "--preset",
        str(random_pair.folder),
        "--shots",
        "4",
        "--json",
        *settings,
    )
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert json.loads(trained.stdout)["pictures"] == 12
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["prompts.json", "prompts.safetensors"]
    judged = launch("-m", "gcpl_lab", "classify", str(tmp_path / "run"), str(few_shot_folder / "test"), "--json")
    assert judged.returncode == 0, judged.stderr[-3000:]
    assert len(json.loads(judged.stdout)) == 12
    wrong = launch("-m", "gcpl_lab", "classify", str(tmp_path / "nothing"), str(few_shot_folder / "test"))
    assert wrong.returncode == 1
    assert "no such folder" in wrong.stderr
