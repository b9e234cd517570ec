"""Lines and rows of users' text files, each with the number that an error names."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gcpl_lab.errors import DataError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line number from 1 and stripped text of every line, empty ones too; a DataError where it is no UTF-8 file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"{path}: is no UTF-8 text file ({error})") from error
    # Not splitlines(), which also breaks at rare characters inside a caption.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        yield number, line.strip()


def read_table(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and columns of every row of a CSV file with a header, or of JSON objects, one a line (``.jsonl``)."""
    if file.suffix.lower() != ".jsonl":
        yield from read_csv(file)[1]
        return
    for number, line in read_lines(file):
        try:
            row = json.loads(line or "{}")
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {number}: is no JSON ({error}); expected an object") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: is a {type(row).__name__}; expected one object a line")
        if line:
            yield number, row


def read_csv(file: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header of a CSV file, and line number and columns of every row; errors as in :func:`read_table`."""
    rows: list[tuple[int, dict[str, str]]] = []
    reader = csv.reader([line + "\n" for _, line in read_lines(file)])
    try:
        header = next(reader, [])
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise DataError(
                    f"{file}, line {reader.line_num}: has {len(cells)} columns; expected {len(header)} "
                    f"({', '.join(header)}): put texts with commas in quotation marks"
                )
            rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: is no CSV ({error}); check its quotation marks") from error
    return header, rows
