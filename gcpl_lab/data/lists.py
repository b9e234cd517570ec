"""Images with several labels and captions from files: the published long-tail lists, and metadata files.

Whatever is wrong with a file is reported with its line, and everything of one kind at once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gcpl_lab.data.readers import is_file, list_lines
from gcpl_lab.data.sets import CAPTION_SEPARATOR, MultiLabelSet, check_class_names, plain_name
from gcpl_lab.data.tables import find_column, read_lines, read_table
from gcpl_lab.errors import DataError
from gcpl_lab.storage import file_checksum, folder_checksum


def read_longtail_list(
    list_file: str | Path, labels_file: str | Path, image_folder: str | Path, captions_file: str | Path | None = None
) -> MultiLabelSet:
    """Read lists in the format of VOC-LT and COCO-LT as the LMPT repository publishes them.

    Args:
        list_file: One image a line: its path below ``image_folder`` without blanks, then its label ids, if any.
            Empty lines are passed over. The set takes the file's name.
        labels_file: One class a line: its name, and behind it its id; or the names alone, in the order of
            the ids. Underscores become blanks, because the name goes into a prompt.
        captions_file: One caption a line, for every image of the list: its path and the text (in any order of
            lines), or the texts alone in the order of the list. A line may be empty.

    Raises:
        DataError: A file is absent or no text, or one of its lines, named, is wrong; images are missing (all listed).

    Source: https://github.com/richard-peng-xia/LMPT (``data/voc``, ``data/coco``)
    """
    list_file = Path(list_file)
    class_names = _read_class_names(Path(labels_file))
    lines = [(f"{list_file}, line {number}", line.split()) for number, line in read_lines(list_file) if line]
    ids = [[_label_id(value, len(class_names), origin) for value in words[1:]] for origin, words in lines]
    paths = [words[0] for _, words in lines]
    captions = _read_captions(Path(captions_file), paths) if captions_file else [None] * len(lines)
    origins = [origin for origin, _ in lines]
    return _build_set(list_file.stem, Path(image_folder), class_names, paths, ids, captions, origins)


def _read_class_names(path: Path) -> tuple[str, ...]:
    lines = [line for _, line in read_lines(path) if line]
    if not lines:
        raise DataError(f"{path}: names no class; expected one class a line")
    parts = [line.rsplit(maxsplit=1) for line in lines]
    if all(len(part) == 2 and part[1].isdecimal() for part in parts):
        by_id = {int(index): label for label, index in parts}
        if sorted(by_id) != list(range(len(parts))):
            raise DataError(
                f"{path}: the ids are {', '.join(part[1] for part in parts)}; "
                f"expected each of 0 to {len(parts) - 1} once"
            )
        lines = [by_id[index] for index in range(len(parts))]
    names = tuple(plain_name(label.replace("_", " ")) for label in lines)
    try:
        check_class_names(names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return names


def _label_id(value: str, num_classes: int, origin: str) -> int:
    if not value.isdecimal() or int(value) >= num_classes:
        raise DataError(
            f"{origin}: label id is {value!r}; expected a whole number from 0 to {num_classes - 1} "
            "(a path must hold no blanks)"
        )
    return int(value)


def _read_captions(path: Path, names: Sequence[str]) -> list[str | None]:
    """One caption for each image of the list, by path where the lines begin with one."""
    lines = list(read_lines(path))
    while lines and not lines[-1][1] and len(lines) > len(names):
        lines.pop()  # empty lines at the end of the file
    if len(lines) != len(names):
        raise DataError(
            f"{path}: has {len(lines)} lines and the list has {len(names)} images; "
            "expected one line an image (an empty one where there is no caption)"
        )
    known = set(names)
    first_words = [(line.split(maxsplit=1) or [""])[0] for _, line in lines]
    if not any(word in known for word in first_words):
        return [line or None for _, line in lines]
    by_path: dict[str, str | None] = {}
    for (number, line), word in zip(lines, first_words, strict=True):
        if word not in known or word in by_path:
            problem = "is there a second time" if word in by_path else "is not in the list"
            raise DataError(f"{path}, line {number}: image {word!r} {problem}; expected every listed one once")
        by_path[word] = line[len(word) :].strip() or None
    return [by_path[name] for name in names]


def read_metadata(
    file: str | Path,
    *,
    image_folder: str | Path | None = None,
    labels_column: str = "labels",
    rows: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    name: str | None = None,
) -> MultiLabelSet:
    """Read the ``metadata.csv`` or ``metadata.jsonl`` of a folder of images.

    Args:
        file: CSV with a header line, or one JSON object a line (by the suffix ``.jsonl``). A column ``file_name`` (or
            ``filename``) names the images; ``caption`` (or ``captions``) has a text, a list, or texts joined by " | ".
        image_folder: What the file names are relative to; the folder of ``file`` by default.
        labels_column: Class names as a list or joined by ``;``, or class ids where ``class_names`` is given.
            May be empty.
        rows: Take only rows with these values, such as ``{"split": "train"}``; class names come from all.
        class_names: The classes in the order of their ids; by default all that occur, sorted.
        name: Of the set; the folder's and the chosen values by default.

    Raises:
        DataError: As :func:`read_longtail_list`; also a column that is not there, an unknown class, or no row left.

    Source: https://huggingface.co/docs/datasets/image_dataset
    """
    file, wanted = Path(file), dict(rows or {})
    table = [(f"{file}, line {number}", row) for number, row in read_table(file)]
    if not table:
        raise DataError(f"{file}: holds no row; expected one row an image")
    file_column = find_column(list(table[0][1]), ("file_name", "filename")) or "file_name"
    caption_column = find_column(list(table[0][1]), ("caption", "captions"))
    for origin, row in table:
        for column in (file_column, labels_column, caption_column, *wanted):
            if column and column not in row:
                raise DataError(f"{origin}: has no {column!r}; the columns are {', '.join(row)}: rename the right one")
    labels, places = [_label_list(row[labels_column], origin) for origin, row in table], [at for at, _ in table]
    names = tuple(class_names) if class_names is not None else _occurring_names(labels, places, file)
    try:
        check_class_names(names)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    chosen = [place for place, (_, row) in enumerate(table) if all(str(row[key]) == wanted[key] for key in wanted)]
    if not chosen:
        raise DataError(f"{file}: no row has {wanted}; check the names and values")
    origins, listed = zip(*[table[place] for place in chosen], strict=True)
    ids = [[_id_of(label, names, table[place][0]) for label in labels[place]] for place in chosen]
    captions = [_one_caption(row[caption_column]) if caption_column else None for row in listed]
    paths = [str(row[file_column]) for row in listed]
    title = name or "/".join([file.resolve().parent.name, *wanted.values()])
    folder = file.parent if image_folder is None else Path(image_folder)
    return _build_set(title, folder, names, paths, ids, captions, origins)


def _label_list(value: Any, origin: str) -> list[str | int]:
    if isinstance(value, str | None):
        parts = [plain_name(part) for part in (value or "").split(";") if part.strip()]
        for part in parts:
            if "|" in part or part[0] + part[-1] in ("[]", "()", "{}") or part.casefold() == "nan":
                raise DataError(f"{origin}: labels are {value!r}; expected names joined by ';' (cat;dog), or nothing")
        return list(parts)
    if isinstance(value, list) and all(isinstance(part, str | int) and not isinstance(part, bool) for part in value):
        return [plain_name(part) if isinstance(part, str) else part for part in value]
    raise DataError(f"{origin}: labels are {value!r}; expected a list of class names or names joined by ';'")


def _occurring_names(labels: Sequence[list[str | int]], origins: Sequence[str], file: Path) -> tuple[str, ...]:
    found = {part: origin for row, origin in zip(labels, origins, strict=True) for part in row}
    if any(isinstance(part, int) for part in found):
        raise DataError(f"{file}: its labels are numbers; pass class_names, in the order of the ids")
    pieces = Counter(piece.strip() for name in found for piece in str(name).split(","))
    for name, origin in found.items():
        if "," in str(name) and any(pieces[piece.strip()] > 1 for piece in str(name).split(",")):
            raise DataError(f"{origin}: the label {name!r} holds other labels; join several by ';', such as cat;dog")
    return tuple(sorted(str(part) for part in found))


def _id_of(label: str | int, class_names: Sequence[str], origin: str) -> int:
    if label in class_names:
        return class_names.index(str(label))
    # CSV knows no numbers: a whole number is an id, but where class names are numbers themselves.
    if str(label).isdecimal() and not any(name.isdecimal() for name in class_names):
        return _label_id(str(label), len(class_names), origin)
    raise DataError(f"{origin}: label {label!r} is no known class; expected one of {', '.join(class_names)}")


def _one_caption(value: Any) -> str | None:
    texts = value if isinstance(value, list) else [value]
    plain = [" ".join(str(text).split()) for text in texts if text is not None]
    return CAPTION_SEPARATOR.join(filter(None, plain)) or None


def _check_inside(folder: Path, path: str, origin: str) -> None:
    """Refuse a path that leads out of the folder it is relative to; ``image_folder="/"`` allows absolute ones."""
    root = os.path.normpath(folder.absolute())
    outside = os.path.commonpath([root, os.path.normpath(folder.absolute() / path)]) != root
    if outside or (os.path.isabs(path) and root != "/"):
        raise DataError(
            f"{origin}: {path[:200]!r} leads out of {folder}; expected a path inside it: give the folder that holds "
            "all images as the one that paths are relative to (--images)"
        )


def _build_set(
    name: str,
    folder: Path,
    class_names: tuple[str, ...],
    paths: Sequence[str],
    labels: Sequence[list[int]],
    captions: Sequence[str | None],
    origins: Sequence[str],
) -> MultiLabelSet:
    """Check that every image is there and listed once; a class without any is a warning."""
    if not paths:
        raise DataError(f"{name}: lists no image; expected one a line")
    listed, first = list(zip(paths, origins, strict=True)), dict[str, str]()
    for path, origin in listed:
        _check_inside(folder, path, origin)
    plain = [(os.path.normpath(folder / path), path, origin) for path, origin in listed]
    twice = [f"{path}: {first[place]} and {at}" for place, path, at in plain if first.setdefault(place, at) != at]
    if twice:
        raise DataError(f"{len(twice)} images are listed twice; expected every path once:" + list_lines(twice))
    missing = [f"{path[:200]} ({origin})" for path, origin in listed if not is_file(folder / path)]
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(paths)} listed images are missing; check the folder that paths are "
            "relative to:" + list_lines(missing)
        )
    targets = np.zeros((len(paths), len(class_names)), np.uint8)
    for row, ids in enumerate(labels):
        targets[row, ids] = 1
    empty = [class_names[index] for index in np.flatnonzero(targets.sum(axis=0) == 0)]
    warnings = (f"{name}: {len(empty)} classes have no image: {', '.join(empty)}",) if empty else ()
    images = tuple(folder / path for path in paths)
    told = [f"{path}\0{sorted(set(ids))}\0{text}" for path, ids, text in zip(paths, labels, captions, strict=True)]
    checksums = [*zip(told, map(file_checksum, images), strict=True), ("classes", "\0".join(class_names))]
    checksum = folder_checksum(checksums)
    return MultiLabelSet(name, images, targets, class_names, tuple(captions), checksum, tuple(origins), warnings)
