"""Pictures from anywhere as plain 8-bit RGB, and sets of labelled pictures from class folders.

Whatever cannot be read is refused by name before anything is trained: a picture that is skipped or guessed
at would change a few-shot result without a trace.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gcpl_lab.errors import DataError
from gcpl_lab.storage import file_checksum, folder_checksum

ImageSource = str | Path | Image.Image | np.ndarray
"""What stands for one picture: a path, a PIL picture or a uint8 array."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FOREIGN_SUFFIXES = (".heic", ".heif", ".avif", ".jp2", ".jxl")
"""Pictures too, which may be unreadable here: then they are refused by name and not passed over."""

SMALLEST_SIDE = 8
LARGEST_SIDE = 2048
MOST_PIXELS = 120_000_000
_MOST_LISTED = 20


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled pictures that stay on disk.

    Attributes:
        name: Names the set in reports.
        images: Path of every picture.
        labels: int64 (count,): the class index of every picture.
        class_names: Name of every class, as it goes into a prompt.
        checksum: Stands for all names and bytes; 64 hexadecimal digits.
        families: Look-alike classes by family name; empty when nothing is known about them.

    Raises:
        DataError: Labels and pictures differ in number, a label names no class, a class name is empty or
            given twice, or the families do not hold every class exactly once.
    """

    name: str
    images: tuple[Path, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    checksum: str
    families: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or len(labels) != len(self.images):
            raise DataError(
                f"{self.name}: labels have shape {labels.shape} and there are {len(self.images)} pictures; "
                f"expected one label a picture, shape ({len(self.images)},)"
            )
        if labels.size and not np.issubdtype(labels.dtype, np.integer):
            raise DataError(f"{self.name}: labels are {labels.dtype}; expected whole class indices")
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.class_names)))
        if wrong.size:
            raise DataError(
                f"{self.name}: label {wrong[0]} is {labels[wrong[0]]}; "
                f"expected a class index from 0 to {len(self.class_names) - 1}"
            )
        members = [member for family in self.families.values() for member in family]
        if self.families and sorted(members) != sorted(self.class_names):
            raise DataError(
                f"{self.name}: the families hold {sorted(members)}; "
                f"expected every class exactly once: {sorted(self.class_names)}"
            )
        object.__setattr__(self, "labels", labels.astype(np.int64))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def family_ids(self) -> np.ndarray:
        """int64 (class,): the family index of every class; all 0 when no families are known."""
        if not self.families:
            return np.zeros(len(self.class_names), np.int64)
        family_of = {member: index for index, members in enumerate(self.families.values()) for member in members}
        return np.array([family_of[name] for name in self.class_names], np.int64)

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """The pictures at ``indices``, in that order, with all class names kept.

        Args:
            indices: Whole numbers (count,) from 0 to ``len(self) - 1``.

        Raises:
            DataError: An index is no whole number or lies outside.
        """
        chosen = np.asarray(indices)
        if chosen.size and (chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer)):
            raise DataError(
                f"{self.name}: indices are {chosen.dtype} of shape {chosen.shape}; expected whole numbers (count,); "
                "turn a mask into indices with numpy.flatnonzero"
            )
        chosen = chosen.astype(np.int64)
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if outside.size:
            raise DataError(f"{self.name}: index {outside[0]} is outside; expected 0 to {len(self) - 1}")
        listed = ",".join(str(index) for index in chosen)
        return replace(
            self,
            images=tuple(self.images[index] for index in chosen),
            labels=self.labels[chosen],
            # Other pictures are other data: the checksum follows from the whole set's and from the choice.
            checksum=folder_checksum([(self.checksum, listed)]),
        )

    def only(self, class_names: Sequence[str]) -> ImageSet:
        """The pictures of these classes alone, with labels and families that fit them.

        Args:
            class_names: Some of the set's; labels count in this order.

        Raises:
            DataError: A name is none of the set's.
        """
        unknown = [name for name in class_names if name not in self.class_names]
        if unknown:
            raise DataError(f"{self.name}: no class {unknown[0]!r}; expected some of {', '.join(self.class_names)}")
        ids = [self.class_names.index(name) for name in class_names]
        part = self.subset(np.flatnonzero(np.isin(self.labels, ids)))
        families = {
            family: left
            for family, members in self.families.items()
            if (left := tuple(name for name in members if name in class_names))
        }
        return replace(
            part,
            labels=np.array([ids.index(label) for label in part.labels], np.int64),
            class_names=tuple(class_names),
            families=families,
            checksum=folder_checksum([(part.checksum, ",".join(class_names))]),
        )


def check_class_names(names: Sequence[str]) -> None:
    """Refuse names that cannot stand in a prompt or cannot be told apart.

    Any language and length is fine; names that differ in blanks alone count as equal.

    Args:
        names: One name a class.

    Raises:
        DataError: A name is no text, empty or given twice; its index and value are in the message.
    """
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise DataError(f"class name {index} is {name!r} ({type(name).__name__}); expected a text")
        plain = " ".join(name.split())
        if not plain:
            raise DataError(f"class name {index} is {name!r}; expected at least one visible character")
        if plain in seen:
            raise DataError(
                f"class name {index} is {name!r}, as is class name {seen[plain]}; expected every name once: "
                "rename one, or merge the two classes"
            )
        seen[plain] = index


# ------------------------------------------------------------------------------------------ one picture


def read_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Read one picture as upright 8-bit RGB.

    Transparent parts are composited on white, as a browser shows a product photograph. 16-bit grey is
    scaled by its whole range (65535 becomes 255), because PIL alone would clip it. The rotation that a
    camera noted in EXIF is applied. What is larger than 2048 px on its longer side is reduced to that; JPEG
    files are reduced while they are decoded. Memory stays below about 12 bytes for each pixel of the file.

    Args:
        source: A path, a PIL picture (left as it is), or a uint8 array (height, width),
            (height, width, 1), (height, width, 3) or (height, width, 4).
        name: What errors call the picture; the path where there is one.

    Returns:
        A new RGB picture, sides at most 2048 px.

    Raises:
        DataError: The file is absent, empty, truncated or unreadable; it holds several frames; a side is
            below 8 px; there are more than 120 megapixels; the array has another dtype or shape.
    """
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source, name or "array"), name or "array", borrowed=False)
    if isinstance(source, Image.Image):
        label = name or getattr(source, "filename", "") or "picture"
        return _finish(source, label, borrowed=True)
    if not isinstance(source, str | Path):
        raise DataError(
            f"{name or 'picture'}: is a {type(source).__name__}; expected a path, a PIL picture or a uint8 array"
        )
    path = Path(source)
    label = name or str(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise DataError(f"{label}: {found}; expected a picture file: check the path")
    if path.stat().st_size == 0:
        raise DataError(f"{label}: is empty (0 bytes); expected a picture: copy it again or remove it")
    try:
        with warnings.catch_warnings():
            # PIL warns above 89 megapixels; our own limit is checked before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
    except Image.DecompressionBombError:
        raise DataError(f"{label}: has more than {MOST_PIXELS // 10**6} megapixels; reduce it first") from None
    except UnidentifiedImageError:
        raise DataError(f"{label}: is no picture that can be read; expected one of {_suffix_list()}") from None
    except Exception as error:  # A damaged header makes PIL's readers raise nearly anything.
        raise DataError(_unreadable(label, error)) from error
    with opened:
        return _finish(opened, label, borrowed=False)


def read_images(sources: Iterable[ImageSource]) -> list[Image.Image]:
    """Read many pictures, or say about all of them at once which cannot be read.

    Args:
        sources: As for :func:`read_image`.

    Returns:
        One RGB picture a source, in the same order.

    Raises:
        DataError: Lists the first 20 failures and the number of all.
    """
    images, failures = [], []
    for index, source in enumerate(sources):
        try:
            images.append(read_image(source, None if isinstance(source, str | Path) else f"picture {index}"))
        except DataError as error:
            failures.append(str(error))
    if failures:
        raise DataError(f"{len(failures)} pictures cannot be used:" + list_lines(failures))
    return images


def list_lines(lines: Sequence[str]) -> str:
    """The first 20 lines of a list, indented, each on its own line, and how many more there are."""
    shown = "".join(f"\n  {line}" for line in lines[:_MOST_LISTED])
    hidden = len(lines) - _MOST_LISTED
    return shown + (f"\n  ... and {hidden} more" if hidden > 0 else "")


def _suffix_list() -> str:
    return ", ".join(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)


def _unreadable(label: str, error: Exception) -> str:
    return f"{label}: cannot be decoded ({error}); it is truncated or damaged: copy it again or remove it"


def _from_array(array: np.ndarray, label: str) -> Image.Image:
    if array.dtype != np.uint8:
        raise DataError(
            f"{label}: is {array.dtype}; expected uint8 from 0 to 255 "
            "(for values from 0 to 1: (array * 255).round().astype('uint8'))"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise DataError(
            f"{label}: has shape {array.shape}; "
            "expected (height, width), (height, width, 1), (height, width, 3) or (height, width, 4)"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _finish(image: Image.Image, label: str, borrowed: bool) -> Image.Image:
    """Check an opened picture, then decode it to upright RGB of bounded size; a borrowed one is not changed."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{label}: is {width} x {height} px, more than {MOST_PIXELS // 10**6} megapixels; reduce it first"
        )
    if min(width, height) < SMALLEST_SIDE:
        raise DataError(
            f"{label}: is {width} x {height} px; expected at least {SMALLEST_SIDE} px on each side: "
            "remove it or take a larger picture"
        )
    try:
        # Cameras put a preview behind the photograph (MPO); the first picture is the photograph.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        if frames > 1:
            raise DataError(
                f"{label}: holds {frames} frames; expected one picture: save one frame as a file of its own"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return _to_upright_rgb(image.copy() if borrowed else image)
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{label}: {width} x {height} px do not fit into memory; reduce it first") from error
    except Exception as error:  # Decoders of damaged files raise nearly anything.
        raise DataError(_unreadable(label, error)) from error


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    """Decode and reduce, changing ``image`` in place where that saves a copy of a large picture."""
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
    # A picture without the file's information: an EXIF rotation or a colour profile no longer describes it.
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


# --------------------------------------------------------------------------------------- class folders


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key that puts ``img2`` before ``img10``; the name itself settles ties."""
    parts = re.split(r"(\d+)", name.casefold())
    # Odd parts are the digits; (number, "") and (-1, text) compare without mixing types.
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)], name


def list_images(folder: Path) -> list[Path]:
    """The picture files directly in a folder, by suffix, in natural order; hidden files do not count."""
    suffixes = IMAGE_SUFFIXES + FOREIGN_SUFFIXES
    files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file()]
    return sorted((path for path in files if not path.name.startswith(".")), key=lambda path: _natural_key(path.name))


