"""Tables as people write them, for link.csv, annotation tables and split files."""

import csv
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from etl.errors import EtlError
from loader.format import NO_FOLD, SPLITS


def read_csv(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, column → value) of a table as people write it.

    A byte order mark, CRLF, blank lines, blanks around values, columns in any order and further
    columns are all fine; names of columns are compared without case.

    Raises
    ------
    EtlError
        The file is missing, not text, or lacks a required column.
    """
    expected = ",".join(required)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            found = "folder" if stat.S_ISDIR(mode) else "device or pipe"
            raise EtlError(
                f"Table not usable: {path}: is a {found}, expected a file with the columns "
                f"{expected}."
            )
        text = path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EtlError(
            f"Table not usable: {path}: no such file. Write one with the columns {expected}."
        ) from error
    except UnicodeDecodeError as error:
        raise EtlError(
            f"Table not usable: {path}: not text, expected UTF-8. Save it as CSV (UTF-8)."
        ) from error
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
        raise EtlError(f"Table not usable: {path}: {reason}.") from error
    if "\0" in text:
        raise EtlError(f"Table not usable: {path}: not text (NUL bytes). Save it as CSV (UTF-8).")
    lines = ((i, line) for i, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip())
    _, header = next(lines, (1, ""))
    columns = [column.casefold() for column in _cells(header)]
    if missing := [column for column in required if columns.count(column) != 1]:
        raise EtlError(
            f"Table not usable: {path}, line 1: expected each of the columns {expected} once, "
            f"separated by commas, found {header.strip()[:80]!r} (look at: {', '.join(missing)})."
        )
    for number, line in lines:
        cells = _cells(line)
        if any(cells):  # spreadsheets write empty rows as lone commas
            yield number, dict(zip(columns, cells, strict=False))


def _cells(line: str) -> list[str]:
    """Split one line; each stands alone, so that a stray quote spoils no other."""
    try:
        cells = next(csv.reader([line.strip()]), [])
    except csv.Error:  # a field beyond the module's limit
        cells = line.split(",")
    return [cell.strip() for cell in cells]


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
