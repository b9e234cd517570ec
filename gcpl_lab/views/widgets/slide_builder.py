"""Choose figures of a run, say what they show, and have the slides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from gcpl_lab.data.readers import read_image
from gcpl_lab.errors import DataError
from gcpl_lab.views.evidence import draw_denoising
from gcpl_lab.views.slides import Deck, Provenance, to_slide
from gcpl_lab.views.widgets.base import View, selector, text_box

FIELDS = {
    "title": "one short line over the figure",
    "message": "what one should see, a sentence or two",
    "notes": "what the speaker says",
    "description": "what the figure shows, for those who do not see it",
}


class SlideBuilder(View):
    """Figures of a run become slides, one by one; what does not fit on a slide is said while it is added.

    ``figures`` are a run's folder, whose ``figures/*.png`` are offered, or names and paths of PNG files; the deck's
    ``path`` ends in ``.pptx``.
    """

    def __init__(
        self, figures: str | Path | Mapping[str, str | Path], path: str | Path, provenance: Provenance
    ) -> None:
        self._figures, self._path, self._deck = _find(figures), Path(path), Deck(provenance)
        self.slides, self._news = self._deck.slides, ""
        names = list(self._figures)
        self.figure = selector("figure", names, names[0], "a figure of the run")
        self._fields = [text_box(name, tooltip, tooltip, width="44em") for name, tooltip in FIELDS.items()]
        self.title, self.message, self.notes, self.alt = self._fields
        self.theme = selector("theme", ["light", "dark"], "light", "light or dark ground")
        self.add = self.button("Add slide", "plus", "append a slide with this figure and these words", self._add)
        self.drop = self.button("Drop last", "undo", "take the last slide away", self._drop)
        self.save = self.button("Save deck", "save", f"write {self._path.name}", self._save)
        buttons = ipywidgets.HBox([self.add, self.drop, self.save])
        super().__init__("Slides", [self.figure], [*self._fields, self.theme, buttons])

    def _add(self) -> None:
        title, message, notes, alt = (field.value for field in self._fields)
        self._deck.add(to_slide(self._figures[self.figure.value], title, message, notes, alt=alt.strip() or None))
        for field in self._fields:
            field.value = ""
        self._tell(f"Slide {len(self.slides)} was added.")

    def _drop(self) -> None:
        if not self.slides:
            raise DataError("there is no slide to take away; add one first")
        self._tell(f"“{self.slides.pop().title}” was taken away.")

    def _save(self) -> None:
        self._deck.theme = self.theme.value
        written = self._deck.save(self._path)
        self._tell(f"{self._path.name} and {len(written) - 1} figures were written.")

    def _tell(self, news: str) -> None:
        """Say what a button did, until another figure is chosen."""
        self._news = news
        self.redraw()
        self._news = ""

    def _state(self) -> tuple[Any, ...]:
        return self.figure.value, *[slide.title for slide in self.slides], self._news

    def _draw(self) -> tuple[Figure, str]:
        name, *titles, news = self._state()
        figure = draw_denoising([(name, np.asarray(read_image(self._figures[name])))])
        deck = f"{len(titles)} slides in the deck" + (f" ({', '.join(titles)})" if titles else "")
        return figure, f"Figure {name}. {deck}. {news}".strip()


def _find(figures: str | Path | Mapping[str, str | Path]) -> dict[str, Path]:
    if isinstance(figures, Mapping):
        found = {str(name): Path(path) for name, path in figures.items()}
    else:
        found = {path.stem.replace("_", " "): path for path in sorted((Path(figures) / "figures").glob("*.png"))}
    if not found:
        raise DataError(f"no figure to choose from in {figures}; expected a run's folder with figures/*.png, or paths")
    return found
