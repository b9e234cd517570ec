"""Images from anywhere as plain 8-bit RGB, and sets of labelled images from class folders.

Whatever cannot be read is refused by name before anything is trained: an image that is skipped or guessed at would
change a few-shot result without a trace.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gcpl_lab.data.framing import frame
from gcpl_lab.data.sets import ImageSet
from gcpl_lab.errors import DataError
from gcpl_lab.storage import file_checksum, folder_checksum

ImageSource = str | Path | Image.Image | np.ndarray
"""What stands for one image: a path, a PIL image or a uint8 array."""

IMAGE_SUFFIXES = tuple(".png .jpg .jpeg .jfif .jpe .webp .bmp .tif .tiff .gif .ppm .pgm .pnm .tga".split())
FOREIGN_SUFFIXES = tuple(
    ".heic .heif .avif .jp2 .jxl .psd .svg .dcm .exr .dng .cr2 .cr3 .nef .arw .raf .orf .rw2".split()
)
"""Images too, which may be unreadable here: then they are refused by name and not passed over."""

SMALLEST_SIDE = 8
LARGEST_SIDE = 2048
MOST_PIXELS = 120_000_000
_TOO_LARGE = f"more than {MOST_PIXELS // 10**6} megapixels; reduce it first"
_SUFFIX_LIST = ", ".join(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


def read_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Read one image as a new upright 8-bit RGB one, sides at most 2048 px.

    Transparent parts are composited on white, as a browser shows a product. 16-bit grey is scaled by its whole
    range (65535 becomes 255), because PIL alone would clip it. The rotation that a camera noted in EXIF is
    applied. JPEG files are reduced while they are decoded; memory stays below about 12 bytes a pixel of the file.

    Args:
        source: A path, a PIL image (left as it is), or a uint8 array (height, width) or (height, width, 1, 3 or 4).
        name: What errors call the image; the path where there is one.

    Raises:
        DataError: It is absent, empty, truncated, unreadable, animated, below 8 px a side or above 120 megapixels.
    """
    label = name or (str(source) if isinstance(source, str | Path) else getattr(source, "filename", "") or "image")
    with warnings.catch_warnings():
        # PIL warns above 89 megapixels; our own limit is checked before anything is decoded.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            if isinstance(source, str | Path):
                _check_file(Path(source), label)
                with Image.open(source) as opened:
                    return _finish(opened, label)
            if isinstance(source, Image.Image):
                return _finish(source, label, borrowed=True)
            return _finish(_from_array(source, label), label)
        except DataError:
            raise
        except MemoryError as error:
            raise DataError(f"{label}: does not fit into memory; reduce it first") from error
        except Image.DecompressionBombError:
            raise DataError(f"{label}: has {_TOO_LARGE}") from None
        except UnidentifiedImageError:
            raise DataError(f"{label}: is no image that can be read; expected one of {_SUFFIX_LIST}") from None
        except Exception as error:  # A damaged header, and decoders of damaged files, raise nearly anything.
            raise DataError(
                f"{label}: cannot be decoded ({error}); it is truncated or damaged: copy it again or remove it"
            ) from error


