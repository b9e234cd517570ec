from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.explaining import Mistake
from gcpl_lab.views.multilabel import (
    draw_mistake,
    plot_class_precision,
    plot_differences,
    plot_noise_curve,
    plot_tail_bars,
)
from gcpl_lab.views.plots import save_figure
from gcpl_lab.views.style import PART_LOOKS, figure_style, new_figure

TITLES = {"zero": "Zero-shot CLIP", "lmpt": "LMPT", "never": "not run"}


def row(name: str, value: float, tail: float | None) -> dict[str, Any]:
    classes = [
        {"name": n, "part": p, "average_precision": value, "num_train": c}
        for n, p, c in (("shirt", "tail", 9), ("bag", "head", 400))
    ]
    return {
        "name": name,
        "map": value,
        "map_head": value + 0.1,
        "map_medium": value,
        "map_tail": tail,
        "classes": classes,
    }


def test_bars_hold_every_part_and_the_mean_of_seeds(tmp_path: Any) -> None:
    with figure_style():
        figure = new_figure(9, 4.5)
        ax = plot_tail_bars(
            figure.subplots(), [row("zero", 0.4, None), row("lmpt", 0.6, 0.5), row("lmpt", 0.8, 0.5)], TITLES
        )
        heights = sorted(patch.get_height() for patch in ax.patches)
        assert len(heights) == 7
        assert max(heights) == pytest.approx(0.8)
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["Zero-shot CLIP", "LMPT"]
        assert all(path.stat().st_size > 1000 for path in save_figure(figure, tmp_path, "bars"))
    with pytest.raises(DataError, match="other"):
        plot_tail_bars(ax, [row("other", 0.1, 0.1)], TITLES)
    with pytest.raises(DataError, match="no names"):
        plot_tail_bars(ax, [], TITLES)


def test_the_noise_curve_is_sorted_by_share() -> None:
    curve = [
        {"share": share, "score": score, "mean": 0.5 - share / 10, "standard_deviation": None}
        for share in (1.0, 0.0, 0.5)
        for score in ("map", "map_tail")
    ]
    with figure_style():
        ax = plot_noise_curve(new_figure(7, 4).subplots(), curve, {"map": 0.45})
    line = ax.lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 0.5, 1])
    np.testing.assert_allclose(line.get_ydata(), [0.5, 0.45, 0.4])
    curves = [line.get_color() for line in ax.lines if len(line.get_xdata()) == 3]
    assert curves == [PART_LOOKS["all"][0], PART_LOOKS["tail"][0]]
    with pytest.raises(DataError, match="curve is empty"):
        plot_noise_curve(ax, [])


def test_classes_stand_in_the_order_of_their_counts() -> None:
    with figure_style():
        ax = plot_class_precision(new_figure(8, 3).subplots(), {"lmpt": row("lmpt", 0.5, 0.5)["classes"]}, TITLES)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["bag (400, head)", "shirt (9, tail)"]
    with pytest.raises(DataError, match="classes is empty"):
        plot_class_precision(ax, {}, TITLES)


def test_differences_leave_the_reference_out() -> None:
    entries = [
        {"method": name, "difference": value, "low": value - 0.01, "high": value + 0.01}
        for name, value in (("zero", 0.0), ("lmpt", 0.02))
    ]
    single = [{**entry, "low": None, "high": None} for entry in entries]
    with figure_style():
        ax = plot_differences(new_figure(9, 3).subplots(), {"map": entries, "map_tail": single}, TITLES, "zero")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["LMPT"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [1, 3])
    assert ax.lines[0].get_color() == PART_LOOKS["all"][0]
    with pytest.raises(DataError, match="no variant"):
        plot_differences(ax, {"map": entries}, {"never": "not run"}, "zero")


def test_a_mistake_card_shows_the_wrong_class_always() -> None:
    classes = [
        {"name": f"class {i}", "present": i == 9, "predicted": i == 0, "probability": 0.9 - i / 12, "threshold": 0.5}
        for i in range(10)
    ]
    mistake = Mistake(3, "class 9", True, 0.15, 0.5, classes, [{"image": 1, "similarity": 0.9, "names": []}], [])
    picture = Image.new("RGB", (64, 64), "grey")
    with figure_style():
        figure = draw_mistake(mistake, picture, [picture], num_rows=4)
    texts = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    assert "wrong: class 9" in texts
    with pytest.raises(DataError, match="0 pictures for 1 neighbours"):
        draw_mistake(mistake, picture, [])
