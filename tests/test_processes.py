"""The processes of ``accelerate launch``: shares and exchange, and two real ones over gloo that do the work of one.

The launcher wants ``--multi_gpu`` for several processes on one machine; ACCELERATE_USE_CPU keeps them on the CPU.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch

from gcpl_lab.gcpl.classifier import DiffusionClassifier
from gcpl_lab.training import processes as several
from gcpl_lab.training.device import default_device
from gcpl_lab.training.processes import Processes

ROOT = Path(__file__).parents[1]


def test_shares_are_even_and_complete() -> None:
    for total in range(14):
        for count in range(1, 6):
            shares = [range(total)[Processes(index, count).share(total)] for index in range(count)]
            assert [item for share in shares for item in share] == list(range(total))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_connects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(several, "_process_state", lambda: pytest.fail("asked for a connection"))
    assert several.processes() == Processes(0, 1)
    assert several.is_main_process()
    rows = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    assert several.all_gather_rows(rows, 2) is rows
    assert several.all_reduce(rows) is rows
    assert several.broadcast_number(0.5) == 0.5
    several.wait_for_everyone()
    gathered = several.all_gather_rows(rows.contiguous(memory_format=torch.channels_last), 2)
    assert gathered.is_contiguous()  # as with any number of processes
    assert torch.equal(gathered, rows)


class FakeState:
    """What PartialState says in the second of three processes, each with a GPU of its own."""

    process_index, num_processes, device = 1, 3, torch.device("cuda", 1)

    def __init__(self, cpu: bool) -> None:
        self.cpu = cpu


def test_a_process_without_a_share_has_work_of_no_length(monkeypatch: pytest.MonkeyPatch, diffusion: Any) -> None:
    monkeypatch.setattr(several, "processes", lambda: Processes(0, 2))
    monkeypatch.setattr(several, "all_gather_rows", lambda rows, total: (rows, total))
    pixels = torch.zeros(1, 3, diffusion.image_size, diffusion.image_size)
    assert [(len(rows), total) for rows, total in several.split_work(pixels, diffusion.encode_moments)] == [(0, 1)] * 2
    classifier = DiffusionClassifier(diffusion, diffusion.encode_texts(["a", "b"]))
    assert classifier.exact(torch.empty(0, *diffusion.latent_shape), 3).errors.shape == (0, 2, 3)


def test_each_process_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(accelerate, "PartialState", FakeState)
    assert several.processes() == Processes(1, 3)
    assert not several.is_main_process()
    assert default_device() == "cuda:1"
    for cuda, flag, expected in ((True, "false", False), (True, "true", True), (False, "false", True)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setenv("ACCELERATE_USE_CPU", flag)
        assert several._process_state().cpu is expected


def test_processes_without_a_gpu_each_share_it_over_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(accelerate, "PartialState", lambda **options: asked.append(options))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    for count, gpus in ((2, 1), (2, 2), (1, 4)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(count))
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        several._process_state()
    assert asked == [{"cpu": False, "backend": "gloo"}, {"cpu": False}, {"cpu": False}]


def test_what_processes_exchange_goes_through_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes tensors of the process's GPU alone; what is asked for on the CPU comes back to it."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    def exchange(name: str, answer: list[Any]) -> None:
        def fake(values: torch.Tensor, *_: Any) -> torch.Tensor:
            seen.append((values.device.type, tuple(values.shape)))
            return torch.tensor(answer)

        monkeypatch.setattr(accelerate.utils, name, fake)

    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(accelerate, "PartialState", FakeState)
    monkeypatch.setattr(FakeState, "device", torch.device("meta"))  # stands for a GPU: nothing can be read there
    exchange("gather", [[0.0], [9], [1], [2], [3], [4]])
    exchange("reduce", [6.0])
    exchange("broadcast", [0.5])
    assert several.all_gather_rows(torch.tensor([[1.0], [2.0]]), 5).tolist() == [[0], [1], [2], [3], [4]]
    assert several.all_reduce(torch.tensor([2.0])).tolist() == [6.0]
    assert several.broadcast_number(0.25) == 0.5
    assert seen == [("meta", (2, 1)), ("meta", (1,)), ("meta", (1,))]


# ---------------------------------------------------------------------------------------- two real processes

WORK = """
import json, sys
from pathlib import Path
import numpy as np
from gcpl_lab import GCPLClassifier, LMPTClassifier, draw_episode, load_fashion
from gcpl_lab.training.processes import processes

pair, images, out = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3])
answers, here = {}, processes()
models = {"random": GCPLClassifier(preset=pair).diffusion, "shipped": GCPLClassifier().diffusion}
pool = load_fashion("support")
exemplars = pool.subset(draw_episode(pool, 4, 0))

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
    answers[name]["alone"] = model.evidence(model.encode(images[:1])).errors.mean(2).tolist()  # one image

small = dict(num_vectors=2, num_steps=4, discriminative_steps=2, discriminative_batch_size=3, num_samples=2,
             num_evidence=2, learning_rate=0.01, num_rivals=1, evidence_bfloat16=False, batch_size=5)
