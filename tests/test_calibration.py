"""From errors to calibrated logits: weights that are known are found again, and offsets only where images bear them."""

import json

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from gcpl_lab.evaluation.calibration import FittedLogits, fit_logits, fit_temperature, log_losses
from gcpl_lab.gcpl.calibration import Reading, class_scores, fit_reading, probabilities


def drawn(logits: np.ndarray, seed: int = 1) -> np.ndarray:
    """Labels drawn from the softmax of logits."""
    chances = softmax(logits, axis=1).cumsum(axis=1)
    return (np.random.default_rng(seed).random((len(logits), 1)) > chances).sum(axis=1).clip(max=logits.shape[1] - 1)


def sources(num: int, num_classes: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(num, num_classes)), rng.normal(size=(num, num_classes)) / 50]


def test_logits_by_hand() -> None:
    fitted = FittedLogits(np.array([2.0, 0.5]), np.array([0.1, -0.1]), 1.0, float("nan"))
    np.testing.assert_allclose(fitted([np.array([[1.0, 0.0]]), np.array([[0.0, 4.0]])]), [[2.1, 1.9]])
    again = FittedLogits.from_dict(json.loads(json.dumps(fitted.as_dict(), allow_nan=False)))
    assert again.as_dict() == fitted.as_dict()
    assert np.isnan(again.held_out_loss)
    with pytest.raises(ValueError, match="not finite"):
        FittedLogits.from_dict(fitted.as_dict() | {"offsets": [float("inf"), 0.0]})
    logits, labels = np.random.default_rng(0).normal(0, 300, (3, 5, 7)), np.arange(5)
    np.testing.assert_allclose(log_losses(logits, labels), -log_softmax(logits, axis=-1)[:, labels, labels])


@pytest.mark.parametrize(("penalty", "weight_penalty"), [(0.3, 0.01), (0.01, 0.2)])
def test_two_classes_are_fitted_as_scikit_learn_fits_them(penalty: float, weight_penalty: float) -> None:
    """Two classes are a logistic regression on the difference of their scores.

    Its intercept b is twice an offset, so the penalty on their mean square is b² / 4 of it. scikit-learn punishes the
    half square of every coefficient of the summed loss alike: columns are scaled by what makes both penalties equal.
    """
    (one, _), num = sources(200, 2), 200
    labels = drawn(1.5 * one + np.array([0.4, -0.4]))
    spread = (one - one.mean(axis=1, keepdims=True)).std()
    columns = np.array([1 / np.sqrt(2 * num * weight_penalty), np.sqrt(2 / (num * penalty))])
    features = np.column_stack([(one[:, 1] - one[:, 0]) / spread, np.ones(num)]) * columns
    weight, intercept = LogisticRegression(fit_intercept=False, tol=1e-10).fit(features, labels).coef_[0] * columns
    found = fit_logits([one], labels, penalty=penalty, weight_penalty=weight_penalty)
    np.testing.assert_allclose(found.weights, [weight / spread], rtol=1e-3)
    np.testing.assert_allclose(found.offsets, [-intercept / 2, intercept / 2], atol=1e-3)
    plain = LogisticRegression(C=1e10, fit_intercept=False).fit(one[:, [1]] - one[:, [0]], labels)
    assert fit_temperature(one, labels) == pytest.approx(plain.coef_[0, 0], rel=1e-3)


def test_the_fit_is_where_the_gradient_is_zero() -> None:
    """What the softmax says too often is what penalties hold back: 2 · penalty · offset / number of classes."""
    both, labels = sources(120), drawn(sources(120)[0])
    found = fit_logits(both, labels, penalty=0.3, weight_penalty=0.05)
    excess = softmax(found(both), axis=1) - np.eye(4)[labels]
    np.testing.assert_allclose(excess.mean(axis=0), -2 * 0.3 * found.offsets / 4, atol=1e-4)
    for source, weight in zip(both, found.weights, strict=True):
        spread = (source - source.mean(axis=1, keepdims=True)).std()
        slope = (source * excess).sum() / len(labels) / spread
        if weight > 0:
            assert slope == pytest.approx(-2 * 0.05 * weight * spread, abs=1e-4)
        else:
            assert slope >= -1e-4  # a larger number would have to speak against a class


def test_known_weights_and_offsets_are_found() -> None:
    both, offsets = sources(8000), np.array([0.8, -0.8, 0.3, -0.3])
    found = fit_logits(both, drawn(1.5 * both[0] + 60 * both[1] + offsets))
    np.testing.assert_allclose(found.weights, [1.5, 60], rtol=0.08)
    np.testing.assert_allclose(found.offsets, offsets, atol=0.12)
    assert found.penalty == 0.01  # plenty of images support the offsets
    assert abs(found.offsets.sum()) < 1e-9


def test_a_source_that_tells_nothing_or_the_opposite_gets_no_weight() -> None:
    one, noise = sources(4000)
    found = fit_logits([one, noise, -one], drawn(2 * one), penalty=10.0)
    assert found.weights[0] == pytest.approx(2, rel=0.1)
    assert found.weights[1] * noise.std() < 0.1
    assert found.weights[2] == 0


