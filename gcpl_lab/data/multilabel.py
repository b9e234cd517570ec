"""Pictures with several labels and captions: the published long-tail lists, metadata files, and splits.

Two formats are read: the text lists of VOC-LT and COCO-LT as the LMPT repository has them (path, then label
ids), and the ``metadata.csv`` or ``.jsonl`` of the Hugging Face ``imagefolder`` convention. Whatever is wrong
with a file is reported with its line, and everything of one kind at once.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.data.readers import check_class_names, list_lines
from gcpl_lab.errors import DataError
from gcpl_lab.storage import file_checksum, folder_checksum, write_text

HEAD_COUNT, TAIL_COUNT = 100, 20
"""A head class has at least 100 training images, a tail class fewer than 20."""

CAPTION_SEPARATOR = " | "
"""Parts the captions of one image where several people wrote one."""


@dataclass(frozen=True, eq=False)
class MultiLabelSet:
    """Pictures that stay on disk, with any number of classes each.

    Attributes:
        name: Names the set in reports.
        images: Path of every picture, all different.
        targets: uint8 (image, class): 1 where the picture has the class.
        class_names: Name of every class, as it goes into a prompt.
        captions: One text a picture, or None; several captions are joined by ``CAPTION_SEPARATOR``.
        checksum: Stands for all names, labels, captions and bytes; 64 hexadecimal digits.
        origins: Where each picture is listed ("train.txt, line 3"), for messages; may be empty.
        warnings: What a reader noticed and let pass, such as a class without any picture.

    Raises:
        DataError: Numbers of pictures, targets and captions differ, a target is neither 0 nor 1, or a class
            name is empty or given twice.
    """

    name: str
    images: tuple[Path, ...]
    targets: np.ndarray
    class_names: tuple[str, ...]
    captions: tuple[str | None, ...]
    checksum: str
    origins: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_class_names(self.class_names)
        object.__setattr__(self, "targets", check_targets(self.targets, self.name))
        expected = (len(self.images), len(self.class_names))
        if self.targets.shape != expected:
            raise DataError(
                f"{self.name}: targets have shape {self.targets.shape}; expected {expected}, "
                "one row a picture and one column a class"
            )
        for what, values in (("captions", self.captions), ("origins", self.origins)):
            if len(values) != len(self.images) and (values or what == "captions"):
                raise DataError(
                    f"{self.name}: {len(values)} {what} for {len(self.images)} pictures; "
                    "expected one a picture (None where there is none)"
                )

    def __len__(self) -> int:
        return len(self.images)

    def class_counts(self) -> np.ndarray:
        """int64 (class,): the number of pictures with each class."""
        counts: np.ndarray = self.targets.sum(axis=0, dtype=np.int64)
        return counts

    def origin(self, index: int) -> str:
        """Where picture ``index`` is listed, or its path where that is not known."""
        return self.origins[index] if self.origins else str(self.images[index])

    def subset(self, indices: Sequence[int] | np.ndarray) -> MultiLabelSet:
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
        return replace(
            self,
            images=tuple(self.images[index] for index in chosen),
            targets=self.targets[chosen],
            captions=tuple(self.captions[index] for index in chosen),
            origins=tuple(self.origins[index] for index in chosen) if self.origins else (),
            checksum=folder_checksum([(self.checksum, ",".join(str(index) for index in chosen))]),
        )


def check_targets(targets: Any, name: str = "targets") -> np.ndarray:
    """Targets as uint8 (image, class), or an error that names the first wrong entry.

    Args:
        targets: Anything array-like of 0 and 1 (or booleans), images × classes.
        name: What the message calls them.

    Raises:
        DataError: Not two-dimensional, or an entry is neither 0 nor 1.
    """
    values = np.asarray(targets)
    if values.ndim != 2:
        raise DataError(f"{name}: targets have shape {values.shape}; expected (images, classes) with 0 or 1")
    wrong = np.argwhere((values != 0) & (values != 1))
    if len(wrong):
        row, column = wrong[0]
        raise DataError(f"{name}: target of image {row}, class {column} is {values[row, column]}; expected 0 or 1")
    return values.astype(np.uint8)


def head_medium_tail(train_counts: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Part the classes by their number of training images, as VOC-LT and COCO-LT are reported.

    Args:
        train_counts: (class,), 0 or more.

    Returns:
        ``head`` (at least 100), ``medium`` (20 to 99) and ``tail`` (below 20): int64 class ids, ascending.

    Source: Wu et al. 2020, https://arxiv.org/abs/2007.09654, section 4.1
    """
    counts = np.asarray(train_counts)
    return {
        "head": np.flatnonzero(counts >= HEAD_COUNT),
        "medium": np.flatnonzero((counts < HEAD_COUNT) & (counts >= TAIL_COUNT)),
        "tail": np.flatnonzero(counts < TAIL_COUNT),
    }


