"""Tables as people write them, for link.csv, annotation tables and split files."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import xxhash

from etl.errors import EtlError
from etl.sources.files import read_named
from etl.sources.strays import find_near
from loader.format import NO_FOLD, SPLITS

_NAMES_OF_SEPARATORS: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SEPARATOR_LINE: Final = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)
_TEXT_CELL: Final = re.compile(r'="(.*)"', re.DOTALL)


def read_csv(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, column → value) of a table as people write it.

    A byte order mark, CRLF, blank lines, blanks around values, columns in any order and further
    columns are all fine; names of columns are compared without case. A first line `sep=;` names
    another separator than the comma, and `="P1"` is P1, as spreadsheets have it.

    Raises
    ------
    EtlError
        The file is missing, not text, or lacks a required column.
    """
    expected = ",".join(required)
    text = _text(path, expected)
    if "\0" in text:
        raise EtlError(f"Table not usable: {path}: not text (NUL bytes). Save it as CSV (UTF-8).")
    lines = ((i, line) for i, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip())
    number, header = next(lines, (1, ""))
    separator = ","
    if said := _SEPARATOR_LINE.fullmatch(header):
        separator = said[1]
        number, header = next(lines, (number + 1, ""))
    columns = [column.casefold() for column in _cells(header, separator)]
    if missing := [column for column in required if columns.count(column) != 1]:
        words = _NAMES_OF_SEPARATORS.get(separator, repr(separator))
        raise EtlError(
            f"Table not usable: {path}, line {number}: expected each of the columns {expected} "
            f"once, separated by {words}, found {header.strip()[:80]!r} (look at: "
            f"{', '.join(missing)}).{_advice(header, separator)}"
        )
    for number, line in lines:
        cells = _cells(line, separator)
        if any(cells):  # spreadsheets write empty rows as lone commas
            yield number, dict(zip(columns, cells, strict=False))


def _text(path: Path, expected: str) -> str:
    """Return the text of a table; `expected` are its columns, for messages."""
    try:
        return _read(path, f"the columns {expected}").decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EtlError(
            f"Table not usable: {path}: no such file. {_where_it_is(path)}Write one with the "
            f"columns {expected}."
        ) from error
    except UnicodeDecodeError as error:
        raise EtlError(
            f"Table not usable: {path}: not text, expected UTF-8. Save it as CSV (UTF-8)."
        ) from error
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise EtlError(f"Table not usable: {path}: {reason}.") from error


def table_digest(path: Path) -> str:
    """Return the XXH3-128 of a table's bytes, hexadecimal.

    Raises
    ------
    EtlError
        As for `read_csv`: it is not regular, or too large.
    """
    return xxhash.xxh3_128_hexdigest(_read(path))


def _read(path: Path, expected: str = "") -> bytes:
    return read_named(path, f"Table not usable: {path}", limit="table-bytes", expected=expected)


def _where_it_is(path: Path) -> str:
    """Return a sentence on a table of this name in a folder nearby; empty where there is none."""
    near = find_near(path.parent, [path.name])
    return f"There is one at {near[0]}: give its folder. " if near else ""


def _advice(header: str, separator: str) -> str:
    """Return what to do about a header that has another separator than was said."""
    other = next((one for one in _NAMES_OF_SEPARATORS if one != separator and one in header), "")
    if not other or separator in header:
        return ""
    shown = "a tab" if other == "\t" else repr(other)
    words = _NAMES_OF_SEPARATORS.get(separator, repr(separator))
    return f" Put a line sep= with {shown} behind it above, or save it with {words}."


def _cells(line: str, separator: str) -> list[str]:
    """Split one line by itself, so that a stray quote spoils no other line."""
    try:
        cells = next(csv.reader([line.strip(" \r\n")], delimiter=separator), [])
    except csv.Error:  # a field beyond the module's limit
        cells = line.split(separator)
    return [_plain(cell.strip()) for cell in cells]


def _plain(cell: str) -> str:
    """Return what a spreadsheet shows of a cell that is written as a formula of its text."""
    found = _TEXT_CELL.fullmatch(cell)
    return found[1].replace('""', '"').strip() if found else cell


def parse_side(split: str, fold: str, where: str) -> tuple[int, int]:
    """Return (split code, fold) of the cells `split` and `fold` of a table.

    Parameters
    ----------
    where : str
        Table and line, for the message.

    Raises
    ------
    EtlError
        Not train, validation or test; a fold that is not a whole number from 0 to 9999; a fold of
        a test patient.
    """
    if split not in SPLITS:
        raise EtlError(f"{where}: expected split {', '.join(SPLITS)}, found {split[:40]!r}.")
    if fold and not (fold.isascii() and fold.isdecimal() and len(fold) < 5):  # noqa: PLR2004  int16
        raise EtlError(f"{where}: expected a fold from 0 to 9999, found {fold[:40]!r}.")
    if fold and split == "test":
        raise EtlError(f"{where}: a test patient has no fold. Leave it empty.")
    return SPLITS.index(split), int(fold) if fold else NO_FOLD


def without_mark(cell: str) -> str:
    """Return a cell without the quote that a report writes before what looks like a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in {"=", "+", "-", "@"} else cell
