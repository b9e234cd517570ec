"""People look at samples and say yes or no, into a file that outlives the kernel."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.data.readers import read_image
from gcpl_lab.data.tables import read_table
from gcpl_lab.errors import ArtifactError, DataError
from gcpl_lab.storage import write_text
from gcpl_lab.views import style
from gcpl_lab.views.evidence import draw_denoising
from gcpl_lab.views.widgets.base import View, check_lengths, text_box

COLUMNS = ["id", "label", "decision", "reason", "decided_at"]
REASONS = ("wrong class", "poor quality", "two things in it", "duplicate")


def read_review(path: str | Path) -> dict[str, dict[str, str]]:
    """The decisions of a review file by image id, none where there is no file; ArtifactError for another file."""
    path = Path(path)
    rows: dict[str, dict[str, str]] = {}
    for line, row in read_table(path) if path.is_file() else ():
        if list(row) != COLUMNS:
            expected = f"expected {COLUMNS}: choose another file for this review"
            raise ArtifactError(f"{path}: its columns are {list(row)}; {expected}")
        name, decision = row["id"], row["decision"]
        if decision not in ("accept", "reject"):
            expected = "expected accept or reject: correct it"
            raise ArtifactError(f"{path}, line {line}: the decision is {decision!r}; {expected}")
        if name in rows:
            raise ArtifactError(f"{path}, line {line}: {name!r} was decided before; leave one of the two lines")
        rows[name] = row
    return rows


class SampleReviewer(View):
    """Accept or reject images one by one; every decision is on disk before the next image appears.

    After a restart the same call goes on at the first undecided image. A decision can be taken again: the file holds
    the last one. Rows about images that are not in this round are kept.

    Args:
        images: Paths, PIL images or uint8 arrays.
        path: The review file; made with the first decision.
        ids: What tells the images apart in the file; by default class folder and file name, which only paths have.
        labels: What each image is meant to be, shown and written down.
    """

    def __init__(
        self,
        images: Sequence[Any],
        path: str | Path = "review.csv",
        ids: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        self._path, self._images = Path(path), list(images)
        if not self._images:
            raise DataError("there is no image to review; expected one or more")
        if ids is None:
            if not all(isinstance(image, str | Path) for image in self._images):
                raise DataError("images that are no paths have no names to be written down; give ids")
            ids = ["/".join(Path(image).parts[-2:]) for image in self._images]
        self._ids = [str(name) for name in ids]
        self._labels = [""] * len(self._images) if labels is None else [str(label) for label in labels]
        check_lengths(len(self._images), "image", ids=self._ids, labels=self._labels)
        if len(set(self._ids)) < len(self._ids):
            twice = next(name for name in self._ids if self._ids.count(name) > 1)
            raise DataError(f"the id {twice!r} stands for more than one image; give ids that are all different")
        self.decisions = read_review(self._path)
        self._place = self._next_open(0)
        accept, reject = partial(self._decide, "accept"), partial(self._decide, "reject")
        self.accept = self.button("Accept", "check", "keep this image and go on", accept, "success")
        self.reject = self.button("Reject", "times", "refuse this image and go on", reject, "danger")
        self.back = self.button("Back", "arrow-left", "the image before, undecided", partial(self._go, -1))
        self.forward = self.button("Next", "arrow-right", "the image after, undecided", partial(self._go, 1))
        tip = "why; written down with the decision"
        self.reason = text_box("reason", tip, "write, or choose", options=REASONS, ensure_option=False)
        self.bar = ipywidgets.IntProgress(max=len(self._ids), description="decided", layout={"width": "24em"})
        buttons = ipywidgets.HBox([self.accept, self.reject, self.back, self.forward])
        super().__init__("Review of samples", others=[self.reason, buttons, self.bar])

    @classmethod
    def of_selection(cls, selection: str | Path, folder: str | Path, path: str | Path) -> SampleReviewer:
        """Review what was selected on a hover map: its CSV names files below ``folder``, and their classes."""
        rows = [row for _, row in read_table(Path(selection))]
        if not rows or not {"file", "class"} <= set(rows[0]):
            found = list(rows[0]) if rows else "no row"
            raise ArtifactError(f"{selection}: has {found}; expected the columns file and class of a saved selection")
        files = [row["file"] for row in rows]
        return cls([Path(folder) / name for name in files], path, ids=files, labels=[row["class"] for row in rows])

    @property
    def present_id(self) -> str:
        return self._ids[self._place]

    def _next_open(self, start: int) -> int:
        """The first undecided image from ``start`` on, round the end; ``start`` where all are decided."""
        places = [*range(start, len(self._ids)), *range(start)]
        return next((place for place in places if self._ids[place] not in self.decisions), start)

    def _decide(self, decision: str) -> None:
        label, reason = self._labels[self._place], self.reason.value.strip()
        values = (self.present_id, label, decision, reason, datetime.now(UTC).isoformat(timespec="seconds"))
        rows = {**read_review(self._path), self.present_id: dict(zip(COLUMNS, values, strict=True))}
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        try:
            write_text(self._path, stream.getvalue())
        except ArtifactError as error:
            raise ArtifactError(f"this decision does not count: {error}; decide again") from error
        self.decisions, self.reason.value = rows, ""
        self._place = self._next_open((self._place + 1) % len(self._ids))
        self.redraw()

    def _go(self, by: int) -> None:
        self._place = (self._place + by) % len(self._ids)
        self.reason.value = self.decisions.get(self.present_id, {}).get("reason", "")
        self.redraw()

    def _state(self) -> tuple[Any, ...]:
        row = self.decisions.get(self.present_id)
        words = f"{row['decision']}ed" + (row["reason"] and f": {row['reason']}") if row else "not decided yet"
        return self._place, words, sum(name in self.decisions for name in self._ids)

    def _draw(self) -> tuple[Figure, str]:
        place, words, done = self._state()
        self.bar.value = done
        name = self._labels[place] or style.label_text(self.present_id, 30)
        figure = draw_denoising([(f"{name}\n({words})", np.asarray(read_image(self._images[place])))])
        end = " All are decided." if done == len(self._ids) else ""
        sentence = f"Image {place + 1} of {len(self._ids)}, {self.present_id}: {words}."
        return figure, f"{sentence} {done} decided, written to {self._path.name}.{end}"
