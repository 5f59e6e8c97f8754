"""Examined samples between the two passes: what is small in memory, the rest in a spool file."""

import contextlib
import itertools
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from etl.dicom.pixels import image_dtype
from etl.errors import ReuseError
from etl.findings import Finding
from etl.model import BASICS, EMPTY_RANGE, Examined, ValueRange
from etl.options import BuildOptions
from etl.output import hdf5_file
from etl.output.row_writer import Plan, open_rows, write_rows
from etl.workers.chunks import runs

_SPOOL_BYTES: Final = 1 << 20  # kept in memory by each of the two; a file grows faster
_BLOCK_VERTICES: Final = 1 << 16


class Spool:
    """Samples in the order of their rows, added as they are examined, taken to be rendered."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []  # of all links, examined or not
        self.values: ValueRange = EMPTY_RANGE
        self.n_vertices = 0
        self._n_bytes = array("q")  # of each packed sample
        self._identities: list[npt.NDArray[np.uint64]] = []
        self._basics: list[npt.NDArray[np.void]] = []
        self._contours: list[npt.NDArray[np.int64]] = []  # of each stretch, see `contours`
        self._samples = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115  see close
        self._vertices = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115

    def close(self) -> None:
        """Free the memory and remove the spool files."""
        for file in (self._samples, self._vertices):
            with contextlib.suppress(OSError):  # nobody reads them any more
                file.close()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._n_bytes)

    def add(self, examined: Examined) -> None:
        """Append the samples of the next chunk of links."""
        self.findings += examined.findings
        self.values |= examined.values
        first = len(self)
        self._n_bytes.extend(map(len, examined.samples))
        self._samples.write(b"".join(examined.samples))
        self._contours.append(examined.contours + np.array([first, 0, 0]))
        self._identities.append(examined.identities)
        self._basics.append(examined.basics)
        self._vertices.write(examined.vertices.tobytes())
        self.n_vertices += len(examined.vertices)

    def contours(self) -> npt.NDArray[np.int64]:
        """Return (row, label, number of vertices) of each contour, by row; shape (n, 3)."""
        return np.concatenate([np.empty((0, 3), np.int64), *self._contours])

    def identities(self) -> npt.NDArray[np.uint64]:
        """Return the `Identity` of each sample; shape (n, 2)."""
        return np.concatenate([np.empty((0, 2), np.uint64), *self._identities])

    def basics(self) -> npt.NDArray[np.void]:
        """Return the BASICS of each sample."""
        return np.concatenate([np.empty(0, BASICS), *self._basics])

    def tasks(self, n_rows: int) -> Iterator[tuple[list[bytes], int]]:
        """Yield (packed samples, first row) of one chunk of rows after the other.

        Without kept rows; no chunk has rows on both sides of one.
        """
        self._samples.seek(0)
        for is_kept, start, stop in runs(self.is_kept().tolist()):
            for first in range(start, stop, n_rows) if not is_kept else ():
                sizes = self._n_bytes[first : min(first + n_rows, stop)]
                yield [self._samples.read(size) for size in sizes], first

    def is_kept(self) -> npt.NDArray[np.bool_]:
        """Return which rows are taken over from an older file: those of empty samples."""
        is_kept: npt.NDArray[np.bool_] = np.array(self._n_bytes, np.int64) == 0
        return is_kept

    def samples(self, rows: Sequence[int]) -> Iterator[bytes]:
        """Yield the packed samples of some rows.

        Raises
        ------
        ReuseError
            A row is kept.
        """
        ends = list(itertools.accumulate(self._n_bytes))
        for row in rows:
            if not self._n_bytes[row]:
                raise ReuseError("a row that it has loses a structure")
            self._samples.seek(ends[row] - self._n_bytes[row])
            yield self._samples.read(self._n_bytes[row])

    def plan(self, path: Path, options: BuildOptions, mask_dtype: str) -> Plan:
        """Return the places of a file with room for a row of each sample."""
        dtype = image_dtype(self.values)
        size = options.rows, options.columns
        return hdf5_file.laid_out(path, len(self), *size, dtype, self.n_vertices, mask_dtype)

    def reserve(self, plan: Plan, *, is_adopted: bool = False) -> Plan:
        """Make the file with its space reserved, and write the vertices into it.

        Parameters
        ----------
        is_adopted : bool
            The file is there, and some of its rows stay as they are.

        Raises
        ------
        OSError
            The space cannot be had.
        """
        hdf5_file.reserve(plan, is_adopted=is_adopted)
        return self._write_vertices(plan)

    def _write_vertices(self, plan: Plan) -> Plan:
        """Write contours/x and contours/y; return the plan with their digests."""
        digests = {name: xxhash.xxh3_128() for name in ("contours/x", "contours/y")}
        self._vertices.seek(0)
        with open_rows(plan) as file:
            for first in range(0, self.n_vertices, _BLOCK_VERTICES):
                block = np.frombuffer(self._vertices.read(16 * _BLOCK_VERTICES)).reshape(-1, 2)
                for axis, (name, digest) in enumerate(digests.items()):
                    values = np.ascontiguousarray(block[:, axis])
                    write_rows(file, plan, name, first, values)
                    digest.update(values.data)
        return replace(plan, digests={name: one.hexdigest() for name, one in digests.items()})
