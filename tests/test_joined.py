"""Joining evidence: weights that are known are found again, and nothing is taken from a source that tells nothing."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from gcpl_lab.fast.joined import MAP_PENALTIES, JoinedEvidence, band_sources, fit_bands, fit_joined, log_sum_exp


def drawn(logits: np.ndarray, seed: int) -> np.ndarray:
    """Labels drawn from the softmax of logits."""
    chances = softmax(logits, axis=1).cumsum(axis=1)
    return (np.random.default_rng(seed).random((len(logits), 1)) > chances).sum(axis=1).clip(max=logits.shape[1] - 1)


def sources(num: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(num, 4)), rng.normal(size=(num, 4)) / 50]


def test_logits_by_hand() -> None:
    joined = JoinedEvidence(np.array([2.0, 0.5]), np.array([0.1, -0.1]), 1.0, 0.0)
    one, two = np.array([[1.0, 0.0]]), np.array([[0.0, 4.0]])
    np.testing.assert_allclose(joined.logits([one, two]), [[2.1, 1.9]])
    np.testing.assert_allclose(joined.probabilities([one, two]), softmax([[2.1, 1.9]], axis=1))


def test_known_weights_and_offsets_are_found() -> None:
    both = sources(8000)
    offsets = np.array([0.8, -0.8, 0.3, -0.3])
    labels = drawn(1.5 * both[0] + 60 * both[1] + offsets, 1)
    found = fit_joined(both, labels)
    np.testing.assert_allclose(found.weights, [1.5, 60], rtol=0.08)
    np.testing.assert_allclose(found.offsets, offsets, atol=0.12)
    assert found.penalty == 0.01  # plenty of images support the offsets
    assert abs(found.offsets.sum()) < 1e-9


def test_a_source_that_tells_nothing_or_the_opposite_gets_no_weight() -> None:
    one, noise = sources(4000)
    labels = drawn(2 * one, 1)
    found = fit_joined([one, noise, -one], labels, offsets=False)
    assert found.weights[0] == pytest.approx(2, rel=0.1)
    assert found.weights[1] * noise.std() < 0.1
    assert found.weights[2] == 0
    assert (found.offsets == 0).all()


def test_offsets_are_held_back_where_there_is_little_to_learn_from() -> None:
    one = sources(40)[0]
    found = fit_joined([one], drawn(2 * one, 1))
    assert found.penalty >= 0.1
    assert np.abs(found.offsets).max() < 1.0


def test_a_map_reads_wrong_names() -> None:
    """Each class's number speaks for the next class: no weight of 0 or more can tell that, a map can."""
    one = sources(600)[0]
    labels = drawn(3 * np.roll(one, 1, axis=1), 1)
    plain, mapped = (fit_joined([one], labels, maps=maps) for maps in (False, True))
    assert plain.maps is None
    assert plain.map_penalty is None
    assert mapped.map_penalty in MAP_PENALTIES
    assert mapped.held_out_loss < plain.held_out_loss - 0.3
    other = sources(600, seed=9)[0]
    truth = drawn(3 * np.roll(other, 1, axis=1), 2)
    right = [(fit.logits([other]).argmax(1) == truth).mean() for fit in (plain, mapped)]
    assert right[0] < 0.4
    assert right[1] > 0.7
    assert mapped.maps is not None
    assert (np.argmax(mapped.maps[0], axis=1) == [1, 2, 3, 0]).all()


def test_maps_hear_no_number_that_all_classes_share_and_no_unit() -> None:
    both = sources(400)
    labels = drawn(3 * np.roll(both[0], 1, axis=1) + 50 * both[1], 1)
    found = fit_joined(both, labels, maps=True)
    assert found.map_penalty is not None
    shift = np.random.default_rng(3).normal(size=(400, 1))
    np.testing.assert_allclose(found.probabilities([both[0] + shift, both[1]]), found.probabilities(both), atol=1e-10)
    scaled = fit_joined([1000 * both[0], both[1]], labels, maps=True)
    np.testing.assert_allclose(scaled.probabilities([1000 * both[0], both[1]]), found.probabilities(both), atol=2e-3)


def test_maps_that_tell_nothing_more_are_left_out() -> None:
    one = sources(120)[0]
    found, plain = (fit_joined([one], drawn(2 * one, 1), maps=maps) for maps in (True, False))
    assert found.maps is None
    np.testing.assert_array_equal(found.logits([one]), plain.logits([one]))
    few = fit_joined([one[:4]], np.arange(4), maps=True)  # one image a class: nothing can be held out
    assert few.maps is None


def test_maps_are_not_written_down() -> None:
    found = JoinedEvidence(np.ones(1), np.zeros(2), 1.0, 0.5, np.zeros((1, 2, 2)), 0.1)
    with pytest.raises(ValueError, match="has maps, which are not written down"):
        found.as_dict()


