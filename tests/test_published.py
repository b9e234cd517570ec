"""Published sets through torchvision's own classes, on small copies of their folders; the textile package."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.published import PUBLISHED, TEXTILE_FOLDER, TEXTILE_PACKAGE, load_published
from gcpl_lab.errors import DataError


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), value % 256, np.uint8)).save(path)


def make_pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        rows = []
        for label, name in enumerate(("Abyssinian", "great_pyrenees"), start=1):
            for number in numbers:
                picture(base / "images" / f"{name}_{number}.jpg", number)
                rows.append(f"{name}_{number} {label} {label} 1")
        (base / "annotations").mkdir(exist_ok=True)
        (base / "annotations" / f"{split}.txt").write_text("\n".join(rows) + "\n")


def make_aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        rows = [f"{number}{index} {name}" for index, name in enumerate(("707-320", "Cessna 172")) for number in numbers]
        for row in rows:
            picture(data / "images" / f"{row.split()[0]}.jpg")
        (data / f"images_variant_{split}.txt").write_text("\n".join(rows) + "\n")
    (data / "variants.txt").write_text("707-320\nCessna 172\n")


def make_food(root: Path) -> None:
    base = root / "food-101"
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        names = {name: [f"{name}/{number}" for number in numbers] for name in ("apple_pie", "waffles")}
        for rows in names.values():
            for row in rows:
                picture(base / "images" / f"{row}.jpg")
        (base / "meta").mkdir(exist_ok=True)
        (base / "meta" / f"{split}.json").write_text(json.dumps(names))


def make_dtd(root: Path) -> None:
    base = root / "dtd" / "dtd"
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        rows = [f"{name}/{name}_{number}.jpg" for name in ("banded", "woven") for number in numbers]
        for row in rows:
            picture(base / "images" / row)
        (base / "labels").mkdir(exist_ok=True)
        (base / "labels" / f"{split}1.txt").write_text("\n".join(rows) + "\n")


def make_flowers(root: Path) -> None:
    from scipy.io import savemat

    base = root / "flowers-102"
    for number in range(1, 7):
        picture(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 2])})
    savemat(base / "setid.mat", {"trnid": np.array([1, 2, 3, 4]), "valid": np.array([]), "tstid": np.array([5, 6])})


@pytest.mark.parametrize(
    ("name", "make", "names"),
    [
        ("oxford_iiit_pet", make_pets, ("Abyssinian", "Great Pyrenees")),
        ("fgvc_aircraft", make_aircraft, ("707-320", "Cessna 172")),
        ("food101", make_food, ("apple pie", "waffles")),
        ("dtd", make_dtd, ("banded", "woven")),
        ("flowers102", make_flowers, ("pink primrose", "hard-leaved pocket orchid")),
    ],
)
def test_torchvision_sets(
    name: str, make: Any, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision reads small copies in its own layout; the checks of Flowers102's label files are put aside."""
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    make(tmp_path)
    train, test = load_published(name, tmp_path), load_published(name, tmp_path, "test")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]
    assert train.class_names[:2] == names
    assert not set(train.images) & set(test.images)
    assert train.checksum != test.checksum
    assert all(path.is_file() for path in (*train.images, *test.images))


def test_sets_without_a_split_are_parted_once(tmp_path: Path) -> None:
    for label, name in enumerate(("AnnualCrop", "River")):
        for number in range(6):
            picture(tmp_path / "eurosat" / "2750" / name / f"{name}_{number}.jpg", 10 * label + number)
    train, test = load_published("eurosat", tmp_path), load_published("eurosat", tmp_path, "test")
    assert train.labels.tolist() == test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert not set(train.images) & set(test.images)
    again = load_published("eurosat", tmp_path)
    assert (again.images, again.checksum) == (train.images, train.checksum)


def test_every_published_set_is_one_of_torchvisions() -> None:
    from torchvision import datasets

    for name, found in PUBLISHED.items():
        assert name == "textile" or hasattr(datasets, found.dataset)
        assert found.source.startswith("https://")


def test_absent_pictures_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dtd: cannot be read below .*load_published\('dtd', .*download=True\)"):
        load_published("dtd", tmp_path)
    make_dtd(tmp_path)
    (tmp_path / "dtd" / "dtd" / "images" / "woven" / "woven_2.jpg").unlink()
    with pytest.raises(DataError, match=r"dtd/train: 1 of 4 listed pictures are not there, such as .*woven_2.jpg"):
        load_published("dtd", tmp_path)


def test_unknown_names_and_splits_are_refused() -> None:
    with pytest.raises(DataError, match=r"'cars' is no published set; expected one of flowers102, .*, textile"):
        load_published("cars")
    with pytest.raises(DataError, match="split is 'val'; expected 'train' or 'test'"):
        load_published("dtd", split="val")


# ----------------------------------------------------------------------------------------------- textile


@pytest.fixture
def textile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the same name and layout, with twelve pictures a class: stripes, with a spot or a shade."""
    rng = np.random.default_rng(0)
    folder = tmp_path / TEXTILE_PACKAGE
    for label, name in enumerate(("global", "local", "nominal")):
        for number in range(12):
            image = np.tile(np.uint8(90 + 60 * (np.arange(64) // 4 % 2)), (64, 1)) + rng.integers(
                0, 30, (64, 64), np.uint8
            )
            if name == "global":
                image = image // 2
            if name == "local":
                image[20:36, 20:36] = 255
            path = folder / TEXTILE_FOLDER / name / f"textile_{number + 12 * label:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    (folder / "__init__.py").write_text("raise AssertionError('the package need not be run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, TEXTILE_PACKAGE, raising=False)
    return folder


def test_without_the_package_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(DataError, match="install it with: pip install conformal-clip-data"):
        load_published("textile")


def test_textile_from_eight_photographs_a_class_end_to_end(textile: Path, random_pair: Any) -> None:
    from gcpl_lab.gcpl.estimator import GCPLClassifier

    pool, test = load_published("textile"), load_published("textile", split="test")
    assert pool.class_names == ("global", "local", "nominal")
    assert np.bincount(pool.labels).tolist() == np.bincount(test.labels).tolist() == [6, 6, 6]
    chosen = pool.subset(draw_episode(pool, 6, 0))
    model = GCPLClassifier(diffusion=random_pair.diffusion, num_steps=2, batch_size=3, num_evidence=2)
    model.fit(chosen.images, chosen.labels, chosen.class_names)
    assert 0 <= model.score(test.images, test.labels) <= 1


@pytest.mark.slow
def test_the_real_textile_package() -> None:
    """With the package installed: its counts, and a class of every kind among eight exemplars."""
    pytest.importorskip(TEXTILE_PACKAGE, reason="pip install conformal-clip-data")
    pool, test = load_published("textile"), load_published("textile", split="test")
    counts = np.bincount(pool.labels) + np.bincount(test.labels)
    assert dict(zip(pool.class_names, counts.tolist(), strict=True)) == {"global": 500, "local": 500, "nominal": 1000}
    assert len(draw_episode(pool, 8, 0)) == 24
