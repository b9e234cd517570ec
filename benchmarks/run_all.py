"""Run every benchmark, one after another, and put the tables of the kept results into README.md.

python benchmarks/run_all.py                  # what `make bench` runs: a quarter of an hour
python benchmarks/run_all.py scaling startup  # only these
python benchmarks/run_all.py --full           # every program with its own settings: hours
python benchmarks/run_all.py --tables         # nothing is run: the tables are made from results/*.json

Programs that take long run with smaller settings here (``QUICK``). Their results go to runs/benchmarks/quick and are
printed; those in results/ come from a program's own settings alone, so that nothing there gets poorer unnoticed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measuring import CLOCKS, KEPT, RESULTS, aim_lines, machine_line, replace_measured, table_cells, table_headings
from rich.console import Console

from gcpl_lab.storage import read_json

HERE = Path(__file__).parent
PROGRAMS = (
    "startup",
    "gcpl_train",
    "gcpl_step",
    "true_shapes",
    "lmpt_epoch",
    "fast_gains",
    "scaling",
    "classifier_cost",
    "fast_calibration",
    "long_images",
    "objectives",
    "memory",
)
QUICK = {
    "startup": "--small",
    "gcpl_step": "--precision bfloat16 --repeats 1",
    "classifier_cost": "--images 60 --support-images 100 --pool 16 --repeats 5 --timed-images 1 --batch-images 16 "
    "--spread-seeds 0 --published-seconds 10 --train-steps 60",
    "fast_calibration": "--images 100 --support-images 60 --pool 8 --folds 2 --train-steps 60",
    "true_shapes": "--small",
    "long_images": "--seeds 1 --methods probe",
    "objectives": "--seeds 101 --train-steps 20 --only CoMPLe",
    "memory": "--images 20 --captions 2",
}
"""Smaller settings of the programs that take more than two minutes with their own."""

README = HERE / "README.md"


def run(names: Sequence[str], console: Console, full: bool = False, clock: str = "wall") -> list[str]:
    """Run programs in processes of their own; returns those that failed."""
    failed = []
    for name in names:
        began = time.perf_counter()
        console.rule(name)
        options = ["--clock", clock]
        if name in QUICK and not full:
            options += [*QUICK[name].split(), "--output", str(KEPT / "quick" / f"{name}.json")]
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options], check=False)
        if name in QUICK and not full:
            console.print(
                f"With smaller settings: results/{name}.json stays as it is; python benchmarks/{name}.py "
                "makes it anew.",
                soft_wrap=True,
            )
        console.print(f"{name}: {time.perf_counter() - began:.0f} s")
        if done.returncode:
            failed.append(name)
    return failed


def table_of(path: Path) -> list[str]:
    """One result as Markdown."""
    result = read_json(path)
    headings = table_headings(result["rows"])
    lines = [
        f"### {result['name']}",
        "",
        "| " + " | ".join(headings) + " |",
        "| --- |" + " ---: |" * (len(headings) - 1),
    ]
    lines += ["| " + " | ".join(table_cells(row, result["rows"])) + " |" for row in result["rows"]]
    lines += ["", *(f"- {line}" for line in [*aim_lines(result), machine_line(result)]), ""]
    return lines


def write_tables(readme: Path, results: Path) -> None:
    """Put the tables of all results between the marks of the page.

    Raises:
        SystemExit: The page has lost its marks.
    """
    files = [results / f"{name}.json" for name in PROGRAMS]
    lines = [line for path in files if path.is_file() for line in table_of(path)]
    replace_measured(readme, ["", *lines], "tables")


def main() -> None:
    """Run, then write the tables; fails where a program failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # An empty list is checked against the choices too, so they are checked here.
    parser.add_argument("programs", nargs="*", help=f"some of {', '.join(PROGRAMS)}; all where none is named")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--full", action="store_true", help="every program with its own settings")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for a look on a busy machine")
    options = parser.parse_args()
    if unknown := [name for name in options.programs if name not in PROGRAMS]:
        parser.error(f"{', '.join(unknown)}: no benchmarks; expected some of {', '.join(PROGRAMS)}")
    console, began = Console(width=120, highlight=False), time.perf_counter()
    failed = [] if options.tables else run(options.programs or PROGRAMS, console, options.full, options.clock)
    write_tables(README, RESULTS)
    console.print(f"{(time.perf_counter() - began) / 60:.1f} minutes; tables written to {README}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
