"""The program: one command line with verbs. Heavy libraries load inside the verbs that need them."""

from __future__ import annotations

import errno
import io
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import typer
from rich.markup import escape

from gcpl_lab.cli import comparing, deciding, learning, pilot, project, workshop
from gcpl_lab.cli.answers import console
from gcpl_lab.errors import LabError
from gcpl_lab.storage import reason_of
from gcpl_lab.training.processes import processes

DISK_ERRORS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ENOTDIR)
VERBS: dict[str, Callable[..., None]] = {
    "doctor": project.doctor,
    "selftest": project.selftest,
    "demo": comparing.demo,
    "train gcpl": learning.train_gcpl,
    "train lmpt": learning.train_lmpt,
    "classify": learning.classify,
    "evaluate": learning.evaluate,
    "compare": comparing.compare,
    "situations": deciding.situations,
    "verdict": deciding.verdict,
    "ablate lmpt": comparing.ablate_lmpt,
    "caption": learning.caption,
    "init": project.init,
    "plan": project.plan,
    "recipe": project.recipe,
    "pilot init": pilot.init,
    "pilot run": pilot.run,
    "pilot watch": pilot.watch,
    "pilot explain": pilot.explain,
    "pilot correct": pilot.correct,
    "report": workshop.report,
    "slides": workshop.slides,
    "map": workshop.hover_map,
    "animate": workshop.animate,
    "course": workshop.course,
    "catch-up": workshop.catch_up,
    "lab": workshop.lab,
    "build-samples": workshop.build_samples,
    "pretrain": workshop.pretrain,
}

ABOUT = "Teach a frozen vision-language model look-alike classes from a few images, and measure if it works."
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=ABOUT)
groups = {
    "train": typer.Typer(no_args_is_help=True, help="Learn prompts with one of the methods."),
    "pilot": typer.Typer(no_args_is_help=True, help="From own images to a decision, and the watch after it."),
    "ablate": typer.Typer(no_args_is_help=True, help="Measure what each part of a method adds."),
}
for name, group in groups.items():
    app.add_typer(group, name=name)
for words, verb in VERBS.items():
    *above, name = words.split()
    (groups[above[0]] if above else app).command(name)(verb)


def _end(problem: str) -> NoReturn:
    """One message, and the end."""
    console.quiet = False
    # A name that is no UTF-8, or half a character, is written with its number.
    plain = problem.encode("utf-8", "backslashreplace").decode()
    console.print(f"[bold red]Error:[/] {escape(plain)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def main() -> None:
    """Run the program; errors that a user can act on are one message without a traceback."""
    here = processes()
    if here.count == 1:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the end of a spot machine is an interruption
    elif here.index > 0:  # of accelerate launch: one process speaks, and the others when something goes wrong
        console.quiet, sys.stdout = True, io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console or a pipe that does not know every letter
            stream.reconfigure(errors="replace")
    try:
        app()
    except LabError as error:
        _end(str(error))
    except OSError as error:
        if error.filename is None and error.errno not in DISK_ERRORS:
            raise
        _end(f"{error.filename or 'the disk'}: {reason_of(error)}")
    except SystemExit as end:
        if end.code == 130:  # typer turns Ctrl-C into this
            again = "train, compare, ablate and pretrain go on where the same command is given again."
            console.print(f"Interrupted. {again}", soft_wrap=True)
        raise