def images_checksum(images: Iterable[Image.Image]) -> str:
    """SHA-256 over the pixels of read images in their order: the same on every machine, as encodings are not."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.size}|".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def read_images(sources: Iterable[ImageSource], fit: str | None = None) -> list[Image.Image]:
    """Read many images in their order, or say about all of them at once which cannot be read.

    With a ``fit``, one of ``gcpl_lab.data.framing.FITS``, each becomes the square that a model sees of it. They are all
    in memory, up to 12 MB each; :func:`iter_images` reads one at a time.
    """
    return list(iter_images(sources, fit))


def iter_images(sources: Iterable[ImageSource], fit: str | None = None) -> Iterator[Image.Image]:
    """The same, each read when it is asked for; after one that cannot be read the others are looked at, none given."""
    # A stack of grey images has three axes too, but none of its images is as narrow as a pixel has channels.
    shape = sources.shape if isinstance(sources, np.ndarray) else None
    if isinstance(sources, str | Path | Image.Image) or (
        shape and (len(shape) < 3 or (len(shape) == 3 and shape[2] < 5))
    ):
        kind = f"an array of shape {shape}" if shape else "one image"
        raise DataError(f"images are {kind}; expected a list of images: put it into brackets")
    failures: list[str] = []
    for index, source in enumerate(sources):
        try:
            image = read_image(source, None if isinstance(source, str | Path) else f"image {index}")
        except DataError as error:
            failures.append(str(error))
            continue
        if not failures:
            yield image if fit is None else frame(image, fit)
    if failures:
        raise DataError(f"{len(failures)} images cannot be used:" + list_lines(failures))


def list_lines(lines: Sequence[str], most: int = 20) -> str:
    """The first lines of a list, indented, each on its own line, and how many more there are."""
    shown = "".join(f"\n  {line}" for line in lines[:most])
    return shown + (f"\n  ... and {len(lines) - most} more" if len(lines) > most else "")


def is_file(path: Path) -> bool:
    """Whether a file is there; False, too, for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_link(path: Path) -> bool:
    """Whether a link leads to nothing."""
    return os.path.islink(path) and not os.path.exists(path)


def _check_file(path: Path, label: str) -> None:
    if not is_file(path):
        found = "is a link to nothing" if is_link(path) else "is a folder" if os.path.isdir(path) else "no such file"
        raise DataError(f"{label}: {found}; expected an image file: check the path")
    if path.stat().st_size == 0:
        raise DataError(f"{label}: is empty (0 bytes); expected an image: copy it again or remove it")


def _from_array(array: np.ndarray, label: str) -> Image.Image:
    if not isinstance(array, np.ndarray):
        raise DataError(f"{label}: is a {type(array).__name__}; expected a path, a PIL image or a uint8 array")
    if array.dtype != np.uint8:
        expected = "uint8 from 0 to 255 (for values from 0 to 1: (array * 255).round().astype('uint8'))"
        raise DataError(f"{label}: is {array.dtype}; expected {expected}")
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        expected = "(height, width), (height, width, 1), (height, width, 3) or (height, width, 4)"
        raise DataError(f"{label}: has shape {array.shape}; expected {expected}")
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2:] == (1,) else array))


def _finish(image: Image.Image, label: str, borrowed: bool = False) -> Image.Image:
    """Check an opened image, then decode it to upright RGB of bounded size; a borrowed one is not changed."""
    size = "{} x {} px".format(*image.size)
    if image.width * image.height > MOST_PIXELS:
        raise DataError(f"{label}: is {size}, {_TOO_LARGE}")
    if min(image.size) < SMALLEST_SIDE:
        expected = f"at least {SMALLEST_SIDE} px on each side: remove it or take a larger image"
        raise DataError(f"{label}: is {size}; expected {expected}")
    # Cameras put a preview behind the photograph (MPO); the first image is the photograph.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"{label}: holds {frames} frames; expected one image: save one frame as a file of its own")
    image = image.copy() if borrowed else image  # changed in place: that saves a copy of a large one
    image.draft(None, (LARGEST_SIDE, LARGEST_SIDE))  # JPEG decodes at 1/2, 1/4 or 1/8; others ignore it.
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point grey has no known range; save it as 8 or 16 bit")
    if image.mode.startswith("I"):
        image = _eight_bit_grey(image)
    # Before the reduction: palette indices and a transparent key colour must not be blended.
    mode = "RGBA" if image.has_transparency_data else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    # An image without the file's information: an EXIF rotation or a colour profile no longer describes it.
    result = Image.new("RGB", image.size, "white")
    result.paste(image, mask=image.getchannel("A") if mode == "RGBA" else None)
    return result


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bit by division through 257 = 65535 / 255, row by row to save memory."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"grey values reach from {low} to {high}; expected 0 to 65535")
    scaled = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):
        scaled[row] = (line.astype(np.uint32) + 128) // 257
    return Image.fromarray(scaled)


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts ``img2`` before ``img10``; the name itself settles ties."""
    parts = re.split(r"(\d+)", path.name.casefold())
    # Odd parts are the digits; (number, "") and (-1, text) compare without mixing types.
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)], path.name


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, by suffix, in natural order; hidden files do not count.

    Links to nothing are among them, and are refused by name when they are read, as is a name that is no UTF-8.
    """
    shown = [path for path in folder.iterdir() if not path.name.startswith(".") and (is_file(path) or is_link(path))]
    known = IMAGE_SUFFIXES + FOREIGN_SUFFIXES
    found = [path for path in shown if path.suffix.lower() in known]
    for path in found:
        check_path(path)
    return sorted(found, key=_natural_key)