def test_offsets_are_held_back_where_there_is_little_to_learn_from() -> None:
    one = sources(40)[0]
    found = fit_logits([one], drawn(2 * one))
    assert found.penalty >= 0.1
    assert np.abs(found.offsets).max() < 1.0
    few = fit_logits([np.eye(3) + 0.1], np.arange(3))  # one image a class: nothing can be held out
    assert few.penalty == 10.0
    assert np.isnan(few.held_out_loss)


def test_neither_the_unit_of_a_source_nor_a_constant_an_image_matters() -> None:
    both = sources(300)
    labels = drawn(both[0])
    plain = softmax(fit_logits(both, labels)(both), axis=1)
    for changed in ([1000 * both[0], both[1] / 7], [source + np.arange(300)[:, None] for source in both]):
        np.testing.assert_allclose(softmax(fit_logits(changed, labels)(changed), axis=1), plain, atol=1e-4)


def test_bad_sources_are_named() -> None:
    good, holed, labels = np.zeros((4, 3)), np.zeros((4, 3)), np.array([0, 1, 2, 0])
    holed[2, 1] = np.nan
    for sources_, count, message in (
        ([good, good[:, :2]], 4, r"shapes \[\(4, 2\), \(4, 3\)\] .*; expected one shape"),
        ([good], 3, r"there are 3 labels; expected one shape \(3, class\)"),
        ([holed], 4, "source 0 is not finite for image 2 and class 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_logits(sources_, labels[:count])


def test_scores_by_hand() -> None:
    errors = np.array([[[1.0, 10.0], [3.0, 30.0]], [[2.0, 10.0], [2.0, 30.0]]])
    np.testing.assert_allclose(class_scores(errors, "absolute"), [[-5.5, -16.5], [-6.0, -16.0]])
    np.testing.assert_allclose(class_scores(errors), [[-0.5, -1.5], [-0.75, -1.25]])
    np.testing.assert_allclose(class_scores(errors * [100, 0.1]), class_scores(errors))  # however hard a timestep is


def test_classes_that_were_dropped_never_win() -> None:
    scores = class_scores(np.array([[[1.0, np.nan], [2.0, 4.0], [3.0, 2.0]]]))
    # first sample: mean 2, second sample: mean 3 of the two that are left
    np.testing.assert_allclose(scores, [[-np.inf, -(1 + 4 / 3) / 2, -(1.5 + 2 / 3) / 2]])
    assert probabilities(scores, 5.0)[0, 0] == 0.0
    np.testing.assert_allclose(
        probabilities(np.array([[0.0, -1.0], [5.0, 5.0]]), np.log(3)), [[0.75, 0.25], [0.5, 0.5]]
    )
    np.testing.assert_allclose(probabilities(np.array([[1e5, -1e5, 0.0]]), 100.0), [[1.0, 0.0, 0.0]])


def errors_with(own: tuple[float, float], spread: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Errors (image, class, 2): at each of two samples the own class is better by ``own``, amid noise of ``spread``."""
    rng, labels = np.random.default_rng(0), np.arange(60) % 3
    errors = np.array([10.0, 1.0]) + rng.normal(size=(60, 3, 2)) * np.array(spread)
    errors[np.arange(60), labels] -= np.array(own)
    return errors, labels


def test_the_weighting_with_less_held_out_loss_is_chosen() -> None:
    # Large errors without a word to say drown small ones in the plain mean, and the other way round.
    quiet, labels = errors_with(own=(0.0, 0.3), spread=(2.0, 0.1))
    loud, _ = errors_with(own=(1.0, 0.0), spread=(0.5, 0.5))
    assert fit_reading(quiet, labels).weighting == "relative"
    assert fit_reading(loud, labels).weighting == "absolute"
    assert fit_reading(loud, labels, class_offsets=False).weighting == "absolute"
    assert fit_reading(quiet, labels, weighting="absolute").weighting == "absolute"
    assert fit_reading(loud[:3], labels[:3]).weighting == "relative"  # the first: no fold can be held out


def test_a_reading_scores_as_it_was_fitted() -> None:
    errors, labels = errors_with(own=(0.0, 0.3), spread=(0.1, 0.1))
    scores, reading = class_scores(errors, "relative"), fit_reading(errors, labels, weighting="relative")
    np.testing.assert_allclose(reading.scores(errors), scores + reading.offsets)
    # Times the temperature they are the logits that were fitted: offsets are in units of scores.
    logits = fit_logits([scores], labels, weight_penalty=0.0)([scores])
    np.testing.assert_allclose(reading.temperature * reading.scores(errors), logits, rtol=1e-9)
    assert reading.temperature != pytest.approx(1.0, abs=0.5)
    assert reading.offsets.mean() == pytest.approx(0, abs=1e-12)
    plain = fit_reading(errors, labels, weighting="relative", class_offsets=False)
    assert not plain.offsets.any()
    assert plain.temperature == pytest.approx(fit_temperature(scores, labels))
    by_hand = Reading("absolute", 1.0, np.array([0.5, -0.5])).scores(np.array([[[1.0, 3.0], [2.0, 4.0]]]))
    np.testing.assert_allclose(by_hand, [[-1.5, -3.5]])
