import warnings
from functools import partial
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from gcpl_lab.data.samples import FASHION_CLASSES, FASHION_FAMILIES
from gcpl_lab.errors import DataError
from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.views import evidence, plots
from gcpl_lab.views.evidence import plot_race, race_leads, race_order
from gcpl_lab.views.panels import label_ends, spread_apart
from gcpl_lab.views.style import GREY, figure_style, new_figure

LONG = [f"a rather long name, ${place} each, of the {name}" for place, name in enumerate(FASHION_CLASSES)]
LONG_FAMILIES = {
    f"family of all {family}": [LONG[FASHION_CLASSES.index(name)] for name in members]
    for family, members in FASHION_FAMILIES.items()
}

RNG = np.random.default_rng(0)
LABELS = np.arange(80) % 10
BEFORE = RNG.normal(size=(80, 6))
AFTER = BEFORE + 2 * RNG.normal(size=(10, 6))[LABELS]
PATHS = RNG.normal(size=(5, 10, 2)).cumsum(axis=0)
CURVES = {name: (np.arange(100), RNG.random(100)) for name in LONG[:6]}
GAPS = {"": np.linspace(-0.001, 0.03, 10) + RNG.normal(0, 0.01, (20, 10))}
CONFIDENCES = RNG.random(200)
IMAGES = RNG.integers(0, 255, size=(5, 28, 28), dtype=np.uint8)
WORDS = {name: [("sleeve", 0.7), ("counterrevolutionaries", 0.4), ("a", 0.1)] for name in LONG}
ACCURACIES = [
    {"name": name, "accuracy": place / 10, "low": place / 10 - 0.02, "high": place / 10 + 0.03, "kind": kind}
    for place, (name, kind) in enumerate(zip(LONG, ("generative", "baseline") * 5, strict=True), 1)
]


def on_axes(plot, *given, size=(10, 8)):
    with figure_style():
        figure = new_figure(*size)
        assert plot(ax := figure.subplots(), *given) is ax
    return figure


def error_map():
    with figure_style():
        figure = new_figure(11, 5)
        image, difference = RNG.integers(0, 255, (32, 32, 3), np.uint8), RNG.normal(size=(8, 8))
        evidence.plot_error_map(figure.subplots(1, 2), image, difference, *LONG[:2])
    return figure


BOTH = (np.corrcoef(BEFORE[:10]), np.corrcoef(AFTER[:10]))
FIGURES = {
    "map": partial(on_axes, plots.plot_map, BEFORE[:, :2], LABELS, LONG, LONG_FAMILIES, "T " * 80, "c " * 99),
    "journey": partial(on_axes, plots.plot_token_journey, PATHS, [0, 10, 20, 30, 40], LONG, LONG_FAMILIES),
    "journey_step": partial(on_axes, plots.plot_token_journey, PATHS, [0, 10, 20, 30, 40], LONG, LONG_FAMILIES, 3),
    "losses": partial(on_axes, plots.plot_losses, CURVES),
    "accuracy": partial(on_axes, plots.plot_accuracy, ACCURACIES, 0.1),
    "similarity": partial(on_axes, evidence.plot_similarity, BOTH[1], LONG, LONG_FAMILIES),
    "confusion": partial(on_axes, evidence.plot_confusion, RNG.integers(0, 40, size=(10, 10)), LONG, LONG_FAMILIES),
    "timesteps": partial(on_axes, evidence.plot_timestep_evidence, range(0, 1000, 100), GAPS),
    "reliability": partial(on_axes, evidence.plot_reliability, CONFIDENCES, RNG.random(200) < CONFIDENCES),
    "norms": partial(on_axes, plots.plot_losses, CURVES, "norm", {LONG[0]: 1.4}),
    "words": partial(on_axes, evidence.plot_nearest_words, WORDS, 0.3),
    "similarity_pair": partial(evidence.plot_similarity_pair, *BOTH, LONG, LONG_FAMILIES),
    "error_map": error_map,
    "sample_grid": partial(evidence.plot_sample_grid, [(name, IMAGES[: 2 + i % 4]) for i, name in enumerate(LONG)]),
}
"""Every figure, with ten long names."""


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_with_ten_long_names(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[name]()
        figure.canvas.draw()
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    boxes += [text.get_window_extent() for ax in figure.axes for text in ax.texts if text.get_text()]
    boxes += [text.get_window_extent() for text in (figure._suptitle, figure._supxlabel) if text is not None]
    assert min(min(box.x0, box.y0) for box in boxes) >= -1
    assert max(box.x1 for box in boxes) <= figure.bbox.width + 1
    assert max(box.y1 for box in boxes) <= figure.bbox.height + 1


@pytest.mark.parametrize("name", ["map", "journey", "journey_step"])
def test_names_on_maps_lie_apart_and_inside(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    for ax in figure.axes:
        boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
        assert len(boxes) == 10
        assert all(ax.bbox.x0 - 2 <= box.x0 and box.x1 <= ax.bbox.x1 + 2 for box in boxes)
        assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))


