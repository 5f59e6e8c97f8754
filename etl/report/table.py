"""Tables that a build reads again: the row list, one line for each finding, and the split."""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from etl.errors import EtlError
from etl.findings import CODES, FindingRow, printable, sample_keys
from etl.output import target
from etl.sources.row_list import COLUMNS as ROW_LIST_COLUMNS
from loader import Dataset
from loader.format import NO_FOLD, NO_SPLIT, SPLITS

# Those that a build reads, and what a report adds.
COLUMNS: Final = (
    *ROW_LIST_COLUMNS,
    *("severity", "code", "message", "advice", "path", "original_id"),
)


def write_csv(dataset: Dataset, findings: Iterable[FindingRow], path: Path, *, force: bool) -> None:
    """Write findings as a row list, for a spreadsheet.

    Raises
    ------
    EtlError
        `path` exists (without `force`), is the dataset itself, or cannot be written.
    """
    _write(dataset, csv_text(dataset, findings), path, force=force)


def write_splits(dataset: Dataset, path: Path, *, force: bool) -> None:
    """Write the split of each patient, as `build --split-file` reads it.

    Raises
    ------
    EtlError
        The file has no split; or as for `write_csv`.
    """
    _write(dataset, splits_text(dataset), path, force=force)


def splits_text(dataset: Dataset, line_end: str = "\r\n") -> str:
    """Return the split of each patient that has one, and its fold where the file has folds.

    Raises
    ------
    EtlError
        No patient has a split.
    """
    columns = (dataset.manifest[name].tolist() for name in ("patient_id", "split", "fold"))
    sides = {one: (side, fold) for one, side, fold in zip(*columns, strict=True)}
    listed = {one: side for one, side in sides.items() if side[0] != NO_SPLIT}
    if not listed:
        raise EtlError(
            f"Splits not listed: {dataset.path}: no patient has a split. Build with `split`."
        )
    has_folds = any(fold != NO_FOLD for _, fold in listed.values())
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator=line_end)
    table.writerow(["patient_id", "split", "fold"][: 2 + has_folds])
    for patient_id, (side, fold) in listed.items():
        cells = [no_formula(patient_id), SPLITS[side], "" if fold == NO_FOLD else fold]
        table.writerow(cells[: 2 + has_folds])
    return text.getvalue()


def _write(dataset: Dataset, text: str, path: Path, *, force: bool) -> None:
    if os.path.exists(path) and os.path.samefile(path, dataset.path):
        raise EtlError(f"Output not usable: {path}: is the dataset itself. Give another name.")
    path = target.check_target(path, force=force, only_hdf5=False)
    with target.replacing(path, force=force) as partial:
        partial.write_text(text, encoding="utf-8-sig", newline="")


def csv_text(dataset: Dataset, findings: Iterable[FindingRow], line_end: str = "\r\n") -> str:
    """Return findings as a row list."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator=line_end)
    table.writerow(COLUMNS)
    table.writerows([no_formula(cell) for cell in line] for line in _lines(dataset, findings))
    return text.getvalue()


def _lines(dataset: Dataset, findings: Iterable[FindingRow]) -> Iterator[tuple[str | int, ...]]:
    """Yield one line of cells for each finding, in the order of the columns."""
    keys = sample_keys(dataset.manifest)
    names = {structure.code: structure.name for structure in dataset.structures}
    for found in findings:
        row = found.row
        _, *place = keys[row] if row >= 0 else [""] * 4
        advice = CODES[found.code].advice if found.code in CODES else ""
        yield (
            *(found.patient_id, *place, names.get(found.label, ""), "", ""),
            *(found.severity, found.code, found.message, advice, found.path, found.original_id),
        )


def no_formula(value: str | int) -> str | int:
    """Return a printable cell that no spreadsheet runs as a formula."""
    if not isinstance(value, str):
        return value
    is_formula = value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{printable(value)}" if is_formula else printable(value)
