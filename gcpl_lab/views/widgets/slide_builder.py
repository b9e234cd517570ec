"""Choose pictures of a run, say what they show, and have the slides."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
from PIL import Image

from gcpl_lab.errors import DataError
from gcpl_lab.views import style
from gcpl_lab.views.slides import Deck, Provenance, Slide, to_slide
from gcpl_lab.views.stepwise import draw_denoising
from gcpl_lab.views.widgets.base import LABEL_WIDTH, View, selector

FIELD = {"width": "44em"}


class SlideBuilder(View):
    """Figures of a run become slides, one by one; title, message, notes and a description are written by hand.

    What does not fit on a slide is said while it is added, and not on the wall.

    Attributes:
        figure: Chooses the picture.
        title, message, notes: Of the next slide.
        alt: What the picture shows, for those who do not see it.
        theme: Of the deck.
        add, drop, save: Append the slide, take the last one away, write the deck.
        slides: Those added so far.
    """

    def __init__(
        self, pictures: str | Path | Mapping[str, str | Path], path: str | Path, provenance: Provenance
    ) -> None:
        """Look up the pictures.

        Args:
            pictures: A run's folder, whose ``figures/*.png`` are offered; or names and paths of PNG files.
            path: Of the deck, ending in ``.pptx``.
            provenance: Shown on every slide.
        """
        self._pictures = _find(pictures)
        self._path, self._provenance = Path(path), provenance
        self.slides: list[Slide] = []
        names = list(self._pictures)
        self.figure = selector("picture", names, names[0], "a picture of the run")
        self.title = self._field("title", "one short line over the picture")
        self.message = self._field("message", "what one should see, a sentence or two")
        self.notes = self._field("notes", "what the speaker says")
        self.alt = self._field("description", "what the picture shows, for those who do not see it")
        self.theme = selector("theme", ["light", "dark"], "light", "light or dark ground")
        self.add = self._button("Add slide", "plus", "append a slide with this picture and these words", self._add)
        self.drop = self._button("Drop last", "undo", "take the last slide away", self._drop)
        self.save = self._button("Save deck", "save", f"write {self._path.name}", self._save)
        self._list = ipywidgets.HTML()
        fields = [self.figure, self.title, self.message, self.notes, self.alt, self.theme]
        buttons = ipywidgets.HBox([self.add, self.drop, self.save])
        super().__init__([*fields, buttons, self._list], "Slides")
        self.figure.observe(self.guarded(self._update), "value")
        self._update()

    def _field(self, name: str, tooltip: str) -> Any:
        return ipywidgets.Text(
            description=name,
            tooltip=tooltip,
            placeholder=tooltip,
            continuous_update=False,
            style=LABEL_WIDTH,
            layout=FIELD,
        )

    def _button(self, words: str, icon: str, tooltip: str, act: Any) -> Any:
        made = ipywidgets.Button(description=words, icon=icon, tooltip=tooltip)
        made.on_click(self.guarded(act))
        return made

    def _add(self) -> None:
        slide = to_slide(
            self._pictures[self.figure.value],
            self.title.value,
            self.message.value,
            self.notes.value,
            alt=self.alt.value.strip() or None,
        )
        self._deck(slide)  # what does not fit is an error here
        self.slides.append(slide)
        for field in (self.title, self.message, self.notes, self.alt):
            field.value = ""
        self._update(f"Slide {len(self.slides)} was added.")

    def _drop(self) -> None:
        if not self.slides:
            raise DataError("there is no slide to take away; add one first")
        gone = self.slides.pop()
        self._update(f"“{gone.title}” was taken away.")

    def _save(self) -> None:
        written = self._deck().save(self._path)
        self._update(f"{self._path.name} and {len(written) - 1} pictures were written.")

    def _deck(self, *more: Slide) -> Deck:
        deck = Deck(self._provenance, theme=self.theme.value)
        for slide in (*self.slides, *more):
            deck.add(slide)
        return deck

    def _update(self, news: str = "") -> None:
        name, count = self.figure.value, len(self.slides)

        def draw() -> Any:
            with Image.open(self._pictures[name]) as image:
                pixels = np.asarray(image.convert("RGB"))
            with style.figure_style():
                return draw_denoising([(name, pixels)])

        titles = "".join(f"<li>{html.escape(slide.title)}</li>" for slide in self.slides)
        self._list.value = f"<ol>{titles}</ol>"
        self.show((name, count, news), draw, lambda: f"Picture {name}. {count} slides in the deck. {news}".strip())


def _find(pictures: str | Path | Mapping[str, str | Path]) -> dict[str, Path]:
    if isinstance(pictures, Mapping):
        found = {str(name): Path(path) for name, path in pictures.items()}
    else:
        folder = Path(pictures) / "figures"
        found = {path.stem.replace("_", " "): path for path in sorted(folder.glob("*.png"))}
    if not found:
        raise DataError(
            f"no picture to choose from in {pictures}; expected a run's folder with figures/*.png, or paths"
        )
    missing = [str(path) for path in found.values() if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: no such picture; save the figure first")
    return found