def test_names_at_line_ends_keep_apart_in_a_part_of_a_figure():
    with figure_style():
        figure = new_figure(8, 6)
        ax = figure.add_subfigure(figure.add_gridspec(3, 1)[0]).subplots()
        ax.plot([0, 1], [0, 1])
        label_ends(ax, [(0.5, "one", "#0072B2"), (0.5, "other", "#E69F00")])
        figure.draw_without_rendering()
    one, other = (text.get_bbox_patch().get_window_extent() for text in ax.texts)
    assert not one.overlaps(other)


SPREAD = [([], []), ([0.1, 0.9], [0.1, 0.9]), ([0.5, 0.5, 0.5], [0.3, 0.5, 0.7]), ([0.5, 0.6, 0.1], [0.45, 0.65, 0.1])]


@pytest.mark.parametrize(("wanted", "places"), SPREAD)
def test_spread_apart_keeps_order_and_gap(wanted, places):
    assert spread_apart(wanted, 0.2) == pytest.approx(places)


def test_race_order_spans_the_schedule_from_the_start_and_keeps_the_stages():
    errors = np.ones((3, 8))
    assert race_order(errors).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    errors[0, [0, 2, 3, 5, 6, 7]] = np.nan
    assert race_order(errors)[:2].tolist() == [1, 4]
    assert sorted(race_order(errors)) == list(range(8))


@pytest.mark.parametrize("weighting", ["relative", "absolute"])
def test_the_race_ends_where_the_classifier_decides(weighting):
    measured = np.random.default_rng(0).uniform(0.6, 1.1, (6, 3, 8))
    for errors, scores in zip(measured, class_scores(measured, weighting), strict=True):
        end = race_leads(errors, weighting)[-1]
        np.testing.assert_allclose(end - end.mean(), scores - scores.mean(), atol=1e-6)


def test_dropped_classes_end_where_they_were_dropped_and_are_grey():
    errors = np.array([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, np.nan, np.nan], [2.0, 2.0, 2.0, 2.0]])
    leads = race_leads(errors, "absolute")
    # The classes that were never dropped have errors 1 and 2, hence the mean 1.5.
    np.testing.assert_allclose(leads, [[0.5, -1.5, -0.5]] * 2 + [[0.5, np.nan, -0.5]] * 2)
    (ax,) = on_axes(plot_race, leads, 4, ["bag", "boot", "shirt"]).axes
    assert [text.get_text() for text in ax.texts] == ["bag", "boot, out", "shirt"]
    assert GREY in [line.get_color() for line in ax.lines if line.get_linestyle() == "-"]


def test_matrix_keeps_its_values_in_family_order():
    matrix = np.arange(100.0).reshape(10, 10)
    (ax,) = on_axes(evidence.plot_similarity, matrix, FASHION_CLASSES, FASHION_FAMILIES).axes
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [name for members in FASHION_FAMILIES.values() for name in members]
    shown = ax.images[0].get_array()[names.index("shirt"), names.index("coat")]
    assert shown == matrix[FASHION_CLASSES.index("shirt"), FASHION_CLASSES.index("coat")]
    assert "64.00" in {text.get_text() for text in ax.texts}


def test_accuracy_bars_are_sorted_and_kinds_differ_by_hatch():
    rows = ACCURACIES[:2][::-1]
    (ax,) = on_axes(plots.plot_accuracy, rows, 0.1).axes
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0.1]  # from above
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [False, True]
    assert {text.get_text() for text in ax.get_legend().get_texts()} == {"diffusion prompts", "baselines"}
    with pytest.raises(DataError, match="kind 'other'"):
        on_axes(plots.plot_accuracy, [{**rows[0], "kind": "other"}], 0.1)


