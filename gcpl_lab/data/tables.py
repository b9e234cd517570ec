"""Lines and rows of users' text files, each with the number that an error names.

A file that is not understood is refused: rows that are read otherwise than they were meant change a result silently.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gcpl_lab.errors import DataError
from gcpl_lab.storage import write_text

ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
"""By what a file begins with; else UTF-8."""

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "upright bars"}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line number from 1 and stripped text of every line, empty ones too; a DataError where it is no text file."""
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8")
        # Not splitlines(), which also breaks at rare characters inside a caption.
        lines = content.decode(encoding).removesuffix("\n").split("\n") if content not in {b"", *ENCODINGS} else []
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {number}: is no UTF-8 text (byte {content[error.start]:#04x}); save it as UTF-8, which "
            'Excel calls "CSV UTF-8"'
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); expected a text file") from None
    yield from ((number, line.strip()) for number, line in enumerate(lines, start=1))


def read_table(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of every row of a CSV file with a header, or of JSON objects, one a line (``.jsonl``)."""
    if file.suffix.lower() != ".jsonl":
        yield from read_csv(file)[1]
        return
    for number, line in read_lines(file):
        row = _read_object(line or "{}", f"{file}, line {number}")
        if line:
            yield number, row


def _read_object(text: str, origin: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_columns([name for name, _ in pairs], origin)
        return dict(pairs)

    try:
        row = json.loads(text, object_pairs_hook=unique)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin}: is no JSON ({error}); expected an object") from error
    if not isinstance(row, dict):
        raise DataError(f"{origin}: is a {type(row).__name__}; expected one object a line")
    _check_characters(row, origin)
    return row


def read_csv(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header of a CSV file, and line number and columns of every row; errors as in :func:`read_table`."""
    lines = [line + "\n" for _, line in read_lines(file)]
    rows: list[tuple[int, dict[str, str]]] = []
    reader = csv.reader(lines)
    try:
        header = next(reader, [])
        check_header(header, lines[0] if lines else "", f"{file}, line 1")
        for cells in filter(None, reader):
            origin = f"{file}, line {reader.line_num}"
            if len(cells) != len(header):
                raise DataError(
                    f"{origin}: has {len(cells)} columns; expected {len(header)} "
                    f"({', '.join(header)}): put texts with commas in quotation marks"
                )
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
            _check_characters(rows[-1][1], origin)
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: is no CSV ({_csv_problem(error)})") from error
    return header, rows


def _csv_problem(error: csv.Error) -> str:
    if "field limit" in str(error):
        most = f"{csv.field_size_limit():,}"
        return f"a text has more than {most} letters; shorten it, or close a quotation mark that was left open"
    return f"{error}; check its quotation marks"


def check_header(header: Sequence[str], line: str, origin: str) -> None:
    """Refuse columns that are parted by anything but commas, blanks around their names, and a name that is twice."""
    if line.lower().startswith("sep="):
        raise DataError(f"{origin}: is Excel's {line.strip()!r}; expected the names of the columns: remove the line")
    if len(header) == 1:
        for separator, name in SEPARATORS.items():
            if separator in header[0]:
                raise DataError(
                    f"{origin}: its columns are parted by {name} ({line.strip()!r}); expected commas: save it as CSV "
                    "with commas, texts that hold any in quotation marks"
                )
    for name in header:
        if name != name.strip():
            raise DataError(f"{origin}: has the column {name!r}; expected {name.strip()!r}: remove the blanks")
    _check_columns(header, origin)


def _check_columns(names: Sequence[str], origin: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{origin}: names the column {name!r} twice; expected every column once")


def _check_characters(row: dict[str, Any], origin: str) -> None:
    """Refuse half characters, which JSON can spell and no file can hold, and NUL, which no path can."""
    for name, value in row.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise DataError(f"{origin}: {name!r} holds half a character ({ascii(text)[:60]}); write it anew")
            if isinstance(text, str) and "\0" in text:
                raise DataError(f"{origin}: {name!r} holds a NUL character ({ascii(text)[:60]}); write it anew")


def find_column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of ``names`` that is a column; DataError where one is spelt otherwise but for case and blanks."""
    for name in names:
        if name in columns:
            return name
    for column in columns:
        if column.strip().casefold() in names:
            raise DataError(f"has the column {column!r}; expected {column.strip().casefold()!r}: rename it")
    return None


def write_csv(file: str | Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows with the same keys as CSV with a header, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(file, text.getvalue())
