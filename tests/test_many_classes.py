"""Forty classes whose names of 60 letters differ in the middle: every picture of them can be read."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from gcpl_lab.views import evidence, letters, plots, style
from gcpl_lab.views.moving import moving_tokens

RNG = np.random.default_rng(0)
NAMES = [f"surface of brushed steel with a fault of kind {kind:02d} under light" for kind in range(40)]
COUNTS = RNG.poisson(1, (40, 40)) + 20 * np.eye(40, dtype=int)
COUNTS[7, 23] = 19


def draw_confusion() -> Figure:
    with style.figure_style():
        figure = style.new_figure(16.5, 9)
        for ax in figure.subplots(1, 2):
            evidence.plot_confusion(ax, COUNTS, NAMES)
    return figure


def draw_similarity() -> Figure:
    both = [np.corrcoef(RNG.normal(size=(40, 9))) for _ in range(2)]
    return evidence.plot_similarity_pair(*both, NAMES)


def draw_journey() -> Figure:
    with style.figure_style():
        figure = style.new_figure(9.5, 9.5)
        plots.plot_token_journey(figure.subplots(), RNG.normal(size=(4, 40, 2)), [0, 1, 2, 3], NAMES)
    return figure


def draw_words() -> Figure:
    with style.figure_style():
        figure = style.new_figure(11, 1.2 + 0.72 * 40)
        evidence.plot_nearest_words(figure.subplots(), {name: [("coat", 0.5)] * 5 for name in NAMES}, 0.1)
    return figure


def draw_moving() -> Figure:
    with style.figure_style():
        return moving_tokens({step: RNG.normal(size=(40, 2, 3)) for step in (0, 1, 4)}, NAMES).draw("1")


@pytest.mark.parametrize("draw", [draw_confusion, draw_similarity, draw_journey, draw_words, draw_moving])
def test_no_words_lie_on_others_or_leave_the_figure(draw):
    assert len(NAMES[0]) == 60
    figure = draw()
    assert [text.get_text() for text in letters._troubled(figure, letters.shown_texts(figure))] == []


def test_the_largest_confusions_are_shown_and_names_told_apart():
    chosen = evidence.most_alike(COUNTS)
    assert {7, 23} <= set(chosen)
    ax = draw_confusion().axes[0]
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert len(set(shown)) == len(shown) == evidence.MOST_CLASSES
    assert [int(label.split()[0]) - 1 for label in shown] == chosen
    assert "16 of 40 classes" in ax.get_xlabel()


def test_names_get_numbers_only_where_they_would_look_the_same():
    assert letters.distinct(["a coat", "a shirt"]) == ["a coat", "a shirt"]
    assert letters.distinct(NAMES)[1] == f"2 {NAMES[1]}"
    assert len({letters.shorten(name, 12) for name in letters.distinct(NAMES)}) == 40
