"""Diagrams of the methods: frozen parts are grey, learned ones are not, and no words lie on each other."""

from itertools import combinations

import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from gcpl_lab.errors import DataError
from gcpl_lab.views.diagrams import THEMES, draw_gcpl, draw_lmpt


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("draw", "frozen"), [(draw_gcpl, 4), (draw_lmpt, 4)])  # one of them in the key
def test_frozen_parts_are_grey_and_what_is_learned_has_colour(draw, frozen, theme):
    figure = draw(theme)
    boxes = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyBboxPatch)]
    spread = [max(to_rgb(box.get_facecolor())) - min(to_rgb(box.get_facecolor())) for box in boxes]
    assert sum(value < 0.06 for value in spread) == frozen
    assert sum(box.get_linewidth() > 2 for box in boxes) == 2  # the learned prompt, and the key
    ground = to_rgb(THEMES[theme].ground)
    assert to_rgb(figure.get_facecolor()) == ground


@pytest.mark.parametrize("draw", [draw_gcpl, draw_lmpt])
def test_words_stay_inside_and_apart(draw):
    figure = draw()
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1) >= 0, text.get_text()
    for (one, a), (other, b) in combinations(zip(texts, boxes, strict=True), 2):
        assert not a.overlaps(b), (one.get_text(), other.get_text())


def test_an_unknown_theme_is_named():
    with pytest.raises(DataError, match="'grey' is unknown; expected one of light, dark"):
        draw_gcpl("grey")
