"""Sets of images: what fits together, and parts of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gcpl_lab.data.sets import ImageSet, MultiLabelSet, check_class_names
from gcpl_lab.errors import DataError


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("shirt", ""), ("class name 1", "''")),
        (("  \t", "shirt"), ("class name 0", "visible")),
        (("shirt", "coat", "shirt"), ("class name 2", "'shirt'", "class name 0")),
        (("red  coat", "red coat"), ("class name 1", "'red coat'")),
        (("shirt", 3), ("class name 1", "int")),
    ],
)
def test_bad_class_names(names: tuple, words: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=".*".join(words)):
        check_class_names(names)
    check_class_names(["長袖のシャツ", "半袖のシャツ", "very " * 300 + "long", "A", "a"])


def small_set(**changes) -> ImageSet:
    values = {
        "name": "small",
        "images": tuple(Path(f"{index}.png") for index in range(4)),
        "labels": np.array([0, 0, 1, 2]),
        "class_names": ("shirt", "coat", "boot"),
        "checksum": "0" * 64,
        "families": {"tops": ("coat", "shirt"), "footwear": ("boot",)},
    }
    return ImageSet(**(values | changes))


def test_subset() -> None:
    whole = small_set()
    assert whole.family_ids.tolist() == [0, 0, 1]
    part = whole.subset([3, 0])
    assert part.images == (Path("3.png"), Path("0.png"))
    assert part.labels.tolist() == [2, 0]
    assert (part.class_names, part.families) == (whole.class_names, whole.families)
    assert len({whole.checksum, part.checksum, whole.subset([0, 3]).checksum}) == 3
    assert whole.subset(np.array([3, 0])).checksum == part.checksum
    assert len(whole.subset([])) == 0


def test_only_some_classes() -> None:
    whole = small_set()
    part = whole.only(["boot", "shirt"])
    assert [path.name for path in part.images] == ["0.png", "1.png", "3.png"]
    assert part.labels.tolist() == [1, 1, 0]
    assert part.class_names == ("boot", "shirt")
    assert part.families == {"tops": ("shirt",), "footwear": ("boot",)}
    assert len({whole.checksum, part.checksum, whole.only(["shirt", "boot"]).checksum}) == 3


def several_labels(targets, captions: tuple[str | None, ...], **more) -> MultiLabelSet:
    images = tuple(Path(f"{index}.png") for index in range(len(captions)))
    return MultiLabelSet("x", images, np.asarray(targets), ("a", "b"), captions, "0", **more)


def test_a_subset_keeps_targets_captions_and_origins() -> None:
    data = several_labels([[1, 0], [0, 1], [1, 1]], ("a", None, "both"), origins=("l1", "l2", "l3"))
    assert data.class_counts().tolist() == [2, 2]
    part = data.subset([2, 0])
    assert (part.captions, part.origins) == (("both", "a"), ("l3", "l1"))
    assert part.images == (data.images[2], data.images[0])
    assert part.targets.tolist() == [[1, 1], [1, 0]]
    assert part.checksum != data.checksum


FAMILIES = {"tops": ("coat", "shirt")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small_set(labels=np.array([0, 1])), r"shape \(2,\) and there are 4 images"),
        (lambda: small_set(labels=np.array([0, 0, 1, 3])), "label 3 is 3"),
        (lambda: small_set(labels=np.array([0, 0, -1, 2])), "label 2 is -1"),
        (lambda: small_set(labels=np.array([0, 0, 1, 1.5])), "float64"),
        (lambda: small_set(class_names=("shirt", "coat", "coat")), "class name 2"),
        (lambda: small_set(families=FAMILIES), "every class exactly once"),
        (lambda: small_set().only(["shirt", "hat"]), "no class 'hat'; expected some of shirt, coat, boot"),
        (lambda: several_labels([[1, 2]], (None,)), "target of image 0, class 1 is 2; expected 0 or 1"),
        (lambda: several_labels(np.ones((1, 3)), (None,)), r"targets have shape \(1, 3\); expected \(1, 2\)"),
        (lambda: several_labels(np.ones(2), (None,)), r"have shape \(2,\); expected \(images, classes\)"),
        (lambda: replace(several_labels([[1, 0]], (None,)), captions=("a", "b")), "2 captions for 1 images"),
    ],
)
def test_what_does_not_fit_together_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


@pytest.mark.parametrize(
    ("indices", "word"), [([4], "index 4"), ([-1], "index -1"), ([0.5], "float"), ([True], "flatnonzero")]
)
def test_bad_subsets(indices: list, word: str) -> None:
    for whole in (small_set(), several_labels(np.ones((3, 2)), (None, None, None))):
        with pytest.raises(DataError, match=word):
            whole.subset(indices)