# --------------------------------------------------------------------- the published long-tail lists


def read_longtail_list(
    list_file: str | Path,
    labels_file: str | Path,
    image_folder: str | Path,
    captions_file: str | Path | None = None,
    *,
    name: str | None = None,
    require_all_classes: bool = False,
) -> MultiLabelSet:
    """Read lists in the format of VOC-LT and COCO-LT as the LMPT repository publishes them.

    Args:
        list_file: One picture a line: its path below ``image_folder`` without blanks, then its label ids.
            A picture may have no label; empty lines are passed over.
        labels_file: One class a line: its name, and behind it its id; or the names alone, in the order of
            the ids. Underscores become blanks, because the name goes into a prompt.
        image_folder: What the paths are relative to.
        captions_file: One caption a line, for every picture of the list: its path and the text (in any
            order of lines), or the texts alone in the order of the list. A line may be empty.
        name: Names the set; the list's file name by default.
        require_all_classes: Make a class without any picture an error instead of a warning.

    Raises:
        DataError: A file is absent or no text; a label id is no number or out of range, a path occurs twice,
            the number of captions differs (with file and line); pictures are missing (all are listed).

    Source: https://github.com/richard-peng-xia/LMPT (``data/voc``, ``data/coco``)
    """
    list_file, image_folder = Path(list_file), Path(image_folder)
    class_names = _read_class_names(Path(labels_file))
    names, labels, origins = [], [], []
    for number, line in _text_lines(list_file):
        if line:
            path, *ids = line.split()
            origin = f"{list_file}, line {number}"
            names.append(path)
            labels.append([_label_id(value, len(class_names), origin) for value in ids])
            origins.append(origin)
    captions = _read_captions(Path(captions_file), names) if captions_file else [None] * len(names)
    return _assemble(
        name or list_file.stem, names, labels, captions, origins, class_names, image_folder, require_all_classes
    )


def write_longtail_list(
    data: MultiLabelSet,
    list_file: str | Path,
    labels_file: str | Path,
    image_folder: str | Path,
    captions_file: str | Path | None = None,
) -> None:
    """Write a set as :func:`read_longtail_list` reads it; each file is whole or as it was.

    Args:
        data: Its pictures lie below ``image_folder``; paths without blanks.
        list_file, labels_file, captions_file: Where the texts go; without ``captions_file`` captions are left out.
        image_folder: What the written paths are relative to.

    Raises:
        DataError: A picture lies elsewhere, or its path holds a blank.
    """
    folder = Path(image_folder).resolve()
    names = []
    for image in data.images:
        if not image.resolve().is_relative_to(folder):
            raise DataError(f"{image}: does not lie below {folder}; choose a folder that holds every picture")
        names.append(image.resolve().relative_to(folder).as_posix())
        if len(names[-1].split()) != 1:
            raise DataError(
                f"{image}: its path below {folder} holds a blank, which parts path and label ids "
                "in this format; rename it, or write a metadata file"
            )
    ids = [" ".join(str(label) for label in np.flatnonzero(row)) for row in data.targets]
    write_text(list_file, "".join(f"{path} {row}".strip() + "\n" for path, row in zip(names, ids, strict=True)))
    write_text(labels_file, "".join(f"{label} {index}\n" for index, label in enumerate(data.class_names)))
    if captions_file:
        texts = (" ".join((caption or "").split()) for caption in data.captions)
        write_text(captions_file, "".join(f"{p} {text}".strip() + "\n" for p, text in zip(names, texts, strict=True)))


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line number from 1 and stripped text of every line, empty ones too."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"{path}: is no UTF-8 text file ({error})") from error
    lines = text.split("\n")  # not splitlines(), which also breaks at rare characters inside a caption
    if not lines[-1]:
        lines.pop()  # behind the end of the last line
    for number, line in enumerate(lines, start=1):
        yield number, line.strip()


def _read_class_names(path: Path) -> tuple[str, ...]:
    lines = [(number, line) for number, line in _text_lines(path) if line]
    if not lines:
        raise DataError(f"{path}: names no class; expected one class a line")
    parts = [line.rsplit(maxsplit=1) for _, line in lines]
    if all(len(part) == 2 and part[1].isdecimal() for part in parts):
        by_id = {int(index): label for label, index in parts}
        if sorted(by_id) != list(range(len(parts))):
            raise DataError(
                f"{path}: the ids are {', '.join(part[1] for part in parts)}; "
                f"expected each of 0 to {len(parts) - 1} once"
            )
        names = [by_id[index] for index in range(len(parts))]
    else:
        names = [line for _, line in lines]
    try:
        check_class_names(plain := tuple(" ".join(label.replace("_", " ").split()) for label in names))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return plain


