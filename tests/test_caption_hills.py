"""What captions pull: followed over epochs with the control beside, and hills with the margins of the loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from gcpl_lab.data.multilabel import split_validation
from gcpl_lab.data.samples import load_wardrobe
from gcpl_lab.experiments.captions import (
    HELD_OUT,
    WAYS,
    caption_columns,
    choose_pairs,
    epochs_of,
    follow_captions,
    keep_captions,
    load_captions,
)
from gcpl_lab.experiments.figures import save_caption_hills
from gcpl_lab.experiments.multilabel import MultiLabelExperiment
from gcpl_lab.lmpt.losses import class_aware_margins
from gcpl_lab.views.hills import CaptionDistances, caption_hills


@pytest.fixture(scope="module")
def experiment(random_pair: Any) -> MultiLabelExperiment:
    scenes = load_wardrobe("train")
    some = {int(place) for label in scenes.targets.T for place in np.flatnonzero(label)[:6]} | set(range(0, 520, 6))
    train = scenes.subset(sorted(some))
    test = load_wardrobe("test").subset(np.arange(0, 520, 10))
    return MultiLabelExperiment(train, test, clip=random_pair.clip, settings={"num_epochs": 3, "flip": False})


@pytest.fixture(scope="module")
def found(experiment: MultiLabelExperiment) -> dict[str, np.ndarray]:
    return follow_captions(experiment, 0)


def test_every_way_starts_from_the_same_prompts_and_is_kept_at_some_epochs(found: dict[str, np.ndarray]) -> None:
    assert epochs_of(found) == [0, 1, 2, 3]
    for way in WAYS:
        np.testing.assert_array_equal(found[f"{way}/0"], found["LMPT/0"])
        assert not np.array_equal(found[f"{way}/3"], found["LMPT/0"])
        value, low, high = found[f"{way}/map"]
        assert 0 <= low <= value <= high <= 1
    assert not np.array_equal(found["LMPT/3"], found["LMPT, shuffled captions/3"])  # captions are heard
    assert len(found["captions"]) == len(found["targets"])


def test_columns_hold_the_distances_and_the_loss_s_margins(
    experiment: MultiLabelExperiment, found: dict[str, np.ndarray], tmp_path: Path
) -> None:
    names, pairs = experiment.train.class_names, choose_pairs(found)
    assert pairs
    columns, scores = caption_columns(found, names, pairs)
    assert list(columns) == list(WAYS)
    pair = pairs[0]
    first = next(iter(columns["LMPT"].values()))
    distances = 1 - found["captions"] @ found["LMPT/0"][pair.label]
    mine = found["targets"][:, pair.label] == 1
    np.testing.assert_array_equal(first.present, distances[mine])
    assert len(first.absent) == int((~mine & (found["targets"][:, pair.rival] == 1)).sum())
    learned, _ = split_validation(experiment.train.targets, HELD_OUT, 0)
    margins = class_aware_margins(experiment.train.targets[learned].sum(axis=0), experiment.config.margin)
    assert first.margin == pytest.approx(float(margins[pair.label]))
    assert all(text.startswith("tail mAP") for text in scores.values())
    figure = caption_hills(columns, scores)
    assert [ax.get_title(loc="center").replace("\n", " ") for ax in figure.axes] == list(WAYS)
    (shown,) = save_caption_hills(found, names, tmp_path)
    assert Path(shown.png_path).is_file()
    assert save_caption_hills({}, names, tmp_path) == []
    keep_captions(tmp_path / "a.safetensors", found, names)
    kept, called = load_captions(tmp_path / "a.safetensors")
    assert called == list(names)
    assert {name: values.tolist() for name, values in kept.items()} == {n: v.tolist() for n, v in found.items()}
    assert load_captions(tmp_path / "none") == ({}, [])


def test_the_auc_beside_a_ridge_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    present, absent = rng.uniform(0.1, 0.6, 20), rng.uniform(0.4, 1, 15)
    figure = caption_hills({"LMPT": {"tail": CaptionDistances(present, absent, 0.3)}})
    auc = roc_auc_score(np.repeat([1, 0], (15, 20)), np.concatenate([absent, present]))
    assert any(text.get_text().startswith(f"AUC {auc:.2f}\n") for text in figure.axes[0].texts)
    assert any(line.get_xdata()[0] == 0.3 for line in figure.axes[0].lines if len(line.get_xdata()) == 2)