parted = dict(micro_batch_size=3, evidence_batch_size=11)  # two images (6 evaluations each) do not fit
for name, settings in {
    "gcpl": {}, "comple": dict(objective="comple", batch_size=7), "one": dict(batch_size=1),
    "discriminative": dict(objective="discriminative"),
    "parted gcpl": parted, "parted comple": dict(objective="comple", batch_size=7, **parted),
    "parted discriminative": dict(objective="discriminative", **parted),
    "parted bfloat16": dict(evidence_bfloat16=True, **parted),
}.items():
    answer(name, "random", {**small, **settings}, images, np.repeat(np.arange(3), 4))
answer("shipped parted", "shipped", dict(num_steps=12, micro_batch_size=20), exemplars.images, exemplars.labels)

clip = LMPTClassifier(num_epochs=3, batch_size=5)
targets = np.stack([np.arange(12) % 2 == 0, np.arange(12) % 3 == 0, np.arange(12) < 7], 1).astype(int)
clip.fit(list(images), targets, ["coat", "bag", "shirt"], ["a coat", "a bag", None] * 4)
answers["lmpt"] = {
    "vectors": clip.objective_.prompts.context.detach().flatten().tolist(),
    "losses": [record.loss for record in clip.history_],
    "scores": clip.predict_proba(list(images[:11])).tolist(),
}
(out / f"answers-{here.index}-of-{here.count}.json").write_text(json.dumps(answers))
"""
KEYS = ("vectors", "scores", "losses", "temperature", "train", "alone")


def slow(test: Any) -> Any:
    return pytest.mark.slow(pytest.mark.timeout(3600)(test))


def launch(*arguments: str, num_processes: int = 2) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port {port}".split()
    options += ["--num_processes", str(num_processes), "--multi_gpu" if num_processes > 1 else "--cpu"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, *arguments]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, cwd=ROOT)


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
        given = (folder / "work.py", random_pair.folder, folder / "images.npy", out)
        done = launch(*map(str, given), num_processes=count)
        assert done.returncode == 0, done.stderr[-3000:]
        found[count] = [json.loads((out / f"answers-{i}-of-{count}.json").read_text()) for i in range(count)]
        assert not list(out.rglob("*.part"))
    return found


def compare(answers: dict[int, list[Any]], name: str, keys: Iterable[str], close: Iterable[str]) -> None:
    """Both processes have the same digits, and what is ``close`` agrees with one process's."""
    (one,), (main, other) = answers[1], answers[2]
    for key in keys:
        assert main[name][key] == other[name][key], key
    for key in close:
        np.testing.assert_allclose(main[name][key], one[name][key], atol=1e-5, rtol=1e-5, err_msg=key)


@slow
@pytest.mark.parametrize(
    "name", ["parted gcpl", "parted comple", "parted discriminative", "parted bfloat16", "shipped parted"]
)
def test_passes_of_a_given_size_give_the_same_digits(answers: dict[int, list[Any]], name: str) -> None:
    (one,), (main, other) = answers[1], answers[2]
    for key in KEYS:
        assert main[name][key] == other[name][key] == one[name][key], key


@slow
@pytest.mark.parametrize("name", ["gcpl", "comple", "one", "discriminative"])
def test_two_processes_learn_what_one_learns(answers: dict[int, list[Any]], name: str) -> None:
    """Batches of 5 and 1 and groups of 3, 3, 1 among two processes: uneven shares, and none at all."""
    compare(answers, name, KEYS, ("vectors", "losses", "scores", "alone"))
    judged = [process[name]["judged"] for process in answers[2]]
    assert sum(judged) == answers[1][0][name]["judged"] == 11 * 3 * 2
    assert abs(judged[0] - judged[1]) == 3 * 2  # one image: classes × samples


@slow
def test_two_processes_share_lmpts_images(answers: dict[int, list[Any]]) -> None:
    """They encode a part of the images each, and train alike on the features of all."""
    keys = answers[1][0]["lmpt"].keys()
    compare(answers, "lmpt", keys, keys)


@slow
def test_the_command_line_speaks_once(random_pair: Any, few_shot_folder: Path, tmp_path: Path) -> None:
    def program(*words: object) -> subprocess.CompletedProcess[str]:
        return launch("-m", "gcpl_lab", *map(str, words))

    settings = [f"--set={text}" for text in ("num_steps=2", "batch_size=4", "num_vectors=2", "num_evidence=2")]
    run, test = tmp_path / "run", few_shot_folder / "test"
    where = (few_shot_folder / "support", "-o", run, "--preset", random_pair.folder)
    trained = program("train", "gcpl", *where, "--shots", 4, "--json", *settings)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert json.loads(trained.stdout)["pictures"] == 12
    assert sorted(path.name for path in run.iterdir()) == ["kept", "prompts.json", "prompts.safetensors", "run.json"]
    judged = program("classify", run, test, "--preset", random_pair.folder, "--json")
    assert judged.returncode == 0, judged.stderr[-3000:]
    assert len(json.loads(judged.stdout)) == 12
    wrong = program("classify", tmp_path / "nothing", test)
    assert wrong.returncode == 1
    assert "no such folder" in wrong.stderr