def _label_id(value: str, num_classes: int, origin: str) -> int:
    if not value.isdecimal() or int(value) >= num_classes:
        raise DataError(
            f"{origin}: label id is {value!r}; expected a whole number from 0 to {num_classes - 1} "
            "(a path must hold no blanks)"
        )
    return int(value)


def _read_captions(path: Path, names: Sequence[str]) -> list[str | None]:
    """One caption for each picture of the list, by path where the lines begin with one."""
    lines = list(_text_lines(path))
    while lines and not lines[-1][1] and len(lines) > len(names):
        lines.pop()  # empty lines at the end of the file
    if len(lines) != len(names):
        raise DataError(
            f"{path}: has {len(lines)} lines and the list has {len(names)} pictures; "
            "expected one line a picture (an empty one where there is no caption)"
        )
    known = set(names)
    first_words = [(line.split(maxsplit=1) or [""])[0] for _, line in lines]
    if not any(word in known for word in first_words):
        return [line or None for _, line in lines]
    by_path: dict[str, str | None] = {}
    for (number, line), word in zip(lines, first_words, strict=True):
        if word not in known or word in by_path:
            problem = "is there a second time" if word in by_path else "is not in the list"
            raise DataError(f"{path}, line {number}: picture {word!r} {problem}; expected every listed one once")
        by_path[word] = line[len(word) :].strip() or None
    return [by_path[name] for name in names]


# ------------------------------------------------------------------------------------ metadata files


def read_metadata(
    file: str | Path,
    *,
    image_folder: str | Path | None = None,
    file_column: str = "file_name",
    labels_column: str = "labels",
    caption_column: str | None = None,
    rows: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
    require_all_classes: bool = False,
) -> MultiLabelSet:
    """Read the ``metadata.csv`` or ``metadata.jsonl`` of a folder of pictures.

    Args:
        file: CSV with a header line, or one JSON object a line (by the suffix ``.jsonl``).
        image_folder: What the file names are relative to; the folder of ``file`` by default.
        file_column: Names the picture.
        labels_column: Class names as a list or joined by ``;``, or class ids where ``class_names`` is given.
            May be empty.
        caption_column: A text, a list of texts, or texts joined by ``" | "``; None takes ``caption`` or
            ``captions`` where there is one.
        rows: Take only rows with these values, such as ``{"split": "train"}``; class names come from all.
        class_names: The classes in the order of their ids; by default all that occur, sorted.
        name: Names the set; the folder's name by default, and the chosen values.
        require_all_classes: Make a class without any picture an error instead of a warning.

    Raises:
        DataError: As :func:`read_longtail_list`; also a column that is not there (those that are get listed),
            an unknown class, or no row left.

    Source: https://huggingface.co/docs/datasets/image_dataset
    """
    file = Path(file)
    table = list(read_table(file))
    if not table:
        raise DataError(f"{file}: holds no row; expected one row a picture")
    if caption_column is None:
        caption_column = next((column for column in ("caption", "captions") if column in table[0][1]), None)
    needed = [column for column in (file_column, labels_column, caption_column, *(rows or ())) if column]
    for number, row in table:
        absent = [column for column in needed if column not in row]
        if absent:
            raise DataError(
                f"{file}, line {number}: has no {absent[0]!r}; the columns are {', '.join(row)}: "
                "name the right one in the arguments"
            )
    labels = [_label_list(row[labels_column], f"{file}, line {number}") for number, row in table]
    names = tuple(class_names) if class_names is not None else _occurring_names(labels, file)
    wanted = (rows or {}).items()
    kept = [index for index, (_, row) in enumerate(table) if all(str(row[key]) == value for key, value in wanted)]
    if not kept:
        raise DataError(f"{file}: no row has {dict(rows or {})}; check the names and values")
    origins = [f"{file}, line {table[index][0]}" for index in kept]
    ids = [_ids_of(labels[index], names, origin) for index, origin in zip(kept, origins, strict=True)]
    captions = [_one_caption(table[index][1][caption_column]) if caption_column else None for index in kept]
    paths = [str(table[index][1][file_column]) for index in kept]
    title = name or "/".join([file.resolve().parent.name, *(rows or {}).values()])
    folder = Path(image_folder) if image_folder is not None else file.parent
    return _assemble(title, paths, ids, captions, origins, names, folder, require_all_classes)