def test_calibration_error_by_hand():
    # One bin at 0.9 with accuracy 0.5, one at 0.2 with accuracy 0: 0.5 * 0.4 + 0.5 * 0.2.
    correct = np.array([True, False, False, False])
    (ax,) = on_axes(evidence.plot_reliability, np.array([0.9, 0.9, 0.2, 0.2]), correct).axes
    assert ax.texts[0].get_text() == "expected calibration\nerror 0.300"
    assert ax.collections[-1].get_offsets().tolist() == [pytest.approx([0.2, 0]), pytest.approx([0.9, 0.5])]


def test_error_map_shows_nothing_where_neither_class_is_favoured():
    difference = np.array([[1.0, 0.0], [0.0, -1.0]])
    axes = evidence.plot_error_map(new_figure(8, 4).subplots(1, 2), np.zeros((4, 4)), difference, "a", "b")
    overlay = axes[1].images[1].get_array()
    assert overlay[..., 3].tolist() == [[0.8, 0.0], [0.0, 0.8]]
    # Blue where A is favoured, orange where B is; a whole line holds the one, a dashed one the other.
    assert overlay[0, 0, 2] > overlay[0, 0, 0]
    assert overlay[1, 1, 0] > overlay[1, 1, 2]
    lines = [part for part in axes[1].collections if part.get_linewidth()[0] == 2]
    assert [part.get_linestyle()[0][1] is None for part in lines] == [True, False]


@pytest.mark.parametrize(
    ("message", "plot", "given"),
    [
        (r"expected \(3, 2\)", plots.plot_map, (np.zeros((3, 3)), np.zeros(3, int), ["a"])),
        ("integers from 0 to 0", plots.plot_map, (np.zeros((3, 2)), np.ones(3, int), ["a"])),
        ("one a point", plots.plot_map, (np.zeros((3, 2)), np.zeros(3), ["a"])),
        ("2 steps or more", plots.plot_token_journey, (np.zeros((1, 1, 2)), [0], ["a"])),
        ("curves is empty", plots.plot_losses, ({},)),
        ("curve 'a'", plots.plot_losses, ({"a": (np.arange(3), np.arange(2))},)),
        (r"expected \(2, 2\)", evidence.plot_confusion, (np.zeros((2, 3)), ["a", "b"])),
        ("negative", evidence.plot_confusion, (-np.eye(2), ["a", "b"])),
        (r"expected \(image, 1\)", evidence.plot_timestep_evidence, ([1], {"a": np.zeros((3, 2))})),
        ("from 0 to 1", evidence.plot_reliability, ([1.5], [True])),
        ("1 classes without a word", evidence.plot_nearest_words, ({"a": []}, 0.1)),
        ("1 rows without an image", lambda ax, rows: evidence.plot_sample_grid(rows), ([("a", [])],)),
        ("one class or more", lambda ax, errors: race_leads(errors), (np.full((2, 3), np.nan),)),
    ],
)
def test_bad_input_is_named(message, plot, given):
    with pytest.raises(DataError, match=message):
        plot(new_figure(4, 4).subplots(), *given)


def test_saved_figures_are_closed_and_equal_byte_for_byte(tmp_path):
    open_before = plt.get_fignums()
    first, second = (plots.save_figure(FIGURES["map"](), tmp_path / folder, "map") for folder in ("one", "two"))
    assert [path.name for path in first] == ["map.png", "map.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    svg = first[1].read_text()
    assert "<dc:date>" not in svg
    assert "<text" not in svg

    with figure_style():
        figure, ax = plt.subplots()
        ax.plot([0, 1])
    plots.save_figure(figure, tmp_path, "of_pyplot")
    assert plt.get_fignums() == open_before


def test_a_run_of_one_step_is_a_mark_at_a_whole_number():
    (ax,) = on_axes(plots.plot_losses, {"training": (np.array([1]), np.array([0.5]))}, size=(6, 4)).axes
    assert ax.lines[-1].get_marker() == "o"
    assert all(float(place).is_integer() for place in ax.get_xticks())
