"""How long until something happens: importing the package, the help text, and a first and a second demonstration.

    python benchmarks/startup.py            # prints a table, writes benchmarks/results/startup.json; five minutes
    python benchmarks/startup.py --small    # with a demonstration of a minute

Every measurement is a process of its own. ``import`` is timed inside the process, without Python's own start, the
help text from outside, with it. The demonstration runs in an empty folder, then again in the same one: the second
finds every outcome kept by content (``gcpl_lab/experiments/caching.py``). In small ones the parts which are never kept
(loading libraries and models, drawing figures) weigh more than they do at full size.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import alternate, benchmark_options, check_aim, make_result, make_row, make_rows, publish, time_call

HEAVY = ("torch", "diffusers", "transformers", "open_clip", "umap", "ipywidgets", "sklearn", "matplotlib", "bokeh")
IMPORT, HELP = "import gcpl_lab", "gcpl-lab --help"
COLD, WARM = "gcpl-lab demo, first", "gcpl-lab demo, second"
MOST_IMPORT, MOST_HELP, MOST_DEMO, MOST_WARM = 0.3, 1.0, 240.0, 0.5
SMALL = ("--shots", "4", "--test", "40", "--no-multilabel", "--set", "num_steps=60", "--set", "discriminative_steps=20")

IMPORTING = """
import sys, time
began = time.perf_counter()
import gcpl_lab
print(time.perf_counter() - began)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def run_python(*arguments: str) -> str:
    """Standard output of a Python process of this environment.

    Raises:
        SystemExit: It failed; its last lines are shown.
    """
    # Started in an empty folder and without it on the path (-P), so that nothing lying about is imported.
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [sys.executable, "-P", *arguments], capture_output=True, text=True, check=False, cwd=place
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def time_import() -> tuple[float, set[str]]:
    """Seconds of the import alone, and what it loaded."""
    seconds, modules = run_python("-c", IMPORTING).splitlines()
    return float(seconds), set(modules.split())


def time_demo(folder: Path, arguments: tuple[str, ...]) -> float:
    """Seconds of the demonstration as a program."""
    return time_call(lambda: run_python("-m", "gcpl_lab", "demo", "--folder", str(folder), *arguments))


def same_answers(folder: Path, before: str) -> bool:
    """Whether the second demonstration said what the first did; only when and how it was asked may differ."""
    return _without_times((folder / "results.json").read_text(encoding="utf-8")) == _without_times(before)


def _without_times(text: str) -> str:
    return re.sub(r'"(command|\w*seconds)": [^\n]*', "", text)


def measure_demo(arguments: tuple[str, ...]) -> tuple[list[float], list[float], bool]:
    """A first and a second demonstration in a new folder."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "demo"
        cold = time_demo(folder, arguments)
        before = (folder / "results.json").read_text(encoding="utf-8")
        warm = time_demo(folder, arguments)
        return [cold], [warm], same_answers(folder, before)


def measure(repeats: int, demo_arguments: tuple[str, ...] | None) -> dict[str, Any]:
    """Measure in processes of their own.

    Args:
        repeats: Of import and help; the demonstrations run once each.
        demo_arguments: Of ``gcpl-lab demo``; None leaves the demonstrations out. Without any, it is the size which is
            to stay below four minutes.
    """
    loaded = time_import()[1]
    seconds = alternate(
        {IMPORT: lambda: time_import()[0], HELP: lambda: run_python("-m", "gcpl_lab", "--help")}, repeats
    )
    rows = make_rows(seconds)
    heavy = sorted(loaded & set(HEAVY))
    aims = [
        check_aim("seconds of the import", rows[0]["seconds"], most=MOST_IMPORT),
        check_aim("heavy libraries that the import loads", len(heavy), most=0),
        check_aim("seconds of the help text", rows[1]["seconds"], most=MOST_HELP),
    ]
    facts: dict[str, Any] = {"heavy_modules_loaded": heavy, "modules_loaded": len(loaded)}
    if demo_arguments is not None:
        cold, warm, same = measure_demo(demo_arguments)
        rows += [make_row(COLD, cold), make_row(WARM, warm)]
        aims.append(check_aim("second demonstration's share of the first", warm[0] / cold[0], most=MOST_WARM))
        aims.append(check_aim("answers of the second that differ from the first", float(not same), most=0))
        if not demo_arguments:
            aims.append(check_aim("seconds of the first demonstration", cold[0], most=MOST_DEMO))
        facts["demo"] = {"arguments": list(demo_arguments), "runs": 1, "same_answers": same}
    return make_result("startup", rows, repeats, threads=os.environ.get("OMP_NUM_THREADS"), **facts, aims=aims)


def main() -> None:
    """Measure, print and write."""
    parser = benchmark_options(__doc__, "startup", preset=None)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help="run a small demonstration")
    size.add_argument("--no-demo", action="store_true", help="leave the demonstrations out")
    options = parser.parse_args()
    arguments = None if options.no_demo else SMALL if options.small else ()
    publish(measure(options.repeats, arguments), "Until something happens", options.output)


if __name__ == "__main__":
    main()
