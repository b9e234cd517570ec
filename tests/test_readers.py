"""Pictures and class folders: what can be used is read rightly, everything else is refused by name."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.readers import ImageSet, check_class_names, read_class_folders, read_image, read_images
from gcpl_lab.errors import DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def gradient(height: int = 12, width: int = 16) -> np.ndarray:
    return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def refuses(path_or_array, *words: str, name: str | None = None) -> None:
    """The one error that may come, holding each of ``words``."""
    with pytest.raises(DataError) as caught:
        read_image(path_or_array, name)
    for word in words:
        assert word in str(caught.value)


# ---------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("shape", [(12, 16), (12, 16, 1), (12, 16, 3)])
def test_arrays_keep_their_values(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = read_image(array)
    assert image.mode == "RGB"
    assert image.size == (16, 12)
    np.testing.assert_array_equal(np.asarray(image), np.broadcast_to(array.reshape(12, 16, -1), (12, 16, 3)))


def test_transparent_parts_become_white() -> None:
    array = np.zeros((8, 8, 4), np.uint8)
    array[:, :4] = (*RED, 255)
    array[:, 6] = (0, 0, 0, 128)
    values = np.asarray(read_image(array))
    assert tuple(values[0, 0]) == RED
    assert tuple(values[0, 5]) == (255, 255, 255)
    assert tuple(values[0, 6]) == (127, 127, 127)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8), np.float32), ("float32", "uint8")),
        (np.zeros((8, 8), bool), ("bool", "uint8")),
        (np.zeros((8, 8, 2), np.uint8), ("(8, 8, 2)", "(height, width, 3)")),
        (np.zeros(8, np.uint8), ("(8,)",)),
        (np.zeros((0, 8), np.uint8), ("(0, 8)",)),
        (np.zeros((1, 1), np.uint8), ("1 x 1 px", "8 px")),
    ],
)
def test_bad_arrays(array: np.ndarray, words: tuple[str, ...]) -> None:
    refuses(array, "exemplar 3", *words, name="exemplar 3")


def test_other_types() -> None:
    refuses(17, "int", "expected a path")


# ---------------------------------------------------------------------------------------------- files


def test_grey_and_palette_files(tmp_path: Path) -> None:
    grey = Image.fromarray(gradient())
    grey.save(tmp_path / "grey.png")
    grey.convert("P").save(tmp_path / "palette.png")
    grey.convert("LA").save(tmp_path / "grey_alpha.png")
    expected = np.repeat(gradient()[:, :, None], 3, axis=2)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(np.asarray(read_image(path)), expected, err_msg=path.name)


def test_transparent_colour_of_a_palette_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (0, 0, 4, 8))
    image.save(tmp_path / "palette.png", transparency=0)
    values = np.asarray(read_image(tmp_path / "palette.png"))
    assert tuple(values[0, 0]) == GREEN
    assert tuple(values[0, 7]) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.zeros((8, 8), np.uint16)
    values[:, 1:5] = (257, 32896, 65535, 128)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    assert np.asarray(read_image(path))[0, :5, 0].tolist() == [0, 1, 128, 255, 0]


def test_grey_beyond_16_bit_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "int.tif")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tif")
    refuses(tmp_path / "int.tif", "int.tif", "70000", "65535")
    refuses(tmp_path / "float.tif", "float.tif", "floating-point")


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    red, green, blue = np.asarray(read_image(tmp_path / "print.jpg"))[8, 8].tolist()
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(("orientation", "red_at"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_rotation_is_applied(tmp_path: Path, suffix: str, orientation: int, red_at: tuple[int, int]) -> None:
    image = Image.new("RGB", (64, 32), BLUE)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    image.save(path, exif=exif)
    upright = read_image(path)
    assert upright.size == ((32, 64) if orientation in (6, 8) else (64, 32))
    assert np.asarray(upright)[red_at][0] > 200
    assert 0x0112 not in upright.getexif()  # applied once, and not a second time by the next reader


def test_pil_pictures_stay_as_they_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (5000, 16), RED).save(tmp_path / "long.jpg", exif=exif)
    with Image.open(tmp_path / "long.jpg") as image:
        result = read_image(image)
        assert image.size == (5000, 16)
    assert result.height == 2048
    result.putpixel((0, 0), GREEN)
    assert image.getpixel((0, 0)) != GREEN


def test_animated_files_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((16, 16), value, np.uint8)) for value in (0, 90, 200)]
    for suffix in ("gif", "webp", "png", "tif"):
        path = tmp_path / f"moving.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        refuses(path, f"moving.{suffix}", "3 frames")
    frames[0].save(tmp_path / "still.gif")
    assert read_image(tmp_path / "still.gif").size == (16, 16)


def test_the_photograph_of_a_camera_file_with_a_preview(tmp_path: Path) -> None:
    preview = Image.new("RGB", (16, 16), GREEN)
    path = tmp_path / "camera.jpg"
    Image.new("RGB", (64, 64), RED).save(path, format="MPO", save_all=True, append_images=[preview])
    image = read_image(path)
    assert image.size == (64, 64)
    assert image.getpixel((5, 5))[0] > 200


def test_unusable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "tif", "webp", "bmp"):
        path = tmp_path / f"cut.{suffix}"
        noise.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refuses(path, str(path))
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    Image.new("L", (500, 7)).save(tmp_path / "strip.png")
    refuses(tmp_path / "empty.png", "empty.png", "0 bytes")
    refuses(tmp_path / "text.png", "text.png", "no picture")
    refuses(tmp_path / "dot.png", "dot.png", "1 x 1 px", "at least 8 px")
    refuses(tmp_path / "strip.png", "strip.png", "500 x 7 px")
    refuses(tmp_path / "absent.png", "absent.png", "no such file")
    refuses(tmp_path, "is a folder")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damage_anywhere_in_a_file_is_a_data_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "tif", "webp", "bmp", "gif"):
        path = tmp_path / f"bent.{suffix}"
        noise.save(path)
        whole = bytearray(path.read_bytes())
        for _ in range(40):
            bent = bytearray(whole)
            for place in rng.integers(0, min(len(bent), 200), 3):
                bent[place] ^= int(rng.integers(1, 256))
            path.write_bytes(bent)
            try:
                assert read_image(path).mode == "RGB"  # some damage cannot be seen
            except DataError as error:
                assert path.name in str(error)


# ---------------------------------------------------------------------------------------- large pictures


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 600), RED).save(tmp_path / "wide.jpg")
    Image.new("RGBA", (600, 10_000), (*BLUE, 255)).save(tmp_path / "tall.png")
    assert read_image(tmp_path / "wide.jpg").size == (2048, 123)
    tall = read_image(tmp_path / "tall.png")
    assert tall.size == (123, 2048)
    assert tall.getpixel((60, 1000)) == BLUE


def test_ten_thousand_pixels_square_in_bounded_memory(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    del resource  # only where a process can tell its own peak
    path = tmp_path / "huge.png"
    Image.new("L", (10_000, 10_000), 90).save(path, compress_level=1)
    script = (
        "import resource, sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "from gcpl_lab.data.readers import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert read_image(sys.argv[1]).size == (2048, 2048)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script, path], cwd=root, capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 12 * 100_000


def test_more_than_120_megapixels_are_refused(tmp_path: Path) -> None:
    # The limit is checked on the header, so 1-bit pictures do for the test. PIL itself refuses the second.
    for name, size in (("big.png", (13_000, 10_000)), ("bigger.png", (20_000, 10_000))):
        Image.new("1", size).save(tmp_path / name)
        refuses(tmp_path / name, name, "120 megapixels")


# ------------------------------------------------------------------------------------------ many pictures


def test_read_images_keeps_the_order(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), RED).save(tmp_path / "red.png")
    images = read_images([gradient(), tmp_path / "red.png", str(tmp_path / "red.png"), Image.new("RGB", (9, 9), BLUE)])
    assert [image.size for image in images] == [(16, 12), (8, 8), (8, 8), (9, 9)]


def test_read_images_lists_every_failure(tmp_path: Path) -> None:
    good = gradient()
    with pytest.raises(DataError) as caught:
        read_images([good, tmp_path / "a.png", good, np.zeros((2, 2), np.uint8)])
    message = str(caught.value)
    assert message.startswith("2 pictures")
    assert "a.png: no such file" in message
    assert "picture 3: is 2 x 2 px" in message

    with pytest.raises(DataError) as caught:
        read_images([tmp_path / f"{index}.png" for index in range(25)])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("25 pictures")
    assert len(lines) == 22
    assert lines[-1] == "  ... and 5 more"


# ------------------------------------------------------------------------------------------- class folders


def make_folders(root: Path, files: dict[str, list[str]]) -> Path:
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for index, name in enumerate(names):
            Image.new("L", (8, 8), index).save(root / folder / name, format="PNG")
    return root


def test_class_folders(tmp_path: Path) -> None:
    root = make_folders(
        tmp_path / "mine", {"class 10": ["b.PNG"], "class 2": ["p10.jpg", "p9.jpeg"], ".hidden": ["x.png"]}
    )
    (root / "class 2" / ".hidden.png").touch()
    (root / "class 2" / "notes.txt").touch()
    (root / "list.csv").touch()
    found = read_class_folders(root)
    assert found.name == "mine"
    assert found.class_names == ("class 2", "class 10")
    assert [path.name for path in found.images] == ["p9.jpeg", "p10.jpg", "b.PNG"]
    assert found.labels.tolist() == [0, 0, 1]
    assert found.labels.dtype == np.int64
    assert len(found) == 3
    assert found.families == {}
    assert found.family_ids.tolist() == [0, 0]
    assert read_class_folders(str(root), "other").name == "other"


def test_any_language_and_underscores_in_folder_names(tmp_path: Path) -> None:
    root = make_folders(tmp_path, {"長靴": ["a.png"], "ankle_boot": ["a.png"], "x" * 200: ["a.webp"]})
    assert set(read_class_folders(root).class_names) == {"長靴", "ankle boot", "x" * 200}


def test_checksum_follows_names_and_bytes(tmp_path: Path) -> None:
    root = make_folders(tmp_path, {"a": ["1.png", "2.png"], "b": ["1.png"]})
    first = read_class_folders(root).checksum
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert read_class_folders(root).checksum == first
    (root / "a" / "2.png").rename(root / "a" / "3.png")
    renamed = read_class_folders(root).checksum
    Image.new("L", (8, 8), 99).save(root / "a" / "3.png")
    assert len({first, renamed, read_class_folders(root).checksum}) == 3


def test_unusable_folders(tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(DataError) as caught:
            read_class_folders(folder)
        return str(caught.value)

    assert "absent: no such folder" in message(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "file: is a file" in message(tmp_path / "file")
    (tmp_path / "bare").mkdir()
    assert "no sub-folders" in message(tmp_path / "bare")
    assert "one class only (a)" in message(make_folders(tmp_path / "one", {"a": ["1.png"]}))
    assert "class 'b' holds no picture" in message(make_folders(tmp_path / "two", {"a": ["1.png"], "b": []}))
    same = make_folders(tmp_path / "same", {"a_b": ["1.png"], "a b": ["1.png"]})
    assert "class name 1" in message(same)


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
    with pytest.raises(DataError) as caught:
        check_class_names(names)
    for word in words:
        assert word in str(caught.value)


def test_long_and_japanese_class_names_are_fine() -> None:
    check_class_names(["長袖のシャツ", "半袖のシャツ", "very " * 300 + "long", "A", "a"])


# ----------------------------------------------------------------------------------------------- image sets


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


def test_family_ids_are_given_a_class() -> None:
    assert small_set().family_ids.tolist() == [0, 0, 1]


def test_subset() -> None:
    whole = small_set()
    part = whole.subset([3, 0])
    assert part.images == (Path("3.png"), Path("0.png"))
    assert part.labels.tolist() == [2, 0]
    assert part.class_names == whole.class_names
    assert part.families == whole.families
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
    with pytest.raises(DataError, match="no class 'hat'; expected some of shirt, coat, boot"):
        whole.only(["shirt", "hat"])


@pytest.mark.parametrize(
    ("indices", "word"), [([4], "index 4"), ([-1], "index -1"), ([0.5], "float"), ([True], "flatnonzero")]
)
def test_bad_subsets(indices: list, word: str) -> None:
    with pytest.raises(DataError, match=word):
        small_set().subset(indices)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"labels": np.array([0, 1])}, r"shape \(2,\) and there are 4 pictures"),
        ({"labels": np.array([0, 0, 1, 3])}, "label 3 is 3"),
        ({"labels": np.array([0, 0, -1, 2])}, "label 2 is -1"),
        ({"labels": np.array([0, 0, 1, 1.5])}, "float64"),
        ({"class_names": ("shirt", "coat", "coat")}, "class name 2"),
        ({"families": {"tops": ("coat", "shirt")}}, "every class exactly once"),
    ],
)
def test_bad_image_sets(changes: dict, word: str) -> None:
    with pytest.raises(DataError, match=word):
        small_set(**changes)
