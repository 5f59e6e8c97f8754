"""What OUT says of its rows to the next update: the group /reuse.

It holds nothing that identifies anyone: of PatientID and StudyInstanceUID only which rows share
one. `etl.update.cache` has keyed digests of them, so that an update need not read headers again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from etl.errors import ReuseError
from etl.findings import Finding, SampleKey
from etl.model import BASICS
from etl.output.row_writer import strings
from etl.quality.rows import SHAPES
from etl.render import MARKS, ManifestTable
from loader import Dataset
from loader.format import NO_ROW, REUSE, STRING

ROW: Final = np.dtype([*BASICS.descr, ("row", "<i8")])  # of OUT
EXAMINED, RENDERED = "examined", "rendered"  # the stages that have findings on single rows
_MARK, _REGION, _REMARK = "mark_", "region_", "remark_"  # what the names of columns begin with


class Remark(NamedTuple):
    """A finding on one row, without its key."""

    place: int  # of the row, in `Known.rows`
    stage: str
    code: str
    path: str
    message: str
    label: int

    def about(self, key: SampleKey) -> Finding:
        """Return the finding."""
        return Finding(self.code, self.path, self.message, key, self.label)


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the rows that an update may take over.

    Attributes
    ----------
    rows : array of ROW
    marks : array of MARKS
        One for each row; empty where the build made no checks.
    shapes : array of SHAPES
        `row` is the place in `rows`.
    remarks : list of Remark
    identities : uint64 array, shape (n, 2)
        Keyed digests of `Identity`, one for each row.
    key : bytes
        Of these digests.
    """

    rows: npt.NDArray[np.void]
    marks: npt.NDArray[np.void]
    shapes: npt.NDArray[np.void]
    remarks: list[Remark]
    identities: npt.NDArray[np.uint64]
    key: bytes

    def columns(self) -> ManifestTable:
        """Return the columns of /reuse."""
        columns: ManifestTable = {}
        for prefix, table in (("", self.rows), (_MARK, self.marks), (_REGION, self.shapes)):
            columns |= _columns(table, prefix)
        for n, name in enumerate(("same_patient", "same_study")):
            columns[name] = _first_of_group(self.identities[:, n], self.rows["row"])
        for name in Remark._fields:
            values = [getattr(remark, name) for remark in self.remarks]
            is_text = REUSE[_REMARK + name] == STRING
            columns[_REMARK + name] = strings(values) if is_text else np.array(values, np.int64)
        return columns


def read_known(dataset: Dataset) -> tuple[Known, npt.NDArray[np.int64]]:
    """Return what a file says of its rows, without identities, and which rows share one.

    Returns
    -------
    Known
    int64 array, shape (n, 2)
        Of PatientID and StudyInstanceUID: the first row with that value; -1 where there is none.

    Raises
    ------
    ReuseError
        It says nothing, or what cannot be.
    """
    reuse = dataset.reuse
    stored = reuse.stored
    if missing := [name for name in REUSE if name not in stored]:
        raise ReuseError(f"it lacks the column reuse/{missing[0]}")
    try:
        rows, marks, shapes = (
            _table(stored, prefix, dtype)
            for prefix, dtype in (("", ROW), (_MARK, MARKS), (_REGION, SHAPES))
        )
        columns = (reuse[_REMARK + name].tolist() for name in Remark._fields)
        remarks = [Remark(*one) for one in zip(*columns, strict=True)]
        groups = np.stack([stored["same_patient"], stored["same_study"]], axis=1)
    except ValueError as error:  # lengths differ, or bytes are no text
        raise ReuseError("its /reuse contradicts itself") from error
    identities = np.zeros((len(rows), 2), np.uint64)
    known = Known(rows, marks, shapes, remarks, identities, key=b"")
    if not _is_sound(known, groups, len(dataset)):
        raise ReuseError("its /reuse contradicts itself")
    return known, groups


def _is_sound(known: Known, groups: npt.NDArray[np.int64], n_rows: int) -> bool:
    """Say whether the places of a file's rows are places, in the order in which they are sought."""
    row, n = known.rows["row"], len(known.rows)
    places = known.shapes["row"]
    ends = np.concatenate([[-1], row, [n_rows]])
    return bool(
        (np.diff(ends) > 0).all()
        and len(known.marks) in {0, n}
        and len(groups) == n
        and (np.diff(np.concatenate([[0], places, [max(0, n - 1)]])) >= 0).all()
        and all(0 <= remark.place < n for remark in known.remarks)
    )


def _first_of_group(
    identities: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the first row that has each row's identity; -1 where there is none."""
    _, first, group = np.unique(identities, return_index=True, return_inverse=True)
    return np.where(identities == 0, NO_ROW, rows[first][group])


def _columns(table: npt.NDArray[np.void], prefix: str) -> ManifestTable:
    return {name: np.ascontiguousarray(values) for name, values in _fields(table, prefix)}


def _table(stored: ManifestTable, prefix: str, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    names = [name for name, _ in _fields(np.empty(0, dtype), prefix)]
    table = np.empty(len(stored[names[0]]), dtype)
    for name, values in _fields(table, prefix):
        if stored[name].shape != values.shape:
            raise ValueError(name)
        values[...] = stored[name]
    return table


def _fields(
    table: npt.NDArray[np.void], prefix: str
) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Yield (name, values) of the fields of a table, those of fields as well; no copy."""
    for name in table.dtype.names or ():
        values = table[name]
        if values.dtype.names:
            yield from _fields(values, f"{prefix}{name}_")
        elif values.ndim > 1:
            for n in range(values.shape[1]):
                yield f"{prefix}{name}_{n}", values[:, n]
        else:
            yield prefix + name, values


def shapes_of(shapes: npt.NDArray[np.void], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.void]:
    """Return the shapes of some rows, counted anew."""
    places = np.full(int(shapes["row"].max(initial=-1)) + 1, -1, np.int64)
    inside = rows[rows < len(places)]
    places[inside] = np.arange(len(inside))
    mine = shapes[places[shapes["row"]] >= 0].astype(SHAPES)
    mine["row"] = places[mine["row"]]
    order = np.argsort(mine["row"], kind="stable")
    ordered: npt.NDArray[np.void] = mine[order]
    return ordered


def rows_of(basics: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return a ROW of each sample, by its basics; `row` is still 0."""
    rows = np.zeros(len(basics), ROW)
    for name in BASICS.names or ():
        rows[name] = basics[name]
    return rows


def trimmed(texts: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return stored text no longer than its longest value, as `strings` gives it."""
    longest = max((len(value) for value in texts.tolist()), default=0)
    return texts.astype(f"S{max(1, longest)}")
