"""The program: one command line with verbs. Heavy libraries load inside the verbs that need them."""

from __future__ import annotations

import errno
import io
import signal
import sys
from collections.abc import Callable

import typer
from rich.markup import escape

from gcpl_lab.cli import comparing, deciding, learning, pilot, project, workshop
from gcpl_lab.cli.answers import console
from gcpl_lab.errors import LabError
from gcpl_lab.storage import reason_of
from gcpl_lab.training.processes import processes

INTERRUPTED = 130
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


def main() -> None:
    """Run the program; errors that a user can act on are one message without a traceback."""
    here = processes()
    if here.count == 1:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the end of a spot machine is an interruption
    elif here.index > 0:  # of accelerate launch: one process speaks, and the others when something goes wrong
        console.quiet, sys.stdout = True, io.StringIO()
    try:
        app()
    except (LabError, OSError) as error:
        console.quiet = False
        if isinstance(error, OSError) and error.errno not in DISK_ERRORS:
            raise
        told = f"{error.filename or 'the disk'}: {reason_of(error)}" if isinstance(error, OSError) else str(error)
        console.print(f"[bold red]Error:[/] {escape(told)}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer turns Ctrl-C into this
            again = "train, compare, ablate and pretrain go on where the same command is given again."
            console.print(f"Interrupted. {again}", soft_wrap=True)
        raise
