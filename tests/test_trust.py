"""Shifts, generated images and reviews, by judges that are understood; and the figures made of them."""

import math

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.shifts import SEVERITIES, SHIFTS, shift_pictures
from gcpl_lab.errors import DataError
from gcpl_lab.evaluation import trust
from gcpl_lab.evaluation.trust import measure_consistency, measure_recognition, measure_shifts, share_with_interval
from gcpl_lab.views import style
from gcpl_lab.views.trust import draw_shift_grid, plot_consistency, plot_recognition


def test_a_share_has_wilsons_interval():
    # Centre (p + z²/2n) / (1 + z²/n) for 8 of 10 and z = 1.96: 0.717, half width 0.227.
    estimate = share_with_interval(8, 10)
    assert estimate.value == 0.8
    assert (estimate.low, estimate.high) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))
    assert share_with_interval(10, 10).low == pytest.approx(0.722, abs=1e-3)
    assert share_with_interval(0, 10).low == 0


@pytest.fixture(scope="module")
def halves() -> tuple[list[Image.Image], np.ndarray]:
    """Twenty images, bright above (class 0) or bright below (class 1)."""
    labels = np.arange(20) % 2
    images = []
    for label in labels:
        values = np.full((32, 32), 30, np.uint8)
        values[16 * label : 16 * label + 16] = 200
        images.append(Image.fromarray(values))
    return images, labels


def brighter_half(images) -> np.ndarray:
    """Knows the classes by brightness, with a sureness that is always the same."""
    above = np.array([np.asarray(p, float)[:16].mean() - np.asarray(p, float)[16:].mean() for p in images])
    right = np.where(above > 0, 0.9, 0.1)
    return np.stack([right, 1 - right], axis=1)


def test_shift_curves_of_a_judge_that_is_understood(halves):
    images, labels = halves
    points = measure_shifts({"half": brighter_half, "guess": lambda p: np.full((len(p), 2), 0.5)}, images, labels)
    assert len(points) == 2 * len(SHIFTS) * len(SEVERITIES)
    table = {(p.method, p.kind, p.severity): p for p in points}
    for kind in SHIFTS:
        start = table["half", kind, 0]
        assert (start.accuracy.value, start.kept, start.confidence) == (1, 1, pytest.approx(0.9))
    # The full negative turns every answer round, at unchanged confidence; less contrast changes none.
    negative = table["half", "inversion", 5]
    assert (negative.accuracy.value, negative.kept, negative.confidence) == (0, 0, pytest.approx(0.9))
    assert table["half", "contrast", 5].accuracy.value == 1
    assert all(table["guess", kind, severity].accuracy.value == 0.5 for kind in SHIFTS for severity in SEVERITIES)


def test_every_method_sees_the_same_images_and_nothing_is_classified_twice(halves):
    images, labels = halves
    seen: dict[str, list[np.ndarray]] = {"a": [], "b": []}

    def remember(name):
        def predict(given):
            seen[name].append(np.stack([np.asarray(image) for image in given]))
            return brighter_half(given)

        return predict

    measure_shifts({name: remember(name) for name in seen}, images, labels, kinds=["noise", "blur"], severities=[3])
    assert len(seen["a"]) == 3  # the plain images once, and each kind at one severity
    assert all(np.array_equal(a, b) for a, b in zip(*seen.values(), strict=True))
    assert np.array_equal(seen["a"][1], np.stack([np.asarray(p) for p in shift_pictures(images, "noise", 3)]))


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda p: np.ones((len(p), 2)), r"'x' answered with shape \(20, 2\); expected prob.*: use predict_proba"),
        (lambda p: np.ones((len(p), 1)), r"answered with shape \(20, 1\); .* for labels up to 1"),
        (lambda p: np.ones((3, 2)) / 2, r"method 'x' for image: values have shape \(3, 2\) and labels \(20,\)"),
    ],
)
def test_a_judge_that_does_not_answer_with_probabilities_is_refused(halves, predict, message):
    with pytest.raises(DataError, match=message):
        measure_shifts({"x": predict}, *halves)


