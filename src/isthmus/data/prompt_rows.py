"""Prompt files as rows, each with its place for messages."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from isthmus.core.errors import DataError


class PromptRow(NamedTuple):
    """One row of a file of prompts.

    Attributes:
        place: File and line, for messages.
        values: Its fields.
    """

    place: str
    values: Mapping[str, Any]


def prompt_rows(path: Path) -> Iterator[PromptRow]:
    """Returns the rows of a `.jsonl`, `.csv` or `.txt` file.

    Args:
        path: The file; lines of text become rows with `prompt`.

    Returns:
        Rows with their places.

    Raises:
        DataError: If the file is missing, empty, not UTF-8 or of another type, or a row is damaged.
    """
    readers = {".jsonl": _json_rows, ".csv": _csv_rows, ".txt": _plain_rows}
    if path.suffix not in readers:
        raise DataError(f"cannot read {path}: expected a .jsonl, .csv or .txt file")
    text = _read(path)
    if not text.strip():
        raise DataError(f"{path} is empty: expected at least one prompt")
    return readers[path.suffix](path, text)


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"no file {path}: check the path") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8, save the file as UTF-8") from None


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    # str.splitlines would also split at U+2028 and its kin, which may stand within a JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def _json_rows(path: Path, text: str) -> Iterator[PromptRow]:
    for place, line in _lines(path, text):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not JSON ({error.msg}), expected one object") from None
        if not isinstance(values, dict):
            raise DataError(f"{place}: found {line[:60]}, expected a JSON object")
        yield PromptRow(place, values)


def _plain_rows(path: Path, text: str) -> Iterator[PromptRow]:
    for place, line in _lines(path, text):
        yield PromptRow(place, {"prompt": line})


def _csv_rows(path: Path, text: str) -> Iterator[PromptRow]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for values in reader:
            place = f"{path}, line {reader.line_num}"
            if None in values or None in values.values():
                raise DataError(f"{place}: expected {len(reader.fieldnames or ())} columns")
            yield PromptRow(place, values)
    except csv.Error as error:
        # DictReader's own line number is still that of the row before.
        line = reader.reader.line_num
        raise DataError(f"{path}, line {line}: not CSV ({error})") from None
