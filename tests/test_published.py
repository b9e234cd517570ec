"""Published sets through torchvision's own classes, on small copies of their folders; the textile package."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.episodes import draw_episode
from gcpl_lab.data.published import TEXTILE_FOLDER, TEXTILE_PACKAGE, load_published
from gcpl_lab.errors import DataError

LISTED = {  # two classes each: names, training split, list of the images, its line, an image
    "oxford_iiit_pet": (
        *(("Abyssinian", "great_pyrenees"), "trainval", "oxford-iiit-pet/annotations/{split}.txt"),
        *("{name}_{n} {label} {label} 1", "oxford-iiit-pet/images/{name}_{n}.jpg"),
    ),
    "fgvc_aircraft": (
        *(("707-320", "Cessna 172"), "trainval", "fgvc-aircraft-2013b/data/images_variant_{split}.txt"),
        *("{n}{label} {name}", "fgvc-aircraft-2013b/data/images/{n}{label}.jpg"),
    ),
    "dtd": (
        *(("banded", "woven"), "train", "dtd/dtd/labels/{split}1.txt"),
        *("{name}/{name}_{n}.jpg", "dtd/dtd/images/{name}/{name}_{n}.jpg"),
    ),
}


def save(path: Path, content: str = "") -> None:
    """A text, or a black image where none is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content) if content else Image.new("L", (16, 16)).save(path)


def make_listed(root: Path, key: str) -> None:
    """A small copy with images 1 and 2 for training and image 3 for testing."""
    names, train, listing, line, image = LISTED[key]
    for split, numbers in ((train, (1, 2)), ("test", (3,))):
        rows = [{"name": name, "label": label, "n": n} for label, name in enumerate(names, start=1) for n in numbers]
        save(root / listing.format(split=split), "".join(line.format(**row) + "\n" for row in rows))
        for row in rows:
            save(root / image.format(**row))
    save(root / "fgvc-aircraft-2013b/data/variants.txt", "\n".join(names) + "\n")


def make_food(root: Path, _key: str) -> None:
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        names = {name: [f"{name}/{n}" for n in numbers] for name in ("apple_pie", "waffles")}
        save(root / f"food-101/meta/{split}.json", json.dumps(names))
        for row in (*names["apple_pie"], *names["waffles"]):
            save(root / f"food-101/images/{row}.jpg")


def make_flowers(root: Path, _key: str) -> None:
    from scipy.io import savemat

    base = root / "flowers-102"
    for number in range(1, 7):
        save(base / f"jpg/image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([1, 2, 1, 2, 1, 2])})
    savemat(base / "setid.mat", {"trnid": np.array([1, 2, 3, 4]), "valid": np.array([]), "tstid": np.array([5, 6])})


@pytest.mark.parametrize(
    ("name", "make", "names"),
    [
        ("oxford_iiit_pet", make_listed, ("Abyssinian", "Great Pyrenees")),
        ("fgvc_aircraft", make_listed, ("707-320", "Cessna 172")),
        ("food101", make_food, ("apple pie", "waffles")),
        ("dtd", make_listed, ("banded", "woven")),
        ("flowers102", make_flowers, ("pink primrose", "hard-leaved pocket orchid")),
    ],
)
def test_torchvision_sets(
    name: str,
    make: Callable[[Path, str], None],
    names: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchvision reads small copies in its own layout; the checks of Flowers102's label files are put aside."""
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    make(tmp_path, name)
    train, test = load_published(name, tmp_path), load_published(name, tmp_path, "test")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 1, 1], [0, 1])
    assert train.class_names[:2] == names
    assert not set(train.images) & set(test.images)
    assert train.checksum != test.checksum
    assert all(path.is_file() for path in (*train.images, *test.images))


def test_sets_without_a_split_are_parted_once(tmp_path: Path) -> None:
    for name in ("AnnualCrop", "River"):
        for number in range(6):
            save(tmp_path / f"eurosat/2750/{name}/{name}_{number}.jpg")
    train, test = load_published("eurosat", tmp_path), load_published("eurosat", tmp_path, "test")
    assert train.labels.tolist() == test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert not set(train.images) & set(test.images)
    again = load_published("eurosat", tmp_path)
    assert (again.images, again.checksum) == (train.images, train.checksum)


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"dtd: cannot be read below .*load_published\('dtd', .*download=True\)"):
        load_published("dtd", tmp_path)
    make_listed(tmp_path, "dtd")
    (tmp_path / "dtd/dtd/images/woven/woven_2.jpg").unlink()
    with pytest.raises(DataError, match=r"dtd/train: 1 of 4 listed images are not there, such as .*woven_2.jpg"):
        load_published("dtd", tmp_path)
    with pytest.raises(DataError, match=r"'cars' is no published set; expected one of flowers102, .*, textile"):
        load_published("cars")
    with pytest.raises(DataError, match="split is 'val'; expected 'train' or 'test'"):
        load_published("dtd", split="val")  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(DataError, match="install it with: pip install conformal-clip-data"):
        load_published("textile")


def test_textile_images_are_found_in_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a package of the same name and layout."""
    for label, name in enumerate(("global", "local", "nominal")):
        for number in range(12 * label, 12 * label + 12):
            save(tmp_path / TEXTILE_PACKAGE / TEXTILE_FOLDER / name / f"textile_{number:04d}.jpg")
    save(tmp_path / TEXTILE_PACKAGE / "__init__.py", "raise AssertionError('the package need not be run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, TEXTILE_PACKAGE, raising=False)
    pool, test = load_published("textile"), load_published("textile", split="test")
    assert pool.class_names == ("global", "local", "nominal")
    assert np.bincount(pool.labels).tolist() == np.bincount(test.labels).tolist() == [6, 6, 6]
    assert not set(pool.images) & set(test.images)


@pytest.mark.slow
def test_the_real_textile_package() -> None:
    """With the package installed: its counts, and a class of every kind among eight exemplars."""
    pytest.importorskip(TEXTILE_PACKAGE, reason="pip install conformal-clip-data")
    pool, test = load_published("textile"), load_published("textile", split="test")
    counts = np.bincount(pool.labels) + np.bincount(test.labels)
    assert dict(zip(pool.class_names, counts.tolist(), strict=True)) == {"global": 500, "local": 500, "nominal": 1000}
    assert len(draw_episode(pool, 8, 0)) == 24