def test_recognition_by_hand():
    scores = np.array([[2, 1, 0], [0, 1, 0.5], [0, 3, 1], [-5, -6, -7]])
    found = measure_recognition(scores, np.array([0, 0, 1, 1]))
    assert found.confusion.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert (found.by_class[0].value, found.by_class[1].value, found.overall.value) == (0.5, 0.5, 0.5)
    assert math.isnan(found.by_class[2].value)


def test_consistency_by_hand():
    # On a line: class 0 at 0, 1, 3; class 1 at 10, 12. Generated for 0: at 2 and 11; for 1: at 12.
    real, real_labels = np.array([[0.0], [1.0], [3.0], [10.0], [12.0]]), np.array([0, 0, 0, 1, 1])
    generated, labels = np.array([[2.0], [11.0], [12.0]]), np.array([0, 0, 1])
    zero, one = measure_consistency(real, real_labels, generated, labels)
    assert zero.to_real == pytest.approx((1 + 8) / 2)
    assert zero.real_to_real == pytest.approx((1 + 1 + 2) / 3)
    assert zero.spread == pytest.approx(9 / 2)  # generated: 9 apart; real: (1 + 3 + 2) / 3
    assert (zero.label, one.label, one.to_real, one.real_to_real) == (0, 1, 0, 2)
    assert math.isnan(one.spread)


def test_consistency_of_images_with_themselves_is_perfect_and_unmoved_by_rotation():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 10)
    real = rng.normal(size=(3, 4))[labels] * 2 + rng.normal(size=(30, 4))
    for entry in measure_consistency(real, labels, real, labels):
        assert (entry.to_real, entry.spread) == (0, pytest.approx(1))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    other = real[rng.permutation(30)] + 0.3
    plain = measure_consistency(real, labels, other, labels)
    turned = measure_consistency(real @ rotation + 1, labels, other @ rotation + 1, labels)
    assert [e.to_real for e in turned] == pytest.approx([e.to_real for e in plain])


def test_review_shows_sure_mistakes_unsure_ones_and_random_ones():
    first = np.array([0.99, 0.95, 0.52, 0.50, 0.8, 0.7, 0.9, 0.85, 0.6])
    chances = np.stack([first, 1 - first], axis=1)
    labels = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0])  # 0 and 4 are wrong, 0 with more sureness
    chosen = trust.choose_for_review(chances, 6, labels)
    assert chosen[:4] == [(0, "sure and wrong"), (4, "sure and wrong"), (3, "unsure"), (2, "unsure")]
    assert [reason for _, reason in chosen[4:]] == ["random", "random"]
    assert len({image for image, _ in chosen}) == 6
    assert trust.choose_for_review(chances, 6, labels) == chosen
    assert any(trust.choose_for_review(chances, 6, labels, seed=s)[4:] != chosen[4:] for s in range(1, 9))
    without = trust.choose_for_review(chances, 6)
    assert [reason for _, reason in without] == ["unsure"] * 2 + ["random"] * 4
    assert sorted(image for image, _ in trust.choose_for_review(chances, 50, labels)) == list(range(9))


def test_a_review_is_counted_by_reason():
    first, second, third = trust.summarise_review(
        ["unsure", "unsure", "random", "random", "random", "sure and wrong"], [True, None, True, False, True, None]
    )
    assert (first["reason"], first["shown"], first["decided"], first["accepted"]) == ("unsure", 2, 1, 1)
    assert (second["shown"], second["accepted"], second["share"].value) == (3, 2, pytest.approx(2 / 3))
    assert (third["decided"], third["share"]) == (0, None)


@pytest.fixture
def ax():
    with style.figure_style():
        yield style.new_figure(9, 6).subplots()


