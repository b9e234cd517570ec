"""The fast classifier: exact shortcuts change nothing, statistical ones are learned, counted and can be turned off."""

from typing import Any

import numpy as np
import pytest
import torch

from gcpl_lab.errors import DataError
from gcpl_lab.fast.fast_classifier import FastClassifier, Shortcuts
from gcpl_lab.gcpl.classifier import DiffusionClassifier

NUM_CLASSES = 6


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def known(known_diffusion: Any) -> Any:
    return known_diffusion()


def pictures_of(clean: torch.Tensor, num: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Noisy copies of the classes' clean latents, and their labels."""
    labels = np.arange(num) % len(clean)
    return clean[torch.from_numpy(labels)] + 0.9 * randn(num, *clean.shape[1:], seed=seed), labels


def fast_on(known: Any, **settings: Any) -> tuple[FastClassifier, torch.Tensor]:
    clean = randn(NUM_CLASSES, 2, 4, 4)
    return FastClassifier(known, clean.flatten(1)[:, None], pool_size=6, **settings), clean


@pytest.mark.parametrize("run", ["exact", "staged"])
@pytest.mark.parametrize("shortcuts", [Shortcuts(), Shortcuts.none(share_prefix=True), Shortcuts.none(cache_keys=True)])
def test_exact_shortcuts_change_no_result(diffusion: Any, run: str, shortcuts: Shortcuts) -> None:
    hidden, latents = diffusion.encode_texts(["coat", "bag", "shirt", "dress"]), randn(3, 4, 8, 8)
    arguments = (5,) if run == "exact" else ((2, 1), (2, 5))
    plain = getattr(DiffusionClassifier(diffusion, hidden, batch_size=7), run)(latents, *arguments)
    fast = getattr(FastClassifier(diffusion, hidden, shortcuts=shortcuts, batch_size=7), run)(latents, *arguments)
    np.testing.assert_allclose(fast.errors, plain.errors, rtol=1e-5, atol=1e-6)
    assert fast.num_evaluations == plain.num_evaluations
    assert fast.timesteps.tolist() == plain.timesteps.tolist()


def test_no_shortcut_is_the_plain_classifier(diffusion: Any) -> None:
    hidden, latents = diffusion.encode_texts(["coat", "bag"]), randn(2, 4, 8, 8)
    plain = DiffusionClassifier(diffusion, hidden).exact(latents, 3).errors
    assert np.array_equal(FastClassifier(diffusion, hidden, shortcuts=Shortcuts.none()).exact(latents, 3).errors, plain)


def test_calibrated_classification_is_right_and_cheaper(known: Any) -> None:
    fast, clean = fast_on(known)
    fast.calibrate(*pictures_of(clean, 36, 1))
    assert fast.calibration_evaluations_ == 36 * NUM_CLASSES * 6
    latents, labels = pictures_of(clean, 24, 2)
    before = known.num_denoiser_evaluations
    found = fast.classify(latents)
    assert (found.logits.argmax(1) == labels).mean() > 0.9
    assert found.num_evaluations == known.num_denoiser_evaluations - before == (~np.isnan(found.errors)).sum()
    assert found.num_evaluations <= 24 * NUM_CLASSES * len(fast.plan_.samples)
    assert found.equivalent_evaluations == found.num_evaluations  # this denoiser shares nothing
    np.testing.assert_allclose(found.probabilities().sum(1), 1)
    assert found.errors.shape == (24, NUM_CLASSES, len(found.timesteps))


def test_what_is_evaluated_equals_the_plain_errors(known: Any) -> None:
    fast, clean = fast_on(known)
    fast.calibrate(*pictures_of(clean, 36, 1))
    latents, _ = pictures_of(clean, 8, 2)
    found, pool = fast.classify(latents), fast.exact(latents, 6)
    assert found.timesteps.tolist() == pool.timesteps[fast.plan_.samples].tolist()
    seen = ~np.isnan(found.errors)
    np.testing.assert_allclose(found.errors[seen], pool.errors[:, :, fast.plan_.samples][seen], rtol=1e-5)


def test_one_by_one_equals_all_together(diffusion: Any) -> None:
    hidden, latents = diffusion.encode_texts(["coat", "bag", "shirt", "dress"]), randn(12, 4, 8, 8)
    fast = FastClassifier(diffusion, hidden, pool_size=4).calibrate(latents, np.arange(12) % 4)
    together = fast.classify(latents[:4])
    alone = [fast.classify(latents[i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(np.concatenate([one.logits for one in alone]), together.logits, rtol=1e-3, atol=1e-3)
    assert sum(one.num_evaluations for one in alone) == together.num_evaluations
    assert together.equivalent_evaluations < together.num_evaluations
    assert sum(one.equivalent_evaluations for one in alone) == pytest.approx(together.equivalent_evaluations)


def test_the_shortlist_of_clip_saves(known: Any) -> None:
    scores = []
    for labels, seed in ((np.arange(36) % NUM_CLASSES, 3), (np.arange(24) % NUM_CLASSES, 4)):
        logits = np.random.default_rng(seed).normal(0, 0.5, (len(labels), NUM_CLASSES))
        # One of two classes, CLIP cannot say which.
        logits[np.arange(len(labels)), labels] += 6
        logits[np.arange(len(labels)), (labels + 1) % NUM_CLASSES] += 6
        scores.append(logits)
    spent = {}
    for on in (True, False):
        fast, clean = fast_on(known, shortcuts=Shortcuts(shortlist=on, stopping="none", coverage=1.0))
        fast.calibrate(*pictures_of(clean, 36, 1), clip_scores=scores[0])
        latents, labels = pictures_of(clean, 24, 2)
        found = fast.classify(latents, clip_scores=scores[1])
        assert (found.logits.argmax(1) == labels).mean() > 0.9
        spent[on] = found.num_evaluations / len(fast.plan_.samples)
    assert spent[False] == 24 * NUM_CLASSES
    assert spent[True] < 24 * 3


def test_the_tree_is_built_from_the_prompts(known: Any) -> None:
    fast, clean = fast_on(known, shortcuts=Shortcuts(class_tree=True, tree_steps=1))
    fast.calibrate(*pictures_of(clean, 36, 1))
    assert fast.plan_.tree is not None
    assert fast.plan_.tree.branches.max() + 1 == 3  # the square root of six, rounded up
    assert fast.classify(pictures_of(clean, 6, 2)[0]).logits.shape == (6, NUM_CLASSES)


def test_probes_look_first_and_are_counted(known: Any) -> None:
    """Twenty classes between two latents: the errors under a few foretell all others."""
    clean = torch.linspace(-2, 2, 20)[:, None, None, None] * randn(1, 2, 4, 4)
    spent = {}
    for on in (True, False):
        fast = FastClassifier(known, clean.flatten(1)[:, None], pool_size=4, shortcuts=Shortcuts(probes=on))
        fast.calibrate(*pictures_of(clean, 120, 1))
        assert (fast.plan_.probes is not None) is on
        latents, _ = pictures_of(clean, 40, 2)
        before = known.num_denoiser_evaluations
        found = fast.classify(latents)
        assert found.num_evaluations == known.num_denoiser_evaluations - before == (~np.isnan(found.errors)).sum()
        spent[on] = found.num_evaluations
        if on:
            assert fast.plan_.probes is not None
            assert not np.isnan(found.errors[:, fast.plan_.probes.classes, 0]).any()
    assert spent[True] < spent[False]


def test_antithetic_noises_are_pairs_at_one_timestep(known: Any) -> None:
    fast, _ = fast_on(known, shortcuts=Shortcuts(noise="antithetic"))
    noises = fast._noises(5)
    assert torch.equal(noises[0], -noises[1])
    assert torch.equal(noises[2], -noises[3])
    assert len(noises) == 5
    assert fast._timesteps(5).tolist() == [166, 166, 500, 500, 833]


def test_stratified_noises_are_normal_and_spread_evenly(known: Any) -> None:
    noises = fast_on(known, shortcuts=Shortcuts(noise="stratified"))[0]._noises(64).flatten(1)
    assert noises.shape == (64, 32)
    assert abs(float(noises.std()) - 1) < 0.05
    # Each coordinate has one value in each 64th of the distribution, so its mean is far closer to 0 than 1/8.
    assert float(noises.mean(0).abs().max()) < 0.03
    places = (torch.special.ndtr(noises.double()) * 64).floor().long()
    assert all(sorted(column.tolist()) == list(range(64)) for column in places.T)


@pytest.mark.parametrize("noise", ["independent", "antithetic", "stratified"])
def test_noises_repeat_with_the_seed(known: Any, noise: Any) -> None:
    def noises(seed: int) -> torch.Tensor:
        return fast_on(known, shortcuts=Shortcuts(noise=noise), seed=seed)[0]._noises(6)

    assert torch.equal(noises(1), noises(1))
    assert not torch.equal(noises(1), noises(2))


def test_it_says_what_is_missing(known: Any) -> None:
    fast, clean = fast_on(known)
    latents, labels = pictures_of(clean, 12, 1)
    with pytest.raises(DataError, match="not calibrated; call calibrate"):
        fast.classify(latents)
    with pytest.raises(DataError, match="12 latents and 11 labels"):
        fast.calibrate(latents, labels[:-1])
    with pytest.raises(DataError, match=r"shape \(12, 5\); expected \(12, 6\)"):
        fast.calibrate(latents, labels, clip_scores=np.zeros((12, 5)))


def test_unknown_shortcuts_are_refused() -> None:
    with pytest.raises(ValueError, match="noise is 'odd'; expected one of independent"):
        Shortcuts(noise="odd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stopping is 'now'"):
        Shortcuts(stopping="now")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pool_size is 0"):
        FastClassifier(None, torch.zeros(2, 1, 4), pool_size=0)  # type: ignore[arg-type]
