"""Pair hills: what stands beside a ridge is what scikit-learn gives, and hills lie where their images do."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from gcpl_lab.errors import DataError
from gcpl_lab.views import style
from gcpl_lab.views.hills import draw_hills, pair_hills

RNG = np.random.default_rng(0)
NEAR = RNG.normal(0, 1, 40), RNG.normal(0, 1, 30)
APART = RNG.normal(10, 5, 40), RNG.normal(-10, 5, 30)


def texts_of(ax):
    return [text.get_text().replace("\N{MINUS SIGN}", "-") for text in ax.texts]


def test_the_figures_beside_a_ridge_are_those_of_its_margins():
    with style.figure_style():
        ax = draw_hills(style.new_figure(4, 3).subplots(), {"names": NEAR, "step 8": None, "last": APART}, ("a", "b"))
    texts = texts_of(ax)
    for first, second in (NEAR, APART):
        auc = roc_auc_score(np.repeat([1, 0], (40, 30)), np.concatenate([first, second]))
        spread = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 2)
        assert f"d′ {(first.mean() - second.mean()) / spread:.1f}" in texts
        assert any(text.startswith(f"AUC {auc:.2f}\n(") for text in texts)
    assert len([text for text in texts if text.startswith("d′")]) == 2  # the empty place has none
    # Hills are drawn in standard deviations: the tops of the last ridge lie d′ apart, to both sides of the border.
    tops = [line.get_xdata()[line.get_ydata().argmax()] for line in ax.lines if len(line.get_xdata()) == 240][2:]
    assert tops[0] > 0 > tops[1]
    assert tops[0] - tops[1] == pytest.approx(4, abs=1.2)


def test_columns_share_their_rows():
    figure = pair_hills(
        {"GCPL": {"0": NEAR, "8": APART}, "shuffled": {"8": NEAR}}, ("a", "сапог"), controls=["shuffled"]
    )
    assert [sum(text.startswith("AUC") for text in texts_of(ax)) for ax in figure.axes] == [2, 1]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "8"]
    assert "all others are above it" in figure.get_supxlabel().replace("\n", " ")
    level = pair_hills({"GCPL": {"8": NEAR}, "shuffled": {"8": NEAR}}, ("a", "b"), controls=["shuffled"])
    assert "not told from it: GCPL" in level.get_supxlabel().replace("\n", " ")
    with pytest.raises(DataError, match=r"ridges \['9'\], which are not among the rows"):
        pair_hills({"GCPL": {"9": NEAR}}, ("a", "b"), rows=["8"])
    with pytest.raises(DataError, match="columns is empty"):
        pair_hills({}, ("a", "b"))


def test_equal_margins_are_a_hill_without_height():
    with style.figure_style():
        ax = draw_hills(style.new_figure(4, 3).subplots(), {"0": (np.zeros(3), np.zeros(3))}, ("a", "b"))
    assert any(text.startswith("AUC 0.50") for text in texts_of(ax))