def check_path(path: Path) -> None:
    """Refuse a path whose bytes are no UTF-8, as a zip file from another system leaves them."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{os.fsencode(path).decode('utf-8', 'backslashreplace')}: its name is no UTF-8; rename it, such as by "
            "convmv -r -f CP932 -t UTF-8 --notest FOLDER for one from a Japanese system"
        ) from None


def read_class_folders(folder: str | Path, name: str | None = None) -> ImageSet:
    """Read ``folder/<class>/<image>``: the folder names are the classes, in natural order.

    An underscore in a folder's name becomes a blank in the class name, because the name goes into a prompt. The
    images themselves are opened later, by :func:`read_images`; here only their bytes are summed. Hidden files and
    folders, and files that are no images by their suffix, are left aside. ``name`` is the folder's by default.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {found}; expected a folder with one sub-folder of images a class")
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in inside:
        check_path(path)
    _refuse_links(folder, folder.iterdir())
    members = {path: list_images(path) for path in sorted(inside, key=_natural_key)}
    if not members:
        raise DataError(f"{folder}: has no sub-folders; expected one sub-folder of images for each class")
    if len(members) == 1:
        (only,) = members
        raise DataError(f"{folder}: has one class only ({only.name}); expected two or more to tell apart")
    for path, files in members.items():
        _check_class_folder(path, files)
    images = tuple(path for files in members.values() for path in files)
    names = [unicodedata.normalize("NFC", path.name) for path in members]
    kinds = list(dict.fromkeys(names))  # folders whose names differ in how an accent is spelt are one class
    return ImageSet(
        name=name or folder.resolve().name,
        images=images,
        labels=np.repeat([kinds.index(one) for one in names], [len(files) for files in members.values()]),
        class_names=tuple(name.replace("_", " ") for name in kinds),
        checksum=folder_checksum((path.relative_to(folder).as_posix(), file_checksum(path)) for path in images),
    )


def _check_class_folder(path: Path, files: list[Path]) -> None:
    """Refuse a class without images, and images of it that would be passed over."""
    deeper = (place for place in sorted(path.rglob("*")) if place.is_dir() and list_images(place))
    for place in deeper:
        if not any(part.startswith(".") for part in place.relative_to(path).parts):
            raise DataError(
                f"{place}: holds {len(list_images(place))} images below the class {path.name!r}; expected all images "
                "of a class directly in its folder: move them up, or list them in a metadata.csv"
            )
    _refuse_links(path, files)
    if not files:
        raise DataError(
            f"{path}: class {path.name!r} holds no image; "
            f"expected files ending in {_SUFFIX_LIST}: add images or remove the folder"
        )


def _refuse_links(path: Path, files: Iterable[Path]) -> None:
    """Refuse what a folder holds by links to nothing."""
    if links := [str(file) for file in files if is_link(file) and not file.name.startswith(".")]:
        raise DataError(f"{path}: {len(links)} links to nothing in it; mend or remove them:" + list_lines(links))
