"""Images and class folders: what can be used is read rightly, everything else is refused by name."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcpl_lab.data.readers import iter_images, read_class_folders, read_image, read_images
from gcpl_lab.errors import DataError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def gradient(height: int = 12, width: int = 16) -> np.ndarray:
    return np.arange(height * width, dtype=np.uint8).reshape(height, width)


def refuses(source, *words: str, name: str | None = None) -> None:
    """The one error that may come, holding each of ``words``."""
    with pytest.raises(DataError) as caught:
        read_image(source, name)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("shape", [(12, 16), (12, 16, 1), (12, 16, 3)])
def test_arrays_keep_their_values(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = read_image(array)
    assert (image.mode, image.size) == ("RGB", (16, 12))
    np.testing.assert_array_equal(np.asarray(image), np.broadcast_to(array.reshape(12, 16, -1), (12, 16, 3)))


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 4), np.uint8)
    array[:, :4] = (*RED, 255)
    array[:, 6] = (0, 0, 0, 128)
    assert np.asarray(read_image(array))[0, [0, 5, 6]].tolist() == [[*RED], [255] * 3, [127] * 3]
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (0, 0, 4, 8))
    image.save(tmp_path / "palette.png", transparency=0)
    assert np.asarray(read_image(tmp_path / "palette.png"))[0, [0, 7]].tolist() == [[*GREEN], [255] * 3]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((8, 8), np.float32), ("float32", "uint8")),
        (np.zeros((8, 8), bool), ("bool", "uint8")),
        (np.zeros((8, 8, 2), np.uint8), ("(8, 8, 2)", "(height, width, 3)")),
        (np.zeros(8, np.uint8), ("(8,)",)),
        (np.zeros((0, 8), np.uint8), ("(0, 8)",)),
        (np.zeros((1, 1), np.uint8), ("1 x 1 px", "8 px")),
        (17, ("int", "expected a path")),
    ],
)
def test_bad_arrays_and_other_types(array: np.ndarray, words: tuple[str, ...]) -> None:
    refuses(array, "exemplar 3", *words, name="exemplar 3")


def test_grey_palette_and_cmyk_files(tmp_path: Path) -> None:
    grey = Image.fromarray(gradient())
    grey.save(tmp_path / "grey.png")
    grey.convert("P").save(tmp_path / "palette.png")
    grey.convert("LA").save(tmp_path / "grey_alpha.png")
    expected = np.repeat(gradient()[:, :, None], 3, axis=2)
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(np.asarray(read_image(path)), expected, err_msg=path.name)
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / "print.jpg"))[8, 8], RED, atol=15)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.zeros((8, 8), np.uint16)
    values[:, 1:7] = (257, 32896, 65535, 128, 129, 385)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    assert np.asarray(read_image(tmp_path / f"deep.{suffix}"))[0, :7, 0].tolist() == [0, 1, 128, 255, 0, 1, 1]
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "int.tif")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tif")
    refuses(tmp_path / "int.tif", "int.tif", "70000", "65535")
    refuses(tmp_path / "float.tif", "float.tif", "floating-point")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(("orientation", "red_at"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))])
def test_exif_rotation_is_applied(tmp_path: Path, suffix: str, orientation: int, red_at: tuple[int, int]) -> None:
    image = Image.new("RGB", (64, 32), BLUE)
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"turned.{suffix}", exif=exif)
    upright = read_image(tmp_path / f"turned.{suffix}")
    assert upright.size == ((32, 64) if orientation in (6, 8) else (64, 32))
    assert np.asarray(upright)[red_at][0] > 200
    assert 0x0112 not in upright.getexif()  # applied once, and not a second time by the next reader


def test_pil_images_stay_as_they_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (5000, 16), RED).save(tmp_path / "long.jpg", exif=exif)
    with Image.open(tmp_path / "long.jpg") as image:
        result = read_image(image)
        assert image.size == (5000, 16)
    assert result.height == 2048
    result.putpixel((0, 0), GREEN)
    assert image.getpixel((0, 0)) != GREEN


def test_animated_files_are_refused_and_camera_files_with_a_preview_are_not(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((16, 16), value, np.uint8)) for value in (0, 90, 200)]
    for suffix in ("gif", "webp", "png", "tif"):
        frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
        refuses(tmp_path / f"moving.{suffix}", f"moving.{suffix}", "3 frames")
    frames[0].save(tmp_path / "still.gif")
    assert read_image(tmp_path / "still.gif").size == (16, 16)
    preview = Image.new("RGB", (16, 16), GREEN)
    Image.new("RGB", (64, 64), RED).save(tmp_path / "c.jpg", format="MPO", save_all=True, append_images=[preview])
    assert read_image(tmp_path / "c.jpg").size == (64, 64)
    assert read_image(tmp_path / "c.jpg").getpixel((5, 5))[0] > 200


def test_unusable_files(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "tif", "webp", "bmp"):
        path = tmp_path / f"cut.{suffix}"
        noise.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refuses(path, str(path))
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    Image.new("L", (500, 7)).save(tmp_path / "strip.png")
    # The limit is checked on the header, so 1-bit images do for the test. PIL itself refuses the second.
    Image.new("1", (13_000, 10_000)).save(tmp_path / "big.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bigger.png")
    small = {"dot.png": "1 x 1 px; expected at least 8 px", "strip.png": "500 x 7 px"}
    large = {"big.png": "120 megapixels", "bigger.png": "120 megapixels"}
    other = {"empty.png": "0 bytes", "text.png": "no image", "absent.png": "no such file", "": "is a folder"}
    for name, words in (small | large | other).items():
        refuses(tmp_path / name, name, words)


def test_large_images_are_reduced_in_bounded_memory(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 600), RED).save(tmp_path / "wide.jpg")
    Image.new("RGBA", (600, 10_000), (*BLUE, 255)).save(tmp_path / "tall.png")
    wide, tall = read_image(tmp_path / "wide.jpg"), read_image(tmp_path / "tall.png")
    assert (wide.size, tall.size, tall.getpixel((60, 1000))) == ((2048, 123), (123, 2048), BLUE)
    pytest.importorskip("resource", reason="only where a process can tell its own peak")
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


def test_images_are_read_one_at_a_time(tmp_path: Path, most_alive: Callable[[], int]) -> None:
    """However many: a camera's image takes 9 MB, and five thousand of them more than a laptop has."""
    Image.fromarray(gradient()).save(tmp_path / "one.png")
    assert sum(image.width for image in iter_images([tmp_path / "one.png"] * 20, "pad")) == 20 * 16
    assert most_alive() <= 2  # the one that is looked at, and the next
    (tmp_path / "two.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 images cannot be used:\n .*two.png.*\n .*none.png"):
        list(iter_images([tmp_path / name for name in ("one.png", "two.png", "none.png")]))


