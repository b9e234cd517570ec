"""People look at samples and say yes or no, into a file that outlives the kernel."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np

from gcpl_lab.data.readers import read_image
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.storage import write_text
from gcpl_lab.views import style
from gcpl_lab.views.stepwise import draw_denoising
from gcpl_lab.views.widgets.base import LABEL_WIDTH, WIDE, View

COLUMNS = ("id", "label", "decision", "reason", "decided_at")
DECISIONS = ("accept", "reject")
REASONS = ("wrong class", "poor quality", "two things in it", "duplicate")


def read_review(path: str | Path) -> dict[str, dict[str, str]]:
    """The decisions of a review file by their picture's id; empty where there is no file yet.

    Args:
        path: A CSV file that :class:`SampleReviewer` wrote.

    Raises:
        ArtifactError: It has other columns, an unknown decision, or an id twice; the line is named.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path}: is no UTF-8 text ({error}); move it away or choose another file") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ArtifactError(
            f"{path}: its columns are {reader.fieldnames}; expected {list(COLUMNS)}: choose another "
            "file for this review"
        )
    rows: dict[str, dict[str, str]] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if row["decision"] not in DECISIONS:
            raise ArtifactError(f"{where}: the decision is {row['decision']!r}; expected accept or reject: correct it")
        if row["id"] in rows:
            raise ArtifactError(f"{where}: {row['id']!r} was decided before; leave one of the two lines")
        rows[row["id"]] = {name: row[name] or "" for name in COLUMNS}
    return rows


class SampleReviewer(View):
    """Accept or reject pictures one by one; every decision is on disk before the next picture appears.

    After a restart the same call goes on at the first undecided picture. A decision can be taken again: the file
    holds the last one. Rows about pictures that are not in this round are kept.

    Attributes:
        decisions: Picture id to its row of the file.
        accept, reject: Decide about the present picture and go on.
        back, forward: Go through the pictures without deciding.
        reason: Why; a choice of words, or others of one's own.
    """

    def __init__(
        self,
        images: Sequence[Any],
        path: str | Path = "review.csv",
        ids: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        reasons: Sequence[str] = REASONS,
    ) -> None:
        """Read the decisions that are there already.

        Args:
            images: Paths, PIL pictures or uint8 arrays.
            path: The review file; made with the first decision.
            ids: What tells the pictures apart in the file, all different; by default class folder and file name,
                which only paths have.
            labels: What each picture is meant to be, shown and written down.
            reasons: Offered while typing.
        """
        self._path, self._images = Path(path), list(images)
        if not self._images:
            raise DataError("there is no picture to review; expected one or more")
        self._ids = _names_of(self._images) if ids is None else [str(name) for name in ids]
        self._labels = [""] * len(self._images) if labels is None else [str(label) for label in labels]
        for what, values in (("ids", self._ids), ("labels", self._labels)):
            if len(values) != len(self._images):
                raise DataError(f"{what} has {len(values)} entries; expected {len(self._images)}, one a picture")
        if len(set(self._ids)) < len(self._ids):
            twice = next(name for name in self._ids if self._ids.count(name) > 1)
            raise DataError(f"the id {twice!r} stands for more than one picture; give ids that are all different")
        self.decisions = read_review(self._path)
        self._place = self._next_open(0)
        self._build(reasons)
        self._update()

    def _build(self, reasons: Sequence[str]) -> None:
        def button(words: str, icon: str, kind: str, tooltip: str, act: Any) -> Any:
            made = ipywidgets.Button(description=words, icon=icon, button_style=kind, tooltip=tooltip)
            made.on_click(self.guarded(act))
            return made

        self.accept = button(
            "Accept", "check", "success", "keep this picture and go on", lambda: self._decide("accept")
        )
        self.reject = button(
            "Reject", "times", "danger", "refuse this picture and go on", lambda: self._decide("reject")
        )
        self.back = button("Back", "arrow-left", "", "the picture before, undecided", lambda: self._go(-1))
        self.forward = button("Next", "arrow-right", "", "the picture after, undecided", lambda: self._go(1))
        self.reason = ipywidgets.Combobox(
            options=tuple(reasons),
            description="reason",
            placeholder="write, or choose",
            ensure_option=False,
            continuous_update=False,
            tooltip="why; written down with the decision",
            style=LABEL_WIDTH,
            layout=WIDE,
        )
        self.bar = ipywidgets.IntProgress(max=len(self._ids), description="decided", layout={"width": "24em"})
        buttons = ipywidgets.HBox([self.accept, self.reject, self.back, self.forward])
        super().__init__([self.reason, buttons, self.bar], "Review of samples")

    @property
    def present_id(self) -> str:
        """Of the picture that is shown."""
        return self._ids[self._place]

    def _next_open(self, start: int) -> int:
        """The first undecided picture from ``start`` on, round the end; the last one where all are decided."""
        count = len(self._ids)
        turns = ((start + turn) % count for turn in range(count))
        return next((place for place in turns if self._ids[place] not in self.decisions), min(start, count - 1))

    def _decide(self, decision: str) -> None:
        name = self.present_id
        row = {
            "id": name,
            "label": self._labels[self._place],
            "decision": decision,
            "reason": self.reason.value.strip(),
            "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # On disk first: what cannot be written does not count as decided.
        rows = {**read_review(self._path), name: row}
        self._write(rows)
        self.decisions = rows
        self.reason.value = ""
        self._place = self._next_open((self._place + 1) % len(self._ids))
        self._update()

    def _write(self, rows: dict[str, dict[str, str]]) -> None:
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        try:
            write_text(self._path, stream.getvalue())
        except OSError as error:
            raise ArtifactError(
                f"{self._path}: cannot be written ({error.strerror or error}), so this decision does not count; make "
                "room or make the folder writable, and decide again"
            ) from error

    def _go(self, by: int) -> None:
        self._place = (self._place + by) % len(self._ids)
        self.reason.value = self.decisions.get(self.present_id, {}).get("reason", "")
        self._update()

    def _update(self) -> None:
        place, row = self._place, self.decisions.get(self.present_id)
        done = sum(name in self.decisions for name in self._ids)
        self.bar.value = done
        state = "not decided yet" if row is None else f"{row['decision']}ed" + (row["reason"] and f": {row['reason']}")

        def draw() -> Any:
            name = self._labels[place] or style.label_text(self._ids[place], 30)
            picture = np.asarray(read_image(self._images[place]))
            with style.figure_style():
                return draw_denoising([(f"{name}\n({state})", picture)])

        def say() -> str:
            end = " All are decided." if done == len(self._ids) else ""
            return (
                f"Picture {place + 1} of {len(self._ids)}, {self._ids[place]}: {state}. {done} decided, written to "
                f"{self._path.name}.{end}"
            )

        self.show((place, state, done), draw, say)


def _names_of(images: Sequence[Any]) -> list[str]:
    """Class folder and file name of each path."""
    names = []
    for index, image in enumerate(images):
        if not isinstance(image, str | Path):
            raise DataError(f"picture {index} is no path, so it has no name to be written down; give ids")
        names.append("/".join(Path(image).parts[-2:]))
    return names
