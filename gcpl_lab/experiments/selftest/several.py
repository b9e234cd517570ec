"""Part: several processes learn what one learns; over NCCL where there are GPUs for all, else over gloo.

Run as a module, it is what each of the processes does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.samples import load_fashion
from gcpl_lab.experiments.selftest.parts import Findings, NotHere, register_part
from gcpl_lab.gcpl.estimator import GCPLClassifier
from gcpl_lab.storage import read_json, write_json
from gcpl_lab.training.machine import describe_device
from gcpl_lab.training.processes import backend_name, processes

MOST_APART = 1e-3
"""Of losses and scores relatively, and of prompts as a share of what the updates changed."""


@register_part("several", title="Several processes", seconds={"cuda": 20, "cpu": 30})
def several(found: Findings) -> None:
    """Two processes, or as many as there are GPUs, against this one."""
    if found.device.type == "mps":
        raise NotHere("torch has no backend for several processes on mps")
    count = max(2, int(describe_device().get("num_cards", 0)))
    found.folder.mkdir(parents=True, exist_ok=True)
    expected, (main, *others) = learn(), run_processes(count, found.folder, found.ends - time.time())
    same = all(other[key] == main[key] for other in others for key in ("losses", "prompts", "scores"))
    found.check("processes with other digits than the first", int(not same), most=0)
    for name in ("losses", "scores"):
        apart = np.abs(np.subtract(main[name], expected[name])) / np.abs(expected[name])
        found.check(f"{name} apart from one process's", float(apart.max()), most=MOST_APART)
    way = np.linalg.norm(np.subtract(expected["prompts"], expected["start"]))
    apart = float(np.linalg.norm(np.subtract(main["prompts"], expected["prompts"])) / way)
    found.check("prompts apart from one process's", apart, most=MOST_APART)
    found.figures |= {"processes": count, "backend": main["backend"]}
    found.headline = f"{count} over {main['backend']}: prompts differ by {apart:.1e} of their way"


def learn() -> dict[str, Any]:
    """A few updates and the scores of a few images, in float32, shared by all processes that there are."""
    support, test = load_fashion("support"), load_fashion("test")
    few = support.subset(draw_episode(support, 2, seed=0))
    model = GCPLClassifier(num_steps=4, batch_size=10, num_evidence=2, precision="float32", evidence_bfloat16=False)
    model.fit(few.images, few.labels)
    scores = model.errors(model.encode(test.images[:7]), 2).mean(axis=2)
    return {
        "losses": [record.loss for record in model.history_],
        "start": model.states_[0].flatten().tolist(),
        "prompts": model.prompts_.vectors.detach().cpu().flatten().tolist(),
        "scores": scores.tolist(),
        "backend": backend_name(),
    }


def run_processes(count: int, folder: Path, seconds: float) -> list[dict[str, Any]]:
    """What each of ``count`` processes found.

    Raises:
        RuntimeError: One of them failed, with the last line that it wrote, or none came back in time.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    threads = str(max(1, torch.get_num_threads() // count))
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    command, started = [sys.executable, "-m", __spec__.name, str(folder)], list[subprocess.Popen[bytes]]()
    ends = time.time() + max(60, seconds)
    try:
        for index in range(count):
            own = {"RANK": str(index), "LOCAL_RANK": str(index)}
            with open(folder / f"process-{index}.log", "wb") as log:
                started.append(subprocess.Popen(command, env=os.environ | shared | own, stdout=log, stderr=log))
        while (codes := [process.poll() for process in started]).count(0) < count:
            if failed := [index for index, code in enumerate(codes) if code]:
                said = (folder / f"process-{failed[0]}.log").read_text(encoding="utf-8").strip().splitlines()
                raise RuntimeError(f"process {failed[0]} of {count}: {said[-1] if said else codes[failed[0]]}")
            if time.time() > ends:
                raise RuntimeError(f"{count} processes did not end; what they said is in {folder}")
            time.sleep(0.1)
    finally:
        for process in started:
            process.kill()
    return [read_json(folder / f"process-{index}.json") for index in range(count)]


if __name__ == "__main__":
    answer = learn()
    write_json(Path(sys.argv[1]) / f"process-{processes().index}.json", answer)