def test_read_images_keeps_the_order_and_lists_every_failure(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), RED).save(tmp_path / "red.png")
    images = read_images([gradient(), tmp_path / "red.png", str(tmp_path / "red.png"), Image.new("RGB", (9, 9), BLUE)])
    assert [image.size for image in images] == [(16, 12), (8, 8), (8, 8), (9, 9)]
    with pytest.raises(DataError, match=r"^2 images(.|\n)*a.png: no such file(.|\n)*image 3: is 2 x 2 px"):
        read_images([gradient(), tmp_path / "a.png", gradient(), np.zeros((2, 2), np.uint8)])
    with pytest.raises(DataError, match=r"^25 images.*(\n  .*no such file.*){20}\n  \.\.\. and 5 more$"):
        read_images([tmp_path / f"{index}.png" for index in range(25)])


def make_folders(root: Path, files: dict[str, list[str]]) -> Path:
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for index, name in enumerate(names):
            Image.new("L", (8, 8), index).save(root / folder / name, format="PNG")
    return root


def test_class_folders(tmp_path: Path) -> None:
    root = make_folders(
        tmp_path / "mine",
        {"class_10": ["b.PNG"], "class_2": ["p10.jpg", "p9.jpeg"], "長靴": ["x.webp"], ".hidden": ["x.png"]},
    )
    for left_aside in ("class_2/.hidden.png", "class_2/notes.txt", "list.csv"):
        (root / left_aside).touch()
    found = read_class_folders(root)
    assert (found.name, found.class_names) == ("mine", ("class 2", "class 10", "長靴"))
    assert [path.name for path in found.images] == ["p9.jpeg", "p10.jpg", "b.PNG", "x.webp"]
    assert (found.labels.tolist(), found.labels.dtype) == ([0, 0, 1, 2], np.int64)
    assert (found.families, found.family_ids.tolist()) == ({}, [0, 0, 0])
    assert read_class_folders(str(root), "other").name == "other"


def test_checksum_follows_names_and_bytes(tmp_path: Path) -> None:
    root = make_folders(tmp_path, {"a": ["1.png", "2.png"], "b": ["1.png"]})
    first = read_class_folders(root).checksum
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert read_class_folders(root).checksum == first
    (root / "a" / "2.png").rename(root / "a" / "3.png")
    renamed = read_class_folders(root).checksum
    Image.new("L", (8, 8), 99).save(root / "a" / "3.png")
    assert len({first, renamed, read_class_folders(root).checksum}) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "set: no such folder"),
        ("text", "set: is a file"),
        ({}, "no sub-folders"),
        ({"a": ["1.png"]}, r"one class only \(a\)"),
        ({"a": ["1.png"], "b": []}, "class 'b' holds no image"),
        ({"a_b": ["1.png"], "a b": ["1.png"]}, "class name 1"),
    ],
)
def test_unusable_folders(tmp_path: Path, files: dict[str, list[str]] | str | None, message: str) -> None:
    if isinstance(files, str):
        (tmp_path / "set").write_text(files)
    elif files is not None:
        (tmp_path / "set").mkdir()
        make_folders(tmp_path / "set", files)
    with pytest.raises(DataError, match=message):
        read_class_folders(tmp_path / "set")


def test_images_of_foreign_formats_are_not_passed_over(tmp_path: Path) -> None:
    """A telephone's image that nobody can read here would be missing without a trace."""
    make_folders(tmp_path, {"new": ["still.gif"], "worn": ["still.gif"]})
    (tmp_path / "new" / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "new" / "Thumbs.db").write_bytes(b"no image")
    found = read_class_folders(tmp_path)
    assert [path.name for path in found.images] == ["photo.HEIC", "still.gif", "still.gif"]
    with pytest.raises(DataError, match=r"1 images cannot be used:\n.*photo.HEIC: is no image that can be read"):
        read_images(found.images)
