"""Nothing of the program around it is changed by loading a model or drawing a map."""

import subprocess
import sys
from pathlib import Path

CODE = """
import logging, random, warnings
import matplotlib, numpy, torch
from gcpl_lab import FrozenCLIP, FrozenDiffusion
import gcpl_lab.models.clip, gcpl_lab.models.diffusion, gcpl_lab.views.projection as projection

def state():
    return {
        "threads of torch": torch.get_num_threads(),
        "random numbers of torch": torch.get_rng_state().tolist(),
        "random numbers of numpy": [str(part) for part in numpy.random.get_state()],
        "random numbers of Python": random.getstate(),
        "settings of matplotlib": dict(matplotlib.rcParams),
        "filters of warnings": list(map(str, warnings.filters)),
        "logging": (list(map(str, logging.root.handlers)), logging.root.level, logging.root.manager.disable),
    }

torch.set_num_threads(1)
points = numpy.random.default_rng(0).normal(size=(30, 4))
states = {"a": points, "b": points}
for what, run in {
    "diffusion": lambda: FrozenDiffusion.load("tiny"),
    "clip": lambda: FrozenCLIP.load("tiny"),
    **{method: lambda method=method: projection.project(states, method) for method in projection.METHODS},
}.items():
    before = state()
    run()
    after = state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"{what} changed {', '.join(changed)}"
"""


def test_libraries_leave_the_program_as_it_was() -> None:
    """In a process of its own, where they are imported for the first time; UMAP left torch with all threads."""
    done = subprocess.run([sys.executable, "-c", CODE], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