def test_the_gradient_with_maps_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences, at a point that is not the start."""
    from scipy.optimize import approx_fprime

    from gcpl_lab.fast import joined as module

    asked: list[Any] = []

    def look(objective: Any, start: np.ndarray, **_options: Any) -> Any:
        asked.append((objective, start))
        return SimpleNamespace(x=start)

    monkeypatch.setattr(module, "minimize", look)
    both = sources(30)
    fit_joined([both[0], 50 * both[1]], np.arange(30) % 4, penalty=0.3, maps=True)
    objective, start = max(asked, key=lambda pair: len(pair[1]))
    assert len(start) == 2 + 4 + 2 * 16
    point = start + np.random.default_rng(0).normal(size=len(start))
    differences = approx_fprime(point, lambda values: objective(values)[0], 1e-7)
    np.testing.assert_allclose(objective(point)[1], differences, atol=1e-5)


def test_joining_errors_on_different_images_beats_each() -> None:
    """Two sources with independent noise about the same classes: together they are surer, and calibrated."""
    rng = np.random.default_rng(0)

    def made(num: int) -> tuple[list[np.ndarray], np.ndarray]:
        labels = rng.integers(0, 4, num)
        truth = 1.5 * np.eye(4)[labels]
        return [truth + rng.normal(size=(num, 4)), (truth + rng.normal(size=(num, 4))) / 100], labels

    (known, labels), (unseen, truth) = made(600), made(2000)
    rows = np.arange(2000)
    losses, right = [], []
    for chosen in ((0,), (1,), (0, 1)):
        chances = fit_joined([known[i] for i in chosen], labels).probabilities([unseen[i] for i in chosen])
        losses.append(-np.log(chances[rows, truth]).mean())
        right.append((chances.argmax(1) == truth).mean())
    assert losses[2] < min(losses[:2]) - 0.1
    assert right[2] > max(right[:2]) + 0.05
    # For normal noise of unit variance the weight is the distance of the means: 1.5, and 150 on the other scale.
    np.testing.assert_allclose(fit_joined(known, labels).weights, [1.5, 150], rtol=0.25)


def test_the_unit_of_a_source_does_not_matter() -> None:
    both = sources(300)
    labels = drawn(both[0], 1)
    plain = fit_joined(both, labels).probabilities(both)
    scaled = [1000 * both[0], both[1] / 7]
    np.testing.assert_allclose(fit_joined(scaled, labels).probabilities(scaled), plain, atol=1e-4)
    shifted = [source + np.arange(300)[:, None] for source in both]  # a constant an image tells nothing
    np.testing.assert_allclose(fit_joined(shifted, labels).probabilities(shifted), plain, atol=1e-4)


def test_the_gradient_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.optimize import approx_fprime

    from gcpl_lab.fast import joined

    seen = []
    minimise = joined.minimize

    def spy(objective, start, **settings):  # type: ignore[no-untyped-def]
        point = start + np.linspace(0.1, 0.5, len(start))
        numeric = approx_fprime(point, lambda values: objective(values)[0], 1e-6)
        np.testing.assert_allclose(objective(point)[1], numeric, atol=1e-5)
        seen.append(1)
        return minimise(objective, start, **settings)

    monkeypatch.setattr(joined, "minimize", spy)
    both = sources(30)
    fit_joined(both, drawn(both[0], 1), penalty=0.3)
    assert seen == [1]


def test_bands_by_hand() -> None:
    errors = np.arange(8.0).reshape(1, 2, 4)  # class 0: 0 1 2 3, class 1: 4 5 6 7
    low, high = band_sources(errors, np.array([900, 10, 20, 800]), 2)
    np.testing.assert_allclose(low, [[-1.5, -5.5]])
    np.testing.assert_allclose(high, [[-1.5, -5.5]])
    (plain,) = band_sources(errors, np.array([900, 10, 20, 800]), 1)
    np.testing.assert_allclose(plain, -errors.mean(2))
    with pytest.raises(ValueError, match="num_bands is 5; expected 1 to 4"):
        band_sources(errors, np.arange(4), 5)


@pytest.mark.parametrize(("telling", "expected"), [(slice(0, 8), 1), (slice(6, 8), 4)])
def test_bands_are_parted_only_where_it_pays(telling: slice, expected: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    errors = rng.normal(0, 1, (400, 4, 8))
    errors[np.arange(400), labels, telling] -= 1.0
    bands, found = fit_bands(errors, np.arange(8), labels)
    if expected == 1:
        assert bands == 1
    else:
        assert bands >= expected
        assert found.weights[-1] > 3 * found.weights[0]


def test_other_sources_stand_behind_the_bands() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    errors = rng.normal(0, 1, (200, 4, 4))
    other = log_softmax(3 * np.eye(4)[labels] + rng.normal(0, 1, (200, 4)), axis=1)
    bands, found = fit_bands(errors, np.arange(4), labels, others=[other])
    assert len(found.weights) == bands + 1
    assert found.weights[-1] > 0.5
    assert np.isfinite(found.held_out_loss)


def test_log_sum_exp_equals_scipy() -> None:
    values = np.random.default_rng(0).normal(0, 300, (3, 5, 7))
    np.testing.assert_allclose(log_sum_exp(values), logsumexp(values, axis=-1))


def test_one_image_a_class_cannot_be_validated() -> None:
    one = np.eye(3) + 0.1
    found = fit_joined([one], np.arange(3))
    assert found.penalty == 10.0
    assert np.isnan(found.held_out_loss)
    assert found.probabilities([one]).argmax(1).tolist() == [0, 1, 2]


def test_bad_sources_are_named() -> None:
    one, labels = np.zeros((4, 3)), np.array([0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"shapes \[\(4, 2\), \(4, 3\)\]; expected one"):
        fit_joined([one, one[:, :2]], labels)
    with pytest.raises(ValueError, match="4 images and there are 3 labels"):
        fit_joined([one], labels[:3])
    one[2, 1] = np.nan
    with pytest.raises(ValueError, match="source 0 is not finite for image 2 and class 1"):
        fit_joined([one], labels)
