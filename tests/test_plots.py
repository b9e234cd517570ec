import itertools
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest

from gcpl_lab.data.fashion import FASHION_CLASSES, FASHION_FAMILIES
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation.separation import measure_within_families
from gcpl_lab.views import evidence, plots
from gcpl_lab.views.labels import label_ends, spread_apart
from gcpl_lab.views.projection import project
from gcpl_lab.views.style import PALETTE, class_style, family_order, family_spans, figure_style, label_text, new_figure

LONG = [f"a rather long name, ${place} each, of the {name}" for place, name in enumerate(FASHION_CLASSES)]
LONG_FAMILIES = {
    f"family of all {family}": [LONG[FASHION_CLASSES.index(name)] for name in members]
    for family, members in FASHION_FAMILIES.items()
}

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def lab(color: str, deficiency: str) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour as a colour-blind eye sees it."""
    srgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    ratio = np.asarray(to_xyz) @ seen / [0.95047, 1, 1.08883]
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(first: str, second: str) -> float:
    return min(float(np.linalg.norm(lab(first, kind) - lab(second, kind))) for kind in DEFICIENCIES)


def test_class_colours_stay_apart_to_colour_blind_eyes():
    style = class_style(FASHION_CLASSES, FASHION_FAMILIES)
    for members in FASHION_FAMILIES.values():
        for first, second in itertools.combinations(members, 2):
            assert distance(style[first][0], style[second][0]) >= 24
            assert style[first][1] != style[second][1]
    assert min(distance(*pair) for pair in itertools.combinations(PALETTE, 2)) >= 17
    window = [pair for i in range(5) for pair in itertools.combinations(PALETTE[i : i + 6], 2)]
    assert min(distance(*pair) for pair in window) >= 24


def test_many_classes_have_different_pairs_of_colour_and_marker():
    style = class_style([str(place) for place in range(110)])
    assert len(set(style.values())) == 110


def test_one_order_of_classes_family_by_family():
    order = family_order(FASHION_CLASSES, FASHION_FAMILIES)
    assert sorted(order) == list(range(10))
    spans = family_spans(FASHION_CLASSES, FASHION_FAMILIES)
    assert spans == [("tops", 0, 5), ("footwear", 5, 8), ("trousers", 8, 9), ("bags", 9, 10)]
    for family, start, stop in spans:
        assert tuple(FASHION_CLASSES[place] for place in order[start:stop]) == FASHION_FAMILIES[family]
    with pytest.raises(DataError, match="'shirt' occurs more than once"):
        family_order(["shirt", "shirt"], None)


def test_long_names_are_cut_in_the_middle_and_dollars_are_no_mathematics():
    assert label_text("shirt") == "shirt"
    assert label_text("abcdefghijkl", 6) == "abc…kl"
    assert label_text("a $x$") == r"a \$x\$"


def test_style_is_lifted_afterwards_and_unknown_context_named():
    before = dict(plt.rcParams)
    with figure_style("slide"):
        assert plt.rcParams["font.size"] == 18
    assert dict(plt.rcParams) == before
    with pytest.raises(DataError, match="'poster' is unknown"), figure_style("poster"):
        pass


def test_spread_apart_keeps_order_and_gap():
    assert spread_apart([0.1, 0.9], 0.2) == pytest.approx([0.1, 0.9])
    assert spread_apart([0.5, 0.5, 0.5], 0.2) == pytest.approx([0.3, 0.5, 0.7])
    places = spread_apart([0.5, 0.52, 0.1, 0.7], 0.15)
    assert np.diff(sorted(places)).min() >= 0.15 - 1e-9
    assert np.argsort(places).tolist() == [2, 0, 1, 3]


# --- every figure, with ten long names --------------------------------------------------------------


@pytest.fixture(scope="module")
def cloud():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 10
    before = rng.normal(size=(80, 6))
    return before, before + 2 * rng.normal(size=(10, 6))[labels], labels


def single(draw, width=10.0, height=8.0):
    with figure_style():
        figure = new_figure(width, height)
        assert draw(ax := figure.subplots()) is ax
    return figure


def draw_map(cloud):
    return single(lambda ax: plots.plot_map(ax, cloud[0][:, :2], cloud[2], LONG, LONG_FAMILIES, "T " * 80, "c " * 99))


def draw_before_after(cloud):
    before, after, labels = cloud
    states = {"before": before, "after": after}
    separations = {
        name: measure_within_families(points, labels, LONG, LONG_FAMILIES) for name, points in states.items()
    }
    projection = project(states, "pca")
    return plots.plot_before_after(projection, labels, LONG, LONG_FAMILIES, separations, "Title " * 20, "careful " * 20)


def draw_similarity(cloud):
    matrix = np.corrcoef(cloud[1][:10])
    return single(lambda ax: evidence.plot_similarity(ax, matrix, LONG, LONG_FAMILIES, "A title"))


def draw_similarity_pair(cloud):
    return evidence.plot_similarity_pair(np.corrcoef(cloud[0][:10]), np.corrcoef(cloud[1][:10]), LONG, LONG_FAMILIES)


def draw_journey(cloud):
    paths = np.random.default_rng(0).normal(size=(5, 10, 2)).cumsum(axis=0)
    return single(lambda ax: plots.plot_token_journey(ax, paths, [0, 10, 20, 30, 40], LONG, LONG_FAMILIES))


def curves():
    return {name: (np.arange(100), np.random.default_rng(place).random(100)) for place, name in enumerate(LONG[:6])}


def draw_losses(cloud):
    return single(lambda ax: plots.plot_losses(ax, curves()), 9, 5)


def draw_norms(cloud):
    return single(lambda ax: evidence.plot_norms(ax, curves(), {LONG[0]: 1.4}), 9, 5)


def accuracy_rows():
    return [
        {"name": name, "accuracy": 0.1 * place, "low": 0.1 * place - 0.02, "high": 0.1 * place + 0.03, "kind": kind}
        for place, (name, kind) in enumerate(zip(LONG, itertools.cycle(("generative", "baseline")), strict=False), 1)
    ]


def draw_accuracy(cloud):
    return single(lambda ax: plots.plot_accuracy(ax, accuracy_rows(), chance=0.1), 10, 6)


def draw_shots(cloud):
    table = [
        {"name": name, "shots": shots, "accuracy": 0.5, "low": 0.4, "high": 0.6}
        for name in LONG[:5]
        for shots in (1, 4, 16)
    ]
    return single(lambda ax: plots.plot_shots(ax, table, chance=0.1), 9, 5)


def draw_confusion(cloud):
    matrix = np.random.default_rng(0).integers(0, 40, size=(10, 10))
    return single(lambda ax: evidence.plot_confusion(ax, matrix, LONG, LONG_FAMILIES))


def draw_timesteps(cloud):
    gap = np.linspace(-0.001, 0.03, 10)
    return single(
        lambda ax: evidence.plot_timestep_evidence(ax, range(0, 1000, 100), gap, gap - 0.01, gap + 0.01), 8, 5
    )


def draw_error_map(cloud):
    rng = np.random.default_rng(0)
    with figure_style():
        figure = new_figure(11, 5)
        image = rng.integers(0, 255, size=(32, 32, 3), dtype=np.uint8)
        evidence.plot_error_map(figure.subplots(1, 2), image, rng.normal(size=(8, 8)), LONG[0], LONG[1])
    return figure


def draw_grid(cloud):
    pictures = np.random.default_rng(0).integers(0, 255, size=(5, 28, 28), dtype=np.uint8)
    return evidence.plot_sample_grid([(name, pictures[: 2 + place % 4]) for place, name in enumerate(LONG)])


def draw_reliability(cloud):
    rng = np.random.default_rng(0)
    confidences = rng.random(200)
    return single(lambda ax: evidence.plot_reliability(ax, confidences, rng.random(200) < confidences), 6, 7)


def draw_words(cloud):
    words = {name: [("sleeve", 0.7), ("counterrevolutionaries", 0.4), ("a", 0.1)] for name in LONG}
    return single(lambda ax: evidence.plot_nearest_words(ax, words, 0.3, "Words"))


DRAWINGS = [value for name, value in sorted(globals().items()) if name.startswith("draw_")]


@pytest.mark.parametrize("draw", DRAWINGS, ids=lambda draw: draw.__name__)
def test_nothing_is_cut_off_with_ten_long_names(draw, cloud):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(cloud)
        figure.canvas.draw()
    width, height = figure.bbox.width, figure.bbox.height
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    boxes += [text.get_window_extent() for ax in figure.axes for text in ax.texts if text.get_text()]
    boxes += [text.get_window_extent() for text in (figure._suptitle, figure._supxlabel) if text is not None]
    assert boxes
    for box in boxes:
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1


@pytest.mark.parametrize("draw", [draw_map, draw_journey, draw_before_after], ids=lambda draw: draw.__name__)
def test_names_on_maps_lie_apart_and_inside(draw, cloud):
    figure = draw(cloud)
    figure.canvas.draw()
    for ax in figure.axes:
        boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
        assert len(boxes) == 10
        for box in boxes:
            assert ax.bbox.x0 - 2 <= box.x0
            assert box.x1 <= ax.bbox.x1 + 2
        for first, second in itertools.combinations(boxes, 2):
            assert not first.overlaps(second)


def test_before_and_after_share_their_window_and_state_what_was_measured(cloud):
    figure = draw_before_after(cloud)
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    assert "silhouette" in first.get_xlabel()
    assert "seed 0" in " ".join(figure._supxlabel.get_text().split())
    assert "trustworthiness" in figure._supxlabel.get_text()


def test_matrix_keeps_its_values_in_family_order():
    matrix = np.arange(100.0).reshape(10, 10)
    figure = single(lambda ax: evidence.plot_similarity(ax, matrix, FASHION_CLASSES, FASHION_FAMILIES))
    ax = figure.axes[0]
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [name for members in FASHION_FAMILIES.values() for name in members]
    shirt, coat = names.index("shirt"), names.index("coat")
    assert (
        ax.images[0].get_array()[shirt, coat] == matrix[FASHION_CLASSES.index("shirt"), FASHION_CLASSES.index("coat")]
    )
    assert "64.00" in {text.get_text() for text in ax.texts}


def test_accuracy_bars_are_sorted_and_kinds_differ_by_hatch():
    rows = accuracy_rows()[:2][::-1]
    ax = single(lambda ax: plots.plot_accuracy(ax, rows)).axes[0]
    assert [bar.get_width() for bar in ax.patches] == [0.1, 0.2]
    assert [bool(bar.get_hatch()) for bar in ax.patches] == [True, False]
    with pytest.raises(DataError, match="kind 'other'"):
        single(lambda ax: plots.plot_accuracy(ax, [{**rows[0], "kind": "other"}]))


def test_calibration_error_by_hand():
    # One bin at 0.9 with accuracy 0.5, one at 0.2 with accuracy 0: 0.5 * 0.4 + 0.5 * 0.2.
    error = evidence.expected_calibration_error(np.array([0.9, 0.9, 0.2, 0.2]), np.array([True, False, False, False]))
    assert error == pytest.approx(0.3)
    with pytest.raises(DataError, match="from 0 to 1"):
        evidence.expected_calibration_error(np.array([1.5]), np.array([True]))


def test_error_map_shows_nothing_where_neither_class_is_favoured():
    figure = new_figure(8, 4)
    difference = np.array([[1.0, 0.0], [0.0, -1.0]])
    axes = evidence.plot_error_map(figure.subplots(1, 2), np.zeros((4, 4)), difference, "a", "b")
    overlay = axes[1].images[1].get_array()
    assert overlay[..., 3].tolist() == [[0.8, 0.0], [0.0, 0.8]]
    # Blue where A is favoured, orange where B is.
    assert overlay[0, 0, 2] > overlay[0, 0, 0]
    assert overlay[1, 1, 0] > overlay[1, 1, 2]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plots.plot_map(ax, np.zeros((3, 3)), np.zeros(3, int), ["a"]), r"expected \(point, 2\)"),
        (lambda ax: plots.plot_map(ax, np.zeros((3, 2)), np.ones(3, int), ["a"]), "integers from 0 to 0"),
        (lambda ax: plots.plot_token_journey(ax, np.zeros((1, 1, 2)), [0], ["a"]), "2 steps or more"),
        (lambda ax: plots.plot_losses(ax, {}), "curves is empty"),
        (lambda ax: plots.plot_losses(ax, {"a": (np.arange(3), np.arange(2))}), "curve 'a'"),
        (lambda ax: plots.plot_shots(ax, []), "table is empty"),
        (lambda ax: evidence.plot_confusion(ax, np.zeros((2, 3)), ["a", "b"]), r"expected \(2, 2\)"),
        (lambda ax: evidence.plot_timestep_evidence(ax, [1], [1, 2], [1], [1]), "expected equal"),
        (lambda ax: evidence.plot_nearest_words(ax, {"a": []}, 0.1), "1 classes without a word"),
        (lambda ax: evidence.plot_sample_grid([("a", [])]), "1 rows without a picture"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(DataError, match=message):
        draw(new_figure(4, 4).subplots())


def test_saved_figures_are_closed_and_equal_byte_for_byte(tmp_path, cloud):
    open_before = plt.get_fignums()
    first = plots.save_figure(draw_map(cloud), tmp_path / "one", "map")
    second = plots.save_figure(draw_map(cloud), tmp_path / "two", "map")
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
    with figure_style():
        figure = new_figure(6, 4)
        ax = plots.plot_losses(figure.subplots(), {"training": (np.array([1]), np.array([0.5]))})
        figure.draw_without_rendering()
    assert ax.lines[-1].get_marker() == "o"
    assert all(float(place).is_integer() for place in ax.get_xticks())


def test_names_at_line_ends_keep_apart_in_a_part_of_a_figure():
    with figure_style():
        figure = new_figure(8, 6)
        ax = figure.add_subfigure(figure.add_gridspec(3, 1)[0]).subplots()
        ax.plot([0, 1], [0, 1])
        label_ends(ax, [(0.5, "one", "#0072B2"), (0.5, "other", "#E69F00")])
        figure.draw_without_rendering()
    one, other = (text.get_bbox_patch().get_window_extent() for text in ax.texts)
    assert not one.overlaps(other)
