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
from etl.findings import Finding
from etl.model import BASICS, Link
from etl.output.row_writer import strings, visible
from etl.quality.rows import SHAPES
from etl.render import MARKS, ManifestTable
from etl.update.sources import paths_of
from loader import Dataset
from loader.format import NO_ROW, REUSE

ROW: Final = np.dtype([*BASICS.descr, ("row", "<i8")])  # of OUT
EXAMINED, RENDERED = "examined", "rendered"  # the stages that have findings on single rows
_MARK, _REGION, _REMARK = "mark_", "region_", "remark_"  # what the names of columns begin with
_SAME: Final = ("same_patient", "same_study")
_TEXTS: Final = ("stage", "code", "path", "message")  # of a remark


class Remark(NamedTuple):
    """A finding on one row, without its key."""

    place: int  # of the row, in `Known.rows`
    stage: str
    code: str
    path: str
    message: str
    label: int

    def about(self, link: Link) -> Finding:
        """Return the finding. OUT has undecodable bytes of names as text, the link has them."""
        paths = {visible(path): path for path in paths_of(link)}
        path = paths.get(self.path, self.path)
        return Finding(self.code, path, self.message, link.key, self.label)


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
        """Return the columns of /reuse; all numbers of rows in it are those of OUT."""
        row = self.rows["row"]
        columns: ManifestTable = {}
        for prefix, table in (("", self.rows), (_MARK, self.marks), (_REGION, self.shapes)):
            columns |= {name: np.ascontiguousarray(v) for name, v in _fields(table, prefix)}
        columns[f"{_REGION}row"] = row[self.shapes["row"]]
        for n, name in enumerate(_SAME):
            columns[name] = _first_of_group(self.identities[:, n], row)
        places = np.array([one.place for one in self.remarks], np.int64)
        columns[f"{_REMARK}row"] = row[places]
        columns[f"{_REMARK}label"] = np.array([one.label for one in self.remarks], np.uint8)
        for name in _TEXTS:
            columns[_REMARK + name] = strings([getattr(one, name) for one in self.remarks])
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
        n, row = len(rows), rows["row"]
        _require((np.diff([-1, *row.tolist(), len(dataset)]) > 0).all() and len(marks) in {0, n})
        shapes["row"] = _places(row, shapes["row"])
        _require((np.diff(shapes["row"]) >= 0).all())
        columns = (reuse[_REMARK + name].tolist() for name in (*_TEXTS, "label"))
        places = _places(row, stored[f"{_REMARK}row"]).tolist()
        remarks = [Remark(*one) for one in zip(places, *columns, strict=True)]
        groups = np.stack([stored[name] for name in _SAME], axis=1)
        _require(len(groups) == n)
    except ValueError as error:
        raise ReuseError("its /reuse contradicts itself") from error
    identities = np.zeros((n, 2), np.uint64)
    return Known(rows, marks, shapes, remarks, identities, key=b""), groups


def _require(is_so: object) -> None:
    if not is_so:
        raise ValueError


def _places(rows: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where some rows are among rows in ascending order.

    Raises
    ------
    ValueError
        One is not among them.
    """
    places = np.searchsorted(rows, wanted)
    _require((places < len(rows)).all() and np.array_equal(rows[places], wanted))
    return places


def _first_of_group(
    identities: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the first row that has each row's identity; -1 where there is none."""
    _, first, group = np.unique(identities, return_index=True, return_inverse=True)
    return np.where(identities == 0, NO_ROW, rows[first][group])


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