def read_table(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of every row of a CSV file with a header, or of JSON objects, one a line.

    Raises:
        DataError: The file is absent, is no UTF-8, CSV or JSON, or a row has another number of columns than the header.
    """
    if file.suffix.lower() == ".jsonl":
        for number, line in _text_lines(file):
            if line:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{file}, line {number}: is no JSON ({error}); expected an object") from error
                if not isinstance(row, dict):
                    raise DataError(f"{file}, line {number}: is a {type(row).__name__}; expected one object a line")
                yield number, row
        return
    lines = [line for _, line in _text_lines(file)]
    reader = csv.reader(line + "\n" for line in lines)
    header: list[str] | None = None
    try:
        for cells in reader:
            if header is None:
                header = cells
            elif cells and len(cells) != len(header):
                raise DataError(
                    f"{file}, line {reader.line_num}: has {len(cells)} columns; expected {len(header)} "
                    f"({', '.join(header)}): put texts with commas in quotation marks"
                )
            elif cells:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: is no CSV ({error}); check its quotation marks") from error


def _label_list(value: Any, origin: str) -> list[str | int]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(";") if part.strip()]
    if isinstance(value, list) and all(isinstance(part, str | int) and not isinstance(part, bool) for part in value):
        return value
    if value is None:
        return []
    raise DataError(f"{origin}: labels are {value!r}; expected a list of class names or names joined by ';'")


def _occurring_names(labels: Iterable[list[str | int]], file: Path) -> tuple[str, ...]:
    found = {part for row in labels for part in row}
    if any(isinstance(part, int) for part in found):
        raise DataError(f"{file}: its labels are numbers; pass class_names, in the order of the ids")
    return tuple(sorted(str(part) for part in found))


def _ids_of(labels: Sequence[str | int], class_names: Sequence[str], origin: str) -> list[int]:
    by_name = {label: index for index, label in enumerate(class_names)}
    ids = []
    for label in labels:
        if isinstance(label, str) and label in by_name:
            ids.append(by_name[label])
        elif str(label).isdecimal():  # CSV knows no numbers: a whole number that is no class name is an id
            ids.append(_label_id(str(label), len(class_names), origin))
        else:
            raise DataError(f"{origin}: label {label!r} is no known class; expected one of {', '.join(class_names)}")
    return ids


def _one_caption(value: Any) -> str | None:
    texts = value if isinstance(value, list) else [value]
    plain = [" ".join(str(text).split()) for text in texts if text is not None]
    return CAPTION_SEPARATOR.join(text for text in plain if text) or None


# ------------------------------------------------------------------------------------ common checks


def _assemble(
    name: str,
    names: Sequence[str],
    labels: Sequence[Sequence[int]],
    captions: Sequence[str | None],
    origins: Sequence[str],
    class_names: tuple[str, ...],
    folder: Path,
    require_all_classes: bool,
) -> MultiLabelSet:
    """Check what all formats have in common, and build the set."""
    if not names:
        raise DataError(f"{name}: lists no picture; expected one a line")
    _refuse_duplicates(names, origins)
    images = tuple(folder / path for path in names)
    missing = [
        f"{path} ({origin})" for path, image, origin in zip(names, images, origins, strict=True) if not image.is_file()
    ]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(images)} listed pictures are missing; "
            "check the folder that paths are relative to:" + list_lines(missing)
        )
    targets = np.zeros((len(names), len(class_names)), np.uint8)
    for row, ids in enumerate(labels):
        targets[row, list(ids)] = 1
    empty = [class_names[index] for index in np.flatnonzero(targets.sum(axis=0) == 0)]
    message = f"{name}: {len(empty)} classes have no picture: {', '.join(empty)}"
    if empty and require_all_classes:
        raise DataError(message + "; add pictures, or take the classes out of the labels")
    entries = (
        (f"{path}\0{sorted(set(ids))}\0{caption}", file_checksum(image))
        for path, ids, caption, image in zip(names, labels, captions, images, strict=True)
    )
    checksum = folder_checksum([*entries, ("classes", "\0".join(class_names))])
    return MultiLabelSet(
        name, images, targets, class_names, tuple(captions), checksum, tuple(origins), (message,) if empty else ()
    )


def _refuse_duplicates(names: Sequence[str], origins: Sequence[str]) -> None:
    first: dict[str, str] = {}
    twice = []
    for path, origin in zip(names, origins, strict=True):
        if path in first:
            twice.append(f"{path}: {first[path]} and {origin}")
        first.setdefault(path, origin)
    if twice:
        raise DataError(f"{len(twice)} pictures are listed twice; expected every path once:" + list_lines(twice))


# ------------------------------------------------------------------------------------------- splits


def split_validation(targets: np.ndarray, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Part images so that every class keeps its share, and rare classes stay in both parts where they can.

    Iterative stratification: the rarest class that is left is dealt out first, each image to the part that
    still wants the class most. A class with two images or more wants at least one in each part; where the
    dealing failed that (its images were bound by even rarer classes), single images are moved.

    Args:
        targets: (image, class), 0 or 1.
        share: Of the validation part, above 0 and below 1.
        seed: Deals out ties.

    Returns:
        Training and validation indices, int64, each ascending; together every image once.

    Raises:
        DataError: The share is outside, or there are fewer than two images.

    Source: Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data", algorithm 1
    """
    targets = check_targets(targets)
    if not 0 < share < 1:
        raise DataError(f"the validation share is {share}; expected a number above 0 and below 1")
    if len(targets) < 2:
        raise DataError(f"{len(targets)} images cannot be parted; expected two or more")
    rng = np.random.default_rng(seed)
    counts = targets.sum(axis=0, dtype=np.int64)
    wanted = np.where(counts >= 2, np.clip(share * counts, 1, np.maximum(counts - 1, 1)), 0.0)
    wishes = np.stack([counts - wanted, wanted])
    sizes = np.array([(1 - share) * len(targets), share * len(targets)])
    part = np.full(len(targets), -1)
    while (part < 0).any():
        left = (targets * (part < 0)[:, None]).sum(axis=0)
        if not left.any():  # images without any class
            label, members = None, rng.permutation(np.flatnonzero(part < 0))
        else:
            label = int(np.where(left > 0, left, len(targets) + 1).argmin())
            members = rng.permutation(np.flatnonzero((part < 0) & (targets[:, label] == 1)))
        for image in members:
            # Most wanted for this class, then the emptier part, then training.
            chosen = max((0, 1), key=lambda side: (0.0 if label is None else wishes[side, label], sizes[side], -side))
            part[image] = chosen
            wishes[chosen] -= targets[image]
            sizes[chosen] -= 1
    _move_singles(targets, part)
    return np.flatnonzero(part == 0), np.flatnonzero(part == 1)


def _move_singles(targets: np.ndarray, part: np.ndarray) -> None:
    """Give every class with two images or more one in each part, unless that takes another class's last one."""
    counts = targets.sum(axis=0, dtype=np.int64)
    for label in np.argsort(counts, kind="stable"):
        for side in (0, 1):
            if counts[label] < 2 or (targets[part == side, label] == 1).any():
                continue
            for image in np.flatnonzero((part != side) & (targets[:, label] == 1)):
                others = targets[(part != side) & (np.arange(len(part)) != image)].sum(axis=0)
                if (others[(targets[image] == 1) & (counts >= 2)] > 0).all():
                    part[image] = side
                    break
    if not (part == 0).any() or not (part == 1).any():
        part[-1] = 1 - part[-1]


# ------------------------------------------------------------------------------------- wrong captions


def replace_captions(
    captions: Sequence[str | None], targets: np.ndarray, share: float, seed: int = 0
) -> tuple[str | None, ...]:
    """Give part of the images the caption of another image with other classes: how a bad captioner is imitated.

    Args:
        captions: One an image, None where there is none; those stay None.
        targets: (image, class), 0 or 1.
        share: Part of the captions to replace, 0 to 1, rounded to whole captions.
        seed: Chooses images and captions.

    Returns:
        As many captions, in the order of the images. The smaller of two shares replaces a part of what the
        larger one does, by the same captions.

    Raises:
        DataError: The share is outside, or all captioned images have the same classes.
    """
    if not 0 <= share <= 1:
        raise DataError(f"the share of wrong captions is {share}; expected 0 to 1")
    targets = check_targets(targets)
    if len(captions) != len(targets):
        raise DataError(f"{len(captions)} captions for {len(targets)} rows of targets; expected one a row")
    rng = np.random.default_rng([seed, 29])
    captioned = np.array([index for index, caption in enumerate(captions) if caption], np.int64)
    result = list(captions)
    for index in rng.permutation(captioned)[: round(share * len(captioned))]:
        others = captioned[(targets[captioned] != targets[index]).any(axis=1)]
        if not len(others):
            raise DataError("all captioned images have the same classes; there is no wrong caption to give")
        result[index] = captions[int(rng.choice(others))]
    return tuple(result)