@pytest.fixture(scope="module")
def points(halves):
    judges = {"half": brighter_half, "guess": lambda p: np.full((len(p), 2), 0.5)}
    return measure_shifts(judges, *halves, kinds=["blur", "inversion"], severities=[1, 5])


def test_the_grid_has_a_panel_a_kind_with_every_method_at_its_accuracies(points):
    figure = draw_shift_grid(points, chance=0.5)
    figure.draw_without_rendering()
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()] == ["blur", "inversion"]
    drawn = [line.get_ydata().tolist() for line in figure.axes[1].lines[:2]]
    assert drawn == [[1, 1, 0], [0.5] * 3]
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == ["0", "1", "5"]
    assert "inverted from 0 %" in figure.axes[1].get_xlabel()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["half", "guess"]
    with pytest.raises(DataError, match="points is empty"):
        draw_shift_grid([])


def test_recognition_marks_lie_at_the_shares(ax):
    found = measure_recognition(np.eye(3)[[0, 0, 1, 1]], np.array([0, 1, 1, 1]))
    assert plot_recognition(ax, {"drawn": found}, ["a", "b", "c"]) is ax
    (marks,) = ax.collections
    assert marks.get_offsets().tolist() == [[1, 0], [pytest.approx(2 / 3), 1], [0.75, 3]]  # c has no image
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b", "c", "all classes"]


def test_consistency_marks_lie_beside_the_yardstick(ax):
    real, labels = np.array([[0.0], [1.0], [10.0], [12.0]]), np.array([0, 0, 1, 1])
    found = measure_consistency(real, labels, np.array([[4.0], [11.0]]), np.array([0, 1]))
    assert plot_consistency(ax, {"drawn": found}, ["a", "b"]) is ax
    (marks,) = ax.collections
    assert marks.get_offsets().tolist() == [[3, 0], [1, 1]]
    yardsticks = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
    assert yardsticks == [1, 2]


ZEROS, TWICE = np.zeros((4, 2)), np.array([0, 0, 1, 1])
NOT_FINITE = np.array([[0, 0], [0, math.nan]])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        *((lambda ax, points, w=w: share_with_interval(*w), "is no share") for w in ((1, 0), (3, 2), (-1, 2))),
        (lambda ax, points: measure_recognition(np.ones((2, 2)), np.array([0, 2])), "labels reach from 0 to 2; exp"),
        (lambda ax, points: measure_recognition(1 + NOT_FINITE, np.array([0, 1])), "image 1 holds"),
        (lambda ax, points: measure_consistency(ZEROS, TWICE, ZEROS, TWICE + 1), "class 2 has 0 real images"),
        (lambda ax, points: measure_consistency(ZEROS, TWICE, np.zeros((4, 3)), TWICE), "2 dims and generated ones 3"),
        (lambda ax, points: measure_consistency(ZEROS, TWICE, NOT_FINITE, TWICE[1:3]), "generated image 1 holds a"),
        (lambda ax, points: trust.choose_for_review(ZEROS, 0), "count is 0"),
        (lambda ax, points: trust.choose_for_review(ZEROS, 2, TWICE[:2]), r"shape \(4, 2\) and labels \(2,\)"),
        (lambda ax, points: trust.summarise_review(["random"], [True, False]), "1 reasons and 2 decisions"),
        (
            lambda ax, points: plot_recognition(ax, {"drawn": measure_recognition(np.eye(3), TWICE[:3])}, "ab"),
            "3} for 2",
        ),
        (lambda ax, points: plot_recognition(ax, {}, ["a", "b"]), "nothing"),
        (lambda ax, points: plot_consistency(ax, {"drawn": []}, ["a", "b"]), "nothing was measured"),
    ],
)
def test_what_cannot_be_measured_or_drawn_is_named(ax, points, ask, message):
    with pytest.raises(DataError, match=message):
        ask(ax, points)