def read_class_folders(folder: str | Path, name: str | None = None) -> ImageSet:
    """Read ``folder/<class>/<picture>``: the folder names are the classes, in natural order.

    An underscore in a folder's name becomes a blank in the class name, because the name goes into a prompt.
    The pictures themselves are opened later, by :func:`read_images`; here only their bytes are summed.

    Args:
        folder: Holds one sub-folder a class. Hidden files and folders, and files that are no pictures by
            their suffix, are left aside.
        name: Names the set; the folder's name by default.

    Returns:
        The set, class by class; families are empty.

    Raises:
        DataError: The folder is absent, has fewer than two class folders, or a class holds no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {found}; expected a folder with one sub-folder of pictures a class")
    classes = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    classes.sort(key=lambda path: _natural_key(path.name))
    if not classes:
        raise DataError(f"{folder}: has no sub-folders; expected one sub-folder of pictures for each class")
    if len(classes) == 1:
        raise DataError(f"{folder}: has one class only ({classes[0].name}); expected two or more to tell apart")
    images: list[Path] = []
    labels: list[int] = []
    for label, class_folder in enumerate(classes):
        found_images = list_images(class_folder)
        if not found_images:
            raise DataError(
                f"{class_folder}: class {class_folder.name!r} holds no picture; "
                f"expected files ending in {_suffix_list()}: add pictures or remove the folder"
            )
        images += found_images
        labels += [label] * len(found_images)
    return ImageSet(
        name=name or folder.resolve().name,
        images=tuple(images),
        labels=np.array(labels, np.int64),
        class_names=tuple(path.name.replace("_", " ") for path in classes),
        checksum=folder_checksum((path.relative_to(folder).as_posix(), file_checksum(path)) for path in images),
    )
