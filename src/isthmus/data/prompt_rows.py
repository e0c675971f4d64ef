"""Prompt files as rows, each with its place for messages."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
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
    """Yields the rows of a `.jsonl`, `.csv` or `.txt` file, line by line but for `.csv`.

    Args:
        path: The file; lines of text become rows with `prompt`.

    Yields:
        PromptRow: Rows with their places.

    Raises:
        DataError: If the file is missing, empty, not UTF-8 or of another type, or a row is damaged.
    """
    readers = {".jsonl": _json_rows, ".csv": _csv_rows, ".txt": _plain_rows}
    if path.suffix not in readers:
        raise DataError(f"cannot read {path}: expected a .jsonl, .csv or .txt file")
    lines = _lines(path)
    begun: list[_Line] = []
    for line in lines:
        begun.append(line)
        if line.text.strip():
            break
    else:
        raise DataError(f"{path} is empty: expected at least one prompt")
    yield from readers[path.suffix](path, itertools.chain(begun, lines))


class _Line(NamedTuple):
    number: int
    text: str

    def place(self, path: Path) -> str:
        return f"{path}, line {self.number}"


def _lines(path: Path) -> Iterator[_Line]:
    # Only "\n" ends a line: others, such as U+2028, may stand within a JSON text.
    number = 0
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                encoding = "utf-8-sig" if number == 1 else "utf-8"
                yield _Line(number, raw.decode(encoding))
    except FileNotFoundError:
        raise DataError(f"no file {path}: check the path") from None
    except UnicodeDecodeError:
        place = f"{path}, line {number}"
        raise DataError(f"{place}: not UTF-8, save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _json_rows(path: Path, lines: Iterable[_Line]) -> Iterator[PromptRow]:
    for line in lines:
        if not (text := line.text.strip()):
            continue
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            # Numbers of thousands of digits and thousands of brackets are no syntax errors.
            said = getattr(error, "msg", None) or error
            raise DataError(f"{line.place(path)}: not JSON ({said}), expected one object") from None
        if not isinstance(values, dict):
            raise DataError(f"{line.place(path)}: found {text[:60]}, expected a JSON object")
        yield PromptRow(line.place(path), values)


def _plain_rows(path: Path, lines: Iterable[_Line]) -> Iterator[PromptRow]:
    for line in lines:
        if text := line.text.strip():
            yield PromptRow(line.place(path), {"prompt": text})


def _csv_rows(path: Path, lines: Iterable[_Line]) -> Iterator[PromptRow]:
    reader = csv.DictReader((line.text for line in lines), strict=True)
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
