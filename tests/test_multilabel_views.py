from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.explaining import Mistake
from gcpl_lab.views import multilabel
from gcpl_lab.views.style import PART_LOOKS, figure_style, new_figure

TITLES = {"zero": "Zero-shot CLIP", "lmpt": "LMPT", "never": "not run"}
CURVE: list[dict[str, Any]] = [
    {"share": share, "score": score, "mean": 0.5 - share / 10, "standard_deviation": None}
    for share in (1.0, 0.0, 0.5)
    for score in ("map", "map_tail")
]


@pytest.fixture
def ax() -> Any:
    with figure_style():
        yield new_figure(9, 4.5).subplots()


CLASSES = [
    {"name": "shirt", "part": "tail", "average_precision": 0.5, "num_train": 9, "num_test": 3},
    {"name": "bag", "part": "head", "average_precision": 0.5, "num_train": 400, "num_test": 7},
]


def row(name: str, value: float, tail: float | None) -> dict[str, Any]:
    return {"name": name, "map": value, "map_head": value + 0.1, "map_medium": value, "map_tail": tail}


def legend_of(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_bars_hold_every_part_and_the_mean_of_seeds(ax: Any) -> None:
    multilabel.plot_tail_bars(ax, [row("zero", 0.4, None), row("lmpt", 0.6, 0.5), row("lmpt", 0.8, 0.5)], TITLES)
    heights = [patch.get_height() for patch in ax.patches]
    assert len(heights) == 7
    assert max(heights) == pytest.approx(0.8)
    assert legend_of(ax) == ["Zero-shot CLIP", "LMPT"]


def test_a_method_of_ones_own_has_its_own_look_and_classes_are_in_the_order_of_their_counts(ax: Any) -> None:
    names = [f"my method {place}" for place in range(12)]
    multilabel.plot_tail_bars(ax, [*(row(name, 0.5, 0.5) for name in names), row("lmpt", 0.6, 0.5)], TITLES)
    assert legend_of(ax) == ["LMPT", *names]
    ax.clear()
    multilabel.plot_class_precision(ax, dict.fromkeys(names, CLASSES), TITLES)
    assert legend_of(ax) == names
    assert [label.get_text() for label in ax.get_yticklabels()] == ["bag (400, 7; head)", "shirt (9, 3; tail)"]
    looks = {(str(dots.get_facecolor()), len(dots.get_paths()[0].vertices)) for dots in ax.collections}
    assert len(looks) == 12


def test_the_noise_curve_is_sorted_by_share(ax: Any) -> None:
    multilabel.plot_noise_curve(ax, CURVE, {"map": 0.45})
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 0.5, 1])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.5, 0.45, 0.4])
    curves = [line.get_color() for line in ax.lines if len(line.get_xdata()) == 3]
    assert curves == [PART_LOOKS["all"][0], PART_LOOKS["tail"][0]]


def test_differences_leave_the_reference_out(ax: Any) -> None:
    entries = [
        {"method": "zero", "difference": 0.0, "low": -0.01, "high": 0.01},
        {"method": "lmpt", "difference": 0.02, "low": 0.01, "high": 0.03},
    ]
    single = [{**entry, "low": None, "high": None} for entry in entries]
    multilabel.plot_differences(ax, {"map": entries, "map_tail": single}, TITLES, "zero")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["LMPT"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [1, 3])
    assert ax.lines[0].get_color() == PART_LOOKS["all"][0]


@pytest.mark.parametrize(
    ("plot", "given", "message"),
    [
        (multilabel.plot_tail_bars, ([], TITLES), "rows is empty; expected at least one with name, map, map_head"),
        (multilabel.plot_noise_curve, ([],), "lines is empty"),
        (multilabel.plot_class_precision, ({}, TITLES), "classes is empty"),
        (multilabel.plot_differences, ({}, {"never": "not run"}, "zero"), "no variant with a title was measured"),
    ],
)
def test_nothing_to_draw_is_named(ax: Any, plot: Any, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plot(ax, *given)


def test_threshold_table_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1, 0.2], [0.6, 0.2, 0.2], [0.4, 0.3, 0.2]])
    table = multilabel.threshold_table(probabilities, np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]]), 0.5)
    assert list(table) == ["precision", "recall", "F1"]
    np.testing.assert_allclose(list(table.values()), [[0.5, np.nan, np.nan], [0.5, np.nan, 0], [0.5, np.nan, 0]])


def test_a_mistake_card_shows_the_wrong_class_always() -> None:
    names, facts = [f"class {i}" for i in range(10)], {"present": True, "predicted": False, "threshold": 0.5}
    classes = [{"name": name, "probability": 0.9 - i / 12, **facts} for i, name in enumerate(names)]
    mistake = Mistake(3, "class 9", True, 0.15, 0.5, classes, [{"image": 1, "similarity": 0.9, "names": []}], [])
    image = Image.new("RGB", (64, 64), "grey")
    with figure_style():
        figure = multilabel.draw_mistake(mistake, image, [image])
    assert "wrong: class 9" in [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    with pytest.raises(DataError, match="0 images for 1 neighbours"):
        multilabel.draw_mistake(mistake, image, [])
