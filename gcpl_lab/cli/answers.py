"""What commands print: answers for people or as JSON, tables of results, and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

console = Console(stderr=True)

LEAST_TEXT = 16
"""Columns of a terminal that a name keeps beside many numbers."""


def answer(value: Any, as_json: bool, *shown: Any) -> None:
    """Print a value as JSON where that was asked for, else what is for people: a line each, or a table."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        return
    out = Console()
    for item in shown:
        # A text may hold a path, which a line break or brackets that are taken for markup would spoil.
        out.print(item, soft_wrap=isinstance(item, str), markup=False, highlight=False)


def make_table(
    columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]], title: str = "", num_text_columns: int = 1
) -> Table:
    """A table for a terminal of 80 columns.

    Args:
        columns: For each heading, how its cells are written: a format string over the keys of a row.
        num_text_columns: The first ones, which may wrap; the others are numbers and do not, as long as they fit.
    """
    table = Table(title=escape(title) or None, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    cells = [[cell.format_map(row) for cell in columns.values()] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    narrow = sum(width + 1 for width in widths[num_text_columns:]) + num_text_columns * LEAST_TEXT <= 80
    for place, heading in enumerate(columns):
        text, width = place < num_text_columns, None if narrow else min(widths[place], LEAST_TEXT)
        how: dict[str, Any] = {"justify": "left", "width": width} if text else {"justify": "right", "no_wrap": narrow}
        table.add_column(heading, **how)
    for row in cells:
        table.add_row(*map(escape, row))
    return table


def percent(share: float | None) -> str:
    """``"61.2"``; a dash where nothing was measured."""
    return "–" if share is None else f"{100 * share:.1f}"


def mean_and_spread(entry: Mapping[str, Any]) -> str:
    """``"61.2 ± 1.1"``: percent and the standard deviation, where there is one."""
    spread = entry["standard_deviation"]
    return percent(entry["mean"]) + ("" if spread is None else f" ± {percent(spread)}")


def difference(entry: Mapping[str, Any]) -> str:
    """``"-14.3 (-17.3 to -11.4)"``: a paired difference in points with its interval, as far as there are any."""
    if entry["difference"] is None:
        return ""
    interval = "" if entry["low"] is None else f" ({100 * entry['low']:+.1f} to {100 * entry['high']:+.1f})"
    return f"{100 * entry['difference']:+.1f}{interval}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``"12.0 s"``, ``"3.5 min"``, ``"7.2 h"``, ``"51 days"``."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds / 86_400:,.0f} days"


@contextmanager
def counting(before: str) -> Iterator[Callable[[int, int], None]]:
    """A status line, and a listener for work on images that keeps it up to date."""
    with console.status(before) as status:
        yield lambda done, total: status.update(f"{done} of {total} images")


class LiveProgress(Progress):
    """A live line for each method, from the events of :func:`gcpl_lab.experiments.demo.run_demo`."""

    def __init__(self, titles: Mapping[str, str]) -> None:
        name, note = TextColumn("{task.description:<30}"), TextColumn("{task.fields[note]}")
        columns = (name, BarColumn(bar_width=24), MofNCompleteColumn(), note, TimeElapsedColumn())
        super().__init__(*columns, console=console)
        self._titles, self._lines = titles, dict[str, Any]()

    def __call__(self, event: str, name: str, *values: Any) -> None:
        """Show that a method has begun, made a step (its record, and the number of steps) or ended."""
        if event == "begin":
            self._lines[name] = self.add_task(self._titles.get(name, name), total=None, note="")
        elif event == "step":
            record, total = values
            self.update(self._lines[name], total=total, completed=record.step, note=f"loss {record.loss:.3f}")
        else:
            total = self.tasks[self._lines[name]].total or 1
            self.update(self._lines[name], total=total, completed=total)
