"""Diagrams of the two methods: what is frozen is grey, what is learned has colour. Vector graphics, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from gcpl_lab.errors import DataError
from gcpl_lab.views import style


@dataclass(frozen=True)
class Ground:
    """Colours of a diagram on one ground."""

    ground: str
    ink: str
    frozen: str
    frozen_edge: str
    learned: str
    data: str
    loss: str


THEMES = {
    "light": Ground("#FFFFFF", "#1A1A1A", "#E4E4E4", "#8A8A8A", "#FCE3B6", "#DCEBF7", "#F6D9D2"),
    "dark": Ground("#16191D", "#F2F2F2", "#3A4047", "#8A929B", "#7A4F00", "#17415F", "#6B2415"),
}


class Sketch:
    """Boxes and arrows on axes of 16 units from left to right; call it inside ``figure_style``.

    On a slide, as high as its place for figures, heights are drawn smaller, and title and key are left out.
    """

    def __init__(self, theme: str, height: float = 8.6, slide: bool = False) -> None:
        if theme not in THEMES:
            raise DataError(f"theme {theme!r} is unknown; expected one of {', '.join(THEMES)}")
        self.colors, self.slide = THEMES[theme], slide
        self.letters, self.small = (19.0, 19.0) if slide else (15.0, 13.2)
        low, height = (0.6, 6.7) if slide else (0.0, height)
        self.figure: Figure = style.new_figure(12.8, 4.56 if slide else 0.8 * height)
        self.figure.set_layout_engine("none")
        self.figure.set_facecolor(self.colors.ground)
        self.ax: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set(xlim=(0, 16), ylim=(low, low + height), facecolor=self.colors.ground)
        self.ax.set_axis_off()

    def head(self, text: str, y: float = 8.15) -> None:
        """The title; a slide has one of its own."""
        if not self.slide:
            self.words((8, y), text, weight="bold", size=18)

    def box(self, place: tuple[float, float], text: str, kind: str, width: float = 2.6, height: float = 1.2) -> None:
        """A box around (x, y): of ``frozen`` parts, what is ``learned``, ``data``, or a ``loss``."""
        # Without colours, a dashed edge with corners tells a loss from data.
        shape = ("square,pad=0.02", "--") if kind == "loss" else ("round,pad=0.02,rounding_size=0.16", "-")
        edge = self.colors.frozen_edge if kind == "frozen" else self.colors.ink
        look: dict[str, Any] = {"boxstyle": shape[0], "linestyle": shape[1], "edgecolor": edge}
        look |= {"facecolor": getattr(self.colors, kind), "linewidth": 2.6 if kind == "learned" else 1.4, "zorder": 3}
        self.ax.add_patch(FancyBboxPatch((place[0] - width / 2, place[1] - height / 2), width, height, **look))
        self.words(place, text, weight="bold" if kind == "learned" else "normal")

    def words(self, place: tuple[float, float], text: str, **options: Any) -> None:
        """Words centred at (x, y)."""
        look = {"ha": "center", "va": "center", "color": self.colors.ink, "size": self.letters, "zorder": 4}
        self.ax.text(*place, text, **{**look, **options})

    def arrow(self, *points: tuple[float, float], text: str = "", lift: float = 0.28, curve: float = 0.0) -> None:
        """An arrow through points; its words stand over the middle of the last part."""
        for start, end in pairwise(points[:-1]):
            self.ax.plot(*zip(start, end, strict=True), color=self.colors.ink, linewidth=1.8, zorder=2)
        look: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 20, "color": self.colors.ink, "linewidth": 1.8}
        bend = f"arc3,rad={curve}"
        arrow = FancyArrowPatch(points[-2], points[-1], shrinkA=0, shrinkB=0, connectionstyle=bend, zorder=2, **look)
        self.ax.add_patch(arrow)
        if text:
            (x, y), (right, top) = points[-2:]
            self.words(((x + right) / 2, (y + top) / 2 + lift), text, size=self.small)

    def key(self, kinds: Sequence[tuple[str, str]], y: float = 0.45) -> None:
        """What the colours say, at the foot."""
        for turn, (kind, text) in enumerate(() if self.slide else kinds):
            self.box((1.2 + 3.9 * turn, y), "", kind, 0.6, 0.4)
            self.words((1.65 + 3.9 * turn, y), text, ha="left", size=self.small)


def draw_gcpl(theme: str = "light", slide: bool = False) -> Figure:
    """Class prompts through a frozen diffusion model: one vector is learned, the answer is the least error."""
    with style.figure_style("slide" if slide else "figure"):
        sketch = Sketch(theme, slide=slide)
        sketch.head("GCPL: learn a word that helps to denoise the class")
        sketch.box((1.6, 6.2), "image", "data", 1.9)
        sketch.box((4.6, 6.2), "VAE\nencoder", "frozen", 2.0)
        sketch.box((8.0, 6.2), "noisy latent\n$z_t$", "data", 2.5)
        sketch.box((11.6, 6.2), "denoiser\n$\\epsilon_\\theta(z_t, t, h_c)$", "frozen", 3.0, 1.5)
        sketch.box((14.9, 6.2), "$\\hat\\epsilon$", "data", 1.2)
        sketch.box((8.0, 4.1), "noise $\\epsilon$\ntimestep $t$", "data", 2.5)
        sketch.box((2.9, 2.1), "“a photo of a  [v$_c$]”", "learned", 4.6)
        sketch.box((7.6, 2.1), "text encoder", "frozen", 2.6)
        sketch.box((14.0, 3.6), "error\n$d_c = \\|\\epsilon - \\hat\\epsilon\\|^2$", "loss", 3.3, 1.5)
        for start, end in (((2.55, 6.2), (3.6, 6.2)), ((5.6, 6.2), (6.75, 6.2)), ((9.25, 6.2), (10.1, 6.2))):
            sketch.arrow(start, end)
        sketch.arrow((13.1, 6.2), (14.3, 6.2))
        sketch.arrow((8.0, 4.7), (8.0, 5.6))
        sketch.arrow((5.2, 2.1), (6.3, 2.1))
        sketch.arrow((8.9, 2.1), (11.1, 2.1), (11.1, 5.45))
        sketch.words((10.1, 2.45), "prompt $h_c$", size=sketch.small)
        sketch.arrow((14.9, 5.6), (14.9, 4.35))
        sketch.arrow((9.25, 3.9), (12.35, 3.6))
        sketch.arrow((14.0, 2.85), (14.0, 1.2), (2.9, 1.2), (2.9, 1.5))
        sketch.words((8.4, 0.95), "learning: the gradient of its own class's error moves [v$_c$] alone", weight="bold")
        sketch.words((12.9, 2.1), "decision:\nsmallest $d_c$", size=sketch.small)
        sketch.key((("frozen", "frozen"), ("learned", "one per class"), ("data", "data"), ("loss", "loss")), 0.4)
    return sketch.figure


def draw_lmpt(theme: str = "light", slide: bool = False) -> Figure:
    """Prompts for several labels an image: one loss on labels, one on captions, through frozen CLIP towers."""
    with style.figure_style("slide" if slide else "figure"):
        sketch = Sketch(theme, slide=slide)
        sketch.head("LMPT: labels and captions pull one prompt a class")
        sketch.box((1.8, 6.5), "image with\nseveral labels", "data", 2.8)
        sketch.box((5.5, 6.5), "image tower", "frozen", 2.6)
        sketch.box((3.0, 4.2), "“[v$_1$] … [v$_M$]  coat”\none per class", "learned", 4.6)
        sketch.box((8.0, 4.2), "text tower", "frozen", 2.6)
        sketch.box((1.8, 1.9), "caption", "data", 2.4)
        sketch.box((5.5, 1.9), "text tower", "frozen", 2.6)
        sketch.box((13.0, 6.0), "classification loss\nlogit = s · cos + b\nfor each label", "loss", 4.2, 1.9)
        margin = "$\\mu_i$" if slide else "$\\mu_i \\propto n_i^{-1/4}$"
        pulls = f"present: pull nearer\nabsent: push to {margin}"
        sketch.box((13.0, 2.4), f"embedding loss\n{pulls}", "loss", 4.2, 1.9)
        sketch.arrow((3.2, 6.5), (4.2, 6.5))
        sketch.arrow((6.8, 6.5), (10.9, 6.3), text="image feature")
        sketch.arrow((5.3, 4.2), (6.7, 4.2))
        sketch.arrow((9.3, 4.4), (10.9, 5.5))
        sketch.arrow((9.3, 4.0), (10.9, 2.9))
        sketch.words((9.75, 4.2), "prompt", ha="left", size=sketch.small)
        sketch.arrow((3.0, 1.9), (4.2, 1.9))
        sketch.arrow((6.8, 1.9), (10.9, 2.1), text="caption feature")
        sketch.arrow((15.1, 6.0), (15.6, 6.0), (15.6, 1.05), (0.35, 1.05), (0.35, 4.2), (0.7, 4.2))
        sketch.words((9.6, 0.8), "λ · labels + (1 − λ) · captions moves the contexts [v], and s and b", weight="bold")
        sketch.key((("frozen", "frozen"), ("learned", "learned"), ("data", "data"), ("loss", "loss")), 0.3)
    return sketch.figure


def draw_cards(cards: Sequence[tuple[str, str]], theme: str = "light", flow: bool = False) -> Figure:
    """Cards side by side, each a heading and a few words, for a slide; the cards of a ``flow`` follow each other."""
    with style.figure_style("slide"):
        sketch, gap, size = Sketch(theme, 5.6), 0.6 if flow else 0.25, 22.0 if flow else 19.0
        width = (16 - gap * (len(cards) + 1)) / len(cards)
        for place, (heading, text) in enumerate(cards):
            left = gap + place * (width + gap)
            sketch.box((left + width / 2, 2.8), "", "data" if flow else "frozen", width, 5.2)
            words: dict[str, Any] = {"ha": "left", "va": "top", "size": size}
            sketch.words((left + 0.25, 5.1), style.wrap_lines(heading, 0.8 * width - 0.3, size), weight="bold", **words)
            sketch.words((left + 0.25, 4.3), style.wrap_lines(text, 0.8 * width - 0.3, size), **words)
            if flow and place:
                sketch.arrow((left - gap, 2.8), (left, 2.8))
    return sketch.figure
